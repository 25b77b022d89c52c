"""Copies of Parquet files with random access, in the user's cache.

A copy is a folder with images.bin (the bytes of all images), ends.npy (where each image ends), one
COLUMN.npy of int32 codes per column of labels (-1 unknown), and meta.json.
"""

import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hierjax.core import json_files
from hierjax.core.errors import UserError

IMAGE_COLUMNS = ('img', 'image', 'images')


class Column(NamedTuple):
  """A column of labels: the name of each code, and whether these are bare integers."""

  names: list[str]
  bare: bool


class Store(NamedTuple):
  """The copy of a Parquet file: its folder, number of rows, and columns of labels."""

  folder: pathlib.Path
  rows: int
  columns: dict[str, Column]

  def codes(self, column: str) -> np.ndarray:
    """int32 [rows], the codes of a column, -1 unknown."""
    return np.load(self.folder / f'{column}.npy')


@functools.lru_cache(maxsize=64)
def _mapped(folder):
  return np.memmap(f'{folder}/images.bin', np.uint8, 'r'), np.load(f'{folder}/ends.npy')


def read_image(i: int, *, folders: Sequence[str], ends: np.ndarray) -> bytes:
  """Read the bytes of an image.

  Args:
    i: its number in stores whose rows follow each other.
    folders: of the stores.
    ends: int [number of stores], where the rows of each end.
  """
  store = int(np.searchsorted(ends, i, side='right'))
  row = i - int(ends[store - 1] if store else 0)
  data, stops = _mapped(folders[store])
  return data[stops[row - 1] if row else 0 : stops[row]].tobytes()


def cache_folder() -> pathlib.Path:
  """The folder of converted data: $XDG_CACHE_HOME/hierjax or ~/.cache/hierjax."""
  cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(cache) / 'hierjax'


def open_store(path: pathlib.Path) -> Store:
  """Open the copy of a Parquet file; make it first if there is none for its path, size and time.

  The copy's folder appears whole or not at all.

  Args:
    path: the Parquet file.

  Raises:
    UserError: the file is damaged or holds no images, or the cache cannot be written.
  """
  status = path.stat()
  key = f'1:{path.resolve()}:{status.st_size}:{status.st_mtime_ns}'
  folder = cache_folder() / 'parquet' / hashlib.sha256(key.encode()).hexdigest()[:24]
  if not folder.exists():
    try:
      folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(
        f'{folder.parent}: no place for the copy of {path.name} ({error.strerror}); set '
        'XDG_CACHE_HOME'
      ) from None
    draft = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix='draft-'))
    try:
      _convert(path, draft)
      draft.rename(folder)
    except OSError:
      if not folder.exists():
        raise  # else another process was faster
    finally:
      shutil.rmtree(draft, ignore_errors=True)
  meta = json.loads((folder / 'meta.json').read_text())
  return Store(folder, meta['rows'], {c: Column(**column) for c, column in meta['columns'].items()})


def _convert(path, folder):
  """Write the copy of a Parquet file."""
  from pyarrow import parquet, types

  try:
    file = parquet.ParquetFile(path)
  except (ValueError, OSError) as error:
    raise UserError(f'{path}: cannot be read as Parquet ({str(error).splitlines()[0]})') from None
  schema = file.schema_arrow
  image = next((c for c in IMAGE_COLUMNS if c in schema.names), None)
  if image is None:
    raise UserError(
      f'{path}: no column of images ({", ".join(IMAGE_COLUMNS)}); the columns are '
      f'{", ".join(schema.names)}'
    )
  kinds = (types.is_integer, types.is_string, types.is_large_string, types.is_dictionary)
  columns = [
    f.name for f in schema if f.name != image and any(is_kind(f.type) for is_kind in kinds)
  ]
  names = _class_names(path, schema.metadata or {})
  values, ends, end = {c: [] for c in columns}, [], 0
  with open(folder / 'images.bin', 'wb') as out:
    for batch in _batches(path, file, [image, *columns]):
      for item in batch[image]:
        data = _image_bytes(path, image, item)
        out.write(data)
        end += len(data)
        ends.append(end)
      for c in columns:
        values[c] += batch[c]
  if not end:
    raise UserError(f'{path}: column {image!r} holds no bytes')
  meta = {'rows': len(ends), 'columns': {}}
  for c in columns:
    is_integer = types.is_integer(schema.field(c).type)
    column, codes = _encode(path, c, values[c], names.get(c), is_integer)
    np.save(folder / f'{c}.npy', codes)
    meta['columns'][c] = column._asdict()
  np.save(folder / 'ends.npy', np.array(ends, np.int64))
  (folder / 'meta.json').write_text(json.dumps(meta))


def _image_bytes(path, column, item):
  """The bytes of an image; b'' for a missing one, which is then an unreadable image."""
  data = item.get('bytes') if isinstance(item, dict) else item
  if not isinstance(data, bytes | None):
    kind = type(data).__name__
    raise UserError(f'{path}: column {column!r} holds {kind}, not the bytes of images')
  return data or b''


def _encode(path, column, values, names, is_integer):
  """(Column, int32 codes): integers are codes of the names, if the file has names."""
  if names:
    high = max((v for v in values if isinstance(v, int)), default=-1)
    if high >= len(names):
      raise UserError(f'{path}: {column} goes up to {high}, but it has only {len(names)} names')
  if not names or not is_integer:
    classes = {v for v in values if v is not None and v != ''}
    classes = sorted(v for v in classes if isinstance(v, str) or v >= 0)
    index = {v: i for i, v in enumerate(classes)}
    values, names = [index.get(v, -1) for v in values], [str(v) for v in classes]
    bare = is_integer
  else:
    bare = False
  codes = np.array([-1 if v is None else v for v in values], np.int32)
  return Column(names, bare), codes


def _class_names(path, metadata):
  """Names of the classes of each column, as the Hugging Face hub writes them into the file."""
  try:
    content = json_files.parse(metadata.get(b'huggingface', b'{}'))
    features = content.get('info', {}).get('features', {})
    described = {
      c: f['names'] for c, f in features.items() if isinstance(f, dict) and f.get('names')
    }
    return {c: [str(n) for n in names] for c, names in described.items()}
  except (ValueError, AttributeError, TypeError) as error:
    raise UserError(
      f'{path}: what the hub says of its columns (metadata "huggingface") is damaged ({error})'
    ) from None


def _batches(path, file, columns):
  """Yield {column: list of values} of 256 rows each."""
  try:
    for batch in file.iter_batches(256, columns=columns):
      yield {c: batch.column(c).to_pylist() for c in columns}
  except (OSError, ValueError, MemoryError) as error:
    # Arrow's errors are kinds of these; a damaged page may claim any size
    reason = str(error).splitlines()[0][:200]
    raise UserError(f'{path}: is damaged or was cut short ({reason})') from None
