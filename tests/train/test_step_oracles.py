"""One training step and the validation loss against values computed apart from the code."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util

from hierjax import model
from hierjax.core import parallel
from hierjax.experiments import fit
from hierjax.models import heads
from hierjax.train import optim, setup
from hierjax.train.step import train_step

LEVELS = ('make', 'type', 'model')
SGD = {
  'optim.name': 'sgd',
  'optim.momentum': 0.0,
  'optim.weight_decay': 0.0,
  'optim.schedule': 'constant',
  'optim.lr': 1.0,
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """The tiny backbone on one device."""
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)


def first_step(**options):
  """(run, batch, its logits before the step, metrics, {path: what the step subtracted})."""
  run = setup.build(tiny.run_config(**SGD, **options))
  task = run.task
  state = setup.initial_state(run)
  transform = optim.transformation(run.c, task.labels)
  batch = next(iter(setup.batches(run, run.train, 0, 1)))
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  (logits, _), _ = task.model.apply(
    variables, jnp.asarray(batch['image']), True, mutable=['batch_stats']
  )
  before = traverse_util.flatten_dict(jax.device_get(state.params))
  step = jax.jit(lambda s, b: train_step(s, b, {}, task, run.phases[0], transform, run.mesh))
  state, out = step(state, parallel.put_train(batch, {}, run.mesh))
  after = traverse_util.flatten_dict(jax.device_get(state.params))
  moved = {path: before[path] - after[path] for path in before}
  return run, batch, jax.device_get(logits), jax.device_get(out), moved


def length(moved):
  return math.sqrt(sum(float((x.astype(np.float64) ** 2).sum()) for x in moved.values()))


def log_softmax(x):
  x = np.asarray(x, np.float64)
  return (
    x
    - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
    - x.max(-1, keepdims=True)
  )


def test_clip_shortens_a_long_gradient_and_leaves_a_short_one():
  _, _, _, out, gradient = first_step()
  norm = length(gradient)
  assert out['grad_norm'] == pytest.approx(norm, rel=1e-4)
  _, _, _, _, moved = first_step(**{'optim.clip': norm / 3})
  assert length(moved) == pytest.approx(norm / 3, rel=1e-4)
  _, _, _, out, moved = first_step(**{'optim.clip': norm * 3})
  assert length(moved) == pytest.approx(norm, rel=1e-4)
  assert out['grad_norm'] == pytest.approx(norm, rel=1e-4)


def test_rates_of_the_heads_grow_upwards():
  """S2, section 4.1.3: the finest head has heads_lr, each level above heads_growth times more."""
  _, _, _, _, gradient = first_step()
  _, _, _, _, moved = first_step(**{'optim.heads_lr': 2.0, 'optim.heads_growth': 3.0})
  factors = {'make': 18.0, 'type': 6.0, 'model': 2.0}
  for path, step in moved.items():
    factor = factors[path[1]] if path[0] == 'heads' else 1.0
    scale = np.abs(gradient[path]).max()
    np.testing.assert_allclose(step / scale, factor * gradient[path] / scale, atol=1e-3)


def test_class_weights_weigh_the_losses_and_the_terms():
  """data.balance=loss: inverse frequencies in the training split, of mean 1 over its images."""
  run, batch, logits, out, _ = first_step(
    **{
      'data.balance': 'loss',
      'data.balance_level': 'type',
      'loss.terms': 'tree_path',
      'loss.weights': 'tree_path=.5',
      'data.toy.train': 93,
    }
  )
  labels = run.train.labels[:, 1].tolist()
  classes = sorted(set(labels))
  weight = {c: len(labels) / (len(classes) * labels.count(c)) for c in classes}
  assert max(weight.values()) > 1.05 * min(weight.values())
  assert sum(weight[c] for c in labels) / len(labels) == pytest.approx(1)
  y = np.asarray(batch['labels'])
  w = np.array([weight[c] for c in y[:, 1]])
  assert w.std() > 0.01
  rows = np.arange(len(y))
  expected = {}
  for k, level in enumerate(LEVELS):
    expected[level] = (w * -log_softmax(logits[level])[rows, y[:, k]]).mean()
  # KL of the path, uniform over its three classes, from the softmax over all levels' classes
  logp = log_softmax(np.concatenate([logits[level] for level in LEVELS], 1))
  starts = np.cumsum([0, *(logits[level].shape[1] for level in LEVELS[:-1])])
  path = np.stack([logp[rows, y[:, k] + starts[k]] for k in range(3)], 1)
  expected['tree_path'] = (w * (-path.mean(1) - math.log(3))).mean()
  for name, value in expected.items():
    assert out[f'loss/{name}'] == pytest.approx(value, rel=1e-4), name
  total = sum(expected[level] for level in LEVELS) + 0.5 * expected['tree_path']
  assert out['loss'] == pytest.approx(total, rel=1e-4)


def test_loss_weights_weigh_the_validation_loss(tmp_path, no_report):
  weights = {'make': 0.5, 'type': 0.0, 'model': 3.0}
  options = {
    'loss.weights': ','.join(f'{level}={w}' for level, w in weights.items()),
    'train.steps': 6,
    'eval.checkpoint': 'last',
  }
  fit.fit(tiny.run_config(**options), tmp_path)
  trained = model.load(tmp_path)
  outputs = trained.collect(trained.split('val'))
  expected = 0.0
  for k, level in enumerate(LEVELS):
    p = [float(outputs.probs[level][i, y]) for i, y in enumerate(outputs.labels[:, k])]
    expected += weights[level] * sum(-math.log(x) for x in p) / len(p)
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  value = [line['loss'] for line in lines if line['kind'] == 'val'][-1]
  assert value == pytest.approx(expected, rel=1e-4)


def test_prototypes_are_perturbed_both_ways():
  """HCAL's U(-.5, .5) on each coordinate: for a prototype (1, 0) the slope of the result is

  r = u2 / (1 + u1), whose distribution function is .5 + t for |t| <= 1/3, and P(r > .5) = 1/16.
  """
  n = 20_000
  form = heads.Prototypes((('make', n),), ((),), temperature=1.0, noise=0.5)
  params = {'make': {'prototypes': jnp.tile(jnp.array([1.0, 0.0]), (n, 1))}}
  first, second = np.asarray(
    form.apply({'params': params}, jnp.eye(2), True, rngs={'dropout': jax.random.key(0)})['make']
  )
  np.testing.assert_allclose(first**2 + second**2, 1, rtol=1e-5)
  slope = second / first
  assert np.abs(slope).max() <= 1 and first.min() > 0
  for t in (-1 / 3, -0.2, 0.0, 0.2, 1 / 3):
    assert (slope <= t).mean() == pytest.approx(0.5 + t, abs=0.015)
  assert (slope > 0.5).mean() == pytest.approx(1 / 16, abs=0.006)
  assert (slope < -0.5).mean() == pytest.approx(1 / 16, abs=0.006)
