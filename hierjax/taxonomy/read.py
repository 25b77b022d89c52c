"""Reading a taxonomy, of whose levels some may be tags."""

import os
from collections.abc import Sequence

import numpy as np

from hierjax.core.errors import UserError
from hierjax.core.options import resolve_levels
from hierjax.taxonomy import aliases
from hierjax.taxonomy.csv_files import Rows, read_levels
from hierjax.taxonomy.mixed import Mixed
from hierjax.taxonomy.relations import common_values
from hierjax.taxonomy.table import Taxonomy, with_aliases
from hierjax.taxonomy.tags import TagTaxonomy


def read_taxonomy(path: str | os.PathLike, multi: str | Sequence[str] = ()) -> Taxonomy | Mixed:
  """Read a taxonomy.

  The row of a tag begins with what it lies below: a finest exclusive class, a coarser one, or
  nothing for a tag that any example may have.

  Args:
    path: a CSV file, one row a finest class, one column a level.
    multi: names of the tag levels, as config.data.multi has them.

  Raises:
    UserError: the rows are no taxonomy, or an exclusive level stands below a tag level.
  """
  table, alias_cells = aliases.split_columns(read_levels(path))
  names, problems = aliases.assign(table.columns, table.rows, alias_cells)
  if problems:
    raise UserError(f'{path}:{problems[0].row}: {problems[0].text}')
  taxonomy = divide(table.columns, table.rows, multi, f'{path}:')
  return with_aliases(taxonomy, names)


def divide(
  levels: Sequence[str], rows: Rows, multi: str | Sequence[str], source: str
) -> Taxonomy | Mixed:
  """Make a taxonomy of numbered rows, of whose levels some are tags.

  Args:
    levels: names of the columns.
    rows: (row number, one cell per level).
    multi: names of the tag levels.
    source: stands before the row number in errors.

  Raises:
    UserError: see `read_taxonomy`.
  """
  levels = tuple(levels)
  tags = resolve_levels(multi, levels, '--config.data.multi')
  n = len(levels) - len(tags)
  if not tags:
    return Taxonomy.from_numbered_rows(levels, rows, source)
  if not n:
    return TagTaxonomy.from_numbered_rows(levels, rows, source)
  if tags != levels[n:]:
    lower = next(level for level in levels[levels.index(tags[0]) :] if level not in tags)
    raise UserError(
      f'--config.data.multi={multi if isinstance(multi, str) else ",".join(multi)}: exclusive '
      f'level {lower} stands below multi level {tags[0]} in the taxonomy ({", ".join(levels)}); it '
      f'may only stand above: name {lower} too, or put its column before {tags[0]}'
    )
  tag_rows = _rows_of_tags(levels, rows, n, source)
  exclusive = Taxonomy.from_numbered_rows(levels[:n], _exclusive_rows(rows, n), source)
  tag_table = TagTaxonomy.from_numbered_rows(
    levels[n:], [(row, cells[n:]) for row, cells in tag_rows], source
  )
  paths = exclusive.complete(
    [exclusive.encode(dict(zip(levels, cells[:n]))) for _, cells in tag_rows]
  )
  # what the exclusive paths of a tag's leaves agree on
  columns = zip(tag_table.paths.T, tag_table.names)
  above = [common_values(classes, paths, len(names)) for classes, names in columns]
  return Mixed(exclusive, tag_table, np.concatenate(above))


def _rows_of_tags(levels, rows, n, source):
  """The rows with a tag; a finest tag has one place among the first n, exclusive levels."""
  tag_rows = [(row, cells) for row, cells in rows if any(cells[n:])]
  places = {}  # {finest tag: (its first row, the exclusive cells there)}
  for row, cells in tag_rows:
    leaf = next(cell for cell in reversed(cells) if cell)
    above = list(cells[:n])
    first_row, first_above = places.setdefault(leaf, (row, above))
    if first_above != above:
      path, first_path = (' / '.join(filter(None, p)) or 'nothing' for p in (above, first_above))
      raise UserError(
        f'{source}{row}: {levels[-1]} {leaf!r} stands under {path!r} here and under '
        f'{first_path!r} in row {first_row}; a class has one row, and one that any example may '
        f'have leaves {", ".join(levels[:n])} empty'
      )
  return tag_rows


def _exclusive_rows(rows, n):
  """The exclusive classes: those with a row of their own, and those that only tags name."""
  paths = {tuple(cells[:n]) for _, cells in rows if not any(cells[n:])}
  # The beginnings of longer paths: a tag below one of these adds no class.
  stems = set()
  for _, cells in rows:
    depth = sum(map(bool, cells[:n]))
    stems.update(tuple(cells[:k]) for k in range(1, depth))
  exclusive = []
  for row, cells in rows:
    path = tuple(cells[:n])
    named_part = path[: sum(map(bool, path))]
    if not any(cells[n:]):
      exclusive.append((row, path))
    elif any(path) and path not in paths and named_part not in stems:
      paths.add(path)
      exclusive.append((row, path))
  return exclusive
