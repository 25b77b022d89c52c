"""Reading CSV files: tolerant of what spreadsheets write, exact about what is wrong."""

import csv
import io
import os
import pathlib

from hierjax.core.errors import UserError

Rows = list[tuple[int, list[str]]]


def read_table(path: str | os.PathLike) -> tuple[list[str], Rows]:
  """Read a CSV file as column names and numbered rows.

  A byte order mark, CRLF, quotes and spaces around a cell are tolerated, blank lines are skipped,
  and short rows are filled with empty cells.

  Args:
    path: the file.

  Returns:
    The columns, and (row, cells) for each row; row is the line that an editor shows, 1 for the
    header.

  Raises:
    UserError: the file is missing, empty or no UTF-8 text; a column has no name or occurs twice; a
      row has more cells than the header.
  """
  rows = _parse(path, _read_text(path))
  if not rows:
    raise UserError(f'{path}:1: is empty; the first row names the columns')
  header_row, columns = rows[0]
  for i, column in enumerate(columns):
    if not column:
      raise UserError(f'{path}:{header_row}: column {i + 1} of the header has no name')
    if column in columns[:i]:
      raise UserError(f'{path}:{header_row}: column {column!r} occurs twice in the header')
  if len(columns) == 1 and any(s in columns[0] for s in ';\t'):
    raise UserError(
      f'{path}:{header_row}: there is one column, {columns[0]!r}; cells must be separated by '
      'commas, not by semicolons or tabs'
    )
  for row, cells in rows[1:]:
    if any(cells[len(columns) :]):
      raise UserError(
        f'{path}:{row}: has {len(cells)} cells, but the header has {len(columns)}; put a name with '
        'a comma in double quotes'
      )
  padding = [''] * len(columns)
  return columns, [(row, (cells + padding)[: len(columns)]) for row, cells in rows[1:]]


def _read_text(path):
  """The content of a file; `UserError` where it is no UTF-8 text."""
  file = pathlib.Path(path)
  # Reading a named pipe would wait for ever.
  if file.exists() and not file.is_file():
    raise UserError(f'{path}: cannot be read (not a regular file)')
  try:
    text = file.read_bytes().decode('utf-8-sig')
  except OSError as e:
    raise UserError(f'{path}: cannot be read ({e.strerror})') from None
  except UnicodeDecodeError as e:
    raise UserError(f'{path}: is not UTF-8 text (byte {e.start}); save it as "CSV UTF-8"') from None
  if '\0' in text:
    row = text.count('\n', 0, text.index('\0')) + 1
    raise UserError(f'{path}:{row}: holds zero bytes; it is damaged or no text')
  return text


def _parse(path, text):
  """The rows that are not blank, numbered, with stripped cells."""
  reader, rows, last_line = csv.reader(io.StringIO(text, newline='')), [], 0
  try:
    for cells in reader:
      # A quoted cell may span lines: the row starts after the line where the last one ended.
      rows.append((last_line + 1, [c.strip() for c in cells]))
      last_line = reader.line_num
  except csv.Error as e:
    raise UserError(f'{path}:{last_line + 1}: is not CSV ({e})') from None
  return [(row, cells) for row, cells in rows if any(cells)]


def read_levels(path: str | os.PathLike) -> tuple[list[str], Rows]:
  """Read a taxonomy's CSV file as level names and numbered rows.

  Args:
    path: the file, one column a level, one row a finest class.

  Returns:
    The levels, and (row, cells) for each row, as `read_table` does.

  Raises:
    UserError: the file cannot be read, is a labels file, or has no header.
  """
  levels, rows = read_table(path)
  for column in ('file', 'split'):
    if column in levels:
      raise UserError(
        f'{path}:1: column {column!r} belongs into labels.csv; a taxonomy has one row per finest '
        'class and one column per level'
      )
  for k, level in enumerate(levels):
    row = next((row for row, cells in rows if cells[k] == level), None)
    if row is not None:
      raise UserError(
        f'{path}:1: the header is missing: {level!r} is a class in row {row}; the first row names '
        'the levels'
      )
  return levels, rows
