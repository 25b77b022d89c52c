"""What all forms of heads share."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hierjax.models import layers
from hierjax.models.initializers import torch_linear

Array = jax.Array
Logits = dict[str, Array]


def first_rows(rows: Sequence[int]) -> np.ndarray:
  """Return where the rows of each class begin, int [C], of classes with so many rows each."""
  return np.cumsum(rows) - np.asarray(rows)


def folded(logits: Array, rows: Sequence[int]) -> Array:
  """Join the logits of the rows of a head that stand for one class.

  Args:
    logits: [B, R].
    rows: number of rows of each of the C classes; R in all.

  Returns:
    [B, C]: the log-sum-exp of a class's rows, so that their probabilities add up; a single row's
    logit stays as it is.
  """
  rows, first = np.asarray(rows), first_rows(rows)
  joint = np.flatnonzero(rows > 1)
  places = np.arange(max(rows))
  mask = places < rows[joint, None]
  parts = logits[:, np.where(mask, first[joint, None] + places, 0)]
  sums = jax.nn.logsumexp(parts, -1, where=jnp.asarray(mask))
  return logits[:, first].at[:, joint].set(sums)


class Heads(layers.Layer):
  """What all forms of heads share: dropout, and levels some of whose classes have several rows.

  A form defines `_logits(x, train)`, from x [B, d] to {level: [B, rows]}. Its further fields are
  options of the config, `model.head.*`. Parameters lie under the level that they serve, those that
  serve several under 'shared': these are the groups that the curriculum can freeze.

  Attributes:
    classes: (level, number of classes) from coarse to fine; number of rows where `parts` has the
      level.
    ancestors: for each level those of the levels that its class determines the class of.
    dropout: before the heads.
    parts: (level, number of rows of each class) of the levels where a class has several.
  """

  classes: tuple[tuple[str, int], ...]
  ancestors: tuple[tuple[str, ...], ...]
  dropout: float = 0.0
  parts: tuple[tuple[str, tuple[int, ...]], ...] = ()

  @nn.compact
  def __call__(self, features: Array, train: bool) -> Logits:
    """Compute the float32 logits [B, C] of each level from features [B, d]."""
    drop = layers.Dropout(self.dropout, compute=self.compute, name='Dropout_0')
    logits = self._logits(drop(features.astype(jnp.float32), train), train)
    for level, rows in self.parts:
      logits[level] = folded(logits[level], rows)
    return logits

  @nn.nowrap
  def linear(self, level: str, rows: int) -> layers.Dense:
    """Make the linear head of a level."""
    return layers.Dense(rows, torch_linear, compute=self.compute, name=level)
