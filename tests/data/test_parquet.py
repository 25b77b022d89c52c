"""Parquet as the hub and users have it: splits by names, one name an image, and hostile files."""

import io
import re
import struct
import zlib

import agreement
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_folders import content, options

from hierjax.core.errors import UserError
from hierjax.data import lint, matfile, parquet_pages, sources, split_record, store
from hierjax.data.published.layout import read_mat

SEEDS = iter(range(1_000_000))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache/hierjax/parquet'


def pictures(n):
  """n different pictures, encoded."""
  images = []
  for _ in range(n):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(next(SEEDS)).integers(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, 'PNG')
    images.append({'bytes': buffer.getvalue(), 'path': None})
  return images


def write(path, n, column='kind_label', names=('cat', 'dog'), metadata=None, **columns):
  """n rows with pictures and two classes in turn."""
  path.parent.mkdir(parents=True, exist_ok=True)
  labels = [names[i % len(names)] for i in range(n)]
  table = pa.table({'image': pictures(n), column: labels, **columns})
  pq.write_table(table.replace_schema_metadata(metadata), path)


SPLITS = {
  'folders': (
    {'training/part-0.parquet': 8, 'testing/part-0.parquet': 4, 'dev/part-0.parquet': 2},
    {'train': 8, 'test': 4, 'val': 2},
  ),
  'folders above numbers': (
    {'default/partial-train/0000.parquet': 6, 'default/partial-train/0001.parquet': 2,
     'default/partial-test/0000.parquet': 4},
    {'train': 8, 'test': 4},
  ),
  'shards': (
    {'data/train-00000-of-00002.parquet': 4, 'data/train-00001-of-00002.parquet': 4,
     'data/validation-00000-of-00001.parquet': 2},
    {'train': 8, 'val': 2},
  ),
  'suffixes': ({'birds_train.parquet': 8, 'birds_VAL.parquet': 2}, {'train': 8, 'val': 2}),
  'a folder between': (
    {'train/2019/a.parquet': 4, 'train/2020/a.parquet': 4, 'holdout/2020/a.parquet': 2},
    {'train': 8, 'test': 2},
  ),
  'a name that is asked for': (
    {'fold1/a.parquet': 8, 'fold2/a.parquet': 2},
    {'fold1': 8, 'fold2': 2},
  ),
  'no splits': ({'a.parquet': 4, 'b.parquet': 6}, {'train': 10}),
  'one file more': ({'train.parquet': 8, 'more.parquet': 2}, {'train': 8, 'more': 2}),
}  # fmt: skip


@pytest.mark.parametrize('name', SPLITS)
def test_splits_by_the_names_of_files_and_folders(tmp_path, name):
  files, expected = SPLITS[name]
  for file, n in files.items():
    write(tmp_path / 'data' / file, n)
  changes = {} if 'val' in expected else {'val_share': 0.0}
  changes = {'train': 'fold1', 'val': 'fold2'} if 'fold1' in expected else changes
  data = options(tmp_path / 'data', **changes)
  assert agreement.assert_agree(data) == ''
  loaded = sources.load(data)
  assert {split: sum(counts.values()) for split, counts in content(loaded).items()} == expected
  for split, counts in content(loaded).items():
    assert counts['cat'] == counts['dog'] == expected[split] // 2
  listed = [file for examples in loaded.splits.values() for file in examples.files]
  assert len(set(listed)) == sum(files.values())
  # each name is of its own picture
  tables = {file: pq.read_table(tmp_path / 'data' / file)['image'] for file in files}
  for examples in loaded.splits.values():
    for i, file in enumerate(examples.files):
      file, _, row = file.rpartition(':row ')
      assert examples.reader(i) == tables[file][int(row) - 1].as_py()['bytes']
  report = lint.check(data)
  assert report.counts['error'] == 0
  assert any('like no split' in str(p) for p in report.problems) == ('more' in expected)


