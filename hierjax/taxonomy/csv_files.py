"""Reading CSV files: tolerant of what programs write, exact about what is wrong."""

import codecs
import csv
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Self, TextIO

import numpy as np

from hierjax.core.errors import UserError
from hierjax.core.names import Names

Rows = list[tuple[int, list[str]]]
DELIMITERS = {'comma': ',', 'semicolon': ';', 'tab': '\t', 'pipe': '|'}
MAX_LINE = 1 << 18  # characters
MAX_CELLS = 20_000_000
_SAMPLE = 200  # lines by which the delimiter is found
CONTROL = re.compile('[\0-\x08\x0e-\x1f]')
_SEPARATOR_LINE = re.compile('"?sep=.?"?\\s*', re.IGNORECASE)  # the first line for spreadsheets
_NAMELESS = '(column {})'
_LARGE = 1 << 20  # bytes of a file from which on pyarrow is worth its import
_MAX_REGULAR = 1 << 17  # bytes of a line, below what the csv module refuses of a cell
_CONTROL_BYTES = bytes([*range(9), *range(14, 32)])


class Column(NamedTuple):
  """A column of a CSV file: its distinct cells, and which of them each row has.

  Attributes:
    values: the cells, in the order of their first rows.
    codes: int [N], the number of each row's cell.
  """

  values: Sequence[str]
  codes: np.ndarray

  @classmethod
  def encode(cls, cells: Iterable[str]) -> Self:
    """Number cells."""
    numbers = {}
    codes = np.fromiter((numbers.setdefault(cell, len(numbers)) for cell in cells), np.int32)
    return cls(list(numbers), codes)

  def counts(self) -> dict[str, int]:
    """Return {cell: number of its rows}."""
    return dict(zip(self.values, np.bincount(self.codes, minlength=len(self.values)).tolist()))

  def renamed(self, values: Iterable[str]) -> 'Column':
    """Return the column with other cells in place of each of `values`; equal ones are one."""
    new = Column.encode(values)
    return Column(new.values, new.codes[self.codes])

  def cell(self, row: int) -> str:
    """Return the cell of a row."""
    return self.values[self.codes[row]]

  def equals(self, cell: str) -> np.ndarray:
    """Return which rows have a cell, bool [N]."""
    return np.array([value == cell for value in self.values], bool)[self.codes]

  def take(self, rows: np.ndarray | slice) -> list[str]:
    """Return the cells of rows."""
    return list(map(self.values.__getitem__, self.codes[rows].tolist()))


def combinations(columns: Sequence[Column]) -> tuple[np.ndarray, np.ndarray]:
  """Number the combinations of cells that occur in columns.

  Returns:
    int [D], the first row of each, and int [N], which of them each row has.
  """
  codes, count = columns[0].codes, len(columns[0].values)
  for column in columns[1:]:
    codes = codes.astype(np.int64) * len(column.values) + column.codes
    codes = np.unique(codes, return_inverse=True)[1]
    count = int(codes.max(initial=-1)) + 1
  first = np.zeros(count, int)
  first[codes[::-1]] = np.arange(len(codes))[::-1]  # the last assignment stays
  return first, codes


class CsvColumns(NamedTuple):
  """The content of a CSV file, see `CsvFile`, by columns; rows int64 [N]."""

  columns: dict[str, Column]
  rows: np.ndarray
  notes: list[str]
  path: pathlib.Path

  def where(self, i: int | None = None) -> str:
    """Return the 'FILE:ROW' of the i-th row, or of the header, or where numbers are 0 the file."""
    if not self.rows[:1].any():
      return str(self.path) if i is None else f'{self.path}/{self.columns["file"].cell(i)}'
    return f'{self.path}:{1 if i is None else self.rows[i]}'

  def table(self) -> 'CsvFile':
    """Return the content by rows."""
    lists = (np.array(list(c.values), object)[c.codes].tolist() for c in self.columns.values())
    cells = map(list, zip(*lists))
    return CsvFile(list(self.columns), list(zip(self.rows.tolist(), cells)), self.notes)


