"""Heat maps of each kind of backbone and head by onnxruntime, against derivatives by jax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from export.test_graph import CARS, MIXED, TAGS, UNEVEN, model_of, moved_variables
from parity import ours

from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.evaluate import explain
from hierjax.export import program
from hierjax.models import heads, initializers, layers, registry
from hierjax.models.backbone import Backbone

RNG = np.random.default_rng(2)


class Bent(layers.Trunk):
  """Maps that a slice, a norm, a convolution over all of them and a ReLU make features of."""

  @nn.compact
  def __call__(self, x, train: bool = False):
    maps = self.perturb('features', layers.Conv(5, 2, 2, 0, name='conv')(x))
    y = layers.LayerNorm(name='norm')(maps)
    y = nn.relu(layers.Conv(6, 2, 2, 0, name='last')(y))
    return jnp.concatenate([y[:, 0, 0], maps[:, 1, 1:].mean(1)], -1), {'features': maps}


class Bare(layers.Trunk):
  """Features alone."""

  @nn.compact
  def __call__(self, x, train: bool = False):
    return x.mean((1, 2))


def model(name, spec, monkeypatch, taxonomy=CARS, **changes):
  """A model of drawn weights."""
  monkeypatch.setitem(registry.BACKBONES.data, name, spec)
  c = config.default()
  for path, value in {'model.backbone': name, **changes}.items():
    config.assign(c, path, value)
  trained = model_of(c, taxonomy)
  variables = initializers.init(trained.classifier, 0)
  trained.variables = moved_variables(variables, np.random.default_rng(0))
  return trained


def check(trained, size, levels):
  """Against the sum of maps, each times the mean slope of the class's logit along it, by NumPy."""
  content = program.maps_model(trained).SerializeToString()
  session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
  images = RNG.integers(0, 256, (3, size, size, 3), np.uint8)
  counts = {level: trained.taxonomy.num_classes(level) for level in levels}
  classes = {level: RNG.integers(0, n, 3).astype(np.int32) for level, n in counts.items()}
  names = [f'map/{level}' for level in levels]
  assert [output.name for output in session.get_outputs()] == names

  def logits(shift):
    perturbed = {**trained.variables, 'perturbations': {'backbone': {'features': shift}}}
    values, _, maps = explain.apply_with_maps(trained.classifier, perturbed, images)
    return jnp.stack([values[level][jnp.arange(3), c] for level, c in classes.items()]), maps

  shape = jax.eval_shape(
    lambda: explain.apply_with_maps(trained.classifier, trained.variables, images)
  )[2].shape
  slopes, maps = jax.jit(jax.jacrev(logits, has_aux=True), compiler_options=ours.QUICK)(
    jnp.zeros(shape)
  )
  slopes, maps = np.asarray(slopes, np.float64), np.asarray(maps, np.float64)
  expected = np.zeros((len(levels), *shape[:3]))
  for k in range(len(levels)):
    for i in range(3):
      for channel in range(shape[3]):
        expected[k, i] += slopes[k, i, i, :, :, channel].mean() * maps[i, :, :, channel]
  expected = np.maximum(expected, 0)
  assert expected.max() > 0
  for n in (1, 3):
    feed = {f'class/{level}': c[:n] for level, c in classes.items()}
    outputs = session.run(names, {'images': images[:n], **feed})
    np.testing.assert_allclose(outputs, expected[:, :n], atol=1e-4 * expected.max())


# A class token, the mean of patches, attention pooling; a norm behind the mean, and before it.
SMALL = (
  'narrow/vit_tiny_patch16_224',
  'small_eva02_base',
  'small_siglip',
  'small_convnextv2',
  'small_swinv2',
)


@pytest.mark.parametrize('name', SMALL)
def test_families(name, monkeypatch):
  """Small members of them."""
  spec = ours.spec(name)
  size = 56 if spec.multiple == 14 else 64
  check(model(name, spec, monkeypatch, **{'data.size': size}), size, CARS.levels)


BENT = Backbone(Bent, 11, (127.0,) * 3, (64.0,) * 3, 4)


@pytest.mark.parametrize(
  ('form', 'taxonomy', 'changes'),
  [(name, CARS, {}) for name in heads.HEADS]
  + [
    ('parallel', MIXED, {'model.neck': 7, 'model.normalize': True}),
    ('parallel', UNEVEN, {'eval.tta': 3}),
    ('parallel', CARS, {'model.parts': (('model', '2', 3),), 'model.dtype': 'bfloat16'}),
  ],
)
def test_heads(form, taxonomy, changes, monkeypatch):
  """All forms, on a backbone that makes much of its maps."""
  options = {'model.heads': form, 'data.size': 4, **changes}
  trained = model('bent', BENT, monkeypatch, taxonomy, **options)
  block = taxonomy.block('exclusive')
  check(trained, 4, [level for level in block.levels if level in trained.levels])


def test_what_has_no_maps_is_refused(monkeypatch):
  """A backbone without them, and tags, which are on no path."""
  bare = Backbone(Bare, 3, (127.0,) * 3, (64.0,) * 3, 4)
  with pytest.raises(UserError, match='--maps: bare returns its features alone, without maps'):
    program.maps_model(model('bare', bare, monkeypatch, **{'data.size': 4}))
  with pytest.raises(UserError, match=r'--maps: .* the data have tags alone'):
    program.maps_model(model('bent', BENT, monkeypatch, TAGS, **{'data.size': 4}))
