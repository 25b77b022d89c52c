"""Every metric, once. Per-example values first (reports resample those), then their means; unknown labels (-1) count nowhere."""

import itertools
import warnings

import numpy as np

from hierjax.decide.paths import Decoded
from hierjax.taxonomy.table import Taxonomy

BINS = 15  # of the calibration error


def per_example(decoded: Decoded, labels, taxonomy: Taxonomy) -> dict[str, np.ndarray]:
  """of_predictions(), and what needs the ranking of the classes too: LEVEL.top3/top5, ahd5 (mean LCA height of the best 5 finest classes)."""
  labels = np.asarray(labels)
  out = of_predictions(decoded.pred, labels, taxonomy)
  for k, level in enumerate(taxonomy.levels):
    rank = _rank(decoded.scores[k], labels[:, k])
    for n in (3, 5):
      out[f'{level}.top{n}'] = _known(rank < n, labels[:, k] >= 0)
  best = np.argsort(-decoded.scores[-1], axis=-1, kind='stable')[:, :5]
  out['ahd5'] = _known(taxonomy.lca(best, labels[:, -1:]).mean(-1), labels[:, -1] >= 0)
  return out


def of_predictions(pred: np.ndarray, labels, taxonomy: Taxonomy) -> dict[str, np.ndarray]:
  """name -> float64 [N], NaN where the label that it needs is unknown; pred and labels int [N, level].

  LEVEL.top1, fpa (all levels right), hvr (the predicted classes are no path of the taxonomy; H-CAST's TICE), hvr_eq14 (S2's equation 14 to the
  letter: adjacent levels whose predicted classes do not occur together, over R, the number of classes of all levels but the coarsest),
  consistency.A-B (the predicted pair occurs in the taxonomy), severity (LCA height of a wrong finest class, NaN where right), ahd1 (LCA height of the
  finest class; Making Better Mistakes), hp/hr/hf1_macro (overlap of the two paths in one example).
  """
  labels, levels = np.asarray(labels), taxonomy.levels
  out = {
    f'{level}.top1': _known(pred[:, k] == labels[:, k], labels[:, k] >= 0)
    for k, level in enumerate(levels)
  }
  out['fpa'] = _known((pred == labels).all(-1), (labels >= 0).all(-1))
  out['hvr'] = (
    (taxonomy.paths[pred[:, -1]] != pred).any(-1).astype(float)
  )  # the finest class fixes the only valid path
  for i, a in enumerate(levels):
    for j in range(i + 1, len(levels)):
      out[f'consistency.{a}-{levels[j]}'] = taxonomy.relation(a, levels[j])[
        pred[:, i], pred[:, j]
      ].astype(float)
  violated = sum(
    (1 - out[f'consistency.{a}-{b}'] for a, b in itertools.pairwise(levels)), np.zeros(len(pred))
  )
  out['hvr_eq14'] = violated / max(
    sum(map(len, taxonomy.names[1:])), 1
  )  # a single level has no relations
  truth, leaf_known = labels[:, -1], labels[:, -1] >= 0
  height = taxonomy.lca(pred[:, -1], truth)
  out['severity'] = _known(height, leaf_known & (pred[:, -1] != truth))
  out['ahd1'] = _known(height, leaf_known)
  shared, predicted, true = _overlap(pred, labels, taxonomy)
  with np.errstate(invalid='ignore', divide='ignore'):
    out['hp_macro'], out['hr_macro'] = shared / predicted, shared / true
    out['hf1_macro'] = 2 * shared / (predicted + true)
  return out


def _known(values, where):
  return np.where(where, values, np.nan)


def evaluate(decoded: Decoded, labels, taxonomy: Taxonomy, heads=None) -> dict:
  """All metrics as plain floats, None where no example has the labels: what eval_SPLIT.json holds for one decoding.

  labels int [N, level], -1 unknown. heads: names of the levels that have one (all), marked per level. hp/hr/hf1 are micro averages
  over the known levels; a class that a branch which ended early carries down counts once.
  """
  labels = np.asarray(labels)
  values = per_example(decoded, labels, taxonomy)
  mean = {name: _mean(v) for name, v in values.items()}
  levels = {}
  for k, level in enumerate(taxonomy.levels):
    levels[level] = {top: mean[f'{level}.{top}'] for top in ('top1', 'top3', 'top5')}
    levels[level] |= {
      'ece': ece(decoded.prob[k], decoded.pred[:, k], labels[:, k]),
      'n': int((labels[:, k] >= 0).sum()),
      'classes': len(taxonomy.names[k]),
      'head': heads is None or level in heads,
    }
  out = {
    'n': len(labels),
    'levels': levels,
    'fpa': mean['fpa'],
    'hvr': mean['hvr'],
    'hvr_eq14': mean['hvr_eq14'],
  }
  out['consistency'] = {
    name.removeprefix('consistency.'): v
    for name, v in mean.items()
    if name.startswith('consistency.')
  }
  first, last = levels[taxonomy.levels[0]]['top1'], levels[taxonomy.levels[-1]]['top1']
  out['gap'] = None if first is None or last is None else first - last
  shared, predicted, true = (float(x.sum()) for x in _overlap(decoded.pred, labels, taxonomy))
  out['hp'] = shared / predicted if predicted else None
  out['hr'] = shared / true if true else None
  out['hf1'] = 2 * shared / (predicted + true) if predicted + true else None
  out |= {
    name: mean[name] for name in ('hp_macro', 'hr_macro', 'hf1_macro', 'severity', 'ahd1', 'ahd5')
  }
  wrong = values['severity'][~np.isnan(values['severity'])].astype(int)
  out['severity_histogram'] = {
    str(h): int((wrong == h).sum()) for h in range(1, len(taxonomy.levels) + 1)
  }
  tops = [
    (v['top1'], v['classes']) for v in levels.values() if v['top1'] is not None
  ]  # weighted by classes: H-CAST, after Liu 2022
  out['wap'] = sum(a * c for a, c in tops) / sum(c for _, c in tops) if tops else None
  return out


