"""The folder of a run that a stranger made: it reads, writes and fetches nothing elsewhere."""

import json
import os
import pathlib

import numpy as np
import pytest

from hierjax import model
from hierjax.cli import arguments, report
from hierjax.core import archives, config, files
from hierjax.core.errors import UserError
from hierjax.data import parquet, sources
from hierjax.evaluate import example_images, rules
from hierjax.experiments import complete, run_lock
from hierjax.report import page, runs
from hierjax.taxonomy import Taxonomy
from hierjax.train import log

TAXONOMY = Taxonomy.from_rows(('make', 'model'), [('a', 'a 1'), ('a', 'a 2'), ('b', 'b 1')])


pytestmark = pytest.mark.usefixtures('no_waiting')


def make_run(folder, **options) -> pathlib.Path:
  """Write config.json and taxonomy.csv."""
  folder.mkdir(exist_ok=True)
  c = config.default()
  for name, value in options.items():
    config.assign(c, name.replace('__', '.'), value)
  (folder / 'config.json').write_text(config.to_json(c))
  TAXONOMY.to_csv(folder / 'taxonomy.csv')
  return folder


# Names of splits that would lead elsewhere, or be no name of a file.
NAMES = ('../../x', '/tmp/x', '..', '.hidden', 'a/b', 'a\\b', 'C:x', 'a\nb', '\x1b[1m', '',
         'x' * 101, 'é' * 51, '\ud800', '\u202ex', 'a\0b')  # fmt: skip


@pytest.mark.parametrize('name', NAMES)
def test_a_split_is_part_of_the_name_of_a_file_or_refused(name, tmp_path):
  """In one place for all files, and when data are loaded, before anything is trained."""
  with pytest.raises(UserError, match='cannot be part of the name of a file'):
    files.of_split(tmp_path, 'eval', name, 'json')
  if not name:  # no split at all
    return
  c = config.default()
  c.data.val, c.data.toy.train, c.data.toy.val = name, 8, 8
  with pytest.raises(UserError, match='cannot be part of the name of a file'):
    sources.load(c.data)


@pytest.mark.parametrize('name', ['val', 'test_novel', 'my split (2)', 'prüfung', '验证', 'a.b'])
def test_usual_names_of_splits_are_fine(name, tmp_path):
  """Blanks, other scripts and dots within."""
  assert files.of_split(tmp_path, 'eval', name, 'json') == tmp_path / f'eval_{name}.json'


def test_report_writes_nothing_outside(run_copy, tiny_backbone, one_device):
  """`data.val` led to a file outside, which was overwritten."""
  target = run_copy.parent / 'x.json'
  target.write_text('mine')
  for kind in ('eval', 'predictions', 'explain'):
    (run_copy / f'{kind}_..').mkdir()
  for file in run_copy.glob('*_val.*'):
    file.unlink()
  content = json.loads((run_copy / 'config.json').read_text())
  content['data']['val'] = '../../x'
  (run_copy / 'config.json').write_text(json.dumps(content))
  before = {path for path in run_copy.parent.rglob('*') if path.is_file()}
  with pytest.raises(UserError, match='cannot be part of the name of a file'):
    complete.complete(run_copy, model.run_config(run_copy))
  page.write(run_copy)
  new = {path for path in run_copy.parent.rglob('*') if path.is_file()} - before
  assert new <= {run_copy / 'report.html'} and target.read_text() == 'mine'


def test_a_split_named_by_an_evaluation_leads_nowhere(tmp_path):
  """eval_x.json may call its split '../other'."""
  run = make_run(tmp_path / 'run')
  np.savez(tmp_path / 'secret.npz', files=np.array(['a']))
  (run / 'predictions_..').mkdir()
  evaluation = {'split': '../../secret', 'n': 1, 'decode': {'joint': {'levels': {}}}}
  (run / 'eval_val.json').write_text(json.dumps(evaluation))
  content = runs.read(run)
  assert content.predictions(content.splits[0]) is None
  assert 'cannot be part of the name of a file' in content.faults[0]
  assert not example_images.is_current(run, content.splits[0])
  assert 'cannot be part of' in page.write(run).read_text(encoding='utf-8')


