"""Grad-CAM against its closed form, the choice of examples, t-SNE, and explain_SPLIT.npz."""

import dataclasses
import functools
import io
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from parity import small
from PIL import Image

import hierjax
from hierjax.core.errors import UserError
from hierjax.data import pipeline, sources
from hierjax.evaluate import example_images, explain
from hierjax.experiments import complete
from hierjax.model import run_config
from hierjax.models import compute, functional, heads, initializers, layers, registry
from hierjax.models.classifier import Classifier
from hierjax.report import page
from hierjax.taxonomy import Taxonomy

TAXONOMY = Taxonomy.from_rows(
  ('make', 'type', 'model'), [(f'make{i % 3}', f'type{i % 2}', f'model{i}') for i in range(8)]
)


def classifier(backbone, mean=127.0, std=64.0):
  classes = tuple((level, TAXONOMY.num_classes(level)) for level in TAXONOMY.levels)
  model = Classifier(
    backbone, heads.Parallel(classes, ((),) * len(classes)), (mean,) * 3, (std,) * 3
  )
  return model, initializers.init(model, 3)


def images(n=5, size=32):
  return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_grad_cam_of_a_linear_head_on_average_pooling_is_the_class_activation_map(dtype):
  model, variables = classifier(tiny.Tiny(compute=compute.Compute(dtype=dtype)))
  x, rng = images(), np.random.default_rng(1)
  classes = {
    level: rng.integers(TAXONOMY.num_classes(level), size=len(x)).astype(np.int32)
    for level in TAXONOMY.levels
  }
  features, maps = jax.jit(functools.partial(explain.grad_cam, model=model))(variables, x, classes)
  expected_features = model.apply(variables, x)[1]
  np.testing.assert_allclose(
    features,
    expected_features,
    rtol=1e-5 if dtype == jnp.float32 else 1e-2,
    atol=1e-6 if dtype == jnp.float32 else 1e-2,
  )
  pixels = ((x.astype(np.float32) - 127) / 64).astype(dtype)
  last = model.backbone.apply({k: v['backbone'] for k, v in variables.items()}, pixels)[1][
    'features'
  ].astype(jnp.float32)
  assert last.shape[1:3] == (4, 4)
  for level, c in classes.items():
    w = variables['params']['heads'][level]['kernel']
    cam = (
      np.einsum('bhwc,cb->bhw', last, w[:, c]) / 16
    )  # the mean over 16 places passes a sixteenth of its slope to each
    np.testing.assert_allclose(
      maps[level],
      np.maximum(cam, 0),
      rtol=1e-4 if dtype == jnp.float32 else 2e-2,
      atol=1e-6 if dtype == jnp.float32 else 2e-3,
    )
    assert (cam < 0).any() and (cam > 0).any()


class Normed(nn.Module):
  """Average pooling, then a norm, as ConvNeXt ends: no closed form by the head's weights alone."""

  @nn.compact
  def __call__(self, x, train: bool = False):
    x = self.perturb('features', nn.relu(layers.Conv(6, 8, 8, 0, name='conv')(x)))
    return layers.LayerNorm(name='norm')(functional.global_pool(x)), {'features': x}


