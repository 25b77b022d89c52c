"""The step with balancers, feature aggregation and further terms.

Against gradients taken task by task, on one device and eight, and resumed.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util

from hierjax.core import config, parallel
from hierjax.core.errors import UserError
from hierjax.experiments import fit
from hierjax.losses import balancers, exclusive
from hierjax.models import heads
from hierjax.train import optim, setup
from hierjax.train.loop import Hook
from hierjax.train.step import train_step

LEVELS = ('make', 'type', 'model')
HCAL = {
  'model.heads': 'prototypes',
  'model.head.noise': 0.05,
  'loss.aggregate': 'samples',
  'balance.name': 'awa',
  'optim.heads_lr': 5.0,
  'optim.heads_growth': 2.0,
}
SGD = {
  'optim.name': 'sgd',
  'optim.momentum': 0.0,
  'optim.weight_decay': 0.0,
  'optim.schedule': 'constant',
  'optim.lr': 1.0,
}


@pytest.fixture(autouse=True)
def backbone(monkeypatch):
  tiny.register(monkeypatch)
  devices(monkeypatch, 1)


def devices(monkeypatch, n):
  tiny.use_devices(monkeypatch, n)


def advance(c, steps=1, state=None):
  """(run, task, state before, state after, metrics)"""
  run = setup.build(c)
  task = run.task
  state = setup.initial_state(run) if state is None else state
  tx = optim.transformation(run.c, task.labels)
  step = jax.jit(lambda s, b: train_step(s, b, {}, task, run.phases[0], tx, run.mesh))
  before, out = jax.device_get(state), None
  for batch in setup.batches(run, run.train, int(state.step), int(state.step) + steps):
    state, out = step(state, parallel.put_train(batch, {}, run.mesh))
  return run, task, before, jax.device_get(state), jax.device_get(out)


def task_gradients(run, task, state):
  """The losses [K] and gradients of the first step, one task at a time through the whole model at
  once: {task: (loss, {path: gradient})}.
  """
  batch = next(iter(setup.batches(run, run.train, 0, 1)))
  labels, key = (
    jnp.asarray(batch['labels']),
    jax.random.fold_in(jax.random.fold_in(jax.random.key(task.seed), 0), 0),
  )

  def losses(params):
    variables = {'params': params, 'batch_stats': state.batch_stats}
    (logits, _), _ = run.task.model.apply(
      variables, jnp.asarray(batch['image']), True, mutable=['batch_stats'], rngs={'dropout': key}
    )
    targets = {name: labels[:, run.taxonomy.index(name)] for name in LEVELS}
    return {
      name: task.weights[name] * exclusive.cross_entropy(logits[name], targets[name]).mean()
      for name in LEVELS
    }

  @jax.jit
  def each(params):
    values, back = jax.vjp(losses, params)
    return {
      name: (values[name], back({n: jnp.float32(n == name) for n in LEVELS})[0]) for name in LEVELS
    }

  return {
    name: (float(value), traverse_util.flatten_dict(grads))
    for name, (value, grads) in jax.device_get(each(state.params)).items()
  }


def moved(before, after):
  """What a step of plain gradient descent with rate 1 took away: the gradient."""
  a, b = (traverse_util.flatten_dict(s.params) for s in (before, after))
  return {k: a[k] - b[k] for k in a}


def assert_close(gradients, expected, tolerance=2e-5):
  for k, w in expected.items():
    scale = max(np.abs(w).max(), 1e-3)
    np.testing.assert_allclose(
      gradients[k] / scale, np.asarray(w) / scale, atol=tolerance, err_msg='/'.join(k)
    )


def inner(grads):
  return np.array([[sum(float((a[k] * b[k]).sum()) for k in a) for b in grads] for a in grads])


@pytest.mark.parametrize('name', ['fixed', 'awa', 'gls'])
def test_weights_of_losses_weigh_everything(name):
  c = tiny.run_config(**SGD, **{'balance.name': name, 'loss.weights': 'make=.5'})
  run, task, before, after, out = advance(c)
  gradients = task_gradients(run, task, before)
  values = np.array([gradients[level][0] for level in LEVELS])
  weights = {
    'fixed': np.ones(3),
    'awa': np.exp(values / 0.5) / np.exp(values / 0.5).sum(),
    'gls': np.prod(values) ** (1 / 3) / (3 * values),
  }[name]
  np.testing.assert_allclose(
    [out[f'weight/{level}'] for level in LEVELS], weights * [0.5, 1, 1], rtol=1e-5
  )
  assert_close(
    moved(before, after),
    {
      k: sum(w * gradients[level][1][k] for w, level in zip(weights, LEVELS))
      for k in gradients['make'][1]
    },
  )
  np.testing.assert_allclose(
    out['loss'], values.sum(), rtol=1e-5
  )  # the balancer does not change what is logged as loss


@pytest.mark.parametrize(('name', 'heads'), [('nash', 'parallel'), ('pcgrad', 'mmoe')])
def test_gradients_of_shared_weights_are_combined(name, heads):
  """The trunk and what the heads share get the balancer's combination of the tasks' own
  gradients, a level's head its plain gradient.
  """
  c = tiny.run_config(**SGD, **{'balance.name': name, 'model.heads': heads})
  run, task, before, after, out = advance(c)
  gradients = task_gradients(run, task, before)
  values = jnp.array([gradients[level][0] for level in LEVELS])
  grads = [gradients[level][1] for level in LEVELS]
  gram = inner([{k: v for k, v in g.items() if optim.shared(k)} for g in grads])
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), task.micro_batches)
  _, weights, _ = task.balancer.update(
    values, before.balancer, gram=jnp.asarray(gram, jnp.float32), key=key
  )
  expected = {
    k: sum((w if optim.shared(k) else 1) * g[k] for w, g in zip(np.asarray(weights), grads))
    for k in grads[0]
  }
  assert_close(moved(before, after), expected, 2e-4)
  cosine = gram / np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
  for i, j in ((0, 1), (0, 2), (1, 2)):
    np.testing.assert_allclose(out[f'cosine/{LEVELS[i]}-{LEVELS[j]}'], cosine[i, j], atol=1e-4)


def test_gradients_at_the_features_weigh_the_same_trunk():
  """One combination of the tasks' gradients of the features.

  The trunk moves by the sum of the tasks' gradients with its weights.
  """
  c = tiny.run_config(**SGD, **{'balance.name': 'mgda', 'balance.at': 'features'})
  run, task, before, after, out = advance(c)
  gradients = task_gradients(run, task, before)
  weights = np.array([out[f'weight/{level}'] for level in LEVELS])
  np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
  assert weights.min() >= 0 and weights.std() > 0.01
  grads = [gradients[level][1] for level in LEVELS]
  assert_close(
    moved(before, after),
    {
      k: sum((w if optim.shared(k) else 1) * g[k] for w, g in zip(weights, grads)) for k in grads[0]
    },
  )


def test_aggregation_by_hand():
  """HCAL's coarse loss, class by class.

  The mean unit feature of a make's images against the makes' prototypes, the mean over the makes
  that are there.
  """
  c = tiny.run_config(
    **SGD,
    **{
      **HCAL,
      'model.head.noise': 0.0,
      'model.normalize': True,
      'model.head.dot_product': True,
      'optim.heads_lr': 1.0,
      'optim.heads_growth': 1.0,
    },
  )
  run, _, before, _, out = advance(c)
  batch = next(iter(setup.batches(run, run.train, 0, 1)))
  variables = {'params': before.params, 'batch_stats': before.batch_stats}
  (_, features), _ = run.task.model.apply(
    variables, jnp.asarray(batch['image']), True, mutable=['batch_stats']
  )
  np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
  for k, level in enumerate(LEVELS):
    p = before.params['heads'][level]['prototypes']
    p = p / np.linalg.norm(p, axis=1, keepdims=True)
    rows = []
    for y in (
      sorted(set(batch['labels'][:, k].tolist())) if level != 'model' else range(len(features))
    ):
      x, target = (
        (features[batch['labels'][:, k] == y].mean(0), y)
        if level != 'model'
        else (features[y], batch['labels'][y, k])
      )
      z = np.asarray(x, np.float64) @ p.T.astype(np.float64) / 0.1
      rows.append(np.log(np.exp(z).sum()) - z[target])
    np.testing.assert_allclose(out[f'loss/{level}'], np.mean(rows), rtol=1e-5, err_msg=level)
  values = np.array([out[f'loss/{level}'] for level in LEVELS])
  np.testing.assert_allclose(
    [out[f'weight/{level}'] for level in LEVELS],
    np.exp(values / 0.5) / np.exp(values / 0.5).sum(),
    rtol=1e-4,
  )


@pytest.mark.usefixtures('no_compilation_cache')
@pytest.mark.parametrize(
  'options',
  [
    HCAL,
    {
      **HCAL,
      'loss.aggregate': 'children',
      'loss.positives': 'both',
      'model.normalize': True,
      'balance.name': 'cagrad',
      'balance.at': 'features',
    },
    {'balance.name': 'nash', 'optim.accumulate': 2},
    {
      'loss.terms': 'tree_path,supervised_contrastive,co_annotation,distribution_matching',
      'loss.any_level': True,
    },
  ],
  ids=['hcal', 'children and features', 'weights', 'terms'],
)
def test_eight_devices_equal_one(options, monkeypatch):
  c = tiny.run_config(**SGD, **options)
  original = setup.batches

  def batches(*args):
    for batch in original(*args):
      batch['labels'][::3, -1] = -1  # more on some devices than on others
      yield batch

  monkeypatch.setattr(setup, 'batches', batches)
  _, _, before, one, out = advance(c)
  devices(monkeypatch, 8)
  _, _, _, eight, across = advance(c)
  assert out.keys() == across.keys()
  for k in out:
    np.testing.assert_allclose(across[k], out[k], rtol=1e-5, atol=1e-5, err_msg=k)
  assert_close(moved(before, eight), moved(before, one), 1e-5)


# One that weighs losses and one that combines gradients; the state of all is saved alike.
@pytest.mark.parametrize('name', ['dwa', 'gradvac'])
def test_a_balancers_state_is_resumed(name, tmp_path, no_report):
  """The run that was stopped at step 6 and the one that was not end with the same state, the
  balancer's in it.
  """
  c = tiny.run_config(**{'balance.name': name})
  complete = fit.fit(c, tmp_path / 'whole')

  class Stop(Hook):
    """Ends the run with an error right after the evaluation at step 6 was saved."""

    def after_step(self, loop):
      if loop.step == 7:
        raise RuntimeError('stop')

  with pytest.raises(RuntimeError, match='stop'):
    fit.fit(c, tmp_path / 'cut', [Stop()])
  assert fit.fit(c, tmp_path / 'cut')['state_sha256'] == complete['state_sha256']


def test_balancing_waits_for_all_tasks_and_a_trunk_that_trains():
  c = tiny.run_config(
    **{
      'balance.name': 'cagrad',
      'curriculum': (
        config.phase(steps=2, levels='coarser'),
        config.phase(steps=2, freeze='backbone'),
      ),
    }
  )
  run = setup.build(c)
  task = run.task
  assert [task.balancer_in(phase) is not None for phase in run.phases] == [False, False, True]
  *_, out = advance(c)
  assert [out[f'weight/{level}'] for level in LEVELS] == [1, 1, 0]
  one = setup.build(tiny.run_config(**{'balance.name': 'cagrad', 'model.levels': 'finest'}))
  assert one.task.balancer_in(one.phases[0]) is None


def test_balancers_get_what_they_read():
  """Accuracies, random keys, an epoch's number of steps, gradients to smooth.

  Finite, and with a state of the same form, so that it can be saved.
  """
  for name in ('dtp', 'rlw', 'gradnorm', 'db_mtl'):
    _, _, before, after, out = advance(
      tiny.run_config(**{'balance.name': name}), steps=8
    )  # GradNorm begins after an epoch, 6
    assert jax.tree.structure(before.balancer) == jax.tree.structure(after.balancer), name
    assert all(np.isfinite(v).all() for v in jax.tree.leaves((after.params, after.balancer))), name
    assert len({float(out[f'weight/{level}']) for level in LEVELS}) > 1, name


def test_every_balancer_is_a_choice():
  options = {
    k for factory in balancers.BALANCERS.values() for k in inspect.signature(factory).parameters
  } - {'epoch_steps'}
  assert options == {*config.default().balance} - {'name', 'at'}


def test_labels_at_any_level_train_the_finest_head():
  """Images without a finest label move it only with loss.any_level."""
  c = tiny.run_config(**SGD, **{'model.heads': 'flat', 'loss.any_level': True})
  original = setup.batches

  def batches(*args):
    for batch in original(*args):
      batch['labels'][:, -1] = -1
      yield batch

  with pytest.MonkeyPatch.context() as m:
    m.setattr(setup, 'batches', batches)
    _, _, before, after, out = advance(c)
    assert out['loss'] > 0.1 and all(
      np.abs(v).max() > 0 for k, v in moved(before, after).items() if k[0] == 'heads'
    )
    c.loss.any_level = False
    _, _, before, after, out = advance(c)
  assert out['loss'] == 0 and not any(
    np.abs(v).max() > 0 for k, v in moved(before, after).items() if k[0] == 'heads'
  )


def test_prototype_heads():
  """Unit prototypes and features.

  A logit is a cosine over the temperature; the noise is drawn anew each step, in training only,
  and bounded.
  """
  form = heads.Prototypes((('make', 3), ('model', 5)), ((), ('make',)), temperature=0.1, noise=0.05)
  x = jax.random.normal(jax.random.key(0), (4, 8))
  v = form.init({'params': jax.random.key(1), 'dropout': jax.random.key(2)}, x, True)
  assert {k: p['prototypes'].shape for k, p in v['params'].items()} == {
    'make': (3, 8),
    'model': (5, 8),
  }
  plain = form.apply(v, x, False)
  p = np.asarray(v['params']['model']['prototypes'])
  cosine = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (
    p / np.linalg.norm(p, axis=1, keepdims=True)
  ).T
  np.testing.assert_allclose(plain['model'], cosine / 0.1, rtol=1e-4, atol=1e-5)
  noisy = [form.apply(v, x, True, rngs={'dropout': jax.random.key(k)}) for k in (3, 4, 3)]
  assert not np.allclose(noisy[0]['model'], noisy[1]['model']) and np.array_equal(
    noisy[0]['model'], noisy[2]['model']
  )
  assert 0 < np.abs(noisy[0]['model'] - plain['model']).max() < 0.05 * 8**0.5 * 2 / 0.1
  longer = 2 * np.linalg.norm(x, axis=1, keepdims=True) * plain['make']
  np.testing.assert_allclose(
    form.clone(dot_product=True).apply(v, 2 * x, False)['make'], longer, rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'balance.gamma': 0.5}, r'balance\.gamma=0\.5 is only valid with .*, not with fixed'),
    ({'balance.name': 'equal', 'loss.weights': 'make=2'}, r'equal.*loss\.weights'),
    ({'balance.name': 'db_mtl', 'balance.at': 'features'}, r'db_mtl.*features'),
    ({'loss.terms': 'tree'}, r"no term of the loss 'tree'.*tree_path"),
    ({'loss.hxe': 0.1, 'loss.lca': 5.0}, 'choose one'),
    ({'loss.positives': 'both'}, 'prototypes'),
    ({'model.levels': 'finest', 'loss.terms': 'distribution_matching'}, 'coarser levels'),
    ({'model.head.temperature': 0.1}, 'is only valid with .*, not with parallel'),
  ],
)
def test_options_that_do_not_fit(options, message):
  with pytest.raises(UserError, match=message):
    setup.build(tiny.run_config(**options))
