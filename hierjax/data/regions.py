"""Regions of training images, for guided crops and masks: a box and the hottest place in it."""

import dataclasses
import hashlib
import pathlib
import posixpath

import numpy as np
from ml_collections import ConfigDict

from hierjax.data.dataset import Examples
from hierjax.data.findings import Findings
from hierjax.data.splits import file_key
from hierjax.taxonomy.csv_files import read_columns

BOX = ('left', 'top', 'right', 'bottom')
HOT = tuple(f'hot_{side}' for side in BOX)
KIND = 'regions'  # of findings


def attach(options: ConfigDict, divided: dict[str, Examples], findings: Findings) -> None:
  """Give training images their regions.

  Args:
    options: `config.data`; `regions` is a CSV file with the columns file, as the data name it,
      `BOX` and perhaps `HOT`, in fractions of the image. Four empty cells are no box.
    divided: {split: its examples}; that of training is replaced.
    findings: receives what is wrong with the file.

  Raises:
    UserError: the file cannot be read, lacks a column, has a wrong box, or none of these images.
  """
  path, train = pathlib.Path(options.regions).expanduser(), divided[options.train]
  content = read_columns(path)
  is_hot = options.augment.guided_mask > 0 or any(name in content.columns for name in HOT)
  groups = (BOX, HOT) if is_hot else (BOX,)
  for name in ('file', *sum(groups, ())):
    if name not in content.columns:
      need = ', which data.augment.guided_mask needs' if name in HOT else ''
      text = f'no column {name!r}{need}; the columns are {", ".join(content.columns)}'
      findings.fatal(f'{path}:1', KIND, text)
  # NaN at the end, where images without a row point to
  boxes = np.full((len(content.rows) + 1, 2, 4), np.nan, np.float32)
  for k, names in enumerate(groups):
    boxes[:-1, k] = _boxes(path, content, names, findings)
  rows = {}
  for i, file in enumerate(content.columns['file'].take(slice(None))):
    first = rows.setdefault(_key(file), i)
    if first != i:
      text = f'{file} has a region in row {content.rows[first]}, too'
      findings.error(f'{path}:{content.rows[i]}', KIND, text)
  values = boxes[[rows.get(_key(file), -1) for file in train.files]]
  divided[options.train] = dataclasses.replace(train, regions=values)
  unknown = rows.keys() - {_key(file) for split in divided.values() for file in split.files}
  if unknown:
    text = f'{len(unknown)} of its {len(rows)} files are no image of the data: {min(unknown)}'
    findings.say(path, KIND, text)
  missing = np.flatnonzero(np.isnan(values[:, 0, 0]))
  text = f'{len(missing)} of {len(values)} training images have no box'
  if len(missing) == len(values):
    names = f'they are called as {train.files[0]!r}, the file has {min(rows, default="")!r}'
    findings.error(path, KIND, f'{text}: {names}')
  elif len(missing):
    findings.say(path, KIND, f'{text}, such as {train.files[missing[0]]}')


def digest(examples: Examples) -> str | None:
  """Return the SHA-256 of the regions of examples in the order of their names; None without."""
  if examples.regions is None:
    return None
  order = sorted(range(len(examples.files)), key=[*map(_key, examples.files)].__getitem__)
  # every NaN is no region
  values = np.nan_to_num(examples.regions[order], nan=-1).astype('<f4')
  return hashlib.sha256(values.tobytes()).hexdigest()


def _key(file):
  """The name of a file by which the data and the regions agree on it."""
  return posixpath.normpath(file_key(file).strip().replace('\\', '/'))


def _number(cell):
  """The number in a cell, NaN in another."""
  try:
    return float(cell)
  except ValueError:
    return np.nan


def _boxes(path, content, names, findings):
  """Boxes float32 [R, 4] from four columns, NaN where a row has none."""
  columns = [content.columns[name] for name in names]
  sides = [np.array([*map(_number, c.values)], np.float32)[c.codes] for c in columns]
  boxes = np.stack(sides, 1)
  is_used = ~np.all([c.equals('') for c in columns], 0)
  for k, name in enumerate(names):
    side = boxes[:, k]
    faults = {'must be a fraction of the image, 0 to 1': ~((side >= 0) & (side <= 1))}
    if k < 2:  # left and top lie before right and bottom
      faults[f'must be less than {names[k + 2]}'] = side >= boxes[:, k + 2]
    for text, is_wrong in faults.items():
      wrong = np.flatnonzero(is_wrong & is_used)
      if len(wrong):
        text = f'{name}={columns[k].cell(wrong[0])} {text}; rows with that: {len(wrong)}'
        findings.error(f'{path}:{content.rows[wrong[0]]}', KIND, text)
  return np.where(is_used[:, None], boxes, np.nan)
