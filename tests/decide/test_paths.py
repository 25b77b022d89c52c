"""Decoding against a brute force over all leaves, in plain Python."""

import functools
import itertools
import math

import numpy as np
import pytest
from test_taxonomy import RANDOM, make

from benchmarks import joint_weights
from hierjax.decide import paths
from hierjax.evaluate import metrics
from hierjax.taxonomy import Taxonomy


def random_probs(t, n, seed, labels=None, skill=2.0):
  r = np.random.default_rng(seed)
  out = []
  for k, names in enumerate(t.names):
    z = r.normal(size=(n, len(names))) * 1.5
    if labels is not None:
      z[np.arange(n), np.maximum(labels[:, k], 0)] += skill
    out.append(np.exp(z) / np.exp(z).sum(1, keepdims=True))
  return out


def path_score(t, probs, weights, n, leaf):
  return sum(
    w * math.log(p[n, t.paths[leaf, k]])
    for k, (p, w) in enumerate(zip(probs, weights))
    if p is not None
  )


def check_sound(d, t):
  for k in range(len(t.levels)):
    assert (d.scores[k].argmax(1) == d.pred[:, k]).all()
    assert d.prob[k].shape == d.scores[k].shape == (len(d.pred), len(t.names[k]))
    np.testing.assert_allclose(d.prob[k].sum(1), 1, atol=1e-9)
  assert d.pred.dtype == np.int32


@pytest.mark.parametrize('t', RANDOM[::2], ids=repr)
def test_joint_is_the_best_of_all_paths(t):
  r = np.random.default_rng(len(t.paths))
  probs, weights = random_probs(t, 6, 1), r.uniform(0, 2, len(t.levels))
  if len(t.levels) > 1:
    probs[r.integers(len(t.levels) - 1)] = None
  d = paths.joint(probs, t, weights)
  check_sound(d, t)
  for n in range(6):
    scores = [path_score(t, probs, weights, n, leaf) for leaf in range(len(t.paths))]
    total = sum(map(math.exp, scores))
    best = max(range(len(scores)), key=lambda leaf: scores[leaf])
    assert d.pred[n].tolist() == t.paths[best].tolist()
    for k, names in enumerate(t.names):
      for c in range(len(names)):
        class_scores = [s for s, p in zip(scores, t.paths) if p[k] == c]
        assert d.prob[k][n, c] == pytest.approx(sum(map(math.exp, class_scores)) / total)
        assert d.scores[k][n, c] == pytest.approx(max(class_scores))
  assert metrics.per_example(d, t.paths[np.zeros(6, int)], t)['hvr'].sum() == 0


@pytest.mark.parametrize('t', RANDOM[1::3], ids=repr)
def test_leaf_reads_ancestors_off_the_finest_class(t):
  probs = random_probs(t, 20, 2)
  d = paths.leaf(probs, t)
  check_sound(d, t)
  assert (d.pred == t.paths[probs[-1].argmax(1)]).all()
  np.testing.assert_allclose(d.prob[-1], probs[-1])
  for k in range(len(t.levels)):
    np.testing.assert_allclose(
      d.prob[k], probs[-1] @ (t.paths[:, k, None] == np.arange(len(t.names[k])))
    )


@pytest.mark.parametrize('t', RANDOM[::3], ids=repr)
def test_independent_heads(t):
  probs = random_probs(t, 20, 3)
  d = paths.independent(probs, t)
  check_sound(d, t)
  for k, p in enumerate(probs):
    assert (d.pred[:, k] == p.argmax(1)).all() and (d.prob[k] == p).all()
  if len(t.levels) > 1:
    less = paths.independent([None, *probs[1:]], t)
    check_sound(less, t)
    assert (less.pred[:, 0] == t.paths[probs[-1].argmax(1), 0]).all() and (
      less.pred[:, 1:] == d.pred[:, 1:]
    ).all()


def test_the_finest_head_is_needed():
  t = make('tree', 3)
  with pytest.raises(ValueError, match='coarsen'):
    paths.leaf([*random_probs(t, 2, 0)[:-1], None], t)


def test_ties_and_zeros_are_decided_and_ranks_agree():
  t = Taxonomy.from_rows(('a', 'b'), [['z', '1'], ['y', '2'], ['y', '3']])  # ids of a: y 0, z 1
  probs = [np.full((1, 2), 0.5), np.array([[0.4, 0.4, 0.2]])]
  for d in (paths.leaf(probs, t), paths.joint(probs, t, [1, 1])):
    check_sound(d, t)
    assert d.pred.tolist() == [[1, 0]]
  zero = [np.array([[1.0, 0.0]]), np.array([[1.0, 0.0, 0.0]])]  # the heads exclude each other
  for weights in ([0, 1], [1, 1], [0.5, 1]):
    d = paths.joint(zero, t, weights)
    check_sound(d, t)
    assert np.isfinite(d.scores[0]).all() and np.isfinite(d.scores[1]).all()
  assert paths.joint(zero, t, [0, 1]).pred.tolist() == [[1, 0]]


def fpa(probs, labels, t, weights):
  d = paths.joint(probs, t, weights)
  is_known = (labels >= 0).all(1)
  return (d.pred == labels).all(1)[is_known].mean()


