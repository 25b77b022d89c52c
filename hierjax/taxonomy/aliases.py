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
  lower, cells = {c.casefold(): c for c in table.columns}, {}
  for k, column in enumerate(table.columns):
    match = _COLUMN.fullmatch(column)
    level = match and match[1] and lower.get(match[1].casefold())
    if match and (level or not match[1]):
      cells[k] = level, [(row, values[k]) for row, values in table.rows if values[k]]
  if not cells or len(cells) == len(table.columns):
    return table, {}
  others = [k for k in range(len(table.columns)) if k not in cells]
  rows = [(row, [values[k] for k in others]) for row, values in table.rows]
  by_level = {}
  for level, texts in cells.values():
    by_level[level] = by_level.get(level, []) + texts
  return table._replace(columns=[table.columns[k] for k in others], rows=rows), by_level


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
  for k, level in ((k, level) for k, level in enumerate(levels) if aliases.get(level)):
    by_class = {name: [] for name in aliases[level].values()}
    for alias, name in aliases[level].items():
      by_class[name].append(alias)
    columns.append([level + SUFFIX, *('|'.join(by_class.pop(row[k], ())) for row in rows)])
  return columns
