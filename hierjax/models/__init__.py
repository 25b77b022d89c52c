"""The registry of backbones, by torchvision's and timm's names, and their cheap initialisation."""
import dataclasses
import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hierjax.models import convnext, efficientnet_lite, layers, maxvit, resnet, swin, vit


@dataclasses.dataclass(frozen=True)
class Backbone:
  """What is fixed about a backbone: `make(dtype=..., ...)` builds the module, `features` is the width of its pooled output.

  mean and std are the original's, per RGB channel in 0..255 units; size is the image size it was trained at; torch_names maps a naming
  scheme to the function from a module's path in the parameter tree ('layer1_0/conv1') to its prefix in that scheme's state dict
  ('layer1.0.conv1').
  """
  make: Callable[..., nn.Module]
  features: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  size: int
  torch_names: Mapping[str, Callable[[str], str]]


_IMAGENET = {'mean': (123.675, 116.28, 103.53), 'std': (58.395, 57.12, 57.375)}
BACKBONES: dict[str, Backbone] = {
    **{f'resnet{d}': Backbone(functools.partial(resnet.ResNet, d), 2048 if d >= 50 else 512, **_IMAGENET, size=224,
                              torch_names=resnet.torch_names) for d in resnet.DEPTHS},
    **{f'convnext_{v}': Backbone(functools.partial(convnext.ConvNeXt, v), widths[-1], **_IMAGENET, size=224,
                                 torch_names=convnext.torch_names) for v, (_, widths, _) in convnext.VARIANTS.items()},
    **{f'efficientnet_lite{v}': Backbone(functools.partial(efficientnet_lite.EfficientNetLite, v), 1280, (127.,) * 3, (128.,) * 3, size,
                                         efficientnet_lite.torch_names(v)) for v, size in enumerate((224, 240, 260, 280, 300))},
    'maxvit_t': Backbone(maxvit.MaxViT, 512, **_IMAGENET, size=224, torch_names=maxvit.torch_names),
    **{f'swin_{v}': Backbone(functools.partial(swin.Swin, v), 8 * width, **_IMAGENET, size=224,
                             torch_names=swin.torch_names) for v, (_, width, *_) in swin.VARIANTS.items()},
    'vit_b_16': Backbone(vit.ViT, vit.WIDTH, **_IMAGENET, size=224, torch_names=vit.torch_names),
}


COLLECTIONS = ('params', 'batch_stats')  # what a model consists of; backbones also `perturb` their last maps, for gradients with respect to them


def init(module: nn.Module, seed: int, *args, **kwargs) -> dict:
  """Variables of a module as numpy arrays, drawn by its initialisers with numpy from the seed; args default to one 224-pixel image, which every backbone takes.

  It traces the module without compiling or running it: a jitted `module.init` costs 8-10 s for a ResNet-50, this well under one. The
  module's initialisers must be those of `layers`.
  """
  drawn = {}

  def trace():
    rngs = dict.fromkeys(('params', 'dropout'), jax.random.key(0))
    drawn.update(module.init(rngs, *(args or (jnp.zeros((1, 224, 224, 3)),)), mutable=COLLECTIONS, **kwargs))

  with layers.drawing(np.random.default_rng(seed)), layers.formulation('plain'):
    jax.eval_shape(trace)
  for path, leaf in jax.tree_util.tree_flatten_with_path(drawn)[0]:
    if not isinstance(leaf, np.ndarray):
      raise TypeError(f'{jax.tree_util.keystr(path)}: models.init needs an initialiser of hierjax.models.layers')
  return drawn
