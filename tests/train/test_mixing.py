"""mixup and CutMix against mixed targets and pictures that are computed apart from the code."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny
from flax import traverse_util

from hierjax.core import config, parallel
from hierjax.core.errors import UserError
from hierjax.losses import build, exclusive
from hierjax.taxonomy import TagTaxonomy, Taxonomy
from hierjax.train import mixing, optim, setup
from hierjax.train.mixing import Mixing, Partners
from hierjax.train.objective import objective
from hierjax.train.step import stepper

LEVELS = ('make', 'type', 'model')
ROWS = [('a', 'x', str(i)) for i in range(3)] + [('a', 'y', '3'), ('b', 'y', '4'), ('b', 'z', '5')]
TABLE = Taxonomy.from_rows(LEVELS, ROWS)
TAGS = TagTaxonomy.from_rows(('group', 'tag'), [('g', 'one'), ('g', 'two'), ('h', 'three')])
SHARE = 0.3


# Targets


def labels_of(leaves, hidden=()):
  labels = TABLE.paths[np.array(leaves)].astype(np.int32)
  for row, level in hidden:
    labels[row, level] = -1
  return labels


FIRST = labels_of([0, 3, 5, 2, 4, 1])
SECOND = labels_of([4, 3, 0, 1, 2, 5])


def measured(labels, others=None, table=TABLE, **options):
  """(Metrics of drawn logits, the logits); the options are those of the loss."""
  c = config.default()
  for name, value in options.items():
    config.assign(c, f'loss.{name}', value)
  losses = build.build(c, table, table.levels, FIRST if table is TABLE else labels)
  rng = np.random.default_rng(0)
  logits = {
    level: jnp.asarray(rng.normal(size=(len(labels), table.num_classes(level))), jnp.float32)
    for level in table.levels
  }
  names = [*table.levels, *losses.terms]
  task = types.SimpleNamespace(
    losses=losses,
    weights=dict.fromkeys(names, 1.0),
    class_weights=None,
    names_in=lambda phase: names,
  )
  phase = optim.Phase(0, 1, (), table.levels)
  partners = None if others is None else Partners(jnp.asarray(others), jnp.float32(SHARE))
  result = objective(
    lambda *_: logits,
    jnp.zeros((len(labels), 2)),
    jnp.asarray(labels),
    task,
    phase,
    None,
    partners=partners,
  )
  return result.metrics, {k: np.asarray(x, np.float64) for k, x in logits.items()}


@pytest.mark.parametrize('options', [{}, {'smoothing': 0.2}, {'lca': 3.0}])
def test_mixed_losses_are_the_cross_entropy_of_mixed_targets(options):
  metrics, logits = measured(FIRST, SECOND, **options)
  leaves = np.arange(len(TABLE.paths))
  for k, level in enumerate(LEVELS):
    targets = np.eye(TABLE.num_classes(level))
    if level == 'model' and 'smoothing' in options:
      targets = np.asarray(exclusive.smoothed_targets(TABLE, 0.2, ['make'])(leaves))
    if level == 'model' and 'lca' in options:
      targets = np.asarray(exclusive.lca_targets(TABLE, 3.0)(leaves))
    mixed = SHARE * targets[FIRST[:, k]] + (1 - SHARE) * targets[SECOND[:, k]]
    logp = logits[level] - np.log(np.exp(logits[level]).sum(1, keepdims=True))
    assert metrics[f'loss/{level}'] == pytest.approx(-(mixed * logp).sum(1).mean(), rel=1e-5)
    answer = logits[level].argmax(1)
    hits = SHARE * (answer == FIRST[:, k]) + (1 - SHARE) * (answer == SECOND[:, k])
    assert metrics[f'acc/{level}'] == pytest.approx(hits.mean(), abs=1e-6)
  total = sum(metrics[f'loss/{level}'] for level in LEVELS)
  assert metrics['loss'] == pytest.approx(float(total), rel=1e-6)


OTHER_LOSSES = [
  {'any_level': True},
  {'hxe': 0.3},
  {'hace': 0.5},
  {'margin': 2.0},
  {'logit_adjust': 1.0},
  {'positives': 'both'},
  {'terms': ('tree_path', 'co_annotation', 'joint_distill')},
]


@pytest.mark.parametrize('options', OTHER_LOSSES)
def test_every_other_loss_is_the_mean_over_both_labels_by_their_shares(options):
  """Where a label is unknown, that image alone drops out, at that level alone."""
  first = labels_of([0, 3, 5, 2, 4, 1], [(0, 2), (1, 0), (1, 1), (1, 2)])
  second = labels_of([4, 3, 0, 1, 2, 5], [(0, 2), (2, 2), (3, 0)])
  mixed, a, b = (measured(*x, **options)[0] for x in ((first, second), (first,), (second,)))
  assert any(abs(a[name] - b[name]) > 1e-3 for name in a)
  for name, value in mixed.items():
    expected = SHARE * a[name] + (1 - SHARE) * b[name]
    assert value == pytest.approx(float(expected), rel=1e-5, abs=1e-6), name


def test_binary_cross_entropy_is_that_of_mixed_tags():
  """One level of tags, without the max constraint: targets between 0 and 1."""
  table = TagTaxonomy.from_rows(('tag',), [('one',), ('two',), ('three',)])
  first, second = np.array([[1, 0, 1], [0, 0, 1]]), np.array([[0, 0, 1], [1, 1, 0]])
  metrics, logits = measured(first, second, table)
  p, t = 1 / (1 + np.exp(-logits['tag'])), SHARE * first + (1 - SHARE) * second
  expected = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
  assert metrics['loss/tag'] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('binary', ['bce', 'focal'])
def test_losses_of_several_tag_levels_are_the_mean_over_both_labels(binary):
  first = np.array([[1, 0, 1, 0, 0], [0, 1, 0, 0, 1]])
  second = np.array([[0, 1, 0, 0, 1], [1, 1, -1, 1, 1]])
  pairs = ((first, second), (first, None), (second, None))
  mixed, a, b = (measured(*x, TAGS, binary=binary)[0] for x in pairs)
  for name, value in mixed.items():
    assert value == pytest.approx(float(SHARE * a[name] + (1 - SHARE) * b[name]), rel=1e-5), name


# Pictures


def test_shares_are_of_the_beta_distribution_and_boxes_those_of_the_paper():
  """A step draws one of the two; a border may cut a box, whose centre is anywhere."""
  keys = jax.random.split(jax.random.key(0), 4000)
  draw = jax.jit(jax.vmap(lambda key: mixing.shares(Mixing(0.4, 0.7), (40, 56), key)))
  weights = np.asarray(draw(keys))
  is_box = np.isin(weights, (0, 1)).all((1, 2))
  assert abs(is_box.mean() - 0.5) < 0.035
  blended, weights = weights[~is_box], weights[is_box]
  assert (blended == blended[:, :1, :1]).all()
  assert scipy.stats.kstest(blended[:, 0, 0], scipy.stats.beta(0.4, 0.4).cdf).pvalue > 0.01
  rows, columns = (weights == 0).any(2), (weights == 0).any(1)
  np.testing.assert_array_equal(rows[:, :, None] & columns[:, None], weights == 0)
  for side in (rows, columns):
    assert (np.abs(np.diff(side.astype(int), axis=1)).sum(1) <= 2).all()  # in one piece
  # boxes that no border cuts have the aspect of the picture
  inner = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1]) & rows.any(1)
  h, w = rows.sum(1)[inner], columns.sum(1)[inner]
  assert inner.sum() > 300 and (np.abs(h / 40 - w / 56) <= 2 / 40).all()
  # the paper's reference code, with other draws
  rng, expected = np.random.default_rng(0), []
  for share in rng.beta(0.7, 0.7, 4000):
    cut_h, cut_w = int(40 * np.sqrt(1 - share)), int(56 * np.sqrt(1 - share))
    y, x = rng.integers(40), rng.integers(56)
    y0, y1 = np.clip([y - cut_h // 2, y + cut_h // 2], 0, 40)
    x0, x1 = np.clip([x - cut_w // 2, x + cut_w // 2], 0, 56)
    expected.append(1 - (y1 - y0) * (x1 - x0) / (40 * 56))
  assert scipy.stats.ks_2samp(weights.mean((1, 2)), expected).pvalue > 0.01


@pytest.mark.parametrize('method', ['mixup', 'cutmix'])
def test_a_mixture_is_of_neighbours(method):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (6, 10, 12, 3), np.uint8)
  batch = {'image': jnp.asarray(images), 'labels': jnp.asarray(FIRST)}
  method = Mixing(**{'mixup': None, 'cutmix': None, method: 1.0})
  keys = [jax.random.key(i) for i in range(9)]
  key = next(k for k in keys if 0.2 < mixing.shares(method, (10, 12), k).mean() < 0.8)
  mixed, share = mixing.mix(method, batch, key)
  weights = np.asarray(mixing.shares(method, (10, 12), key), np.float64)
  others = [1, 0, 3, 2, 5, 4]
  expected = weights[..., None] * images + (1 - weights[..., None]) * images[others]
  assert mixed['image'].dtype == jnp.uint8
  np.testing.assert_allclose(mixed['image'], expected, atol=0.501)
  np.testing.assert_array_equal(mixed['partners'], FIRST[others])
  np.testing.assert_array_equal(mixed['labels'], FIRST)
  assert float(share) == pytest.approx(weights.mean())


# The step

SGD = {
  'optim.name': 'sgd',
  'optim.momentum': 0.0,
  'optim.weight_decay': 0.0,
  'optim.schedule': 'constant',
  'optim.lr': 1.0,
  'train.batch_size': 8,
  'data.toy.train': 32,
}


def stepped(run, images, labels, **task):
  """(Metrics of the first step on this batch, {path: what it subtracted})."""
  task = dataclasses.replace(run.task, **task)
  step = stepper(task, run.phases[0], optim.transformation(run.c, task.labels), run.mesh)
  before = setup.initial_state(run)
  flat = traverse_util.flatten_dict(jax.device_get(before.params))
  batch = parallel.put_train({'image': images, 'labels': labels}, {'stop': False}, run.mesh)
  after, metrics = step(before, batch, {})
  moved = traverse_util.flatten_dict(jax.device_get(after.params))
  return jax.device_get(metrics), {path: flat[path] - moved[path] for path in flat}


def near(a, b, scale=1e-4):
  for path in a:
    np.testing.assert_allclose(a[path], b[path], atol=scale * max(1, np.abs(b[path]).max()))


@pytest.fixture
def run(tiny_backbone):
  """A run with CutMix on one device."""
  return setup.build(tiny.run_config(**SGD, **{'data.augment.cutmix': 1.0}), tiny.mesh())


def first_batch(run):
  batch = next(iter(setup.batches(run, run.train, 0, 1)))
  return batch['image'], batch['labels']


def is_mean_of_two_plain_steps(run):
  """Of those with either label on the mixed images: losses, accuracies and the update."""
  images, labels = first_batch(run)
  key = jax.random.fold_in(
    jax.random.fold_in(jax.random.key(run.c.seed), 0), run.c.optim.accumulate + 1
  )
  batch = {'image': jnp.asarray(images), 'labels': jnp.asarray(labels)}
  mixed, share = jax.device_get(mixing.mix(run.task.mixing, batch, key))
  assert 0.05 < share < 0.95 and (mixed['partners'] != labels).any()
  out, moved = stepped(run, images, labels)
  plain = {'mixing': None, 'micro_batches': 1}
  a, moved_a = stepped(run, mixed['image'], labels, **plain)
  b, moved_b = stepped(run, mixed['image'], mixed['partners'], **plain)
  assert max(np.abs(moved_a[path] - moved_b[path]).max() for path in moved) > 1e-2
  for name in ('loss', *(f'{kind}/{level}' for kind in ('loss', 'acc') for level in LEVELS)):
    assert out[name] == pytest.approx(share * a[name] + (1 - share) * b[name], rel=1e-5), name
  near(moved, {path: share * moved_a[path] + (1 - share) * moved_b[path] for path in moved})


def test_a_step_on_mixed_images_is_the_mean_of_two_plain_ones(run):
  is_mean_of_two_plain_steps(run)


@pytest.mark.usefixtures('no_compilation_cache')
@pytest.mark.parametrize('devices', [4, 8])
def test_mixing_is_the_same_over_devices(run, devices):
  """Four devices have a pair each and need nothing from others; eight have half a pair."""
  images, labels = first_batch(run)
  split = setup.build(tiny.run_config(**SGD, **{'data.augment.cutmix': 1.0}), tiny.mesh(devices))
  one, other = (stepped(r, images, labels) for r in (run, split))
  for name in ('loss', 'acc/model', 'grad_norm'):
    assert one[0][name] == pytest.approx(other[0][name], rel=1e-4), name
  near(one[1], other[1])
  if devices == 4:
    draw = jax.jit(
      lambda batch: mixing.mix(split.task.mixing, batch, jax.random.key(0)),
      in_shardings=parallel.split(split.mesh),
    )
    batch = {'image': images, 'labels': labels}
    hlo = draw.lower(parallel.put_batch(batch, split.mesh)).compile().as_text()
    for name in ('all-gather', 'collective-permute', 'all-to-all', 'all-reduce'):
      assert f' {name}' not in hlo, name


def test_pairs_may_lie_in_two_micro_batches(tiny_backbone):
  """With a frozen backbone, so that batch norm sees no micro-batch: the mean of two plain steps."""
  options = {
    'curriculum': (config.phase(share=1.0, freeze='backbone'),),
    'data.augment.cutmix': 1.0,
    'optim.accumulate': 2,
    **SGD,
  }
  run = setup.build(tiny.run_config(**options), tiny.mesh())
  is_mean_of_two_plain_steps(run)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'train.batch_size': 9}, r'mixup=0.2 mixes pairs: --config.train.batch_size=9 is odd'),
    ({'loss.aggregate': 'samples'}, r'mixup=0.2: loss.aggregate needs images of one'),
    (
      {'loss.terms': ('supervised_contrastive',)},
      r'mixup=0.2: supervised_contrastive needs images of one label',
    ),
  ],
)
def test_what_cannot_be_mixed_is_refused(options, message):
  c = tiny.run_config(**{'data.augment.mixup': 0.2, **options})
  with pytest.raises(UserError, match=message):
    mixing.build(c)
  c.data.augment.enabled = False
  assert mixing.build(c) is None


def test_which_methods_a_config_asks_for():
  assert mixing.build(tiny.run_config()) is None
  c = tiny.run_config(**{'data.augment.cutmix': 1.0})
  assert mixing.build(c) == Mixing(None, 1.0)
  c.data.augment.mixup = 0.2
  assert mixing.build(c) == Mixing(0.2, 1.0)
