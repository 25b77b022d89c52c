"""The images that --images names."""

import os
import pathlib

from ml_collections import ConfigDict

from hierjax.core import files, terminal
from hierjax.core.errors import UserError
from hierjax.data import csv_columns, csv_paths, image_groups
from hierjax.data.findings import Findings
from hierjax.data.read_csv import SUFFIXES
from hierjax.taxonomy.csv_files import read_columns


def expand(pattern: str, options: ConfigDict) -> dict[str, str]:
  """List the files that --images names.

  Args:
    pattern: a glob, a folder, an image, a text file with a path on each line, or a CSV file with a
      column of them.
    options: `config.data`, of which those on CSV files count.

  Returns:
    {name: path}, sorted, or in the order of the list, which gives the names.

  Raises:
    UserError: no file matches, or the list cannot be read.
  """
  path = pathlib.Path(pattern).expanduser()
  if path.name == '**':
    path /= '*'
  try:
    if path.is_dir():
      paths = image_groups.below(path)
    elif path.is_file() and path.suffix.lower() in ('.txt', *SUFFIXES):
      return _read_list(path, options)
    elif os.path.lexists(path):
      paths = [path]
    else:
      # pathlib's ** does not follow links, which may lead in a circle.
      matches = pathlib.Path(path.anchor).glob(str(path.relative_to(path.anchor)))
      paths = [p for p in matches if not p.name.startswith('.')]
  except (OSError, ValueError) as e:
    raise UserError(f'--images={pattern}: {e}') from None
  if not paths:
    raise UserError(f'--images={pattern}: no file matches')
  return {name: name for name in map(str, sorted(paths))}


def _read_list(path, options):
  """Read {name: path} of the images of a list, relative to here or to the list's folder."""
  root, findings = path.parent, Findings()
  is_text = path.suffix.lower() == '.txt'
  if is_text:
    names = map(str.strip, files.read_text(path).splitlines())
  else:
    columns = read_columns(path, options.delimiter, options.encoding).columns
    names = columns[csv_columns.file_column(options, f'{path}:1', columns, Findings())].values
    root /= pathlib.Path(options.image_root or '').expanduser()
  paths = {name: name for name in names if name}
  if not paths:
    raise UserError(f'--images={path}: names no image')
  distant = [name for name in paths if not os.path.lexists(name)]
  places = distant
  if not is_text:
    places = csv_paths.locate(distant, root, str(path), findings).paths
  for note in findings.notes:
    terminal.say(f'note: {note}')
  return paths | {name: str(root / place) for name, place in zip(distant, places)}
