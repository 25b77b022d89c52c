"""The loop around a tiny backbone on the drawn data.

Resume, phases, devices, accumulation, early stop, NaN, baseline.
"""

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest
import tiny

from hierjax import model
from hierjax.core import config, parallel
from hierjax.core.errors import UserError
from hierjax.data import pipeline
from hierjax.experiments import fit
from hierjax.models import compute
from hierjax.train import checkpoint, optim, setup, step
from hierjax.train.interrupt import Interrupted
from hierjax.train.loop import Hook
from hierjax.train.step import train_step


@pytest.fixture(autouse=True)
def backbone(monkeypatch):
  tiny.register(monkeypatch)


class Interrupt(Hook):
  """Ends a run by SIGTERM after a step."""

  def __init__(self, step):
    self.step = step

  def after_step(self, loop):
    if loop.step == self.step:
      signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def one_device(monkeypatch):
  tiny.use_devices(monkeypatch)


def start(c):
  run = setup.build(c)
  task = run.task
  return run, task, setup.initial_state(run)


def advance(run, task, state, phase=None, steps=2, freeze=None):
  phase = phase or run.phases[0]
  tx = optim.transformation(run.c, task.labels, phase.freeze if freeze is None else freeze)
  compiled = jax.jit(lambda s, b: train_step(s, b, {}, task, phase, tx, run.mesh))
  out = None
  for batch in setup.batches(run, run.train, int(state.step), int(state.step) + steps):
    state, out = compiled(state, parallel.put_train(batch, {}, run.mesh))
  return state, out


def same(a, b) -> bool:
  return checkpoint.sha256(a) == checkpoint.sha256(b)


