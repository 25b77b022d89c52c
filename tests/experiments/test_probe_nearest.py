"""Nearest class means and nearest neighbours against naive loops."""

import numpy as np
import pytest

from hierjax.experiments import probe_nearest
from hierjax.experiments.probe_nearest import TEMPERATURE, Bank
from hierjax.taxonomy import Taxonomy

ROWS = [('a', 'a1'), ('a', 'a2'), ('b', 'b1'), ('b', 'b2'), ('b', 'b3')]
TREE = Taxonomy.from_rows(('kind', 'model'), ROWS)


def problem(n=40, views=2, d=6):
  """Features and labels, of which some are unknown; no image of the last class."""
  rng = np.random.default_rng(0)
  leaf = rng.integers(0, 4, n)
  x = rng.normal(size=(n, views, d)) + 2 * rng.normal(size=(5, d))[leaf][:, None] + 3
  labels = TREE.paths[leaf].copy()
  labels[::9, 1] = -1
  labels[::18, 0] = -1
  return np.float32(x), labels


def unit(v):
  return v / np.linalg.norm(v)


def naive_means(x, labels, k, c, without=None):
  center = np.mean([v for image in x for v in image], 0)
  rows = [
    unit(v - center)
    for i, image in enumerate(x)
    if labels[i, k] == c and i != without
    for v in image
  ]
  return center, unit(np.sum(rows, 0)) if rows else None


def test_heads_choose_the_nearest_class_mean():
  x, labels = problem()
  heads = probe_nearest.class_means(Bank.make(x, labels), TREE)
  queries = np.random.default_rng(1).normal(size=(30, 6)) * 2 + 3
  for k, level in enumerate(TREE.levels):
    logits = queries @ heads[level]['kernel'] + heads[level]['bias']
    for q, row in zip(queries, logits):
      cosines = []
      for c in range(TREE.num_classes(level)):
        center, mean = naive_means(np.float64(x), labels, k, c)
        cosines.append(-np.inf if mean is None else mean @ unit(q - center))
      assert row.argmax() == np.argmax(cosines)
      # what is not absent keeps the distances, but for one factor
      a, b = np.argsort(cosines)[-2:]
      center, _ = naive_means(np.float64(x), labels, k, 0)
      lengths = [np.linalg.norm(v - center) for image in np.float64(x) for v in image]
      factor = np.linalg.norm(q - center) / np.mean(lengths) / TEMPERATURE
      assert row[b] - row[a] == pytest.approx((cosines[b] - cosines[a]) * factor, rel=1e-3)


def test_images_are_left_out_of_their_class_mean():
  x, labels = problem()
  images = np.array([1, 5, 9, 30])
  probs = probe_nearest.left_out(Bank.make(x, labels), TREE, images)
  for k, level in enumerate(TREE.levels):
    for i, p in zip(images, probs[level]):
      logits = []
      for c in range(TREE.num_classes(level)):
        center, mean = naive_means(np.float64(x), labels, k, c, i)
        cosine = None if mean is None else mean @ unit(np.float64(x[i, 0]) - center)
        logits.append(-40.0 if cosine is None else cosine / TEMPERATURE)
      expected = np.exp(np.array(logits) - max(logits))
      np.testing.assert_allclose(p, expected / expected.sum(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('is_training', [False, True])
def test_neighbours_vote(is_training, monkeypatch):
  monkeypatch.setattr(probe_nearest, 'BLOCK', 7)
  (x, labels), k = problem(), 9
  bank = Bank.make(x, labels)
  images = np.arange(0, 40, 2) if is_training else None
  queries = x[images, 0] if is_training else np.float32(problem(n=15)[0][:, 0] * 1.1)
  probs = probe_nearest.neighbours(bank, queries, TREE, k, images)
  center = np.float64(x).mean((0, 1))
  for q, query in enumerate(np.float64(queries)):
    scored = []
    for i, image in enumerate(np.float64(x)):
      if is_training and i == images[q]:
        continue
      scored += [(unit(query - center) @ unit(v - center), i) for v in image]
    nearest = sorted(scored)[-k:]
    for j, level in enumerate(TREE.levels):
      votes = np.zeros(TREE.num_classes(level))
      for cosine, i in nearest:
        if labels[i, j] >= 0:
          votes[labels[i, j]] += np.exp((cosine - nearest[-1][0]) / TEMPERATURE)
      votes += 1e-3 * votes.sum() / len(votes)
      np.testing.assert_allclose(probs[level][q], votes / votes.sum(), rtol=2e-3, atol=1e-6)


def test_rules_need_a_second_image_of_a_class():
  from hierjax import decide

  x, labels = problem()
  first = np.unique(labels[:, 1], return_index=True)[1][1:]
  rules = [probe_nearest.fit_rules(Bank.make(x[first], labels[first]), TREE, k) for k in (None, 3)]
  default = decide.default_rules(TREE)['exclusive']
  for rule in rules:
    np.testing.assert_array_equal(rule['exclusive'].weights, default.weights)
  fitted = probe_nearest.fit_rules(Bank.make(*problem(300)), TREE, None)['exclusive']
  assert fitted.temperature != default.temperature
