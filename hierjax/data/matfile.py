"""MATLAB 5 files, as far as lists of names and annotations need them: cells, structs, text and numbers. In plain Python, since scipy.io.loadmat (1.17) ends
the process on files that are damaged (tests/test_layouts.py flips bytes). The format: MathWorks, "MAT-File Format", "Level 5 MAT-Files"."""

import math
import struct
import zlib

import numpy as np

NUMBERS = {
  1: 'i1',
  2: 'u1',
  3: 'i2',
  4: 'u2',
  5: 'i4',
  6: 'u4',
  7: 'f4',
  9: 'f8',
  12: 'i8',
  13: 'u8',
}  # the file's types of data
TEXTS = {1: 'latin-1', 2: 'latin-1', 4: 'utf-16', 16: 'utf-8', 17: 'utf-16', 18: 'utf-32'}
MATRIX, COMPRESSED = 14, 15
CELL, STRUCT, CHAR, NUMERIC = 1, 2, 4, range(6, 16)  # classes of arrays
MAX_BYTES = 1 << 28  # of a variable, unpacked


def read(path) -> dict:
  """{name: value} of the variables: a cell array is a list, a struct array a list of dicts (both flattened), text a str, a number a number, several an
  array [n]; None for what is something else. ValueError or another exception for a damaged file."""
  with open(path, 'rb') as f:
    data = f.read()
  if data[124:128] not in (b'\0\1IM', b'\1\0MI'):
    raise ValueError('no MATLAB 5 file')
  order, at, found = '<' if data[126:128] == b'IM' else '>', 128, {}
  while at < len(data):
    kind, start, end, at = _element(data, at, len(data), order)
    if kind == COMPRESSED:
      unpacker, at = zlib.decompressobj(), end  # it has no padding
      inner = unpacker.decompress(data[start:end], MAX_BYTES)
      if not unpacker.eof:
        raise ValueError('a variable is cut short or too large')
      name, value = _matrix(inner, *_element(inner, 0, len(inner), order)[:3], order)
    else:
      name, value = _matrix(data, kind, start, end, order)
    found[name] = value
  return found


def _element(data, at, stop, order):
  """(type, start, end, start of the next element) of the element at `at`; it must end before `stop`."""
  kind, size = struct.unpack_from(f'{order}II', data, at)
  if kind >> 16:
    kind, start, end, after = (
      kind & 0xFFFF,
      at + 4,
      at + 4 + (kind >> 16),
      at + 8,
    )  # up to four bytes stand within the tag
  else:
    start, end, after = at + 8, at + 8 + size, at + 8 + size + -size % 8
  if end > min(stop, after):
    raise ValueError('an element is cut short')
  return kind, start, end, after


def _matrix(data, kind, at, stop, order):
  """(name, value)"""
  if kind != MATRIX:
    raise ValueError(f'an array is of type {kind}')
  if at == stop:
    return '', None
  parts = []
  for _ in range(3):  # flags, dimensions, name
    _, start, end, at = _element(data, at, stop, order)
    parts.append(data[start:end])
  kind, size, name = (
    parts[0][0 if order == '<' else 3],
    math.prod(np.frombuffer(parts[1], f'{order}i4').tolist()),
    parts[2].decode('latin-1'),
  )
  fields = None
  if kind == STRUCT:
    _, start, end, at = _element(data, at, stop, order)
    width = int(np.frombuffer(data[start:end], f'{order}i4')[0])
    _, start, end, at = _element(data, at, stop, order)
    fields = [
      data[i : i + width].split(b'\0')[0].decode('latin-1') for i in range(start, end, width)
    ]
  if kind in (CELL, STRUCT):
    count, items = size * (1 if fields is None else len(fields)), []
    if count < 0 or count * 8 > stop - at:
      raise ValueError('an array is longer than the file')
    for _ in range(count):
      inner, start, end, at = _element(data, at, stop, order)
      items.append(_matrix(data, inner, start, end, order)[1])
    return name, items if fields is None else [
      dict(zip(fields, items[i : i + len(fields)])) for i in range(0, count, len(fields) or 1)
    ]
  if kind != CHAR and kind not in NUMERIC:
    return name, None
  if at >= stop:
    return name, '' if kind == CHAR else np.zeros(0)
  coding, start, end, _ = _element(data, at, stop, order)
  if kind == CHAR:
    return name, data[start:end].decode(
      TEXTS[coding]
      + ({'<': '-le', '>': '-be'}[order] if TEXTS[coding] in ('utf-16', 'utf-32') else '')
    )
  values = np.frombuffer(data[start:end], order + NUMBERS[coding])
  return name, values[0].item() if len(values) == 1 else values
