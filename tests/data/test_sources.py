"""Sources on little trees: what is read, the message of each mistake, and how splits are made."""

import dataclasses
import io
import json
import os
import pathlib
import pickle

import agreement
import numpy as np
import pytest
from PIL import Image

from hierjax.core import errors
from hierjax.core.config import assign, default
from hierjax.data import decoding, sources, splits
from hierjax.taxonomy import Taxonomy

TAXONOMY = 'kind,animal\nbird,heron\nbird,owl\nreptile,gecko\nreptile,skink\n'


def config(root, **options):
  c = default()
  for name, value in {'root': str(root), **options}.items():
    assign(c, f'data.{name}', value)
  if not root:
    c.data.toy.train, c.data.toy.val = 5, 3
  return c.data


def png(value=0):
  buffer = io.BytesIO()
  Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(buffer, 'PNG')
  return buffer.getvalue()


def tree(root, labels, taxonomy=TAXONOMY, files=()):
  """labels.csv and taxonomy.csv, and a picture for each file it names (value = row)."""
  if taxonomy:
    (root / 'taxonomy.csv').write_text(taxonomy)
  (root / 'labels.csv').write_bytes(labels if isinstance(labels, bytes) else labels.encode())
  for i, file in enumerate(files):
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(i))
  return root


def names(data, split):
  t = data.taxonomy
  return [
    [t.names[k][c] if c >= 0 else None for k, c in enumerate(row)]
    for row in data.splits[split].labels
  ]


def value(examples, i):
  return int(decoding.decode(examples.reader(i))[0, 0, 0])


# CSV


def test_csv(tmp_path):
  labels = (
    'file,split,kind,animal\na/1.png,train,bird,heron\na/2.png,val,reptile,\n'
    'b/3.png,train,,skink\na/4.png,other,,\n'
  )
  data = sources.load(
    config(tree(tmp_path, labels, files=['a/1.png', 'a/2.png', 'b/3.png', 'a/4.png']))
  )
  assert list(data.splits) == ['train', 'val', 'other'] and data.notes == []
  train = data.splits['train']
  assert train.files == ['a/1.png', 'b/3.png'] and train.labels.dtype == np.int32
  assert names(data, 'train') == [
    ['bird', 'heron'],
    ['reptile', 'skink'],
  ]  # the finest determines the rest
  assert names(data, 'val') == [['reptile', None]] and names(data, 'other') == [[None, None]]
  assert [value(train, 0), value(train, 1), value(data.splits['val'], 0)] == [0, 2, 1]
  assert value(pickle.loads(pickle.dumps(train)), 1) == 2


def test_csv_as_spreadsheets_write_it(tmp_path):
  labels = (
    '\ufefffile , split,animal\r\n 1.png ,train, heron \r\n\r\n"2.png",val,skink\r\n'
    'sub\\3.png,train,owl\r\n'
  )
  data = sources.load(config(tree(tmp_path, labels, files=['1.png', '2.png', 'sub/3.png'])))
  assert names(data, 'train') == [['bird', 'heron'], ['bird', 'owl']] and data.splits[
    'train'
  ].files == ['1.png', 'sub/3.png']


@pytest.mark.parametrize(
  ('labels', 'message'),
  [
    (
      'file,animal\n1.png,herron\n',
      r"labels.csv:2: animal 'herron' is not in the taxonomy; did you mean 'heron'",
    ),
    ('file,animal\n1.png,owl\n\n2.png,dodo\n', r"labels.csv:4: animal 'dodo'"),
    (
      'file,kind,animal\n1.png,bird,gecko\n',
      r"labels.csv:2: no row of the taxonomy has kind 'bird', animal 'gecko' together",
    ),
    (
      'file,animl\n1.png,owl\n',
      r"labels.csv:1: column 'animl' is no level of the taxonomy \(did you mean 'animal'",
    ),
    ('file,weight\n1.png,3\n', r'labels.csv:1: no column of labels; the levels are kind, animal'),
    ('flie,animal\n1,owl\n', r'labels.csv:1: no column "file", nor another that names images'),
    ('file,animal\n', r'labels.csv:1: has no example'),
    ('file,animal\n../5.png,owl\n', r'labels.csv:2: ../5.png leaves the root'),
    ('file,animal\na/../../5.png,owl\n', r'leaves the root'),
    ('file,animal\n/etc/passwd,owl\n', r'leaves the root'),
    ('file,animal\nC:\\5.png,owl\n', r'leaves the root'),
    ('file,animal\n,owl\n', r'labels.csv:2: the cell "file" is empty'),
    ('file,split,animal\n1.png,train,owl\n2.png,,owl\n', r'labels.csv:3: no split'),
    (
      'file,animal\n1.png,owl\n1.png,heron\n',
      r'labels.csv:3: 1.png stands in row 2 already, with other labels',
    ),
    (
      'file,split,animal\n1.png,train,owl\n1.png,val,owl\n',
      r'labels.csv:3: 1.png stands in row 2 already',
    ),
    ('file,animal\n1.jpg,owl\n', r'labels.csv:2: no file 1.jpg \(did you mean 1.png\?\)'),
    (
      'file,animal\nb/5.png,owl\nc/6.png,owl\n',
      r'labels.csv:2: no file b/5.png, and 1 more of 2 are missing',
    ),
  ],
)
def test_csv_mistakes_name_the_row(tmp_path, labels, message):
  agreement.refuses(config(tree(tmp_path, labels, files=['1.png', '2.png'])), message)


