"""Lists of classes: an assortment, the species of a region, as names of any level."""

import os
from collections.abc import Iterable, Mapping

import numpy as np

from hierjax.core.errors import UserError, did_you_mean
from hierjax.taxonomy.check import close_matches
from hierjax.taxonomy.csv_files import read_table
from hierjax.taxonomy.mixed import Mixed
from hierjax.taxonomy.table import Taxonomy, spellings

REGION = 'region'
NAMES = ('class', 'classes', 'name', 'names')
YES = ('1', '1.0', 'true', 'yes', 'x')
# Names that the error lists.
MAX_LISTED = 20


def leaves_of(
  classes: Iterable[str | Mapping[str, str]], taxonomy: Taxonomy | Mixed, where: str = ''
) -> np.ndarray:
  """Find the finest classes that a list of classes allows.

  Args:
    classes: names of classes of any level, with all below them, or {level: name}, of which a leaf
      must have all; aliases are read as the names that they stand for.
    taxonomy: the levels; tags do not count.
    where: what errors begin with.

  Returns:
    bool [leaf], at least one True.

  Raises:
    UserError: names that are no class, or that of several; it lists them all.
  """
  table, problems, prefix = taxonomy.table('exclusive'), [], f'{where}: ' if where else ''
  if table is None:
    raise UserError(f'{prefix}a subset is of exclusive levels; all levels here are multi levels')
  allowed = np.zeros(len(table.paths), bool)
  for item in classes:
    try:
      allowed |= _leaves_of_name(item, table) if isinstance(item, str) else _fitting(item, table)
    except UserError as error:
      problems.append(str(error))
  if problems:
    problems, total = list(dict.fromkeys(problems)), len(problems)
    more = f'; and {len(problems) - MAX_LISTED} more' if len(problems) > MAX_LISTED else ''
    raise UserError(f'{prefix}{total} wrong: {"; ".join(problems[:MAX_LISTED])}{more}')
  if not allowed.any():
    raise UserError(f'{prefix}names no class')
  return allowed


def _fitting(row, table):
  """The leaves with all classes of a row {level: name}; none for one without a name."""
  labels = table.encode(row)
  fits = ((labels < 0) | (labels == table.paths)).all(-1) & (labels >= 0).any()
  if (labels >= 0).any() and not fits.any():
    names = ', '.join(f'{level} {name!r}' for level, name in row.items() if name)
    raise UserError(f'no class has {names} together')
  return fits


def _leaves_of_name(name, table):
  """The leaves of the class that a name is of, at whichever level."""
  levels = [level for level in table.levels if name.strip() in spellings(table, level)]
  if not levels:
    close = close_matches(name, sorted({n for names in table.names for n in names}), 2)
    hint = f'; did you mean {" or ".join(map(repr, close))}?' if close else ''
    raise UserError(f'{name!r} is no class of {", ".join(table.levels)}{hint}')
  leaves = [_fitting({level: name}, table) for level in levels]
  if any((x != leaves[0]).any() for x in leaves):
    raise UserError(
      f'{name!r} is a class of {" and of ".join(levels)}; name the column of the list by the level'
    )
  return leaves[0]


def read_classes(
  path: str | os.PathLike, taxonomy: Taxonomy | Mixed, region: str | None = None
) -> np.ndarray:
  """Read a list of classes.

  It is one name a line, or a CSV with a column 'class' of names of any level or with columns called
  by levels. For several regions a column 'region' says which one a row is of, or each region has a
  column with 1 for its classes.

  Args:
    path: the file.
    taxonomy: the levels.
    region: the region to read, None where the file has one list.

  Returns:
    bool [leaf], see `leaves_of`.

  Raises:
    UserError: the file cannot be read, has not such a region, or names no classes.
  """
  table = read_table(path)
  columns, rows = table.columns, table.rows
  exclusive = taxonomy.table('exclusive')
  levels = [c for c in columns if exclusive and c in exclusive.levels]
  lower = {c.casefold(): c for c in columns}
  by_name = next((lower[c] for c in NAMES if c in lower), None)
  if not levels and not by_name:
    by_name = next(c for c in columns if c.casefold() != REGION or len(columns) == 1)
    # a plain list has no header
    rows = [(1, columns), *rows] if len(columns) == 1 else rows
  cells = [dict(zip(columns, row)) for _, row in rows]
  if region is not None or REGION in lower:
    cells = _in_region(path, cells, lower, region)
  if levels:
    names = [{level: row[level] for level in levels} for row in cells]
  else:
    names = [row[by_name] for row in cells if row[by_name]]
  return leaves_of(names, taxonomy, f'{path}{f" ({region})" if region else ""}')


def _in_region(path, cells, lower, region):
  """The rows of a region."""
  column = lower.get(REGION)
  if column is None:
    if region.casefold() not in lower:
      hint = did_you_mean(region, lower.values())
      raise UserError(f'{path}: no column {REGION!r}, nor one called {region!r}{hint}')
    return [row for row in cells if row[lower[region.casefold()]].casefold() in YES]
  regions = sorted({row[column] for row in cells if row[column]})
  if region is None:
    raise UserError(f'{path}: choose one of its regions with --region: {", ".join(regions)}')
  matching = [row for row in cells if row[column].casefold() == region.casefold()]
  if not matching:
    hint = did_you_mean(region, regions)
    raise UserError(f'{path}: no region {region!r}{hint}; it has {", ".join(regions)}')
  return matching
