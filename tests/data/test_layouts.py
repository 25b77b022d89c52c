"""Published data sets on small trees in their layouts: labels, splits, boxes, order, mistakes."""

import importlib.resources
import importlib.resources.abc
import io
import json
import os
import pathlib
import pickle
import struct
import sys

import agreement
import huggingface_hub
import numpy as np
import pytest
import scipy.io
import tiny
from PIL import Image

import hierjax
from hierjax.core.config import default
from hierjax.core.declarations import OPTIONS
from hierjax.core.errors import UserError
from hierjax.data import decoding, lint, matfile, published, sources
from hierjax.data.published import cars
from hierjax.taxonomy import read_taxonomy


def load(root, **options):
  data = default().data
  data.update({'root': str(root), **options})
  return sources.load(data)


def fails(root, message, **options):
  data = default().data
  data.update({'root': str(root), **options})
  agreement.refuses(data, message)


def encoded(number, size=(40, 30), kind='PNG'):
  """A picture whose red is its number, green its column and blue its row."""
  x, y = np.meshgrid(*map(np.arange, size))
  out = io.BytesIO()
  Image.fromarray(np.stack([np.full_like(x, number), x, y], -1).astype(np.uint8)).save(out, kind)
  return out.getvalue()


def put(root, **files):
  """Writes {path: text, bytes or None (a picture, numbered in their order)}."""
  number = 0
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
      content, number = encoded(number), number + 1
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return root


def names(examples, taxonomy):
  return [
    tuple(taxonomy.names[k][c] if c >= 0 else None for k, c in enumerate(row))
    for row in examples.labels
  ]


def view(examples, i):
  """(number, left, top, width, height) of the part that is shown."""
  image = decoding.decode(examples.reader(i))
  return *image[0, 0].tolist(), image.shape[1], image.shape[0]


def is_clean(root, **options):
  """lint has nothing to say against it, and workers can receive it."""
  data = default().data
  data.update({'root': str(root), **options})
  report = lint.check(data)
  assert report.counts['error'] == 0, report.text()
  for examples in sources.load(data).splits.values():
    copy = pickle.loads(pickle.dumps(examples))
    np.testing.assert_array_equal(
      decoding.decode(copy.reader(0)), decoding.decode(examples.reader(0))
    )
    assert len(set(copy.files)) == len(copy.files) and not any(str(root) in f for f in copy.files)


# Stanford Cars

CARS = [
  'AM General Hummer SUV 2000',
  'Acura TL Type-S 2008',
  'Ram C/V Cargo Van Minivan 2012',
  'Ford Ranger SuperCab 2011',
  'Ford E-Series Wagon Van 2012',
]
CAR_ROWS = [
  ('AM General', 'SUV', CARS[0]),
  ('Acura', 'Sedan', CARS[1]),
  ('Ram', 'Minivan', CARS[2]),
  ('Ford', 'Cab', CARS[3]),
  ('Ford', 'Wagon', CARS[4]),
]


def annotations(path, rows, fields=('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2', 'class', 'fname')):
  path.parent.mkdir(parents=True, exist_ok=True)
  result = np.empty((1, len(rows)), [(f, object) for f in fields])
  for i, row in enumerate(rows):
    result[0, i] = tuple(row)
  scipy.io.savemat(path, {'annotations': result})


def devkit(root, labelled='cars_test_annos_withlabels.mat'):
  cells = np.empty((1, len(CARS)), object)
  cells[0] = CARS
  (root / 'devkit').mkdir(parents=True)
  scipy.io.savemat(root / 'devkit/cars_meta.mat', {'class_names': cells})
  annotations(
    root / 'devkit/cars_train_annos.mat',
    [(1, 1, 40, 30, 2, '00001.jpg'), (11, 6, 30, 25, 1, '00002.jpg'), (3, 2, 9, 8, 5, '00003.jpg')],
  )
  fields = ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2', 'fname')
  annotations(
    root / 'devkit/cars_test_annos.mat',
    [(2, 2, 10, 10, '00001.jpg'), (5, 5, 10, 10, '00002.jpg')],
    fields,
  )
  if labelled:
    annotations(root / labelled, [(2, 2, 10, 10, 3, '00001.jpg'), (5, 5, 10, 10, 4, '00002.jpg')])
  return put(
    root,
    **{f'cars_train/0000{i}.jpg': None for i in (1, 2, 3)}
    | {f'cars_test/0000{i}.jpg': encoded(10 + i) for i in (1, 2)},
  )


@pytest.mark.parametrize(
  'labelled', ['cars_test_annos_withlabels.mat', 'devkit/cars_test_annos_withlabels.mat']
)
def test_stanford_cars_devkit(tmp_path, labelled):
  data = load(devkit(tmp_path / 'd', labelled), val='test')
  assert (
    data.taxonomy.levels == ('make', 'type', 'model')
    and list(map(tuple, data.taxonomy.rows())) == CAR_ROWS
  )
  train, test = data.splits['train'], data.splits['test']
  assert names(train, data.taxonomy) == [CAR_ROWS[1], CAR_ROWS[0], CAR_ROWS[4]] and names(
    test, data.taxonomy
  ) == [CAR_ROWS[2], CAR_ROWS[3]]
  assert train.files == [f'cars_train/0000{i}.jpg' for i in (1, 2, 3)] and view(train, 1) == (
    1,
    0,
    0,
    40,
    30,
  )
  cropped = load(tmp_path / 'd', crop_boxes=True, val='test').splits
  assert [view(cropped['train'], i) for i in range(3)] == [
    (0, 0, 0, 40, 30),
    (1, 10, 5, 20, 20),
    (2, 2, 1, 7, 7),
  ]
  assert [view(cropped['test'], i) for i in range(2)] == [(11, 1, 1, 9, 9), (12, 4, 4, 6, 6)]
  wider = load(tmp_path / 'd', crop_boxes=True, crop_margin=0.25, val='test').splits
  assert view(wider['train'], 1) == (1, 5, 0, 30, 30)  # a quarter of 20 on each side
  is_clean(tmp_path / 'd', crop_boxes=True)


