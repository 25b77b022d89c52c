import functools
import inspect
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from hierjax.core import parallel
from hierjax.losses import balancers, balancing, solvers

CASES = 25
SOLVED = (
  'aligned',
  'cagrad',
  'fairgrad',
  'imtl_g',
  'mgda',
  'nash',
  'upgrad',
)  # weights from the Gram matrix alone


def make(name, **options):
  factory = balancers.BALANCERS[name]
  return factory(
    **(
      {'epoch_steps': 3, **options}
      if 'epoch_steps' in inspect.signature(factory).parameters
      else options
    )
  )


def gradients(seed, tasks, cases=None, spread=1.5):
  """Random gradients [cases, tasks, 2 tasks]: norms over 10^±spread, a common part."""
  rng = np.random.default_rng(seed)
  shape = (cases or 1, tasks, 2 * tasks)
  common = (
    rng.normal(size=(shape[0], 1, shape[2]))
    * rng.choice([-1, 1, 1], size=(*shape[:2], 1))
    * rng.uniform(0, 1.5, size=(shape[0], 1, 1))
  )
  out = (rng.normal(size=shape) + common) * 10.0 ** rng.uniform(
    -spread, spread, size=(*shape[:2], 1)
  )
  return out if cases else out[0]


def gram_of(g):
  return np.einsum('...id,...jd->...ij', g, g)


@functools.cache
def solver(name, **options):
  balancer = make(name, **options)

  def update(gram, losses, key):
    return balancer.update(losses, balancer.init(len(losses), jnp.zeros(3)), gram=gram, key=key)[1]

  return jax.jit(jax.vmap(update))


def weights(name, g, **options):
  """Weights of gradients [cases, K, D] or [K, D]; always CASES of them."""
  batch = np.resize(gram_of(g), (CASES, *[g.shape[-2]] * 2))
  out = solver(name, **options)(
    jnp.asarray(batch, jnp.float32),
    jnp.ones(batch.shape[:2]),
    jax.random.split(jax.random.key(3), CASES),
  )
  return np.asarray(out, np.float64)[: len(g)] if g.ndim == 3 else np.asarray(out[0], np.float64)


# Closed forms of two tasks.


@pytest.mark.parametrize('seed', range(4))
def test_two_tasks(seed):
  g = gradients(seed, 2, spread=0.5)
  (a, c), (_, b) = gram_of(g)
  na, nb = np.sqrt([a, b])
  least = np.clip((b - c) / (a + b - 2 * c), 0, 1)
  close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
  close(weights('mgda', g), [least, 1 - least])
  close(weights('imtl_g', g), np.array([nb, na]) / (na + nb))
  close(
    weights('nash', g),
    np.sqrt(np.linalg.norm(gram_of(g)) / (1 + c / (na * nb))) / np.array([na, nb]),
  )
  close(weights('pcgrad', g), [1 - min(c, 0) / a, 1 - min(c, 0) / b])
  close(weights('cagrad', g, c=0.0), [1, 1])
  d = (
    weights('cagrad', g) @ g
  )  # the point of the ball around the sum that is best for the worse task
  best = (
    (gram_of(g).sum(1)[:, None] + 0.4 * np.linalg.norm(g.sum(0)) * g @ circle(g).T).min(0).max()
  )
  close(min(g @ d) * (1 + 0.4**2), best, atol=1e-4 * max(a, b))


def circle(g, points=20000):
  """Unit vectors all around in the plane of two gradients."""
  plane = np.linalg.qr(g.T)[0]
  angle = np.linspace(0, 2 * np.pi, points)
  return np.stack([np.cos(angle), np.sin(angle)], 1) @ plane.T


def test_right_angles():
  g = np.eye(3)[:2]
  np.testing.assert_allclose(weights('cagrad', g), [1.4 / 1.16] * 2, rtol=1e-5)
  np.testing.assert_allclose(weights('mgda', g * [[1], [2]]), [0.8, 0.2], rtol=1e-4)
  np.testing.assert_allclose(weights('aligned', g * [[1], [2]]), [1, 0.5], rtol=1e-5)
  np.testing.assert_allclose(weights('nash', g), [2**0.25] * 2, rtol=1e-4)


