"""Feeds damaged and hostile files to each reader; each must be read, or refused in one line.

  python tests/fuzz.py --minutes 10 --reader all --seed 0     what `make fuzz` runs

An input is a valid sample, changed by a generator that a seed and a number determine: bytes are
flipped, cut, repeated and overwritten, and of texts, JSON, tables, pickles and Parquet files the
parts are replaced by what such attacks use. A child process reads one input after the other in a
folder of its own. A finding is any exception but those of which the command line makes a line, a
dead child, more than SECONDS of CPU, a peak of more than MIB above the start, a file written or
removed outside the folder of the input, a connection, or a program that is started. Each is printed
with a folder that holds the input; --first N --count 1 reads it again.
"""

# ruff: noqa: E402
import argparse
import contextlib
import functools
import io
import json
import os
import pathlib
import pickletools
import random
import resource
import select
import shutil
import signal
import string
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable
from typing import ClassVar, NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE / 'data')]

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import test_layouts
from PIL import Image

from hierjax.cli import errors
from hierjax.core import archives, config, json_files
from hierjax.core.declarations import OPTIONS
from hierjax.core.errors import UserError
from hierjax.data import decoding, lint, matfile, sources, transforms
from hierjax.data.published import cifar, layout
from hierjax.evaluate import rules
from hierjax.models import torch_files
from hierjax.report import runs
from hierjax.taxonomy import Taxonomy, read_taxonomy
from hierjax.train import log

SECONDS, MIB = 20, 512
SILENCE = 90  # seconds after which a child that says nothing is killed

Files = dict[str, bytes]


class Reader(NamedTuple):
  """A reader: samples, how they are changed besides bytes, and what reads a folder of them."""

  samples: Callable[[], list[Files]]
  change: Callable[[random.Random, Files], Files]
  read: Callable[[pathlib.Path], object]


# Pieces that attacks are made of.

WORDS = (
  '', ' ', '..', '../../x', '/tmp/fuzz-x', '\\', 'C:\\x', 'a/b', '.', '-1', '0', '1e999', '-1e999',
  'nan', 'inf', 'NaN', 'None', 'null', 'true', '9' * 5000, '1_0', '0x10', '\u0663', '\xbd', 'all',
  'finest',
  'file', 'split', 'train', 'val', 'test', 'unlabelled', 'ends', 'image', '"', "'", ',', ';', '\t',
  '|', '\n', '\r\n', '\0', '\ufeff', '\u202e', '\x1b[2J', '\x85', '\u2028', 'é', 'e\u0301', 'ß',
  'İ', '<script>', '{{ 7*7 }}', '%s%n', '${x}', '=cmd|x', '#', '(' * 300, '[' * 3000, 'x' * 70_000,
  '\ud800', 'hf:a/b', 'tfds:a', 'classes:a=1', '~', '*', '**/*', '[a', '(a', 'a=b', 'a=1,b=2',
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1,
           -(2**31), -(2**63), 10**30, 0.5, -0.0, 1e308, 5e-324)  # fmt: skip


def word(rng: random.Random) -> str:
  """A hostile word, or a few random characters."""
  if rng.random() < 0.8:
    return rng.choice(WORDS)
  letters = string.printable + 'äß\u0301\u200b\U0001f600\ud83d'
  return ''.join(rng.choice(letters) for _ in range(rng.randrange(12)))


def value(rng: random.Random, depth: int = 0) -> object:
  """A hostile JSON value."""
  kind = rng.randrange(8)
  if kind < 3 or depth > 3:
    return word(rng)
  if kind < 5:
    return rng.choice(NUMBERS)
  if kind == 5:
    return rng.choice([None, True, False, float('nan'), float('inf')])
  items = [value(rng, depth + 1) for _ in range(rng.randrange(4))]
  return items if kind == 6 else {word(rng): item for item in items}


