"""To how many bytes the pages of a Parquet file unpack, read before anything is unpacked.

The sizes in a file's footer are a claim: a reader takes the memory that each page's header asks
for. Footer and headers are structures of Thrift's compact protocol.
Source: apache/parquet-format, README.md and parquet.thrift; apache/thrift,
doc/specs/thrift-compact-protocol.md.
"""

import mmap
import pathlib
from collections.abc import Iterator
from typing import Any

MAX_DEPTH = 16  # of structures within each other; Parquet's own need 8
MAX_VALUES = 1 << 22  # of a structure; a footer has some 30 for each column of a group of rows
MAGIC = b'PAR1'
# Fields, by their numbers in parquet.thrift.
ROW_GROUPS, COLUMNS, CHUNK = 4, 1, 3  # of FileMetaData, RowGroup, ColumnChunk
PACKED_BYTES, DATA_PAGE, DICTIONARY_PAGE = 7, 9, 11  # of ColumnMetaData
PAGE_UNPACKED, PAGE_PACKED = 2, 3  # of PageHeader


class DamagedFile(Exception):
  """The file is no Parquet, or its footer or a page's header cannot be read."""


def unpacked_bytes(path: pathlib.Path) -> list[int]:
  """Sum for each group of rows what its pages unpack to.

  Args:
    path: the Parquet file.

  Returns:
    Bytes, one number a group of rows.

  Raises:
    DamagedFile: the footer or a page's header cannot be read.
  """
  try:
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
      footer = len(data) - 8 - int.from_bytes(data[-8:-4], 'little')
      if data[-4:] != MAGIC or footer < len(MAGIC):
        raise DamagedFile('no footer')
      return [
        sum(size for chunk in group[COLUMNS] for size in _page_sizes(data, chunk[CHUNK]))
        for group in _Structure(data, footer).read()[ROW_GROUPS]
      ]
  except (IndexError, KeyError, TypeError, ValueError) as error:
    raise DamagedFile(f'its footer or the header of a page ends early: {error!r}') from None


def _page_sizes(data, column: dict[int, Any]) -> Iterator[int]:
  """Yield the unpacked bytes of each page of a column of a group of rows."""
  # some writers note an offset of 0 for a dictionary that does not exist
  position = min(filter(None, (column[DATA_PAGE], column.get(DICTIONARY_PAGE))))
  end = position + column[PACKED_BYTES]
  while position < end:
    header = _Structure(data, position)
    fields = header.read()
    sizes = fields[PAGE_UNPACKED], fields[PAGE_PACKED]
    if min(sizes) < 0:
      raise DamagedFile('a page of negative size')
    yield sizes[0]
    position = header.position + sizes[1]


class _Structure:
  """Reads a Thrift structure as {number of a field: value}, from `position` on."""

  def __init__(self, data, position: int):
    self.data, self.position, self.values = data, position, 0

  def read(self, depth: int = 0) -> dict[int, Any]:
    """Read a structure; a field's value is an int, bytes, a list, or again a structure."""
    fields, number = {}, 0
    while head := self._byte():
      number = number + (head >> 4) if head >> 4 else self._integer()
      # of a field, unlike of a list, a truth value stands in the type
      fields[number] = head & 15 == 1 if head & 15 in (1, 2) else self._value(head & 15, depth)
    return fields

  def _value(self, kind: int, depth: int):
    self.values += 1
    if depth > MAX_DEPTH or self.values > MAX_VALUES:
      raise DamagedFile('structures too deep or too large')
    if kind in (1, 2, 3):
      return self._byte()
    if kind in (4, 5, 6):
      return self._integer()
    if kind == 7:
      return self._take(8)
    if kind == 8:
      return self._take(self._unsigned())
    if kind in (9, 10):
      head = self._byte()
      length = self._unsigned() if head >> 4 == 15 else head >> 4
      return [self._value(head & 15, depth + 1) for _ in range(length)]
    if kind == 12:
      return self.read(depth + 1)
    raise DamagedFile(f'a field of unknown type {kind}')  # Parquet has no maps

  def _byte(self) -> int:
    self.position += 1
    return self.data[self.position - 1]

  def _take(self, length: int) -> bytes:
    if length > len(self.data) - self.position:
      raise DamagedFile('a text that goes beyond the end')
    self.position += length
    return self.data[self.position - length : self.position]

  def _unsigned(self) -> int:
    value = shift = 0
    while (byte := self._byte()) & 128 and shift < 63:
      value |= (byte & 127) << shift
      shift += 7
    return value | byte << shift

  def _integer(self) -> int:
    value = self._unsigned()
    return value >> 1 ^ -(value & 1)
