"""Layers of the backbones: convolution, batch and layer norm, dense, pooling, stochastic depth; and how each is computed.

Images are NHWC, kernels HWIO (depthwise [k, k, 1, C]), dense kernels [in, out]. Parameters are float32; `dtype` is what is computed in.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from hierjax.core.errors import UserError

Array, Dtype = jax.Array, Any
_chosen = 'auto'
_axis: str | None = None
_generator: np.random.Generator | None = None


@contextlib.contextmanager
def formulation(kind: str):
  """Within it, what is traced uses 'plain' (lax convolutions), 'cpu', or 'auto' (by platform). What is jitted already stays as it is."""
  global _chosen
  if kind not in ('auto', 'plain', 'cpu'):
    raise ValueError(f"formulation is 'auto', 'plain' or 'cpu', not {kind!r}")
  before, _chosen = _chosen, kind
  try:
    yield
  finally:
    _chosen = before


def on_cpu() -> bool:
  """Whether layers traced now take the formulations for the CPU."""
  return _chosen == 'cpu' or (_chosen == 'auto' and jax.default_backend() == 'cpu')


@contextlib.contextmanager
def across(axis: str | None):
  """Within it, what is traced sees one device's part of a batch that is split over this axis of the mesh (jax.shard_map): batch norm has the statistics of
  the whole batch, and what is drawn at random for its examples is the part of what would be drawn for the whole."""
  global _axis
  before, _axis = _axis, axis
  try:
    yield
  finally:
    _axis = before


def batch_axis() -> str | None:
  """The axis of `across`, or None."""
  return _axis


def _whole(tree, axis: str | None):
  """The sum over the devices."""
  return tree if axis is None else lax.psum(tree, axis)


def _devices(axis: str | None) -> int:
  return 1 if axis is None else lax.axis_size(axis)


def bernoulli(key: Array, p: float, shape: tuple[int, ...]) -> Array:
  """True with probability p; the first axis of the shape counts examples."""
  if _axis is None:
    return jax.random.bernoulli(key, p, shape)
  whole = jax.random.bernoulli(key, p, (shape[0] * lax.axis_size(_axis), *shape[1:]))
  return lax.dynamic_slice_in_dim(whole, lax.axis_index(_axis) * shape[0], shape[0])


# Initialisers. Within `drawing` they draw with numpy, which spares compiling hundreds of jax.random calls (see models.init).


@contextlib.contextmanager
def drawing(generator: np.random.Generator):
  """Within it the initialisers here ignore the jax key and return numpy arrays drawn from the generator, in the order of the calls."""
  global _generator
  before, _generator = _generator, generator
  try:
    yield
  finally:
    _generator = before


def normal(std: float | Callable[[tuple[int, ...]], float]):
  """Initialiser: normal with the standard deviation `std`, or std(shape)."""

  def draw(key, shape, dtype=jnp.float32):
    s = std(shape) if callable(std) else std
    if _generator is not None:
      return _generator.standard_normal(shape, np.float32) * np.float32(s)
    return jax.random.normal(key, shape, dtype) * s

  return draw


def uniform(bound: float | Callable[[tuple[int, ...]], float]):
  """Initialiser: uniform on [-bound, bound], or ±bound(shape)."""

  def draw(key, shape, dtype=jnp.float32):
    b = bound(shape) if callable(bound) else bound
    if _generator is not None:
      return (_generator.random(shape, np.float32) * 2 - 1) * np.float32(b)
    return jax.random.uniform(key, shape, dtype, -b, b)

  return draw


def constant(value: float | np.ndarray):
  """Initialiser: the value everywhere, or these along the last axis."""
  return lambda key, shape, dtype=jnp.float32: (np if _generator is not None else jnp).full(
    shape, value, np.float32
  )


zeros, ones = constant(0.0), constant(1.0)
fan_in = normal(
  lambda shape: math.sqrt(2 / math.prod(shape[:-1]))
)  # He et al. 2015, torch's kaiming_normal_
# He et al. 2015 with fan_out; a depthwise kernel has one output channel per group (timm's fix_group_fanout; ResNet has none).
fan_out = normal(
  lambda shape: math.sqrt(2 / (shape[0] * shape[1] * (1 if shape[2] == 1 else shape[3])))
)


# Functions.


def _over(v: Array, x: Array) -> Array:
  """v [C] with the rank of x."""
  return v.reshape((1,) * (x.ndim - 1) + (-1,))


def _stored(f: Callable, static: tuple[int, ...] = ()) -> Callable:
  """f as a call that XLA does not inline: its results are stored, where fusion would compute them again in each of their uses, and calls that
  are equal compile once."""

  def body(*args):
    with set_xla_metadata(inlineable='true'):
      return f(*args)

  call = jax.jit(functools.wraps(f)(body), static_argnums=static)

  @functools.wraps(f)
  def stored(*args):
    with set_xla_metadata(inlineable='false'):
      return call(*args)

  return stored


def _pads(
  size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int | str
) -> list[tuple[int, int]]:
  if padding == 'SAME':
    return lax.padtype_to_pads(size, kernel, (stride, stride), 'SAME')
  return [(int(padding), int(padding))] * 2


def conv(x: Array, kernel: Array, stride: int = 1, padding: int | str = 0) -> Array:
  """Convolution of x [B, H, W, C] with kernel [k, k, C, O], or depthwise with [k, k, 1, C]; padding in pixels or TensorFlow's 'SAME'."""
  size, k = x.shape[1:3], kernel.shape[:2]
  pads = _pads(size, k, stride, padding)
  depthwise = kernel.shape[2] == 1 and x.shape[3] > 1
  if not on_cpu():
    return lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      pads,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=x.shape[3] if depthwise else 1,
    )
  if depthwise:
    return _depthwise(
      x.astype(jnp.float32), kernel.astype(jnp.float32), stride, tuple(pads)
    ).astype(x.dtype)
  if k == (1, 1) and not any(sum(p) for p in pads):
    return dense(x[:, ::stride, ::stride], kernel[0, 0])
  if k == (stride, stride) and not any(sum(p) for p in pads) and not any(n % stride for n in size):
    b, (h, w), c = x.shape[0], size, x.shape[3]
    patches = (
      x.reshape(b, h // stride, stride, w // stride, stride, c)
      .swapaxes(2, 3)
      .reshape(b, h // stride, w // stride, -1)
    )
    return dense(patches, kernel.reshape(-1, kernel.shape[3]))
  if min(size) <= 4 or (x.shape[3] <= 4 and max(k) <= 3):
    (h, w), padded = _out_size(size, k, stride, pads), _pad(x, pads)
    columns = jnp.concatenate(
      [padded[:, :, j : j + stride * (w - 1) + 1 : stride] for j in range(k[1])], -1
    )
    patches = jnp.concatenate(
      [columns[:, i : i + stride * (h - 1) + 1 : stride] for i in range(k[0])], -1
    )
    return dense(patches, kernel.reshape(-1, kernel.shape[3]))
  if (
    stride == 1 and 2 * kernel.shape[3] <= x.shape[3]
  ):  # cheaper to gather what goes out than what comes in
    taps = dense(x, kernel.transpose(2, 0, 1, 3).reshape(x.shape[3], -1))
    return _sum_taps(taps, k, tuple(pads))
  return lax.conv_general_dilated(
    x, kernel, (stride, stride), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def dense(x: Array, kernel: Array) -> Array:
  """x [..., C] times kernel [C, O]."""
  y = lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())))
  return y.reshape(*x.shape[:-1], kernel.shape[1])


