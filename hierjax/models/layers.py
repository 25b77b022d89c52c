"""Layers of the backbones: convolution, batch and layer norm, dense, pooling, stochastic depth; and how each is computed.

Images are NHWC, kernels HWIO (depthwise [k, k, 1, C]), dense kernels [in, out]. Parameters are float32; `dtype` is what is computed in.
"""
import contextlib
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
  pads = _pads(x.shape[1:3], kernel.shape[:2], stride, padding)
  groups = x.shape[3] // kernel.shape[2]
  return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups)


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
  init: Callable = fan_out
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = 1 if self.depthwise else x.shape[-1]
    kernel = self.param('kernel', self.init, (self.size, self.size, c, self.features))
    y = conv(x.astype(self.dtype), jnp.asarray(kernel, self.dtype), self.stride, self.padding)
    if self.use_bias:
      y = y + jnp.asarray(self.param('bias', zeros, (self.features,)), self.dtype)
    return y


class Dense(nn.Module):
  """Affine map of the last axis."""
  features: int
  init: Callable = normal(.02)
  use_bias: bool = True
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    kernel = self.param('kernel', self.init, (x.shape[-1], self.features))
    y = lax.dot_general(x.astype(self.dtype), jnp.asarray(kernel, self.dtype), (((x.ndim - 1,), (0,)), ((), ())))
    if self.use_bias:
      y = y + jnp.asarray(self.param('bias', zeros, (self.features,)), self.dtype)
    return y


ACTIVATIONS = {'': lambda x: x, 'relu': lambda x: jnp.maximum(x, 0), 'relu6': lambda x: jnp.clip(x, 0, 6)}


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
    if train:
      xf = x.astype(jnp.float32)
      m = xf.mean((0, 1, 2))
      v = jnp.maximum(jnp.square(xf).mean((0, 1, 2)) - jnp.square(m), 0)
      if not self.is_initializing():
        mean.value = self.momentum * mean.value + (1 - self.momentum) * m
        var.value = self.momentum * var.value + (1 - self.momentum) * v
    else:
      m, v = mean.value, var.value
    a = scale * lax.rsqrt(v + self.eps)
    y = x * a.reshape(1, 1, 1, -1) + (bias - m * a).reshape(1, 1, 1, -1)
    return ACTIVATIONS[self.act](y).astype(self.dtype)


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
