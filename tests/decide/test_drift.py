"""Drift: exact null rates by simulation, brute force, power against a shift."""

import numpy as np
import pytest
from scipy.stats import fisher_exact
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from hierjax.decide import drift


def test_the_classifier_is_a_ridge_regression_fitted_to_the_other_folds():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(40, 6)), rng.normal(size=(30, 6)) + 0.5
  auroc, p = drift.two_sample(a, b, rounds=19, seed=3)
  x = np.concatenate([a, b]).astype(np.float32).astype(float)
  x = (x - x.mean(0)) / x.std(0) / np.sqrt(6)
  y, fold = np.repeat([0.0, 1.0], [40, 30]), np.random.default_rng(3).permutation(70) % drift.FOLDS
  scores = np.zeros(70)
  for part in range(drift.FOLDS):
    others = fold != part
    model = Ridge(alpha=drift.PENALTY, fit_intercept=False).fit(
      x[others], y[others] - y[others].mean()
    )
    scores[~others] = model.predict(x[~others])
  assert auroc == pytest.approx(roc_auc_score(y, scores)) and 0.05 <= p <= 1


def test_samples_that_are_drawn_alike_are_rarely_called_different():
  """The chance of a p-value of at most .1 is at most .1; all of them together at most as stated."""
  rng, p_features, p_shares = np.random.default_rng(1), [], []
  for seed in range(150):
    x = rng.standard_t(3, size=(70, 5))
    p_features.append(drift.two_sample(x[:40], x[40:], rounds=39, seed=seed)[1])
    counts = [rng.multinomial(n, [0.6, 0.3, 0.05, 0.05, 0]) for n in (60, 40)]
    p_shares.append(drift.shares(*counts, rounds=99, seed=seed))
  for p in (p_features, p_shares):
    error = np.sqrt(0.1 * 0.9 / len(p))
    assert np.mean(np.array(p) <= 0.1) <= 0.1 + 2 * error
    assert 0.4 < np.mean(p) < 0.65


def test_shifts_are_noticed():
  rng = np.random.default_rng(2)
  values = [
    drift.two_sample(rng.normal(size=(100, 20)), rng.normal(size=(100, 20)) + 0.3, 99, seed)[1]
    for seed in range(8)
  ]
  assert np.mean(np.array(values) <= 0.05) > 0.9
  assert drift.shares(np.array([90, 10]), np.array([60, 40])) <= 0.002


def test_shares_of_two_classes_are_fishers_test():
  """With two classes the statistic orders tables as their distance from the expected one."""
  a, b = np.array([30, 10, 0]), np.array([18, 22, 0])
  p = drift.shares(a, b, rounds=4000)
  expected = fisher_exact([a[:2], b[:2]]).pvalue
  assert p == pytest.approx(expected, abs=4 * np.sqrt(expected / 4000))
  assert drift.shares(a, a) == 1


def test_holm_is_the_step_down_rule():
  np.testing.assert_allclose(
    drift.holm(np.array([0.04, 0.01, 0.03, 0.005])), [0.06, 0.03, 0.06, 0.02]
  )


def test_a_stream_of_images_keeps_counts_and_a_fair_share(monkeypatch):
  monkeypatch.setattr(drift, 'MOST', 50)
  rng, before = np.random.default_rng(3), None
  pred = rng.integers(0, 3, size=(400, 1))
  features = np.repeat([[0.0], [1.0]], 200, 0)
  for start in range(0, 400, 20):
    before = drift.sample(features[start : start + 20], pred[start : start + 20], [3], before)
    assert len(before.features) == min(50, start + 20)
  np.testing.assert_array_equal(before.counts[0], np.bincount(pred[:, 0]))
  assert 12 <= before.features.sum() <= 38
  later = drift.sample(features[:5], pred[:5], [3], before)
  for _ in range(30):
    later = drift.sample(features[:1], pred[:1], [3], later)
    assert len(later.features) == 50


def test_a_comparison_says_what_differs():
  rng = np.random.default_rng(4)
  pred = rng.integers(0, 4, size=(120, 2)) // 2 * 2
  first = drift.sample(rng.normal(size=(120, 8)), pred, [4, 4])
  alike = drift.compare(first, drift.sample(rng.normal(size=(90, 8)), pred[:90], [4, 4]))
  assert alike.is_alike and drift.describe(alike, ['a', 'b']).startswith('the images look like')
  other = drift.compare(first, drift.sample(rng.normal(size=(90, 8)) + 1, pred[:90], [4, 4]))
  words = drift.describe(other, ['a', 'b'])
  assert not other.is_alike and other.feature_p == 0.001 and 'does not hold' in words
  fewer = drift.compare(first, drift.sample(rng.normal(size=(90, 8)), pred[:90] * 0, [4, 4]))
  assert not fewer.is_alike and fewer.share_p.max() <= 0.001
  assert drift.compare(first, drift.sample(rng.normal(size=(9, 8)), pred[:9], [4, 4])) is None
