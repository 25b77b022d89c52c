"""Losses of tag levels, of which an image may have several classes or none: sigmoid losses.

Targets are 1 (the image has the class), 0 (it has not) or -1 (unknown: counts nowhere), int [B, C],
where C runs over the classes of all tag levels, coarse to fine; `Taxonomy.edges` says which of them
lie below which. Losses return float32 [B].
"""

import jax
import jax.numpy as jnp
import numpy as np

from hierjax.losses.exclusive import LOW


def binary_cross_entropy(
  logits: jax.Array, targets: jax.Array, pos_weight: jax.Array | None = None
) -> jax.Array:
  """Compute -w_c log p_c for present classes, -log(1 - p_c) for absent ones; p = sigmoid(logits).

  Its mean over a batch without unknown targets is torch's BCEWithLogitsLoss (S4, section 2.2).

  Args:
    logits: [B, C].
    targets: int [B, C].
    pos_weight: w, float [C]; None for 1.

  Returns:
    float32 [B], the mean over the known classes; 0 where none is known.
  """
  weight = _by_target(targets, 1.0 if pos_weight is None else pos_weight, 1.0)
  return _mean(_log_likelihood(logits, targets) * -weight, targets)


def focal(
  logits: jax.Array, targets: jax.Array, gamma: float, alpha: float | None = None
) -> jax.Array:
  """Compute the focal loss -alpha_t (1 - p_t)^gamma log p_t (arXiv:1708.02002, equation 5).

  p_t is the probability of the true answer about a class. gamma = 0 without alpha is
  `binary_cross_entropy`.

  Args:
    logits: [B, C].
    targets: int [B, C].
    gamma: how much less a class counts that is answered well.
    alpha: weight of present classes, 1 - alpha of absent ones; None for 1 (equation 4).

  Returns:
    float32 [B], the mean over the known classes, where the paper divides by the present ones.
  """
  weight = 1.0 if alpha is None else _by_target(targets, alpha, 1 - alpha)
  # (1 - p_t)^gamma: finite, with its gradient, however sure the logit is
  factor = jnp.exp(gamma * _log_likelihood(logits, 1 - targets))
  return _mean(-weight * factor * _log_likelihood(logits, targets), targets)


def _log_likelihood(logits, targets):
  """log p of the answer that the targets give, [B, C]."""
  x = logits.astype(jnp.float32)
  return jax.nn.log_sigmoid(jnp.where(targets == 1, x, -x))


def _by_target(targets, positive, negative):
  """[B, C]: one weight (or one a class) where the target is 1, another elsewhere."""
  weights = []
  for weight in (positive, negative):
    weight = jnp.asarray(weight, jnp.float32)
    weights.append(jnp.broadcast_to(weight, targets.shape[1:])[None])
  return jnp.where(targets == 1, *weights)


def _mean(losses, targets):
  """Return the mean of losses [B, C] over the known classes of each row, [B]."""
  is_known = targets >= 0
  return jnp.where(is_known, losses, 0.0).sum(1) / jnp.maximum(is_known.sum(1), 1)


def positive_weights(targets: np.ndarray, limit: float) -> np.ndarray:
  """Compute absent over present images of each class, for `pos_weight`.

  Args:
    targets: int [N, C] of the training split.
    limit: largest weight; 1 / limit is the smallest.

  Returns:
    float32 [C], 1 where no image has the class.
  """
  positives = (targets == 1).sum(0)
  negatives = (targets == 0).sum(0)
  ratio = np.clip(negatives / np.maximum(positives, 1), 1 / limit, limit)
  return np.where(positives > 0, ratio, 1).astype(np.float32)


def max_constraint(
  scores: jax.Array, edges: tuple[np.ndarray, np.ndarray], targets: jax.Array | None = None
) -> jax.Array:
  """Raise each class's score to the highest of the classes below it (MCM, arXiv:2010.10151).

  No class then scores higher than one above it, bit for bit (Giunchiglia and Lukasiewicz 2020,
  section 3.1). Losses constrain logits; decisions constrain probabilities, since a sigmoid may
  round two logits in the wrong order. The gradient goes to the one class that gave the score, the
  first of equals.

  Args:
    scores: [B, C].
    edges: `Taxonomy.edges`.
    targets: int [B, C], for the loss MCLoss (section 3.2): where a class is present, only the
      scores of present classes below it count, so that it is not learnt by way of an absent one.

  Returns:
    float32 [B, C]; NaN stays NaN.
  """
  above, below = edges
  values = scores.astype(jnp.float32)[:, below]  # [B, edge]
  if targets is not None:
    values = jnp.where((targets[:, above] != 1) | (targets[:, below] == 1), values, LOW)
  # a maximum over segments has no gradient in jax: its place is searched, then looked up
  constant = jax.lax.stop_gradient(values).T  # [edge, B]
  classes = scores.shape[1]
  top = jax.ops.segment_max(constant, above, classes, indices_are_sorted=True)
  edge_numbers = jnp.arange(len(above))[:, None]
  place = jnp.where(constant == top[above], edge_numbers, len(above))
  first = jax.ops.segment_min(place, above, classes, indices_are_sorted=True)
  return jnp.take_along_axis(values, first.T, 1)
