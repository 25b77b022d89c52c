"""The plan: what it sees in hand-made data, what it chooses and leaves alone; its forecast."""

import json
import types

import numpy as np
import pytest
import tiny
from PIL import Image

from hierjax.cli import arguments
from hierjax.core import config
from hierjax.core.declarations import OPTIONS
from hierjax.experiments import fit, forecast, plan
from hierjax.experiments.plan import Fingerprint
from hierjax.train import setup

BIG = Fingerprint(
  images=6000,
  val_images=600,
  classes={'make': 5, 'model': 20},
  tags=(),
  tail=(200, 300.0),
  missing={'make': 0.0, 'model': 0.0},
  partial=0.0,
  side=500.0,
  devices='1 cpu',
  cores=8,
)


def test_fingerprint_of_a_hand_made_set(tmp_path, tiny_backbone, one_device):
  """Eight training images 40 wide and 20 to 90 high, of which two have no animal, one nothing."""
  rows = ['file,split,kind,animal']
  labels = ['bird,owl'] * 4 + ['bird,crow', 'reptile,', 'bird,', ',']
  for i, label in enumerate(labels):
    Image.fromarray(np.full((20 + 10 * i, 40, 3), 9 * i, np.uint8)).save(tmp_path / f'{i}.png')
    rows.append(f'{i}.png,train,{label}')
  Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / 'v.png')
  rows += ['v.png,val,reptile,gecko', 'broken.png,train,bird,owl']
  (tmp_path / 'broken.png').write_bytes(b'no picture')
  (tmp_path / 'labels.csv').write_text('\n'.join(rows))
  (tmp_path / 'taxonomy.csv').write_text('kind,animal\nbird,owl\nbird,crow\nreptile,gecko\n')
  c = tiny.run_config(**{'data.source': 'csv', 'data.root': str(tmp_path)})
  f = plan.fingerprint(setup.build(c))
  # the shorter sides are 20, 30 and six times 40; five owls and a crow have a label
  assert f._replace(cores=1) == Fingerprint(
    images=9,
    val_images=1,
    classes={'kind': 2, 'animal': 3},
    tags=(),
    tail=(1, 3.0),
    missing=pytest.approx({'kind': 1 / 9, 'animal': 3 / 9}),
    partial=pytest.approx(2 / 9),
    side=40.0,
    devices='1 cpu',
    cores=1,
  )
  assert f.cores >= 1


@pytest.mark.parametrize(
  ('option', 'value', 'data', 'options'),
  [
    ('data.size', 224, {}, {}),
    ('data.size', 160, {'side': 130.0}, {}),
    ('data.size', 160, {'side': 160.0}, {}),
    ('data.size', 128, {'side': 20.0}, {}),
    ('data.size', 32, {'side': 20.0}, {'model.backbone': 'resnet18_32px'}),
    ('data.size', 64, {'side': 40.0}, {'model.stem': 'small', 'model.backbone': 'resnet18'}),
    ('data.size', 224, {'side': 130.0}, {'model.backbone': 'maxvit_t'}),
    ('data.size', None, {'side': None}, {}),
    ('train.epochs', 20.0, {}, {}),
    ('train.epochs', 32.0, {'images': 1000}, {}),
    ('train.epochs', 50.0, {'images': 100}, {}),
    ('train.epochs', 5.1, {'images': 2_000_000}, {}),
    ('train.epochs', None, {}, {'train.steps': 9}),
    ('loss.any_level', True, {'partial': 0.1}, {}),
    ('loss.any_level', None, {'partial': 0.1}, {'loss.lca': 3.0}),
    ('loss.any_level', None, {}, {}),
    ('loss.logit_adjust', 'off', {'tail': (2, 10.0)}, {}),
    ('loss.logit_adjust', None, {'tail': None}, {}),
    ('model.dtype', 'float32', {}, {}),
    ('model.dtype', 'bfloat16', {'devices': '8 gpu'}, {}),
    ('data.threads', 1, {'cores': 1}, {}),
    ('data.threads', 2, {}, {}),
    ('data.threads', 16, {'devices': '8 tpu', 'cores': 96}, {}),
    ('eval.tta', 2, {}, {}),
    ('eval.tta', 1, {}, {'data.augment.flip': 0.0}),
    ('eval.tta', 1, {}, {'data.augment.enabled': False}),
  ],
)
def test_rules(option, value, data, options):
  """Each rule on both sides of what it turns on; None: it has nothing to say."""
  c = config.default()
  for name, setting in options.items():
    config.assign(c, name, setting)
  planned, reasons = plan.choose(c, BIG._replace(**data))
  assert (option in reasons) == (value is not None)
  if value is not None:
    assert config.value_at(planned, option) == (None if value == 'off' else value)
    assert len(reasons[option].split()) > 3
  assert set(reasons) <= set(plan.OPTIONS) and not planned.plan
  changed = {line.split(':')[0] for line in config.differences(c, planned)}
  assert changed <= set(reasons)
  config.validate(planned)


