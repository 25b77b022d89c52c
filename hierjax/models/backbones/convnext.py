"""ConvNeXt-T/S/B/L as in torchvision (Liu et al. 2022, arXiv:2201.03545), and V2 as in timm.

The trunk ends with the norm of the pooled features.
"""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from hierjax.models import functional, layers
from hierjax.models.backbone import Backbone
from hierjax.models.initializers import constant, small_normal

# name: (depths, widths, stochastic depth of the last block)
VARIANTS = {
  'tiny': ((3, 3, 9, 3), (96, 192, 384, 768), 0.1),
  'small': ((3, 3, 27, 3), (96, 192, 384, 768), 0.4),
  'base': ((3, 3, 27, 3), (128, 256, 512, 1024), 0.5),
  'large': ((3, 3, 27, 3), (192, 384, 768, 1536), 0.5),
}
# The second version (Woo et al. 2023, arXiv:2301.00808), as in timm without stochastic depth.
VARIANTS |= {f'v2_{name}': (*sizes[:2], 0.0) for name, sizes in VARIANTS.items()} | {
  'v2_atto': ((2, 2, 6, 2), (40, 80, 160, 320), 0.0),
  'v2_femto': ((2, 2, 6, 2), (48, 96, 192, 384), 0.0),
  'v2_pico': ((2, 2, 6, 2), (64, 128, 256, 512), 0.0),
  'v2_nano': ((2, 2, 8, 2), (80, 160, 320, 640), 0.0),
}


def _timm_name(path: str) -> str:
  """Return timm's state dict prefix of a module path."""
  path = re.sub(r'^stages_(\d)_blocks_(\d+)', r'stages.\1.blocks.\2', path)
  path = re.sub(r'^stages_(\d)_downsample_', r'stages.\1.downsample.', path)
  path = re.sub(r'^(stem|head)_', r'\1.', path)
  return re.sub(r'/(fc\d|grn)$', r'.mlp.\1', path).replace('/', '.')


def _torchvision_name(path: str) -> str:
  """Return torchvision's state dict prefix of a module path."""
  ends = {'stem_0': 'features.0.0', 'stem_1': 'features.0.1', 'head_norm': 'classifier.0'}
  if path in ends:
    return ends[path]
  path = re.sub(r'^stages_(\d)_blocks_', lambda m: f'features.{2 * int(m[1]) + 1}.', path)
  path = re.sub(r'^stages_(\d)_downsample_', lambda m: f'features.{2 * int(m[1])}.', path)
  places = {'conv_dw': '0', 'norm': '2', 'fc1': '3', 'fc2': '5'}
  return re.sub(r'/(\w+)', lambda m: f'.block.{places[m[1]]}', path)


TORCH_NAMES = {'torchvision': _torchvision_name, 'timm': _timm_name}


class Block(layers.Layer):
  """7x7 depthwise convolution, norm, MLP, layer scale and stochastic depth; residual.

  The second version has no layer scale, but a response norm in the MLP.
  """

  drop: float
  is_second: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Transform x [B, H, W, C]."""
    c, compute = x.shape[-1], self.compute
    depthwise = {'depthwise': True, 'use_bias': True, 'initial': small_normal}
    y = layers.Conv(c, 7, 1, 3, **depthwise, compute=compute, name='conv_dw')(x)
    y = layers.LayerNorm(compute=compute, name='norm')(y)
    if self.is_second:
      y = layers.mlp(y, compute, norm=layers.ResponseNorm(compute=compute, name='grn'))
    else:
      y = layers.mlp(y, compute)
      # timm has it as gamma [C], torchvision as layer_scale [C, 1, 1].
      gamma = jnp.asarray(self.weight('gamma', constant(1e-6), (c,)), compute.dtype)
      y = y * functional.per_channel(gamma, y)
    return x + layers.StochasticDepth(self.drop, compute=compute)(y, train)


class ConvNeXt(layers.Trunk):
  """Trunk of a ConvNeXt.

  Attributes:
    variant: a key of `VARIANTS`.
    drop_path: stochastic depth of the last block, rising linearly from 0 at the first; None is
      torchvision's.
  """

  variant: str = 'tiny'
  drop_path: float | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> layers.Output:
    """Compute features and maps."""
    compute = self.compute
    depths, widths, drop = VARIANTS[self.variant]
    rates = layers.drop_rates(drop if self.drop_path is None else self.drop_path, depths)
    patch = {'use_bias': True, 'initial': small_normal, 'compute': compute}
    x = layers.Conv(widths[0], 4, 4, **patch, name='stem_0')(x)
    x = layers.LayerNorm(compute=compute, name='stem_1')(x)
    maps, block = {'stem': x}, self.remat(Block)
    for stage, width in enumerate(widths):
      if stage:
        x = layers.LayerNorm(compute=compute, name=f'stages_{stage}_downsample_0')(x)
        x = layers.Conv(width, 2, 2, **patch, name=f'stages_{stage}_downsample_1')(x)
      for i, rate in enumerate(rates[stage]):
        name = f'stages_{stage}_blocks_{i}'
        x = block(rate, self.variant.startswith('v2'), compute=compute, name=name)(x, train)
      maps[f'stage{stage + 1}'] = x
    x = maps['features'] = self.perturb('features', x)
    norm = layers.LayerNorm(compute=compute.in_float32, name='head_norm')
    return norm(layers.GlobalPool()(x)), maps


BACKBONES = {
  f'convnext_{variant}'.replace('_v2', 'v2'): Backbone(
    functools.partial(ConvNeXt, variant),
    widths[-1],
    torch_names={'timm': _timm_name} if variant.startswith('v2') else TORCH_NAMES,
    # torchvision's LayerNorm2d, which thop does not count.
    uncounted=r'stem_1|stages_\d_downsample_0|head_norm',
  )
  for variant, (_, widths, _) in VARIANTS.items()
}
