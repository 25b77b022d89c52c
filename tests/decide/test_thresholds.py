"""Thresholds of tags and the metrics of their decisions, against scikit-learn."""

import json

import numpy as np
import pytest
from drawn_tags import ANIMALS, draw
from sklearn import metrics as sk

from hierjax.decide import thresholds
from hierjax.evaluate import tags
from hierjax.taxonomy import Mixed, Taxonomy


def f1_of(p, y, threshold):
  return sk.f1_score(y, p >= threshold, zero_division=0)


@pytest.mark.parametrize('seed', range(6))
def test_best_thresholds_against_scikit_learn(seed):
  x, y = draw(seed, 80)
  p = 1 / (1 + np.exp(-x))
  if seed % 2:
    p = np.round(p, 1)  # ties of scores, and with them of F1
  result = thresholds.tune_thresholds(p, y)
  for c, threshold in enumerate(result):
    is_known = y[:, c] >= 0
    precision, recall, values = sk.precision_recall_curve(y[is_known, c], p[is_known, c])
    with np.errstate(invalid='ignore'):
      curve = np.nan_to_num(2 * precision * recall / (precision + recall))[:-1]
    assert f1_of(p[is_known, c], y[is_known, c], threshold) == pytest.approx(curve.max(), abs=1e-12)
    assert threshold == values[np.flatnonzero(curve > curve.max() - 1e-12)[0]]


def test_thresholds_of_classes_that_say_nothing():
  p = np.array([[0.2, 0.9, 0.4], [0.3, 0.8, 0.6], [0.7, 0.1, 0.5]])
  y = np.array([[0, 1, -1], [0, 1, -1], [0, 1, -1]])
  assert thresholds.tune_thresholds(p, y).tolist() == [
    0.5,
    0.1,
    0.5,
  ]  # no positive; nothing but positives; nothing is_known
  assert thresholds.tune_thresholds(
    np.array([[0.1], [0.3], [0.3], [0.6]]), np.array([[0], [1], [0], [1]])
  ).tolist() == [0.3]
  assert thresholds.tune_thresholds(
    np.array([[0.2], [0.6], [0.4]]), np.array([[1], [1], [0]])
  ).tolist() == [0.2]  # F1 .8; at .6 it is 2/3
  p, y = np.array([[0.9], [0.8], [0.7], [0.6]]), np.array([[1], [0], [0], [1]])
  assert thresholds.tune_thresholds(p, y).tolist() == [0.6] and thresholds.tune_thresholds(
    p[:3], y[:3]
  ).tolist() == [0.9]
  p, y = (
    np.array([[0.9], [0.8], [0.7], [0.6], [0.5]]),
    np.array([[1], [0], [0], [0], [1]]),
  )  # F1 at .9: 2/3; at .5: 4/7
  assert thresholds.tune_thresholds(p, y).tolist() == [0.9]
  assert thresholds.tune_thresholds(p[:4], np.array([[1], [0], [0], [1]])).tolist() == [
    0.6
  ]  # 2/3 at .9 and at .6: the lowest


def test_thresholds_each_for_itself_contradict_the_taxonomy():
  p, cutoffs = np.full((1, 9), 0.5), np.where(np.arange(9) < 2, 0.9, 0.3)
  assert (ANIMALS.contradicts(p >= cutoffs)[:, 0] >= 0).all()
  assert (ANIMALS.contradicts(thresholds.decide_tags(p, cutoffs, ANIMALS).pred) == -1).all()


# Metrics.


@pytest.mark.parametrize('seed', range(4))
def test_metrics_against_scikit_learn(seed):
  x, y = draw(seed, 60, 5)
  p, names = np.round(1 / (1 + np.exp(-x.astype(np.float64))), 1 + seed), list('abcde')
  y[:, 3] = np.minimum(y[:, 3], 0)  # no positive
  tuned = thresholds.tune_thresholds(p, y)
  result = tags.evaluate_level(p, y, tuned, names)
  json.dumps(result, allow_nan=False)
  aps = []
  for c, name in enumerate(names):
    is_known = y[:, c] >= 0
    truth, row = y[is_known, c], result['classes'][name]
    assert row['positives'] == truth.sum() and row['threshold'] == tuned[c]
    if c == 3:
      assert row['ap'] is None and row['threshold'] == 0.5 and row['after']['recall'] is None
      continue
    aps.append(sk.average_precision_score(truth, p[is_known, c]))
    assert row['ap'] == pytest.approx(aps[-1])
    for when, threshold in (('before', 0.5), ('after', tuned[c])):
      expected = sk.precision_recall_fscore_support(
        truth, p[is_known, c] >= threshold, average='binary', zero_division=np.nan
      )[:3]
      row_values = [row[when][k] for k in ('precision', 'recall', 'f1')]
      np.testing.assert_allclose(
        [np.nan if v is None else v for v in row_values], expected, rtol=1e-12
      )
    assert row['after']['f1'] >= row['before']['f1']
  assert result['n'] == 60 and result['map_macro'] == pytest.approx(np.mean(aps))
  is_known = y >= 0
  assert result['map_micro'] == pytest.approx(sk.average_precision_score(y[is_known], p[is_known]))
  for when, cutoff in (('before', np.full(5, 0.5)), ('after', tuned)):
    assert result[when]['f1_micro'] == pytest.approx(
      sk.f1_score(y[is_known], (p >= cutoff)[is_known])
    )
    rows = [row[when]['f1'] for row in result['classes'].values() if row[when]['f1'] is not None]
    assert result[when]['f1_macro'] == pytest.approx(np.mean(rows))
    assert result[when]['f1_classes'] == len(rows)
  assert result['map_classes'] == len(aps) == 4