def test_a_record_of_rows_that_were_counted_from_0(tmp_path):
  """Each row keeps the split that an earlier version has drawn for it."""
  write(tmp_path / 'data/all.parquet', 8)
  data = sources.load(options(tmp_path / 'data', val_share=0.5))
  text = split_record.content(data)
  old = re.sub(r':row (\d+)', lambda match: f':{int(match[1]) - 1}', text)
  assert 'all.parquet:0,' in old and 'all.parquet:8,' not in old
  (tmp_path / split_record.FILE).write_text(old)
  record = split_record.read(tmp_path)
  reread = sources.load(options(tmp_path / 'data', val_share=0.5), record=record)
  assert split_record.content(reread) == text and not split_record.changes(record, reread)


@pytest.mark.parametrize(
  ('column', 'words'), [('split', ('train', 'val')), ('Subset', ('Train', 'dev'))]
)
def test_splits_by_a_column_where_no_name_says_them(tmp_path, column, words):
  values = {column: [words[i > 5] for i in range(8)], 'camera': list('abababab')}
  write(tmp_path / 'data/all.parquet', 8, **values)
  data_options = options(tmp_path / 'data')
  assert agreement.assert_agree(data_options) == ''
  data = sources.load(data_options)
  assert {name: len(split.files) for name, split in data.splits.items()} == {'train': 6, 'val': 2}
  assert f'splits by the Parquet column {column!r}' in data.notes
  assert 'Parquet columns camera are not used' in data.notes
  values[column][3] = ''
  write(tmp_path / 'gap/all.parquet', 8, **values)
  agreement.refuses(options(tmp_path / 'gap'), f'gap/all.parquet:row 4: has no {column}')
  write(tmp_path / 'names/train.parquet', 8, **values)
  (tmp_path / 'names/stock.csv').write_text('file,class\n1.png,a\n')
  data = sources.load(options(tmp_path / 'names', val_share=0.0))
  assert set(data.splits) == {'train'} and 'is not read, as Parquet is' in '\n'.join(data.notes)


def test_a_file_and_its_folder_that_disagree(tmp_path):
  write(tmp_path / 'data/train/a.parquet', 4)
  write(tmp_path / 'data/test/train-0.parquet', 4)
  message = 'test/train-0.parquet: its names say test and train; rename the file or a folder'
  agreement.refuses(options(tmp_path / 'data'), message)


# Names from elsewhere


@pytest.mark.parametrize(
  'name', ['/ABS/evil', '../../evil', 'ends', 'meta', 'a/b/c', '..', 'x' * 300, 'é\n\x1b[31m', '']
)
def test_a_columns_name_is_no_path(tmp_path, cache, name):
  """Nothing is written beside the copy, and images and labels are what the file has."""
  name = name.replace('/ABS', str(tmp_path))
  write(tmp_path / 'data/train.parquet', 6, **{name: list(range(6))})
  before = set(tmp_path.rglob('*'))
  data = sources.load(options(tmp_path / 'data', val_share=0.0))
  assert content(data) == {'train': {'cat': 3, 'dog': 3}} and data.taxonomy.levels == ('kind',)
  rows = pq.read_table(tmp_path / 'data/train.parquet')['image'].to_pylist()
  reader = data.splits['train'].reader
  assert [reader(i) for i in range(6)] == [row['bytes'] for row in rows]
  added = set(tmp_path.rglob('*')) - before
  assert all(cache in path.parents or path in (cache, *cache.parents) for path in added)
  names = {path.name for path in cache.glob('*/*')}
  assert names == {'images.bin', 'ends.npy', 'meta.json', 'labels_0.npy', 'labels_1.npy'}


@pytest.mark.parametrize(
  ('column', 'names'), [('ki\x07nd_label', ('cat', 'dog')), ('kind_label', ('cat', 'd\x1bog'))]
)
def test_names_with_control_characters_are_refused_before_training(tmp_path, column, names):
  """The run's own taxonomy.csv could not be read again."""
  write(tmp_path / 'data/train.parquet', 6, column, names)
  agreement.refuses(options(tmp_path / 'data', val_share=0.0), '1 names hold control characters')


