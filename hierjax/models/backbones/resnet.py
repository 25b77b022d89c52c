"""ResNet-18/34/50/101/152 as in torchvision: v1.5, with the stride in the 3x3 convolution.

He et al. 2015, arXiv:1512.03385.
"""

import functools

import flax.linen as nn
import jax

from hierjax.models import layers
from hierjax.models.backbone import Backbone
from hierjax.models.initializers import uniform

DEPTHS = {
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
}


def torch_name(path: str) -> str:
  """Return the state dict prefix of a module path; timm's ResNets carry torchvision's names."""
  return path.replace('/', '.').replace('_', '.')


TORCH_NAMES = {'torchvision': torch_name, 'timm': torch_name}


class Block(layers.Layer):
  """Residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1 to 4 * width."""

  width: int
  stride: int
  is_bottleneck: bool

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Transform x [B, H, W, C]."""
    compute = self.compute

    def conv_bn(x, features, size, stride, names, act=''):
      padding = size // 2
      x = layers.Conv(features, size, stride, padding, compute=compute, name=names[0])(x)
      return layers.BatchNorm(act, compute=compute, name=names[1])(x, train)

    width, first, second = self.width, ('conv1', 'bn1'), ('conv2', 'bn2')
    if self.is_bottleneck:
      y = conv_bn(x, width, 1, 1, first, 'relu')
      y = conv_bn(y, width, 3, self.stride, second, 'relu')
      y = conv_bn(y, 4 * width, 1, 1, ('conv3', 'bn3'))
    else:
      y = conv_bn(x, width, 3, self.stride, first, 'relu')
      y = conv_bn(y, width, 3, 1, second)
    if self.stride != 1 or x.shape[-1] != y.shape[-1]:
      x = conv_bn(x, y.shape[-1], 1, self.stride, ('downsample_0', 'downsample_1'))
    return nn.relu(x + y)


class ResNet(layers.Trunk):
  """Trunk of a ResNet.

  Attributes:
    depth: a key of `DEPTHS`.
    stem: 'standard', or 'small' for images of about 32 pixels: a 3x3 convolution of stride 1, no
      max pooling.
    fc: width of a linear layer after pooling; None has none.
  """

  depth: int = 50
  stem: str = 'standard'
  fc: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> layers.Output:
    """Compute features and maps."""
    is_small = self.stem == 'small'
    size, stride = (3, 1) if is_small else (7, 2)
    x = layers.Conv(64, size, stride, size // 2, compute=self.compute, name='conv1')(x)
    x = layers.BatchNorm('relu', compute=self.compute, name='bn1')(x, train)
    maps = {'stem': x}
    if not is_small:
      x = layers.MaxPool(3, 2, 1, compute=self.compute)(x)
    block = self.remat(Block)
    for stage, num_blocks in enumerate(DEPTHS[self.depth], 1):
      for i in range(num_blocks):
        stride = 2 if i == 0 and stage > 1 else 1
        name = f'layer{stage}_{i}'
        x = block(32 << stage, stride, self.depth >= 50, compute=self.compute, name=name)(x, train)
      maps[f'stage{stage}'] = x
    x = maps['features'] = self.perturb('features', x)
    x = layers.GlobalPool()(x)
    if self.fc:
      # torch's default.
      bound = uniform(x.shape[-1] ** -0.5)
      compute = self.compute.in_float32
      x = layers.Dense(self.fc, bound, initial_bias=bound, compute=compute, name='fc')(x)
    return x, maps


_STEMS = {'standard': (), 'small': ('conv1',)}
BACKBONES = {
  f'resnet{depth}': Backbone(
    functools.partial(ResNet, depth),
    2048 if depth >= 50 else 512,
    torch_names=TORCH_NAMES,
    stems=_STEMS,
  )
  for depth in DEPTHS
} | {
  # HCAL's (S2), for CIFAR-100: ResNet-18 with the small stem, and a linear layer 512 -> 256 that
  # belongs to the trunk.
  'resnet18_32px': Backbone(
    functools.partial(ResNet, 18, 'small', 256),
    256,
    size=32,
    torch_names=TORCH_NAMES,
    stems={'standard': ('conv1', 'fc')},
  ),
  # S4's AdvancedCNN is ResNet-18, layer by layer (its dropout and linear layer are the head's); the
  # paper normalises with mean = std = .5.
  'advanced_cnn': Backbone(
    functools.partial(ResNet, 18), 512, (127.5,) * 3, (127.5,) * 3, torch_names=TORCH_NAMES
  ),
}
