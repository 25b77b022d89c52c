"""What an artefact holds beside its predictions: heat maps, and similar training images."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import safetensors.numpy

from hierjax import model, runtime
from hierjax.evaluate import class_maps, explain
from hierjax.export import artefact


@pytest.fixture(scope='module')
def loaded(exported) -> runtime.Exported:
  """The artefact."""
  return runtime.load(exported)


@pytest.fixture
def trained(finished_run, tiny_backbone, one_device) -> model.Model:
  """The run of the artefact."""
  return model.load(finished_run)


def pixels(n: int, size: int = 32) -> np.ndarray:
  """Draw images."""
  return np.random.default_rng(7).integers(0, 256, (n, size, size, 3), np.uint8)


def test_heat_maps_are_the_grad_cam_of_the_run(loaded, trained):
  """Of the path's class at each level; also where only some classes are possible."""
  images, table = pixels(5), trained.taxonomy
  grad_cam = jax.jit(functools.partial(explain.grad_cam, model=trained.classifier))
  for exported in (loaded, loaded.within(table.names[0][:2])):
    records = exported.explaining(maps=True).predict(images)
    classes = {
      level: np.array([table.names[k].index(r['path'][level]) for r in records], np.int32)
      for k, level in enumerate(table.levels)
    }
    _, expected = grad_cam(trained.variables, images, classes)
    for level, cams in expected.items():
      maps = np.array([record['maps'][level] for record in records])
      assert maps.dtype.kind == 'i' and maps.max() == 255
      assert np.abs(maps - class_maps.as_bytes(np.asarray(cams))).max() <= 1
  assert 'maps' not in loaded.predict(images[:1])[0]


def test_heat_maps_are_those_that_the_report_shows(loaded, trained, finished_run):
  """explain_val.npz, where the path has the head's first choice."""
  arrays = np.load(finished_run / 'explain_val.npz')
  files = np.load(finished_run / 'predictions_val.npz')['files'].tolist()
  val, table = trained.split('val'), trained.taxonomy
  images = [val.reader([*val.files].index(files[row])) for row in arrays['rows']]
  compared = 0
  for i, record in enumerate(loaded.explaining(maps=True).predict(images)):
    for k, level in enumerate(table.levels):
      if record['top'][level][0][0] == record['path'][level]:
        compared += 1
        assert np.abs(np.array(record['maps'][level]) - arrays['maps'][i, k]).max() <= 1
  assert compared > 20


def test_where_weighted_features_are_no_grad_cam_the_artefact_has_no_maps(
  trained, tmp_path, monkeypatch
):
  """As behind features of length 1; hierjax.json says so, and the graph has no such output."""
  monkeypatch.setattr(artefact.program, 'stablehlo', lambda trained: b'')
  trained.classifier = dataclasses.replace(trained.classifier, normalize=True)
  trained._heads_step = jax.jit(lambda v, x: trained.classifier.apply(v, x)[0])
  messages = []
  folder = tmp_path / 'new'
  facts = artefact.export(trained, folder, messages.append, artefact.Extras(maps=True))
  assert any('no heat maps' in text for text in messages)
  assert facts['maps'] is None and 'maps' not in facts['graph']['outputs']
  plain = runtime.load(folder)
  (record,) = plain.explaining(maps=True).predict(pixels(1))
  assert not plain.kernels and 'maps' not in record


def test_heat_maps_by_a_naive_loop(loaded, exported):
  """Weights times features, place by place, with the weights of weights.safetensors."""
  weights = safetensors.numpy.load_file(exported / 'weights.safetensors')
  outputs, level = loaded.run(pixels(2)), loaded.levels[-1]
  kernel, maps = weights[f'params/heads/{level}/kernel'], outputs['maps']
  cams = class_maps.class_maps(maps, loaded.kernels[level], np.array([3, 5]))
  _, h, w, d = maps.shape
  np.testing.assert_allclose(maps.mean((1, 2)), outputs['features'], atol=1e-5)
  for i, c in enumerate((3, 5)):
    for y in range(h):
      for x in range(w):
        value = sum(float(maps[i, y, x, j]) * float(kernel[j, c]) for j in range(d)) / (h * w)
        assert abs(max(value, 0) - cams[i, y, x]) < 1e-5
