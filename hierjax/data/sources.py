"""Loads the data set that `config.data` names.

Sources are labels.csv and images, nested class folders, Parquet (in a folder or on the hub),
WebDataset tars, what `hierjax pack` wrote, the original layouts of published data sets, and the
drawn toy set. A folder may hold taxonomy.csv; else the taxonomy is derived from the labels. Splits
that the data do not name are made.
"""

import dataclasses
import functools
import os
import pathlib

import numpy as np
from ml_collections import ConfigDict

from hierjax.core.config import value_at
from hierjax.core.declarations import OPTIONS
from hierjax.core.errors import UserError, did_you_mean
from hierjax.core.hub import PREFIX
from hierjax.data import (
  folders,
  image_files,
  lint_taxonomy,
  packed,
  parquet,
  published,
  read_csv,
  regions,
  split_names,
  split_record,
  splits,
  taxonomies,
  toy,
  webdataset,
)
from hierjax.data.dataset import Dataset, Examples, Table, subset, with_features
from hierjax.data.findings import Findings
from hierjax.taxonomy import Taxonomy

__all__ = ['Dataset', 'Examples', 'load', 'read_table', 'subset', 'with_features']

READERS = {
  'csv': read_csv.read,
  'folders': folders.read,
  'parquet': parquet.read,
  'packed': packed.read,
  'webdataset': webdataset.read,
  **{name: functools.partial(published.read, source=name) for name in published.LAYOUTS},
}
COLUMNS = ('csv', 'webdataset')
NAMED = (*COLUMNS, 'folders')  # sources whose labels are names of classes
CSV_OPTIONS = ('data.file_column', 'data.image_root', 'data.delimiter', 'data.encoding')
MAX_CLASSES = 1_000_000  # of a level of root 'classes:'


def load(
  options: ConfigDict, findings: Findings | None = None, record: splits.Earlier | None = None
) -> Dataset:
  """Load a data set.

  Args:
    options: `config.data`.
    findings: gathers what is wrong; by default the first error is raised.
    record: the splits that files had before, see `splits.divide`.

  Raises:
    UserError: something is wrong with the data or the options; names file, row or option.
  """
  findings = findings or Findings()
  try:
    table = read_table(options, findings)
  except UserError as error:
    new = _new_files(options, record)
    if not new:
      raise
    raise UserError(
      f'{options.root}: new files since the run was made: {split_record.listed(new)}; with them '
      f'the data cannot be read ({error}); move them away, or beside the old ones of their classes'
    ) from None
  image_files.note_deep(table, options.deep_range, findings)
  return make_splits(options, table, findings, record)


def _new_files(options, record):
  """Image files below the root that a run's record lacks, if it has others there."""
  root = pathlib.Path(options.root or '').expanduser()
  if record is None or not root.is_dir():
    return []
  names = folders.find_images(root, Findings(gather=True))
  new = [name for name in names if splits.file_key(name) not in record.splits]
  return new if len(new) < len(names) else []


def make_splits(
  options: ConfigDict, table: Table, findings: Findings, record: splits.Earlier | None = None
) -> Dataset:
  """Divide a reader's table into splits, and apply the options that drop data.

  Args:
    options: `config.data`.
    table: the examples of all splits.
    findings, record: as in `load`.

  Raises:
    UserError: see `load`.
  """
  if options.splits:
    named = splits.read_splits(options.splits, table.files, findings)
    table.splits = split_names.unify(options, named, findings)
  names = table.taxonomy.names[-1]
  if not table.taxonomy.multi and len(names) == 1:
    text = f'all images are of one class, {names[0]!r}: nothing to tell apart'
    findings.warn(options.root, 'one class', text)
  division = splits.divide(options, table, findings, record)
  if options.regions and options.train in division.splits:
    regions.attach(options, division.splits, findings)
  full = Dataset(table.taxonomy, division.splits, findings.notes)
  data = splits.reduce_splits(options, splits.hold_out(options, full))
  return dataclasses.replace(data, undiminished=full, new=division.new)


def read_table(options: ConfigDict, findings: Findings) -> Table:
  """Read the examples of all splits, as they are, of a data set.

  Args:
    options: `config.data`.
    findings: raises or gathers what is wrong.

  Raises:
    UserError: see `load`.
  """
  root = pathlib.Path(options.root).expanduser() if options.root else None
  if root and options.root.startswith('classes:') and options.source == 'auto':
    if options.taxonomy:
      raise UserError(f'--config.data.root={options.root}: is a taxonomy; leave out data.taxonomy')
    return _numbered_classes(options.root)
  if root and options.root.startswith(PREFIX):
    root = parquet.download(options.root)
  source = options.source
  if source == 'auto':
    source = _detect(options.root, root, findings)
  if source not in (*READERS, 'toy'):
    raise UserError(
      f'--config.data.source={source!r}{did_you_mean(source, READERS)}; choices: auto, toy, '
      f'{", ".join(READERS)}'
    )
  if options.multi and source != 'csv':
    raise UserError(
      f'--config.data.multi={",".join(options.multi)}: source {source} has one class '
      'a level; multi levels are read from labels.csv'
    )
  _check_idle(options, source, findings)
  if options.crop_boxes and source not in published.LAYOUTS:
    raise UserError(f'--config.data.crop_boxes: source {source} has no boxes')
  if source == 'toy':
    return _draw_toy(options, findings)
  if root is None:
    raise UserError(f'--config.data.source={source} needs --config.data.root=FOLDER')
  is_named_otherwise = source in ('tfds', 'webdataset') or (source == 'csv' and root.exists())
  if not (root.is_dir() or is_named_otherwise):
    raise UserError(f'--config.data.root={options.root}: no such folder')
  taxonomy, origin, path = None, None, taxonomy_file(options, root)
  if path:
    # numbers in Parquet and in published layouts count the classes of the file as it is
    homonyms = options.homonyms if source in NAMED else 'merge'
    taxonomy, rows = taxonomies.read(path, options.multi, findings, homonyms)
    origin = str(path), rows
  table = READERS[source](options, root, taxonomy, findings)
  if not path and source != 'csv':
    taxonomies.check_names(table.taxonomy, str(root), findings)
  if origin and not table.taxonomy.multi:
    table.origin = origin
  if source not in (*NAMED, 'toy'):
    rows = table.origin or (str(root), [(0, row) for row in table.taxonomy.rows()])
    silent = Findings(gather=True)
    lint_taxonomy.check(table.taxonomy, lint_taxonomy.Origin(*rows), silent)
    findings.notes += [str(p) for p in silent.problems if p.kind == 'two parents'][:5]
  table.reader = table.reader and image_files.with_limits(table.reader, options)
  if table.splits:
    table.splits = split_names.unify(options, table.splits, findings)
  return table


