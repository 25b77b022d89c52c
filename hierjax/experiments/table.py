"""Tables: rows of a paper's table as runs, one in each of WORKDIR/ROW/seedK, and our figures beside those that were published.

A table is a config file with two functions: `get_config(ROW)`, the configuration of a row (without an argument, of the first), and `get_table()`, a
`Table`; `get_table(ARG)` where --config=FILE:ARG chooses among several. `run` makes what is missing, a row at a time, and writes
WORKDIR/table.md, table.csv and table.html after each.
"""

import contextlib
import copy
import csv
import dataclasses
import fnmatch
import gc
import inspect
import io
import itertools
import json
import pathlib
import shlex
import shutil
import sys
import urllib.parse
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from hierjax import model as predict
from hierjax.core import config as config_lib
from hierjax.core import files, options
from hierjax.core.errors import UserError
from hierjax.core.metrics import DECISIONS, METRICS, lookup, signed
from hierjax.evaluate import bootstrap, metrics
from hierjax.experiments import describe, fit
from hierjax.experiments.workdir import FREE_ON_RESUME
from hierjax.report import page, runs
from hierjax.report.formats import count, listed
from hierjax.train import chrono

COUNTS = {
  'params': 'parameters',
  'trunk_params': 'parameters of the backbone',
  'macs': 'MACs',
  'thop_macs': 'MACs as thop counts',
}  # of experiments.describe


@dataclasses.dataclass(frozen=True)
class Row:
  name: str  # the argument of get_config, and the row's folder
  label: str
  published: Sequence[
    float | None
  ] = ()  # in the order of Table.published; None where the paper prints none
  group: str = ''  # a heading above rows that follow each other
  baseline: str = ''  # the row that this one is compared with
  of: str = ''  # the row whose runs are evaluated anew with this row's eval options, or several, 'a b', whose heads stand side
  # by side (of the first one's levels); '' = it is trained
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Table:
  """`columns` are METRIC, METRIC/LEVELS or consistency/A,B, where levels may be finest, coarsest, all ...; joint:METRIC is of the joint decision, others of
  the independent heads (levels without a head are read off the finest one). Of multi levels there are those of kind 'tags', without a decision in front. A
  table whose columns are all COUNTS trains nothing."""

  title: str
  source: str  # of the published figures: paper, table, and what they were measured on
  columns: Sequence[str]
  rows: Sequence[Row]
  published: Mapping[str, str] = dataclasses.field(
    default_factory=dict
  )  # name of a published column -> the column of ours that it stands beside
  chart: Sequence[str] = ()  # columns that are drawn as bars
  seeds: Sequence[int] = (0,)


@dataclasses.dataclass(frozen=True)
class Column:
  key: str  # 'top1/model', 'joint:fpa', 'params'
  title: str
  metric: str
  decoding: str = ''
  level: str = ''  # or the pair 'make-model'

  def value(self, evaluation: Mapping) -> float | None:
    """The metric in an eval_SPLIT.json."""
    return lookup(evaluation, self.key)

  @property
  def paired(self) -> str:
    """Its per-example values among Done.values; '' where there are none."""
    return (
      f'{self.decoding}:{f"{self.level}.{self.metric}".strip(".")}'
      if self.metric not in COUNTS and METRICS[self.metric].is_compared
      else ''
    )

  def text(self, value: float | None, deviation: float | None = None) -> str:
    """As it is printed: a share in per cent, a count in full; '' where there is none."""
    if value is None:
      return ''
    if self.metric in COUNTS:
      return count(value)
    return ' ± '.join(
      METRICS[self.metric].text(v).removesuffix('%') for v in (value, deviation) if v is not None
    )


