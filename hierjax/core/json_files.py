"""JSON of strangers, read whole or refused in one line, and JSON that every reader takes."""

import collections
import json
import math
import os
from typing import Any, NoReturn

from hierjax.core import files, nesting
from hierjax.core.errors import UserError

MAX_BYTES = 16 * 2**20  # of a file; its objects take some twenty times that
MAX_DEPTH = 64  # of lists and objects in each other
MAX_INTEGER = 2**64


def dump(value: Any, indent: int | None = None) -> str:
  """Write a value as JSON, which has no NaN and no infinity.

  Args:
    value: of dicts, lists, text, numbers, booleans and None.
    indent: blanks a level; None for one line.

  Raises:
    UserError: a number is not finite; the message says where.
  """
  try:
    return json.dumps(value, indent=indent, allow_nan=False)
  except ValueError:
    place = _first_not_finite(value, '')
    raise UserError(f'the result is not finite and cannot be written as JSON: {place}') from None


def _first_not_finite(value: Any, path: str) -> str:
  """Return the place of a number that is not finite: 'decode/joint/fpa is nan'; '' for none."""
  if isinstance(value, float) and not math.isfinite(value):
    return f'{path[1:]} is {value}'
  if isinstance(value, dict):
    items = value.items()
  elif isinstance(value, list | tuple):
    items = enumerate(value)
  else:
    return ''
  for key, element in items:
    place = _first_not_finite(element, f'{path}/{key}')
    if place:
      return place
  return ''


def read(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> Any:
  """Read a JSON file.

  Args:
    path: the file.
    max_bytes: its greatest size.

  Raises:
    OSError: the file is missing, no regular file, or too large.
    UserError: it is damaged; see `parse`.
  """
  content = files.read_bytes(path, max_bytes)
  try:
    return parse(content)
  except UserError as e:
    raise UserError(f'{path}: {e}') from None


def read_object(path: str | os.PathLike) -> dict:
  """Read a JSON file that holds an object; see `read`."""
  content = read(path)
  if not isinstance(content, dict):
    raise UserError(f'{path}: is damaged (not a JSON object)')
  return content


def parse(text: str | bytes, has_nan: bool = False) -> Any:
  """Parse JSON.

  Args:
    text: with or without a byte order mark; bytes as UTF-8.
    has_nan: whether NaN and infinity, as Python writes them, are read as None.

  Raises:
    UserError: it is not JSON, is nested too deeply, names a key twice, or has a number that is not
      finite or is larger than 64 bits hold. The message names no file.
  """
  try:
    text = text.decode('utf-8') if isinstance(text, bytes) else text
    content = _DECODERS[has_nan].decode(text.removeprefix('\ufeff'))
    nesting.check(content, MAX_DEPTH, len(text))
  except UnicodeDecodeError as e:
    raise UserError(f'is damaged (byte {e.start} is not UTF-8)') from None
  except RecursionError:
    raise UserError('is damaged (it is nested too deeply)') from None
  except ValueError as e:
    raise UserError(f'is damaged ({e})') from None
  return content


def _integer(text: str) -> int:
  value = int(text) if len(text) <= 20 else MAX_INTEGER
  if abs(value) >= MAX_INTEGER:
    raise ValueError(f'an integer of {len(text)} digits')
  return value


def _number(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f'{text[:20]} is too large a number')
  return value


def _refuse_constant(name: str) -> NoReturn:
  raise ValueError(f'{name} is not a finite number')


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Make an object; one that names a key twice could be read in two ways."""
  content = dict(pairs)
  if len(content) < len(pairs):
    counts = collections.Counter(key for key, _ in pairs)
    (key, count), *_ = counts.most_common(1)
    raise ValueError(f'{key[:80]!r} is there {count} times')
  return content


_DECODERS = [
  json.JSONDecoder(
    parse_int=_integer, parse_float=_number, parse_constant=constant, object_pairs_hook=_unique
  )
  for constant in (_refuse_constant, lambda name: None)
]
