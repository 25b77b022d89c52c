import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.train import optim

HEADS = ('make', 'type', 'model')


def params():
  return {
    'backbone': {'conv': {'kernel': jnp.ones((2, 2)), 'bias': jnp.full((2,), -0.0)}},
    'heads': {l: {'kernel': jnp.full((2, 3), 0.5), 'bias': jnp.zeros((3,))} for l in HEADS},
  }


def test_phases_of_s0():
  c = config.default()
  c.curriculum = (config.phase(epochs=5.0, freeze='heads/finest', levels='coarser'),)
  first, second = optim.phases(c, HEADS, examples=320, total_steps=200)
  assert (first.start, first.end, first.freeze, first.levels) == (
    0,
    50,
    ('heads/model',),
    ('make', 'type'),
  )
  assert (second.start, second.end, second.freeze, second.levels) == (50, 200, (), HEADS)
  assert first.trains_backbone


def test_phase_as_a_share_of_whatever_training():
  c = config.default()
  c.curriculum = (
    config.phase(share=0.25, freeze='backbone'),
    config.phase(share=0.5, freeze='heads/finest'),
  )
  for total in (200, 8):
    assert [(p.start, p.end) for p in optim.phases(c, HEADS, 320, total)] == [
      (0, total // 4),
      (total // 4, 3 * total // 4),
      (3 * total // 4, total),
    ]
  assert [(p.start, p.end) for p in optim.phases(c, HEADS, 320, 1)] == [(0, 1)]


def test_phase_to_the_end_and_phase_longer_than_the_run():
  c = config.default()
  c.curriculum = (config.phase(share=1.0, freeze='backbone'),)
  assert [(p.start, p.end, p.trains_backbone) for p in optim.phases(c, HEADS, 320, 7)] == [
    (0, 7, False)
  ]
  c.curriculum = (config.phase(steps=100, freeze='backbone'),)
  assert [(p.start, p.end) for p in optim.phases(c, HEADS, 320, 7)] == [(0, 7)]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'steps': 1, 'freeze': 'head/model'},
      r"curriculum\[0\]\.freeze: no parameter group 'head/model' \(did you mean 'heads/model'\?\); "
      'choices: backbone, heads/make',
    ),
    ({'steps': 1, 'freeze': 'finest'}, "no parameter group 'finest'"),
    (
      {'steps': 1, 'freeze': 'heads/modle'},
      r"no parameter group 'heads/modle' \(did you mean 'heads/model'\?\)",
    ),
    ({'steps': 1, 'levels': ''}, 'names no level'),
    ({'steps': 1, 'share': 0.5}, 'exactly one of epochs, steps, examples, share'),
    ({'steps': 1, 'freeze': 'backbone,heads/make', 'levels': 'make'}, 'nothing would train'),
  ],
)
def test_phase_mistakes(changes, message):
  c = config.default()
  with pytest.raises(UserError, match=message):
    c.curriculum = (config.phase(**changes),)
    optim.phases(c, HEADS, 320, 100)


def test_schedules_against_closed_forms():
  c = config.default()
  c.optim.lr, c.optim.warmup_steps = 0.4, 10
  c.optim.schedule = 'cosine'
  lr = optim.schedule(c, 110, 1000)
  for step in (0, 5, 10, 60, 109):
    expected = 0.4 * step / 10 if step < 10 else 0.2 * (1 + np.cos(np.pi * (step - 10) / 100))
    np.testing.assert_allclose(lr(step), expected, rtol=1e-5, atol=1e-7)
  c.optim.schedule, c.optim.warmup_steps = 'onecycle', None
  lr = optim.schedule(c, 100, 1000)
  np.testing.assert_allclose([lr(0), lr(19), lr(99)], [0.4 / 25, 0.4, 0.4 / 25 / 1e4], rtol=1e-4)
  c.optim.schedule = 'constant'
  assert optim.schedule(c, 100, 1000)(99) == 0.4


def test_onecycle_of_a_single_step_is_finite():
  c = config.default()
  c.optim.schedule = 'onecycle'
  for total in (1, 2, 3):
    assert all(np.isfinite(optim.schedule(c, total, 10)(s)) for s in range(total + 1))


GOLDEN = pathlib.Path(__file__).resolve().parents[1] / 'golden' / 'one_cycle.json'
ONE_CYCLE = json.loads(GOLDEN.read_text())
ANNEAL = {'cos': 'cosine', 'linear': 'linear'}


def one_cycle_options(case):
  """The options and the length of a case of tests/parity/make_one_cycle.py."""
  total, rise, anneal, peak, low, high = case
  c = config.default()
  c.optim.name, c.optim.weight_decay, c.optim.lr = 'adam', 0.0, peak
  c.optim.schedule, c.optim.onecycle_rise = 'onecycle', rise
  c.optim.onecycle_anneal, c.optim.onecycle_momentum = ANNEAL[anneal], (low, high)
  return c, total


