"""What an artefact holds beside its predictions: heat maps, and similar training images."""

import base64
import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import onnx
import pytest
import safetensors.numpy

from hierjax import model, runtime
from hierjax.core.errors import UserError
from hierjax.data import decoding
from hierjax.evaluate import explain, heat_maps, neighbours
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
      assert np.abs(maps - heat_maps.as_bytes(np.asarray(cams))).max() <= 1
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


def test_heat_maps_by_a_naive_loop(loaded, trained, exported):
  """Where features are means of maps, the class's weights times them, place by place."""
  weights = safetensors.numpy.load_file(exported / 'weights.safetensors')
  images, level = pixels(2), loaded.levels[-1]
  kernel = weights[f'params/heads/{level}/kernel']
  maps = explain.apply_with_maps(trained.classifier, trained.variables, images)[2]
  cams = loaded.heat_maps(images, {level: np.array([3, 5])} | others(loaded))[level]
  _, h, w, d = maps.shape
  for i, c in enumerate((3, 5)):
    for y in range(h):
      for x in range(w):
        value = sum(float(maps[i, y, x, j]) * float(kernel[j, c]) for j in range(d)) / (h * w)
        assert abs(max(value, 0) - cams[i, y, x]) < 1e-5


def others(loaded):
  """Any class of the levels above the finest."""
  return {level: np.zeros(2, int) for level in loaded.map_levels[:-1]}


def test_heat_maps_that_are_no_grad_cam_are_not_written(trained, tmp_path, monkeypatch):
  """Twice the gradient is another map: the export ends, and leaves nothing."""
  monkeypatch.setattr(artefact.program, 'stablehlo', lambda trained: b'')
  grad_cam, in_graph = explain.grad_cam, {}

  def doubled(*args):
    features, cams = grad_cam(*args)
    return features, {level: 2 * cam for level, cam in cams.items()}

  def export(folder):
    return artefact.export(trained, tmp_path / folder, print, artefact.Extras(maps=True))

  with monkeypatch.context() as patch:
    patch.setattr(explain, 'grad_cam', doubled)
    in_graph['maps'] = artefact.program.maps_model(trained)
  with monkeypatch.context() as patch:
    patch.setattr(artefact.program, 'maps_model', lambda trained: in_graph['maps'])
    with pytest.raises(UserError, match=r'--maps: the heat maps differ .* up to 1 of the largest'):
      export('new')
  assert not [*tmp_path.iterdir()]


def test_maps_of_another_export_are_refused(exported, tmp_path):
  """Of another taxonomy or size, with a manifest that fits."""
  copied = pathlib.Path(shutil.copytree(exported, tmp_path / 'copy'))
  graph = onnx.load(copied / runtime.MAPS)
  graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64
  for change, text in ((graph, r'maps\.onnx and hierjax\.json'), (None, 'in another order')):
    graph = change or onnx.load(exported / runtime.MAPS)
    if not change:
      onnx.helper.set_model_props(graph, {'taxonomy_sha256': '0'})
    (copied / runtime.MAPS).write_bytes(graph.SerializeToString())
    artefact._seal(copied, json.loads((copied / 'hierjax.json').read_text()))
    with pytest.raises(UserError, match=text):
      runtime.load(copied)


