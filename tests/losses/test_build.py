"""The losses that a config builds, and terms that users register."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.experiments import fit
from hierjax.losses import build, terms
from hierjax.taxonomy import Taxonomy

CARS = Taxonomy.from_rows(
  ('make', 'model'), [['a', 'a1'], ['a', 'a2'], ['b', 'b1'], ['b', 'b2'], ['b', 'b3']]
)
LABELS = np.array([[0, 1], [1, 4], [1, -1], [-1, -1]], np.int32)


@pytest.fixture
def registry(monkeypatch):
  """A copy of the registry that the test may add to."""
  monkeypatch.setattr(terms.LOSSES, 'data', dict(terms.LOSSES.data))
  return terms.LOSSES


def entropy(inputs):
  """A user's term: the entropy of the finest head's prediction where its label is unknown."""
  p = jax.nn.softmax(inputs.logits[inputs.taxonomy.levels[-1]])
  return -jnp.sum(p * jnp.log(p), axis=1), inputs.labels[:, -1] < 0


def logits():
  """Random logits of both levels."""
  rng = np.random.default_rng(0)
  return {level: jnp.asarray(rng.normal(size=(4, n))) for level, n in (('make', 2), ('model', 5))}


def losses(**options):
  """The losses of config.loss with these options."""
  c = config.default()
  for path, value in options.items():
    config.assign(c, f'loss.{path}', value)
  return build.build(c, CARS, CARS.levels, LABELS)


def test_a_block_weighs_masks_and_judges():
  x, weights = logits(), jnp.array([1.0, 2.0, 3.0, 4.0])
  out = losses().blocks[0](x, x, jnp.asarray(LABELS), weights)
  assert list(out) == ['make', 'model']
  for k, level in enumerate(CARS.levels):
    p = np.exp(np.asarray(x[level], np.float64))
    p /= p.sum(1, keepdims=True)
    y = LABELS[:, k]
    expected = np.where(y < 0, 0, -np.log(p[np.arange(4), y]) * weights)
    np.testing.assert_allclose(out[level].values, expected, rtol=1e-5)
    assert (np.asarray(out[level].mask) > 0).tolist() == (y >= 0).tolist()
    assert out[level].labelled.tolist() == (y >= 0).tolist()
    assert out[level].correct.tolist() == (p.argmax(1) == y).tolist()


@pytest.mark.parametrize('option', [{'margin': 2.0}, {'hace': 0.3}, {'hxe': 0.4}])
def test_any_level_goes_with_losses_that_learn_from_coarser_labels(option):
  c, x, y = config.default(), logits(), jnp.asarray(LABELS)
  c.loss.update(option, any_level=True)
  config.validate(c)
  alone, both = (
    losses(**option, **more).blocks[0](x, x, y, jnp.ones(4))['model']
    for more in ({}, {'any_level': True})
  )
  assert both.values.tolist() == alone.values.tolist()
  assert np.asarray(both.mask).tolist() == [True, True, True, False]


@pytest.mark.parametrize('finest', [{}, {'hace': 0.3}, {'margin': 2.0}, {'lca': 3.0}])
def test_logit_adjustment_at_every_level(finest):
  """As if tau * log of the share of labels were added by hand; accuracies are without it."""
  x, y, ones = logits(), jnp.asarray(LABELS), jnp.ones(4)
  shares = {'make': [1 / 3, 2 / 3], 'model': np.array([1, 1, 1, 1, 1]) / 5}
  shifted = {level: x[level] + 0.5 * np.log(np.array(shares[level]))[None] for level in x}
  plain = losses(**finest).blocks[0](shifted, shifted, y, ones)
  adjusted = losses(logit_adjust=0.5, **finest).blocks[0](x, x, y, ones)
  for level in x:
    np.testing.assert_allclose(adjusted[level].values, plain[level].values, rtol=1e-5)
    expected = np.asarray(x[level]).argmax(1) == LABELS[:, CARS.index(level)]
    assert adjusted[level].correct.tolist() == expected.tolist()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'loss.hace': 0.2, 'loss.margin': 1.0}, 'hace=0.2 and --config.loss.margin=1.0: each is'),
    (
      {'loss.logit_adjust': 1.0, 'data.balance': 'sample'},
      r'logit_adjust=1 .*as in the training images, which --config.data.balance=sample changes',
    ),
    ({'loss.logit_adjust': 1.0, 'loss.aggregate': 'samples'}, 'loss.aggregate=samples changes'),
  ],
)
def test_options_that_exclude_each_other(options, message):
  with pytest.raises(UserError, match=message):
    config.validate(tiny.run_config(**options))


def test_the_joint_posterior_needs_heads_of_their_own():
  c = config.default()
  c.loss.terms = ('joint_distill',)
  with pytest.raises(UserError, match=r'joint_distill matches the heads .* a head for model only'):
    build.build(c, CARS, ('model',), LABELS)
  c.model.heads = 'path_sum'
  with pytest.raises(UserError, match='heads=path_sum the levels agree already'):
    build.build(c, CARS, CARS.levels, LABELS)


def test_a_term_of_the_user(registry):
  terms.register_loss('entropy', entropy)
  x = logits()
  term = losses(terms='entropy').terms['entropy']
  values, mask = term(x, None, jnp.asarray(LABELS), terms.Teacher({}, {}), None)
  p = np.exp(np.asarray(x['model'], np.float64))
  p /= p.sum(1, keepdims=True)
  np.testing.assert_allclose(values, -(p * np.log(p)).sum(1), rtol=1e-5)
  assert mask.tolist() == [False, False, True, True]


def test_a_run_with_a_term_of_the_user(registry, no_report, monkeypatch, tmp_path):
  terms.register_loss('entropy', entropy)
  tiny.register(monkeypatch)
  # jax's cache of compiled programs crashes on a donating step over eight CPU devices
  tiny.use_devices(monkeypatch)
  options = {'loss.terms': 'entropy', 'loss.weights': 'entropy=.5', 'data.unlabelled': 0.5}
  fit.fit(tiny.run_config(**options), tmp_path)
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  for line in lines:
    if line['kind'] == 'train':
      levels = sum(line[f'loss/{level}'] for level in ('make', 'type', 'model'))
      assert line['loss'] == pytest.approx(levels + 0.5 * line['loss/entropy'], abs=1e-4)
      assert line['loss/entropy'] > 0 and line['weight/entropy'] == 0.5


def test_names_of_terms(registry):
  with pytest.raises(UserError, match=r"loss\.terms: no term .*'tree_pth' .*'tree_path'.*choices"):
    losses(terms='tree_pth')
  with pytest.raises(UserError, match='registered already'):
    terms.register_loss('distill', entropy)