def change_bytes(rng: random.Random, data: bytes) -> bytes:
  """Flip, cut, repeat, insert and overwrite bytes, a few times."""
  data = bytearray(data)
  for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 20))):
    i, n = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 8, 64, 1000))
    match rng.randrange(8):
      case 0 if i < len(data):
        data[i] ^= 1 << rng.randrange(8)
      case 1:
        data[i : i + 1] = bytes([rng.choice((0, 1, 127, 128, 255, 10, 34, 40, 91, 123))])
      case 2:
        del data[i : i + n]
      case 3:
        del data[i:]
      case 4:
        data[i:i] = data[i : i + n] * rng.choice((1, 2, 50))
      case 5:
        form = rng.choice(('<i', '>i', '<q', '>q', '<h', '>h', '<d'))
        number = rng.choice((0, 1, -1, 127, 32767, -(2**15), *NUMBERS[4:7]))
        with contextlib.suppress(struct.error):
          packed = struct.pack(form, number)
          data[i : i + len(packed)] = packed
      case 6:
        data[i:i] = word(rng).encode('utf-8', 'surrogatepass')
      case 7:
        j = rng.randrange(len(data) + 1)
        data[i : i + n] = data[j : j + n]
  return bytes(data[: 4 << 20])


def change_one(rng: random.Random, files: Files, names: list[str] | None = None) -> Files:
  """Change the bytes of one file."""
  name = rng.choice(names or list(files))
  return {**files, name: change_bytes(rng, files[name])}


def change_json(rng: random.Random, text: bytes) -> bytes:
  """Replace, remove or repeat parts of a JSON document."""
  tree = json.loads(text)
  for _ in range(rng.choice((1, 1, 2, 4))):
    node = tree
    while isinstance(node, dict | list) and node and rng.random() < 0.8:
      keys = list(node) if isinstance(node, dict) else range(len(node))
      parent, key = node, rng.choice(keys)
      node = parent[key]
    if node is tree:
      continue
    match rng.randrange(5):
      case 0:
        del parent[key]
      case 1 if isinstance(parent, dict):
        parent[word(rng)] = value(rng)
      case 2:
        parent[key] = {'a': node}
      case _:
        parent[key] = value(rng)
  out = json.dumps(tree, ensure_ascii=rng.random() < 0.7).encode('utf-8', 'surrogatepass')
  if rng.random() < 0.1:
    out = out.replace(b'{', b'{"version": 1, ', 1)
  return rng.choice(
    (out, out, out, b'\xef\xbb\xbf' + out, out.decode('utf-8', 'replace').encode('utf-16'))
  )


# CSV


def csv_samples() -> list[Files]:
  """Tables of exclusive levels, of tags and with a taxonomy."""
  pictures = {f'{i}.png': test_layouts.encoded(i, (8, 6)) for i in range(12)}
  table = 'file,split,make,model\n' + ''.join(
    f'{i}.png,{"val" if i % 3 else "train"},m{i % 2},m{i % 2} {i % 4}\n' for i in range(12)
  )
  tagged = 'file;split;kind;tags\n0.png;train;a;"x,y"\n1.png;train;b;y\n2.png;val;a;\n'
  levels = 'make,model\nm0,m0 0\nm0,m0 2\nm1,m1 1\nm1,m1 3\n'
  bare = {'labels.csv': table.encode(), **pictures}
  return [
    bare,
    {'labels.csv': tagged.replace(';', ',').encode(), 'tags': b'', **pictures},
    {**bare, 'taxonomy.csv': levels.encode()},
    {'products.csv': tagged.encode(), **pictures},
    {'labels.csv': table.encode('utf-16'), **pictures},
  ]


def change_csv(rng: random.Random, files: Files) -> Files:
  """Change cells, rows and columns, or bytes."""
  name = rng.choice([n for n in files if n.endswith('.csv')])
  if rng.random() < 0.4:
    return change_one(rng, files, [name])
  separator = ';' if b';' in files[name] else ','
  rows = [r.split(separator) for r in files[name].decode('utf-8', 'replace').split('\n')]
  for _ in range(rng.choice((1, 2, 5))):
    row = rng.choice(rows[: rng.choice((1, len(rows)))])
    i = rng.randrange(len(row) + 1)
    match rng.randrange(6):
      case 0:
        row.insert(i, word(rng))
      case 1:
        del row[i:]
      case 2:
        rows.insert(rng.randrange(len(rows)), list(row))
      case 3:
        for other in rows:
          other.insert(min(i, len(other)), word(rng))
      case _:
        row[i : i + 1] = [word(rng)]
  text = rng.choice(('\n', '\n', '\r\n', '\r')).join(map(separator.join, rows))
  coding = rng.choice(('utf-8', 'utf-8', 'utf-8-sig', 'utf-16', 'latin-1'))
  return {**files, name: text.encode(coding, 'replace')}


