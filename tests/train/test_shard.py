"""What devices share out: parts of the state (train.shard), classes (train.class_devices)."""

import json
import re

import jax
import numpy as np
import pytest
import tiny

from hierjax import model
from hierjax.core import parallel
from hierjax.core.errors import UserError
from hierjax.experiments import fit
from hierjax.models import initializers
from hierjax.train import checkpoint, optim, reduction, setup
from hierjax.train.state import from_parts, shardings, to_parts
from hierjax.train.step import stepper

ALL = (parallel.CLASS_AXIS, parallel.AXIS)
OPTIONS = {'optim.clip': 0.5, 'optim.ema': 0.5, 'optim.schedule': 'constant', 'train.steps': 4}


@pytest.fixture(autouse=True)
def small_arrays(monkeypatch):
  """Even the arrays of the tiny network are shared out."""
  monkeypatch.setattr(parallel, 'MIN_SHARED_OUT', 16)
  tiny.register(monkeypatch)


pytestmark = pytest.mark.usefixtures('no_compilation_cache')


def prepare(shard, devices, class_devices=None, **options):
  """The setup, its state and the compiled step."""
  c = tiny.run_config(**OPTIONS, **{'train.shard': shard}, **options)
  run = setup.build(c, tiny.mesh(devices, class_devices))
  state = setup.initial_state(run)
  placed = shardings(state, run.mesh, c.train.shard)
  tx = optim.transformation(c, run.task.labels)
  return run, state, stepper(run.task, run.phases[0], tx, run.mesh, placed)


def share(tree):
  """The share of the values of a tree that the first device holds."""
  leaves = jax.tree.leaves(tree)
  return sum(x.addressable_shards[0].data.size for x in leaves) / sum(x.size for x in leaves)