def test_metadata_of_any_depth_is_one_line(tmp_path):
  for k, text in enumerate((b'[' * 200_000, b'{"info": {"features": 1e999}}', b'[]', b'\xff')):
    write(tmp_path / f'{k}/train.parquet', 4, metadata={b'huggingface': text})
    agreement.refuses(options(tmp_path / str(k)), 'what the hub says of its columns .* is damaged')


# Files that unpack to more than memory


def refuse(tmp_path, cache, pattern, **changes):
  """Training and lint refuse the data, and no copy is left."""
  agreement.refuses(options(tmp_path / 'data', **changes), pattern)
  assert not list(cache.glob('*'))


def packed(path, column, **settings):
  path.parent.mkdir(parents=True, exist_ok=True)
  table = pa.table({'image': column, 'kind_label': ['cat', 'dog'] * (len(column) // 2)})
  pq.write_table(table, path, compression='zstd', **settings)
  return path.stat().st_size


def test_one_picture_in_all_rows(tmp_path, cache):
  """A dictionary holds a value once; written out, 400 rows are 400 MiB."""
  value = bytes(1 << 20)
  column = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), pa.array([value]))
  size = packed(tmp_path / 'data/train.parquet', column)
  assert size < 4000
  before = pa.total_allocated_bytes()
  refuse(tmp_path, cache, r'train.parquet: unpacks to 257 MiB or more, over 256 MiB: refused as a')
  assert pa.total_allocated_bytes() - before < 1 << 26


def test_one_row_of_much(tmp_path, cache):
  row = np.random.default_rng(0).bytes(3 << 20)
  packed(tmp_path / 'data/train.parquet', pa.array([row, b'x']))
  pattern = r'train.parquet: row 1 has 3 MiB, over --config.data.max_bytes=2000000'
  refuse(tmp_path, cache, pattern, max_bytes=2_000_000)
  packed(tmp_path / 'data/train.parquet', pa.array([bytes(9 << 20), b'x']), use_dictionary=False)
  pattern = r'unpacks to 9 MiB or more, over 1 MiB: .* raise --config.data.max_bytes'
  refuse(tmp_path, cache, pattern, max_bytes=2_000_000)


def test_a_label_of_much(tmp_path, cache):
  labels = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), ['x' * (1 << 20)])
  table = pa.table({'image': pictures(200), 'kind_label': labels})
  (tmp_path / 'data').mkdir()
  pq.write_table(table, tmp_path / 'data/train.parquet', compression='zstd')
  refuse(tmp_path, cache, 'kind_label has a name of 1048576 letters, at most 1000 are read')


def test_rows_without_end(tmp_path, cache, monkeypatch):
  monkeypatch.setattr(store, 'MAX_ROWS', 10_000)
  column = pa.nulls(30_000, pa.binary())
  size = packed(tmp_path / 'data/train.parquet', column)
  assert size < 5000
  refuse(tmp_path, cache, rf'claims 30000 rows in {size} bytes: refused as a decompression bomb')


def varint(value, length=0):
  """A zigzag varint of Thrift's compact protocol, in more bytes than needed if `length` says so."""
  value, digits = value << 1, []
  while value or len(digits) < max(1, length):
    digits.append(value & 127)
    value >>= 7
  return bytes([*(d | 128 for d in digits[:-1]), digits[-1]])


def test_a_footer_that_claims_less_than_the_pages_unpack_to(tmp_path, cache):
  path = tmp_path / 'data/train.parquet'
  packed(path, pa.array([bytes(9 << 20), b'x']), use_dictionary=False)
  group = pq.ParquetFile(path).metadata.row_group(0)
  content = path.read_bytes()
  for size in (group.total_byte_size, group.column(0).total_uncompressed_size):
    assert content.count(varint(size)) == 1
    content = content.replace(varint(size), varint(100, len(varint(size))))
  path.write_bytes(content)
  assert pq.ParquetFile(path).metadata.row_group(0).total_byte_size == 100
  refuse(tmp_path, cache, 'unpacks to 9 MiB or more, over 1 MiB', max_bytes=2_000_000)


