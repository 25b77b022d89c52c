"""Checkpoints that are damaged, of another model, or that no longer fit on the disk.

And runs that are really killed.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import faults
import jax
import numpy as np
import pytest
import tiny
from jax.sharding import AxisType

from hierjax import model
from hierjax.core import config, metrics, parallel
from hierjax.core.errors import UserError
from hierjax.evaluate import collect
from hierjax.experiments import fit
from hierjax.train import checkpoint, setup
from hierjax.train.interrupt import Interrupted, Signals
from hierjax.train.loop import Loop


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  tiny.register(monkeypatch)
  monkeypatch.setattr(
    parallel,
    'mesh',
    lambda: jax.make_mesh((1,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:1]),
  )


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """(folder, result) of a run with checkpoints at steps 6 and 12."""
  with pytest.MonkeyPatch.context() as patch:
    tiny.register(patch)
    patch.setattr(
      parallel,
      'mesh',
      lambda: jax.make_mesh(
        (1,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:1]
      ),
    )
    folder = tmp_path_factory.mktemp('finished') / 'run'
    return folder, fit.fit(tiny.run_config(), folder)


@pytest.fixture
def copy(finished, tmp_path) -> pathlib.Path:
  shutil.copytree(finished[0], tmp_path / 'run')
  return tmp_path / 'run'


def data_file(step: pathlib.Path) -> pathlib.Path:
  """The largest file of a checkpoint: its arrays."""
  return max((f for f in step.rglob('*') if f.is_file()), key=lambda f: f.stat().st_size)


def cut(file):
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def turn(file):
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 255
  file.write_bytes(content)


def empty(file):
  file.write_bytes(b'')


def remove(file):
  file.unlink()


DAMAGE = {
  'arrays cut short': lambda step: cut(data_file(step)),
  'one byte of the arrays turned': lambda step: turn(data_file(step)),
  'arrays empty': lambda step: empty(data_file(step)),
  'arrays gone': lambda step: remove(data_file(step)),
  'a part gone': lambda step: shutil.rmtree(step / 'rest'),
  'its manifest empty': lambda step: empty(step / 'model/manifest.ocdbt'),
  'its description cut': lambda step: cut(step / 'model/_METADATA'),
  'its metrics cut': lambda step: cut(step / 'metrics/metrics'),
}


@pytest.mark.parametrize('damage', DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_last_checkpoint_falls_back_and_ends_the_same(damage, copy, finished, capfd):
  """Also from the best of both.

  The run goes on at step 6, says why, keeps the damaged one, and ends in the same state.
  """
  damage(copy / 'checkpoints/12')
  result = fit.fit(tiny.run_config(), copy)
  messages = capfd.readouterr().err
  assert 'the checkpoint of step 12 is damaged' in messages and 'resuming at step 6' in messages
  assert (copy / 'damaged/12').is_dir()
  assert (
    result['state_sha256'] == finished[1]['state_sha256']
    and result['decode'] == finished[1]['decode']
  )
  assert any('damaged' in note for note in json.loads((copy / 'run.json').read_text())['notes'])


def test_all_checkpoints_damaged_starts_again(copy, finished, capfd):
  for step in (6, 12):
    turn(data_file(copy / f'checkpoints/{step}'))
  assert fit.fit(tiny.run_config(), copy)['state_sha256'] == finished[1]['state_sha256']
  assert capfd.readouterr().err.count('is damaged') == 2 and sorted(
    os.listdir(copy / 'damaged')
  ) == ['12', '6']


def test_prediction_takes_another_checkpoint_and_leaves_the_damaged_one(copy, capfd):
  best = model.load(copy).step
  turn(data_file(copy / f'checkpoints/{best}/model'))
  assert model.load(copy).step == {6: 12, 12: 6}[best]
  assert (
    f'checkpoints/{best} is damaged' in capfd.readouterr().err
    and (copy / f'checkpoints/{best}').is_dir()
  )
  turn(data_file(copy / f'checkpoints/{({6: 12, 12: 6})[best]}/model'))
  with pytest.raises(UserError, match='no intact checkpoint'):
    model.load(copy)


def test_prediction_leaves_a_save_under_way_alone(copy):
  """Evaluating a run while it trains must not tidy away what it is writing."""
  draft = copy / 'checkpoints/18.orbax-checkpoint-tmp'
  shutil.copytree(copy / 'checkpoints/12', draft)
  model.load(copy)
  assert draft.is_dir()
  fit.fit(tiny.run_config(), copy)
  assert not draft.exists()


@pytest.mark.parametrize('metric', ['loss', 'top1/finest', 'top1/coarsest', 'hvr'])
def test_the_best_checkpoint_is_the_one_that_is_evaluated(metric, tmp_path):
  """Over all evaluations of the run, though only the latest two are kept beside it.

  Of equals the first.
  """
  fit.fit(
    tiny.run_config(**{'train.eval_steps': 2, 'train.best': metric, 'optim.lr': 3e-2}), tmp_path
  )
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  name = {'top1/finest': 'top1/model', 'top1/coarsest': 'top1/make'}.get(metric, metric)
  values = {line['step']: line[name] for line in lines if line['kind'] == 'val'}
  choose = min if metrics.sign(metric) < 0 else max
  assert model.load(tmp_path).step == next(
    step for step, value in values.items() if value == choose(values.values())
  )


def test_a_checkpoint_of_another_model_is_told_by_its_first_difference(copy):
  config = json.loads((copy / 'config.json').read_text())
  config['model']['levels'] = ['make', 'model']
  (copy / 'config.json').write_text(json.dumps(config))
  with pytest.raises(
    UserError,
    match=r"does not fit the configured model: model\['params'\]\['heads'\]\['type'\]\['bias'\] "
    r'is \[\d+\] there and absent here',
  ):
    model.load(copy)


def test_interrupted_in_an_evaluation(tmp_path, finished, monkeypatch):
  """Ctrl-C in the middle of the evaluation at step 6 stops at once.

  The resumed run does that evaluation first and ends the same.
  """
  original = collect.collect

  def interrupted(*args, **options):
    signal.raise_signal(signal.SIGINT)
    return original(*args, **options)

  with monkeypatch.context() as patch, pytest.raises(Interrupted, match='SIGINT at step 6'):
    patch.setattr(collect, 'collect', interrupted)
    fit.fit(tiny.run_config(), tmp_path)
  assert not [
    line for line in (tmp_path / 'metrics.jsonl').read_text().splitlines() if '"val"' in line
  ]
  result = fit.fit(tiny.run_config(), tmp_path)
  assert (
    result['state_sha256'] == finished[1]['state_sha256']
    and result['decode'] == finished[1]['decode']
  )


def test_saves_between_evaluations(tmp_path, monkeypatch):
  """Every save_minutes, and what was saved is where the run goes on."""
  saved = []
  original = checkpoint.Checkpoints.save

  def save(self, step, parts, metrics):
    saved.append((step, bool(metrics)))
    original(self, step, parts, metrics)

  monkeypatch.setattr(checkpoint.Checkpoints, 'save', save)
  fit.fit(
    tiny.run_config(**{'train.save_minutes': 1e-9, 'train.steps': 8, 'train.eval_steps': 4}),
    tmp_path,
  )
  assert saved == [(2, False), (4, True), (6, False), (8, True)]


def test_cached_features_are_of_the_weights_that_train(tmp_path):
  """With EMA the averaged backbone differs from the frozen one.

  Features for training must come from the latter, or a resumed run would differ.
  """
  c = tiny.run_config(
    **{
      'curriculum': (config.phase(steps=8, freeze='backbone'),),
      'data.augment.enabled': False,
      'optim.ema': 0.9,
    }
  )
  run = setup.build(c)
  loop = Loop(run, tmp_path, Signals())
  loop.state = loop.state.replace(ema=jax.tree.map(lambda x: x + 1, loop.state.ema))
  cached = loop.features(run.train)
  variables = {'params': run.variables['params'], 'batch_stats': run.variables['batch_stats']}
  image = next(iter(setup.batches(run, run.train, 0, 1)))
  expected = run.task.model.apply(variables, image['image'], method='features')
  np.testing.assert_allclose(
    np.stack([cached.reader(int(i)) for i in image['index']]), expected, rtol=1e-4, atol=1e-5
  )


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
sys.path[:0] = [sys.argv.pop(1)]
import runpy
runpy.run_path(sys.path[0] + '/worker.py', run_name='__main__')
"""


