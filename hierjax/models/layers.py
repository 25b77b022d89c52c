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

Array, Dtype = jax.Array, Any
_chosen = 'auto'
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


def constant(value: float):
  """Initialiser: the value everywhere."""
  return lambda key, shape, dtype=jnp.float32: (np if _generator is not None else jnp).full(shape, value, np.float32)


zeros, ones = constant(0.), constant(1.)
# He et al. 2015 with fan_out; a depthwise kernel has one output channel per group (timm's fix_group_fanout; ResNet has none).
fan_out = normal(lambda shape: math.sqrt(2 / (shape[0] * shape[1] * (1 if shape[2] == 1 else shape[3]))))


# Functions.


def _pads(size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int | str) -> list[tuple[int, int]]:
  if padding == 'SAME':
    return lax.padtype_to_pads(size, kernel, (stride, stride), 'SAME')
  return [(int(padding), int(padding))] * 2


def conv(x: Array, kernel: Array, stride: int = 1, padding: int | str = 0) -> Array:
  """Convolution of x [B, H, W, C] with kernel [k, k, C, O], or depthwise with [k, k, 1, C]; padding in pixels or TensorFlow's 'SAME'."""
  size, k = x.shape[1:3], kernel.shape[:2]
  pads = _pads(size, k, stride, padding)
  depthwise = kernel.shape[2] == 1 and x.shape[3] > 1
  if not on_cpu():
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
                                    feature_group_count=x.shape[3] if depthwise else 1)
  if depthwise:
    return _depthwise(x.astype(jnp.float32), kernel.astype(jnp.float32), stride, tuple(pads)).astype(x.dtype)
  if k == (1, 1) and not any(sum(p) for p in pads):
    return dense(x[:, ::stride, ::stride], kernel[0, 0])
  if k == (stride, stride) and not any(sum(p) for p in pads) and not any(n % stride for n in size):
    b, (h, w), c = x.shape[0], size, x.shape[3]
    patches = x.reshape(b, h // stride, stride, w // stride, stride, c).swapaxes(2, 3).reshape(b, h // stride, w // stride, -1)
    return dense(patches, kernel.reshape(-1, kernel.shape[3]))
  if min(size) <= 4 or x.shape[3] <= 4:
    out = _out_size(size, k, stride, pads)
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    patches = [_tap(padded, i, j, stride, out) for i in range(k[0]) for j in range(k[1])]
    return dense(jnp.concatenate(patches, -1), kernel.reshape(-1, kernel.shape[3]))
  return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def dense(x: Array, kernel: Array) -> Array:
  """x [..., C] times kernel [C, O]."""
  y = lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())))
  return y.reshape(*x.shape[:-1], kernel.shape[1])