ROOTS = ('hf:someone/data', 'tfds:cifar100', '/', '..', '../other', '~', 'link', 'a/../../b')


@pytest.mark.parametrize('root', ROOTS)
def test_a_report_opens_no_data_elsewhere_unless_asked(root, tmp_path, monkeypatch, capsys):
  """Neither the network nor folders outside the working directory."""
  monkeypatch.setattr(parquet, 'download', lambda *_: pytest.fail('went to the network'))
  monkeypatch.setattr(model, 'load', lambda *_: pytest.fail('would open the data'))
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'link').symlink_to('/')
  make_run(tmp_path / 'run', data__root=root)
  report.run(arguments.parse(['main.py', '--mode=report', '--workdir=run']))
  out, err = capsys.readouterr()
  assert out == 'run/report.html\n'
  assert f'if you trust the run, --config.data.root={root} reads them' in err


@pytest.mark.parametrize('root', [None, 'data', 'data/../data', 'classes:make=2,model=3'])
def test_a_report_still_evaluates_what_is_here(root, tmp_path, monkeypatch):
  """The drawn set and folders in the working directory; others where the command names them."""
  monkeypatch.setattr(model, 'load', lambda *_: pytest.fail('opened'))
  monkeypatch.chdir(tmp_path)
  make_run(tmp_path / 'run', **({'data__root': root} if root else {}))
  for flags in ([], ['--config.data.root=/']):
    args = arguments.parse(['main.py', '--mode=report', '--workdir=run', *flags])
    with pytest.raises(pytest.fail.Exception, match='opened'):
      report.run(args)


FILES = ('run.json', 'metrics.jsonl', 'taxonomy.csv', 'eval_val.json', 'predictions_val.npz',
         'explain_val.npz', 'embedding_last.npz', 'migration.json')  # fmt: skip


@pytest.mark.parametrize('name', FILES)
def test_pipes_in_a_run_are_not_waited_for(name, tmp_path):
  """The report is made without them."""
  run = make_run(tmp_path / 'run')
  (run / name).unlink(missing_ok=True)
  os.mkfifo(run / name)
  page.write(run)
  runs.read(run).predictions('val')
  example_images.is_current(run, 'val')


def test_pipes_that_are_needed_are_refused(tmp_path):
  """config.json, decode.json, novelty.npz and the log of a run that goes on."""
  for name in ('config.json', 'decode.json', 'metrics.jsonl'):
    os.mkfifo(tmp_path / name)
  for read in (
    lambda: model.run_config(tmp_path),
    lambda: rules.read_rules(tmp_path / 'decode.json', TAXONOMY),
    lambda: log.JsonLines(tmp_path / 'metrics.jsonl', 5),
  ):
    with pytest.raises(OSError, match='is a pipe, socket or device'):
      read()


DAMAGE = {
  'brackets': '[' * 200_000,
  'objects': '{"a":' * 100_000,
  'long integer': '{"step": ' + '7' * 5_000 + '}',
  'number': '{"step": 1e999, "data": {"val_share": 1e999}}',
  'twice': '{"seed": 1, "seed": 2}',
  'list': '[["version", 2]]',
  'text': '"config"',
  'not UTF-8': b'{"name": "\xff\xfe"}',
  'UTF-16': '{}'.encode('utf-16'),
  'zeros': bytes(4096),
  'cut off': '{"data": {"root": ',
}