def test_stanford_cars_without_labels_of_test(tmp_path):
  data = load(devkit(tmp_path, None))
  assert (
    names(data.splits['test'], data.taxonomy) == [(None,) * 3] * 2
    and (data.splits['train'].labels >= 0).all()
  )
  assert any('test has no labels' in n for n in data.notes)


def kaggle(root):
  files = {
    f'car_data/car_data/{split}/{c.replace("/", "-")}/{split}{i}.jpg': None
    for split in ('train', 'test')
    for i, c in enumerate(CARS)
  }
  return put(root, **files)


def test_stanford_cars_class_folders(tmp_path):
  root = kaggle(tmp_path)
  data = load(root, val='test')
  assert sorted(map(tuple, data.taxonomy.rows())) == sorted(CAR_ROWS)
  for split in ('train', 'test'):
    result = dict(zip(data.splits[split].files, names(data.splits[split], data.taxonomy)))
    assert result == {
      f'car_data/car_data/{split}/{c.replace("/", "-")}/{split}{i}.jpg': CAR_ROWS[i]
      for i, c in enumerate(CARS)
    }
  fails(root, 'expected anno_train.csv', crop_boxes=True)
  for split in ('train', 'test'):
    (root / f'anno_{split}.csv').write_text(
      ''.join(f'{split}{i}.jpg,{i + 1},2,20,21,{i + 1}\n' for i in range(5))
    )
  cropped = load(
    root / 'car_data/car_data', crop_boxes=True, val='test', source='stanford_cars'
  ).splits['train']
  assert {view(cropped, i)[1:] for i in range(5)} == {(i, 1, 20 - i, 20) for i in range(5)}
  is_clean(root)
  (root / 'anno_test.csv').write_text('test0.jpg,1,2,20,21,1\n')
  fails(root, r'anno_test.csv: has no box of test1.jpg', crop_boxes=True)
  (root / 'car_data/car_data/train/Acura RL').mkdir()
  put(root, **{'car_data/car_data/train/Acura RL/1.jpg': None})
  fails(root, r"no class 'Acura RL': its name has no type .* write taxonomy.csv")


def test_stanford_cars_taxonomy_is_the_shared_one(shared):
  taxonomy = read_taxonomy(shared / 'stanford_cars' / 'taxonomy.csv')
  assert [list(cars.car(model)) for model in taxonomy.names[-1]] == taxonomy.rows() and len(
    taxonomy.names[-1]
  ) == 196


def test_stanford_cars_mistakes(tmp_path):
  def broken(change, message, **options):
    root = devkit(tmp_path / str(len(list(tmp_path.iterdir()))))
    change(root)
    fails(root, message, **options)

  train = 'devkit/cars_train_annos.mat'
  broken(
    lambda r: (r / 'devkit/cars_meta.mat').unlink(),
    r'devkit: expected cars_meta.mat, found cars_test_annos.mat, cars_train_annos.mat',
  )
  broken(
    lambda r: (r / train).write_bytes((r / train).read_bytes()[:200]),
    r'cars_train_annos.mat: cannot be read as a MATLAB 5 file',
  )
  broken(lambda r: (r / train).write_bytes(b''), r'cannot be read as a MATLAB 5 file')
  broken(
    lambda r: scipy.io.savemat(r / train, {'other': 1}),
    r'cars_train_annos.mat: expected annotations, found other',
  )
  broken(
    lambda r: scipy.io.savemat(r / train, {'annotations': 1}),
    r'cars_train_annos.mat: annotations is no array of cells or structs',
  )
  broken(
    lambda r: scipy.io.savemat(r / train, {'annotations': np.empty((1, 0), [('fname', object)])}),
    r'has no field fname, .*; it has none',
  )
  broken(
    lambda r: annotations(
      r / train, [(1, 2, 3, 'a.jpg')], ('bbox_x1', 'bbox_x2', 'class', 'fname')
    ),
    r'has no field bbox_y1, bbox_y2; it has bbox_x1, ',
  )
  broken(
    lambda r: annotations(
      r / train, [(1, 2, 3, 4, 'a.jpg')], ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2', 'fname')
    ),
    r'has no field class',
  )
  broken(
    lambda r: annotations(r / train, [(1, 1, 3, 4, 6, '00001.jpg')]),
    r'cars_train_annos.mat:1: class is 6; expected 1 to 5',
  )
  broken(
    lambda r: annotations(r / train, [(1, 1, 3, 4, 0, '00001.jpg')]),
    r'cars_train_annos.mat:1: class is 0; expected 1 to 5',
  )
  broken(
    lambda r: annotations(r / train, [(1, 1, 3, 4, 'x', '00001.jpg')]),
    r"cars_train_annos.mat:1: class 'x' is no number",
  )
  broken(
    lambda r: annotations(r / train, [(5, 1, 3, 4, 1, '00001.jpg')]),
    r'cars_train_annos.mat:1: the box 4, 0, 3, 4 .* is empty',
    crop_boxes=True,
  )
  broken(
    lambda r: annotations(r / train, [(1, 1, 3, 4, 1, '../../00001.jpg')]),
    r'cars_train_annos.mat:1: .*leaves the root',
  )
  broken(
    lambda r: (r / 'cars_test').rename(r / 'away'),
    r'expected cars_test, found away, cars_test_annos_withlabels.mat, cars_train, devkit',
  )
  broken(
    lambda r: [p.unlink() for p in (r / 'cars_test').iterdir()],
    r'withlabels.mat:1: no file cars_test/00001.jpg, and 1 more of 2 are missing',
  )
  broken(
    lambda r: (r / 'cars_train/00002.jpg').unlink(),
    r'cars_train_annos.mat:2: no file cars_train/00002.jpg',
    strict=True,
  )
  root = devkit(tmp_path / 'kept')
  (root / 'cars_train/00002.jpg').unlink()
  assert any('no file cars_train/00002.jpg' in n for n in load(root, val='test').notes)
  put(root, **{'taxonomy.csv': 'make,model\nOne,am general hummer suv 2000\n'})
  fails(root, r"class 'Acura TL Type-S 2008' is not in the taxonomy: model has 1 others")


