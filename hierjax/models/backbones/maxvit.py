"""MaxViT-T as in torchvision: the trunk keeps the norm, the linear layer and the tanh before the classifier (Tu et al. 2022, arXiv:2204.01697)."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hierjax.core.errors import UserError
from hierjax.models import layers

WIDTHS, DEPTHS = (64, 128, 256, 512), (2, 2, 5, 2)
PARTITION, HEAD = 7, 32  # side of a window and of a grid; channels of an attention head
initial = layers.normal(0.02)


def torchvision(path: str) -> str:
  """torchvision's state dict prefix of a module path."""
  path = re.sub(r'^blocks_(\d)_(\d)/', r'blocks.\1.layers.\2.layers.', path)
  path = re.sub(r'\.MBconv/(?!proj)', '.MBconv.layers.', path).replace(
    'MBconv/proj', 'MBconv.proj.1'
  )
  path = re.sub(r'\.(conv_[ab])_(\d)$', r'.\1.\2', path)
  path = re.sub(
    r'_attention/(norm1|attn|norm2|fc1|fc2)',
    lambda m: (
      '_attention.'
      + {
        'norm1': 'attn_layer.0',
        'attn': 'attn_layer.1',
        'norm2': 'mlp_layer.0',
        'fc1': 'mlp_layer.1',
        'fc2': 'mlp_layer.3',
      }[m[1]]
    ),
    path,
  )
  path = {
    'stem_0': 'stem.0.0',
    'stem_1': 'stem.0.1',
    'stem_2': 'stem.1.0',
    'head_norm': 'classifier.2',
    'head_fc': 'classifier.3',
  }.get(path, path)
  return path.replace('/qkv', '.to_qkv').replace('/proj', '.merge').replace('/', '.')


torch_names = {'torchvision': torchvision}


def batch_norm(act: str, dtype: Any, name: str) -> layers.BatchNorm:
  return layers.BatchNorm(act, 1e-3, 0.99, dtype=dtype, name=name)


class MBConv(nn.Module):
  """Inverted residual with the norm first: 1x1 to 4 * width, depthwise 3x3, squeeze-and-excite, 1x1; with a stride its shortcut is pooled and projected."""

  width: int
  stride: int
  drop: float
  dtype: Any

  @nn.compact
  def __call__(self, x, train: bool):
    def conv(x, features, size, name, **options):
      return layers.Conv(features, size, **options, initial=initial, dtype=self.dtype, name=name)(x)

    y = batch_norm('', self.dtype, 'pre_norm')(x, train)
    y = batch_norm('gelu', self.dtype, 'conv_a_1')(conv(y, 4 * self.width, 1, 'conv_a_0'), train)
    y = conv(y, 4 * self.width, 3, 'conv_b_0', stride=self.stride, padding=1, depthwise=True)
    y = batch_norm('gelu', self.dtype, 'conv_b_1')(y, train)
    y = layers.SqueezeExcite(
      self.width // 4, 'silu', initial=initial, dtype=self.dtype, name='squeeze_excitation'
    )(y)
    y = layers.StochasticDepth(self.drop)(conv(y, self.width, 1, 'conv_c', use_bias=True), train)
    if self.stride > 1:
      x = conv(layers.AvgPool(3, self.stride, 1)(x), self.width, 1, 'proj', use_bias=True)
    return x + y


class PartitionAttention(nn.Module):
  """Attention within windows of 7 x 7 neighbours, or over a grid of 7 x 7 pixels spread over the whole map, and an MLP."""

  width: int
  grid: bool
  drop: float
  dtype: Any

  @nn.compact
  def __call__(self, x, train: bool):
    def norm(name):
      return layers.LayerNorm(1e-5, dtype=self.dtype, name=name)

    def drop(y):
      return layers.StochasticDepth(self.drop)(y, train)

    h, w = x.shape[1:3]
    x = layers.windows(x, PARTITION, self.grid)
    # torchvision scales by the number of all channels, not of a head's
    attention = layers.Attention(
      self.width // HEAD, self.width**-0.5, PARTITION, dtype=self.dtype, name='attn'
    )
    x = x + drop(attention(norm('norm1')(x)))
    y = layers.Dense(4 * self.width, initial, dtype=self.dtype, name='fc1')(norm('norm2')(x))
    x = x + drop(layers.Dense(self.width, initial, dtype=self.dtype, name='fc2')(layers.gelu(y)))
    return layers.from_windows(x, PARTITION, h, w, self.grid)


class Block(nn.Module):
  """MBConv, attention in windows, attention over grids."""

  width: int
  stride: int
  drop: float
  dtype: Any

  @nn.compact
  def __call__(self, x, train: bool):
    x = MBConv(self.width, self.stride, self.drop, self.dtype, name='MBconv')(x, train)
    x = PartitionAttention(self.width, False, self.drop, self.dtype, name='window_attention')(
      x, train
    )
    return PartitionAttention(self.width, True, self.drop, self.dtype, name='grid_attention')(
      x, train
    )


class MaxViT(nn.Module):
  """Trunk of MaxViT-T. drop_path: the stochastic depth of the last block, rising linearly from 0 at the first."""

  drop_path: float = 0.2
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
    """x [B, H, W, 3], normalised -> (features float32 [B, 512], maps by name: stem, stage1 to stage4, features).

    The maps of all stages must divide into windows of 7 x 7, so H and W are multiples of 224. UserError otherwise.
    """
    if x.shape[1] % 224 or x.shape[2] % 224:
      raise UserError(
        f'--config.data.size: maxvit_t takes images whose sides are multiples of 224, not {x.shape[1]} x {x.shape[2]}'
      )
    x = layers.Conv(WIDTHS[0], 3, 2, 1, initial=initial, dtype=self.dtype, name='stem_0')(x)
    x = batch_norm('gelu', self.dtype, 'stem_1')(x, train)
    x = layers.Conv(
      WIDTHS[0], 3, 1, 1, use_bias=True, initial=initial, dtype=self.dtype, name='stem_2'
    )(x)
    ends, done = {'stem': x}, 0
    for stage, (depth, width) in enumerate(zip(DEPTHS, WIDTHS)):
      for i in range(depth):
        drop = self.drop_path * done / (sum(DEPTHS) - 1)
        x = layers.remat(Block, self.remat)(
          width, 1 if i else 2, drop, self.dtype, name=f'blocks_{stage}_{i}'
        )(x, train)
        done += 1
      ends[f'stage{stage + 1}'] = x
    x = ends['features'] = self.perturb('features', x)
    x = layers.LayerNorm(1e-5, name='head_norm')(layers.GlobalPool()(x))
    return jnp.tanh(layers.Dense(WIDTHS[-1], initial, name='head_fc')(x)), ends