def naive_one_cycle(total, rise, anneal, peak, low, high):
  """Learning rate, beta1 and parameter of each step, by torch's phases and torch's Adam."""
  phases = [
    (rise * total - 1, peak / 25, peak, high, low),
    (total - 1, peak, peak / 25 / 1e4, low, high),
  ]
  rows = {'lr': [], 'beta1': [], 'parameter': []}
  x, m, v = 1.0, 0.0, 0.0
  for t in range(total):
    start = 0
    for i, (end, *values) in enumerate(phases):
      if t <= end or i == len(phases) - 1:
        share = (t - start) / (end - start)
        lr, beta = (
          b + (a - b) / 2 * (math.cos(math.pi * share) + 1)
          if anneal == 'cos'
          else (b - a) * share + a
          for a, b in (values[:2], values[2:])
        )
        break
      start = end
    grad = math.cos(t)
    m, v = beta * m + (1 - beta) * grad, 0.999 * v + 0.001 * grad**2
    root = math.sqrt(v) / math.sqrt(1 - 0.999 ** (t + 1))
    x -= lr / (1 - beta ** (t + 1)) * m / (root + 1e-8)
    for name, value in zip(rows, (lr, beta, x)):
      rows[name].append(value)
  return rows


@pytest.mark.parametrize('name', ONE_CYCLE)
def test_one_cycle_is_that_of_torch(name):
  """Learning rate, beta1 and what Adam makes of them."""
  rows = ONE_CYCLE[name]
  for key, values in naive_one_cycle(*rows['case']).items():
    np.testing.assert_allclose(values, rows[key], rtol=1e-12, atol=1e-15)
  c, total = one_cycle_options(rows['case'])
  lr, momentum = optim.schedule(c, total, 10), optim.momentum_cycle(c, total)
  np.testing.assert_allclose([lr(t) for t in range(total)], rows['lr'], rtol=2e-6, atol=1e-9)
  betas = [momentum(t) for t in range(total)]
  np.testing.assert_allclose(betas, rows['beta1'], rtol=1e-6)
  x = {'backbone': {'conv': {'kernel': jnp.ones(())}}}
  tx = optim.transformation(c, optim.labels(x, c.optim.rules))
  state, xs = tx.init(x), []
  for t in range(total):
    grads = jax.tree.map(lambda _: jnp.float32(math.cos(t)), x)
    updates, state = tx.update(grads, state, x, momentum=betas[t])
    x = jax.tree.map(lambda a, u: a - lr(t) * u, x, updates)
    xs.append(float(x['backbone']['conv']['kernel']))
  # float32: each step rounds at the size of its learning rate
  np.testing.assert_allclose(xs, rows['parameter'], rtol=2e-5, atol=5e-6 * max(rows['lr']))


def test_one_cycle_against_the_values_of_torchs_own_tests():
  """test_onecycle_lr_linear_annealing of PyTorch's test_lrscheduler.py: 10 steps, peak 25."""
  lr = optim.one_cycle(0.3, 'linear', 10, 1.0, 25.0, 0.5)
  momentum = optim.one_cycle(0.3, 'linear', 10, 22.0, 1.0, 22.0)
  assert [float(lr(t)) for t in range(10)] == [1, 13, 25, 21.5, 18, 14.5, 11, 7.5, 4, 0.5]
  assert [float(momentum(t)) for t in range(10)] == [22, 11.5, 1, 4, 7, 10, 13, 16, 19, 22]


def test_cycled_momentum_of_sgd_and_of_other_schedules():
  c, total = one_cycle_options(ONE_CYCLE['linear']['case'])
  c.optim.name = 'sgd'
  x = {'backbone': {'conv': {'kernel': jnp.ones(())}}}
  tx = optim.transformation(c, optim.labels(x, c.optim.rules))
  state, velocity = tx.init(x), 0.0
  for t in range(total):
    beta = ONE_CYCLE['linear']['beta1'][t]
    velocity = beta * velocity + math.cos(t)
    grads = jax.tree.map(lambda _: jnp.float32(math.cos(t)), x)
    updates, state = tx.update(grads, state, x, momentum=beta)
    np.testing.assert_allclose(updates['backbone']['conv']['kernel'], velocity, rtol=1e-5)
  c.optim.onecycle_momentum = None
  assert optim.momentum_cycle(c, total) is None
  c.optim.schedule, c.optim.onecycle_momentum = 'cosine', (0.85, 0.95)
  with pytest.raises(
    UserError, match=r'onecycle_momentum: goes with --config\.optim\.schedule=one'
  ):
    optim.momentum_cycle(c, total)


