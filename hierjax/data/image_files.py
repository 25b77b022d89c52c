"""Image files: their bytes, readers of many of them, and the search for missing ones."""

import dataclasses
import os
import posixpath
from collections.abc import Iterable, Sequence

import numpy as np

from hierjax.core import files
from hierjax.data import transforms
from hierjax.data.dataset import Table
from hierjax.data.findings import Findings
from hierjax.taxonomy import close_matches

MAX_BYTES = 1 << 30  # of an image file
MAX_HINTS = 20  # missing files for which a similar name is searched

Box = tuple[float, float, float, float]  # left, top, right, bottom, as in transforms.Part


def is_image(name: str) -> bool:
  """Whether the decoder reads files with the suffix of this name."""
  return os.path.splitext(name)[1].lower() in transforms.suffixes()


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
    more = f' and {len(strayed) - 1} more' if len(strayed) > 1 else ''
    findings.note(f'links that lead out of {root} are followed: {strayed[0]}{more}')


def read_file(path: str | os.PathLike) -> bytes:
  """Read an image file.

  Args:
    path: the file.

  Raises:
    OSError: the file cannot be read, is larger than `MAX_BYTES`, or is not a regular file: a named
      pipe would block for ever and a device never end.
  """
  with files.open_regular(path, MAX_BYTES) as f:
    return f.read(MAX_BYTES)


@dataclasses.dataclass(frozen=True)
class FileReader:
  """Reads image files below a folder; those with a box or a banner as `transforms.Part`.

  Attributes:
    root: the folder.
    files: [N] paths below it.
    boxes: [N] the part of each image to show, or None for all of it.
    banner: rows at the lower edge of every image that are never shown.
  """

  root: str
  files: Sequence[str]
  boxes: Sequence[Box | None] | None = None
  banner: int = 0

  def __call__(self, i: int) -> bytes:
    data = read_file(os.path.join(self.root, self.files[i]))
    if self.boxes is None and not self.banner:
      return data
    return transforms.Part.make(data, self.boxes and self.boxes[i], self.banner)

  def select(self, index: np.ndarray) -> 'FileReader':
    """Return a reader of the files with these numbers.

    Args:
      index: int [n].
    """
    files = [self.files[i] for i in index]
    boxes = self.boxes and [self.boxes[i] for i in index]
    return dataclasses.replace(self, files=files, boxes=boxes)


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
  where: Sequence[str],
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
    where: [N] the 'FILE:ROW' that names each example.
    root: the folder of the files.
    strict: whether a missing file stops training.
    findings: receives the missing files.
    index: numbers of the examples to look at; by default all.
  """
  index = range(len(table.files)) if index is None else index
  index = [i for i in index if i not in table.invalid]
  listings = {}
  missing = [i for i in index if not _is_listed(root, table.files[i], listings)]
  if not missing:
    return
  table.missing.update(missing)
  is_severe = strict or len(missing) * 2 > len(index)
  are_all = len(missing) == len(index) > 1
  for k, i in enumerate(missing[:1] if are_all else missing):
    text = f'no file {table.files[i]}'
    if k < MAX_HINTS:
      text += _similar(table.files[i], listings)
    if k == 0 and len(missing) > 1:
      text += f', and {len(missing) - 1} more of {len(index)} are missing'
      text += '; is the root right?' if are_all else ''
    if is_severe:
      findings.error(where[i], 'missing files', text)
      continue
    findings.add('error', where[i], 'missing files', text)
    if k == 0:
      findings.note(f'{where[i]}: {text}; they count as unreadable')


def _is_listed(root, file, listings):
  folder, name = os.path.split(file)
  if folder not in listings:
    try:
      listings[folder] = set(os.listdir(os.path.join(root, folder)))
    except (OSError, ValueError):
      listings[folder] = set()
  return name in listings[folder]


def _similar(file, listings):
  """' (did you mean FILE?)' for a file with the same stem or a similar name."""
  folder, name = os.path.split(file)
  names = listings[folder]
  stem = name.rsplit('.', 1)[0].casefold()
  near = sorted(n for n in names if n.rsplit('.', 1)[0].casefold() == stem)
  near = near or close_matches(name, names)
  return f' (did you mean {posixpath.join(folder, near[0])}?)' if near else ''
