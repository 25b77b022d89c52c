"""Whether new images look like those of calibration: if not, no guarantee holds for them.

Two tests, both exact for samples that are drawn alike, whatever the features or the model are:

- of the features: how well a classifier tells the two samples apart (classifier two-sample test,
  Lopez-Paz and Oquab 2017, arXiv:1610.06545). It is a cross-fitted least-squares classifier, the
  limit of a strongly penalised logistic regression, whose scores are linear in the labels, so that
  it is refitted for every permutation of them;
- of the shares of the predicted classes of each level: the chi-square statistic of homogeneity,
  against tables with the same margins.

The p-values together are corrected for their number (Holm 1979).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Images of each sample that the classifier sees, at most.
MOST = 500
FOLDS, PENALTY = 5, 1.0
ROUNDS = 999
# The chance that images which are drawn alike are said not to be.
LEVEL = 0.01
# With fewer images nothing is said.
LEAST = 30


class Sample(NamedTuple):
  """Features [n, d] of some of a sample's images, and a level's `counts` [C] of predictions."""

  features: np.ndarray
  counts: Sequence[np.ndarray]


class Drift(NamedTuple):
  """How a sample differs from another.

  Attributes:
    images: in the new sample.
    auroc: of the classifier that tells the samples apart, on images it is not fitted to.
    feature_p: the p-value of that.
    share_p: float [level], the p-values of the class shares.
    is_alike: whether no p-value, corrected for their number, is below LEVEL.
  """

  images: int
  auroc: float
  feature_p: float
  share_p: np.ndarray
  is_alike: bool


def sample(
  features: np.ndarray, pred: np.ndarray, sizes: Sequence[int], before: Sample | None = None
) -> Sample:
  """Return what is kept of N images, together with those of another sample before.

  Args:
    features: float [N, d].
    pred: int [N, level], predicted paths.
    sizes: the number of classes of each level.
    before: the other sample.
  """
  counts = [np.bincount(column, minlength=c) for column, c in zip(pred.T, sizes)]
  if before is None:
    return Sample(_subsample(features, MOST, len(features)), counts)
  number = int(before.counts[0].sum())
  total = number + len(features)
  # every image has the same chance to be kept
  share = np.random.default_rng(number).hypergeometric(len(features), number, min(MOST, total))
  parts = [
    _subsample(before.features, min(MOST, total) - share, number),
    _subsample(features, share, total),
  ]
  merged = [a + b for a, b in zip(before.counts, counts)]
  return Sample(np.concatenate(parts), merged)


def _subsample(features, number, seed):
  """Draw a number of rows at random; all where there are no more."""
  if number >= len(features):
    return np.asarray(features, np.float32)
  rows = np.random.default_rng(seed).choice(len(features), number, replace=False)
  return np.asarray(features[np.sort(rows)], np.float32)


def compare(reference: Sample, new: Sample) -> Drift | None:
  """Test whether two samples are drawn alike.

  Args:
    reference: images of calibration.
    new: others; the labels of neither are needed.

  Returns:
    The tests; None for fewer than LEAST images in a sample.
  """
  images = int(new.counts[0].sum())
  if min(images, int(reference.counts[0].sum())) < LEAST:
    return None
  auroc, feature_p = two_sample(reference.features, new.features)
  share_p = np.array([shares(a, b) for a, b in zip(reference.counts, new.counts)])
  adjusted = holm(np.concatenate([[feature_p], share_p]))
  return Drift(images, auroc, feature_p, share_p, bool(adjusted.min() >= LEVEL))


def two_sample(
  a: np.ndarray, b: np.ndarray, rounds: int = ROUNDS, seed: int = 0
) -> tuple[float, float]:
  """Test whether two samples of features have one distribution.

  Args:
    a: float [n, d].
    b: float [m, d].
    rounds: permutations.
    seed: of them.

  Returns:
    The AUROC of the classifier on images it is not fitted to, and the p-value.
  """
  rng = np.random.default_rng(seed)
  a = _subsample(a, MOST, seed)
  b = _subsample(b, MOST, seed)
  x = np.concatenate([a, b]).astype(np.float64)
  x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-12)
  kernel = x @ x.T / x.shape[1]
  smoother = _smoother(kernel, rng.permutation(len(x)) % FOLDS)
  labels = np.repeat([0.0, 1.0], [len(a), len(b)])
  # the true labels, then permutations of them
  columns = np.stack([labels, *(rng.permutation(labels) for _ in range(rounds))], 1)
  ranks = (smoother @ columns).argsort(0, kind='stable').argsort(0) + 1
  # the area under the ROC by the sum of the ranks of b (Mann and Whitney)
  rank_sums = (ranks * columns).sum(0)
  areas = (rank_sums - len(b) * (len(b) + 1) / 2) / (len(a) * len(b))
  return float(areas[0]), float((areas >= areas[0]).mean())


def _smoother(kernel, fold):
  """Compute the matrix [n, n] that turns labels into scores, of each fold fitted to the others."""
  smoother = np.zeros(kernel.shape)
  for part in range(FOLDS):
    rows = np.flatnonzero(fold == part)
    others = np.flatnonzero(fold != part)
    inner = kernel[np.ix_(others, others)] + PENALTY * np.eye(len(others))
    weights = np.linalg.solve(inner, kernel[np.ix_(others, rows)]).T
    smoother[np.ix_(rows, others)] = weights - weights.mean(1, keepdims=True)
  return smoother


def shares(a: np.ndarray, b: np.ndarray, rounds: int = ROUNDS, seed: int = 0) -> float:
  """Return the p-value of equal shares of classes in two samples.

  Args:
    a: int [C], the images of each class in one sample.
    b: int [C], in the other.
    rounds: tables that are drawn.
    seed: of them.
  """
  is_present = a + b > 0
  total = (a + b)[is_present]
  expected = total * (b.sum() / total.sum())
  rng = np.random.default_rng(seed)

  def statistic(table):
    return float(((table - expected) ** 2 / expected).sum().round(9))

  observed = statistic(b[is_present])
  as_large = 1
  # one table at a time: all together would be many times the classes
  for _ in range(rounds):
    table = rng.multivariate_hypergeometric(total, int(b.sum()), method='marginals')
    as_large += statistic(table) >= observed
  return as_large / (rounds + 1)


def holm(p: np.ndarray) -> np.ndarray:
  """Correct p-values [n] for their number such that the chance of any false alarm is bounded."""
  order = np.argsort(p, kind='stable')
  # the smallest times n, the next times n - 1, ..., none less than those before it
  factors = len(p) - np.arange(len(p))
  steps = np.maximum.accumulate(p[order] * factors)
  adjusted = np.empty(len(p))
  adjusted[order] = np.minimum(steps, 1)
  return adjusted


def describe(drift: Drift, levels: Sequence[str]) -> str:
  """Put the tests into words, with the names of the levels."""
  tests = f'{drift.images} images, a classifier tells them apart at AUROC {drift.auroc:.2f}'
  tests += f' (p = {drift.feature_p:.2g}); class shares: '
  tests += ', '.join(f'{name} p = {p:.2g}' for name, p in zip(levels, drift.share_p))
  if drift.is_alike:
    return f'the images look like those of calibration ({tests})'
  return (
    f'warning: the images do not look like those of calibration ({tests}): what is guaranteed for '
    'answers and novelty does not hold for them'
  )