@pytest.mark.parametrize('packed', [False, True])
def test_matfile_reads_what_scipy_writes(tmp_path, packed):
  record = {
    'x': np.arange(5, dtype=np.float32),
    'text': 'häuser',
    'long': 'a longer text',
    'none': np.zeros(0),
  }
  cells = np.empty((2, 2), object)
  cells[:] = [['a', 3], [np.arange(3, dtype=np.int64), np.empty(0)]]
  records = np.array([tuple(record.values())] * 2, [(k, object) for k in record])
  content = {
    'one': 7,
    'half': 0.5,
    'name': 'ä',
    'cells': cells,
    'records': records,
    'bits': np.uint8(200),
  }
  scipy.io.savemat(tmp_path / 'm.mat', content, do_compression=packed)
  result = matfile.read(tmp_path / 'm.mat')
  assert (result['one'], result['half'], result['name'], result['bits']) == (
    7,
    0.5,
    'ä',
    200,
  ) and list(result) == list(content)
  assert (
    result['cells'][0] == 'a'
    and result['cells'][1].tolist() == [0, 1, 2]
    and result['cells'][2] == 3
    and result['cells'][3].tolist() == []
  )
  assert len(result['records']) == 2 and list(result['records'][1]) == list(record)
  assert (
    result['records'][1]['text'] == 'häuser'
    and result['records'][0]['x'].tolist() == [0, 1, 2, 3, 4]
    and result['records'][1]['long'] == 'a longer text'
  )


def test_matfile_big_endian(tmp_path):
  """By hand, as a big-endian machine wrote it: a double, and text with two bytes a letter."""
  body = (
    struct.pack('>IIII', 6, 8, 6, 0)
    + struct.pack('>IIii', 5, 8, 1, 1)
    + struct.pack('>HH4s', 1, 1, b'v')
    + struct.pack('>IId', 9, 8, 2.5)
  )
  text = (
    struct.pack('>IIII', 6, 8, 4, 0)
    + struct.pack('>IIii', 5, 8, 1, 2)
    + struct.pack('>HH4s', 1, 1, b't')
    + struct.pack('>HHHH', 4, 4, 0xC4, 0x78)
  )
  both = b''.join(struct.pack('>II', 14, len(b)) + b for b in (body, text))
  (tmp_path / 'm.mat').write_bytes(b' ' * 124 + b'\1\0MI' + both)
  assert matfile.read(tmp_path / 'm.mat') == {'v': 2.5, 't': 'Äx'}
  for cut in range(129, 128 + len(both)):
    (tmp_path / 'm.mat').write_bytes((b' ' * 124 + b'\1\0MI' + both)[:cut])
    if cut != 128 + len(both) - len(text) - 8:
      with pytest.raises((ValueError, struct.error)):
        matfile.read(tmp_path / 'm.mat')


def test_damaged_mat(tmp_path):
  """Whatever stands in it, one line or the data."""
  rng, root, failed = np.random.default_rng(0), devkit(tmp_path), 0
  path = root / 'devkit/cars_train_annos.mat'
  full = path.read_bytes()
  for _ in range(300):
    bad = bytearray(full)
    for i in rng.integers(100, len(bad), rng.integers(1, 6)):
      bad[i] = rng.integers(256)
    path.write_bytes(bytes(bad))
    try:
      load(root, val='test')
    except UserError as e:
      failed += 1
      assert '\n' not in str(e)
  assert failed > 30


def test_a_taxonomy_in_the_root_wins(tmp_path):
  root = put(
    devkit(tmp_path),
    **{
      'taxonomy.csv': 'kind,model\n'
      + ''.join(f'{"big" if i % 2 else "small"},{c}\n' for i, c in enumerate(reversed(CARS)))
    },
  )
  data = load(root, val='test')
  assert data.taxonomy.levels == ('kind', 'model') and data.taxonomy.names[-1] == tuple(
    reversed(CARS)
  )
  assert names(data.splits['train'], data.taxonomy) == [
    ('big', CARS[1]),
    ('small', CARS[0]),
    ('small', CARS[4]),
  ]
  put(root, **{'taxonomy.csv': 'make\nAM General\nAcura\nFord\nRam\n'})  # coarser classes only
  data = load(root, val='test')
  assert names(data.splits['train'], data.taxonomy) == [('Acura',), ('AM General',), ('Ford',)]


# CompCars


def comp(root):
  (root / 'misc').mkdir(parents=True)
  make_names, models = np.empty((2, 1), object), np.empty((5, 1), object)
  make_names[:, 0], models[:, 0] = ['Audi ', 'BWM'], ['Audi A4', 'A6', 'X5', np.empty(0), 'A6']
  scipy.io.savemat(
    root / 'misc/make_model_name.mat', {'make_names': make_names, 'model_names': models}
  )
  images = [
    '1/1/2009/a.jpg',
    '1/1/2010/b.jpg',
    '1/2/2010/c.jpg',
    '2/3/2011/d.jpg',
    '2/4/2012/e.jpg',
    '1/5/2012/f.jpg',
    '3/9/unknown/g.jpg',
  ]
  put(
    root,
    **{f'image/{f}': None for f in images},
    **{f'label/{f[:-3]}txt': f'{i}\n1\n{i + 1} 2 {i + 20} 21\n' for i, f in enumerate(images)},
  )
  return put(
    root,
    **{
      'train_test_split/classification/train.txt': '\n'.join(images[i] for i in (3, 0, 1, 5))
      + '\n',
      'train_test_split/classification/test.txt': '\n'.join(images[i] for i in (2, 4)) + '\n',
    },
  )


