"""Copies of Parquet files with random access, in the user's cache.

A copy is a folder with images.bin (the bytes of all images), ends.npy (where each image ends), one
labels_K.npy of int32 codes for column K of labels (-1 unknown), and meta.json with the columns'
names: a name from elsewhere is no part of a path.
"""

import contextlib
import hashlib
import io
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hierjax.core import archives, files, json_files
from hierjax.core.errors import UserError
from hierjax.data import parquet_pages

IMAGE_COLUMNS = ('img', 'image', 'images')
IMAGES = 'images.bin'
MAX_GROWTH = 64  # bytes of the copy over those of the file; images hardly shrink in it
MAX_ROWS = 1 << 20  # of a file with fewer bytes than rows
MAX_NAME = 1000  # letters of a class
BATCH_BYTES = 1 << 26  # of the rows that are read at a time, as far as the file tells


class Column(NamedTuple):
  """A column of labels: the name of each code, and its number."""

  names: list[str]
  number: int


class Store(NamedTuple):
  """The copy of a Parquet file: its folder, number of rows, and columns of labels."""

  folder: pathlib.Path
  rows: int
  columns: dict[str, Column]

  def codes(self, column: str) -> np.ndarray:
    """int32 [rows], the codes of a column, -1 unknown."""
    return np.load(self.folder / f'labels_{self.columns[column].number}.npy')

  def ends(self) -> np.ndarray:
    """int64 [rows], where each image ends in the file `IMAGES`."""
    return np.load(self.folder / 'ends.npy')


