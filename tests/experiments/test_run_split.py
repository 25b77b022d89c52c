"""A run keeps the split that it was made with, when its data change: train, evaluate, migrate."""

import hashlib
import json
import shutil
import signal

import cv2
import numpy as np
import pytest
import tiny

import hierjax
from hierjax.core.errors import UserError
from hierjax.data import split_record
from hierjax.experiments import migrate
from hierjax.report import page
from hierjax.train.interrupt import Interrupted
from hierjax.train.loop import Hook


@pytest.fixture(autouse=True)
def small(tiny_backbone, one_device, no_report):
  """The tiny backbone on one device, without a report."""


def draw(root, classes=('cat', 'dog', 'owl'), numbers=range(20)):
  rng = np.random.default_rng(len(classes))
  for name in classes:
    (root / name).mkdir(parents=True, exist_ok=True)
    for i in numbers:
      picture = rng.integers(0, 256, (24, 24, 3)).astype(np.uint8)
      cv2.imwrite(str(root / name / f'{i}.png'), picture)
  return root


def options(root):
  return tiny.run_config(
    **{'data.source': 'auto', 'data.root': str(root), 'train.steps': 6, 'train.eval_steps': 6}
  )


@pytest.fixture(scope='module')
def finished(shared_folder):
  """The data and the folder of a run on them, to be read only."""

  def make(folder):
    with pytest.MonkeyPatch.context() as patch:
      tiny.register(patch)
      tiny.use_devices(patch)
      tiny.leave_out_report(patch)
      result = hierjax.fit(options(draw(folder / 'data')), folder / 'run')
    (folder / 'result.json').write_text(json.dumps(result))

  return shared_folder('run_on_growing_data', make)


@pytest.fixture
def grown(finished, tmp_path):
  """A copy of the run, its data in the place where it was made for, with 60 more images."""
  root = tmp_path / 'data'
  shutil.copytree(finished / 'data', root)
  shutil.copytree(finished / 'run', tmp_path / 'run')
  for path in (tmp_path / 'run').rglob('config.json'):
    path.write_text(path.read_text().replace(str(finished / 'data'), str(root)))
  return draw(root, numbers=range(100, 120)), tmp_path / 'run'


def val_files(workdir):
  with np.load(workdir / 'predictions_val.npz') as archive:
    return archive['files'].tolist()


def test_the_same_command_again_keeps_the_split(finished, grown):
  root, workdir = grown
  before = json.loads((finished / 'result.json').read_text())
  info = json.loads((workdir / 'run.json').read_text())
  text = (workdir / 'splits.csv').read_bytes()
  assert info['data_sha256'] == hashlib.sha256(text).hexdigest()
  result = hierjax.fit(options(root), workdir)
  assert result == before and val_files(workdir) == val_files(finished / 'run')
  info = json.loads((workdir / 'run.json').read_text())
  assert any('new files: 60 (cat/100.png, ' in note for note in info['notes'])
  assert (workdir / 'splits.csv').read_bytes() == text
  assert info['data_sha256'][:16] in page.write(workdir).read_text()
  assert hierjax.load(workdir).evaluate('val')['decode'] == before['decode']


def test_an_interrupted_run_goes_on_bit_identically_on_grown_data(finished, tmp_path):
  class Stop(Hook):
    def after_step(self, loop):
      if loop.step == 2:
        signal.raise_signal(signal.SIGTERM)

  root = shutil.copytree(finished / 'data', tmp_path / 'data')
  with pytest.raises(Interrupted):
    hierjax.fit(options(root), tmp_path / 'run', [Stop()])
  draw(root, numbers=range(100, 120))
  result = hierjax.fit(options(root), tmp_path / 'run')
  assert result == json.loads((finished / 'result.json').read_text())


def test_what_a_run_cannot_go_on_with(grown, capsys):
  root, workdir = grown
  (root / 'cat' / '3.png').rename(root / 'owl' / 'was_cat.png')
  for path in (root / 'dog' / '1.png', root / 'dog' / '2.png'):
    path.unlink()
  with pytest.raises(UserError, match=r'gone: 3 \(cat/3.png, dog/1.png, dog/2.png\)\): put them'):
    hierjax.fit(options(root), workdir)
  hierjax.load(workdir).split('val')
  assert 'gone: 3 (cat/3.png' in capsys.readouterr().err
  # without the record, as in a run of an earlier version, one line says so
  (workdir / 'splits.csv').unlink()
  hierjax.fit(options(root), workdir)
  notes = json.loads((workdir / 'run.json').read_text())['notes']
  assert sum('no splits.csv, as runs of earlier versions' in note for note in notes) == 1
  assert 'cat/100.png' in split_record.read(workdir).splits


@pytest.mark.parametrize('changes', [{'split_seed': 1}, {'val_share': 0.6}, {'test_share': 0.3}])
def test_evaluate_on_another_split(grown, changes):
  _, workdir = grown
  c = hierjax.load(workdir).c
  c.data.update(changes)
  saved = split_record.read(workdir)
  with pytest.raises(
    UserError, match=r'\d+ of the \d+ images of val \(.*\) are training images'
  ) as e:
    hierjax.load(workdir, c).evaluate('val')
  assert f'training images of {workdir}' in str(e.value) and len(saved.splits) == 60


def test_evaluate_on_a_copy_of_the_data(grown, tmp_path, capsys):
  root, workdir = grown
  c = hierjax.load(workdir).c
  c.data.root = str(shutil.copytree(root, tmp_path / 'copy'))
  hierjax.load(workdir, c).split('val')
  assert 'warning: ' in capsys.readouterr().err


def test_a_migrated_run_keeps_what_the_old_one_had_in_val(grown, tmp_path):
  root, workdir = grown
  draw(root, ('emu',))
  (tmp_path / 'new.csv').write_text('class\ncat\ndog\nemu\nowl\n')
  c = hierjax.load(workdir).c
  text = migrate.migrate(workdir, str(tmp_path / 'new.csv'), tmp_path / 'new', c)
  assert f'split: 60 images are in that of {workdir}, 80 new' in text and 'warning' not in text
  old, new = split_record.read(workdir), split_record.read(tmp_path / 'new')
  assert len(new.splits) == 140 and old.splits.items() <= new.splits.items()
  assert sum(split == 'val' for split in new.splits.values()) == 12 + 16
  assert split_record.read(tmp_path / 'new/start') == new._replace(folder=tmp_path / 'new/start')


def test_going_back_compares_the_data_first(grown):
  """Nothing is moved, and config.json stays, where the data are not those of the run."""
  root, workdir = grown
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
  c = options(root)
  c.optim.lr = 1e-4
  (root / 'dog' / '1.png').unlink()
  with pytest.raises(UserError, match=r'^--resume_from=last: .*gone: 1 \(dog/1.png\)\)'):
    hierjax.fit(c, workdir, resume_from='last')
  after = {path: path.stat().st_mtime_ns for path in workdir.rglob('*') if path != workdir}
  assert after == {path: time for path, time in before.items() if path != workdir}


def test_limits_of_images_are_no_part_of_a_run(grown):
  """They say what is refused, not what is computed."""
  root, workdir = grown
  c = options(root)
  c.data.max_pixels, c.data.max_bytes = 10_000, 100_000
  before = json.loads((workdir.parent / 'run' / 'run.json').read_text())['state_sha256']
  assert hierjax.fit(c, workdir)['state_sha256'] == before