def _out_size(size, kernel, stride, pads) -> tuple[int, int]:
  return tuple((n + sum(p) - k) // stride + 1 for n, k, p in zip(size, kernel, pads))


def _tap(padded: Array, i: int, j: int, stride: int, out: tuple[int, int]) -> Array:
  """The pixels of a padded image that the kernel's row i and column j meet, [B, *out, C]."""
  return padded[
    :, i : i + stride * (out[0] - 1) + 1 : stride, j : j + stride * (out[1] - 1) + 1 : stride
  ]


def _fold(n: int) -> int:
  """The largest divisor of n up to 8: a reduction that short is unrolled, so that the loop over channels around it becomes vector code. Where n
  has none above 2, the smallest above 8."""
  divisors = [f for f in range(1, n + 1) if n % f == 0]
  short = max(f for f in divisors if f <= 8)
  return short if short > 2 or n <= 2 else min(f for f in divisors if f > 8)


def _sum_rows(xs: list[Array], axis: int) -> list[Array]:
  """Sums of each x in float32 over pieces of `axis`, one pass for all of them; the axis then counts the pieces."""
  shape = xs[0].shape
  f = _fold(shape[axis])
  return lax.reduce(
    [
      x.astype(jnp.float32).reshape(*shape[:axis], shape[axis] // f, f, *shape[axis + 1 :])
      for x in xs
    ],
    [jnp.float32(0)] * len(xs),
    lambda p, q: [s + t for s, t in zip(p, q)],
    (axis + 1,),
  )


def _sum_pixels(xs: list[Array]) -> list[Array]:
  """Sums of each x [B, H, W, C] over B, H and W in float32, in one pass at the speed of memory: pieces of 8 rows first."""
  return [p.sum((0, 1, 2)) for p in _sum_rows(xs, 1)]


def _pad(x: Array, sides, value: float = 0) -> Array:
  """x [B, H, W, C] with rows and columns of the value around."""
  return lax.pad(
    x, jnp.asarray(value, x.dtype), ((0, 0, 0), *((*side, 0) for side in sides), (0, 0, 0))
  )


@functools.partial(_stored, static=(2, 3))
def _add_taps(padded: Array, kernel: Array, stride: int, out: tuple[int, int]) -> Array:
  k = kernel.shape[0]
  return sum(
    _tap(padded, i, j, stride, out) * _over(kernel[i, j, 0], padded)
    for i in range(k)
    for j in range(k)
  )


def _phases(size, out, k: int, stride: int, pads) -> tuple[list[tuple[int, int]], tuple]:
  """How the pixels of an input meet those of the output: sides to pad the output with; and for each axis and phase a of the stride its number
  of pixels v, and the (o, i) for which the padded output's pixel v + o has met the input's pixel stride * v + a through the kernel's i."""
  sides, where = [], []
  for d in (0, 1):
    phases = [
      (
        -(-(size[d] - a) // stride),
        [
          ((a + pads[d][0] - i) // stride, i)
          for i in range(k)
          if (a + pads[d][0] - i) % stride == 0
        ],
      )
      for a in range(stride)
    ]
    before = max(0, *(-o for _, met in phases for o, _ in met))
    sides.append((before, max(0, *(o + n - out[d] for n, met in phases for o, _ in met))))
    where.append(tuple((n, tuple((o + before, i) for o, i in met)) for n, met in phases))
  return sides, tuple(where)


def _add_phases(wide: Array, where: tuple, term: Callable) -> Array:
  """The gradient of an input from that of its output, padded: for each pixel the sum of term(tap of `wide`, u, v, i, j) over what it has met."""

  def phase(rows, columns):
    n = rows[0], columns[0]
    terms = [term(_tap(wide, u, v, 1, n), u, v, i, j) for u, i in rows[1] for v, j in columns[1]]
    return sum(terms) if terms else jnp.zeros((wide.shape[0], *n, wide.shape[3]), wide.dtype)

  return _interleave(
    [_interleave([phase(rows, columns) for columns in where[1]], 2) for rows in where[0]], 1
  )


@functools.partial(_stored, static=(2,))
def _add_taps_back(wide: Array, kernel: Array, where: tuple) -> Array:
  """The gradient of a depthwise convolution's input from the padded gradient of its output."""
  return _add_phases(wide, where, lambda tap, u, v, i, j: tap * _over(kernel[i, j, 0], wide))


@functools.partial(_stored, static=(2, 3, 4, 5))
def _tap_products(
  padded: Array, wide: Array, k: int, stride: int, out: tuple[int, int], at: tuple[int, int]
) -> Array:
  """The gradient of a depthwise kernel, [k, k, 1, C], in one pass. The kernel's columns are an axis, so that what is compiled is one column;
  its rows are apart, so that they share the rows of the image that they meet."""
  dy = _tap(wide, *at, 1, out)
  if _fold(out[0]) > 8:  # zero rows, for more to unroll
    more = -out[0] % 8
    dy, padded, out = (
      _pad(dy, ((0, more), (0, 0))),
      _pad(padded, ((0, stride * more), (0, 0))),
      (out[0] + more, out[1]),
    )
  dy = dy[:, None]
  columns = jax.vmap(
    lambda j: lax.dynamic_slice_in_dim(padded, j, stride * (out[1] - 1) + 1, 2), out_axes=1
  )(jnp.arange(k))
  met = [columns[:, :, i : i + stride * (out[0] - 1) + 1 : stride, ::stride] for i in range(k)]
  return jnp.stack([p.sum((0, 2, 3)) for p in _sum_rows([m * dy for m in met], 2)])[:, :, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, stride, pads):
  return _depthwise_forward(x, kernel, stride, pads)[0]


def _depthwise_forward(x, kernel, stride, pads):
  padded = _pad(x, pads)
  return _add_taps(
    padded, kernel, stride, _out_size(x.shape[1:3], kernel.shape[:2], stride, pads)
  ), (padded, kernel)


def _depthwise_backward(stride, pads, saved, dy):
  padded, kernel = saved
  k, size = kernel.shape[0], tuple(n - sum(p) for n, p in zip(padded.shape[1:3], pads))
  sides, where = _phases(size, dy.shape[1:3], k, stride, pads)
  wide = _pad(dy, sides)
  return (
    _add_taps_back(wide, kernel, where),
    _tap_products(padded, wide, k, stride, dy.shape[1:3], (sides[0][0], sides[1][0])),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _sum_taps(taps, k, pads):
  """The end of a convolution of stride 1: taps [B, H, W, k * k * O], what each pixel gives through each of the kernel's rows and columns."""
  return _sum_taps_forward(taps, k, pads)[0]


def _sum_taps_forward(taps, k, pads):
  size, o = taps.shape[1:3], taps.shape[3] // (k[0] * k[1])
  out, padded = _out_size(size, k, 1, pads), _pad(taps, pads)
  parts = (
    _tap(padded[..., o * (k[1] * i + j) : o * (k[1] * i + j + 1)], i, j, 1, out)
    for i in range(k[0])
    for j in range(k[1])
  )
  return sum(parts), size


def _sum_taps_backward(k, pads, size, dy):
  sides = [(n - 1 - low, n - 1 - high) for n, (low, high) in zip(k, pads)]
  wide = _pad(dy, sides)
  return (
    jnp.concatenate(
      [_tap(wide, k[0] - 1 - i, k[1] - 1 - j, 1, size) for i in range(k[0]) for j in range(k[1])],
      -1,
    ),
  )


_sum_taps.defvjp(_sum_taps_forward, _sum_taps_backward)


def _interleave(xs: list[Array], axis: int) -> Array:
  """x[0], y[0], z[0], x[1], ... along the axis; the later ones may be one shorter."""
  if len(xs) == 1:
    return xs[0]
  length = sum(x.shape[axis] for x in xs)
  short = [
    [(0, 0)] * axis + [(0, xs[0].shape[axis] - x.shape[axis])] + [(0, 0)] * (x.ndim - axis - 1)
    for x in xs
  ]
  stacked = jnp.stack([jnp.pad(x, s) if s[axis][1] else x for x, s in zip(xs, short)], axis + 1)
  merged = stacked.reshape(*xs[0].shape[:axis], -1, *xs[0].shape[axis + 1 :])
  return merged if merged.shape[axis] == length else lax.slice_in_dim(merged, 0, length, axis=axis)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def batch_norm(
  x: Array, scale: Array, bias: Array, eps: float, act: str
) -> tuple[Array, Array, Array]:
  """act(batch norm of x [B, H, W, C]) over the batch's own statistics, and these: mean and biased variance [C], not differentiated."""
  if on_cpu():
    return _batch_norm(x, scale, bias, eps, act, _axis)
  mean, var = moments(x)
  factor = scale * lax.rsqrt(var + eps)
  return scale_shift(x, factor, bias - mean * factor, act), *lax.stop_gradient((mean, var))


def _normal_cdf(x: Array) -> Array:
  """By erf, as torch does; jax.nn.gelu and jax.scipy take erfc, which costs twice as much for digits of numbers near 0."""
  return 0.5 * (1 + lax.erf(x * np.float32(0.5**0.5)))


@jax.custom_vjp
def gelu(x: Array) -> Array:
  """x times the normal distribution's cumulative probability (Hendrycks and Gimpel 2016, arXiv:1606.08415), exact. x is all that is kept for the gradient."""
  return (x * _normal_cdf(x.astype(jnp.float32))).astype(x.dtype)


def _gelu_slope(x: Array) -> Array:
  return _normal_cdf(x) + x * jnp.exp(-0.5 * x * x) * np.float32((2 * np.pi) ** -0.5)


gelu.defvjp(
  lambda x: (gelu(x), x), lambda x, dy: ((dy * _gelu_slope(x.astype(jnp.float32))).astype(x.dtype),)
)

# name: (the function, its derivative), both of what goes in. Hard swish has torch's slopes at its kinks.
ACTIVATIONS: dict[str, tuple[Callable, Callable]] = {
  '': (lambda y: y, jnp.ones_like),
  'relu': (lambda y: jnp.maximum(y, 0), lambda y: y > 0),
  'relu6': (lambda y: jnp.clip(y, 0, 6), lambda y: (y > 0) & (y < 6)),
  'silu': (nn.silu, lambda y: (s := nn.sigmoid(y)) * (1 + y * (1 - s))),
  'hardswish': (nn.hard_swish, lambda y: jnp.where(y <= 3, jnp.where(y < -3, 0, y / 3 + 0.5), 1)),
  'gelu': (gelu, _gelu_slope),
}


def moments(x: Array) -> tuple[Array, Array]:
  """Mean and biased variance, float32 [C], of the whole batch's x [B, H, W, C]."""
  if on_cpu():
    return _moments(x, _axis)
  xf = x.astype(jnp.float32)
  mean, square = (
    m / _devices(_axis) for m in _whole((xf.mean((0, 1, 2)), jnp.square(xf).mean((0, 1, 2))), _axis)
  )
  return mean, jnp.maximum(square - jnp.square(mean), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _moments(x, axis):
  return _moments_forward(x, axis)[0]


def _moments_forward(x, axis):
  n = math.prod(x.shape[:-1]) * _devices(axis)
  total, squares = _whole(_sum_pixels([x, jnp.square(x.astype(jnp.float32))]), axis)
  mean = total / n
  return (mean, jnp.maximum(squares / n - jnp.square(mean), 0)), (x, mean)


def _moments_backward(axis, saved, cotangents):
  x, mean = saved
  n = math.prod(x.shape[:-1]) * _devices(axis)
  dmean, dvar = _whole(cotangents, axis)
  return (
    (
      _over(2 * dvar / n, x) * (x.astype(jnp.float32) - _over(mean, x)) + _over(dmean / n, x)
    ).astype(x.dtype),
  )


_moments.defvjp(_moments_forward, _moments_backward)


def scale_shift(x: Array, factor: Array, term: Array, act: str) -> Array:
  """act(x * factor + term), factor and term [C]; act is a key of ACTIVATIONS."""
  return (_scale_shift if on_cpu() else _scale_shift.fun)(x, factor, term, act)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _scale_shift(x, factor, term, act):
  return ACTIVATIONS[act][0](x * _over(factor, x) + _over(term, x)).astype(x.dtype)


@functools.partial(_stored, static=(4,))
def _scale_shift_gradients(x, dy, factor, term, act):
  x = x.astype(jnp.float32)
  dy = _before_act(x, dy.astype(jnp.float32), factor, term, act)
  return _sum_pixels([dy * x, dy])


def _scale_shift_backward(act, saved, dy):
  x, factor, term = saved
  dy, act = _eased(x, dy, factor, term, act)
  dx = _over(factor, x) * _before_act(
    x.astype(jnp.float32), dy.astype(jnp.float32), factor, term, act
  )
  return dx.astype(x.dtype), *_scale_shift_gradients(x, dy, factor, term, act)


_scale_shift.defvjp(
  lambda x, factor, term, act: (_scale_shift.fun(x, factor, term, act), (x, factor, term)),
  _scale_shift_backward,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _batch_norm(x, scale, bias, eps, act, axis):
  return _batch_norm_forward(x, scale, bias, eps, act, axis)[0]


@functools.partial(_stored, static=(3, 4))
def _batch_norm_statistics(x, scale, bias, eps, axis):
  """[4, C], as one array to compile less: the batch norm's factor on x and its term, mean, variance."""
  n = math.prod(x.shape[:-1]) * _devices(axis)
  total, squares = _whole(_sum_pixels([x, jnp.square(x.astype(jnp.float32))]), axis)
  mean = total / n
  var = jnp.maximum(squares / n - jnp.square(mean), 0)
  factor = scale * lax.rsqrt(var + eps)
  return jnp.stack([factor, bias - mean * factor, mean, var])


def _batch_norm_forward(x, scale, bias, eps, act, axis):
  statistics = _batch_norm_statistics(x, scale, bias, eps, axis)
  factor, term, mean, var = statistics
  return (scale_shift(x, factor, term, act), mean, var), (x, statistics)


def _before_act(x, dy, factor, term, act):
  """The gradient before the activation."""
  slope = ACTIVATIONS[act][1](x * _over(factor, x) + _over(term, x))
  return jnp.where(slope, dy, 0) if slope.dtype == bool else dy * slope


def _eased(x, dy, factor, term, act):
  """(gradient, activation it is still to be taken back through): those with exponentials are taken back at once, as one more array. The loops of the sums are
  slower with them, and 20 times slower with erf, for which they are no vector code."""
  if act not in ('silu', 'gelu'):
    return dy, act
  return _stored(_before_act, (4,))(
    x.astype(jnp.float32), dy.astype(jnp.float32), factor, term, act
  ), ''


@functools.partial(_stored, static=(3, 4, 5))
def _batch_norm_gradients(x, dy, statistics, eps, act, axis):
  """[4, C]: the gradients of scale and bias, from this device's examples; and in the gradient of x, the factor on x and the term, from all."""
  n, x = math.prod(x.shape[:-1]) * _devices(axis), x.astype(jnp.float32)
  factor, term, mean, var = statistics
  dy = _before_act(x, dy.astype(jnp.float32), factor, term, act)
  sums, inverse = _sum_pixels([dy, dy * x]), lax.rsqrt(var + eps)
  of_scale = lambda total, product: (product - mean * total) * inverse
  everywhere = _whole(sums, axis)
  slope = factor * of_scale(*everywhere) * inverse / n
  return jnp.stack([of_scale(*sums), sums[0], -slope, slope * mean - factor * everywhere[0] / n])


def _batch_norm_backward(eps, act, axis, saved, cotangents):
  x, statistics = saved
  factor, term, xf = statistics[0], statistics[1], x.astype(jnp.float32)
  dy, act = _eased(x, cotangents[0], factor, term, act)
  dscale, dbias, slope, rest = _batch_norm_gradients(x, dy, statistics, eps, act, axis)
  dy = _before_act(xf, dy.astype(jnp.float32), factor, term, act)
  return (
    (_over(factor, x) * dy + _over(slope, x) * xf + _over(rest, x)).astype(x.dtype),
    dscale,
    dbias,
  )


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _check_pooled(x: Array, window: int, padding: int) -> None:
  """UserError where no window fits, for which convolutions would go on with maps of no pixel."""
  if min(x.shape[1:3]) + 2 * padding < window:
    raise UserError(
      '--config.data.size: the images are too small for this backbone, nothing is left of them on the way; set a larger one'
    )


def max_pool(x: Array, window: int, stride: int, padding: int) -> Array:
  """Max pooling of x [B, H, W, C], padding in pixels. The gradient goes to the first of equal pixels, by rows."""
  _check_pooled(x, window, padding)
  pads = ((padding, padding),) * 2
  return (
    _max_pool(x, window, stride, pads, x.shape[1:3])
    if on_cpu()
    else nn.max_pool(x, (window, window), (stride, stride), pads)
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool(x, k, stride, pads, size):
  return _max_pool_forward(x, k, stride, pads, size)[0]


@functools.partial(_stored, static=(1, 2, 3))
def _first_maximum(padded: Array, k: int, stride: int, out: tuple[int, int]) -> tuple[Array, Array]:
  """The maximum of each window, and the number of the first pixel that has it."""
  taps = [_tap(padded, i, j, stride, out) for i in range(k) for j in range(k)]
  top = functools.reduce(jnp.maximum, taps)
  place = jnp.full(top.shape, k * k - 1, jnp.int8)
  for t, tap in reversed([*enumerate(taps[:-1])]):
    place = jnp.where(tap == top, jnp.int8(t), place)
  return top, place


@functools.partial(_stored, static=(2, 3))
def _to_place(wide: Array, place: Array, k: int, where: tuple) -> Array:
  """Each window's gradient at the pixel its maximum came from."""

  def term(tap, u, v, i, j):
    return jnp.where(_tap(place, u, v, 1, tap.shape[1:3]) == i * k + j, tap, jnp.zeros_like(tap))

  return _add_phases(wide, where, term)


def _max_pool_forward(x, k, stride, pads, size):
  top, place = _first_maximum(
    _pad(x, pads, -jnp.inf), k, stride, _out_size(size, (k, k), stride, pads)
  )
  return top, place


def _max_pool_backward(k, stride, pads, size, place, dy):
  sides, where = _phases(size, dy.shape[1:3], k, stride, pads)
  return (_to_place(_pad(dy, sides), _pad(place, sides, -1), k, where),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def avg_pool(x: Array, window: int, stride: int, padding: int = 0) -> Array:
  """Average pooling of x [B, H, W, C], padding in pixels, which count as zeros (torch's default)."""
  if not on_cpu():
    return nn.avg_pool(x, (window, window), (stride, stride), ((padding, padding),) * 2)
  kernel = np.full(
    (window, window, 1, x.shape[3]), 1 / window**2, np.float32
  )  # the depthwise convolution has the faster gradient
  return conv(x, jnp.asarray(kernel), stride, padding)


def global_pool(x: Array) -> Array:
  """Mean over the pixels of x [B, H, W, C], as float32 [B, C]."""
  return x.mean((1, 2), dtype=jnp.float32)


def attention(q: Array, k: Array, v: Array, bias: Array | None = None) -> Array:
  """softmax(q k^T + bias) v of q, k, v [..., heads, n, d], q scaled; the softmax in float32. bias [heads, n, n], or with leading axes of q's.

  Heads stand before the tokens: XLA's batched products of matrices on the CPU want their batch axes in front, and copy what is laid out otherwise.
  """
  batch = tuple(range(q.ndim - 2))
  logits = lax.dot_general(
    q, k, (((q.ndim - 1,), (q.ndim - 1,)), (batch, batch)), preferred_element_type=jnp.float32
  )
  if bias is not None:
    logits = logits + bias.reshape((1,) * (logits.ndim - bias.ndim) + bias.shape)
  return lax.dot_general(
    nn.softmax(logits).astype(v.dtype), v, (((q.ndim - 1,), (q.ndim - 2,)), (batch, batch))
  )


def windows(x: Array, size: int, spread: bool = False) -> Array:
  """Parts of size x size pixels of x [B, H, W, C] -> [B, parts, size * size, C]: neighbours, or with `spread` H / size rows and W / size columns apart."""
  b, h, w, c = x.shape
  if spread:
    return (
      x.reshape(b, size, h // size, size, w // size, c)
      .transpose(0, 2, 4, 1, 3, 5)
      .reshape(b, -1, size * size, c)
    )
  return (
    x.reshape(b, h // size, size, w // size, size, c).swapaxes(2, 3).reshape(b, -1, size * size, c)
  )


def from_windows(y: Array, size: int, h: int, w: int, spread: bool = False) -> Array:
  """The inverse of `windows`, to [B, h, w, C]."""
  b, c = y.shape[0], y.shape[-1]
  y = y.reshape(b, h // size, w // size, size, size, c)
  return (y.transpose(0, 3, 1, 4, 2, 5) if spread else y.swapaxes(2, 3)).reshape(b, h, w, c)


def relative_position(table: Array, size: int) -> Array:
  """[heads, n, n] with n = size * size: the row of the table [(2 size - 1)^2, heads] for how much lower and further right one pixel is than another."""
  at = np.stack(np.divmod(np.arange(size * size), size))
  down, right = at[:, :, None] - at[:, None] + size - 1
  return jnp.moveaxis(table[down * (2 * size - 1) + right], -1, 0)


# Modules.


class Conv(nn.Module):
  """Convolution with square kernels; groups is 1 or the number of channels (depthwise, features == input channels)."""

  features: int
  size: int
  stride: int = 1
  padding: int | str = 0
  depthwise: bool = False
  use_bias: bool = False
  initial: Callable = fan_out
  initial_bias: Callable = zeros
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = 1 if self.depthwise else x.shape[-1]
    kernel = self.param('kernel', self.initial, (self.size, self.size, c, self.features))
    y = conv(x.astype(self.dtype), jnp.asarray(kernel, self.dtype), self.stride, self.padding)
    if self.use_bias:
      y = y + _over(
        jnp.asarray(self.param('bias', self.initial_bias, (self.features,)), self.dtype), y
      )
    return y


class Dense(nn.Module):
  """Affine map of the last axis."""

  features: int
  initial: Callable = normal(0.02)
  use_bias: bool = True
  initial_bias: Callable = zeros
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel = self.param('kernel', self.initial, (x.shape[-1], self.features))
    y = dense(x.astype(self.dtype), jnp.asarray(kernel, self.dtype))
    if self.use_bias:
      y = y + _over(
        jnp.asarray(self.param('bias', self.initial_bias, (self.features,)), self.dtype), y
      )
    return y


class Attention(nn.Module):
  """Multi-head self-attention among the n tokens of x [..., n, C] (Vaswani et al. 2017, arXiv:1706.03762).

  scale: of the products of queries and keys; None: 1 / sqrt(C / heads). window: where tokens are the pixels of window x window, their relative position's
  learned bias is added; 0: none. mask, added too: [parts, n, n] for x [..., parts, n, C].
  """

  heads: int
  scale: float | None = None
  window: int = 0
  initial: tuple[Callable, Callable] = (normal(0.02), normal(0.02))  # of qkv and proj
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, mask: Array | np.ndarray | None = None) -> Array:
    *lead, n, c = x.shape
    d = c // self.heads
    qkv = Dense(3 * c, self.initial[0], dtype=self.dtype, name='qkv')(x).reshape(
      *lead, n, 3, self.heads, d
    )
    q, k, v = jnp.moveaxis(qkv, (-3, -2), (0, -3))
    bias = None
    if self.window:
      table = self.param(
        'relative_position_bias_table', normal(0.02), ((2 * self.window - 1) ** 2, self.heads)
      )
      bias = relative_position(jnp.asarray(table, jnp.float32), self.window)
      if mask is not None:
        bias = bias[None] + mask[:, None]
    y = attention(q * (d**-0.5 if self.scale is None else self.scale), k, v, bias)
    return Dense(c, self.initial[1], dtype=self.dtype, name='proj')(
      y.swapaxes(-3, -2).reshape(*lead, n, c)
    )


class BatchNorm(nn.Module):
  """Batch norm of the last axis with the activation after it; statistics in float32, over the global batch under jit.

  momentum .9 is torch's .1; the running variance takes the biased variance as Flax does (torch takes n / (n - 1) times it).
  """

  act: str = ''
  eps: float = 1e-5
  momentum: float = 0.9
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool, known: tuple[Array, Array] | None = None) -> Array:
    """known: the moments of x, where they have been computed before; training mode then takes these."""
    shape = x.shape[-1:]
    scale, bias = self.param('scale', ones, shape), self.param('bias', zeros, shape)
    mean = self.variable('batch_stats', 'mean', zeros, None, shape)
    var = self.variable('batch_stats', 'var', ones, None, shape)
    if train and known is None:
      y, m, v = batch_norm(x, scale, bias, self.eps, self.act)
    else:
      m, v = known if train else (mean.value, var.value)
      factor = scale * lax.rsqrt(v + self.eps)
      y = scale_shift(x, factor, bias - m * factor, self.act)
    if train and not self.is_initializing():
      mean.value = self.momentum * mean.value + (1 - self.momentum) * m
      var.value = self.momentum * var.value + (1 - self.momentum) * v
    return y.astype(self.dtype)


class LayerNorm(nn.Module):
  """Layer norm of the last axis, computed in float32."""

  eps: float = 1e-6
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale, bias = self.param('scale', ones, x.shape[-1:]), self.param('bias', zeros, x.shape[-1:])
    xf = x.astype(jnp.float32)
    d = xf - xf.mean(-1, keepdims=True)
    y = d * lax.rsqrt(jnp.square(d).mean(-1, keepdims=True) + self.eps)
    over = (1,) * (x.ndim - 1) + (-1,)
    return (y * jnp.reshape(scale, over) + jnp.reshape(bias, over)).astype(self.dtype)


class AvgPool(nn.Module):
  """avg_pool as a module, where the original has one too (which thop counts)."""

  window: int
  stride: int
  padding: int = 0

  @nn.compact
  def __call__(self, x: Array) -> Array:
    _check_pooled(x, self.window, self.padding)
    return avg_pool(x, self.window, self.stride, self.padding)


class AdaptiveAvgPool(nn.Module):
  """x [B, H, W, C] -> [B, size, size, C]: means over windows of torch's sizes, of which neighbours can share pixels, and all of which there are where the
  image is smaller than `size`."""

  size: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    def windows(n):  # [size, n]: pixels from floor(i * n / size) to ceil((i + 1) * n / size)
      at, pixel = np.arange(self.size)[:, None], np.arange(n)
      met = (pixel >= at * n // self.size) & (pixel < -(-(at + 1) * n // self.size))
      return jnp.asarray(met / met.sum(1, keepdims=True), jnp.float32)

    if x.shape[1:3] == (self.size, self.size):
      return x
    y = jnp.einsum('ih,bhwc->biwc', windows(x.shape[1]), x.astype(jnp.float32))
    return jnp.einsum('jw,biwc->bijc', windows(x.shape[2]), y).astype(x.dtype)


class GlobalPool(nn.Module):
  """global_pool as a module: [B, H, W, C] -> float32 [B, C]."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return global_pool(x)


class SqueezeExcite(nn.Module):
  """x [B, H, W, C] times a gate a channel: pool, 1x1 to `squeezed` channels, act, 1x1 back, gate (Hu et al. 2018, arXiv:1709.01507)."""

  squeezed: int
  act: str = 'relu'
  gate: Callable = nn.sigmoid
  names: tuple[str, str] = ('fc1', 'fc2')
  initial: Callable = fan_out
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    options = {'use_bias': True, 'initial': self.initial, 'dtype': self.dtype}
    s = GlobalPool()(x)[:, None, None].astype(self.dtype)
    s = ACTIVATIONS[self.act][0](Conv(self.squeezed, 1, **options, name=self.names[0])(s))
    return x * self.gate(Conv(x.shape[-1], 1, **options, name=self.names[1])(s))


def remat(block: type[nn.Module], enabled: bool) -> type[nn.Module]:
  """The block, called as block(x, train); enabled, what lies within it is computed again in the backward pass instead of being kept. Within `drawing` it is
  not, as numpy's draws would come out of it as tracers."""
  return nn.remat(block, static_argnums=(2,)) if enabled and _generator is None else block


def compiler_options() -> dict[str, str] | None:
  """What a program with a backward pass is compiled with, so that `remat` works: on the CPU XLA would take its barriers out before it merges equal
  expressions, and with that everything that is to be computed again."""
  return (
    {'xla_disable_hlo_passes': 'cse_barrier_expander'} if jax.default_backend() == 'cpu' else None
  )


class StochasticDepth(nn.Module):
  """Zeroes whole examples of a residual branch with probability `rate` in training (torchvision's 'row'); draws from rng 'dropout'."""

  rate: float

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    if not train or self.rate == 0:
      return x
    keep = bernoulli(self.make_rng('dropout'), 1 - self.rate, (x.shape[0], 1, 1, 1))
    return x * (keep / (1 - self.rate)).astype(x.dtype)


class Dropout(nn.Module):
  """Zeroes numbers with probability `rate` in training; draws from rng 'dropout', as linen's does, which knows of no devices."""

  rate: float

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    if not train or self.rate == 0:
      return x
    return jnp.where(
      bernoulli(self.make_rng('dropout'), 1 - self.rate, x.shape),
      x / (1 - self.rate),
      jnp.zeros_like(x),
    )
