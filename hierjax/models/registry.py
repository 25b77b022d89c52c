"""The registry of backbones, by torchvision's and timm's names, and their cheap initialisation."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hierjax.models import layers
from hierjax.models.backbones import (
  convnext,
  densenet,
  efficientnet,
  maxvit,
  mobilenet,
  resnet,
  swin,
  vgg,
  vit,
)


@dataclasses.dataclass(frozen=True)
class Backbone:
  """What is fixed about a backbone: `make(dtype=..., ...)` builds the module, `features` is the width of its pooled output.

  mean and std are the original's, per RGB channel in 0..255 units; size is the image size it was trained at; torch_names maps a naming
  scheme to the function from a module's path in the parameter tree ('layer1_0/conv1') to its prefix in that scheme's state dict
  ('layer1.0.conv1'). stems maps each choice of model.stem that the backbone has to its modules that a weight file of the original need not fit: they
  stay as initialised where it does not. unseen is a regular expression of the paths of the modules that stand for what the original computes outside of
  modules that the tool thop knows (see counts.thop_macs).
  """

  make: Callable[..., nn.Module]
  features: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  size: int
  torch_names: Mapping[str, Callable[[str], str]]
  stems: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: {'standard': ()})
  unseen: str = ''


_IMAGENET = {'mean': (123.675, 116.28, 103.53), 'std': (58.395, 57.12, 57.375)}
_MOBILENET = functools.partial(functools.partial, mobilenet.MobileNet)
BACKBONES: dict[str, Backbone] = {
  **{
    f'resnet{d}': Backbone(
      functools.partial(resnet.ResNet, d),
      2048 if d >= 50 else 512,
      **_IMAGENET,
      size=224,
      torch_names=resnet.torch_names,
      stems={'standard': (), 'small': ('conv1',)},
    )
    for d in resnet.DEPTHS
  },
  # HCAL's (S2), for CIFAR-100: ResNet-18 with the small stem, and a linear layer 512 -> 256 that belongs to the trunk
  'resnet18_32px': Backbone(
    functools.partial(resnet.ResNet, 18, 'small', 256),
    256,
    **_IMAGENET,
    size=32,
    torch_names=resnet.torch_names,
    stems={'standard': ('conv1', 'fc')},
  ),
  # S4's AdvancedCNN is ResNet-18, layer by layer (its dropout and linear layer are the head's); the paper normalises with mean = std = .5
  'advanced_cnn': Backbone(
    functools.partial(resnet.ResNet, 18), 512, (127.5,) * 3, (127.5,) * 3, 224, resnet.torch_names
  ),
  **{
    f'convnext_{v}': Backbone(
      functools.partial(convnext.ConvNeXt, v),
      widths[-1],
      **_IMAGENET,
      size=224,
      torch_names=convnext.torch_names,
      unseen=convnext.UNSEEN,
    )
    for v, (_, widths, _) in convnext.VARIANTS.items()
  },
  **{
    f'densenet{d}': Backbone(
      functools.partial(densenet.DenseNet, d),
      width,
      **_IMAGENET,
      size=224,
      torch_names=densenet.torch_names,
      unseen='GlobalPool_0',
    )
    for d, width in ((121, 1024), (161, 2208), (169, 1664), (201, 1920))
  },
  **{
    f'vgg{d}': Backbone(
      functools.partial(vgg.VGG, d), 4096, **_IMAGENET, size=224, torch_names=vgg.torch_names
    )
    for d in vgg.DEPTHS
  },
  'mobilenet_v2': Backbone(
    _MOBILENET(**mobilenet.V2),
    1280,
    **_IMAGENET,
    size=224,
    torch_names=mobilenet.v2_names,
    unseen='GlobalPool_0',
  ),
  'mobilenet_v3_large': Backbone(
    _MOBILENET(**mobilenet.V3_LARGE), 1280, **_IMAGENET, size=224, torch_names=mobilenet.v3_names
  ),
  **{
    f'efficientnet_b{v}': Backbone(
      _MOBILENET(**efficientnet.b(v)),
      efficientnet.b(v)['head'],
      **_IMAGENET,
      size=size,
      torch_names=efficientnet.b_names(v),
    )
    for v, (*_, size) in enumerate(efficientnet.B)
  },
  **{
    f'efficientnet_lite{v}': Backbone(
      _MOBILENET(**efficientnet.lite(v)),
      1280,
      (127.0,) * 3,
      (128.0,) * 3,
      size,
      efficientnet.lite_names(v),
    )
    for v, (*_, size) in enumerate(efficientnet.LITE)
  },
  'maxvit_t': Backbone(maxvit.MaxViT, 512, **_IMAGENET, size=224, torch_names=maxvit.torch_names),
  **{
    f'swin_{v}': Backbone(
      functools.partial(swin.Swin, v),
      8 * width,
      **_IMAGENET,
      size=224,
      torch_names=swin.torch_names,
      unseen=swin.UNSEEN,
    )
    for v, (_, width, *_) in swin.VARIANTS.items()
  },
  'vit_b_16': Backbone(
    vit.ViT, vit.WIDTH, **_IMAGENET, size=224, torch_names=vit.torch_names, unseen=vit.UNSEEN
  ),
}


COLLECTIONS = (
  'params',
  'batch_stats',
)  # what a model consists of; backbones also `perturb` their last maps, for gradients with respect to them


def init(module: nn.Module, seed: int, *args, **kwargs) -> dict:
  """Variables of a module as numpy arrays, drawn by its initialisers with numpy from the seed; args default to one 224-pixel image, which every backbone takes.

  It traces the module without compiling or running it: a jitted `module.init` costs 8-10 s for a ResNet-50, this well under one. The
  module's initialisers must be those of `layers`.
  """
  drawn = {}

  def trace():
    rngs = dict.fromkeys(('params', 'dropout'), jax.random.key(0))
    drawn.update(
      module.init(rngs, *(args or (jnp.zeros((1, 224, 224, 3)),)), mutable=COLLECTIONS, **kwargs)
    )

  with layers.drawing(np.random.default_rng(seed)), layers.formulation('plain'):
    jax.eval_shape(trace)
  for path, leaf in jax.tree_util.tree_flatten_with_path(drawn)[0]:
    if not isinstance(leaf, np.ndarray):
      raise TypeError(
        f'{jax.tree_util.keystr(path)}: models.init needs an initialiser of hierjax.models.layers'
      )
  return drawn
