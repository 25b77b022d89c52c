"""Metrics of tag levels: average precision, and F1 before and after thresholds are tuned (S4)."""

from collections.abc import Sequence

import numpy as np

from hierjax.decide.lineages import blocks
from hierjax.decide.thresholds import BLOCK_SIZE, HALF, TagDecision, labelled_columns
from hierjax.taxonomy import TagTaxonomy


def _average_precision(prob, labels):
  """Scikit-learn's average precision of each class, float64 [C], NaN without a positive example."""
  from sklearn.metrics import average_precision_score

  precision = np.full(np.shape(labels)[1], np.nan)
  for c, (p, y) in enumerate(labelled_columns(prob, labels)):
    if y.any():
      precision[c] = average_precision_score(y, p)
  return precision


def _micro_precision(prob, labels):
  """The average precision of all known labels as one ranking.

  Recall only rises at the probabilities of positive labels, between which the others are counted.
  """
  parts = [np.zeros(0)] + [p[labels[rows] == 1] for rows, p in blocks(prob, BLOCK_SIZE)]
  cuts, positive = np.unique(np.concatenate(parts), return_counts=True)
  if not len(cuts):
    return np.nan
  # how many known labels are ranked between a cut and the next; the first are below all
  count = np.zeros(len(cuts) + 1, int)
  for rows, p in blocks(prob, BLOCK_SIZE):
    place = np.searchsorted(cuts, p[labels[rows] >= 0], side='right')
    count += np.bincount(place, minlength=len(count))
  right, predicted = (x[::-1].cumsum()[::-1] for x in (positive, count[1:]))
  return float((positive * (right / predicted)).sum() / positive.sum())


def _counts(decide, prob, labels):
  """Known labels that are decided right, predicted, and positive, int [3, C].

  `decide` takes rows and their probabilities and returns bool [n, C].
  """
  total = np.zeros((3, labels.shape[1]), int)
  for rows, p in blocks(prob, BLOCK_SIZE):
    y = labels[rows]
    pred = decide(rows, p) & (y >= 0)
    total += [(pred & (y == 1)).sum(0), pred.sum(0), (y == 1).sum(0)]
  return total


def _precision_recall_f1(right, predicted, positive):
  """Of counts int [C]: {'precision', 'recall', 'f1': float64 [C]}, NaN where the divisor is 0."""
  with np.errstate(invalid='ignore'):
    f1 = 2 * right / (predicted + positive)
    return {'precision': right / predicted, 'recall': right / positive, 'f1': f1}


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
  decisions = {
    'before': lambda rows, p: p >= HALF,
    'after': lambda rows, p: p >= thresholds if pred is None else pred[rows],
  }
  precision = _average_precision(prob, labels)
  result = {
    'n': len(labels),
    'map_macro': _mean(precision),
    'map_micro': _mean(_micro_precision(prob, labels)),
    'map_classes': int((~np.isnan(precision)).sum()),
  }
  per_class, total = {}, {}
  for moment, decide in decisions.items():
    total[moment] = _counts(decide, prob, labels)
    per_class[moment] = _precision_recall_f1(*total[moment])
    f1 = per_class[moment]['f1']
    micro = _precision_recall_f1(*total[moment].sum(1))
    result[moment] = {'f1_macro': _mean(f1), 'f1_micro': _mean(micro['f1'])}
    result[moment]['f1_classes'] = int((~np.isnan(f1)).sum())
  result['classes'] = {}
  for c, name in enumerate(names):
    result['classes'][name] = {
      'positives': int(total['after'][2, c]),
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
  levels = {}
  for level, columns in taxonomy.columns.items():
    levels[level] = evaluate_level(
      decision.prob[:, columns],
      labels[:, columns],
      decision.thresholds[columns],
      taxonomy.names[taxonomy.index(level)],
      decision.pred[:, columns],
    )
  wrong = {name: [np.zeros(0, bool)] for name in ('single', 'decided')}
  for rows, prob in blocks(decision.prob, BLOCK_SIZE):
    candidates = {'single': prob >= decision.thresholds, 'decided': decision.pred[rows]}
    for name, pred in candidates.items():
      is_impossible = (pred & ~decision.is_possible[rows]).any(1)
      wrong[name].append((taxonomy.contradicts(pred)[:, 0] >= 0) | is_impossible)
  hvr = {name: float(np.concatenate(parts).mean()) for name, parts in wrong.items()}
  return {'multi': levels, 'hvr': hvr}


def _mean(values: np.ndarray) -> float | None:
  """Average the values that are defined, None without any."""
  values = np.atleast_1d(values)
  values = values[~np.isnan(values)]
  return float(values.mean()) if len(values) else None
