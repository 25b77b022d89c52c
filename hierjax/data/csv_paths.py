"""Which file below a folder a path in a CSV file means, whatever machine wrote it."""

import functools
import itertools
import os
import pathlib
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from hierjax.data.decoding import is_image
from hierjax.data.findings import Findings


def _normal(path):
  return unicodedata.normalize('NFC', path.replace('\\', '/'))


class _Finder:
  """Finds files below a folder by the paths that data give them; Unicode forms are the same."""

  def __init__(self, root):
    self.root = root
    self.prefix = _normal(os.path.abspath(root)).rstrip('/') + '/'
    self.listing = functools.cache(self._list)

  def path(self, cell: str) -> str | None:
    """The path below the root that a cell names; None for one that leaves the root."""
    path = posixpath.normpath(_normal(cell)).removeprefix(self.prefix)
    is_inside = not posixpath.isabs(path) and path.split('/')[0] != '..' and path[1:2] != ':'
    return path if is_inside else None

  def place(self, path: str) -> str | None:
    """A path as the folders spell it, None where it does not exist."""
    place = ''
    for part in path.split('/'):
      name = self.listing(place).get(part)
      if name is None:
        return None
      place = posixpath.join(place, name)
    return place

  def _list(self, folder):
    """{name in one Unicode form: name as it is} of a folder."""
    try:
      return {_normal(name): name for name in os.listdir(os.path.join(self.root, folder))}
    except (OSError, ValueError):
      return {}

  def search(self, cell: str) -> str | None:
    """The only image with the longest end of a path; its name may be without the suffix."""
    *folders, name = posixpath.normpath(_normal(cell)).casefold().split('/')
    files = self.images.get(name, []) or self.images.get('' if is_image(name) else f'{name}.', [])
    common = {}
    for file in files:
      above = _normal(file).casefold().split('/')[:-1]
      pairs = zip(reversed(above), reversed(folders))
      common[file] = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    best = [file for file in files if common[file] == max(common.values())]
    return best[0] if len(best) == 1 else None

  @functools.cached_property
  def images(self) -> dict[str, list[str]]:
    """{name in one form: its images below the root}, and {'stem.': images}."""
    index = defaultdict(list)
    for folder, folders, names in os.walk(self.root):
      folders.sort()
      below = os.path.relpath(folder, self.root).replace(os.sep, '/')
      for name in sorted(filter(is_image, names)):
        key, file = _normal(name).casefold(), posixpath.normpath(posixpath.join(below, name))
        index[key].append(file)
        index[key.rpartition('.')[0] + '.'].append(file)
    return index


def locate(
  cells: Iterable[str], root: pathlib.Path, where: str, findings: Findings
) -> dict[str, str]:
  """Find the files that the cells of a column name.

  Backslashes are slashes, paths may be absolute. A file that is not at its path is searched by the
  end of the path, or by its name without a suffix.

  Args:
    cells: the paths as the data have them.
    root: the folder of the images.
    where: the CSV file.
    findings: receives a remark on files that are not at their path.

  Returns:
    {cell: path below the root}; a cell whose file is nowhere leads to its path as it was written.
  """
  finder, paths, moved = _Finder(root), {}, {}
  for cell in dict.fromkeys(cells):
    path = finder.path(cell) if cell else None
    place = finder.place(path) if path else None
    if place is None and cell.strip('./\\'):
      place = finder.search(cell)
      moved |= {cell: place} if place else {}
    paths[cell] = place or path or cell
  if moved:
    # of paths of another machine, some of which were found, the others are missing like any file
    lost = [cell for cell in paths if paths[cell] == cell]
    paths |= {cell: re.sub(r'^([A-Za-z]:)?/+', '', _normal(cell)) for cell in lost}
    cell, place = next(iter(moved.items()))
    text = (
      f'{len(moved)} of {len(paths)} files are not at their path and were read by their name below '
      f'{root}, such as {place} for {cell!r} (the folder of all paths: data.image_root)'
    )
    findings.say(where, 'paths', text)
  return paths
