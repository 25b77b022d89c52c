"""A run on a changed taxonomy (hierjax migrate): the accuracy of each class before and after."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from hierjax.core.metrics import is_finite, number
from hierjax.report import charts
from hierjax.report.runs import Run
from hierjax.report.section import Section
from hierjax.report.templates import render

MOMENTS = {
  'before': 'the old run, among its own classes',
  'start': 'migrated, before training',
  'end': 'now',
}
# Rows of the table of classes, and names of changed classes.
ROWS, NAMES = 500, 500


class ClassHistory(NamedTuple):
  """A class of a migrated run; at each moment (images that are right, images)."""

  name: str
  kind: str
  before: tuple[int, int]
  start: tuple[int, int]
  end: tuple[int, int]

  @property
  def first(self) -> float | None:
    """The accuracy of the old run, of a new class that before training."""
    before = accuracy([self], 'before')
    return accuracy([self], 'start') if before is None else before

  @property
  def change(self) -> float:
    """The accuracy now minus that at first; infinite where one is missing."""
    end = accuracy([self], 'end')
    return end - self.first if is_finite(end) and is_finite(self.first) else math.inf


def accuracy(classes: Sequence[ClassHistory], moment: str) -> float | None:
  """Return the accuracy over the images of some classes at a moment; None without images."""
  right, images = (sum(getattr(c, moment)[i] for c in classes) for i in (0, 1))
  return right / images if images else None


def _render(run: Run) -> Markup:
  """Render the accuracies of each level and class; nothing for a run that was not migrated."""
  if not run.migration:
    return Markup('')
  tables = []
  for level, classes in reversed(_histories(run, run.migration).items()):
    groups = _groups(classes)
    picture = _picture(classes, f'Before and now {len(tables)}')
    classes = sorted(classes, key=lambda c: c.change)
    tables.append({'level': level, 'groups': groups, 'classes': classes, 'picture': picture})
  return render(
    'migration',
    tables=tables,
    accuracy=accuracy,
    changes=run.migration['changes'],
    moments=MOMENTS,
    split=run.splits[0] if run.splits else 'val',
    migration=run.migration,
    rows=ROWS,
    names=NAMES,
  )


def summary(run: Run, migration: dict) -> list[str]:
  """Summarize a migrated run before any training, a line a level.

  Args:
    run: the run before training.
    migration: migration.json.

  Returns:
    Its accuracies on all, on known and on new classes.
  """
  lines = []
  for level, classes in _histories(run, migration).items():
    parts = []
    for name, group in _groups(classes).items():
      text = f'{name} {number(accuracy(group, "end"))}'
      if name == 'known':
        text += f' (the old run {number(accuracy(group, "before"))})'
      parts.append(text)
    lines.append(f'{run.splits[0]}, {level}, untrained: {", ".join(parts)}')
  return lines


def _histories(run: Run, migration: dict) -> dict[str, list[ClassHistory]]:
  """Collect {level: its classes}, on the first split by the joint decision."""
  out = {}
  for level, classes in migration['classes'].items():
    start = class_counts(run.start, level, len(classes)) if run.start else [(0, 0)] * len(classes)
    end = class_counts(run, level, len(classes))
    befores = [(entry['right'], entry['images']) for entry in classes.values()]
    kinds = [entry['kind'] for entry in classes.values()]
    out[level] = [ClassHistory(*fields) for fields in zip(classes, kinds, befores, start, end)]
  return out


def class_counts(run: Run, level: str, size: int) -> list[tuple[int, int]]:
  """Count the images of each class on the first split, and those that the joint decision got right.

  Args:
    run: the run.
    level: a level.
    size: its number of classes.

  Returns:
    (right, images) of each class; zeros without predictions.
  """
  if run.predicted is None:
    return [(0, 0)] * size
  labels, pred = run.labelled(run.taxonomy.index(level))
  right = np.bincount(labels[pred == labels], minlength=size)
  images = np.bincount(labels, minlength=size)
  return list(zip(right.tolist(), images.tolist()))


def _groups(classes: Sequence[ClassHistory]) -> dict[str, list[ClassHistory]]:
  """Divide classes into all, known and new ones; without empty groups."""
  groups = {'all': list(classes), 'known': [], 'new': []}
  for c in classes:
    groups['new' if c.kind == 'new' else 'known'].append(c)
  return {name: group for name, group in groups.items() if group}


def _picture(classes: Sequence[ClassHistory], title: str) -> Markup | None:
  groups = []
  for colour, name in enumerate(('known', 'new')):
    group = [c for c in _groups(classes).get(name, []) if is_finite(c.change)]
    points = [(c.first, accuracy([c], 'end')) for c in group]
    if points:
      groups.append((colour, np.array(points)))
  return charts.before_and_now(title, groups) if groups else None


SECTION = Section('migration', 'Before and after the taxonomy changed', _render)