@pytest.mark.parametrize('inside', ['', 'data'])
def test_compcars(tmp_path, inside):
  comp(tmp_path / inside)
  data = load(tmp_path, val='test')
  assert data.taxonomy.levels == ('make', 'model', 'model_year')
  assert data.taxonomy.rows() == [
    ['Audi', 'Audi A4', 'Audi A4 2009'],
    ['Audi', 'Audi A4', 'Audi A4 2010'],
    ['Audi', 'Audi A6 (2)', 'Audi A6 (2) 2010'],
    ['Audi', 'Audi A6 (5)', 'Audi A6 (5) 2012'],
    ['BWM', 'BWM X5', 'BWM X5 2011'],
    ['BWM', 'BWM model 4', 'BWM model 4 2012'],
    ['make 3', 'make 3 model 9', 'make 3 model 9 unknown'],
  ]  # a class though no list names an image of it
  train = data.splits['train']
  assert train.files == [
    f'{inside}/image/{f}'.lstrip('/')
    for f in ('2/3/2011/d.jpg', '1/1/2009/a.jpg', '1/1/2010/b.jpg', '1/5/2012/f.jpg')
  ]
  assert [n[2] for n in names(train, data.taxonomy)] == [
    'BWM X5 2011',
    'Audi A4 2009',
    'Audi A4 2010',
    'Audi A6 (5) 2012',
  ]
  assert [n[2] for n in names(data.splits['test'], data.taxonomy)] == [
    'Audi A6 (2) 2010',
    'BWM model 4 2012',
  ]
  assert any('no name of make 3' in n for n in data.notes) and any(
    'no name of 2 models' in n for n in data.notes
  )
  cropped = load(tmp_path, val='test', crop_boxes=True)
  assert view(cropped.splits['train'], 0) == (3, 3, 1, 20, 20) and view(
    cropped.splits['test'], 1
  ) == (4, 4, 1, 20, 20)
  is_clean(tmp_path)


def test_compcars_mistakes(tmp_path):
  root = comp(tmp_path)
  put(root, **{'train_test_split/classification/test.txt': '1/2/2010/c.jpg\n1/2/2015/h.jpg\n'})
  fails(root, r'test.txt:2: no folder image/1/2/2015')
  put(root, **{'train_test_split/classification/test.txt': ''})
  fails(root, r'test.txt: is empty')
  (root / 'train_test_split/classification/test.txt').unlink()
  fails(
    root,
    r'expected train_test_split/classification/test.txt, found image, label, misc, '
    r'train_test_split',
  )
  root = comp(tmp_path / 'b')
  (root / 'label/2/3/2011/d.txt').write_text('1\n1\n')
  fails(root, r'd.txt: expected the box, x1 y1 x2 y2, in row 3', crop_boxes=True)
  (root / 'label/2/3/2011/d.txt').unlink()
  fails(root, r'd.txt: expected a file of viewpoint', crop_boxes=True)
  scipy.io.savemat(root / 'misc/make_model_name.mat', {'make_names': np.zeros(3)})
  fails(root, r'make_model_name.mat: make_names is no array of cells or structs')
  scipy.io.savemat(root / 'misc/make_model_name.mat', {'make_names': np.array(['a'], object)})
  fails(root, r'make_model_name.mat: expected model_names, found make_names')
  (root / 'misc/make_model_name.mat').unlink()
  fails(
    root,
    r'expected misc/make_model_name.mat \(or data/misc/make_model_name.mat\), found image, label',
    source='compcars',
  )


# FGVC-Aircraft

PLANES = {
  'train': [('0007', 'Airbus', 'A320', 'A320'), ('0003', 'Boeing', 'Boeing 707', '707-320')],
  'val': [('0001', 'Boeing', 'Boeing 707', '707-320')],
  'test': [('0002', 'Airbus', 'A320', 'A321'), ('0004', 'Boeing', 'F/A-18', 'F/A-18')],
}


def aircraft(root):
  for split, rows in PLANES.items():
    for k, level in enumerate(('manufacturer', 'family', 'variant'), 1):
      put(root, **{f'images_{level}_{split}.txt': ''.join(f'{row[0]} {row[k]}\n' for row in rows)})
  images = sorted(row[0] for rows in PLANES.values() for row in rows)
  return put(
    root,
    **{f'images/{i}.jpg': encoded(int(i), (40, 50)) for i in images},
    **{'images_box.txt': ''.join(f'{i} 3 2 33 29\n' for i in images)},
  )


@pytest.mark.parametrize('inside', ['', 'data', 'fgvc-aircraft-2013b/data'])
def test_fgvc_aircraft(tmp_path, inside):
  aircraft(tmp_path / inside)
  data = load(tmp_path)
  assert data.taxonomy.levels == ('manufacturer', 'family', 'variant')
  assert data.taxonomy.rows() == [
    ['Airbus', 'A320', 'A320'],
    ['Airbus', 'A320', 'A321'],
    ['Boeing', 'Boeing 707', '707-320'],
    ['Boeing', 'F/A-18', 'F/A-18'],
  ]
  for split, rows in PLANES.items():
    assert names(data.splits[split], data.taxonomy) == [row[1:] for row in rows]
    assert data.splits[split].files == [f'{inside}/images/{row[0]}.jpg'.lstrip('/') for row in rows]
  assert view(data.splits['train'], 0) == (7, 0, 0, 40, 30) and any(
    '20 lowest rows' in n for n in data.notes
  )
  assert view(load(tmp_path, crop_boxes=True).splits['val'], 0) == (1, 2, 1, 31, 28)
  assert view(load(tmp_path, crop_boxes=True, crop_margin=0.5).splits['val'], 0) == (
    1,
    0,
    0,
    40,
    30,
  )  # never the banner
  is_clean(tmp_path, crop_boxes=True)


