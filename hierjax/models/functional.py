"""Functions that kernels and layers share: activations, matrix products, attention, windows."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hierjax.core.errors import UserError

Array = jax.Array
# Rows and columns.
Window = tuple[int, int]


def per_channel(v: Array, x: Array) -> Array:
  """Reshape a vector [C] to the rank of x, so that it broadcasts over all but the last axis."""
  return v.reshape((1,) * (x.ndim - 1) + (-1,))


def all_sum(tree: Any, axis: str | None) -> Any:
  """Sum over the devices of a mesh axis; with axis None return the tree as it is."""
  return tree if axis is None else lax.psum(tree, axis)


def num_devices(axis: str | None) -> int:
  """Number of devices along a mesh axis; 1 with axis None."""
  return 1 if axis is None else lax.axis_size(axis)


def bernoulli(key: Array, p: float, shape: tuple[int, ...], axis: str | None = None) -> Array:
  """Draw booleans of which a share p is true.

  Args:
    key: the same on all devices.
    p: probability of True.
    shape: of this device's part; its first axis counts examples.
    axis: the mesh axis over which the batch is split. The part is then cut from what one device
      would draw for the whole batch, so that the numbers do not depend on the number of devices.
  """
  if axis is None:
    return jax.random.bernoulli(key, p, shape)
  batch = jax.random.bernoulli(key, p, (shape[0] * lax.axis_size(axis), *shape[1:]))
  return lax.dynamic_slice_in_dim(batch, lax.axis_index(axis) * shape[0], shape[0])


def dense(x: Array, kernel: Array) -> Array:
  """Multiply by a matrix.

  Args:
    x: [..., C].
    kernel: [C, O].
  """
  y = lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())))
  return y.reshape(*x.shape[:-1], kernel.shape[1])


def explicit_pads(
  size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int | str
) -> tuple[tuple[int, int], tuple[int, int]]:
  """Return the pixels (above, below) and (left, right) that a padding adds.

  Args:
    size: height and width.
    kernel: height and width.
    stride: in pixels.
    padding: in pixels, or TensorFlow's 'SAME'.
  """
  if padding == 'SAME':
    return tuple(lax.padtype_to_pads(size, kernel, (stride, stride), 'SAME'))
  return ((int(padding), int(padding)),) * 2


def check_pool_fits(x: Array, window: int, padding: int) -> None:
  """Raise a `UserError` where no window fits; later convolutions would go on with empty maps."""
  if min(x.shape[1:3]) + 2 * padding < window:
    raise UserError(
      '--config.data.size: the images are too small for this backbone: no pixel is left at one of '
      'its pooling layers; set a larger size'
    )


def _normal_cdf(x: Array) -> Array:
  # By erf, as torch does; jax.nn.gelu and jax.scipy take erfc, which costs twice as much for digits
  # of numbers near 0.
  return 0.5 * (1 + lax.erf(x * np.float32(0.5**0.5)))


@jax.custom_vjp
def gelu(x: Array) -> Array:
  """Compute the exact GELU, x times the normal distribution's cumulative probability.

  Hendrycks and Gimpel 2016, arXiv:1606.08415. Only x is kept for the backward pass.
  """
  return (x * _normal_cdf(x.astype(jnp.float32))).astype(x.dtype)


def _gelu_slope(x: Array) -> Array:
  return _normal_cdf(x) + x * jnp.exp(-0.5 * x * x) * np.float32((2 * np.pi) ** -0.5)


def _gelu_forward(x: Array) -> tuple[Array, Array]:
  return gelu(x), x


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
  return ((dy * _gelu_slope(x.astype(jnp.float32))).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


def _silu_slope(x: Array) -> Array:
  s = nn.sigmoid(x)
  return s * (1 + x * (1 - s))


def _quick_gelu(x: Array) -> Array:
  return x * nn.sigmoid(1.702 * x)


def _slope(act: Callable[[Array], Array]) -> Callable[[Array], Array]:
  """Make the derivative of a function of single numbers."""
  return lambda x: jax.jvp(act, (x,), (jnp.ones_like(x),))[1]


# name: (the function, its derivative), both functions of the input. Hard swish has torch's slopes
# at its kinks. A derivative that is 0 or 1 is boolean.
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
  '': (lambda x: x, jnp.ones_like),
  'relu': (lambda x: jnp.maximum(x, 0), lambda x: x > 0),
  'relu6': (lambda x: jnp.clip(x, 0, 6), lambda x: (x > 0) & (x < 6)),
  'silu': (nn.silu, _silu_slope),
  'hardswish': (nn.hard_swish, lambda x: jnp.where(x <= 3, jnp.where(x < -3, 0, x / 3 + 0.5), 1)),
  'gelu': (gelu, _gelu_slope),
  'gelu_tanh': (nn.gelu, _slope(nn.gelu)),
  # CLIP's: openai/CLIP, clip/model.py.
  'quick_gelu': (_quick_gelu, _slope(_quick_gelu)),
}


def activate(x: Array, act: str) -> Array:
  """Apply an activation, a key of `ACTIVATIONS` ('' is the identity)."""
  return ACTIVATIONS[act][0](x)


def normalized(x: Array) -> Array:
  """Scale the rows of x [..., d] to length 1; a row of zeros stays."""
  return x * lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-12))


def global_pool(x: Array) -> Array:
  """Average x [B, H, W, C] over its pixels, to float32 [B, C]."""
  return x.mean((1, 2), dtype=jnp.float32)


def stored(x: Array) -> Array:
  """Have an array, and its gradient, computed once for all that use them.

  XLA would sum up what all residual blocks before have added anew in each operation that uses it:
  time would grow with the square of the depth. It needs `compute.compiler_options`.
  """
  return lax.optimization_barrier(x)


def product(a: Array, b: Array, is_transposed: bool = False) -> Array:
  """Multiply matrices, those of each leading index by themselves.

  Args:
    a: [..., n, d].
    b: [..., d, m], or [..., m, d].
    is_transposed: whether b is the latter.

  Returns:
    [..., n, m], float32 where the matrices are bfloat16.
  """
  batch, last = tuple(range(a.ndim - 2)), a.ndim - 1
  contracted = (last,), (last if is_transposed else last - 1,)
  dtype = jnp.promote_types(a.dtype, jnp.float32)
  return lax.dot_general(a, b, (contracted, (batch, batch)), preferred_element_type=dtype)


def attention(
  q: Array, k: Array, v: Array, bias: Array | None = None, multiply: Callable = product
) -> Array:
  """Compute softmax(q k^T + bias) v, with the softmax in float32.

  Heads stand before the tokens: XLA's batched matrix products on the CPU want their batch axes in
  front, and copy what is laid out otherwise.

  Args:
    q: queries [..., heads, n, d], scaled.
    k: keys [..., heads, n, d].
    v: values [..., heads, n, d].
    bias: [heads, n, n], or with further leading axes as q has them.
    multiply: as `product`.

  Returns:
    [..., heads, n, d].
  """
  logits = multiply(q, k, True)
  if bias is not None:
    logits = logits + bias.reshape((1,) * (logits.ndim - bias.ndim) + bias.shape)
  return multiply(nn.softmax(logits).astype(v.dtype), v).astype(v.dtype)


def rotate(x: Array, rotation: tuple[Array, Array], is_half: bool) -> Array:
  """Turn pairs of channels by angles (rotary position embedding; Su et al. 2021, arXiv:2104.09864).

  Args:
    x: queries or keys [..., n, d].
    rotation: cosines and sines of the angles, [n, d]; the sine of a pair's first channel is
      negative.
    is_half: whether channel i is paired with i + d / 2; otherwise channel 2i with 2i + 1.
  """
  *lead, d = x.shape
  if is_half:
    pairs = x.reshape(*lead, 2, d // 2)
    partner = jnp.flip(pairs, -2).reshape(x.shape)
  else:
    pairs = x.reshape(*lead, d // 2, 2)
    partner = jnp.flip(pairs, -1).reshape(x.shape)
  cosine, sine = (y.reshape((1,) * (x.ndim - 2) + y.shape) for y in rotation)
  return (x * cosine + partner * sine).astype(x.dtype)


def windows(x: Array, size: Window, spread: bool = False) -> Array:
  """Cut maps into windows.

  Args:
    x: [B, H, W, C], H and W multiples of the window's rows and columns.
    size: rows and columns of a window, in pixels.
    spread: whether a window's pixels lie H / rows rows and W / columns columns apart (MaxViT's
      grids); otherwise they are neighbours.

  Returns:
    [B, windows, rows * columns, C].
  """
  b, h, w, c = x.shape
  r, s = size  # rows and columns
  if spread:
    tiles = x.reshape(b, r, h // r, s, w // s, c).transpose(0, 2, 4, 1, 3, 5)
  else:
    tiles = x.reshape(b, h // r, r, w // s, s, c).swapaxes(2, 3)
  return tiles.reshape(b, -1, r * s, c)


def from_windows(y: Array, size: Window, h: int, w: int, spread: bool = False) -> Array:
  """Join windows to maps [B, h, w, C], the inverse of `windows`.

  Args:
    y: [B, windows, rows * columns, C].
    size: rows and columns of a window, in pixels.
    h: rows of the maps.
    w: columns of the maps.
    spread: as in `windows`.
  """
  b, _, _, c = y.shape
  r, s = size
  tiles = y.reshape(b, h // r, w // s, r, s, c)
  maps = tiles.transpose(0, 3, 1, 4, 2, 5) if spread else tiles.swapaxes(2, 3)
  return maps.reshape(b, h, w, c)


def relative_position(table: Array, size: Window) -> Array:
  """Look up the bias of each pair of pixels in a window by their relative position.

  Args:
    table: [(2 * rows - 1) * (2 * columns - 1), heads], a row for each displacement down and to the
      right.
    size: rows and columns of the window, in pixels.

  Returns:
    [heads, n, n] with n = rows * columns.
  """
  rows, columns = size
  pixels = np.stack(np.divmod(np.arange(rows * columns), columns))  # [2, n], row and column
  displacements = pixels[:, :, None] - pixels[:, None]  # [2, n, n]
  down, right = displacements + np.reshape(size, (2, 1, 1)) - 1  # from 0 on
  place = down * (2 * columns - 1) + right
  return jnp.moveaxis(table[place], -1, 0)


def log_coordinates(size: Window, reference: int | None = None) -> np.ndarray:
  """List the displacements in a window on a logarithmic scale, as Swin V2's (equation 4).

  Args:
    size: rows and columns of the window, in pixels.
    reference: side of the window in pretraining; None takes `size`. A displacement from end to end
      of it becomes +-log2(9) / 3.

  Returns:
    float32 [(2 * rows - 1) * (2 * columns - 1), 2] in the order of `relative_position`'s table.
  """
  # In float32 throughout, as timm: other roundings move gradients of 12 blocks by up to 4e-5.
  sides = []
  for n in size:
    end = max((reference or n) - 1, 1)
    sides.append(np.arange(1 - n, n, dtype=np.float32) / end)
  grid = np.meshgrid(*sides, indexing='ij')
  x = 8 * np.stack(grid, -1).reshape(-1, 2)
  return np.sign(x) * np.log2(np.abs(x) + 1) / 3