def cached(kind: str, key: Any, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Return arrays from the user's cache; make them first if it has none, or damaged ones.

  Args:
    kind: the folder of the cache; where that cannot be written, the arrays are made each time.
    key: what they depend on, as JSON holds it.
    make: returns them.
  """
  name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
  path = files.cache_folder(kind) / f'{name}.npz'
  try:
    return archives.read(path, path.stat().st_size)
  except (OSError, UserError):
    arrays, content = make(), io.BytesIO()
  np.savez(content, **arrays)
  with contextlib.suppress(OSError):
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, content.getvalue())
  return arrays


def open_store(path: pathlib.Path, max_bytes: int) -> Store:
  """Open the copy of a Parquet file; make it first if there is none for its path, size and time.

  The copy's folder appears whole or not at all.

  Args:
    path: the Parquet file.
    max_bytes: the most bytes of an image.

  Raises:
    UserError: the file is damaged, unpacks to too much or holds no images, or the cache cannot be
      written.
  """
  status = path.stat()
  key = f'3:{path.resolve()}:{status.st_size}:{status.st_mtime_ns}'
  folder = files.cache_folder('parquet') / hashlib.sha256(key.encode()).hexdigest()[:24]
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
      _convert(path, draft, max_bytes)
      draft.rename(folder)
    except OSError:
      if not folder.exists():
        raise  # else another process was faster
    finally:
      shutil.rmtree(draft, ignore_errors=True)
  meta = json.loads((folder / 'meta.json').read_text())
  return Store(folder, meta['rows'], {c: Column(**column) for c, column in meta['columns'].items()})


def _convert(path, folder, max_bytes):
  """Write the copy of a Parquet file."""
  from pyarrow import types

  file = _open(path)
  schema = file.schema_arrow
  image = next((c for c in IMAGE_COLUMNS if c in schema.names), None)
  if image is None:
    raise UserError(
      f'{path}: no column of images ({", ".join(IMAGE_COLUMNS)}); the columns are '
      f'{", ".join(schema.names)}'
    )
  kinds = (types.is_integer, types.is_string, types.is_large_string)
  columns = [
    f.name for f in schema if f.name != image and any(is_kind(_values(f.type)) for is_kind in kinds)
  ]
  names = _class_names(path, schema.metadata or {})
  limit = max(max_bytes, MAX_GROWTH * path.stat().st_size)
  batches = _batches(path, file, _batch_rows(path, file, limit), [image, *columns])
  ends, labels = _copy(path, batches, image, columns, folder, max_bytes, limit)
  if not ends or not ends[-1]:
    raise UserError(f'{path}: column {image!r} holds no bytes')
  meta = {'rows': len(ends), 'columns': {}}
  for k, c in enumerate(columns):
    is_integer = types.is_integer(_values(schema.field(c).type))
    column_names, codes = _encode(path, c, labels[c], names.get(c), is_integer)
    np.save(folder / f'labels_{k}.npy', codes)
    meta['columns'][c] = Column(column_names, k)._asdict()
  np.save(folder / 'ends.npy', np.array(ends, np.int64))
  (folder / 'meta.json').write_text(json.dumps(meta))


def _values(kind):
  """The type of a column's values, of a dictionary those in it."""
  from pyarrow import types

  return kind.value_type if types.is_dictionary(kind) else kind


def _open(path):
  """Open a Parquet file, whose metadata may claim anything."""
  from pyarrow import ArrowException, parquet

  try:
    file = parquet.ParquetFile(path)
    names = file.schema_arrow.names
  except (ArrowException, ValueError, OSError, MemoryError) as error:
    raise _damaged(path, 'cannot be read as Parquet', error) from None
  repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
  if repeated is not None:
    raise UserError(f'{path}: has several columns {repeated!r}')
  return file


def _damaged(path, words, error):
  reason = (str(error).splitlines() or [''])[0][:200]
  return UserError(f'{path}: {words} ({reason})')


def _batch_rows(path, file, limit):
  """How many rows are read at a time; a `UserError` for a file that unpacks to too much."""
  metadata, rows = file.metadata, 256
  if metadata.num_rows > max(MAX_ROWS, path.stat().st_size):
    raise UserError(
      f'{path}: claims {metadata.num_rows} rows in {path.stat().st_size} bytes: refused as a '
      'decompression bomb'
    )
  try:
    sizes = parquet_pages.unpacked_bytes(path)
  except parquet_pages.DamagedFile as error:
    raise _damaged(path, 'cannot be read as Parquet', error) from None
  for size in sizes:
    if size > limit:
      raise _bomb(path, size, limit)
    # each row may hold the largest entry of a dictionary
    rows = min(rows, max(1, BATCH_BYTES // max(1, size)))
  return rows


def _bomb(path, size, limit):
  return UserError(
    f'{path}: unpacks to {size >> 20} MiB or more, over {limit >> 20} MiB: refused as a '
    'decompression bomb; if it is sound, raise --config.data.max_bytes'
  )


def _copy(path, batches, image, columns, folder, max_bytes, limit):
  """Write the images; returns where each ends, and {column: its values}."""
  values, distinct, ends, end = {c: [] for c in columns}, {}, [], 0
  with open(folder / IMAGES, 'wb') as out:
    for batch in batches:
      for item in batch.column(image):
        data = _image_bytes(path, image, item.as_py())
        end += len(data)
        if len(data) > max_bytes:
          raise UserError(
            f'{path}: row {len(ends) + 1} has {len(data) >> 20} MiB, over '
            f'--config.data.max_bytes={max_bytes}'
          )
        if end > limit:
          raise _bomb(path, end, limit)
        out.write(data)
        ends.append(end)
      for c in columns:
        # one string for each class, however many rows have it
        values[c] += [distinct.setdefault(v, v) for v in batch.column(c).to_pylist()]
  return ends, values


def _batches(path, file, rows, columns):
  """Yield batches of so many rows."""
  from pyarrow import ArrowException

  try:
    for batch in file.iter_batches(rows, columns=columns):
      batch.validate(full=True)  # texts are UTF-8
      yield batch
  except (ArrowException, ValueError, OSError, MemoryError) as error:
    # a damaged page may claim any size
    raise _damaged(path, 'is damaged or was cut short', error) from None


def _image_bytes(path, column, item):
  """The bytes of an image; b'' for a missing one, which is then an unreadable image."""
  data = item.get('bytes') if isinstance(item, dict) else item
  if not isinstance(data, bytes | None):
    kind = type(data).__name__
    raise UserError(f'{path}: column {column!r} holds {kind}, not the bytes of images')
  return data or b''


def _encode(path, column, values, names, is_integer):
  """The names and the int32 codes of a column; integers are codes if the file has names."""
  if names:
    high = max((v for v in values if isinstance(v, int)), default=-1)
    if high >= len(names):
      raise UserError(f'{path}: {column} goes up to {high}, but it has only {len(names)} names')
  if not names or not is_integer:
    classes = {v for v in values if v is not None and v != ''}
    classes = sorted(v for v in classes if isinstance(v, str) or v >= 0)
    index = {v: i for i, v in enumerate(classes)}
    values, names = [index.get(v, -1) for v in values], [str(v) for v in classes]
  longest = max(map(len, names), default=0)
  if longest > MAX_NAME:
    raise UserError(
      f'{path}: {column} has a name of {longest} letters, at most {MAX_NAME} are read'
    )
  codes = [-1 if v is None or v < 0 else v for v in values]
  return names, np.array(codes, np.int32)


def _class_names(path, metadata):
  """Names of the classes of each column, as the Hugging Face hub writes them into the file."""
  try:
    content = json_files.parse(metadata.get(b'huggingface', b'{}'))
    features = content.get('info', {}).get('features', {})
    described = {
      c: f['names'] for c, f in features.items() if isinstance(f, dict) and f.get('names')
    }
    return {c: [str(n) for n in names] for c, names in described.items()}
  except (UserError, AttributeError, TypeError) as error:
    raise UserError(
      f'{path}: what the hub says of its columns (metadata "huggingface") is damaged ({error})'
    ) from None