def test_similar_images_are_the_nearest_by_brute_force(loaded, trained, exported):
  """Among all training images that the artefact holds, each with its own name and classes."""
  train, images = trained.split(trained.c.data.train), pixels(3)
  names = [entry['file'] for entry in loaded._gallery[1]]
  rows = [[*train.files].index(name) for name in names]
  assert len({*rows}) == len(rows) == 40
  batch = loaded.view.batch([('', train.reader(row)) for row in rows], 40)
  features, x = (loaded.run(x)['features'] for x in (batch.pixels, images))
  records = loaded.explaining(similar=5).predict(images)
  for i, record in enumerate(records):
    cosines = [
      float(sum(a * b for a, b in zip(x[i], y)) / np.linalg.norm(x[i]) / np.linalg.norm(y))
      for y in np.asarray(features, np.float64)
    ]
    best = np.argsort(cosines)[::-1][:5]
    values = [row['cosine'] for row in record['similar']]
    np.testing.assert_allclose(values, np.array(cosines)[best], atol=2e-3)
    for row in record['similar']:
      j = names.index(row['file'])
      assert abs(cosines[j] - row['cosine']) < 2e-3
      labels = train.labels[rows[j]]
      assert row['classes'] == {
        level: table[c]
        for level, table, c in zip(trained.taxonomy.levels, trained.taxonomy.names, labels)
      }
      picture = base64.b64decode(row['image'].removeprefix('data:image/jpeg;base64,'))
      assert max(decoding.decode(picture).shape) <= 64
  assert 'similar' not in loaded.predict(images[:1])[0]
  facts = json.loads((exported / 'hierjax.json').read_text())
  assert facts['similar'] == {'images': 40, 'thumbnails': True}
  assert '40 training images, and small pictures' in (exported / 'README.md').read_text()


def test_nearest_equals_brute_force_on_drawn_features():
  """In whole numbers, also with ties and fewer others than are asked for; zeros stay zeros."""
  rng = np.random.default_rng(3)
  others, x = (rng.integers(-1, 2, (n, 4)).astype(np.float32) for n in (30, 9))
  rows, products = neighbours.nearest(x, others, 7)
  for i in range(9):
    values = [sum(int(a) * int(b) for a, b in zip(x[i], y)) for y in others]
    order = sorted(range(30), key=lambda j: (-values[j], j))[:7]
    assert rows[i].tolist() == order and products[i].tolist() == [values[j] for j in order]
  assert neighbours.nearest(x, others[:2], 7)[0].shape == (9, 2)
  lengths = np.linalg.norm(neighbours.unit(np.concatenate([x, np.zeros((1, 4))])), axis=1)
  assert {*lengths.round(6).tolist()} == {0, 1}


@pytest.mark.parametrize(
  ('count', 'sizes'), [(4, (1, 1, 1, 1)), (9, (1, 3, 3, 2)), (99, (1, 9, 5, 2))]
)
def test_training_images_are_even_over_the_classes(count, sizes):
  """A class with few gives all, the others share what is left; a missing label is a class."""
  labels = np.repeat([-1, 0, 1, 2], (1, 9, 5, 2))[:, None]
  labels = np.random.default_rng(0).permutation(labels)
  rows = artefact._even_rows(labels, count)
  assert (np.diff(rows) > 0).all()
  counts = sorted(np.bincount(labels[rows, 0] + 1, minlength=4).tolist())
  assert counts == sorted(sizes)
  assert len(artefact._even_rows(np.zeros((5, 0), int), 3)) == 3


def test_training_images_of_another_model_are_refused(exported, tmp_path):
  """With a manifest that fits; a damaged file; and no training images unless asked for."""
  copied = pathlib.Path(shutil.copytree(exported, tmp_path / 'copy'))
  path = copied / runtime.SIMILAR
  arrays = dict(np.load(path))
  for change in ({'features': arrays['features'][:, 1:]}, {'entries': np.frombuffer(b'[1]', 'u1')}):
    np.savez(path, **arrays | change)
    with pytest.raises(UserError, match=r'similar\.npz: is damaged: its sha256'):
      runtime.load(copied)
    artefact._seal(copied, json.loads((copied / 'hierjax.json').read_text()))
    with pytest.raises(UserError, match='is damaged, or of another model'):
      runtime.load(copied)
  path.unlink()
  artefact._seal(copied, json.loads((copied / 'hierjax.json').read_text()))
  assert 'similar' not in runtime.load(copied).explaining(similar=3).predict(pixels(1))[0]
