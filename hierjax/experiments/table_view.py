"""A table as Markdown, CSV and HTML."""

import dataclasses
import pathlib
import re
import shlex
import sys
import urllib.parse

from hierjax.core import files, terminal
from hierjax.core.metrics import METRICS, lookup, signed
from hierjax.evaluate import bootstrap
from hierjax.experiments.runner import Runner
from hierjax.experiments.table import COUNTS, Column, Row, expand
from hierjax.experiments.table_records import Record, columns_of, records_of
from hierjax.report import page, runs
from hierjax.report.formats import count, listed

AGAINST_NOTE = (
  'Differences{to} in percentage points, with the 95% interval over the images (paired bootstrap) '
  "and the seeds: {seeds}. Δm is the mean over the levels of the relative change of the heads' "
  'own top-1.'
)
SEVERAL = 'the deviations over the seeds, with Welch’s t'
FEW = (
  'a standard deviation of '
  f'{100 * bootstrap.SEED_DEVIATION:.1f} points is assumed, unless two seeds deviate more; of one '
  'seed, severities have no interval'
)
DATA_OPTIONS = ('data.root', 'data.source', 'data.taxonomy')


def write(runner: Runner) -> pathlib.Path:
  """Write WORKDIR/table.md, table.csv, results.csv and table.html and return the last's path.

  Args:
    runner: of the table.
  """
  view = View(runner)
  files.write(runner.workdir / 'table.md', view.markdown())
  files.write(runner.workdir / 'table.csv', view.csv())
  files.write(runner.workdir / 'results.csv', _results(view))
  return files.write(runner.workdir / 'table.html', view.html())


def figure(value: float | None, digits: int = 1) -> str:
  """Return a published figure as it is shown: a share in per cent, a count in full; '' for None.

  Args:
    value: the figure.
    digits: decimals of a percentage.
  """
  if value is None:
    return ''
  return count(value) if isinstance(value, int) else f'{100 * value:.{digits}f}'


@dataclasses.dataclass
class Grid:
  """A table to be shown; a cell is (text, its class in the style sheet)."""

  header: list[str]
  rows: list[tuple[Row, list[tuple[str, str]]]]
  note: str = ''


