"""What every taxonomy has: levels, their classes, blocks of levels, a CSV and a hash."""

import dataclasses
import functools
import hashlib
import json
import os
from typing import TYPE_CHECKING

import numpy as np

from hierjax.core import files
from hierjax.core.errors import UserError
from hierjax.taxonomy.aliases import Aliases, columns_of

if TYPE_CHECKING:
  from hierjax.taxonomy.table import Taxonomy


@dataclasses.dataclass(frozen=True)
class Block:
  """Neighbouring levels of one kind: 'exclusive' (one class an example) or 'tags' (any number).

  Attributes:
    kind: 'exclusive' or 'tags'.
    taxonomy: the table of these levels alone.
    columns: their place in an example's row of labels: for exclusive levels one column a level
      with the class id, for tags one column a class with 0 or 1; -1 is unknown.
  """

  kind: str
  taxonomy: 'Taxonomy'
  columns: slice

  @property
  def levels(self) -> tuple[str, ...]:
    """The names of the block's levels, coarse to fine."""
    return self.taxonomy.levels


class Levels:
  """The base of all taxonomies, which must have a method rows().

  Attributes:
    levels: names of the levels, coarse to fine, exclusive ones first.
    names: for each level the names of its classes, in the order of their ids.
    tables: one table for each kind of level that there is, exclusive levels first.
    aliases: {level: {other name: class}}, by which labels and lists may call classes.
  """

  levels: tuple[str, ...]
  names: tuple[tuple[str, ...], ...]
  tables: tuple['Taxonomy', ...]
  aliases: Aliases

  @property
  def ancestors(self) -> dict[str, np.ndarray]:
    """{exclusive level: int32 [M], the class that each tag lies below, -1 for none}."""
    return {}

  def fits(self, labels: np.ndarray) -> np.ndarray | bool:
    """Return which tags may occur beside exclusive classes.

    Args:
      labels: int [N, L], -1 unknown.

    Returns:
      bool [N, M], or True for all.
    """
    return True

  @functools.cached_property
  def blocks(self) -> tuple[Block, ...]:
    """The levels as blocks of one kind each, exclusive ones first, as a row of labels has them."""
    blocks, start = [], 0
    for table in self.tables:
      blocks.append(Block(table.kind, table, slice(start, start + table.width)))
      start += table.width
    return tuple(blocks)

  def block(self, kind: str) -> Block | None:
    """Return the block of a kind, None where no level is of it."""
    return next((block for block in self.blocks if block.kind == kind), None)

  def table(self, kind: str) -> 'Taxonomy | None':
    """Return the table of the levels of a kind, None where no level is of it."""
    block = self.block(kind)
    return block and block.taxonomy

  @property
  def multi(self) -> tuple[str, ...]:
    """The tag levels."""
    table = self.table('tags')
    return table.levels if table else ()

  def index(self, level: str) -> int:
    """Return the position of a level, 0 for the coarsest.

    Args:
      level: its name.

    Raises:
      UserError: there is no such level.
    """
    if level not in self.levels:
      raise UserError(f'taxonomy: no level {level!r}; the levels are {", ".join(self.levels)}')
    return self.levels.index(level)

  def num_classes(self, level: str) -> int:
    """Return the number of classes of a level."""
    return len(self.names[self.index(level)])

  def to_csv(self, path: str | os.PathLike) -> None:
    """Write the taxonomy as `read_taxonomy` reads it.

    Args:
      path: the file.
    """
    rows = self.rows()
    columns = [*zip(self.levels, *rows), *columns_of(self.levels, rows, self.aliases)]
    files.write(path, files.csv_text(zip(*columns)))

  def hash(self) -> str:
    """Return a sha256 of levels and rows in their order: equal hashes mean equal class ids."""
    content = [list(self.levels), self.rows()]
    if self.multi:
      content.append(list(self.multi))
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

  def __repr__(self):
    sizes = [f'{level} {len(names)}' for level, names in zip(self.levels, self.names)]
    return f'{type(self).__name__}({", ".join(sizes)})'
