"""Swin-T/S/B, the first version, as in torchvision (Liu et al. 2021, arXiv:2103.14030).

The trunk ends with the norm and the pooling.
"""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hierjax.models import functional, layers
from hierjax.models.backbone import Backbone
from hierjax.models.initializers import uniform

# name: (depths, width of the first stage, heads of the first stage, stochastic depth of the last
# block)
VARIANTS = {
  't': ((2, 2, 6, 2), 96, 3, 0.2),
  's': ((2, 2, 18, 2), 96, 3, 0.3),
  'b': ((2, 2, 18, 2), 128, 4, 0.5),
}
# Side of a window in pixels.
WINDOW = 7
# torch's default of the 4x4 convolution on 3 channels, kernel and bias.
torch_conv = uniform((4 * 4 * 3) ** -0.5)


def _timm_name(path: str) -> str:
  """Return timm's state dict prefix of a module path."""
  path = re.sub(r'^stages_(\d)_blocks_(\d+)', r'layers.\1.blocks.\2', path)
  path = re.sub(r'^stages_(\d)_downsample', r'layers.\1.downsample', path)
  path = {'stem_0': 'patch_embed.proj', 'stem_1': 'patch_embed.norm'}.get(path, path)
  return re.sub(r'/(fc\d)$', r'.mlp.\1', path).replace('/', '.')


def _torchvision_name(path: str) -> str:
  """Return torchvision's state dict prefix of a module path."""
  path = re.sub(r'^stages_(\d)_blocks_', lambda m: f'features.{2 * int(m[1]) + 1}.', path)
  path = re.sub(r'^stages_(\d)_downsample', lambda m: f'features.{2 * int(m[1])}', path)
  path = {'stem_0': 'features.0.0', 'stem_1': 'features.0.2'}.get(path, path)
  return path.replace('/fc1', '.mlp.0').replace('/fc2', '.mlp.3').replace('/', '.')


TORCH_NAMES = {'torchvision': _torchvision_name, 'timm': _timm_name}


def shift_mask(h: int, w: int, shift: tuple[int, int]) -> np.ndarray:
  """Mask the attention between pixels that only a shift of the windows brought together.

  Args:
    h: rows of the map, a multiple of `WINDOW`.
    w: columns of the map, a multiple of `WINDOW`.
    shift: by how many rows and columns the map was rolled.

  Returns:
    float32 [windows, n, n]: 0 between pixels that were neighbours before, elsewhere -100.
  """
  regions = []
  for size, s in zip((h, w), shift):
    ends = (size - WINDOW, size - s)
    regions.append(np.digitize(np.arange(size), ends) if s else np.zeros(size, int))
  region = 3 * regions[0][:, None] + regions[1]
  tiles = region.reshape(h // WINDOW, WINDOW, w // WINDOW, WINDOW).swapaxes(1, 2)
  region = tiles.reshape(-1, WINDOW * WINDOW)
  return np.where(region[:, :, None] == region[:, None], 0, -100).astype(np.float32)


class Block(layers.Layer):
  """Attention within windows of 7 x 7 pixels and an MLP.

  Maps are filled up with zeros below and to the right.

  Attributes:
    heads: of the attention.
    is_shifted: whether windows are moved by 3 pixels along the axes that have more than one.
    drop: stochastic depth of each of the two branches.
  """

  heads: int
  is_shifted: bool
  drop: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Transform x [B, H, W, C]."""
    compute = self.compute

    def norm(name):
      return layers.LayerNorm(1e-5, compute=compute, name=name)

    def drop(y):
      return layers.StochasticDepth(self.drop, compute=compute)(y, train)

    h, w = x.shape[1:3]
    high, wide = (-(-n // WINDOW) * WINDOW for n in (h, w))
    shift = tuple(WINDOW // 2 if self.is_shifted and n > WINDOW else 0 for n in (high, wide))
    mask = shift_mask(high, wide, shift) if any(shift) else None
    y = jnp.pad(norm('norm1')(x), ((0, 0), (0, high - h), (0, wide - w), (0, 0)))
    y = functional.windows(jnp.roll(y, (-shift[0], -shift[1]), (1, 2)), WINDOW)
    y = layers.Attention(self.heads, window=WINDOW, compute=compute, name='attn')(y, mask)
    y = jnp.roll(functional.from_windows(y, WINDOW, high, wide), shift, (1, 2))
    x = x + drop(y[:, :h, :w])
    return x + drop(layers.mlp(norm('norm2')(x), compute))


class Merge(layers.Layer):
  """Joins 2 x 2 pixels to one of twice the channels; an odd map gets a row or column of zeros."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Transform x [B, H, W, C] to [B, H / 2, W / 2, 2 * C]."""
    b, h, w, c = x.shape
    half_h, half_w = (h + 1) // 2, (w + 1) // 2
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    x = x.reshape(b, half_h, 2, half_w, 2, c).transpose(0, 1, 3, 4, 2, 5)
    x = x.reshape(b, half_h, half_w, 4 * c)
    x = layers.LayerNorm(1e-5, compute=self.compute, name='norm')(x)
    return layers.Dense(2 * c, use_bias=False, compute=self.compute, name='reduction')(x)


class Swin(layers.Trunk):
  """Trunk of a Swin Transformer. Its map 'features' is that after the last norm.

  Attributes:
    variant: a key of `VARIANTS`.
    drop_path: stochastic depth of the last block, rising linearly from 0 at the first; None is
      torchvision's.
  """

  variant: str = 't'
  drop_path: float | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> layers.Output:
    """Compute features and maps."""
    compute = self.compute
    depths, width, heads, drop = VARIANTS[self.variant]
    rates = layers.drop_rates(drop if self.drop_path is None else self.drop_path, depths)
    patch = {'use_bias': True, 'initial': torch_conv, 'initial_bias': torch_conv}
    x = layers.Conv(width, 4, 4, **patch, compute=compute, name='stem_0')(x)
    x = layers.LayerNorm(1e-5, compute=compute, name='stem_1')(x)
    maps, block = {'stem': x}, self.remat(Block)
    for stage in range(len(depths)):
      if stage:
        x = Merge(compute=compute, name=f'stages_{stage}_downsample')(x)
      for i, rate in enumerate(rates[stage]):
        options = {'compute': compute, 'name': f'stages_{stage}_blocks_{i}'}
        x = block(heads << stage, i % 2 == 1, rate, **options)(x, train)
      maps[f'stage{stage + 1}'] = x
    x = layers.LayerNorm(1e-5, compute=compute, name='norm')(x)
    x = maps['features'] = self.perturb('features', x)
    return layers.GlobalPool()(x), maps


BACKBONES = {
  f'swin_{variant}': Backbone(
    functools.partial(Swin, variant),
    8 * width,
    torch_names=TORCH_NAMES,
    # torchvision computes these by functions, which thop does not count.
    uncounted=r'.*/attn/(qkv|proj)',
  )
  for variant, (_, width, *_) in VARIANTS.items()
}
