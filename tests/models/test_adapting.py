"""Low-rank updates, frozen parameters and layer-wise decay of the learning rate."""

import dataclasses
import functools
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util
from parity import ours

from hierjax import model, runtime
from hierjax.core import config, parallel
from hierjax.core.errors import UserError
from hierjax.evaluate import collect
from hierjax.experiments import workdir
from hierjax.export import artefact
from hierjax.models import adapting, initializers, layers, registry
from hierjax.models.backbone import Backbone
from hierjax.models.compute import Compute
from hierjax.train import checkpoint, optim, setup
from hierjax.train.state import to_parts
from hierjax.train.step import stepper

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'layer_decay.json'
TIMM_DEPTHS = json.loads(GOLDEN.read_text())


class Adaptable(layers.Trunk):
  """A convolution with batch norm, and a residual MLP."""

  drop_path: float = 0.0

  @nn.compact
  def __call__(self, x, train: bool = False):
    x = layers.Conv(8, 8, 8, compute=self.compute, name='stem_0')(x)
    x = layers.BatchNorm('relu', compute=self.compute, name='stem_1')(x, train)
    x = self.remat(Mlp)(self.drop_path, compute=self.compute, name='blocks_0')(x, train)
    x = self.perturb('features', x)
    return x.mean((1, 2)), {'features': x}


class Mlp(layers.Layer):
  drop: float

  @nn.compact
  def __call__(self, x, train):
    y = layers.mlp(x, self.compute)
    return x + layers.StochasticDepth(self.drop, compute=self.compute)(y, train)


@pytest.fixture
def adaptable(monkeypatch, one_device):
  spec = Backbone(Adaptable, 8, size=32)
  monkeypatch.setitem(registry.BACKBONES.data, 'adaptable', spec)


def lora_config(**changes):
  values = {'model.backbone': 'adaptable', 'model.lora_rank': 2, 'model.lora_alpha': 6.0}
  return tiny.run_config(**{**values, **changes})


def has_updates(variables):
  return any(path[-1] in adapting.UPDATE for path in traverse_util.flatten_dict(variables))


def with_random_updates(variables, seed=0):
  """The updates begin as 0: others."""
  rng = np.random.default_rng(seed)
  flat = traverse_util.flatten_dict(variables)
  for path, x in flat.items():
    if path[-1] == 'lora_b':
      flat[path] = np.float32(rng.normal(size=x.shape, scale=0.1))
  return traverse_util.unflatten_dict(flat)


def test_a_dense_layer_is_one_with_the_kernel_and_the_update():
  rng = np.random.default_rng(0)
  x = np.float32(rng.normal(size=(4, 3, 5)))
  layer = layers.Dense(7, compute=Compute(lora=(2, 1.5)))
  variables = with_random_updates(initializers.init(layer, 0, x))
  p = {name: np.float64(value) for name, value in variables['params'].items()}
  expected = x @ (p['kernel'] + 1.5 * p['lora_a'] @ p['lora_b']) + p['bias']
  np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['small_eva02_base', 'small_convnextv2'])
def test_trunks_equal_those_with_merged_kernels(name):
  spec = ours.spec(name)
  side = 2 * spec.multiple
  x = np.float32(np.random.default_rng(1).normal(size=(2, side, side, 3)))
  with_updates = spec.build(Compute(lora=(3, 0.5), kernels='plain'))
  initial = initializers.init(with_updates, 0, x)
  variables = with_random_updates(initial)
  plain = jax.jit(spec.build(Compute(kernels='plain')).apply)
  expected = plain(adapting.merge(variables, 0.5), x)[0]
  without = plain(adapting.merge(initial, 0.5), x)[0]
  features, scale = jax.jit(with_updates.apply)(variables, x)[0], np.abs(expected).max()
  assert np.abs(features - expected).max() < 1e-5 * scale
  assert np.abs(features - without).max() > 1e-2 * scale


