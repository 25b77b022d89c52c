"""A CSV file with a row per image: its file, its split, and its labels, see label_columns.py."""

import os
import pathlib

from ml_collections import ConfigDict

from hierjax.core.errors import UserError
from hierjax.data import csv_columns, csv_paths, decoding, image_files, label_columns
from hierjax.data.dataset import Table
from hierjax.data.findings import Findings
from hierjax.taxonomy import Mixed, Taxonomy
from hierjax.taxonomy.csv_files import read_columns

SUFFIXES = ('.csv', '.tsv')


def find(root: pathlib.Path, findings: Findings) -> pathlib.Path | None:
  """Find the CSV file that lists the images of a folder.

  Args:
    root: the file itself, or a folder that holds labels.csv or one other that names images.
    findings: receives a remark on each CSV that names none.

  Raises:
    UserError: several files list images.
  """
  # A link to nowhere is a mistake to report, not a reason to look for others.
  if root.is_file() or os.path.lexists(root / 'labels.csv'):
    return root if root.is_file() else root / 'labels.csv'
  entries = sorted(root.iterdir()) if root.is_dir() else []
  files = [f for f in entries if f.suffix.lower() in SUFFIXES and f.name != 'taxonomy.csv']
  is_loose = any(decoding.is_image(f.name) for f in entries)
  listing, remarks = [], []
  for file in files:
    try:
      if csv_columns.names_images(read_columns(file).columns):
        listing.append(file)
        continue
      text = 'is not read, as no column names images (data.file_column chooses one)'
    except UserError as error:
      text = f'is not read: {error}'
    remarks.append((file, text))
  # Images that lie beside a single CSV are in no class folder.
  if len(files) == 1 and is_loose:
    return files[0]
  if len(listing) > 1:
    names = ', '.join(file.name for file in listing)
    raise UserError(
      f'{root}: {names} each list images; choose one with --config.data.root={listing[0]}'
    )
  for file, text in remarks:
    findings.warn(file, 'files', text)
  return listing[0] if listing else None


def read(
  options: ConfigDict, root: pathlib.Path, taxonomy: Taxonomy | Mixed | None, findings: Findings
) -> Table:
  """Read the CSV file that lists the images of a folder.

  Args:
    options: `config.data`.
    root: the file or its folder, see `find`.
    taxonomy: that of taxonomy.csv; None derives it from the labels.
    findings: receives what is wrong, and what was guessed.

  Raises:
    UserError: the file cannot be read, or has no images or no labels.
  """
  path = find(root, Findings(gather=True))  # what is not read was said where it was found
  if path is None:
    raise UserError(f'{root}: no CSV file that lists images')
  content = read_columns(path, options.delimiter, options.encoding)
  for text in content.notes:
    findings.say(path, 'table', text)
  if not len(content.rows):
    findings.fatal(f'{path}:1', 'empty', 'has no example below the header')
  content = csv_columns.assign(options, content.where(), content, taxonomy, findings)
  columns = content.columns
  if 'file' not in columns:
    raise UserError(next(str(p) for p in findings.problems if p.stops))
  images = path.parent / pathlib.Path(options.image_root or '').expanduser()
  if not images.is_dir():
    findings.fatal(f'--config.data.image_root={options.image_root}', 'root', 'no such folder')
  located = csv_paths.locate(columns['file'].values, images, path, findings)
  columns['file'] = columns['file']._replace(values=located.paths)
  table = label_columns.encode(options, content, taxonomy, findings)

  def where(i):
    return f'{path}:{table.rows[i]}'

  if findings.files and located.links is not None:
    image_files.note_links(images, located.links, findings)
  elif findings.files:
    image_files.check_files(table, where, images, options.strict, findings)
  table.reader = image_files.FileReader(str(images), table.files)
  table.path = str(path)
  return table