@pytest.mark.parametrize('codec', ['none', 'snappy', 'zstd', 'gzip'])
@pytest.mark.parametrize('version', ['1.0', '2.0'])
def test_sizes_of_pages_against_the_footer(tmp_path, codec, version):
  """With their headers the pages have what an honest footer says of each column."""
  path, rng = tmp_path / 'a.parquet', np.random.default_rng(0)
  rows = [rng.bytes(int(n)) for n in rng.integers(0, 3000, 500)]
  table = pa.table({'image': rows, 'kind': [f'{n % 7}' for n in range(500)], 'x': rng.random(500)})
  pq.write_table(
    table,
    path,
    compression=codec,
    data_page_version=version,
    row_group_size=200,
    data_page_size=5000,
    use_dictionary=['kind'],
    write_page_checksum=version == '2.0',
  )
  metadata = pq.ParquetFile(path).metadata
  claimed = [metadata.row_group(i).total_byte_size for i in range(3)]
  sizes = parquet_pages.unpacked_bytes(path)
  assert len(sizes) == 3
  # a header with its statistics has less than 200 bytes, and a page here some 5,000
  for size, claim in zip(sizes, claimed):
    assert claim * 0.9 < size < claim


def framed(footer):
  return b'PAR1' + footer + len(footer).to_bytes(4, 'little') + b'PAR1'


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'PAR1' * 3,
    b'PAR1\xff\xff\xff\x7fPAR1',
    framed(b'\0'),
    framed(b'\x19' * 100),
    framed(b'\x49' + b'\x19' * 5000),
    framed(b'\x49\xfc' + b'\xff' * 9 + b'\x01'),
    framed(b'\x48\xff\x7f'),
  ],
)
def test_footers_that_are_no_structure(tmp_path, content):
  (tmp_path / 'a.parquet').write_bytes(content)
  with pytest.raises(parquet_pages.DamagedFile):
    parquet_pages.unpacked_bytes(tmp_path / 'a.parquet')


def test_sound_files_are_not_refused(tmp_path):
  """Pictures that shrink well are copied whole: 60 of 300 kB in a file of a few kB."""
  rows = [bytes([i]) * 300_000 for i in range(60)]
  packed(tmp_path / 'data/train.parquet', pa.array(rows))
  examples = sources.load(options(tmp_path / 'data', val_share=0.0)).splits['train']
  assert [examples.reader(i) for i in range(60)] == rows


@pytest.mark.parametrize('kind', ['int8', 'uint64', 'dictionary', 'large_string', 'bool', 'float'])
def test_labels_of_any_type(tmp_path, kind):
  values = {
    'int8': pa.array([0, 1, -1, 1], pa.int8()),
    'uint64': pa.array([0, 2**63, 5, 2**63], pa.uint64()),
    'dictionary': pa.array(['a', 'b', None, 'b']).dictionary_encode(),
    'large_string': pa.array(['a', 'b', '', 'b'], pa.large_string()),
    'bool': pa.array([True, False, None, False]),
    'float': pa.array([0.5, 1, 2, 1]),
  }[kind]
  (tmp_path / 'data').mkdir()
  table = pa.table({'image': pictures(4), 'kind_label': values})
  pq.write_table(table, tmp_path / 'data/train.parquet')
  faults = {'bool': 'no column LEVEL_label', 'float': 'no column LEVEL_label'}
  faults['uint64'] = 'kind goes from 0 to 9223372036854775808, the taxonomy has 3 classes'
  if kind in faults:
    agreement.refuses(options(tmp_path / 'data'), faults[kind])
    return
  assert agreement.assert_agree(options(tmp_path / 'data')) == ''
  labels = sources.load(options(tmp_path / 'data', val_share=0.0)).splits['train'].labels
  assert labels[:, 0].tolist() == [0, 1, -1, 1]


