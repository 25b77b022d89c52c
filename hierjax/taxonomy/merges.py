"""Sums, maxima and the like over the finer classes of each class, for many images at once."""

from typing import NamedTuple

import numpy as np

# Finer classes of a class that `Merge` takes one after the other.
FEW = 8


class Merge(NamedTuple):
  """How the classes of a level are put together to those of a coarser one that it nests in.

  Coarser classes are in the order of their size, the largest first. Of few finer classes each, a
  loop over the first ones, the second ones and so on is several times as fast as `ufunc.reduceat`.

  Attributes:
    level: the finer level.
    columns: the first, second, ... of at most FEW finer classes of the coarser ones with so many.
    others: int, the further ones of the largest coarser classes, class by class.
    starts: int, where each of these begins in `others`.
    places: int [C], where each coarser class stands.
  """

  level: int
  columns: list[np.ndarray]
  others: np.ndarray
  starts: np.ndarray
  places: np.ndarray

  @classmethod
  def make(cls, level: int, parents: np.ndarray) -> 'Merge':
    """Plan it from the coarser class of each finer one, int [C]."""
    children = np.argsort(parents, kind='stable')  # the finer classes, those of a parent together
    sizes = np.bincount(parents)
    first = np.cumsum(sizes) - sizes  # where in `children` those of each parent begin
    by_size = np.argsort(-sizes, kind='stable')
    sizes = sizes[by_size]
    first = first[by_size]
    columns = []
    for i in range(min(sizes[0], FEW)):
      columns.append(children[first[sizes > i] + i])
    counts = sizes[sizes > FEW] - FEW  # of the largest parents: their children beyond FEW
    starts = np.cumsum(counts) - counts
    # the places of these in `children`, which for each parent are `first + FEW` and what follows
    offsets = np.repeat(first[: len(counts)] + FEW - starts, counts)
    others = children[np.arange(counts.sum()) + offsets]
    return cls(level, columns, others, starts, np.argsort(by_size))

  def reduce(self, values: np.ndarray, function: np.ufunc) -> np.ndarray:
    """Return values of the coarser classes, [N, C], of those of the finer ones."""
    rows = values.T  # [finer class, N]
    result = rows[self.columns[0]]
    parts = [rows[columns] for columns in self.columns[1:]]
    if len(self.starts):
      parts.append(function.reduceat(rows[self.others], self.starts))
    for part in parts:
      # A part is of the largest classes only, which come first.
      largest = result[: len(part)]
      function(largest, part, out=largest)
    return result[self.places].T
