"""Regions of images, for guided crops and masks of training: a box and the hottest place in it.

They come from a CSV file with a row per image, which `hierjax regions` or any detector writes.
"""

import math
import pathlib
import posixpath
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from hierjax.data.dataset import Examples, Table
from hierjax.data.findings import Findings
from hierjax.data.splits import file_key
from hierjax.taxonomy.csv_files import CsvColumns, read_columns

BOX = ('left', 'top', 'right', 'bottom')
HOT = tuple(f'hot_{side}' for side in BOX)
KIND = 'regions'  # of findings


def read(options: ConfigDict, table: Table, findings: Findings) -> np.ndarray | None:
  """Read the regions of a table's images.

  Args:
    options: `config.data`, of which `regions` is the file. Its columns are file, as the data name
      it, `BOX` and, where there are such, `HOT`, in fractions of the image; four empty cells are
      no box.
    table: the images.
    findings: receives what is wrong with the file.

  Returns:
    float32 [N, 8], see `Examples.regions`; None where the options name no file, or a wrong one.

  Raises:
    UserError: the file cannot be read, lacks a column, or names none of the images.
  """
  if options.regions is None:
    return None
  path = pathlib.Path(options.regions).expanduser()
  content = read_columns(path)
  is_hot = options.augment.guided_mask > 0 or any(name in content.columns for name in HOT)
  for name in ('file', *BOX, *HOT * is_hot):
    if name not in content.columns:
      need = ', which data.augment.guided_mask needs' if name in HOT else ''
      text = f'no column {name!r}{need}; the columns are {", ".join(content.columns)}'
      findings.fatal(f'{path}:1', KIND, text)
  # NaN at the end, where images without a row point to
  values = np.full((len(content.rows) + 1, 8), np.nan, np.float32)
  values[:-1, :4] = _boxes(path, content, BOX, findings)
  if is_hot:
    values[:-1, 4:] = _boxes(path, content, HOT, findings)
  rows, keys = _rows(path, content, findings), [_key(file) for file in table.files]
  index = np.array([rows.get(key, -1) for key in keys], int)
  unknown = sorted(rows.keys() - set(keys))
  if unknown and len(unknown) == len(rows):
    text = f'names no image of the data: {unknown[0]}, where theirs are called {keys[:1]}'
    findings.error(path, KIND, text)
    return None
  if unknown:
    text = f'{len(unknown)} of its {len(rows)} files are no image of the data: {unknown[0]}'
    findings.say(path, KIND, text)
  return values[index]


def note_missing(path: str, train: Examples, findings: Findings) -> None:
  """Say how many training images have no box and are shown as without.

  Args:
    path: the file of the regions.
    train: the training split, with regions.
    findings: receives a note, or an error where none has a box.
  """
  missing, n = np.flatnonzero(np.isnan(train.regions[:, 0])), len(train.files)
  if not len(missing):
    return
  text = f'{len(missing)} of {n} training images have no box, such as {train.files[missing[0]]}'
  if len(missing) == n:
    findings.error(path, KIND, text)
  else:
    findings.say(path, KIND, f'{text}; they are cropped as without guided_crop')


def _key(file):
  """The name of a file by which the data and the regions agree on it."""
  return posixpath.normpath(file_key(file).strip().replace('\\', '/'))


def _rows(path, content, findings):
  """{file: number of its row}."""
  cells, rows = content.columns['file'], {}
  for i, file in enumerate(cells.take(slice(None))):
    first = rows.setdefault(_key(file), i)
    if first != i:
      text = f'{file} has a region in row {content.rows[first]}, too'
      findings.error(f'{path}:{content.rows[i]}', KIND, text)
  return rows


def _fraction(cell):
  """The number in a cell, NaN in an empty one, -1 in one that holds no fraction."""
  try:
    value = float(cell or math.nan)
  except ValueError:
    return -1.0
  return value if 0 <= value <= 1 or not cell else -1.0


def _boxes(path: pathlib.Path, content: CsvColumns, names: Sequence[str], findings: Findings):
  """Four columns as float32 [R, 4], NaN where a row has no box."""
  columns = [content.columns[name] for name in names]
  boxes = [np.array(list(map(_fraction, c.values)), np.float32)[c.codes] for c in columns]
  left, top, right, bottom = boxes
  is_empty, is_outside = np.isnan(boxes), np.array(boxes) < 0
  checks = [
    (is_outside[k], name, 'must be a fraction of the image, from 0 to 1')
    for k, name in enumerate(names)
  ]
  checks += [
    (is_empty[k] & ~is_empty.all(0), name, 'is empty, and the others of the box are not')
    for k, name in enumerate(names)
  ]
  checks += [
    (left >= right, names[0], f'must be less than {names[2]}'),
    (top >= bottom, names[1], f'must be less than {names[3]}'),
  ]
  is_wrong = np.zeros(len(left), bool)
  for is_bad, name, text in checks:
    bad = np.flatnonzero(is_bad & ~is_wrong)
    is_wrong |= is_bad
    if len(bad):
      more = f' ({len(bad)} such rows)' if len(bad) > 1 else ''
      cell = content.columns[name].cell(bad[0])
      findings.error(f'{path}:{content.rows[bad[0]]}', KIND, f'{name}={cell} {text}{more}')
  return np.where(is_wrong[:, None], np.nan, np.stack(boxes, 1))