def taxonomy_file(options: ConfigDict, root: pathlib.Path | None) -> pathlib.Path | None:
  """Find the file with the taxonomy, if there is one.

  Args:
    options: `config.data`, whose taxonomy comes first.
    root: the folder that may hold taxonomy.csv, or a file or a pattern of tars in it.
  """
  if options.taxonomy:
    return pathlib.Path(options.taxonomy).expanduser()
  path = webdataset.base_folder(root) / 'taxonomy.csv' if root else None
  return path if path and path.exists() else None


def _detect(name, root, findings):
  """The source of a root."""
  if root is None:
    return 'toy'
  if name.startswith('tfds:'):
    return 'tfds'
  if (root / packed.FILE).exists():
    return 'packed'
  if root.suffix == '.tar' and not root.is_dir():
    return 'webdataset'
  # a link to nowhere is a mistake to report, not a reason to look for folders
  if root.is_file() or os.path.lexists(root / 'labels.csv'):
    return 'csv'
  layout = published.recognise(root)
  if layout:
    return layout
  if parquet.files_below(root):
    for file in sorted(root.glob('*.[ct]sv')):
      if file.name != 'taxonomy.csv':
        findings.warn(file, 'files', 'is not read, as Parquet is; --config.data.root=FILE reads it')
    return 'parquet'
  if read_csv.find(root, findings):
    return 'csv'
  archives = webdataset.tars(root)
  if archives and not folders.find_images(root, Findings(gather=True)):
    return 'webdataset'
  if archives:
    text = 'is not read, as images beside it are; --config.data.source=webdataset reads tars'
    findings.warn(archives[0], 'files', text)
  return 'folders'


def _check_idle(options, source, findings):
  """Note the options that are set and count only with another one, which is not."""
  is_named, augment = source in NAMED, options.augment
  is_guided = augment.enabled and (augment.guided_crop or augment.guided_mask)
  needs = {
    'data.crop_margin': ('data.crop_boxes', options.crop_boxes),
    'data.balance_level': ('data.balance', options.balance),
    'data.augment.': ('data.augment.enabled', options.augment.enabled),
    'data.augment.guided_': ('data.regions', options.regions),
    'data.regions': ('data.augment.guided_crop or guided_mask', is_guided),
    'data.augment.rand_': ('data.augment.policy=rand', options.augment.policy == 'rand'),
    'data.toy.': ('data.source=toy', source == 'toy'),
    'data.tag_separator': ('data.multi', options.multi),
    **dict.fromkeys(CSV_OPTIONS, ('a CSV file', source == 'csv')),
    **dict.fromkeys(('data.split_column', 'data.fold_case'), ('columns', source in COLUMNS)),
    **dict.fromkeys(('data.levels', 'data.homonyms'), ('a CSV file or class folders', is_named)),
  }
  for prefix, (other, is_on) in needs.items():
    for name in () if is_on else [name for name in OPTIONS if name.startswith(prefix)]:
      value = value_at(options, name.removeprefix('data.'))
      if name != other and value != OPTIONS[name].default:
        where = f'--config.{name}={value}'
        findings.say(where, 'option without effect', f'has no effect without {other}')


def _draw_toy(options, findings):
  if options.root:
    raise UserError(
      '--config.data.source=toy: the images are drawn; leave out --config.data.root, or set '
      '--config.data.source=auto'
    )
  if options.taxonomy:
    raise UserError(
      f'--config.data.taxonomy={options.taxonomy}: the drawn set has its own taxonomy; give '
      '--config.data.root=FOLDER'
    )
  if options.source == 'auto':
    findings.note('no --config.data.root: these are the drawn vehicles')
  names = (options.train, options.val)
  return toy.table(names, **options.toy)


def _numbered_classes(text):
  """A table without images, with the taxonomy of 'classes:make=49,model=196'."""
  sizes = {}
  for item in text.removeprefix('classes:').split(','):
    level, _, n = item.partition('=')
    is_number = n.isdecimal() and 0 < int(n) <= MAX_CLASSES
    if not level or level in sizes or not is_number:
      raise UserError(
        f'--config.data.root={text}: {item!r} is not LEVEL=NUMBER; write '
        'classes:make=49,model=196, coarse to fine'
      )
    sizes[level] = int(n)
  leaves = int(n)
  if max(sizes.values()) > leaves:
    raise UserError(
      f'--config.data.root={text}: the last level, {level}, is the finest and must have the most '
      'classes'
    )
  rows = [[f'{level} {min(i, n - 1)}' for level, n in sizes.items()] for i in range(leaves)]
  no_labels = np.zeros((0, len(sizes)), np.int32)
  return Table(Taxonomy.from_rows(list(sizes), rows), [], no_labels, [], None)
