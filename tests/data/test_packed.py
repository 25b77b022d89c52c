"""Packing: the same data, whatever stops it, and nothing read that is not what was packed."""

import dataclasses
import io
import json
import os
import pickle
import tarfile

import cv2
import numpy as np
import pytest

from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.data import decoding, packed, pipeline, sources
from hierjax.data.dataset import Dataset, Examples
from hierjax.data.findings import Findings
from hierjax.data.image_files import FileReader
from hierjax.taxonomy import Taxonomy

ROWS = [('a', 'audi', 'tt'), ('b/\u00fc', 'audi', 'a4'), ('c', 'bmw', 'z4'), ('d', 'bmw', '')] * 3


@pytest.fixture
def folder(tmp_path):
  """Twelve images in two splits, one of them broken."""
  root = tmp_path / 'data'
  (root / 'b').mkdir(parents=True)
  lines = ['file,split,make,model']
  for i, (name, make, model) in enumerate(ROWS):
    file, noise = f'{name}{i}.png', np.random.default_rng(i).integers(0, 256, (8, 9, 3), np.uint8)
    (root / file).write_bytes(cv2.imencode('.png', noise)[1].tobytes())
    lines.append(f'{file},{"train" if i < 8 else "val"},{make},{model}')
  (root / 'c6.png').write_bytes(b'no picture')
  (root / 'labels.csv').write_text('\n'.join(lines))
  return root


def options(root, **values):
  c = config.default()
  c.data.root = str(root)
  for name, value in values.items():
    c.data[name] = value
  return c.data


def load(root, **values):
  return sources.load(options(root, **values))


def expect_equal(data, other, broken=()):
  assert data.taxonomy.hash() == other.taxonomy.hash() and list(data.splits) == list(other.splits)
  for name, split in data.splits.items():
    reread = other.splits[name]
    assert list(split.files) == list(reread.files)
    np.testing.assert_array_equal(split.labels, reread.labels)
    for i, file in enumerate(split.files):
      assert bytes(reread.reader(i)) == (b'' if file in broken else bytes(split.reader(i)))


def test_packed_data_are_the_data(folder, tmp_path):
  data, out = load(folder), tmp_path / 'packed'
  counts = []
  result = packed.pack(data, out, progress=lambda *count: counts.append(count))
  assert result == (12, (out / 'images.bin').stat().st_size, ['c6.png'])
  assert counts == [(i, 12) for i in range(1, 13)]
  reread = load(out)
  expect_equal(data, reread, ['c6.png'])
  subset = sources.subset(reread.splits['train'], [5, 1])
  reader = pickle.loads(pickle.dumps(subset.reader))
  assert [reader(0), reader(1)] == [
    (folder / f).read_bytes() for f in ('b/\u00fc5.png', 'b/\u00fc1.png')
  ]
  assert sorted(path.name for path in out.iterdir()) == sorted(
    ('images.bin', 'packed.json', 'table.npz', 'taxonomy.csv')
  )


class Stop(Exception):
  pass


@pytest.mark.parametrize('count', [1, 8, 12])
@pytest.mark.parametrize('lost', [0, 3])
def test_a_stopped_call_goes_on_where_it_was(count, lost, folder, tmp_path, monkeypatch):
  """Also where the last bytes never came to the disk."""
  data, out = load(folder), tmp_path / 'packed'
  packed.pack(data, tmp_path / 'other')

  def stop(number, _):
    if number == count:
      raise Stop

  with pytest.raises(Stop):
    packed.pack(data, out, progress=stop)
  partial = out / 'images.bin.partial'
  partial.write_bytes(partial.read_bytes()[: partial.stat().st_size - lost])
  with pytest.raises(UserError, match=r'no packed\.json; a stopped hierjax pack goes on'):
    load(out, source='packed')
  read, original = [], packed._read
  monkeypatch.setattr(packed, '_read', lambda *task: read.append(task) or original(*task))
  assert packed.pack(data, out).unreadable == ['c6.png']
  assert len(read) == 12 - count + (lost > 0)
  for path in out.iterdir():
    assert path.read_bytes() == (tmp_path / 'other' / path.name).read_bytes(), path.name


def test_a_call_stopped_between_images_and_index_goes_on(folder, tmp_path, monkeypatch):
  data, out = load(folder), tmp_path / 'packed'

  def stop(_):
    raise Stop

  with monkeypatch.context() as patch, pytest.raises(Stop):
    patch.setattr(packed, '_sha256', stop)
    packed.pack(data, out)
  packed.pack(data, out)
  expect_equal(data, load(out), ['c6.png'])


@pytest.mark.parametrize(
  'damage, text',
  [
    (lambda out: (out / 'images.bin').write_bytes(b'short'), 'missing or cut short'),
    (lambda out: (out / 'images.bin').unlink(), 'missing or cut short'),
    (lambda out: (out / 'table.npz').write_bytes(b'other'), 'has changed since it was packed'),
    (lambda out: (out / 'taxonomy.csv').write_text('make,model\naudi,tt\n'), 'not the one that'),
    (lambda out: (out / 'packed.json').write_text('{"format": 2}'), 'another version of hierjax'),
    (lambda out: (out / 'packed.json').write_text('[]'), 'another version of hierjax'),
    (lambda out: (out / 'packed.json').write_text('{'), r'packed\.json: '),
  ],
)
def test_what_is_not_what_was_packed_is_refused(damage, text, folder, tmp_path):
  packed.pack(load(folder), tmp_path / 'packed')
  damage(tmp_path / 'packed')
  with pytest.raises(UserError, match=text):
    load(tmp_path / 'packed')


