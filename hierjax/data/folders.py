"""Nested class folders: ROOT/[SPLIT/]COARSE/.../FINE/image; the finest class is the deepest.

Names that differ in their Unicode form only are one name, written as it was first read.
"""

import itertools
import os
import pathlib
import unicodedata
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from hierjax.core.errors import UserError, and_more, listing
from hierjax.data import decoding, folder_splits, image_files, taxonomies
from hierjax.data.dataset import Table
from hierjax.data.findings import Findings
from hierjax.data.folder_splits import Path
from hierjax.data.split_names import is_word, split_of
from hierjax.taxonomy import Taxonomy, close_matches, homonyms

KIND = 'class folders'  # of findings
TAXONOMY_FILE = 'taxonomy.csv'
TABLES = ('.csv', '.tsv', '.xlsx', '.xls', '.ods')


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
    UserError: there is no image, or none in a class folder.
  """
  n = len(findings.notes)
  files = find_images(root, findings)
  if not files:
    text = f'{root}: no labels.csv, no *.parquet and no image in class folders (.jpg .png .tif ...)'
    raise UserError('; '.join([text, *findings.notes[n:]]))
  paths = _paths(files, findings)
  if taxonomy and options.levels and options.levels != taxonomy.levels:
    raise UserError(
      f'--config.data.levels={",".join(options.levels)}: the taxonomy has the levels '
      f'{", ".join(taxonomy.levels)}; leave the option out'
    )
  files, paths, splits = _divide(options, root, files, paths, taxonomy, findings)
  inner = {path[:k] for path in paths for k in range(1, len(path))}
  leaf_names = _qualified({path for path in paths if path not in inner})
  if taxonomy is None:
    taxonomy = _derive(options, str(root), leaf_names, max(map(len, paths)), findings)
    findings.note(f'taxonomy from folders: {taxonomies.describe(taxonomy)}')
    repeated = sorted(name for path, name in leaf_names.items() if name != path[-1])
    if repeated and not options.levels:
      text = f'{len(repeated)} class folders share their names and are classes of their own: '
      text += f'{listing(repeated, 4)}; if the folders above are '
      text += 'parts of the data and no classes, move the folders of a name together'
      findings.warn(str(root), 'homonyms', text)
  encode = _Encoder(taxonomy, str(root), findings)
  ids = {path: encode(path, path in leaf_names) for path in dict.fromkeys(paths)}
  partial = [path for path in ids if path in inner]
  if partial:
    more = f' (so do {len(partial) - 1} more)' if len(partial) > 1 else ''
    findings.note(
      f'folder {"/".join(partial[0])} holds images beside class folders: known at its own level '
      f'only{more}'
    )
  labels = taxonomy.complete(np.array([ids[path] for path in paths]))
  return Table(taxonomy, files, labels, splits, image_files.FileReader(str(root), files))


def _normal(name):
  return unicodedata.normalize('NFC', name)


def _paths(files, findings):
  """The folders of each image, each name as it was first read."""
  spelling, paths, others = {}, [], set()
  for file in files:
    names = [_normal(name) for name in file.split('/')[:-1]]
    for name, spelled in zip(names, file.split('/')):
      if spelling.setdefault(name, spelled) != spelled:
        others.add(name)
    paths.append(tuple(spelling[name] for name in names))
  if others:
    first_names = ', '.join(sorted(others)[:5])
    findings.note(f'folders whose names differ only in their Unicode form are one: {first_names}')
  return paths


def _divide(options, root, files, paths, taxonomy, findings):
  """The images in class folders: their files, their paths without splits, and their splits."""
  nested = [path for path in paths if path]
  depth = len(options.levels) or None
  division = nested and folder_splits.divide(nested, options.train, options.val, depth)
  if division:
    places = iter(zip(division.splits, division.paths))
    pairs = [next(places) if path else (None, ()) for path in paths]
  else:
    pairs = [('', path) for path in paths]
  strays = Counter('/'.join(path) for split, path in pairs if split is None and path)
  if strays:
    counts = [f'{name} ({n} images)' for name, n in strays.items()]
    text = f'beside the folders of splits, left out: {listing(counts, 5)}'
    findings.warn(str(root), 'folders beside splits', text)
  loose = [file for file, (split, path) in zip(files, pairs) if not path]
  rows = [i for i, (split, path) in enumerate(pairs) if path and split is not None]
  if not rows:
    more = f', nor are {len(loose) - 1} more' if len(loose) > 1 else ''
    raise UserError(
      f'{root}: {loose[0]} is in no class folder{more}; make CLASS/image, or write labels.csv'
    )
  if loose:
    findings.note(f'{len(loose)} images in no class folder are left out, the first is {loose[0]}')
  files, paths = [files[i] for i in rows], [pairs[i][1] for i in rows]
  _check_names(options, root, paths, bool(division), bool(taxonomy), findings)
  return files, paths, [pairs[i][0] for i in rows] if division else None


def _check_names(options, root, paths, has_splits, has_levels, findings):
  """Report folders that may be splits or a level, and classes that are called like splits."""
  if not has_splits and not has_levels and not options.levels:
    _check_tops(root, paths, findings)
  for name in sorted({name for path in paths for name in path if is_word(name)}):
    text = f'the class folder {name!r} is called like a split; it is a class here'
    findings.warn(str(root), 'called like a split', text)


def _check_tops(root, paths, findings):
  """Report top folders that hold the same folders, or of which one may be for training."""
  by_depth = enumerate(itertools.zip_longest(*set(paths)))
  depth = next((k for k, names in by_depth if len({*names}) > 1), 0)  # where they part
  below = defaultdict(set)
  for path in paths:
    below['/'.join(path[: depth + 1])].add(path[depth + 1 :])
  tops = sorted(below)
  is_train = any(split_of(top) == 'train' and below[top] != {()} for top in tops if is_word(top))
  advice = (
    'to take them as splits, name two of them with --config.data.train and --config.data.val; to '
    'take them as a level, name all levels with --config.data.levels, coarse to fine'
  )
  if len(tops) == 1 or (below[tops[0]] == {()} and not is_train):
    return
  if len({frozenset(group) for group in below.values()}) == 1:
    inner = ', '.join(sorted('/'.join(path) for path in below[tops[0]])[:5])
    text = f'the folders {listing(tops, 5)} hold the same folders ({inner}); {advice}'
    findings.error(str(root), 'splits or a level', text)
  elif is_train:
    text = f'of the folders {listing(tops, 5)} one is called like a split; move the others away, '
    text += f'or, {advice}'
    findings.error(str(root), 'splits or a level', text)


class _Content(NamedTuple):
  """What a folder holds: names of images, folders and links; suffixes of other files."""

  images: list[str]
  folders: list[str]
  links: list[str]
  others: Counter


def find_images(root: pathlib.Path, findings: Findings) -> list[str]:
  """Image files below the root; links are followed, but not back to a folder above."""
  files, links, others, empty, stack = [], [], Counter(), {}, [('', frozenset())]
  while stack:
    folder, above = stack.pop()
    content = _list(root, folder, findings)
    if folder and not (content.folders or content.images):
      empty[folder[:-1]] = content.others
    others += content.others
    files += [folder + name for name in content.images]
    links += [folder + name for name in content.links]
    above |= {os.path.realpath(root / folder)}
    for name in reversed(content.folders):
      if name in content.links and os.path.realpath(root / folder / name) in above:
        findings.note(f'folder {folder}{name} is a link back to one above it and is left out')
      else:
        stack.append((f'{folder}{name}/', above))
  if others:
    counts = ', '.join(f'{n} {suffix}' for suffix, n in others.most_common(10))
    findings.note(f'files that are no images, by their suffix: {counts}{_advice(others)}')
  for folder, suffixes in empty.items():
    counts = ', '.join(f'{n} {suffix}' for suffix, n in suffixes.most_common(5)) or 'nothing'
    text = f'{folder} holds no image that can be read, only {counts}{_advice(suffixes)}'
    findings.add('warning', str(root), 'folders without images', text)
  if empty:
    findings.note(f'folders without an image that can be read: {and_more([*empty], 5)}')
  image_files.note_links(root, links, findings)
  return files


def _advice(names):
  advice = '; convert HEIC, to JPEG for instance' if {'.heic', '.heif'} & {*names} else ''
  tables = '; a CSV is read by --config.data.root=FILE; save a spreadsheet as one'
  return advice + tables if any(name.endswith(TABLES) for name in names) else advice


def _list(root, folder, findings):
  """The content of a folder, sorted, without what is hidden."""
  content = _Content([], [], [], Counter())
  try:
    with os.scandir(root / folder) as entries:
      visible = sorted((e for e in entries if e.name[0] != '.'), key=lambda entry: entry.name)
  except OSError as error:
    text = f'cannot be read ({error.strerror}); it is left out'
    findings.warn(str(root / folder), 'unreadable folders', text)
    return content
  for entry in visible:
    if entry.is_symlink():
      content.links.append(entry.name)
    if entry.is_dir():
      content.folders.append(entry.name)
    elif decoding.is_image(entry.name):
      content.images.append(entry.name)
    elif folder or entry.name != TAXONOMY_FILE:
      suffix = os.path.splitext(entry.name)[1].lower()
      content.others[folder + entry.name if suffix in TABLES else suffix or 'no suffix'] += 1
  return content


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


def _derive(options, root, leaf_names, depth, findings):
  """The taxonomy of leaf folders."""
  levels = options.levels
  if levels and len(levels) != depth:
    deepest = max(leaf_names, key=len)
    raise UserError(
      f'--config.data.levels={",".join(levels)}: the class folders are {depth} deep '
      f'({"/".join(deepest)}), so {depth} names are wanted, coarse to fine, not {len(levels)}'
    )
  if depth > taxonomies.MAX_LEVELS:
    raise UserError(
      f'{root}: {depth} folders in each other; at most {taxonomies.MAX_LEVELS} are read'
    )
  levels = levels or [*(f'level{k}' for k in range(1, depth)), 'class']
  if levels == ['level1', 'class']:
    levels[0] = 'superclass'
  rows = [[*path[:-1], name] + [''] * (depth - len(path)) for path, name in leaf_names.items()]
  reading = homonyms.resolve(levels, sorted(rows), options.homonyms)
  taxonomies.remark_reading(reading, root, findings)
  return Taxonomy.from_rows(levels, reading.rows)


class _Encoder:
  """Finds class folders in a taxonomy, whose names may have parents in front or not."""

  def __init__(self, taxonomy: Taxonomy, root: str, findings: Findings):
    self.taxonomy, self.root, self.findings = taxonomy, root, findings
    self.rows = [[_normal(name) for name in row] for row in taxonomy.rows()]
    ends = [{name.rpartition(homonyms.SEPARATOR)[2] for name in row} for row in self.rows]
    self.above = [{*row, *names} for row, names in zip(self.rows, ends)]
    self.leaves = defaultdict(list)
    for i, row in enumerate(self.rows):
      self.leaves[[name for name in row if name][-1]].append(i)
    for names in taxonomy.aliases.values():
      for alias, name in names.items():
        self.leaves[_normal(alias)] += self.leaves.get(_normal(name), ())
        for above in self.above:
          above |= {_normal(alias)} if _normal(name) in above else set()

  def __call__(self, path: Path, is_leaf: bool) -> np.ndarray:
    """Labels of a class folder, int32 [L]: by its path, or its name alone in a flatter tree."""
    levels, where = self.taxonomy.levels, f'{self.root}: folder {"/".join(path)}'
    if len(path) > len(levels):
      text = f'is {len(path)} levels deep, the taxonomy has {len(levels)}: {", ".join(levels)}'
      return self._fail(where, text)
    matches = self._matches(path) if is_leaf else []
    if len(matches) == 1:
      return self.taxonomy.paths[matches[0]]
    if len(matches) > 1:
      places = ' and '.join('/'.join(filter(None, self.rows[i])) for i in matches[:3])
      return self._fail(where, f'may be {places}; put it into folders of its parents')
    if is_leaf and len(path) in (1, len(levels)):
      name, close = path[-1], close_matches(path[-1], self.taxonomy.names[-1])
      fault = 'is not in it' + (f' (did you mean {close[0]!r}?)' if close else '')
      fault = 'is under another parent' if _normal(name) in self.leaves else fault
      text = f'{levels[-1]} {name!r} does not agree with the taxonomy: it {fault}'
      return self._fail(where, text)
    try:
      return self.taxonomy.encode(dict(zip(levels, path)))
    except UserError as error:
      return self._fail(where, str(error))

  def _matches(self, path):
    """The leaves with the name of a folder, and its parents among their own."""
    names = [_normal(name) for name in path]
    for k in range(1, len(names) + 1):
      rows = self.leaves.get('/'.join(names[-k:]), ())
      rows = [i for i in rows if {*names[:-1]} <= self.above[i]]
      if rows:
        return rows
    return []

  def _fail(self, where, text):
    self.findings.error(where, KIND, text)
    return np.full(len(self.taxonomy.levels), -1, np.int32)
