"""The table of scores: every metric of each decision, for each evaluated split."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from hierjax.core.metrics import METRICS, is_finite, lookup, registered_by_users
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


class Column(NamedTuple):
  """A decision of an evaluation, under the name that heads its column."""

  name: str
  evaluation: Mapping
  decision: str

  def value(self, metric: str) -> float | None:
    """The value of 'METRIC' or 'METRIC/LEVEL'."""
    return lookup(self.evaluation, f'{self.decision}:{metric}')

  def interval(self, metric: str) -> tuple[float, float] | None:
    """The bootstrap interval of 'METRIC' or 'METRIC/LEVEL'."""
    name, _, level = metric.partition('/')
    intervals = (self.evaluation.get('intervals') or {}).get(self.decision) or {}
    entry = intervals.get(f'{level}.{name}' if level else name) or {}
    if not is_finite(entry.get('low')) or entry['low'] >= entry['high']:
      return None
    return entry['low'], entry['high']


def baseline_decision(evaluation: Mapping) -> str | None:
  """Return the decision by which a baseline is judged: 'leaf', else 'independent', else None."""
  decode = evaluation.get('decode') or {}
  return next((name for name in ('leaf', 'independent') if decode.get(name)), None)


def _render(run: Run) -> Markup:
  """Render one table for each evaluated split."""
  if not run.evaluation:
    return paragraph(
      'No eval_SPLIT.json was found: run --mode=evaluate --split=val with this --workdir.'
    )
  tables = [_table(run, split) for split in run.splits]
  has_baseline = any(table['columns'][0].name == 'baseline' for table in tables)
  occurring = {name for table in tables for name in table['metrics']}
  return render(
    'scores',
    tables=tables,
    decisions=DECISIONS,
    has_baseline=has_baseline,
    metrics=[name for name in METRICS if name in occurring],
  )


def _table(run: Run, split: str) -> dict:
  evaluation = run.evals[split]
  base = run.baseline.evals.get(split) if run.baseline else None
  columns = []
  if base and baseline_decision(base):
    columns.append(Column('baseline', base, baseline_decision(base)))
  columns += [Column(k, evaluation, k) for k in DECISIONS if evaluation['decode'].get(k)]
  groups, occurring = [], set()
  for title, names in _groups(run, columns):
    names = [name for name in names if any(is_finite(column.value(name)) for column in columns)]
    occurring.update(name.partition('/')[0] for name in names)
    if names:
      groups.append((title, _rows(run, columns, names)))
  weights = evaluation.get('weights') or {}
  cells = [cell for _, rows in groups for _, row in rows for cell in row]
  return {
    'split': split,
    'n': evaluation.get('n', 'an unknown number of'),
    'unreadable': evaluation.get('unreadable') or 0,
    'views': evaluation.get('tta') or 1,
    'columns': columns,
    'groups': groups,
    'metrics': occurring,
    'has_all_heads': set(run.levels) <= set(run.heads),
    'weights': {level: w for level, w in weights.items() if is_finite(w)},
    'gain': [get(evaluation, f'calibration.{name}') for name in ('gain', 'gain_error')],
    'has_intervals': any(interval for _, _, interval in cells),
  }


def _groups(run: Run, columns: Sequence[Column]) -> list[tuple[str, list[str]]]:
  """(title, names of metrics) of the parts of a table."""

  def per_level(metric):
    return [f'{metric}/{level}' for level in run.levels]

  def label(metric):
    return METRICS[metric].label

  pairs = {}
  for column in columns:
    pairs |= column.evaluation['decode'][column.decision].get('consistency') or {}
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


def _rows(run: Run, columns: Sequence[Column], names: Sequence[str]) -> list[tuple[str, list]]:
  """(label, cells (text, whether it is the best, interval)) of metrics that have a value."""
  rows = []
  for name in names:
    key, _, level = name.partition('/')
    metric, values = METRICS[key], [column.value(name) for column in columns]
    finite = [value for value in values if is_finite(value)]
    texts, best = [metric.text(value) for value in values], None
    # Equal as printed is equal: all are the best, and none where every column is the same.
    if metric.better and len(set(texts)) > 1:
      best = metric.text(max(finite) if metric.better > 0 else min(finite))
    intervals = [
      c.interval(name) if key in WITH_INTERVAL or metric.function else None for c in columns
    ]
    ranges = [
      '–'.join(metric.text(value).removesuffix('%') for value in pair or ()) for pair in intervals
    ]
    label = level or metric.label
    if level in run.levels and level not in run.heads:
      label += '*'
    rows.append((label, [(text, text == best, r) for text, r in zip(texts, ranges)]))
  return rows


SECTION = Section('scores', 'Scores', _render, True)
