"""DenseNet-121/161/169/201 as in torchvision (Huang et al. 2017, arXiv:1608.06993).

The trunk ends with the norm and the ReLU of the last maps.
"""

import functools
import re
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from hierjax.models import layers
from hierjax.models.backbone import Backbone
from hierjax.models.initializers import fan_in

# (channels that a layer adds, layers of the four blocks, channels of the stem)
VARIANTS = {
  121: (32, (6, 12, 24, 16), 64),
  161: (48, (6, 12, 36, 24), 96),
  169: (32, (6, 12, 32, 32), 64),
  201: (32, (6, 12, 48, 32), 64),
}


def torch_name(path: str) -> str:
  """Return the state dict prefix of a module path; timm's carry torchvision's names."""
  return 'features.' + path.replace('/', '.').replace('_', '.')


def _old_name(path: str) -> str:
  """Return the prefix as in torchvision's first releases, as in the files that it still offers:
  'norm.1' for 'norm1' in the layers of the blocks."""
  return re.sub(r'(denselayer\d+\.(?:norm|conv))(\d)$', r'\1.\2', torch_name(path))


TORCH_NAMES = {'torchvision': torch_name, 'timm': torch_name, 'torchvision_old': _old_name}
Moments = tuple[jax.Array, jax.Array]


def _joined(moments: Sequence[Moments]) -> Moments:
  """Concatenate the means and variances [C] of several maps."""
  means, variances = zip(*moments)
  return jnp.concatenate(means), jnp.concatenate(variances)


class DenseLayer(layers.Layer):
  """Batch norm, ReLU and 1x1 convolution to 4 * growth channels; the same with 3x3 to growth."""

  growth: int

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], train: bool, moments: Moments) -> jax.Array:
    """Compute new maps [B, H, W, growth] from all maps before, whose moments are known."""
    conv = {'initial': fan_in, 'compute': self.compute}
    x = jnp.concatenate(maps, -1)
    x = layers.BatchNorm('relu', compute=self.compute, name='norm1')(x, train, moments)
    x = layers.Conv(4 * self.growth, 1, **conv, name='conv1')(x)
    x = layers.BatchNorm('relu', compute=self.compute, name='norm2')(x, train)
    return layers.Conv(self.growth, 3, 1, 1, **conv, name='conv2')(x)


class DenseNet(layers.Trunk):
  """Trunk of a DenseNet.

  In training the norms of a block share each map's moments, which are the same in all of them.
  remat recomputes what lies within a layer, as torchvision's memory_efficient does: what is kept
  grows with the number of layers of a block, not with its square.

  Attributes:
    depth: a key of `VARIANTS`.
  """

  depth: int = 121

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> layers.Output:
    """Compute features and maps."""
    compute = self.compute
    growth, depths, width = VARIANTS[self.depth]
    conv = {'initial': fan_in, 'compute': compute}

    def moments_of(x):
      return compute.ops.moments(x, compute.batch_axis)

    x = layers.Conv(width, 7, 2, 3, **conv, name='conv0')(x)
    x = layers.BatchNorm('relu', compute=compute, name='norm0')(x, train)
    ends = {'stem': x}
    x = layers.MaxPool(3, 2, 1, compute=compute)(x)
    dense_layer = self.remat(DenseLayer)
    for stage, depth in enumerate(depths, 1):
      maps, moments = [x], [moments_of(x)]
      for i in range(1, depth + 1):
        layer = dense_layer(growth, compute=compute, name=f'denseblock{stage}_denselayer{i}')
        maps.append(layer(maps, train, _joined(moments)))
        moments.append(moments_of(maps[-1]))
      x = ends[f'stage{stage}'] = jnp.concatenate(maps, -1)
      norm = f'transition{stage}_norm' if stage < 4 else 'norm5'
      x = layers.BatchNorm('relu', compute=compute, name=norm)(x, train, _joined(moments))
      if stage < 4:
        x = layers.Conv(x.shape[-1] // 2, 1, **conv, name=f'transition{stage}_conv')(x)
        x = layers.AvgPool(2, 2, compute=compute, name=f'transition{stage}_pool')(x)
    x = ends['features'] = self.perturb('features', x)
    return layers.GlobalPool()(x), ends


BACKBONES = {
  f'densenet{depth}': Backbone(
    functools.partial(DenseNet, depth),
    features,
    torch_names=TORCH_NAMES,
    # torchvision pools by a function, which thop does not count.
    uncounted='GlobalPool_0',
  )
  for depth, features in ((121, 1024), (161, 2208), (169, 1664), (201, 1920))
}
