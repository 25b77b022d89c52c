"""Confidence intervals from values per example: of means, and of the difference of two methods."""

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# How far the accuracy of a method deviates from seed to seed, as long as too few are there to tell.
# Measured: in the 16 rows of BUILD_NOTES.md with three seeds and full-path accuracies ("S1's Table
# V, small", "S3"), the sample deviation is .3 to 2.3 points, .95 in root mean square, and at most
# this in 15 of them.
SEED_DEVIATION = 0.016
# Quantiles between which 95% lie, as the floats that 1 - .95 gives.
ENDS = (0.5 - 0.95 / 2, 0.5 + 0.95 / 2)
DRAWS = 2000  # of a paired bootstrap
MEASURING_SEEDS = 3  # of each method, from which on the deviation is measured


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
  table = np.stack([np.asarray(x, np.float64) for x in values.values()], -1)  # [N, name]
  count = len(table)
  is_defined = ~np.isnan(table)
  # a mean is the sum of the values over the number of those that count
  both = np.concatenate([np.where(is_defined, table, 0), is_defined], -1)
  rng = np.random.default_rng(seed)
  sums = np.zeros((n if count else 0, both.shape[1]))
  for i in range(len(sums)):
    sample = rng.integers(count, size=count)
    sums[i] = np.bincount(sample, minlength=count) @ both
  totals, numbers = np.split(sums, 2, axis=1)
  out = {}
  for i, name in enumerate(values):
    if not is_defined[:, i].any():
      out[name] = None
      continue
    is_any = numbers[:, i] > 0
    means = totals[is_any, i] / numbers[is_any, i]
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    out[name] = {'mean': nanmean(table[:, i]), 'low': float(low), 'high': float(high)}
  return out


def wilson(right: np.ndarray, n: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
  """Compute Wilson's interval of shares (JASA 22, 1927), which holds for few images, too.

  Args:
    right: int [C], successes.
    n: int [C], trials.
    z: quantile of the normal distribution; 1.96 gives 95%.

  Returns:
    (low, high), float [C]; NaN where there are no trials.
  """
  with np.errstate(invalid='ignore', divide='ignore'):
    p = right / n
    spread = z * z / n
    middle = p + spread / 2
    half = np.sqrt(p * (1 - p) * spread + spread**2 / 4)
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)


class Difference(NamedTuple):
  """The mean of one method minus that of another, with 95% intervals.

  Attributes:
    mean: over the seeds of both.
    low: lower end of the interval over images and seeds; None where one seed cannot give it.
    high: its upper end.
    images: (low, high) of the interval over the images alone, for just these runs.
    seeds: number of runs of each method.
    is_assumed: whether the deviation between seeds is SEED_DEVIATION, not measured.
  """

  mean: float
  low: float | None
  high: float | None
  images: tuple[float, float]
  seeds: int
  is_assumed: bool

  @property
  def is_clear(self) -> bool:
    """Whether there is an interval over images and seeds, and it leaves zero out."""
    return self.low is not None and not self.low <= 0 <= self.high


def difference(
  ours: Sequence[np.ndarray],
  baseline: Sequence[np.ndarray],
  is_share: bool = True,
  same_weights: bool = False,
) -> Difference | None:
  """Compare two methods by runs of several seeds on the same images.

  The images' part of the interval is a paired bootstrap of the mean over the seeds. Seeds are a
  second sample, crossed with it: their part is t * sqrt(s_a^2 / n + s_b^2 / n) with the deviations
  over the n seeds of each method and Welch's degrees of freedom, n - 1 to 2 n - 2. Each end of the
  interval lies away from the mean by the root of the sum of both parts squared, so that few degrees
  of freedom count for the seeds only. The variation of an image's result from seed to seed is in
  both parts, which makes the interval rather too wide than too narrow.

  With one seed s is unknown and with two it is hardly known (t is then 4 to 13). Shares have
  SEED_DEVIATION in its place, unless two seeds deviate more; other metrics of one seed have no
  interval.
  Where both methods evaluate the same weights, the luck of a seed is in both, so the deviation is
  that of the differences seed by seed, and of one seed there is none.

  Args:
    ours: values per example [N], one array a seed; NaN where an example does not count.
    baseline: the same of the other method, as many arrays.
    is_share: whether the metric is a share of the images.
    same_weights: whether run k of one method has the weights of run k of the other.

  Returns:
    ours - baseline; None where no resampling has values of every run.
  """
  from scipy.special import stdtrit  # slow to import

  interval = paired_difference(np.stack(baseline), np.stack(ours))
  if not interval:
    return None
  n = len(ours)
  # [method, seed]
  means = np.array([[nanmean(values) for values in runs] for runs in (ours, baseline)])
  mean = float(means[0].mean() - means[1].mean())
  if same_weights:
    means = means[:1] - means[1:]
  # of the mean over the seeds
  if n > 1:
    variances = means.var(1, ddof=1) / n
  else:
    variances = np.full(len(means), 0.0 if same_weights else np.nan)
  is_contradicted = variances.mean() > SEED_DEVIATION**2 / n
  is_assumed = is_share and n < MEASURING_SEEDS and not same_weights and not is_contradicted
  if is_assumed:
    variances = np.full(2, SEED_DEVIATION**2 / n)
  if np.isnan(variances).any():
    return Difference(mean, None, None, interval, n, False)
  freedom = np.inf
  if n > 1 and variances.any() and not is_assumed:
    freedom = (n - 1) * variances.sum() ** 2 / (variances**2).sum()
  of_seeds = stdtrit(freedom, 0.975) * np.sqrt(variances.sum())
  below, above = (float(np.hypot(end - mean, of_seeds)) for end in interval)
  return Difference(mean, mean - below, mean + above, interval, n, is_assumed)


def paired_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float] | None:
  """Compute the 95% interval of mean(b) - mean(a) by a paired bootstrap over the examples.

  Examples with equal values are interchangeable, so a draw is a multinomial over the distinct
  rows, and the cost does not grow with N. It is of these runs: how seeds vary is not in it.

  Args:
    a: float [N], or [runs, N], whose means are averaged; a NaN does not count in its mean.
    b: the same of other runs on the same examples.

  Returns:
    (low, high); None where no resampling has values of every run.
  """
  a, b = np.atleast_2d(a), np.atleast_2d(b)
  runs = np.concatenate([a, b])
  # a row an example: of each run its value, 0 where it does not count, and whether it counts
  columns = np.stack([np.nan_to_num(runs), ~np.isnan(runs)], 1)
  table = columns.reshape(2 * len(runs), -1).T
  rows, times = np.unique(table, axis=0, return_counts=True)
  rng = np.random.default_rng(0)
  draws = rng.multinomial(len(table), times / len(table), size=DRAWS)
  sums = draws @ rows
  totals, numbers = sums[:, ::2], sums[:, 1::2]
  # a resampling without a single mistake has no severity
  is_defined = (numbers > 0).all(1)
  if not is_defined.any():
    return None
  means = totals[is_defined] / numbers[is_defined]
  differences = means[:, len(a) :].mean(1) - means[:, : len(a)].mean(1)
  return tuple(np.quantile(differences, (0.025, 0.975)).tolist())
