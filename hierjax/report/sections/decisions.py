"""Answers with a guarantee: their risk and depth beside rules of others, calibration, costs."""

import numpy as np
from markupsafe import Markup

from hierjax.core.metrics import is_finite
from hierjax.report import charts
from hierjax.report.runs import Run, of_splits
from hierjax.report.section import Section
from hierjax.report.templates import render

RULES = {
  'answers': 'answers',
  'lineage': 'a threshold of the probability',
  'darts': 'DARTS',
  'speciesnet': "SpeciesNet's rule",
}
POINTS = {'fixed .65': 'a fixed threshold of .65', 'speciesnet as published': 'SpeciesNet, .8, .65'}


def _render(run: Run, measured: dict[str, dict]) -> Markup:
  """Render what answers risk and how deep they are; nothing where none are fitted."""
  if not measured:
    return Markup('')
  # a test split tuned nothing
  split = 'test' if 'test' in measured else next(iter(measured))
  answers = measured[split]
  risk, depth = answers['measured']['risk'], answers['measured']['depth']
  if not risk:
    return Markup('')
  curves, rows = [], []
  for colour, (name, title) in enumerate(RULES.items()):
    points = np.array(answers['curves'][name])
    order = np.lexsort(points.T[::-1])
    curves.append(charts.Curve(*points[order].T, colour))
    rows.append({'title': title, 'depth': _depth_at(points, risk['mean']), 'colour': colour})
  for name, title in POINTS.items():
    share, levels = answers['curves'][name][0]
    rows.append({'title': title, 'risk': share, 'depth': levels})
  largest = max(float(curve.x.max()) for curve in curves)
  chart = charts.Chart(
    'Levels answered against risk',
    'share of wrong answers',
    tuple(curves),
    (0, largest),
    (risk['mean'],),
    label='levels answered',
    extent=(0, len(run.levels)),
  )
  levels = [
    {'level': level, 'name': name.replace('_', ' '), **moments}
    for level, scores in answers['calibration'].items()
    for name, moments in scores.items()
    if moments['before'] and is_finite(moments['before']['mean'])
  ]
  return render(
    'decisions',
    answers=answers,
    drift=run.evals[split].get('drift'),
    sets=run.evals[split].get('sets'),
    split=split,
    is_same=split == answers['split'],
    risk=risk,
    depth=depth,
    rows=rows,
    svg=charts.draw(chart) if largest > 0 else '',
    levels=levels,
  )


def _depth_at(points: np.ndarray, risk: float) -> float:
  """Interpolate the depth of a rule at a risk, between the points of its curve."""
  points = points[np.lexsort(points.T[::-1])]
  return float(np.interp(risk, points[:, 0], np.maximum.accumulate(points[:, 1])))


SECTION = Section(
  'decisions', 'Answers and their risk', _render, True, lambda run: of_splits(run, 'answers')
)
