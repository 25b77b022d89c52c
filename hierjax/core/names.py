"""Millions of strings, such as names of files, in one buffer."""

from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np

CHUNK = 1 << 16  # strings that are decoded at a time
CODEC = 'utf-8', 'surrogatepass'  # names of files may hold what is not Unicode


class Names(Sequence):
  """Strings as UTF-8 in one buffer, which a selection of them shares.

  Args:
    data: the buffer.
    start: int64 [N], where each string begins.
    end: int64 [N], where it ends.
  """

  def __init__(self, data: bytes, start: np.ndarray, end: np.ndarray):
    self.data, self.start, self.end = data, start, end

  @classmethod
  def pack(cls, strings: Sequence[str]) -> Self:
    """Put strings into a buffer; those that are in one stay there."""
    if isinstance(strings, cls):
      return strings
    encoded = [string.encode(*CODEC) for string in strings]
    sizes = np.fromiter(map(len, encoded), np.int64, len(encoded))
    end = np.cumsum(sizes)
    return cls(b''.join(encoded), end - sizes, end)

  @classmethod
  def from_ends(cls, data: np.ndarray, end: np.ndarray) -> Self:
    """Return strings that follow each other: uint8 [n], and int64 [N], where each ends."""
    sizes = np.diff(end, prepend=0)
    return cls(data.tobytes(), end - sizes, end)

  def __len__(self) -> int:
    return len(self.start)

  def __getitem__(self, i: int | slice | np.ndarray) -> 'str | Names':
    if isinstance(i, slice | np.ndarray):
      return Names(self.data, self.start[i], self.end[i])
    return self.data[self.start[i] : self.end[i]].decode(*CODEC)

  def encoded(self) -> Iterator[bytes]:
    """Yield the strings as bytes."""
    for first in range(0, len(self), CHUNK):
      chunk = slice(first, first + CHUNK)
      for start, end in zip(self.start[chunk].tolist(), self.end[chunk].tolist()):
        yield self.data[start:end]

  def __iter__(self) -> Iterator[str]:
    return (string.decode(*CODEC) for string in self.encoded())

  def by_folder(self) -> Iterator[tuple[str, np.ndarray, 'Names']]:
    """Yield each folder ('' or with a slash at its end), its files' numbers, and their names."""
    name_start = self._name_starts()
    folders = list(Names(self.data, self.start, name_start).encoded())  # [N], b'' or b'a/b/'
    numbers = {folder: number for number, folder in enumerate(dict.fromkeys(folders))}
    codes = np.fromiter((numbers[folder] for folder in folders), np.int32, len(folders))
    del folders
    order = np.argsort(codes, kind='stable')
    ends = np.cumsum(np.bincount(codes))
    for folder, rows in zip(numbers, np.split(order, ends[:-1])):
      yield folder.decode(*CODEC), rows, Names(self.data, name_start[rows], self.end[rows])

  def _name_starts(self) -> np.ndarray:
    """Return where in the buffer each path's last part begins, int64 [N]."""
    slashes = np.flatnonzero(np.frombuffer(self.data, np.uint8) == ord('/'))
    slashes = np.append(-1, slashes)  # so that there is one before every string
    # the last slash before a string's end; it may belong to an earlier string
    last = slashes[np.searchsorted(slashes, self.end) - 1]
    return np.maximum(last + 1, self.start)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Sequence) and list(self) == list(other)

  __hash__ = None

  def __repr__(self) -> str:
    return repr(list(self))

  def __reduce__(self):
    # what is pickled takes along no strings of others
    size = self.end - self.start
    if size.sum() < len(self.data):
      end = np.cumsum(size)
      return Names, (b''.join(self.encoded()), end - size, end)
    return Names, (self.data, self.start, self.end)
