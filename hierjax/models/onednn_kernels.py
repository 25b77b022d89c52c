"""The operations of `cpu_kernels`, with convolutions and matrix products by oneDNN."""

import math

import jax
import jax.numpy as jnp

from hierjax.models import cpu_kernels, functional, onednn
from hierjax.models.cpu_kernels import avg_pool as avg_pool
from hierjax.models.cpu_kernels import batch_norm as batch_norm
from hierjax.models.cpu_kernels import max_pool as max_pool
from hierjax.models.cpu_kernels import moments as moments
from hierjax.models.cpu_kernels import scale_shift as scale_shift
from hierjax.models.cpu_kernels import stored as stored

Array = jax.Array


def conv(x: Array, kernel: Array, stride: int = 1, padding: int | str = 0) -> Array:
  """Convolve maps with a kernel. Args: as `plain_kernels.conv`.

  Depthwise convolutions and dtypes that oneDNN does not have are those of `cpu_kernels`.
  """
  is_depthwise = kernel.shape[2] == 1 and x.shape[3] > 1
  if is_depthwise or x.dtype not in onednn.dtypes() or not math.prod(x.shape):
    return cpu_kernels.conv(x, kernel, stride, padding)
  pads = functional.explicit_pads(x.shape[1:3], kernel.shape[:2], stride, padding)
  return onednn.conv(x, kernel, stride, pads)


def product(a: Array, b: Array, is_transposed: bool = False) -> Array:
  """Multiply matrices. Args: as `functional.product`."""
  if a.dtype == b.dtype == jnp.float32 and a.dtype in onednn.dtypes() and math.prod(a.shape):
    return onednn.product(a, b, is_transposed)
  return functional.product(a, b, is_transposed)
