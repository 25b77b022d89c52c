"""MaxViT-T as in torchvision (Tu et al. 2022, arXiv:2204.01697).

The trunk keeps the norm, the linear layer and the tanh before the classifier.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from hierjax.core.errors import UserError
from hierjax.models import functional, layers
from hierjax.models.backbone import Backbone
from hierjax.models.initializers import small_normal

WIDTHS, DEPTHS = (64, 128, 256, 512), (2, 2, 5, 2)
# Rows and columns of a window and of a grid; channels of an attention head.
PARTITION, HEAD = (7, 7), 32
# torchvision's names of what stands before and after the blocks, and of the parts of an attention.
ENDS = {'stem_0': 'stem.0.0', 'stem_1': 'stem.0.1', 'stem_2': 'stem.1.0'}
ENDS |= {'head_norm': 'classifier.2', 'head_fc': 'classifier.3'}
PARTS = {'norm1': 'attn_layer.0', 'attn': 'attn_layer.1', 'norm2': 'mlp_layer.0'}
PARTS |= {'fc1': 'mlp_layer.1', 'fc2': 'mlp_layer.3'}


def _torchvision_name(path: str) -> str:
  """Return torchvision's state dict prefix of a module path."""
  if path in ENDS:
    return ENDS[path]
  path = re.sub(r'^blocks_(\d)_(\d)/', r'blocks.\1.layers.\2.layers.', path)
  path = re.sub(r'\.MBconv/(?!proj)', '.MBconv.layers.', path)
  path = path.replace('MBconv/proj', 'MBconv.proj.1')
  path = re.sub(r'\.(conv_[ab])_(\d)$', r'.\1.\2', path)
  path = re.sub(r'_attention/(norm\d|attn|fc\d)', lambda m: f'_attention.{PARTS[m[1]]}', path)
  return path.replace('/qkv', '.to_qkv').replace('/proj', '.merge').replace('/', '.')


TORCH_NAMES = {'torchvision': _torchvision_name}


class MBConv(layers.Layer):
  """Inverted residual with the norm first.

  1x1 convolution to 4 * width, depthwise 3x3, squeeze-and-excite, 1x1 to width. With a stride its
  shortcut is pooled and projected.
  """

  width: int
  stride: int
  drop: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Transform x [B, H, W, C] to [B, H / stride, W / stride, width]."""
    compute, wide = self.compute, 4 * self.width
    conv = {'initial': small_normal, 'compute': compute}
    depthwise = {'stride': self.stride, 'padding': 1, 'depthwise': True}
    excite = layers.SqueezeExcite(self.width // 4, 'silu', **conv, name='squeeze_excitation')
    y = batch_norm('', compute, 'pre_norm')(x, train)
    y = layers.Conv(wide, 1, **conv, name='conv_a_0')(y)
    y = batch_norm('gelu', compute, 'conv_a_1')(y, train)
    y = layers.Conv(wide, 3, **depthwise, **conv, name='conv_b_0')(y)
    y = batch_norm('gelu', compute, 'conv_b_1')(y, train)
    y = layers.Conv(self.width, 1, use_bias=True, **conv, name='conv_c')(excite(y))
    y = layers.StochasticDepth(self.drop, compute=compute)(y, train)
    if self.stride > 1:
      x = layers.AvgPool(3, self.stride, 1, compute=compute)(x)
      x = layers.Conv(self.width, 1, use_bias=True, **conv, name='proj')(x)
    return x + y


def batch_norm(act: str, compute: layers.Compute, name: str) -> layers.BatchNorm:
  """Make a batch norm with TensorFlow's settings."""
  return layers.BatchNorm(act, 1e-3, 0.99, compute=compute, name=name)


class PartitionAttention(layers.Layer):
  """Attention within parts of the maps, and an MLP.

  Attributes:
    is_grid: whether the parts are grids of 7 x 7 pixels spread over the whole map; otherwise they
      are windows of 7 x 7 neighbours.
    drop: stochastic depth of each of the two branches.
  """

  is_grid: bool
  drop: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Transform x [B, H, W, C]."""
    compute = self.compute

    def norm(name):
      return layers.LayerNorm(1e-5, compute=compute, name=name)

    def drop(y):
      return layers.StochasticDepth(self.drop, compute=compute)(y, train)

    h, w, c = x.shape[1:]
    x = functional.windows(x, PARTITION, self.is_grid)
    # torchvision scales by the number of all channels, not of a head's.
    options = {'compute': compute, 'name': 'attn'}
    attention = layers.Attention(c // HEAD, c**-0.5, PARTITION, **options)
    x = x + drop(attention(norm('norm1')(x)))
    x = x + drop(layers.mlp(norm('norm2')(x), compute))
    return functional.from_windows(x, PARTITION, h, w, self.is_grid)


class Block(layers.Layer):
  """MBConv, attention in windows, attention over grids."""

  width: int
  stride: int
  drop: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Transform x [B, H, W, C] to [B, H / stride, W / stride, width]."""
    drop, compute = self.drop, self.compute
    x = MBConv(self.width, self.stride, drop, compute=compute, name='MBconv')(x, train)
    x = PartitionAttention(False, drop, compute=compute, name='window_attention')(x, train)
    return PartitionAttention(True, drop, compute=compute, name='grid_attention')(x, train)


class MaxViT(layers.Trunk):
  """Trunk of MaxViT-T, for images whose sides are multiples of 224.

  The maps of all stages must divide into windows of 7 x 7.

  Attributes:
    drop_path: stochastic depth of the last block, rising linearly from 0 at the first.
  """

  drop_path: float = 0.2

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> layers.Output:
    """Compute features and maps.

    Raises:
      UserError: H or W is no multiple of 224.
    """
    if x.shape[1] % 224 or x.shape[2] % 224:
      raise UserError(
        '--config.data.size: maxvit_t takes images whose sides are multiples of 224, '
        f'not {x.shape[1]} x {x.shape[2]}'
      )
    compute = self.compute
    conv = {'initial': small_normal, 'compute': compute}
    x = layers.Conv(WIDTHS[0], 3, 2, 1, **conv, name='stem_0')(x)
    x = batch_norm('gelu', compute, 'stem_1')(x, train)
    x = layers.Conv(WIDTHS[0], 3, 1, 1, use_bias=True, **conv, name='stem_2')(x)
    maps, block = {'stem': x}, self.remat(Block)
    rates = layers.drop_rates(self.drop_path, DEPTHS)
    for stage, width in enumerate(WIDTHS):
      for i, rate in enumerate(rates[stage]):
        options = {'compute': compute, 'name': f'blocks_{stage}_{i}'}
        x = block(width, 1 if i else 2, rate, **options)(x, train)
      maps[f'stage{stage + 1}'] = x
    x = maps['features'] = self.perturb('features', x)
    head = {'compute': compute.in_float32}
    x = layers.LayerNorm(1e-5, **head, name='head_norm')(layers.GlobalPool()(x))
    return jnp.tanh(layers.Dense(WIDTHS[-1], **head, name='head_fc')(x)), maps


BACKBONES = {'maxvit_t': Backbone(MaxViT, WIDTHS[-1], multiple=224, torch_names=TORCH_NAMES)}
