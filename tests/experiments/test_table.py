"""Tables: rows that run, continue and fail; figures against numbers worked out by hand."""

import collections
import csv
import html.parser
import importlib
import io
import itertools
import json
import os
import pathlib
import re
import runpy
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny

from hierjax import model
from hierjax.cli import arguments, config_files
from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.core.metrics import lookup
from hierjax.evaluate import bootstrap
from hierjax.experiments import describe, fit, runner, table, table_records, table_view
from hierjax.experiments.table import Row, Table
from hierjax.models import registry
from hierjax.report import page
from hierjax.train import setup
from hierjax.train.interrupt import Interrupted

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = sorted(p.stem for p in (ROOT / 'configs' / 'tables').glob('*.py'))
LEVELS = {
  'flat': 'finest',
  'both': 'all',
  'views': 'all',
  'bad': 'all',
  'make': 'make',
  'pair': 'finest',
}
ARGUMENTS = {
  's2_table1': 'aircraft',
  's2_table2': 'aircraft',
  's2_figure5': 'aircraft',
}  # of the files with several tables


@pytest.fixture(autouse=True, scope='module')
def small():
  """The tiny backbone on one device; half of the time of its runs would go into reports."""
  with pytest.MonkeyPatch.context() as patch:
    tiny.register(patch)
    tiny.use_devices(patch)
    tiny.leave_out_report(patch)
    yield


def get_config(row='flat'):
  c = tiny.run_config(
    **{'data.toy.train': 48, 'train.steps': 4, 'train.eval_steps': 4, 'log.tensorboard': False}
  )
  config.assign(c, 'model.levels', LEVELS[row])
  c.data.root = 'nowhere' if row == 'bad' else None
  c.data.source = 'csv' if row == 'bad' else 'toy'
  c.eval.tta = 2 if row == 'views' else 1
  return c


def get_table(**changes):
  values = {
    'title': 'A <table>',
    'source': 'a paper, its table, on test',
    'columns': ('top1/coarsest,finest', 'top3/finest', 'fpa', 'hvr', 'joint:top1/finest'),
    'published': {'paper | model': 'top1/finest'},
    'chart': ('top1/finest', 'top3/finest'),
    'seeds': (0, 1),
    'rows': (
      Row('flat', 'one head', (0.5,), group='Heads'),
      Row('both', 'all heads', (0.6125,), group='Heads', baseline='flat'),
      Row('views', 'two views', (None,), group='Heads', baseline='flat', evaluates='both'),
      Row('bad', 'no data', baseline='flat', note='as expected'),
    ),
  }
  return Table(**{**values, **changes})


FOUND = {'get_config': get_config, 'get_table': get_table}


def make(workdir, rows='', **options):
  return runner.Runner(*table.load(FOUND), workdir, rows=rows, **options)


def message(e):
  return str(e) if isinstance(e, UserError) else ''