def test_macro_and_micro_of_known_targets_are_scikit_learn_s():
  x, y = draw(9, 70, 4, unknown=0)
  result = tags.evaluate_level(x, y, np.zeros(4), list('abcd'))
  for average in ('macro', 'micro'):
    assert result[f'map_{average}'] == pytest.approx(
      sk.average_precision_score(y, x, average=average)
    )
    assert result['after'][f'f1_{average}'] == pytest.approx(
      sk.f1_score(y, x >= 0, average=average)
    )


def test_the_number_of_classes_that_a_macro_mean_is_of():
  """Class a has images, b only a wrong prediction, of c and d is nothing to be said."""
  labels = np.array([[1, 0, 0, -1], [1, 0, 0, -1], [0, 0, 0, -1]])
  prob = np.array([[0.9, 0.2, 0.1, 0.9], [0.2, 0.7, 0.2, 0.9], [0.3, 0.4, 0.3, 0.9]])
  result = tags.evaluate_level(prob, labels, np.array([0.15, 0.8, 0.5, 0.5]), list('abcd'))
  assert result['map_classes'] == 1
  assert result['before']['f1_classes'] == 2 and result['after']['f1_classes'] == 1
  assert result['before']['f1_macro'] == pytest.approx((2 / 3 + 0) / 2)
  assert result['after']['f1_macro'] == pytest.approx(0.8)


def test_metrics_of_nothing():
  for n in (0, 3):
    result = tags.evaluate_level(np.zeros((n, 2)), np.full((n, 2), -1), np.full(2, 0.5), ['a', 'b'])
    assert (
      result['n'] == n
      and result['map_macro']
      is result['map_micro']
      is result['after']['f1_macro']
      is result['before']['f1_micro']
      is None
    )
    assert result['classes']['a']['positives'] == 0


@pytest.mark.parametrize('dtype', [np.float64, np.float32])
def test_tags_by_blocks_are_decided_and_measured_as_by_loops(dtype, monkeypatch):
  """Image by image and class by class; a block is as many rows as have 40 probabilities."""
  exclusive = Taxonomy.from_rows(['kind'], [['a'], ['b'], ['c']])
  above = np.array([[0], [-1], [0], [1], [-1], [2], [-1], [-1], [1]], np.int32)
  mixed = Mixed(exclusive, ANIMALS, above)
  rng, n, m = np.random.default_rng(3), 50, ANIMALS.width
  prob, labels = rng.random((n, m)).round(2).astype(dtype), rng.integers(-1, 2, (n, m))
  cutoffs, path = rng.random(m), rng.integers(0, 3, (n, 1))
  possible = mixed.fits(path)
  at_once = tags.evaluate(thresholds.decide_tags(prob, cutoffs, ANIMALS, possible), labels, ANIMALS)
  for module in (thresholds, tags):
    monkeypatch.setattr(module, 'BLOCK_SIZE', 40)
  decision = thresholds.decide_tags(prob, cutoffs, ANIMALS, possible)
  by_blocks = tags.evaluate(decision, labels, ANIMALS)
  wrong = np.zeros((2, n), bool)
  for i in range(n):
    fits = [(c < 0) | (c == path[i, 0]) for c in above[:, 0]]
    reached = [prob[i, c] >= cutoffs[c] for c in range(m)]
    expected = [any(reached[b] and fits[b] for b in ANIMALS.below[c]) for c in range(m)]
    assert decision.pred[i].tolist() == expected
    for k, present in enumerate((reached, expected)):
      for c in range(m):
        wrong[k, i] |= any(present[b] and not present[c] for b in ANIMALS.below[c])
        wrong[k, i] |= present[c] and not fits[c]
  assert by_blocks['hvr'] == {'single': wrong[0].mean(), 'decided': wrong[1].mean()}
  for level, columns in ANIMALS.columns.items():
    p, y = prob[:, columns], labels[:, columns]
    expected = sk.average_precision_score(y[y >= 0], p[y >= 0])
    assert by_blocks['multi'][level]['map_micro'] == pytest.approx(expected, rel=1e-12)
    f1 = sk.f1_score(y[y >= 0], decision.pred[:, columns][y >= 0])
    assert by_blocks['multi'][level]['after']['f1_micro'] == pytest.approx(f1, rel=1e-12)
  assert json.dumps(by_blocks) == json.dumps(at_once)
