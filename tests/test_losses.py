import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hierjax import losses
from hierjax.taxonomy import Taxonomy


@pytest.fixture
def cars():
  return Taxonomy.from_rows(['make', 'type', 'model'], [
    ['Audi', 'Coupe', 'TT'], ['Audi', 'Sedan', 'A4'], ['Audi', 'Sedan', 'A6'], ['BMW', 'Sedan', '320'], ['BMW', 'SUV', 'X5'], ['Geo', 'SUV', 'Metro']])


def naive(logits, labels, targets):
  out = []
  for row, y in zip(np.asarray(logits, np.float64), labels):
    p = np.exp(row - row.max())
    p /= p.sum()
    out.append(0.0 if y < 0 else -sum(targets[y][k] * np.log(p[k]) for k in range(len(p))))
  return out


def test_cross_entropy_against_a_loop(cars):
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(7, 6)).astype(np.float32) * 4, np.array([0, 5, -1, 3, 2, 1, 4])
  soft = losses.smoothed_targets(cars, 0.1, ['make'])
  np.testing.assert_allclose(losses.cross_entropy(jnp.array(logits), jnp.array(labels)), naive(logits, labels, np.eye(6)), rtol=1e-5)
  np.testing.assert_allclose(losses.cross_entropy(jnp.array(logits), jnp.array(labels), jnp.array(soft)), naive(logits, labels, soft), rtol=1e-5)


def test_unknown_label_has_no_gradient():
  grad = jax.grad(lambda x: losses.cross_entropy(x, jnp.array([-1, 1])).sum())(jnp.ones((2, 3)))
  assert not grad[0].any()
  np.testing.assert_allclose(grad[1], [1 / 3, -2 / 3, 1 / 3], rtol=1e-5)


@pytest.mark.parametrize(('by', 'rows'), [
  (['make'], {0: {0: .9, 1: .05, 2: .05}, 3: {3: .9, 4: .1}, 5: {5: 1.0}}),
  (['type'], {0: {0: 1.0}, 1: {1: .9, 2: .05, 3: .05}, 5: {5: .9, 4: .1}}),
  (['make', 'type'], {1: {1: .9, 2: .1}, 3: {3: 1.0}, 0: {0: 1.0}}),
])
def test_hierarchical_smoothing(cars, by, rows):
  targets = losses.smoothed_targets(cars, 0.1, by)
  np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
  for y, expected in rows.items():
    np.testing.assert_allclose(targets[y], [expected.get(k, 0) for k in range(6)], atol=1e-7)


def test_masked_mean():
  assert losses.masked_mean(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([1, 0, 1])) == 2
  assert losses.masked_mean(jnp.array([5.0]), jnp.array([0])) == 0