def test_fgvc_aircraft_mistakes(tmp_path):
  root = aircraft(tmp_path)
  (root / 'images_family_test.txt').write_text('0002 A320\n')
  fails(root, r'images_variant_test.txt:2: image 0004 is not in images_family_test.txt')
  (root / 'images_family_test.txt').write_text('0002 A330\n0004 F/A-18\n0002 A330\n')
  fails(root, r'images_family_test.txt:3: image 0002 stands in row 1 already')
  (root / 'images_family_test.txt').write_text('0002\n')
  fails(root, r"images_family_test.txt:1: expected image family, found '0002'")
  (root / 'images_family_test.txt').unlink()
  fails(root, r'expected images_family_test.txt, found')
  root = aircraft(tmp_path / 'b')
  (root / 'images_family_val.txt').write_text('0001 Boeing 717\n')
  fails(
    root,
    r"images_variant_val.txt:1: variant '707-320' is Boeing / Boeing 717 here and Boeing "
    r'/ Boeing 707 in .*images_variant_train.txt:2',
  )
  (root / 'images_box.txt').write_text('0007 1 1 9 x\n')
  fails(root, r"images_box.txt:1: a corner of the box 'x' is no number", crop_boxes=True)


# CIFAR-100


class Python2:
  """Writes what Python 2's pickle wrote at protocol 2: dict, list, str, int and uint8 arrays."""

  def __init__(self, value):
    self.out = b'\x80\x02' + self.item(value) + b'.'

  def item(self, v):
    if isinstance(v, dict):
      return b'}(' + b''.join(self.item(k) + self.item(x) for k, x in v.items()) + b'u'
    if isinstance(v, list):
      return b'](' + b''.join(map(self.item, v)) + b'e'
    if isinstance(v, str):
      return b'U' + bytes([len(v)]) + v.encode('latin1')
    if isinstance(v, int):
      return b'J' + struct.pack('<i', v)
    shape = b'(' + b''.join(map(self.item, v.shape)) + b't'
    dtype = (
      b'cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb'
    )
    return (
      b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01'
      + shape
      + dtype
      + b'\x89T'
      + struct.pack('<i', v.size)
      + v.tobytes()
      + b'tb'
    )


FINE, COARSE = ['apple', 'bear', 'bee', 'pear'], ['animal', 'fruit']


def planes(n, seed):
  return np.random.default_rng(seed).integers(0, 256, (n, 3072)).astype(np.uint8)


def cifar(root, **changes):
  root.mkdir(parents=True)
  meta = {'fine_label_names': FINE, 'coarse_label_names': COARSE}
  (root / 'meta').write_bytes(Python2(meta).out)
  for seed, (split, fine) in enumerate({'train': [2, 0, 3, 1, 1, 0], 'test': [3, 3, 2]}.items()):
    content = {
      'filenames': [f'{split}_{i}.png' for i in range(len(fine))],
      'batch_label': 'one',
      'fine_labels': fine,
      'data': planes(len(fine), seed),
      'coarse_labels': [int(f in (0, 3)) for f in fine],
      **(changes if split == 'train' else {}),
    }
    (root / split).write_bytes(Python2({k: v for k, v in content.items() if v is not None}).out)
  return root


def test_cifar100(tmp_path):
  root = cifar(tmp_path / 'cifar-100-python').parent
  data = load(root, val='test')
  assert data.taxonomy.levels == ('coarse', 'fine') and data.taxonomy.rows() == [
    ['fruit', 'apple'],
    ['animal', 'bear'],
    ['animal', 'bee'],
    ['fruit', 'pear'],
  ]
  train, test = data.splits['train'], data.splits['test']
  assert [n[1] for n in names(train, data.taxonomy)] == [
    'bee',
    'apple',
    'pear',
    'bear',
    'bear',
    'apple',
  ] and train.labels.dtype == np.int32
  assert names(test, data.taxonomy) == [('fruit', 'pear'), ('fruit', 'pear'), ('animal', 'bee')]
  np.testing.assert_array_equal(
    test.reader(1), planes(3, 1)[1].reshape(3, 32, 32).transpose(1, 2, 0)
  )
  assert train.files[:2] == ['train:0', 'train:1'] and set(load(root, val_share=0.4).splits) == {
    'train',
    'val',
    'test',
  }
  assert (
    load(root / 'cifar-100-python', val='test', source='cifar100').taxonomy.hash()
    == data.taxonomy.hash()
  )
  fails(root, r'crop_boxes: cifar100 has no boxes', crop_boxes=True)
  is_clean(root, val='test')


def test_cifar100_runs_nothing(tmp_path):
  root = cifar(tmp_path / 'cifar-100-python')
  mark = tmp_path / 'ran'
  for program in (
    b'\x80\x02cos\nsystem\nU' + bytes([6 + len(str(mark))]) + f'touch {mark}'.encode() + b'\x85R.',
    b'\x80\x02cbuiltins\neval\n.',
    pickle.dumps({'data': pathlib.PurePosixPath('x')}),
    pickle.dumps({'data': np.zeros(3)}, 2),
  ):
    (root / 'train').write_bytes(program)
    fails(
      tmp_path,
      r'train: (asks for|its pickle uses) .* which images and labels do not need; '
      r'refused, and nothing in it was run',
    )
  assert not mark.exists()


def test_cifar100_mistakes(tmp_path):
  def broken(message, **changes):
    fails(
      cifar(tmp_path / str(len(list(tmp_path.iterdir()))) / 'cifar-100-python', **changes).parent,
      message,
    )

  broken(r'train: image 2: fine_labels is 4; expected 0 to 3', fine_labels=[0, 1, 4, 2, 1, 0])
  broken(
    r'train: expected fine_labels, found filenames, batch_label, data, coarse_labels',
    fine_labels=None,
  )
  broken(r'train: expected data \[N, 3072\], N coarse_labels and N fine_labels', fine_labels=[0, 1])
  broken(r'train: expected data \[N, 3072\]', data=planes(6, 0)[:, :3000])
  broken(
    r"train: image 5: 'apple' is 'animal' here and 'fruit' before", coarse_labels=[0, 1, 1, 0, 0, 0]
  )
  root = cifar(tmp_path / 'x/cifar-100-python')
  full = (root / 'train').read_bytes()
  (root / 'train').write_bytes(full[:9000])
  fails(root.parent, r'train: is damaged or was cut short')
  (root / 'train').unlink()
  fails(root.parent, r'cifar-100-python: expected train, found meta, test')
  rng, failed = np.random.default_rng(0), 0
  for _ in range(60):
    bad = bytearray(full)
    for i in rng.integers(0, 300, 3):
      bad[i if rng.random() < 0.5 else len(bad) - 1 - i] = rng.integers(256)
    (root / 'train').write_bytes(bytes(bad))
    try:
      load(root.parent, val='test')
    except UserError as e:
      failed += 1
      assert '\n' not in str(e)
  assert failed > 20


