"""VGG-11 and 16 without batch norm as in torchvision; the trunk ends with the second wide layer (Simonyan and Zisserman 2014, arXiv:1409.1556)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hierjax.models import layers

DEPTHS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}  # convolutions before each of the five pools
WIDTHS = (64, 128, 256, 512, 512)
ENDS = (
  'stem',
  'stage1',
  'stage2',
  'stage3',
  'stage4',
)  # the pools' outputs, at strides 2, 4, 8, 16, 32


def _torchvision(path: str) -> str:
  return {'fc1': 'classifier.0', 'fc2': 'classifier.3'}.get(path) or path.split('/')[1].replace(
    '_', '.'
  )


def _timm(path: str) -> str:
  return f'pre_logits.{path}' if path.startswith('fc') else _torchvision(path)


torch_names = {
  'torchvision': _torchvision,
  'timm': _timm,
}  # state dict prefix of a module path, per naming scheme


class Stage(nn.Module):
  """3x3 convolutions with ReLU, named by their place in torch's list, which counts the ReLUs and the pools; then the pool."""

  depth: int
  width: int
  first: int
  dtype: Any

  @nn.compact
  def __call__(self, x, train: bool):
    for i in range(self.depth):
      x = nn.relu(
        layers.Conv(
          self.width,
          3,
          1,
          1,
          use_bias=True,
          dtype=self.dtype,
          name=f'features_{self.first + 2 * i}',
        )(x)
      )
    return layers.max_pool(x, 2, 2, 0)


class VGG(nn.Module):
  """Trunk of a VGG. Its two wide layers are convolutions over the whole 7 x 7 map and over one pixel, as timm has them; torchvision flattens the map."""

  depth: int = 16
  dropout: float = 0.5
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
    """x [B, H, W, 3], normalised, H and W >= 32 -> (features float32 [B, 4096], maps by name: stem, stage1 to stage4, features)."""
    ends, first = {}, 0
    for end, depth, width in zip(ENDS, DEPTHS[self.depth], WIDTHS):
      x = ends[end] = layers.remat(Stage, self.remat)(depth, width, first, self.dtype, name=end)(
        x, train
      )
      first += 2 * depth + 1
    x = ends['features'] = self.perturb('features', x)
    x = layers.AdaptiveAvgPool(7)(x)
    for name, size in (('fc1', 7), ('fc2', 1)):
      x = nn.relu(
        layers.Conv(
          4096, size, size, use_bias=True, initial=layers.normal(0.01), dtype=self.dtype, name=name
        )(x)
      )
      x = layers.Dropout(self.dropout)(x, train)
    return x[:, 0, 0].astype(jnp.float32), ends
