"""Metrics of tag levels: average precision, and F1 before and after thresholds are tuned (S4)."""

from collections.abc import Sequence

import numpy as np

from hierjax.decide.thresholds import HALF, TagDecision, labelled_columns
from hierjax.taxonomy import TagTaxonomy


def average_precision(prob: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Compute scikit-learn's average precision: the sum of precision over the steps of recall.

  Args:
    prob: float [N, C].
    labels: int [N, C], -1 unknown.

  Returns:
    float64 [C], NaN for a class without a positive example.
  """
  from sklearn.metrics import average_precision_score

  precision = np.full(np.shape(labels)[1], np.nan)
  for c, (p, y) in enumerate(labelled_columns(prob, labels)):
    if y.any():
      precision[c] = average_precision_score(y, p)
  return precision


def precision_recall_f1(pred: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
  """Compute the precision, recall and F1 of each class over its known labels.

  Args:
    pred: bool [N, C].
    labels: int [N, C], -1 unknown.

  Returns:
    {'precision', 'recall', 'f1': float64 [C]}, NaN where the divisor is 0.
  """
  pred = np.asarray(pred) & (labels >= 0)
  right = (pred & (labels == 1)).sum(0)
  predicted, positive = pred.sum(0), (labels == 1).sum(0)
  with np.errstate(invalid='ignore'):
    return {
      'precision': right / predicted,
      'recall': right / positive,
      'f1': 2 * right / (predicted + positive),
    }


def evaluate_level(
  prob: np.ndarray,
  labels: np.ndarray,
  thresholds: np.ndarray,
  names: Sequence[str],
  pred: np.ndarray | None = None,
) -> dict:
  """Compute all metrics of one level as plain numbers: S4's Tables 1 and 2 for one split.

  Args:
    prob: float [N, C].
    labels: int [N, C], -1 unknown.
    thresholds: float [C], tuned on validation.
    names: of the classes.
    pred: bool [N, C], the decision, where more than the thresholds went into it.

  Returns:
    'map_macro', the mean of the classes' average precision, and 'map_micro', that of all known
    labels as one ranking; 'before' (at thresholds of .5) and 'after' (at `thresholds`, or `pred`),
    each with 'f1_macro', the mean over the classes, and 'f1_micro', that of all labels together;
    'classes' {name: {...}}. None where a metric is undefined. A class without an image has no
    average precision, and one that is not predicted either no F1: 'map_classes' and 'f1_classes'
    are the numbers of classes that the means are over.
  """
  prob, labels = np.asarray(prob), np.asarray(labels)
  decisions = {'before': prob >= HALF, 'after': prob >= thresholds if pred is None else pred}
  per_class = {moment: precision_recall_f1(d, labels) for moment, d in decisions.items()}
  precision = average_precision(prob, labels)
  # all known labels as those of one class, [n, 1]
  is_known = labels >= 0
  known_labels = labels[is_known][:, None]
  micro = average_precision(prob[is_known][:, None], known_labels)
  result = {'n': len(labels), 'map_macro': _mean(precision), 'map_micro': _mean(micro)}
  result['map_classes'] = int((~np.isnan(precision)).sum())
  for moment, decision in decisions.items():
    micro = precision_recall_f1(decision[is_known][:, None], known_labels)
    f1 = per_class[moment]['f1']
    result[moment] = {'f1_macro': _mean(f1), 'f1_micro': _mean(micro['f1'])}
    result[moment]['f1_classes'] = int((~np.isnan(f1)).sum())
  result['classes'] = {}
  for c, name in enumerate(names):
    result['classes'][name] = {
      'positives': int((labels[:, c] == 1).sum()),
      'ap': _mean(precision[c]),
      'threshold': float(thresholds[c]),
    }
    for moment, values in per_class.items():
      result['classes'][name][moment] = {metric: _mean(v[c]) for metric, v in values.items()}
  return result


def evaluate(decision: TagDecision, labels: np.ndarray, taxonomy: TagTaxonomy) -> dict:
  """Evaluate a decision on all tag levels.

  Args:
    decision: of N examples.
    labels: int [N, M], -1 unknown.
    taxonomy: the table of the tag levels.

  Returns:
    {'multi': {level: metrics}, 'hvr': {'single', 'decided'}}. hvr is the share of examples whose
    classes contradict the taxonomy or the exclusive path beside them: 'single' of the classes that
    reach their thresholds, each for itself, 'decided' of the decision.
  """
  levels = {
    level: evaluate_level(
      decision.prob[:, columns],
      labels[:, columns],
      decision.thresholds[columns],
      taxonomy.names[taxonomy.index(level)],
      decision.pred[:, columns],
    )
    for level, columns in taxonomy.columns.items()
  }
  candidates = {'single': decision.prob >= decision.thresholds, 'decided': decision.pred}
  violations = {}
  for name, pred in candidates.items():
    is_impossible = (pred & ~np.asarray(decision.is_possible)).any(1)
    is_wrong = (taxonomy.contradicts(pred)[:, 0] >= 0) | is_impossible
    violations[name] = float(is_wrong.mean())
  return {'multi': levels, 'hvr': violations}


def _mean(values: np.ndarray) -> float | None:
  """Average the values that are defined, None without any."""
  values = np.atleast_1d(values)
  values = values[~np.isnan(values)]
  return float(values.mean()) if len(values) else None
