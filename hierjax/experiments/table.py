"""Tables: the rows of a published table as runs, and which of our figures stand by its own.

A table is a config file with two functions: `get_config(ROW)`, the config of a row (without an
argument, of the first one), and `get_table()`, a `Table`; or `get_table(ARGUMENT)`, where
--config=FILE:ARGUMENT chooses one of several. `runner` makes the rows, `table_view` writes the
result.
"""

import contextlib
import dataclasses
import inspect
import itertools
import random
import re
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from hierjax.core import config, files, options
from hierjax.core.errors import UserError, did_you_mean
from hierjax.core.metrics import DECISIONS, METRICS
from hierjax.report.formats import count

# What `describe` counts.
COUNTS = {
  'params': 'parameters',
  'trunk_params': 'parameters of the backbone',
  'macs': 'MACs',
  'thop_macs': 'MACs as thop counts',
}


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a table.

  Args:
    name: argument of get_config, and the row's folder.
    label: what is shown.
    published: figures in the order of `Table.published`, None where the paper has none.
    group: heading above rows that follow each other.
    baseline: name of the row to compare with.
    evaluates: names of rows, separated by spaces: nothing is trained, their runs are evaluated
      with this row's eval options; heads of several runs are combined, at the first one's levels.
    note: a remark.
  """

  name: str
  label: str
  published: Sequence[float | None] = ()
  group: str = ''
  baseline: str = ''
  evaluates: str = ''
  note: str = ''

  @property
  def sources(self) -> list[str]:
    """The rows whose runs are evaluated."""
    return self.evaluates.split()


@dataclasses.dataclass(frozen=True)
class Table:
  """A table.

  Args:
    title: its title.
    source: paper, table, and data of the published figures; '' for none.
    columns: METRIC, METRIC/LEVELS or consistency/A,B, with levels by name or word (finest, all);
      joint:METRIC and leaf:METRIC are of that decision, others of the independent heads, where
      levels without a head are read off the finest one. If all are `COUNTS`, nothing is trained.
    rows: its rows.
    published: name of each published column → the column of ours beside it.
    chart: columns to draw as bars.
    seeds: seeds to run every row with.
  """

  title: str
  source: str
  columns: Sequence[str]
  rows: Sequence[Row]
  published: Mapping[str, str] = dataclasses.field(default_factory=dict)
  chart: Sequence[str] = ()
  seeds: Sequence[int] = (0,)


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of our figures.

  Args:
    key: 'top1/model', 'joint:fpa', 'params'.
    title: heading.
    metric: name of the metric or count.
    decision: 'independent', 'leaf' or 'joint'.
    level: a level, a pair 'make-model', or ''.
  """

  key: str
  title: str
  metric: str
  decision: str = ''
  level: str = ''

  @property
  def is_count(self) -> bool:
    """Whether it counts parameters or MACs."""
    return self.metric in COUNTS

  @property
  def paired(self) -> str:
    """Its name among the values per example of a `Result`; '' where there are none."""
    if self.is_count or not METRICS[self.metric].is_compared:
      return ''
    return f'{self.decision}:{f"{self.level}.{self.metric}".strip(".")}'

  def text(self, value: float | None, deviation: float | None = None) -> str:
    """Return a figure as it is shown: a share in per cent, a count in full; '' for None.

    Args:
      value: the figure.
      deviation: its deviation over the seeds.
    """
    if value is None:
      return ''
    if self.is_count:
      return count(value)
    values = [value] if deviation is None else [value, deviation]
    return ' ± '.join(METRICS[self.metric].text(v).removesuffix('%') for v in values)


def of_sweep(namespace: Mapping) -> dict[str, Callable]:
  """Make `get_config` and `get_table` of a config file that has options to try.

  Args:
    namespace: names of the file: `get_config`, the base; `SWEEP`, a list of {option: value}, a row
      each, or {option: list of values}, of which all combinations are rows; perhaps `SAMPLES`, how
      many of the rows to draw at random, `COLUMNS` and `SEEDS`.

  Returns:
    What `load` reads.
  """
  rows, base = namespace['SWEEP'], namespace['get_config']
  if isinstance(rows, Mapping):
    rows = [dict(zip(rows, values)) for values in itertools.product(*rows.values())]
  if namespace.get('SAMPLES'):
    rows = random.Random(0).sample(rows, min(namespace['SAMPLES'], len(rows)))
  labels = [', '.join(f'{name}={value}' for name, value in row.items()) for row in rows]
  names = [re.sub(r'[^\w.=+,-]', '', label)[: files.MAX_NAME] or 'base' for label in labels]

  def get_config(name: str) -> ConfigDict:
    c = base()
    for option, value in rows[names.index(name)].items():
      config.assign(c, option, value)
    return c

  def get_table() -> Table:
    columns = namespace.get('COLUMNS', ('top1/all', 'joint:fpa'))
    table_rows = [Row(name, label) for name, label in zip(names, labels)]
    return Table('Sweep', '', columns, table_rows, seeds=namespace.get('SEEDS', (0,)))

  return {'get_config': get_config, 'get_table': get_table}


