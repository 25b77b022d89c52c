"""MobileNetV2 and V3-Large as in torchvision, and their trunk, which EfficientNets share: a stem, inverted residuals, a 1x1 convolution.

Sandler et al. 2018, arXiv:1801.04381; Howard et al. 2019, arXiv:1905.02244. The dropout that the originals have before their last linear layer is
model.dropout (theirs is .2).
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hierjax.models import layers


class Row(NamedTuple):
  """An inverted residual: 1x1 to `mid` channels (0: none), depthwise size x size, squeeze-and-excite by `squeezed` channels (0: none), 1x1 to `features`."""

  size: int
  stride: int
  mid: int
  features: int
  act: str
  squeezed: int = 0


Stages = tuple[tuple[Row, ...], ...]
# torchvision's kaiming_normal_(mode='fan_out') counts all channels of a depthwise kernel, layers.fan_out (as timm) one.
torch_fan_out = layers.normal(lambda shape: math.sqrt(2 / (shape[0] * shape[1] * shape[3])))


@dataclasses.dataclass(frozen=True)
class Style:
  """What the layers of a net share: padding of half the kernel or TensorFlow's 'SAME'; batch norm; activation and gate of squeeze-and-excite."""

  same: bool = False
  eps: float = 1e-5
  momentum: float = 0.9  # .99 is torch's .01
  excite: tuple[str, Callable] = ('relu', nn.sigmoid)
  initial: Callable = torch_fan_out

  def conv_bn(self, x, train, names, features, size, stride, act, dtype, depthwise=False):
    padding = 'SAME' if self.same else size // 2
    x = layers.Conv(
      features, size, stride, padding, depthwise, initial=self.initial, dtype=dtype, name=names[0]
    )(x)
    return layers.BatchNorm(act, self.eps, self.momentum, dtype=dtype, name=names[1])(x, train)