def read_data(folder: pathlib.Path) -> None:
  """Load a data set, check it, and read its first examples."""
  options = config.default().data
  options.root = str(folder)
  options.threads = 1
  if (folder / 'tags').exists():
    options.multi = ('tags',)
  for name in sorted(folder.glob('*.csv')):
    with contextlib.suppress(UserError):
      read_taxonomy(name)
  lint.check(options).text()
  data = sources.load(options)
  for examples in data.splits.values():
    for i in range(min(3, len(examples.files))):
      with contextlib.suppress(decoding.BrokenImage, OSError):
        decoding.decode(examples.reader(i))


# Tars


def tar_samples() -> list[Files]:
  """Tars of pictures with JSON, and with a number of the class."""
  samples = []
  for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode='w', format=form) as tar:
      for i in range(6):
        label = {'make': f'm{i % 2}', 'model': f'm{i % 2} {i % 4}', 'box': [1]}
        parts = {'png': test_layouts.encoded(i, (8, 6)), 'json': json.dumps(label).encode()}
        for suffix, content in (parts | {'cls': b'%d' % (i % 4)}).items():
          member = tarfile.TarInfo(f'{"x" * 101 * (i == 2)}{i}\u00fc.{suffix}')
          member.size = len(content)
          tar.addfile(member, io.BytesIO(content))
    samples.append({'train-0.tar': out.getvalue()})
  names = b'make,model\nm0,m0 0\nm0,m0 2\nm1,m1 1\nm1,m1 3\n'
  return [*samples, {**samples[0], 'taxonomy.csv': names}]


def change_tar(rng: random.Random, files: Files) -> Files:
  """Change a header and its sum, or any bytes."""
  if rng.random() < 0.3:
    return change_one(rng, files)
  data = bytearray(files['train-0.tar'])
  place = rng.choice([i for i in range(0, len(data), 512) if data[i + 257 : i + 262] == b'ustar'])
  start, size = rng.choice(
    ((0, 100), (100, 8), (124, 12), (124, 12), (156, 1), (157, 100), (345, 9))
  )
  data[place + start : place + start + size] = rng.choice(
    (
      rng.randbytes(size),
      word(rng).encode('utf-8', 'surrogatepass')[:size].ljust(size, b'\0'),
      rng.choice((b'\x80', b'\xff')) + rng.randbytes(size - 1),
      b'%0*o' % (size - 1, rng.randrange(1 << 20)) + b' '
      if size > 7
      else rng.choice(b'LKxgS12').to_bytes(),
    )
  )[:size]
  data[place + 148 : place + 156] = b' ' * 8
  data[place + 148 : place + 156] = b'%06o\0 ' % sum(data[place : place + 512])
  return {**files, 'train-0.tar': bytes(data)}


# Parquet


def parquet_samples() -> list[Files]:
  """Files with and without what the hub writes into them."""
  picture = test_layouts.encoded(1, (8, 6))
  images = [{'bytes': picture, 'path': f'{i}.png'} for i in range(6)]
  columns = {'image': images, 'coarse_label': [0, 0, 1, 1, 0, 1], 'fine_label': [0, 1, 2, 3, 0, 2]}
  names = {'coarse_label': {'names': list('ab')}, 'fine_label': {'names': list('wxyz')}}
  hub = {b'huggingface': json.dumps({'info': {'features': names}}).encode()}
  texts = {'image': images, 'make_label': list('aabbab'), 'model_label': list('vwxyvx')}
  return [
    {'train.parquet': parquet_file(columns, hub), 'test.parquet': parquet_file(columns, hub)},
    {'data.parquet': parquet_file(texts, {})},
  ]


def parquet_file(columns: dict, metadata: dict, **options) -> bytes:
  """Write a table."""
  out = io.BytesIO()
  table = pa.table(columns)
  pq.write_table(table.replace_schema_metadata(metadata), out, **options)
  return out.getvalue()


