"""Parquet files with images and labels, as the Hugging Face hub has them.

SPLIT.parquet, SPLIT-00000-of-00001.parquet or SPLIT/0000.parquet with a column of images and, for
each level, LEVEL_label or LEVEL: names, or integers in the taxonomy's order. An image is called by
its file and its row in it, the first is 'train.parquet:row 1'.
"""

import pathlib

import numpy as np
from ml_collections import ConfigDict

from hierjax.core import hub
from hierjax.core.errors import UserError
from hierjax.core.names import Names
from hierjax.data import csv_columns, label_columns, split_names, taxonomies
from hierjax.data.dataset import Table
from hierjax.data.findings import Findings
from hierjax.data.image_files import SliceReader
from hierjax.data.store import IMAGES, Store, open_store
from hierjax.taxonomy import Taxonomy
from hierjax.taxonomy.csv_files import Column, CsvColumns


def download(address: str) -> pathlib.Path:
  """Download the Parquet files and taxonomy.csv of a data set.

  Args:
    address: see `core.hub.parse`.

  Returns:
    The folder of the local copy.

  Raises:
    UserError: it could not be downloaded; says how to do it by hand.
  """
  repository, revision = hub.parse(address)
  import huggingface_hub

  by_hand = (
    f'; by hand, where there is a network: hf download {repository} --repo-type dataset --include '
    "'*.parquet' --local-dir FOLDER, then --config.data.root=FOLDER"
  )
  with hub.explained(f'{address}: could not be downloaded', by_hand):
    options = {'revision': revision, 'allow_patterns': ['*.parquet', 'taxonomy.csv']}
    folder = huggingface_hub.snapshot_download(repository, repo_type='dataset', **options)
  return pathlib.Path(folder)


def files_below(root: pathlib.Path) -> list[pathlib.Path]:
  """All Parquet files below a folder, sorted."""
  return sorted(path for path in root.glob('**/*.parquet') if path.is_file())


def read(
  options: ConfigDict, root: pathlib.Path, taxonomy: Taxonomy | None, findings: Findings
) -> Table:
  """Read the Parquet files below a folder.

  Args:
    options: `config.data`.
    root: the folder.
    taxonomy: that of taxonomy.csv; None derives it from the labels.
    findings: receives what is wrong.

  Raises:
    UserError: a file is damaged, or its columns are not those of the others or no labels.
  """
  paths = files_below(root)
  if not paths:
    raise UserError(f'{root}: no *.parquet')
  stores = [open_store(path, options.max_bytes) for path in paths]
  columns = list(stores[0].columns)
  for path, store in zip(paths, stores):
    if set(store.columns) != set(columns):
      raise UserError(
        f'{path}: its columns ({", ".join(store.columns)}) are not those of {paths[0].name}'
      )
  labels = all_labels = {c.removesuffix('_label'): c for c in columns}
  if taxonomy is None:
    labels = {level: c for level, c in labels.items() if c.endswith('label')}
    if not labels:
      raise UserError(
        f'{paths[0]}: no column LEVEL_label ({", ".join(columns)}); to use others as levels, write '
        f'{root / "taxonomy.csv"}'
      )
    taxonomy = _derive(stores, labels, root)
    findings.note(f'taxonomy derived from Parquet: {taxonomies.describe(taxonomy)}')
  if not set(labels) & set(taxonomy.levels):
    raise UserError(
      f'{paths[0]}: no column of labels; the levels are {", ".join(taxonomy.levels)}, the columns '
      f'{", ".join(columns)}'
    )
  named = (c for c in columns if c.casefold() in csv_columns.SPLITS and c not in labels.values())
  split = next((c for c in named if all(map(split_names.split_of, _words(stores, c)))), None)
  unused = [c for level, c in all_labels.items() if level not in taxonomy.levels and c != split]
  if unused:
    findings.note(f'Parquet columns {", ".join(unused)} are not used')
  names = [path.relative_to(root).as_posix() for path in paths]
  files = [f'{name}:row {i + 1}' for name, store in zip(names, stores) for i in range(store.rows)]
  columns = {'file': Column(Names.pack(files), np.arange(len(files)))}
  for level in (level for level in taxonomy.levels if level in labels):
    columns[level] = _column(stores, labels[level], level, taxonomy, root)
  content = CsvColumns(columns, np.zeros(len(files), np.int64), [], root)
  table = label_columns.encode(options, content, taxonomy, findings)
  table.splits = _splits(options, root, paths, stores, files, split, findings)
  images = [str(store.folder / IMAGES) for store in stores]
  table.reader = SliceReader.from_ends(images, [store.ends() for store in stores])
  return table


def _splits(options, root, paths, stores, files, column, findings):
  """The split of each row, by the name of its file or of a folder above it, else by a column."""
  names = split_names.of_files(options, root, paths, findings)
  if names is None:
    splits = _class_names(stores, column) if column else None
    if '' in (splits or ()):
      where = f'{root}/{files[splits.index("")]}'
      findings.error(where, 'no split', f'has no {column}; give one to every row')
    if splits:
      findings.note(f'splits by the Parquet column {column!r}')
      return splits
    if len(paths) > 1:
      listing = ', '.join(path.relative_to(root).as_posix() for path in paths[:3])
      findings.note(f'no Parquet file or folder is called like a split: {listing}')
    return None
  return [name for name, store in zip(names, stores) for _ in range(store.rows)]


def _words(stores, column):
  """The different values of a column."""
  return {name for store in stores for name in store.columns[column].names}


def _derive(stores: list[Store], labels, root):
  """The taxonomy of the columns of labels; levels with fewer classes are coarser."""
  levels = sorted(labels, key=lambda level: len(_words(stores, labels[level])))
  columns = [_column(stores, labels[level], level, None, root) for level in levels]
  values = zip(*(column.take(slice(None)) for column in columns))
  return taxonomies.derive(levels, [(str(root), row) for row in dict.fromkeys(values)])[0]


def _column(stores, column, level, taxonomy, root):
  """The labels of all rows."""
  return label_columns.named(Column.encode(_class_names(stores, column)), level, taxonomy, root)


def _class_names(stores, column):
  """The class name of each row, '' if unknown."""
  names = [np.array([*store.columns[column].names, ''], object) for store in stores]
  return [name for n, store in zip(names, stores) for name in n[store.codes(column)].tolist()]
