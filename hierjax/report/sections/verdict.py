"""Whether the hierarchy pays: the run against a plain model with one head for the finest level."""

from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from hierjax.core.metrics import METRICS, is_finite, lookup
from hierjax.evaluate import bootstrap, metrics
from hierjax.report.formats import count
from hierjax.report.runs import Run, flat
from hierjax.report.section import Section
from hierjax.report.sections.scores import baseline_decision
from hierjax.report.templates import paragraph, render

# Options in which a run and its baseline may differ without it mattering, and those that make a
# baseline one.
IMMATERIAL = (
  *('name', 'baseline', 'model.levels', 'model.head'),
  *('data.workers', 'data.threads', 'train.log_steps'),
)


class Row(NamedTuple):
  """A metric of both runs; `low` and `high` limit the interval of the difference, or are None."""

  name: str
  label: str
  baseline: float | None
  value: float | None
  independent: float | None
  low: float | None
  high: float | None

  @property
  def metric(self):
    """Its entry in the registry of metrics."""
    return METRICS[self.name.partition('/')[0]]

  @property
  def difference(self) -> float | None:
    """The run minus the baseline."""
    both = is_finite(self.value) and is_finite(self.baseline)
    return self.value - self.baseline if both else None

  @property
  def tone(self) -> str:
    """'good' or 'bad' where the interval excludes zero, else ''."""
    better = self.metric.better
    if not better or not is_finite(self.difference) or not is_finite(self.low):
      return ''
    if self.low <= 0 <= self.high:
      return ''
    return 'good' if self.difference * better > 0 else 'bad'


def _render(run: Run) -> Markup:
  """Render the comparison, or how to get a baseline."""
  if not run.evaluation:
    return paragraph('There is no evaluation of this run, so nothing can be compared.')
  split = run.splits[0]
  if len(run.heads) == 1 or run.baseline is None:
    return render('verdict', run=run, reason='one head' if len(run.heads) == 1 else 'no baseline')
  base = run.baseline.evals.get(split)
  if not base or not baseline_decision(base):
    return render('verdict', run=run, reason='not evaluated')
  decode = run.evaluation['decode']
  decision = next(name for name in ('joint', 'leaf', 'independent') if decode.get(name))
  mismatches = _mismatches(run, split)
  intervals, basis = ({}, '') if mismatches else _intervals(run, split, decision)
  rows = _rows(run, base, decision, intervals)
  by_name = {row.name: row for row in rows}
  return render(
    'verdict',
    run=run,
    reason='',
    decision=decision,
    mismatches=mismatches,
    rows=rows,
    by_name=by_name,
    answer=_answer(by_name['fpa'], mismatches),
    basis=basis,
    differing=_differences(run),
    has_interval=any(is_finite(row.low) and row.low < row.high for row in rows),
    has_independent=bool(decode.get('independent')) and decision != 'independent',
  )


def _rows(run: Run, base: dict, decision: str, intervals: dict) -> list[Row]:
  labels = {f'top1/{level}': f'{level} accuracy' for level in reversed(run.levels)}
  labels |= {'fpa': 'full-path accuracy', 'hvr': 'contradictions (HVR)'}
  labels |= {'severity': 'severity of mistakes', 'ahd1': 'distance (AHD@1)'}
  rows = []
  for name, label in labels.items():
    values = [lookup(base, f'{baseline_decision(base)}:{name}')]
    values += [lookup(run.evaluation, f'{kind}:{name}') for kind in (decision, 'independent')]
    metric, _, level = name.partition('/')
    key = f'{level}.{metric}' if level else metric
    rows.append(Row(name, label, *values, *intervals.get(key, (None, None))))
  return rows


def _answer(fpa: Row, mismatches: list[str]) -> str:
  """The verdict in a word or two, by full-path accuracy: that of one consistent decision."""
  if mismatches:
    return 'Not comparable.'
  if fpa.difference is None:
    return 'Unknown.'
  if is_finite(fpa.low):
    if fpa.low > 0:
      return 'Yes.'
    return 'No.' if fpa.high < 0 else 'Not shown.'
  if fpa.difference == 0:
    return 'No difference.'
  return 'It seems so.' if fpa.difference > 0 else 'It seems not.'


def _mismatches(run: Run, split: str) -> list[str]:
  """Why the run and its baseline cannot be compared."""
  evaluation, base, reasons = run.evals[split], run.baseline.evals[split], []
  for key, word in (('n', 'images'), ('tta', 'views')):
    n, base_n = evaluation.get(key) or 1, base.get(key) or 1
    if n != base_n:
      reasons.append(f'{count(n)} {word} here and {count(base_n)} for the baseline')
  if run.taxonomy and run.baseline.taxonomy and run.taxonomy.hash() != run.baseline.taxonomy.hash():
    reasons.append('the taxonomies differ')
  return reasons


def _differences(run: Run) -> list[str]:
  """Options in which the runs differ, besides the heads."""
  a, b = flat(run.config), flat(run.baseline.config)
  keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
  return [key for key in keys if not key.startswith(IMMATERIAL)]


def _intervals(run: Run, split: str, decision: str) -> tuple[dict, str]:
  """95% intervals of run minus baseline by a paired bootstrap, and their basis or why none."""
  a, b = run.predictions(split), run.baseline.predictions(split)
  base_key = 'pred_leaf' if b and 'pred_leaf' in b else 'pred_independent'
  is_complete = a and b and f'pred_{decision}' in a and base_key in b
  if run.taxonomy is None or not is_complete:
    return {}, f'No intervals: they need predictions_{split}.npz of both runs and the taxonomy.'
  order, base_order = np.argsort(a['files']), np.argsort(b['files'])
  if not np.array_equal(a['files'][order], b['files'][base_order]):
    return {}, 'No intervals: the two runs were evaluated on different files.'
  labels = a['labels'][order]
  values, base_values = (
    metrics.of_predictions(pred, labels, run.taxonomy)
    for pred in (a[f'pred_{decision}'][order], b[base_key][base_order])
  )
  base = run.baseline.evals[split]
  for per_example, stored, name in (
    (values, lookup(run.evals[split], f'{decision}:fpa'), 'this run'),
    (base_values, lookup(base, f'{baseline_decision(base)}:fpa'), 'the baseline'),
  ):
    fpa = bootstrap.nanmean(per_example['fpa'])
    # predictions of an older evaluation must not give their interval to this one
    if fpa is not None and abs(fpa - (stored or 0)) > 1e-3:
      return {}, f'No intervals: the predictions of {name} do not belong to its eval_{split}.json.'
  intervals = {key: bootstrap.paired_difference(base_values[key], values[key]) for key in values}
  return {key: interval for key, interval in intervals.items() if interval}, (
    f'95% intervals: paired bootstrap over {count(len(labels))} images; they do not cover the '
    'variation between seeds.'
  )


SECTION = Section('verdict', 'Does the hierarchy help?', _render, True)
