"""What a published data set holds, and helpers for its text and MATLAB files."""

import dataclasses
import math
import os
import pathlib
import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from hierjax.core import files
from hierjax.core.errors import UserError, kind_and_text, listing
from hierjax.data import matfile
from hierjax.data.dataset import Reader
from hierjax.data.image_files import Box
from hierjax.taxonomy import Taxonomy, close_matches


class Example(NamedTuple):
  """One example.

  Attributes:
    file: path below the root, or a name for people.
    label: its number in `Layout.classes`, -1 if unknown.
    split: the name of its split.
    where: what names it: 'FILE:ROW'.
    box: the part of the image to show.
  """

  file: str
  label: int
  split: str
  where: str
  box: Box | None = None


@dataclasses.dataclass
class Layout:
  """A published data set.

  Attributes:
    levels: names, coarse to fine.
    classes: of each finest class its name per level, in the data set's own order.
    examples: all examples.
    notes: lines for the log.
    banner: rows at the lower edge of every image that are no part of it.
    reader: reads one example; None if the examples' files are image files.
  """

  levels: tuple[str, ...]
  classes: list[tuple[str, ...]]
  examples: list[Example] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)
  banner: int = 0
  reader: Reader | None = None

  def paths(self, taxonomy: Taxonomy) -> np.ndarray:
    """Find each class in a taxonomy, by its name at the taxonomy's last level or at its own last.

    Case, spaces, punctuation, a leading number and the 's of an owner are ignored:
    '001.Black_footed_Albatross' is 'Black-footed Albatross'.

    Args:
      taxonomy: of exclusive levels.

    Returns:
      int32 [class, level of the taxonomy].

    Raises:
      UserError: a class is not in the taxonomy, or several of its classes have such a name.
    """
    level, names = taxonomy.levels[-1], taxonomy.names[-1]
    k = self.levels.index(level) if level in self.levels else -1
    exact, folded = {name: i for i, name in enumerate(names)}, defaultdict(list)
    for name, i in exact.items():
      folded[_fold(name)].append(i)
    rows = []
    for path in self.classes:
      name = path[k]
      matches = [exact[name]] if name in exact else folded[_fold(name)]
      if len(matches) != 1:
        near = [names[i] for i in matches] or close_matches(name, exact)
        hint = f'{" or ".join(map(repr, near))}?' if near else f'has {len(exact)} others'
        count = 'several' if matches else 'not'
        raise UserError(f'class {name!r} is {count} in the taxonomy: {level} {hint}')
      rows.append(taxonomy.paths[matches[0]])
    return np.array(rows)


def _fold(name):
  return re.sub(r"^\d+\.|['’]s?\b|[\W_]+", '', name.casefold())


def find(root: pathlib.Path, *places: str) -> pathlib.Path:
  """Find the first of several places that exists; else a `UserError` lists the folder.

  Args:
    root: the folder.
    *places: paths below it.
  """
  for place in places:
    if (root / place).exists():
      return root / place
  try:
    names = sorted(os.listdir(root))
  except OSError:
    names = []
  others = f' (or {", ".join(places[1:])})' if places[1:] else ''
  content = listing(names, 8) or 'nothing'
  raise UserError(f'{root}: expected {places[0]}{others}, found {content}')


def read_rows(
  path: pathlib.Path, *columns: str, separator: str | None = None
) -> list[tuple[int, list[str]]]:
  """Read a text file with these columns as [(row number, cells)].

  Args:
    path: the file.
    *columns: their names, for messages; the last may contain the separator.
    separator: None for spaces.

  Raises:
    UserError: the file cannot be read, is empty, or a row has too few cells.
  """
  try:
    lines = files.read_text(path).splitlines()
  except OSError as error:
    raise UserError(f'{path}: expected a file of {" ".join(columns)} ({error.strerror})') from None
  rows = []
  for i, line in enumerate(lines, 1):
    cells = line.strip().split(separator, len(columns) - 1)
    if line.strip() and len(cells) != len(columns):
      raise UserError(f'{path}:{i}: expected {" ".join(columns)}, found {" ".join(cells)[:80]!r}')
    if line.strip():
      rows.append((i, cells))
  if not rows:
    raise UserError(f'{path}: is empty; expected rows of {" ".join(columns)}')
  return rows


def read_table(
  path: pathlib.Path, *columns: str, separator: str | None = None
) -> dict[str, tuple[str, list[str]]]:
  """Read a text file whose first column is a key: {key: ('FILE:ROW', other cells)}.

  Args:
    path, columns, separator: see `read_rows`.
  """
  table = {}
  for row, (key, *cells) in read_rows(path, *columns, separator=separator):
    if key in table:
      first = table[key][0].rpartition(':')[2]
      raise UserError(f'{path}:{row}: {columns[0]} {key} stands in row {first} already')
    table[key] = f'{path}:{row}', cells
  return table


def number(
  text: object,
  where: str,
  name: str,
  low: float = -math.inf,
  high: float = math.inf,
  kind: type = int,
) -> int | float:
  """Parse a number; a `UserError` says where it is none, or out of range.

  Args:
    text: a text or a number.
    where: 'FILE:ROW', for errors.
    name: what it is, for errors.
    low, high: the range.
    kind: int or float.
  """
  try:
    value = kind(text)
  except (ValueError, OverflowError, TypeError):
    raise UserError(f'{where}: {name} {str(text)[:40]!r} is no number') from None
  if not low <= value <= high:
    raise UserError(f'{where}: {name} is {value}; expected {low} to {high}')
  return value


def corner_box(cells: list, where: str) -> Box:
  """Make a box from the corners of its first and last pixel, counted from 1.

  Args:
    cells: left, top, right, bottom.
    where: 'FILE:ROW', for errors.
  """
  corners = [number(c, where, 'a corner of the box', kind=float) for c in cells]
  left, top, right, bottom = corners
  return check_box((left - 1, top - 1, right, bottom), where)


def check_box(box: Box, where: str) -> Box:
  """Return the box; a `UserError` if it is empty.

  Args:
    box: left, top, right, bottom.
    where: 'FILE:ROW', for errors.
  """
  if not (all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]):
    sides = ', '.join(f'{v:g}' for v in box)
    raise UserError(f'{where}: the box {sides} (left, top, right, bottom) is empty')
  return box


def read_mat(path: pathlib.Path, field: str) -> list:
  """Read a variable of a MATLAB 5 file: a list of dicts (structs) or of values (cells).

  Args:
    path: the file.
    field: the name of the variable.
  """
  try:
    variables = matfile.read(path)
  except OSError:
    raise
  except Exception as error:  # a damaged file meets all kinds
    reason = kind_and_text(error)
    raise UserError(f'{path}: cannot be read as a MATLAB 5 file ({reason})') from None
  if field not in variables:
    raise UserError(f'{path}: expected {field}, found {", ".join(variables) or "nothing"}')
  if not isinstance(variables[field], list):
    raise UserError(f'{path}: {field} is no array of cells or structs')
  return variables[field]


def read_names(path: pathlib.Path, field: str) -> list[str]:
  """A cell array of names in a MATLAB 5 file; '' for what is no text."""
  return [n.strip() if isinstance(n, str) else '' for n in read_mat(path, field)]
