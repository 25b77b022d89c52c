"""Which images and classes the thresholds of novelty detection come from."""

import numpy as np
import pytest

import hierjax
from hierjax import decide
from hierjax.core import config
from hierjax.decide import novelty
from hierjax.taxonomy import Taxonomy

KINDS = Taxonomy.from_rows(('kind', 'breed'), [[f'k{i // 4}', f'b{i}'] for i in range(12)])


class Scored(novelty.Detector):
  """A detector whose scores are the features."""

  def score(self, k, evidence, names, *_):
    return dict.fromkeys(names, evidence.features[:, k])


def calibrated(scores, leaf, finer=None):
  every = {(k, -1): np.zeros(1) for k in range(2)}
  detector = Scored(KINDS, ['softmax'] * 2, {}, every, {}, finer or {}, np.zeros(0), [{}, {}])
  detector._calibrate(evidence(scores, leaf))
  return detector


def evidence(scores, leaf):
  paths = KINDS.paths[leaf]
  return novelty.Evidence([], scores, paths, paths)


@pytest.mark.parametrize('correlation', [0.0, 0.9])
def test_false_alarms_are_as_stated(correlation):
  """On average over calibration sets, whatever the scores are, with and without small nodes."""
  rng, rates = np.random.default_rng(5), []
  for _ in range(150):
    n, new = 250, 400
    leaf = np.where(rng.random(n + new) < 0.6, rng.integers(4, size=n + new), rng.integers(12))
    scores = rng.normal(size=(n + new, 2)) + (leaf < 4)[:, None]
    scores[:, 1] = correlation * scores[:, 0] + np.sqrt(1 - correlation**2) * scores[:, 1]
    detector = calibrated(scores[:n], leaf[:n])
    decision = detector.decide(evidence(scores[n:], leaf[n:]), 0.05)
    rates.append((decision.level < 2).mean())
    is_above = decision.scores > decision.thresholds
    expected = np.where(is_above[:, 1], np.where(is_above[:, 0], 0, 1), 2)
    np.testing.assert_array_equal(decision.level, expected)
  error = np.std(rates) / np.sqrt(len(rates))
  assert 0.035 < np.mean(rates) <= 0.05 + 2 * error


def test_an_image_is_an_alarm_by_counting():
  """Of the 20 calibration images and a new one, 2 may be called new at a share of .1."""
  scores, leaf = np.tile(np.arange(20.0)[:, None], 2), np.zeros(20, int)
  detector = calibrated(scores, leaf)
  new = evidence(np.array([[19.5, 19.5], [19.5, 18.5], [0, 19.5], [0, 0]]), leaf[:4])
  decision = detector.decide(new, 0.1)
  assert decision.level.tolist() == [0, 2, 1, 2]
  np.testing.assert_allclose(decision.tails[:2], [[1 / 21, 1 / 21], [1 / 21, 2 / 21]])
  assert detector.reason(decision, 0, [0, 0]).startswith('less like any kind than 95.2% of the')
  assert detector.reason(decision, 2, [0, 0]).startswith('less like any breed of k0 than 95.2%')
  assert detector.decide(new, 0.04).level.tolist() == [2] * 4
  assert detector.threshold(0, 0, 0.04) == np.inf


