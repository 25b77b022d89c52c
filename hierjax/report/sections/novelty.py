"""Detection of images whose class training never saw (decide.novelty)."""

from markupsafe import Markup

from hierjax.report import charts
from hierjax.report.runs import Run, get
from hierjax.report.section import Section
from hierjax.report.templates import render


def _render(run: Run, novelty: dict | None) -> Markup:
  """Render the scores for each level and the threshold of each node; nothing without novelty."""
  # earlier versions set thresholds otherwise
  if not novelty or 'false_alarms' not in novelty:
    return Markup('')
  panels = []
  for level, scores in novelty['levels'].items():
    if not scores['roc']:
      continue
    points = [dict(zip('xy', point)) for point in scores['roc']]
    curve = charts.logged_curve(points, 'x', 'y', 0)
    chart = charts.Chart(
      f'Novelty, ROC of {level}',
      'share of known images called new',
      (curve,),
      (0, 1),
      percent=True,
      extent=(0, 1),
    )
    panels.append({'title': level, 'svg': charts.draw(chart)})
  validation, drift = get(run.config, 'data.val'), run.evaluation.get('drift')
  return render('novelty', novelty=novelty, panels=panels, validation=validation, drift=drift)


SECTION = Section(
  'novelty', 'Novelty detection', _render, numbers=lambda run: get(run.evaluation, 'novelty')
)
