"""ViT-B/16 as in torchvision: the trunk ends with the norm, features are the class token (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hierjax.core.errors import UserError
from hierjax.models import layers

PATCH, WIDTH, DEPTH, HEADS = 16, 768, 12, 12
GRID = 14  # of the position embeddings: images of 224 pixels


def _timm(path: str) -> str:
  path = re.sub(r'^blocks_(\d+)_?', r'blocks.\1/', path).replace('//', '/')
  return {'conv_proj': 'patch_embed.proj'}.get(
    path, re.sub(r'/(fc\d)$', r'.mlp.\1', path).replace('/', '.')
  )


def _torchvision(path: str) -> str:
  if m := re.fullmatch(r'blocks_(\d+)[_/](\S+)', path):
    part = {
      'norm1': 'ln_1',
      'attn/qkv': 'self_attention.in_proj_',
      'attn/proj': 'self_attention.out_proj',
      'norm2': 'ln_2',
      'fc1': 'mlp.0',
      'fc2': 'mlp.3',
    }
    return f'encoder.layers.encoder_layer_{m[1]}.{part[m[2]]}'
  return {'norm': 'encoder.ln'}.get(path, path)


# State dict prefix of a module path, per naming scheme. What ends in '_' is joined to 'weight' and 'bias' without a dot.
torch_names = {'torchvision': _torchvision, 'timm': _timm}
UNSEEN = (
  r'.*/attn/(qkv|proj)'  # within torch's MultiheadAttention they are no modules that are called
)

glorot = layers.uniform(lambda shape: math.sqrt(6 / sum(shape)))
lecun = layers.uniform(lambda shape: 1 / math.sqrt(shape[0]))  # torch's default for a linear layer


def resample(n: int) -> np.ndarray:
  """[n, GRID], which takes a row of position embeddings to n places: cubic convolution (Keys 1981, a = -3/4) with the corners kept, as torchvision's
  interpolate_embeddings. The unit matrix where n is GRID."""
  place = np.arange(n) * ((GRID - 1) / max(n - 1, 1))
  matrix = np.zeros((n, GRID))
  for tap in range(-1, 3):
    at = np.floor(place) + tap
    t = np.abs(place - at)
    weight = np.where(t <= 1, (1.25 * t - 2.25) * t * t + 1, ((-0.75 * t + 3.75) * t - 6) * t + 3)
    np.add.at(matrix, (np.arange(n), np.clip(at, 0, GRID - 1).astype(int)), weight)
  return matrix.astype(np.float32)


class Block(nn.Module):
  """Attention over all tokens and an MLP, from x and its norm, each [B, n, C]."""

  dtype: Any

  @nn.compact
  def __call__(self, x_and_norm, train: bool):
    del train  # torchvision trains it without dropout or stochastic depth
    x, y = x_and_norm
    x = x + layers.Attention(HEADS, initial=(glorot, lecun), dtype=self.dtype, name='attn')(y)
    y = layers.LayerNorm(dtype=self.dtype, name='norm2')(x)
    options = {'initial': glorot, 'initial_bias': layers.normal(1e-6), 'dtype': self.dtype}
    y = layers.gelu(layers.Dense(4 * WIDTH, **options, name='fc1')(y))
    return x + layers.Dense(WIDTH, **options, name='fc2')(y)


class ViT(nn.Module):
  """Trunk of ViT-B/16. Position embeddings are those of a 14 x 14 grid; for other images they are interpolated here, in each step."""

  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(self, x, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
    """x [B, H, W, 3], normalised -> (features float32 [B, 768], maps of the patch tokens by name: stem, stage1 to stage4, features).

    The stages are quarters of the blocks. features is what the last attention reads, the norm of the last block but one: no class depends on the patch
    tokens after it, and along a token before the norm a class's gradient is 0. UserError if H or W is no multiple of 16.
    """
    if x.shape[1] % PATCH or x.shape[2] % PATCH:
      raise UserError(
        f'--config.data.size: vit_b_16 takes images whose sides are multiples of {PATCH}, not {x.shape[1]} x {x.shape[2]}'
      )
    fan_in = PATCH * PATCH * x.shape[3]
    x = layers.Conv(
      WIDTH,
      PATCH,
      PATCH,
      use_bias=True,
      initial=layers.normal(fan_in**-0.5),
      dtype=self.dtype,
      name='conv_proj',
    )(x)
    b, h, w, _ = x.shape
    ends = {'stem': x}
    token = self.param('class_token', layers.zeros, (1, 1, WIDTH))
    position = self.param('pos_embedding', layers.normal(0.02), (1, GRID * GRID + 1, WIDTH))
    if (h, w) == (GRID, GRID):
      grid = position[:, 1:]
    else:
      grid = jnp.einsum(
        'hi,wj,ijc->hwc', resample(h), resample(w), position[0, 1:].reshape(GRID, GRID, WIDTH)
      ).reshape(1, h * w, WIDTH)
    first = jnp.broadcast_to(token + position[:, :1], (b, 1, WIDTH))
    x = jnp.concatenate(
      [first.astype(self.dtype), x.reshape(b, h * w, WIDTH) + grid.astype(self.dtype)], 1
    )  # rank 3: grid broadcasts over the batch
    for i in range(DEPTH):
      y = layers.LayerNorm(dtype=self.dtype, name=f'blocks_{i}_norm1')(x)
      if i == DEPTH - 1:
        ends['features'] = self.perturb('features', y[:, 1:].reshape(b, h, w, WIDTH))
        y = jnp.concatenate([y[:, :1], ends['features'].reshape(b, h * w, WIDTH)], 1)
      x = layers.remat(Block, self.remat)(self.dtype, name=f'blocks_{i}')((x, y), train)
      if i % 3 == 2:
        ends[f'stage{i // 3 + 1}'] = x[:, 1:].reshape(b, h, w, WIDTH)
    return layers.LayerNorm(name='norm')(x)[:, 0], ends
