"""Aliases: other names of classes, in columns of taxonomy.csv.

A column 'aliases' or 'synonyms' holds other names of the row's own class, separated by | or ;. A
column such as 'genus aliases' or 'genus_synonyms' holds those of the row's class at that level.
"""

import re
from collections.abc import Mapping, Sequence

from hierjax.taxonomy.check import RowProblem
from hierjax.taxonomy.csv_files import CsvFile, Rows

# {level: {other name: class}}
Aliases = Mapping[str, Mapping[str, str]]
SUFFIX = ' aliases'
_COLUMN = re.compile(r'(?:(.+)[ _-])?(?:alias(?:es)?|synonyms?)', re.IGNORECASE)


def split_columns(table: CsvFile) -> tuple[CsvFile, dict[str | None, list[tuple[int, str]]]]:
  """Take the columns of aliases out of a taxonomy's table.

  Args:
    table: the content of the file.

  Returns:
    The other columns, and {level, or None for the row's own class: [(row, cell)]}.
  """
  levels = {column.casefold(): column for column in table.columns}
  cells, others = {}, []
  for k, column in enumerate(table.columns):
    match = _COLUMN.fullmatch(column)
    name = match and match[1]  # None for aliases of the row's own class
    level = levels.get(name.casefold()) if name else None
    if match is None or (name and level is None):
      others.append(k)
      continue
    texts = cells.setdefault(level, [])
    texts += [(row, values[k]) for row, values in table.rows if values[k]]
  if not cells or not others:
    return table, {}
  rows = [(row, [values[k] for k in others]) for row, values in table.rows]
  return table._replace(columns=[table.columns[k] for k in others], rows=rows), cells


def assign(
  levels: Sequence[str], rows: Rows, cells: Mapping[str | None, Sequence[tuple[int, str]]]
) -> tuple[Aliases, list[RowProblem]]:
  """Find out which classes aliases stand for.

  Args:
    levels: names of the levels.
    rows: (row number, one cell a level), with the names that the classes have.
    cells: as `split_columns` returns them.

  Returns:
    The aliases, and what is wrong with others: they are names of other classes too.
  """
  aliases, problems = {}, []
  origin = {}  # {(number of a level, alias): (row that first has it, the class there)}
  paths = dict(rows if cells else ())
  names = [{path[k] for path in paths.values()} for k in range(len(levels))]
  for level, texts in cells.items():
    for row, text in texts:
      path = paths.get(row, ())
      finest = max((k for k, name in enumerate(path) if name), default=0)
      k = finest if level is None else levels.index(level)
      if not path or not path[k]:
        problems.append(RowProblem(row, 'alias', f'has aliases ({text}) of no class'))
        continue
      name = path[k]
      for alias in filter(None, map(str.strip, re.split('[|;]', text))):
        first_row, first_name = origin.setdefault((k, alias), (row, name))
        fault = ''
        if alias in names[k] and alias != name:
          fault = f'a {levels[k]} itself'
        elif first_name != name:
          fault = f'of {first_name!r} in row {first_row}'
        if fault:
          text = f'alias {alias!r} of {levels[k]} {name!r} is {fault}; it can stand for one class'
          problems.append(RowProblem(row, 'alias', text))
        elif alias != name:
          aliases.setdefault(levels[k], {})[alias] = name
  return aliases, problems


def columns_of(levels: Sequence[str], rows: Sequence[Sequence[str]], aliases: Aliases) -> list:
  """Return the columns of aliases for a taxonomy's file, each a list of its cells.

  Args:
    levels: names of the levels.
    rows: one cell a level.
    aliases: to write; each stands in the first row of its class.
  """
  columns = []
  for k, level in enumerate(levels):
    by_class = {}
    for alias, name in aliases.get(level, {}).items():
      by_class.setdefault(name, []).append(alias)
    if by_class:
      columns.append([level + SUFFIX, *('|'.join(by_class.pop(row[k], ())) for row in rows)])
  return columns
