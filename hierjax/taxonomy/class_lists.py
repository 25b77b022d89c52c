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
  classes: Iterable[str | Mapping[str, str]], taxonomy: Taxonomy | Mixed, where: str = 'classes'
) -> np.ndarray:
  """Find the finest classes that a list of classes allows.

  Args:
    classes: names or aliases of classes of any level, with all below them, or {level: name}, of
      which a leaf must have all.
    taxonomy: the levels; tags do not count.
    where: what errors begin with.

  Returns:
    bool [leaf], at least one True.

  Raises:
    UserError: names that are no class, or that of several; it lists them all.
  """
  table, problems = taxonomy.table('exclusive'), {}
  if table is None:
    raise UserError(f'{where}: a subset is of exclusive levels; all levels are multi levels')
  names = {level: frozenset(spellings(table, level)) for level in table.levels}
  allowed = np.zeros(len(table.paths), bool)
  for item in classes:
    try:
      row = _place(item, table, names) if isinstance(item, str) else item
      allowed |= _fitting(row, table)
    except UserError as error:
      problems[str(error)] = item
  if problems:
    more = f'; and {len(problems) - MAX_LISTED} more' if len(problems) > MAX_LISTED else ''
    text = '; '.join(list(problems)[:MAX_LISTED])
    raise UserError(f'{where}: {len(problems)} wrong: {text}{more}')
  if not allowed.any():
    raise UserError(f'{where}: names no class')
  return allowed


def _fitting(row, table):
  """The leaves with all classes of a row {level: name}; none for one without a name."""
  labels = table.encode(row)
  if (labels < 0).all():
    return np.zeros(len(table.paths), bool)
  fits = ((labels < 0) | (labels == table.paths)).all(-1)
  if not fits.any():
    names = ', '.join(f'{level} {name!r}' for level, name in row.items() if name)
    raise UserError(f'no class has {names} together')
  return fits


def _place(name, table, names):
  """{level: name} for the level at which a name is that of a class."""
  levels = [level for level in table.levels if name.strip() in names[level]]
  if not levels:
    close = close_matches(name, sorted(frozenset().union(*names.values())), 2)
    hint = f'; did you mean {" or ".join(map(repr, close))}?' if close else ''
    raise UserError(f'{name!r} is no class of {", ".join(table.levels)}{hint}')
  leaves = [_fitting({level: name}, table) for level in levels]
  if any((x != leaves[0]).any() for x in leaves):
    raise UserError(
      f'{name!r} is a class of {" and of ".join(levels)}; name the column of the list by the level'
    )
  return {levels[0]: name}


def read_classes(
  path: str | os.PathLike, taxonomy: Taxonomy | Mixed, region: str | None = None
) -> np.ndarray:
  """Read a list of classes: one name a line, or a CSV with a column 'class' or columns of levels.

  For several regions, a column 'region' says which one a row is of, or each has a column with 1 for
  its classes.

  Args:
    path: the file.
    taxonomy: the levels.
    region: to read, None where the file has one list.

  Returns:
    bool [leaf], see `leaves_of`.

  Raises:
    UserError: the file cannot be read, has not such a region, or names no classes.
  """
  columns, rows, *_ = read_table(path)
  levels = [c for c in columns if c in taxonomy.levels]
  lower = {c.casefold(): c for c in columns}
  candidates = [lower[c] for c in (*NAMES, *lower) if c in lower and c != REGION]
  column = candidates[0] if candidates else columns[0]
  # a plain list has no header
  if len(columns) == 1 and not levels and column.casefold() not in NAMES:
    rows = [(1, columns), *rows]
  cells = [dict(zip(columns, row)) for _, row in rows]
  if region is not None or REGION in lower:
    cells = _in_region(path, cells, lower, region)
  classes = [{level: row[level] for level in levels} or row[column] for row in cells]
  return leaves_of(filter(None, classes), taxonomy, f'{path}{f" ({region})" if region else ""}')


def _in_region(path, cells, lower, region):
  """The rows of a region."""
  key, column = (region or '').casefold(), lower.get(REGION)
  if column is None and key in lower:
    return [row for row in cells if row[lower[key]].casefold() in YES]
  regions = dict.fromkeys(row[column] for row in cells) if column else lower.values()
  rows = [row for row in cells if column and row[column].casefold() == key]
  if not rows:
    text = f'no region {region!r}{did_you_mean(region, regions)}' if region else 'it has regions'
    raise UserError(f'{path}: {text}; choose one with --region: {", ".join(regions)}')
  return rows
