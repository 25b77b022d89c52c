"""MobileNetV2 and V3-Large as in torchvision, and their trunk, which EfficientNets share.

Sandler et al. 2018, arXiv:1801.04381; Howard et al. 2019, arXiv:1905.02244. The dropout that the
originals have before their last linear layer is model.dropout (.2 in the originals).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hierjax.models import functional, layers
from hierjax.models.backbone import Backbone
from hierjax.models.initializers import Initializer, normal, torch_fan_out


class BlockSpec(NamedTuple):
  """A block, by default an inverted residual.

  Attributes:
    size: side of the depthwise kernel; 0 has no such convolution ('universal' only).
    stride: of the depthwise convolution.
    wide: channels to which a 1x1 convolution expands before it; None has no such convolution.
    features: output channels.
    act: activation.
    squeezed: channels of squeeze-and-excite; None has none.
    kind: 'inverted'; 'fused', where one convolution takes the place of the first two (Tan and Le
      2021, arXiv:2104.00298); 'universal', with a depthwise convolution before the first, too (Qin
      et al. 2024, arXiv:2404.10518); or 'plain', one convolution.
    start: side of the kernel of a universal block's first depthwise convolution; 0 has none.
    has_skip: whether it is residual where shapes agree.
  """

  size: int
  stride: int
  wide: int | None
  features: int
  act: str
  squeezed: int | None = None
  kind: str = 'inverted'
  start: int = 0
  has_skip: bool = True


Stages = tuple[tuple[BlockSpec, ...], ...]


@dataclasses.dataclass(frozen=True)
class Style:
  """What the layers of a net share.

  Attributes:
    is_same: whether convolutions are padded as TensorFlow's 'SAME'; otherwise by half the kernel.
    eps: of batch norm.
    momentum: of batch norm; .99 is torch's .01.
    excite: activation and gate of squeeze-and-excite.
    initial: initialiser of the kernels.
  """

  is_same: bool = False
  eps: float = 1e-5
  momentum: float = 0.9
  excite: tuple[str, Callable[[jax.Array], jax.Array]] = ('relu', nn.sigmoid)
  initial: Initializer = torch_fan_out


def round_channels(channels: float, least: float = 0.9) -> int:
  """Round a number of channels to a multiple of 8.

  Args:
    channels: the number, as scaled.
    least: share of it below which the multiple must not be.

  Returns:
    The nearest multiple that is at least 8 and not too far below the number.
  """
  multiple = max(8, int(channels + 4) // 8 * 8)
  return multiple + 8 if multiple < least * channels else multiple


# A block is KIND_rREPEATS_kSIZE_sSTRIDE_eEXPANSION_cCHANNELS, in timm's notation: RREPEATS does not
# grow with the depth; aSIZE is a universal block's first depthwise kernel, se squeeze-and-excite;
# only cn needs _skip to be residual; ds does not expand.
KINDS = {'cn': 'plain', 'ds': 'inverted', 'er': 'fused', 'ir': 'inverted', 'uir': 'universal'}


def parse_stages(
  text: str, channels: int, act: str, width: float = 1.0, depth: float = 1.0, least: float = 0.0
) -> Stages:
  """Read the stages of a net.

  Args:
    text: in the notation above; blanks between stages, + between the parts of one.
    channels: of the stem.
    act: activation.
    width: factor on channels.
    depth: factor on numbers of blocks.
    least: of scaled channels, as in `round_channels`.
  """
  stages = []
  for stage in text.split():
    blocks = []
    for part in stage.split('+'):
      kind, *fields = part.split('_')
      n = {field[0]: int(field[1:]) for field in fields if field[1:].isdigit()}
      features = n['c'] if width == 1 else round_channels(n['c'] * width, least)
      for i in range(n['R'] if 'R' in n else math.ceil(n['r'] * depth)):
        stride = 1 if i else n['s']
        wide = None if kind == 'ds' else channels * n.get('e', 1)
        squeezed = channels // 4 if 'se' in fields else None
        options = {'start': n.get('a', 0), 'has_skip': kind != 'cn' or 'skip' in fields}
        spec = BlockSpec(n['k'], stride, wide, features, act, squeezed, KINDS[kind], **options)
        blocks.append(spec)
        channels = features
    stages.append(tuple(blocks))
  return tuple(stages)


def parts(spec: BlockSpec, channels: int) -> list[tuple]:
  """List the convolutions of a block as the arguments of `ConvNorm`, with timm's names.

  Args:
    spec: of the block.
    channels: of its input.
  """
  size, stride, wide, features, act = spec[:5]
  if spec.kind == 'plain':
    return [(('conv', 'bn1'), features, size, stride, act)]
  if spec.kind == 'fused':
    return [(('conv_exp', 'bn1'), wide, size, stride, act), (('conv_pwl', 'bn2'), features)]
  if spec.kind == 'universal':
    names = [(f'{part}_conv', f'{part}_bn') for part in ('dw_start', 'pw_exp', 'dw_mid', 'pw_proj')]
    start = [(names[0], channels, spec.start, 1 if size else stride, '', True)]
    middle = [(names[2], wide, size, stride, act, True)]
    expand, project = (names[1], wide, 1, 1, act), (names[3], features)
    return [*(start if spec.start else ()), expand, *(middle if size else ()), project]
  if not wide:
    return [(('conv_dw', 'bn1'), channels, size, stride, act, True), (('conv_pw', 'bn2'), features)]
  depthwise = (('conv_dw', 'bn2'), wide, size, stride, act, True)
  return [(('conv_pw', 'bn1'), wide, 1, 1, act), depthwise, (('conv_pwl', 'bn3'), features)]


def part_names(spec: BlockSpec) -> list[tuple[str, str]]:
  """Name the (convolution, norm) pairs of a block, in timm's words.

  Args:
    spec: of the block.
  """
  return [part[0] for part in parts(spec, 0)]


def timm_name(path: str) -> str:
  """Return timm's state dict prefix of a module path."""
  path = re.sub(r'^blocks_(\d)_(\d+)/', r'blocks.\1.\2.', path)
  return re.sub(r'([dp]w_[a-z]+)_', r'\1.', path).replace('/', '.')


