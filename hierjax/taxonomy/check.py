"""Which rows keep a table of class names from being a taxonomy, and why."""

import difflib
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class RowProblem(NamedTuple):
  """What is wrong with one row of a taxonomy.

  Attributes:
    row: its number in the file.
    kind: 'empty row', 'gap', 'duplicate row', 'two parents' or 'ends and goes on'.
    text: a sentence without its subject, the row.
  """

  row: int
  kind: str
  text: str


def close_matches(name: str, choices: Iterable[str], n: int = 3) -> list[str]:
  """Find choices that resemble a name; case is ignored.

  Args:
    name: what was written.
    choices: what there is.
    n: how many to return, at most.

  Returns:
    The choices, the most similar first.
  """
  folded = {}
  for choice in choices:
    folded.setdefault(choice.casefold(), choice)
  return [folded[m] for m in difflib.get_close_matches(name.casefold(), folded, n, 0.6)]


def check_rows(
  levels: Sequence[str], rows: Iterable[tuple[int, Sequence[str]]]
) -> list[RowProblem]:
  """Find the rows that keep a table from being a taxonomy; the others form one.

  Args:
    levels: names of the columns, coarse to fine.
    rows: (row number, one cell per level); '' below the end of a branch.

  Returns:
    The problems, in the order of the rows.
  """
  rows = list(rows)
  if _is_sound(rows):
    return []
  problems, complete, finest = [], [], {}
  for row, cells in rows:
    problem = _check_row(levels, row, cells, finest)
    if problem:
      problems.append(problem)
    else:
      complete.append((row, cells, sum(map(bool, cells))))
  return sorted(problems + _check_ends(levels, complete))


def _is_sound(rows):
  """Whether all branches reach the last level, and each finest class has one row."""
  leaves = {cells[-1] for _, cells in rows}
  return len(leaves) == len(rows) and all(all(cells) for _, cells in rows)


def _check_row(levels, row, cells, finest):
  """The problem of a row by itself or with an earlier one of the same finest class, or None."""
  is_named = [bool(c) for c in cells]
  depth = sum(is_named)
  if not depth:
    return RowProblem(row, 'empty row', 'names no class')
  if not all(is_named[:depth]):
    gap = is_named.index(False)
    after = next(i for i in range(gap, len(cells)) if is_named[i])
    above = cells[gap - 1] if gap else cells[after]
    text = (
      f'{levels[gap]} is empty before {levels[after]} {cells[after]!r}; only the end of a row may '
      f"be empty: write a name for it, such as '{above}, no {levels[gap]}'"
    )
    return RowProblem(row, 'gap', text)
  leaf = cells[depth - 1]
  if leaf not in finest:
    finest[leaf] = row, cells
    return None
  first_row, first_cells = finest[leaf]
  if list(first_cells) == list(cells):
    text = f'repeats row {first_row} ({levels[-1]} {leaf!r}); every finest class has one row'
    return RowProblem(row, 'duplicate row', text)
  parents, first_parents = ' / '.join(cells[:-1]), ' / '.join(first_cells[:-1])
  text = (
    f'{levels[-1]} {leaf!r} stands under {parents!r} here and under {first_parents!r} in row '
    f'{first_row}; every finest class has one row (data.homonyms=split reads two classes)'
  )
  return RowProblem(row, 'two parents', text)


def _check_ends(levels, rows):
  """Problems of branches that end early: [(row, cells, depth)] → problems.

  A class that ends is a class of every deeper level too. There no other class may have its name,
  and nothing may go on below it.
  """
  # (level, name) → {whether the row goes on below: the first such row}
  used = {}
  for row, cells, depth in rows:
    for k in range(depth):
      used.setdefault((k, cells[k]), {}).setdefault(depth > k + 1, row)
  problems = []
  for row, cells, depth in rows:
    if depth == len(levels):
      continue
    name = cells[depth - 1]
    subject = f'{levels[depth - 1]} {name!r} ends here'
    row_below = used[depth - 1, name].get(True)
    namesake = next((k for k in range(depth, len(levels)) if (k, name) in used), None)
    if row_below is not None:
      text = (
        f"{subject} but goes on in row {row_below}: write '{name}, other' as its "
        f'{levels[depth]} here, or leave the row out if these images may be of a class below it'
      )
    elif namesake is not None:
      other_row = min(used[namesake, name].values())
      text = (
        f'{subject}, and {levels[namesake]} of row {other_row} has the same name; give one of them '
        'another name'
      )
    else:
      continue
    problems.append(RowProblem(row, 'ends and goes on', text))
  return problems
