"""The operations of `plain_kernels`, written so that XLA's CPU backend computes them fast.

On two AVX-512 cores XLA's own forms of these operations and of their gradients take two to eight
times as long for a whole train step. What is done instead:

- 1x1 and patch convolutions are matrix products; small maps are gathered into patches for one.
- Groups of channels are convolved one by one.
- A depthwise convolution and its gradients are sums of shifted, scaled maps, one for each tap.
- Sums over pixels go over pieces of up to 8 rows first, which XLA unrolls into vector code.
- The gradient of batch norm and its activation is written by hand, in two passes over the maps.

Maps are [B, H, W, C], kernels [k, k, C, O], or [k, k, 1, C] of a depthwise convolution. A tap is
one pixel of a kernel or a pooling window. `pads` are ((above, below), (left, right)) in pixels.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from hierjax.models import functional
from hierjax.models.functional import ACTIVATIONS, dense, per_channel
from hierjax.models.functional import product as product
from hierjax.models.functional import stored as stored

Array = jax.Array
Size = tuple[int, int]
Pads = tuple[tuple[int, int], tuple[int, int]]


def _stored(f: Callable, static: tuple[int, ...] = ()) -> Callable:
  """Make f a call that XLA does not inline: its results are stored, where fusion would compute them
  again in each of their uses, and calls that are equal compile once."""

  def body(*args):
    with set_xla_metadata(inlineable='true'):
      return f(*args)

  call = jax.jit(functools.wraps(f)(body), static_argnums=static)

  @functools.wraps(f)
  def stored(*args):
    with set_xla_metadata(inlineable='false'):
      return call(*args)

  return stored


def _pad(x: Array, pads: Sequence[tuple[int, int]], value: float = 0) -> Array:
  """Pad maps with rows and columns of one value."""
  amounts = [(0, 0, 0), *((*side, 0) for side in pads), (0, 0, 0)]
  return lax.pad(x, jnp.asarray(value, x.dtype), amounts)


def _out_size(size: Size, kernel: Size, stride: int, pads: Pads) -> Size:
  return tuple((n + sum(p) - k) // stride + 1 for n, k, p in zip(size, kernel, pads))


def _tap(padded: Array, i: int, j: int, stride: int, out: Size) -> Array:
  """Cut the pixels of padded maps that a kernel's tap (i, j) meets, [B, *out, C]."""
  rows = slice(i, i + stride * (out[0] - 1) + 1, stride)
  columns = slice(j, j + stride * (out[1] - 1) + 1, stride)
  return padded[:, rows, columns]


def _fold(n: int) -> int:
  """Return the largest divisor of n up to 8, or where that is below 3 the smallest above 8."""
  divisors = [f for f in range(1, n + 1) if n % f == 0]
  short = max(f for f in divisors if f <= 8)
  return short if short > 2 or n <= 2 else min(f for f in divisors if f > 8)


