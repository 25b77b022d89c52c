"""Decoding against a brute force over all leaves, in plain Python."""

import itertools
import math

import numpy as np
import pytest
from test_taxonomy import RANDOM, make

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


@pytest.mark.parametrize('seed', range(4))
def test_tune_finds_the_best_single_weight(seed):
  t = make(
    'tree',
    [s for s in range(60) if len(make('tree', s).levels) == 2 and len(make('tree', s).paths) > 4][
      seed
    ],
  )
  labels = t.paths[np.random.default_rng(seed).integers(len(t.paths), size=80)].copy()
  probs = random_probs(t, 80, seed, labels, skill=1.0)
  labels[:7, -1] = -1
  values = {w: fpa(probs, labels, t, [w, 1]) for w in paths.WEIGHTS}
  best = max(values.values())
  assert paths.tune(probs, labels, t).tolist() == [
    min(w for w, v in values.items() if v == best),
    1,
  ]


@pytest.mark.parametrize('seed', range(3))
def test_tune_on_three_heads_is_near_the_whole_grid_and_never_below_leaf_only(seed):
  t = [t for t in RANDOM if t.levels[0] == 'make' and len(t.paths) > 8][seed]
  labels = t.paths[np.random.default_rng(seed).integers(len(t.paths), size=150)]
  probs = random_probs(t, 150, seed, labels, skill=1.0)
  weights = paths.tune(probs, labels, t)
  full = max(
    fpa(probs, labels, t, [a, b, 1]) for a, b in itertools.product(paths.WEIGHTS, repeat=2)
  )
  assert weights[-1] == 1 and (weights >= 0).all()
  assert fpa(probs, labels, t, weights) >= max(
    fpa(probs, labels, t, [0, 0, 1]), fpa(probs, labels, t, [1, 1, 1]), full - 0.02
  )
  assert (paths.tune(probs, labels, t) == weights).all()
  assert paths.tune([None, probs[1], probs[2]], labels, t)[0] == 0


def test_tune_gives_no_weight_without_gain():
  t = make('facets', 3)
  labels = t.paths[np.arange(40) % len(t.paths)]
  perfect = [
    np.eye(len(names))[labels[:, k]] * 0.9 + 0.1 / len(names) for k, names in enumerate(t.names)
  ]
  assert paths.tune(perfect, labels, t).tolist() == [0, 0, 1]  # nothing to gain: leaf-only
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