def penalised_loss(t, probs, labels, w):
  """The objective of `tune`, example by example and leaf by leaf."""
  leaf_only = [0.0] * (len(w) - 1) + [1.0]
  total = paths.PRIOR / 2 * sum((v - v0) ** 2 for v, v0 in zip(w, leaf_only))
  for n, row in enumerate(labels):
    if row[-1] >= 0:
      scores = [path_score(t, probs, w, n, leaf) for leaf in range(len(t.paths))]
      highest = max(scores)
      total += highest + math.log(sum(math.exp(s - highest) for s in scores)) - scores[row[-1]]
  return total


def best_of_grids(t, probs, labels, free):
  """Brute force over the weights of the heads `free`: grids, each finer, around the last's best."""
  centre, width = np.eye(len(probs))[-1], 1.0
  for _ in range(12):
    axes = [[x] for x in centre]
    for k in free:
      axes[k] = sorted({max(0.0, centre[k] + d * width) for d in (-1, -0.5, 0, 0.5, 1)})
    centre = min(itertools.product(*axes), key=lambda w: penalised_loss(t, probs, labels, w))
    width *= 0.65
  return np.array(centre), penalised_loss(t, probs, labels, centre)


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('skill', [0.3, 3.0])
def test_tune_against_brute_force(seed, skill):
  """The likeliest weights, shrunk to those of the finest head alone, times the best factor."""
  trees = [t for t in map(functools.partial(make, 'tree'), range(60)) if len(t.levels) == 2]
  check_tune([t for t in trees if len(t.paths) > 4][seed], 25, seed, skill)


def test_tune_of_three_heads_against_brute_force():
  check_tune(next(t for t in RANDOM if t.levels[0] == 'make' and len(t.paths) > 8), 20, 0, 2.0)


def check_tune(t, n, seed, skill):
  labels = t.paths[np.random.default_rng(seed).integers(len(t.paths), size=n)].copy()
  probs = random_probs(t, n, seed, labels, skill)
  labels[:2, -1] = -1
  coarse = len(probs) - 1
  fitted, loss = best_of_grids(t, probs, labels, range(coarse + 1))
  alone, loss_alone = best_of_grids(t, probs, labels, [coarse])
  gain = loss_alone - loss
  w = alone + (1 - coarse / gain) * (fitted - alone) if gain > coarse else alone
  w = w[:-1] / max(w[-1], w.max() / paths.MAX_WEIGHT)
  trials = [[*np.minimum(factor * w, paths.MAX_WEIGHT), 1] for factor in paths.FACTORS]
  expected = max(trials, key=lambda w: round(fpa(probs, labels, t, w), 9))
  np.testing.assert_allclose(paths.tune(probs, labels, t), expected, atol=0.03)
  assert paths.tune([None, *probs[1:]], labels, t)[0] == 0


# A small run of benchmarks/joint_weights.py: gains over the finest head alone on new images.
GAINS = {
  ('chance', 30): (-0.2, 0.1),
  ('copies', 30): (-0.2, 0.1),
  ('weak, too sure', 100): (-0.2, 0.5),
  ('help', 30): (2.0, 5.0),
}


@pytest.mark.parametrize(('case', 'n'), GAINS)
def test_on_new_images_a_small_val_costs_nothing_and_gains_where_heads_help(case, n):
  skills, gains = joint_weights.skills_of(case), []
  for repeat in range(40):
    rng = np.random.default_rng([7, repeat])
    val, new = (joint_weights.Images(*joint_weights.draw(rng, m, case, skills)) for m in (n, 2000))
    weights = paths.tune(val.probs, val.labels, joint_weights.TREE)
    gains.append(new.right(weights).mean() - new.right([0, 0, 1]).mean())
  low, high = GAINS[case, n]
  assert low <= 100 * np.mean(gains) <= high


def test_tune_without_examples_or_other_heads_leaves_the_finest_head_alone():
  t = make('facets', 3)
  labels = t.paths[np.arange(40) % len(t.paths)]
  perfect = [
    np.eye(len(names))[labels[:, k]] * 0.9 + 0.1 / len(names) for k, names in enumerate(t.names)
  ]
  # all say the same: the weights change no decision
  assert fpa(perfect, labels, t, paths.tune(perfect, labels, t)) == 1
  assert paths.tune(perfect, np.full_like(labels, -1), t).tolist() == [0, 0, 1]
  assert paths.tune([None, None, perfect[2]], labels, t).tolist() == [0, 0, 1]
  wrong = [np.eye(len(names))[(labels[:, k] + 1) % len(names)] for k, names in enumerate(t.names)]
  assert paths.tune(wrong, labels, t).tolist() == [0, 0, 1]  # every head is always wrong
  r = np.random.default_rng(0)
  helped = [
    perfect[0],
    perfect[1],
    r.dirichlet(np.ones(len(t.names[2])), 40),
  ]  # only the coarse heads know anything
  w = paths.tune(helped, labels, t)
  assert w[:2].sum() > 0 and fpa(helped, labels, t, w) > fpa(helped, labels, t, [0, 0, 1])
  assert paths.tune(helped, labels, t, limit=10 * len(t.paths)).shape == (
    3,
  )  # a subset of the examples