@pytest.mark.parametrize('name', DAMAGE)
def test_damaged_json_of_a_run_is_one_line(name, tmp_path):
  """config.json and decode.json are errors that name the file; the others cost a section."""
  content = DAMAGE[name]
  content = content if isinstance(content, bytes) else content.encode()
  run = make_run(tmp_path / 'run')
  (run / 'decode.json').write_bytes(content)
  with pytest.raises(UserError, match=r'decode\.json: is damaged') as e:
    rules.read_rules(run / 'decode.json', TAXONOMY)
  assert '\n' not in str(e.value) and len(str(e.value)) < 500
  for file in ('run.json', 'eval_val.json', 'migration.json', 'metrics.jsonl'):
    (run / file).write_bytes(content)
  text = page.write(run).read_text()
  for file in ('run.json', 'eval_val.json', 'migration.json'):
    assert f'{file} could not be read' in text
  assert 'metrics.jsonl: 1 damaged line left out' in text
  (run / 'metrics.jsonl').write_bytes(b'{"step": 1, "kind": "train"}\n' + content)
  log.JsonLines(run / 'metrics.jsonl', 5)
  assert (run / 'metrics.jsonl').read_text() == '{"step": 1, "kind": "train"}\n'
  (run / 'config.json').write_bytes(content)
  with pytest.raises(UserError, match=r'config\.json: (is damaged|unknown option)') as e:
    model.run_config(run)
  assert '\n' not in str(e.value) and len(str(e.value)) < 500
  page.write(run)


ODD = (
  {'name': {'a': 1}},
  {'data': 5},
  {'data': {'root': ['x']}},
  {'data': {'val_share': {'a': {}}}},
  {'plugins': {'a': 1}},
  {'curriculum': [[1]]},
  {'curriculum': {'p1': 3}, 'version': 1},
  {'version': {'a': []}},
  {'version': 1, 'model': {'head': []}},
  {'optim': {'lr': 'fast'}},
  {'seed': 2**65},
  {'train': {'steps': -1e300}},
)


@pytest.mark.parametrize('tree', ODD, ids=str)
def test_values_of_wrong_types_in_config_json(tree, tmp_path):
  """Whatever stands where a number or a group is expected is an error."""
  (tmp_path / 'config.json').write_text(json.dumps({'version': 2, **tree}))
  with pytest.raises(UserError):
    config.validate(model.run_config(tmp_path))
  page.write(tmp_path)


def test_predictions_that_unpack_to_more_are_left_out(tmp_path, monkeypatch):
  """The report says so, and takes no memory for them."""
  monkeypatch.setattr(archives.read, '__defaults__', (2**20,))
  run = make_run(tmp_path / 'run')
  np.savez_compressed(run / 'predictions_val.npz', files=np.zeros((2**20, 3), np.uint8))
  evaluation = {'split': 'val', 'n': 1, 'decode': {'joint': {'levels': {}}}}
  (run / 'eval_val.json').write_text(json.dumps(evaluation))
  content = runs.read(run)
  assert content.predictions('val') is content.predictions('val') is None
  (fault,) = content.faults
  assert 'predictions_val.npz could not be read: ' in fault
  assert fault.endswith('unpacks to 3 MiB; at most 1 are read')


@pytest.mark.parametrize('kind', ['link', 'dangling link', 'pipe', 'odd record'])
def test_the_lock_of_a_run_is_written_through_no_link(kind, tmp_path):
  """It would empty whatever the link leads to; a pipe has no size, and a record any content."""
  run, target = make_run(tmp_path / 'run'), tmp_path / 'mine.txt'
  target.write_text('mine')
  path = run / run_lock.NAME
  if kind == 'pipe':
    os.mkfifo(path)
  elif kind == 'odd record':
    path.write_text(json.dumps({'host': [], 'process': 2**63, 'since': {'a': 1}}))
    os.utime(path, (0, 0))
  else:
    path.symlink_to(target if kind == 'link' else tmp_path / 'absent')
  if kind != 'odd record':
    with pytest.raises((OSError, UserError), match=r'\.writer\.json'), run_lock.RunLock(run):
      pass
  assert target.read_text() == 'mine' and not (tmp_path / 'absent').exists()
  assert run_lock._read(path) == (
    {'host': [], 'process': 2**63, 'since': {'a': 1}} if kind == 'odd record' else {}
  )


def test_a_file_is_written_through_no_link(tmp_path):
  """Neither at its place nor at that of its unfinished part."""
  target = tmp_path / 'mine.txt'
  target.write_text('mine')
  for name in ('report.html', f'.report.html.{os.getpid()}'):
    (tmp_path / name).symlink_to(target)
    files.write(tmp_path / 'report.html', 'page')
    assert target.read_text() == 'mine' and (tmp_path / 'report.html').read_text() == 'page'