def test_an_image_is_new_if_its_finest_class_is_and_from_where_new_finer_classes_rarely_look_so():
  """Image by image, in a table whose branches end early: below kind k1 there are no breeds."""
  t = Taxonomy.from_rows(('kind', 'breed'), [['k0', 'a'], ['k0', 'b'], ['k1', ''], ['k2', 'c']])
  rng, share = np.random.default_rng(3), 0.2
  places = {(k, -1): np.zeros(1) for k in range(2)}
  finer = np.sort(rng.normal(size=39)) + 0.5
  detector = Scored(t, ['softmax'] * 2, {}, places, {}, {(0, -1): finer}, np.zeros(0), [{}, {}])

  def draw(n):
    paths = t.paths[rng.integers(4, size=n)]
    return novelty.Evidence([], rng.normal(size=(n, 2)), paths, paths)

  calibration, new = draw(80), draw(300)
  detector._calibrate(calibration)
  decision, has_breed = detector.decide(new, share), np.array([1, 0, 1])

  def rank(score, k):
    reference = calibration.features[(k == 0) | (has_breed[calibration.pred[:, 0]] == 1), k]
    return (1 + sum(reference >= score)) / (1 + len(reference))

  def finest_rank(x, path):
    k = has_breed[path[0]]
    return rank(x[k], k)

  # ranks among the calibration images count each of these once, as `rank` counts the new one
  ranks = sorted(
    finest_rank(np.nextafter(x, 9), p) for x, p in zip(calibration.features, calibration.pred)
  )
  limit = ranks[int(share * 81) - 1]
  for x, path, level in zip(new.features, new.pred, decision.level):
    expected = 2
    if finest_rank(x, path) < limit:
      looks_coarser = (1 + sum(finer >= x[0])) / 40 <= novelty.MISPLACED
      expected = int(has_breed[path[0]] and not looks_coarser)
    assert level == expected
  assert np.bincount(decision.level).min() > 5 and (has_breed[new.pred[:, 0]] == 0).sum() > 50


def test_every_class_is_left_out_once():
  """Each image of a class with siblings gives one score, whatever its place among them."""
  children = 8
  taxonomy = Taxonomy.from_rows(
    ('kind', 'breed'), [[f'k{p}', f'b{p}{c}'] for p in range(2) for c in range(children)]
  )
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(2 * children, 12)) * 9
  leaf = np.repeat(np.arange(2 * children), 6)
  paths = taxonomy.paths[leaf]

  def draw():
    x = centres[leaf] + rng.normal(size=(len(leaf), 12))
    return novelty.Evidence([], x, paths, paths)

  detector = novelty.Detector.fit(draw(), draw(), taxonomy, 'mahalanobis')
  assert len(detector.left_out[1, -1]) == len(leaf)
  assert len(detector.left_out[1, 0]) == len(detector.left_out[1, 1]) == len(leaf) / 2


def test_calibrated_on_val_whatever_is_evaluated(run_copy, tiny_backbone, one_device):
  """A detector that an evaluation of train makes is that which one of val makes."""
  c = config.from_json((run_copy / 'config.json').read_text())
  c.decide.novelty = 0.1
  arrays = {}
  for split in ('val', 'train'):
    (run_copy / 'novelty.npz').unlink(missing_ok=True)
    hierjax.load(run_copy, c).evaluate(split)
    with np.load(run_copy / 'novelty.npz') as archive:
      arrays[split] = dict(archive)
  assert arrays['val'].keys() == arrays['train'].keys()
  for name, value in arrays['val'].items():
    np.testing.assert_array_equal(value, arrays['train'][name], err_msg=name)


def test_one_answer_for_known_unsure_and_new():
  posterior = np.zeros((1, 12))
  posterior[0, :2] = 0.6, 0.3
  line = decide.lineage(posterior / 0.9, KINDS.paths)
  rule = decide.Backoff(0.05, None, 'one', ((0.9, 0.9),), (), (100,))
  unsure = decide.answer_record(decide.answer(posterior / 0.9, KINDS.paths, rule), 0, KINDS)
  assert (unsure['kind'], unsure['name']) == ('unsure', 'k0')
  values = [
    decide.answer_or_new(answer, line, 0, KINDS, level, 'why' * (level < 2))
    for answer in (None, unsure)
    for level in (0, 1, 2)
  ]
  assert [(v['kind'], v['name'], v['depth']) for v in values] == [
    ('new', '', 0),
    ('new', 'k0', 1),
    ('known', 'b0', 2),
    ('new', '', 0),
    ('new', 'k0', 1),
    ('unsure', 'k0', 1),
  ]
  assert [v['prob'] for v in values[:3]] == [1, 1, pytest.approx(2 / 3, abs=1e-6)]
  nothing = {**unsure, 'depth': 0, 'name': '', 'reason': 'both'}
  assert decide.answer_or_new(nothing, line, 0, KINDS, 1, 'why')['reason'] == 'why; both'
