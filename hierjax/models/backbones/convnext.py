"""ConvNeXt-T/S/B/L as in torchvision; the trunk ends with the norm of the pooled features (Liu et al. 2022, arXiv:2201.03545)."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hierjax.models import layers

# name: (depths, widths, stochastic depth of the last block)
VARIANTS = {
  'tiny': ((3, 3, 9, 3), (96, 192, 384, 768), 0.1),
  'small': ((3, 3, 27, 3), (96, 192, 384, 768), 0.4),
  'base': ((3, 3, 27, 3), (128, 256, 512, 1024), 0.5),
  'large': ((3, 3, 27, 3), (192, 384, 768, 1536), 0.5),
}


def _timm(path: str) -> str:
  path = re.sub(r'^stages_(\d)_blocks_(\d+)', r'stages.\1.blocks.\2', path)
  path = re.sub(r'^stages_(\d)_downsample_', r'stages.\1.downsample.', path)
  path = re.sub(r'^(stem|head)_', r'\1.', path)
  return re.sub(r'/(fc\d)$', r'.mlp.\1', path).replace('/', '.')


def _torchvision(path: str) -> str:
  if m := re.fullmatch(r'stages_(\d)_blocks_(\d+)(?:/(\w+))?', path):
    part = {
      None: '',
      'conv_dw': '.block.0',
      'norm': '.block.2',
      'fc1': '.block.3',
      'fc2': '.block.5',
    }[m[3]]
    return f'features.{2 * int(m[1]) + 1}.{m[2]}{part}'
  if m := re.fullmatch(r'stages_(\d)_downsample_(\d)', path):
    return f'features.{2 * int(m[1])}.{m[2]}'
  return {'stem_0': 'features.0.0', 'stem_1': 'features.0.1', 'head_norm': 'classifier.0'}[path]


# State dict prefix of a module path, per naming scheme. The leaf 'gamma' is 'gamma' [C] in timm, 'layer_scale' [C, 1, 1] in torchvision.
torch_names = {'torchvision': _torchvision, 'timm': _timm}
UNSEEN = r'stem_1|stages_\d_downsample_0|head_norm'  # torchvision's LayerNorm2d
initial = layers.normal(
  0.02
)  # the originals' trunc_normal_(std=.02) cuts at ±2, a hundred deviations away


class Block(nn.Module):
  """7x7 depthwise convolution, norm, two dense layers, layer scale, stochastic depth, residual."""

  width: int
  drop: float
  dtype: Any

  @nn.compact
  def __call__(self, x, train: bool):
    y = layers.Conv(
      self.width,
      7,
      1,
      3,
      depthwise=True,
      use_bias=True,
      initial=initial,
      dtype=self.dtype,
      name='conv_dw',
    )(x)
    y = layers.LayerNorm(dtype=self.dtype, name='norm')(y)
    y = layers.Dense(4 * self.width, initial, dtype=self.dtype, name='fc1')(y)
    y = layers.Dense(self.width, initial, dtype=self.dtype, name='fc2')(layers.gelu(y))
    gamma = self.param('gamma', layers.constant(1e-6), (self.width,))
    y = y * jnp.asarray(gamma, self.dtype).reshape(1, 1, 1, -1)
    return x + layers.StochasticDepth(self.drop)(y, train)


class ConvNeXt(nn.Module):
  """Trunk of a ConvNeXt. drop_path: the stochastic depth of the last block (None: torchvision's), rising linearly from 0 at the first."""

  variant: str = 'tiny'
  drop_path: float | None = None
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
    """x [B, H, W, 3], normalised -> (features float32 [B, d], maps by name: stem, stage1 to stage4, features)."""
    depths, widths, drop = VARIANTS[self.variant]
    drop = drop if self.drop_path is None else self.drop_path
    patch = {'padding': 0, 'use_bias': True, 'initial': initial, 'dtype': self.dtype}
    x = layers.Conv(widths[0], 4, 4, **patch, name='stem_0')(x)
    x = layers.LayerNorm(dtype=self.dtype, name='stem_1')(x)
    ends, done = {'stem': x}, 0
    for stage, (depth, width) in enumerate(zip(depths, widths)):
      if stage:
        x = layers.LayerNorm(dtype=self.dtype, name=f'stages_{stage}_downsample_0')(x)
        x = layers.Conv(width, 2, 2, **patch, name=f'stages_{stage}_downsample_1')(x)
      for i in range(depth):
        x = layers.remat(Block, self.remat)(
          width, drop * done / (sum(depths) - 1), self.dtype, name=f'stages_{stage}_blocks_{i}'
        )(x, train)
        done += 1
      ends[f'stage{stage + 1}'] = x
    x = ends['features'] = self.perturb('features', x)
    return layers.LayerNorm(name='head_norm')(layers.GlobalPool()(x)), ends
