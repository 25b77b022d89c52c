"""Splits that a CSV of the user gives (data.splits), on drawn folders."""

import csv

import numpy as np
import pytest
import tiny
from PIL import Image

from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.data import sources, split_record
from hierjax.data.splits import file_key
from hierjax.experiments import fit


@pytest.fixture
def folder(tmp_path):
  """Two kinds of two classes, six images each, in folders that name no split."""
  rng = np.random.default_rng(0)
  for kind, name in (('a', 'x'), ('a', 'y'), ('b', 'z'), ('b', 'w')):
    place = tmp_path / 'data' / kind / name
    place.mkdir(parents=True)
    for i in range(6):
      Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(place / f'{i}.png')
  return tmp_path / 'data'


def options(folder, splits=None):
  """The options of the data in a folder."""
  c = config.default()
  config.assign(c, 'data.root', str(folder))
  c.data.splits = splits and str(splits)
  return c.data


def write(path, rows, header=('file', 'split')):
  """Write a CSV."""
  with path.open('w', newline='') as f:
    csv.writer(f).writerows([header, *rows])
  return path


def splits_of(data):
  """{file: split} of all examples."""
  return {file_key(f): name for name, s in data.splits.items() for f in s.files}


def test_each_image_is_where_the_file_puts_it(folder, tmp_path):
  """Whatever would be drawn; 'validation' is val; what is not named is not used, and said to be."""
  files = sorted(splits_of(sources.load(options(folder))))
  parts = {file: ('train', 'validation', 'other')[i % 3] for i, file in enumerate(files[:-2])}
  path = write(tmp_path / 'mine.csv', parts.items())
  data = sources.load(options(folder, path))
  assert splits_of(data) == {f: 'val' if s == 'validation' else s for f, s in parts.items()}
  assert any(note.startswith('2 images are not in ') for note in data.notes)
  # more columns, in another order, and semicolons
  text = 'split;why;file\n' + ''.join(f'{s};x;{f}\n' for f, s in parts.items())
  path.write_text(text)
  assert splits_of(sources.load(options(folder, path))) == splits_of(data)


def test_names_of_the_data_give_way(folder, tmp_path):
  """Data with folders train and val."""
  for split in ('train', 'val'):
    (folder / split).mkdir()
  for kind in ('a', 'b'):
    (folder / kind).rename(folder / 'train' / kind)
    place = folder / 'val' / kind / {'a': 'x', 'b': 'z'}[kind]
    place.mkdir(parents=True)
    (folder / 'train' / kind / place.name / '0.png').rename(place / '0.png')
  before = splits_of(sources.load(options(folder)))
  assert set(before.values()) == {'train', 'val'}
  turned = {file: 'train' if split == 'val' else 'val' for file, split in before.items()}
  path = write(tmp_path / 'mine.csv', turned.items())
  assert splits_of(sources.load(options(folder, path))) == turned


def test_a_run_takes_the_split_of_another(folder, tmp_path, tiny_backbone, one_device, no_report):
  """By its splits.csv, and keeps it when it goes on, also where the file has changed since."""
  first = tiny.run_config(**{'data.source': 'auto', 'data.root': str(folder), 'data.size': 8})
  first.data.split_seed = 3
  fit.fit(first, tmp_path / 'first')
  second = tiny.run_config(**{'data.source': 'auto', 'data.root': str(folder), 'data.size': 8})
  second.data.splits = str(tmp_path / 'first' / 'splits.csv')
  fit.fit(second, tmp_path / 'second')
  records = [split_record.read(tmp_path / name).splits for name in ('first', 'second')]
  assert records[0] == records[1]
  second.data.splits = None
  with pytest.raises(UserError, match=r'data\.splits'):
    fit.fit(second, tmp_path / 'second')


@pytest.mark.parametrize(
  ('header', 'change', 'message'),
  [
    (('file', 'part'), {}, r'needs the columns file and split; it has file, part'),
    (('file', 'split'), {'': 'val'}, r'line 26 puts a/x/0\.png into val, another line does not'),
    (('file', 'split'), None, r'has none of the 24 images; .* such as a/x/0\.png'),
  ],
)
def test_what_is_wrong_is_said(folder, tmp_path, header, change, message):
  """With the file and its line."""
  files = sorted(splits_of(sources.load(options(folder))))
  rows = [(f'{"" if change is not None else "data/"}{file}', 'train') for file in files]
  if change:
    rows.append((files[0], 'val'))
  path = write(tmp_path / 'mine.csv', rows, header)
  with pytest.raises(UserError, match=message):
    sources.load(options(folder, path))