@pytest.mark.parametrize('decay', [0.5, 0.8, 0.999, 0.9999999, 1 - 1e-12])
def test_average_of_the_weights_against_its_closed_form(decay):
  """Σ decay^(t-i) x_i / Σ decay^(t-i), also where the decay is near 1 and it is the mean."""
  x = np.random.default_rng(0).normal(size=40)
  average = jnp.float32(3)  # the initial value, which has no part in it
  for t in range(1, 41):
    share = optim.averaging_share(decay, jnp.int32(t))
    average = average + share * (jnp.float32(x[t - 1]) - average)
    weights = decay ** np.arange(t - 1, -1, -1.0)
    expected = (weights * x[:t]).sum() / weights.sum()
    np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)


def test_rules_cover_every_parameter_and_the_first_wins():
  labels = optim.labels(
    params(), (('heads/model/.*', 2.0, 1.0), ('.*/kernel', 1.0, 1.0), ('.*', 1.0, 0.0))
  )
  assert labels['heads']['model']['kernel'] == 'heads/model#0'
  assert labels['heads']['make'] == {'kernel': 'heads/make#1', 'bias': 'heads/make#2'}
  with pytest.raises(UserError, match="no rule matches the parameter 'backbone/conv/bias'"):
    optim.labels(params(), (('.*/kernel', 1.0, 1.0),))


@pytest.mark.parametrize('name', ['adam', 'adamw', 'sgd'])
def test_updates_equal_optax(name):
  """Against optax's own optimisers with the learning rate inside."""
  c = config.default()
  c.optim.name, c.optim.weight_decay, c.optim.rules = name, 0.1, (('.*', 1.0, 1.0),)
  lr, p, key = 0.01, params(), jax.random.key(0)
  reference = {
    'adam': optax.chain(optax.add_decayed_weights(0.1), optax.adam(lr)),
    'adamw': optax.adamw(lr, weight_decay=0.1),
    'sgd': optax.chain(optax.add_decayed_weights(0.1), optax.sgd(lr, 0.9)),
  }[name]
  tx = optim.transformation(c, optim.labels(p, c.optim.rules))
  a, b, sa, sb = p, p, tx.init(p), reference.init(p)
  for i in range(3):
    g = jax.tree.map(lambda x: jax.random.normal(jax.random.fold_in(key, i), x.shape), p)
    ua, sa = tx.update(g, sa, a)
    ub, sb = reference.update(g, sb, b)
    a, b = jax.tree.map(lambda x, u: x - lr * u, a, ua), optax.apply_updates(b, ub)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b)


def test_frozen_groups_keep_state_and_structure():
  c = config.default()
  p = params()
  labels = optim.labels(p, c.optim.rules)
  free, frozen = (
    optim.transformation(c, labels),
    optim.transformation(c, labels, ('heads/model', 'backbone')),
  )
  state = free.init(p)
  assert jax.tree.structure(state) == jax.tree.structure(frozen.init(p))
  _, state = free.update(jax.tree.map(jnp.ones_like, p), state, p)
  updates, after = frozen.update(jax.tree.map(jnp.ones_like, p), state, p)
  assert jax.tree.structure(state) == jax.tree.structure(after)
  assert not any(u.any() for u in jax.tree.leaves((updates['backbone'], updates['heads']['model'])))
  assert updates['heads']['make']['kernel'].all()
  for label, inner in state.inner_states.items():
    same = all(
      (x == y).all()
      for x, y in zip(jax.tree.leaves(inner), jax.tree.leaves(after.inner_states[label]))
    )
    assert same == label.startswith(('heads/model', 'backbone'))


def test_reduce_on_plateau_halves_after_patience():
  c = config.default()
  c.optim.schedule, c.optim.plateau_patience = 'plateau', 2
  tx = optim.plateau(c)
  state, scales = tx.init({}), []
  for value in (1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.4):
    _, state = tx.update({}, state, value=value)
    scales.append(float(state.scale))
  assert scales == [
    1,
    1,
    1,
    1,
    0.5,
    0.5,
    0.5,
    0.5,
  ]  # as torch.optim.lr_scheduler.ReduceLROnPlateau(factor=.5, patience=2)


def test_a_rule_matches_the_whole_path():
  """A pattern that fits only the beginning of a path is none for it."""
  params = {'heads': {'make': {'kernel': 0}}, 'backbone': {'conv': {'kernel': 0}}}
  rules = (('heads/make', 2.0, 1.0), ('heads/.*', 3.0, 1.0), ('.*', 1.0, 1.0))
  assert optim.labels(params, rules) == {
    'heads': {'make': {'kernel': 'heads/make#1'}},
    'backbone': {'conv': {'kernel': 'backbone#2'}},
  }
