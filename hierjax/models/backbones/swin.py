"""Swin-T/S/B, the first version, as in torchvision; the trunk ends with the norm and the pooling (Liu et al. 2021, arXiv:2103.14030)."""

import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hierjax.models import layers

# name: (depths, width of the first stage, heads of the first stage, stochastic depth of the last block)
VARIANTS = {
  't': ((2, 2, 6, 2), 96, 3, 0.2),
  's': ((2, 2, 18, 2), 96, 3, 0.3),
  'b': ((2, 2, 18, 2), 128, 4, 0.5),
}
WINDOW = 7
initial = layers.normal(
  0.02
)  # the originals' trunc_normal_(std=.02) cuts at ±2, a hundred deviations away
conv_default = layers.uniform(
  1 / math.sqrt(4 * 4 * 3)
)  # torch's default for the 4x4 convolution on 3 channels, kernel and bias


def _timm(path: str) -> str:
  path = re.sub(r'^stages_(\d)_blocks_(\d+)', r'layers.\1.blocks.\2', path)
  path = re.sub(r'^stages_(\d)_downsample', r'layers.\1.downsample', path)
  path = {'stem_0': 'patch_embed.proj', 'stem_1': 'patch_embed.norm'}.get(path, path)
  return re.sub(r'/(fc\d)$', r'.mlp.\1', path).replace('/', '.')


def _torchvision(path: str) -> str:
  path = re.sub(r'^stages_(\d)_blocks_', lambda m: f'features.{2 * int(m[1]) + 1}.', path)
  path = re.sub(r'^stages_(\d)_downsample', lambda m: f'features.{2 * int(m[1])}', path)
  path = {'stem_0': 'features.0.0', 'stem_1': 'features.0.2'}.get(path, path)
  return path.replace('/fc1', '.mlp.0').replace('/fc2', '.mlp.3').replace('/', '.')


# State dict prefix of a module path, per naming scheme.
torch_names = {'torchvision': _torchvision, 'timm': _timm}
UNSEEN = r'.*/attn/(qkv|proj)'  # torchvision computes them by functions, outside of modules


def shift_mask(h: int, w: int, shift: tuple[int, int]) -> np.ndarray:
  """[windows, n, n], 0 between pixels that were neighbours before rows and columns were rolled by the shift, elsewhere -100."""
  regions = [
    np.digitize(np.arange(size), (size - WINDOW, size - s)) if s else np.zeros(size, int)
    for size, s in ((h, shift[0]), (w, shift[1]))
  ]
  region = (
    (3 * regions[0][:, None] + regions[1])
    .reshape(h // WINDOW, WINDOW, w // WINDOW, WINDOW)
    .swapaxes(1, 2)
    .reshape(-1, WINDOW * WINDOW)
  )
  return np.where(region[:, :, None] == region[:, None], 0, -100).astype(np.float32)


class Block(nn.Module):
  """Attention within windows of 7 x 7 pixels and an MLP. The maps are filled up with zeros below and to the right; `shifted` moves the windows by 3 pixels
  along the axes that have more than one."""

  heads: int
  shifted: bool
  drop: float
  dtype: Any

  @nn.compact
  def __call__(self, x, train: bool):
    def norm(name):
      return layers.LayerNorm(1e-5, dtype=self.dtype, name=name)

    def drop(y):
      return layers.StochasticDepth(self.drop)(y, train)

    h, w, c = x.shape[1:]
    high, wide = (-(-n // WINDOW) * WINDOW for n in (h, w))
    shift = tuple(WINDOW // 2 if self.shifted and n > WINDOW else 0 for n in (high, wide))
    y = jnp.pad(norm('norm1')(x), ((0, 0), (0, high - h), (0, wide - w), (0, 0)))
    y = layers.windows(jnp.roll(y, (-shift[0], -shift[1]), (1, 2)), WINDOW)
    y = layers.Attention(self.heads, window=WINDOW, dtype=self.dtype, name='attn')(
      y, shift_mask(high, wide, shift) if any(shift) else None
    )
    x = x + drop(jnp.roll(layers.from_windows(y, WINDOW, high, wide), shift, (1, 2))[:, :h, :w])
    y = layers.Dense(4 * c, initial, dtype=self.dtype, name='fc1')(norm('norm2')(x))
    return x + drop(layers.Dense(c, initial, dtype=self.dtype, name='fc2')(layers.gelu(y)))


class Merge(nn.Module):
  """Each 2 x 2 pixels become one of twice the channels; an odd map gets a row or column of zeros."""

  dtype: Any

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))).reshape(
      b, (h + 1) // 2, 2, (w + 1) // 2, 2, c
    )
    x = x.transpose(0, 1, 3, 4, 2, 5).reshape(b, (h + 1) // 2, (w + 1) // 2, 4 * c)
    x = layers.LayerNorm(1e-5, dtype=self.dtype, name='norm')(x)
    return layers.Dense(2 * c, initial, use_bias=False, dtype=self.dtype, name='reduction')(x)


class Swin(nn.Module):
  """Trunk of a Swin Transformer. drop_path: the stochastic depth of the last block (None: torchvision's), rising linearly from 0 at the first."""

  variant: str = 't'
  drop_path: float | None = None
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
    """x [B, H, W, 3], normalised -> (features float32 [B, d], maps by name: stem, stage1 to stage4, and features, after the last norm)."""
    depths, width, heads, drop = VARIANTS[self.variant]
    drop = drop if self.drop_path is None else self.drop_path
    x = layers.Conv(
      width,
      4,
      4,
      use_bias=True,
      initial=conv_default,
      initial_bias=conv_default,
      dtype=self.dtype,
      name='stem_0',
    )(x)
    x = layers.LayerNorm(1e-5, dtype=self.dtype, name='stem_1')(x)
    ends, done, block = {'stem': x}, 0, layers.remat(Block, self.remat)
    for stage, depth in enumerate(depths):
      if stage:
        x = Merge(self.dtype, name=f'stages_{stage}_downsample')(x)
      for i in range(depth):
        x = block(
          heads << stage,
          i % 2 == 1,
          drop * done / (sum(depths) - 1),
          self.dtype,
          name=f'stages_{stage}_blocks_{i}',
        )(x, train)
        done += 1
      ends[f'stage{stage + 1}'] = x
    x = layers.LayerNorm(1e-5, dtype=self.dtype, name='norm')(x)
    x = ends['features'] = self.perturb('features', x)
    return layers.GlobalPool()(x), ends
