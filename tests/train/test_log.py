"""The logs of a run: metrics.jsonl, TensorBoard, Weights & Biases."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.train import log


def options(**changes):
  c = config.default()
  for key, value in changes.items():
    c.log[key] = value
  return c


def records(folder) -> dict[tuple[str, int], float]:
  """{(folder, name, step): value} of TensorBoard's files, read by the format.

  Length, its checksum, the event, its checksum.
  """
  out = {}
  for file in sorted(folder.glob('**/events.*')):
    content, offset = file.read_bytes(), 0
    while offset < len(content):
      size = int.from_bytes(content[offset : offset + 8], 'little')
      event = Event.FromString(content[offset + 12 : offset + 12 + size])
      offset += 16 + size
      for value in event.summary.value:
        out[str(file.parent.relative_to(folder)), value.tag, event.step] = value.simple_value
  return out


def test_lines_stand_in_metrics_and_in_tensorboard(tmp_path):
  logged = log.Log(tmp_path, 0, options())
  logged.write(3, 'train', {'loss': 0.5, 'acc/model': 0.2})
  logged.write(4, 'val', {'top1/model': 0.25})
  logged.close()
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert lines == [
    {'step': 3, 'kind': 'train', 'loss': 0.5, 'acc/model': 0.2},
    {'step': 4, 'kind': 'val', 'top1/model': 0.25},
  ]
  values_by_step = records(tmp_path / 'tensorboard')
  hparams = {key: value for key, value in values_by_step.items() if key[0] == 'val/hparams'}
  assert {key: value for key, value in values_by_step.items() if key not in hparams} == {
    ('train', 'loss', 3): 0.5,
    ('train', 'top1/model', 3): pytest.approx(0.2),
    ('val', 'top1/model', 4): 0.25,
  }
  assert hparams['val/hparams', 'hparam/top1/model', 4] == 0.25
  content = b''.join(f.read_bytes() for f in tmp_path.glob('tensorboard/val/hparams/*'))
  assert b'_hparams_/session_start_info' in content


def test_what_was_logged_after_the_checkpoint_goes(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text(
    '{"step": 2, "kind": "train"}\n{"step": 6, "kind": "train"}\n{"step": 4, "ki'
  )
  log.Log(tmp_path, 5, options(tensorboard=False)).close()
  assert (tmp_path / 'metrics.jsonl').read_text() == '{"step": 2, "kind": "train"}\n'
  assert not (tmp_path / 'tensorboard').exists()


def test_wandb_gets_the_same_numbers_and_a_resumed_run_its_page(tmp_path, monkeypatch):
  calls = []

  class Page:
    def log(self, values, step):
      calls.append((step, values))

    def finish(self):
      calls.append('finish')

  def init(**settings):
    calls.append(
      (settings['id'], settings['resume'], settings['config']['seed'], settings['project'])
    )
    return Page()

  fake = types.ModuleType('wandb')
  fake.init, fake.util, fake.__spec__ = (
    init,
    types.SimpleNamespace(generate_id=lambda: f'id{len(calls)}'),
    types.SimpleNamespace(name='wandb'),
  )
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  monkeypatch.setenv('WANDB_PROJECT', 'cars')
  for step in (0, 5):
    logged = log.Log(tmp_path, step, options(wandb=True, tensorboard=False))
    logged.write(step + 1, 'train', {'loss': 1.0})
    logged.close()
  assert calls == [
    ('id0', 'allow', 0, 'cars'),
    (1, {'train/loss': 1.0}),
    'finish',
    ('id0', 'allow', 0, 'cars'),
    (6, {'train/loss': 1.0}),
    'finish',
  ]


def test_wandb_without_wandb_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(UserError, match=r'log\.wandb: wandb is not installed: pip install wandb'):
    log.Log(tmp_path, 0, options(wandb=True, tensorboard=False))


def test_compile_time_and_memory_are_counted():
  timer, peak = log.CompileTimer(), log.memory()['memory_gib']

  def compiled(n):
    jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T + n)(jnp.ones((37, 41))).block_until_ready()
    return timer.seconds

  seconds = compiled(1)
  assert 0 < seconds < compiled(2)
  timer.close()
  seconds = timer.seconds
  assert compiled(3) == seconds
  assert 0.1 < peak <= log.memory()['memory_gib'] < 100
