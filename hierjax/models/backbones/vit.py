"""ViT-B/16 as in torchvision (Dosovitskiy et al. 2021, arXiv:2010.11929).

The trunk ends with the norm, and its features are the class token.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hierjax.core.errors import UserError
from hierjax.models import layers
from hierjax.models.backbone import Backbone
from hierjax.models.initializers import glorot, normal, small_normal, torch_linear, zeros

PATCH, WIDTH, DEPTH, HEADS = 16, 768, 12, 12
# Side of the position embeddings' grid: images of 224 pixels.
GRID = 14


def _timm_name(path: str) -> str:
  """Return timm's state dict prefix of a module path."""
  if path == 'conv_proj':
    return 'patch_embed.proj'
  path = re.sub(r'^blocks_(\d+)_?', r'blocks.\1/', path).replace('//', '/')
  return re.sub(r'/(fc\d)$', r'.mlp.\1', path).replace('/', '.')


def _torchvision_name(path: str) -> str:
  """Return torchvision's state dict prefix of a module path.

  A prefix that ends in '_' is joined to 'weight' and 'bias' without a dot.
  """
  match = re.fullmatch(r'blocks_(\d+)[_/](\S+)', path)
  if not match:
    return 'encoder.ln' if path == 'norm' else path
  layer = {
    'norm1': 'ln_1',
    'attn/qkv': 'self_attention.in_proj_',
    'attn/proj': 'self_attention.out_proj',
    'norm2': 'ln_2',
    'fc1': 'mlp.0',
    'fc2': 'mlp.3',
  }
  return f'encoder.layers.encoder_layer_{match[1]}.{layer[match[2]]}'


TORCH_NAMES = {'torchvision': _torchvision_name, 'timm': _timm_name}


def resample(n: int) -> np.ndarray:
  """Make the matrix that interpolates a row of position embeddings at n places.

  Cubic convolution (Keys 1981, a = -3/4) with the corners kept, as torchvision's
  interpolate_embeddings.

  Args:
    n: places in a row.

  Returns:
    float32 [n, GRID]; the unit matrix where n is GRID.
  """
  place = np.arange(n) * ((GRID - 1) / max(n - 1, 1))
  matrix = np.zeros((n, GRID))
  for shift in range(-1, 3):
    source = np.floor(place) + shift
    t = np.abs(place - source)
    near = (1.25 * t - 2.25) * t * t + 1
    far = ((-0.75 * t + 3.75) * t - 6) * t + 3
    weight = np.where(t <= 1, near, far)
    np.add.at(matrix, (np.arange(n), np.clip(source, 0, GRID - 1).astype(int)), weight)
  return matrix.astype(np.float32)


class Block(layers.Layer):
  """Attention over all tokens and an MLP, without dropout or stochastic depth as in torchvision."""

  @nn.compact
  def __call__(self, tokens: tuple[jax.Array, jax.Array], train: bool) -> jax.Array:
    """Transform tokens x [B, n, C], which come with their norm."""
    del train
    x, y = tokens
    attention = layers.Attention(
      HEADS, initial=(glorot, torch_linear), compute=self.compute, name='attn'
    )
    x = x + attention(y)
    y = layers.LayerNorm(compute=self.compute, name='norm2')(x)
    return x + layers.mlp(y, self.compute, glorot, normal(1e-6))


class ViT(layers.Trunk):
  """Trunk of ViT-B/16, for images whose sides are multiples of 16.

  Position embeddings are those of a 14 x 14 grid; for other images they are interpolated in each
  step.

  Maps are those of the patch tokens; the stages are quarters of the blocks. 'features' is what the
  last attention reads, the norm of the last block but one: no class depends on the patch tokens
  after it, and along a token before the norm a class's gradient is 0.
  """

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> layers.Output:
    """Compute features and maps.

    Raises:
      UserError: H or W is no multiple of 16.
    """
    if x.shape[1] % PATCH or x.shape[2] % PATCH:
      raise UserError(
        '--config.data.size: vit_b_16 takes images whose sides are multiples of '
        f'{PATCH}, not {x.shape[1]} x {x.shape[2]}'
      )
    compute = self.compute
    conv = layers.Conv(
      WIDTH,
      PATCH,
      PATCH,
      use_bias=True,
      initial=normal((PATCH * PATCH * x.shape[3]) ** -0.5),
      compute=compute,
      name='conv_proj',
    )
    x = conv(x)
    b, h, w, _ = x.shape
    maps, block = {'stem': x}, self.remat(Block)
    x = self._with_positions(x)
    for i in range(DEPTH):
      y = layers.LayerNorm(compute=compute, name=f'blocks_{i}_norm1')(x)
      if i == DEPTH - 1:
        maps['features'] = self.perturb('features', y[:, 1:].reshape(b, h, w, WIDTH))
        y = jnp.concatenate([y[:, :1], maps['features'].reshape(b, h * w, WIDTH)], 1)
      x = block(compute=compute, name=f'blocks_{i}')((x, y), train)
      if i % 3 == 2:
        maps[f'stage{i // 3 + 1}'] = x[:, 1:].reshape(b, h, w, WIDTH)
    return layers.LayerNorm(compute=compute.in_float32, name='norm')(x)[:, 0], maps

  @nn.nowrap
  def _with_positions(self, x: jax.Array) -> jax.Array:
    """Make tokens [B, 1 + H * W, C] of patches [B, H, W, C]: class token first, positions added."""
    b, h, w, _ = x.shape
    token = self.weight('class_token', zeros, (1, 1, WIDTH))
    position = self.weight('pos_embedding', small_normal, (1, GRID * GRID + 1, WIDTH))
    grid = position[:, 1:]
    if (h, w) != (GRID, GRID):
      grid = position[0, 1:].reshape(GRID, GRID, WIDTH)
      grid = jnp.einsum('hi,wj,ijc->hwc', resample(h), resample(w), grid)
      grid = grid.reshape(1, h * w, WIDTH)
    first = jnp.broadcast_to(token + position[:, :1], (b, 1, WIDTH)).astype(x.dtype)
    return jnp.concatenate([first, x.reshape(b, h * w, WIDTH) + grid.astype(x.dtype)], 1)


BACKBONES = {
  'vit_b_16': Backbone(
    ViT,
    WIDTH,
    torch_names=TORCH_NAMES,
    # In torch's MultiheadAttention these are no modules that are called, so thop does not count
    # them.
    uncounted=r'.*/attn/(qkv|proj)',
  )
}
