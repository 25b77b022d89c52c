"""Image files: their bytes, readers of many of them, and the search for missing ones."""

import dataclasses
import errno
import functools
import io
import os
import posixpath
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from ml_collections import ConfigDict

from hierjax.core import files
from hierjax.core.errors import and_more
from hierjax.core.names import Names
from hierjax.data import decoding
from hierjax.data.dataset import Reader, Table, select
from hierjax.data.findings import Findings
from hierjax.taxonomy import close_matches

MAX_BYTES = decoding.MAX_BYTES
SAMPLES = 16  # images of a data set that are looked at
MAX_HINTS = 20  # missing files for which a similar name is searched

Box = tuple[float, float, float, float]  # left, top, right, bottom, as in decoding.Part


def note_deep(table: Table, deep_range: tuple | None, findings: Findings) -> None:
  """Note of a few images that have more than 8 bits how much of them is used.

  Args:
    table: the examples.
    deep_range: `config.data.deep_range`.
    findings: receives the note.
  """
  n = len(table.files)
  if deep_range or table.reader is None or not n:
    return
  for i in sorted({k * (n - 1) // (SAMPLES - 1) for k in range(SAMPLES)}):
    try:
      data = table.reader(i)
      if not isinstance(data, bytes):
        return
      if decoding.is_deep(data):
        count = len(np.unique(decoding.decode(data)))
        findings.note(
          f'{table.files[i]} has more than 8 bits, of which the upper 8 are used: {count} '
          'different values are left; --config.data.deep_range=own, or LOW,HIGH, scales such images'
        )
        return
    except (OSError, decoding.BrokenImage):
      continue


def note_links(root: str | os.PathLike, names: Iterable[str], findings: Findings) -> None:
  """Note which links lead out of a data set's folder; they are followed.

  Args:
    root: the folder.
    names: links below it.
    findings: receives the note.
  """
  folder, strayed = os.path.realpath(root), []
  for name in names:
    target = os.path.realpath(os.path.join(root, name))
    if os.path.commonpath((folder, target)) != folder:
      strayed.append(f'{name} -> {target}')
  if strayed:
    findings.note(f'links that lead out of {root} are followed: {and_more(strayed, 1)}')


@dataclasses.dataclass(frozen=True)
class LimitedReader:
  """A reader whose pictures are decoded as options say.

  Attributes:
    reader: reads an example.
    decoding: how its picture is decoded.
    max_bytes: the most bytes of a picture.
  """

  reader: Reader
  decoding: decoding.Decoding
  max_bytes: int

  def __call__(self, i: int) -> bytes | np.ndarray:
    data = self.reader(i)
    if not isinstance(data, bytes):
      return data
    _check_size(len(data), self.max_bytes)
    part = data if isinstance(data, decoding.Part) else decoding.Part(data)
    part.decoding = self.decoding
    return part

  def select(self, index: np.ndarray) -> 'LimitedReader':
    """Return a reader of the examples with these numbers.

    Args:
      index: int [n].
    """
    return dataclasses.replace(self, reader=select(self.reader, index))


def with_limits(reader: Reader, options: ConfigDict) -> Reader:
  """Return a reader that keeps `data.max_bytes`, `data.max_pixels` and `data.deep_range`.

  Args:
    reader: of a table.
    options: `config.data`.
  """
  if isinstance(reader, FileReader | SliceReader):
    reader = dataclasses.replace(reader, max_bytes=options.max_bytes)
  how = decoding.Decoding(options.max_pixels, options.deep_range)
  if how == decoding.DEFAULT and options.max_bytes == MAX_BYTES:
    return reader
  return LimitedReader(reader, how, options.max_bytes)


@dataclasses.dataclass(frozen=True)
class FileReader:
  """Reads image files below a folder; those with a box or a banner as `decoding.Part`.

  Attributes:
    root: the folder.
    files: [N] paths below it.
    boxes: [N] the part of each image to show, or None for all of it.
    banner: rows at the lower edge of every image that are never shown.
    max_bytes: the most bytes of a file.
  """

  root: str
  files: Sequence[str]
  boxes: Sequence[Box | None] | None = None
  banner: int = 0
  max_bytes: int = MAX_BYTES

  def __call__(self, i: int) -> bytes:
    data = files.read_bytes(os.path.join(self.root, self.files[i]), self.max_bytes)
    if self.boxes is None and not self.banner:
      return data
    return decoding.Part(data, self.boxes and self.boxes[i], self.banner)

  def select(self, index: np.ndarray) -> 'FileReader':
    """Return a reader of the files with these numbers.

    Args:
      index: int [n].
    """
    files = Names.pack(self.files)[np.asarray(index, int)]
    boxes = self.boxes and [self.boxes[i] for i in index]
    return dataclasses.replace(self, files=files, boxes=boxes)


@dataclasses.dataclass(frozen=True)
class SliceReader:
  """Reads images that lie one after the other in larger files.

  Attributes:
    paths: of the files.
    file: int [N], in which file each image lies.
    start: int64 [N], where it begins.
    end: int64 [N], where it ends.
    max_bytes: the most bytes of an image.
  """

  paths: Sequence[str]
  file: np.ndarray
  start: np.ndarray
  end: np.ndarray
  max_bytes: int = MAX_BYTES

  @classmethod
  def from_ends(cls, paths: Sequence[str], ends: Sequence[np.ndarray]) -> 'SliceReader':
    """Return a reader of files without gaps; of each file int64 [n], where each image ends."""
    file = np.repeat(np.arange(len(paths), dtype=np.int32), list(map(len, ends)))
    start = np.concatenate([np.append(0, end[:-1])[: len(end)] for end in ends])
    return cls(paths, file, start, np.concatenate(ends))

  def __call__(self, i: int) -> bytes:
    start, end = int(self.start[i]), int(self.end[i])
    # before it is read: a file may claim an image of any size
    _check_size(end - start, self.max_bytes)
    return _opened(self.paths[self.file[i]]).part(start, end)

  def select(self, index: np.ndarray) -> 'SliceReader':
    """Return a reader of the images with these numbers, int [n]."""
    file, start, end = (array[index] for array in (self.file, self.start, self.end))
    return dataclasses.replace(self, file=file, start=start, end=end)


class _OpenFile(io.FileIO):
  """A file that threads read from. One mapped into memory would end the process if it shrank."""

  def __del__(self):
    self.close()

  def part(self, start: int, end: int) -> bytes:
    """Return the bytes from `start` to `end`; an `OSError` where the file is shorter."""
    content = os.pread(self.fileno(), end - start, start)
    if len(content) == end - start:
      return content
    if not content:
      raise OSError(errno.ENODATA, f'{self.name} ends before byte {end} of it: it was cut short')
    # a system may return fewer bytes than there are
    return content + self.part(start + len(content), end)


# each holds a descriptor, of which a process may have a thousand
_opened = functools.lru_cache(maxsize=128)(_OpenFile)


def _check_size(size, limit):
  if size > limit:
    text = f'has {size} bytes, more than the {limit} of data.max_bytes'
    raise OSError(errno.EOVERFLOW, text)


def check_path(file: str, where: str, findings: Findings) -> str | None:
  """Normalise the path of an image below the data set's folder, with forward slashes.

  Args:
    file: the path as the data name it.
    where: the 'FILE:ROW' that names it.
    findings: receives an error if the path is empty or leaves the folder; then it is None.
  """
  path = posixpath.normpath(file.replace('\\', '/'))
  if not file:
    findings.error(where, 'no file', 'the cell "file" is empty')
  elif posixpath.isabs(path) or path.split('/')[0] == '..' or path[1:2] == ':':
    text = f"{file} leaves the root; paths are relative to the data set's folder"
    findings.error(where, 'path leaves the root', text)
  else:
    return path
  return None


def check_files(
  table: Table,
  where: Callable[[int], str],
  root: str | os.PathLike,
  strict: bool,
  findings: Findings,
  index: Sequence[int] | None = None,
) -> None:
  """Look for missing files, and add them to `table.missing`.

  They stop training if `strict` or if most are missing, as with a wrong root. Otherwise they count
  as unreadable images, which lint calls errors.

  Args:
    table: the examples.
    where: returns the 'FILE:ROW' that names an example.
    root: the folder of the files.
    strict: whether a missing file stops training.
    findings: receives the missing files.
    index: numbers of the examples to look at; by default all.
  """
  index = np.arange(len(table.files)) if index is None else np.array(index, int)
  index = index[~np.isin(index, list(table.invalid))]
  files = Names.pack(table.files)[index]
  folders, missing, links = [], [], []
  for folder, rows, names in files.by_folder():
    listing = list_links(os.path.join(root, folder))
    if folder:
      folders.append(folder[:-1])
    is_link = list(map(listing.get, names))  # None where there is no such file
    if None in is_link or True in is_link:
      missing += [i for i, link in zip(rows.tolist(), is_link) if link is None]
      links += [i for i, link in zip(rows.tolist(), is_link) if link]
  note_links(root, [*folders, *map(files.__getitem__, sorted(links))], findings)
  missing = index[sorted(missing)].tolist()
  if not missing:
    return
  table.missing.update(missing)
  is_severe = strict or len(missing) * 2 > len(index)
  are_all = len(missing) == len(index) > 1
  for k, i in enumerate(missing[:1] if are_all else missing):
    text = f'no file {table.files[i]}'
    if k < MAX_HINTS:
      text += _similar(root, table.files[i])
    if k == 0 and len(missing) > 1:
      text += f', and {len(missing) - 1} more of {len(index)} are missing'
      text += '; is the root right?' if are_all else ''
    if is_severe:
      findings.error(where(i), 'missing files', text)
      continue
    findings.add('error', where(i), 'missing files', text)
    if k == 0:
      findings.note(f'{where(i)}: {text}; they count as unreadable')


def list_links(folder: str | os.PathLike) -> dict[str, bool]:
  """Return {name in a folder: whether it is a link}; {} where it cannot be read."""
  try:
    with os.scandir(folder) as entries:
      return {entry.name: entry.is_symlink() for entry in entries}
  except (OSError, ValueError):
    return {}


def _similar(root, file):
  """' (did you mean FILE?)' for a file with the same stem or a similar name."""
  folder, name = os.path.split(file)
  names = list_links(os.path.join(root, folder))
  stem = name.rsplit('.', 1)[0].casefold()
  near = sorted(n for n in names if n.rsplit('.', 1)[0].casefold() == stem)
  near = near or close_matches(name, names)
  return f' (did you mean {posixpath.join(folder, near[0])}?)' if near else ''