def change_parquet(rng: random.Random, files: Files) -> Files:
  """Rename columns, change their types, values and metadata, or change bytes."""
  name = rng.choice(list(files))
  if rng.random() < 0.5:
    return change_one(rng, files)
  table = pq.read_table(io.BytesIO(files[name]))
  columns, metadata = table.to_pydict(), dict(table.schema.metadata or {})
  names = list(columns)
  key = rng.choice(names)
  match rng.randrange(6):
    case 0:
      columns = {word(rng) if n == key else n: v for n, v in columns.items()}
    case 1:
      columns_of = [
        rng.sample(NUMBERS[:8], 6),
        [word(rng).encode('utf-8', 'replace').decode() for _ in range(6)],
        [None] * 6, [[1]] * 6, [b'\xff' * i for i in range(6)], [True] * 6, [1.5] * 6,
      ]  # fmt: skip
      columns[key] = rng.choice(columns_of)
    case 2:
      columns.pop(key)
    case 3:
      hub = metadata.get(b'huggingface', b'{"info": {"features": {}}}')
      metadata[b'huggingface'] = change_json(rng, hub)
    case 4:
      metadata[b'huggingface'] = change_bytes(rng, metadata.get(b'huggingface', b'{}'))
    case 5:
      size = rng.choice((2**10, 2**10, 2**20, 2**22))
      columns['image'] = [{'bytes': bytes(size), 'path': word(rng)} for _ in range(6)]
  try:
    return {**files, name: parquet_file(columns, metadata, compression='zstd')}
  except (pa.ArrowException, UnicodeError, TypeError, ValueError):
    return change_one(rng, files)


# Pickles


@functools.cache
def folder_of(make: Callable[[pathlib.Path], object]) -> Files:
  """The files that a function makes."""
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name) / 'data'
    make(root)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def pickle_samples() -> list[Files]:
  """CIFAR-100 and torch files of both forms."""
  tree = folder_of(lambda root: test_layouts.cifar(root / 'cifar-100-python'))
  state = (
    b'\x80\x02}(X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(' + b'(X\x07\x00\x00\x00'
  )
  state += b'storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00(K\x02'
  state += b'K\x02t(K\x02K\x01t\x89ccollections\nOrderedDict\n)RtRu.'
  archive = io.BytesIO()
  with zipfile.ZipFile(archive, 'w') as f:
    f.writestr('w/data.pkl', state)
    f.writestr('w/data/0', bytes(16))
  system = b'\x80\x02}(U\x10protocol_versionM\xe9\x03U\rlittle_endian\x88u.'
  stream = torch_files.STREAM_MAGIC + b'\x80\x02M\xe9\x03.' + system + state
  stream += b'\x80\x02](X\x01\x00\x00\x000e.' + struct.pack('<q', 4) + bytes(16)
  small = {n: d for n, d in tree.items() if n.endswith('meta')}
  return [tree, small, {'a.pth': archive.getvalue()}, {'a.pth': stream}, {'data.pkl': state}]


def pickle_soup(rng: random.Random) -> bytes:
  """Random operations, with their arguments."""
  parts = [b'\x80\x02'] if rng.random() < 0.8 else []
  names = (b'torch\nSize\n', b'collections\nOrderedDict\n', b'numpy\ndtype\n', b'os\nsystem\n',
           b'torch._utils\n_rebuild_tensor_v2\n', b'torch\nFloatStorage\n',
           b'numpy.core.multiarray\n_reconstruct\n')  # fmt: skip
  safe = [op.code.encode('latin-1') for op in pickletools.opcodes if op.arg is None]
  common = [b'(', b'}', b']', b')', b'K\x01', b'X\x01\x00\x00\x00a', b'h\x00', b'q\x00', b'h\x01',
            b'q\x01', b't', b'\x85', b'\x86', b'R', b'u', b's', b'd', b'e', b'a', b'b', b'Q', b'0',
            b'U\x03abc', b'C\x02ab', b'N', b'G' + bytes(8), b'r\xff\xff\xff\x7f']  # fmt: skip
  for _ in range(rng.choice((5, 20, 100, 3000))):
    kind = rng.random()
    if kind < 0.85:
      parts.append(rng.choice(common))
    elif kind < 0.93:
      parts.append(b'c' + rng.choice(names))
    else:
      parts.append(rng.choice(safe))
  if rng.random() < 0.3:
    parts.append(rng.choice(common) * rng.choice((100, 100_000)))
  return b''.join(parts) + b'.'


