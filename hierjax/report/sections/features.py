"""Features in the plane by t-SNE: of the evaluated images, and together with prototypes."""

from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from hierjax.evaluate import explain, neighbours
from hierjax.report import charts
from hierjax.report.runs import Run, get
from hierjax.report.section import Section
from hierjax.report.sections.images import NO_IMAGES
from hierjax.report.templates import paragraph, render
from hierjax.taxonomy import Taxonomy

# Classes with a colour of their own among the points.
COLOURS = 20
# Prototypes of a level in a picture.
MAX_PROTOTYPES = 300
# Sizes of the pictures, in units of their own.
LARGE, SMALL = (640, 440), (420, 340)
TOO_FEW = 'There are too few images to place.'


class Mark(NamedTuple):
  """A prototype in a picture; `is_own` where it belongs to the level that the picture shows."""

  shape: str
  is_own: bool
  colour: int
  x: str
  y: str
  name: str


def class_colours(labels: np.ndarray, k: int, table: Taxonomy) -> np.ndarray:
  """Choose a colour for the most frequent classes of a level.

  Below the coarsest level they are the children of its most frequent classes, so that related
  classes can be compared; where levels cross, a class without one parent counts alone.

  Args:
    labels: int [N, L], -1 for unknown.
    k: column of the level.
    table: of the exclusive levels.

  Returns:
    int [C + 1]: the colour of each class, -1 for grey; the last entry is for unknown labels.
  """

  def count(level):
    column = labels[:, level]
    return np.bincount(column[column >= 0], minlength=len(table.names[level]))

  images = count(k)
  parent = table.parents(table.levels[k], table.levels[0])
  images_of_parent = np.where(parent >= 0, count(0)[parent], 0)
  # the most frequent parents first, and below each its most frequent classes
  order = np.lexsort((-images, parent, -images_of_parent))
  coloured = order[images[order] > 0][:COLOURS]
  colours = np.full(len(parent) + 1, -1)
  colours[coloured] = np.arange(len(coloured))
  return colours


def _legend(colours: np.ndarray, labels: np.ndarray, names: tuple) -> list[tuple[int, str]]:
  """List (colour, class), and 'others' where some labels are grey."""
  legend = sorted((int(colours[c]), name) for c, name in enumerate(names) if colours[c] >= 0)
  if (colours[labels] < 0).any():
    legend.append((-1, 'others'))
  return legend


def _features(run: Run) -> Markup:
  """Render the features of the images in the plane, by class and by right and wrong."""
  if run.explained is None:
    return paragraph(NO_IMAGES)
  if not run.explained['xy'].any():
    return paragraph(TOO_FEW)
  table = run.taxonomy
  rows = run.explained['points']
  xy = charts.fit(run.explained['xy'], LARGE)
  labels = run.predicted['labels'][rows]
  panes = []
  for k, level in enumerate(table.levels[:-1]):
    colours = class_colours(labels, k, table)
    legend = _legend(colours, labels[:, k], table.names[k])
    paths = charts.scatter(xy, colours[labels[:, k]])
    panes.append({'title': level, 'paths': paths, 'legend': legend})
  finest = table.levels[-1]
  is_labelled = labels[:, -1] >= 0
  is_right = run.predicted['pred_joint'][rows, -1] == labels[:, -1]
  legend = [(0, f'wrong {finest}'), (1, f'right {finest}')]
  if not is_labelled.all():
    legend.append((-1, 'unknown'))
  paths = charts.scatter(xy, np.where(is_labelled, is_right.astype(int), -1))
  panes.append({'title': 'right and wrong', 'paths': paths, 'legend': legend})
  total = len(run.predicted['labels'])
  return render('features', panes=panes, size=LARGE, n=len(rows), total=total, split=run.splits[0])


