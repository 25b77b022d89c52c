"""Losses of tags against loops in float64 and optax, and as properties on random taxonomies."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from drawn_tags import ANIMALS, draw
from parity import ours
from test_taxonomy import RANDOM as TABLES

from hierjax.losses import tags
from hierjax.taxonomy import TagTaxonomy

RANDOM = [TagTaxonomy.from_rows(table.levels, table.rows()) for table in TABLES]
FEW = RANDOM[::5]  # trees, facets and early ends: each is a compilation
jit = functools.partial(jax.jit, compiler_options=ours.QUICK)
WILD = np.array([-1e30, -1e4, -90, -1, 0, 1, 90, 1e4, 1e30], np.float32)


def above(t):
  """{(level, class): those above it, with itself}, by the sets of rows that have them."""
  rows = {}
  for i, path in enumerate(t.paths.tolist()):
    for k, c in enumerate(path):
      rows.setdefault((k, c), set()).add(i)
  return {a: [b for b in rows if b == a or (b[0] < a[0] and rows[a] <= rows[b])] for a in rows}


def places(t):
  return {
    key: i
    for i, key in enumerate((k, c) for k, names in enumerate(t.names) for c in range(len(names)))
  }


def below(t):
  """[classes below class c, and itself] for all of the levels' classes, counted through."""
  place, out = places(t), [[] for _ in places(t)]
  for key, uppers in above(t).items():
    for upper in uppers:
      out[place[upper]].append(place[key])
  return out


def consistent_targets(t, rng, n, unknown):
  """Images that show a few leaves each: 1 for all that these are, some of it unknown."""
  targets = np.zeros((n, len(places(t))), np.int32)
  first = np.cumsum([0, *map(len, t.names)])[:-1]
  for row in targets:
    for leaf in rng.choice(len(t.paths), min(len(t.paths), rng.integers(0, 4)), replace=False):
      row[first + t.paths[leaf]] = 1
  truth = targets.copy()
  targets[rng.random(targets.shape) < unknown] = -1
  return targets, truth


# Losses.


def sigmoid(x):
  return 1 / (1 + math.exp(-x))


def test_binary_cross_entropy_against_a_loop():
  x, y = draw(0)
  weight = np.linspace(0.3, 4, x.shape[1])
  y[3] = -1
  expected = []
  for row, truth in zip(x.astype(np.float64), y):
    terms = [
      -w * math.log(sigmoid(v)) if t else -math.log(sigmoid(-v))
      for v, t, w in zip(row, truth, weight)
      if t >= 0
    ]
    expected.append(sum(terms) / len(terms) if terms else 0.0)
  actual = jit(tags.binary_cross_entropy)(x, y, jnp.asarray(weight))
  assert actual.dtype == jnp.float32 and actual.shape == (len(x),) and actual[3] == 0
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_binary_losses_against_optax():
  x, y = draw(1, unknown=0)
  np.testing.assert_allclose(
    tags.binary_cross_entropy(x, y), optax.sigmoid_binary_cross_entropy(x, y).mean(1), rtol=1e-5
  )
  for gamma, alpha in ((2.0, None), (2.0, 0.25), (0.5, 0.9), (0.0, None)):
    expected = optax.losses.sigmoid_focal_loss(x, y, alpha=alpha, gamma=gamma).mean(1)
    np.testing.assert_allclose(
      jit(tags.focal)(x, y, gamma, alpha) if alpha else tags.focal(x, y, gamma),
      expected,
      rtol=2e-4,
      atol=1e-7,
    )
  np.testing.assert_array_equal(tags.focal(x, y, 0.0), tags.binary_cross_entropy(x, y))


def test_focal_loss_by_hand():
  """Section 3.2: p_t = .9 costs 100 times less at gamma = 2, p_t = .5 four times."""
  x = jnp.array([[math.log(9)], [0.0]])
  y = jnp.ones((2, 1), jnp.int32)
  np.testing.assert_allclose(
    tags.binary_cross_entropy(x, y) / tags.focal(x, y, 2.0), [100, 4], rtol=1e-4
  )
  np.testing.assert_allclose(
    tags.focal(-x, 1 - y, 2.0, 0.25), 0.75 * tags.focal(x, y, 2.0), rtol=1e-6
  )


@pytest.mark.parametrize(
  'loss',
  [
    tags.binary_cross_entropy,
    lambda x, y: tags.focal(x, y, 2.0, 0.25),
    lambda x, y: tags.focal(x, y, 0.5),
    lambda x, y: tags.binary_cross_entropy(x, y, jnp.full(x.shape[1], 100.0)),
  ],
  ids=['bce', 'focal', 'small gamma', 'weights'],
)
def test_losses_and_gradients_are_finite_however_wrong_the_logits(loss):
  x = np.tile(WILD, (3, 1))
  y = np.repeat([[1], [0], [-1]], len(WILD), 1)
  value, grad = jax.value_and_grad(lambda x: loss(x, y).sum())(x)
  assert np.isfinite(value) and np.isfinite(grad).all() and not grad[2].any()
  assert (grad[0] <= 0).all() and (grad[1] >= 0).all()


def test_unknown_targets_have_no_part():
  x, y = draw(2)
  is_known = y >= 0
  other = np.where(is_known, x, 50.0).astype(np.float32)
  for loss in (tags.binary_cross_entropy, lambda x, y: tags.focal(x, y, 2.0, 0.25)):
    np.testing.assert_array_equal(loss(x, y), loss(other, y))
    assert not np.asarray(jax.grad(lambda x: loss(x, y).sum())(x))[~is_known].any()


