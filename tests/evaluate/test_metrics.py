"""Metrics against loops over names, scikit-learn and closed forms."""

import json
import math

import numpy as np
import pytest
from sklearn import metrics as sk
from test_paths import random_probs
from test_taxonomy import RANDOM

from hierjax.decide import paths
from hierjax.evaluate import bootstrap, metrics
from hierjax.taxonomy import Taxonomy

CARS = Taxonomy.from_rows(
  ('make', 'type', 'model'),
  [['A', 'S', 'A1'], ['A', 'C', 'A2'], ['B', 'S', 'B1'], ['B', 'S', 'B2'], ['C', 'C', 'C1']],
)


def decoded(pred, t, seed=0):
  """Scores whose argmax is pred and whose other ranks are drawn."""
  r = np.random.default_rng(seed)
  pred = np.asarray(pred, np.int32)
  scores = [r.random((len(pred), len(names))) for names in t.names]
  for k, s in enumerate(scores):
    s[np.arange(len(pred)), pred[:, k]] += 2
  return paths.PathDecision.make(scores, [s / s.sum(1, keepdims=True) for s in scores])


def sample(t, seed, n=40, unknown=0.2):
  r = np.random.default_rng(seed)
  labels = t.paths[r.integers(len(t.paths), size=n)].copy()
  d = paths.independent(random_probs(t, n, seed, labels), t)
  labels[r.random(labels.shape) < unknown] = -1
  return d, labels


def mean(values):
  values = [v for v in values if v is not None]
  return sum(values) / len(values) if values else None


def same(a, b):
  assert (a is None) == (b is None) and (a is None or a == pytest.approx(b, abs=1e-12)), (a, b)


