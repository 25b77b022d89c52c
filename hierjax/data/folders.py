"""Nested class folders: ROOT/[SPLIT/]COARSE/.../FINE/image; the finest class is the deepest."""

import os
import pathlib
import posixpath
from collections import Counter

import numpy as np
from ml_collections import ConfigDict

from hierjax.core.errors import UserError
from hierjax.data import taxonomies
from hierjax.data.dataset import Table
from hierjax.data.findings import Findings
from hierjax.data.image_files import IMAGE_SUFFIXES, FileReader
from hierjax.taxonomy import Taxonomy, close_matches

# fmt: off
SPLIT_FOLDERS = ('train', 'training', 'val', 'valid', 'validation', 'dev', 'test', 'testing')
# fmt: on
KIND = 'class folders'  # of findings

Path = tuple[str, ...]  # names of the folders from the root, or the split, to an image


def read(
  options: ConfigDict, root: pathlib.Path, taxonomy: Taxonomy | None, findings: Findings
) -> Table:
  """Read a tree of class folders.

  Args:
    options: `config.data`.
    root: the folder.
    taxonomy: that of taxonomy.csv; None derives it from the labels.
    findings: receives what is wrong.

  Raises:
    UserError: there is no image, or one in no class folder.
  """
  files = _find_images(root, findings)
  if not files:
    suffixes = ' '.join(IMAGE_SUFFIXES[:4])
    raise UserError(
      f'{root}: no labels.csv, no *.parquet and no image in class folders ({suffixes} ...)'
    )
  paths, splits = [tuple(file.split('/')[:-1]) for file in files], None
  names = {*SPLIT_FOLDERS, options.train, options.val}
  if all(path and (path[0] in names or path[0].lower() in names) for path in paths):
    splits = [path[0] if path[0] in names else path[0].lower() for path in paths]
    paths = [path[1:] for path in paths]
  loose = [file for file, path in zip(files, paths) if not path]
  if loose:
    more = f', nor are {len(loose) - 1} more' if len(loose) > 1 else ''
    raise UserError(f'{root}: {loose[0]} is in no class folder{more}')
  inner = {path[:k] for path in paths for k in range(1, len(path))}
  leaf_names = _qualified({path for path in paths if path not in inner})
  if taxonomy is None:
    taxonomy = _derive(leaf_names, max(map(len, paths)))
    findings.note(f'taxonomy from folders: {taxonomies.describe(taxonomy)}')
  ids = {
    path: _encode(taxonomy, path, leaf_names, str(root), findings) for path in dict.fromkeys(paths)
  }
  partial = [path for path in ids if path in inner]
  if partial:
    more = f' (so do {len(partial) - 1} more)' if len(partial) > 1 else ''
    findings.note(
      f'folder {"/".join(partial[0])} holds images beside class folders: known at its own level '
      f'only{more}'
    )
  labels = taxonomy.complete(np.array([ids[path] for path in paths]))
  return Table(taxonomy, files, labels, splits, FileReader(str(root), files))


def _find_images(root, findings):
  """Image files below the root; links are followed, but not back to a folder above."""
  files = []
  above = {str(root): {os.path.realpath(root)}}  # the real folders from the root to each folder
  for folder, folders, names in os.walk(root, followlinks=True):
    below, parents = os.path.relpath(folder, root).replace(os.sep, '/'), above.pop(folder)
    visible = sorted(name for name in folders if not name.startswith('.'))
    folders.clear()
    for name in visible:
      target = os.path.realpath(os.path.join(folder, name))
      if target in parents:
        link = posixpath.normpath(f'{below}/{name}')
        findings.note(f'folder {link} is a link back to one above it and is left out')
        continue
      folders.append(name)
      above[os.path.join(folder, name)] = parents | {target}
    for name in sorted(names):
      if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.'):
        files.append(posixpath.normpath(f'{below}/{name}'))
  return files


def _qualified(leaves):
  """Names of leaf folders: its own, with as many parents in front as make it unique."""
  names = {}
  for k in range(1, max(map(len, leaves), default=0) + 1):
    count = Counter(path[-k:] for path in leaves if path not in names)
    taken = set(names.values())
    for path in sorted(leaves):
      name = '/'.join(path[-k:])
      if path not in names and count[path[-k:]] == 1 and name not in taken:
        names[path] = name
  return names


def _derive(leaf_names, depth):
  """The taxonomy of leaf folders."""
  levels = [f'level{k}' for k in range(1, depth)] + ['class']
  if depth == 2:
    levels[0] = 'superclass'
  rows = [[*path[:-1], name] + [''] * (depth - len(path)) for path, name in leaf_names.items()]
  return Taxonomy.from_rows(levels, sorted(rows))


def _encode(taxonomy, path, leaf_names, root, findings):
  """Labels of a class folder, int32 [L]: its path, or its name alone in a flatter tree."""
  where, leaf_level, leaves = (
    f'{root}: folder {"/".join(path)}',
    taxonomy.levels[-1],
    taxonomy.names[-1],
  )
  if len(path) > len(taxonomy.levels):
    levels = f'{len(taxonomy.levels)}: {", ".join(taxonomy.levels)}'
    text = f'folder {"/".join(path)} is {len(path)} levels deep, the taxonomy has {levels}'
    findings.error(root, KIND, text)
    return np.full(len(taxonomy.levels), -1, np.int32)
  if path in leaf_names:
    # the taxonomy may or may not qualify its names
    for name in dict.fromkeys((leaf_names[path], path[-1], '/'.join(path))):
      if name in leaves:
        row = taxonomy.paths[leaves.index(name)]
        if set(path[:-1]) <= {taxonomy.names[k][c] for k, c in enumerate(row)}:
          return row
    if len(path) in (1, len(taxonomy.levels)):
      is_leaf, close = path[-1] in leaves, close_matches(path[-1], leaves)
      fault = 'is under another parent' if is_leaf else 'is not in it'
      fault += f' (did you mean {close[0]!r}?)' if close and not is_leaf else ''
      text = f'{leaf_level} {path[-1]!r} does not agree with the taxonomy: it {fault}'
      findings.error(where, KIND, text)
      return np.full(len(taxonomy.levels), -1, np.int32)
  try:
    return taxonomy.encode(dict(zip(taxonomy.levels, path)))
  except UserError as error:
    findings.error(where, KIND, str(error))
    return np.full(len(taxonomy.levels), -1, np.int32)
