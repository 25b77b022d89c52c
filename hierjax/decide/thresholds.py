"""Decisions on tag levels: classes whose probability reaches a threshold, and their ancestors."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hierjax.decide.lineages import blocks
from hierjax.taxonomy import TagTaxonomy

# Elements of a temporary array [rows, classes].
BLOCK_SIZE = 4_000_000
# The threshold of a class of which validation has no image, and of all classes before tuning.
HALF = 0.5


class TagDecision(NamedTuple):
  """The classes that each example has.

  Attributes:
    pred: bool [N, M].
    prob: float [N, M], their probabilities.
    thresholds: float64 [M].
    is_possible: bool [N, M], which classes may occur beside the exclusive path.
  """

  pred: np.ndarray
  prob: np.ndarray
  thresholds: np.ndarray
  is_possible: np.ndarray


def decide_tags(
  prob: np.ndarray,
  thresholds: np.ndarray,
  taxonomy: TagTaxonomy,
  is_possible: np.ndarray | bool = True,
) -> TagDecision:
  """Decide for the classes whose probability reaches their threshold, and all above these.

  So no decision contradicts the taxonomy, whatever the thresholds. (Lowering a class's threshold to
  the lowest below it would do that too, with one rare class's threshold for all above it.)

  Args:
    prob: float [N, M].
    thresholds: float [M].
    taxonomy: the table of the tag levels.
    is_possible: bool [N, M], which classes may occur beside the exclusive path (`Mixed.fits`); a
      class that may has only ancestors that may. True for all.
  """
  prob, (above, below) = np.asarray(prob), taxonomy.edges
  possible = np.broadcast_to(is_possible, prob.shape)
  pred, starts = np.empty(prob.shape, bool), np.searchsorted(above, np.arange(prob.shape[1]))
  for rows, p in blocks(prob, BLOCK_SIZE):
    reaches = (p >= thresholds) & possible[rows]
    pred[rows] = np.logical_or.reduceat(reaches[:, below], starts, axis=1)
  return TagDecision(pred, prob, thresholds, possible)


def tune_thresholds(prob: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Choose for each class the threshold with the highest F1 on its precision-recall curve.

  This is S4, section 2.3. The threshold is one of the class's probabilities, the lowest of those
  with equal F1, as the argmax over scikit-learn's curve has it.

  Args:
    prob: float [N, C] on validation examples.
    labels: int [N, C], 0 or 1; -1 (unknown) does not count.

  Returns:
    float64 [C]; .5 for a class without a positive example.
  """
  thresholds = np.full(labels.shape[1], HALF)
  for c, (p, y) in enumerate(labelled_columns(prob, labels)):
    if not y.any():
      continue
    values, positives = np.unique(p), np.sort(p[y])
    predicted = len(p) - np.searchsorted(np.sort(p), values)
    right = len(positives) - np.searchsorted(positives, values)
    # Division rounds correctly: equal fractions are equal floats.
    f1 = 2 * right / (predicted + len(positives))
    thresholds[c] = values[np.argmax(f1)]
  return thresholds


def labelled_columns(
  prob: np.ndarray, labels: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """For each class: its probabilities float [n] and labels bool [n], where these are known."""
  for p, y in zip(np.asarray(prob).T, np.asarray(labels).T):
    yield p[y >= 0], y[y >= 0] == 1
