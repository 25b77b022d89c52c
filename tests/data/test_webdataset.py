"""WebDataset tars are the data that the same images in a folder with labels.csv are."""

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
from hierjax.data import lint, sources, webdataset

ROWS = [('audi', 'tt'), ('audi', 'a4'), ('bmw', 'z4'), ('bmw', ''), ('audi', 'tt'), ('bmw', 'z4')]
LEVELS = ('make', 'model')


def encoded(i):
  noise = np.random.default_rng(i).integers(0, 256, (6, 7, 3), np.uint8)
  return cv2.imencode('.png', noise)[1].tobytes()


def info(name, content=b'', **changes):
  member = tarfile.TarInfo(name)
  member.size = len(content)
  for key, value in changes.items():
    setattr(member, key, value)
  return member, io.BytesIO(content)


def write(path, *members, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, 'w', **options) as tar:
    for member, content in members:
      tar.addfile(member, content)


def example(i, label=None, key=None, folder=''):
  """The members of an example, with the row's labels as JSON."""
  key = key or f'{folder}{i:04d}'
  content = json.dumps(dict(zip(LEVELS, ROWS[i]))) if label is None else label
  return info(f'{key}.png', encoded(i)), info(f'{key}.json', content.encode())


def load(root, **changes):
  c = config.default()
  c.data.root = str(root)
  for name, value in changes.items():
    c.data[name] = value
  return sources.load(c.data)


def check(root, **changes):
  c = config.default()
  c.data.update({'root': str(root), **changes})
  return lint.check(c.data)


@pytest.fixture
def shards(tmp_path):
  """Two tars for training, one to validate; of GNU, POSIX and old headers."""
  root = tmp_path / 'tars'
  write(root / 'train-000000.tar', *example(0), *example(1))
  long = 'x' * 120 + '/'
  write(root / 'train-000001.tar', *example(2, folder=long), *example(3), format=tarfile.GNU_FORMAT)
  write(root / 'val-000000.tar', *example(4), *example(5), format=tarfile.PAX_FORMAT)
  return root


@pytest.fixture
def folder(tmp_path):
  """The same images as files."""
  root, lines = tmp_path / 'folder', ['file,split,make,model']
  root.mkdir()
  for i, row in enumerate(ROWS):
    (root / f'{i}.png').write_bytes(encoded(i))
    lines.append(f'{i}.png,{"train" if i < 4 else "val"},{",".join(row)}')
  (root / 'labels.csv').write_text('\n'.join(lines))
  return root


def expect_equal(data, other):
  assert data.taxonomy.hash() == other.taxonomy.hash() and list(data.splits) == list(other.splits)
  for name, split in data.splits.items():
    np.testing.assert_array_equal(split.labels, other.splits[name].labels)
    for i in range(len(split.files)):
      assert bytes(split.reader(i)) == bytes(other.splits[name].reader(i))


@pytest.mark.parametrize('root', ['', 'train-{000000..000001}.tar', '*-00000?.tar'])
def test_tars_are_the_data_of_a_folder(root, shards, folder):
  data, other = load(shards / root, val_share=0), load(folder)
  if root.startswith('train'):
    other.splits.pop('val')
  expect_equal(data, other)
  assert list(data.splits['train'].files)[:2] == ['train-000000.tar/0000.png'] + [
    'train-000000.tar/0001.png'
  ]
  subset = sources.subset(data.splits['train'], [2, 1])
  reader = pickle.loads(pickle.dumps(subset.reader))
  assert [reader(0), reader(1)] == [encoded(2), encoded(1)]
  assert not check(shards / root).counts['error']


@pytest.mark.parametrize('has_taxonomy', [False, True])
def test_the_finest_class_alone_by_name_or_number(has_taxonomy, tmp_path, folder):
  names = ['a4', 'tt', 'z4']
  numbers = {'': '', **{name: str(i) for i, name in enumerate(names)}}
  for kind, suffix in (('names', 'cls'), ('numbers', 'txt')):
    members = []
    for i, (_, model) in enumerate(ROWS):
      text = model if kind == 'names' else numbers[model]
      members += [info(f'{i}.png', encoded(i)), info(f'{i}.{suffix}', f' {text}\n'.encode())]
    write(tmp_path / kind / 'a.tar', *members)
    if has_taxonomy:
      rows = 'make,model\naudi,a4\naudi,tt\nbmw,z4\n'
      (tmp_path / kind / 'taxonomy.csv').write_text(rows)
  by_name, by_number = (load(tmp_path / kind, val_share=0) for kind in ('names', 'numbers'))
  labels = by_name.splits['train'].labels
  np.testing.assert_array_equal(labels, by_number.splits['train'].labels)
  assert labels[:, -1].tolist() == [1, 0, 2, 1, 2]
  assert by_name.taxonomy.levels == (LEVELS if has_taxonomy else ('class',))
  assert by_number.taxonomy.names[-1] == (tuple(names) if has_taxonomy else ('0', '1', '2'))


