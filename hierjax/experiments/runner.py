"""Making the rows of a table: a run each, in WORKDIR/ROW/seedK."""

import copy
import dataclasses
import fnmatch
import gc
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from hierjax import model
from hierjax.core import config, files, json_files, plugins, terminal
from hierjax.core.errors import UserError, did_you_mean
from hierjax.decide.decisions import without_fitted
from hierjax.evaluate import metrics
from hierjax.experiments import describe, fit, run_lock
from hierjax.experiments.table import COUNTS, Row, Table
from hierjax.experiments.workdir import FREE_ON_RESUME
from hierjax.report import runs
from hierjax.train import chrono


@dataclasses.dataclass(frozen=True)
class Result:
  """What a finished row left, of one seed.

  Args:
    evaluation: its eval_SPLIT.json.
    seconds: time of training; 0 where another row's run was evaluated.
    levels: levels of the taxonomy.
    images: [N] text, file and labels of each image, sorted.
    values: 'DECISION:NAME' → float [N], as `metrics.of_predictions` names them.
  """

  evaluation: dict
  seconds: float
  levels: tuple[str, ...]
  images: np.ndarray
  values: dict[str, np.ndarray]


class Runner:
  """The runs of a table: reads those that have finished, makes the others.

  Args:
    table: the table.
    configs: config of each row.
    workdir: folder of the table.
    seeds: seeds of the runs; the table's own by default.
    rows: names of rows or patterns with *, separated by spaces; all by default.
    split: split that the figures are of; each config's data.val by default.
    overrides: options to set in every row.

  Attributes:
    rows: the rows that were asked for, and those that they evaluate.
    counts: row → parameters and MACs.
    failures: (row, seed) → why it failed.
  """

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
    self.table, self.workdir, self.split = table, pathlib.Path(workdir), split
    self.seeds = tuple(dict.fromkeys(seeds or table.seeds))
    self.overrides = dict(overrides or {})
    self.by_name = {row.name: row for row in table.rows}
    self.configs = copy.deepcopy(dict(configs))
    for c in self.configs.values():
      for path, value in self.overrides.items():
        config.assign(c, path, value)
    self.rows = self._matching(rows)
    self.is_trained = not set(table.columns) <= COUNTS.keys()
    self.counts: dict[str, dict] = {}
    self.failures: dict[tuple[str, int], str] = {}
    self._results: dict[tuple[str, int], Result | None] = {}

  def _matching(self, patterns: str) -> list[Row]:
    names = set() if patterns else set(self.by_name)
    for pattern in patterns.split():
      matches = fnmatch.filter(self.by_name, pattern)
      if not matches:
        raise UserError(
          f'--rows: no row is {pattern!r}{did_you_mean(pattern, self.by_name)}; the rows are '
          f'{"  ".join(self.by_name)}'
        )
      names.update(matches)
    for name in list(names):
      names.update(self.by_name[name].sources)
    return [row for row in self.table.rows if row.name in names]

  def _config(self, row: Row, seed: int) -> ConfigDict:
    c = copy.deepcopy(self.configs[row.name])
    c.seed = seed
    return c

  def folder(self, row: Row, seed: int) -> pathlib.Path:
    """Return the folder of a run."""
    return self.workdir / row.name / f'seed{seed}'

  def evaluated_split(self, row: Row) -> str:
    """Return the split that the figures of a row are of."""
    return self.split or self.configs[row.name].data.val

  def result(self, row: Row, seed: int) -> Result | None:
    """Return the result of a row.

    Args:
      row: the row.
      seed: of the run.

    Returns:
      None where it has not finished with the present options.
    """
    if not self._results.get((row.name, seed)):
      self._results[row.name, seed] = self._read(row, seed)
    return self._results[row.name, seed]

  def results(self, row: Row) -> dict[int, Result]:
    """Return the results of a row by seed."""
    return {s: self.result(row, s) for s in self.seeds if self.result(row, s)}

  @property
  def levels(self) -> tuple[str, ...]:
    """The levels of the taxonomy; () where no row has finished."""
    for row in self.table.rows:
      for result in self.results(row).values():
        return result.levels
    return ()

  def _state(self, row: Row, seed: int) -> tuple[str, float]:
    """Read the digests of the states that a row's runs ended with, '' if one lacks; seconds."""
    names = row.sources or [row.name]
    try:
      infos = [
        json_files.read_object(self.folder(self.by_name[name], seed) / 'run.json') for name in names
      ]
      digests = [info.get('state_sha256') or '' for info in infos]
      seconds = sum(info.get('seconds') or 0.0 for info in infos)
    except (OSError, ValueError, AttributeError):
      return '', 0.0
    return ' '.join(digests) if all(digests) else '', seconds

  def _read(self, row: Row, seed: int) -> Result | None:
    """Read the result of a run; None where there is none, it is damaged, or of other options."""
    folder, split = self.folder(row, seed), self.evaluated_split(row)
    state, seconds = self._state(row, seed)
    try:
      requested = json_files.read_object(folder / 'requested.json')
      if requested['state_sha256'] != state or self._is_changed(requested['options'], row, seed):
        return None
      run = runs.read(folder, baseline=False)
      predictions, evaluation = run.predictions(split) or {}, run.evals[split]
      if run.taxonomy is None:
        return None
      order = np.argsort(predictions['files'], kind='stable')
      labels = predictions['labels'][order]
      values = {}
      for decision in evaluation['decode']:
        predicted = predictions[f'pred_{decision}'][order]
        per_example = metrics.of_predictions(predicted, labels, run.taxonomy.table('exclusive'))
        values.update({f'{decision}:{name}': v for name, v in per_example.items()})
    except (OSError, ValueError, TypeError, KeyError, IndexError):
      return None
    names = predictions['files'][order].tolist()
    images = np.array([f'{file} {label}' for file, label in zip(names, labels.tolist())])
    seconds = 0.0 if row.evaluates else float(seconds)
    return Result(evaluation, seconds, tuple(run.taxonomy.levels), images, values)

  def _is_changed(self, requested: dict, row: Row, seed: int) -> bool:
    """Whether options have changed that the figures of a row depend on."""
    old = config.from_json(json.dumps(requested))
    for change in config.differences(old, self._config(row, seed)):
      if change.startswith(('eval.', 'decide.')) or not change.startswith(FREE_ON_RESUME):
        return True
    return False

  def make(self, row: Row, seed: int) -> None:
    """Train a row, or continue it, or evaluate the runs of others with its options.

    Args:
      row: the row.
      seed: of the run.
    """
    folder, c = self.folder(row, seed), self._config(row, seed)
    if row.evaluates:
      self._evaluate_others(row, seed)
    else:
      if row.baseline and self.result(self.by_name[row.baseline], seed):
        # The report of the row compares with it.
        c.baseline, c.baseline_seeds = str(self.folder(self.by_name[row.baseline], seed)), 1
      fit.fit(c, folder)
      split = self.evaluated_split(row)
      if split != c.data.val:
        model.load(folder).evaluate(split)
    options = json.loads(config.to_json(self._config(row, seed)))
    requested = {'state_sha256': self._state(row, seed)[0], 'options': options}
    files.write(folder / 'requested.json', json_files.dump(requested, indent=2) + '\n')

  def _evaluate_others(self, row: Row, seed: int) -> None:
    folder, sources = self.folder(row, seed), []
    for name in row.sources:
      if not self.result(self.by_name[name], seed):
        raise UserError(f'row {name}, whose run it evaluates, has not finished')
      sources.append(self.folder(self.by_name[name], seed))
    configs, requested = [model.run_config(source) for source in sources], self._config(row, seed)
    plugins.load(requested.plugins)
    for c, source in zip(configs, sources):
      plugins.require(c.plugins, source)
      c.eval = requested.eval
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / 'config.json', config.to_json(configs[0]) + '\n')
    shutil.copy(sources[0] / 'taxonomy.csv', folder / 'taxonomy.csv')
    models = [model.load(source, c) for source, c in zip(sources, configs)]
    _side_by_side(models).evaluate(self.evaluated_split(row), into=folder)

  def run(self, message: Callable[[Exception], str], write: Callable[['Runner'], object]) -> int:
    """Make all that is missing, the first seed of every row before the second of any.

    Args:
      message: error → words for what a user can do something about, '' for a fault.
      write: called after each run, to write the table.

    Returns:
      The number of failures.
    """
    run_lock.make_folder(self.workdir)

    def attempt(step: Callable[[Row, int], None], row: Row, seed: int, name: str) -> None:
      try:
        step(row, seed)
      except Exception as e:
        text = message(e)
        if not text:
          raise
        self.failures[row.name, seed] = text
        terminal.say(f'{name} failed: {text}')
      write(self)

    if set(self.table.columns) & COUNTS.keys():
      for i, row in enumerate(self.rows, 1):
        terminal.say(f'counting row {i} of {len(self.rows)}: {row.name}')
        attempt(self._count, row, self.seeds[0], row.name)
    rows = self.rows if self.is_trained else []
    pending = [(row, seed) for seed in self.seeds for row in rows if not self.result(row, seed)]
    for i, (row, seed) in enumerate(pending):
      terminal.say(
        f'row {self.rows.index(row) + 1} of {len(self.rows)}, seed {seed}: {row.name} '
        f'({len(pending) - i} to do{self._time_left(pending[i:])})'
      )
      attempt(self.make, row, seed, f'row {row.name}, seed {seed},')
      gc.collect()
      # Every row is another program.
      jax.clear_caches()
    write(self)
    return len(self.failures)

  def _count(self, row: Row, _: int) -> None:
    self.counts[row.name] = describe.describe(self.configs[row.name])

  def _time_left(self, pending: Sequence[tuple[Row, int]]) -> str:
    """Say ', about 10 min left', by the mean of the rows that were trained."""
    seconds = [r.seconds for row in self.rows for r in self.results(row).values() if r.seconds]
    if not seconds:
      return ''
    n = sum(not row.evaluates for row, _ in pending)
    return f', about {chrono.clock(float(np.mean(seconds)) * n)} left'


def _side_by_side(models):
  """Return the first of models with the heads of the others: single-task models, taken together.

  What is fitted for the answers of the first alone does not count.
  """
  first, *others = models
  if first.c.decide.novelty:
    raise UserError(
      '--config.decide.novelty: needs the features of one model, not of several side by side'
    )
  together = copy.copy(first)
  together.c, together.rules = copy.deepcopy(first.c), without_fitted(first.rules)
  together.c.decide.risk = together.c.decide.costs = together.c.decide.sets = None

  def step(variables, images):
    probs, features = first.eval_step(variables, images)
    for other in others:
      probs = other.eval_step(other.variables, images)[0] | probs
    return probs, features

  together.eval_step = step
  return together