# Against SciPy.


def on_simplex(objective, tasks):
  starts = [np.full(tasks, 1 / tasks), *(0.9 * np.eye(tasks) + 0.1 / tasks)]
  constraint = {'type': 'eq', 'fun': lambda w: w.sum() - 1}
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', RuntimeWarning)
    result = [
      scipy.optimize.minimize(
        objective,
        w,
        bounds=[(0, 1)] * tasks,
        constraints=constraint,
        method='SLSQP',
        options={'ftol': 1e-13, 'maxiter': 500},
      )
      for w in starts
    ]
  return min(result, key=lambda r: r.fun)


@pytest.mark.parametrize('tasks', [2, 3, 5])
def test_mgda_and_cagrad_against_slsqp(tasks):
  batch = gradients(tasks, tasks, CASES, spread=0.5)
  for g, w, total in zip(batch, weights('mgda', batch), weights('cagrad', batch)):
    gram = gram_of(g) / gram_of(g).max()
    best = on_simplex(lambda x: x @ gram @ x, tasks)
    assert w.min() >= 0 and abs(w.sum() - 1) < 1e-5
    assert w @ gram @ w <= best.fun + 1e-5
    np.testing.assert_allclose(w, best.x, atol=0.01)

    c = 0.4

    def objective(x):
      return x @ gram.sum(1) + c * np.sqrt(gram.sum()) * np.sqrt(x @ gram @ x + 1e-16)

    dual = total * (1 + c**2) - 1
    assert dual.min() >= -1e-5
    dual = dual / dual.sum()
    best = on_simplex(objective, tasks)
    assert objective(dual) <= best.fun + 1e-5 * (1 + abs(best.fun))
    # strong duality: what the worst task gets of d is the dual's least value
    np.testing.assert_allclose(min(gram @ (total * (1 + c**2))), best.fun, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('tasks', [2, 3, 5])
@pytest.mark.parametrize('alpha', [0.5, 1.0, 5.0])
def test_fairgrad_and_nash_against_root_finding(tasks, alpha):
  batch, compared = gradients(10 + tasks, tasks, CASES, spread=1), 0
  result = weights('fairgrad', batch, alpha=alpha)
  if alpha == 1:
    np.testing.assert_array_equal(result, weights('nash', batch))
  for g, w in zip(batch, result):
    gram = gram_of(g) / np.linalg.norm(gram_of(g))
    assert (abs(gram @ w - w ** (-1 / alpha)) <= 1e-5 * (abs(gram) @ w)).all()

    def equation(z):
      return (gram @ np.exp(z)) * np.exp(z / alpha) - 1

    def slope(z):
      return gram * np.exp(z)[None] * np.exp(z / alpha)[:, None] + np.diag(
        (equation(z) + 1) / alpha
      )

    with np.errstate(over='ignore', invalid='ignore'):
      root = scipy.optimize.root(
        equation, -np.log(np.diag(gram)) * alpha / (1 + alpha), jac=slope, method='lm', tol=1e-12
      )
    if root.success and abs(root.fun).max() < 1e-8:
      compared += 1
      np.testing.assert_allclose(w, np.exp(root.x), rtol=5e-4)
  assert compared > CASES / 2


@pytest.mark.parametrize('tasks', [2, 3, 5])
def test_imtl_g_projects_alike(tasks):
  batch = gradients(20 + tasks, tasks, CASES)
  for g, w in zip(batch, weights('imtl_g', batch)):
    unit = g / np.linalg.norm(g, axis=1, keepdims=True)
    projections = unit @ (w @ g)
    literal = np.linalg.solve(gram_of(unit), np.ones(tasks)) / np.linalg.norm(g, axis=1)
    np.testing.assert_allclose(projections, projections.mean(), rtol=0.02)
    assert projections.mean() > 0  # never uphill
    if literal.sum() > 0.01 * abs(literal).sum():
      np.testing.assert_allclose(w, literal / literal.sum(), rtol=0.02, atol=1e-4)


@pytest.mark.parametrize('tasks', [2, 3, 5])
def test_aligned_has_one_singular_value(tasks):
  batch = gradients(30 + tasks, tasks, CASES, spread=0.5)
  for g, w in zip(batch, weights('aligned', batch)):
    u, s, v = np.linalg.svd(g, full_matrices=False)
    np.testing.assert_allclose(w @ g, s.min() * (u @ v).sum(0), rtol=2e-3, atol=2e-3 * s.min())


def least_above(gram, task):
  """Minimise v'Gv over v >= e_task by trying every set of entries that stay at their bound."""
  tasks, best, least = len(gram), None, np.inf
  bound = np.eye(tasks)[task]
  for pattern in itertools.product([False, True], repeat=tasks):
    free = np.array(pattern)
    v = bound.copy()
    if free.any():
      v[free] = np.linalg.solve(gram[np.ix_(free, free)], -gram[np.ix_(free, ~free)] @ v[~free])
    if (v >= bound - 1e-12).all() and v @ gram @ v < least:
      best, least = v, v @ gram @ v
  return best


@pytest.mark.parametrize('tasks', [2, 3, 5])
def test_upgrad_against_all_active_sets(tasks):
  batch, conflicts = gradients(60 + tasks, tasks, CASES, spread=0.5), 0
  for g, w in zip(batch, weights('upgrad', batch)):
    gram = gram_of(g)
    points = [least_above(gram, i) for i in range(tasks)]
    for i, v in enumerate(points):  # the conditions of Karush, Kuhn and Tucker
      slope, slack = gram @ v, v - np.eye(tasks)[i]
      assert (slope >= -1e-9 * gram.max()).all() and abs(slope * slack).max() < 1e-9 * gram.max()
    expected = np.mean(points, 0)
    conflicts += (expected > 1.01 / tasks).any()
    np.testing.assert_allclose(w @ g, expected @ g, rtol=1e-3, atol=1e-3 * abs(expected @ g).max())
    np.testing.assert_allclose(w, expected, rtol=1e-2, atol=1e-3)
    norms = np.linalg.norm(g, axis=1)
    assert ((g @ (w @ g)) >= -1e-3 * norms * np.linalg.norm(w @ g)).all()
  assert conflicts > CASES / 4


def test_upgrad_of_eight_tasks_opposes_none():
  for g, w in zip(batch := gradients(70, 8, 5, spread=0.5), weights('upgrad', batch)):
    expected = np.mean([least_above(gram_of(g), i) for i in range(8)], 0)
    np.testing.assert_allclose(w @ g, expected @ g, rtol=2e-3, atol=2e-3 * abs(expected @ g).max())


def test_upgrad_of_gradients_that_agree_is_their_mean():
  g = np.abs(gradients(71, 3, CASES))
  np.testing.assert_allclose(weights('upgrad', g), 1 / 3, rtol=1e-5)


# Surgery against loops over vectors.


def naive_surgery(g, orders, goals=None, beta=0.5):
  out = []
  for i in range(len(g)):
    v = g[i].copy()
    for j in orders[:, i]:
      if i == j:
        continue
      if goals is None:
        if v @ g[j] < 0:
          v -= v @ g[j] / (g[j] @ g[j]) * g[j]
        continue
      cosine, goal = v @ g[j] / np.linalg.norm(v) / np.linalg.norm(g[j]), goals[i, j]
      if cosine < goal:
        v = (
          v
          + np.linalg.norm(v)
          * (goal * np.sqrt(1 - cosine**2) - cosine * np.sqrt(1 - goal**2))
          / (np.linalg.norm(g[j]) * np.sqrt(1 - goal**2))
          * g[j]
        )
      goals[i, j] = (1 - beta) * goal + beta * cosine
    out.append(v)
  return sum(out)


@pytest.mark.parametrize('tasks', [3, 5])
def test_surgery_against_vectors(tasks):
  goals, pcgrad, gradvac = np.zeros((tasks, tasks)), make('pcgrad'), make('gradvac')
  updates = {b: jax.jit(b.update) for b in (pcgrad, gradvac)}
  state, changed = gradvac.init(tasks), 0
  for step in range(6):
    g, key = gradients(40 + step, tasks), jax.random.key(step)
    orders = np.asarray(solvers.random_orders(key, tasks))
    np.testing.assert_array_equal(
      np.sort(orders, axis=0), np.tile(np.arange(tasks)[:, None], tasks)
    )
    inputs = {'gram': jnp.asarray(gram_of(g), jnp.float32), 'key': key}
    heads, w, _ = updates[pcgrad](jnp.ones(tasks), {}, **inputs)
    expected = naive_surgery(g, orders)
    np.testing.assert_allclose(
      np.asarray(w) @ g, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max()
    )
    assert (heads == 1).all()
    changed += not np.allclose(w, 1)
    _, w, state = updates[gradvac](jnp.ones(tasks), state, **inputs)
    expected = naive_surgery(g, orders, goals)
    np.testing.assert_allclose(
      np.asarray(w) @ g, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max()
    )
    np.testing.assert_allclose(state['cosines'], goals, atol=1e-3)
  assert changed > 3  # there were conflicts


# What follows the losses.


def run(balancer, losses, **inputs):
  """Update along losses [steps, K] and inputs: weights of losses, of gradients, last state."""
  update, state, out = jax.jit(balancer.update), balancer.init(losses.shape[1], jnp.zeros(2)), []
  for i, row in enumerate(losses):
    *w, state = update(jnp.asarray(row, jnp.float32), state, **{k: v[i] for k, v in inputs.items()})
    out.append(np.asarray(w))
  return np.array(out)[:, 0], np.array(out)[:, 1], state


LOSSES = np.random.default_rng(0).uniform(0.2, 4, size=(9, 3)).astype(np.float32)


def adam(values, lr, decay=0.0):
  """Kingma and Ba's Adam in numpy, with decay added to the gradient: next(gradient) -> values."""
  m, v, t = np.zeros_like(values), np.zeros_like(values), 0
  while True:
    g = (yield values) + decay * values
    t, m, v = t + 1, 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    values = values - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def test_uw_and_imtl_l():
  for name, start, gradient, entry in (
    ('uw', -0.5, lambda s, loss: (1 - loss * np.exp(-s)) / 2, lambda s: np.exp(-s) / 2),
    ('imtl_l', 0.0, lambda s, loss: loss * np.exp(s) - 1, np.exp),
  ):
    heads, shared, _ = run(make(name, lr=0.1), LOSSES)
    learner = adam(np.full(3, start), 0.1)
    s = next(learner)
    for loss, w in zip(LOSSES, heads):
      np.testing.assert_allclose(w, entry(s), rtol=1e-4)
      s = learner.send(gradient(s, loss.astype(np.float64)))
    np.testing.assert_array_equal(heads, shared)


@pytest.mark.parametrize('name', ['uw', 'imtl_l'])
def test_a_loss_of_zero_does_not_weigh_ever_more(name):
  heads, _, _ = run(make(name, lr=100.0), np.zeros((3, 2)))
  assert np.isfinite(heads).all() and heads.max() < 3e4


def test_imtl_l_tends_to_one_over_the_loss():
  heads, _, _ = run(make('imtl_l', lr=0.1), np.tile([[0.1, 1.0, 8.0]], (150, 1)))
  np.testing.assert_allclose(heads[-1], [10, 1, 0.125], rtol=0.05)


def test_imtl_is_both():
  g, imtl = gradients(6, 3, spread=0.3), make('imtl', lr=0.1)
  scale, _, _ = run(make('imtl_l', lr=0.1), LOSSES)
  heads, shared, _ = run(
    imtl, LOSSES, gram=jnp.tile(jnp.asarray(gram_of(g), jnp.float32), (9, 1, 1))
  )
  # two programs, compiled apart, may round the last bit differently
  np.testing.assert_allclose(heads, scale, rtol=2 * np.finfo(np.float32).eps)
  np.testing.assert_allclose(
    shared[-1], scale[-1] * weights('imtl_g', scale[-1][:, None] * g), rtol=1e-3
  )


def test_dwa_over_epochs():
  heads, shared, _ = run(make('dwa', epoch_steps=3, temperature=2.0), LOSSES)
  means = LOSSES.reshape(3, 3, 3).mean(1)
  ratio = means[1] / means[0]
  np.testing.assert_allclose(heads[:6], 1)
  np.testing.assert_allclose(
    heads[6:], np.tile(3 * np.exp(ratio / 2) / np.exp(ratio / 2).sum(), (3, 1)), rtol=1e-5
  )
  np.testing.assert_array_equal(heads, shared)


def test_dtp():
  nan = np.nan
  accuracies = np.array([[0.2, nan, 0.0], [0.6, nan, nan], [1.0, nan, 0.0]], np.float32)
  heads, _, _ = run(make('dtp', gamma=2.0, decay=0.75), LOSSES[:3], accuracies=accuracies)
  average = np.array([0.2, 0.3, 0.475])
  np.testing.assert_allclose(heads[:, 0], -((1 - average) ** 2) * np.log(average), rtol=1e-5)
  np.testing.assert_array_equal(heads[:, 1], 1)
  np.testing.assert_allclose(heads[:, 2], -(0.999**2) * np.log(1e-3), rtol=1e-5)


def test_memoryless():
  exp = np.exp(LOSSES / 0.5)
  np.testing.assert_allclose(
    run(make('awa'), LOSSES)[0], exp / exp.sum(1, keepdims=True), rtol=1e-5
  )
  geometric = jax.vmap(jax.grad(lambda x: jnp.prod(x) ** (1 / 3)))(jnp.asarray(LOSSES))
  np.testing.assert_allclose(run(make('gls'), LOSSES)[0], geometric, rtol=1e-5)
  np.testing.assert_allclose(
    run(make('gls'), np.array([[4.0, 0.0, 1.0]]))[0], [[0.25, 0, 1]], rtol=1e-5
  )
  draws = run(make('rlw'), LOSSES, key=jax.random.split(jax.random.key(0), 9))[0]
  np.testing.assert_allclose(draws.sum(1), 1, rtol=1e-5)
  assert len(np.unique(draws)) == draws.size


def test_famo():
  losses = LOSSES.copy()
  losses[4, 1] = 0  # no label in that batch
  heads, shared, _ = run(make('famo', lr=0.1, decay=0.01), losses)
  learner, before = adam(np.zeros(3), 0.1, 0.01), losses[0]
  x = next(learner)
  for i, w in enumerate(heads):
    present, z = losses[i] > 0, np.exp(x) / np.exp(x).sum()
    if i:
      fall = np.where(present, np.log(before / np.where(present, losses[i], 1)), 0)
      x = learner.send(z * fall - z * (z @ fall))
      before = np.where(present, losses[i], before)
    expected = np.where(present, np.exp(x) / np.where(present, losses[i], 1), 0)
    np.testing.assert_allclose(w, expected / expected.sum(), rtol=1e-4)
  np.testing.assert_array_equal(heads, shared)


def test_gradnorm():
  """Against the paper's objective, differentiated numerically."""
  batch = gradients(7, 3, 9, spread=0.5)
  heads, shared, _ = run(
    make('gradnorm', epoch_steps=2, alpha=1.5, lr=0.1),
    LOSSES,
    gram=jnp.asarray(gram_of(batch), jnp.float32),
  )
  first, learner = LOSSES[:2].mean(0), adam(np.ones(3), 0.1)
  s = next(learner)

  def softmax(s):
    return 3 * np.exp(s) / np.exp(s).sum()

  for i, w in enumerate(heads):
    np.testing.assert_allclose(w, softmax(s), rtol=1e-4)
    if i >= 2:
      norms = np.linalg.norm(batch[i], axis=1)
      rate = LOSSES[i] / first / (LOSSES[i] / first).mean()
      target = (softmax(s) * norms).mean() * rate**1.5

      def objective(s):
        return abs(softmax(s) * norms - target).sum()

      s = learner.send(
        np.array([(objective(s + h) - objective(s - h)) / 2e-6 for h in 1e-6 * np.eye(3)])
      )
  np.testing.assert_array_equal(heads, shared)


def test_db_mtl():
  batch = gradients(8, 3, 4, spread=0.5)
  balancer = make('db_mtl', beta=0.8)
  state, past = balancer.init(3, {'a': jnp.zeros(2), 'b': jnp.zeros((2, 2))}), np.zeros((3, 6))

  def as_tree(v):
    return {
      'a': jnp.asarray(v[:2], jnp.float32),
      'b': jnp.asarray(v[2:].reshape(2, 2), jnp.float32),
    }

  for step, (g, losses) in enumerate(zip(batch, LOSSES), 1):
    result = balancing.shared_gradient(
      balancer, jnp.asarray(losses), [as_tree(v) for v in g], state
    )
    heads, tree, state = result.loss_weights, result.gradient, result.state
    past = g / losses[:, None] + 0.8 / step**0.5 * (past - g / losses[:, None])
    norms = np.linalg.norm(past, axis=1)
    np.testing.assert_allclose(
      np.concatenate([np.ravel(tree['a']), np.ravel(tree['b'])]),
      (past * (norms.max() / norms)[:, None]).sum(0),
      rtol=1e-3,
    )
    np.testing.assert_allclose(heads, 1 / losses, rtol=1e-5)


# All of them.


def corner_cases(tasks):
  """Losses [cases, K] and gradients [cases, K, 8] that make equations singular."""
  rng = np.random.default_rng(9)
  g = rng.normal(size=(tasks, 8))
  sign = np.where(np.arange(tasks) % 2, -1.0, 1.0)[:, None]
  zero = np.arange(tasks)[:, None] != 0
  cases = {
    'plain': g,
    'all zero': 0 * g,
    'one zero': g * zero,
    'identical': np.tile(g[:1], (tasks, 1)),
    'parallel': g[:1] * 10.0 ** np.arange(tasks)[:, None],
    'opposite': g[:1] * sign,
    'opposite, unequal': g[:1] * sign * 10.0 ** np.arange(tasks)[:, None],
    'in a plane': g @ np.diag([1, 1, 0, 0, 0, 0, 0, 0]),
    'sum to zero': g - g.mean(0),
    'one tiny': g * np.where(zero, 1, 1e-5),
    'one vanishing': g * np.where(zero, 1, 1e-12),
    'one huge': g * np.where(zero, 1, 1e6),
    'small': 1e-12 * g,
    'large': 1e6 * g,
    'nearly parallel': g[:1] + 1e-4 * g,
    'nearly opposite': sign * (g[:1] + 1e-4 * g),
  }
  losses = [
    np.ones(tasks),
    np.zeros(tasks),
    np.linspace(0, 1, tasks),
    np.full(tasks, 1e-12),
    10.0 ** np.linspace(-12, 4, tasks),
    np.full(tasks, 1e4),
  ]
  pairs = [(l, v) for v in cases.values() for l in losses]
  return (
    np.array([l for l, _ in pairs], np.float32),
    np.array([v for _, v in pairs], np.float32),
    [name for name in cases for _ in losses],
  )


@pytest.mark.parametrize('tasks', [1, 3])
@pytest.mark.parametrize('name', sorted(balancers.BALANCERS))
def test_never_nan_and_a_state_to_scan(name, tasks):
  """Steps under scan, which needs a state of one structure, one shape and one type."""
  balancer, (losses, grads, names) = make(name), corner_cases(tasks)
  accuracies = jnp.linspace(0, 1, tasks).at[-1].set(jnp.nan)

  def step(state, x):
    loss, g, key = x
    result = balancing.shared_gradient(
      balancer, loss, list(g), state, accuracies=accuracies, key=key
    )
    heads, tree, state, gram = result.loss_weights, result.gradient, result.state, result.gram
    return state, (heads, tree, balancing.cosines(gram))

  def steps(state, losses, grads, keys):
    return jax.lax.scan(step, state, (losses, grads, keys))

  turns = (np.arange(len(names))[:, None] + [0, 0, 17, 40, 0]) % len(names)
  keys = jax.random.split(jax.random.key(1), turns.shape)
  state, out = jax.jit(jax.vmap(steps, (None, 0, 0, 0)))(
    balancer.init(tasks, grads[0, 0]), losses[turns], grads[turns], keys
  )
  for leaf in jax.tree.leaves((state, out)):
    bad = [
      names[i]
      for i in np.flatnonzero(~np.isfinite(np.asarray(leaf)).reshape(len(names), -1).all(1))
    ]
    assert not bad, bad
  assert {x.dtype for x in jax.tree.leaves(state)} <= {np.dtype('float32'), np.dtype('int32')}
  largest = np.abs(grads).max((1, 2))
  if balancer.reads_gram and name != 'db_mtl':  # which learns from log L: steps of 1 / L
    amplified = np.abs(out[1]).max(2) / np.maximum(largest[turns], 1e-30)
    bad = {names[turns[i, j]]: amplified[i, j] for i, j in np.argwhere(amplified > 1e3)}
    assert not bad, bad


@pytest.mark.parametrize('size', [0, 1e-8])
@pytest.mark.parametrize('name', SOLVED)
def test_a_task_without_gradient_leaves_the_others(name, size):
  """As if it were not there: its level has no label in this batch."""
  g = gradients(50, 2, spread=0.5)
  padded = np.concatenate([g[:1], size * np.ones((1, 4)), g[1:]])
  expected, result = weights(name, g) @ g, weights(name, padded) @ padded
  np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_opposite_and_identical_gradients():
  g = np.array([[3.0, 4, 0], [-6, -8, 0]])
  for name in ('mgda', 'nash', 'imtl_g', 'pcgrad'):  # nothing helps both
    np.testing.assert_allclose(weights(name, g) @ g, 0, atol=1e-3)
  np.testing.assert_allclose(
    weights('cagrad', g) @ g, [-1.8 / 1.16, -2.4 / 1.16, 0], atol=1e-3
  )  # their sum, 5 long, less .4 of it
  np.testing.assert_allclose(weights('mgda', g), [2 / 3, 1 / 3], rtol=1e-5)
  same = np.tile(np.random.default_rng(2).normal(size=(CASES, 1, 6)), (1, 3, 1))
  for name in ('aligned', 'nash', 'pcgrad'):
    np.testing.assert_allclose(weights(name, same), 1, rtol=1e-3)


def test_imtl_g_where_its_weights_cancel():
  """Where weights of equal projections sum to 0 or less: never uphill, never without bound."""
  unit = np.array([[1, 0, 0], [0, 1, 0], [0.7, 0.7, 0.1]])
  unit /= np.linalg.norm(unit, axis=1, keepdims=True)
  terms = np.linalg.solve(gram_of(unit), np.ones(3))
  assert (terms < 0).sum() == 1
  zero = np.where(
    terms < 0, -terms.clip(max=0).sum() / terms.clip(min=0).sum(), 1
  )  # the norms for which the sum is 0
  for factor in (1, 0.5):
    g = unit * np.where(terms < 0, factor * zero, 1)[:, None]
    w = weights('imtl_g', g)
    projections = unit @ (w @ g)
    assert projections.min() > 0 and (
      abs(w).sum() < 101 if factor == 1 else abs(w.sum() + 1) < 1e-3
    )
    np.testing.assert_allclose(projections, projections.mean(), rtol=1e-2)


@pytest.mark.parametrize('name', SOLVED)
def test_order_and_scale_of_tasks(name):
  batch, order = gradients(51, 3, CASES, spread=0.5), [2, 0, 1]
  w = weights(name, batch)
  np.testing.assert_allclose(weights(name, batch[:, order]), w[:, order], rtol=5e-3, atol=1e-3)
  for scale in (1e-6, 1e5):
    np.testing.assert_allclose(weights(name, scale * batch), w, rtol=5e-3, atol=1e-3)


def test_nash_does_not_care_for_the_scale_of_a_task():
  g = gradients(52, 3, spread=0.2)
  d, e = (weights('nash', v) @ v for v in (g, g * [[1], [30], [0.01]]))
  np.testing.assert_allclose(d / np.linalg.norm(d), e / np.linalg.norm(e), atol=1e-3)


def test_eight_tasks():
  batch = gradients(53, 8, 3)
  for g, w in zip(
    batch, weights('mgda', batch)
  ):  # at the shortest vector d, no g_k has less than |d|^2 along it
    assert (g @ (w @ g)).min() >= (1 - 1e-2) * (w @ gram_of(g) @ w)


def test_gram_of_trees_and_devices():
  g = gradients(54, 3).astype(np.float32)
  trees = [{'a': jnp.asarray(v[:2]), 'b': (jnp.asarray(v[2:].reshape(2, 2)),)} for v in g]
  np.testing.assert_allclose(balancing.gram(trees), gram_of(g), rtol=1e-5)
  unit = g / np.linalg.norm(g, axis=1, keepdims=True)
  np.testing.assert_allclose(balancing.cosines(balancing.gram(trees)), gram_of(unit), atol=1e-5)
  result = balancing.shared_gradient(
    make('fixed'), jnp.ones(3), [jnp.asarray(v, jnp.bfloat16) for v in g], {}
  )
  d, half = result.gradient, result.gram
  assert (d.dtype, half.dtype) == (jnp.bfloat16, jnp.float32)
  np.testing.assert_allclose(half, gram_of(g), rtol=0.05, atol=0.05 * gram_of(g).max())

  mesh, features = (
    parallel.mesh(),
    np.random.default_rng(1).normal(size=(3, 16, 4)).astype(np.float32),
  )  # of each task, [rows, dimensions]
  balancer, losses = make('nash'), jnp.ones(3)

  def of_device(features):
    result = balancing.shared_gradient(balancer, losses, list(features), {}, axis=parallel.AXIS)
    return result.gradient, result.gram

  sharded = jax.jit(
    jax.shard_map(
      of_device,
      mesh=mesh,
      in_specs=jax.P(None, parallel.AXIS),
      out_specs=(jax.P(parallel.AXIS), jax.P()),
      check_vma=False,
    )
  )
  d, gram = sharded(features)
  result = balancing.shared_gradient(balancer, losses, list(features), {})
  expected, total = result.gradient, result.gram
  assert mesh.size == 8
  np.testing.assert_allclose(gram, total, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(d, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', ['awa', 'famo', 'cagrad'])
def test_weights_are_constants_of_the_step(name):
  """Differentiating the weighted losses must not differentiate the weights."""
  balancer, gram = make(name), jnp.asarray(gram_of(gradients(55, 3)), jnp.float32)

  def total(losses):
    heads, shared, _ = balancer.update(losses, balancer.init(3), gram=gram * losses[0])
    return jnp.sum(heads * shared * losses), heads * shared

  gradient, constants = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(LOSSES[0]))
  np.testing.assert_allclose(gradient, constants, rtol=1e-6)