def load(found: Mapping, argument: str = '') -> tuple[Table, dict[str, ConfigDict]]:
  """The table of a config file's namespace, and the configuration of every row. UserError names what does not add up."""
  if argument and not inspect.signature(found['get_table']).parameters:
    raise UserError(
      f'--config=FILE:{argument}: this file has one table, which takes no argument; --rows={argument} takes one row'
    )
  made = found['get_table'](*[argument] * bool(argument))
  if not isinstance(made, Table) or not made.rows or not made.columns:
    raise UserError('get_table() must return a hierjax.table.Table with rows and columns')
  names = [row.name for row in made.rows]
  for row in made.rows:
    if (
      not row.name
      or not {'/', ' '}.isdisjoint(row.name)
      or '\\' in row.name
      or row.name.startswith('.')
      or names.count(row.name) > 1
    ):
      raise UserError(f'row {row.name!r}: a name is that of a folder, and of one row')
    for what, other in (('baseline', row.baseline), *(('of', name) for name in row.of.split())):
      if other and other not in names:
        raise UserError(
          f'row {row.name}: {what}={other!r} is no row{config_lib.did_you_mean(other, names)}'
        )
    if len(row.published) not in (0, len(made.published)):
      raise UserError(
        f'row {row.name}: {len(row.published)} published figures for {len(made.published)} columns ({", ".join(made.published)})'
      )
  for text in (*made.columns, *made.published.values(), *made.chart):
    expand(text, ())
  configs = {name: found['get_config'](name) for name in names}
  for name, c in configs.items():
    try:
      config_lib.check_tree(c)
    except UserError as e:
      raise UserError(f'row {name}: {e}') from None
  for row in made.rows:
    if row.of and (
      other := [
        d
        for d in config_lib.differences(configs[row.of.split()[0]], configs[row.name])
        if not d.startswith(('name:', 'eval.'))
      ]
    ):
      raise UserError(
        f'row {row.name} evaluates the runs of {row.of.split()[0]} anew, so that only eval options may differ, not {other[0]}'
      )
  return made, configs


def expand(text: str, levels: Sequence[str]) -> list[Column]:
  """The columns that METRIC/LEVELS means for these levels of a taxonomy; where none are known yet, for its words. A level that these data lack keeps its
  place, so that what was published of it is shown: no figures of ours are in that column."""
  decoding, _, rest = text.rpartition(':')
  decoding = decoding or 'independent'
  metric, _, where = rest.partition('/')
  if rest in COUNTS and text == rest:
    return [Column(rest, COUNTS[rest], rest)]
  if metric not in METRICS or not METRICS[metric].place or decoding not in DECISIONS:
    raise UserError(
      f'{text!r} is no column: [independent: | leaf: | joint:]METRIC[/LEVELS] with a metric of {", ".join(m for m in METRICS if METRICS[m].place)}, or {", ".join(COUNTS)}'
    )
  prefix, note = ('', '') if decoding == 'independent' else (f'{decoding}:', f', {decoding}')
  words = options.names(where)
  if METRICS[metric].scope != 'path':
    if not words or (metric == 'consistency' and len(words) != 2):
      raise UserError(
        f'{text!r}: {metric} needs {"two levels" if metric == "consistency" else "levels"}, as {metric}/coarsest,finest'
      )
    with contextlib.suppress(UserError):
      named = config_lib.resolve_levels(words, levels, text) if levels else words
      words = words if metric == 'consistency' and len(named) != 2 else named
  elif where:
    raise UserError(f'{text!r}: {metric} is of the whole path, not of a level')
  places = ['-'.join(words)] if metric == 'consistency' else words or ['']
  title = METRICS[metric].label
  return [
    Column(
      f'{prefix}{metric}{"/" if place else ""}{place}',
      f'{place} {title}'.strip() + note,
      metric,
      decoding,
      place,
    )
    for place in places
  ]


@dataclasses.dataclass(frozen=True)
class Done:
  """What a finished row left, of one seed."""

  evaluation: dict
  seconds: float  # of training; 0 where another row's run was evaluated
  levels: tuple[str, ...]
  images: np.ndarray  # [N] text: the file and its labels, sorted
  values: dict[str, np.ndarray]  # 'DECODING:NAME' -> [N], as metrics.of_predictions names them