class CsvFile(NamedTuple):
  """The content of a CSV file.

  Attributes:
    columns: their names; '(column 3)' for one without a name.
    rows: (row, cells) for each row; row is the line that an editor shows, 1 for the header.
    notes: how it was read, where that was guessed: delimiter and encoding.
  """

  columns: list[str]
  rows: Rows
  notes: list[str]


def read_table(
  path: str | os.PathLike, delimiter: str | None = None, encoding: str | None = None
) -> CsvFile:
  """Read a CSV file by rows, as `read_columns` does by columns."""
  return read_columns(path, delimiter, encoding).table()


def read_columns(
  path: str | os.PathLike, delimiter: str | None = None, encoding: str | None = None
) -> CsvColumns:
  """Read a CSV file by columns.

  A byte order mark, CRLF, quotes and spaces around a cell are tolerated, blank lines are skipped,
  and short rows are filled with empty cells.

  Args:
    path: the file.
    delimiter: one of `DELIMITERS`; None for that by which header and rows have as many cells.
    encoding: a codec's name; None for UTF-8 or, where it is not that, UTF-16 or Windows-1252.

  Raises:
    UserError: the file is missing, empty, no text, or too large; a column occurs twice; a row has
      more cells than the header.
  """
  file, notes = pathlib.Path(path), []
  # Reading a named pipe would wait for ever.
  if file.exists() and not file.is_file():
    raise UserError(f'{path}: cannot be read (not a regular file)')
  try:
    if encoding is None:
      encoding = _guess_encoding(path, file, notes)
    if delimiter is None:
      with file.open(encoding=encoding, newline='') as f:
        delimiter = _guess_delimiter(list(itertools.islice(_lines(path, f), _SAMPLE)), notes)
    size, content = file.stat().st_size, None
    if size > _LARGE and encoding in ('utf-8', 'utf-8-sig'):
      content = _parse_regular(path, file, DELIMITERS[delimiter], encoding)
    # Short rows take many times their bytes, so that they are counted before they are kept.
    passes = (False, True) if size > MAX_CELLS else (True,)
    for is_kept in () if content else passes:
      with file.open(encoding=encoding, newline='') as f:
        columns, rows = _parse(path, f, DELIMITERS[delimiter], is_kept)
  except (OSError, ValueError) as e:
    if isinstance(e, UserError):
      raise
    if isinstance(e, UnicodeError):
      raise UserError(f'{path}: is not {encoding} text ({e}); set data.encoding') from None
    raise UserError(f'{path}: cannot be read ({getattr(e, "strerror", None) or e})') from None
  if not content:
    numbers, cells = zip(*rows) if rows else ((), ())
    encoded = map(Column.encode, zip(*cells) if rows else [()] * len(columns))
    content = dict(zip(columns, encoded)), np.array(numbers, np.int64)
  return CsvColumns(*content, notes, file)


def _guess_encoding(path, file, notes):
  """The encoding of a file; `UserError` where it is no text."""
  with file.open('rb') as f:
    start = f.read(1 << 16)
    if start.startswith(codecs.BOM_UTF8):
      return 'utf-8-sig'
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
      notes.append('read as UTF-16')
      return 'utf-16'
    # Latin letters in UTF-16 are every other byte zero.
    zeros = [start[i::2].count(0) / (len(start) + 1) for i in (0, 1)]
    if min(zeros) < 0.01 and max(zeros) > 0.2:
      notes.append('read as UTF-16')
      return 'utf-16-be' if zeros[0] > zeros[1] else 'utf-16-le'
    f.seek(0)
    decoder, place = codecs.getincrementaldecoder('utf-8')(), 0
    try:
      while chunk := f.read(1 << 20):
        decoder.decode(chunk)
        place += len(chunk)
      decoder.decode(b'', final=True)
      return 'utf-8'
    except UnicodeDecodeError as e:
      sample = start if place == 0 else chunk
      place = max(0, place - len(e.object) + len(chunk)) + e.start
  if CONTROL.search(sample.decode('latin-1')):
    raise UserError(f'{path}: is not UTF-8 text (byte {place}), nor any other that is read')
  text = sample.decode('utf-8', 'replace')
  damaged = text.count('\ufffd')
  if len(re.findall('[^\0-\x7f]', text)) > 2 * damaged:
    raise UserError(f'{path}: is not UTF-8 text (byte {place}), though most of it is')
  notes.append('read as Windows-1252 (it is not UTF-8; another is set by data.encoding)')
  return 'cp1252'