def seal(out):
  """Write the digest of a changed table into packed.json, as anybody can."""
  facts = json.loads((out / 'packed.json').read_text()) | {
    'table': packed._sha256(out / 'table.npz')
  }
  (out / 'packed.json').write_text(json.dumps(facts))


@pytest.mark.parametrize(
  'changes',
  [
    {'end': np.arange(12)[::-1]},
    {'end': np.full(12, 1 << 40)},
    {'end': np.zeros(11, np.int64)},
    {'end': np.zeros(12)},
    {'split': np.full(12, 2)},
    {'split': np.full(12, -1)},
    {'labels': np.full((12, 2), 9)},
    {'labels': np.zeros((12, 3), int)},
    {'labels': np.tile([0, 2], (12, 1))},
    {'name_end': np.full(12, 1 << 40)},
    {'names': np.zeros((2, 3))},
    {'other': np.zeros(1)},
  ],
)
def test_a_table_made_to_harm_is_refused(changes, folder, tmp_path):
  """Though its digest stands in packed.json."""
  out = tmp_path / 'packed'
  packed.pack(load(folder), out)
  with np.load(out / 'table.npz') as table:
    arrays = {**table, **changes}
  if 'other' in changes:
    del arrays['split']
  np.savez(out / 'table.npz', **arrays)
  seal(out)
  with pytest.raises(UserError, match='is no table of these images'):
    load(out)


def test_a_table_that_unpacks_to_more_is_refused(folder, tmp_path):
  out = tmp_path / 'packed'
  packed.pack(load(folder), out)
  with np.load(out / 'table.npz') as table:
    np.savez_compressed(out / 'table.npz', **{**table, 'names': np.zeros(1 << 24, np.uint8)})
  seal(out)
  with pytest.raises(UserError, match='unpacks to 16 MiB'):
    load(out)


def test_other_data_do_not_go_into_the_same_folder(folder, tmp_path):
  out = tmp_path / 'packed'
  result = packed.pack(load(folder), out)
  assert packed.pack(load(folder), out, progress=pytest.fail) == result, 'complete already'
  labels = (folder / 'labels.csv').read_text()
  (folder / 'labels.csv').write_text(labels.replace('a0.png,train,audi,tt', 'a0.png,train,audi,a4'))
  with pytest.raises(UserError, match='holds other files, or other data packed'):
    packed.pack(load(folder), out)
  with pytest.raises(UserError, match='holds other files, or other data packed'):
    packed.pack(load(folder), folder)
  (out / 'packed.json').write_text('[]')
  with pytest.raises(UserError, match=r'packed\.json: '):
    packed.pack(load(folder), out)


def test_all_data_are_packed_whatever_is_used_of_them(folder, tmp_path):
  assert packed.pack(load(folder, train_limit=2), tmp_path / 'packed').images == 12


def test_drawn_images_are_packed_without_loss(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
  split = Examples('train', ['x', 'y', 'z'], np.zeros((3, 2), np.int32), images.__getitem__)
  taxonomy = Taxonomy.from_rows(['make', 'model'], [['audi', 'tt'], ['audi', 'a4']])
  packed.pack(Dataset(taxonomy, {'train': split}, []), tmp_path / 'packed')
  table = sources.read_table(options(tmp_path / 'packed'), Findings())
  for i, image in enumerate(images):
    np.testing.assert_array_equal(decoding.decode(table.reader(i)), image)


@pytest.mark.parametrize('part', [{'banner': 2}, {'boxes': [(0, 0, 2, 2)] * 8}])
def test_parts_of_images_are_not_packed(part, folder, tmp_path):
  data = load(folder)
  train = data.splits['train']
  reader = FileReader(str(folder), train.files, **part)
  data = Dataset(data.taxonomy, {'train': dataclasses.replace(train, reader=reader)}, [])
  with pytest.raises(UserError, match=r'only a part of a0\.png is shown'):
    packed.pack(data, tmp_path / 'packed')


@pytest.mark.parametrize('kind', ['packed', 'tar'])
def test_a_file_that_is_cut_short_while_it_is_read(kind, folder, tmp_path):
  """Images behind its end are unreadable ones, counted or refused by name; the others are read."""
  out = tmp_path / 'packed'
  if kind == 'packed':
    packed.pack(load(folder), out)
  else:
    out.mkdir()
    (out / 'labels.csv').write_bytes((folder / 'labels.csv').read_bytes())
    with tarfile.open(out / 'train.tar', 'w') as tar:
      for path in sorted(folder.glob('*.png')):
        tar.add(path, path.name)
        member = tarfile.TarInfo(f'{path.stem}.cls')
        member.size = 2
        tar.addfile(member, io.BytesIO(b'tt'))
  examples = load(out, source='packed' if kind == 'packed' else 'webdataset').splits['train']
  contents = [bytes(examples.reader(i)) for i in range(len(examples.files))]
  file = out / ('images.bin' if kind == 'packed' else 'train.tar')
  end = int(examples.reader.end[2])
  os.truncate(file, end - 1)
  assert [bytes(examples.reader(i)) for i in (0, 1)] == contents[:2]
  with pytest.raises(OSError, match=rf'{file.name} ends before byte {end}.*cut short'):
    examples.reader(2)
  batches = list(pipeline.eval_batches(examples, batch_size=4, size=8, threads=1))
  broken = np.concatenate([batch['broken'] for batch in batches])
  lost = {i for i, x in enumerate(contents) if examples.reader.end[i] > end - 1 and len(x)}
  assert {*broken[broken >= 0].tolist()} >= lost > {2}
  with pytest.raises(UserError, match=rf'.*: unreadable image .*{file.name} ends before byte'):
    subset = sources.subset(examples, [2])
    next(pipeline.train_batches(subset, batch_size=1, seed=0, size=8, strict=True, threads=1))
