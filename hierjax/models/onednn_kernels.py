"""The operations of `cpu_kernels`, with convolutions by oneDNN."""

import math

import jax

from hierjax.models import cpu_kernels, functional, onednn
from hierjax.models.cpu_kernels import avg_pool, batch_norm, max_pool, moments, scale_shift

__all__ = ['avg_pool', 'batch_norm', 'conv', 'max_pool', 'moments', 'scale_shift']

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