def test_fit_leaves_what_it_promises(tmp_path, one_device):
  result = fit.fit(tiny.run_config(), tmp_path)
  for name in (
    'config.json',
    'taxonomy.csv',
    'splits.csv',
    'run.json',
    'metrics.jsonl',
    'eval_val.json',
    'predictions_val.npz',
    'decode.json',
    'report.html',
    'checkpoints',
  ):
    assert (tmp_path / name).exists(), name
  assert result['step'] == 12 and len(result['state_sha256']) == 64 and result['n'] == 40
  lines = [json.loads(l) for l in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert [l['step'] for l in lines if l['kind'] == 'val'] == [6, 12]
  assert all(np.isfinite(l['loss']) for l in lines)
  for name in ('leaf', 'joint'):
    assert result['decode'][name]['hvr'] == 0
  assert set(result['decode']['independent']['levels']['model']) >= {'top1', 'top3', 'top5', 'ece'}
  evaluated = model.load(tmp_path).evaluate('val')
  assert evaluated['decode'] == result['decode']


def test_interrupted_run_ends_bit_identical(tmp_path, one_device, no_report, monkeypatch):
  """Stopped in phase 1, at its end and in phase 2, with EMA, accumulation and dropout on."""
  c = tiny.run_config(
    **{
      'optim.ema': 0.9,
      'optim.accumulate': 2,
      'model.dropout': 0.3,
      'optim.schedule': 'plateau',
      'train.early_stop': 9,
      'curriculum': (config.phase(steps=7, freeze='heads/finest', levels='coarser'),),
    }
  )
  complete = fit.fit(c, tmp_path / 'whole')
  # the flag goes out with the next batch and is read while the one after it runs; a phase's last
  # step has no next batch
  for sent, stopped in ((2, 4), (7, 7), (8, 10)):
    with pytest.raises(Interrupted, match=f'SIGTERM at step {stopped}'):
      fit.fit(c, tmp_path / 'cut', [Interrupt(sent)])
  resumed = fit.fit(c, tmp_path / 'cut')
  assert resumed['state_sha256'] == complete['state_sha256']
  assert resumed['decode'] == complete['decode']

  def validations(folder):
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [
      {k: v for k, v in line.items() if k != 'seconds'} for line in lines if line['kind'] == 'val'
    ]

  assert validations(tmp_path / 'cut') == validations(tmp_path / 'whole')


def test_resume_refuses_other_options_and_other_taxonomy(run_copy, one_device):
  c = tiny.run_config()
  c.optim.lr = 1.0
  with pytest.raises(UserError, match=r'optim\.lr: 0\.003 -> 1\.0'):
    fit.fit(c, run_copy)
  c = tiny.run_config()
  text = (run_copy / 'taxonomy.csv').read_text().splitlines()
  (run_copy / 'taxonomy.csv').write_text('\n'.join(text[:-1]) + '\n')
  with pytest.raises(UserError, match='another taxonomy'):
    fit.fit(c, run_copy)


@pytest.mark.usefixtures('no_compilation_cache')
@pytest.mark.parametrize('kind', ['cpu', 'plain'])
def test_eight_devices_equal_one(kind, one_device, monkeypatch):
  """With unknown labels, dropout (the same mask over the whole batch), accumulation, balancing
  and clipping; SGD, whose update is the gradient itself.
  """
  c = tiny.run_config(
    **{
      'model.dropout': 0.5,
      'optim.accumulate': 2,
      'data.balance': 'loss',
      'optim.clip': 1.0,
      'optim.name': 'sgd',
    }
  )
  original = setup.batches

  def batches(*args):
    for batch in original(*args):
      batch['labels'][::3, 1] = -1  # more on some devices than on others
      yield batch

  monkeypatch.setattr(setup, 'batches', batches)

  def steps():
    run, task, state = start(c)
    model = compute.configured(task.model, kernels=kind)
    return advance(run, dataclasses.replace(task, model=model), state)

  single, out_single = steps()
  tiny.use_devices(monkeypatch, 8)
  eight, out_eight = steps()
  assert len(jax.tree.leaves(eight.params)[0].sharding.device_set) == 8
  for name in out_single:
    np.testing.assert_allclose(
      out_single[name], out_eight[name], rtol=1e-4, atol=1e-7, err_msg=name
    )
  for a, b in zip(
    jax.tree.leaves((single.params, single.batch_stats)),
    jax.tree.leaves((eight.params, eight.batch_stats)),
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_frozen_backbone_is_bit_identical(one_device):
  run, task, state = start(
    tiny.run_config(
      **{'curriculum': (config.phase(share=1.0, freeze='backbone'),), 'optim.weight_decay': 0.5}
    )
  )
  after, _ = advance(run, task, state)
  assert same(state.params['backbone'], after.params['backbone']) and same(
    state.batch_stats, after.batch_stats
  )
  assert not same(state.params['heads'], after.params['heads'])


def test_frozen_head_gets_no_update_and_no_gradient_reaches_the_backbone(one_device):
  """S0's reading: phase 1 with the model head frozen and its loss off equals training without
  that head.
  """
  c = tiny.run_config(
    **{'curriculum': (config.phase(steps=5, freeze='heads/finest', levels='coarser'),)}
  )
  run, task, state = start(c)
  after, out = advance(run, task, state)
  assert same(state.params['heads']['model'], after.params['heads']['model'])
  assert not same(state.params['heads']['make'], after.params['heads']['make'])
  assert 'loss/model' not in out and 'loss/make' in out
  other = state.replace(
    params={
      **state.params,
      'heads': {
        **state.params['heads'],
        'model': jax.tree.map(lambda x: x + 1, state.params['heads']['model']),
      },
    }
  )
  assert same(advance(run, task, other)[0].params['backbone'], after.params['backbone'])
  # the other reading: frozen, yet its loss trains the backbone
  c.curriculum = (config.phase(steps=5, freeze='heads/finest'),)
  run, task, state = start(c)
  both, _ = advance(run, task, state)
  assert same(state.params['heads']['model'], both.params['heads']['model']) and not same(
    both.params['backbone'], after.params['backbone']
  )


def test_frozen_backbone_costs_no_gradient(one_device):
  """FLOPs of the compiled step: a frozen backbone's is little more than its forward pass."""
  c = tiny.run_config(**{'curriculum': (config.phase(steps=5, freeze='backbone'),)})
  run, task, state = start(c)
  batch = next(iter(setup.batches(run, run.train, 0, 1)))
  device = parallel.put_train(batch, {}, run.mesh)

  def flops(phase):
    tx = optim.transformation(c, task.labels, phase.freeze)
    return (
      jax.jit(lambda s, b: train_step(s, b, {}, task, phase, tx, run.mesh))
      .lower(state, device)
      .compile()
      .cost_analysis()['flops']
    )

  frozen, free = (flops(p) for p in run.phases)
  assert frozen < 0.55 * free, (frozen, free)


def test_features_are_computed_once_and_train_the_same_heads(one_device, no_report, tmp_path):
  """Training on cached features equals training through the frozen backbone."""
  c = tiny.run_config(
    **{'curriculum': (config.phase(share=1.0, freeze='backbone'),), 'data.augment.enabled': False}
  )
  fit.fit(c, tmp_path)
  cached = model.load(tmp_path).variables['params']['heads']
  run, task, state = start(c)
  through, _ = advance(run, task, state, steps=12)
  best = model.load(tmp_path).step
  if best != 12:
    run, task, state = start(c)
    through, _ = advance(run, task, state, steps=best)
  for a, b in zip(jax.tree.leaves(cached), jax.tree.leaves(through.params['heads'])):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_accumulation_without_batch_norm_statistics_equals_one_batch(one_device):
  """With the backbone frozen nothing depends on the micro-batch, so 4 of 4 must give the gradient
  of 16.
  """
  results = []
  for k in (1, 4):
    run, task, state = start(
      tiny.run_config(
        **{
          'optim.accumulate': k,
          'curriculum': (config.phase(share=1.0, freeze='backbone'),),
          'optim.name': 'sgd',
        }
      )
    )
    results.append(advance(run, task, state)[0].params['heads'])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results)


@pytest.mark.parametrize('decay', [0.8, 0.9999999])
def test_ema_against_a_loop(decay, one_device):
  """The weighted mean of the parameters after each step; the initial ones have no part in it."""
  run, task, state = start(tiny.run_config(**{'optim.ema': decay}))
  total, weight = jax.tree.map(np.zeros_like, jax.device_get(state.params)), 0.0
  for _ in range(3):
    state, _ = advance(run, task, state, steps=1)
    total = jax.tree.map(lambda e, p: decay * e + np.asarray(p), total, state.params)
    weight = decay * weight + 1
  expected = jax.tree.map(lambda e: e / weight, total)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    dict(state.ema['params']),
    expected,
  )


