"""The taxonomy as a tree whose branches are coloured by their accuracy."""

import math
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from hierjax.report import charts
from hierjax.report.runs import Run
from hierjax.report.section import Section
from hierjax.report.sections.images import NO_PREDICTIONS
from hierjax.report.templates import paragraph, render
from hierjax.taxonomy import Taxonomy

# Upper limits of accuracy, one a colour.
GRADES = {
  0.5: 'under 50%',
  0.7: '50 to 70%',
  0.8: '70 to 80%',
  0.9: '80 to 90%',
  math.inf: '90% and more',
}
# Branches that are drawn.
MAX_BRANCHES = 3000


class Branch(NamedTuple):
  """A branch of the tree; `finest` is the accuracy of the finest level on its images."""

  name: str
  images: int
  accuracy: float | None
  grade: int
  finest: float | None
  leaf_count: int
  strip: list[tuple[int, str]]
  children: list['Branch']


class _Level(NamedTuple):
  """The branches down to a level: of each leaf its branch, of each branch images and right ones."""

  branch_of_leaf: np.ndarray
  images: np.ndarray
  right: np.ndarray


def _render(run: Run) -> Markup:
  """Render every class with its accuracy, over the images that are labelled down to it."""
  if run.predicted is None:
    return paragraph(NO_PREDICTIONS)
  table, depth = run.taxonomy, len(run.taxonomy.levels)
  levels = [_count(table, run.predicted, k) for k in range(depth)]
  sizes = np.cumsum([len(level.images) for level in levels])
  deepest = max(int((sizes <= MAX_BRANCHES).sum()) - 1, 0)
  branches = _branches(table, levels, np.lexsort(table.paths.T[::-1]), 0, deepest)
  return render(
    'tree',
    branches=branches,
    limit=MAX_BRANCHES,
    grades=list(GRADES.values()),
    levels=table.levels,
    split=run.splits[0],
    deepest=table.levels[deepest] if deepest < depth - 1 else '',
  )


def _count(table: Taxonomy, arrays: dict, k: int) -> _Level:
  """Count the images labelled down to each branch of level k, and those that are right there."""
  labels, pred = arrays['labels'], arrays['pred_joint']
  prefixes, branch_of_leaf = np.unique(table.paths[:, : k + 1], axis=0, return_inverse=True)
  numbers = {tuple(prefix): i for i, prefix in enumerate(prefixes.tolist())}
  branch = np.array([numbers.get(tuple(row), -1) for row in labels[:, : k + 1].tolist()])
  rows = np.flatnonzero(branch >= 0)
  images = np.bincount(branch[rows], minlength=len(prefixes))
  right = np.bincount(branch[rows], pred[rows, k] == labels[rows, k], len(prefixes))
  return _Level(branch_of_leaf.ravel(), images, right)


def _branches(table, levels, leaves, k, deepest) -> list[Branch]:
  """Build the branches at level k of these leaves, which are in the order of the tree."""
  column, branches, finest = table.paths[leaves, k], [], levels[-1]
  for part in np.split(leaves, np.flatnonzero(np.diff(column)) + 1):
    i = levels[k].branch_of_leaf[part[0]]
    accuracy = _ratio(levels[k].right[i], levels[k].images[i])
    ends = finest.branch_of_leaf[part]
    deeper, strip, children = part[table.depth[part] > k + 1], [], []
    if len(deeper):
      values = [_ratio(finest.right[leaf], finest.images[leaf]) for leaf in ends]
      strip = charts.strip([_grade(value) for value in values])
    if len(deeper) and k < deepest:
      children = _branches(table, levels, deeper, k + 1, deepest)
    branches.append(
      Branch(
        name=table.names[k][table.paths[part[0], k]],
        images=int(levels[k].images[i]),
        accuracy=accuracy,
        grade=_grade(accuracy),
        finest=_ratio(finest.right[ends].sum(), finest.images[ends].sum()),
        leaf_count=len(part),
        strip=strip,
        children=children,
      )
    )
  return branches


def _ratio(right: float, images: int) -> float | None:
  return float(right / images) if images else None


def _grade(accuracy: float | None) -> int:
  """Return the number of the colour; one more than the last for no images."""
  if accuracy is None:
    return len(GRADES)
  return next(i for i, limit in enumerate(GRADES) if accuracy < limit)


SECTION = Section('tree', 'Accuracy in the tree', _render, True)
