"""Levels of which several classes, or none, may hold at once: sigmoid losses, the max constraint along the taxonomy, thresholds and their metrics.

Targets are 1 (the image has the class), 0 (it has not) or -1 (unknown: counts nowhere), [B, C]. Where several levels are such, C runs over the classes of
all of them, coarse to fine, and Taxonomy.edges says which of these classes lie below which. Losses are functions of jax arrays, float32 [B]; what finds and
judges thresholds works on the host, on the probabilities of a whole split.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import average_precision_score

from hierjax.losses.exclusive import LOW

HALF = (
  0.5  # the threshold of a class of which validation has no image, and of all classes before tuning
)

Edges = tuple[np.ndarray, np.ndarray]  # Taxonomy.edges

# Losses.


def binary_cross_entropy(
  logits: jax.Array, targets: jax.Array, pos_weight: jax.Array | None = None
) -> jax.Array:
  """-w_c log p_c where class c holds, -log(1 - p_c) where it does not, the mean over the known classes; p = sigmoid(logits).

  logits [B, C], targets [B, C], pos_weight [C] = w (None: 1). Its mean over a batch without unknown targets is torch's BCEWithLogitsLoss (S4, section 2.2).
  Returns float32 [B], 0 where no class is known.
  """
  return _mean(
    _log_right(logits, targets) * -_either(targets, 1.0 if pos_weight is None else pos_weight, 1.0),
    targets,
  )


def focal(
  logits: jax.Array, targets: jax.Array, gamma: float, alpha: float | None = None
) -> jax.Array:
  """Focal loss (Lin et al. 2017, arXiv:1708.02002, equation 5): -alpha_t (1 - p_t)^gamma log p_t, p_t the probability of the true answer about a class.

  alpha weighs the positives, 1 - alpha the negatives; None weighs both by 1 (equation 4), and gamma = 0 is then binary_cross_entropy. The mean over the
  known classes, where the paper divides by the number of positives. Returns float32 [B].
  """
  weight = 1.0 if alpha is None else _either(targets, alpha, 1 - alpha)
  wrong = jnp.exp(
    gamma * _log_right(logits, 1 - targets)
  )  # (1 - p_t)^gamma: finite, with its gradient, however sure the logit is
  return _mean(-weight * wrong * _log_right(logits, targets), targets)


def _log_right(logits, targets):
  """log p of the answer that the targets give, [B, C]."""
  x = logits.astype(jnp.float32)
  return jax.nn.log_sigmoid(jnp.where(targets == 1, x, -x))


def _either(targets, positive, negative):
  wide = lambda w: jnp.broadcast_to(jnp.asarray(w, jnp.float32), targets.shape[1:])[None]
  return jnp.where(targets == 1, wide(positive), wide(negative))


def _mean(losses, targets):
  known = targets >= 0
  return jnp.where(known, losses, 0.0).sum(1) / jnp.maximum(known.sum(1), 1)


def positive_weights(targets: np.ndarray, limit: float) -> np.ndarray:
  """Known negatives over known positives of each class, for pos_weight: float32 [C], within 1/limit and limit; 1 where a class has no positives."""
  positives, negatives = (targets == 1).sum(0), (targets == 0).sum(0)
  return np.where(
    positives > 0, np.clip(negatives / np.maximum(positives, 1), 1 / limit, limit), 1
  ).astype(np.float32)


# The hierarchy.


def max_constraint(scores: jax.Array, edges: Edges, targets: jax.Array | None = None) -> jax.Array:
  """MCM (C-HMCNN; Giunchiglia and Lukasiewicz 2020, arXiv:2010.10151, section 3.1): a class's score is the highest of its own and those below it, [B, C].

  So no class scores higher than one above it, bit for bit. Scores are logits in losses; a decision takes the constraint of the probabilities, since a
  sigmoid may round two logits in the wrong order. With targets, it is what the loss MCLoss sees (section 3.2): where a class holds, the highest of the scores
  below it *that hold*, so that it is not learnt by way of a class that is absent. MCLoss is then a loss of the result: binary_cross_entropy, or focal.
  The gradient goes to the one class that gave the score, the first of equals.
  """
  above, below = edges
  values = scores.astype(jnp.float32)[:, below]
  if targets is not None:
    values = jnp.where((targets[:, above] != 1) | (targets[:, below] == 1), values, LOW)
  fixed, classes = (
    jax.lax.stop_gradient(values).T,
    scores.shape[1],
  )  # a maximum over segments has no gradient in jax: the place is found, then looked up
  top = jax.ops.segment_max(fixed, above, classes, indices_are_sorted=True)
  place = jnp.where(fixed == top[above], jnp.arange(len(above))[:, None], len(above))
  return jnp.take_along_axis(
    values, jax.ops.segment_min(place, above, classes, indices_are_sorted=True).T, 1
  )  # NaN finds no place, and stays NaN


# Thresholds, found on validation.


def decide(probs: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
  """bool [N, C]: the classes whose probability is at least their threshold."""
  return np.asarray(probs) >= thresholds


def best_thresholds(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """The threshold of each class with the highest F1 on its precision-recall curve (S4, section 2.3), float64 [C].

  It is one of the class's probabilities, the lowest of those with equal F1, as in argmax over scikit-learn's curve; .5 for a class without a positive.
  """
  out = np.full(targets.shape[1], HALF)
  for c, (p, y) in enumerate(_known(probs, targets)):
    if y.any():
      values, positive = np.unique(p), np.sort(p[y])
      chosen = len(p) - np.searchsorted(np.sort(p), values)
      right = len(positive) - np.searchsorted(positive, values)
      out[c] = values[
        np.argmax(2 * right / (chosen + len(positive)))
      ]  # equal fractions are equal floats: division rounds correctly
  return out


# Metrics.


def _known(probs, targets):
  for p, y in zip(np.asarray(probs).T, np.asarray(targets).T):
    yield p[y >= 0], y[y >= 0] == 1


def average_precision(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """Average precision of each class (scikit-learn's: the sum of precision over the steps of recall), float64 [C]; NaN without a positive."""
  return np.array(
    [average_precision_score(y, p) if y.any() else np.nan for p, y in _known(probs, targets)]
  )


def of_decisions(on: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
  """precision, recall, f1, float64 [C] each, over the known targets; NaN where nothing is divided by nothing."""
  on, right = np.asarray(on) & (targets >= 0), on & (targets == 1)
  chosen, positive, right = on.sum(0), (targets == 1).sum(0), right.sum(0)
  with np.errstate(invalid='ignore'):
    return {
      'precision': right / chosen,
      'recall': right / positive,
      'f1': 2 * right / (chosen + positive),
    }


def evaluate(
  probs: np.ndarray,
  targets: np.ndarray,
  thresholds: np.ndarray,
  names: Sequence[str],
  on: np.ndarray | None = None,
) -> dict:
  """All metrics as plain numbers, None where they are undefined: S4's Tables 1 and 2 for one split.

  map_macro is the mean of the classes' average precision, map_micro that of all known answers as one ranking; `before` is at thresholds of .5, `after` at
  `thresholds`, or the decision `on`, bool [N, C], where there is more to it. f1_macro is the mean over the classes, f1_micro that of all answers together.
  """
  targets = np.asarray(targets)
  ap, known = average_precision(probs, targets), targets >= 0
  moments = {
    'before': decide(probs, np.full(len(names), HALF)),
    'after': decide(probs, thresholds) if on is None else on,
  }
  rows = {when: of_decisions(on, targets) for when, on in moments.items()}
  micro = average_precision(np.asarray(probs)[known][:, None], targets[known][:, None])
  out = {'n': len(targets), 'map_macro': _plain(ap), 'map_micro': _plain(micro)}
  for when, on in moments.items():
    out[when] = {
      'f1_macro': _plain(rows[when]['f1']),
      'f1_micro': _plain(of_decisions(on[known][:, None], targets[known][:, None])['f1']),
    }
  out['classes'] = {
    name: {
      'positives': int((targets[:, c] == 1).sum()),
      'ap': _plain(ap[c]),
      'threshold': float(thresholds[c]),
      **{when: {k: _plain(v[c]) for k, v in row.items()} for when, row in rows.items()},
    }
    for c, name in enumerate(names)
  }
  return out


def _plain(values):
  """The mean of what is defined, None of nothing."""
  values = np.atleast_1d(values)
  values = values[~np.isnan(values)]
  return float(values.mean()) if len(values) else None
