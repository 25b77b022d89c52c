"""How little an image looks like any known class, by its logits or its features.

- softmax: minus the log of the head's maximum softmax probability (arXiv:1610.02136)
- energy: the free energy of the logits (arXiv:2010.03759)
- mahalanobis: squared Mahalanobis distance of the features to the nearest class mean, one
  covariance for all classes (arXiv:1807.03888)
- cosine: minus the highest cosine of features and class mean, whitened by that covariance
- cosine_softmax: minus the log of the maximum softmax probability over these cosines / .05
- likelihood: minus the log likelihood ratio of the known classes against a new one, on whitened
  features of one length: class means and examples are normal with one covariance each (PLDA,
  Ioffe, ECCV 2006), in the space that the means span
- entropy: H / (p + H) of the head's probabilities of a node's children, p their sum, H the entropy
  of their shares: the chance of a new one with nothing to tune (ProHOC, CVPR 2025)
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from hierjax.core.errors import UserError

# Fitted to the features, so that a class can be left out of them.
FEATURE_SCORES = ('mahalanobis', 'cosine', 'cosine_softmax', 'likelihood')
SCORES = ('softmax', 'energy', 'entropy', *FEATURE_SCORES)
TEMPERATURE = 0.05


@dataclasses.dataclass(frozen=True)
class ClassModel:
  """Class means and a shared covariance of features, and what further scores are fitted.

  The squared Mahalanobis distance of x to class c is |(x - mean_c) white|².

  Attributes:
    means: float64 [C, d], NaN for a class without an example.
    white: float64 [d, d]; white whiteᵀ is the inverse covariance.
    centre: float64 [d], the mean of all examples.
    axes: float64 [d, r], the directions in which the means of whitened features of one length
      differ, scaled to variance 1 in a class; like the next three None where no score needs it.
    places: float64 [C, r], the class means there, NaN as above.
    spread: float64 [r], the variance of the means of classes, known or new.
    counts: int [C], the examples of each class.
  """

  means: np.ndarray
  white: np.ndarray
  centre: np.ndarray
  axes: np.ndarray | None = None
  places: np.ndarray | None = None
  spread: np.ndarray | None = None
  counts: np.ndarray | None = None

  @functools.cached_property
  def _white_means(self):
    return self._whiten(self.means)

  def _whiten(self, x):
    """Turn features [N, d] such that they have variance 1 in a class in each direction."""
    return (np.asarray(x, np.float64) - self.centre) @ self.white

  def distances(self, x: np.ndarray) -> np.ndarray:
    """Compute squared Mahalanobis distances to the class means.

    Args:
      x: float [N, d], features.

    Returns:
      float64 [N, C], NaN for a class without an example.
    """
    return _squared_distances(self._whiten(x), self._white_means)

  def cosines(self, x: np.ndarray) -> np.ndarray:
    """Compute the cosines of whitened features and class means.

    Args:
      x: float [N, d], features.

    Returns:
      float64 [N, C], NaN for a class without an example.
    """
    a, b = self._whiten(x), self._white_means
    norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    return a @ b.T / np.maximum(norms, 1e-12)

  def normalized(self, x: np.ndarray) -> np.ndarray:
    """Compute whitened features of length √d.

    Args:
      x: float [N, d], features.
    """
    a = self._whiten(x)
    lengths = np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12)
    return a * (np.sqrt(a.shape[1]) / lengths)

  def with_spread(self, x: np.ndarray, y: np.ndarray) -> 'ClassModel':
    """Return it with the spread of the class means, by features x [N, d] of classes y [N]."""
    z = self.normalized(x)
    means, counts = class_means(z, y, len(self.means))
    present = np.flatnonzero(counts)
    centre = means[present].mean(0)
    # the directions in which the means differ, one fewer than classes
    vectors = np.linalg.svd(means[present] - centre, full_matrices=False)[2]
    axes = vectors[: len(present) - 1].T
    deviation = (z - means[y]) @ axes
    within = (deviation**2).sum(0) / max(len(y) - len(present), 1)
    axes = axes / np.sqrt(np.maximum(within, 1e-12))
    places = (means - centre) @ axes
    between = (places[present] ** 2).sum(0) / max(len(present) - 1, 1)
    # the means of few examples differ by chance, too
    by_chance = np.mean(1 / counts[present])
    spread = np.maximum(between - by_chance, 0)
    return dataclasses.replace(
      self, axes=axes, places=places + centre @ axes, spread=spread, counts=counts
    )

  def likelihoods(self, x: np.ndarray) -> np.ndarray:
    """Compute the log likelihood of features in each class over that in a new one.

    Args:
      x: float [N, d], features.

    Returns:
      float64 [N, C], NaN for a class without an example.
    """
    a = self.normalized(x) @ self.axes
    dimensions = a.shape[1]
    # the mean of a class of n examples is known to a variance of 1 / n
    variance = 1 + 1 / np.maximum(self.counts, 1)
    of_class = _squared_distances(a, self.places) / variance + dimensions * np.log(variance)
    middle = np.nanmean(self.places, 0)
    of_new = (a - middle) ** 2 / (1 + self.spread) + np.log1p(self.spread)
    return (of_new.sum(1)[:, None] - of_class) / 2

  def fit_of_classes(self, name: str, x: np.ndarray) -> np.ndarray:
    """Compute how well each class fits.

    Args:
      name: one of FEATURE_SCORES.
      x: float [N, d], features.

    Returns:
      float64 [N, C], the higher the better; NaN for a class without an example.
    """
    if name == 'likelihood':
      return self.likelihoods(x)
    return -self.distances(x) if name == 'mahalanobis' else self.cosines(x)


def fit_classes(
  x: np.ndarray, y: np.ndarray, num_classes: int, scores: Sequence[str] = ()
) -> ClassModel:
  """Fit class means and the covariance within classes, shrunk as Ledoit and Wolf (2004) do.

  Args:
    x: float [N, d], features.
    y: int [N], classes; examples with -1 do not count.
    num_classes: C.
    scores: for which the model is needed.

  Raises:
    UserError: no example has a class, or a feature is not finite.
  """
  from sklearn.covariance import ledoit_wolf

  is_known = y >= 0
  if not is_known.any():
    raise UserError(f'novelty: none of the {len(y)} training images has a label of each level')
  x, y = np.asarray(x, np.float64)[is_known], y[is_known]
  if not np.isfinite(x).all():
    raise UserError('novelty: a feature of the training images is not finite')
  means, _ = class_means(x, y, num_classes)
  covariance, _ = ledoit_wolf(x - means[y], assume_centered=True)
  values, vectors = np.linalg.eigh(covariance)
  # Classes of one example each have no spread.
  floor = max(values[-1], 1e-12) * 1e-6
  model = ClassModel(means, vectors / np.sqrt(np.maximum(values, floor)), x.mean(0))
  return model.with_spread(x, y) if 'likelihood' in scores else model


def _squared_distances(a, b):
  """Compute the squared distances of rows a [N, d] to rows b [C, d], float64 [N, C]."""
  squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
  # below 0 by rounding
  return np.maximum(squares, 0)


def class_means(x: np.ndarray, y: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
  """Return the means of x [N, d] by class y [N] of `num_classes`, NaN without any; and counts."""
  counts = np.bincount(y, minlength=num_classes)
  sums = np.zeros((num_classes, x.shape[1]))
  np.add.at(sums, y, x)
  with np.errstate(invalid='ignore'):
    means = sums / counts[:, None]
  return np.where(counts[:, None] > 0, means, np.nan), counts


def novelty(name: str, fit: np.ndarray, allowed: np.ndarray) -> np.ndarray:
  """Compute how new examples are from how well each class fits them.

  Args:
    name: one of SCORES.
    fit: float [N, C]: log probabilities, logits, minus squared distances or cosines; the higher the
      better, NaN for a class without an example.
    allowed: bool [N, C], the classes that count.

  Returns:
    float64 [N], inf where no class counts.
  """
  fit = np.where(allowed & ~np.isnan(fit), fit, -np.inf)
  best = fit.max(1)
  if name in ('energy', 'likelihood'):
    return -np.logaddexp.reduce(fit, axis=1)
  if name == 'cosine_softmax':
    is_finite = np.isfinite(best)
    relative = (fit - np.where(is_finite, best, 0)[:, None]) / TEMPERATURE
    return np.where(is_finite, np.logaddexp.reduce(relative, axis=1), np.inf)
  if name == 'entropy':
    from scipy.special import entr  # slow to import

    p = np.exp(fit)
    total = np.maximum(p.sum(1), 1e-300)
    entropy = entr(p / total[:, None]).sum(1)
    return np.where(np.isfinite(best), entropy / (total + entropy), np.inf)
  return -best


def auroc(inliers: np.ndarray, novel: np.ndarray) -> float:
  """Compute the chance that a novel image scores higher than a known one, ties half.

  Args:
    inliers: float [n], scores of images of known classes.
    novel: float [m], scores of images of novel ones.

  Returns:
    The area under the ROC, NaN where one of them is empty.
  """
  from sklearn.metrics import roc_auc_score

  if not len(inliers) or not len(novel):
    return float('nan')
  scores = np.nan_to_num(np.concatenate([inliers, novel]), posinf=np.finfo(float).max)
  return float(roc_auc_score(np.repeat([0, 1], [len(inliers), len(novel)]), scores))
