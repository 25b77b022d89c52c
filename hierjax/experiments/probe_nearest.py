"""Heads without training on features: nearest class means, and nearest neighbours, at every level.

Features are compared by the cosine around the mean of all training features, which takes away what
all images have in common (SimpleShot; Wang et al. 2019, arXiv:1911.04623).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hierjax import decide
from hierjax.decide.calibration import even_subset
from hierjax.decide.decisions import Rules
from hierjax.experiments.probe_grid import MAX_SCORES
from hierjax.taxonomy import Taxonomy

BLOCK = 256
# Divisor of cosines; the rules of the decisions have one more, fitted where that is possible.
TEMPERATURE = 0.05
# Logit of a class of which there is no image.
ABSENT = -40.0
# Share of the probabilities of neighbours that all classes divide, so that none is 0.
SMOOTHING = 1e-3

Probs = dict[str, np.ndarray]


class Bank(NamedTuple):
  """Training images as heads without training read them.

  Attributes:
    x: float32 [n * views, d], unit vectors around `center`.
    labels: int [n, L], -1 unknown.
    center: float32 [d].
    length: mean distance of the features from it.
    views: of an image, one after the other in x.
  """

  x: np.ndarray
  labels: np.ndarray
  center: np.ndarray
  length: float
  views: int

  @classmethod
  def make(cls, features: np.ndarray, labels: np.ndarray) -> 'Bank':
    """Build a bank of features float32 [n, views, d] and labels int [n, L]."""
    flat = features.reshape(-1, features.shape[-1])
    center = flat.mean(0)
    length = float(np.linalg.norm(flat - center, axis=1).mean())
    return cls(_unit(flat - center), labels, center, length, features.shape[1])

  @property
  def row_labels(self) -> np.ndarray:
    """The labels int [n * views, L] of the rows of `x`."""
    return np.repeat(self.labels, self.views, 0)


def _unit(x: np.ndarray) -> np.ndarray:
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _sums(bank: Bank, k: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
  """Sum the rows of each class of level k, [C, d], and count them, [C]."""
  y = bank.row_labels[:, k]
  sums = np.zeros((classes, bank.x.shape[1]), np.float32)
  np.add.at(sums, y[y >= 0], bank.x[y >= 0])
  return sums, np.bincount(y[y >= 0], minlength=classes)


def class_means(bank: Bank, taxonomy: Taxonomy) -> dict[str, dict[str, np.ndarray]]:
  """Make linear heads of the class means.

  The logit of a class is the cosine between its mean and the feature, over TEMPERATURE, but for the
  feature's distance from the center, instead of which the mean distance stands: this changes no
  order of the classes, and a linear head is one that predicts, exports and trains on as any other.

  Args:
    bank: of the training images.
    taxonomy: of the exclusive levels.

  Returns:
    {level: {'kernel' float32 [d, C], 'bias' float32 [C]}}.
  """
  heads = {}
  for k, level in enumerate(taxonomy.levels):
    sums, counts = _sums(bank, k, taxonomy.num_classes(level))
    kernel = _unit(sums).T / (bank.length * TEMPERATURE)
    bias = np.where(counts, -bank.center @ kernel, ABSENT)
    heads[level] = {'kernel': np.float32(kernel), 'bias': np.float32(bias)}
  return heads


def neighbours(
  bank: Bank, features: np.ndarray, taxonomy: Taxonomy, k: int, images: Sequence[int] | None = None
) -> Probs:
  """Compute the probabilities of classes by the k nearest training images, block by block.

  A neighbour votes for its class at each level where it has one with exp(cosine / TEMPERATURE)
  (Wu et al. 2018, arXiv:1805.01978, equation 7).

  Args:
    bank: the training images.
    features: float32 [n, d].
    taxonomy: of the exclusive levels.
    k: number of neighbours.
    images: [n], the training images that the features are of, which are no neighbours of
      themselves; None for others.

  Returns:
    {level: float64 [n, C]}.
  """
  labels = bank.row_labels
  x = _unit(features - bank.center)
  k = min(k, len(bank.x) - (0 if images is None else bank.views))
  parts = {level: [] for level in taxonomy.levels}
  for start in range(0, len(x), BLOCK):
    similar = x[start : start + BLOCK] @ bank.x.T
    rows = np.arange(len(similar))[:, None]
    if images is not None:
      first_view = np.asarray(images)[start : start + BLOCK, None] * bank.views
      similar[rows, first_view + np.arange(bank.views)] = -np.inf
    nearest = np.argpartition(similar, -k, 1)[:, -k:]
    votes = np.exp((similar[rows, nearest] - similar.max(1, keepdims=True)) / TEMPERATURE)
    for j, level in enumerate(taxonomy.levels):
      parts[level].append(_votes(votes, labels[nearest, j], taxonomy, j))
  return {level: np.concatenate(blocks) for level, blocks in parts.items()}


def _votes(votes, labels, taxonomy, k):
  """Turn votes [n, k] for labels [n, k] into probabilities [n, C] at level k."""
  classes = taxonomy.num_classes(taxonomy.levels[k])
  total = np.zeros((len(votes), classes))
  rows = np.arange(len(votes))[:, None]
  np.add.at(total, (rows, np.maximum(labels, 0)), votes * (labels >= 0))
  total += SMOOTHING * np.maximum(total.sum(1, keepdims=True), 1e-12) / classes
  return total / total.sum(1, keepdims=True)


def predict(
  bank: Bank, features: np.ndarray, taxonomy: Taxonomy, k: int, rules: Rules
) -> np.ndarray:
  """Predict the paths int32 [n, L] of images by their `neighbours`, block by block.

  Args:
    bank, taxonomy, k: as of `neighbours`.
    features: float32 [n, views, d]; the probabilities are the mean over the views.
    rules: of the joint decision.
  """
  pred = np.zeros((len(features), len(taxonomy.levels)), np.int32)
  for start in range(0, len(features), BLOCK):
    views = np.moveaxis(features[start : start + BLOCK], 1, 0)
    by_view = [neighbours(bank, x, taxonomy, k) for x in views]
    probs = {level: np.mean([p[level] for p in by_view], 0) for level in taxonomy.levels}
    decisions = decide.decide(probs, taxonomy, rules, ('joint',))
    pred[start : start + BLOCK] = decisions['exclusive']['joint'].pred
  return pred


def left_out(bank: Bank, taxonomy: Taxonomy, images: np.ndarray) -> Probs:
  """Compute probabilities of training images by the means of the other images.

  Args:
    bank: of the training images.
    taxonomy: of the exclusive levels.
    images: int [n], numbers in the bank.

  Returns:
    {level: float64 [n, C]}.
  """
  probs = {}
  for k, level in enumerate(taxonomy.levels):
    sums, counts = _sums(bank, k, taxonomy.num_classes(level))
    means = _unit(sums)
    logits = np.empty((len(images), len(sums)))
    for row, i in enumerate(images):
      views = bank.x[i * bank.views : (i + 1) * bank.views]
      logits[row] = np.where(counts, means @ views[0] / TEMPERATURE, ABSENT)
      y = bank.labels[i, k]
      if y >= 0:
        # the mean of its own class without it
        other = _unit(sums[y] - views.sum(0)) @ views[0] / TEMPERATURE
        logits[row, y] = other if counts[y] > bank.views else ABSENT
    p = np.exp(logits - logits.max(1, keepdims=True))
    probs[level] = p / p.sum(1, keepdims=True)
  return probs


def fit_rules(bank: Bank, taxonomy: Taxonomy, k: int | None) -> Rules:
  """Fit the rules of the decisions to training images that are left out one at a time.

  Only images count of whose finest class there is another one: with one image a class the rules are
  those before any fit.

  Args:
    bank: the training images.
    taxonomy: of the exclusive levels.
    k: number of neighbours; None for class means.
  """
  y = bank.labels[:, -1]
  counts = np.bincount(y[y >= 0], minlength=taxonomy.num_classes(taxonomy.levels[-1]))
  images = np.flatnonzero((bank.labels >= 0).all(1) & (counts[y] > 1))
  if not len(images):
    return decide.default_rules(taxonomy)
  size = sum(taxonomy.num_classes(level) for level in taxonomy.levels)
  images = even_subset(images, size, MAX_SCORES)
  if k is None:
    probs = left_out(bank, taxonomy, images)
  else:
    features = bank.x[images * bank.views] + bank.center
    probs = neighbours(bank, features, taxonomy, k, images)
  return decide.tune(probs, bank.labels[images], taxonomy)
