"""A file of predictions that grows by whole lines, so that a stopped program can go on with it."""

import csv
import fcntl
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping

from hierjax.core import files, json_files
from hierjax.core.errors import UserError

SUFFIXES = ('.jsonl', '.csv', '.parquet')
CHUNK = 10_000  # rows that are written at a time


def flatten(record: Mapping, prefix: str = '') -> dict:
  """Flatten a record for a table: {'path': {'make': 'A'}} becomes {'path.make': 'A'}.

  Args:
    record: of JSON values. A list of texts becomes 'a|b', another one is left out.
    prefix: of the columns.
  """
  row = {}
  for key, value in record.items():
    if isinstance(value, Mapping):
      row |= flatten(value, f'{prefix}{key}.')
    elif not isinstance(value, list):
      row[prefix + key] = value
    elif all(isinstance(item, str) for item in value):
      row[prefix + key] = '|'.join(value)
  return row


class Output:
  """Predictions in a file: a line of JSON each, or a table, which is made of these at the end.

  Args:
    path: FILE.jsonl, FILE.csv or FILE.parquet. The lines for a table stand in FILE.csv.jsonl until
      it is complete.
    shard: (i, n), with which the file is FILE.i-of-n.jsonl.

  Attributes:
    names: of the images that the file holds already.

  Raises:
    UserError: it has another suffix, or holds something else.
  """

  def __init__(self, path: str, shard: tuple[int, int] | None = None):
    self.path = pathlib.Path(path).expanduser()
    if self.path.suffix not in SUFFIXES:
      raise UserError(f'--output={path}: must end in {", ".join(SUFFIXES)}')
    if shard:
      self.path = self.path.with_stem(f'{self.path.stem}.{shard[0]}-of-{shard[1]}')
    self.lines = self.path
    if self.path.suffix != '.jsonl':
      self.lines = self.path.with_name(f'{self.path.name}.jsonl')
    try:
      rows = {row['file']: row.get('fingerprint') for row in self._rows()}
    except (AttributeError, KeyError, ValueError, csv.Error) as e:
      raise UserError(f'--output={path}: holds something other than predictions ({e})') from None
    self.names, self._fingerprints = {*rows}, {*rows.values()}

  def open(self, fingerprint: str) -> None:
    """Open the file for predictions of the model with this fingerprint, which each line names."""
    if self._fingerprints - {fingerprint}:
      raise UserError(
        f'--output={self.path}: has predictions of another model, of other --classes, or of a '
        'version of hierjax that did not note the model; give another --output'
      )
    self._fingerprint = fingerprint
    self._file = open(self.lines, 'ab', buffering=0)  # noqa: SIM115
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(f'--output={self.path}: another program writes it; see --shard') from None
    os.truncate(self.lines, sum(map(len, _whole_lines(self.lines))))

  def write(self, record: Mapping) -> None:
    """Add the prediction of an image."""
    line = json_files.dump({**record, 'fingerprint': self._fingerprint})
    self._file.write(line.encode() + b'\n')

  def close(self) -> None:
    """Close the file; a table appears whole."""
    self._file.close()
    if self.path == self.lines:
      return
    if self.lines.stat().st_size or not self.path.exists():
      types = {}
      for key, value in itertools.chain.from_iterable(row.items() for row in self._rows()):
        types.setdefault(key, float if isinstance(value, int | float) else str)
      partial = self.path.with_name(f'.{self.path.name}.{os.getpid()}')
      _WRITERS[self.path.suffix](partial, types | {'error': str}, map(_encodable, self._rows()))
      os.replace(partial, self.path)
    self.lines.unlink()

  def _rows(self) -> Iterator[dict]:
    """Yield the rows of the table, and of the lines behind it."""
    for path in dict.fromkeys((self.path, self.lines)):
      if path.exists():
        for row in _READERS[path.suffix](path):
          yield {key: value for key, value in row.items() if value not in (None, '')}


def _whole_lines(path):
  """Yield the lines of a file, without what a stopped program has left of the last."""
  with files.open_regular(path) as f:
    yield from (line for line in f if line.endswith(b'\n'))


def _encodable(row):
  """Replace what is no Unicode in a row, as names of files may hold."""
  texts = {key: value for key, value in row.items() if isinstance(value, str)}
  return row | {key: x.encode('utf-8', 'backslashreplace').decode() for key, x in texts.items()}


def _read_lines(path):
  for line in _whole_lines(path):
    yield flatten(json.loads(line))


def _read_csv(path):
  with open(path, newline='', encoding='utf-8') as f:
    yield from csv.DictReader(f)


def _read_parquet(path):
  from pyarrow import parquet

  for batch in parquet.ParquetFile(path).iter_batches(CHUNK):
    yield from batch.to_pylist()


def _write_csv(path, types, rows):
  with open(path, 'w', newline='', encoding='utf-8') as f:
    writer = csv.DictWriter(f, list(types), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)


def _write_parquet(path, types, rows):
  import pyarrow
  from pyarrow import parquet

  kinds = {float: pyarrow.float64(), str: pyarrow.string()}
  schema = pyarrow.schema([(key, kinds[kind]) for key, kind in types.items()])
  with parquet.ParquetWriter(path, schema) as writer:
    while chunk := list(itertools.islice(rows, CHUNK)):
      writer.write_table(pyarrow.Table.from_pylist(chunk, schema))


_READERS = {'.jsonl': _read_lines, '.csv': _read_csv, '.parquet': _read_parquet}
_WRITERS = {'.csv': _write_csv, '.parquet': _write_parquet}
