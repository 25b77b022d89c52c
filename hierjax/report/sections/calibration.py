"""Calibration: reliability diagrams and the calibration error of each level and decision."""

from markupsafe import Markup

from hierjax.core.metrics import is_finite, lookup
from hierjax.evaluate import metrics
from hierjax.report import charts
from hierjax.report.runs import Run, get
from hierjax.report.section import Section
from hierjax.report.templates import paragraph, render


def _numbers(run: Run) -> list[dict]:
  """Compute the calibration error of each level and decision, and its reliability bins."""
  rows = []
  for k, level in enumerate(run.levels):
    for decision in _decisions(run):
      ece = lookup(run.evaluation, f'{decision}:ece/{level}')
      if not is_finite(ece):
        continue
      before = get(run.evaluation, 'calibration.ece_before', {}).get(level)
      row = {'level': level, 'decision': decision, 'ece': ece, 'bias': ''}
      row['before'] = before if decision == 'joint' else None
      row |= {'confidence': None, 'accuracy': None, 'bins': _bins(run, k, decision)}
      if row['bins']:
        n, *totals = row['bins']
        confidence, accuracy = (float(total.sum() / n.sum()) for total in totals)
        row |= {'confidence': confidence, 'accuracy': accuracy, 'bias': 'fair'}
        if confidence > accuracy + 0.01:
          row['bias'] = 'too high'
        elif confidence < accuracy - 0.01:
          row['bias'] = 'too low'
      rows.append(row)
  return rows


def _decisions(run: Run) -> list[str]:
  decode = (run.evaluation or {}).get('decode') or {}
  return [name for name in ('independent', 'joint') if decode.get(name)]


def _render(run: Run, rows: list[dict]) -> Markup:
  """Render how far the shown probabilities can be trusted."""
  if not run.evaluation:
    return paragraph('There is no evaluation, so nothing is known about calibration.')
  if not rows:
    return paragraph('The evaluation holds no calibration error.')
  decisions, panels = _decisions(run), []
  for k, level in enumerate(run.levels):
    curves = [
      (decisions.index(row['decision']), *row['bins'])
      for row in rows
      if row['level'] == level and row['bins']
    ]
    if curves:
      svg = charts.reliability(f'Reliability diagram {k + 1}', curves)
      panels.append({'title': level, 'svg': svg})
  return render(
    'calibration',
    rows=rows,
    split=run.splits[0],
    worst=max(rows, key=lambda row: round(100 * row['ece'], 1)),
    panels=panels,
    decisions=decisions,
    calibration=run.evaluation.get('calibration') or {},
    is_before=any(is_finite(row['before']) for row in rows),
    min_images=charts.MIN_IMAGES,
  )


def _bins(run: Run, k: int, decision: str) -> tuple | None:
  """Count the reliability bins of column k; None without predictions or labels."""
  if not run.predicted or f'prob_{decision}' not in run.predicted:
    return None
  labels = run.predicted['labels'][:, k]
  is_labelled = labels >= 0
  if not is_labelled.any():
    return None
  is_right = run.predicted[f'pred_{decision}'][:, k] == labels
  return metrics.reliability(
    run.predicted[f'prob_{decision}'][is_labelled, k], is_right[is_labelled]
  )


SECTION = Section('calibration', 'Calibration', _render, True, _numbers, is_technical=True)