def change_pickle(rng: random.Random, files: Files) -> Files:
  """Change bytes, or replace a pickle by random operations."""
  name = rng.choice(list(files))
  if rng.random() < 0.5:
    return change_one(rng, files, [name])
  soup = pickle_soup(rng)
  if not name.endswith('.pth'):
    return {**files, name: soup}
  if files[name][:2] != b'PK':
    return {**files, name: torch_files.STREAM_MAGIC + soup}
  archive = io.BytesIO()
  with zipfile.ZipFile(archive, 'w', rng.choice((0, 8))) as f:
    f.writestr('w/data.pkl', soup)
  return {**files, name: archive.getvalue()}


def read_pickle(folder: pathlib.Path) -> None:
  """Read CIFAR-100, or weights."""
  for path in (folder / 'a.pth', folder / 'data.pkl'):
    with contextlib.suppress(UserError, FileNotFoundError):
      torch_files.read(path)
  cifar.read(folder, False)


# MATLAB files, JSON, images, options, archives


def mat_samples() -> list[Files]:
  """The devkit of Stanford Cars, and the list of CompCars."""
  tree = folder_of(lambda root: test_layouts.devkit(root))
  names = sorted(n for n in tree if n.endswith('.mat'))
  packed = {n: _compressed(tree[n]) for n in names}
  return [{n: tree[n]} for n in names] + [{n: packed[n]} for n in names]


def _compressed(data: bytes) -> bytes:
  """A MATLAB file with its variables compressed."""
  body = zlib.compress(data[128:])
  return data[:128] + struct.pack('<II', 15, len(body)) + body


def change_mat(rng: random.Random, files: Files) -> Files:
  """Change bytes, of compressed variables before they are compressed."""
  (name,) = files
  data = files[name]
  if data[128:132] == b'\x0f\0\0\0' and rng.random() < 0.7:
    body = change_bytes(rng, zlib.decompress(data[136:]))
    if rng.random() < 0.05:
      body += bytes(64 << 20)
    return {name: _compressed(data[:128] + body)}
  return change_one(rng, files)


def read_mat(folder: pathlib.Path) -> None:
  """Read the variables, and the annotations as the layouts do."""
  for path in folder.rglob('*.mat'):
    for field in ('annotations', 'class_names'):
      with contextlib.suppress(UserError):
        layout.read_mat(path, field)
    with contextlib.suppress(ValueError, struct.error, IndexError, zlib.error, KeyError, TypeError,
                             OverflowError, UnicodeError, NotImplementedError):  # fmt: skip
      matfile.read(path)


TAXONOMY = Taxonomy.from_rows(('make', 'model'), [('a', 'a 1'), ('a', 'a 2'), ('b', 'b 1')])


def json_samples() -> list[Files]:
  """The JSON files of a run, of this version and the first."""
  c = config.default()
  first = (HERE / 'core' / 'config_version1.json').read_bytes()
  c.curriculum = (config.phase(share=0.5, freeze='backbone'),)
  metrics = [{'step': i, 'kind': 'val' if i % 3 else 'train', 'loss': 1 / i} for i in range(1, 9)]
  evaluation = {'split': 'val', 'n': 3, 'heads': ['make'], 'weights': {'make': 1.0}}
  evaluation |= {'decode': {'joint': {'levels': {'make': {'top1': 0.5}}, 'fpa': 0.5}}}
  run = {
    'config.json': config.to_json(c).encode(),
    'decode.json': b'{"split": "val", "weights": {"make": 0.5, "model": 1.0}}',
    'metrics.jsonl': b''.join(json.dumps(m).encode() + b'\n' for m in metrics),
    'run.json': b'{"command": "x", "heads": ["make"], "classes": {"make": 2}, "notes": []}',
    'eval_val.json': json.dumps(evaluation).encode(),
  }
  return [run, run, {**run, 'config.json': first}]


def change_json_files(rng: random.Random, files: Files) -> Files:
  """Change the tree of a file, or its bytes."""
  name = rng.choice(list(files))
  if rng.random() < 0.4:
    return change_one(rng, files, [name])
  if name != 'metrics.jsonl':
    return {**files, name: change_json(rng, files[name])}
  lines = files[name].splitlines()
  i = rng.randrange(len(lines))
  lines[i] = change_json(rng, lines[i])
  return {**files, name: b'\n'.join(lines)}