def test_cifar100_of_pickles_is_that_of_parquet(shared, tmp_path, monkeypatch):
  """The same images once as the hub has them, with a taxonomy.csv, and once as pickles."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  hub, root = tmp_path / 'hub', tmp_path / 'cifar-100-python'
  for folder in (hub, root):
    folder.mkdir()
  for name in ('val.parquet', 'taxonomy.csv'):
    (hub / name).symlink_to(shared / 'cifar100' / name)
  want = load(hub)
  t, val = want.taxonomy, want.splits['val']
  pixels = np.stack([decoding.decode(val.reader(i)).transpose(2, 0, 1).ravel() for i in range(200)])
  (root / 'meta').write_bytes(
    Python2({'fine_label_names': list(t.names[1]), 'coarse_label_names': list(t.names[0])}).out
  )
  for split, place in {'train': np.arange(3000), 'test': np.arange(200)}.items():
    coarse, fine = val.labels[place].T.tolist()
    data = np.zeros((3000, 3072), np.uint8) if split == 'train' else pixels
    (root / split).write_bytes(
      Python2({'data': data, 'fine_labels': fine, 'coarse_labels': coarse}).out
    )
  result = load(tmp_path, val='test', source='cifar100')
  assert result.taxonomy.hash() == t.hash()
  np.testing.assert_array_equal(result.splits['test'].labels, val.labels[:200])
  np.testing.assert_array_equal(result.splits['test'].reader(77), decoding.decode(val.reader(77)))


# CUB-200-2011

BIRDS = ['001.Black_footed_Albatross', '002.Brewer_Blackbird', '003.Chuck_will_Widow']


def cub(root):
  images = [
    (1, BIRDS[0], 'a', 1),
    (2, BIRDS[1], 'b', 0),
    (3, BIRDS[2], 'c', 1),
    (5, BIRDS[1], 'd', 1),
  ]
  return put(
    root,
    **{f'images/{bird}/{f}.jpg': None for _, bird, f, _ in images},
    **{
      'images.txt': ''.join(f'{i} {bird}/{f}.jpg\n' for i, bird, f, _ in images),
      'classes.txt': ''.join(f'{k} {b}\n' for k, b in enumerate(BIRDS, 1)),
      'image_class_labels.txt': ''.join(f'{i} {BIRDS.index(bird) + 1}\n' for i, bird, *_ in images),
      'train_test_split.txt': ''.join(f'{i} {train}\n' for i, *_, train in images),
      'bounding_boxes.txt': ''.join(f'{i} {i}.0 2.0 20.0 21.0\n' for i, *_ in images),
    },
  )


@pytest.mark.parametrize('inside', ['', 'CUB_200_2011'])
def test_cub200(tmp_path, inside):
  cub(tmp_path / inside)
  data = load(tmp_path, val='test')
  assert data.taxonomy.levels == ('species',) and data.taxonomy.names[0] == (
    'Black footed Albatross',
    'Brewer Blackbird',
    'Chuck will Widow',
  )
  assert data.splits['train'].labels.ravel().tolist() == [0, 2, 1] and data.splits[
    'test'
  ].labels.ravel().tolist() == [1]
  assert (
    data.splits['test'].files == [f'{inside}/images/{BIRDS[1]}/b.jpg'.lstrip('/')]
    and view(data.splits['train'], 2)[0] == 3
  )
  assert view(load(tmp_path, crop_boxes=True, val='test').splits['train'], 2) == (3, 5, 2, 20, 21)
  put(
    tmp_path,
    **{
      'taxonomy.csv': (
        "order,family,genus,species\nB,x,n,Chuck-will's-widow\nA,y,m,Brewer’s Blackbird\n"
        'A,z,l,black-footed albatross\n'
      )
    },
  )
  data = load(tmp_path, val='test')
  assert [n[:3] for n in names(data.splits['train'], data.taxonomy)] == [
    ('A', 'z', 'l'),
    ('B', 'x', 'n'),
    ('A', 'y', 'm'),
  ]
  is_clean(tmp_path, val='test')
  put(
    tmp_path,
    **{
      'taxonomy.csv': (
        'order,species\nA,Brewer Blackbird\nA,Brewers Blackbird\nA,brewer_blackbird\n'
        'B,Chuck will Widow\n'
      )
    },
  )
  fails(tmp_path, r"class 'Black footed Albatross' is not in the taxonomy: species has 4 others")
  put(
    tmp_path,
    **{
      'taxonomy.csv': (
        'order,species\nA,Black-footed albatros\nA,brewer_blackbird\nB,Brewer-Blackbird\n'
        'B,Chuck will Widow\n'
      )
    },
  )
  fails(
    tmp_path,
    r"class 'Black footed Albatross' is not in the taxonomy: species 'Black-footed albatros'\?",
  )
  put(
    tmp_path,
    **{
      'taxonomy.csv': (
        'order,species\nA,Black-footed albatross\nA,brewer_blackbird\nB,Brewer-Blackbird\n'
        'B,Chuck will Widow\n'
      )
    },
  )
  fails(
    tmp_path,
    r"class 'Brewer Blackbird' is several in the taxonomy: species 'brewer_blackbird' or "
    r"'Brewer-Blackbird'\?",
  )


def test_cub200_mistakes(tmp_path):
  def broken(name, content, message, **options):
    root = put(cub(tmp_path / str(len(list(tmp_path.iterdir())))), **{name: content})
    fails(root, message, **options)

  broken(
    'image_class_labels.txt',
    '1 1\n2 2\n3 4\n5 2\n',
    r'image_class_labels.txt:3: class_id 4 is not in classes.txt, which has 3',
  )
  broken(
    'image_class_labels.txt',
    '1 1\n2 2\n3 3\n',
    r'images.txt:4: image_id 5 is not in image_class_labels.txt',
  )
  broken(
    'train_test_split.txt',
    '1 1\n2 2\n3 1\n5 1\n',
    r'train_test_split.txt:2: is_training_image is 2; expected 0 to 1',
  )
  broken(
    'bounding_boxes.txt',
    '1 1 1 0 5\n2 1 1 5 5\n3 1 1 5 5\n5 1 1 5 5\n',
    r'bounding_boxes.txt:1: the box 1, 1, 1, 6 .* is empty',
    crop_boxes=True,
  )
  broken(
    'bounding_boxes.txt',
    '1 1 1 nan 5\n2 1 1 5 5\n3 1 1 5 5\n5 1 1 5 5\n',
    r'bounding_boxes.txt:1: a side of the box is nan',
    crop_boxes=True,
  )
  broken('images.txt', b'\xff\xfe', r'images.txt: is not UTF-8 text')
  root = cub(tmp_path / 'gone')
  (root / 'train_test_split.txt').unlink()
  fails(root, r'expected train_test_split.txt, found bounding_boxes.txt, classes.txt')


# TFDS


@pytest.fixture
def tfds(tmp_path, monkeypatch):
  """Prepares a data set with TFDS's own writer, which needs a backport that it does not require."""
  import tensorflow_datasets as library

  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
  f = library.features
  labels = {
    'coarse_label': f.ClassLabel(names=['fruit', 'animal']),
    'label': f.ClassLabel(names=FINE),
  }

  def prepare(title, splits, **features):
    class Little(library.core.GeneratorBasedBuilder, skip_registration=True):
      VERSION, name, pkg_dir_path = library.core.Version('1.0.0'), title, tmp_path

      def _info(self):
        return self.dataset_info_from_configs(
          features=f.FeaturesDict(features or {'image': f.Image(), **labels})
        )

      def _split_generators(self, _):
        return {s: self._generate_examples(rows) for s, rows in splits.items()}

      def _generate_examples(self, rows):
        yield from enumerate(rows)

    with monkeypatch.context() as patch:
      patch.setitem(sys.modules, 'importlib_resources', importlib.resources)
      patch.setitem(sys.modules, 'importlib_resources.abc', importlib.resources.abc)
      Little(file_format='array_record', data_dir=tmp_path / 'tfds').download_and_prepare()

  prepare.features = f
  return prepare