def test_a_run_trains_the_updates_and_heads_alone_and_predicts_merged(adaptable, tmp_path):
  """The trunk stays bit for bit, has no optimiser state, and its running statistics stay."""
  run = setup.build(lora_config(**{'optim.ema': 0.5}))
  initial = traverse_util.flatten_dict(run.variables['params'])
  trained = set(optim.trained(run.task.labels, ()))
  assert trained == {p for p in initial if p[0] == 'heads' or p[-1] in adapting.UPDATE}
  state = setup.initial_state(run)
  size = sum(initial[path].size for path in trained)
  moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
  assert moments == 2 * size < 2 * run.num_params
  step = stepper(run.task, run.phases[0], optim.transformation(run.c, run.task.labels), run.mesh)
  for batch in setup.batches(run, run.train, 0, 2):
    state, _ = step(state, parallel.put_train(batch, {}, run.mesh), {})
  after = traverse_util.flatten_dict(jax.device_get(state.params))
  for path, x in initial.items():
    assert np.array_equal(after[path], x) == (path not in trained), path
  jax.tree.map(np.testing.assert_array_equal, state.batch_stats, run.variables['batch_stats'])
  workdir.prepare(tmp_path, run)
  store = checkpoint.Checkpoints(tmp_path / 'checkpoints', run.best, writes=True)
  store.save(2, to_parts(state), None)
  store.wait()
  store.close()
  loaded = model.load(tmp_path)
  assert loaded.c.model.lora_rank is None and not has_updates(loaded.variables)
  images = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), np.uint8)
  logits = jax.jit(run.task.model.apply)(state.ema, images)[0]
  merged = jax.jit(loaded.classifier.apply)(loaded.variables, images)[0]
  for level in logits:
    np.testing.assert_allclose(merged[level], logits[level], rtol=1e-4, atol=1e-5)


def test_the_evaluation_is_the_same_unmerged_merged_and_exported(adaptable, tmp_path):
  run = setup.build(lora_config())
  changed = {**run.variables, 'params': with_random_updates(run.variables['params'])}
  (tmp_path / 'run').mkdir()
  state = setup.initial_state(run).replace(params=changed['params'])
  workdir.save_untrained(tmp_path / 'run', run, state)
  merged = model.load(tmp_path / 'run')
  artefact.export(merged, tmp_path / 'artefact', print)
  exported = runtime.load(tmp_path / 'artefact')
  step = jax.jit(functools.partial(collect.eval_step, model=run.task.model, taxonomy=run.taxonomy))
  unmerged, unchanged = (
    collect.collect(step, variables, run.val, run.c, run.mesh)
    for variables in (changed, run.variables)
  )
  images = [run.val.reader(i) for i in unmerged.index]
  answers = dataclasses.replace(unmerged, probs=exported.probabilities(images))
  expected = rounded(merged.evaluate('val', run.val))
  for outputs in (unmerged, answers):
    assert rounded(merged.evaluate('val', run.val, outputs=outputs)) == expected
  assert rounded(merged.evaluate('val', run.val, outputs=unchanged)) != expected


def rounded(tree) -> str:
  """The JSON of a tree, with four digits after the point."""
  return json.dumps(jax.tree.map(lambda x: round(x, 4) if isinstance(x, float) else x, tree))


def test_updates_begin_without_effect_and_are_carried_over(adaptable):
  run, plain = setup.build(lora_config()), setup.build(lora_config(**{'model.lora_rank': None}))
  carried = adapting.with_updates(plain.variables, run.variables)
  assert jax.tree.map(np.shape, carried) == jax.tree.map(np.shape, dict(run.variables))
  images = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), np.uint8)
  logits = jax.jit(run.task.model.apply)(carried, images)[0]
  expected = jax.jit(plain.task.model.apply)(plain.variables, images)[0]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), logits, expected)


def test_norms_are_frozen_where_asked(adaptable):
  images = jnp.asarray(np.random.default_rng(2).integers(0, 256, (4, 32, 32, 3), np.uint8))
  for frozen in (False, True):
    c = lora_config(**{'model.lora_rank': None, 'model.frozen_norm': frozen})
    run = setup.build(c)
    apply = functools.partial(run.task.model.apply, method='features')
    train = jax.jit(functools.partial(apply, train=True, mutable=['batch_stats']))
    out, updated = train(run.variables, images)
    before = traverse_util.flatten_dict(run.variables['batch_stats'])
    after = traverse_util.flatten_dict(updated['batch_stats'])
    assert all(np.array_equal(after[p], x) for p, x in before.items()) == frozen
    expected = jax.jit(apply)(run.variables, images)
    assert np.allclose(out, expected, rtol=1e-5) == frozen


