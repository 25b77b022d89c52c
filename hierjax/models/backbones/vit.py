"""Vision transformers as in timm, and ViT-B/16 as in torchvision: one trunk with options.

Dosovitskiy et al. 2021, arXiv:2010.11929. `vit_families` lists what each family has of its own.
"""

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hierjax.core.errors import UserError
from hierjax.models import functional, layers
from hierjax.models.backbone import IMAGENET, Backbone, Colors
from hierjax.models.initializers import (
  Initializer,
  constant,
  glorot,
  normal,
  small_normal,
  torch_linear,
  zeros,
)


def _timm_name(path: str) -> str:
  """Return timm's state dict prefix of a module path."""
  if path == 'conv_proj':
    return 'patch_embed.proj'
  path = re.sub(r'^blocks_(\d+)_?', r'blocks.\1/', path).replace('//', '/').removesuffix('/')
  path = re.sub(r'/(fc\d(_[gx])?)$', r'.mlp.\1', path).replace('/mlp_norm', '.mlp.norm')
  return path.replace('/', '.')


# open_clip's names of what a block has.
_OPEN_CLIP = {'attn/qkv': 'attn.in_proj_', 'attn/proj': 'attn.out_proj', 'fc1': 'mlp.c_fc'}
_OPEN_CLIP |= {'norm1': 'ln_1', 'norm2': 'ln_2', 'fc2': 'mlp.c_proj'}
_TORCHVISION = {'attn/qkv': 'self_attention.in_proj_', 'attn/proj': 'self_attention.out_proj'}
_TORCHVISION |= {'norm1': 'ln_1', 'norm2': 'ln_2', 'fc1': 'mlp.0', 'fc2': 'mlp.3'}


def torchvision_name(path: str) -> str:
  """Return torchvision's state dict prefix of a module path.

  A prefix that ends in '_' is joined to 'weight' and 'bias' without a dot.
  """
  match = re.fullmatch(r'blocks_(\d+)[_/](\S+)', path)
  if not match:
    return 'encoder.ln' if path == 'norm' else path
  return f'encoder.layers.encoder_layer_{match[1]}.{_TORCHVISION[match[2]]}'


def _open_clip_name(path: str) -> str:
  """Return the state dict prefix of a module path in open_clip's files, which have text, too."""
  match = re.fullmatch(r'blocks_(\d+)[_/](\S+)', path)
  if not match:
    ends = {'norm': 'ln_post', 'norm_pre': 'ln_pre', 'conv_proj': 'conv1', '': ''}
    return f'visual.{ends[path]}'.removesuffix('.')
  return f'visual.transformer.resblocks.{match[1]}.{_OPEN_CLIP[match[2]]}'


def resample(n: int, grid: int = 14, is_antialiased: bool = False) -> np.ndarray:
  """Make the matrix that interpolates a row of position embeddings at n places.

  Cubic convolution (Keys 1981). Either with the corners kept and a = -3/4, as torchvision's
  interpolate_embeddings; or with pixels' centres, a = -1/2 and a kernel that is stretched where
  there are fewer places, as torch's interpolate(mode='bicubic', antialias=True), which timm calls.

  Args:
    n: places in a row.
    grid: position embeddings in a row.
    is_antialiased: which of the two.

  Returns:
    float32 [n, grid]; the unit matrix where n is grid.
  """
  if is_antialiased:
    a, stretch = -0.5, max(grid / n, 1)
    place = (np.arange(n) + 0.5) * (grid / n) - 0.5
    source = np.broadcast_to(np.arange(grid), (n, grid))
  else:
    a, stretch = -0.75, 1
    place = np.arange(n) * ((grid - 1) / max(n - 1, 1))
    source = np.floor(place)[:, None] + np.arange(-1, 3)
  t = np.abs(place[:, None] - source) / stretch  # distances
  near = ((a + 2) * t - (a + 3)) * t * t + 1
  far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
  weight = np.where(t <= 1, near, np.where(t < 2, far, 0))
  matrix = np.zeros((n, grid))
  columns = np.clip(source, 0, grid - 1).astype(int)  # the border stands for what is beyond it
  np.add.at(matrix, (np.arange(n)[:, None], columns), weight)
  return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


