"""The report's sections on single classes and images: confusion matrices, the worst confusions, galleries, the tree, the features.

Each is a function (run) -> html like those of report.py, and draws from predictions_SPLIT.npz and explain_SPLIT.npz, the last one from
embedding_first.npz and embedding_last.npz.
"""

import itertools
import math

import numpy as np
from markupsafe import Markup

from hierjax.evaluate import explain
from hierjax.report import charts
from hierjax.report.page import number, render
from hierjax.report.runs import Run, get
from hierjax.taxonomy import Taxonomy

LABELLED = (
  60  # classes up to which every row of a confusion matrix is named; above, the coarser classes are
)
LONGEST = 28  # letters of a name beside a matrix
NUMBERED = 14  # and up to which the shares stand in it
FINE = 250  # squares along an axis; of more classes, neighbours share one
BLOCKS, BLOCK = 60, 40  # coarser classes to zoom into, and classes in one


def confusion(run: Run) -> Markup:
  """The confusion matrix of every level in the taxonomy's order, and that of the finest level inside each coarser class."""
  if run.predicted is None:
    return render('sentence', NO_PREDICTIONS)
  tree = run.taxonomy
  tabs = [(level, render('matrix', **_matrix(run, k))) for k, level in enumerate(tree.levels)]
  finest = len(tree.levels) - 1
  outer = next(
    (
      k
      for k in range(finest)
      if tree.nests(tree.levels[-1], tree.levels[k]) and len(tree.names[k]) > 1
    ),
    None,
  )
  blocks, found = [], 0
  if outer is not None:
    labels, pred = (run.predicted[key][:, -1] for key in ('labels', 'pred_joint'))
    group = tree.paths[:, outer]
    order = _order(tree, finest)
    rows = [labels[labels >= 0], pred[labels >= 0]]
    wrong = np.bincount(group[rows[0]], rows[0] != rows[1], len(tree.names[outer]))
    several = np.flatnonzero(np.bincount(group) > 1)
    found = len(several)
    for g in sorted(sorted(several.tolist(), key=lambda g: -wrong[g])[:BLOCKS]):
      blocks.append(_block(run, tree.names[outer][g], order[group[order] == g], *rows))
  return render(
    'confusion',
    panes=tabs,
    split=run.splits[0],
    blocks=blocks,
    more=found - len(blocks),
    finest=tree.levels[-1],
    outer=None if outer is None else tree.levels[outer],
  )


NO_PREDICTIONS = 'This needs the predictions and the taxonomy of the run: --mode=report with this --workdir makes what is missing.'


def _order(tree: Taxonomy, k: int) -> np.ndarray:
  """The classes of a level so that those of one coarser class stand side by side, int [class]."""
  level = tree.levels[k]
  keys = [tree.parents(level, coarser) for coarser in tree.levels[:k] if tree.nests(level, coarser)]
  return np.lexsort((np.arange(len(tree.names[k])), *reversed(keys)))


