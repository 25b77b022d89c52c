"""Boxes of heat maps against loops over cells, and the file that a run writes of its own."""

import copy
import json
import re

import jax
import numpy as np
import pytest

import hierjax.cli.regions
import hierjax.data.regions
from hierjax.cli import arguments
from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.data import pipeline
from hierjax.evaluate import explain
from hierjax.experiments import regions, restart, workdir
from hierjax.taxonomy.csv_files import read_table
from hierjax.train import setup


def naive_box(heat, share):
  """The least rectangle, by a loop over all cells."""
  h, w = heat.shape
  cells = [(i, k) for i in range(h) for k in range(w) if heat[i, k] >= share * heat.max()]
  rows, columns = zip(*cells)
  return min(columns) / w, min(rows) / h, (max(columns) + 1) / w, (max(rows) + 1) / h


def test_rectangles_are_those_of_a_loop():
  rng = np.random.default_rng(0)
  for h, w in ((4, 4), (7, 5), (1, 1), (2, 9)):
    maps = rng.random((40, h, w)) ** rng.integers(1, 30, (40, 1, 1))
    maps[::5] = np.round(maps[::5], 1)  # with ties
    maps[3] = maps[8, 0, 0] = 0
    for share in (0.5, 1.0):
      boxes = regions.rectangles(maps, share)
      for heat, box in zip(maps, boxes):
        if heat.any():
          np.testing.assert_allclose(box, naive_box(heat, share))
        else:
          assert np.isnan(box).all()
  assert np.isnan(regions.rectangles(np.full((1, 2, 2), np.nan), 0.5)).all()


def test_a_run_writes_regions_that_a_training_reads(
  finished_run, tmp_path, tiny_backbone, one_device, capsys
):
  path = tmp_path / 'boxes.csv'
  argv = ['', 'regions', f'--workdir={finished_run}', f'--output={path}']
  hierjax.cli.regions.run(arguments.parse(argv))
  err = capsys.readouterr().err
  columns, rows, _ = read_table(path)
  assert columns == ['file', *'left top right bottom hot_left hot_top hot_right hot_bottom'.split()]
  assert '96/96 images' in err and f'{path}: regions of {len(rows)} training images' in err
  # by hand: the true class of the finest level
  trained = hierjax.load(finished_run)
  train, size = trained.split('train'), trained.c.data.size
  batch = next(pipeline.eval_batches(train, batch_size=96, size=size, threads=0))
  classes = {'model': train.labels[:, -1]}
  variables = jax.device_get(trained.variables)
  grad_cam = jax.jit(explain.grad_cam, static_argnums=3)
  heat = np.asarray(grad_cam(variables, batch['image'], classes, trained.classifier)[1]['model'])
  expected = {}
  for file, one in zip(train.files, heat):
    if one.any():
      expected[file] = [*naive_box(one, regions.SHARE), *naive_box(one, 1.0)]
  assert [row[0] for _, row in rows] == list(expected) and len(rows) > 90
  numbers = np.array([row[1:] for _, row in rows], float)
  np.testing.assert_allclose(numbers, list(expected.values()), atol=1e-5)
  # a training with them, of which a run's own evaluation reads nothing
  c = copy.deepcopy(trained.c)
  c.data.regions, c.data.augment.guided_crop, c.data.augment.guided_mask = str(path), 0.5, 0.5
  run, plain = setup.build(c), setup.build(trained.c)
  index = [list(train.files).index(file) for file in expected]
  np.testing.assert_allclose(run.train.regions[index].reshape(-1, 8), numbers, atol=1e-6)
  first, second = (next(iter(setup.batches(s, s.train, 0, 2))) for s in (run, plain))
  np.testing.assert_array_equal(first['index'], second['index'])
  assert 4 < (first['image'] != second['image']).any((1, 2, 3)).sum() <= 16
  path.unlink()
  assert hierjax.load(finished_run, c).split('val').regions is None
  # resume_from may add them to a run
  changed = config.differences(trained.c, c)
  assert len(changed) == 3 and all(line.startswith(workdir.CHANGEABLE) for line in changed)


def test_the_map_is_of_the_finest_label_and_zero_without_one(
  finished_run, tiny_backbone, one_device
):
  trained = hierjax.load(finished_run)
  images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
  levels = ('make', 'type', 'model')
  labels = np.array([[1, 0, 3], [1, 1, -1], [2, -1, -1], [-1, -1, -1]], np.int32)
  classes = {level: np.maximum(labels[:, k], 0) for k, level in enumerate(levels)}
  variables, model = jax.device_get(trained.variables), trained.classifier
  maps = jax.jit(explain.grad_cam, static_argnums=3)(variables, images, classes, model)[1]
  true_maps = jax.jit(regions._true_maps, static_argnums=(3, 4))
  finest = true_maps(variables, images, labels, levels, model)
  for i, level in enumerate(('model', 'type', 'make')):
    np.testing.assert_allclose(finest[i], maps[level][i], rtol=1e-4, atol=1e-7)
  assert np.asarray(finest[:3]).any() and not np.asarray(finest[3]).any()


def test_a_run_without_maps_says_so(finished_run, tiny_backbone, one_device, tmp_path, monkeypatch):
  def no_maps(variables, images, classes, model):
    return None, {level: np.zeros((len(images), 1, 1), np.float32) for level in classes}

  monkeypatch.setattr(explain, 'grad_cam', no_maps)
  with pytest.raises(UserError, match=r'no heat map of 96 training images: .* tiny feature maps'):
    regions.write(hierjax.load(finished_run), tmp_path / 'x.csv', lambda *_: None)
  assert not list(tmp_path.iterdir())


def test_a_run_does_not_go_on_with_boxes_that_were_edited(run_copy, tmp_path, tiny_backbone):
  """Unless it goes back to a checkpoint with them, once."""
  path, head = tmp_path / 'boxes.csv', 'file,left,top,right,bottom'
  c = hierjax.load(run_copy).c
  c.data.regions, c.data.augment.guided_crop = str(path), 0.5

  def build(*rows):
    path.write_text('\n'.join((head, *rows)))
    return setup.build(c)

  rows = ['toy/train/00000,0,0,.5,.5', 'toy/train/00003,.1,0,.5,.5']
  run = build(*rows)
  workdir.write_options(run_copy, run)
  facts = json.loads((run_copy / 'run.json').read_text())
  assert facts['regions_sha256'] == hierjax.data.regions.digest(run.train) and facts['step'] == 12
  # another order, and an image that trains nothing, are the same boxes
  assert workdir.conflict(run_copy, build(*rows[::-1], 'toy/val/00001,0,0,1,1'), None) is None
  edited = build('toy/train/00000,0,0,.5,.5', 'toy/train/00003,.2,0,.5,.5')
  reason = workdir.conflict(run_copy, edited, None)
  assert re.search(r'data\.regions: \S+boxes\.csv was edited: put its old boxes back', reason)
  with pytest.raises(UserError, match=r'boxes.csv was edited.*add --resume_from='):
    workdir.prepare(run_copy, edited)
  change = restart.restart(run_copy, edited, 'last')
  assert change['step'] == 12 and 'boxes.csv was edited' in change['changed'][0]
  workdir.prepare(run_copy, edited)
  assert restart.restart(run_copy, edited, 'last') is None