def _prototypes(run: Run) -> Markup:
  """Render features and prototypes in one plane, at the first evaluation and in the end.

  The points are coloured by the classes of each level, as in S2, figures 6 and 7.
  """
  if not run.embeddings:
    return Markup('')
  table, levels = run.taxonomy, run.taxonomy.levels
  labels = np.concatenate([arrays['labels'] for arrays in run.embeddings.values()])
  colours = [class_colours(labels, k, table) for k in range(len(levels))]
  placed = _prototype_classes(table, colours)
  moments = [_moment(name, run, colours, placed) for name in run.embeddings]
  moments = [moment for moment in moments if moment]
  if not moments:
    return paragraph(TOO_FEW)
  legends = {
    level: _legend(colours[k], labels[:, k], table.names[k]) for k, level in enumerate(levels)
  }
  return render(
    'prototypes',
    moments=moments,
    legends=legends,
    size=SMALL,
    levels=levels,
    split=get(run.config, 'data.val', 'val'),
    seed=explain.SEED,
    has_prototypes=any(moment['prototypes'] for moment in moments),
  )


def _prototype_classes(table: Taxonomy, colours: list[np.ndarray]) -> list[np.ndarray]:
  """Choose the classes of each level whose prototypes are placed: with a colour at any level."""
  # bool [level, leaf], whether the leaf's class has a colour
  is_coloured = np.stack([colours[k][table.paths[:, k]] >= 0 for k in range(len(colours))])
  at_any_level = is_coloured.any(0)
  # first leaves with a colour, and of these first those with one of their own
  order = np.lexsort((~is_coloured[-1], ~at_any_level))
  count = min(MAX_PROTOTYPES, int(at_any_level.sum()))
  coarser = [np.flatnonzero(level_colours >= 0) for level_colours in colours[:-1]]
  return [*coarser, order[:count]]


def _moment(
  name: str, run: Run, colours: list[np.ndarray], placed: list[np.ndarray]
) -> dict | None:
  """Draw the pictures of one evaluation, one a level; None with too few points."""
  table, arrays = run.taxonomy, run.embeddings[name]
  columns = [k for k in range(len(table.levels)) if f'prototype_{k}' in arrays]
  parts = [arrays['features'], *(arrays[f'prototype_{k}'][placed[k]] for k in columns)]
  if columns:
    # heads compare features and prototypes by their angle
    parts = [neighbours.unit(x) for x in parts]
  xy = explain.tsne(np.concatenate(parts))
  if not xy.any():
    return None
  ends = np.cumsum([len(part) for part in parts])[:-1]
  points, *places = np.split(charts.fit(xy, SMALL), ends)
  panels = []
  for k, level in enumerate(table.levels):
    marks = []
    for j, place in zip(columns, places):
      if j in (k, len(table.levels) - 1):
        marks += _marks(table, colours[k], placed[j], place, k, j)
    panels.append(
      {
        'level': level,
        'paths': charts.scatter(points, colours[k][arrays['labels'][:, k]]),
        'marks': sorted(marks, key=lambda mark: mark.is_own),
      }
    )
  return {
    'name': name,
    'panels': panels,
    'n': len(points),
    'prototypes': len(xy) - len(points),
    'perplexity': explain.perplexity(len(xy)),
  }


def _marks(table, colours, classes, xy, k, j) -> list[Mark]:
  """Mark the prototypes of level j in the picture of level k whose class there has a colour."""
  is_finest = j == len(table.levels) - 1
  shape = 'star' if is_finest else 'circle'
  of_class = colours[table.paths[:, k]] if is_finest else colours
  marks = []
  for c, (x, y) in zip(classes.tolist(), xy.tolist()):
    if of_class[c] >= 0:
      place = f'{x:.1f}', f'{y:.1f}'
      marks.append(Mark(shape, j == k, int(of_class[c]), *place, table.names[j][c]))
  return marks


FEATURES = Section('features', 'Features', _features, True, is_technical=True)
PROTOTYPES = Section('embedding', 'Features and prototypes', _prototypes, True, is_technical=True)
