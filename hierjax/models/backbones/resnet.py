"""ResNet-18/34/50/101/152 as in torchvision: v1.5, with the stride in the 3x3 convolution.

He et al. 2015, arXiv:1512.03385. ResNet-D (He et al. 2018, arXiv:1812.01187) and RegNetY
(Radosavovic et al. 2020, arXiv:2003.13678) are timm's, as is ResNet-RS (Bello et al. 2021,
arXiv:2103.07579). ResNeXt: Xie et al. 2017, arXiv:1611.05431; wide ResNet: Zagoruyko and Komodakis
2016, arXiv:1605.07146.
"""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from hierjax.models import layers
from hierjax.models.backbone import HALVES, Backbone
from hierjax.models.initializers import uniform

DEPTHS = {
  18: (2, 2, 2, 2),
  26: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
  200: (3, 24, 36, 3),
  270: (4, 29, 53, 4),
  350: (4, 36, 72, 4),
  420: (4, 44, 87, 4),
}
# Depths of two 3x3 convolutions a block; the others have bottlenecks.
BASIC = (18, 34)

# ResNet-D's depths, and ResNet-RS's with the size of their images.
DEPTHS_D = (18, 26, 34, 50, 101, 152, 200)
SIZES_RS = {50: 160, 101: 192, 152: 256, 200: 256, 270: 256, 350: 288, 420: 320}

# ResNeXt and wide ResNet: (depth, groups, width of a group at the first stage)
GROUPED = {
  'resnext50_32x4d': (50, 32, 4),
  'resnext101_32x8d': (101, 32, 8),
  'resnext101_64x4d': (101, 64, 4),
  'wide_resnet50_2': (50, 1, 128),
  'wide_resnet101_2': (101, 1, 128),
}

# RegNetY: (blocks of each stage, their widths, width of a group)
REGNETS = {
  '002': ((1, 1, 4, 7), (24, 56, 152, 368), 8),
  '004': ((1, 3, 6, 6), (48, 104, 208, 440), 8),
  '006': ((1, 3, 7, 4), (48, 112, 256, 608), 16),
  '008': ((1, 3, 8, 2), (64, 128, 320, 768), 16),
  '016': ((2, 6, 17, 2), (48, 120, 336, 888), 24),
  '032': ((2, 5, 13, 1), (72, 216, 576, 1512), 24),
  '040': ((2, 6, 12, 2), (128, 192, 512, 1088), 64),
  '064': ((2, 7, 14, 2), (144, 288, 576, 1296), 72),
  '080': ((2, 4, 10, 1), (168, 448, 896, 2016), 56),
  '120': ((2, 5, 11, 1), (224, 448, 896, 2240), 112),
  '160': ((2, 4, 11, 1), (224, 448, 1232, 3024), 112),
  '320': ((2, 5, 12, 1), (232, 696, 1392, 3712), 232),
}


def torch_name(path: str) -> str:
  """Return the state dict prefix of a module path; timm's ResNets carry torchvision's names."""
  return path.replace('/', '.').replace('_', '.')


def _regnet_name(path: str) -> str:
  """Return timm's state dict prefix of a module path of a RegNet."""
  path = re.sub(r'^(s\d)_|^(stem)_', lambda m: f'{m[1] or m[2]}.', path)
  path = re.sub(r'/bn(\d)$', r'/conv\1.bn', re.sub(r'/(conv\d)$', r'/\1.conv', path))
  path = path.replace('downsample_0', 'downsample.conv').replace('downsample_1', 'downsample.bn')
  return path.replace('/', '.')


TORCH_NAMES = {'torchvision': torch_name, 'timm': torch_name}


