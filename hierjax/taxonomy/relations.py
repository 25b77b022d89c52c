"""How the classes of a path table relate to each other: nesting, pairs, distances, sums."""

import functools
import itertools

import numpy as np

from hierjax.taxonomy.levels import Levels
from hierjax.taxonomy.merges import Merge


def group(table: np.ndarray) -> np.ndarray:
  """Number the distinct rows of a table.

  Args:
    table: int [N, K] of classes, at least 0.

  Returns:
    int [N], below N; equal for equal rows.
  """
  keys = np.zeros(len(table), np.int64)
  for column in table.T:
    column_size = int(column.max(initial=0)) + 1
    keys = np.unique(keys * column_size + column, return_inverse=True)[1]
  return keys


def common_values(groups: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
  """Return the value that all members of each group share.

  Args:
    groups: int [N], the group of each member, below `count`.
    values: int32 [N, ...], at least 0, or -1.
    count: the number of groups, G.

  Returns:
    int32 [G, ...]; -1 for a group whose members differ, and for one without members.
  """
  high = np.full((count, *values.shape[1:]), -1, np.int32)
  low = np.full_like(high, np.iinfo(np.int32).max)
  np.minimum.at(low, groups, values)
  np.maximum.at(high, groups, values)
  return np.where(low == high, low, -1)


class Relations(Levels):
  """How the classes of a path table relate to each other.

  Attributes:
    paths: int32 [leaf, level], the class of each leaf at each level.
  """

  paths: np.ndarray

  @functools.cached_property
  def nested(self) -> dict[tuple[int, int], np.ndarray]:
    """{(finer, coarser level): int [C], the coarser class of each finer one} of those that nest."""
    nested = {}
    for coarser, finer in itertools.combinations(range(len(self.levels)), 2):
      parents = self.parents(self.levels[finer], self.levels[coarser])
      if (parents >= 0).all():
        nested[finer, coarser] = parents
    return nested

  @functools.cached_property
  def _merges(self) -> list[Merge]:
    """How each level but the finest is made of the next one that nests in it."""
    merges = []
    finest = len(self.levels) - 1
    for k in range(finest):
      # There is one: every level nests in the finest.
      finer = next(j for j in range(k + 1, finest + 1) if (j, k) in self.nested)
      merges.append(Merge.make(finer, self.nested[finer, k]))
    return merges

  def merge(self, values: np.ndarray, function: np.ufunc) -> list[np.ndarray]:
    """Put values of leaves together to those of the classes of every level.

    Args:
      values: [N, leaf]; fast where the images of a leaf stand side by side (order 'F').
      function: of two values, such as `np.add`.

    Returns:
      Per level [N, C].
    """
    levels = [values] * len(self.levels)
    # from fine to coarse, as each level is put together from a finer one
    for k, merge in reversed([*enumerate(self._merges)]):
      levels[k] = merge.reduce(levels[merge.level], function)
    return levels

  def pairs(self, a: str, b: str) -> np.ndarray:
    """Return the classes of two levels that occur together in some leaf.

    Args:
      a: a level.
      b: another.

    Returns:
      int64 [P, 2], in ascending order; P is at most the number of leaves.
    """
    keys = self._pair_keys(a, b)
    classes_a, classes_b = np.divmod(keys, self.num_classes(b))
    return np.stack([classes_a, classes_b], -1)

  def occur_together(self, a: str, b: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return whether some leaf has the class x of level `a` and y of `b`: bool [N] of int [N]."""
    keys = self._pair_keys(a, b)
    wanted_keys = x.astype(np.int64) * self.num_classes(b) + y  # [N], as `_pair_keys` numbers them
    places = np.searchsorted(keys, wanted_keys)
    places = np.minimum(places, len(keys) - 1)  # a key above all others would be past the end
    return keys[places] == wanted_keys

  def _pair_keys(self, a, b):
    """Return a number for each pair of classes in some leaf, int64 [P], ascending: x * C_b + y."""
    classes_a = self.paths[:, self.index(a)].astype(np.int64)
    classes_b = self.paths[:, self.index(b)]
    return np.unique(classes_a * self.num_classes(b) + classes_b)

  def related(self, a: str, b: str) -> list[np.ndarray]:
    """Return for each class of level `a` those of level `b` that occur with it, ascending."""
    pairs = self.pairs(a, b)
    starts = np.searchsorted(pairs[:, 0], np.arange(1, self.num_classes(a)))
    return np.split(pairs[:, 1], starts)

  def parents(self, child: str, parent: str) -> np.ndarray:
    """Return the class of one level above each class of another.

    Args:
      child: the finer level.
      parent: the coarser one.

    Returns:
      int32 [C_child], -1 for a class that occurs with more than one.
    """
    i = self.index(child)
    j = self.index(parent)
    return common_values(self.paths[:, i], self.paths[:, j], len(self.names[i]))

  def nests(self, child: str, parent: str) -> bool:
    """Return whether every class of level `child` has one class of level `parent`."""
    return bool((self.parents(child, parent) >= 0).all())

  def lca(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the number of levels at which leaves differ.

    In a tree that is the height of their lowest common ancestor.

    Args:
      a: int, leaves.
      b: int, leaves, of a shape that broadcasts with that of a.

    Returns:
      int of the common shape.
    """
    return (self.paths[a] != self.paths[b]).sum(-1)

  def height(self) -> int:
    """Return the largest `lca` of two leaves.

    Ordered pairs that share the classes of a set of levels at least are the squares of the sizes of
    its groups of leaves. Summed over all sets with (z - 1)^(its size), by inclusion and exclusion,
    they give the polynomial whose coefficient of z^m counts the pairs that share m levels.
    """
    count = len(self.levels)
    squares = {}  # {levels: sum of the squared sizes of the groups of leaves with equal classes}
    pairs = np.polynomial.Polynomial([0.0])
    for is_in_set in itertools.product((False, True), repeat=count):
      # what finer levels of the set determine divides nothing further
      determined = {coarser for finer, coarser in self.nested if is_in_set[finer]}
      columns = tuple(k for k in range(count) if is_in_set[k] and k not in determined)
      if columns not in squares:
        sizes = np.bincount(group(self.paths[:, columns])).astype(float)
        squares[columns] = np.square(sizes).sum()
      pairs += squares[columns] * np.polynomial.Polynomial([-1, 1]) ** sum(is_in_set)
    # Coefficients are whole numbers apart from rounding errors.
    least_shared = int(np.flatnonzero(pairs.coef > 0.5)[0])
    return count - least_shared