def _sum_pieces(xs: list[Array], axis: int) -> list[Array]:
  """Sum arrays of one shape in float32 over pieces of an axis, which then counts the pieces."""
  shape = xs[0].shape
  fold = _fold(shape[axis])
  pieces = (*shape[:axis], shape[axis] // fold, fold, *shape[axis + 1 :])
  return lax.reduce(
    [x.astype(jnp.float32).reshape(pieces) for x in xs],
    [jnp.float32(0)] * len(xs),
    lambda p, q: [s + t for s, t in zip(p, q)],
    (axis + 1,),
  )


def _sum_pixels(xs: list[Array]) -> list[Array]:
  """Sum maps of one shape over B, H and W, each to float32 [C], in one pass."""
  return [p.sum((0, 1, 2)) for p in _sum_pieces(xs, 1)]


def _interleave(xs: list[Array], axis: int) -> Array:
  """Order slices as x[0], y[0], z[0], x[1], ... along an axis; later arrays may be one shorter."""
  if len(xs) == 1:
    return xs[0]
  length = sum(x.shape[axis] for x in xs)
  equal = []
  for x in xs:
    missing = xs[0].shape[axis] - x.shape[axis]
    pads = [(0, 0)] * axis + [(0, missing)] + [(0, 0)] * (x.ndim - axis - 1)
    equal.append(jnp.pad(x, pads) if missing else x)
  stacked = jnp.stack(equal, axis + 1)
  merged = stacked.reshape(*xs[0].shape[:axis], -1, *xs[0].shape[axis + 1 :])
  return merged if merged.shape[axis] == length else lax.slice_in_dim(merged, 0, length, axis=axis)


def conv(x: Array, kernel: Array, stride: int = 1, padding: int | str = 0) -> Array:
  """Convolve maps with a kernel. Args: as `plain_kernels.conv`.

  The form is chosen by the shapes: shifted sums for a depthwise kernel, a matrix product for 1x1
  kernels, patches and small maps, a product and shifted sums where few channels go out; XLA's own
  for the rest, for each group of channels by itself.
  """
  size, k = x.shape[1:3], kernel.shape[:2]
  pads = functional.explicit_pads(size, k, stride, padding)
  is_padded, flat = any(sum(p) for p in pads), kernel.reshape(-1, kernel.shape[3])
  if kernel.shape[2] == 1 and x.shape[3] > 1:
    y = depthwise(x.astype(jnp.float32), kernel.astype(jnp.float32), stride, pads)
    return y.astype(x.dtype)
  if kernel.shape[2] < x.shape[3]:
    return _grouped(x, kernel, stride, padding)
  if k == (1, 1) and not is_padded:
    return dense(x[:, ::stride, ::stride], kernel[0, 0])
  if k == (stride, stride) and not is_padded and not any(n % stride for n in size):
    return dense(_patches(x, stride), flat)
  if min(size) <= 4 or (x.shape[3] <= 4 and max(k) <= 3):
    return dense(_overlapping_patches(x, k, stride, pads), flat)
  if stride == 1 and 2 * kernel.shape[3] <= x.shape[3]:
    # It is cheaper to gather what goes out than what comes in.
    taps = dense(x, kernel.transpose(2, 0, 1, 3).reshape(x.shape[3], -1))
    return _sum_taps(taps, k, pads)
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def _grouped(x: Array, kernel: Array, stride: int, padding: int | str) -> Array:
  # the gradients of XLA's own form take a hundred times as long; as calls these would take ten
  parts = zip(*(jnp.split(a, x.shape[3] // kernel.shape[2], -1) for a in (x, kernel)))
  return jnp.concatenate([conv(*part, stride, padding) for part in parts], -1)


def _patches(x: Array, k: int) -> Array:
  """Gather the pixels of k x k patches, [B, H / k, W / k, k * k * C]."""
  b, h, w, c = x.shape
  tiles = x.reshape(b, h // k, k, w // k, k, c).swapaxes(2, 3)
  return tiles.reshape(b, h // k, w // k, -1)


def _overlapping_patches(x: Array, k: Size, stride: int, pads: Pads) -> Array:
  """Gather the pixels that each output pixel reads (im2col), [B, *out, k * k * C]."""
  h, w = _out_size(x.shape[1:3], k, stride, pads)
  padded = _pad(x, pads)
  columns = [padded[:, :, j : j + stride * (w - 1) + 1 : stride] for j in range(k[1])]
  wide = jnp.concatenate(columns, -1)  # [B, rows, w, k[1] * C]
  return jnp.concatenate([wide[:, i : i + stride * (h - 1) + 1 : stride] for i in range(k[0])], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _sum_taps(taps: Array, k: Size, pads: Pads) -> Array:
  """Add up a convolution of stride 1 from what each pixel gives through each tap."""
  return _sum_taps_forward(taps, k, pads)[0]


def _sum_taps_forward(taps, k, pads):
  # taps [B, H, W, k * k * O], by the kernel's rows.
  size, o = taps.shape[1:3], taps.shape[3] // (k[0] * k[1])
  out, padded = _out_size(size, k, 1, pads), _pad(taps, pads)

  def part(i, j):
    first = o * (k[1] * i + j)
    return _tap(padded[..., first : first + o], i, j, 1, out)

  return sum(part(i, j) for i in range(k[0]) for j in range(k[1])), size


def _sum_taps_backward(k, pads, size, dy):
  padded = _pad(dy, [(n - 1 - low, n - 1 - high) for n, (low, high) in zip(k, pads)])
  parts = [
    _tap(padded, k[0] - 1 - i, k[1] - 1 - j, 1, size) for i in range(k[0]) for j in range(k[1])
  ]
  return (jnp.concatenate(parts, -1),)


_sum_taps.defvjp(_sum_taps_forward, _sum_taps_backward)


# How the gradient of a strided operation's input gathers from that of its output.


def _axis_phases(size: int, out: int, k: int, stride: int, low: int):
  """Find which output pixels and taps each input pixel met, along one axis.

  Returns:
    (low, high) padding of the output; for each phase a of the stride (number of input pixels v,
    pairs (u, i)): the output's pixel v + u met the input's pixel stride * v + a through tap i.
  """
  phases = []
  for a in range(stride):
    pairs = [((a + low - i) // stride, i) for i in range(k) if (a + low - i) % stride == 0]
    phases.append((-(-(size - a) // stride), pairs))  # the quotient is rounded up
  before = max(0, *(-o for _, pairs in phases for o, _ in pairs))
  after = max(0, *(o + n - out for n, pairs in phases for o, _ in pairs))
  shifted = tuple((n, tuple((o + before, i) for o, i in pairs)) for n, pairs in phases)
  return (before, after), shifted


def _phases(size: Size, out: Size, k: int, stride: int, pads: Pads):
  """Combine `_axis_phases` of rows and columns: (pads of the output, phases of each axis)."""
  axes = [_axis_phases(size[d], out[d], k, stride, pads[d][0]) for d in (0, 1)]
  return tuple(p for p, _ in axes), tuple(phases for _, phases in axes)


def _gather_phases(padded: Array, phases: tuple, term: Callable) -> Array:
  """Compute an input's gradient: for each pixel the sum of term(output's gradient, u, v, i, j)."""

  def phase(rows, columns):
    size = rows[0], columns[0]
    terms = [
      term(_tap(padded, u, v, 1, size), u, v, i, j) for u, i in rows[1] for v, j in columns[1]
    ]
    empty = (padded.shape[0], *size, padded.shape[3])
    return sum(terms) if terms else jnp.zeros(empty, padded.dtype)

  rows = [_interleave([phase(r, c) for c in phases[1]], 2) for r in phases[0]]
  return _interleave(rows, 1)


# Depthwise convolution.


@functools.partial(_stored, static=(2, 3))
def _scaled_taps(padded: Array, kernel: Array, stride: int, out: Size) -> Array:
  k = kernel.shape[0]
  return sum(
    _tap(padded, i, j, stride, out) * per_channel(kernel[i, j, 0], padded)
    for i in range(k)
    for j in range(k)
  )


@functools.partial(_stored, static=(2,))
def _depthwise_input_gradient(padded: Array, kernel: Array, phases: tuple) -> Array:
  def term(tap, _u, _v, i, j):
    return tap * per_channel(kernel[i, j, 0], padded)

  return _gather_phases(padded, phases, term)


@functools.partial(_stored, static=(2, 3, 4, 5))
def _depthwise_kernel_gradient(
  padded: Array, padded_dy: Array, k: int, stride: int, out: Size, start: Size
) -> Array:
  """Sum the products of the output's gradient with each tap's pixels, [k, k, 1, C], in one pass."""
  dy = _tap(padded_dy, *start, 1, out)
  if _fold(out[0]) > 8:
    # Rows of zeros, for a number that has a divisor to unroll by.
    more = -out[0] % 8  # up to the next multiple of 8
    dy = _pad(dy, ((0, more), (0, 0)))
    padded = _pad(padded, ((0, stride * more), (0, 0)))
    out = (out[0] + more, out[1])
  dy = dy[:, None]

  def column(j):
    return lax.dynamic_slice_in_dim(padded, j, stride * (out[1] - 1) + 1, 2)

  # Columns are an axis: only one is compiled. Rows are not: they share what they read.
  columns = jax.vmap(column, out_axes=1)(jnp.arange(k))
  rows = [columns[:, :, i : i + stride * (out[0] - 1) + 1 : stride, ::stride] for i in range(k)]
  sums = _sum_pieces([row * dy for row in rows], 2)
  return jnp.stack([p.sum((0, 2, 3)) for p in sums])[:, :, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
  """Convolve maps, float32, with a depthwise kernel [k, k, 1, C]; stride and pads are in pixels."""
  return _depthwise_forward(x, kernel, stride, pads)[0]


def _depthwise_forward(x, kernel, stride, pads):
  padded = _pad(x, pads)
  out = _out_size(x.shape[1:3], kernel.shape[:2], stride, pads)
  return _scaled_taps(padded, kernel, stride, out), (padded, kernel)


def _depthwise_backward(stride, pads, saved, dy):
  padded, kernel = saved
  k, out = kernel.shape[0], dy.shape[1:3]
  size = tuple(n - sum(p) for n, p in zip(padded.shape[1:3], pads))
  dy_pads, phases = _phases(size, out, k, stride, pads)
  padded_dy = _pad(dy, dy_pads)
  start = (dy_pads[0][0], dy_pads[1][0])
  dx = _depthwise_input_gradient(padded_dy, kernel, phases)
  return dx, _depthwise_kernel_gradient(padded, padded_dy, k, stride, out, start)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


# Batch norm: moments, scale and shift, and both together.


def _num_pixels(x: Array, axis: str | None) -> int:
  return math.prod(x.shape[:-1]) * functional.num_devices(axis)


def _mean_and_variance(x: Array, axis: str | None) -> tuple[Array, Array]:
  sums = _sum_pixels([x, jnp.square(x.astype(jnp.float32))])
  total, squares = functional.all_sum(sums, axis)
  mean = total / _num_pixels(x, axis)
  return mean, jnp.maximum(squares / _num_pixels(x, axis) - jnp.square(mean), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def moments(x: Array, axis: str | None = None) -> tuple[Array, Array]:
  """Compute mean and biased variance of each channel over the whole batch, float32 [C]."""
  return _mean_and_variance(x, axis)


def _moments_forward(x, axis):
  mean, var = _mean_and_variance(x, axis)
  return (mean, var), (x, mean)


def _moments_backward(axis, saved, cotangents):
  x, mean = saved
  n = _num_pixels(x, axis)
  dmean, dvar = functional.all_sum(cotangents, axis)
  slope = per_channel(2 * dvar / n, x)
  dx = slope * (x.astype(jnp.float32) - per_channel(mean, x)) + per_channel(dmean / n, x)
  return (dx.astype(x.dtype),)


moments.defvjp(_moments_forward, _moments_backward)


def _before_act(x: Array, dy: Array, factor: Array, term: Array, act: str) -> Array:
  """Take a gradient back through the activation of x * factor + term."""
  slope = ACTIVATIONS[act][1](x * per_channel(factor, x) + per_channel(term, x))
  return jnp.where(slope, dy, 0) if slope.dtype == bool else dy * slope


def _before_smooth_act(
  x: Array, dy: Array, factor: Array, term: Array, act: str
) -> tuple[Array, str]:
  """Take a gradient back through an activation with exponentials at once, as one more array: loops
  of sums are slower with them, and 20 times slower with erf, for which there is no vector code.
  Return the gradient and the activation through which it is still to be taken back."""
  if act not in ('silu', 'gelu'):
    return dy, act
  stored = _stored(_before_act, (4,))
  return stored(x.astype(jnp.float32), dy.astype(jnp.float32), factor, term, act), ''


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def scale_shift(x: Array, factor: Array, term: Array, act: str) -> Array:
  """Compute act(x * factor + term). Args: as `plain_kernels.scale_shift`."""
  y = x * per_channel(factor, x) + per_channel(term, x)
  return functional.activate(y, act).astype(x.dtype)


@functools.partial(_stored, static=(4,))
def _scale_shift_gradients(x, dy, factor, term, act):
  x = x.astype(jnp.float32)
  dy = _before_act(x, dy.astype(jnp.float32), factor, term, act)
  return _sum_pixels([dy * x, dy])


def _scale_shift_forward(x, factor, term, act):
  return scale_shift.fun(x, factor, term, act), (x, factor, term)


def _scale_shift_backward(act, saved, dy):
  x, factor, term = saved
  dy, act = _before_smooth_act(x, dy, factor, term, act)
  scale, x32, dy32 = per_channel(factor, x), x.astype(jnp.float32), dy.astype(jnp.float32)
  dx = scale * _before_act(x32, dy32, factor, term, act)
  return dx.astype(x.dtype), *_scale_shift_gradients(x, dy, factor, term, act)


scale_shift.defvjp(_scale_shift_forward, _scale_shift_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm(
  x: Array, scale: Array, bias: Array, eps: float, act: str, axis: str | None = None
) -> tuple[Array, Array, Array]:
  """Normalise maps by the batch's own moments, and activate.

  Ioffe and Szegedy 2015, arXiv:1502.03167.

  Returns:
    The maps; mean and biased variance, float32 [C], through which no gradient goes.
  """
  return _batch_norm_forward(x, scale, bias, eps, act, axis)[0]


@functools.partial(_stored, static=(3, 4))
def _batch_norm_statistics(x, scale, bias, eps, axis):
  """Compute factor, term, mean and variance as one array [4, C], which is less to compile."""
  mean, var = _mean_and_variance(x, axis)
  factor = scale * lax.rsqrt(var + eps)
  return jnp.stack([factor, bias - mean * factor, mean, var])


def _batch_norm_forward(x, scale, bias, eps, act, axis):
  statistics = _batch_norm_statistics(x, scale, bias, eps, axis)
  factor, term, mean, var = statistics
  return (scale_shift(x, factor, term, act), mean, var), (x, statistics)


@functools.partial(_stored, static=(3, 4, 5))
def _batch_norm_gradients(x, dy, statistics, eps, act, axis):
  """Compute as one array [4, C] the gradients of scale and bias, from this device's examples, and
  what the gradient of x has beside the activation's: a factor on x and a term, from all
  examples."""
  n, x = _num_pixels(x, axis), x.astype(jnp.float32)
  factor, term, mean, var = statistics
  dy = _before_act(x, dy.astype(jnp.float32), factor, term, act)
  sums, inverse = _sum_pixels([dy, dy * x]), lax.rsqrt(var + eps)

  def scale_gradient(total, product):
    return (product - mean * total) * inverse

  total, product = functional.all_sum(sums, axis)
  slope = factor * scale_gradient(total, product) * inverse / n
  return jnp.stack([scale_gradient(*sums), sums[0], -slope, slope * mean - factor * total / n])


def _batch_norm_backward(eps, act, axis, saved, cotangents):
  x, statistics = saved
  factor, term, x32 = statistics[0], statistics[1], x.astype(jnp.float32)
  dy, act = _before_smooth_act(x, cotangents[0], factor, term, act)
  dscale, dbias, slope, shift = _batch_norm_gradients(x, dy, statistics, eps, act, axis)
  dy = _before_act(x32, dy.astype(jnp.float32), factor, term, act)
  dx = per_channel(factor, x) * dy + per_channel(slope, x) * x32 + per_channel(shift, x)
  return dx.astype(x.dtype), dscale, dbias


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def max_pool(x: Array, window: int, stride: int, padding: int) -> Array:
  """Take the maximum of each window; the gradient goes to the first of equal pixels, by rows."""
  return _max_pool(x, window, stride, ((padding, padding),) * 2, x.shape[1:3])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool(x, k, stride, pads, size):
  return _max_pool_forward(x, k, stride, pads, size)[0]


@functools.partial(_stored, static=(1, 2, 3))
def _first_maximum(padded: Array, k: int, stride: int, out: Size) -> tuple[Array, Array]:
  """Find the maximum of each window, and the number of the first tap that has it."""
  taps = [_tap(padded, i, j, stride, out) for i in range(k) for j in range(k)]
  maximum = functools.reduce(jnp.maximum, taps)
  first = jnp.full(maximum.shape, k * k - 1, jnp.int8)
  for t, tap in reversed([*enumerate(taps[:-1])]):  # so that the first of equals stays
    first = jnp.where(tap == maximum, jnp.int8(t), first)
  return maximum, first


@functools.partial(_stored, static=(2, 3))
def _to_first_maximum(padded: Array, first: Array, k: int, phases: tuple) -> Array:
  """Put each window's gradient at the pixel that its maximum came from."""

  def term(tap, u, v, i, j):
    is_source = _tap(first, u, v, 1, tap.shape[1:3]) == i * k + j
    return jnp.where(is_source, tap, jnp.zeros_like(tap))

  return _gather_phases(padded, phases, term)


def _max_pool_forward(x, k, stride, pads, size):
  out = _out_size(size, (k, k), stride, pads)
  return _first_maximum(_pad(x, pads, -jnp.inf), k, stride, out)


def _max_pool_backward(k, stride, pads, size, first, dy):
  dy_pads, phases = _phases(size, dy.shape[1:3], k, stride, pads)
  return (_to_first_maximum(_pad(dy, dy_pads), _pad(first, dy_pads, -1), k, phases),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def avg_pool(x: Array, window: int, stride: int, padding: int = 0) -> Array:
  """Average each window by a depthwise convolution, which has the faster gradient.

  Args: as `plain_kernels.avg_pool`.
  """
  kernel = np.full((window, window, 1, x.shape[3]), 1 / window**2, np.float32)
  return conv(x, jnp.asarray(kernel), stride, padding)