class Runner:
  """The runs of a table: which are there, and making those that are not."""

  def __init__(
    self,
    table: Table,
    configs: Mapping[str, ConfigDict],
    workdir: str | pathlib.Path,
    seeds: Sequence[int] = (),
    rows: str = '',
    split: str = '',
    overrides: Mapping[str, object] | None = None,
  ):
    self.table, self.workdir, self.seeds, self.split = (
      table,
      pathlib.Path(workdir),
      tuple(dict.fromkeys(seeds or table.seeds)),
      split,
    )
    self.overrides, self.configs, self.named = (
      dict(overrides or {}),
      {},
      {row.name: row for row in table.rows},
    )
    for name, c in configs.items():
      self.configs[name] = copy.deepcopy(c)
      for path, value in self.overrides.items():
        config_lib.assign(self.configs[name], path, value)
    if unknown := [
      p for p in rows.split() if not any(fnmatch.fnmatchcase(name, p) for name in self.named)
    ]:
      raise UserError(
        f'--rows: no row is {unknown[0]!r}{config_lib.did_you_mean(unknown[0], list(self.named))}; the rows are {"  ".join(self.named)}'
      )
    chosen = {
      name
      for name in self.named
      if not rows or any(fnmatch.fnmatchcase(name, p) for p in rows.split())
    }
    chosen |= {of for name in chosen for of in self.named[name].of.split()}
    self.rows = [row for row in table.rows if row.name in chosen]
    self.trains = not set(table.columns) <= COUNTS.keys()
    self.counts: dict[str, dict] = {}  # row -> describe()
    self.failures: dict[tuple[str, int], str] = {}  # (row, seed) -> why
    self._done: dict[tuple[str, int], Done] = {}

  def config(self, row: Row, seed: int) -> ConfigDict:
    c = copy.deepcopy(self.configs[row.name])
    c.seed = seed
    return c

  def place(self, row: Row, seed: int) -> pathlib.Path:
    return self.workdir / row.name / f'seed{seed}'

  def measured(self, row: Row) -> str:
    """The split that the figures are of."""
    return self.split or self.configs[row.name].data.val

  def _state(self, row: Row, seed: int) -> tuple[str, float]:
    """The digest of the state that the row's training ended with (of several, one behind the other), '' where it has not, and the seconds it took."""
    try:
      infos = [
        json.loads((self.place(self.named[name], seed) / 'run.json').read_text())
        for name in row.of.split() or [row.name]
      ]
      states = [info.get('state_sha256') or '' for info in infos]
      return ' '.join(states) if all(states) else '', sum(
        info.get('seconds') or 0.0 for info in infos
      )
    except (OSError, ValueError, AttributeError):
      return '', 0.0

  def done(self, row: Row, seed: int) -> Done | None:
    """The row's figures, where they are there, of these very options and of the state that its run is in."""
    if (row.name, seed) not in self._done and (found := self._read(row, seed)):
      self._done[row.name, seed] = found
    return self._done.get((row.name, seed))

  @property
  def levels(self) -> tuple[str, ...]:
    """Of the taxonomy, once a row has finished."""
    return next(
      (d.levels for row in self.table.rows for seed in self.seeds if (d := self.done(row, seed))),
      (),
    )

  def _read(self, row: Row, seed: int) -> Done | None:
    place, split = self.place(row, seed), self.measured(row)
    try:
      asked = json.loads((place / 'requested.json').read_text())
      changed = config_lib.differences(
        config_lib.from_json(json.dumps(asked['options'])), self.config(row, seed)
      )
      state, seconds = self._state(row, seed)
      if asked['state_sha256'] != state or any(
        d.startswith('eval.') or not d.startswith(FREE_ON_RESUME) for d in changed
      ):
        return None
      run = runs.read(place, baseline=False)
      found, evaluation, taxonomy = run.predictions(split) or {}, run.evals[split], run.taxonomy
      if taxonomy is None:
        return None
      order = np.argsort(found['files'], kind='stable')
      labels = found['labels'][order]
      values = {
        f'{d}:{k}': v
        for d in evaluation['decode']
        for k, v in metrics.of_predictions(
          found[f'pred_{d}'][order], labels, taxonomy.table('exclusive')
        ).items()
      }
    except (
      OSError,
      ValueError,
      TypeError,
      KeyError,
      IndexError,
    ):  # it never came to that, or a file is damaged
      return None
    images = np.array([f'{f} {l}' for f, l in zip(found['files'][order].tolist(), labels.tolist())])
    return Done(
      evaluation, 0.0 if row.of else float(seconds), tuple(taxonomy.levels), images, values
    )

  def make(self, row: Row, seed: int) -> None:
    """Trains the row, or goes on with it, or evaluates another row's run with its options."""
    place, c, split = self.place(row, seed), self.config(row, seed), self.measured(row)
    if row.of:
      if lacking := [name for name in row.of.split() if not self.done(self.named[name], seed)]:
        raise UserError(f'row {lacking[0]}, whose run it evaluates, has not finished')
      sources = [self.place(self.named[name], seed) for name in row.of.split()]
      trained = [predict.run_config(source) for source in sources]
      for one in trained:
        one.eval = c.eval
      place.mkdir(parents=True, exist_ok=True)
      files.write(place / 'config.json', config_lib.to_json(trained[0]) + '\n')
      shutil.copy(sources[0] / 'taxonomy.csv', place / 'taxonomy.csv')
      first, *others = [predict.load(source, one) for source, one in zip(sources, trained)]
      first.evaluate(split, into=place, others=others)
    else:
      if row.baseline and self.done(
        self.named[row.baseline], seed
      ):  # the row's own report compares with it
        c.baseline = str(self.place(self.named[row.baseline], seed))
      fit.fit(c, place)
      if split != c.data.val:
        predict.load(place).evaluate(split)
    asked = json.loads(config_lib.to_json(self.config(row, seed)))
    files.write(
      place / 'requested.json',
      json.dumps({'state_sha256': self._state(row, seed)[0], 'options': asked}, indent=2) + '\n',
    )

  def run(self, told: Callable[[Exception], str]) -> int:
    """Makes all that is missing, the first seed of every row before the second of any, and returns how many failed. `told` says in words what a user can
    help, '' for what is a fault."""
    try:
      self.workdir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
      raise UserError(
        f'--workdir={self.workdir}: {"is a file, not a folder" if self.workdir.is_file() else e.strerror}'
      ) from None

    def attempt(step: Callable, row: Row, seed: int, name: str) -> None:
      try:
        step(row, seed)
      except Exception as e:
        if not (text := told(e)):
          raise
        self.failures[row.name, seed] = text
        print(f'{name} failed: {text}', file=sys.stderr)
      write(self)

    if set(self.table.columns) & COUNTS.keys():
      for i, row in enumerate(self.rows):
        print(f'counting row {i + 1} of {len(self.rows)}: {row.name}', file=sys.stderr)
        attempt(
          lambda row, _: self.counts.update({row.name: describe.describe(self.configs[row.name])}),
          row,
          self.seeds[0],
          row.name,
        )
    todo = [
      (row, seed)
      for seed in self.seeds
      for row in self.rows
      if self.trains and not self.done(row, seed)
    ]
    for i, (row, seed) in enumerate(todo):
      took = [
        d.seconds
        for r, s in itertools.product(self.rows, self.seeds)
        if (d := self.done(r, s)) and d.seconds
      ]
      left = (
        f', about {chrono.clock(float(np.mean(took)) * sum(not r.of for r, _ in todo[i:]))} left'
        if took
        else ''
      )
      print(
        f'row {self.rows.index(row) + 1} of {len(self.rows)}, seed {seed}: {row.name} ({len(todo) - i} to do{left})',
        file=sys.stderr,
      )
      attempt(self.make, row, seed, f'row {row.name}, seed {seed},')
      gc.collect()
      jax.clear_caches()  # every row is another program
    write(self)
    return len(self.failures)