def _out_size(size, kernel, stride, pads) -> tuple[int, int]:
  return tuple((n + sum(p) - k) // stride + 1 for n, k, p in zip(size, kernel, pads))


def _tap(padded: Array, i: int, j: int, stride: int, out: tuple[int, int]) -> Array:
  """The pixels of a padded image that the kernel's row i and column j meet, [B, *out, C]."""
  return padded[:, i:i + stride * (out[0] - 1) + 1:stride, j:j + stride * (out[1] - 1) + 1:stride]


def _fold(n: int) -> int:
  """The largest divisor of n up to 8: a reduction that short is unrolled, so that the loop over channels around it becomes vector code."""
  return max(f for f in range(1, 9) if n % f == 0)


def _sum_pixels(xs: list[Array], axis: int) -> list[Array]:
  """Sums of each x [B, H, W, C] over B, H and W in float32, in one pass: over pieces of `axis` first, at the speed of memory."""
  b, c, f = xs[0].shape[0], xs[0].shape[-1], _fold(xs[0].shape[axis])
  shape = (*xs[0].shape[:axis], xs[0].shape[axis] // f, f, *xs[0].shape[axis + 1:])
  parts = lax.reduce([x.astype(jnp.float32).reshape(shape) for x in xs], [jnp.float32(0)] * len(xs),
                     lambda p, q: [s + t for s, t in zip(p, q)], (axis + 1,))
  return [p.reshape(b, -1, c).sum(1).sum(0) for p in parts]


def _add_taps(padded: Array, kernel: Array, stride: int, out: tuple[int, int]) -> Array:
  k = kernel.shape[0]
  return sum(_tap(padded, i, j, stride, out) * kernel[i, j, 0].reshape(1, 1, 1, -1) for i in range(k) for j in range(k))


def _pad(x: Array, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
  """Zero padding that is stored, not computed again at each of its uses."""
  return lax.optimization_barrier(jnp.pad(x, ((0, 0), rows, columns, (0, 0))))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, stride, pads):
  return _depthwise_forward(x, kernel, stride, pads)[0]


def _depthwise_forward(x, kernel, stride, pads):
  out = _out_size(x.shape[1:3], kernel.shape[:2], stride, pads)
  padded = _pad(x, *pads)
  return _add_taps(padded, kernel, stride, out), (padded, kernel)


def _depthwise_backward(stride, pads, saved, dy):
  padded, kernel = saved
  k, out = kernel.shape[0], dy.shape[1:3]
  size = tuple(n - sum(p) for n, p in zip(padded.shape[1:3], pads))
  # The gradient of the input is the sum over the taps of dy, apart for each of the stride's phases of rows and columns.
  m = k // stride + 1
  wide = _pad(dy, *((m, max(m, -(-size[d] // stride) + m - out[d])) for d in (0, 1)))

  def phase(a, b):
    n = [-(-(size[0] - a) // stride), -(-(size[1] - b) // stride)]
    taps = [(i, j) for i in range(k) for j in range(k) if (a + pads[0][0] - i) % stride == 0 and (b + pads[1][0] - j) % stride == 0]
    terms = [_tap(wide, m + (a + pads[0][0] - i) // stride, m + (b + pads[1][0] - j) // stride, 1, n) * kernel[i, j, 0].reshape(1, 1, 1, -1)
             for i, j in taps]
    return sum(terms) if terms else jnp.zeros((dy.shape[0], *n, dy.shape[3]), dy.dtype)

  dx = _interleave([_interleave([phase(a, b) for b in range(stride)], 2) for a in range(stride)], 1)
  # The gradient of the kernel: a row of it at a time, in one pass.
  rows = [_sum_pixels([_tap(padded, i, j, stride, out) * dy for j in range(k)], 1) for i in range(k)]
  return dx, jnp.stack([jnp.stack(r) for r in rows])[:, :, None]


def _interleave(xs: list[Array], axis: int) -> Array:
  """x[0], y[0], z[0], x[1], ... along the axis; the later ones may be one shorter."""
  if len(xs) == 1:
    return xs[0]
  length = sum(x.shape[axis] for x in xs)
  short = [[(0, 0)] * axis + [(0, xs[0].shape[axis] - x.shape[axis])] + [(0, 0)] * (x.ndim - axis - 1) for x in xs]
  stacked = jnp.stack([jnp.pad(x, s) if s[axis][1] else x for x, s in zip(xs, short)], axis + 1)
  merged = stacked.reshape(*xs[0].shape[:axis], -1, *xs[0].shape[axis + 1:])
  return merged if merged.shape[axis] == length else lax.slice_in_dim(merged, 0, length, axis=axis)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _act(x: Array, kind: str) -> Array:
  return {'': lambda: x, 'relu': lambda: jnp.maximum(x, 0), 'relu6': lambda: jnp.clip(x, 0, 6)}[kind]()


def _over(v: Array, x: Array) -> Array:
  """v [C] with the rank of x."""
  return v.reshape((1,) * (x.ndim - 1) + (-1,))


def _moments(x: Array, sums: list[Array]) -> tuple[Array, Array]:
  n = math.prod(x.shape[:-1])
  mean = sums[0] / n
  return mean, jnp.maximum(sums[1] / n - jnp.square(mean), 0)


def batch_norm(x: Array, scale: Array, bias: Array, eps: float, act: str) -> tuple[Array, Array, Array]:
  """act(batch norm of x [B, H, W, C]) over the batch's own statistics, and these: mean and biased variance [C], not differentiated."""
  if on_cpu():
    return _batch_norm(x, scale, bias, eps, act)
  xf = x.astype(jnp.float32)
  mean, var = _moments(x, [xf.sum((0, 1, 2)), jnp.square(xf).sum((0, 1, 2))])
  return _affine_act(x, mean, var, scale, bias, eps, act), *lax.stop_gradient((mean, var))


def _affine_act(x, mean, var, scale, bias, eps, act):
  a = scale * lax.rsqrt(var + eps)
  return _act(x * _over(a, x) + _over(bias - mean * a, x), act).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _batch_norm(x, scale, bias, eps, act):
  return _batch_norm_forward(x, scale, bias, eps, act)[0]


def _batch_norm_forward(x, scale, bias, eps, act):
  mean, var = _moments(x, _sum_pixels([x, jnp.square(x.astype(jnp.float32))], 1))
  return (_affine_act(x, mean, var, scale, bias, eps, act), mean, var), (x, scale, bias, mean, var)


def _batch_norm_backward(eps, act, saved, cotangents):
  x, scale, bias, mean, var = saved
  n, inv = math.prod(x.shape[:-1]), lax.rsqrt(var + eps)
  a = scale * inv
  xf, dy = x.astype(jnp.float32), cotangents[0].astype(jnp.float32)
  if act:
    y = xf * _over(a, x) + _over(bias - mean * a, x)
    dy = jnp.where((y > 0) & (y < 6) if act == 'relu6' else y > 0, dy, 0)
  total, product = _sum_pixels([dy, dy * xf], 1)
  dscale = (product - mean * total) * inv
  slope = dscale * inv / n
  dx = _over(a, x) * (dy - _over(slope, x) * xf - _over(total / n - slope * mean, x))
  return dx.astype(x.dtype), dscale, total


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def max_pool(x: Array, window: int, stride: int, padding: int) -> Array:
  """Max pooling of x [B, H, W, C], padding in pixels."""
  return nn.max_pool(x, (window, window), (stride, stride), ((padding, padding),) * 2)


def global_pool(x: Array) -> Array:
  """Mean over the pixels of x [B, H, W, C], as float32 [B, C]."""
  return x.mean((1, 2), dtype=jnp.float32)


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
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = 1 if self.depthwise else x.shape[-1]
    kernel = self.param('kernel', self.initial, (self.size, self.size, c, self.features))
    y = conv(x.astype(self.dtype), jnp.asarray(kernel, self.dtype), self.stride, self.padding)
    if self.use_bias:
      y = y + _over(jnp.asarray(self.param('bias', zeros, (self.features,)), self.dtype), y)
    return y


class Dense(nn.Module):
  """Affine map of the last axis."""
  features: int
  initial: Callable = normal(.02)
  use_bias: bool = True
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel = self.param('kernel', self.initial, (x.shape[-1], self.features))
    y = dense(x.astype(self.dtype), jnp.asarray(kernel, self.dtype))
    if self.use_bias:
      y = y + _over(jnp.asarray(self.param('bias', zeros, (self.features,)), self.dtype), y)
    return y


class BatchNorm(nn.Module):
  """Batch norm of the last axis with the activation after it; statistics in float32, over the global batch under jit.

  momentum .9 is torch's .1; the running variance takes the biased variance as Flax does (torch takes n / (n - 1) times it).
  """
  act: str = ''
  eps: float = 1e-5
  momentum: float = .9
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    shape = x.shape[-1:]
    scale, bias = self.param('scale', ones, shape), self.param('bias', zeros, shape)
    mean = self.variable('batch_stats', 'mean', zeros, None, shape)
    var = self.variable('batch_stats', 'var', ones, None, shape)
    if not train:
      return _affine_act(x, mean.value, var.value, scale, bias, self.eps, self.act).astype(self.dtype)
    y, m, v = batch_norm(x, scale, bias, self.eps, self.act)
    if not self.is_initializing():
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


class StochasticDepth(nn.Module):
  """Zeroes whole examples of a residual branch with probability `rate` in training (torchvision's 'row'); draws from rng 'dropout'."""
  rate: float

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    if not train or self.rate == 0:
      return x
    keep = jax.random.bernoulli(self.make_rng('dropout'), 1 - self.rate, (x.shape[0], 1, 1, 1))
    return x * (keep / (1 - self.rate)).astype(x.dtype)