def _guess_delimiter(lines, notes):
  """The delimiter by which most rows have as many cells as the header, which has more than one."""
  best, best_share = 'comma', 0.0
  for name, delimiter in DELIMITERS.items():
    try:
      reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
      rows = [row for row in reader if any(row)]
    except csv.Error:
      continue
    n = len(rows[0]) if rows else 0
    share = sum(len(row) == n for row in rows) / max(1, len(rows))
    if n > 1 and share > best_share:
      best, best_share = name, share
  if best != 'comma':
    notes.append(f'cells are separated by a {best}')
  return best


def _lines(path: str | os.PathLike, file: TextIO) -> Iterator[str]:
  """The lines of a text file; `UserError` for one that is too long or holds no text."""
  row = 0
  while line := file.readline(MAX_LINE + 1):
    row += 1
    if len(line) > MAX_LINE:
      raise UserError(f'{path}:{row}: is longer than {MAX_LINE} characters; is it a CSV file?')
    if CONTROL.search(line):
      raise UserError(f'{path}:{row}: holds control characters; it is damaged or no text')
    yield '\n' if row == 1 and _SEPARATOR_LINE.fullmatch(line) else line


def _parse(path, file, delimiter, is_kept):
  """The columns and the rows that are not blank, numbered, with stripped cells, or no rows."""
  columns, rows, last_line, n, is_at_end = None, [], 0, 0, False

  def lines():
    nonlocal is_at_end
    yield from _lines(path, file)
    # What follows the last line is asked for, before its row is there, only in a quoted cell.
    is_at_end = True

  reader = csv.reader(lines(), delimiter=delimiter, skipinitialspace=True)
  while True:
    try:
      cells = next(reader)
    except StopIteration:
      break
    except csv.Error as e:
      raise UserError(f'{path}:{last_line + 1}: is not CSV ({e})') from None
    if is_at_end:
      raise UserError(f'{path}:{last_line + 1}: a quote that opens here is never closed')
    # A quoted cell may span lines: the row starts after the line where the last one ended.
    row, last_line = last_line + 1, reader.line_num
    cells = [c.strip() for c in cells]
    if not any(cells):
      continue
    if columns is None:
      columns = _columns(f'{path}:{row}', cells)
      continue
    if any(cells[len(columns) :]):
      raise UserError(
        f'{path}:{row}: has {len(cells)} cells, but the header has {len(columns)}; put a name with '
        f'a {delimiter!r} in double quotes'
      )
    if is_kept:
      missing = len(columns) - len(cells)
      rows.append((row, cells[: len(columns)] + [''] * missing))
    n += len(columns)
    if n > MAX_CELLS:
      raise UserError(f'{path}: has more than {MAX_CELLS} cells; divide it')
  if columns is None:
    raise UserError(f'{path}:1: is empty; the first row names the columns')
  return columns, rows


