"""The table of scores: every metric of each decision, for each evaluated split."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from hierjax.core.metrics import METRICS, Metric, is_finite, lookup, registered_by_users
from hierjax.report.runs import Run, get
from hierjax.report.section import Section
from hierjax.report.templates import paragraph, render

DECISIONS = {
  'independent': 'the most probable class of each head; the classes may contradict each other',
  'leaf': 'the coarser classes are derived from the predicted finest class',
  'joint': 'the valid path with the highest weighted sum of log probabilities over the heads',
}
# Metrics whose interval is shown; more would drown the numbers.
WITH_INTERVAL = ('top1', 'fpa', 'hvr', 'severity', 'ahd1')


class Score(NamedTuple):
  """The value of a metric, and its bootstrap interval over the images where one is shown."""

  value: float
  low: float | None = None
  high: float | None = None


# By its column ('baseline' or a decision) and 'METRIC' or 'METRIC/LEVEL'.
Scores = Mapping[str, Mapping[str, Score]]


def baseline_decision(evaluation: Mapping) -> str | None:
  """Return the decision by which a baseline is judged: 'leaf', else 'independent', else None."""
  decode = evaluation.get('decode') or {}
  return next((name for name in ('leaf', 'independent') if decode.get(name)), None)


def _numbers(run: Run) -> dict[str, Scores]:
  return {split: _scores(run, split) for split in run.splits}


def _scores(run: Run, split: str) -> Scores:
  """Collect all metrics that have a value on a split."""
  base, scores = run.baseline.evals.get(split) if run.baseline else None, {}
  if base and baseline_decision(base):
    scores['baseline'] = _column(run, base, baseline_decision(base))
  for decision in DECISIONS:
    if run.evals[split]['decode'].get(decision):
      scores[decision] = _column(run, run.evals[split], decision)
  return scores


def _column(run: Run, evaluation: Mapping, decision: str) -> dict[str, Score]:
  """Look up the metrics of a decision that have a value, with the intervals that are shown."""
  intervals = get(evaluation, f'intervals.{decision}') or {}
  scores = {}
  groups = dict(_groups(run, evaluation['decode'][decision]))
  for name in itertools.chain(*groups.values()):
    key, _, level = name.partition('/')
    value = lookup(evaluation, f'{decision}:{name}')
    if not is_finite(value):
      continue
    entry = intervals.get(f'{level}.{key}' if level else key) or {}
    has_interval = key in WITH_INTERVAL or METRICS[key].function
    if has_interval and is_finite(entry.get('low')) and entry['low'] < entry['high']:
      scores[name] = Score(value, entry['low'], entry['high'])
    else:
      scores[name] = Score(value)
  return scores


def _render(run: Run, numbers: dict[str, Scores]) -> Markup:
  """Render one table for each evaluated split."""
  if not run.evaluation:
    return paragraph(
      'No eval_SPLIT.json was found: run hierjax evaluate --split=val with this --workdir.'
    )
  return render(
    'scores',
    tables=[_table(run, split, scores) for split, scores in numbers.items()],
    decisions=DECISIONS,
    has_baseline=any('baseline' in scores for scores in numbers.values()),
  )


def _table(run: Run, split: str, scores: Scores) -> dict:
  """Collect what the template needs of the table of a split."""
  evaluation = run.evals[split]
  occurring = set(itertools.chain(*scores.values()))
  pairs = {name.partition('/')[2]: '' for name in sorted(occurring) if name.startswith('consiste')}
  groups = []
  for title, names in _groups(run, {'consistency': pairs}):
    names = [name for name in names if name in occurring]
    if names:
      groups.append((title, _rows(run, scores, names)))
  weights = evaluation.get('weights') or {}
  cells = [cell for _, rows in groups for _, row in rows for cell in row]
  return {
    'split': split,
    'n': evaluation.get('n', 'an unknown number of'),
    'unreadable': evaluation.get('unreadable') or 0,
    'views': evaluation.get('tta') or 1,
    'columns': list(scores),
    'groups': groups,
    'has_all_heads': set(run.levels) <= set(run.heads),
    'weights': {level: w for level, w in weights.items() if is_finite(w)},
    'gain': [get(evaluation, f'calibration.{name}') for name in ('gain', 'gain_error')],
    'has_intervals': any(interval for _, _, interval in cells),
  }


def _groups(run: Run, decision: Mapping) -> list[tuple[str, list[str]]]:
  """List (title, names of metrics) of the parts of a table; a decision has pairs of levels."""

  def per_level(metric):
    return [f'{metric}/{level}' for level in run.levels]

  def label(metric):
    return METRICS[metric].label

  pairs = decision.get('consistency') or {}
  users = {}
  for metric in registered_by_users():
    is_of_level = metric.scope == 'level'
    users[metric.label] = per_level(metric.name) if is_of_level else [metric.name]
  return [
    *((f'Accuracy, {label(top)}', per_level(top)) for top in ('top1', 'top3', 'top5')),
    ('Whole path', ['fpa', 'hvr', 'hvr_eq14', 'hp', 'hr', 'hf1', 'gap']),
    ('Consistency of two levels', [f'consistency/{pair}' for pair in pairs]),
    ('Size of mistakes, in levels', ['severity', 'ahd1', 'ahd5']),
    ('Calibration error (ECE)', per_level('ece')),
    *users.items(),
  ]


def _rows(run: Run, scores: Scores, names: Sequence[str]) -> list[tuple[str, list]]:
  """List (label, cells (text, whether it is the best, interval)) of metrics with a value."""
  rows = []
  for name in names:
    key, _, level = name.partition('/')
    metric = METRICS[key]
    row = [column.get(name) for column in scores.values()]
    texts = [metric.text(score.value if score else None) for score in row]
    best = None
    # Equal as printed is equal: all are the best, and none where every column is the same.
    if metric.better and len(set(texts)) > 1:
      values = [score.value for score in row if score]
      best = metric.text(max(values) if metric.better > 0 else min(values))
    label = level or metric.label
    if level in run.levels and level not in run.heads:
      label += '*'
    cells = [(text, text == best, _interval(metric, score)) for text, score in zip(texts, row)]
    rows.append((label, cells))
  return rows


def _interval(metric: Metric, score: Score | None) -> str:
  """Print the interval of a score; '' where there is none."""
  if score is None or score.low is None:
    return ''
  return '–'.join(metric.text(end).removesuffix('%') for end in (score.low, score.high))


SECTION = Section('scores', 'Scores', _render, is_of_exclusive_levels=True, numbers=_numbers)
