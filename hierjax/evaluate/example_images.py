"""Which images the report shows: examples of right and wrong heads, and of the worst confusions.

The choice is a pure function of the predictions, so that the report finds the rows again whose
images `evaluate.explain` has written.
"""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hierjax.core import archives, files
from hierjax.core.errors import UserError
from hierjax.taxonomy import Taxonomy

# Patterns of right and wrong heads that are shown, and images of each.
PATTERNS, IMAGES_PER_PATTERN = 16, 4
# Pairs of classes; of each, mistaken images and images of the class they were taken for.
CONFUSIONS, MISTAKES, LOOKALIKES = 12, 3, 2


class Pattern(NamedTuple):
  """Images of which the same heads are right.

  Attributes:
    is_right: one bool a head.
    rows: int [n], all such images.
    examples: int [m], up to IMAGES_PER_PATTERN of them, drawn at random.
  """

  is_right: tuple[bool, ...]
  rows: np.ndarray
  examples: np.ndarray


class Confusion(NamedTuple):
  """A finest class that was taken for another.

  Attributes:
    true: id of the true class.
    pred: id of the predicted class.
    height: LCA height of the two.
    count: number of images of `true` that were taken for `pred`.
    total: number of images of `true`.
    mistakes: int [m], up to MISTAKES of those images, the most confident first.
    lookalikes: int [m], up to LOOKALIKES images of `pred`, correctly recognised ones first.
  """

  true: int
  pred: int
  height: int
  count: int
  total: int
  mistakes: np.ndarray
  lookalikes: np.ndarray


def patterns(is_right: np.ndarray, is_labelled: np.ndarray) -> list[Pattern]:
  """Group the images by which heads are right, the most frequent pattern first.

  Args:
    is_right: bool [N, K], whether each head is right.
    is_labelled: bool [N], whether all labels are known; other images are left out.

  Returns:
    Up to PATTERNS groups.
  """
  labelled = np.flatnonzero(is_labelled)
  distinct, group = np.unique(is_right[labelled], axis=0, return_inverse=True)
  out = []
  for k, pattern in enumerate(distinct):
    rows = labelled[group.ravel() == k]
    sample = np.random.default_rng(0).permutation(len(rows))[:IMAGES_PER_PATTERN]
    out.append(Pattern(tuple(pattern.tolist()), rows, rows[np.sort(sample)]))
  return sorted(out, key=lambda p: (-len(p.rows), p.is_right))[:PATTERNS]


def confusions(
  pred: np.ndarray, prob: np.ndarray, labels: np.ndarray, taxonomy: Taxonomy
) -> list[Confusion]:
  """List the pairs of finest classes that cost most, by count times LCA height.

  Args:
    pred: int [N], predicted finest class.
    prob: float [N], its probability.
    labels: int [N], -1 for unknown.
    taxonomy: of the exclusive levels.

  Returns:
    Up to CONFUSIONS pairs, the most costly first.
  """
  wrong = np.flatnonzero((labels >= 0) & (pred != labels))
  if not len(wrong):
    return []
  wrong_pairs = np.stack([labels[wrong], pred[wrong]], 1)
  pairs, group, counts = np.unique(wrong_pairs, axis=0, return_inverse=True, return_counts=True)
  heights = taxonomy.lca(pairs[:, 0], pairs[:, 1])
  # the last key counts first
  most_costly = np.lexsort((pairs[:, 1], pairs[:, 0], -counts, -counts * heights))
  out = []
  for k in most_costly[:CONFUSIONS]:
    true, predicted = pairs[k].tolist()
    rows = wrong[group.ravel() == k]
    mistakes = rows[np.argsort(-prob[rows], kind='stable')]
    of_predicted = np.flatnonzero(labels == predicted)
    lookalikes = of_predicted[np.argsort(pred[of_predicted] != predicted, kind='stable')]
    sizes = int(heights[k]), int(counts[k]), int((labels == true).sum())
    out.append(Confusion(true, predicted, *sizes, mistakes[:MISTAKES], lookalikes[:LOOKALIKES]))
  return out


def head_columns(predictions: Mapping[str, np.ndarray]) -> list[int]:
  """List the columns of the taxonomy that have a head, of the arrays of predictions_SPLIT.npz."""
  numbers = [key.removeprefix('top_') for key in predictions if key.startswith('top_')]
  return sorted(int(number) for number in numbers if number.isdigit())


def heads_right(predictions: Mapping[str, np.ndarray], columns: Sequence[int]) -> np.ndarray:
  """Return bool [N, K]: which of the heads of K columns rank the true class first."""
  labels = predictions['labels']
  return np.stack([predictions[f'top_{k}'][:, 0] == labels[:, k] for k in columns], 1)


def shown_rows(predictions: Mapping[str, np.ndarray], taxonomy: Taxonomy) -> np.ndarray:
  """List the rows of the predictions whose images the report shows.

  Args:
    predictions: arrays of predictions_SPLIT.npz.
    taxonomy: of the exclusive levels.

  Returns:
    int [m], sorted.
  """
  columns = head_columns(predictions)
  labels = predictions['labels']
  is_labelled = (labels[:, columns] >= 0).all(1)
  groups = [p.examples for p in patterns(heads_right(predictions, columns), is_labelled)]
  pred, prob = (predictions[key][:, -1] for key in ('pred_joint', 'prob_joint'))
  for confusion in confusions(pred, prob, labels[:, -1], taxonomy):
    groups += [confusion.mistakes, confusion.lookalikes]
  return np.unique(np.concatenate(groups)) if groups else np.zeros(0, int)


def digest(workdir: pathlib.Path, split: str) -> str:
  """Return the sha256 of predictions_SPLIT.npz; explain_SPLIT.npz names what it was made for."""
  path = files.of_split(workdir, 'predictions', split, 'npz')
  with files.open_regular(path) as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def is_current(workdir: pathlib.Path, split: str) -> bool:
  """Whether explain_SPLIT.npz can be read and belongs to the present predictions_SPLIT.npz."""
  try:
    arrays = archives.read(files.of_split(workdir, 'explain', split, 'npz'))
    return str(arrays['predictions']) == digest(workdir, split)
  except (OSError, UserError, KeyError):
    return False