class View:
  """The contents of a table.

  Attributes:
    columns: columns of our figures.
    records: figures of the rows.
    ours: published column → key of our column.
    digits: published column → decimals of its percentages, as the paper has them.
  """

  def __init__(self, runner: Runner):
    self.runner, self.table, self.columns = runner, runner.table, columns_of(runner)
    self.records = records_of(runner, self.columns)
    published = self.table.published
    self.ours = {name: expand(text, runner.levels)[0].key for name, text in published.items()}
    self.digits = {name: self._digits(i) for i, name in enumerate(published)}

  def _digits(self, i: int) -> int:
    values = [row.published[i] for row in self.table.rows if row.published]
    has_one = all(v is None or abs(1000 * v - round(1000 * v)) < 1e-6 for v in values)
    return 1 if has_one else 2

  def main(self) -> Grid:
    """Return our figures with, next to each column, what was published."""
    order: list[tuple[Column | None, str | None]] = []
    for c in self.columns:
      order.append((c, None))
      order += [(c, name) for name, key in self.ours.items() if key == c.key]
    keys = {c.key for c in self.columns}
    order += [(None, name) for name, key in self.ours.items() if key not in keys]
    has_seeds = len(self.runner.seeds) > 1 and self.runner.is_trained
    header = ['seeds'] if has_seeds else []
    header += [c.title if name is None else name for c, name in order]
    rows = []
    for record in self.records:
      cells = [(str(len(record.seeds)), 'quiet')] if has_seeds else []
      cells += [self._cell(record, c, name) for c, name in order]
      rows.append((record.row, cells))
    return Grid(header, rows)

  def _cell(self, record: Record, c: Column | None, name: str | None) -> tuple[str, str]:
    """Print our figure in a column, or the published one; mark a count as equal or not."""
    if name is None:
      return c.text(record.mean.get(c.key), record.deviation.get(c.key)), ''
    text = figure(record.published.get(name), self.digits[name])
    is_compared = c is not None and c.is_count and c.key in record.mean
    if not is_compared or name not in record.published:
      return text, 'quiet'
    is_equal = record.mean[c.key] == record.published[name]
    return (f'{text} ✓', 'quiet') if is_equal else (f'{text} ≠', 'bad')

  def notes(self) -> list[tuple[str, str]]:
    """Return (row, remark) for all remarks."""
    notes = []
    for record in self.records:
      name = ', '.join(text for text in (record.row.group, record.row.label) if text)
      notes += [(name, text) for text in record.notes]
    return notes

  def against(self) -> Grid | None:
    """Return differences to the baseline rows in percentage points, None where there are none."""
    records = [r for r in self.records if r.row.baseline]
    columns = [c for c in self.columns if any(c.key in r.difference for r in records)]
    names = []
    for name, key in self.ours.items():
      if key not in COUNTS and any(name in r.published_difference for r in records):
        names.append(name)
    has_delta = any(r.delta_m is not None for r in records)
    if not columns and not names and not has_delta:
      return None
    baselines = {self.runner.by_name[r.row.baseline].label for r in records}
    has_several = len(baselines) > 1
    header = ['compared with'] if has_several else []
    header += [*(c.title for c in columns), *names, *(['Δm, %'] if has_delta else [])]
    rows = []
    for r in records:
      cells = [(self.runner.by_name[r.row.baseline].label, 'quiet')] if has_several else []
      cells += [_difference_cell(r, c) for c in columns]
      for name in names:
        value = r.published_difference.get(name)
        cells.append(('' if value is None else signed(value), 'quiet'))
      if has_delta:
        cells.append(('' if r.delta_m is None else signed(r.delta_m), ''))
      rows.append((r.row, cells))
    to = '' if has_several else f' to “{min(baselines)}”'
    assumed = {d.is_assumed for r in records for d in r.difference.values()}
    deviations = [SEVERAL] if assumed != {True} else []
    if True in assumed:
      deviations.append(FEW)
    seeds = '; where there are fewer than three, '.join(deviations)
    return Grid(header, rows, AGAINST_NOTE.format(to=to, seeds=seeds))

  def trends(self) -> str:
    """Return in words how many of our differences have the sign of the published ones."""
    parts = []
    for name, key in self.ours.items():
      agree, clear = [], []
      for r in self.records:
        published = round(r.published_difference.get(name, 0), 6)
        if key not in r.difference or not published:
          continue
        ours = r.difference[key]
        agree.append(ours.mean * published > 0)
        if ours.is_clear:
          clear.append(agree[-1])
      if not agree:
        continue
      text = f'{sum(agree)} of {len(agree)} ({name}'
      if clear:
        text += f'; {sum(clear)} of the {len(clear)} where the interval of ours leaves zero out'
      parts.append(f'{text})')
    return f'Differences to the baseline with the published sign: {listed(parts)}.' if parts else ''

  def sentences(self) -> list[str]:
    """Return what the figures are of, in words."""
    sentences = []
    first = next((r for r in self.records if r.seeds), None)
    if first:
      sentences.append(self._our_figures(first))
    elif self.runner.is_trained:
      sentences.append('Ours: no row has finished yet.')
    if self.table.source:
      sentences.append(f'Published: {self.table.source}.')
    return sentences

  def _our_figures(self, record: Record) -> str:
    runner, row = self.runner, record.row
    split, c = runner.evaluated_split(row), runner.configs[row.name]
    data = pathlib.PurePath(c.data.root).name if c.data.root else 'the drawn toy set'
    seeds = f'seed {runner.seeds[0]}'
    if len(runner.seeds) > 1:
      seeds = f'seeds {listed(runner.seeds)}: mean ± sample standard deviation'
    n = runner.result(row, record.seeds[0]).evaluation['n']
    text = (
      f'Ours: {split} of {data}, {count(n)} images, {seeds}. Shares are in %. Every head answers '
      'for itself unless a column says otherwise; the classes of a level without a head are read '
      'off the finest one.'
    )
    if split == c.data.val:
      text += f' The checkpoints were chosen on {split}, so expect a little less on new images.'
    return text

  def departures(self) -> str:
    """Return in words what the command line has changed in every row, '' for nothing."""
    overrides = self.runner.overrides
    changed = [f'--config.{k}={v}' for k, v in overrides.items() if k not in DATA_OPTIONS]
    if not changed:
      return ''
    look = ', a look on few images' if overrides.get('data.limit') else ''
    return f"Every row of ours departs from the table's own options{look}: {' '.join(changed)}."

  def markdown(self) -> str:
    """Return the table as Markdown."""
    texts = [*self.sentences(), self.departures()]
    parts = [f'# {_escaped(self.table.title)}', *map(_escaped, texts), _markdown(self.main())]
    parts.append('\n'.join(f'- {_escaped(row)}: {_escaped(text)}' for row, text in self.notes()))
    against = self.against()
    if against:
      parts += ['## Against the baseline', *map(_escaped, (against.note, self.trends()))]
      parts.append(_markdown(against))
    return '\n\n'.join(p for p in parts if p) + '\n'

  def csv(self) -> str:
    """Return a line a row, shares as fractions.

    Of each column: mean, deviation, difference to the baseline row and its interval.
    """
    header = ['row', 'label', 'group', 'baseline', 'seeds']
    for c in self.columns:
      header += [f'{c.key}{x}' for x in ('', ' deviation', ' difference', ' low', ' high')]
    header += [*(f'published {name}' for name in self.table.published), 'delta_m', 'notes']
    lines = [header]
    for r in self.records:
      line = [r.row.name, r.row.label, r.row.group, r.row.baseline, ' '.join(map(str, r.seeds))]
      for c in self.columns:
        line += [r.mean.get(c.key), r.deviation.get(c.key)]
        line += r.difference.get(c.key, [None] * 3)[:3]
      line += [r.published.get(name) for name in self.table.published]
      lines.append([*line, r.delta_m, '; '.join(r.notes)])
    return files.csv_text(lines)

  def html(self) -> str:
    """Return the table as a page, with links to the reports of the runs."""
    links: dict[str, list[tuple[int, str]]] = {}
    for r in self.records:
      for seed in r.seeds:
        if (self.runner.folder(r.row, seed) / 'report.html').exists():
          link = urllib.parse.quote(f'{r.row.name}/seed{seed}/report.html')
          links.setdefault(r.row.name, []).append((seed, link))
    against = self.against()
    return page.render_page(
      'table',
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

  def bars(self) -> dict | None:
    """Return the columns of `Table.chart` as bars, with a mark where the published figure lies."""
    keys = {c.key for text in self.table.chart for c in expand(text, self.runner.levels)}
    columns = [c for c in self.columns if c.key in keys]
    rows = []
    for r in self.records:
      bars = [self._bar(r, c, k) for k, c in enumerate(columns)]
      bars = [bar for bar in bars if bar]
      if bars:
        rows.append((r.row, bars))
    if not rows:
      return None
    has_published = any(bar['beside'] for _, bars in rows for bar in bars)
    return {'rows': rows, 'names': [c.title for c in columns], 'has_published': has_published}

  def _bar(self, record: Record, c: Column, k: int) -> dict | None:
    names = [n for n, key in self.ours.items() if key == c.key and n in record.published]
    if c.key not in record.mean and not names:
      return None
    name = names[0] if names else None
    mean = record.mean.get(c.key)
    published = record.published.get(name)
    return {
      'colour': k % 6,
      'mean': mean,
      'text': c.text(mean, record.deviation.get(c.key)),
      'published': published,
      'beside': figure(published, self.digits.get(name, 1)),
    }


def _results(view: View) -> str:
  """Write a line a run as CSV: row, seed, options in which the rows differ, our figures, time."""
  configs = view.runner.configs
  differing = runs.differing([runs.flat(c.to_dict()) for c in configs.values()])
  columns = [c for c in view.columns if not c.is_count]
  lines = [['row', 'seed', *differing, *(c.key for c in columns), 'seconds']]
  for record in view.records:
    name = record.row.name
    values = [row[list(configs).index(name)] for row in differing.values()]
    for seed in record.seeds:
      result = view.runner.result(record.row, seed)
      figures = [lookup(result.evaluation, c.key) for c in columns]
      lines.append([name, seed, *values, *figures, result.seconds])
  return files.csv_text(lines)


def _difference_cell(record: Record, c: Column) -> tuple[str, str]:
  if c.key not in record.difference:
    return '', ''
  difference, tone = record.difference[c.key], ''
  better = METRICS[c.metric].better
  if better and difference.is_clear:
    tone = 'good' if difference.mean * better > 0 else 'bad'
  text = signed(difference.mean)
  if difference.low is not None:
    text += f' ({signed(difference.low)} to {signed(difference.high)})'
  return text, tone


def _markdown(grid: Grid) -> str:
  header = ' | '.join(_escaped(text) for text in grid.header)
  lines, group = [f'| row | {header} |', f'|---|{"---:|" * len(grid.header)}'], ''
  for row, cells in grid.rows:
    if row.group != group:
      group = row.group
      title = f'**{_escaped(group)}**' if group else ''
      lines.append(f'| {title} |{" |" * len(grid.header)}')
    texts = ' | '.join(_escaped(text) for text, _ in cells)
    lines.append(f'| {_escaped(row.label)} | {texts} |')
  return '\n'.join(lines)


def _escaped(text: str) -> str:
  """Put a text on one line, in which nothing is markup, a link or the end of a cell."""
  return re.sub(r'[\\`|<&\[]', r'\\\g<0>', terminal.printable(' '.join(str(text).split())))
