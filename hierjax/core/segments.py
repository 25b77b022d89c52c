"""Reductions over the columns of each class, at a cost linear in columns and classes."""

import jax
import jax.numpy as jnp
import numpy as np


def segment_sum(values: jax.Array, classes: np.ndarray, num_classes: int) -> jax.Array:
  """Sum the columns of each class.

  Args:
    values: [B, N].
    classes: int [N], the class of each column.
    num_classes: their number C.

  Returns:
    [B, C], 0 for a class without a column.
  """
  return jax.ops.segment_sum(values.T, classes, num_classes).T


def segment_logsumexp(values: jax.Array, classes: np.ndarray, num_classes: int) -> jax.Array:
  """Compute the log of the sum of exp over the columns of each class.

  Args:
    values: float [B, N].
    classes: int [N], the class of each column; each class has one.
    num_classes: their number C.

  Returns:
    float32 [B, C].
  """
  columns = values.astype(jnp.float32).T
  # the largest of each class: exp neither overflows nor loses all of them
  top = jax.ops.segment_max(jax.lax.stop_gradient(columns), classes, num_classes)
  sums = jax.ops.segment_sum(jnp.exp(columns - top[classes]), classes, num_classes)
  return (jnp.log(sums) + top).T