def test_the_index_is_kept_and_remade(shards, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  first = load(shards)
  (file,) = (tmp_path / 'cache').glob('hierjax/webdataset/*.npz')
  with monkeypatch.context() as patch:
    patch.setattr(tarfile, 'open', pytest.fail)
    expect_equal(load(shards), first)
  file.write_bytes(file.read_bytes()[:-100] + bytes(100))
  expect_equal(load(shards), first)
  write(shards / 'val-000000.tar', *example(5), *example(5, key='other'))
  os.utime(shards / 'val-000000.tar', (1, 1))
  assert load(shards).splits['val'].labels[:, 0].tolist() == [1, 1]
  monkeypatch.setenv('XDG_CACHE_HOME', '/dev/null')
  assert len(load(shards).splits['val'].labels) == 2, 'without a cache'


def test_fields_of_json_that_hold_no_class_and_images_without_labels_are_left_out(tmp_path):
  members = []
  for i in range(4):
    labels = {'model': f'm{i}', 'width': 7, 'box': [1], 'caption': 'x' * 2000, 'make': f'{i // 2}'}
    members += example(i, json.dumps(labels))
  members += [info('4.png', encoded(4)), info('5.json', b'{"make": "audi"}')]
  members += [info('a.seg.png', b''), info('.hidden', b''), info('README', b'')]
  members += [info('6.png', type=tarfile.SYMTYPE, linkname='0000.png')]
  members += [info('7.png', type=tarfile.LNKTYPE, linkname='0000.png')]
  members += [info('9.png', type=tarfile.GNUTYPE_SPARSE), info('9.txt', b'x' * 2000)]
  members += [info('8.png', type=tarfile.FIFOTYPE), info('folder', type=tarfile.DIRTYPE)]
  write(tmp_path / 'a.tar', *members)
  data = load(tmp_path, val_share=0)
  assert data.taxonomy.levels == LEVELS and len(data.splits['train'].labels) == 4
  text = next(note for note in data.notes if 'left out' in note)
  for part in (
    '1 images without a label, the first is a.tar/4.png',
    '1 labels without an image, the first is a.tar/5',
    '4 members that are links, sparse or special, the first is a.tar/6.png',
    '1 members that end in .seg.png',
    "9 texts and lists that are no class, the first is 'box' of a.tar/0000.json",
  ):
    assert part in text
  assert webdataset.UNUSED in {p.kind for p in check(tmp_path).problems}


def endless():
  """A tar with a member whose size is negative, so that the next one is the first again."""
  member, _ = info('a.png')
  member.size = -1024
  return info('b.png')[0].tobuf(tarfile.GNU_FORMAT) + member.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


def cut(path, size):
  path.write_bytes(path.read_bytes()[:size])


def change(path, place, content):
  data = bytearray(path.read_bytes())
  data[place : place + len(content)] = content
  path.write_bytes(data)


@pytest.mark.parametrize(
  'damage, text',
  [
    (lambda path: cut(path, 700), r"a\.tar: is damaged, cut off or compressed behind '0000\.png'"),
    (lambda path: cut(path, 100), r'a\.tar: is damaged, cut off or compressed behind'),
    (lambda path: cut(path, 0), r'a\.tar: is damaged, cut off or compressed behind'),
    (lambda path: change(path, 1024, b'xyz'), "behind '0000.png' .*no header"),
    (lambda path: change(path, 124, b'\x80\xff\xff\xff\xff\xff\xff\xff'), 'cut off'),
    (lambda path: path.write_bytes(endless()), 'it leads back'),
    (lambda path: path.write_bytes(b'\x1f\x8b' + bytes(2000)), 'compressed'),
    (lambda path: write(path, *example(0, '{')), r'0000\.json: is damaged \(Expecting'),
    (lambda path: write(path, *example(0, '[]')), r'0000\.json: is no JSON object'),
    (lambda path: write(path, *example(0, '{"a": 1, "a": 2}')), r'0000\.json: .*is there 2 times'),
    (
      lambda path: write(path, *example(0, ' ' * (1 << 21))),
      r'0000\.json: has more than the 1048576 bytes',
    ),
    (lambda path: write(path, info('a.png'), info('a.cls', b'\xff')), r'a\.tar/a\.cls: .*decode'),
    (lambda path: write(path, *example(0, key='../a')), r'a\.tar: \.\./a\.png leaves the root'),
    (lambda path: write(path, *example(0, key='/a')), r'a\.tar: /a\.png leaves the root'),
    (lambda path: write(path, *example(0), *example(0)), r"png: key '0000' has a second image"),
    (lambda path: write(path, *example(0), info('0000.jpg')), r'jpg: key .* second image here'),
    (lambda path: write(path, *example(0), info('0000.json')), r'json: key .* second label here'),
    (lambda path: write(path, info('a.png')), r'no image with a label in 1 tars'),
    (lambda path: write(path, info('n01.tar')), r'no image with a label in 1 tars'),
    (lambda path: write(path), r'no image with a label in 1 tars'),
    (
      lambda path: write(path, *example(0, json.dumps({f'x{i}': i for i in range(300)}))),
      'more than 256 different fields in JSON',
    ),
  ],
)
def test_what_cannot_be_read_is_named(damage, text, tmp_path):
  """In training and in lint, which goes on."""
  root = tmp_path / 'data'
  write(root / 'a.tar', *example(0), *example(1))
  damage(root / 'a.tar')
  with pytest.raises(UserError, match=text) as raised:
    load(root)
  problems = [str(p) for p in check(root).problems if p.severity == 'error']
  assert str(raised.value) in problems


def test_tars_without_their_end(tmp_path):
  path = tmp_path / 'data' / 'a.tar'
  write(path, *example(0), *example(1))
  content = path.read_bytes()
  place = content.rindex(b'0001.json')
  path.write_bytes(content[: place + 1024])
  data = load(path, val_share=0)
  assert any("it may be cut off, behind '0001.json'" in note for note in data.notes)
  path.write_bytes(content + content)
  data = load(path, val_share=0)
  assert any("goes on, which is not read, behind '0001.json'" in n for n in data.notes)


def test_labels_and_images_that_are_wrong_have_their_place(shards, tmp_path):
  (shards / 'taxonomy.csv').write_text('make,model\naudi,tt\naudi,a4\nbmw,x5\n')
  with pytest.raises(UserError, match=r"train-000001\.tar/x+/0002\.png: .*'z4'"):
    load(shards)
  root = tmp_path / 'numbers'
  write(root / 'a.tar', info('a.png', encoded(0)), info('a.cls', b'3'))
  (root / 'taxonomy.csv').write_text('make,model\naudi,tt\naudi,a4\nbmw,x5\n')
  with pytest.raises(UserError, match='model goes from 3 to 3, the taxonomy has 3 classes'):
    load(root)
  (shards / 'taxonomy.csv').unlink()
  reader = load(shards, max_bytes=4096).splits['train'].reader
  with pytest.raises(OSError, match='bytes, more than the 100'):
    load(shards, max_bytes=100).splits['train'].reader(0)
  assert reader(0) == encoded(0)


def test_which_tars_are_read(shards, folder, tmp_path):
  with pytest.raises(UserError, match=r'no file .*train-000002\.tar'):
    load(shards / 'train-{000000..000002}.tar')
  for root in ('nothing-*.tar', 'nothing.tar'):
    with pytest.raises(UserError, match=r'no \*\.tar'):
      load(shards / root)
  (shards / 'cats').mkdir()
  (shards / 'dogs').mkdir()
  for i in range(2):
    (shards / 'cats' / f'{i}.png').write_bytes(encoded(i))
    (shards / 'dogs' / f'{i}.png').write_bytes(encoded(i + 2))
  data = load(shards)
  assert data.taxonomy.names == (('cats', 'dogs'),)
  assert any('train-000000.tar: is not read, as images beside it are' in n for n in data.notes)
  assert load(shards, source='webdataset').taxonomy.levels == LEVELS