# What is shown


@dataclasses.dataclass
class Record:
  """What is known of a row: means over the seeds, sample deviations, differences to the baseline row and their 95% intervals, by the columns' keys."""

  row: Row
  seeds: list[int]
  mean: dict[str, float]
  deviation: dict[str, float]
  published: dict[str, float]
  notes: list[str]
  difference: dict[str, tuple[float, float, float]] = dataclasses.field(default_factory=dict)
  published_difference: dict[str, float] = dataclasses.field(default_factory=dict)
  delta_m: float | None = None


def columns_of(runner: Runner) -> list[Column]:
  return list(
    {c.key: c for text in runner.table.columns for c in expand(text, runner.levels)}.values()
  )


def records_of(runner: Runner, columns: Sequence[Column]) -> list[Record]:
  """Of the rows that were asked for, and of others that are there."""
  out: dict[str, Record] = {}
  for row in runner.table.rows:
    found = {seed: d for seed in runner.seeds if (d := runner.done(row, seed))}
    if row not in runner.rows and not found:
      continue
    mean, deviation = {}, {}
    for c in columns:
      values = (
        [runner.counts.get(row.name, {}).get(c.key)]
        if c.metric in COUNTS
        else [c.value(d.evaluation) for d in found.values()]
      )
      if values and None not in values:
        mean[c.key] = values[0] if c.metric in COUNTS else float(np.mean(values))
        if len(values) > 1:
          deviation[c.key] = float(np.std(values, ddof=1))
    notes = [row.note] if row.note else []
    notes += [
      f'{f"seed {seed}: " if runner.trains else ""}{text}'
      for (name, seed), text in runner.failures.items()
      if name == row.name
    ]
    if 0 < len(found) < len(runner.seeds):
      notes.append(f'{len(found)} of {len(runner.seeds)} seeds')
    published = {name: v for name, v in zip(runner.table.published, row.published) if v is not None}
    out[row.name] = Record(row, list(found), mean, deviation, published, notes)
  tasks = [c.key for c in columns if c.metric == 'top1' and c.decoding == 'independent']
  for record in out.values():
    if base := out.get(record.row.baseline):
      record.delta_m = delta_m(record.mean, base.mean, tasks)
      record.published_difference = {
        k: v - base.published[k] for k, v in record.published.items() if k in base.published
      }
      seeds = [s for s in record.seeds if s in base.seeds]
      ours, theirs = ([runner.done(r, s) for s in seeds] for r in (record.row, base.row))
      if seeds and all(np.array_equal(ours[0].images, d.images) for d in (*ours, *theirs)):
        for c in columns:
          if all(c.paired in d.values for d in (*ours, *theirs)) and (
            found := difference(*([d.values[c.paired] for d in side] for side in (ours, theirs)))
          ):
            record.difference[c.key] = found
      elif seeds:
        record.notes.append(
          f'not evaluated on the same images as {base.row.name}, so without intervals'
        )
  return list(out.values())


