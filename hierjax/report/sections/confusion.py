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
  """The confusion matrix of each level, by the joint decision."""
  if run.predicted is None:
    return None
  levels = {}
  for k, level in enumerate(run.taxonomy.levels):
    labels, pred = run.predicted['labels'][:, k], run.predicted['pred_joint'][:, k]
    pairs = np.stack([labels, pred], 1)[labels >= 0]
    cells, counts = np.unique(pairs, axis=0, return_counts=True)
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
  """The coarsest level that level k nests in, with more than one class and fewer than `limit`."""
  for j in range(k):
    if table.nests(table.levels[k], table.levels[j]) and 1 < len(table.names[j]) < limit:
      return j
  return None


def _order(table: Taxonomy, k: int) -> np.ndarray:
  """The classes of level k with those of one coarser class next to each other, int [class]."""
  level = table.levels[k]
  coarser = [other for other in table.levels[:k] if table.nests(level, other)]
  keys = [table.parents(level, other) for other in reversed(coarser)]
  return np.lexsort((np.arange(len(table.names[k])), *keys))


def _matrix(table: Taxonomy, k: int, content: np.ndarray) -> dict:
  """What the template needs of the confusion matrix of level k, the cells int [n, 3]."""
  classes = len(table.names[k])
  (labels, pred), images = content[:, :2].T, content[:, 2]
  order, per_square = _order(table, k), -(-classes // MAX_SQUARES)
  square, n = np.argsort(order) // per_square, -(-classes // per_square)
  pairs = square[np.stack([labels, pred])]
  (rows, columns), place = np.unique(pairs, axis=1, return_inverse=True)
  counts = np.bincount(place.ravel(), images).astype(int)
  totals = np.bincount(square[labels], images, n)[rows]
  outer = _outer_level(table, k, classes)
  groups = _runs_of(table, k, outer, order, per_square) if outer is not None else []
  is_named = n <= MAX_NAMED
  places = [(table.names[k][c], i + 0.5) for i, c in enumerate(order)]
  if not is_named:
    places = [(name, (a + b) / 2) for name, a, b in groups if b - a >= n / 75]
  ticks = [Tick(_shorten(name), name, place) for name, place in places]
  margin = 12 + 7 * max((len(tick.short) for tick in ticks), default=1)
  cell = min(44.0, (940 - margin) / n)
  numbers = []
  if n <= MAX_NUMBERED:
    cells = zip(*(array.tolist() for array in (rows, columns, counts, totals)))
    # (x, y, text, whether the square is dark) of squares that hold at least 0.5%
    numbers = [
      (x + 0.5, y + 0.5, f'{100 * count / total:.0f}', charts.shade(count / total) > 5)
      for y, x, count, total in cells
      if 200 * count >= total
    ]
  return {
    'level': table.levels[k],
    'n': n,
    'classes': classes,
    'per_square': per_square,
    'cell': cell,
    'margin': margin,
    'side': cell * n,
    'ticks': ticks,
    'numbers': numbers,
    'paths': charts.cells(rows, columns, counts, totals),
    'lines': [f'{a:g}' for _, a, _ in groups[1:]] if n / (len(groups) + 1) > 1.5 else [],
    'images': int(images.sum()),
    'wrong': int(images[labels != pred].sum()),
    'outer': None if outer is None else table.levels[outer],
    'is_named': is_named,
  }


def _runs_of(table, k, outer, order, per_square) -> list[tuple[str, float, float]]:
  """(name, start, end) along the axis of the coarser classes, in the order of the classes."""
  column = table.parents(table.levels[k], table.levels[outer])[order]
  starts = [0, *(np.flatnonzero(np.diff(column)) + 1).tolist(), len(column)]
  names = table.names[outer]
  return [(names[column[a]], a / per_square, b / per_square) for a, b in itertools.pairwise(starts)]


def _shorten(name: str) -> str:
  if len(name) <= MAX_LETTERS:
    return name
  return f'{name[: MAX_LETTERS // 2]}…{name[1 - MAX_LETTERS // 2 :]}'


def _blocks(run: Run, outer: int) -> tuple[list[dict], int]:
  """The blocks of the coarser classes with the most mistakes, and how many blocks there are."""
  table = run.taxonomy
  labels, pred = run.predicted['labels'][:, -1], run.predicted['pred_joint'][:, -1]
  labels, pred = labels[labels >= 0], pred[labels >= 0]
  group, order = table.paths[:, outer], _order(table, len(table.levels) - 1)
  wrong = np.bincount(group[labels], labels != pred, len(table.names[outer]))
  divided = np.flatnonzero(np.bincount(group) > 1)
  worst = divided[np.argsort(-wrong[divided], kind='stable')[:MAX_BLOCKS]]
  members = {g: order[group[order] == g] for g in sorted(worst.tolist())}
  blocks = [_block(table, table.names[outer][g], m, labels, pred) for g, m in members.items()]
  return blocks, len(divided)


def _block(table, name, members, labels, pred) -> dict:
  """The part of the matrix within one coarser class; of too many classes those most mistaken."""
  is_inside = np.isin(labels, members)
  labels, pred = labels[is_inside], pred[is_inside]
  size = len(table.paths)
  totals, wrong = np.bincount(labels, minlength=size), np.bincount(labels, labels != pred, size)
  visible = members
  if len(members) > MAX_BLOCK:
    visible = members[np.sort(np.argsort(-wrong[members], kind='stable')[:MAX_BLOCK])]
  counts = np.zeros((len(visible), len(visible)), int)
  place = np.full(size, -1)
  place[visible] = np.arange(len(visible))
  is_visible = (place[labels] >= 0) & (place[pred] >= 0)
  np.add.at(counts, (place[labels[is_visible]], place[pred[is_visible]]), 1)
  rows = []
  for i, c in enumerate(visible.tolist()):
    elsewhere = int(totals[c] - counts[i].sum())
    cells = [(int(n), _shade_class(n, totals[c], i == j)) for j, n in enumerate(counts[i])]
    cells.append((elsewhere, _shade_class(elsewhere, totals[c], False)))
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


def _shade_class(n: int, total: int, is_diagonal: bool) -> str:
  """The CSS class of a cell; '' for an empty one."""
  return f'{"d" if is_diagonal else "o"} k{charts.shade(n / total)}' if n else ''


SECTION = Section('confusion', 'Confusion matrices', _render, True, _numbers)
