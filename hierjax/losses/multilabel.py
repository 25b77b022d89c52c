"""Levels of which several classes, or none, may hold at once: sigmoid losses, the max constraint along the taxonomy, thresholds and their metrics.

Targets are 1 (the image has the class), 0 (it has not) or -1 (unknown: counts nowhere), [B, C]. Where several levels are such, C runs over the classes of
all of them, coarse to fine, and Taxonomy.edges says which of these classes lie below which. Losses are functions of jax arrays, float32 [B]; what finds and
judges thresholds works on the host, on the probabilities of a whole split.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import average_precision_score

HALF = (
  0.5  # the threshold of a class of which validation has no image, and of all classes before tuning
)

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