class Rotary(NamedTuple):
  """Axial rotary position embedding: which angles stand for a row and a column.

  Attributes:
    base: a channel's angle is that of the first one times base ** (-channel / channels).
    reference: None has coordinates from -1 to 1 and angles up to 2 pi (DINOv3); otherwise the side
      of a grid to which coordinates are scaled (EVA-02).
    is_half: how channels are paired, as in `functional.rotate`.
  """

  base: float
  reference: int | None
  is_half: bool

  def angles(self, h: int, w: int, prefix: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and signed sines, float32 [prefix + h * w, d], of which prefix do not turn."""
    bands = self.base ** -(np.arange(d // 4) / (d // 4))
    if self.reference is None:
      sides = [2 * np.pi * ((2 * np.arange(n) + 1) / n - 1) for n in (h, w)]
    else:
      sides = [np.arange(n) / n * self.reference for n in (h, w)]
    grid = np.stack(np.meshgrid(*sides, indexing='ij'), -1).reshape(h * w, 2, 1)
    angle = (grid * bands).reshape(h * w, -1)  # d / 2 angles a pixel: of its row, of its column
    angle = np.pad(angle, ((prefix, 0), (0, 0)))
    cosine, sine = np.cos(angle), np.sin(angle)
    axis = 1 if self.is_half else 2
    pairs = np.stack([cosine, cosine], axis), np.stack([-sine, sine], axis)
    return tuple(x.reshape(prefix + h * w, d).astype(np.float32) for x in pairs)


# Initialisers of the kernels of qkv, proj and MLP, and of the biases of the MLP.
TIMM_INITIAL = (small_normal, small_normal, small_normal, zeros)
TORCHVISION_INITIAL = (glorot, torch_linear, glorot, normal(1e-6))


@dataclasses.dataclass(frozen=True)
class Style:
  """What the blocks of a trunk share.

  Attributes:
    heads: of the attention.
    eps: of the norms.
    biased: which of queries, keys and values have a bias: 'qkv', 'qv' or ''.
    is_split: whether the three have a layer each.
    has_qk_norm: whether queries and keys are normed.
    rotary: the rotary position embedding, or None.
    scale: initial value of the factors of each branch's channels (LayerScale); None has none.
    ratio: hidden channels of the MLP for each channel.
    act: activation of the MLP.
    gate: of the MLP, as in `layers.mlp`.
    has_mlp_norm: whether the MLP norms its hidden channels.
    initial: initialisers.
  """

  heads: int = 12
  eps: float = 1e-6
  biased: str = 'qkv'
  is_split: bool = False
  has_qk_norm: bool = False
  rotary: Rotary | None = None
  scale: float | None = None
  ratio: float = 4
  act: str = 'gelu'
  gate: str | None = None
  has_mlp_norm: bool = False
  initial: tuple[Initializer, ...] = TIMM_INITIAL


class Block(layers.Layer):
  """Attention over all tokens and an MLP, without dropout; `drop` is its stochastic depth."""

  style: Style
  drop: float = 0.0

  @nn.compact
  def __call__(self, tokens: tuple[jax.Array, ...], train: bool) -> jax.Array:
    """Transform tokens x [B, n, C], which come with their norm and perhaps a rotation."""
    style, compute, (x, y, *rotation) = self.style, self.compute, tokens
    c = x.shape[-1]

    def norm(name):
      return layers.LayerNorm(style.eps, compute=compute, name=name)

    def branch(y, name):
      if style.scale is not None:
        gamma = self.weight(name, constant(style.scale), (c,))
        y = y * functional.per_channel(jnp.asarray(gamma, compute.dtype), y)
      return layers.StochasticDepth(self.drop, compute=compute)(y, train)

    fields = {'biased': style.biased, 'is_split': style.is_split, 'initial': style.initial[:2]}
    fields['norm_eps'] = style.eps if style.has_qk_norm else None
    fields['is_half'] = style.rotary is not None and style.rotary.is_half
    attention = layers.Attention(style.heads, **fields, compute=compute, name='attn')
    x = x + branch(attention(y, rotation=rotation[0] if rotation else None), 'gamma_1')
    options = {'hidden': int(c * style.ratio), 'act': style.act, 'gate': style.gate}
    if style.has_mlp_norm:
      options['norm'] = norm('mlp_norm')
    y = layers.mlp(norm('norm2')(x), compute, *style.initial[2:], **options)
    return x + branch(y, 'gamma_2')


class AttentionPool(layers.Layer):
  """Attention of one learned query to all tokens, and an MLP (timm's AttentionPoolLatent)."""

  style: Style

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Pool x [B, n, C] to [B, C]."""
    style, compute, (b, n, c) = self.style, self.compute, x.shape
    d = c // style.heads
    latent = self.weight('latent', normal(c**-0.5), (1, 1, c))
    q = layers.Dense(c, compute=compute, name='q')(latent) * d**-0.5
    kv = layers.Dense(2 * c, compute=compute, name='kv')(x)
    k, v = (y.reshape(b, n, style.heads, d).swapaxes(1, 2) for y in jnp.split(kv, 2, -1))
    q = jnp.broadcast_to(q.reshape(1, style.heads, 1, d), (b, style.heads, 1, d))
    y = functional.attention(q, k, v, None, compute.ops.product).reshape(b, c)
    y = layers.Dense(c, compute=compute, name='proj')(y)
    norm = layers.LayerNorm(style.eps, compute=compute, name='norm')
    hidden = int(c * style.ratio)
    return y + layers.mlp(norm(y), compute, hidden=hidden, act=style.act)


class ViT(layers.Trunk):
  """Trunk of a vision transformer, for images whose sides are multiples of a patch's.

  Position embeddings are those of a grid; for other images they are interpolated in each step.

  Maps are those of the patch tokens; the stages are quarters of the blocks. 'features' is what the
  pooling reads, or, where it reads the class token, what the last attention does, the norm of the
  last block but one: no class depends on the patch tokens after it, and along a token before the
  norm a class's gradient is 0.

  Attributes:
    style: of the blocks.
    width: channels.
    depth: number of blocks.
    patch: side of a patch in pixels.
    grid: side of the grid of position embeddings; None has none.
    has_class_token: whether a class token stands first.
    registers: further learned tokens after it (Darcet et al. 2024, arXiv:2309.16588).
    has_prefix_positions: whether these tokens have position embeddings, too.
    is_antialiased: how position embeddings are interpolated, as in `resample`.
    has_pre_norm: whether a norm stands before the blocks; the patches then have no bias.
    pool: 'token' (class token), 'mean' (of the patch tokens) or 'map' (`AttentionPool`).
    is_pooled_first: whether the last norm stands after the pooling.
    drop_path: stochastic depth of the last block, rising linearly from 0 at the first.
  """

  style: Style = Style()
  width: int = 768
  depth: int = 12
  patch: int = 16
  grid: int | None = 14
  has_class_token: bool = True
  registers: int = 0
  has_prefix_positions: bool = True
  is_antialiased: bool = True
  has_pre_norm: bool = False
  pool: str = 'token'
  is_pooled_first: bool = False
  drop_path: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> layers.Output:
    """Compute features and maps.

    Raises:
      UserError: H or W is no multiple of a patch's side.
    """
    compute, style = self.compute, self.style
    x = self._patches(x)
    b, h, w, c = x.shape
    maps, block = {'stem': x}, self.remat(Block)
    x, rotation = self._with_positions(x), ()
    prefix = x.shape[1] - h * w
    if style.rotary:
      angles = style.rotary.angles(h, w, prefix, c // style.heads)
      rotation = (tuple(map(jnp.asarray, angles)),)
    if self.has_pre_norm:
      x = layers.LayerNorm(style.eps, compute=compute, name='norm_pre')(x)
    rates = layers.drop_rates(self.drop_path, [self.depth])[0]
    for i, rate in enumerate(rates, 1):
      y = layers.LayerNorm(style.eps, compute=compute, name=f'blocks_{i - 1}_norm1')(x)
      if i == self.depth and self.pool == 'token':
        y = self._watched(y, maps, (h, w))
      x = block(style, rate, compute=compute, name=f'blocks_{i - 1}')((x, y, *rotation), train)
      stages = [k for k in range(1, 5) if i == self.depth * k // 4]
      maps |= {f'stage{k}': x[:, prefix:].reshape(b, h, w, c) for k in stages}
    return self._pooled(x, maps, (h, w)), maps

  @nn.nowrap
  def _patches(self, x: jax.Array) -> jax.Array:
    patch = self.patch
    if x.shape[1] % patch or x.shape[2] % patch:
      raise UserError(
        f'--config.data.size: this ViT (patches of {patch} pixels) takes images whose sides are '
        f'multiples of {patch}, not {x.shape[1]} x {x.shape[2]}'
      )
    options = {'use_bias': not self.has_pre_norm, 'compute': self.compute, 'name': 'conv_proj'}
    initial = normal((patch * patch * x.shape[3]) ** -0.5)
    return layers.Conv(self.width, patch, patch, initial=initial, **options)(x)

  @nn.nowrap
  def _with_positions(self, x: jax.Array) -> jax.Array:
    """Make tokens [B, n, C] of patches [B, H, W, C]: class token and registers first."""
    (b, h, w, c), tokens = x.shape, []
    if self.has_class_token:
      tokens.append(self.weight('class_token', zeros, (1, 1, c)))
    if self.registers:
      tokens.append(self.weight('reg_token', small_normal, (1, self.registers, c)))
    prefix = jnp.concatenate(tokens, 1) if tokens else jnp.zeros((1, 0, c))
    x = x.reshape(b, h * w, c)
    if self.grid:
      side, extra = self.grid, prefix.shape[1] if self.has_prefix_positions else 0
      position = self.weight('pos_embedding', small_normal, (1, side * side + extra, c))
      if extra:
        prefix = prefix + position[:, :extra]
      grid = position[:, extra:]
      if (h, w) != (side, side):
        rows, columns = (resample(n, side, self.is_antialiased) for n in (h, w))
        grid = jnp.einsum('hi,wj,ijc->hwc', rows, columns, grid.reshape(side, side, c))
      x = x + grid.reshape(1, h * w, c).astype(x.dtype)
    prefix = jnp.broadcast_to(prefix, (b, *prefix.shape[1:])).astype(x.dtype)
    return jnp.concatenate([prefix, x], 1)

  @nn.nowrap
  def _watched(self, y: jax.Array, maps: dict[str, jax.Array], size: tuple[int, int]) -> jax.Array:
    """Take the patch tokens of y [B, n, C] as the map 'features', and return all, perturbed."""
    b, n, c = y.shape
    prefix = n - size[0] * size[1]
    maps['features'] = self.perturb('features', y[:, prefix:].reshape(b, *size, c))
    return jnp.concatenate([y[:, :prefix], maps['features'].reshape(b, -1, c)], 1)

  @nn.nowrap
  def _pooled(self, x: jax.Array, maps: dict[str, jax.Array], size: tuple[int, int]) -> jax.Array:
    """Pool tokens [B, n, C] to features, float32 [B, C]."""
    name = 'fc_norm' if self.is_pooled_first else 'norm'
    last = layers.LayerNorm(self.style.eps, compute=self.compute.in_float32, name=name)
    if self.pool == 'token':
      return last(x)[:, 0]
    x = x if self.is_pooled_first else last(x)
    x = self._watched(x.astype(self.compute.dtype), maps, size)
    x = x[:, x.shape[1] - size[0] * size[1] :]
    if self.pool == 'map':
      pool = AttentionPool(self.style, compute=self.compute, name='attn_pool')
      return pool(x).astype(jnp.float32)
    x = x.mean(1, dtype=jnp.float32)
    return last(x) if self.is_pooled_first else x


def backbone(
  trunk: tuple[int, int, int], patch: int, size: int, colors: Colors = IMAGENET, **options: Any
) -> Backbone:
  """Describe a vision transformer by timm's names.

  Args:
    trunk: width, depth and heads.
    patch: side of a patch in pixels.
    size: side of the images in pixels.
    colors: mean and standard deviation of the images.
    **options: fields of `Style` and `ViT`.
  """
  width, depth, heads = trunk
  fields = {field.name for field in dataclasses.fields(Style)}
  style = Style(heads, **{k: v for k, v in options.items() if k in fields})
  options = {'grid': size // patch} | {k: v for k, v in options.items() if k not in fields}
  make = functools.partial(ViT, style, width, depth, patch, **options)
  # EVA's code, which is that of DINOv3, too, names the factors of branches otherwise.
  names = {'timm_eva' if style.rotary else 'timm': _timm_name}
  if options.get('has_pre_norm'):
    names['open_clip'] = _open_clip_name
  return Backbone(make, width, *colors, size, patch, names)