@pytest.mark.parametrize('t', RANDOM[::2], ids=repr)
def test_everything_against_loops(t):
  d, labels = sample(t, len(t.paths))
  actual = metrics.evaluate(d, labels, t)
  json.dumps(actual, allow_nan=False)
  rows = list(zip(d.pred.tolist(), labels.tolist()))
  paths = {tuple(p) for p in t.paths.tolist()}
  last = len(t.levels) - 1
  for k, level in enumerate(t.levels):
    is_known = [n for n, (_, y) in enumerate(rows) if y[k] >= 0]
    for top in (1, 3, 5):

      def hit(n, k=k, top=top):
        ranking = sorted(range(len(t.names[k])), key=lambda c: (-d.scores[k][n, c], c))
        return labels[n, k] in ranking[:top]

      same(actual['levels'][level][f'top{top}'], mean([float(hit(n)) for n in is_known]))
    bins = {}
    for n in is_known:
      c = d.prob[k][n, d.pred[n, k]]
      b = next(i for i in range(15) if c <= (i + 1) / 15 + 1e-15)
      bins.setdefault(b, []).append((c, float(d.pred[n, k] == labels[n, k])))
    total = (
      sum(len(b) * abs(mean([a for _, a in b]) - mean([c for c, _ in b])) for b in bins.values())
      / len(is_known)
      if is_known
      else None
    )
    same(actual['levels'][level]['ece'], total)
    assert actual['levels'][level]['n'] == len(is_known) and actual['levels'][level][
      'classes'
    ] == len(t.names[k])
  full = [(p, y) for p, y in rows if min(y) >= 0]
  same(actual['fpa'], mean([float(p == y) for p, y in full]))
  same(actual['hvr'], mean([float(tuple(p) not in paths) for p, _ in rows]))
  relations, violations = sum(len(names) for names in t.names[1:]), 0
  for p, _ in rows:
    for k in range(1, len(t.levels)):
      for c in range(len(t.names[k])):  # equation 14 as it is printed
        violations += p[k] == c and not any(q[k] == c and q[k - 1] == p[k - 1] for q in paths)
  same(actual['hvr_eq14'], violations / (len(rows) * relations) if relations else 0.0)
  for i, a in enumerate(t.levels):
    for j in range(i + 1, len(t.levels)):
      pairs = {(p[i], p[j]) for p in paths}
      same(
        actual['consistency'][f'{a}-{t.levels[j]}'],
        mean([float((p[i], p[j]) in pairs) for p, _ in rows]),
      )
  leaf = [(n, p[last], y[last]) for n, (p, y) in enumerate(rows) if y[last] >= 0]

  def height(a, b):
    return float(sum(x != y for x, y in zip(t.paths[a], t.paths[b])))

  same(actual['severity'], mean([height(p, y) for _, p, y in leaf if p != y]))
  same(actual['ahd1'], mean([height(p, y) for _, p, y in leaf]))
  best = {
    n: sorted(range(len(t.names[last])), key=lambda c: (-d.scores[last][n, c], c))[:5]
    for n, _, _ in leaf
  }
  same(actual['ahd5'], mean([mean([height(c, y) for c in best[n]]) for n, _, y in leaf]))
  wrong = [height(p, y) for _, p, y in leaf if p != y]
  assert actual['severity_histogram'] == {
    str(h): wrong.count(h) for h in range(1, len(t.levels) + 1)
  }
  # Sets of names with their levels; a carried class is that of the level where its branch ended.
  carried = [set(np.flatnonzero(t.carried(level))) for level in t.levels]
  alpha = [{(k, c) for k, c in enumerate(p) if y[k] >= 0 and c not in carried[k]} for p, y in rows]
  beta = [{(k, c) for k, c in enumerate(y) if c >= 0 and c not in carried[k]} for p, y in rows]
  common = sum(len(a & b) for a, b in zip(alpha, beta))
  hp, hr = common / sum(map(len, alpha)), common / sum(map(len, beta))
  same(actual['hp'], hp)
  same(actual['hr'], hr)
  same(actual['hf1'], 2 * hp * hr / (hp + hr))
  same(actual['hp_macro'], mean([len(a & b) / len(a) if a else None for a, b in zip(alpha, beta)]))
  same(actual['hr_macro'], mean([len(a & b) / len(b) if b else None for a, b in zip(alpha, beta)]))
  same(
    actual['hf1_macro'],
    mean([2 * len(a & b) / (len(a) + len(b)) if a or b else None for a, b in zip(alpha, beta)]),
  )
  tops = [
    (len(names), actual['levels'][level]['top1'])
    for level, names in zip(t.levels, t.names)
    if actual['levels'][level]['top1'] is not None
  ]
  same(actual['wap'], sum(c * a for c, a in tops) / sum(c for c, _ in tops))
  first, final = actual['levels'][t.levels[0]]['top1'], actual['levels'][t.levels[-1]]['top1']
  same(actual['gap'], None if first is None or final is None else first - final)


def test_topk_against_sklearn():
  t = Taxonomy.from_rows(
    ('make', 'type', 'model'), [[f'm{i % 7}', f't{i % 4}', f'x{i}'] for i in range(30)]
  )
  d, labels = sample(t, 1, n=200, unknown=0)
  actual = metrics.evaluate(d, labels, t)
  for k, level in enumerate(t.levels):
    for top in (1, 3, 5):
      want = (
        1.0
        if top >= len(t.names[k])
        else sk.top_k_accuracy_score(
          labels[:, k], d.scores[k], k=top, labels=range(len(t.names[k]))
        )
      )
      assert actual['levels'][level][f'top{top}'] == pytest.approx(want)


def test_perfect_and_hopeless():
  labels = CARS.paths[np.arange(20) % 5]
  exact = metrics.evaluate(decoded(labels, CARS), labels, CARS)
  assert all(exact['levels'][level][f'top{k}'] == 1 for level in CARS.levels for k in (1, 3, 5))
  assert (
    exact['fpa'] == exact['hf1'] == exact['hf1_macro'] == exact['wap'] == 1
    and exact['hvr'] == exact['ahd1'] == exact['gap'] == 0
  )
  assert exact['severity'] is None and set(exact['consistency'].values()) == {1.0}
  swapped = CARS.paths[(np.arange(20) % 5 + 2) % 5]
  wrong = metrics.evaluate(decoded(swapped, CARS), labels, CARS)
  assert (
    wrong['fpa'] == 0
    and wrong['levels']['model']['top1'] == 0
    and wrong['severity'] == wrong['ahd1'] > 0
    and wrong['hvr'] == 0
  )


