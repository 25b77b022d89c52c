"""Levels of tags: an example has any number of their classes.

A row of tag labels holds a column for each class of all these levels, coarse to fine: 1 where the
example has it, 0 where not, -1 where that is unknown.
"""

import functools

import numpy as np

from hierjax.taxonomy.table import Taxonomy


class TagTaxonomy(Taxonomy):
  """The path table of tag levels."""

  kind = 'tags'

  @property
  def width(self) -> int:
    """The number of columns in a row of labels, M."""
    return sum(map(len, self.names))

  @functools.cached_property
  def columns(self) -> dict[str, slice]:
    """{level: the place of its classes in a row of M}."""
    ends = np.cumsum([0, *map(len, self.names)]).tolist()
    return {level: slice(a, b) for level, a, b in zip(self.levels, ends, ends[1:])}

  def split(self, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return {level: [..., C]} for values of all classes side by side, [..., M]."""
    return {level: rows[..., columns] for level, columns in self.columns.items()}

  @functools.cached_property
  def edges(self) -> tuple[np.ndarray, np.ndarray]:
    """(above, below), int32 [E] each, sorted: class `below` lies below class `above`, or is it.

    Classes are columns of a row of M. A class lies below another if all its leaves have that one
    too; so it has one class above it at each coarser level that it nests in, more than one in all
    where these are facets (the make and the type of a model), and none where it comes with several.
    """
    first = np.cumsum([0, *map(len, self.names)])  # the column at which each level begins
    edges = []
    for i, upper in enumerate(self.levels):
      classes = np.arange(first[i], first[i + 1])
      edges.append(np.stack([classes, classes]))
      for j in range(i + 1, len(self.levels)):
        parent = self.parents(self.levels[j], upper)
        lower = np.flatnonzero(parent >= 0)
        edges.append(np.stack([first[i] + parent[lower], first[j] + lower]))
    above, below = np.concatenate(edges, 1).astype(np.int32)
    order = np.lexsort((below, above))
    return above[order], below[order]

  @functools.cached_property
  def below(self) -> list[np.ndarray]:
    """For each class the classes below it, itself first."""
    above, below = self.edges
    starts = np.searchsorted(above, np.arange(1, above[-1] + 1))
    return np.split(below, starts)

  def contradicts(self, rows: np.ndarray) -> np.ndarray:
    """Find in each row a class that is present without its ancestor.

    An unknown ancestor contradicts nothing.

    Args:
      rows: int [N, M].

    Returns:
      int [N, 2], that class and the ancestor; -1, -1 for a row without a contradiction.
    """
    rows = np.asarray(rows)
    conflicts = np.full((len(rows), 2), -1)
    for ancestor, below in enumerate(self.below):
      if len(below) == 1:
        continue
      wrong = (rows[:, below] == 1) & (rows[:, ancestor : ancestor + 1] == 0)  # [N, descendant]
      is_new = wrong.any(-1) & (conflicts[:, 0] < 0)
      first_wrong = wrong[is_new].argmax(-1)
      conflicts[is_new, 0] = below[first_wrong]
      conflicts[is_new, 1] = ancestor
    return conflicts

  def complete(self, labels: np.ndarray) -> np.ndarray:
    """Fill in the unknown labels that follow from the known ones.

    Ancestors of a class that is present are present, descendants of one that is absent are absent;
    a class is absent if all its finer classes are; a class that ends early is at the deeper levels
    what it is where it ends.

    Args:
      labels: int [N, M].

    Returns:
      int8 [N, M].
    """
    rows = np.array(labels, np.int8)
    self._copy_ended_branches(rows)
    # Finer levels stand last, so that descendants come before their ancestors.
    for c, below in reversed(list(enumerate(self.below))):
      is_unknown = rows[:, c] < 0
      finer = rows[:, below[1:]]
      rows[is_unknown & (finer == 1).any(-1), c] = 1
      if len(below) > 1:
        rows[is_unknown & (finer == 0).all(-1), c] = 0
    for c, below in enumerate(self.below):
      is_absent = rows[:, c : c + 1] == 0
      descendants = rows[:, below]
      rows[:, below] = np.where(is_absent & (descendants < 0), 0, descendants)
    return rows

  def _copy_ended_branches(self, rows: np.ndarray) -> None:
    """Write, in place, what is known of classes that end early to the deeper levels."""
    for k, level in enumerate(self.levels[1:], 1):
      upper_columns = self.columns[self.levels[k - 1]]
      for c in np.flatnonzero(self.carried(level)):
        source = upper_columns.start + self._ids[k - 1][self.names[k][c]]
        target = self.columns[level].start + c
        is_known = rows[:, source] >= 0
        rows[is_known, target] = rows[is_known, source]
