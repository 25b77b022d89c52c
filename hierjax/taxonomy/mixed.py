"""Exclusive levels and tag levels in one taxonomy."""

import dataclasses

import numpy as np

from hierjax.taxonomy.aliases import Aliases
from hierjax.taxonomy.levels import Levels
from hierjax.taxonomy.table import Taxonomy
from hierjax.taxonomy.tags import TagTaxonomy


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Mixed(Levels):
  """Exclusive levels with tag levels below or beside them.

  An example has a path of the one table and any number of classes of the other. Its labels are int
  [N, L] of the exclusive levels and int8 [N, M] of the tags.

  Attributes:
    exclusive: the table of the exclusive levels.
    tags: the table of the tag levels.
    above: int32 [M, L], the exclusive class of each level that a tag lies below; -1 for none, and
      where it occurs with more than one.
    aliases: {level: {other name: class}} of both tables.
  """

  exclusive: Taxonomy
  tags: TagTaxonomy
  above: np.ndarray
  aliases: Aliases = dataclasses.field(default_factory=dict)

  @property
  def tables(self) -> tuple[Taxonomy, ...]:
    """The exclusive table and that of the tags."""
    return self.exclusive, self.tags

  @property
  def levels(self) -> tuple[str, ...]:
    """The exclusive levels and then the tag levels."""
    return self.exclusive.levels + self.tags.levels

  @property
  def names(self) -> tuple[tuple[str, ...], ...]:
    """The classes of each level."""
    return self.exclusive.names + self.tags.names

  @property
  def columns(self) -> dict[str, slice]:
    """{tag level: the place of its classes in a row of M}."""
    return self.tags.columns

  @property
  def ancestors(self) -> dict[str, np.ndarray]:
    """{exclusive level: int32 [M], the class that each tag lies below, -1 for none}."""
    return dict(zip(self.exclusive.levels, self.above.T))

  def rows(self) -> list[list[str]]:
    """Return the table in names: the exclusive classes, then each finest tag with its ancestors."""
    exclusive_rows = self.exclusive.rows()
    rows = [row + [''] * len(self.multi) for row in exclusive_rows]
    finest = self.above[self.columns[self.multi[-1]]].tolist()
    for path, tags in zip(finest, self.tags.rows()):
      if path[-1] >= 0:
        ancestors = exclusive_rows[path[-1]]
      else:
        ancestors = [names[c] if c >= 0 else '' for names, c in zip(self.exclusive.names, path)]
      rows.append(ancestors + tags)
    return rows

  def nests(self, child: str, parent: str) -> bool:
    """Return whether every class of one level has one class of another.

    Args:
      child: the finer level.
      parent: the coarser one.
    """
    for table in self.tables:
      if child in table.levels and parent in table.levels:
        return table.nests(child, parent)
    if child not in self.multi:
      return False
    parents = self.above[self.columns[child], self.index(parent)]
    return bool((parents >= 0).all())

  def fits(self, labels: np.ndarray) -> np.ndarray:
    """Return which tags may occur together with exclusive classes.

    Args:
      labels: int [N, L]; -1 goes with every tag.

    Returns:
      bool [N, M].
    """
    labels = np.asarray(labels)
    is_possible = np.ones((len(labels), len(self.above)), bool)
    for k, upper in enumerate(self.above.T):
      column = labels[:, k : k + 1]
      is_possible &= (upper < 0) | (column < 0) | (upper == column)
    return is_possible

  def complete(self, labels: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fill in the unknown labels that follow from the known ones, within and between the kinds.

    A tag that is present determines the classes above it; beside a known exclusive class the tags
    below others are absent. What contradicts stays as it is; `fits` shows it.

    Args:
      labels: int [N, L], exclusive.
      rows: int [N, M], tags.

    Returns:
      Both, int32 and int8.
    """
    labels = self.exclusive.complete(labels)
    rows = self.tags.complete(rows)
    for k, upper in enumerate(self.above.T):
      determines = (rows == 1) & (upper >= 0)  # [N, M], the tag is present and below some class
      filled = np.flatnonzero((labels[:, k] < 0) & determines.any(1))
      first_tag = determines[filled].argmax(1)
      labels[filled, k] = upper[first_tag]
    labels = self.exclusive.complete(labels)
    is_absent = (rows < 0) & ~self.fits(labels)
    rows = np.where(is_absent, 0, rows)
    return labels, self.tags.complete(rows)

  def coarsen(self, level: str) -> 'Mixed':
    """Return it with the exclusive levels ending at a coarser one.

    Args:
      level: its name.
    """
    exclusive = self.exclusive.coarsen(level)
    columns = [self.index(name) for name in exclusive.levels]
    return dataclasses.replace(self, exclusive=exclusive, above=self.above[:, columns])
