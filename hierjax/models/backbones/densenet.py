"""DenseNet-121/161/169/201 as in torchvision; the trunk ends with the norm and ReLU of the last maps (Huang et al. 2017, arXiv:1608.06993)."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hierjax.models import layers

# (channels a layer adds, layers of the four blocks, channels of the stem)
VARIANTS = {
  121: (32, (6, 12, 24, 16), 64),
  161: (48, (6, 12, 36, 24), 96),
  169: (32, (6, 12, 32, 32), 64),
  201: (32, (6, 12, 48, 32), 64),
}


def _dotted(path: str) -> str:
  return 'features.' + path.replace('/', '.').replace('_', '.')


# State dict prefix of a module path, per naming scheme; timm's carry torchvision's names. The files that torchvision offers still have those of
# its first releases, 'norm.1' for 'norm1' in the layers of the blocks.
torch_names = {
  **dict.fromkeys(('torchvision', 'timm'), _dotted),
  'torchvision_old': lambda path: re.sub(
    r'(denselayer\d+\.(?:norm|conv))(\d)$', r'\1.\2', _dotted(path)
  ),
}


class Layer(nn.Module):
  """Batch norm, ReLU and 1x1 convolution to 4 * growth channels; batch norm, ReLU and 3x3 convolution to growth channels."""

  growth: int
  dtype: Any

  @nn.compact
  def __call__(self, maps, train: bool, known):
    x = layers.BatchNorm('relu', dtype=self.dtype, name='norm1')(
      jnp.concatenate(maps, -1), train, known
    )
    x = layers.Conv(4 * self.growth, 1, initial=layers.fan_in, dtype=self.dtype, name='conv1')(x)
    x = layers.BatchNorm('relu', dtype=self.dtype, name='norm2')(x, train)
    return layers.Conv(self.growth, 3, 1, 1, initial=layers.fan_in, dtype=self.dtype, name='conv2')(
      x
    )


class DenseNet(nn.Module):
  """Trunk of a DenseNet. In training the norms of a block share each map's statistics, which are the same in all of them. remat recomputes what lies
  within a layer, as torchvision's memory_efficient does: what is kept grows with the layers of a block, not with their square."""

  depth: int = 121
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
    """x [B, H, W, 3], normalised -> (features float32 [B, d], maps by name: stem, stage1 to stage4, features)."""
    growth, depths, width = VARIANTS[self.depth]
    x = layers.Conv(width, 7, 2, 3, initial=layers.fan_in, dtype=self.dtype, name='conv0')(x)
    x = layers.BatchNorm('relu', dtype=self.dtype, name='norm0')(x, train)
    ends = {'stem': x}
    x = layers.max_pool(x, 3, 2, 1)
    for stage, depth in enumerate(depths, 1):
      maps, moments = [x], [layers.moments(x)]
      for i in range(1, depth + 1):
        layer = layers.remat(Layer, self.remat)(
          growth, self.dtype, name=f'denseblock{stage}_denselayer{i}'
        )
        maps.append(layer(maps, train, _joined(moments)))
        moments.append(layers.moments(maps[-1]))
      x = ends[f'stage{stage}'] = jnp.concatenate(maps, -1)
      norm = f'transition{stage}_norm' if stage < 4 else 'norm5'
      x = layers.BatchNorm('relu', dtype=self.dtype, name=norm)(x, train, _joined(moments))
      if stage < 4:
        x = layers.Conv(
          x.shape[-1] // 2,
          1,
          initial=layers.fan_in,
          dtype=self.dtype,
          name=f'transition{stage}_conv',
        )(x)
        x = layers.AvgPool(2, 2, name=f'transition{stage}_pool')(x)
    x = ends['features'] = self.perturb('features', x)
    return layers.GlobalPool()(x), ends


def _joined(moments):
  """(means, variances) of maps after one another, from those of each."""
  return tuple(map(jnp.concatenate, zip(*moments)))
