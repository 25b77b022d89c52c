"""Every option of every balancer: a value that is given is the value that is used, 0 included."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.losses import balancers, balancing

EPOCH_STEPS = 2
PAIRS = [
  (name, option)
  for name, factory in balancers.BALANCERS.items()
  for option in inspect.signature(factory).parameters
  if option != 'epoch_steps'
]
# 0 divides there
POSITIVE = (('awa', 'gamma'), ('fairgrad', 'alpha'), ('dwa', 'temperature'))


def build(name, **options):
  """The balancer of config.balance with these options."""
  b = config.default().balance
  b.name = name
  for option, value in options.items():
    b[option] = value
  return balancing.build(b, (), EPOCH_STEPS)


def run(balancer, steps=6):
  """Weights and gradients of a few steps on seeded losses and gradients."""
  rng = np.random.default_rng(0)
  grads = [{'w': jnp.asarray(g, jnp.float32)} for g in rng.normal(size=(3, 4))]
  state, out = balancer.init(3, grads[0]), []
  for step in range(steps):
    losses = jnp.asarray(rng.uniform(0.5, 2, 3), jnp.float32)
    accuracies = jnp.asarray(rng.uniform(0.2, 0.8, 3), jnp.float32)
    shared = balancing.shared_gradient(
      balancer, losses, grads, state, accuracies=accuracies, key=jax.random.key(step)
    )
    state = shared.state
    out += [shared.loss_weights, shared.shared_weights, shared.gradient['w']]
  return np.concatenate([np.asarray(x) for x in out])


@pytest.mark.parametrize('name, option', PAIRS)
def test_a_value_that_is_given_is_used(name, option):
  factory = balancers.BALANCERS[name]
  parameters = inspect.signature(factory).parameters
  extra = {'epoch_steps': EPOCH_STEPS} if 'epoch_steps' in parameters else {}
  default = run(build(name))
  np.testing.assert_array_equal(default, run(factory(**extra)))
  for value in (0.0, 0.7):
    if not value and (name, option) in POSITIVE:
      continue
    out = run(build(name, **{option: value}))
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(out, run(factory(**extra, **{option: value})))
    assert not np.array_equal(out, default), value


@pytest.mark.parametrize('name, option', POSITIVE[:2])
def test_0_where_it_divides(name, option):
  with pytest.raises(UserError, match=f'balance.{option}=0.0 must be above 0 for {name}'):
    build(name, **{option: 0.0})


def test_what_0_means():
  """CAGrad is plain training, a factor of DTP is 1, no average and no weight moves."""
  rng = np.random.default_rng(1)
  g = rng.normal(size=(3, 5))
  gram = jnp.asarray(g @ g.T, jnp.float32)
  losses, accuracies = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.2, 0.5, 0.9])
  _, weights, _ = build('cagrad', c=0.0).update(losses, {}, gram=gram)
  np.testing.assert_allclose(weights, 1, atol=1e-6)
  dtp = build('dtp', gamma=0.0, decay=0.0)
  weights, _, state = dtp.update(losses, dtp.init(3), accuracies=accuracies)
  np.testing.assert_allclose(weights, -np.log(accuracies), rtol=1e-5)
  weights, _, _ = dtp.update(losses, state, accuracies=accuracies[::-1])
  np.testing.assert_allclose(weights, -np.log(accuracies)[::-1], rtol=1e-5)
  vac = build('gradvac', beta=0.0)
  _, _, state = vac.update(losses, vac.init(3), gram=gram, key=jax.random.key(0))
  assert not np.asarray(state['cosines']).any()
  for name in ('uw', 'imtl_l'):
    balancer = build(name, lr=0.0)
    state = balancer.init(3)
    first, _, state = balancer.update(losses, state)
    second, _, _ = balancer.update(losses, state)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize('name', sorted(balancers.BALANCERS))
def test_an_option_of_another_method(name):
  readers = {option for other, option in PAIRS if other == name}
  for option in {option for _, option in PAIRS} - readers:
    with pytest.raises(
      UserError, match=f'balance.{option}=0.0 is only valid with .*not with {name}'
    ):
      build(name, **{option: 0.0})