def difference(
  ours: Sequence[np.ndarray], baseline: Sequence[np.ndarray]
) -> tuple[float, float, float] | None:
  """(mean, low, high) of ours - baseline for per-example values [N], one array a seed: the interval is a paired bootstrap over the images, of the means over
  the seeds. It covers the choice of the images, not the luck of the seeds."""
  a, b = np.mean(baseline, 0), np.mean(ours, 0)
  interval = bootstrap.paired_difference(a, b)
  return (float(np.nanmean(b) - np.nanmean(a)), *interval) if interval else None


def delta_m(
  ours: Mapping[str, float], baseline: Mapping[str, float], tasks: Sequence[str]
) -> float | None:
  """The mean over the tasks of (ours - baseline) / baseline: S1's measure of a multi-task model against single-task ones. None where a figure is missing."""
  if not tasks or any(k not in ours or not baseline.get(k) for k in tasks):
    return None
  return float(np.mean([(ours[k] - baseline[k]) / baseline[k] for k in tasks]))


def figure(value: float | None, digits: int = 1) -> str:
  """A published figure: a share in per cent, a count in full; '' where the paper prints none."""
  return (
    '' if value is None else count(value) if isinstance(value, int) else f'{100 * value:.{digits}f}'
  )


@dataclasses.dataclass
class Grid:
  """A table as it is printed. Cells are (text, class of the style sheet)."""

  header: list[str]
  rows: list[tuple[Row, list[tuple[str, str]]]]
  note: str = ''


