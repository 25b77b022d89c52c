"""Losses per example, pure functions of arrays. The caller averages, weighs and masks."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hierjax.taxonomy import Taxonomy


def cross_entropy(logits: jax.Array, labels: jax.Array, targets: jax.Array | None = None) -> jax.Array:
  """-sum_c t_c log p_c. logits [B, C], labels int [B]; targets [C, C] holds a row of soft targets for each label, None is one-hot.

  Returns float32 [B]; a label of -1 (unknown) gives 0.
  """
  logp = jax.nn.log_softmax(logits.astype(jnp.float32))
  safe = jnp.maximum(labels, 0)
  if targets is None:
    loss = -jnp.take_along_axis(logp, safe[:, None], axis=1)[:, 0]
  else:
    loss = -jnp.sum(targets[safe] * logp, axis=1)
  return jnp.where(labels >= 0, loss, 0.0)


def smoothed_targets(taxonomy: Taxonomy, share: float, siblings: Sequence[str]) -> np.ndarray:
  """Hierarchical label smoothing (S0, section 3.3): 1 - share on the class, share spread evenly over the other classes that share its `siblings` levels.

  Returns float32 [C, C] over the finest level. A class without sibling keeps 1.
  """
  family = taxonomy.siblings(siblings).astype(np.float32)
  count = family.sum(1, keepdims=True)
  spread = np.where(count > 0, share * family / np.maximum(count, 1), 0)
  return (spread + np.diag(1 - spread.sum(1))).astype(np.float32)


def masked_mean(values: jax.Array, mask: jax.Array, axis: str | None = None) -> jax.Array:
  """Mean of values [B] where mask [B] is above 0; 0 where it is nowhere. With an axis of the mesh, [B] is a device's part of the batch, and the result is
  its share of the mean: the shares add up to it."""
  count = jnp.sum(mask > 0)
  return jnp.sum(jnp.where(mask > 0, values, 0.0)) / jnp.maximum(count if axis is None else jax.lax.psum(count, axis), 1)