def _parse_regular(path, file, delimiter, encoding):
  """The columns and the numbers of the rows, by pyarrow; None where `_parse` has more to say."""
  import pyarrow  # only large files need it
  from pyarrow import csv as arrow_csv

  data = file.read_bytes().removeprefix(codecs.BOM_UTF8 if encoding == 'utf-8-sig' else b'')
  data += b'' if data.endswith(b'\n') else b'\n'
  line, ends = data[: data.index(b'\n')], np.flatnonzero(np.frombuffer(data, np.uint8) == 10)
  if (
    len(data.translate(None, _CONTROL_BYTES)) < len(data)
    or data.count(b'\r') > data.count(b'\r\n')
    or b' "' in data
    or line.count(b'"') % 2
    or not line.strip()
    or np.diff(ends).max(initial=len(line)) > _MAX_REGULAR
    or _SEPARATOR_LINE.fullmatch(line.decode())
  ):
    return None
  cells = [c.strip() for c in next(csv.reader([line.decode()], delimiter=delimiter))]
  if not any(cells):
    return None
  columns, blank = _columns(f'{path}:1', cells), []

  def judge(row):
    if row.text.replace(delimiter, '').strip():
      return 'error'
    blank.append(row.number)
    return 'skip'

  names = list(map(str, range(len(columns))))
  types = dict.fromkeys(names, pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))
  try:
    table = arrow_csv.read_csv(
      pyarrow.BufferReader(data),
      arrow_csv.ReadOptions(use_threads=False, skip_rows=1, column_names=names),
      arrow_csv.ParseOptions(
        delimiter=delimiter, ignore_empty_lines=False, invalid_row_handler=judge
      ),
      arrow_csv.ConvertOptions(column_types=types),
    )
  except pyarrow.ArrowInvalid:
    return None
  rows = np.delete(np.arange(2, len(ends) + 1), np.array(blank, int) - 2)
  # fewer rows than lines: a quoted cell spans some
  if len(rows) != len(table) or not 0 < len(rows) * len(columns) <= MAX_CELLS:
    return None
  del data
  cells = [_stripped(table.column(name).unify_dictionaries().combine_chunks()) for name in names]
  is_blank = np.ones(len(rows), bool)
  for column in sorted(cells, key=lambda column: len(column.values)):
    is_blank &= is_blank.any() and column.equals('')
  if is_blank.any():
    rows = rows[~is_blank]
    cells = [Column.encode(column.take(~is_blank)) for column in cells]
  return dict(zip(columns, cells)), rows


def _stripped(array):
  """The column of a dictionary array of pyarrow, without blanks around its cells."""
  _, offsets, data = array.dictionary.buffers()
  offsets = np.frombuffer(offsets, np.int32)[: len(array.dictionary) + 1].astype(np.int64)
  values = Names(data.to_pybytes() if data else b'', offsets[:-1], offsets[1:])
  column = Column(values, array.indices.to_numpy())
  is_filled = values.start < values.end
  edges = np.concatenate([values.start[is_filled], values.end[is_filled] - 1])
  edges = np.frombuffer(values.data, np.uint8)[edges]
  if ((edges <= 32) | (edges >= 128)).any():
    column = column.renamed(map(str.strip, values))
  return column._replace(values=list(column.values)) if len(edges) < len(column.codes) else column


def _columns(where, cells):
  """The names of the columns; `UserError` for one that occurs twice."""
  for i, column in enumerate(cells):
    if column and column in cells[:i]:
      raise UserError(f'{where}: column {column!r} occurs twice in the header')
  return [column or _NAMELESS.format(i) for i, column in enumerate(cells, 1)]


def read_levels(path: str | os.PathLike) -> CsvFile:
  """Read a taxonomy's CSV file as level names and numbered rows.

  Args:
    path: the file, one column a level, one row a finest class.

  Raises:
    UserError: the file cannot be read, is a labels file, or has no header.
  """
  content = read_columns(path)
  for k, level in enumerate(content.columns, 1):
    if level == _NAMELESS.format(k):
      raise UserError(f'{path}:1: column {k} of the header has no name')
    if level in ('file', 'split'):
      raise UserError(
        f'{path}:1: column {level!r} belongs into labels.csv; a taxonomy has one row per finest '
        'class and one column per level'
      )
  for level, column in content.columns.items():
    if level in column.values:
      row = content.rows[column.equals(level).argmax()]
      raise UserError(
        f'{path}:1: the header is missing: {level!r} is a class in row {row}; the first row names '
        'the levels'
      )
  return content.table()