class View:
  """A table in its three forms."""

  def __init__(self, runner: Runner):
    self.runner, self.table, self.columns = runner, runner.table, columns_of(runner)
    self.records = records_of(runner, self.columns)
    self.beside = {
      name: expand(text, runner.levels)[0].key for name, text in self.table.published.items()
    }  # published column -> ours
    # of a published column, as the paper prints it
    printed = {
      n: [
        row.published[i]
        for row in self.table.rows
        if row.published and row.published[i] is not None
      ]
      for i, n in enumerate(self.beside)
    }
    self.digits = {
      n: 1 if all(abs(1000 * v - round(1000 * v)) < 1e-6 for v in values) else 2
      for n, values in printed.items()
    }

  def main(self) -> Grid:
    """Ours and, beside each column, what was published."""
    order = [
      (c, name)
      for c in self.columns
      for name in (None, *(n for n, key in self.beside.items() if key == c.key))
    ]
    order += [
      (None, name) for name, key in self.beside.items() if key not in {c.key for c in self.columns}
    ]
    several = len(self.runner.seeds) > 1 and self.runner.trains
    rows = []
    for r in self.records:
      cells = [(str(len(r.seeds)), 'quiet')] if several else []
      for c, name in order:
        if name is None:
          cells.append((c.text(r.mean.get(c.key), r.deviation.get(c.key)), ''))
        else:
          same = c is not None and c.metric in COUNTS and c.key in r.mean and name in r.published
          mark = '' if not same else ' ✓' if r.mean[c.key] == r.published[name] else ' ≠'
          cells.append(
            (
              figure(r.published.get(name), self.digits[name]) + mark,
              'bad' if mark == ' ≠' else 'quiet',
            )
          )
      rows.append((r.row, cells))
    return Grid(
      ['seeds'] * several + [c.title if name is None else name for c, name in order], rows
    )

  def notes(self) -> list[tuple[str, str]]:
    return [
      (', '.join(filter(None, (r.row.group, r.row.label))), text)
      for r in self.records
      for text in r.notes
    ]

  def against(self) -> Grid | None:
    """Differences to the baseline rows in percentage points; None where no row has one."""
    shown = [c for c in self.columns if any(c.key in r.difference for r in self.records)]
    names = [
      n
      for n in self.table.published
      if any(n in r.published_difference for r in self.records) and self.beside[n] not in COUNTS
    ]
    delta = any(r.delta_m is not None for r in self.records)
    if not shown and not names and not delta:
      return None
    bases = {
      self.runner.named[r.row.baseline].label for r in self.records if r.row.baseline
    }  # one in all groups, or one a row
    header = [
      *['compared with'] * (len(bases) > 1),
      *(c.title for c in shown),
      *names,
      *['Δm, %'] * delta,
    ]
    rows = []
    for r in self.records:
      if not r.row.baseline:
        continue
      cells = [(self.runner.named[r.row.baseline].label, 'quiet')] if len(bases) > 1 else []
      for c in shown:
        d, low, high = r.difference.get(c.key, (None,) * 3)
        better = METRICS[c.metric].better
        tone = (
          '' if d is None or low <= 0 <= high or not better else 'good' if d * better > 0 else 'bad'
        )
        cells.append(('' if d is None else f'{signed(d)} ({signed(low)} to {signed(high)})', tone))
      cells += [
        ('' if n not in r.published_difference else signed(r.published_difference[n]), 'quiet')
        for n in names
      ]
      rows.append((r.row, cells + [('' if r.delta_m is None else signed(r.delta_m), '')] * delta))
    to = f' to “{min(bases)}”' if len(bases) == 1 else ''
    note = (
      f'Differences{to} in percentage points, with the 95% interval of a paired bootstrap over the images (of the means over the seeds; the luck of the '
      "seeds is not covered). Δm is the mean over the levels of the relative change of the heads' own top-1."
    )
    return Grid(header, rows, note)

  def trends(self) -> str:
    """How many of the differences to the baseline in each published column ours agree with, in words."""
    out = []
    for name, key in self.beside.items():
      pairs = [
        (r.difference[key], r.published_difference[name])
        for r in self.records
        if key in r.difference and round(r.published_difference.get(name, 0), 6)
      ]
      same = [d * p > 0 for (d, _, _), p in pairs]
      sure = [agree for agree, ((_, low, high), _) in zip(same, pairs) if not low <= 0 <= high]
      if pairs:
        out.append(
          f'{sum(same)} of {len(pairs)} ({name}'
          + (
            f'; {sum(sure)} of the {len(sure)} where the interval of ours leaves zero out)'
            if sure
            else ')'
          )
        )
    return f'Differences to the baseline with the published sign: {listed(out)}.' if out else ''

  def sentences(self) -> list[str]:
    """What the figures are of."""
    runner, out = self.runner, []
    first = next((r for r in self.records if r.seeds), None)
    if first:
      split, c, d = (
        runner.measured(first.row),
        runner.configs[first.row.name],
        runner.done(first.row, first.seeds[0]),
      )
      data = pathlib.PurePath(c.data.root).name if c.data.root else 'the drawn toy set'
      seeds = (
        f'seeds {listed(runner.seeds)}: mean ± sample standard deviation'
        if len(runner.seeds) > 1
        else f'seed {runner.seeds[0]}'
      )
      out.append(
        f'Ours: {split} of {data}, {count(d.evaluation["n"])} images, {seeds}. Shares are in %. Every head answers for itself unless a column says '
        'otherwise; the classes of a level without a head are read off the finest one.'
        + (
          f' The checkpoints were chosen on {split}, so expect a little less on new images.'
          if split == c.data.val
          else ''
        )
      )
    elif runner.trains:
      out.append('Ours: no row has finished yet.')
    out.append(f'Published: {self.table.source}.')
    return out

  def departures(self) -> str:
    """In what every row of ours differs from the table's own options, in words; '' where in nothing."""
    changed = [
      f'--config.{k}={v}'
      for k, v in self.runner.overrides.items()
      if k not in ('data.root', 'data.source', 'data.taxonomy')
    ]
    look = ', a look on few images' if self.runner.overrides.get('data.limit') else ''
    return (
      f"Every row of ours departs from the table's own options{look}: {' '.join(changed)}."
      if changed
      else ''
    )

  def markdown(self) -> str:
    def cell(text):
      return ' '.join(str(text).replace('|', '\\|').split())

    def table(grid):
      lines, group = (
        [f'| row | {" | ".join(map(cell, grid.header))} |', f'|---|{"---:|" * len(grid.header)}'],
        '',
      )
      for row, cells in grid.rows:
        if row.group != group:
          group = row.group
          lines.append(f'| **{cell(group)}** |{" |" * len(grid.header)}')
        lines.append(f'| {cell(row.label)} | {" | ".join(cell(text) for text, _ in cells)} |')
      return '\n'.join(lines)

    parts = [
      f'# {self.table.title}',
      *self.sentences(),
      self.departures(),
      table(self.main()),
      '\n'.join(f'- {who}: {text}' for who, text in self.notes()),
    ]
    if against := self.against():
      parts += ['## Against the baseline', against.note, self.trends(), table(against)]
    return '\n\n'.join(p for p in parts if p) + '\n'

  def csv(self) -> str:
    """A line a row, shares as fractions: for each column the mean, the deviation, the difference to the baseline row and its interval."""
    out = io.StringIO()
    header = ['row', 'label', 'group', 'baseline', 'seeds']
    header += [
      f'{c.key}{what}'
      for c in self.columns
      for what in ('', ' deviation', ' difference', ' low', ' high')
    ]
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(
      [*header, *(f'published {name}' for name in self.table.published), 'delta_m', 'notes']
    )
    for r in self.records:
      line = [r.row.name, r.row.label, r.row.group, r.row.baseline, ' '.join(map(str, r.seeds))]
      for c in self.columns:
        line += [r.mean.get(c.key), r.deviation.get(c.key), *r.difference.get(c.key, (None,) * 3)]
      writer.writerow(
        [
          *line,
          *(r.published.get(name) for name in self.table.published),
          r.delta_m,
          '; '.join(r.notes),
        ]
      )
    return out.getvalue()

  def html(self) -> str:
    links = {}
    for r in self.records:
      for seed in r.seeds:
        if (self.runner.place(r.row, seed) / 'report.html').exists():
          links.setdefault(r.row.name, []).append(
            (seed, urllib.parse.quote(f'{r.row.name}/seed{seed}/report.html'))
          )
    against = self.against()
    return page.table(
      self.table.title,
      sentences=self.sentences(),
      departures=self.departures(),
      grid=self.main(),
      links=links,
      notes=self.notes(),
      against=against,
      trends=self.trends() if against else '',
      bars=self.bars(),
      command=shlex.join(sys.argv),
      rows=[r.row for r in self.records],
    )

  def bars(self):
    """The columns of Table.chart as bars, with a mark where the published figure lies."""
    wanted = {c.key for text in self.table.chart for c in expand(text, self.runner.levels)}
    shown = [c for c in self.columns if c.key in wanted]
    rows = []
    for r in self.records:
      bars = []
      for k, c in enumerate(shown):
        name = next(
          (n for n, key in self.beside.items() if key == c.key and n in r.published), None
        )
        if c.key in r.mean or name:
          bars.append(
            {
              'colour': k % 6,
              'mean': r.mean.get(c.key),
              'text': c.text(r.mean.get(c.key), r.deviation.get(c.key)),
              'published': r.published.get(name),
              'beside': figure(r.published.get(name), self.digits.get(name, 1)),
            }
          )
      if bars:
        rows.append((r.row, bars))
    if not rows:
      return None
    has_published = any(b['beside'] for _, bars in rows for b in bars)
    return {'rows': rows, 'names': [c.title for c in shown], 'has_published': has_published}


def write(runner: Runner) -> pathlib.Path:
  """WORKDIR/table.md, table.csv and table.html; returns the last."""
  view = View(runner)
  files.write(runner.workdir / 'table.md', view.markdown())
  files.write(runner.workdir / 'table.csv', view.csv())
  return files.write(runner.workdir / 'table.html', view.html())
