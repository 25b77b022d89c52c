"""Decoding against a brute force over all leaves, in plain Python."""

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


def best_of_grids(t, probs, labels):
  """Brute force: grids of the weights, each finer and around the best of the last."""
  centre, width = [1.0] * len(probs), 1.0
  for _ in range(11):
    axes = [sorted({max(0.0, x + d * width) for d in (-1, -0.5, 0, 0.5, 1)}) for x in centre]
    centre = min(itertools.product(*axes), key=lambda w: penalised_loss(t, probs, labels, w))
    width *= 0.6
  return centre


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('skill', [0.3, 1.5])
def test_tune_finds_the_optimum_of_brute_force(seed, skill):
  t = make(
    'tree',
    [s for s in range(60) if len(make('tree', s).levels) == 2 and len(make('tree', s).paths) > 4][
      seed
    ],
  )
  labels = t.paths[np.random.default_rng(seed).integers(len(t.paths), size=12)].copy()
  probs = random_probs(t, 12, seed, labels, skill=skill)
  labels[:2, -1] = -1
  w = best_of_grids(t, probs, labels)
  expected = min(w[0] / w[1], paths.MAX_WEIGHT) if w[1] > 1e-3 else paths.MAX_WEIGHT
  weights = paths.tune(probs, labels, t)
  assert weights[1] == 1 and weights[0] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize('seed', range(3))
def test_no_weights_of_three_heads_are_more_likely(seed):
  """At the best common factor of the weights, no neighbour has a lower loss."""
  t = [t for t in RANDOM if t.levels[0] == 'make' and len(t.paths) > 8][seed]
  labels = t.paths[np.random.default_rng(seed).integers(len(t.paths), size=30)]
  probs = random_probs(t, 30, seed, labels, skill=1.0)
  weights = paths.tune(probs, labels, t)
  assert weights[-1] == 1 and (weights >= 0).all() and (weights <= paths.MAX_WEIGHT).all()
  factors = np.geomspace(0.3, 3, 60)
  best = min(factors, key=lambda b: penalised_loss(t, probs, labels, b * weights))
  least = penalised_loss(t, probs, labels, best * weights)
  for change in itertools.product((-0.1, 0, 0.1), repeat=3):
    w = np.maximum(0, best * weights + change)
    assert penalised_loss(t, probs, labels, w) >= least - 1e-2, change
  assert (paths.tune(probs, labels, t) == weights).all()
  assert paths.tune([None, probs[1], probs[2]], labels, t)[0] == 0


# A small run of benchmarks/joint_weights.py: gains over the finest head alone on new images.
GAINS = {
  ('chance', 30): (-0.2, 0.2),
  ('copies', 30): (-0.2, 0.2),
  ('wrong labels', 100): (-0.2, 2),
  ('weak, too sure', 30): (0.2, 5),
  ('help', 30): (2.0, 9),
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
