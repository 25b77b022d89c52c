"""Which file below a folder a path in a CSV file means, whatever machine wrote it."""

import functools
import os
import pathlib
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from hierjax.core.names import Names
from hierjax.data import image_files
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

  def elsewhere(self, cells: Names) -> tuple[list[int], list[str]]:
    """The cells that are not, letter by letter, the path of a file; links on those of others."""
    others, folders, links = [], [], {}
    is_plain = cells.data.isascii() and b'\\' not in cells.data
    for folder, rows, names in cells.by_folder():
      parent, listing = folder[:-1], {}
      if not folder or self.path(parent) == parent == self.place(parent):
        # not kept: all folders together may hold millions
        listing = image_files.list_links(os.path.join(self.root, parent))
      if folder:
        folders.append(parent)
      is_link = list(map(listing.get, names))  # None where there is no such file
      if folder and is_plain and not any(is_link) and None not in is_link:
        continue
      for i, name, link in zip(rows.tolist(), names, is_link):
        if link:
          links[i] = folder + name
        is_on_drive = not folder and name[1:2] == ':'
        if link is None or _normal(name) != name or is_on_drive:
          others.append(i)
    return sorted(others), [*folders, *(links[i] for i in sorted(links))]

  def search(self, cell: str) -> str | None:
    """The only image with the longest end of a path; its name may be without the suffix."""
    *folders, name = posixpath.normpath(_normal(cell)).casefold().split('/')
    files = self.images.get(name, [])
    if not files and not is_image(name):
      files = self.images.get(f'{name}.', [])
    common = {}  # {file: how many of the folders above it are those of the path}
    for file in files:
      above = _normal(file).casefold().split('/')[:-1]
      common[file] = 0
      for a, b in zip(reversed(above), reversed(folders)):
        if a != b:
          break
        common[file] += 1
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


class Located(NamedTuple):
  """Paths of files below a folder.

  Attributes:
    paths: as the folders spell them; of a file that is nowhere, as it was written.
    links: the folders, and the files that are links, where all files were at their path.
  """

  paths: Sequence[str]
  links: list[str] | None


def locate(cells: Sequence[str], root: pathlib.Path, where: str, findings: Findings) -> Located:
  """Find the files that the cells of a column name.

  Backslashes are slashes, paths may be absolute. A file that is not at its path is searched by the
  end of the path, or by its name without a suffix.

  Args:
    cells: the paths as the data have them, each once.
    root: the folder of the images.
    where: the CSV file.
    findings: receives a remark on files that are not at their path.
  """
  finder, moved, cells = _Finder(root), {}, Names.pack(cells)
  others, links = finder.elsewhere(cells)
  paths = list(cells) if others else cells
  for i in others:
    cell = paths[i]
    path = finder.path(cell) if cell else None
    place = finder.place(path) if path else None
    if place is None and cell.strip('./\\'):
      place = finder.search(cell)
      if place:
        moved[cell] = place
    paths[i] = place or path or cell
  if moved:
    # of paths of another machine, some of which were found, the others are missing like any file
    for i in others:
      if paths[i] == cells[i]:
        paths[i] = re.sub(r'^([A-Za-z]:)?/+', '', _normal(cells[i]))
    cell, place = next(iter(moved.items()))
    text = (
      f'{len(moved)} of {len(paths)} files are not at their path and were read by their name below '
      f'{root}, such as {place} for {cell!r} (the folder of all paths: data.image_root)'
    )
    findings.say(where, 'paths', text)
  return Located(paths, None if others else links)
