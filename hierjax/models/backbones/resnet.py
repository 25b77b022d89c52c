"""ResNet-18/34/50/101/152 as in torchvision: v1.5, the stride in the 3x3 convolution (He et al. 2015, arXiv:1512.03385)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hierjax.models import layers

DEPTHS = {
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
}

# State dict prefix of a module path, per naming scheme; timm's resnets carry torchvision's names.
torch_names = dict.fromkeys(
  ('torchvision', 'timm'), lambda path: path.replace('/', '.').replace('_', '.')
)


class Block(nn.Module):
  """A residual block: two 3x3 convolutions, or with `bottleneck` 1x1, 3x3, 1x1 to 4 * width channels."""

  width: int
  stride: int
  bottleneck: bool
  dtype: Any

  @nn.compact
  def __call__(self, x, train: bool):
    def conv_bn(x, features, size, stride, conv, bn, act=''):
      x = layers.Conv(features, size, stride, size // 2, dtype=self.dtype, name=conv)(x)
      return layers.BatchNorm(act, dtype=self.dtype, name=bn)(x, train)

    out = self.width * 4 if self.bottleneck else self.width
    if self.bottleneck:
      y = conv_bn(x, self.width, 1, 1, 'conv1', 'bn1', 'relu')
      y = conv_bn(y, self.width, 3, self.stride, 'conv2', 'bn2', 'relu')
      y = conv_bn(y, out, 1, 1, 'conv3', 'bn3')
    else:
      y = conv_bn(x, out, 3, self.stride, 'conv1', 'bn1', 'relu')
      y = conv_bn(y, out, 3, 1, 'conv2', 'bn2')
    if self.stride != 1 or x.shape[-1] != out:
      x = conv_bn(x, out, 1, self.stride, 'downsample_0', 'downsample_1')
    return nn.relu(x + y)


class ResNet(nn.Module):
  """Trunk of a ResNet. stem='small' is a 3x3 convolution of stride 1 and no max-pool, for images of about 32 pixels; fc is the width of a linear layer
  after pooling (0: none)."""

  depth: int = 50
  stem: str = 'standard'
  fc: int = 0
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
    """x [B, H, W, 3], normalised -> (features float32 [B, d], maps by name: stem, stage1 to stage4, features)."""
    small = self.stem == 'small'
    x = layers.Conv(64, *((3, 1, 1) if small else (7, 2, 3)), dtype=self.dtype, name='conv1')(x)
    x = layers.BatchNorm('relu', dtype=self.dtype, name='bn1')(x, train)
    ends = {'stem': x}
    if not small:
      x = layers.max_pool(x, 3, 2, 1)
    for stage, blocks in enumerate(DEPTHS[self.depth], 1):
      for i in range(blocks):
        stride = 2 if i == 0 and stage > 1 else 1
        x = layers.remat(Block, self.remat)(
          32 << stage, stride, self.depth >= 50, self.dtype, name=f'layer{stage}_{i}'
        )(x, train)
      ends[f'stage{stage}'] = x
    x = ends['features'] = self.perturb('features', x)
    x = layers.GlobalPool()(x)
    if self.fc:
      bound = x.shape[-1] ** -0.5  # torch's default
      x = layers.Dense(
        self.fc, layers.uniform(bound), initial_bias=layers.uniform(bound), name='fc'
      )(x)
    return x, ends
