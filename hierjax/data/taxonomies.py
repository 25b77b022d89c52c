"""The taxonomy of a data set: read from taxonomy.csv, or derived from the labels."""

import os
from collections.abc import Callable, Sequence

from hierjax.core.errors import UserError, listing
from hierjax.core.options import level_words, resolve_levels
from hierjax.data.findings import Findings
from hierjax.taxonomy import Mixed, Taxonomy, aliases, check_rows, divide, read_levels
from hierjax.taxonomy.csv_files import CONTROL
from hierjax.taxonomy.homonyms import Reading, resolve
from hierjax.taxonomy.table import with_aliases

Rows = list[tuple[int, Sequence[str]]]  # (row number, names of the levels)
RESERVED = ('both', 'none', 'file', 'split')  # besides the words for levels
MAX_LEVELS = 64  # each is compared with each
SIGNS = (',', '=', ';', '/', '\n')


def read(
  path: str | os.PathLike, multi: str | Sequence[str], findings: Findings, homonyms: str = 'auto'
) -> tuple[Taxonomy | Mixed, Rows]:
  """Read taxonomy.csv.

  Args:
    path: the file.
    multi: `config.data.multi`, the tag levels; names that the file lacks are left to the labels.
    findings: receives the faults; without the faulty rows the others are a taxonomy.
    homonyms: `config.data.homonyms`, see `taxonomy.homonyms.resolve`.

  Returns:
    The taxonomy, and the rows that it is made of.

  Raises:
    UserError: the file cannot be read, or has no sound row.
  """
  (levels, rows, notes), alias_cells = aliases.split_columns(read_levels(path))
  for text in notes:
    findings.say(path, 'table', text)
  check_levels(levels, f'{path}:1', findings)
  level_names = {*levels, *level_words([])}
  tags = resolve_levels([name for name in multi if name in level_names], levels, '')
  num_exclusive = len(levels) - len(tags)
  if list(levels[num_exclusive:]) != list(tags):
    num_exclusive = 0  # an exclusive level below a tag level, which `divide` reports
  reading = resolve(levels[:num_exclusive], [cells[:num_exclusive] for _, cells in rows], homonyms)
  remark_reading(reading, path, findings)
  rows = [
    (row, [*exclusive_cells, *cells[num_exclusive:]])
    for (row, cells), exclusive_cells in zip(rows, reading.rows)
  ]
  names, alias_problems = aliases.assign(levels, rows, alias_cells)
  for row, kind, text in alias_problems:
    findings.error(f'{path}:{row}', kind, text)
  if tags:
    return with_aliases(divide(levels, rows, tags, f'{path}:'), names), rows
  problems = check_rows(levels, rows)
  for row, kind, text in problems:
    findings.error(f'{path}:{row}', kind, text)
  faulty = {problem.row for problem in problems}
  rows = [(row, cells) for row, cells in rows if row not in faulty]
  if not rows:
    findings.fatal(f'{path}:1', 'empty', 'has no class below the header')
  taxonomy = Taxonomy.from_rows(levels, [cells for _, cells in rows])
  return with_aliases(taxonomy, names), rows


def check_levels(levels: Sequence[str], where: str, findings: Findings) -> None:
  """Report names of levels that options could not tell from words and lists.

  Args:
    levels: the names.
    where: the file and row that name them.
    findings: receives an error for each.
  """
  if len(levels) > MAX_LEVELS:
    findings.fatal(where, 'levels', f'{len(levels)} levels; at most {MAX_LEVELS} are read')
  words = (*level_words([]), *RESERVED)
  for level in levels:
    signs = [sign for sign in SIGNS if sign in level]
    if level.startswith(('(', '[')):
      signs.append(level[0])
    if level.casefold() in words:
      reason = f'{", ".join(words)} as words'
    elif signs:
      reason = f'{signs[0]!r} otherwise'
    else:
      continue
    text = f'a level cannot be called {level!r}: options that name levels read {reason}'
    findings.error(where, 'levels', f'{text}; choose another name')


def check_names(taxonomy: Taxonomy | Mixed, where: str, findings: Findings) -> None:
  """Report names of levels and classes that taxonomy.csv could not hold.

  Args:
    taxonomy: of data that have no such file.
    where: their folder.
    findings: receives an error for each level.
  """
  check_levels(taxonomy.levels, where, findings)
  for level, names in zip(taxonomy.levels, taxonomy.names):
    damaged = [name for name in (level, *names) if CONTROL.search(name)]
    if damaged:
      text = f'{len(damaged)} names hold control characters ({damaged[0]!r}): rename them'
      findings.error(where, 'name', f'level {level!r}: {text}')


