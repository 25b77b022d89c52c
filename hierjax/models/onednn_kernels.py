"""The operations of `cpu_kernels`, with convolutions and matrix products by oneDNN."""

import functools
import math

import jax
import jax.numpy as jnp

from hierjax.models import cpu_kernels, functional, onednn
from hierjax.models.cpu_kernels import Array, Pads
from hierjax.models.cpu_kernels import avg_pool as avg_pool
from hierjax.models.cpu_kernels import batch_norm as batch_norm
from hierjax.models.cpu_kernels import max_pool as max_pool
from hierjax.models.cpu_kernels import moments as moments
from hierjax.models.cpu_kernels import scale_shift as scale_shift
from hierjax.models.cpu_kernels import stored as stored


def conv(x: Array, kernel: Array, stride: int = 1, padding: int | str = 0) -> Array:
  """Convolve maps with a kernel. Args: as `plain_kernels.conv`.

  Dtypes that oneDNN does not have, and depthwise convolutions below 7 x 7, which XLA joins with
  what is beside them, are those of `cpu_kernels`.
  """
  is_depthwise = kernel.shape[2] == 1 and x.shape[3] > 1
  is_large = x.dtype == jnp.float32 and min(kernel.shape[:2]) >= 7
  if x.dtype not in onednn.dtypes() or not math.prod(x.shape) or (is_depthwise and not is_large):
    return cpu_kernels.conv(x, kernel, stride, padding)
  pads = functional.explicit_pads(x.shape[1:3], kernel.shape[:2], stride, padding)
  return (_large_depthwise if is_depthwise else onednn.conv)(x, kernel, stride, pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _large_depthwise(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
  """Convolve by oneDNN, whose gradient of such a kernel takes twice as long as ours."""
  return onednn.conv(x, kernel, stride, pads)


def _large_depthwise_forward(x, kernel, stride, pads):
  return onednn.conv(x, kernel, stride, pads), (x, kernel)


def _large_depthwise_backward(stride, pads, saved, dy):
  # XLA leaves out the two gradients that are not used
  dx, _ = jax.vjp(functools.partial(onednn.conv, stride=stride, pads=pads), *saved)[1](dy)
  ours = functools.partial(cpu_kernels.depthwise, stride=stride, pads=pads)
  return dx, jax.vjp(ours, *saved)[1](dy)[1]


_large_depthwise.defvjp(_large_depthwise_forward, _large_depthwise_backward)


def product(a: Array, b: Array, is_transposed: bool = False) -> Array:
  """Multiply matrices. Args: as `functional.product`."""
  if a.dtype == b.dtype == jnp.float32 and a.dtype in onednn.dtypes() and math.prod(a.shape):
    return onednn.product(a, b, is_transposed)
  return functional.product(a, b, is_transposed)
