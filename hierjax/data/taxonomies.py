"""The taxonomy of a data set: read from taxonomy.csv, or derived from the labels."""

import os
from collections.abc import Sequence

from hierjax.core.config import level_words
from hierjax.core.errors import UserError
from hierjax.data.findings import Findings
from hierjax.taxonomy import Mixed, Taxonomy, check_rows, read_levels, read_taxonomy

Rows = list[tuple[int, Sequence[str]]]  # (row number, names of the levels)


def read(
  path: str | os.PathLike, multi: str | Sequence[str], findings: Findings
) -> tuple[Taxonomy | Mixed, Rows]:
  """Read taxonomy.csv.

  Args:
    path: the file.
    multi: `config.data.multi`, the tag levels; names that the file lacks are left to the labels.
    findings: receives the faults; without the faulty rows the others are a taxonomy.

  Returns:
    The taxonomy, and the rows that it is made of.

  Raises:
    UserError: the file cannot be read, or has no sound row.
  """
  levels, rows = read_levels(path)
  tags = [name for name in multi if name in {*levels, *level_words([])}]
  if tags:
    return read_taxonomy(path, tags), rows
  problems = check_rows(levels, rows)
  for row, kind, text in problems:
    findings.error(f'{path}:{row}', kind, text)
  faulty = {problem.row for problem in problems}
  rows = [(row, cells) for row, cells in rows if row not in faulty]
  if not rows:
    findings.fatal(f'{path}:1', 'empty', 'has no class below the header')
  return Taxonomy.from_rows(levels, [cells for _, cells in rows]), rows


def derive(levels: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> Taxonomy:
  """Derive a taxonomy of exclusive levels from labels.

  A class that never comes with a finer one is a branch that ends early.

  Args:
    levels: names, coarse to fine.
    rows: of each example ('FILE:ROW', its class per level, '' if unknown).

  Returns:
    The taxonomy, its finest classes sorted by path.

  Raises:
    UserError: two rows contradict each other, or a path is never complete; names the row.
  """
  paths = _full_paths(levels, rows)
  inner = [{path[k] for path in paths} for k in range(len(levels))]
  ends = {}
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
  paths |= {path + ('',) * (len(levels) - len(path)) for path in ends if path not in continued}
  if not paths:
    raise UserError(f'{rows[0][0]}: no row has a label')
  return Taxonomy.from_rows(levels, sorted(paths))


def _full_paths(levels, rows):
  """The paths of the finest classes, put together from all rows of each."""
  paths, first = {}, {}
  for where, names in rows:
    leaf = names[-1]
    if not leaf:
      continue
    path = paths.setdefault(leaf, [''] * len(levels))
    for k, name in enumerate(names):
      if name and path[k] and path[k] != name:
        raise UserError(
          f'{where}: {levels[-1]} {leaf!r} has {levels[k]} {name!r} here and {path[k]!r} in '
          f'{first[leaf, k]}; every finest class has one path'
        )
      if name and not path[k]:
        path[k], first[leaf, k] = name, where
  for leaf, path in paths.items():
    if not all(path):
      raise UserError(
        f'{first[leaf, len(levels) - 1]}: {levels[-1]} {leaf!r} has no {levels[path.index("")]} '
        'in any row; give it in one, or write taxonomy.csv'
      )
  return {tuple(path) for path in paths.values()}


def describe(taxonomy: Taxonomy | Mixed) -> str:
  """List the number of classes of each level: '3 make, 10 model'."""
  return ', '.join(f'{len(n)} {level}' for level, n in zip(taxonomy.levels, taxonomy.names))
