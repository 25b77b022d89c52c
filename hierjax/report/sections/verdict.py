"""Whether the hierarchy pays: the run against a plain model with one head for the finest level."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from hierjax.core.metrics import METRICS, is_finite, lookup
from hierjax.evaluate import bootstrap, metrics
from hierjax.report.formats import count
from hierjax.report.runs import Run, flat, get
from hierjax.report.section import Section
from hierjax.report.sections.scores import baseline_decision
from hierjax.report.templates import paragraph, render

# Options in which a run and its baseline may differ without it mattering, and those that make a
# baseline one.
IMMATERIAL = ('name', 'baseline', 'model.levels', 'model.head', 'data.workers', 'data.threads')
IMMATERIAL += ('train.log_steps',)


class Pair(NamedTuple):
  """The values per example of a run and its baseline on the same files, {metric: float [N]}."""

  files: np.ndarray
  ours: dict[str, np.ndarray]
  baseline: dict[str, np.ndarray]


class Row(NamedTuple):
  """A metric of both runs, the mean over the seeds, and the interval of the difference."""

  name: str
  label: str
  baseline: float | None
  value: float | None
  independent: float | None
  interval: bootstrap.Difference | None

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
  def is_uncertain(self) -> bool:
    """Whether there is an interval over images and seeds, and the metric varies at all."""
    return bool(self.interval and self.interval.images[0] < self.interval.images[1])

  @property
  def limit(self) -> float:
    """The difference from which on the interval would exclude zero."""
    return max(self.interval.mean - self.interval.low, self.interval.high - self.interval.mean)

  @property
  def tone(self) -> str:
    """'good' or 'bad' where the interval over images and seeds excludes zero, else ''."""
    better = self.metric.better
    if not better or not self.interval or not self.interval.is_clear:
      return ''
    return 'good' if self.interval.mean * better > 0 else 'bad'


class Comparison(NamedTuple):
  """A run, and further seeds of it, against its baseline.

  Attributes:
    decision: the decision rule whose figures are compared.
    seeds: number of runs.
    mismatches: why the two cannot be compared.
    rows: {METRIC or METRIC/LEVEL: Row}.
    basis: what the intervals rest on, or why there are none.
    answer: the verdict in a word or two.
  """

  decision: str
  seeds: int
  mismatches: list[str]
  rows: dict[str, Row]
  basis: str
  answer: str


def compare(run: Run) -> Comparison | str:
  """Compare a run that is evaluated with its baseline.

  Args:
    run: the run.

  Returns:
    The comparison; 'one head', 'no baseline' or 'not evaluated' where there is nothing to compare.
  """
  split = run.splits[0]
  if len(run.heads) == 1 or run.baseline is None:
    return 'one head' if len(run.heads) == 1 else 'no baseline'
  base = run.baseline.evals.get(split)
  if not base or not baseline_decision(base):
    return 'not evaluated'
  decode = run.evaluation['decode']
  decision = next(name for name in ('joint', 'leaf', 'independent') if decode.get(name))
  mismatches = _mismatches(run, split)
  runs = [run] if mismatches else [run, *_other_seeds(run, split, decision)]
  labels = labels_of(run)
  differences, basis = ({}, '') if mismatches else _differences(runs, split, decision, labels)
  rows = {row.name: row for row in _rows(runs, split, decision, labels, differences)}
  answer = _answer(rows['fpa'], mismatches)
  return Comparison(decision, len(runs), mismatches, rows, basis, answer)


def _render(run: Run, result: Comparison | str | None) -> Markup:
  """Render the comparison, or how to get a baseline."""
  if result is None:
    return paragraph('There is no evaluation of this run, so nothing can be compared.')
  if isinstance(result, str):
    gain = [get(run.evaluation, f'calibration.{name}') for name in ('gain', 'gain_error')]
    return render('verdict', run=run, reason=result, gain=gain)
  rows = result.rows.values()
  has_independent = bool(run.evaluation['decode'].get('independent'))
  return render(
    'verdict',
    run=run,
    reason='',
    result=result,
    is_assumed=any(row.interval and row.interval.is_assumed for row in rows) or result.seeds == 1,
    seed_deviation=bootstrap.SEED_DEVIATION,
    differing=_differing(run),
    trained_on=_trained_on(run),
    has_interval=any(row.is_uncertain for row in rows),
    has_independent=has_independent and result.decision != 'independent',
  )


def _other_seeds(run: Run, split: str, decision: str) -> list[Run]:
  """Select the further seeds that are evaluated like the run, with a baseline likewise."""
  others = []
  for other in run.seeds:
    base = other.baseline and other.baseline.evals.get(split)
    is_evaluated = other.evals.get(split, {'decode': {}})['decode'].get(decision)
    if is_evaluated and base and baseline_decision(base) and not _mismatches(other, split):
      others.append(other)
  return others


def labels_of(run: Run) -> dict[str, str]:
  """Return the metrics that are compared: METRIC or METRIC/LEVEL, and what they are called."""
  labels = {f'top1/{level}': f'{level} accuracy' for level in reversed(run.levels)}
  labels |= {'fpa': 'full-path accuracy', 'hvr': 'contradictions (HVR)'}
  return labels | {'severity': 'severity of mistakes', 'ahd1': 'distance (AHD@1)'}


def _rows(runs, split, decision, labels, differences) -> list[Row]:
  """Look up the metrics, means over the seeds."""
  evaluations = [run.evals[split] for run in runs]
  bases = [run.baseline.evals[split] for run in runs]
  rows = []
  for name, label in labels.items():
    values = [_mean([lookup(base, f'{baseline_decision(base)}:{name}') for base in bases])]
    for kind in (decision, 'independent'):
      values.append(_mean([lookup(evaluation, f'{kind}:{name}') for evaluation in evaluations]))
    rows.append(Row(name, label, *values, differences.get(name)))
  return rows


def _mean(values: Sequence[float | None]) -> float | None:
  return float(np.mean(values)) if all(is_finite(value) for value in values) else None


def _answer(fpa: Row, mismatches: list[str]) -> str:
  """Answer in a word or two, by full-path accuracy: that of one consistent decision."""
  if mismatches:
    return 'Not comparable.'
  if fpa.difference is None or fpa.interval is None:
    return 'Unknown.'
  answers = {'good': 'Yes.', 'bad': 'No.', '': 'No evidence that it helped.'}
  return answers[fpa.tone]


def _mismatches(run: Run, split: str) -> list[str]:
  """List why the run and its baseline cannot be compared."""
  evaluation, base, reasons = run.evals[split], run.baseline.evals[split], []
  for key, word in (('n', 'images'), ('tta', 'views')):
    n, base_n = evaluation.get(key) or 1, base.get(key) or 1
    if n != base_n:
      reasons.append(f'{count(n)} {word} here and {count(base_n)} for the baseline')
  if run.taxonomy and run.baseline.taxonomy and run.taxonomy.hash() != run.baseline.taxonomy.hash():
    reasons.append('the taxonomies differ')
  return reasons


def _differing(run: Run) -> list[str]:
  """List the options in which the runs differ, besides the heads."""
  a, b = flat(run.config), flat(run.baseline.config)
  keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
  return [key for key in keys if not key.startswith(IMMATERIAL)]


def _trained_on(run: Run) -> list[int]:
  """Return the images and steps of both runs, where the baseline leaves out some; else []."""
  runs = run, run.baseline
  is_dropping = [get(r.config, 'data.partial') == 'drop' for r in runs]
  numbers = [r.info.get(key) for key in ('train_examples', 'step') for r in runs]
  return numbers if is_dropping == [False, True] and all(map(is_finite, numbers)) else []


def _differences(runs, split, decision, names) -> tuple[dict[str, bootstrap.Difference], str]:
  """Compute runs minus baselines {metric: Difference}; say what intervals rest on or why none."""
  ours, bases, files = [], [], None
  for run in runs:
    pair, fault = _values(run, split, decision)
    if fault:
      return {}, fault
    files = pair.files if files is None else files
    if not np.array_equal(files, pair.files):
      return {}, 'No intervals: the seeds were evaluated on different files.'
    ours.append(pair.ours)
    bases.append(pair.baseline)
  differences = {}
  for name in names:
    key, metric = metrics.key_of(name), METRICS[name.partition('/')[0]]
    difference = bootstrap.difference(
      [values[key] for values in ours], [values[key] for values in bases], metric.is_percent
    )
    if difference:
      differences[name] = difference
  return differences, f'paired bootstrap over {count(len(files))} images'


def _values(run: Run, split: str, decision: str) -> tuple[Pair | None, str]:
  """Compute the values per example of a run and its baseline, or say why there are none."""
  a, b = run.predictions(split), run.baseline.predictions(split)
  base_key = 'pred_leaf' if b and 'pred_leaf' in b else 'pred_independent'
  is_complete = a and b and f'pred_{decision}' in a and base_key in b
  if run.taxonomy is None or not is_complete:
    return None, f'No intervals: they need predictions_{split}.npz of both runs and the taxonomy.'
  order, base_order = np.argsort(a['files']), np.argsort(b['files'])
  if not np.array_equal(a['files'][order], b['files'][base_order]):
    return None, 'No intervals: the two runs were evaluated on different files.'
  labels, table = a['labels'][order], run.taxonomy
  values = metrics.of_predictions(a[f'pred_{decision}'][order], labels, table)
  base_values = metrics.of_predictions(b[base_key][base_order], labels, table)
  base = run.baseline.evals[split]
  for per_example, stored, name in (
    (values, lookup(run.evals[split], f'{decision}:fpa'), 'this run'),
    (base_values, lookup(base, f'{baseline_decision(base)}:fpa'), 'the baseline'),
  ):
    fpa = bootstrap.nanmean(per_example['fpa'])
    # predictions of an older evaluation must not give their interval to this one
    if fpa is not None and abs(fpa - (stored or 0)) > 1e-3:
      fault = f'the predictions of {name} do not belong to its eval_{split}.json'
      return None, f'No intervals: {fault}.'
  return Pair(a['files'][order], values, base_values), ''


def _numbers(run: Run) -> Comparison | str | None:
  return compare(run) if run.evaluation else None


SECTION = Section(
  'verdict', 'Does the hierarchy help?', _render, is_of_exclusive_levels=True, numbers=_numbers
)