def read_json(folder: pathlib.Path) -> None:
  """Read a run as evaluation, the report and training do."""
  for name in ('decode.json', 'run.json', 'eval_val.json'):
    with contextlib.suppress(UserError):
      json_files.read(folder / name)
  with contextlib.suppress(UserError):
    rules.read_rules(folder / 'decode.json', TAXONOMY)
  run = runs.read(folder)
  _ = run.splits, run.faults, str(run.config.get('name'))
  log.JsonLines(folder / 'metrics.jsonl', 5)
  c = config.from_json((folder / 'config.json').read_bytes())
  c.plugins = ()
  config.validate(c)


def image_samples() -> list[Files]:
  """Pictures in the formats that the decoders read."""
  picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
  samples = []
  for form, mode in (('JPEG', 'RGB'), ('JPEG', 'CMYK'), ('JPEG', 'L'), ('PNG', 'RGB'), ('PNG', 'P'),
                     ('PNG', 'RGBA'), ('PNG', 'I;16'), ('GIF', 'P'), ('BMP', 'RGB'),
                     ('TIFF', 'RGB'), ('TIFF', 'F'), ('WEBP', 'RGB'), ('PPM', 'RGB'),
                     ('TGA', 'RGB'), ('ICO', 'RGBA'), ('AVIF', 'RGB')):  # fmt: skip
    out = io.BytesIO()
    source = picture.convert('L').convert('I;16') if mode == 'I;16' else picture.convert(mode)
    exif = Image.Exif()
    exif[0x112] = 6
    options = {'exif': exif} if form in ('JPEG', 'PNG', 'WEBP') else {}
    with contextlib.suppress(OSError, KeyError):
      source.save(out, form, **options)
      samples.append({'x': out.getvalue()})
  return samples


def change_image(rng: random.Random, files: Files) -> Files:
  """Change bytes; of PNG files mostly with right checksums."""
  data = change_bytes(rng, files['x'])
  if data[:8] == b'\x89PNG\r\n\x1a\n' and rng.random() < 0.8:
    data = _with_checksums(data)
  return {'x': data}


def _with_checksums(data: bytes) -> bytes:
  out, i = bytearray(data), 8
  while i + 12 <= len(out):
    end = i + 8 + int.from_bytes(out[i : i + 4], 'big')
    out[end : end + 4] = struct.pack('>I', zlib.crc32(out[i + 4 : end]))
    i = end + 4
  return bytes(out[: max(len(data), 8)])


def read_image(folder: pathlib.Path) -> None:
  """Decode and resize."""
  data = (folder / 'x').read_bytes()
  with contextlib.suppress(decoding.BrokenImage):
    image = decoding.decode(data)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
      raise AssertionError(f'an image {image.dtype} {image.shape}')
  with contextlib.suppress(decoding.BrokenImage):
    transforms.eval_transform(data, 32, 'crop')


def change_options(rng: random.Random, files: Files) -> Files:
  """Texts for options of the command line."""
  pairs = []
  for _ in range(rng.choice((1, 1, 3))):
    text = word(rng)
    if rng.random() < 0.5:
      text = rng.choice(('', '-', '(', '[', "{'")) + text + rng.choice(('', ',', ')', ']', "'}"))
    if rng.random() < 0.3:
      text = repr(value(rng))
    pairs.append([rng.choice(list(OPTIONS)), text])
  return {'options.json': json.dumps(pairs).encode()}


def read_options(folder: pathlib.Path) -> None:
  """Assign texts to options, check them, and write and read the config."""
  c = config.default()
  for name, text in json.loads((folder / 'options.json').read_bytes()):
    if name != 'plugins':
      config.assign(c, name, text)
  config.validate(c)
  copy = config.from_json(config.to_json(c))
  changes = config.differences(c, copy)
  if changes:
    raise AssertionError(f'config.json does not keep {changes}')


def npz_samples() -> list[Files]:
  """Archives of arrays, compressed or not."""
  samples = []
  for save in (np.savez, np.savez_compressed):
    out = io.BytesIO()
    save(out, files=np.array(['a', 'bb']), labels=np.zeros((2, 3), np.int32), p=np.ones(4))
    samples.append({'x.npz': out.getvalue()})
  return samples


