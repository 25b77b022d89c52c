"""The figures of a table's rows: means over the seeds, and differences to the baseline rows."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from hierjax.core.metrics import METRICS, lookup
from hierjax.evaluate import bootstrap
from hierjax.experiments.runner import Runner
from hierjax.experiments.table import Column, Row, expand


@dataclasses.dataclass
class Record:
  """The figures of a row, by the keys of the columns.

  Args:
    row: the row.
    seeds: those that have finished.
    mean: mean over the seeds.
    deviation: sample deviation, where there are several seeds.
    published: published figures by their column.
    notes: remarks and failures.
    difference: to the baseline row, with its 95% intervals.
    published_difference: the same of the published figures.
    delta_m: see `delta_m`.
  """

  row: Row
  seeds: list[int]
  mean: dict[str, float]
  deviation: dict[str, float]
  published: dict[str, float]
  notes: list[str]
  difference: dict[str, bootstrap.Difference] = dataclasses.field(default_factory=dict)
  published_difference: dict[str, float] = dataclasses.field(default_factory=dict)
  delta_m: float | None = None


def columns_of(runner: Runner) -> list[Column]:
  """Return the columns of our figures, each once.

  Args:
    runner: of the table.
  """
  expanded = [expand(text, runner.levels) for text in runner.table.columns]
  return list({c.key: c for columns in expanded for c in columns}.values())


def records_of(runner: Runner, columns: Sequence[Column]) -> list[Record]:
  """Return the figures of the rows that were asked for, and of others that have finished.

  Args:
    runner: of the table.
    columns: of our figures.
  """
  records = {}
  for row in runner.table.rows:
    if row in runner.rows or runner.results(row):
      records[row.name] = _record(runner, row, columns)
  for record in records.values():
    if record.row.baseline in records:
      _compare(runner, record, records[record.row.baseline], columns)
  return list(records.values())


def _record(runner: Runner, row: Row, columns: Sequence[Column]) -> Record:
  results = runner.results(row)
  mean, deviation = {}, {}
  for c in columns:
    if c.is_count:
      values = [runner.counts.get(row.name, {}).get(c.key)]
    else:
      values = [lookup(result.evaluation, c.key) for result in results.values()]
    if not values or None in values:
      continue
    mean[c.key] = values[0] if c.is_count else float(np.mean(values))
    if len(values) > 1:
      deviation[c.key] = float(np.std(values, ddof=1))
  notes = [row.note] if row.note else []
  for (name, seed), text in runner.failures.items():
    if name == row.name:
      notes.append(f'seed {seed}: {text}' if runner.is_trained else text)
  if 0 < len(results) < len(runner.seeds):
    notes.append(f'{len(results)} of {len(runner.seeds)} seeds')
  published = {name: v for name, v in zip(runner.table.published, row.published) if v is not None}
  return Record(row, list(results), mean, deviation, published, notes)


def _compare(runner: Runner, record: Record, base: Record, columns: Sequence[Column]) -> None:
  """Fill in the differences of a record to that of its baseline."""
  tasks = [c.key for c in columns if c.metric == 'top1' and c.decision == 'independent']
  record.delta_m = delta_m(record.mean, base.mean, tasks)
  for name, value in record.published.items():
    if name in base.published:
      record.published_difference[name] = value - base.published[name]
  seeds = [seed for seed in record.seeds if seed in base.seeds]
  ours = [runner.result(record.row, seed) for seed in seeds]
  base_results = [runner.result(base.row, seed) for seed in seeds]
  if not seeds:
    return
  if not all(np.array_equal(ours[0].images, result.images) for result in ours + base_results):
    record.notes.append(
      f'not evaluated on the same images as {base.row.name}, so without intervals'
    )
    return
  same_weights = (record.row.sources or [record.row.name]) == (base.row.sources or [base.row.name])
  for c in columns:
    if not all(c.paired in result.values for result in ours + base_results):
      continue
    values = [result.values[c.paired] for result in ours]
    base_values = [result.values[c.paired] for result in base_results]
    is_share = METRICS[c.metric].is_percent
    difference = bootstrap.difference(values, base_values, is_share, same_weights)
    if difference:
      record.difference[c.key] = difference


def delta_m(
  ours: Mapping[str, float], baseline: Mapping[str, float], tasks: Sequence[str]
) -> float | None:
  """Return the mean over the tasks of (ours - baseline) / baseline, None where a figure is missing.

  S1's measure of a multi-task model against single-task ones.

  Args:
    ours: figures of a row.
    baseline: those of its baseline.
    tasks: the keys of the tasks.
  """
  if not tasks or any(k not in ours or not baseline.get(k) for k in tasks):
    return None
  return float(np.mean([(ours[k] - baseline[k]) / baseline[k] for k in tasks]))
