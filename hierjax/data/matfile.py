"""MATLAB 5 files, as far as lists of names and annotations need them.

In plain Python, since scipy.io.loadmat (1.17) ends the process on damaged files. The format:
MathWorks, "MAT-File Format", "Level 5 MAT-Files".
"""

import math
import os
import struct
import zlib
from typing import NamedTuple

import numpy as np

from hierjax.core import files

# fmt: off
NUMBERS = {
  1: 'i1', 2: 'u1', 3: 'i2', 4: 'u2', 5: 'i4', 6: 'u4', 7: 'f4', 9: 'f8', 12: 'i8', 13: 'u8',
}
TEXTS = {1: 'latin-1', 2: 'latin-1', 4: 'utf-16', 16: 'utf-8', 17: 'utf-16', 18: 'utf-32'}
# fmt: on
MATRIX, COMPRESSED = 14, 15  # types of elements, as the above
CELL, STRUCT, CHAR, NUMERIC = 1, 2, 4, range(6, 16)  # classes of arrays
MAX_BYTES = 1 << 26  # of a file, unpacked
MAX_ELEMENTS = 1 << 19  # of all cells, structs and their fields; each is an object of Python


class _Element(NamedTuple):
  """Where an element's content lies, and where the next element begins."""

  kind: int
  start: int
  end: int
  after: int


class _Budget:
  """Counts what may still be read; each element of a few bytes becomes an object of Python."""

  def __init__(self, left: int):
    self.left = left

  def spend(self, count: int) -> None:
    """Take from what is left; a ValueError if it is too little."""
    self.left -= count
    if self.left < 0:
      raise ValueError(f'more than {MAX_ELEMENTS} cells and fields')


def read(path: str | os.PathLike) -> dict:
  """Read the variables of a file.

  Args:
    path: a MATLAB 5 file.

  Returns:
    {name: value}: a cell array is a list, a struct array a list of dicts (both flattened), text a
    str, a number a number, several numbers an array [n]; None for anything else.

  Raises:
    ValueError or another exception: the file is damaged.
  """
  data = files.read_bytes(path, MAX_BYTES)
  if data[124:128] not in (b'\0\1IM', b'\1\0MI'):
    raise ValueError('no MATLAB 5 file')
  order, position, variables = '<' if data[126:128] == b'IM' else '>', 128, {}
  room, budget = MAX_BYTES, _Budget(MAX_ELEMENTS)
  while position < len(data):
    element = _element(data, position, len(data), order)
    content, position = data, element.after
    if element.kind == COMPRESSED:
      unpacker, position = zlib.decompressobj(), element.end  # it has no padding
      content = unpacker.decompress(data[element.start : element.end], max(room, 1))
      room -= len(content)
      if not unpacker.eof:
        size = f'{MAX_BYTES >> 20} MiB'
        raise ValueError(f'a variable is cut short, or the file unpacks to more than {size}')
      element = _element(content, 0, len(content), order)
    name, value = _matrix(content, element, order, budget)
    variables[name] = value
  return variables


def _element(data, position, stop, order):
  """The element that begins at `position`; it must end before `stop`."""
  kind, size = struct.unpack_from(f'{order}II', data, position)
  if kind >> 16:
    # up to four bytes stand within the tag
    element = _Element(kind & 0xFFFF, position + 4, position + 4 + (kind >> 16), position + 8)
  else:
    element = _Element(kind, position + 8, position + 8 + size, position + 8 + size + -size % 8)
  if element.end > min(stop, element.after):
    raise ValueError('an element is cut short')
  return element


def _matrix(data, element, order, budget):
  """The name and value of an array."""
  if element.kind != MATRIX:
    raise ValueError(f'an array is of type {element.kind}')
  position, stop = element.start, element.end
  if position == stop:
    return '', None

  def content():
    nonlocal position
    part = _element(data, position, stop, order)
    position = part.after
    return data[part.start : part.end]

  flags, shape, name = content(), content(), content().decode('latin-1')
  kind = flags[0 if order == '<' else 3]
  size = math.prod(np.frombuffer(shape, f'{order}i4').tolist())
  fields = None
  if kind == STRUCT:
    width, names = int(np.frombuffer(content(), f'{order}i4')[0]), content()
    budget.spend(len(names) // max(width, 1))
    fields = [names[i : i + width] for i in range(0, len(names), width)]
    fields = [field.split(b'\0')[0].decode('latin-1') for field in fields]
  if kind in (CELL, STRUCT):
    count, items = size * (1 if fields is None else len(fields)), []
    if count < 0 or count * 8 > stop - position:
      raise ValueError('an array is longer than the file')
    budget.spend(count)
    for _ in range(count):
      item = _element(data, position, stop, order)
      position = item.after
      items.append(_matrix(data, item, order, budget)[1])
    if fields is None:
      return name, items
    steps = range(0, count, len(fields) or 1)
    return name, [dict(zip(fields, items[i : i + len(fields)])) for i in steps]
  if kind != CHAR and kind not in NUMERIC:
    return name, None
  if position >= stop:
    return name, '' if kind == CHAR else np.zeros(0)
  return name, _values(data, _element(data, position, stop, order), kind == CHAR, order)


def _values(data, element, is_text, order):
  """The text or the numbers of an element."""
  content = data[element.start : element.end]
  if is_text:
    coding = TEXTS[element.kind]
    if coding in ('utf-16', 'utf-32'):
      coding += {'<': '-le', '>': '-be'}[order]
    return content.decode(coding)
  values = np.frombuffer(content, order + NUMBERS[element.kind])
  return values[0].item() if len(values) == 1 else values
