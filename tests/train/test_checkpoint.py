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
from ml_collections import ConfigDict

from hierjax import model
from hierjax.cli import arguments
from hierjax.core import config, metrics
from hierjax.core.errors import UserError
from hierjax.evaluate import collect
from hierjax.experiments import fit
from hierjax.train import checkpoint, setup
from hierjax.train.interrupt import Interrupted, Signals
from hierjax.train.loop import Loop


@pytest.fixture(autouse=True)
def small_world(tiny_backbone, one_device, no_report):
  """The tiny backbone on one device; half the time of a run would go into its report."""


@pytest.fixture
def copy(run_copy) -> pathlib.Path:
  """A copy of the finished run, which has checkpoints at steps 6 and 12."""
  return run_copy


def is_end_of(result: dict, folder: pathlib.Path) -> bool:
  """Whether a run's result is that of the run in a folder: the state, and what is decided."""
  info = json.loads((folder / 'run.json').read_text())
  evaluation = json.loads((folder / 'eval_val.json').read_text())
  return result['state_sha256'] == info['state_sha256'] and (
    json.loads(json.dumps(result['decode'])) == evaluation['decode']
  )


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
def test_a_damaged_last_checkpoint_falls_back_and_ends_the_same(damage, copy, finished_run, capfd):
  """Also from the best of both.

  The run goes on at step 6, says why, keeps the damaged one, and ends in the same state.
  """
  damage(copy / 'checkpoints/12')
  result = fit.fit(tiny.run_config(), copy)
  messages = capfd.readouterr().err
  assert 'the checkpoint of step 12 is damaged' in messages and 'resuming at step 6' in messages
  assert (copy / 'damaged/12').is_dir()
  assert is_end_of(result, finished_run)
  assert any('damaged' in note for note in json.loads((copy / 'run.json').read_text())['notes'])


def test_all_checkpoints_damaged_starts_again(copy, finished_run, capfd):
  for step in (6, 12):
    turn(data_file(copy / f'checkpoints/{step}'))
  assert is_end_of(fit.fit(tiny.run_config(), copy), finished_run)
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


@pytest.mark.parametrize('metric', ['loss', 'top1/coarsest'])
def test_the_best_checkpoint_is_the_one_that_is_evaluated(metric, tmp_path):
  """Over all evaluations of the run, though only the latest two are kept beside it.

  Of equals the first.
  """
  fit.fit(
    tiny.run_config(**{'train.eval_steps': 2, 'train.best': metric, 'optim.lr': 3e-2}), tmp_path
  )
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  name = {'top1/coarsest': 'top1/make'}.get(metric, metric)
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


def test_interrupted_in_an_evaluation(tmp_path, finished_run, monkeypatch):
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
  assert is_end_of(fit.fit(tiny.run_config(), tmp_path), finished_run)


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


KIND = 'curriculum, EMA, accumulation'


def options_of(flags: list[str]) -> ConfigDict:
  """The config of a command, for a run in this process."""
  return arguments.parse(['main.py', *flags]).config


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
  options = [*faults.command(KIND, workdir, 0)[2:], '--config.train.steps=10']
  expected = fit.fit(options_of(options), workdir)['state_sha256']
  largest = max(f.stat().st_size for f in (workdir / 'checkpoints').rglob('*') if f.is_file())
  shutil.rmtree(workdir / 'checkpoints/10')
  full = subprocess.run(
    [sys.executable, '-c', FULL, str(largest * 2 // 3), str(faults.HERE), *options],
    capture_output=True,
    text=True,
    env=environment(),
  )
  assert full.returncode == 2 and 'Traceback' not in full.stderr, full.stderr
  assert (
    'File too large' in full.stderr
    and 'the checkpoint of step' in full.stderr
    and 'is intact' in full.stderr
  )
  assert fit.fit(options_of(options), workdir)['state_sha256'] == expected


def environment() -> dict[str, str]:
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': os.environ['HIERJAX_TEST_XLA_FLAGS'],
    'HIERJAX_HUGEPAGES': '0',
    'HIERJAX_TEST_REPORT': '0',
    'JAX_COMPILATION_CACHE_DIR': os.environ['HIERJAX_TEST_CACHE'],
  }


def test_killed_in_the_midst_of_a_save(tmp_path, monkeypatch):
  """The short version of `make test-faults`.

  One run across a phase change with EMA and accumulation, killed while it writes a checkpoint: what
  goes on from there ends as a run that nobody disturbed, and has no line twice.
  """
  monkeypatch.setattr(faults, 'STEPS', 12)
  monkeypatch.setitem(faults.BASE, 'train.steps', 12)
  phases = "[{'steps': 5, 'freeze': 'heads/finest', 'levels': 'coarser'}]"
  monkeypatch.setitem(faults.KINDS, KIND, faults.KINDS[KIND] | {'curriculum': phases})
  monkeypatch.setattr(faults, 'DISTURBANCES', {'SIGKILL': 1})
  monkeypatch.setattr(faults, 'wait_for_moment', wait_for_save)
  for name, value in environment().items():
    monkeypatch.setenv(name, value)
  fit.fit(options_of(faults.command(KIND, tmp_path / 'whole', 0)[2:]), tmp_path / 'whole')
  count = faults.Count()
  outcome = faults.disturbed(KIND, tmp_path / 'killed', (0, 0), random.Random(0), count, 1)
  assert outcome == faults.outcome(tmp_path / 'whole')
  assert count.kills == {'SIGKILL': 1}


def wait_for_save(process, workdir, *_) -> str:
  process.wait_for(process.trains)
  process.wait_for_save(workdir)
  return 'save'