def test_nan_names_step_and_files(tmp_path, one_device):
  with pytest.raises(UserError, match=r'NaN or infinity at step \d+: .*files of that batch: toy/'):
    fit.fit(
      tiny.run_config(**{'optim.lr': 1e30, 'optim.name': 'sgd', 'optim.schedule': 'constant'}),
      tmp_path,
    )
  assert not list((tmp_path / 'checkpoints').glob('[0-9]*'))


def test_gradient_of_nan_is_never_saved(tmp_path, one_device, monkeypatch):
  """The loss of the last step before a save is finite, its gradient is not."""
  original = step.objective

  def poisoned(head, features, *others):
    result = original(head, features, *others)
    poison = 0 * jax.numpy.sqrt(jax.numpy.sum(features * 0))
    losses = {**result.losses, 'model': result.losses['model'] + poison}
    return result._replace(losses=losses)

  monkeypatch.setattr(step, 'objective', poisoned)
  with pytest.raises(UserError, match=r'at step 1: .* gradient norm nan'):
    fit.fit(tiny.run_config(**{'train.eval_steps': 1}), tmp_path)
  assert not list((tmp_path / 'checkpoints').glob('[0-9]*'))


def test_early_stop(tmp_path, one_device, no_report):
  c = tiny.run_config(
    **{
      'train.early_stop': 2,
      'train.eval_steps': 1,
      'optim.lr': 1e-12,
      'curriculum': (config.phase(share=1.0, freeze='backbone'),),
    }
  )
  result = fit.fit(c, tmp_path)
  assert result['step'] == 3  # the first evaluation is the best, two that are not better end it
  assert fit.fit(c, tmp_path)['state_sha256'] == result['state_sha256']


