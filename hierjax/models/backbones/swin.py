"""Swin as in torchvision (Liu et al. 2021, arXiv:2103.14030), and Swin V2 as in timm
(Liu et al. 2021, arXiv:2111.09883).

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
from hierjax.models.functional import Window
from hierjax.models.initializers import ones, uniform, zeros

# name: (depths, width of the first stage, heads of the first stage, stochastic depth of the last
# block)
VARIANTS = {
  't': ((2, 2, 6, 2), 96, 3, 0.2),
  's': ((2, 2, 18, 2), 96, 3, 0.3),
  'b': ((2, 2, 18, 2), 128, 4, 0.5),
  'l': ((2, 2, 18, 2), 192, 6, 0.2),
}
# Swin V2: (variant, size of the images, side of a window, and its side in pretraining at each stage
# where that was smaller)
SAME, SMALLER = (None,) * 4, (12, 12, 12, 6)
V2 = {
  'tiny_window8_256': ('t', 256, 8, SAME),
  'tiny_window16_256': ('t', 256, 16, SAME),
  'small_window8_256': ('s', 256, 8, SAME),
  'small_window16_256': ('s', 256, 16, SAME),
  'base_window8_256': ('b', 256, 8, SAME),
  'base_window16_256': ('b', 256, 16, SAME),
  'base_window12_192': ('b', 192, 12, SAME),
  'base_window12to16_192to256': ('b', 256, 16, SMALLER),
  'base_window12to24_192to384': ('b', 384, 24, SMALLER),
  'large_window12_192': ('l', 192, 12, SAME),
  'large_window12to16_192to256': ('l', 256, 16, SMALLER),
  'large_window12to24_192to384': ('l', 384, 24, SMALLER),
}
# torch's default of the 4x4 convolution on 3 channels, kernel and bias.
torch_conv = uniform((4 * 4 * 3) ** -0.5)


def _timm_name(path: str) -> str:
  """Return timm's state dict prefix of a module path."""
  path = re.sub(r'^stages_(\d)_blocks_(\d+)', r'layers.\1.blocks.\2', path)
  path = re.sub(r'^stages_(\d)_downsample', r'layers.\1.downsample', path)
  path = {'stem_0': 'patch_embed.proj', 'stem_1': 'patch_embed.norm'}.get(path, path)
  path = re.sub(r'/(fc\d)$', r'.mlp.\1', path).replace('cpb_mlp_', 'cpb_mlp.')
  return path.replace('/', '.')


def _original_name(path: str) -> str:
  """Return the prefix in microsoft/Swin-Transformer's files: a stage ends with its downsampling."""
  path = re.sub(r'^stages_(\d)_down', lambda m: f'stages_{int(m[1]) - 1}_down', path)
  return _timm_name(path)


def _torchvision_name(path: str) -> str:
  """Return torchvision's state dict prefix of a module path."""
  path = re.sub(r'^stages_(\d)_blocks_', lambda m: f'features.{2 * int(m[1]) + 1}.', path)
  path = re.sub(r'^stages_(\d)_downsample', lambda m: f'features.{2 * int(m[1])}', path)
  path = {'stem_0': 'features.0.0', 'stem_1': 'features.0.2'}.get(path, path)
  return path.replace('/fc1', '.mlp.0').replace('/fc2', '.mlp.3').replace('/', '.')


TIMM_NAMES = {'timm': _timm_name, 'original': _original_name}
TORCH_NAMES = {'torchvision': _torchvision_name, **TIMM_NAMES}


def shift_mask(size: Window, window: Window, shift: Window) -> np.ndarray:
  """Mask the attention between pixels that only a shift of the windows brought together.

  Args:
    size: rows and columns of the map, multiples of those of a window.
    window: rows and columns of a window.
    shift: by how many rows and columns the map was rolled.

  Returns:
    float32 [windows, n, n]: 0 between pixels that were neighbours before, elsewhere -100.
  """
  regions = []  # of each row, and of each column: 0, or where it wraps around 1 and 2
  for n, r, s in zip(size, window, shift):
    regions.append(np.digitize(np.arange(n), (n - r, n - s)) if s else np.zeros(n, int))
  region = 3 * regions[0][:, None] + regions[1]
  region = functional.windows(region[None, :, :, None], window)[0, :, :, 0]
  were_neighbours = region[:, :, None] == region[:, None]
  return np.where(were_neighbours, 0, -100).astype(np.float32)