def remark_reading(reading: Reading, where: str | os.PathLike, findings: Findings) -> None:
  """Say how names with several classes above them were read.

  Args:
    reading: what `taxonomy.homonyms.resolve` returned.
    where: the file.
    findings: receives a remark for each level.
  """
  for level, names in reading.homonyms.items():
    name, classes = next(iter(names.items()))
    text = f'{level} {name!r} stands under several classes and is read as {len(classes)}: '
    text += listing(classes, 4)
    if len(names) > 1:
      text += f'; {len(names) - 1} more such names'
    findings.warn(where, 'homonyms', f'{text} (one class: data.homonyms=merge)')
  for level, above in reading.facets:
    text = (
      f'{above} and {level} are read as facets, neither above the other, since many a {level} '
      f'occurs with more than one {above} (as a tree: data.homonyms=split)'
    )
    findings.say(where, 'facets', text)


def derive(
  levels: Sequence[str],
  rows: Sequence[tuple[str, Sequence[str]]],
  homonyms: str = 'merge',
  report: Callable[[str, str], None] | None = None,
) -> tuple[Taxonomy, Reading]:
  """Derive a taxonomy of exclusive levels from labels.

  A class that never comes with a finer one is a branch that ends early.

  Args:
    levels: names, coarse to fine.
    rows: of each example ('FILE:ROW', its class per level, '' if unknown).
    homonyms: `config.data.homonyms`, see `taxonomy.homonyms.resolve`.
    report: called with 'FILE:ROW' and a text for a class with a second path, whose first counts;
      None raises it.

  Returns:
    The taxonomy, its finest classes sorted by path, and how homonyms were read.

  Raises:
    UserError: two rows contradict each other, or a path is never complete; names the row.
  """
  paths = _full_paths(levels, rows, homonyms == 'split', report)
  inner = [{path[k] for path in paths} for k in range(len(levels))]
  ends = {}  # {path of a class that never comes with a finer one: True}, in the order of the rows
  for where, names in rows:
    depth = max((k + 1 for k, name in enumerate(names) if name), default=0)
    if depth in (0, len(levels)) or names[depth - 1] in inner[depth - 1]:
      continue
    if not all(names[:depth]):
      raise UserError(
        f'{where}: {levels[depth - 1]} {names[depth - 1]!r} is in no complete row; write '
        'taxonomy.csv'
      )
    ends[tuple(names[:depth])] = True
  continued = {path[:k] for path in ends for k in range(1, len(path))}
  for path in ends:
    if path not in continued:
      paths.add(path + ('',) * (len(levels) - len(path)))
  if not paths:
    raise UserError(f'{rows[0][0]}: no row has a label')
  reading = resolve(levels, sorted(paths), homonyms)
  return Taxonomy.from_rows(levels, reading.rows), reading


def _full_paths(levels, rows, has_homonyms, report):
  """The paths of the finest classes, put together from all rows of each."""
  paths, first, conflicts = {}, {}, set()
  for where, names in rows:
    leaf = names[-1]
    if not leaf:
      continue
    key = (leaf, *names[:-1]) if has_homonyms and all(names) else leaf
    path = paths.setdefault(key, [''] * len(levels))
    for k, name in enumerate(names):
      if name and path[k] and path[k] != name and (key, k) not in conflicts:
        conflicts.add((key, k))
        text = f'{levels[-1]} {leaf!r} has {levels[k]} {name!r} here and {path[k]!r} in '
        text += f'{first[key, k]}; every finest class has one path (two classes: '
        text += 'data.homonyms=split)'
        if report is None:
          raise UserError(f'{where}: {text}')
        report(where, text)
      if name and not path[k]:
        path[k], first[key, k] = name, where
  leaves = {path[-1] for path in paths.values() if all(path)}
  for key, path in paths.items():
    if not all(path) and not (has_homonyms and path[-1] in leaves):
      level = levels[path.index('')]
      raise UserError(
        f'{first[key, len(levels) - 1]}: {levels[-1]} {path[-1]!r} has no {level} in any row; give '
        f"it in one, such as 'no {level}', or write taxonomy.csv"
      )
  return {tuple(path) for path in paths.values() if all(path)}


def describe(taxonomy: Taxonomy | Mixed) -> str:
  """List the number of classes of each level: '3 make, 10 model'."""
  return ', '.join(f'{len(n)} {level}' for level, n in zip(taxonomy.levels, taxonomy.names))