# MATLAB


def element(kind, body):
  return struct.pack('<II', kind, len(body)) + body + bytes(-len(body) % 8)


def matrix(kind, shape, name, body):
  head = element(6, bytes([kind, 0, 0, 0, 0, 0, 0, 0])) + element(5, struct.pack('<2i', *shape))
  return element(14, head + element(1, name) + body)


def mat_file(path, *variables, compress=True):
  head = b'MATLAB 5.0'.ljust(124) + b'\0\1IM'
  for variable in variables:
    squeezed = zlib.compress(variable, 9)
    part = struct.pack('<II', 15, len(squeezed)) + squeezed
    head += part if compress else variable
  path.write_bytes(head)
  return path


def test_mat_files_of_a_million_cells_or_fields(tmp_path):
  empty = struct.pack('<II', 14, 0)
  assert (
    matfile.read(mat_file(tmp_path / 'x', matrix(1, (1, 9), b'c', empty * 9)))['c'] == [None] * 9
  )
  n = matfile.MAX_ELEMENTS + 1
  path = mat_file(tmp_path / 'cells.mat', matrix(1, (1, n), b'c', empty * n))
  assert path.stat().st_size < 50_000
  with pytest.raises(UserError, match='more than 524288 cells and fields'):
    read_mat(path, 'c')
  nested = matrix(1, (1, n // 2), b'', empty * (n // 2))
  path = mat_file(tmp_path / 'nested.mat', matrix(1, (1, 3), b'c', nested * 3))
  with pytest.raises(UserError, match='more than 524288 cells and fields'):
    read_mat(path, 'c')
  fields = element(5, struct.pack('<i', 1)) + element(1, b'a' * n)
  path = mat_file(tmp_path / 'fields.mat', matrix(2, (0, 1), b'c', fields))
  with pytest.raises(UserError, match='more than 524288 cells and fields'):
    read_mat(path, 'c')


def test_mat_files_that_unpack_to_much(tmp_path, monkeypatch):
  monkeypatch.setattr(matfile, 'MAX_BYTES', 1 << 20)
  numbers = matrix(6, (1, 100_000), b'v', element(9, bytes(800_000)))
  assert len(matfile.read(mat_file(tmp_path / 'one.mat', numbers))['v']) == 100_000
  for k, variables in enumerate(([numbers] * 2, [numbers.replace(b'v', b'w')] * 50)):
    path = mat_file(tmp_path / f'{k}.mat', *variables)
    with pytest.raises(UserError, match='the file unpacks to more than 1 MiB'):
      read_mat(path, 'v')
  path = mat_file(tmp_path / 'large.mat', numbers, numbers, compress=False)
  with pytest.raises(OSError, match='at most 1 are read'):
    read_mat(path, 'v')


def test_names_under_several_classes_are_said_in_training_as_in_lint(tmp_path):
  """A genus of animals and one of plants are one class here, as numbers count the classes."""
  genera = [f'animal genus {i}' for i in range(5)], [f'plant genus {i}' for i in range(5)]
  rows = [(k, g, f'{k} {g} {i}') for k, names in zip(('Animalia', 'Plantae'), genera)
          for g in (*names, 'Ficus') for i in range(2)]  # fmt: skip
  columns = {name: list(x) for name, x in zip(('genus_label', 'species_label'), [*zip(*rows)][1:])}
  for split in ('train', 'val'):
    write(tmp_path / f'data/{split}.parquet', len(rows), 'kingdom_label',
          ['Animalia'] * 12 + ['Plantae'] * 12, **columns)  # fmt: skip
  data, report = sources.load(options(tmp_path / 'data')), lint.check(options(tmp_path / 'data'))
  (problem,) = [p for p in report.problems if p.kind == 'two parents']
  assert "genus 'Ficus' stands under 2 kingdoms" in problem.text
  assert str(problem) in data.notes and len(data.taxonomy.names[1]) == 11
  assert str(problem) not in report.headlines