class Block(layers.Layer):
  """Residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1.

  Attributes:
    width: channels of the 3x3 convolutions.
    stride: of the first of them.
    is_bottleneck: which of the two.
    out: output channels of a bottleneck; None is 4 * width.
    groups: of a bottleneck's 3x3 convolution.
    squeezed: channels of squeeze-and-excite after it; None has none.
    is_pooled: whether the shortcut has average pooling in place of a stride (ResNet-D).
    is_gated_last: whether squeeze-and-excite stands after the last convolution (ResNet-RS).
    drop: stochastic depth.
  """

  width: int
  stride: int
  is_bottleneck: bool
  out: int | None = None
  groups: int = 1
  squeezed: int | None = None
  is_pooled: bool = False
  is_gated_last: bool = False
  drop: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Transform x [B, H, W, C]."""
    compute = self.compute

    def conv_bn(x, features, size, stride, names, act='', groups=1):
      options = {'groups': groups, 'compute': compute, 'name': names[0]}
      x = layers.Conv(features, size, stride, size // 2, **options)(x)
      return layers.BatchNorm(act, compute=compute, name=names[1])(x, train)

    def gate(y, is_last):
      if not self.squeezed or is_last != self.is_gated_last:
        return y
      return layers.SqueezeExcite(self.squeezed, compute=compute, name='se')(y)

    width, first, second = self.width, ('conv1', 'bn1'), ('conv2', 'bn2')
    if self.is_bottleneck:
      y = conv_bn(x, width, 1, 1, first, 'relu')
      y = conv_bn(y, width, 3, self.stride, second, 'relu', self.groups)
      y = conv_bn(gate(y, False), self.out or 4 * width, 1, 1, ('conv3', 'bn3'))
      y = gate(y, True)
    else:
      y = conv_bn(x, width, 3, self.stride, first, 'relu')
      y = conv_bn(y, width, 3, 1, second)
    y = layers.StochasticDepth(self.drop, compute=compute)(y, train)
    if self.is_pooled and x.shape != y.shape:
      if self.stride == 2:
        # Where a side is odd, torch's ceil_mode averages what there is of the last window.
        for axis in (1, 2):
          if x.shape[axis] % 2:
            x = jnp.concatenate([x, jax.lax.slice_in_dim(x, -1, None, axis=axis)], axis)
        x = layers.AvgPool(2, 2, compute=compute)(x)
      x = conv_bn(x, y.shape[-1], 1, 1, ('downsample_1', 'downsample_2'))
    elif self.stride != 1 or x.shape[-1] != y.shape[-1]:
      x = conv_bn(x, y.shape[-1], 1, self.stride, ('downsample_0', 'downsample_1'))
    return compute.ops.stored(nn.relu(x + y))


class ResNet(layers.Trunk):
  """Trunk of a ResNet.

  Attributes:
    depth: a key of `DEPTHS`.
    stem: 'standard', or 'small' for images of about 32 pixels: a 3x3 convolution of stride 1, no
      max pooling; 'deep' is ResNet-D's of three convolutions, which has its shortcuts, too.
    fc: width of a linear layer after pooling; None has none.
    groups: of the 3x3 convolutions of bottlenecks.
    group_width: of a group at the first stage, in channels.
    is_rs: whether blocks have squeeze-and-excite, and a convolution stands in place of max pooling
      (ResNet-RS).
    drop_path: stochastic depth of the last block, rising linearly from 0 at the first.
  """

  depth: int = 50
  stem: str = 'standard'
  fc: int | None = None
  groups: int = 1
  group_width: int = 64
  is_rs: bool = False
  drop_path: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> layers.Output:
    """Compute features and maps."""
    is_small, is_deep = self.stem == 'small', self.stem == 'deep'
    if is_deep:
      for place, (width, stride) in {0: (32, 2), 3: (32, 1)}.items():
        x = layers.Conv(width, 3, stride, 1, compute=self.compute, name=f'conv1_{place}')(x)
        norm = layers.BatchNorm('relu', compute=self.compute, name=f'conv1_{place + 1}')
        x = norm(x, train)
    size, stride = (3, 1) if is_small or is_deep else (7, 2)
    name = 'conv1_6' if is_deep else 'conv1'
    x = layers.Conv(64, size, stride, size // 2, compute=self.compute, name=name)(x)
    x = layers.BatchNorm('relu', compute=self.compute, name='bn1')(x, train)
    maps = {'stem': x}
    if self.is_rs:
      x = layers.Conv(64, 3, 2, 1, compute=self.compute, name='maxpool_0')(x)
      x = layers.BatchNorm('relu', compute=self.compute, name='maxpool_1')(x, train)
    elif not is_small:
      x = layers.MaxPool(3, 2, 1, compute=self.compute)(x)
    block, rates = self.remat(Block), layers.drop_rates(self.drop_path, DEPTHS[self.depth])
    for stage, drops in enumerate(rates, 1):
      for i, drop in enumerate(drops):
        stride = 2 if i == 0 and stage > 1 else 1
        options = {'is_pooled': is_deep, 'compute': self.compute, 'name': f'layer{stage}_{i}'}
        options |= {'out': 128 << stage, 'groups': self.groups, 'drop': drop}
        options |= {'squeezed': 32 << stage, 'is_gated_last': True} if self.is_rs else {}
        width = (self.groups * self.group_width << stage) // 2
        x = block(width, stride, self.depth not in BASIC, **options)(x, train)
      maps[f'stage{stage}'] = x
    x = maps['features'] = self.perturb('features', x)
    x = layers.GlobalPool()(x)
    if self.fc:
      # torch's default.
      bound = uniform(x.shape[-1] ** -0.5)
      compute = self.compute.in_float32
      x = layers.Dense(self.fc, bound, initial_bias=bound, compute=compute, name='fc')(x)
    return x, maps


class RegNet(layers.Trunk):
  """Trunk of a RegNetY.

  Attributes:
    variant: a key of `REGNETS`.
  """

  variant: str = '016'

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> layers.Output:
    """Compute features and maps."""
    compute, block = self.compute, self.remat(Block)
    x = layers.Conv(32, 3, 2, 1, compute=compute, name='stem_conv')(x)
    x = layers.BatchNorm('relu', compute=compute, name='stem_bn')(x, train)
    maps = {'stem': x}
    depths, widths, group = REGNETS[self.variant]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
      for i in range(1, depth + 1):
        options = {'out': width, 'groups': width // group, 'squeezed': round(x.shape[-1] / 4)}
        name, stride = f's{stage}_b{i}', 2 if i == 1 else 1
        x = block(width, stride, True, **options, compute=compute, name=name)(x, train)
      maps[f'stage{stage}'] = x
    x = maps['features'] = self.perturb('features', x)
    return layers.GlobalPool()(x), maps


_STEMS = {'standard': (), 'small': ('conv1',)}
BACKBONES = {}
for depth in (18, 34, 50, 101, 152):
  make, features = functools.partial(ResNet, depth), 512 if depth in BASIC else 2048
  BACKBONES[f'resnet{depth}'] = Backbone(make, features, torch_names=TORCH_NAMES, stems=_STEMS)
# HCAL's (S2), for CIFAR-100: ResNet-18 with the small stem, and a linear layer 512 -> 256 that
# belongs to the trunk.
make, stems = functools.partial(ResNet, 18, 'small', 256), {'standard': ('conv1', 'fc')}
BACKBONES['resnet18_32px'] = Backbone(make, 256, size=32, torch_names=TORCH_NAMES, stems=stems)
# S4's AdvancedCNN is ResNet-18, layer by layer (its dropout and linear layer are the head's); the
# paper normalises with mean = std = .5.
make = functools.partial(ResNet, 18)
BACKBONES['advanced_cnn'] = Backbone(make, 512, *HALVES, torch_names=TORCH_NAMES)
for depth in DEPTHS_D:
  make, features = functools.partial(ResNet, depth, 'deep'), 512 if depth in BASIC else 2048
  size, names = 256 if depth > 100 else 224, {'timm': torch_name}
  BACKBONES[f'resnet{depth}d'] = Backbone(make, features, size=size, torch_names=names)
for depth, size in SIZES_RS.items():
  make = functools.partial(ResNet, depth, 'deep', is_rs=True)
  BACKBONES[f'resnetrs{depth}'] = Backbone(make, 2048, size=size, torch_names={'timm': torch_name})
for name, (depth, groups, width) in GROUPED.items():
  make = functools.partial(ResNet, depth, groups=groups, group_width=width)
  BACKBONES[name] = Backbone(make, 2048, torch_names=TORCH_NAMES, stems=_STEMS)
for variant, (_, widths, _) in REGNETS.items():
  BACKBONES[f'regnety_{variant}'] = Backbone(
    functools.partial(RegNet, variant), widths[-1], torch_names={'timm': _regnet_name}
  )
