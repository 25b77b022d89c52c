"""hierjax.Classifier: labels of every kind, and the checks of scikit-learn that apply to it."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import tiny
from PIL import Image
from sklearn.base import clone
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted

import hierjax
from hierjax.core.errors import UserError
from hierjax.estimator import Classifier, _columns

# Checks that need no training. Those that fit feed rows of numbers, which are no images.
CHECKS = """check_estimator_cloneable check_estimator_tags_renamed check_valid_tag_types
check_estimator_repr check_no_attributes_set_in_init check_estimators_unfitted
check_do_not_raise_errors_in_init_or_set_params check_n_features_in_after_fitting
check_mixin_order check_parameters_default_constructible check_get_params_invariance
check_set_params""".split()
# Those that train, for `make test-slow`: on rows of numbers that a subclass paints as images.
# Not among them: check_estimators_nan_inf and check_estimators_empty_data_messages (of numbers);
# check_classifier_multioutput (its labels are drawn apart: neither a tree nor facets);
# check_fit2d_1sample (refused, as nothing is left to validate on, but in other words); those of
# sample_weight, class_weight, decision_function, n_features_in_, sparse and complex rows.
SLOW_CHECKS = """check_fit_score_takes_y check_estimators_overwrite_params
check_dont_overwrite_parameters check_estimators_fit_returns_self check_readonly_memmap_input
check_positive_only_tag_during_fit check_classifiers_classes check_dict_unchanged
check_estimators_pickle check_methods_subset_invariance check_methods_sample_order_invariance
check_fit_check_is_fitted check_classifiers_one_label check_requires_y_none check_estimators_dtypes
check_classifier_data_not_an_array check_fit_idempotent check_classifiers_train
check_pipeline_consistency check_classifiers_regression_target check_supervised_y_no_nan""".split()
COLOURS = {'red': (200, 30, 30), 'blue': (30, 30, 200), 'lime': (30, 220, 30)}
KINDS = {'red': 'warm', 'blue': 'cold', 'lime': 'cold'}


def images(n: int) -> tuple[np.ndarray, list[str]]:
  """Return n noisy images of one colour each, uint8 [n, 24, 24, 3], and their colours."""
  rng, names = np.random.default_rng(0), [list(COLOURS)[i % 3] for i in range(n)]
  noise = rng.integers(-25, 25, (n, 24, 24, 3))
  colours = np.array([COLOURS[name] for name in names])[:, None, None]
  return np.clip(colours + noise, 0, 255).astype(np.uint8), names


def tiny_classifier(**options) -> Classifier:
  """Return a classifier whose training takes a second."""
  c = tiny.run_config(**{'train.steps': 20, 'train.eval_steps': 20})
  return hierjax.Classifier(c, optim__lr=0.02, **options)


@pytest.mark.parametrize('name', CHECKS)
def test_checks_of_scikit_learn(name):
  getattr(estimator_checks, name)('Classifier', hierjax.Classifier(epochs=3))


class Painted(Classifier):
  """A classifier of rows of numbers, each painted as bands of an image."""

  def __init__(self, config=None, workdir=None, levels=None, **options):
    super().__init__(config, workdir, levels, **options)

  def fit(self, X, y=None):
    rows = np.asarray(X)
    self._low, self._high = rows.min(), rows.max()
    return super().fit(self._paint(rows), y)

  def _paint(self, rows):
    scaled = (np.asarray(rows, float) - self._low) / (self._high - self._low + 1e-9)
    bands = np.repeat(np.clip(scaled * 255, 0, 255).astype(np.uint8), 8, 1)
    return np.broadcast_to(bands[:, :, None, None], (*bands.shape, 16, 3))

  def _probabilities(self, images):
    check_is_fitted(self)
    return super()._probabilities(self._paint(images))


@pytest.mark.slow
@pytest.mark.parametrize('name', SLOW_CHECKS)
def test_checks_of_scikit_learn_that_train(name, tiny_backbone, one_device):
  c = tiny.run_config(**{'train.steps': 20, 'train.eval_steps': 20})
  getattr(estimator_checks, name)('Classifier', Painted(c, optim__lr=0.02))


@pytest.fixture(scope='module')
def fitted(tmp_path_factory):
  """A classifier trained on arrays and a dict of labels."""
  with pytest.MonkeyPatch.context() as patch:
    tiny.register(patch)
    tiny.use_devices(patch)
    pixels, names = images(36)
    labels = {'kind': [KINDS[name] for name in names], 'colour': [*names[:-3], None, '', np.nan]}
    yield tiny_classifier().fit(pixels, labels)


def test_predictions_are_labels_of_each_level(fitted):
  pixels, names = images(12)
  true = np.array([[KINDS[name], name] for name in names], object)
  assert np.array_equal(fitted.predict(pixels), true)
  assert fitted.score(pixels, true) == 1
  # unknown labels count as right, images without any do not count
  true[0], true[1, 1], true[2] = ('cold', 'red'), None, (None, np.nan)
  assert fitted.score(pixels, true) == 10 / 11
  probs = fitted.predict_proba([Image.fromarray(x) for x in pixels])
  for k, level in enumerate(fitted.levels_):
    assert np.allclose(probs[level].sum(1), 1)
    best = fitted.classes_[level][probs[level].argmax(1)]
    assert np.array_equal(best[3:], true[3:, k])


def test_a_saved_classifier_predicts_the_same(fitted, tmp_path):
  pixels, _ = images(4)
  fitted.save(tmp_path / 'saved')
  expected = fitted.predict(pixels)
  for other in (Classifier.load(tmp_path / 'saved'), pickle.loads(pickle.dumps(fitted))):
    assert np.array_equal(other.predict(pixels), expected)
  for name in ('config.json', 'data/labels.csv'):
    text = (tmp_path / 'saved' / name).read_text()
    assert str(tmp_path) in text and fitted.workdir_ not in text
  assert not hasattr(clone(fitted), 'workdir_')


def test_labels_of_every_kind():
  rows = [('warm', 'red'), ('cold', 'blue'), ('cold', None)]
  expected = {'level1': ['warm', 'cold', 'cold'], 'level2': ['red', 'blue', None]}
  assert _columns(rows, None) == _columns(np.array(rows, object), None) == expected
  assert _columns(['warm/red', 'cold/blue', 'cold'], None) == expected
  named = {'kind': expected['level1'], 'colour': expected['level2']}
  assert _columns(rows, ('kind', 'colour')) == _columns(named, None) == named
  assert _columns(np.array([3, 1, 2]), None) == {'class': [3, 1, 2]}
  with pytest.raises(UserError, match='2 levels, but names for 1: kind'):
    _columns(rows, ['kind'])


def test_mistakes_are_named(tmp_path):
  with pytest.raises(UserError, match=r'optim\.rate: no such option'):
    hierjax.Classifier(optim__rate=1, workdir=tmp_path).fit(['a.png'], ['x'])
  with pytest.raises(UserError, match=r'no file a\.png'):
    hierjax.Classifier(workdir=tmp_path).fit(['a.png'], ['x'])
  with pytest.raises(UserError, match='1 images, but numbers of labels'):
    hierjax.Classifier(workdir=tmp_path).fit(['a.png'], ['x', 'y'])


def test_a_run_of_the_command_line_is_a_classifier(finished_run, tiny_backbone, one_device):
  """Its labels are the names of the taxonomy."""
  classifier = Classifier.load(finished_run)
  assert classifier.levels_ == ('make', 'type', 'model')
  predicted = classifier.predict(images(2)[0])
  assert all(
    name in classifier.classes_[level] for level, name in zip(classifier.levels_, predicted[0])
  )


def test_importing_hierjax_leaves_scikit_learn_out():
  code = 'import hierjax, sys; sys.exit("sklearn" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0