def ece(prob, pred, labels, bins: int = BINS) -> float | None:
  """Expected calibration error of the predicted classes: equal-width bins (lo, hi], weighted |accuracy - confidence| (Guo 2017)."""
  rows = np.flatnonzero(labels >= 0)
  if not len(rows):
    return None
  _, confidence, right = reliability(prob[rows, pred[rows]], pred[rows] == labels[rows], bins)
  return float(np.abs(right - confidence).sum() / len(rows))


def reliability(confidence, right, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Per bin of confidence: number of examples, sum of their confidence, sum of `right`; each [bins], for [N] probabilities of the predicted class."""
  place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  return (
    np.bincount(place, minlength=bins),
    np.bincount(place, confidence, bins),
    np.bincount(place, right, bins),
  )


def bootstrap(
  values: dict[str, np.ndarray], n: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, dict | None]:
  """name -> {'mean', 'low', 'high'}: percentile interval of the mean over n resamplings of the examples; None where all are NaN.

  values: per_example()'s arrays; the same resampling serves every name.
  """
  names = list(values)
  table = np.stack([np.asarray(values[name], np.float64) for name in names], -1)
  count = len(table)
  there = ~np.isnan(table)
  both = np.concatenate([np.where(there, table, 0), there], -1)
  rng = np.random.default_rng(seed)
  sums = (
    [np.bincount(rng.integers(count, size=count), minlength=count) @ both for _ in range(n)]
    if count
    else []
  )
  out = {}
  for i, name in enumerate(names):
    if not there[:, i].any():
      out[name] = None
      continue
    total, known = np.array(sums)[:, i], np.array(sums)[:, len(names) + i]
    low, high = np.quantile(total[known > 0] / known[known > 0], [0.5 - level / 2, 0.5 + level / 2])
    out[name] = {'mean': _mean(table[:, i]), 'low': float(low), 'high': float(high)}
  return out


def difference(
  a: np.ndarray, b: np.ndarray, n: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
  """Paired bootstrap: the 95% interval of mean(b) - mean(a) for values [N] of two runs on the same N examples; a NaN counts in neither mean.

  Examples with equal values are interchangeable, so a draw is a multinomial over the distinct pairs: the cost does not grow with N.
  """
  table = np.stack([np.nan_to_num(a), ~np.isnan(a), np.nan_to_num(b), ~np.isnan(b)], 1)
  rows, times = np.unique(table, axis=0, return_counts=True)
  sums = np.random.default_rng(seed).multinomial(len(table), times / len(table), size=n) @ rows
  sums = sums[
    (sums[:, 1] > 0) & (sums[:, 3] > 0)
  ]  # a resample without a single mistake has no severity
  return (
    tuple(np.quantile(sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1], (0.025, 0.975)).tolist())
    if len(sums)
    else None
  )


def _mean(values):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', RuntimeWarning)  # all unknown
    value = float(np.nanmean(values)) if len(values) else np.nan
  return None if np.isnan(value) else value


def _rank(scores, labels):
  """int [N]: classes ahead of the label's, ties in the order of the ids as argmax has them; meaningless where the label is unknown."""
  own = np.take_along_axis(scores, np.maximum(labels, 0)[:, None], 1)
  ahead = (scores == own) & (np.arange(scores.shape[1]) < labels[:, None])
  return ((scores > own) | ahead).sum(-1)


def _overlap(pred, labels, taxonomy):
  """int [N] each: classes shared by the two paths, in the predicted one, in the true one; known levels only, carried classes once."""
  shared = np.zeros(len(labels), int)
  predicted, true = shared.copy(), shared.copy()
  for k, level in enumerate(taxonomy.levels):
    own = ~taxonomy.carried(level)
    known = labels[:, k] >= 0
    mine, its = known & own[pred[:, k]], known & own[labels[:, k]]
    predicted += mine
    true += its
    shared += mine & its & (pred[:, k] == labels[:, k])
  return shared, predicted, true