def width(channels: float) -> int:
  """The nearest multiple of 8, never more than 10 % below."""
  new = max(8, int(channels + 4) // 8 * 8)
  return new + 8 if new < 0.9 * channels else new


def repeat(table, inputs: int, act: str, squeeze: bool = False) -> Stages:
  """Stages from rows of (repeats, kernel, stride of the first, expansion of the channels, channels), after `inputs` channels."""
  stages = []
  for repeats, size, stride, expand, channels in table:
    blocks = []
    for i in range(repeats):
      mid, squeezed = inputs * expand if expand > 1 else 0, inputs // 4 if squeeze else 0
      blocks.append(Row(size, 1 if i else stride, mid, channels, act, squeezed))
      inputs = channels
    stages.append(tuple(blocks))
  return tuple(stages)


def _parts(row: Row) -> list[tuple[str, str]]:
  """Names of the block's convolutions and norms, in timm's words."""
  return (
    [('conv_pw', 'bn1'), ('conv_dw', 'bn2'), ('conv_pwl', 'bn3')]
    if row.mid
    else [('conv_dw', 'bn1'), ('conv_pw', 'bn2')]
  )


def timm_name(path: str) -> str:
  """State dict prefix of a module path in timm's names."""
  return re.sub(r'^blocks_(\d)_(\d+)/', r'blocks.\1.\2.', path).replace('/', '.')


def torchvision_names(stages: Stages, kind: str) -> Callable[[str], str]:
  """The function from a module path to its state dict prefix in torchvision's names; kind is 'v2', 'v3' or 'efficientnet'."""
  blocks = [(s, i) for s, stage in enumerate(stages) for i in range(len(stage))]
  last = 1 + len(stages if kind == 'efficientnet' else blocks)
  outside = {
    'conv_stem': 'features.0.0',
    'bn1': 'features.0.1',
    'conv_head': f'features.{last}.0',
    'bn2': f'features.{last}.1',
  }

  def name(path):
    m = re.fullmatch(r'blocks_(\d)_(\d+)/(\w+)/?(\w*)', path)
    if not m:
      return outside[path] if path in outside else path.replace('_', '.')
    at = int(m[1]), int(m[2])
    row, before = (
      stages[at[0]][at[1]],
      f'features.{at[0] + 1}.{at[1]}'
      if kind == 'efficientnet'
      else f'features.{1 + blocks.index(at)}',
    )
    parts = _parts(row)
    if row.squeezed:
      parts.insert(-1, ('se', ''))
    k = next(k for k, part in enumerate(parts) if m[3] in part)
    j = parts[k].index(m[3])
    if m[3] == 'se':
      return f'{before}.block.{k}.{ {"conv_reduce": "fc1", "conv_expand": "fc2"}[m[4]] }'
    if kind == 'v2':
      return f'{before}.conv.{k + j}' if k == len(parts) - 1 else f'{before}.conv.{k}.{j}'
    return f'{before}.block.{k}.{j}'

  return name


class Block(nn.Module):
  """Inverted residual, with stochastic depth; residual if shapes agree."""

  row: Row
  style: Style
  drop: float
  dtype: Any

  @nn.compact
  def __call__(self, x, train: bool):
    row, y = self.row, x
    *expand, depthwise, project = _parts(row)
    for names in expand:
      y = self.style.conv_bn(y, train, names, row.mid, 1, 1, row.act, self.dtype)
    y = self.style.conv_bn(
      y, train, depthwise, y.shape[-1], row.size, row.stride, row.act, self.dtype, depthwise=True
    )
    if row.squeezed:
      act, gate = self.style.excite
      y = layers.SqueezeExcite(
        row.squeezed,
        act,
        gate,
        ('conv_reduce', 'conv_expand'),
        self.style.initial,
        self.dtype,
        name='se',
      )(y)
    y = self.style.conv_bn(y, train, project, row.features, 1, 1, '', self.dtype)
    return layers.StochasticDepth(self.drop)(y, train) + x if x.shape == y.shape else y


class MobileNet(nn.Module):
  """Trunk of a MobileNet or an EfficientNet. act: of stem and head; dense: width of a linear layer with hard swish after pooling (0: none);
  drop_path: stochastic depth, rising linearly over the blocks."""

  stages: Stages
  style: Style
  act: str
  stem: int = 32
  head: int = 1280
  dense: int = 0
  drop_path: float = 0.0
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
    """x [B, H, W, 3], normalised -> (features float32 [B, d], maps by name: stem, stage1 to stage4, features)."""
    x = self.style.conv_bn(x, train, ('conv_stem', 'bn1'), self.stem, 3, 2, self.act, self.dtype)
    ends, done, total = {'stem': x}, 0, sum(map(len, self.stages))
    for s, stage in enumerate(self.stages):
      for i, row in enumerate(stage):
        x = layers.remat(Block, self.remat)(
          row, self.style, self.drop_path * done / total, self.dtype, name=f'blocks_{s}_{i}'
        )(x, train)
        done += 1
      if s and (
        done == total or self.stages[s + 1][0].stride == 2
      ):  # the last at strides 4, 8, 16, 32
        ends[f'stage{len(ends)}'] = x
    x = self.style.conv_bn(x, train, ('conv_head', 'bn2'), self.head, 1, 1, self.act, self.dtype)
    x = ends['features'] = self.perturb('features', x)
    x = layers.GlobalPool()(x)
    if self.dense:
      x = layers.ACTIVATIONS['hardswish'][0](
        layers.Dense(self.dense, layers.normal(0.01), name='classifier_0')(x)
      )
    return x, ends


_V2_STAGES = repeat(
  (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (3, 3, 2, 6, 32),
    (4, 3, 2, 6, 64),
    (3, 3, 1, 6, 96),
    (3, 3, 2, 6, 160),
    (1, 3, 1, 6, 320),
  ),
  32,
  'relu6',
)
_V3_STAGES = tuple(
  tuple(
    Row(size, 1 if i else stride, mid, features, act, width(mid // 4) if squeeze else 0)
    for i, mid in enumerate(mids)
  )
  for size, stride, mids, features, act, squeeze in (
    (3, 1, (0,), 16, 'relu', False),
    (3, 2, (64, 72), 24, 'relu', False),
    (5, 2, (72, 120, 120), 40, 'relu', True),
    (3, 2, (240, 200, 184, 184), 80, 'hardswish', False),
    (3, 1, (480, 672), 112, 'hardswish', True),
    (5, 2, (672, 960, 960), 160, 'hardswish', True),
  )
)
# What makes each a MobileNet. timm's mobilenetv2_100 is torchvision's net; its mobilenetv3_large_100 has another eps.
V2 = {'stages': _V2_STAGES, 'style': Style(), 'act': 'relu6'}
V3_LARGE = {
  'stages': _V3_STAGES,
  'style': Style(eps=1e-3, momentum=0.99, excite=('relu', nn.hard_sigmoid)),
  'act': 'hardswish',
  'stem': 16,
  'head': 960,
  'dense': 1280,
}
v2_names = {'torchvision': torchvision_names(_V2_STAGES, 'v2'), 'timm': timm_name}
v3_names = {'torchvision': torchvision_names(_V3_STAGES, 'v3')}
