"""Which images and classes the thresholds of novelty detection come from."""

import numpy as np
import pytest

import hierjax
from hierjax.core import config
from hierjax.decide import novelty
from hierjax.taxonomy import Taxonomy


@pytest.mark.parametrize(('recall', 'cut'), [(0.95, 5), (0.9, 10), (0.7, 30)])
def test_the_threshold_leaves_the_recall_above_it(recall, cut):
  """Of the scores 0 to 100 of novel images, 90 % are at least 10."""
  taxonomy = Taxonomy.from_rows(('kind',), [['a'], ['b']])
  scores = np.arange(101.0)
  detector = novelty.Detector(
    taxonomy, ['softmax'], {}, {(0, -1): scores}, {(0, -1): scores + 1000}, [{}]
  )
  assert detector.threshold(0, 0, recall) == pytest.approx(cut, abs=1)


def test_known_images_bound_the_threshold():
  """A threshold above all known images would lose recall and gain nothing."""
  taxonomy = Taxonomy.from_rows(('kind',), [['a'], ['b']])
  left_out, others = np.full(50, 7.0), np.linspace(0, 1, 101)
  detector = novelty.Detector(
    taxonomy, ['softmax'], {}, {(0, -1): left_out}, {(0, -1): others}, [{}]
  )
  assert detector.threshold(0, 0, 0.5) == pytest.approx(0.99)


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
    logits = [np.zeros((len(leaf), len(names))) for names in taxonomy.names]
    return novelty.Evidence(logits, x, paths, paths)

  detector = novelty.Detector.fit(draw(), draw(), taxonomy, 'mahalanobis')
  assert len(detector.left_out[1, -1]) == len(leaf)
  assert len(detector.left_out[1, 0]) == len(detector.left_out[1, 1]) == len(leaf) / 2


def test_calibrated_on_val_whatever_is_evaluated(run_copy, tiny_backbone, one_device):
  """A detector that an evaluation of train makes is that which one of val makes."""
  c = config.from_json((run_copy / 'config.json').read_text())
  c.eval.novelty = 0.9
  arrays = {}
  for split in ('val', 'train'):
    (run_copy / 'novelty.npz').unlink(missing_ok=True)
    hierjax.load(run_copy, c).evaluate(split)
    with np.load(run_copy / 'novelty.npz') as archive:
      arrays[split] = dict(archive)
  assert arrays['val'].keys() == arrays['train'].keys()
  for name, value in arrays['val'].items():
    np.testing.assert_array_equal(value, arrays['train'][name], err_msg=name)
