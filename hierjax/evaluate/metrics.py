"""Metrics of decisions on exclusive levels: values per example, which reports resample, and means.

Unknown labels (-1) count nowhere. `core.metrics` declares what the metrics are called and mean.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from hierjax.core.errors import UserError
from hierjax.core.metrics import registered_by_users
from hierjax.decide.paths import PathDecision
from hierjax.evaluate import bootstrap
from hierjax.taxonomy import Taxonomy

BINS = 15
RESAMPLINGS = 200  # of the examples, for the interval of a calibration error


def per_example(
  decoded: PathDecision, labels: np.ndarray, taxonomy: Taxonomy
) -> dict[str, np.ndarray]:
  """Compute every metric per example, those of the ranking of the classes too.

  Args:
    decoded: the decision.
    labels: int [N, L], -1 for unknown.
    taxonomy: of the exclusive levels.

  Returns:
    `of_predictions`, LEVEL.top3, LEVEL.top5 and ahd5, the mean LCA height of the five finest
    classes ranked highest: {name: float64 [N]}.
  """
  labels = np.asarray(labels)
  out = of_predictions(decoded.pred, labels, taxonomy)
  for k, level in enumerate(taxonomy.levels):
    is_label = decoded.top[k] == labels[:, k, None]
    for n in (3, 5):
      out[f'{level}.top{n}'] = _where(labels[:, k] >= 0, is_label[:, :n].any(1))
  heights = taxonomy.lca(decoded.top[-1][:, :5], labels[:, -1:])
  out['ahd5'] = _where(labels[:, -1] >= 0, heights.mean(-1))
  return out


def of_predictions(
  pred: np.ndarray, labels: np.ndarray, taxonomy: Taxonomy
) -> dict[str, np.ndarray]:
  """Compute the metrics per example that need the predicted classes only.

  - LEVEL.top1; fpa: all levels are right.
  - hvr: the predicted classes are no path of the taxonomy (H-CAST's TICE). consistency.A-B: the
    predicted pair occurs in it. hvr_eq14: S2's equation 14 to the letter, the adjacent levels whose
    predicted classes do not occur together, over the number of classes below the coarsest level.
  - ahd1: LCA height of the predicted and the true finest class (Making Better Mistakes,
    arXiv:1912.09393); severity: the same of wrong ones only.
  - hp_macro, hr_macro, hf1_macro: precision, recall and F1 of the predicted path's classes.
  - those that users registered.

  Args:
    pred: int [N, L], predicted classes.
    labels: int [N, L], -1 for unknown.
    taxonomy: of the exclusive levels.

  Returns:
    {name: float64 [N]}, NaN where a label that the metric needs is unknown.
  """
  labels = np.asarray(labels)
  levels = taxonomy.levels
  is_known = labels >= 0
  is_right = pred == labels
  out = {f'{level}.top1': _where(is_known[:, k], is_right[:, k]) for k, level in enumerate(levels)}
  out['fpa'] = _where(is_known.all(-1), is_right.all(-1))
  # the finest class fixes the only valid path
  out['hvr'] = (taxonomy.paths[pred[:, -1]] != pred).any(-1).astype(float)
  for i, j in itertools.combinations(range(len(levels)), 2):
    a, b = levels[i], levels[j]
    occurs = taxonomy.occur_together(a, b, pred[:, i], pred[:, j])
    out[f'consistency.{a}-{b}'] = occurs.astype(float)
  violated = np.zeros(len(pred))
  for a, b in itertools.pairwise(levels):
    violated += 1 - out[f'consistency.{a}-{b}']
  # a single level has no relations
  out['hvr_eq14'] = violated / max(sum(map(len, taxonomy.names[1:])), 1)
  height = taxonomy.lca(pred[:, -1], labels[:, -1])
  out['severity'] = _where(is_known[:, -1] & ~is_right[:, -1], height)
  out['ahd1'] = _where(is_known[:, -1], height)
  shared, predicted, true = _overlap(pred, labels, taxonomy)
  with np.errstate(invalid='ignore', divide='ignore'):
    out['hp_macro'] = shared / predicted
    out['hr_macro'] = shared / true
    out['hf1_macro'] = 2 * shared / (predicted + true)
  return out | _of_users(pred, labels, taxonomy)


def _of_users(pred, labels, taxonomy):
  """Compute the metrics that `register_metric` added."""
  out = {}
  for metric in registered_by_users():
    is_level = metric.scope == 'level'
    values = np.asarray(metric.function(pred, labels, taxonomy), np.float64)
    shape = labels.shape if is_level else labels.shape[:1]
    if values.shape != shape:
      raise UserError(
        f'metric {metric.name!r}: its function returned shape {values.shape} instead of {shape}'
      )
    if not is_level:
      out[metric.name] = values
      continue
    for k, level in enumerate(taxonomy.levels):
      out[f'{level}.{metric.name}'] = values[:, k]
  return out


def evaluate(
  decoded: PathDecision, labels: np.ndarray, taxonomy: Taxonomy, heads: Sequence[str] | None = None
) -> dict:
  """Compute all metrics of one decision as plain numbers, as eval_SPLIT.json holds them.

  hp, hr and hf1 are averages over all classes of all paths (micro); a class that a branch which
  ended early carries down counts once. wap is the mean top-1 of the levels weighted by their number
  of classes (H-CAST, arXiv:2406.11608).

  Args:
    decoded: the decision.
    labels: int [N, L], -1 for unknown.
    taxonomy: of the exclusive levels.
    heads: names of the levels that have a head; None for all.

  Returns:
    {metric: value}, with one such dict for each level below 'levels'; None where no example has the
    labels.
  """
  labels = np.asarray(labels)
  values = per_example(decoded, labels, taxonomy)
  mean = {name: bootstrap.nanmean(v) for name, v in values.items()}
  of_level = [m.name for m in registered_by_users() if m.scope == 'level']
  of_path = [m.name for m in registered_by_users() if m.scope == 'path']
  levels = {}
  for k, level in enumerate(taxonomy.levels):
    levels[level] = {name: mean[f'{level}.{name}'] for name in ('top1', 'top3', 'top5', *of_level)}
    levels[level] |= {
      'ece': ece(decoded.confidence[:, k], decoded.pred[:, k], labels[:, k]),
      'n': int((labels[:, k] >= 0).sum()),
      'classes': len(taxonomy.names[k]),
      'head': heads is None or level in heads,
    }
  out = {'n': len(labels), 'levels': levels}
  out |= {name: mean[name] for name in ('fpa', 'hvr', 'hvr_eq14', *of_path)}
  pairs = [name for name in mean if name.startswith('consistency.')]
  out['consistency'] = {name.removeprefix('consistency.'): mean[name] for name in pairs}
  coarsest = levels[taxonomy.levels[0]]['top1']
  finest = levels[taxonomy.levels[-1]]['top1']
  out['gap'] = None if coarsest is None or finest is None else coarsest - finest
  shared, predicted, true = (float(x.sum()) for x in _overlap(decoded.pred, labels, taxonomy))
  out['hp'] = shared / predicted if predicted else None
  out['hr'] = shared / true if true else None
  out['hf1'] = 2 * shared / (predicted + true) if predicted + true else None
  for name in ('hp_macro', 'hr_macro', 'hf1_macro', 'severity', 'ahd1', 'ahd5'):
    out[name] = mean[name]
  heights = range(1, len(taxonomy.levels) + 1)
  out['severity_histogram'] = {str(h): int((values['severity'] == h).sum()) for h in heights}
  tops = [(v['top1'], v['classes']) for v in levels.values() if v['top1'] is not None]
  out['wap'] = sum(a * c for a, c in tops) / sum(c for _, c in tops) if tops else None
  return out


def ece(confidence: np.ndarray, pred: np.ndarray, labels: np.ndarray) -> float | None:
  """Compute the expected calibration error of the predicted classes (Guo et al. 2017).

  Args:
    confidence: float [N], the probability of each predicted class.
    pred: int [N].
    labels: int [N], -1 for unknown.

  Returns:
    The mean of |accuracy - confidence| over BINS bins (low, high] of equal width, weighted by their
    number of examples; None where no label is known.
  """
  rows = np.flatnonzero(labels >= 0)
  if not len(rows):
    return None
  return _calibration_error(confidence[rows], pred[rows] == labels[rows])


def _calibration_error(confidence, is_right):
  """Compute the mean of |accuracy - confidence| over the bins, by their number of examples."""
  _, confidences, right = reliability(confidence, is_right)
  return float(np.abs(right - confidences).sum() / len(is_right))


def ece_interval(
  confidence: np.ndarray, pred: np.ndarray, labels: np.ndarray
) -> dict[str, float] | None:
  """Compute the expected calibration error with its 95% interval over resampled examples.

  The error of a resampling is larger on average than that of the examples, as chance adds to the
  differences in the bins; so the interval lies rather too high than too low.

  Args:
    confidence: float [N], the probability of each predicted class.
    pred: int [N].
    labels: int [N], -1 for unknown.

  Returns:
    {'mean', 'low', 'high'}, None where no label is known.
  """
  rows = np.flatnonzero(labels >= 0)
  if not len(rows):
    return None
  confidence = confidence[rows]
  is_right = pred[rows] == labels[rows]
  rng = np.random.default_rng(0)
  errors = np.zeros(RESAMPLINGS)
  for i in range(RESAMPLINGS):
    sample = rng.integers(len(rows), size=len(rows))
    errors[i] = _calibration_error(confidence[sample], is_right[sample])
  low, high = np.quantile(errors, bootstrap.ENDS)
  return {'mean': _calibration_error(confidence, is_right), 'low': float(low), 'high': float(high)}


def reliability(
  confidence: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Sum examples per bin of confidence.

  Args:
    confidence: float [N], probability of the predicted class.
    right: bool [N].

  Returns:
    Number of examples, sum of their confidence, number of right ones; each [BINS].
  """
  place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
  count = np.bincount(place, minlength=BINS)
  confidences = np.bincount(place, confidence, BINS)
  number_right = np.bincount(place, right, BINS)
  return count, confidences, number_right


def key_of(name: str) -> str:
  """Return what the values per example of a metric are called: LEVEL.top1 for top1/LEVEL."""
  metric, _, level = name.partition('/')
  return f'{level}.{metric}' if level else metric


def _where(mask, values):
  """Return the values where the mask holds, else NaN, float64 [N]."""
  return np.where(mask, values, np.nan)


def _overlap(pred, labels, taxonomy):
  """Count the classes that both paths share, of the predicted one, of the true one, int [N] each.

  Known levels only; the class of a branch that ended early counts once.
  """
  shared = np.zeros(len(labels), int)
  predicted = np.zeros(len(labels), int)
  true = np.zeros(len(labels), int)
  for k, level in enumerate(taxonomy.levels):
    is_counted = ~taxonomy.carried(level)
    is_known = labels[:, k] >= 0
    in_pred = is_known & is_counted[pred[:, k]]
    in_true = is_known & is_counted[labels[:, k]]
    predicted += in_pred
    true += in_true
    shared += in_pred & in_true & (pred[:, k] == labels[:, k])
  return shared, predicted, true