def rows(*fine):
  return [
    {'image': io.BytesIO(encoded(10 * i + f)), 'coarse_label': int(f in (1, 2)), 'label': f}
    for i, f in enumerate(fine)
  ]


def test_tfds(tfds, tmp_path):
  tfds('little', {'train': rows(2, 0, 3, 1, 1, 0), 'test': rows(3, 3, 2)})
  for root in ('tfds:little', 'tfds:little:1.0.0'):
    data = load(root, val='test')
    assert data.taxonomy.levels == ('coarse', 'label')
    assert data.taxonomy.rows() == [
      ['fruit', 'apple'],
      ['animal', 'bear'],
      ['animal', 'bee'],
      ['fruit', 'pear'],
    ]
    for split, count in {
      'train': 6,
      'test': 3,
    }.items():  # TFDS has an order of its own; the number of the picture says its class
      result = data.splits[split]
      assert len(result.files) == count and result.files[0] == f'{split}:0'
      assert [view(result, i)[0] % 10 for i in range(count)] == result.labels[:, 1].tolist()
      assert sorted(view(result, i)[0] // 10 for i in range(count)) == list(range(count))
  assert isinstance(result.reader(0), bytes)  # decoded by us, at the size that is needed
  assert 'tensorflow' not in sys.modules
  is_clean('tfds:little', val='test')
  (tmp_path / 't.csv').write_text('size,label\nsmall,bee\nbig,bear\nsmall,apple\nsmall,pear\n')
  data = load('tfds:little', val='test', taxonomy=str(tmp_path / 't.csv'))
  assert all(
    n[0] == ('big' if n[1] == 'bear' else 'small')
    for n in names(data.splits['train'], data.taxonomy)
  )
  assert set(load('little', source='tfds').splits) == {'train', 'val', 'test'}


def test_labels_of_tfds_are_decoded_once(tfds, tmp_path, monkeypatch):
  """The cache is remade where it is damaged or the files of a split are others."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  tfds('little', {'train': rows(2, 0, 3, 1, 1, 0), 'test': rows(3, 3, 2)})
  first = load('tfds:little', val='test')
  decode, decoded = published.tfds._decode_labels, []
  monkeypatch.setattr(
    published.tfds, '_decode_labels', lambda *args: decoded.append(args[1]) or decode(*args)
  )

  def reload():
    decoded.clear()
    data = load('tfds:little', val='test')
    for split, examples in first.splits.items():
      np.testing.assert_array_equal(examples.labels, data.splits[split].labels)
    return decoded

  assert reload() == []
  for path in (tmp_path / 'cache').glob('hierjax/tfds/*.npz'):
    path.write_bytes(path.read_bytes()[:-50] + bytes(50))
  assert sorted(reload()) == ['test', 'train'] and reload() == []
  os.utime(next((tmp_path / 'tfds/little/1.0.0').glob('*test.array_record*')), (1, 1))
  assert reload() == ['test']


def test_tfds_one_level_with_unknown_labels(tfds):
  f = tfds.features
  examples = [{'picture': io.BytesIO(encoded(i)), 'label': c} for i, c in enumerate((2, -1, 1))]
  tfds('flat', {'train': examples}, picture=f.Image(), label=f.ClassLabel(names=FINE))
  data = load('tfds:flat', val_share=0)
  assert (
    data.taxonomy.levels == ('label',)
    and data.taxonomy.names[0] == tuple(FINE)
    and sorted(data.splits['train'].labels.ravel()) == [-1, 1, 2]
  )


def test_tfds_mistakes(tfds, tmp_path):
  f = tfds.features
  message = (
    r'tfds:{0}: cannot be read from .* as ArrayRecord .*tfds build {0} '
    r'--file_format=array_record --data_dir='
  )
  fails('tfds:nothing_like_it', message.format('nothing_like_it'))
  fails('tfds:cifar100', message.format('cifar100'))  # TFDS knows it, and it is not prepared
  tfds('little', {'train': rows(2, 0)})
  fails('tfds:little:2.0.0', r'tfds:little:2.0.0: cannot be read')
  path = tmp_path / 'tfds/little/1.0.0/dataset_info.json'
  info = json.loads(path.read_text())
  path.write_text(json.dumps({**info, 'fileFormat': 'tfrecord'}))
  fails('tfds:little', message.format('little'))
  path.write_text(json.dumps(info)[:40])
  fails('tfds:little', message.format('little'))
  path.write_text(json.dumps(info))
  record = next(path.parent.glob('*.array_record*'))
  record.write_bytes(record.read_bytes()[:100])
  fails('tfds:little', r'tfds:little: ')
  tfds('bare', {'train': [{'image': io.BytesIO(encoded(1))}]}, image=f.Image())
  fails('tfds:bare', r'tfds:bare: has no ClassLabel; its features are image')
  tfds('text', {'train': [{'label': 1}]}, label=f.ClassLabel(names=FINE))
  fails('tfds:text', r'tfds:text: expected one feature with images; its features are label')
  fails('tfds:../little', r'expected tfds:NAME')
  fails('tfds:huggingface:mnist', r'expected tfds:NAME')


# The hub


def parquet(path, numbers, **columns):
  import pyarrow as pa
  import pyarrow.parquet as pq

  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(
    pa.table({'img': [{'bytes': encoded(n), 'path': None} for n in numbers], **columns}), path
  )


def test_hub(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  requests = []

  def snapshot(repo, **options):
    requests.append((repo, options['repo_type'], options['revision'], options['allow_patterns'][0]))
    return str(tmp_path / options['revision'] if options['revision'] else tmp_path / 'main')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
  parquet(
    tmp_path / 'main/data/train-00000-of-00001.parquet',
    [5, 6],
    fine_label=[1, 0],
    coarse_label=[0, 0],
  )
  parquet(tmp_path / 'main/data/test-00000-of-00001.parquet', [7], fine_label=[1], coarse_label=[0])
  parquet(tmp_path / 'v2/default/train/0000.parquet', [8, 9], label=[1, 0])
  parquet(tmp_path / 'v2/default/test/0000.parquet', [7, 4], label=[0, 1])
  data = load('hf:someone/cars', val='test')
  assert (
    data.taxonomy.levels == ('coarse', 'fine')
    and [view(data.splits['train'], i)[0] for i in (0, 1)] == [5, 6]
    and len(data.splits['test'].files) == 1
  )
  data = load('hf:someone/cars@v2', val='test')
  assert data.splits['train'].labels.tolist() == [[1], [0]] and [
    view(data.splits['test'], i)[0] for i in (0, 1)
  ] == [7, 4]
  assert requests == [
    ('someone/cars', 'dataset', None, '*.parquet'),
    ('someone/cars', 'dataset', 'v2', '*.parquet'),
  ]
  is_clean('hf:someone/cars', val='test')
  (tmp_path / 'main/data').rename(tmp_path / 'gone')
  fails('hf:someone/cars', r'main: no \*.parquet', source='parquet')


def test_hub_offline(monkeypatch):
  def offline(*_, **__):
    raise ConnectionError('no route\nto host')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', offline)
  fails(
    'hf:someone/cars',
    r'hf:someone/cars: could not be downloaded \(ConnectionError: no route to host\); by '
    r'hand, .* hf download someone/cars '
    r"--repo-type dataset --include '\*.parquet' --local-dir FOLDER, then "
    r'--config.data.root=FOLDER',
  )


# All


def test_every_source_is_a_choice():
  assert {*sources.READERS, 'auto', 'toy'} == set(OPTIONS['data.source'].choices)


MARKS = {source: marks for source, (_, marks) in published.LAYOUTS.items() if marks}


@pytest.mark.parametrize('source', sorted(MARKS))
def test_another_folder_is_told_what_was_expected(tmp_path, source):
  fails(
    put(tmp_path, **{'a/b/1.png': None}), rf'expected {MARKS[source][0]}.*, found a', source=source
  )
  fails(tmp_path / 'nowhere', 'no such folder', source=source)


def test_boxes_are_refused_where_there_are_none(tmp_path):
  fails(
    put(tmp_path, **{'a/b/1.png': None}),
    r'crop_boxes: source folders has no boxes',
    crop_boxes=True,
  )


def test_a_run_on_one(tmp_path, monkeypatch):
  """Train, evaluate and explain on boxes of CUB: files are named from the root."""
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)
  root = put(
    cub(tmp_path / 'data'),
    **{
      'taxonomy.csv': (
        'order,species\nA,Black-footed Albatross\nA,Brewer Blackbird\nB,Chuck-will-Widow\n'
      )
    },
  )
  options = {
    'data.source': 'auto',
    'data.root': str(root),
    'data.val': 'test',
    'data.crop_boxes': True,
    'train.batch_size': 2,
    'train.steps': 2,
  }
  hierjax.fit(
    tiny.run_config(**options, **{'train.eval_steps': 2, 'eval.batch_size': 2}), tmp_path / 'run'
  )
  model = hierjax.load(tmp_path / 'run')
  assert model.evaluate('train')['n'] == 3 and list(model.levels) == ['order', 'species']
  model.explain('train')
  with np.load(tmp_path / 'run/predictions_train.npz') as result:
    assert result['files'].tolist() == [
      f'images/{BIRDS[0]}/a.jpg',
      f'images/{BIRDS[2]}/c.jpg',
      f'images/{BIRDS[1]}/d.jpg',
    ]
  assert (tmp_path / 'run/explain_train.npz').exists()
  (line,) = model.predict([root / f'images/{BIRDS[0]}/a.jpg'])
  assert set(line['path']) == {'order', 'species'}
