"""Confusion matrices of every level, and of the finest level within each coarser class."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from hierjax.report import charts
from hierjax.report.runs import Run
from hierjax.report.section import Section
from hierjax.report.sections.images import NO_PREDICTIONS
from hierjax.report.templates import paragraph, render
from hierjax.taxonomy import Taxonomy

# Squares along an axis; of more classes, neighbours share one.
MAX_SQUARES = 250
# Rows up to which each is named (above, the coarser classes are), and letters of a name.
MAX_NAMED, MAX_LETTERS = 60, 28
# Rows up to which percentages stand in the squares.
MAX_NUMBERED = 14
# Coarser classes to zoom into, and classes in one.
MAX_BLOCKS, MAX_BLOCK = 60, 40


class Tick(NamedTuple):
  """The name of a row and column at a place along the axes; `short` is what is printed."""

  short: str
  name: str
  place: float


class Counts(NamedTuple):
  """A confusion matrix without its zeros: rows (true, predicted, images) of `cells` int [n, 3]."""

  classes: Sequence[str]
  cells: np.ndarray


def _numbers(run: Run) -> dict[str, Counts] | None:
  """Count the confusion matrix of each level, by the joint decision."""
  if run.predicted is None:
    return None
  levels = {}
  for k, level in enumerate(run.taxonomy.levels):
    cells, counts = np.unique(np.stack(run.labelled(k), 1), axis=0, return_counts=True)
    levels[level] = Counts(run.taxonomy.names[k], np.column_stack([cells, counts]))
  return levels


def _render(run: Run, numbers: dict[str, Counts] | None) -> Markup:
  """Render a matrix for each level, and one for each coarser class."""
  if numbers is None:
    return paragraph(NO_PREDICTIONS)
  table = run.taxonomy
  outer = _outer_level(table, len(table.levels) - 1, len(table.paths) + 1)
  blocks, block_count = _blocks(run, outer) if outer is not None else ([], 0)
  return render(
    'confusion',
    matrices=[_matrix(table, k, numbers[level].cells) for k, level in enumerate(table.levels)],
    split=run.splits[0],
    blocks=blocks,
    more=block_count - len(blocks),
    finest=table.levels[-1],
    outer=None if outer is None else table.levels[outer],
  )


def _outer_level(table: Taxonomy, k: int, limit: int) -> int | None:
  """Find the coarsest level that k nests in, with more than one class and fewer than `limit`."""
  for j in range(k):
    if table.nests(table.levels[k], table.levels[j]) and 1 < len(table.names[j]) < limit:
      return j
  return None


def _order(table: Taxonomy, k: int) -> np.ndarray:
  """Order the classes of level k, those of one coarser class side by side, int [class]."""
  level = table.levels[k]
  coarser = [other for other in table.levels[:k] if table.nests(level, other)]
  keys = [table.parents(level, other) for other in reversed(coarser)]
  return np.lexsort((np.arange(len(table.names[k])), *keys))


def _matrix(table: Taxonomy, k: int, content: np.ndarray) -> dict:
  """Collect what the template needs of the confusion matrix of level k, the cells int [n, 3]."""
  labels, pred, images = content.T
  classes = len(table.names[k])
  order = _order(table, k)
  per_square = -(-classes // MAX_SQUARES)  # rounded up, as the next one
  n = -(-classes // per_square)
  # the square of each class along an axis
  square = np.argsort(order) // per_square
  pairs = np.stack([square[labels], square[pred]])
  (rows, columns), place = np.unique(pairs, axis=1, return_inverse=True)
  counts = np.bincount(place.ravel(), images).astype(int)
  totals = np.bincount(square[labels], images, n)[rows]
  outer = _outer_level(table, k, classes)
  groups = _runs_of(table, k, outer, order, per_square) if outer is not None else []
  is_named = n <= MAX_NAMED
  places = [(table.names[k][c], i + 0.5) for i, c in enumerate(order)]
  if not is_named:
    # names of the coarser classes that are wide enough
    places = [(name, (a + b) / 2) for name, a, b in groups if b - a >= n / 75]
  ticks = [Tick(_shorten(name), name, place) for name, place in places]
  margin = 12 + 7 * max((len(tick.short) for tick in ticks), default=1)
  cell = min(44.0, (940 - margin) / n)
  return {
    'level': table.levels[k],
    'n': n,
    'classes': classes,
    'per_square': per_square,
    'cell': cell,
    'margin': margin,
    'side': cell * n,
    'ticks': ticks,
    'numbers': _percentages(rows, columns, counts, totals) if n <= MAX_NUMBERED else [],
    'paths': charts.cells(rows, columns, counts, totals),
    'lines': [f'{a:g}' for _, a, _ in groups[1:]] if n / (len(groups) + 1) > 1.5 else [],
    'images': int(images.sum()),
    'wrong': int(images[labels != pred].sum()),
    'outer': None if outer is None else table.levels[outer],
    'is_named': is_named,
  }


def _percentages(rows, columns, counts, totals) -> list[tuple[float, float, str, bool]]:
  """List (x, y, text, whether the square is dark) of the squares that hold at least 0.5%."""
  texts = []
  for y, x, count, total in np.stack([rows, columns, counts, totals], 1).astype(int).tolist():
    if 200 * count >= total:
      is_dark = charts.shade(count / total) > 5
      texts.append((x + 0.5, y + 0.5, f'{100 * count / total:.0f}', is_dark))
  return texts


def _runs_of(table, k, outer, order, per_square) -> list[tuple[str, float, float]]:
  """List (name, start, end) along the axis of the coarser classes, in the order of the classes."""
  column = table.parents(table.levels[k], table.levels[outer])[order]
  changes = np.flatnonzero(np.diff(column)) + 1
  ends = [0, *changes.tolist(), len(column)]
  names = table.names[outer]
  return [(names[column[a]], a / per_square, b / per_square) for a, b in itertools.pairwise(ends)]


def _shorten(name: str) -> str:
  """Leave out the middle of a long name."""
  if len(name) <= MAX_LETTERS:
    return name
  return f'{name[: MAX_LETTERS // 2]}…{name[1 - MAX_LETTERS // 2 :]}'


def _blocks(run: Run, outer: int) -> tuple[list[dict], int]:
  """Return the blocks of the coarser classes with the most mistakes, and how many there are."""
  table = run.taxonomy
  labels, pred = run.labelled(-1)
  group = table.paths[:, outer]
  mistakes = np.bincount(group[labels], labels != pred, len(table.names[outer]))
  divided = np.flatnonzero(np.bincount(group) > 1)
  worst = divided[np.argsort(-mistakes[divided], kind='stable')[:MAX_BLOCKS]]
  order = _order(table, len(table.levels) - 1)
  blocks = []
  for g in sorted(worst.tolist()):
    members = order[group[order] == g]
    blocks.append(_block(table, table.names[outer][g], members, labels, pred))
  return blocks, len(divided)


def _block(table, name, members, labels, pred) -> dict:
  """Count the matrix within one coarser class; of too many classes those most mistaken."""
  is_inside = np.isin(labels, members)
  labels, pred = labels[is_inside], pred[is_inside]
  size = len(table.paths)
  totals = np.bincount(labels, minlength=size)
  visible = members
  if len(members) > MAX_BLOCK:
    mistakes = np.bincount(labels, labels != pred, size)
    worst = np.argsort(-mistakes[members], kind='stable')[:MAX_BLOCK]
    visible = members[np.sort(worst)]
  # the row and column of each class, -1 for none
  place = np.full(size, -1)
  place[visible] = np.arange(len(visible))
  row, column = place[labels], place[pred]
  is_visible = (row >= 0) & (column >= 0)
  counts = np.zeros((len(visible), len(visible)), int)
  np.add.at(counts, (row[is_visible], column[is_visible]), 1)
  rows = []
  for i, c in enumerate(visible.tolist()):
    elsewhere = int(totals[c] - counts[i].sum())
    cells = [(int(n), charts.shade_class(n, totals[c], i == j)) for j, n in enumerate(counts[i])]
    cells.append((elsewhere, charts.shade_class(elsewhere, totals[c], False)))
    rows.append({'name': table.names[-1][c], 'cells': cells, 'total': int(totals[c])})
  is_within = np.isin(pred, members)
  return {
    'name': name,
    'classes': len(members),
    'images': len(labels),
    'accuracy': float((labels == pred).mean()) if len(labels) else None,
    'within': int((is_within & (pred != labels)).sum()),
    'elsewhere': int((~is_within).sum()),
    'rows': rows,
    'hidden': len(members) - len(visible),
  }


SECTION = Section(
  'confusion', 'Confusion matrices', _render, is_of_exclusive_levels=True, numbers=_numbers
)