@pytest.fixture(scope='module')
def table_runner(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('table')
  table_runner = make(workdir)
  assert table_runner.run(message, table_view.write) == 2
  return table_runner


def decode(table_runner, row, seed):
  return json.loads((table_runner.workdir / row / f'seed{seed}' / 'eval_val.json').read_text())[
    'decode'
  ]


def test_columns_of_multi_levels():
  contents = {
    'map_macro': 0.5,
    'map_micro': 0.4,
    'before': {'f1_macro': 0.1, 'f1_micro': 0.2},
    'after': {'f1_macro': 0.3, 'f1_micro': None},
  }
  expected = {
    'map': 0.5,
    'micro_map': 0.4,
    'f1': 0.1,
    'micro_f1': 0.2,
    'tuned_f1': 0.3,
    'tuned_micro_f1': None,
  }
  for metric, value in expected.items():
    kind, tag = table.expand(f'{metric}/all', ('kind', 'tag'))
    assert (kind.level, tag.level, tag.metric, tag.paired) == ('kind', 'tag', metric, '')
    evaluation = {'decode': {}, 'multi': {'tag': contents}}
    assert lookup(evaluation, tag.key) == value and lookup(evaluation, kind.key) is None
    assert lookup({'decode': {}}, tag.key) is None
  with pytest.raises(UserError, match='needs levels'):
    table.expand('map', ('kind', 'tag'))


def test_rows_run_in_folders_of_their_own_and_one_that_fails_stops_no_other(table_runner):
  assert (
    set(table_runner.failures) == {('bad', 0), ('bad', 1)}
    and 'nowhere: no such folder' in table_runner.failures['bad', 0]
  )
  for row in ('flat', 'both'):
    for seed in (0, 1):
      c = model.run_config(table_runner.workdir / row / f'seed{seed}')
      assert c.seed == seed and c.model.levels == (
        ('model',) if row == 'flat' else ('make', 'type', 'model')
      )
      assert c.baseline == (
        None if row == 'flat' else str(table_runner.workdir / 'flat' / f'seed{seed}')
      )  # the row's report says what it won
  assert 'No baseline' not in page.write(table_runner.workdir / 'both' / 'seed0').read_text()


def test_a_row_evaluates_another_rows_run_anew(table_runner, tmp_path):
  place = table_runner.workdir / 'views' / 'seed1'
  second = json.loads((place / 'eval_val.json').read_text())
  assert second['tta'] == 2 and not (place / 'checkpoints').exists()
  c = model.run_config(table_runner.workdir / 'both' / 'seed1')
  c.eval.tta = 2
  assert (
    model.load(table_runner.workdir / 'both' / 'seed1', c).evaluate('val', into=tmp_path)['decode']
    == second['decode']
  )
  assert (
    json.loads((table_runner.workdir / 'both' / 'seed1' / 'eval_val.json').read_text())['tta'] == 1
  )  # that of the row itself is left alone


def test_figures_by_hand(table_runner):
  columns = table_records.columns_of(table_runner)
  assert [c.key for c in columns] == [
    'top1/make',
    'top1/model',
    'top3/model',
    'fpa',
    'hvr',
    'joint:top1/model',
  ]
  records = {r.row.name: r for r in table_records.records_of(table_runner, columns)}
  both, flat = records['both'], records['flat']
  a, b = (decode(table_runner, 'both', s)['independent'] for s in (0, 1))
  for key, value_of in (
    ('top1/make', lambda d: d['levels']['make']['top1']),
    ('top3/model', lambda d: d['levels']['model']['top3']),
    ('hvr', lambda d: d['hvr']),
  ):
    assert both.mean[key] == pytest.approx((value_of(a) + value_of(b)) / 2)
    assert both.deviation[key] == pytest.approx(
      abs(value_of(a) - value_of(b)) / 2**0.5
    )  # of two values, with n - 1
  joint = [decode(table_runner, 'both', s)['joint']['levels']['model']['top1'] for s in (0, 1)]
  assert both.mean['joint:top1/model'] == pytest.approx(sum(joint) / 2)
  relative = [(both.mean[k] - flat.mean[k]) / flat.mean[k] for k in ('top1/make', 'top1/model')]
  assert both.delta_m == pytest.approx(sum(relative) / 2) and flat.delta_m is None
  rights = collections.defaultdict(list)
  for row in ('both', 'flat'):
    for seed in (0, 1):
      contents = np.load(table_runner.workdir / row / f'seed{seed}' / 'predictions_val.npz')
      rights[row].append(
        (contents['pred_independent'] == contents['labels'])[np.argsort(contents['files']), 0]
      )
  difference = both.difference['top1/make']
  assert difference.mean == pytest.approx(np.mean(rights['both']) - np.mean(rights['flat']))
  assert difference == bootstrap.difference(rights['both'], rights['flat'])
  assert difference.low < difference.images[0] and difference.seeds == 2
  assert 'top3/model' not in both.difference  # the predictions do not hold the ranks
  assert both.published == {'paper | model': 0.6125} and both.published_difference == {
    'paper | model': pytest.approx(0.1125)
  }
  assert records['views'].published == {} and records['views'].published_difference == {}
  assert (
    records['bad'].mean == {}
    and records['bad'].notes[0] == 'as expected'
    and 'seed 1: ' in records['bad'].notes[2]
  )


def test_delta_m():
  assert table_records.delta_m(
    {'a': 0.9, 'b': 0.5}, {'a': 0.6, 'b': 0.8}, ['a', 'b']
  ) == pytest.approx((0.5 - 0.375) / 2)
  assert table_records.delta_m({'a': 0.9}, {'a': 0.6, 'b': 0.8}, ['a', 'b']) is None
  assert table_records.delta_m({'a': 0.9}, {'a': 0.0}, ['a']) is None


def test_trends_are_those_of_the_published_differences(table_runner):
  view = table_view.View(table_runner)
  both, views = (next(r for r in view.records if r.row.name == name) for name in ('both', 'views'))
  both.published_difference, views.published_difference = (
    {'paper | model': 0.1},
    {'paper | model': -0.1},
  )
  both.difference, views.difference = (
    {'top1/model': bootstrap.Difference(0.05, 0.01, 0.1, (0.02, 0.07), 2, False)},
    {'top1/model': bootstrap.Difference(0.02, -0.01, 0.05, (0.01, 0.03), 2, False)},
  )
  assert '1 of 2 (paper | model; 1 of the 1 where' in view.trends()
  both.difference = {
    'top1/model': bootstrap.Difference(-0.05, -0.1, -0.01, (-0.07, -0.02), 2, False)
  }
  assert '0 of 2 (paper | model; 0 of the 1 where' in view.trends()
  views.published_difference = {'paper | model': 0.0}  # no sign to agree with
  assert '0 of 1 (' in view.trends()


def test_files(table_runner):
  text = (table_runner.workdir / 'table.md').read_text()
  assert (
    r'# A \<table>' in text
    and 'Ours: val of the drawn toy set, 40 images, seeds 0 and 1' in text
    and 'Published: a paper, its table, on test.' in text
  )
  assert (
    '## Against the baseline' in text
    and re.search(r'\| two views \| [+−]?\d+\.\d \([+−]?\d', text)
    and 'to “one head”' in text
  )
  assert (
    r'paper \| model' in text
    and '| 61.25 |' in text
    and '| 50.00 |' in text
    and '| **Heads** |' in text
    and '****' not in text
    and 'no such folder' in text
  )
  values = [
    decode(table_runner, 'flat', s)['independent']['levels']['model']['top1'] for s in (0, 1)
  ]
  scores = [decode(table_runner, 'flat', s)['independent']['levels'] for s in (0, 1)]
  mean = np.mean([levels['make']['top1'] for levels in scores])
  assert f'| one head | 2 | {100 * mean:.1f} ± ' in text
  rows = list(csv.DictReader(io.StringIO((table_runner.workdir / 'table.csv').read_text())))
  assert [r['row'] for r in rows] == ['flat', 'both', 'views', 'bad'] and rows[0]['seeds'] == '0 1'
  assert float(rows[0]['top1/model']) == pytest.approx(np.mean(values)) and float(
    rows[0]['top1/model deviation']
  ) == pytest.approx(np.std(values, ddof=1))
  assert (
    rows[1]['published paper | model'] == '0.6125'
    and rows[0]['delta_m'] == ''
    and float(rows[1]['top1/model low']) <= float(rows[1]['top1/model high'])
  )
  html_page = (table_runner.workdir / 'table.html').read_text()
  assert (
    'A &lt;table&gt;' in html_page
    and not re.search(r'https?:|src=', html_page)
    and '<script' not in html_page
    and 'no data: seed 1: --config.data.root=nowhere' in html_page
  )
  assert (
    'href="both/seed1/report.html"' in html_page
    and (table_runner.workdir / 'both/seed1/report.html').exists()
  )
  assert (
    f'style="left:{61.25:.2f}%"' in html_page
    and f'style="width:{100 * np.mean(values):.2f}%"' in html_page
  )

  class Nesting(html.parser.HTMLParser):
    open = ()

    def handle_starttag(self, tag, attrs):
      self.open += (tag,) if tag not in ('meta', 'link', 'br') else ()

    def handle_endtag(self, tag):
      assert self.open[-1] == tag
      self.open = self.open[:-1]

  Nesting().feed(html_page)


def test_a_finished_row_is_not_run_again(table_runner, monkeypatch):
  folders = []
  monkeypatch.setattr(
    fit, 'fit', lambda c, place: folders.append(place) or (_ for _ in ()).throw(UserError('no'))
  )
  monkeypatch.setattr(model, 'load', lambda *_: pytest.fail('evaluated again'))
  second = make(table_runner.workdir)
  assert second.run(message, table_view.write) == 2 and folders == [
    table_runner.workdir / 'bad' / f'seed{s}' for s in (0, 1)
  ]
  assert (
    table_records.records_of(second, table_records.columns_of(second))[1].mean
    == table_records.records_of(table_runner, table_records.columns_of(table_runner))[1].mean
  )


@pytest.mark.parametrize(
  'file',
  [
    'requested.json',
    'eval_val.json',
    'predictions_val.npz',
    'taxonomy.csv',
    'config.json',
    'run.json',
  ],
)
def test_damaged_files_are_no_figures(table_runner, tmp_path, file):
  shutil.copytree(table_runner.workdir, tmp_path / 'copy')
  place = tmp_path / 'copy' / 'flat' / 'seed0'
  for content in (b'[1]', b'{"decode": {', None):
    (place / file).unlink() if content is None else (place / file).write_bytes(content)
    second = make(tmp_path / 'copy')
    assert second.result(second.by_name['flat'], 0) is None or file == 'config.json'
    table_view.write(second)


def test_other_options_are_not_mixed(table_runner):
  other = make(table_runner.workdir, 'flat', overrides={'optim.lr': 0.5}, seeds=(0,))
  before = (table_runner.workdir / 'table.md').read_text()
  assert (
    other.run(message, table_view.write) == 1
    and 'holds a run with other options (optim.lr: 0.003 -> 0.5)' in other.failures['flat', 0]
  )
  assert table_records.records_of(other, table_records.columns_of(other))[0].mean == {}
  assert '--config.optim.lr=0.5' in (table_runner.workdir / 'table.md').read_text()
  (table_runner.workdir / 'table.md').write_text(before)


def test_another_evaluation_is_made_without_training(tmp_path):
  assert make(tmp_path, 'flat', seeds=(0,)).run(message, table_view.write) == 0
  digest, seconds = (
    json.loads((tmp_path / 'flat/seed0/run.json').read_text())[k]
    for k in ('state_sha256', 'finished')
  )
  other = make(tmp_path, 'flat', overrides={'eval.tta': 2}, seeds=(0,))
  assert (
    other.run(message, table_view.write) == 0
    and json.loads((tmp_path / 'flat/seed0/eval_val.json').read_text())['tta'] == 2
  )
  assert (
    json.loads((tmp_path / 'flat/seed0/run.json').read_text())['state_sha256'] == digest and seconds
  )
  train_split = make(tmp_path, 'flat', seeds=(0,), split='train', overrides={'eval.tta': 2})
  assert (
    train_split.run(message, table_view.write) == 0
    and '| one head |' in (tmp_path / 'table.md').read_text()
  )
  assert (
    'Ours: train of the drawn toy set, 48 images, seed 0.' in (tmp_path / 'table.md').read_text()
  )


def test_an_interrupted_row_goes_on(tmp_path, monkeypatch, table_runner):
  original, cut = setup.batches, []

  def batches(run, examples, start, end):
    inner = original(run, examples, start, end)

    class Cut:
      def __iter__(_):
        for i, batch in enumerate(inner):
          if i == 1 and run.c.model.levels != ('model',) and not cut:
            cut.append(start)
            signal.raise_signal(signal.SIGTERM)
          yield batch

      def close(_):
        inner.close()

    return Cut()

  monkeypatch.setattr(setup, 'batches', batches)
  with pytest.raises(Interrupted, match='the same command continues'):
    make(tmp_path, 'flat both', seeds=(0,)).run(message, table_view.write)
  text = (tmp_path / 'table.md').read_text()
  assert (
    '| one head |' in text
    and (tmp_path / 'flat/seed0/requested.json').exists()
    and not (tmp_path / 'both/seed0/requested.json').exists()
  )
  places, real = [], fit.fit
  monkeypatch.setattr(fit, 'fit', lambda c, place: places.append(place) or real(c, place))
  second = make(tmp_path, 'flat both', seeds=(0,))
  assert second.run(message, table_view.write) == 0 and places == [tmp_path / 'both' / 'seed0']
  digests = [
    json.loads((workdir / 'both/seed0/run.json').read_text())['state_sha256']
    for workdir in (tmp_path, table_runner.workdir)
  ]
  assert cut == [0] and digests[0] == digests[1]  # as if nobody had disturbed it


def test_rows_bring_the_run_they_evaluate(tmp_path, monkeypatch, capsys):
  folders = []
  monkeypatch.setattr(
    fit,
    'fit',
    lambda c, place: folders.append(place.parent.name) or (_ for _ in ()).throw(UserError('no')),
  )
  assert make(tmp_path, 'views', seeds=(3,)).run(message, table_view.write) == 2 and folders == [
    'both'
  ]
  result = capsys.readouterr().err
  assert (
    'row 1 of 2, seed 3: both (2 to do)' in result
    and 'row views, seed 3, failed: row both, whose run it evaluates, has not finished' in result
  )
  with pytest.raises(
    UserError,
    match=r"--rows: no row is 'fla' \(did you mean 'flat'\?\); the rows are flat  both  views  bad",
  ):
    make(tmp_path, 'fla')


def test_single_task_models_side_by_side(tmp_path):
  rows = (
    Row('flat', 'model alone'),
    Row('make', 'make alone'),
    Row('pair', 'both', baseline='flat', evaluates='flat make'),
  )
  contents = {
    'get_config': get_config,
    'get_table': lambda: get_table(
      rows=rows, published={}, columns=('top1/coarsest,finest', 'hvr'), seeds=(0,)
    ),
  }
  table_runner = runner.Runner(*table.load(contents), tmp_path, rows='pair')
  assert [row.name for row in table_runner.rows] == ['flat', 'make', 'pair'] and table_runner.run(
    message, table_view.write
  ) == 0
  flat, make, pair = (
    np.load(tmp_path / row / 'seed0' / 'predictions_val.npz') for row in ('flat', 'make', 'pair')
  )
  np.testing.assert_array_equal(pair['pred_independent'][:, 2], flat['pred_independent'][:, 2])
  np.testing.assert_array_equal(
    pair['pred_independent'][:, 1], flat['pred_independent'][:, 1]
  )  # neither has a head of the type: read off the model
  np.testing.assert_array_equal(pair['pred_independent'][:, 0], make['pred_independent'][:, 0])
  result = decode(table_runner, 'pair', 0)['independent']
  assert (
    result['levels']['make']['top1']
    == decode(table_runner, 'make', 0)['independent']['levels']['make']['top1']
  )
  assert (
    result['hvr'] == (pair['pred_independent'][:, 0] != flat['pred_independent'][:, 0]).mean() > 0
  )
  assert not (tmp_path / 'pair' / 'seed0' / 'checkpoints').exists()
  second = runner.Runner(*table.load(contents), tmp_path)
  assert second.result(second.by_name['pair'], 0)
  (tmp_path / 'make' / 'seed0' / 'run.json').write_text(
    '{}'
  )  # a model of the pair is being trained again
  second = runner.Runner(*table.load(contents), tmp_path)
  assert not second.result(second.by_name['pair'], 0) and second.result(second.by_name['flat'], 0)


def test_a_file_with_several_tables(tmp_path):
  contents = {**FOUND, 'get_table': lambda title='heads': get_table(title=title)}
  assert (
    table.load(contents)[0].title == 'heads' and table.load(contents, 'others')[0].title == 'others'
  )
  with pytest.raises(
    UserError, match='the table of this file takes no argument; --rows=flat takes one row'
  ):
    table.load({**FOUND, 'get_table': lambda: get_table()}, 'flat')


def test_counts_train_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(fit, 'fit', lambda *_: pytest.fail('trained'))
  params = describe.describe(get_config('flat'))['params']
  rows = (
    Row('flat', 'one head', (params,)),
    Row('both', 'all heads', (params,)),
    Row('bad', 'no data', (None,)),
  )
  table_runner = runner.Runner(
    *table.load(
      {
        'get_config': get_config,
        'get_table': lambda: get_table(
          columns=('params', 'macs'), rows=rows, chart=(), published={'paper': 'params'}
        ),
      }
    ),
    tmp_path,
  )
  assert table_runner.run(message, table_view.write) == 1
  text = (tmp_path / 'table.md').read_text()
  assert (
    f'| one head | {params:,} | {params:,} ✓ |' in text
    and f'{params:,} ≠ |' in text
    and 'no such folder' in text
    and 'seed' not in text
  )


@pytest.mark.parametrize(
  ('changes', 'message_part'),
  [
    ({'rows': (Row('a/b', ''),)}, "row 'a/b': a name is that of a folder"),
    ({'rows': (Row('a b', ''),)}, "row 'a b': a name is that of a folder"),
    (
      {'rows': (Row('flat', ''), Row('both', '', evaluates='flat bth')), 'published': {}},
      "row both: evaluates='bth' is no row",
    ),
    (
      {'rows': (Row('flat', ''), Row('flat', ''))},
      "row 'flat': a name is that of a folder, and of one row",
    ),
    (
      {'rows': (Row('flat', '', baseline='flta'),), 'published': {}},
      r"row flat: baseline='flta' is no row \(did you mean 'flat'\?\)",
    ),
    (
      {'rows': (Row('flat', '', (0.1, 0.2)),)},
      r'row flat: 2 published figures for 1 columns \(paper \| model\)',
    ),
    (
      {'rows': (Row('flat', ''), Row('both', '', evaluates='flat'))},
      'row both evaluates the runs of flat, so that only eval options may differ, not model.levels',
    ),
    ({'columns': ('top2/finest',)}, "'top2/finest' is no column: .*top1, top3, top5"),
    ({'columns': ('top1',)}, "'top1': top1 needs levels"),
    ({'columns': ('consistency/finest',)}, 'consistency needs two levels'),
    ({'columns': ('fpa/finest',)}, 'fpa is of the whole path'),
    ({'columns': ('best:fpa',)}, "'best:fpa' is no column"),
    ({'columns': ()}, 'must return a hierjax.table.Table'),
  ],
)
def test_mistakes_in_a_table(changes, message_part):
  with pytest.raises(UserError, match=message_part):
    table.load({'get_config': get_config, 'get_table': lambda: get_table(**changes)})


def test_columns_of_levels():
  def keys(text, levels):
    return [c.key for c in table.expand(text, levels)]

  assert keys('top1/all', ('make', 'type', 'model')) == ['top1/make', 'top1/type', 'top1/model']
  assert keys('top1/coarsest,finest', ('class',)) == ['top1/class'] and keys(
    'joint:top1/finest', ('a', 'b')
  ) == ['joint:top1/b']
  assert keys('consistency/coarsest,finest', ('a', 'b', 'c')) == ['consistency/a-c'] and keys(
    'top1/finest', ()
  ) == ['top1/finest']
  # what these data lack stays, for what was published of it
  assert keys('consistency/type,model', ('make', 'model')) == ['consistency/type-model'] and keys(
    'top1/type', ('make', 'model')
  ) == ['top1/type']
  assert keys('consistency/coarsest,finest', ('class',)) == ['consistency/coarsest-finest']


# The tables that are shipped


@pytest.fixture(
  params=[*((file, '') for file in FILES), *ARGUMENTS.items()],
  ids=lambda param: ':'.join(filter(None, param)),
)
def shipped(request):
  file, argument = request.param
  return file, *table.load(
    runpy.run_path(str(ROOT / 'configs' / 'tables' / f'{file}.py')), argument
  )


def test_every_row_of_every_table_is_a_sound_config(shipped):
  name, table_runner, configs = shipped
  assert name in FILES and len(configs) == len(table_runner.rows)
  for c in configs.values():
    config.validate(c, {'model.backbone': registry.BACKBONES})
    setup.parse_weights(c.loss.weights, ('make', 'model'))
  for row in table_runner.rows:
    assert (
      not row.baseline
      or any(
        not d.startswith('name:')
        for d in config.differences(configs[row.baseline], configs[row.name])
      )
      or row.of
    )
  for row in (
    table_runner.rows
  ):  # what tells a row from its baseline is its heads and weights, never the protocol
    if row.baseline and name.startswith('s1'):
      changed = config.differences(configs[row.baseline], configs[row.name])
      assert all(d.startswith(('name:', 'model.heads:', 'loss.weights:')) for d in changed), changed


def figures(file, argument=''):
  table_runner, _ = table.load(
    runpy.run_path(str(ROOT / 'configs' / 'tables' / f'{file}.py')), argument
  )
  return {row.name: dict(zip(table_runner.published, row.published)) for row in table_runner.rows}


def test_published_figures():
  five = figures('s1_table5')
  assert (
    len(five) == 21
    and five['densenet121,flat,0'] == {'paper, model': 0.833}
    and five['densenet121,cascaded,0,.2,.8'] == {'paper, model': 0.776}
  )
  assert five['maxvit_t,parallel,0,.5,.5'] == {'paper, model': 0.866} and five[
    'convnext_base,cascaded,0,.9,.1'
  ] == {'paper, model': 0.871}
  six = figures('s1_table6')
  assert len(six) == 27 and list(six['maxvit_t,parallel,.5,.9,.1'].values()) == [0.869, 0.738]
  assert list(six['convnext_base,flat,.25'].values()) == [0.894, 0.771] and list(
    six['densenet121,cascaded,.25,.9,.1'].values()
  ) == [0.835, 0.81]
  assert all(
    six[row] == {'paper, model, Stanford Cars': five[row]['paper, model'], **six[row]}
    for row in six.keys() & five.keys()
  )
  seven = figures('s1_table7')
  assert len(seven) == 42 and list(seven['densenet121,cascaded,.5,1,.2'].values()) == [0.877, 0.921]
  assert list(seven['convnext_base,parallel,.5,1,.7'].values()) == [0.889, 0.942] and list(
    seven['maxvit_t,flat,.5'].values()
  ) == [0.892, 0.951]
  assert list(seven['densenet121,flat,.5'].values()) == [0.86, None]
  eight = figures('s1_figure8')
  assert (
    len(eight) == 9
    and eight.keys() <= seven.keys()
    and list(eight['maxvit_t,parallel,.5,1,.7'].values()) == [0.894, None, 0.989]
  )
  three = figures('s1_table3')
  assert len(three) == 9 and list(three['convnext_base,cascaded'].values()) == [
    87_827_193,
    15_372_682_628,
  ]
  two, three = figures('s1_figure2'), figures('s1_figure3')
  assert (
    len(two) == len(three) == 27 and five.items() >= {k: v for k, v in two.items() if v}.items()
  )
  assert {k: v for k, v in two.items() if v}.keys() == {k for k, v in three.items() if v}
  assert [*three['maxvit_t,cascaded,0,.9,.1'].values()] == [0.781] and two['swin_t,flat,0'] == {}
  others = figures('s0_table2')
  assert [value for figure in others.values() for value in figure.values()] == [
    0.920,
    0.926,
    0.946,
    0.840,
    0.8795,
    0.8857,
  ]
  ladder = figures('s0_table1')
  assert list(ladder) == ['1', '2', '3', '4', '5', '5.5', '6', '7', '8', '9', '10'] and list(
    ladder['10'].values()
  )[:2] == [0.8857, 0.9764]
  cifar, aircraft = figures('s2_table1'), figures('s2_table1', 'aircraft')
  assert (
    len(cifar) == len(aircraft) == 10
    and list(cifar['cmt,cifar100'].values()) == [0.7340, 0.8426, 0.0601]
    and cifar['flat,cifar100'] == {}
  )
  assert list(aircraft['paper,aircraft'].values()) == [0.6829, 0.8233, 0.8806, 0.1012] and list(
    aircraft['dmt,aircraft'].values()
  )[::3] == [0.4821, 0.2772]
  ablation, sweeps = figures('s2_table2'), figures('s2_figure5', 'aircraft')
  assert len(ablation) == 10 and list(ablation['single,cifar100'].values()) == [
    0.4227,
    0.5331,
    0.9922,
  ]
  assert (
    list(ablation['fa,awa,cifar100'].values()) == [0.8209, 0.8838, 0.0660]
    and ablation['single,fine,cifar100'] == {}
  )
  assert (
    len(sweeps) == 9
    and list(sweeps['fa,pp,awa,aircraft'].values()) == [0.8407, 0.9088, 0.0327]
    and sweeps['epsilon=.05,aircraft']['paper, family'] == 0.8488
  )
  assert list(ladder['5'].values()) == [0.8602, 0.9442, 0.9177, None] and list(
    ladder['9'].values()
  ) == [0.8795, 0.9766, None, 0.9658]


def test_command_line(tmp_path):
  """As a user meets it: a quick look, a row that fails, and mistakes in a line."""
  (tmp_path / 'mine.py').write_text(
    f'import sys\nsys.path.insert(0, {str(ROOT / "tests" / "experiments")!r})\n'
    'from test_table import get_config, get_table\n'
  )

  def main(*args):
    process = subprocess.run(
      [sys.executable, str(ROOT / 'tests' / 'worker.py'), '--mode=table', *args],
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=300,
      env=os.environ
      | {
        'XLA_FLAGS': os.environ['HIERJAX_TEST_XLA_FLAGS'],
        'HIERJAX_HUGEPAGES': '0',
        'JAX_COMPILATION_CACHE_DIR': os.environ['HIERJAX_TEST_CACHE'],
      },
    )
    assert 'Traceback' not in process.stderr, process.stderr
    return process

  process = main(
    f'--config={tmp_path}/mine.py',
    f'--workdir={tmp_path}/run',
    '--rows=flat bad',
    '--limit=16',
    '--seeds=2',
    '--config.train.steps=1',
  )
  assert (
    process.returncode == 2
    and 'error: 1 runs of rows failed' in process.stderr
    and 'row 1 of 2, seed 2: flat (2 to do)' in process.stderr
  )
  assert 'Ours: val of the drawn toy set, 16 images, seed 2' in process.stdout
  assert 'a look on few images: --config.train.steps=1 --config.data.limit=16.' in process.stdout
  c = model.run_config(tmp_path / 'run/flat/seed2')
  assert (c.data.limit, c.train.steps, c.seed) == (16, 1, 2) and re.search(
    r'\| one head \|', process.stdout
  )
  for args, message_part in (
    (('--config=configs/3head.py',), 'has neither get_table nor SWEEP'),
    ((f'--config={tmp_path}/mine.py', '--seeds=a'), '--seeds=a: must be'),
  ):
    with pytest.raises(UserError, match=message_part):
      importlib.import_module('hierjax.cli.table').run(
        arguments.parse(['main.py', '--mode=table', *args])
      )


HOSTILE = {
  '<img src=x onerror=alert(1)>': r'\<img src=x onerror=alert(1)>',
  'a | b': r'a \| b',
  'a \\| b': r'a \\\| b',
  '[x](http://x)': r'\[x](http://x)',
  '`code` & &lt;': r'\`code\` \& \&lt;',
  'two\nlines\r\nor # three': 'two lines or # three',
  'red\x1b[31m\u202e': r'red\\x1b\[31m\\u202e',
  'ResNet-50, ±.3 %': 'ResNet-50, ±.3 %',
}


@pytest.mark.parametrize('name', HOSTILE)
def test_no_name_is_markup_in_markdown(name):
  """Titles, groups, labels, columns and remarks."""
  text = HOSTILE[name]
  grid = table_view.Grid([name], [(Row('row', label=name, group=name), [(name, '')])])
  lines = table_view._markdown(grid).split('\n')
  assert lines[0] == f'| row | {text} |' and lines[2].startswith(f'| **{text}** |')
  assert lines[3:] == [f'| {text} | {text} |']


def test_a_sweep_is_a_table_of_all_combinations(tmp_path):
  file = tmp_path / 'sweep.py'
  file.write_text(
    'from hierjax.core import config\n'
    'def get_config(_=""):\n'
    '  return config.default()\n'
    'SWEEP = {"optim.lr": [1e-3, 3e-3], "loss.margin": [None, 2.0, 5.0]}\n'
  )
  namespace = config_files.read(str(file))
  content, configs = table.load(namespace | table.of_sweep(namespace))
  assert len(content.rows) == 6 and content.rows[1].label == 'optim.lr=0.001, loss.margin=2.0'
  tried = {(c.optim.lr, c.loss.margin) for c in configs.values()}
  assert tried == set(itertools.product((1e-3, 3e-3), (None, 2.0, 5.0)))
  samples = [table.of_sweep(namespace | {'SAMPLES': 4})['get_table']().rows for _ in range(2)]
  assert samples[0] == samples[1] and len(samples[0]) == 4 and set(samples[0]) < set(content.rows)
  rows = [{}, {'model.heads': 'marginal', 'optim.lr': 0.5}]
  _, configs = table.load(table.of_sweep(namespace | {'SWEEP': rows}))
  assert list(configs) == ['base', 'model.heads=marginal,optim.lr=0.5']
  with pytest.raises(UserError, match=r'optim\.rl'):
    table.load(table.of_sweep(namespace | {'SWEEP': [{'optim.rl': 1}]}))
  with pytest.raises(UserError, match='of one row'):
    table.load(table.of_sweep(namespace | {'SWEEP': [{'optim.lr': 1e-3}] * 2}))


def test_results_are_a_line_a_run(table_runner):
  # other tests of this file have made tables in the folder since
  table_view.write(table_runner)
  with open(table_runner.workdir / 'results.csv', newline='') as f:
    lines = list(csv.DictReader(f))
  runs_of = {(line['row'], int(line['seed'])): line for line in lines}
  assert set(runs_of) == {(row, s) for row in ('flat', 'both', 'views') for s in (0, 1)}
  assert {'model.levels', 'eval.tta'} <= set(lines[0]) and 'train.steps' not in lines[0]
  for (row, seed), line in runs_of.items():
    evaluation = table_runner.result(table_runner.by_name[row], seed).evaluation
    assert (
      float(line['joint:top1/model']) == evaluation['decode']['joint']['levels']['model']['top1']
    )
