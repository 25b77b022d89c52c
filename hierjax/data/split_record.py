"""The record of a run's data, splits.csv: each file with the split and the labels that it had.

Its rows are sorted by file, and files are named as below the data's root. So its SHA-256, which
run.json has, depends on files, splits and labels, and neither on their order nor on the machine.
Images are not opened for it: one that is replaced under its name is not noticed.
"""

import csv
import hashlib
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from hierjax.core import files, json_files
from hierjax.core.errors import UserError
from hierjax.data.dataset import Dataset, Examples
from hierjax.data.splits import NOVEL, file_key
from hierjax.taxonomy import Mixed, Taxonomy

FILE = 'splits.csv'
MAX_BYTES = 2**32
# Options of `config.data`, by the beginning of their names, that say which data and which split.
DIVIDING = ('root', 'source', 'image_root', 'file_column', 'split_column', 'split_seed', 'toy')
DIVIDING += ('train', 'val', 'test_share', 'calibration', 'divide', 'splits')


class Record(NamedTuple):
  """The content of a run's splits.csv.

  Attributes:
    folder: of the run.
    levels: names of the levels.
    splits: {file: its split}.
    labels: {file: its class at each level, as text}.
    takes_new: whether data that are read with the record have the files that it lacks.
  """

  folder: pathlib.Path
  levels: tuple[str, ...]
  splits: Mapping[str, str]
  labels: Mapping[str, tuple[str, ...]]
  takes_new: bool = False

  def training_files(self, train: str, examples: Examples) -> list[str]:
    """Return those files of a split that were in the run's training split `train`."""
    return [file for file in examples.files if self.splits.get(file_key(file)) == train]


def content(data: Dataset) -> str:
  """Return the text of splits.csv for data whose classes and examples are all there."""
  rows = []
  for split, examples in data.splits.items():
    labels = zip(*_columns(data.taxonomy, examples), strict=True)
    rows += [(file_key(f), split, *cells) for f, cells in zip(examples.files, labels, strict=True)]
  return files.csv_text([('file', 'split', *data.taxonomy.levels), *sorted(rows)])


def digest(text: str) -> str:
  """Return the SHA-256 of the text of splits.csv."""
  return hashlib.sha256(text.encode()).hexdigest()


def _columns(taxonomy: Taxonomy | Mixed, examples: Examples) -> list[list[str]]:
  """The class names of the examples, for each level; of tags as 'sea|sunset', '-' for none."""
  columns, tags = [], taxonomy.table('tags')
  for level, names in zip(taxonomy.levels, taxonomy.names):
    if level in taxonomy.multi:
      columns.append(_tag_column(examples.multi[:, tags.columns[level]], names))
      continue
    # '' at the end, where unknown labels point to
    column = examples.labels[:, taxonomy.table('exclusive').index(level)]
    columns.append(np.array([*names, ''], object)[column].tolist())
  return columns


def _tag_column(multi: np.ndarray, names: Sequence[str]) -> list[str]:
  """One text for each row; a tag that is not known to be there or not has a question mark."""
  rows, inverse = np.unique(multi, axis=0, return_inverse=True)
  texts = []
  for row in rows.tolist():
    tags = [name + ('?' if x < 0 else '') for name, x in zip(names, row) if x]
    texts.append('' if min(row) == max(row) == -1 else '|'.join(tags) or '-')
  return np.array(texts, object)[inverse.ravel()].tolist()


def read(folder: pathlib.Path) -> Record | None:
  """Read the record in the folder of a run; None where there is none, as in earlier versions.

  Raises:
    UserError: it is damaged, or not that which run.json names.
  """
  path = folder / FILE
  if not path.exists():
    return None
  splits, labels, cache = {}, {}, {}
  try:
    text = files.read_text(path, MAX_BYTES)
    if digest(text) != _expected_digest(folder, text):
      raise ValueError('its SHA-256 is not that in run.json')
    header, *rows = csv.reader(io.StringIO(text, newline=''), strict=True)
    if header[:2] != ['file', 'split'] or any(len(row) != len(header) for row in rows):
      raise ValueError('it has no columns file and split, or rows of other lengths')
  except (ValueError, csv.Error) as e:
    raise UserError(
      f'{path}: is damaged ({e}); remove it to use the data as they are now, which may put images '
      'of the old val into training'
    ) from None
  for file, split, *names in rows:
    file = file_key(file)
    # files share their labels
    splits[file], labels[file] = split, cache.setdefault(tuple(names), tuple(names))
  return Record(folder, tuple(header[2:]), splits, labels)