READERS = {
  'csv': Reader(csv_samples, change_csv, read_data),
  'tar': Reader(tar_samples, change_tar, read_data),
  'parquet': Reader(parquet_samples, change_parquet, read_data),
  'pickle': Reader(pickle_samples, change_pickle, read_pickle),
  'mat': Reader(mat_samples, change_mat, read_mat),
  'json': Reader(json_samples, change_json_files, read_json),
  'images': Reader(image_samples, change_image, read_image),
  'config': Reader(lambda: [{}], change_options, read_options),
  'npz': Reader(npz_samples, change_one, lambda folder: archives.read(folder / 'x.npz')),
}


def make_input(name: str, seed: int, number: int) -> Files:
  """Return an input: the same for the same arguments."""
  rng = random.Random(f'{name} {seed} {number}')
  reader = READERS[name]
  files = rng.choice(samples_of(name))
  for _ in range(rng.choice((1, 1, 1, 2))):
    try:
      files = reader.change(rng, files)
    except Exception:  # what is damaged already cannot be taken apart
      files = change_one(rng, files)
  return files


@functools.cache
def samples_of(name: str) -> list[Files]:
  """The samples of a reader."""
  return READERS[name].samples()


def attempt(name: str, files: Files, folder: pathlib.Path) -> str:
  """Read an input in a new folder; return what is wrong, '' if nothing is."""
  folder.mkdir()
  for path, content in files.items():
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content)
  try:
    READERS[name].read(folder)
  except MemoryError as e:
    return f'MemoryError: {e}'
  except Exception as e:
    if not errors.message(e) or isinstance(e, PermissionError):
      return ''.join(traceback.format_exception(e)[-6:])
  return ''


# The child process


class Watch:
  """Notes writes outside a folder, connections and programs, by Python's audit events."""

  WRITES: ClassVar = {'os.mkdir': 0, 'os.remove': 0, 'os.rmdir': 0, 'os.rename': 1, 'os.link': 1,
            'os.symlink': 1, 'os.truncate': 0, 'shutil.rmtree': 0}  # fmt: skip
  FORBIDDEN = ('socket.connect', 'subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn')

  def __init__(self, root: pathlib.Path):
    self.root, self.notes, self.is_on = os.path.realpath(root), [], False
    sys.addaudithook(self.hook)

  def hook(self, event: str, args: tuple) -> None:
    """Called by Python at each event."""
    if not self.is_on:
      return
    if event in self.FORBIDDEN:
      self.notes.append(f'{event} {args!r:.200}')
    path = args[self.WRITES[event]] if event in self.WRITES else None
    if event == 'open' and isinstance(args[0], str | bytes | os.PathLike):
      flags = args[2] if isinstance(args[2], int) else 0
      path = args[0] if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else None
    if path is None or isinstance(path, int):
      return
    place = os.path.realpath(os.fsdecode(path))
    if not place.startswith(self.root) and not place.startswith('/dev/'):
      self.notes.append(f'{event} outside: {place[:200]!r}')


def serve(name: str, seed: int, first: int, count: int, sandbox: pathlib.Path, out: int) -> None:
  """Read inputs one after the other; write a line of JSON for each."""
  for variable in ('HOME', 'XDG_CACHE_HOME', 'TMPDIR', 'HF_HOME'):
    (sandbox / variable).mkdir(exist_ok=True)
    os.environ[variable] = str(sandbox / variable)
  tempfile.tempdir = os.environ['TMPDIR']
  os.chdir(sandbox / 'TMPDIR')
  null = os.open(os.devnull, os.O_RDWR)
  for stream in (1, 2):
    os.dup2(null, stream)
  for sample in samples_of(name):
    attempt(name, sample, sandbox / 'warm')
    shutil.rmtree(sandbox / 'warm')
  samples_of(name)
  base, watch = peak(), Watch(sandbox)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
  limit = virtual() + (4 << 30)
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  for number in range(first, first + count):
    os.write(out, json.dumps({'begin': number}).encode() + b'\n')
    files = make_input(name, seed, number)
    base = max(base, peak())  # what it takes to make the input does not count
    folder = sandbox / f'input{number}'
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    watch.is_on = True
    fault = attempt(name, files, folder)
    watch.is_on = False
    signal.setitimer(signal.ITIMER_PROF, 0)
    if watch.notes:
      fault = '; '.join(watch.notes[:3])
      watch.notes.clear()
    if peak() - base > MIB:
      fault = fault or f'took {peak() - base:.0f} MiB'
      base = peak()
    shutil.rmtree(folder, ignore_errors=True)
    os.write(out, json.dumps({'end': number, 'fault': fault[-3000:]}).encode() + b'\n')