def test_csv_notes(tmp_path):
  labels = (
    'file,animal,weight\n1.png,owl,3\n2.png,skink,4\n1.png,owl,3\n3.png,owl,1\nlost.png,owl,2\n'
  )
  root = tree(tmp_path, labels, files=['1.png', '2.png', '3.png'])
  data = sources.load(config(root))
  assert sum(len(s.labels) for s in data.splits.values()) == 4
  text = '\n'.join(data.notes)
  for part in (
    "column 'weight' is not used",
    '1 repeated rows are left out, the first is row 4',
    'labels.csv:6: no file lost.png',
    'split made',
  ):
    assert part in text
  agreement.refuses(config(root, strict=True), r'labels.csv:6: no file lost.png')


def test_csv_without_taxonomy(tmp_path):
  labels = (
    'file,kind,animal\n1.png,reptile,gecko\n2.png,,owl\n3.png,bird,owl\n4.png,bird,heron\n'
    '5.png,fish,\n6.png,bird,\n'
  )
  data = sources.load(config(tree(tmp_path, labels, None, [f'{i}.png' for i in range(1, 7)])))
  assert data.taxonomy.rows() == [
    ['bird', 'heron'],
    ['bird', 'owl'],
    ['fish', ''],
    ['reptile', 'gecko'],
  ]
  assert 'taxonomy derived from labels.csv' in data.notes[0]
  both = [n for s in data.splits for n in names(data, s)]
  assert sorted(map(str, both)) == sorted(
    map(
      str,
      [
        ['reptile', 'gecko'],
        ['bird', 'owl'],
        ['bird', 'owl'],
        ['bird', 'heron'],
        ['fish', 'fish'],
        ['bird', None],
      ],
    )
  )


@pytest.mark.parametrize(
  ('labels', 'message'),
  [
    (
      'file,kind,animal\n1.png,bird,owl\n2.png,reptile,owl\n',
      r"labels.csv:3: animal 'owl' has kind 'reptile' here and 'bird' in .*labels.csv:2",
    ),
    (
      'file,kind,animal\n1.png,,owl\n2.png,bird,crow\n',
      r"labels.csv:2: animal 'owl' has no kind in any row",
    ),
    ('file\n1.png\n', r'no column of labels'),
    ('file,kind\n1.png,\n', r'no row has a label'),
  ],
)
def test_csv_that_gives_no_taxonomy(tmp_path, labels, message):
  agreement.refuses(config(tree(tmp_path, labels, None, ['1.png', '2.png'])), message)


def test_another_taxonomy_by_option(tmp_path):
  root = tree(tmp_path, 'file,animal\n1.png,owl\n2.png,owl\n', files=['1.png', '2.png'])
  (tmp_path / 'other.csv').write_text('order,animal\nraptor,owl\n')
  assert sources.load(config(root, taxonomy=str(tmp_path / 'other.csv'))).taxonomy.levels == (
    'order',
    'animal',
  )


# Splits


