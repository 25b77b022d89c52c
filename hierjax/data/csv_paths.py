"""Which file below a folder a path in a CSV file means, whatever machine wrote it."""

import os
import pathlib
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from hierjax.data.findings import Findings
from hierjax.data.image_files import is_image

MAX_FILES = 10_000_000  # of a folder in which names are searched


class Finder:
  """Finds files below a folder by the paths that data give them.

  Backslashes are slashes, paths may be absolute, and Unicode forms of a name are the same. A file
  that is not at its path is searched by the end of that path, or by its name without a suffix.

  Args:
    root: the folder.
  """

  def __init__(self, root: pathlib.Path):
    self.root = root
    above = unicodedata.normalize('NFC', os.path.abspath(root).replace(os.sep, '/'))
    self._prefix = above.rstrip('/') + '/'
    self.moved: dict[str, str] = {}  # path as written -> another place where the file is
    self._listings: dict[str, dict[str, str]] = {}
    self._by_name: dict[str, list[str]] | None = None

  def find(self, cell: str) -> str:
    """Return the path of a file below the folder; the cell where there is no such file.

    Args:
      cell: the path as the data have it.
    """
    path = posixpath.normpath(unicodedata.normalize('NFC', cell.replace('\\', '/')))
    path = path.removeprefix(self._prefix)
    is_inside = not posixpath.isabs(path) and path.split('/')[0] != '..' and path[1:2] != ':'
    place = self._place(path) if is_inside else None
    if place is None and path.strip('./'):
      place = self._search(path)
      if place:
        self.moved[cell] = place
    return place or (path if is_inside and cell else cell)

  def _place(self, path):
    """The path as the folders spell it, None where it does not exist."""
    place = ''
    for part in path.split('/'):
      name = self._listing(place).get(part)
      if name is None:
        return None
      place = posixpath.join(place, name)
    return place

  def _listing(self, folder):
    """{name in one Unicode form: name as it is} of a folder."""
    if folder not in self._listings:
      try:
        names = os.listdir(os.path.join(self.root, folder))
      except (OSError, ValueError):
        names = []
      self._listings[folder] = {unicodedata.normalize('NFC', name): name for name in names}
    return self._listings[folder]

  def _search(self, path):
    """The only file with the longest end of a path."""
    if self._by_name is None:
      self._by_name = self._index()
    parts = path.casefold().split('/')
    candidates = self._by_name.get(parts[-1], [])
    if not is_image(parts[-1]):
      candidates = candidates or self._by_name.get(parts[-1] + '.', [])
    common = {file: self._agreement(file, parts[:-1]) for file in candidates}
    best = [file for file in candidates if common[file] == max(common.values())]
    return best[0] if len(best) == 1 else None

  def _agreement(self, file, folders):
    """How many of the last folders of a path a file lies in."""
    above = unicodedata.normalize('NFC', file).casefold().split('/')[:-1]
    n = 0
    while n < min(len(above), len(folders)) and above[-1 - n] == folders[-1 - n]:
      n += 1
    return n

  def _index(self):
    """{name in one form: its image files}, and {'stem.': image files}."""
    index, count = defaultdict(list), 0
    for folder, folders, names in os.walk(self.root):
      folders.sort()
      below = os.path.relpath(folder, self.root).replace(os.sep, '/')
      for name in sorted(filter(is_image, names)):
        key = unicodedata.normalize('NFC', name).casefold()
        file = posixpath.normpath(posixpath.join(below, name))
        index[key].append(file)
        index[key.rpartition('.')[0] + '.'].append(file)
        count += 1
      if count > MAX_FILES:
        break
    return index


def locate(
  cells: Iterable[str], root: pathlib.Path, where: str, findings: Findings
) -> dict[str, str]:
  """Find the files that the cells of a column name.

  Args:
    cells: the paths as the data have them.
    root: the folder of the images.
    where: the CSV file.
    findings: receives a remark on files that are not at their path.

  Returns:
    {cell: path below the root}; a cell whose file is nowhere leads to its path as it was written.
  """
  finder = Finder(root)
  paths = {cell: finder.find(cell) for cell in dict.fromkeys(cells)}
  if finder.moved:
    cell, place = next(iter(finder.moved.items()))
    text = (
      f'{len(finder.moved)} of {len(paths)} files are not at their path and were found by their '
      f'name below {root}, such as {place} for {cell!r} (the folder of all paths: data.image_root)'
    )
    findings.say(where, 'paths', text)
  return paths
