"""Scores of tag levels, overall and of each class, before and after the thresholds were tuned."""

import numpy as np
from markupsafe import Markup

from hierjax.core.metrics import is_finite
from hierjax.report import charts
from hierjax.report.runs import Run, of_splits
from hierjax.report.section import Section
from hierjax.report.templates import render

# Precision-recall curves in one picture.
CURVES = 12
# Rows of the table of classes.
ROWS = 500


def _render(run: Run, numbers: dict[str, dict]) -> Markup:
  """Render the tables and curves of each split and tag level; nothing without tag levels."""
  tables = []
  for split, levels in numbers.items():
    for level, scores in levels.items():
      title = f'Precision and recall {len(tables)}'
      legend, picture = _precision_recall(run, split, level, scores['classes'], title)
      tables.append(
        {
          'split': split,
          'level': level,
          'n': run.evals[split].get('n'),
          'scores': scores,
          'classes': list(scores['classes'].items()),
          'legend': legend,
          'picture': picture,
        }
      )
  if not tables:
    return Markup('')
  above = getattr(run.taxonomy, 'above', None)
  return render(
    'tags',
    tables=tables,
    limit=ROWS,
    below_exclusive=above is not None and bool((above >= 0).any()),
    level_count=len(run.taxonomy.multi) if run.taxonomy else 1,
    hvr=(run.evaluation or {}).get('hvr') or {},
  )


def _precision_recall(run: Run, split: str, level: str, classes: dict, title: str) -> tuple:
  """Draw (legend, SVG) of the classes with the most images, dots at the tuned thresholds."""
  from sklearn.metrics import precision_recall_curve

  arrays = run.predictions(split) or {}
  columns = getattr(run.taxonomy, 'columns', {}).get(level)
  if columns is None or not {'multi_labels', 'multi_prob'} <= arrays.keys():
    return [], None
  labels, prob = arrays['multi_labels'][:, columns], arrays['multi_prob'][:, columns]
  names = list(classes)
  if labels.shape != prob.shape or labels.shape[1] != len(names):
    return [], None
  curves, dots, legend = [], [], []
  positives = np.array([scores['positives'] for scores in classes.values()])
  for c in np.argsort(-positives, kind='stable')[:CURVES]:
    if not positives[c]:
      continue
    k = len(legend)
    tuned = classes[names[c]]['after']
    is_labelled = labels[:, c] >= 0
    precision, recall, _ = precision_recall_curve(labels[is_labelled, c], prob[is_labelled, c])
    curves.append(charts.Curve(recall, precision, k))
    legend.append((names[c], 'thick', k))
    if is_finite(tuned['precision']):
      point = np.array([tuned['recall']]), np.array([tuned['precision']])
      dots.append(charts.Curve(*point, k, has_dots=True))
  if not curves:
    return [], None
  options = {'percent': True, 'label': 'precision', 'extent': (0, 1.02)}
  return legend, charts.draw(charts.Chart(title, 'recall', (*curves, *dots), (0, 1), **options))


SECTION = Section(
  'labels', 'Scores of each class', _render, numbers=lambda run: of_splits(run, 'multi')
)