def peak() -> float:
  """The largest memory until now, in MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def virtual() -> int:
  """The address space, in bytes."""
  return int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * os.sysconf('SC_PAGE_SIZE')


def start(name: str, seed: int, first: int, count: int, sandbox: pathlib.Path) -> tuple[int, int]:
  """Start a child that reads `count` inputs; return its process and the pipe it writes to."""
  receive, send = os.pipe()
  pid = os.fork()
  if not pid:
    os.close(receive)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    try:
      serve(name, seed, first, count, sandbox, send)
    finally:
      os._exit(0)
  os.close(send)
  return pid, receive


def lines_of(pipe: int, pid: int):
  """Yield what a child says, until it ends or is silent for too long."""
  buffer = b''
  while True:
    if not select.select([pipe], [], [], SILENCE)[0]:
      os.kill(pid, signal.SIGKILL)
      return
    part = os.read(pipe, 1 << 16)
    if not part:
      return
    *lines, buffer = (buffer + part).split(b'\n')
    yield from map(json.loads, lines)


def fuzz(name: str, seed: int, deadline: float, first: int, count: int, out: pathlib.Path) -> int:
  """Read inputs until the deadline; print and keep the findings, and return their number."""
  number, findings, start_time = first, 0, time.time()
  while number < first + count and time.time() < deadline:
    with tempfile.TemporaryDirectory(prefix='hierjax-fuzz-') as folder:
      pid, pipe = start(name, seed, number, min(2000, first + count - number), pathlib.Path(folder))
      current = None
      for line in lines_of(pipe, pid):
        if 'begin' in line:
          current = line['begin']
          continue
        current, number = None, line['end'] + 1
        if line['fault']:
          findings += 1
          report(name, seed, line['end'], line['fault'], out)
        if time.time() > deadline:
          os.kill(pid, signal.SIGKILL)
          break
      os.close(pipe)
      status = os.waitpid(pid, 0)[1]
      if current is not None:
        findings += 1
        words = {
          signal.SIGPROF: f'more than {SECONDS} s',
          signal.SIGKILL: f'silent for {SILENCE} s',
        }
        report(name, seed, current, f'the child ended: {words.get(status & 127, status)}', out)
        number = current + 1
      elif number == first and status:
        raise RuntimeError(f'{name}: the child ended with {status} before the first input')
  rate = (number - first) / max(1e-9, time.time() - start_time)
  print(f'{name}: {number - first} inputs, {rate:.0f} a second, {findings} findings', flush=True)
  return findings


def report(name: str, seed: int, number: int, fault: str, out: pathlib.Path) -> None:
  """Print a finding, and write its files."""
  folder = out / f'{name}-{seed}-{number}'
  for path, content in make_input(name, seed, number).items():
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content)
  print(f'FINDING {name} {number} ({folder}):\n  {fault.strip().replace(chr(10), chr(10) + "  ")}')
  command = f'python tests/fuzz.py --reader {name} --seed {seed} --first {number} --count 1'
  print(f'  again: {command}', flush=True)


def main() -> int:
  """Fuzz the readers that the arguments name; the exit code is 1 where there are findings."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--minutes', type=float, default=1.0, help='for each reader')
  parser.add_argument('--reader', choices=['all', *READERS], default='all')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--first', type=int, default=0, help='number of the first input')
  parser.add_argument('--count', type=int, default=10**9, help='inputs at most')
  parser.add_argument('--out', type=pathlib.Path, help='where findings are written')
  args = parser.parse_args()
  out = args.out or pathlib.Path(tempfile.mkdtemp(prefix='hierjax-findings-'))
  total = 0
  for name in READERS if args.reader == 'all' else [args.reader]:
    deadline = time.time() + 60 * args.minutes
    total += fuzz(name, args.seed, deadline, args.first, args.count, out)
  return int(total > 0)


if __name__ == '__main__':
  sys.exit(main())
