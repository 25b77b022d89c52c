"""The audit of labels against naive loops and planted noise; near-duplicates against all pairs."""

import itertools

import numpy as np
import pytest
from test_taxonomy import RANDOM

from hierjax.decide import audit
from hierjax.taxonomy import Taxonomy


@pytest.mark.parametrize('t', RANDOM[1::4], ids=repr)
def test_evidence_is_a_naive_sum_over_the_leaves(t):
  """Trees, facets and branches that end early; the cases of a label have its whole mass."""
  r = np.random.default_rng(len(t.paths))
  p, y = r.dirichlet(np.ones(len(t.paths)), 4), r.integers(0, len(t.paths), 4)
  result = audit.evidence(p, y, t)
  for i in range(4):
    assert result.likelihood[i, 0] == result.prob[i, 0] == p[i, y[i]]
    for k in range(len(t.levels)):

      def differs_first(a, b, k=k):
        path, other = t.paths[a].tolist(), t.paths[b].tolist()
        return path[:k] == other[:k] and path[k] != other[k]

      total, best = 0.0, -1
      for truth in range(len(t.paths)):
        if differs_first(truth, y[i]):
          total += p[i, truth] / sum(differs_first(truth, other) for other in range(len(t.paths)))
          best = truth if best < 0 or p[i, truth] > p[i, best] else best
      assert result.likelihood[i, k + 1] == pytest.approx(total, abs=1e-15)
      if best >= 0:
        assert result.leaf[i, k] == best and result.prob[i, k + 1] == p[i, best]
      else:
        assert result.prob[i, k + 1] == 0


def planted(share, level, n=6000, seed=0):
  """Labels of which a share is wrong from a level on, and calibrated probabilities of the truth."""
  rows = [[f'a{i}', f'b{i}{j}', f'c{i}{j}{k}'] for i, j, k in itertools.product(range(4), repeat=3)]
  t, r = Taxonomy.from_rows(('a', 'b', 'c'), rows), np.random.default_rng(seed)
  # the truth is drawn from the probabilities, so that these are calibrated
  scores = 2.5 * r.normal(size=(n, 4)).repeat(16, 1) + 1.5 * r.normal(size=(n, 64))
  p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
  truth = (p.cumsum(1) > r.random((n, 1))).argmax(1)
  y, is_bad = truth.copy(), r.random(n) < share
  for i in np.flatnonzero(is_bad):
    same = (t.paths[:, :level] == t.paths[y[i], :level]).all(1)
    y[i] = r.choice(np.flatnonzero(same & (t.paths[:, level] != t.paths[y[i], level])))
  return t, p, y, is_bad


@pytest.mark.parametrize('level', [0, 1, 2])
def test_the_share_and_the_level_of_planted_noise_are_estimated(level):
  t, p, y, is_bad = planted(0.05, level)
  result = audit.evidence(p, y, t)
  noise = audit.fit_noise(result.likelihood)
  np.testing.assert_allclose(noise.rates, np.eye(3)[level] * is_bad.mean(), atol=0.012)
  # of what is called wrong with a probability, such a share is
  wrong = noise.wrong.sum(1)
  assert wrong[wrong > 0.5].mean() == pytest.approx(is_bad[wrong > 0.5].mean(), abs=0.1)
  assert (noise.level[is_bad & (wrong > 0.5)] == level).mean() > 0.9
  # half of the wrong ones come earlier than by the probability of the label alone
  half = is_bad.sum() // 2

  def needed(score):
    return np.searchsorted(is_bad[np.argsort(-score, kind='stable')].cumsum(), half)

  assert needed(noise.score) < needed(-p[np.arange(len(y)), y])


def test_a_contradiction_of_the_coarse_level_ranks_before_one_among_siblings():
  t, p, y, _ = planted(0.0, 0, n=500)
  likelihood = audit.evidence(p, y, t).likelihood
  extreme = np.array([[1e-6, 0.02, 1e-6, 1e-6], [1e-6, 1e-6, 1e-6, 0.3]])
  noise = audit.fit_noise(np.concatenate([likelihood, extreme.repeat(20, 0)]))
  assert noise.score[500:520].min() > noise.score[520:].max() > 0.9


def test_nothing_is_wrong_where_all_is_sure():
  noise = audit.fit_noise(np.tile([1.0, 0.0, 0.0], (50, 1)))
  assert noise.wrong.max() < 1e-6 and np.isfinite(noise.score).all()
  # a label that nothing supports is no division by 0
  assert np.isfinite(audit.fit_noise(np.zeros((3, 3))).wrong).all()


def test_near_duplicates_are_those_of_all_pairs():
  r = np.random.default_rng(0)
  x = r.normal(size=(600, 32))
  x[100:130] = x[:30]
  x[130:160] = x[30:60] + 0.1 * r.normal(size=(30, 32))
  centred = x - x.mean(0)
  centred /= np.linalg.norm(centred, axis=1, keepdims=True)
  expected = np.argwhere(np.triu(centred @ centred.T, 1) >= 0.97)
  pairs = audit.near_duplicates(x)
  assert len(pairs) > 55 and [p[0] for p in pairs] == sorted((p[0] for p in pairs), reverse=True)
  assert {p[1:] for p in pairs} == {(i, j) for i, j in expected.tolist()}


@pytest.mark.parametrize('t', RANDOM[2::5], ids=repr)
def test_temperatures_of_levels_are_a_product_of_tempered_shares(t):
  r = np.random.default_rng(len(t.paths))
  p, b = r.dirichlet(np.ones(len(t.paths)), 3), r.uniform(0.3, 2, len(t.levels))
  result = audit.temper_levels(p, b, t)
  np.testing.assert_allclose(result.sum(1), 1)
  rows = [tuple(path) for path in t.paths.tolist()]
  for i, leaf in itertools.product(range(3), range(len(rows))):
    expected = 1.0
    for k in range(len(t.levels)):
      mass = {}
      for row, x in zip(rows, p[i]):
        if row[:k] == rows[leaf][:k]:
          mass[row[: k + 1]] = mass.get(row[: k + 1], 0) + x
      shares = {node: (x / sum(mass.values())) ** b[k] for node, x in mass.items()}
      expected *= shares[rows[leaf][: k + 1]] / sum(shares.values())
    assert result[i, leaf] == pytest.approx(expected)
  np.testing.assert_allclose(audit.temper_levels(p, np.ones(len(t.levels)), t), p)


def test_the_temperature_of_each_level_is_recovered_though_labels_are_wrong():
  t, p, y, _ = planted(0.05, 0)
  truth = np.array([0.5, 1.0, 2.0])
  # the planted probabilities are right: what is fitted undoes what was done to them
  b = audit.fit_levels(audit.temper_levels(p, 1 / truth, t), y, t)
  np.testing.assert_allclose(b, truth, rtol=0.15)