def load(namespace: Mapping, argument: str = '') -> tuple[Table, dict[str, ConfigDict]]:
  """Return the table of a config file, and the config of every row.

  Args:
    namespace: names of the file: get_config and get_table.
    argument: argument of get_table, '' for none.

  Raises:
    UserError: the table or a config does not add up.
  """
  if argument and not inspect.signature(namespace['get_table']).parameters:
    raise UserError(
      f'--config=FILE:{argument}: the table of this file takes no argument; --rows={argument} '
      'takes one row'
    )
  table = namespace['get_table'](*([argument] if argument else []))
  if not isinstance(table, Table) or not table.rows or not table.columns:
    raise UserError('get_table() must return a hierjax.table.Table with rows and columns')
  names = [row.name for row in table.rows]
  for row in table.rows:
    _check_row(row, names, table)
  for text in (*table.columns, *table.published.values(), *table.chart):
    expand(text, ())
  configs = {name: namespace['get_config'](name) for name in names}
  for name, c in configs.items():
    try:
      config.check_tree(c)
    except UserError as e:
      raise UserError(f'row {name}: {e}') from None
  for row in table.rows:
    _check_sources(row, configs)
  return table, configs


def _check_row(row: Row, names: Sequence[str], table: Table) -> None:
  is_folder = row.name and not set('/\\ ') & set(row.name) and not row.name.startswith('.')
  if not is_folder or names.count(row.name) > 1:
    raise UserError(f'row {row.name!r}: a name is that of a folder, and of one row')
  for field, others in (('baseline', [row.baseline]), ('evaluates', row.sources)):
    for other in others:
      if other and other not in names:
        raise UserError(f'row {row.name}: {field}={other!r} is no row{did_you_mean(other, names)}')
  if len(row.published) not in (0, len(table.published)):
    raise UserError(
      f'row {row.name}: {len(row.published)} published figures for {len(table.published)} columns '
      f'({", ".join(table.published)})'
    )


def _check_sources(row: Row, configs: Mapping[str, ConfigDict]) -> None:
  if not row.evaluates:
    return
  first = row.sources[0]
  for change in config.differences(configs[first], configs[row.name]):
    if not change.startswith(('name:', 'eval.')):
      raise UserError(
        f'row {row.name} evaluates the runs of {first}, so that only eval options may differ, '
        f'not {change}'
      )


def expand(text: str, levels: Sequence[str]) -> list[Column]:
  """Return the columns that [DECISION:]METRIC[/LEVELS] stands for.

  Args:
    text: as in `Table.columns`.
    levels: levels of the taxonomy; () as long as no row has finished, which keeps the words. A
      level that the taxonomy lacks keeps its column, which has published figures only.

  Raises:
    UserError: the text is no column.
  """
  if text in COUNTS:
    return [Column(text, COUNTS[text], text)]
  decision, _, name = text.rpartition(':')
  decision = decision or 'independent'
  metric, _, level_text = name.partition('/')
  choices = [name for name, metric in METRICS.items() if metric.place]
  if metric not in choices or decision not in DECISIONS:
    raise UserError(
      f'{text!r} is no column: [independent: | leaf: | joint:]METRIC[/LEVELS] with a metric of '
      f'{", ".join(choices)}, or {", ".join(COUNTS)}'
    )
  places = _places(text, metric, options.names(level_text), levels)
  is_default = decision == 'independent'
  prefix, suffix = ('', '') if is_default else (f'{decision}:', f', {decision}')
  columns = []
  for place in places:
    key = f'{prefix}{metric}{"/" if place else ""}{place}'
    title = f'{place} {METRICS[metric].label}'.strip() + suffix
    columns.append(Column(key, title, metric, decision, place))
  return columns


def _places(text: str, metric: str, words: Sequence[str], levels: Sequence[str]) -> Sequence[str]:
  """Return the levels of the columns of a metric, [''] for a metric of the whole path."""
  is_pair = metric == 'consistency'
  if METRICS[metric].scope == 'path':
    if words:
      raise UserError(f'{text!r}: {metric} is of the whole path, not of a level')
    return ['']
  if not words or (is_pair and len(words) != 2):
    amount = 'two levels' if is_pair else 'levels'
    raise UserError(f'{text!r}: {metric} needs {amount}, as {metric}/coarsest,finest')
  if levels:
    # A level that these data lack keeps its name.
    with contextlib.suppress(UserError):
      resolved = config.resolve_levels(words, levels, text)
      words = words if is_pair and len(resolved) != 2 else resolved
  return ['-'.join(words)] if is_pair else words
