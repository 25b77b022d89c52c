"""What an evaluation keeps of each image is what the probabilities of all classes say."""

import jax
import numpy as np
import pytest

from hierjax import decide
from hierjax.decide import paths
from hierjax.decide.decisions import PATHS, AnswerRules
from hierjax.evaluate import collect, metrics, results
from hierjax.taxonomy import Taxonomy

TINY = np.finfo(float).tiny


def taxonomy(rng):
  """A small taxonomy: nested levels, facets, branches that end early."""
  levels, leaves = int(rng.integers(1, 5)), int(rng.integers(2, 40))
  is_tree, rows = rng.random() < 0.5, []
  for leaf in range(leaves):
    row, above = [], ''
    for k in range(levels - 1):
      above = f'{above if is_tree else ""}{k}{rng.integers(0, 4)}'
      row.append(f'c{above}')
    row.append(f'leaf {leaf}')
    rows.append(row)
    if is_tree and levels > 2 and rng.random() < 0.2:
      rows[-1] = [row[0], f'ends {leaf}'] + [''] * (levels - 2)
  order = rng.permutation(leaves)
  return Taxonomy.from_rows([f'l{k}' for k in range(levels)], [rows[i] for i in order])


def sample(t, rng, n=23):
  """Probabilities with ties and zeros, of some levels, and labels of which some are missing."""
  probs = {}
  for level, names in zip(t.levels, t.names):
    p = np.round(rng.random((n, len(names))) ** 4, 2)
    p[np.arange(n), rng.integers(0, len(names), n)] += 0.1
    probs[level] = p / p.sum(1, keepdims=True)
  for level in t.levels[:-1]:
    if rng.random() < 0.3:
      del probs[level]
  labels = t.paths[rng.integers(0, len(t.paths), n)].copy()
  labels[rng.random(labels.shape) < 0.15] = -1
  return probs, labels


def naive(t, probs, rule, name):
  """The decision by loops over leaves and classes: pred, and scores and probabilities by level."""
  n, heads = len(probs[t.levels[-1]]), [probs.get(level) for level in t.levels]
  weights = [
    rule.weights[level] if name == 'joint' else level == t.levels[-1] for level in t.levels
  ]
  temperature = rule.temperature if name == 'joint' else 1.0
  score = np.zeros((n, len(t.paths)))
  for k, (p, w) in enumerate(zip(heads, weights)):
    if p is not None and w:
      score += w * np.log(np.maximum(p, TINY))[:, t.paths[:, k]]
  posterior = np.exp((score - score.max(1, keepdims=True)) / temperature)
  posterior /= posterior.sum(1, keepdims=True)
  leaf = score.argmax(1)
  pred, scores, prob = t.paths[leaf].copy(), [], []
  for k, names in enumerate(t.names):
    members = [t.paths[:, k] == c for c in range(len(names))]
    scores.append(np.stack([score[:, m].max(1) for m in members], 1))
    scores[k][np.arange(n), pred[:, k]] = np.nextafter(score.max(1), np.inf)
    prob.append(np.stack([posterior[:, m].sum(1) for m in members], 1))
    if name == 'independent' and heads[k] is not None:
      pred[:, k], scores[k], prob[k] = heads[k].argmax(1), heads[k], heads[k]
  return pred, scores, prob


@pytest.mark.parametrize('seed', range(12))
def test_results_are_those_of_the_dense_form(seed, monkeypatch):
  monkeypatch.setattr(results, 'BLOCK_SIZE', 100)
  rng = np.random.default_rng(seed)
  t = taxonomy(rng)
  probs, labels = sample(t, rng)
  n, rows = len(labels), np.arange(len(labels))
  weights = dict(zip(t.levels, [*rng.choice([0.0, 0.5, 1.3], len(t.levels) - 1), 1.0]))
  rules = {'exclusive': paths.PathRules(weights, 1.7)}
  out = collect.Outputs(dict(probs), None, labels, rows, []).reduce(t, rules)
  decisions = out.decide(t, rules)['exclusive']
  assert not out.probs and tuple(decisions) == PATHS
  for name in PATHS:
    pred, scores, prob = naive(t, probs, rules['exclusive'], name)
    ranked = decisions[name]
    np.testing.assert_array_equal(ranked.pred, pred)
    for k in range(len(t.levels)):
      order = np.argsort(-scores[k], axis=1, kind='stable')[:, :5]
      np.testing.assert_array_equal(ranked.top[k], order)
      np.testing.assert_allclose(ranked.confidence[:, k], prob[k][rows, pred[:, k]], rtol=1e-12)
    # the metrics of the dense decision
    dense = paths.PathDecision.make(scores, prob)
    ours, expected = (metrics.evaluate(d, labels, t) for d in (ranked, dense))
    for level in t.levels:
      assert ours['levels'][level].pop('ece') == pytest.approx(expected['levels'][level].pop('ece'))
    assert ours == expected
  for level, (top, top_prob, of_label) in out.results.heads.items():
    y = labels[:, t.index(level)]
    expected = np.where(y < 0, np.nan, probs[level][rows, y])
    np.testing.assert_array_equal(of_label, expected)
    best = np.argsort(-probs[level], axis=1, kind='stable')[:, :5]
    np.testing.assert_array_equal(top, best)
    np.testing.assert_array_equal(top_prob, probs[level][rows[:, None], best].astype(np.float32))
  assert len(out.select(np.arange(n) % 3 == 0).results.before['confidence']) == 8


@pytest.mark.parametrize('classes', [1, 4, 40, 700, 1283])
def test_the_highest_are_those_of_a_stable_sort(classes):
  rng = np.random.default_rng(classes)
  for values in (40, 3, 1):
    scores = np.round(rng.random((9, classes)) * values) / values
    scores[rng.random(scores.shape) < 0.5] = -np.inf
    for x in (scores, np.asfortranarray(scores)):
      expected = np.argsort(-scores, axis=1, kind='stable')[:, :5]
      np.testing.assert_array_equal(paths.top(x), expected)


def test_answers_need_no_probabilities_of_all_classes(monkeypatch):
  """Scores, curves and lineages of blocks are those of all images at once."""
  rng = np.random.default_rng(0)
  t = taxonomy(np.random.default_rng(3))
  probs, labels = sample(t, rng)
  rules = decide.default_rules(t)
  rules['exclusive'] = rules['exclusive']._replace(temperature=2.0)
  rules['answer'] = AnswerRules('', 0, None, 'lca', 1.0)
  at_once = results.reduce(probs, labels, t, rules)
  monkeypatch.setattr(results, 'BLOCK_SIZE', 100)
  parts = results.reduce(probs, labels, t, rules)
  for x, y in zip(jax.tree.leaves(at_once), jax.tree.leaves(parts), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-9)
