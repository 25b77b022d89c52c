"""Reading CSV files: tolerant of what programs write, exact about what is wrong."""

import codecs
import csv
import itertools
import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple, TextIO

from hierjax.core.errors import UserError

Rows = list[tuple[int, list[str]]]
DELIMITERS = {'comma': ',', 'semicolon': ';', 'tab': '\t', 'pipe': '|'}
MAX_LINE = 1 << 18  # characters
MAX_CELLS = 20_000_000
_SAMPLE = 200  # lines by which the delimiter is found
_MARKS = {b'\xef\xbb\xbf': 'utf-8-sig', b'\xff\xfe': 'utf-16', b'\xfe\xff': 'utf-16'}
CONTROL = re.compile('[\0-\x08\x0e-\x1f]')
_SEPARATOR_LINE = re.compile('"?sep=.?"?\\s*', re.IGNORECASE)  # the first line for spreadsheets
_NAMELESS = '(column {})'


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
  """Read a CSV file as column names and numbered rows.

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
    # Short rows take many times their bytes, so that they are counted before they are kept.
    for is_kept in (False, True) if file.stat().st_size > MAX_CELLS else (True,):
      with file.open(encoding=encoding, newline='') as f:
        columns, rows = _parse(path, f, DELIMITERS[delimiter], is_kept)
  except (OSError, ValueError) as e:
    if isinstance(e, UserError):
      raise
    if isinstance(e, UnicodeError):
      raise UserError(f'{path}: is not {encoding} text ({e}); set data.encoding') from None
    raise UserError(f'{path}: cannot be read ({getattr(e, "strerror", None) or e})') from None
  return CsvFile(columns, rows, notes)


def _guess_encoding(path, file, notes):
  """The encoding of a file; `UserError` where it is no text."""
  with file.open('rb') as f:
    start = f.read(1 << 16)
    for mark, name in _MARKS.items():
      if start.startswith(mark):
        notes += ['read as UTF-16'] if name == 'utf-16' else []
        return name
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
  is_read, columns, rows, last_line, n = [], None, [], 0, 0
  # What follows the last line is asked for only where a quoted cell goes on.
  lines = itertools.chain(_lines(path, file), (is_read.append(1) for _ in [0]))
  reader = csv.reader(filter(None, lines), delimiter=delimiter, skipinitialspace=True)
  while True:
    try:
      cells = next(reader)
    except StopIteration:
      break
    except csv.Error as e:
      raise UserError(f'{path}:{last_line + 1}: is not CSV ({e})') from None
    if is_read:
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
      rows.append((row, (cells + [''] * (len(columns) - len(cells)))[: len(columns)]))
    n += len(columns)
    if n > MAX_CELLS:
      raise UserError(f'{path}: has more than {MAX_CELLS} cells; divide it')
  if columns is None:
    raise UserError(f'{path}:1: is empty; the first row names the columns')
  return columns, rows


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
  table = read_table(path)
  for k, level in enumerate(table.columns):
    if level == _NAMELESS.format(k + 1):
      raise UserError(f'{path}:1: column {k + 1} of the header has no name')
    if level in ('file', 'split'):
      raise UserError(
        f'{path}:1: column {level!r} belongs into labels.csv; a taxonomy has one row per finest '
        'class and one column per level'
      )
  for k, level in enumerate(table.columns):
    row = next((row for row, cells in table.rows if cells[k] == level), None)
    if row is not None:
      raise UserError(
        f'{path}:1: the header is missing: {level!r} is a class in row {row}; the first row names '
        'the levels'
      )
  return table
