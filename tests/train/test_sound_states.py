"""What is not finite is neither saved nor ranked, and a run can go back to where it was sound."""

import json
import math
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hierjax import model
from hierjax.core import config, files, metrics, parallel
from hierjax.core.errors import UserError
from hierjax.evaluate import collect, summary
from hierjax.experiments import fit
from hierjax.train import checkpoint, setup
from hierjax.train.interrupt import Signals
from hierjax.train.loop import Hook, Loop
from hierjax.train.state import to_parts


@pytest.fixture(autouse=True)
def small_world(tiny_backbone, one_device, no_report):
  """The tiny backbone on one device, without a report."""


def values_of_all_kinds() -> list[float]:
  """700 accuracies and losses: k / n as an accuracy is, and others."""
  rng = np.random.default_rng(0)
  shares = [k / n for n in (9, 10, 13, 60, 97, 1647) for k in rng.integers(1, n, 50).tolist()]
  return [*(k / 100 for k in range(1, 100)), *shares, *rng.uniform(0, 5, 300).tolist()]


@pytest.mark.parametrize('name', ['top1/model', 'loss'])
def test_an_unchanged_value_is_not_better_than_itself(name, tmp_path, monkeypatch):
  """The patience of early stopping counts up, for each of 700 values, also after a restart."""
  c = tiny.run_config(**{'train.best': name, 'train.early_stop': 2})
  loop = Loop(setup.build(c), tmp_path, Signals())
  value = {}
  monkeypatch.setattr(Loop, '_validate', lambda loop, val: dict(value))
  monkeypatch.setattr(checkpoint.Checkpoints, 'save', lambda *_: None)
  monkeypatch.setattr(loop, '_check_finite', lambda: None)
  monkeypatch.setattr(loop.log, 'say', lambda text: None)
  monkeypatch.setattr(loop.log, 'write', lambda *_: None)
  for number in values_of_all_kinds():
    better, worse = number * (1 + 1e-5), number * (1 - 1e-5)
    if name == 'loss':
      better, worse = worse, better
    fresh = {**loop.state.monitor, 'best': jnp.float32(metrics.worst(name))}
    loop.state = loop.state.replace(monitor=fresh)
    for step_value, bad in ((number, 0), (number, 1), (number, 2), (worse, 3), (better, 0)):
      value[name] = step_value
      loop.evaluate(None)
      assert int(loop.state.monitor['bad']) == bad, (number, step_value)
  loop.close()
  loop.checkpoints.close()


def test_of_equal_values_the_earlier_checkpoint_is_best(tmp_path):
  """Compared as early stopping does it, and NaN is worse than any number."""
  store = checkpoint.Checkpoints(tmp_path, 'top1/model', writes=True)
  for step, value in ((1, 0.7), (2, float(np.float32(0.7))), (3, math.nan), (4, -math.inf)):
    store.save(step, {'model': {'x': jnp.zeros(2)}}, {'top1/model': value})
    store.wait()
  assert store.steps() == [1, 3, 4] and store.best() == 1
  store.close()


class Poison(Hook):
  """Puts NaN into a part of the state after a step."""

  def __init__(self, step, part, value=np.nan):
    self.step, self.part, self.value = step, part, value

  def after_step(self, loop):
    if loop.step == self.step:
      tree = jax.tree.map(lambda x: x + jnp.zeros_like(x), getattr(loop.state, self.part))
      leaves, structure = jax.tree.flatten(tree)
      floats = [i for i, x in enumerate(leaves) if x.dtype.kind == 'f']
      leaves[floats[-1]] = leaves[floats[-1]].at[..., -1].set(self.value)
      tree = parallel.put_replicated(jax.tree.unflatten(structure, leaves), loop.run.mesh)
      loop.state = loop.state.replace(**{self.part: tree})


@pytest.mark.parametrize(
  ('part', 'value', 'changes'),
  [
    ('batch_stats', np.inf, {}),
    ('opt_state', np.nan, {}),
    ('ema', -np.inf, {'optim.ema': 0.9}),
    ('params', np.nan, {'train.eval_steps': 0, 'train.steps': 8, 'train.save_minutes': 1e-9}),
  ],
)
def test_a_state_that_is_not_finite_is_not_saved(part, value, changes, tmp_path, capsys):
  """Neither after an evaluation nor between two; the checkpoint before it stays."""
  c = tiny.run_config(**{'train.eval_steps': 2, 'train.steps': 6, **changes})
  message = (
    r'NaN or infinity .*The checkpoint of step 2 is .*--resume_from=best .*optim\.lr=0\.0003'
  )
  with pytest.raises(UserError, match=message):
    fit.fit(c, tmp_path, [Poison(4, part, value)])
  steps = sorted(int(p.name) for p in (tmp_path / 'checkpoints').glob('[0-9]*'))
  assert steps == [2]
  assert 'val at step 4' not in capsys.readouterr().err
  for line in (tmp_path / 'metrics.jsonl').read_text().splitlines():
    json.loads(line, parse_constant=pytest.fail)
  if part == 'params':  # the advice, followed
    c.optim.lr = 3e-4
    assert fit.fit(c, tmp_path, resume_from='best')['step'] == 8


def train_and_change(tmp_path, changes):
  """Train the tiny run; return its result, and its config with changes."""
  c = tiny.run_config(**{'train.eval_steps': 4})
  result = fit.fit(c, tmp_path)
  for path, value in changes.items():
    config.assign(c, path, value)
  return result, c