def test_by_hand():
  y = np.array([[0, 1, 0], [0, 0, 1], [1, 1, 2], [2, 0, 4], [1, -1, -1]])
  p = np.array(
    [[0, 1, 0], [0, 1, 1], [1, 1, 3], [1, 1, 2], [0, 0, 4]]
  )  # right; type wrong; model wrong; all wrong; make wrong, no path
  actual = metrics.evaluate(decoded(p, CARS), y, CARS, heads=('make', 'model'))
  assert [actual['levels'][level]['top1'] for level in CARS.levels] == [3 / 5, 2 / 4, 2 / 4]
  assert [actual['levels'][level]['n'] for level in CARS.levels] == [5, 4, 4]
  assert [actual['levels'][level]['head'] for level in CARS.levels] == [True, False, True]
  assert (
    actual['fpa'] == 1 / 4
    and actual['hvr'] == 2 / 5
    and actual['hvr_eq14'] == pytest.approx(1 / 5 / (2 + 5))
    and actual['gap'] == pytest.approx(0.1)
  )
  assert actual['consistency'] == {'make-type': 1.0, 'make-model': 4 / 5, 'type-model': 4 / 5}
  assert (
    actual['severity'] == (1 + 3) / 2
    and actual['ahd1'] == 4 / 4
    and actual['severity_histogram'] == {'1': 1, '2': 0, '3': 1}
  )
  assert actual['hp'] == actual['hr'] == 7 / 13 and actual['n'] == 5


def test_a_branch_that_ended_counts_its_class_once():
  t = Taxonomy.from_rows(
    ('order', 'family', 'species'), [['G', '', ''], ['P', 'C', 'x'], ['P', 'C', 'y']]
  )
  y, p = t.paths[[0, 0, 1]], t.paths[[0, 1, 0]]
  actual = metrics.evaluate(decoded(p, t), y, t)
  assert actual['hp'] == 1 / (1 + 3 + 1) and actual['hr'] == 1 / (1 + 1 + 3)
  assert actual['ahd1'] == (0 + 3 + 3) / 3


def test_calibration_of_a_calibrated_and_an_overconfident_model():
  r = np.random.default_rng(0)
  n = 40_000
  confidence = r.uniform(0.5, 1, n)
  right = r.random(n) < confidence
  labels = np.where(right, 0, 1)
  assert metrics.ece(confidence, np.zeros(n, int), labels) < 0.01
  sure = np.ones(n)
  assert metrics.ece(sure, np.zeros(n, int), labels) == pytest.approx(1 - right.mean())
  labels[:100] = -1
  assert metrics.ece(sure[:100], np.zeros(100, int), labels[:100]) is None


def test_ties_follow_the_ids():
  t = Taxonomy.from_rows(('a',), [[str(i)] for i in range(8)])

  def flat(n):
    scores = [np.ones((n, 8))]
    decision = paths.PathDecision.make(scores, [scores[0] / 8])
    return metrics.evaluate(decision, t.paths[:n], t)['levels']['a']

  actual, first = flat(8), flat(4)
  assert (actual['top1'], actual['top3'], actual['top5'], actual['ece']) == (1 / 8, 3 / 8, 5 / 8, 0)
  assert first['top3'] == 3 / 4


def test_calibration_bins_are_closed_above():
  def ece(*confidence):
    p = np.array(confidence)
    # the first is right, the second wrong
    return metrics.ece(p, np.zeros(len(p), int), np.arange(len(p)))

  assert ece(0.2, 0.25) == pytest.approx((0.8 + 0.25) / 2)  # 3/15 belongs to the third bin
  assert ece(0.19, 0.2) == pytest.approx((0.81 - 0.2) / 2)
  assert ece(1.0, 0.95) == pytest.approx((0 + 0.95) / 2)


