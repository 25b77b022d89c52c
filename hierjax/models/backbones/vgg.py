"""VGG-11 and 16 without batch norm as in torchvision.

Simonyan and Zisserman 2014, arXiv:1409.1556. The trunk ends with the second wide layer.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from hierjax.models import layers
from hierjax.models.backbone import Backbone
from hierjax.models.initializers import normal

# Convolutions before each of the five pools.
DEPTHS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}
WIDTHS = (64, 128, 256, 512, 512)
# Names of the pools' outputs, at strides 2, 4, 8, 16, 32.
STAGES = ('stem', 'stage1', 'stage2', 'stage3', 'stage4')


def _torchvision_name(path: str) -> str:
  """Return torchvision's state dict prefix of a module path."""
  dense = {'fc1': 'classifier.0', 'fc2': 'classifier.3'}
  return dense[path] if path in dense else path.split('/')[1].replace('_', '.')


def _timm_name(path: str) -> str:
  """Return timm's state dict prefix of a module path."""
  return f'pre_logits.{path}' if path.startswith('fc') else _torchvision_name(path)


TORCH_NAMES = {'torchvision': _torchvision_name, 'timm': _timm_name}


class Stage(layers.Layer):
  """3x3 convolutions with ReLU, then a pool.

  Attributes:
    depth: number of convolutions.
    width: their channels.
    first: place of the first in torch's list of layers, which counts the ReLUs and the pools.
  """

  depth: int
  width: int
  first: int

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Transform x [B, H, W, C] to [B, H / 2, W / 2, width]."""
    del train
    options = {'use_bias': True, 'compute': self.compute}
    for i in range(self.depth):
      name = f'features_{self.first + 2 * i}'
      x = nn.relu(layers.Conv(self.width, 3, 1, 1, **options, name=name)(x))
    return layers.MaxPool(2, 2, compute=self.compute)(x)


class VGG(layers.Trunk):
  """Trunk of a VGG, for images of at least 32 pixels.

  Its two wide layers are convolutions over the whole 7 x 7 map and over one pixel, as timm has
  them; torchvision flattens the map.

  Attributes:
    depth: a key of `DEPTHS`.
    dropout: after each of the wide layers.
  """

  depth: int = 16
  dropout: float = 0.5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> layers.Output:
    """Compute features and maps."""
    maps, first, block = {}, 0, self.remat(Stage)
    for name, depth, width in zip(STAGES, DEPTHS[self.depth], WIDTHS):
      x = maps[name] = block(depth, width, first, compute=self.compute, name=name)(x, train)
      first += 2 * depth + 1
    x = maps['features'] = self.perturb('features', x)
    x = layers.AdaptiveAvgPool(7)(x)
    options = {'use_bias': True, 'initial': normal(0.01), 'compute': self.compute}
    for name, size in (('fc1', 7), ('fc2', 1)):
      x = nn.relu(layers.Conv(4096, size, size, **options, name=name)(x))
      x = layers.Dropout(self.dropout, compute=self.compute)(x, train)
    return x[:, 0, 0].astype(jnp.float32), maps


BACKBONES = {
  f'vgg{depth}': Backbone(functools.partial(VGG, depth), 4096, torch_names=TORCH_NAMES)
  for depth in DEPTHS
}