def torchvision_names(stages: Stages, kind: str) -> Callable[[str], str]:
  """Make the function from a module path to torchvision's state dict prefix.

  Args:
    stages: of the net.
    kind: 'v2', 'v3' or 'efficientnet', which lists blocks by stages; the others list them in one
      row.
  """
  has_stages = kind == 'efficientnet'
  blocks = [(s, i) for s, stage in enumerate(stages) for i in range(len(stage))]
  last = 1 + len(stages if has_stages else blocks)
  ends = {'conv_stem': 'features.0.0', 'bn1': 'features.0.1'}
  ends |= {'conv_head': f'features.{last}.0', 'bn2': f'features.{last}.1'}

  def name(path: str) -> str:
    match = re.fullmatch(r'blocks_(\d)_(\d+)/(\w+)/?(\w*)', path)
    if not match:
      return ends[path] if path in ends else path.replace('_', '.')
    stage, block, layer = int(match[1]), int(match[2]), match[3]
    spec = stages[stage][block]
    place = f'{stage + 1}.{block}' if has_stages else f'{1 + blocks.index((stage, block))}'
    pairs = part_names(spec)
    if spec.squeezed:
      pairs.insert(-1, ('se', ''))
    k = next(k for k, part in enumerate(pairs) if layer in part)
    j = pairs[k].index(layer)
    if layer == 'se':
      convolution = {'conv_reduce': 'fc1', 'conv_expand': 'fc2'}[match[4]]
      return f'features.{place}.block.{k}.{convolution}'
    if kind != 'v2':
      return f'features.{place}.block.{k}.{j}'
    is_last = k == len(pairs) - 1
    return f'features.{place}.conv.{k + j}' if is_last else f'features.{place}.conv.{k}.{j}'

  return name


class ConvNorm(NamedTuple):
  """Makes a convolution and the batch norm after it, as submodules of the module that calls it."""

  style: Style
  compute: layers.Compute

  def __call__(
    self,
    x: jax.Array,
    train: bool,
    names: tuple[str, str],
    features: int,
    size: int = 1,
    stride: int = 1,
    act: str = '',
    depthwise: bool = False,
  ) -> jax.Array:
    """Transform x [B, H, W, C] to [B, H / stride, W / stride, features]."""
    style, compute = self
    padding = 'SAME' if style.is_same else size // 2
    options = {'depthwise': depthwise, 'initial': style.initial, 'compute': compute}
    x = layers.Conv(features, size, stride, padding, **options, name=names[0])(x)
    norm = layers.BatchNorm(act, style.eps, style.momentum, compute=compute, name=names[1])
    return norm(x, train)