@pytest.mark.parametrize('shard', ['optimizer', 'all'])
def test_eight_devices_that_share_out_equal_one(shard):
  results = {}
  for devices, parts in ((1, None), (8, shard)):
    run, state, step = prepare(parts, devices)
    for batch in setup.batches(run, run.train, 0, 4):
      state, _ = step(state, parallel.put_train(batch, {'stop': False}, run.mesh), {})
    results[devices] = state
  eight = results[8]
  assert share(eight.opt_state) < 0.3 and share(eight.ema) < 0.3
  assert share(eight.params) < 0.3 if shard == 'all' else share(eight.params) == 1
  for one, other in zip(jax.tree.leaves(results[1]), jax.tree.leaves(eight), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def trained(*placing, **options):
  """The state, metrics and compiled text of four steps."""
  run, state, step = prepare(*placing, **options)
  text = ''
  for batch in setup.batches(run, run.train, 0, 4):
    batch = parallel.put_train(batch, {'stop': False}, run.mesh)
    text = text or step.lower(state, batch, {}).compile().as_text()
    state, metrics = step(state, batch, {})
  return state, metrics, text


def gathered(text):
  """The shapes that a compiled program gathers from the devices."""
  return {*re.findall(r'f32\[([\d,]+)\]\S* all-gather', text)}


def test_the_optimizer_s_parts_are_gathered():
  """So that `gathered` finds what the next test must not find."""
  assert '16,72' in gathered(trained('optimizer', 8, **{'data.toy.versions': 4})[2])


@pytest.mark.parametrize(
  ('placing', 'options'),
  [
    ((None, 8, 8), {}),
    ((None, 8, 2), {'loss.smoothing': 0.1, 'optim.accumulate': 2}),
    (('optimizer', 8, 4), {'model.heads': 'path_sum'}),
    (('all', 8, 4), {'model.heads': 'prototypes', 'balance.name': 'mgda'}),
    ((None, 4, 4), {'model.heads': 'cascaded', 'data.augment.cutmix': 1.0}),
    ((None, 4, 2), {'model.heads': 'marginal', 'balance.name': 'pcgrad', 'balance.at': 'weights'}),
  ],
)
def test_devices_that_share_out_the_classes_equal_one(placing, options):
  """Each holds its part of the 72 models' head, which no device gathers."""
  # Adam's first steps would turn the rounding of a gradient near 0 into a step of its own
  options = {'data.toy.versions': 4, 'optim.name': 'sgd', **options}
  one, expected, _ = trained(None, 1, **options)
  state, metrics, text = trained(*placing, **options)
  for name in expected:
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
  for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(state), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
  large = [x for x in jax.tree.leaves(state.params['heads']) if x.ndim == 2 and 72 in x.shape]
  shard, _, class_devices = placing
  assert large and share(large) == 1 / (8 if shard == 'all' else class_devices)
  assert not {','.join(map(str, x.shape)) for x in large} & gathered(text)


def test_a_teacher_of_split_classes():
  """Distillation on devices that share out the classes is that on one."""
  options = {'data.toy.versions': 4, 'optim.name': 'sgd', 'loss.terms': 'distill'}
  options['loss.weights'] = 'distill=30'
  states = []
  for devices, class_devices in ((1, None), (4, 2)):
    run, state, step = prepare(None, devices, class_devices, **options)
    other = initializers.init(run.task.model, 1, np.zeros((1, 32, 32, 3), np.float32))
    teacher = {'variables': dict(jax.device_get(other))}
    teacher['known'] = {
      level: np.arange(run.taxonomy.num_classes(level)) % 3 > 0 for level in run.levels
    }
    (batch,) = setup.batches(run, run.train, 0, 1)
    batch = parallel.put_train(batch, {'stop': False}, run.mesh)
    states.append(step(state, batch, parallel.put_replicated(teacher, run.mesh))[0])
  for x, y in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_the_devices_must_be_a_multiple_of_those_that_share_out_the_classes(monkeypatch):
  tiny.use_devices(monkeypatch, 8)
  with pytest.raises(UserError, match='class_devices=3: the number of devices, 8, must be a mult'):
    setup.build(tiny.run_config(**{'train.class_devices': 3}))


def test_bytes_of_a_device_in_the_compiled_step():
  """Of the state's bytes a device has an eighth, but for what cannot be cut."""
  sizes = {}
  for shard in (None, 'optimizer', 'all'):
    run, state, step = prepare(shard, 8)
    batch = next(iter(setup.batches(run, run.train, 0, 1)))
    batch = parallel.put_train(batch, {'stop': False}, run.mesh)
    inputs = step.lower(state, batch, {}).compile().memory_analysis().argument_size_in_bytes
    sizes[shard] = inputs - sum(x.nbytes // 8 for x in jax.tree.leaves(batch))
    total = sum(x.nbytes for x in jax.tree.leaves(state))
  assert sizes[None] == pytest.approx(total, rel=0.02)
  assert sizes['optimizer'] < 0.5 * total and sizes['all'] < 0.3 * total


def test_a_shared_out_state_goes_on_with_another_number_of_devices(tmp_path):
  """Its digest is that of the whole arrays, and the restored ones lie as the new mesh says."""
  run, state, step = prepare('all', 8)
  batch = next(iter(setup.batches(run, run.train, 0, 1)))
  state, _ = step(state, parallel.put_train(batch, {'stop': False}, run.mesh), {})
  store = checkpoint.Checkpoints(tmp_path / 'checkpoints', run.best, writes=True)
  store.save(1, to_parts(state), None)
  store.wait()
  for devices, shard in ((1, None), (4, 'optimizer')):
    like = prepare(shard, devices)[1]
    loaded = from_parts(like, store.load_latest(to_parts(like)).parts)
    assert checkpoint.sha256(loaded) == checkpoint.sha256(state)
    assert share(loaded.opt_state) == pytest.approx(share(like.opt_state)), shard
  store.close()


def test_training_and_evaluation_are_the_same(tmp_path):
  """A whole run: log, evaluation, checkpoint, prediction."""
  placings = {'one': {}, 'other': {'train.shard': 'all', 'train.class_devices': 2}}
  results = [
    fit.fit(tiny.run_config(**OPTIONS, **placing, **{'data.toy.versions': 4}), tmp_path / name)
    for name, placing in placings.items()
  ]
  values = [
    [json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
    for name in placings
  ]
  for one, other in zip(*values, strict=True):
    for name in {'loss', 'grad_norm', 'top1/model'} & one.keys():
      assert one[name] == pytest.approx(other[name], rel=1e-4)
  reloaded = model.load(tmp_path / 'other').evaluate('val')
  assert reloaded['n'] == results[1]['n'] and reloaded['decode'] == results[1]['decode']
  # it goes on, here to nothing more, on devices that share out nothing
  c = tiny.run_config(**OPTIONS, **{'data.toy.versions': 4})
  assert fit.fit(c, tmp_path / 'other')['decode'] == results[1]['decode']


@pytest.mark.parametrize(
  ('shape', 'spec'),
  [((16,), (ALL,)), ((6, 16), (None, ALL)), ((24, 16), (ALL,)), ((7, 9), ()), ((8,), ())],
)
def test_the_axis_that_is_cut(shape, spec):
  """The longest that 8 devices divide; of 8 values each would hold one, so they stay together."""
  assert tuple(parallel.shared_out(shape, tiny.mesh(8, 2)).spec) == spec


def test_auto_shares_out_from_a_size_on(monkeypatch):
  run, state, _ = prepare('auto', 8)
  assert share(state.opt_state) == 1
  size = sum(x.nbytes for x in jax.tree.leaves((state.opt_state, state.ema)))
  for least, is_cut in ((size, True), (size + 1, False)):
    monkeypatch.setattr('hierjax.train.state.AUTO_BYTES', least)
    placed = shardings(state, run.mesh, 'auto')
    assert any(x.spec for x in jax.tree.leaves(placed.opt_state)) == is_cut
    assert not any(x.spec for x in jax.tree.leaves(placed.params))


def reduced(monkeypatch, least):
  """The state after a step with buckets of so many bytes; sizes of the vectors that it reduces."""
  monkeypatch.setattr(reduction, 'BUCKET_BYTES', least)
  run, state, step = prepare(None, 8)
  (batch,) = setup.batches(run, run.train, 0, 1)
  batch = parallel.put_train(batch, {'stop': False}, run.mesh)
  text = step.lower(state, batch, {}).as_text()
  sizes = re.findall(r'all_reduce.*?\(tensor<(\d+)xf32>\) -> tensor<', text, re.DOTALL)
  return step(state, batch, {})[0], [
    int(size) for size in sizes if int(size) > 50
  ]  # others are of batch norms


def test_gradients_are_reduced_in_buckets(monkeypatch):
  """As on accelerators; together the buckets hold all values once, and the step is the same."""
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(reduction, 'BUCKET_BYTES', 2000)
  buckets = reduction.buckets({0: 1900, 1: 50, 2: 1999, 4: 1, 5: 3000})
  assert buckets == [[5], [4, 2], [1, 0]]
  one, (vector,) = reduced(monkeypatch, 1 << 25)
  others, vectors = reduced(monkeypatch, 2000)
  assert len(vectors) > 2 and sum(vectors) == vector > sum(
    x.size for x in jax.tree.leaves(one.params)
  )
  for x, y in zip(*map(jax.tree.leaves, (one, others)), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
  monkeypatch.undo()
  assert reduction.buckets({0: 1 << 30, 1: 1 << 30}) == [[1, 0]]