def test_what_does_not_go_is_said(adaptable, monkeypatch):
  with pytest.raises(UserError, match='lora_rank: tiny has no dense layers'):
    tiny.register(monkeypatch)
    setup.build(tiny.run_config(**{'model.lora_rank': 2}))
  with pytest.raises(UserError, match='drop_path: is for backbones with stochastic depth; tiny'):
    setup.build(tiny.run_config(**{'model.drop_path': 0.2}))
  with pytest.raises(UserError, match='layer_decay: the backbone has no blocks with numbers'):
    setup.build(tiny.run_config(**{'optim.layer_decay': 0.7}))


def test_drop_path_reaches_the_trunk(adaptable):
  c = lora_config(**{'model.drop_path': 0.25})
  assert setup.build(c).task.model.backbone.drop_path == 0.25


@pytest.mark.parametrize('name', TIMM_DEPTHS)
def test_depths_are_timms(name):
  entries = ours.torch_entries(name, 'timm')
  params = ours.shapes(name)['params']
  units = {}
  for path, depth in adapting.depths({'backbone': params}).items():
    units.setdefault(depth, []).append(entries[('params', *path[1:])][0])
  classifier_names = ('head.weight', 'head.bias', 'head.fc.weight', 'head.fc.bias')
  classifier_names += ('fc.weight', 'fc.bias', 'classifier.weight', 'classifier.bias')
  for depth, expected in enumerate(TIMM_DEPTHS[name]):
    expected = [n for n in expected if n not in classifier_names]
    assert sorted(units.get(depth, [])) == expected, depth


def test_layer_decay_multiplies_the_updates():
  """Of plain gradient descent the update is the gradient: what is left are the factors."""
  c = config.default()
  c.optim.name, c.optim.momentum, c.optim.weight_decay = 'sgd', 0.0, 0.0
  c.optim.layer_decay, c.optim.heads_lr = 0.5, 3.0
  c.optim.rules = (('.*blocks_1/bias', 0.0, 0.0), ('.*/bias', 10.0, 0.0), ('.*', 1.0, 0.0))
  leaves = {'kernel': jnp.ones(2), 'bias': jnp.ones(2)}
  names = ('stem', 'blocks_0', 'blocks_1', 'norm', 'fc_norm')
  params = {'backbone': dict.fromkeys(names, leaves), 'neck': leaves, 'heads': {'a#b#1': leaves}}
  tx = optim.transformation(c, optim.labels(params, optim.rules(c), c.optim.layer_decay))
  updates, _ = tx.update(params, tx.init(params), params)
  factors = jax.tree.map(lambda x: float(x[0]), updates)
  expected = {'stem': 0.125, 'blocks_0': 0.25, 'blocks_1': 0.5, 'norm': 0.5, 'fc_norm': 1.0}
  assert {n: factors['backbone'][n]['kernel'] for n in names} == expected
  biases = {n: 10 * x for n, x in expected.items()} | {'blocks_1': 0.0}
  assert {n: factors['backbone'][n]['bias'] for n in names} == biases
  assert factors['neck'] == {'kernel': 1.0, 'bias': 10.0}
  assert factors['heads'] == {'a#b#1': {'kernel': 3.0, 'bias': 30.0}}


def test_a_parameter_that_no_rule_trains_has_no_gradient(adaptable):
  c = lora_config(**{'model.lora_rank': None})
  c.optim.rules = (('backbone/stem.*', 0.0, 0.0), ('.*', 1.0, 0.0))
  run = setup.build(c)
  assert not any(p[1].startswith('stem') for p in optim.trained(run.task.labels, ()))
  assert ('backbone', 'blocks_0', 'fc1', 'kernel') in optim.trained(run.task.labels, ())