class Block(layers.Layer):
  """A block with stochastic depth; residual where shapes agree."""

  spec: BlockSpec
  style: Style
  drop: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Transform x [B, H, W, C]."""
    spec, style, compute = self.spec, self.style, self.compute
    conv_norm = ConvNorm(style, compute)
    *first, last = parts(spec, x.shape[-1])
    y = x
    for part in first:
      y = conv_norm(y, train, *part)
    if spec.squeezed:
      act, gate = style.excite
      names = ('conv_reduce', 'conv_expand')
      excite = layers.SqueezeExcite(
        spec.squeezed, act, gate, names, style.initial, compute=compute, name='se'
      )
      y = excite(y)
    y = conv_norm(y, train, *last)
    if x.shape != y.shape or not spec.has_skip:
      return y
    return compute.ops.stored(layers.StochasticDepth(self.drop, compute=compute)(y, train) + x)


class MobileNet(layers.Trunk):
  """Trunk of a MobileNet or an EfficientNet: stem, inverted residuals, 1x1 convolution, pooling.

  Attributes:
    stages: of blocks.
    style: of the layers.
    act: activation of stem and head.
    stem: channels of the first convolution.
    head: channels of the last convolution.
    dense: width of a linear layer with hard swish after pooling; None has none.
    drop_path: stochastic depth, rising linearly over the blocks.
    is_pooled_first: whether the pooling stands before the last convolution (MobileNetV4).
  """

  stages: Stages
  style: Style
  act: str
  stem: int = 32
  head: int = 1280
  dense: int | None = None
  drop_path: float = 0.0
  is_pooled_first: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> layers.Output:
    """Compute features and maps."""
    compute, stages = self.compute, self.stages
    conv_norm, block = ConvNorm(self.style, compute), self.remat(Block)
    x = conv_norm(x, train, ('conv_stem', 'bn1'), self.stem, 3, 2, self.act)
    maps, count, total, stride = {'stem': x}, 0, sum(map(len, stages)), 2
    for s, stage in enumerate(stages):
      for i, spec in enumerate(stage):
        drop = self.drop_path * count / total
        x = block(spec, self.style, drop, compute=compute, name=f'blocks_{s}_{i}')(x, train)
        count, stride = count + 1, stride * spec.stride
      # The last stage at strides 4, 8, 16 and 32.
      if stride > 2 and (count == total or stages[s + 1][0].stride == 2):
        maps[f'stage{len(maps)}'] = x
    if self.is_pooled_first:
      x = maps['features'] = self.perturb('features', x)
      x = layers.GlobalPool()(x)[:, None, None]
      x = conv_norm(x, train, ('conv_head', 'norm_head'), self.head, act=self.act)
      return x[:, 0, 0].astype(jnp.float32), maps
    x = conv_norm(x, train, ('conv_head', 'bn2'), self.head, act=self.act)
    x = maps['features'] = self.perturb('features', x)
    x = layers.GlobalPool()(x)
    if self.dense:
      options = {'compute': compute.in_float32, 'name': 'classifier_0'}
      x = functional.activate(layers.Dense(self.dense, normal(0.01), **options)(x), 'hardswish')
    return x, maps


_V2 = (
  'ds_r1_k3_s1_c16 ir_r2_k3_s2_e6_c24 ir_r3_k3_s2_e6_c32 ir_r4_k3_s2_e6_c64 ir_r3_k3_s1_e6_c96 '
  'ir_r3_k3_s2_e6_c160 ir_r1_k3_s1_e6_c320'
)
# For each stage (kernel, stride of the first, expanded channels of each block, channels, act,
# has_excite).
_V3_TABLE = (
  (3, 1, (None,), 16, 'relu', False),
  (3, 2, (64, 72), 24, 'relu', False),
  (5, 2, (72, 120, 120), 40, 'relu', True),
  (3, 2, (240, 200, 184, 184), 80, 'hardswish', False),
  (3, 1, (480, 672), 112, 'hardswish', True),
  (5, 2, (672, 960, 960), 160, 'hardswish', True),
)


def _v3_stages() -> Stages:
  stages = []
  for size, stride, expanded, features, act, has_excite in _V3_TABLE:
    blocks = []
    for i, wide in enumerate(expanded):
      squeezed = round_channels(wide // 4) if has_excite else None
      blocks.append(BlockSpec(size, 1 if i else stride, wide, features, act, squeezed))
    stages.append(tuple(blocks))
  return tuple(stages)


_V2_STAGES, _V3_STAGES = parse_stages(_V2, 32, 'relu6'), _v3_stages()
_V3_STYLE = Style(eps=1e-3, momentum=0.99, excite=('relu', nn.hard_sigmoid))

# timm's mobilenetv2_100 is torchvision's net; its mobilenetv3_large_100 has another eps.
BACKBONES = {
  'mobilenet_v2': Backbone(
    functools.partial(MobileNet, _V2_STAGES, Style(), 'relu6'),
    1280,
    torch_names={'torchvision': torchvision_names(_V2_STAGES, 'v2'), 'timm': timm_name},
    # torchvision pools by a function, which thop does not count.
    uncounted='GlobalPool_0',
  ),
  'mobilenet_v3_large': Backbone(
    functools.partial(MobileNet, _V3_STAGES, _V3_STYLE, 'hardswish', stem=16, head=960, dense=1280),
    1280,
    torch_names={'torchvision': torchvision_names(_V3_STAGES, 'v3')},
  ),
}