def test_stratified_split():
  rng = np.random.default_rng(0)
  leaf = np.concatenate([np.repeat(np.arange(30), rng.integers(1, 40, 30)), [30]])
  labels = np.stack([leaf // 5, leaf], 1).astype(np.int32)
  labels[:7, 1] = -1
  files = [f'{i}.jpg' for i in range(len(leaf))]
  mask = splits.stratified(labels, files, 0.2, 0)
  assert abs(mask.sum() - 0.2 * len(leaf)) <= 1
  for c in range(31):
    members = labels[:, 1] == c
    n, count = members.sum(), mask[members].sum()
    assert count < n and abs(count - 0.2 * n) <= 1.01
  assert abs(mask[:7].sum() - 1.4) <= 1.01  # those known at the coarse level only are a group, too
  order = rng.permutation(len(leaf))
  np.testing.assert_array_equal(
    splits.stratified(labels[order], [files[i] for i in order], 0.2, 0), mask[order]
  )
  assert (splits.stratified(labels, files, 0.2, 1) != mask).any()
  assert not splits.stratified(labels, files, 0.0, 0).any()


def test_a_test_share_is_made_beside_val_where_the_data_name_no_split(tmp_path):
  root = tree(
    tmp_path,
    'file,animal\n' + ''.join(f'{a}-{i}.png,{a}\n' for a in ('heron', 'gecko') for i in range(10)),
    files=[f'{a}-{i}.png' for a in ('heron', 'gecko') for i in range(10)],
  )
  data = sources.load(config(root, val_share=0.2, test_share=0.1))
  assert {name: len(x.files) for name, x in data.splits.items()} == {
    'train': 14,
    'val': 4,
    'test': 2,
  }
  assert sorted(f for x in data.splits.values() for f in x.files) == sorted(
    f'{a}-{i}.png' for a in ('heron', 'gecko') for i in range(10)
  )
  for name, each in (('train', 7), ('val', 2), ('test', 1)):
    assert [data.taxonomy.names[1][c] for c in data.splits[name].labels[:, 1]].count(
      'heron'
    ) == each
  assert (
    '14 train, 4 val (a share of 0.2 of each finest class, seed 0), 2 test (a share of 0.1)'
    in data.notes[0]
  )
  (tmp_path / 'labels.csv').write_text(
    'file,split,animal\nheron-0.png,train,heron\nheron-1.png,val,heron\n'
  )
  assert set(sources.load(config(root, test_share=0.1)).splits) == {
    'train',
    'val',
  }  # the data's own splits are kept


def test_a_calibration_share_is_set_apart_from_all_others(tmp_path):
  files = [f'{a}-{i}.png' for a in ('heron', 'gecko') for i in range(20)]
  lines = 'file,animal\n' + ''.join(f'{f},{f.partition("-")[0]}\n' for f in files)
  root = tree(tmp_path, lines, files=files)
  shares = {'val_share': 0.2, 'test_share': 0.1}
  data = sources.load(config(root, calibration_share=0.2, **shares))
  sizes = {name: len(x.files) for name, x in data.splits.items()}
  assert sizes == {'train': 20, 'val': 8, 'calibration': 8, 'test': 4}
  assert sorted(f for x in data.splits.values() for f in x.files) == sorted(files)
  assert '20 train, 8 val (a share of 0.2 of each finest class, seed 0), ' in data.notes[0]
  assert '8 calibration (a share of 0.2), 4 test (a share of 0.1)' in data.notes[0]
  # the test split is the same without it
  assert data.splits['test'].files == sources.load(config(root, **shares)).splits['test'].files
  named = ''.join(f'{f},{["train", "val", "test"][i % 3]},x\n' for i, f in enumerate(files))
  (tmp_path / 'labels.csv').write_text('file,split,animal\n' + named.replace(',x', ',heron'))
  data = sources.load(config(root, calibration_share=0.5, calibration='apart'))
  sizes = {name: len(x.files) for name, x in data.splits.items()}
  assert sizes == {'train': 7, 'val': 13, 'test': 13, 'apart': 7}
  with pytest.raises(errors.UserError, match='the data have a split test'):
    sources.load(config(root, calibration_share=0.5, calibration='test'))
  with pytest.raises(errors.UserError, match=r"no such split.*did you mean 'test'.*makes it"):
    sources.load(config(root, calibration='tset'))
  assert set(sources.load(config(root, calibration='test')).splits) == {'train', 'val', 'test'}


def test_limit_keeps_every_class_in_its_proportion(tmp_path):
  sizes = {'heron': 24, 'gecko': 12, 'owl': 4}
  files = [f'{a}-{i}.png' for a, n in sizes.items() for i in range(n)]
  lines = [
    f'{f},{"val" if i % 4 == 0 else "train"},{f.split("-")[0]}\n' for i, f in enumerate(files)
  ]
  root = tree(tmp_path, 'file,split,animal\n' + ''.join(lines), files=files)
  full, limited = sources.load(config(root)), sources.load(config(root, limit=10))
  for name in ('train', 'val'):
    count = [
      [data.taxonomy.names[1][c] for c in data.splits[name].labels[:, 1]].count(a)
      for data in (full, limited)
      for a in sizes
    ]
    assert count == {'train': [18, 9, 3, 6, 3, 1], 'val': [6, 3, 1, 6, 3, 1]}[name]
  train = limited.splits['train']
  assert [f.split('-')[0] for f in train.files] == [
    limited.taxonomy.names[1][c] for c in train.labels[:, 1]
  ]
  assert all(
    value(train, i) == files.index(f) for i, f in enumerate(train.files)
  )  # the reader follows
  assert (
    sources.load(config(root, limit=10)).splits['train'].files
    == train.files
    != sources.load(config(root, limit=10, split_seed=1)).splits['train'].files
  )
  assert limited.notes == ['10 of 30 train examples are used (data.limit)']
  fewer = sources.load(config(root, train_limit=10))
  assert fewer.splits['train'].files == train.files and len(fewer.splits['val'].files) == 10
  assert fewer.notes == ['10 of 30 train examples are used (data.train_limit)']
  pickle.dumps(train.reader)
  assert [len(x.files) for x in sources.load(config('', limit=2)).splits.values()] == [2, 2]


def test_finest_labels_are_hidden_and_left_out(tmp_path):
  """A share of each class of the training split, rounded down; their kind stays known."""
  sizes = {'heron': 8, 'gecko': 3, 'owl': 1}
  files = [
    f'{a}-{i}-{split}.png' for split in ('train', 'val') for a, n in sizes.items() for i in range(n)
  ]
  lines = [f'{f},{f.split("-")[2][:-4]},{f.split("-")[0]}\n' for f in files]
  root = tree(tmp_path, 'file,split,animal\n' + ''.join(lines), files=files)
  data, dropped = (
    sources.load(config(root, unlabelled=0.5)),
    sources.load(config(root, unlabelled=0.5, partial='drop')),
  )
  train = data.splits['train']
  hidden = train.labels[:, 1] < 0
  assert [sum(h and f.startswith(a) for f, h in zip(train.files, hidden)) for a in sizes] == [
    4,
    1,
    0,
  ] and (train.labels[:, 0] >= 0).all()
  assert (data.splits['val'].labels >= 0).all()
  assert data.notes == ['the finest label of 5 of 12 train examples is hidden (data.unlabelled)']
  assert dropped.splits['train'].files == [f for f, h in zip(train.files, hidden) if not h]
  assert all(
    value(dropped.splits['train'], i) == files.index(f)
    for i, f in enumerate(dropped.splits['train'].files)
  )
  assert dropped.notes[1:] == [
    '5 train examples without a finest label are left out (data.partial)'
  ]
  assert (
    sources.load(config(root, unlabelled=0.5)).splits['train'].labels.tolist()
    == train.labels.tolist()
  )
  assert (
    sources.load(config(root, unlabelled=0.5, split_seed=3)).splits['train'].labels.tolist()
    != train.labels.tolist()
  )


def test_splits_that_are_made_and_those_that_are_renamed(tmp_path):
  files = [f'{i}.png' for i in range(12)]

  def load(splits, **options):
    rows = ''.join(f'{f},{s},{a}\n' for f, s, a in zip(files, splits, ['owl', 'gecko'] * 6))
    return sources.load(
      config(tree(tmp_path, 'file,split,animal\n' + rows, files=files), **options)
    )

  data = load(['train'] * 8 + ['test'] * 4)
  assert {k: len(v.labels) for k, v in data.splits.items()} == {'train': 6, 'val': 2, 'test': 4}
  assert 'split made: 6 train, 2 val' in data.notes[-1]
  data = load(['train'] * 8 + ['validation'] * 4)
  assert {k: len(v.labels) for k, v in data.splits.items()} == {
    'train': 8,
    'val': 4,
  } and 'is called val here' in data.notes[-1]
  assert set(load(['train'] * 8 + ['mine'] * 4, val='mine').splits) == {'train', 'mine'}
  assert set(load(['train'] * 8 + ['mine'] * 4, val='yours').splits) == {
    'train',
    'mine',
  }  # a name that was asked for is not made up
  assert set(load(['test'] * 12).splits) == {'test'}


# Folders


def folders(root, *files):
  for i, file in enumerate(files):
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_bytes(png(i))
  return root


def test_folders(tmp_path):
  root = folders(
    tmp_path,
    'bird/owl/1.png',
    'bird/owl/2.PNG',
    'bird/heron/1.png',
    'reptile/gecko/1.png',
    'bird/notes.txt',
    'bird/owl/.hidden.png',
  )
  data = sources.load(config(root))
  assert data.taxonomy.levels == ('superclass', 'class')
  assert data.taxonomy.rows() == [['bird', 'heron'], ['bird', 'owl'], ['reptile', 'gecko']]
  result = {f: n for s in data.splits for f, n in zip(data.splits[s].files, names(data, s))}
  assert result == {
    'bird/heron/1.png': ['bird', 'heron'],
    'bird/owl/1.png': ['bird', 'owl'],
    'bird/owl/2.PNG': ['bird', 'owl'],
    'reptile/gecko/1.png': ['reptile', 'gecko'],
  }


def test_folders_with_splits(tmp_path):
  data = sources.load(
    config(folders(tmp_path, 'train/owl/1.png', 'val/owl/2.png', 'Test/gecko/3.png'))
  )
  assert {k: v.files for k, v in data.splits.items()} == {
    'train': ['train/owl/1.png'],
    'val': ['val/owl/2.png'],
    'test': ['Test/gecko/3.png'],
  }
  assert data.taxonomy.levels == ('class',) and value(data.splits['test'], 0) == 2


def test_folders_whose_finest_names_repeat(tmp_path):
  data = sources.load(
    config(folders(tmp_path, 'audi/coupe/1.png', 'bmw/coupe/1.png', 'bmw/sedan/1.png'))
  )
  assert data.taxonomy.names[-1] == ('audi/coupe', 'bmw/coupe', 'sedan')
  deep = sources.load(
    config(folders(tmp_path / 'deep', 'a/x/one/1.png', 'b/x/one/1.png', 'b/y/two/1.png'))
  )
  assert deep.taxonomy.levels == ('level1', 'level2', 'class') and deep.taxonomy.names[-1] == (
    'a/x/one',
    'b/x/one',
    'two',
  )
  assert deep.taxonomy.names[1] == ('x', 'y')


def test_folders_of_different_depth(tmp_path):
  data = sources.load(
    config(
      folders(
        tmp_path,
        'bird/owl/1.png',
        'bird/owl/2.png',
        'fish/1.png',
        'fish/2.png',
        'bird/3.png',
        'bird/4.png',
      )
    )
  )
  assert data.taxonomy.rows() == [['bird', 'owl'], ['fish', '']]
  result = {f: n for s in data.splits for f, n in zip(data.splits[s].files, names(data, s))}
  assert result['fish/1.png'] == ['fish', 'fish'] and result['bird/3.png'] == ['bird', None]
  assert any('folder bird holds images beside class folders' in n for n in data.notes)


def test_folders_with_a_taxonomy(tmp_path):
  root = folders(tmp_path, 'owl/1.png', 'owl/2.png', 'gecko/1.png')
  (root / 'taxonomy.csv').write_text(TAXONOMY)
  data = sources.load(config(root))
  assert {tuple(n) for s in data.splits for n in names(data, s)} == {
    ('bird', 'owl'),
    ('reptile', 'gecko'),
  }
  folders(tmp_path, 'bird/heron/1.png')
  assert any(['bird', 'heron'] in names(sources.load(config(root)), s) for s in ('train', 'val'))
  folders(tmp_path, 'bird/skink/1.png')
  agreement.refuses(config(root), r'folder bird/skink: .*under another parent')
  os.remove(root / 'bird/skink/1.png')
  folders(tmp_path, 'geko/1.png')
  agreement.refuses(config(root), r"folder geko: .*did you mean 'gecko'")


def test_folders_mistakes(tmp_path):
  agreement.refuses(config(tmp_path), r'no labels.csv, no \*.parquet and no image')
  agreement.refuses(config(folders(tmp_path, '1.png')), r'1.png is in no class folder')
  agreement.refuses(config(tmp_path / 'nowhere'), r'no such folder')
  agreement.refuses(config(tmp_path, source='cvs'), r"did you mean 'csv'")
  agreement.refuses(config('', source='csv'), r'needs --config.data.root')


# Parquet


@pytest.fixture
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def parquet(path, values, described=None, **columns):
  import pyarrow as pa
  import pyarrow.parquet as pq

  path.parent.mkdir(parents=True, exist_ok=True)
  table = pa.table(
    {'img': [{'bytes': None if v is None else png(v), 'path': None} for v in values], **columns}
  )
  if described:
    table = table.replace_schema_metadata(
      {'huggingface': json.dumps({'info': {'features': described}})}
    )
  pq.write_table(table, path, row_group_size=2)


def test_parquet_with_integers_in_the_order_of_the_taxonomy(tmp_path, cache):
  root = tmp_path / 'data'
  parquet(
    root / 'train.parquet',
    [10, 20, 30, 40, 50],
    animal_label=[0, 2, 3, -1, None],
    kind_label=[0, 1, 1, 0, 1],
    weight=[0.1, 0.2, 0.3, 0.4, 0.5],
  )
  parquet(root / 'val-00000-of-00002.parquet', [60], animal_label=[1], kind_label=[0], weight=[0.1])
  parquet(
    root / 'val-00001-of-00002.parquet',
    [70, 80],
    animal_label=[2, 3],
    kind_label=[1, 1],
    weight=[0.1, 0.1],
  )
  # the file's order is not the alphabet's: it is what integers of the finest level mean
  (root / 'taxonomy.csv').write_text(
    'kind,animal\nbird,owl\nbird,heron\nreptile,skink\nreptile,gecko\n'
  )
  for path in root.iterdir():
    path.chmod(0o444)
  root.chmod(0o555)
  try:
    for _ in range(2):
      data = sources.load(config(root))
      assert names(data, 'train') == [
        ['bird', 'owl'],
        ['reptile', 'skink'],
        ['reptile', 'gecko'],
        ['bird', None],
        ['reptile', None],
      ]
      assert names(data, 'val') == [['bird', 'heron'], ['reptile', 'skink'], ['reptile', 'gecko']]
      assert [value(data.splits['train'], i) for i in (4, 0, 2)] == [50, 10, 30]
      val = pickle.loads(pickle.dumps(data.splits['val']))
      assert [value(val, i) for i in range(3)] == [60, 70, 80]
      assert val.files[1] == 'val-00001-of-00002.parquet:row 1'
  finally:
    root.chmod(0o755)
  stores = list(cache.glob('hierjax/parquet/*'))
  assert len(stores) == 3 and not any(s.name.startswith('draft') for s in stores)


def test_parquet_is_converted_again_when_it_changes(tmp_path, cache):
  parquet(tmp_path / 'd/train.parquet', [1, 2], fine_label=[0, 1])
  first = sources.load(config(tmp_path / 'd'))
  parquet(tmp_path / 'd/train.parquet', [3, 4, 5, 6], fine_label=[0, 1, 0, 1])
  second = sources.load(config(tmp_path / 'd'))
  assert (
    sum(len(s.labels) for s in first.splits.values()) == 2
    and sum(len(s.labels) for s in second.splits.values()) == 4
  )
  assert second.splits['train'].reader(0) != first.splits['train'].reader(0)


def test_parquet_with_names(tmp_path, cache):
  animals = ['owl', 'gecko', 'owl', None]
  parquet(
    tmp_path / 'a/train.parquet',
    [1, 2, 3, None],
    kind=['bird', 'reptile', 'bird', 'bird'],
    animal=animals,
  )
  (tmp_path / 'a/taxonomy.csv').write_text(TAXONOMY)
  data = sources.load(config(tmp_path / 'a', val='none'))
  assert names(data, 'train') == [
    ['bird', 'owl'],
    ['reptile', 'gecko'],
    ['bird', 'owl'],
    ['bird', None],
  ]
  with pytest.raises(decoding.BrokenImage):
    decoding.decode(data.splits['train'].reader(3))
  described = {
    'animal_label': {'names': ['skink', 'owl'], '_type': 'ClassLabel'}
  }  # the hub's own names come before any order
  parquet(tmp_path / 'b/train.parquet', [1, 2], described, animal_label=[1, 0])
  (tmp_path / 'b/taxonomy.csv').write_text(TAXONOMY)
  assert names(sources.load(config(tmp_path / 'b', val='none')), 'train') == [
    ['bird', 'owl'],
    ['reptile', 'skink'],
  ]


def test_parquet_without_taxonomy(tmp_path, cache):
  parquet(
    tmp_path / 'a/train.parquet',
    range(12),
    fine_label=list(range(12)),
    coarse_label=[i // 6 for i in range(12)],
    id=list(range(12)),
  )
  data = sources.load(config(tmp_path / 'a', val='none'))
  assert data.taxonomy.levels == ('coarse', 'fine') and data.taxonomy.names[1] == tuple(
    f'{i:02d}' for i in range(12)
  )
  np.testing.assert_array_equal(data.splits['train'].labels[:, 1], range(12))


def test_parquet_mistakes(tmp_path, cache):
  def fails(message, text=TAXONOMY, **columns):
    root = tmp_path / str(len(list(tmp_path.iterdir())))
    parquet(root / 'train.parquet', [1, 2], **columns)
    if text:
      (root / 'taxonomy.csv').write_text(text)
    agreement.refuses(config(root), message)

  fails(r'animal goes from 0 to 4, the taxonomy has 4 classes', animal_label=[0, 4])
  fails(
    r'train.parquet:row 2: no row of the taxonomy has kind .* together',
    animal_label=[0, 1],
    kind_label=[0, 1],
  )
  fails(r"animal 'olw' is not in the taxonomy; did you mean 'owl'", animal=['olw', 'owl'])
  fails(r'no column of labels; the levels are kind, animal', other=['a', 'b'])
  fails(r'no column LEVEL_label', None, other=['a', 'b'])
  (tmp_path / 'text').mkdir()
  (tmp_path / 'text/train.parquet').write_text('no such thing')
  agreement.refuses(config(tmp_path / 'text'), r'cannot be read as Parquet')
  assert not list((cache / 'hierjax/parquet').glob('draft-*'))


# The rest


def test_no_root_is_the_toy_set():
  data = sources.load(config(''))
  assert {k: len(v.labels) for k, v in data.splits.items()} == {'train': 5, 'val': 3}
  assert data.splits['train'].reader(0).shape == (72, 96, 3) and data.taxonomy.levels == (
    'make',
    'type',
    'model',
  )


def test_features_stand_in_for_images():
  examples = sources.Examples('train', ['a', 'b', 'c'], np.array([[0], [1], [2]], np.int32), None)
  out = pickle.loads(
    pickle.dumps(
      sources.with_features(examples, np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([2, 0]))
    )
  )
  assert (
    out.files == ['c', 'a']
    and out.labels.tolist() == [[2], [0]]
    and out.reader(1).tolist() == [3.0, 4.0]
    and out.reader(1).dtype == np.float32
  )


def test_examples_are_frozen():
  data = sources.load(config(''))
  with pytest.raises(dataclasses.FrozenInstanceError):
    data.splits['train'].name = 'x'
  assert isinstance(data.taxonomy, Taxonomy)


SHARED = pathlib.Path(__file__).resolve().parents[3] / 'shared' / 'data'


@pytest.mark.skipif(not SHARED.exists(), reason='no shared data beside the repository')
def test_stanford_cars():
  data = sources.load(config(SHARED / 'stanford_cars'))
  assert {k: len(v.labels) for k, v in data.splits.items()} == {
    'train': 5685,
    'val': 1647,
  } and data.notes == []
  assert [len(n) for n in data.taxonomy.names] == [49, 9, 196] and (
    data.splits['train'].labels >= 0
  ).all()


@pytest.mark.skipif(not SHARED.exists(), reason='no shared data beside the repository')
def test_cifar100(cache, tmp_path):
  (tmp_path / 'c').mkdir()
  for name in ('val.parquet', 'taxonomy.csv'):
    (tmp_path / 'c' / name).symlink_to(
      SHARED / 'cifar100' / name
    )  # the small half, converted in .3 s
  data = sources.load(config(tmp_path / 'c'))
  val = data.splits['val']
  assert val.labels.shape == (3000, 2) and (val.labels >= 0).all()
  np.testing.assert_array_equal(
    data.taxonomy.paths[val.labels[:, 1]], val.labels
  )  # the file's coarse labels agree with its fine ones
  assert decoding.decode(val.reader(2999)).shape == (32, 32, 3)
