"""Regions of training images by the heat maps of a trained model, for `data.regions`."""

import contextlib
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hierjax.core import files, parallel
from hierjax.core.errors import UserError
from hierjax.data import pipeline, regions, transforms
from hierjax.evaluate import collect, explain
from hierjax.model import Model

# Of the largest value of a map, what a box bounds: as in WS-DAN (arXiv:1901.09891, section 3.3).
SHARE = 0.5


def rectangles(maps: np.ndarray, share: float) -> np.ndarray:
  """Bound the cells of heat maps that have at least a share of the largest value.

  Args:
    maps: float [B, h, w], at least 0.
    share: 1 bounds the largest value alone.

  Returns:
    float [B, 4], left, top, right and bottom in fractions of the map; NaN for a map of zeros.
  """
  peak = maps.max((1, 2), keepdims=True)
  is_high = maps >= share * peak
  columns, rows = is_high.any(1), is_high.any(2)
  height, width = maps.shape[1:]
  left, right = columns.argmax(1) / width, 1 - columns[:, ::-1].argmax(1) / width
  top, bottom = rows.argmax(1) / height, 1 - rows[:, ::-1].argmax(1) / height
  return np.where(peak[:, 0] > 0, np.stack([left, top, right, bottom], 1), np.nan)


def write(model: Model, path: pathlib.Path, progress: Callable[[int, int], None]) -> int:
  """Write the regions of a run's training images, as `data.regions` reads them.

  They are of the Grad-CAM of an image's class at the finest level that has a head and a label; the
  image is shown whole, stretched to a square. An image with a map of zeros has none.

  Args:
    model: of the run.
    path: the CSV file.
    progress: called with the numbers of images that are done and that there are.

  Returns:
    The number of regions; a `UserError` where there are none.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  c = model.c
  table = model.taxonomy.table('exclusive')
  levels = [level for level in table.levels if level in model.levels] if table else []
  columns = [model.taxonomy.index(level) for level in levels]
  step = jax.jit(functools.partial(_true_maps, levels=levels, model=model.classifier))
  examples = model.split(c.data.train)
  n = len(examples.files)
  batch_size = collect.rows(c.eval.batch_size, 1, model.mesh)
  resize = transforms.Resize(interpolation=c.data.interpolation)
  options = {'size': c.data.size, 'threads': c.data.threads, 'workers': c.data.workers}
  batches = pipeline.eval_batches(examples, batch_size=batch_size, resize=resize, **options)
  parts = []
  with contextlib.closing(batches):
    for batch in batches:
      inputs = {'images': batch['image'], 'labels': batch['labels'][:, columns]}
      maps = np.asarray(step(model.variables, **parallel.put_batch(inputs, model.mesh)))
      boxes = np.concatenate([rectangles(maps, SHARE), rectangles(maps, 1.0)], 1)
      has_map = (batch['mask'] > 0) & ~np.isnan(boxes[:, 0])
      parts.append((batch['index'][has_map], boxes[has_map].astype(np.float32)))
      progress(min(len(parts) * batch_size, n), n)
  index, boxes = map(np.concatenate, zip(*parts))
  if not len(index):
    text = f'they need a label of an exclusive level, and {c.model.backbone} feature maps'
    raise UserError(f'{model.workdir}: no heat map of {n} training images: {text}')
  rows = [('file', *regions.BOX, *regions.HOT)]
  for i, box in zip(index, boxes.tolist()):
    rows.append((examples.files[i], *(f'{x:.6g}' for x in box)))
  files.write(path, files.csv_text(rows))
  return len(index)


def _true_maps(variables, images, labels, levels, model):
  """Compute the Grad-CAM of the finest label of each image, float32 [B, h, w]; 0 without any."""
  classes = {level: jnp.maximum(labels[:, k], 0) for k, level in enumerate(levels)}
  _, maps = explain.grad_cam(variables, images, classes, model)
  finest = jnp.zeros((len(images), 1, 1))
  for k, level in enumerate(levels):
    finest = jnp.where(labels[:, k, None, None] >= 0, maps[level], finest)
  return finest
