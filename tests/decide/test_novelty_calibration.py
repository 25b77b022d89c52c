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


def calibrated(scores, leaf):
  every = {(k, -1): np.zeros(1) for k in range(2)}
  detector = Scored(KINDS, ['softmax'] * 2, {}, every, {}, {}, np.zeros(0), [{}, {}])
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
    np.testing.assert_array_equal(is_above.any(1), decision.level < 2)
  error = np.std(rates) / np.sqrt(len(rates))
  assert 0.035 < np.mean(rates) <= 0.05 + 2 * error


def test_an_image_is_an_alarm_by_counting():
  """Of the 20 calibration images and a new one, 2 may be called new at a share of .1."""
  scores, leaf = np.tile(np.arange(20.0)[:, None], 2), np.zeros(20, int)
  detector = calibrated(scores, leaf)
  new = evidence(np.array([[19.5, 0], [18.5, 0], [0, 19.5], [17.5, 18.5]]), leaf[:4])
  decision = detector.decide(new, 0.1)
  assert decision.level.tolist() == [0, 2, 1, 2]
  np.testing.assert_allclose(decision.tails[0], [1 / 21, 1])
  assert detector.reason(decision, 0, [0, 0]).startswith('less like any kind than 95.2% of the')
  assert detector.reason(decision, 2, [0, 0]).startswith('less like any breed of k0 than 95.2%')
  assert detector.decide(new, 0.04).level.tolist() == [2] * 4
  assert detector.threshold(0, 0, 0.04) == np.inf


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
