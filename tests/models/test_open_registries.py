"""Backbones and heads that a user registers: plain Flax modules with plain Flax initialisers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hierjax.core import parallel
from hierjax.core.errors import UserError
from hierjax.evaluate import explain
from hierjax.models import classifier, heads, initializers, layers, registry
from hierjax.taxonomy import Taxonomy
from hierjax.train import optim, setup, step

TREE = Taxonomy.from_rows(['kind', 'animal'], [['bird', 'heron'], ['bird', 'owl'], ['fish', 'eel']])


class Plain(nn.Module):
  """A backbone of Flax's own layers."""

  width: int = 12

  @nn.compact
  def __call__(self, x, train: bool = False):
    x = nn.Conv(self.width, (4, 4), 4)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
    return nn.Dense(self.width)(x.mean((1, 2)))


class PlainHeads(nn.Module):
  """Heads of Flax's own layers."""

  classes: tuple[tuple[str, int], ...]

  @nn.compact
  def __call__(self, features, train: bool):
    return {level: nn.Dense(n, name=level)(features) for level, n in self.classes}


@pytest.fixture
def plain(monkeypatch):
  """Register both as 'plain' for the time of a test."""
  for entries in (registry.BACKBONES, heads.HEADS):
    monkeypatch.setattr(entries, 'data', dict(entries.data))
  registry.register_backbone('plain', Plain, 12, size=32)
  heads.register_head('plain', PlainHeads)
  return {'model.backbone': 'plain', 'model.heads': 'plain'}


def build(changes):
  return classifier.build(tiny.run_config(**changes), TREE, TREE.levels)


def test_a_plain_module_is_drawn_as_flax_draws_it(plain):
  model = build(plain)
  a, b, c = (initializers.init(model, seed, np.zeros((1, 32, 32, 3))) for seed in (0, 0, 1))
  assert jax.tree.all(jax.tree.map(np.array_equal, a, b))
  key = jax.random.key(0)
  flax = model.init({'params': key, 'dropout': key}, np.zeros((1, 32, 32, 3)))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, flax)
  kernels = [t['params']['backbone']['Conv_0']['kernel'] for t in (a, c)]
  assert not np.array_equal(*kernels)


def test_layers_draw_the_same_beside_a_plain_module(plain):
  """A plain backbone does not change what hierjax's heads are drawn as."""
  ours = build({'model.backbone': 'plain'})
  alone = initializers.init(ours.heads, 3, np.zeros((1, 12), 'f4'), False)
  both = initializers.init(ours, 3, np.zeros((1, 32, 32, 3)))
  assert jax.tree.all(jax.tree.map(np.array_equal, alone['params'], both['params']['heads']))


def test_layers_within_a_scan_are_drawn_apart():
  """A lifted transformation takes its parameters from Flax: numpy's would all be the same."""

  class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
      def body(layer, x):
        return layer(x), None

      scan = nn.scan(body, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)
      return scan(layers.Dense(4), x)[0]

  kernel = initializers.init(Stack(), 0, np.zeros((1, 4), 'f4'))['params']['Dense_0']['kernel']
  assert kernel.shape == (3, 4, 4) and not np.allclose(kernel[0], kernel[1])


@pytest.mark.usefixtures('no_compilation_cache')
def test_plain_modules_train_alike_on_one_device_and_on_eight(plain):
  """Flax's batch norms have the moments of the whole batch too."""

  def first_step(devices):
    mesh = parallel.mesh(devices=devices)
    run = setup.build(tiny.run_config(**plain, **{'optim.name': 'sgd'}), mesh)
    task = run.task
    rows, sizes = np.random.default_rng(0), map(run.taxonomy.num_classes, run.levels)
    batch = {
      'image': rows.integers(0, 256, (16, 32, 32, 3), np.uint8),
      'labels': np.stack([rows.integers(0, n, 16) for n in sizes], 1).astype('i4'),
    }
    tx = optim.transformation(run.c, task.labels)
    update = step.stepper(task, run.phases[0], tx, mesh)
    state, metrics = update(setup.initial_state(run), parallel.put_train(batch, {}, mesh), {})
    return jax.device_get((state.params, state.batch_stats, metrics))

  one, eight = first_step(jax.devices()[:1]), first_step(jax.devices())
  assert one[1]['backbone']['BatchNorm_0']['mean'].any()
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_backbone_without_maps_has_empty_heat_maps(plain):
  model = build(plain)
  variables = initializers.init(model, 0, np.zeros((1, 32, 32, 3)))
  images, classes = np.zeros((2, 32, 32, 3), np.uint8), {'animal': jnp.zeros(2, jnp.int32)}
  features, maps = explain.grad_cam(variables, images, classes, model)
  assert features.shape == (2, 12) and (np.asarray(maps['animal']) == np.zeros((2, 1, 1))).all()


def test_a_backbone_is_given_what_it_takes(plain):
  class Taking(nn.Module):
    dtype: type = jnp.float32
    batch_axis: str | None = None

    @nn.compact
    def __call__(self, x, train: bool = False):
      return nn.Dense(3, dtype=self.dtype)(x.mean((1, 2)))

  registry.register_backbone('taking', Taking, 3)
  model = build({'model.backbone': 'taking', 'model.dtype': 'bfloat16'})
  assert model.backbone.dtype == jnp.bfloat16 and model.backbone.batch_axis is None
  assert build(plain).backbone == Plain()


def test_names_are_taken_once_and_options_must_be_read(plain):
  with pytest.raises(UserError, match="backbone 'resnet50' is registered already"):
    registry.register_backbone('resnet50', Plain, 12)
  with pytest.raises(UserError, match="heads 'flat' is registered already"):
    heads.register_head('flat', PlainHeads)
  with pytest.raises(UserError, match=r'model\.dropout is not an option of .*heads=plain'):
    build({**plain, 'model.dropout': 0.5})
  with pytest.raises(UserError, match=r'head\.width=7 is only valid with .*, not with plain'):
    build({**plain, 'model.head.width': 7})
  with pytest.raises(UserError, match='plain has no names of weight files'):
    setup.build(tiny.run_config(**plain, **{'model.pretrained': 'weights.safetensors'}))
