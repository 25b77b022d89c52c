"""The operations of the layers as XLA has them; `cpu_kernels` has the same functions for the CPU.

Maps are [B, H, W, C], kernels [k, k, C, O], or [k, k, 1, C] of a depthwise convolution. `axis` is
the mesh axis over which a batch is split within `jax.shard_map`, or None; `act` is a key of
`ACTIVATIONS`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from hierjax.models import functional
from hierjax.models.functional import product as product

Array = jax.Array


def conv(x: Array, kernel: Array, stride: int = 1, padding: int | str = 0) -> Array:
  """Convolve maps with a kernel.

  Args:
    x: [B, H, W, C].
    kernel: [k, k, C, O], or [k, k, C / groups, O]; of a depthwise convolution [k, k, 1, C].
    stride: in pixels.
    padding: in pixels, or TensorFlow's 'SAME'.
  """
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    functional.explicit_pads(x.shape[1:3], kernel.shape[:2], stride, padding),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[3] // kernel.shape[2],
  )


def stored(x: Array) -> Array:
  """Return an array as it is; `cpu_kernels` has it computed once for all that use it."""
  return x


def moments(x: Array, axis: str | None = None) -> tuple[Array, Array]:
  """Compute mean and biased variance of each channel over the whole batch, float32 [C].

  Args:
    x: [B, H, W, C].
    axis: the mesh axis over which the batch is split.
  """
  x = x.astype(jnp.float32)
  sums = functional.all_sum((x.mean((0, 1, 2)), jnp.square(x).mean((0, 1, 2))), axis)
  mean, square = (s / functional.num_devices(axis) for s in sums)
  return mean, jnp.maximum(square - jnp.square(mean), 0)


def scale_shift(x: Array, factor: Array, term: Array, act: str) -> Array:
  """Compute act(x * factor + term).

  Args:
    x: [B, H, W, C].
    factor: [C].
    term: [C].
    act: a key of `ACTIVATIONS`.
  """
  y = x * functional.per_channel(factor, x) + functional.per_channel(term, x)
  return functional.activate(y, act).astype(x.dtype)


def batch_norm(
  x: Array, scale: Array, bias: Array, eps: float, act: str, axis: str | None = None
) -> tuple[Array, Array, Array]:
  """Normalise maps by the batch's own moments, and activate.

  Args:
    x: [B, H, W, C].
    scale: [C].
    bias: [C].
    eps: added to the variance.
    act: a key of `ACTIVATIONS`.
    axis: the mesh axis over which the batch is split.

  Returns:
    The maps; mean and biased variance, float32 [C], through which no gradient goes.
  """
  mean, var = moments(x, axis)
  factor = scale * lax.rsqrt(var + eps)
  y = scale_shift(x, factor, bias - mean * factor, act)
  return y, *lax.stop_gradient((mean, var))


def max_pool(x: Array, window: int, stride: int, padding: int) -> Array:
  """Take the maximum of each window; the gradient goes to the first of equal pixels, by rows."""
  return nn.max_pool(x, (window, window), (stride, stride), ((padding, padding),) * 2)


def avg_pool(x: Array, window: int, stride: int, padding: int = 0) -> Array:
  """Average each window; padding counts as zeros, which is torch's default."""
  return nn.avg_pool(x, (window, window), (stride, stride), ((padding, padding),) * 2)
