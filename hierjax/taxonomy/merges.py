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
    order, sizes = np.argsort(parents, kind='stable'), np.bincount(parents)
    line = np.argsort(-sizes, kind='stable')
    first, sizes = (np.cumsum(sizes) - sizes)[line], sizes[line]
    columns = [order[first[sizes > i] + i] for i in range(min(sizes[0], FEW))]
    counts = sizes[sizes > FEW] - FEW
    starts = np.cumsum(counts) - counts
    others = np.arange(counts.sum()) + np.repeat(first[: len(counts)] + FEW - starts, counts)
    return cls(level, columns, order[others], starts, np.argsort(line))

  def reduce(self, values: np.ndarray, function: np.ufunc) -> np.ndarray:
    """Return values of the coarser classes, [N, C], of those of the finer ones."""
    x = values.T
    result = x[self.columns[0]]
    parts = [x[columns] for columns in self.columns[1:]]
    if len(self.starts):
      parts.append(function.reduceat(x[self.others], self.starts))
    for part in parts:
      function(result[: len(part)], part, out=result[: len(part)])
    return result[self.places].T