def test_nothing_known_gives_none_and_never_nan():
  labels = np.full((4, 3), -1)
  for y in (labels, labels[:0]):
    actual = metrics.evaluate(decoded(CARS.paths[: len(y)], CARS), y, CARS)
    assert (
      actual['levels']['make']['top1'] is None
      and actual['fpa'] is None
      and actual['gap'] is None
      and actual['hf1'] is None
      and actual['wap'] is None
    )
    assert 'NaN' not in json.dumps(actual)
    intervals = bootstrap.intervals(
      metrics.per_example(decoded(CARS.paths[: len(y)], CARS), y, CARS), 20
    )
    assert intervals['fpa'] is None and (intervals['hvr'] is None) == (not len(y))


def test_bootstrap_intervals_match_the_normal_ones():
  r = np.random.default_rng(0)
  n = 900
  x = (r.random(n) < 0.8).astype(float)
  x_nan = np.concatenate([x, np.full(300, np.nan)])
  actual = bootstrap.intervals({'x': x_nan, 'zero': np.zeros(1200)}, 2000)
  half = 1.96 * math.sqrt(x.mean() * (1 - x.mean()) / n)
  assert actual['x']['mean'] == pytest.approx(x.mean())
  assert actual['x']['low'] == pytest.approx(x.mean() - half, abs=0.004) and actual['x'][
    'high'
  ] == pytest.approx(x.mean() + half, abs=0.004)
  assert actual['zero'] == {'mean': 0.0, 'low': 0.0, 'high': 0.0}
  assert (
    actual
    == bootstrap.intervals({'x': x_nan, 'zero': np.zeros(1200)}, 2000)
    != bootstrap.intervals({'x': x_nan, 'zero': np.zeros(1200)}, 2000, seed=1)
  )
  narrow = bootstrap.intervals({'x': x}, 2000, level=0.5)['x']
  assert actual['x']['low'] < narrow['low'] < narrow['high'] < actual['x']['high']
  json.dumps(actual)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
  r = np.random.default_rng(1)
  inside = 0
  for i in range(200):
    b = bootstrap.intervals({'x': (r.random(100) < 0.7).astype(float)}, 200, seed=i)['x']
    inside += b['low'] <= 0.7 <= b['high']
  assert 0.88 <= inside / 200 <= 0.99


def test_paired_difference_is_tighter_than_two_intervals():
  r = np.random.default_rng(2)
  a = (r.random(500) < 0.7).astype(float)
  b = a.copy()
  flips = np.flatnonzero(a == 0)[:25]
  b[flips] = 1
  low, high = bootstrap.paired_difference(a, b)
  assert 0 < low < 0.05 < high and high - low < 0.05
  alone = bootstrap.intervals({'a': a, 'b': b})
  assert (
    alone['a']['high'] > alone['b']['low']
  )  # the two intervals overlap, yet the difference is clear


def test_paired_difference_against_the_normal_interval():
  rng = np.random.default_rng(0)
  a, b = (rng.random(3000) < 0.8).astype(float), (rng.random(3000) < 0.7).astype(float)
  low, high = bootstrap.paired_difference(b, a)
  mean, half = (a - b).mean(), 1.96 * (a - b).std() / np.sqrt(3000)
  assert low == pytest.approx(mean - half, abs=0.003) and high == pytest.approx(
    mean + half, abs=0.003
  )
  gaps = np.where(rng.random(3000) < 0.5, a, np.nan)  # each mean over its own known examples
  low, high = bootstrap.paired_difference(b, gaps)
  assert low < np.nanmean(gaps) - b.mean() < high
  assert bootstrap.paired_difference(np.ones(5), np.full(5, np.nan)) is None