def test_positive_weights():
  y = np.array([[1, 0, 1, -1, 1], [0, 0, 1, -1, -1], [0, 0, 1, -1, 0], [0, 0, 1, 1, 0]])
  np.testing.assert_allclose(tags.positive_weights(y, 10.0), [3, 1, 0.1, 0.1, 2])
  np.testing.assert_allclose(tags.positive_weights(y, 2.0), [2, 1, 0.5, 0.5, 2])
  y = np.repeat([1, 0], [3, 60])[:, None]  # so weighted, both answers weigh the same
  grad = jax.grad(lambda x: tags.binary_cross_entropy(x, y, tags.positive_weights(y, 100.0)).sum())(
    jnp.zeros((63, 1))
  )
  assert abs(grad.sum()) < 1e-5


# The hierarchy.


@pytest.mark.parametrize('t', RANDOM, ids=repr)
def test_edges_are_the_inclusions_of_rows(t):
  upper, lower = t.edges
  assert list(zip(upper.tolist(), lower.tolist())) == [
    (a, b) for a, members in enumerate(below(t)) for b in sorted(members)
  ]


@pytest.mark.parametrize('t', FEW, ids=repr)
def test_max_constraint_and_its_loss_against_loops(t):
  rng = np.random.default_rng(len(t.paths))
  edges, under = t.edges, below(t)
  y, _ = consistent_targets(t, rng, 9, 0.2)
  x = rng.normal(0, 3, y.shape).astype(np.float32)
  x[:3] = np.round(x[:3])  # ties
  actual = jit(lambda x: tags.max_constraint(x, edges))(x)
  np.testing.assert_array_equal(
    actual, [[max(row[b] for b in under[a]) for a in range(len(under))] for row in x]
  )
  expected = []  # equation of section 3.2, in probabilities
  for row, truth in zip(x.astype(np.float64), y):
    h, terms = [sigmoid(v) for v in row], []
    for a, members in enumerate(under):
      if truth[a] == 1:
        terms.append(-math.log(max(h[b] * (truth[b] == 1) for b in members)))
      elif truth[a] == 0:
        terms.append(-math.log(1 - max(h[b] for b in members)))
    expected.append(sum(terms) / len(terms) if terms else 0)
  actual = jit(lambda x, y: tags.binary_cross_entropy(tags.max_constraint(x, edges, y), y))(x, y)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('t', FEW, ids=repr)
def test_constrained_probabilities_never_rise_below(t):
  rng = np.random.default_rng(0)
  edges = upper, lower = t.edges
  x = rng.normal(0, 30, (200, len(places(t)))).astype(np.float32)
  p = np.asarray(jit(lambda x: tags.max_constraint(jax.nn.sigmoid(x), edges))(x))
  assert (p[:, upper] >= p[:, lower]).all()
  np.testing.assert_array_equal(
    jit(lambda p: tags.max_constraint(p, edges))(p), p
  )  # nothing is left to do


def test_gradient_of_the_constraint_goes_to_the_class_that_gave_the_score():
  t = ANIMALS  # kind: bird mammal; animal: cat dog owl; breed: poodle husky siamese owl
  edges = t.edges
  x = jnp.array([[0.0, 1.0, 0.0, 2.0, 0.0, 5.0, 3.0, 0.0, -1.0]])
  by = jit(jax.jacrev(lambda x, y: tags.max_constraint(x, edges, y)[0]))

  def source(a, y):
    return np.flatnonzero(by(x, y)[a, 0]).tolist()

  absent = jnp.zeros((1, 9), jnp.int32)  # where no class holds, the loss sees the plain constraint
  assert (source(1, absent), source(3, absent), source(2, absent), source(0, absent)) == (
    [5],
    [5],
    [2],
    [0],
  )  # mammal by poodle, dog by poodle, cat and siamese are equal: the first
  y = jnp.array(
    [[0, 1, 0, 1, 0, 0, 1, 0, 0]]
  )  # a husky: the poodle's score does not speak for the mammal
  assert (source(1, y), source(3, y), source(5, y)) == ([6], [6], [5])


def test_the_constraint_s_loss_has_finite_gradients():
  edges, rng = ANIMALS.edges, np.random.default_rng(0)
  y, _ = consistent_targets(ANIMALS, rng, 64, 0.3)
  x = rng.choice(WILD, y.shape)
  for loss in (tags.binary_cross_entropy, lambda x, y: tags.focal(x, y, 2.0, 0.25)):
    value, grad = jit(
      jax.value_and_grad(lambda x: loss(tags.max_constraint(x, edges, y), y).sum())
    )(x)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_a_score_that_is_no_number_stays_none():
  edges = ANIMALS.edges
  x = np.zeros((2, 9), np.float32)
  x[0, 6] = np.nan  # a husky
  actual = np.isnan(tags.max_constraint(x, edges))
  assert np.flatnonzero(actual[0]).tolist() == [1, 3, 6] and not actual[1].any()


def test_contradictions():
  y = np.array(
    [
      [0, 1, 0, 1, 0, 1, 0, 0, 0],
      [0, 1, 0, 0, 0, 1, 0, 0, 0],
      [0, -1, 0, -1, 0, 1, 0, 0, 0],
      [1, 1, 0, 0, 0, 0, 0, 0, 0],
      [0, 0, 0, 0, 1, 0, 0, 0, 1],
    ]
  )
  assert (ANIMALS.contradicts(y)[:, 0] >= 0).tolist() == [False, True, False, False, True]
  assert (ANIMALS.contradicts(y == 1)[:, 0] >= 0).tolist() == [False, True, True, False, True]