def test_going_back_with_another_learning_rate(tmp_path, capsys, monkeypatch):
  """From the best checkpoint or the last; once, so that the same command may be repeated."""
  original = summary.validate

  def validate(*args):
    values = original(*args)
    return {**values, 'top1/model': {0: 0.9}.get(len(steps), 0.1), 'n': steps.append(0) or 1.0}

  steps = []
  monkeypatch.setattr(summary, 'validate', validate)
  _, c = train_and_change(tmp_path, {'optim.lr': 1e-4})
  with pytest.raises(UserError, match='with other options'):
    fit.fit(c, tmp_path)
  with pytest.raises(UserError, match=r'--resume_from=best: .*model\.dropout.* may change'):
    fit.fit(
      tiny.run_config(**{'train.eval_steps': 4, 'model.dropout': 0.5}), tmp_path, resume_from='best'
    )
  steps[:] = [0]
  first = fit.fit(c, tmp_path, resume_from='best')
  err = capsys.readouterr().err
  assert 'resuming at step 4 of 12' in err and 'goes on from step 4, the best checkpoint' in err
  assert sorted(p.name for p in (tmp_path / 'abandoned').iterdir()) == ['12', '8']
  info = json.loads((tmp_path / 'run.json').read_text())
  (restart,) = info['restarts']
  assert restart['step'] == 4 and 'optim.lr' in restart['changed'][0]
  assert any('goes on from step 4' in note for note in info['notes'])
  repeated = fit.fit(c, tmp_path, resume_from='best')
  assert repeated['state_sha256'] == first['state_sha256']
  assert 'resuming at step 12' in capsys.readouterr().err
  assert json.loads((tmp_path / 'run.json').read_text())['restarts'] == [restart]
  config.assign(c, 'train.steps', 16)
  assert fit.fit(c, tmp_path, resume_from='last')['step'] == 16
  assert 'resuming at step 12 of 16' in capsys.readouterr().err


def test_no_run_to_go_back_in(tmp_path):
  with pytest.raises(UserError, match=r'--resume_from=last: .* holds no run'):
    fit.fit(tiny.run_config(), tmp_path, resume_from='last')


def save_nan(folder, step):
  """Write a checkpoint with NaN among its parameters, as earlier versions did."""
  run = setup.build(tiny.run_config())
  state = setup.initial_state(run)
  params = jax.tree.map(lambda x: x.at[..., 0].set(jnp.nan), state.params)
  state = state.replace(params=params, step=jnp.int32(step))
  store = checkpoint.Checkpoints(folder / 'checkpoints', 'top1/model', writes=True)
  store.save(step, to_parts(state), {'top1/model': 1.0})
  store.wait()
  store.close()


def test_a_checkpoint_that_is_not_finite_is_damaged(run_copy, capsys):
  """Prediction takes another one, and training goes on from the one before."""
  save_nan(run_copy, 13)
  assert model.load(run_copy).step in (6, 12)
  assert 'there is NaN or infinity in' in capsys.readouterr().err
  assert fit.fit(tiny.run_config(), run_copy)['step'] == 12
  assert (run_copy / 'damaged/13').is_dir()


def test_checkpoints_are_durable_and_reading_damaged_ones_changes_no_hooks(run_copy, monkeypatch):
  """Each file and folder of a checkpoint is synced; Python's hooks and filters stay as they are."""
  before = sys.unraisablehook, list(warnings.filters)
  store = checkpoint.Checkpoints(run_copy / 'checkpoints', 'top1/model', writes=True)
  for file in (run_copy / 'checkpoints/12').rglob('d/*'):
    file.write_bytes(b'')
  loaded = store.load_latest(to_parts(setup.initial_state(setup.build(tiny.run_config()))))
  assert loaded.step == 6
  assert (sys.unraisablehook, list(warnings.filters)) == before
  synced = []
  monkeypatch.setattr(files, 'sync', synced.append)
  store.save(20, loaded.parts, None)
  store.wait()
  folder = run_copy / 'checkpoints/20'
  assert set(synced) == {*folder.rglob('*'), folder, folder.parent} and len(synced) > 10
  store.wait()
  assert len(synced) == len(set(synced))
  store.close()


def test_outputs_that_are_not_finite_are_an_error(run_copy):
  """In evaluation and prediction, by the image."""
  trained = model.load(run_copy)
  leaves, structure = jax.tree.flatten(trained.variables)
  trained.variables = jax.tree.unflatten(structure, [x * jnp.inf for x in leaves])
  with pytest.raises(
    collect.NotFiniteError, match=r"'val': .* NaN or infinity for \d+ of 40 images"
  ):
    trained.evaluate('val')
  with pytest.raises(UserError, match='image 0 '):
    trained.predict([np.zeros((32, 32, 3), np.uint8)])


def test_other_devices_are_said(run_copy, capsys):
  """A run that goes on on other devices is not bit-identical, and says so."""
  info = json.loads((run_copy / 'run.json').read_text())
  assert info['device'].startswith('1 x ') and info['processes'] == 1
  assert not info['notes']
  (run_copy / 'run.json').write_text(json.dumps({**info, 'device': '4 x cpu', 'processes': 2}))
  fit.fit(tiny.run_config(), run_copy)
  text = 'what ran on 4 x cpu in 2 process(es): '
  assert text in capsys.readouterr().err
  notes = json.loads((run_copy / 'run.json').read_text())['notes']
  (note,) = (note for note in notes if text in note)
  assert note.endswith('not bit-identical')
