"""Bootstrap confidence intervals from values per example."""

import warnings
from collections.abc import Mapping

import numpy as np


def nanmean(values: np.ndarray) -> float | None:
  """Return the mean of the values that are not NaN; None where there are none.

  Args:
    values: float [N].
  """
  with warnings.catch_warnings():
    # NumPy warns where all values are NaN
    warnings.simplefilter('ignore', RuntimeWarning)
    mean = float(np.nanmean(values)) if len(values) else np.nan
  return None if np.isnan(mean) else mean


def intervals(
  values: Mapping[str, np.ndarray], n: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, float] | None]:
  """Compute percentile intervals of means over resamplings of the examples.

  Args:
    values: {name: float [N]}, NaN where an example does not count; the same resampling serves all.
    n: number of resamplings.
    seed: of the resamplings.
    level: share of the resamplings that lies within the interval.

  Returns:
    {name: {'mean', 'low', 'high'}}, None where all values are NaN.
  """
  names = list(values)
  table = np.stack([np.asarray(values[name], np.float64) for name in names], -1)
  count = len(table)
  is_defined = ~np.isnan(table)
  both = np.concatenate([np.where(is_defined, table, 0), is_defined], -1)
  rng = np.random.default_rng(seed)
  draws = n if count else 0
  sums = np.zeros((draws, both.shape[1]))
  for i in range(draws):
    sums[i] = np.bincount(rng.integers(count, size=count), minlength=count) @ both
  out = {}
  for i, name in enumerate(names):
    if not is_defined[:, i].any():
      out[name] = None
      continue
    total, number = sums[:, i], sums[:, len(names) + i]
    means = total[number > 0] / number[number > 0]
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    out[name] = {'mean': nanmean(table[:, i]), 'low': float(low), 'high': float(high)}
  return out


def paired_difference(
  a: np.ndarray, b: np.ndarray, n: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
  """Compute the 95% interval of mean(b) - mean(a) by a paired bootstrap over the examples.

  Examples with equal values are interchangeable, so a draw is a multinomial over the distinct
  pairs, and the cost does not grow with N.

  Args:
    a: float [N], of one run; a NaN does not count in its mean.
    b: float [N], of another run on the same examples.
    n: number of resamplings.
    seed: of the resamplings.

  Returns:
    (low, high); None where no resampling has values of both runs.
  """
  table = np.stack([np.nan_to_num(a), ~np.isnan(a), np.nan_to_num(b), ~np.isnan(b)], 1)
  rows, times = np.unique(table, axis=0, return_counts=True)
  sums = np.random.default_rng(seed).multinomial(len(table), times / len(table), size=n) @ rows
  # a resampling without a single mistake has no severity
  sums = sums[(sums[:, 1] > 0) & (sums[:, 3] > 0)]
  if not len(sums):
    return None
  differences = sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1]
  return tuple(np.quantile(differences, (0.025, 0.975)).tolist())