def test_bfloat16_keeps_float32_parameters(one_device):
  run, task, state = start(tiny.run_config(**{'model.dtype': 'bfloat16'}))
  after, out = advance(run, task, state)
  assert {x.dtype for x in jax.tree.leaves((after.params, after.batch_stats))} == {
    np.dtype('float32')
  } and np.isfinite(out['loss'])


@pytest.mark.parametrize(
  ('levels', 'heads'),
  [('finest', ['model']), ('make,model', ['make', 'model']), ('make', ['make'])],
)
def test_any_subset_of_levels(levels, heads, tmp_path, one_device, no_report):
  c = tiny.run_config(**{'model.levels': levels, 'train.steps': 2, 'train.eval_steps': 2})
  result = fit.fit(c, tmp_path)
  assert result['heads'] == heads
  assert list(result['decode']['independent']['levels']) == (
    ['make'] if levels == 'make' else ['make', 'type', 'model']
  )
  if levels == 'finest':
    one, other = (result['decode'][name] for name in ('independent', 'leaf'))
    assert (one['fpa'], one['hvr']) == (other['fpa'], other['hvr'])


def test_balancing_by_loss_and_by_sampling(one_device):
  labels = np.array([0, 0, 0, 1, -1, 3])
  weights = pipeline.class_weights(labels, 4)
  np.testing.assert_allclose(weights, [5 / 9, 5 / 3, 0, 5 / 3], rtol=1e-6)
  assert np.isclose(weights[labels[labels >= 0]].mean(), 1)
  run, task, state = start(
    tiny.run_config(**{'data.balance': 'loss', 'data.balance_level': 'make'})
  )
  column, values = task.class_weights
  assert column == 0 and len(values) == run.taxonomy.num_classes('make')
  assert np.isfinite(advance(run, task, state)[1]['loss'])


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'train.batch_size': 12}, r'train\.batch_size=12 must be a multiple of 8 device'),
    ({'train.best': 'top1/modle'}, r'choices: loss, top1/make'),
    ({'loss.weights': 'make=x'}, "'make=x' is not LEVEL=NUMBER"),
    ({'loss.weights': 'mak=1'}, "no level 'mak'"),
    ({'model.stem': 'small'}, 'tiny has one stem only'),
  ],
)
def test_mistakes_in_options(changes, message):
  with pytest.raises(UserError, match=message):
    setup.build(tiny.run_config(**changes))


def test_baseline_is_trained_beside(tmp_path, one_device):
  fit.fit(
    tiny.run_config(
      **{
        'baseline': 'train',
        'train.steps': 2,
        'train.eval_steps': 2,
        'model.heads': 'cascaded',
        'model.head.stop_gradient': True,
      }
    ),
    tmp_path,
  )
  assert json.loads((tmp_path / 'baseline' / 'eval_val.json').read_text())['heads'] == ['model']
  c = config.from_json((tmp_path / 'baseline' / 'config.json').read_text())
  assert (c.baseline, c.model.heads) == (None, 'flat')
  # what the cascade reads is of no use to one head
  assert c.model.head == config.default().model.head
  assert 'with 3 cascaded heads' in (tmp_path / 'report.html').read_text()
  assert model.load(tmp_path).evaluate('val')['heads'] == ['make', 'type', 'model']