def _expected_digest(folder, text):
  """The digest of the text that run.json has; its true one where run.json does not tell."""
  try:
    return json_files.read_object(folder / 'run.json')['data_sha256']
  except (OSError, UserError, KeyError):
    return digest(text)


def changes(record: Record, data: Dataset) -> str:
  """Describe which files of the record are missing, in another split or labelled otherwise.

  Returns:
    Counts and the first files of each kind; '' for no change.
  """
  full = data.undiminished
  columns = [k for k, level in enumerate(record.levels) if level in full.taxonomy.levels]
  order = [full.taxonomy.levels.index(record.levels[k]) for k in columns]
  moved, relabelled, present = [], [], set()
  for split, examples in full.splits.items():
    cells = _columns(full.taxonomy, examples)
    for i, file in enumerate(map(file_key, examples.files)):
      if file not in record.splits:
        continue
      present.add(file)
      if record.splits[file] != split:
        moved.append(file)
      if [cells[k][i] for k in order] != [record.labels[file][k] for k in columns]:
        relabelled.append(file)
  missing = [file for file in record.splits if file not in present]
  kinds = {'gone': missing, 'in another split': moved, 'with other labels': relabelled}
  return '; '.join(f'{kind}: {listed(names)}' for kind, names in kinds.items() if names)


def listed(names: Sequence[str]) -> str:
  """Write a number of files and the first of them: '12 (a.png, b.png, c.png, ...)'."""
  more = ', ...' if len(names) > 3 else ''
  return f'{len(names)} ({", ".join(names[:3])}{more})'


def notes(folder: pathlib.Path, data: Dataset, record: Record | None) -> list[str]:
  """Write what of the data that were read with its record a run does not use, or cannot check.

  Args:
    folder: of the run, data: what it reads now, record: None where it has none.
  """
  if record is None:
    return [
      f'{folder} has no {FILE}, as runs of earlier versions: whether its data are still those that '
      'it was made with is not checked'
    ]
  if not data.new:
    return []
  return [
    f'new files: {listed(data.new)}. {folder} does not use them, as a run keeps its split; another '
    '--workdir trains on them'
  ]


def is_divided_alike(options: ConfigDict, before: ConfigDict) -> bool:
  """Whether two `config.data` name the same data and divide them in the same way."""
  return all(options[name] == before[name] for name in before if name.startswith(DIVIDING))


def review(
  record: Record, data: Dataset, name: str, options: ConfigDict, before: ConfigDict
) -> list[str]:
  """Compare the data that a run is evaluated on with those that it was made with.

  Args:
    record: of the run.
    data: as `sources.load` has read them, with the record if they are divided alike.
    name: the split that is evaluated.
    options, before: `config.data` now and of the run.

  Returns:
    Lines for the user.

  Raises:
    UserError: the split has images that were to train the run.
  """
  lines, folder, examples = [], record.folder, data.splits[name]
  if is_divided_alike(options, before):
    lines, difference = notes(folder, data, record), changes(record, data)
    if difference:
      lines.append(f'the data are not those that {folder} was made with: {difference}')
  train = before.train
  in_training = record.training_files(train, examples) if name.removesuffix(NOVEL) != train else ()
  if not in_training:
    return lines
  names = listed(in_training).partition(' ')[2]
  text = (
    f'{len(in_training)} of the {len(examples.files)} images of {name} {names} are training images '
    f'of {folder} by its {FILE}'
  )
  if options.root == before.root:
    raise UserError(
      f'--split={name}: {text}; leave out options that divide the data anew, or give other data '
      'with --config.data.root'
    )
  return [*lines, f'warning: {text}; if they are the same images, the figures flatter']