def test_grad_cam_behind_a_norm_is_the_slope_by_finite_differences():
  model, variables = classifier(Normed())
  x = images(2)
  classes = {'model': np.array([1, 6], np.int32)}
  backbone = {k: v['backbone'] for k, v in variables.items()}
  last = np.asarray(
    model.backbone.apply(backbone, (x.astype(np.float32) - 127) / 64)[1]['features'], np.float64
  )
  norm, head = backbone['params']['norm'], variables['params']['heads']['model']

  def logit(maps, b):  # in float64
    pooled = maps.mean((0, 1))
    normed = (pooled - pooled.mean()) / np.sqrt(pooled.var() + 1e-6) * norm['scale'] + norm['bias']
    return normed @ head['kernel'][:, classes['model'][b]] + head['bias'][classes['model'][b]]

  _, maps = explain.grad_cam(variables, x, classes, model)
  logits = model.apply(variables, x)[0]['model']
  for b in range(2):
    np.testing.assert_allclose(logit(last[b], b), logits[b, classes['model'][b]], rtol=1e-4)
    step, slope = 1e-5, np.zeros_like(last[b])
    for place in np.ndindex(*slope.shape):
      moved = np.zeros_like(slope)
      moved[place] = step
      slope[place] = (logit(last[b] + moved, b) - logit(last[b] - moved, b)) / (2 * step)
    expected = np.maximum((slope.mean((0, 1)) * last[b]).sum(-1), 0)
    np.testing.assert_allclose(maps['model'][b], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', ['resnet18', 'convnext_tiny', 'efficientnet_lite0', 'swin_t'])
def test_every_kind_of_backbone_has_maps_to_explain(name):
  classes = tuple((level, TAXONOMY.num_classes(level)) for level in TAXONOMY.levels)
  model = Classifier(
    registry.BACKBONES[name].build(),
    heads.Parallel(classes, ((),) * len(classes)),
    (127.0,) * 3,
    (64.0,) * 3,
  )
  variables = jax.eval_shape(lambda: initializers.init(model, 0))
  assert set(variables) <= {'params', 'batch_stats'}
  # What is not perturbed has no slope, and its maps would be black.
  plain = compute.configured(model, kernels='plain')
  everything = jax.eval_shape(lambda: plain.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
  assert everything['perturbations']['backbone']['features'].shape[:3] == (1, 2, 2)
  labels = {level: jax.ShapeDtypeStruct((2,), np.int32) for level in TAXONOMY.levels}
  features, maps = jax.eval_shape(
    functools.partial(explain.grad_cam, model=model),
    variables,
    jax.ShapeDtypeStruct((2, 64, 64, 3), np.uint8),
    labels,
  )
  assert features.shape == (2, registry.BACKBONES[name].features) and {
    m.shape for m in maps.values()
  } == {(2, 2, 2)}


def test_vit_s_class_token_reads_the_maps_that_are_explained():
  """The patch tokens after the last block would have no slope."""
  model, variables = classifier(small.BACKBONES['small_clip'].build())
  x, classes = images(2, 32), {'model': np.array([1, 6], np.int32)}
  _, maps = jax.jit(functools.partial(explain.grad_cam, model=model))(variables, x, classes)
  assert maps['model'].shape == (2, 2, 2) and (np.asarray(maps['model']).max((1, 2)) > 0).any()
  backbone = {k: v['backbone'] for k, v in variables.items()}
  zeros = jnp.zeros((2, 2, 2, 64))

  def pooled(shift):
    pixels = (x.astype(np.float32) - 127) / 64
    return model.backbone.apply({**backbone, 'perturbations': {'features': shift}}, pixels)[0]

  slope = jax.jit(lambda d: jax.vjp(pooled, zeros)[1](d)[0])(jnp.eye(2, 64))
  assert (np.abs(slope).max((1, 2, 3)) > 1e-3).all()


def test_patterns_are_a_partition_of_what_is_known():
  rng = np.random.default_rng(0)
  right, is_labelled = rng.random((300, 3)) < 0.6, rng.random(300) < 0.9
  groups = example_images.patterns(right, is_labelled)
  assert len(groups) == 8 and [len(rows) for _, rows, _ in groups] == sorted(
    (len(rows) for _, rows, _ in groups), reverse=True
  )
  assert (
    sorted(np.concatenate([rows for _, rows, _ in groups])) == np.flatnonzero(is_labelled).tolist()
  )
  for pattern, rows, examples in groups:
    assert (
      (right[rows] == pattern).all()
      and set(examples) <= set(rows)
      and len(set(examples)) == example_images.IMAGES_PER_PATTERN
    )
  assert example_images.patterns(right, np.zeros(300, bool)) == []
  assert (
    len(example_images.patterns(rng.random((5000, 6)) < 0.5, np.ones(5000, bool)))
    == example_images.PATTERNS
  )


def test_confusions_cost_count_times_height():
  # model0 (make0, type0) is predicted twice as model6 (same make and type: height 1), twice as
  # model1 (height 3), and once as model3 (same make: height 2)
  labels = np.array([0, 0, 0, 0, 0, 0, 6, 6, 6, 1, -1])
  pred = np.array([6, 6, 1, 1, 3, 0, 0, 6, 6, 5, 4])
  prob = np.linspace(0.5, 0.9, len(labels))
  groups = example_images.confusions(pred, prob, labels, TAXONOMY)
  assert [(c.true, c.pred, c.count, c.height, c.total) for c in groups] == [
    (0, 1, 2, 3, 6),
    (0, 6, 2, 1, 6),
    (0, 3, 1, 2, 6),
    (1, 5, 1, 2, 1),
    (6, 0, 1, 1, 3),
  ]  # as costly: the more frequent first
  first = groups[0]
  assert (first.true, first.pred, first.count, first.height, first.total) == (0, 1, 2, 3, 6)
  assert first.mistakes.tolist() == [3, 2] and first.lookalikes.tolist() == [
    9
  ]  # the surest mistake first
  six = next(c for c in groups if c.pred == 6)
  assert six.height == 1 and six.lookalikes.tolist() == [
    7,
    8,
  ]  # those that were recognised come first
  assert all(c.true >= 0 for c in groups) and sum(c.count for c in groups) == 7
  assert example_images.confusions(labels[:3], prob[:3], labels[:3], TAXONOMY) == []


def test_tsne_keeps_clusters_together_and_small_splits_work():
  rng = np.random.default_rng(0)
  cluster = np.repeat([0, 1], 40)
  features = rng.normal(size=(80, 30)) + 20 * cluster[:, None]
  xy = explain.tsne(features)
  assert xy.shape == (80, 2) and xy.dtype == np.float32
  apart = np.linalg.norm(xy[cluster == 0].mean(0) - xy[cluster == 1].mean(0))
  assert apart > 3 * max(xy[cluster == k].std() for k in (0, 1))
  np.testing.assert_array_equal(xy, explain.tsne(features))
  assert explain.tsne(rng.normal(size=(9, 4))).shape == (9, 2)
  for x in (np.zeros((0, 4)), rng.normal(size=(3, 4)), np.ones((20, 4))):
    np.testing.assert_array_equal(explain.tsne(x), np.zeros((len(x), 2)))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A trained run of 40 val images, two of which are gone by the time they are explained."""
  with pytest.MonkeyPatch.context() as patch:
    tiny.register(patch)
    tiny.use_devices(patch)
    workdir = tmp_path_factory.mktemp('run')
    hierjax.fit(tiny.run_config(), workdir)
    yield workdir, hierjax.load(workdir)


def load(workdir):
  with np.load(workdir / 'explain_val.npz', allow_pickle=False) as archive:
    return dict(archive)


def test_fit_leaves_what_the_report_draws(run):
  workdir, model = run
  with np.load(workdir / 'predictions_val.npz') as archive:
    predictions = dict(archive)
  arrays, taxonomy = load(workdir), model.taxonomy
  assert example_images.is_current(workdir, 'val')
  np.testing.assert_array_equal(arrays['rows'], example_images.shown_rows(predictions, taxonomy))
  assert arrays['maps'].shape == (len(arrays['rows']), 3, 4, 4) and arrays['maps'].dtype == np.uint8
  assert (
    set(np.unique(arrays['maps'].max((2, 3)))) <= {0, 255}
    and (arrays['maps'].max((2, 3)) == 255).any()
  )
  np.testing.assert_array_equal(arrays['points'], np.arange(40))
  assert arrays['xy'].shape == (40, 2) and np.isfinite(arrays['xy']).all()
  starts = [0, *arrays['ends'][:-1]]
  val = model.split('val')
  for row, start, end in zip(arrays['rows'], starts, arrays['ends']):
    picture = np.asarray(
      Image.open(io.BytesIO(arrays['jpeg'][start:end].tobytes())).convert('RGB'), float
    )
    original = np.asarray(val.reader(int(row)), float)
    assert max(picture.shape[:2]) <= explain.SIDE
    small = np.asarray(
      Image.fromarray(original.astype(np.uint8)).resize(picture.shape[1::-1], Image.Resampling.BOX),
      float,
    )
    assert np.abs(picture - small).mean() < 12  # it is that image, and not its neighbour
  # the maps are those of each head's first choice
  rows = arrays['rows'][:3]
  views = np.stack([np.asarray(b['image'][0]) for i in rows for b in [one(model, val, int(i))]])
  classes = {level: predictions[f'top_{k}'][rows, 0] for k, level in enumerate(taxonomy.levels)}
  _, maps = explain.grad_cam(jax.device_get(model.variables), views, classes, model.classifier)
  for k, level in enumerate(taxonomy.levels):
    m = np.asarray(maps[level])
    np.testing.assert_allclose(
      arrays['maps'][:3, k], 255 * m / np.maximum(m.max((1, 2), keepdims=True), 1e-12), atol=1
    )


def one(model, examples, i):
  single = sources.Examples(
    'one', [examples.files[i]], examples.labels[i : i + 1], lambda _: examples.reader(i)
  )
  return next(
    iter(
      pipeline.eval_batches(
        single, batch_size=1, size=model.c.data.size, resize=model.c.data.resize
      )
    )
  )


def test_images_that_are_gone_are_left_out(run):
  workdir, model = run
  before, val = load(workdir), model.split('val')
  lost = before['rows'][:2]

  def reader(i):
    if i in lost:
      raise FileNotFoundError(val.files[i])
    return val.reader(i)

  model.explain('val', examples=dataclasses.replace(val, reader=reader))
  after = load(workdir)
  np.testing.assert_array_equal(after['rows'], before['rows'][2:])
  np.testing.assert_array_equal(after['maps'], before['maps'][2:])
  assert not set(lost) & set(after['points']) and len(after['points']) == 38
  with pytest.raises(
    UserError, match=r'toy/val/00000: is in predictions_val\.npz but no longer in split'
  ):
    model.explain('val', examples=sources.subset(val, range(1, len(val.files))))


def test_an_explanation_of_other_predictions_is_not_current(run, tmp_path):
  workdir, _ = run
  for name in ('predictions_val.npz', 'explain_val.npz'):
    (tmp_path / name).write_bytes((workdir / name).read_bytes())
  assert example_images.is_current(tmp_path, 'val') and not example_images.is_current(
    tmp_path, 'test'
  )
  content = (workdir / 'explain_val.npz').read_bytes()
  (tmp_path / 'explain_val.npz').write_bytes(content[: len(content) // 2])
  assert not example_images.is_current(tmp_path, 'val')
  (tmp_path / 'explain_val.npz').write_bytes(content)
  with np.load(workdir / 'predictions_val.npz') as archive:
    np.savez_compressed(
      tmp_path / 'predictions_val.npz', **dict(archive, prob_joint=archive['prob_joint'] / 2)
    )
  assert not example_images.is_current(tmp_path, 'val')


def test_complete_makes_what_the_report_lacks_and_nothing_twice(run, tmp_path, monkeypatch):
  workdir, _ = run
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)
  shutil.copytree(workdir, tmp_path / 'run')
  path, c = tmp_path / 'run', run_config(workdir)
  contents = {
    name: (path / name).read_bytes()
    for name in ('eval_val.json', 'predictions_val.npz', 'decode.json')
  }
  for name in (*contents, 'explain_val.npz'):
    (path / name).unlink()
  complete.complete(path, c)
  assert {
    name: (path / name).read_bytes() for name in contents
  } == contents  # as training left them, the joint weights too
  assert example_images.is_current(path, 'val')
  monkeypatch.setattr('hierjax.model.load', lambda *_: pytest.fail('all was there'))
  complete.complete(path, c)
  text = page.write(path).read_text(encoding='utf-8')
  assert 'class="case"' in text and 'class="points"' in text and 'could not be made' not in text


def test_complete_remakes_predictions_of_before(run, tmp_path, monkeypatch):
  """Those that lack the heads' first choices, and those that are damaged."""
  workdir, _ = run
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)
  shutil.copytree(workdir, tmp_path / 'run')
  file = tmp_path / 'run' / 'predictions_val.npz'
  content = file.read_bytes()
  with np.load(file) as archive:
    old = {key: archive[key] for key in archive.files if not key.startswith('top_')}
  np.savez_compressed(file, **old)
  complete.complete(tmp_path / 'run', run_config(workdir))
  assert file.read_bytes() == content and example_images.is_current(tmp_path / 'run', 'val')
  file.write_bytes(content[:200])
  complete.complete(tmp_path / 'run', run_config(workdir))
  assert file.read_bytes() == content and example_images.is_current(tmp_path / 'run', 'val')


def test_other_processes_explain_nothing(run, tmp_path, monkeypatch):
  _, model = run
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  monkeypatch.setattr(model, 'workdir', tmp_path)
  model.explain('val')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('resize', ['crop', 'pad', 'squash'])
def test_pictures_show_what_the_model_sees(run, tmp_path, monkeypatch, resize):
  workdir, _ = run
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)
  shutil.copytree(workdir, tmp_path / 'run')
  c = run_config(tmp_path / 'run')
  c.data.resize = resize
  model = hierjax.load(tmp_path / 'run', c)
  model.evaluate('val')
  model.explain('val')
  arrays, val = load(tmp_path / 'run'), model.split('val')
  picture = np.asarray(Image.open(io.BytesIO(arrays['jpeg'][: arrays['ends'][0]].tobytes())))
  h, w = val.reader(int(arrays['rows'][0])).shape[:2]
  assert w > h
  if resize == 'squash':  # the whole image, not squashed
    assert picture.shape[:2] == (h, w)
  else:
    assert picture.shape[:2] == (explain.SIDE, explain.SIDE)
    assert (np.abs(picture[:8].astype(int) - 127).max() <= 3) == (
      resize == 'pad'
    )  # the grey above a padded image