class Block(layers.Layer):
  """Attention within windows and an MLP.

  Maps are filled up with zeros below and to the right.

  Attributes:
    heads: of the attention.
    is_shifted: whether windows are moved by half of one along the axes that have more than one.
    drop: stochastic depth of each of the two branches.
    window: side of a window in pixels.
    is_v2: whether the block is Swin V2's: its windows are no larger than the map, its attention is
      of cosines, and the norms stand at the end of the branches, which are 0 at first.
    reference: as in `layers.Attention`.
  """

  heads: int
  is_shifted: bool
  drop: float
  window: int = 7
  is_v2: bool = False
  reference: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Transform x [B, H, W, C]."""
    compute, (h, w) = self.compute, x.shape[1:3]
    window = tuple(min(self.window, n) if self.is_v2 else self.window for n in (h, w))
    high, wide = (-(-n // s) * s for n, s in zip((h, w), window))  # whole windows
    shift = tuple(s // 2 if self.is_shifted and n > s else 0 for n, s in zip((high, wide), window))

    def norm(name):
      initial = zeros if self.is_v2 else ones
      return layers.LayerNorm(1e-5, initial, compute=compute, name=name)

    def drop(y):
      return layers.StochasticDepth(self.drop, compute=compute)(y, train)

    def fill(y):
      return jnp.pad(y, ((0, 0), (0, high - h), (0, wide - w), (0, 0)))

    def roll(y, sign):
      return jnp.roll(y, (sign * shift[0], sign * shift[1]), (1, 2))

    def attend(y):
      mask = shift_mask((high, wide), window, shift) if any(shift) else None
      options = {'window': window, 'biased': 'qv' if self.is_v2 else 'qkv'}
      options |= {'is_cosine': self.is_v2, 'reference': self.reference}
      attention = layers.Attention(self.heads, **options, compute=compute, name='attn')
      y = attention(functional.windows(y, window), mask)
      return functional.from_windows(y, window, high, wide)

    if self.is_v2:
      y = roll(attend(fill(roll(x, -1)))[:, :h, :w], 1)
      x = x + drop(norm('norm1')(y))
      return x + drop(norm('norm2')(layers.mlp(x, compute)))
    y = roll(attend(roll(fill(norm('norm1')(x)), -1)), 1)
    x = x + drop(y[:, :h, :w])
    return x + drop(layers.mlp(norm('norm2')(x), compute))


class Merge(layers.Layer):
  """Joins 2 x 2 pixels to one of twice the channels; an odd map gets a row or column of zeros.

  Attributes:
    is_v2: whether the norm comes last.
  """

  is_v2: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Transform x [B, H, W, C] to [B, H / 2, W / 2, 2 * C]."""
    b, h, w, c = x.shape
    half_h, half_w = (h + 1) // 2, (w + 1) // 2
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    x = x.reshape(b, half_h, 2, half_w, 2, c).transpose(0, 1, 3, 4, 2, 5)
    x = x.reshape(b, half_h, half_w, 4 * c)
    norm = layers.LayerNorm(1e-5, compute=self.compute, name='norm')
    dense = layers.Dense(2 * c, use_bias=False, compute=self.compute, name='reduction')
    return norm(dense(x)) if self.is_v2 else dense(norm(x))


class Swin(layers.Trunk):
  """Trunk of a Swin Transformer. Its map 'features' is that after the last norm.

  Attributes:
    variant: a key of `VARIANTS`.
    drop_path: stochastic depth of the last block, rising linearly from 0 at the first; None is the
      variant's.
    window: side of a window in pixels.
    is_v2: whether blocks are Swin V2's.
    references: of the blocks of each stage, as in `layers.Attention`.
  """

  variant: str = 't'
  drop_path: float | None = None
  window: int = 7
  is_v2: bool = False
  references: tuple[int | None, ...] = SAME

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
        x = Merge(self.is_v2, compute=compute, name=f'stages_{stage}_downsample')(x)
      style = (self.window, self.is_v2, self.references[stage])
      for i, rate in enumerate(rates[stage]):
        options = {'compute': compute, 'name': f'stages_{stage}_blocks_{i}'}
        x = block(heads << stage, i % 2 == 1, rate, *style, **options)(x, train)
      maps[f'stage{stage + 1}'] = x
    x = layers.LayerNorm(1e-5, compute=compute, name='norm')(x)
    x = maps['features'] = self.perturb('features', x)
    return layers.GlobalPool()(x), maps


BACKBONES = {
  f'swin_{variant}': Backbone(
    functools.partial(Swin, variant),
    8 * VARIANTS[variant][1],
    torch_names=TORCH_NAMES,
    # torchvision computes these by functions, which thop does not count.
    uncounted=r'.*/attn/(qkv|proj)',
  )
  for variant in 'tsb'
} | {
  f'swinv2_{name}': Backbone(
    functools.partial(Swin, variant, window=window, is_v2=True, references=references),
    8 * VARIANTS[variant][1],
    size=size,
    torch_names=TIMM_NAMES,
    # As above, in timm.
    uncounted=r'.*/attn/qkv',
  )
  for name, (variant, size, window, references) in V2.items()
}