def _matrix(run: Run, k: int) -> dict:
  tree = run.taxonomy
  labels, pred = (run.predicted[key][:, k] for key in ('labels', 'pred_joint'))
  known, classes = labels >= 0, len(tree.names[k])
  labels, pred = labels[known], pred[known]
  order, each = _order(tree, k), -(-classes // FINE)
  place = np.argsort(order) // each
  n = -(-classes // each)
  (true, other), count = np.unique(place[np.stack([labels, pred])], axis=1, return_counts=True)
  of = np.bincount(place[labels], minlength=n)
  labels_of = [tree.names[k][c] for c in order]
  outer = next(
    (
      j
      for j in range(k)
      if tree.nests(tree.levels[k], tree.levels[j]) and 1 < len(tree.names[j]) < classes
    ),
    None,
  )
  starts, groups = [], []
  if outer is not None:
    column = tree.parents(tree.levels[k], tree.levels[outer])[order]
    starts = [0, *(np.flatnonzero(np.diff(column)) + 1).tolist(), classes]
    groups = [
      (tree.names[outer][column[a]], a / each, b / each) for a, b in itertools.pairwise(starts)
    ]
  named = n <= LABELLED
  ticks = (
    [(name, i + 0.5) for i, name in enumerate(labels_of)]
    if named
    else [(name, (a + b) / 2) for name, a, b in groups if b - a >= n / 75]
  )
  ticks = [
    (
      name if len(name) <= LONGEST else f'{name[: LONGEST // 2]}…{name[1 - LONGEST // 2 :]}',
      name,
      at,
    )
    for name, at in ticks
  ]
  margin = 12 + 7 * max((len(short) for short, _, _ in ticks), default=1)
  cell = min(44.0, (940 - margin) / n)
  numbers = []
  if n <= NUMBERED:
    numbers = [
      (x + 0.5, y + 0.5, f'{100 * c / of[y]:.0f}', charts.shade(c / of[y]) > 5)
      for y, x, c in zip(true.tolist(), other.tolist(), count.tolist())
      if 200 * c >= of[y]
    ]
  return {
    'level': tree.levels[k],
    'n': n,
    'classes': classes,
    'each': each,
    'cell': cell,
    'margin': margin,
    'side': cell * n,
    'ticks': ticks,
    'numbers': numbers,
    'size': min(11.0, 0.92 * cell) if named else 10.0,
    'paths': charts.cells(true, other, count, of[true]),
    'starts': [f'{at / each:g}' for at in starts[1:-1]] if n / len(starts or [1]) > 1.5 else [],
    'images': len(labels),
    'wrong': int((labels != pred).sum()),
    'outer': None if outer is None else tree.levels[outer],
    'named': named,
  }


def _block(run: Run, name: str, members: np.ndarray, labels: np.ndarray, pred: np.ndarray) -> dict:
  """The part of the finest level's matrix that lies inside one coarser class, those with the most mistakes where there are too many."""
  tree = run.taxonomy
  inside = np.isin(labels, members)
  labels, pred = labels[inside], pred[inside]
  size = len(tree.paths)
  of, wrong = np.bincount(labels, minlength=size), np.bincount(labels, labels != pred, size)
  kept = members
  if len(members) > BLOCK:
    kept = members[np.sort(np.argsort(-wrong[members], kind='stable')[:BLOCK])]
  place = np.full(size, -1)
  place[kept] = np.arange(len(kept))
  table = np.zeros((len(kept), len(kept)), int)
  both = (place[labels] >= 0) & (place[pred] >= 0)
  np.add.at(table, (place[labels[both]], place[pred[both]]), 1)
  rows = []
  for i, c in enumerate(kept.tolist()):
    line = [
      (int(v), f'{"d" if i == j else "o"} k{charts.shade(v / of[c])}' if v else '')
      for j, v in enumerate(table[i])
    ]
    away = int(of[c] - table[i].sum())
    rows.append(
      {
        'name': tree.names[-1][c],
        'cells': line,
        'away': away,
        'shade': f'o k{charts.shade(away / of[c])}' if away else '',
        'of': int(of[c]),
      }
    )
  within = int((np.isin(pred, members) & (pred != labels)).sum())
  return {
    'name': name,
    'classes': len(members),
    'images': len(labels),
    'right': number((labels == pred).mean() if len(labels) else None),
    'within': within,
    'elsewhere': int((~np.isin(pred, members)).sum()),
    'rows': rows,
    'left_out': len(members) - len(kept),
  }


def worst(run: Run) -> Markup:
  """The pairs of finest classes that cost most, with images of both."""
  if run.predicted is None:
    return render('sentence', NO_PREDICTIONS)
  tree, data = run.taxonomy, run.predicted
  found = []
  for c in explain.confusions(
    data['pred_joint'][:, -1], data['prob_joint'][:, -1], data['labels'][:, -1], tree
  ):
    alike = [
      level for k, level in enumerate(tree.levels) if tree.paths[c.true, k] == tree.paths[c.pred, k]
    ]
    found.append(
      {
        'true': tree.names[-1][c.true],
        'pred': tree.names[-1][c.pred],
        'height': c.height,
        'count': c.count,
        'of': c.of,
        'same': alike,
        'mistaken': [
          _shot(run, row, number(data['prob_joint'][row, -1]))
          for row in c.rows.tolist()
          if row in run.pictures
        ],
        'alike': [_shot(run, row, '') for row in c.alike.tolist() if row in run.pictures],
      }
    )
  if not found:
    return render('sentence', f'There is no wrong {tree.levels[-1]} on {run.splits[0]}.')
  return render(
    'worst',
    found=found,
    finest=tree.levels[-1],
    split=run.splits[0],
    levels=len(tree.levels),
    pictures=bool(run.pictures),
    remake=REMAKE,
  )


REMAKE = 'There are no images of this evaluation yet: --mode=report with this --workdir adds them.'


def _shot(run: Run, row: int, note: str) -> dict:
  return {
    'src': charts.address(run.pictures[row]),
    'file': str(run.predicted['files'][row]),
    'note': note,
  }


def gallery(run: Run) -> Markup:
  """For every pattern of right and wrong heads, images with the first five choices of each head and what it looked at."""
  columns = explain.heads(run.predicted) if run.predicted else []
  if not columns:
    return render('sentence', NO_PREDICTIONS)
  tree, data = run.taxonomy, run.predicted
  known = (data['labels'][:, columns] >= 0).all(1)
  tabs = []
  for pattern, rows, drawn in explain.patterns(explain.right(data, columns), known):
    cases = [_case(run, row, columns) for row in drawn.tolist() if row in run.pictures]
    marks = [(tree.levels[k], ok) for k, ok in zip(columns, pattern)]
    tabs.append(
      (
        render('pattern', marks=marks, n=len(rows)),
        render(
          'cases', cases=cases, n=len(rows), share=number(len(rows) / known.sum()), marks=marks
        ),
      )
    )
  if not tabs:
    return render(
      'sentence', f'No image of {run.splits[0]} is labelled at every level with a head.'
    )
  if not run.pictures:
    return render('patterns', panes=tabs, remake=REMAKE)
  return render(
    'gallery',
    panes=tabs,
    possible=2 ** len(columns),
    heads=len(columns),
    split=run.splits[0],
    each=explain.EACH,
    grid=run.explained['maps'].shape[2:],
  )


def _case(run: Run, row: int, columns: list[int]) -> dict:
  tree, data = run.taxonomy, run.predicted
  at = run.explained['rows'].tolist().index(row)
  heads = []
  for place, k in enumerate(columns):
    label = int(data['labels'][row, k])
    choices = [
      {
        'name': tree.names[k][c],
        'share': number(float(p)),
        'width': f'{100 * float(p):.1f}',
        'true': c == label,
      }
      for c, p in zip(data[f'top_{k}'][row].tolist(), data[f'top_prob_{k}'][row].tolist())
    ]
    heat = charts.address(charts.heat(run.pictures[row], run.explained['maps'][at, place]))
    heads.append(
      {
        'level': tree.levels[k],
        'right': choices[0]['true'],
        'truth': tree.names[k][label],
        'choices': choices,
        'heat': heat,
      }
    )
  return {**_shot(run, row, ''), 'heads': heads}


GRADES = (
  (0.5, 'under 50%'),
  (0.7, '50 to 70%'),
  (0.8, '70 to 80%'),
  (0.9, '80 to 90%'),
  (math.inf, '90% and more'),
)  # of accuracy: the colours of the tree
BRANCHES = 3000  # drawn at most
UNSEEN = len(GRADES)


def tree(run: Run) -> Markup:
  """The taxonomy as a tree, every branch coloured by how many of its images are recognised."""
  if run.predicted is None:
    return render('sentence', NO_PREDICTIONS)
  table, data = run.taxonomy, run.predicted
  labels, depth = data['labels'], len(table.levels)
  # Of each level: the branch of each leaf, and of each branch the images labelled down to it and how many of them are right there.
  node, seen, right = [], [], []
  for k in range(depth):
    prefixes, of_leaf = np.unique(table.paths[:, : k + 1], axis=0, return_inverse=True)
    place = {tuple(prefix): i for i, prefix in enumerate(prefixes.tolist())}
    known = np.array([place.get(tuple(row), -1) for row in labels[:, : k + 1].tolist()])
    rows = np.flatnonzero(known >= 0)
    node.append(of_leaf.ravel())
    seen.append(np.bincount(known[rows], minlength=len(prefixes)))
    right.append(
      np.bincount(known[rows], data['pred_joint'][rows, k] == labels[rows, k], len(prefixes))
    )
  fine_seen, fine_right = seen[-1][node[-1]], right[-1][node[-1]]  # of each leaf
  order = np.lexsort(table.paths.T[::-1])
  sizes = [len(counted) for counted in seen]
  deepest = max([k for k in range(len(sizes)) if sum(sizes[: k + 1]) <= BRANCHES], default=0)

  def grade(a, n):
    return next(i for i, (limit, _) in enumerate(GRADES) if a / n < limit) if n else UNSEEN

  def branches(members, k):
    """The branches of leaves `members` (in order) at level k."""
    column, out = table.paths[members, k], []
    for part in np.split(members, np.flatnonzero(np.diff(column)) + 1):
      i, fine = node[k][part[0]], fine_seen[part].sum()
      n, own = int(seen[k][i]), right[k][i]
      goes_on = [leaf for leaf in part if table.depth[leaf] > k + 1]
      out.append(
        {
          'name': table.names[k][table.paths[part[0], k]],
          'n': n,
          'own': number(own / n if n else None),
          'grade': grade(own, n),
          'fine': number(fine_right[part].sum() / fine if fine else None),
          'leaves': len(part),
          'strip': charts.strip([grade(fine_right[leaf], fine_seen[leaf]) for leaf in part])
          if goes_on
          else [],
          'branches': branches(np.array(goes_on), k + 1) if goes_on and k < deepest else [],
        }
      )
    return out

  made = branches(order, 0)
  return render(
    'tree',
    branches=made[:BRANCHES],
    more=max(0, len(made) - BRANCHES),
    grades=[text for _, text in GRADES],
    levels=table.levels,
    split=run.splits[0],
    deepest=table.levels[deepest] if deepest < depth - 1 else '',
  )


HUES = 20  # classes with a colour of their own among the points


def _hues(labels: np.ndarray, k: int, table: Taxonomy) -> np.ndarray:
  """int [C + 1]: the colour of each class of column k, -1 for grey, as for the unknown class -1. HUES classes have one: the most frequent, but below the
  coarsest level the children of its most frequent classes, so that relatives are seen apart; where columns cross, a class without one parent stands alone."""
  seen = [np.bincount(labels[labels[:, j] >= 0, j], minlength=len(table.names[j])) for j in (0, k)]
  parent = table.parents(table.levels[k], table.levels[0])
  order = np.lexsort((-seen[1], parent, -np.where(parent >= 0, seen[0][parent], 0)))
  out = np.full(len(parent) + 1, -1)
  coloured = order[seen[1][order] > 0][:HUES]
  out[coloured] = np.arange(len(coloured))
  return out


def features(run: Run) -> Markup:
  """The features of the examples in the plane, by class and by right and wrong."""
  made = run.explained
  if made is None:
    return render('sentence', REMAKE)
  if not made['xy'].any():
    return render('sentence', 'There are too few images to place.')
  table, at, xy = run.taxonomy, made['points'], made['xy']
  labels, pred, places, tabs = (
    run.predicted['labels'][at],
    run.predicted['pred_joint'][at],
    charts.fit(xy, 640, 440),
    [],
  )
  for k, level in enumerate(table.levels[:-1]):
    hues = _hues(labels, k, table)
    groups = hues[labels[:, k]]
    tabs.append(
      (
        level,
        render(
          'points',
          paths=charts.scatter(places, groups),
          legend=_legend(hues, k, table, (groups < 0).any()),
        ),
      )
    )
  known = labels[:, -1] >= 0
  groups = np.where(known, np.where(pred[:, -1] == labels[:, -1], 1, 0), -1)
  legend = [(0, f'wrong {table.levels[-1]}'), (1, f'right {table.levels[-1]}')] + [
    (-1, 'unknown')
  ] * bool((~known).any())
  tabs.append(
    ('right and wrong', render('points', paths=charts.scatter(places, groups), legend=legend))
  )
  return render(
    'features', panes=tabs, n=len(at), split=run.splits[0], all=len(run.predicted['labels'])
  )


def _legend(hues: np.ndarray, k: int, table: Taxonomy, others: bool) -> list[tuple[int, str]]:
  """(colour, class of column k)"""
  coloured = [(hue, table.names[k][c]) for c, hue in enumerate(hues.tolist()) if hue >= 0]
  return sorted(coloured) + [(-1, 'others')] * bool(others)


PICTURE = (420.0, 340.0)  # size of a picture, in its own units
PROTOTYPES = 300  # of a level, in a picture


def embedding(run: Run) -> Markup | str:
  """Features and prototypes in one plane, at the first evaluation and in the end, coloured by the classes of each level (S2, figures 6 and 7)."""
  table, found = run.taxonomy, run.embeddings
  if not found:
    return ''
  labels = np.concatenate([one['labels'] for one in found.values()])
  finest = len(table.levels) - 1
  hues = [_hues(labels, k, table) for k in range(finest + 1)]
  of_leaf = np.stack([hues[k][table.paths[:, k]] for k in range(finest + 1)])  # [L, leaf]
  shown = [np.flatnonzero(hue >= 0) for hue in hues[:-1]]
  shown.append(
    np.lexsort((of_leaf[-1] < 0, (of_leaf < 0).all(0)))[
      : min(PROTOTYPES, int((of_leaf >= 0).any(0).sum()))
    ]
  )
  moments = []
  for moment, one in found.items():
    with_prototypes = [k for k in range(finest + 1) if f'prototype_{k}' in one]
    parts = [one['features'], *(one[f'prototype_{k}'][shown[k]] for k in with_prototypes)]
    if with_prototypes:  # what counts is the angle between them
      parts = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in parts]
    xy = explain.tsne(np.concatenate(parts))
    if not xy.any():
      continue
    points, *places = np.split(
      charts.fit(xy, *PICTURE), np.cumsum([len(part) for part in parts])[:-1]
    )
    panels = []
    for k, level in enumerate(table.levels):
      marks = []
      for j, at in zip(with_prototypes, places):
        if j not in (k, finest):
          continue
        hue = of_leaf[k] if j == finest else hues[k]
        marks += [
          {
            'shape': 'star' if j == finest else 'circle',
            'own': j == k,
            'hue': int(hue[c]),
            'x': f'{x:.1f}',
            'y': f'{y:.1f}',
            'name': table.names[j][c],
          }
          for c, (x, y) in zip(shown[j].tolist(), at.tolist())
          if hue[c] >= 0
        ]
      panels.append(
        {
          'level': level,
          'paths': charts.scatter(points, hues[k][one['labels'][:, k]]),
          'marks': sorted(marks, key=lambda mark: mark['own']),
        }
      )
    moments.append(
      {
        'name': moment,
        'panels': panels,
        'n': len(points),
        'prototypes': len(xy) - len(points),
        'perplexity': f'{explain.perplexity(len(xy)):.3g}',
      }
    )
  if not moments:
    return render('sentence', 'There are too few images to place.')
  legends = [
    (level, _legend(hues[k], k, table, (hues[k][labels[:, k]] < 0).any()))
    for k, level in enumerate(table.levels)
  ]
  return render(
    'embedding',
    moments=moments,
    legends=legends,
    size=PICTURE,
    levels=table.levels,
    split=get(run.config, 'data.val', 'val'),
    seed=explain.SEED,
    prototypes=any(moment['prototypes'] for moment in moments),
  )