def test_what_is_set_stays(tmp_path):
  """By a config file, a flag or a stored config, also where the value is the default."""
  (tmp_path / 'my.py').write_text(
    'from hierjax import config\n'
    'def get_config(_=""):\n'
    '  c = config.default()\n'
    '  c.data.size, c.loss.any_level, c.model.dtype = 224, False, "float32"\n'
    '  return c\n'
  )
  flags = ['--config.eval.tta=1', '--config.data.threads=3', '--config.loss.logit_adjust=']
  c = arguments.parse(['main.py', f'--config={tmp_path}/my.py', *flags]).config
  data = BIG._replace(images=1000, side=100.0, partial=0.5, tail=(1, 50.0), devices='2 gpu')
  planned, reasons = plan.choose(c, data)
  assert list(reasons) == ['train.epochs']
  assert config.differences(c, planned) == ['train.epochs: 20.0 -> 32.0']
  stored = config.from_json(config.to_json(c))
  assert all(config.is_set(stored, option) for option in OPTIONS)
  assert plan.choose(stored, data)[1] == {}


def test_seconds_by_hand():
  """Two phases, four evaluations and seven images beyond those that are explained."""
  c = config.default()
  c.eval.tta, c.baseline, c.baseline_seeds = 3, 'train', 2
  run = types.SimpleNamespace(
    c=c,
    val=types.SimpleNamespace(labels=np.zeros((2007, 1))),
    phases=[types.SimpleNamespace(start=0, end=10), types.SimpleNamespace(start=10, end=40)],
    total_steps=40,
    eval_steps=12,
  )
  measured = forecast.Measured(
    first=(5.0, 7.0),
    step=(0.5, 2.0),
    evaluation=((100, 2.0), (200, 3.0)),
    end=((50, 10.0), (150, 12.0)),
    memory={},
  )
  parts = forecast.seconds(run, measured, 4.0)
  one_run = {
    'training': 5 + 7 + 10 * 0.5 + 30 * 2,
    'evaluations': 4 * (1 + 2007 / 100),
    'end': 9 + 2000 / 50 + 7 * 3 / 100,
  }
  total = sum(one_run.values())
  expected = {'start': 4, **one_run, 'baseline, seeds': 3 * total, 'total': 4 + 4 * total}
  assert parts == pytest.approx(expected)
  # one timing is of all images, and noise makes no image cheaper than none
  assert forecast.extrapolate(((30, 2.5),), 30) == 2.5
  assert forecast.extrapolate(((30, 2.5), (60, 2.25)), 500) == 2.25


def test_stopwatch(monkeypatch):
  """Steps of 3 s after five of 1 s, which are skipped with the start."""
  clock = iter([*range(6), *range(8, 99, 3)])
  monkeypatch.setattr(forecast.time, 'monotonic', lambda: next(clock))
  watch = forecast._Stopwatch(5, 8)
  with pytest.raises(forecast._Enough):
    for _ in range(40):
      watch.after_step(None)
  assert watch.step == 3 and len(watch.times) == 6 + 8


def test_rehearsal(monkeypatch, tmp_path, tiny_backbone, one_device):
  """It leaves the run and the disk alone."""
  monkeypatch.setattr(forecast, 'TIMED', 1)
  monkeypatch.setattr(forecast.tempfile, 'tempdir', str(tmp_path))
  phases = "[{'share': .5, 'freeze': 'heads/finest', 'levels': 'coarser'}]"
  run = setup.build(tiny.run_config(curriculum=phases))
  before = config.to_json(run.c)
  measured = forecast.rehearse(run)
  assert not list(tmp_path.iterdir()) and config.to_json(run.c) == before
  assert run.total_steps == 12
  assert len(measured.first) == len(measured.step) == 2
  assert [n for n, _ in measured.evaluation] == [n for n, _ in measured.end] == [40]
  numbers = [*measured.first, *measured.step, *(s for _, s in measured.end + measured.evaluation)]
  assert min(numbers) > 0 and max(measured.step) < min(measured.first)
  assert measured.memory['memory_gib'] > 0
  parts = forecast.seconds(run, measured, 0.0)
  assert parts['training'] >= sum(measured.first) and parts['total'] < 600


def test_a_planned_run_goes_on(tmp_path, tiny_backbone, one_device, no_report):
  """The run holds plain values; the same command, or one without --config, finds no difference."""

  def planned():
    c = config.default()
    values = {'data.source': 'toy', 'data.toy.train': 64, 'data.toy.val': 30, 'plan': True}
    for path, value in {**values, 'model.backbone': 'tiny', 'train.steps': 2}.items():
      config.assign(c, path, value)
    c.train.epochs = c.train.eval_epochs = None
    return c

  first = fit.fit(planned(), tmp_path / 'run')
  stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert stored['plan'] is False and stored['data']['size'] == 32 and stored['eval']['tta'] == 2
  assert stored['data']['threads'] == 2 or plan.os.cpu_count() == 1
  notes = json.loads((tmp_path / 'run' / 'run.json').read_text())['notes']
  assert [note.split(':')[1].split('=')[0] for note in notes if note.startswith('plan:')] == [
    ' data.size',
    ' model.dtype',
    ' data.threads',
    ' eval.tta',
  ]
  (tmp_path / 'run' / 'eval_val.json').unlink()
  second = fit.fit(planned(), tmp_path / 'run')
  assert second['state_sha256'] == first['state_sha256'] and second['tta'] == 2
  c = config.from_json((tmp_path / 'run' / 'config.json').read_text())
  assert plan.for_run(c, tmp_path / 'run') == (c, [])