def test_a_full_disk_stops_with_the_last_checkpoint_intact(tmp_path):
  """No file may grow beyond a limit that the first checkpoint keeps and a later one does not.

  The system refuses the write, as it does on a full disk.
  """
  workdir = tmp_path / 'run'
  options = faults.command('curriculum, EMA, accumulation', workdir, 0)[2:]

  def start(*command):
    return subprocess.run(
      [sys.executable, *command, *options, '--json', '--config.train.steps=10'],
      capture_output=True,
      text=True,
      env=environment(),
    )

  complete = start(str(faults.HERE / 'worker.py'))
  assert complete.returncode == 0, complete.stderr
  expected = json.loads(complete.stdout.splitlines()[-1])['state_sha256']
  largest = max(f.stat().st_size for f in (workdir / 'checkpoints').rglob('*') if f.is_file())
  shutil.rmtree(workdir / 'checkpoints/10')
  full = start('-c', FULL, str(largest * 2 // 3), str(faults.HERE))
  assert full.returncode == 2 and 'Traceback' not in full.stderr, full.stderr
  assert (
    'File too large' in full.stderr
    and 'the checkpoint of step' in full.stderr
    and 'is intact' in full.stderr
  )
  resumed = start(str(faults.HERE / 'worker.py'))
  assert json.loads(resumed.stdout.splitlines()[-1])['state_sha256'] == expected


def environment() -> dict[str, str]:
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': os.environ['HIERJAX_TEST_XLA_FLAGS'],
    'HIERJAX_HUGEPAGES': '0',
    'JAX_COMPILATION_CACHE_DIR': os.environ['HIERJAX_TEST_CACHE'],
  }


def test_killed_at_random_moments(tmp_path, monkeypatch):
  """The short version of `make test-faults`.

  One run across a phase change with EMA and accumulation, killed twice.
  """
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', os.environ['HIERJAX_TEST_CACHE'])
  kind, count = 'curriculum, EMA, accumulation', faults.Count()
  expected, seconds = faults.undisturbed(kind, tmp_path / 'whole')
  assert (
    faults.disturbed(kind, tmp_path / 'killed', seconds, random.Random(0), count, 2) == expected
  )
  assert sum(count.kills.values()) > 0
