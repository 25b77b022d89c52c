"""The first training step of six configs, held against losses and gradient norms on record.

The values are those of commit b26e435, before the package was rebuilt; where a config has changed
since, it is set back. A difference means that
the data, the augmentation, the initial weights, the loss, its weights or the gradient changed. If
that is wanted, say so in the commit and put in the new values.
"""

import importlib.util
import pathlib

import cv2
import jax
import numpy as np
import pytest

from hierjax.core import config, parallel
from hierjax.train import optim, setup
from hierjax.train.step import train_step

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / 'configs'
SMALL = {
  'data.source': 'toy',
  'data.size': 32,
  'data.toy.train': 64,
  'data.toy.val': 16,
  'model.backbone': 'tiny',
  'model.pretrained': '',
  'train.batch_size': 16,
  'train.epochs': 0.0,
  'train.steps': 2,
  'train.eval_epochs': 0.0,
  'train.eval_steps': 2,
  'train.log_steps': 1,
  'eval.batch_size': 16,
  'baseline': '',
  'optim.warmup_steps': 0,
  'optim.warmup_epochs': 0.0,
}
# config: (file, argument, changes, {value: on record})
RECORDS = {
  'quickstart': (
    'quickstart',
    '',
    {
      'baseline_seeds': 1,
      'data.toy.versions': 1,
      'data.toy.tail': 0.0,
      'data.unlabelled': 0.0,
      'loss.any_level': False,
      'loss.weights': (),
    },
    {
      'loss': 6.0987368,
      'loss/make': 1.6292247,
      'loss/type': 1.6797037,
      'loss/model': 2.7898085,
      'grad_norm': 1.2957172,
    },
  ),
  'ladder:9, its first phase': (
    'ladder',
    '9,.5',
    {},
    {'loss': 3.3668392, 'loss/make': 1.6127746, 'loss/type': 1.7540646, 'grad_norm': 1.1821994},
  ),
  'hcal:code': (
    'hcal',
    'code',
    {'data.toy.train': 96},
    {
      'loss': 9.5691738,
      'loss/make': 3.1772375,
      'loss/type': 2.1219783,
      'loss/model': 4.2699585,
      'grad_norm': 83.756691,
    },
  ),
  'hcal:paper,aircraft': (
    'hcal',
    'paper,aircraft',
    {'data.toy.train': 96},
    {
      'loss': 6.45819,
      'loss/make': 1.7543402,
      'loss/type': 1.6875969,
      'loss/model': 3.0162528,
      'grad_norm': 13.152016,
    },
  ),
  'multilabel, drawn tags': (
    'multilabel',
    '',
    {'data.source': 'csv'},
    {'loss': 0.68431598, 'loss/class': 0.68431598, 'grad_norm': 0.42506233},
  ),
  's1, cascaded': (
    's1',
    'densenet121,cascaded,.25,.9,.1',
    {'data.divide': '', 'data.test_share': 0.0},
    {'loss': 2.8029344, 'loss/make': 1.6299218, 'loss/model': 2.9332693, 'grad_norm': 0.6256671},
  ),
}


def draw_tags(folder: pathlib.Path) -> None:
  """Write 48 pictures, each channel bright where its tag is present, and their labels.csv."""
  rng = np.random.default_rng(0)
  rows = ['file,split,red,green,blue']
  for i in range(48):
    tags = rng.random(3) < (0.3, 0.5, 0.6)
    image = rng.integers(0, 90, (32, 32, 3), np.uint8)
    image += (tags * 100).astype(np.uint8)
    cv2.imwrite(str(folder / f'{i}.png'), image)
    split = 'train' if i % 3 else 'val'
    rows.append(','.join([f'{i}.png', split, *(str(int(tag)) for tag in tags)]))
  (folder / 'labels.csv').write_text('\n'.join(rows) + '\n')


def read_config(name: str, argument: str):
  """Return the config of a file in configs/."""
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(argument) if argument else module.get_config()


def first_step(c) -> dict[str, float]:
  """Return the metrics of the first training step of a config."""
  run = setup.build(c)
  task = run.task
  tx = optim.transformation(run.c, task.labels, run.phases[0].freeze)
  step = jax.jit(lambda s, b: train_step(s, b, {}, task, run.phases[0], tx, run.mesh))
  batch = next(iter(setup.batches(run, run.train, 0, 1)))
  _, metrics = step(setup.initial_state(run), parallel.put_train(batch, {}, run.mesh))
  return {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize('name', RECORDS)
def test_first_step(name, tmp_path, tiny_backbone, one_device):
  """The loss of each level, their weighted sum and the norm of its gradient."""
  file, argument, changes, expected = RECORDS[name]
  c = read_config(file, argument)
  if file == 'multilabel':
    draw_tags(tmp_path)
    changes = {**changes, 'data.root': str(tmp_path)}
  for path, value in {**SMALL, **changes}.items():
    config.assign(c, path, value)
  metrics = first_step(c)
  for key, value in expected.items():
    message = (
      f'{key} of the first step of {name} was {value} and is {metrics[key]}: have data, '
      'augmentation, initial weights, loss or gradient changed on purpose?'
    )
    assert np.isclose(metrics[key], value, rtol=1e-5, atol=0), message
