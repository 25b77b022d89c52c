"""A CSV file with a row per image: its file, its split, and a column per level.

An empty cell is an unknown label. A column of an exclusive level holds one class. A tag level has a
column of sets ('sea|sunset'; '-' is the empty set) or a column per class with 1, 0 or nothing. What
the taxonomy implies is filled in. csv_columns.py finds out which column holds what.
"""

import functools
import os
import pathlib
from collections import Counter
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from hierjax.core.errors import UserError, did_you_mean
from hierjax.core.options import level_words
from hierjax.data import csv_columns, csv_paths, decoding, image_files, tag_cells, taxonomies
from hierjax.data.csv_columns import FLAGS
from hierjax.data.dataset import Table
from hierjax.data.findings import Findings
from hierjax.taxonomy import Mixed, TagTaxonomy, Taxonomy, close_matches, read_table
from hierjax.taxonomy.spelling import unify
from hierjax.taxonomy.table import spellings

SUFFIXES = ('.csv', '.tsv')
ONLY_LEVEL = 'class'  # what the tag level is called that data.multi names by a word such as 'all'
DTYPES = {'exclusive': np.int32, 'tags': np.int8}
UNKNOWN, CONTRADICTION = 'label not in the taxonomy', 'label contradicts the taxonomy'


class _TagColumns(NamedTuple):
  """The columns of tags: {level: {cell: its tags}}, and {tag with a column: its index}."""

  sets: dict[str, dict[str, list[str]]]
  flags: dict[str, int]


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
      table = read_table(file)
      if csv_columns.names_images(csv_columns.transposed(table)):
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
  table = read_table(path, options.delimiter, options.encoding)
  for text in table.notes:
    findings.say(path, 'table', text)
  if not table.rows:
    findings.fatal(f'{path}:1', 'empty', 'has no example below the header')
  labels = csv_columns.assign(options, f'{path}:1', table, taxonomy, findings)
  columns, records = labels.columns, labels.records
  del table
  _unify_spellings(options, path, labels, taxonomy, findings)
  sets = _read_sets(options, path, labels, taxonomy, findings)
  taxonomy, origin = _complete_taxonomy(options, path, labels, sets, taxonomy, findings)
  tag_columns = _check_columns(path, columns, sets, taxonomy, findings)
  if 'file' not in columns:
    raise UserError(next(str(p) for p in findings.problems if p.stops))
  images = path.parent / pathlib.Path(options.image_root or '').expanduser()
  if not images.is_dir():
    findings.fatal(f'--config.data.image_root={options.image_root}', 'root', 'no such folder')
  files = csv_paths.locate((record['file'] for _, record in records), images, path, findings)
  for _, record in records:
    record['file'] = files[record['file']]
  table = _read_rows(path, records, taxonomy, tag_columns, findings)
  where = [f'{path}:{row}' for row in table.rows]
  if taxonomy.multi:
    _complete_tags(table, where, findings)
  else:
    table.labels = taxonomy.complete(table.labels)
  if findings.files:
    image_files.check_files(table, where, images, options.strict, findings)
  table.splits = table.splits if 'split' in columns else None
  table.reader = image_files.FileReader(str(images), table.files)
  table.path, table.origin = str(path), origin
  return table


def _unify_spellings(options, path, labels, taxonomy, findings):
  """Write, in place, one spelling of each class into the columns of exclusive levels."""
  table = taxonomy and taxonomy.table('exclusive')
  levels = table.levels if table else [c for c in labels.columns if c not in ('file', 'split')]
  for level in (c for c in labels.columns if c in levels and c not in options.multi):
    counts = Counter(record[level] for _, record in labels.records)
    if (taxonomy and not table) or (options.multi and csv_columns.is_flag(counts)):
      continue
    same = unify(counts, spellings(table, level) if table else (), options.fold_case)
    same.pop('', None)
    tag_cells.say_spellings(level, same, counts, path, findings)
    if not table and (text := tag_cells.made_of_others(level, counts, counts)):
      text += f'; if an image may have several: --config.data.multi={level}'
      findings.warn(path, 'names of several classes', text)
    for _, record in labels.records if same else ():
      record[level] = same.get(record[level], record[level])


def _read_sets(options, path, labels, taxonomy, findings):
  """{level: {cell: its tags}} of the columns of sets."""
  tags = taxonomy and taxonomy.table('tags')
  levels = {*options.multi, *(tags.levels if tags else ())}
  if taxonomy is None and levels & {*level_words([])}:
    levels.add(ONLY_LEVEL)
  sets = {}
  for level in (c for c in labels.columns if c in levels):
    names = spellings(tags, level) if tags and level in tags.levels else ()
    counts = Counter(record[level] for _, record in labels.records)
    sets[level] = tag_cells.read(options, level, counts, names, f'{path}:1', findings)
  return sets


def _complete_taxonomy(options, path, labels, sets, taxonomy, findings):
  """The taxonomy with the levels that only the labels have, and its rows if all come from there."""
  names, words, records = options.multi, level_words([]), labels.records
  new = [n for n in names if taxonomy is None or n not in {*taxonomy.levels, *words}]
  if taxonomy and not new:
    return taxonomy, None
  columns = [c for c in labels.columns if c not in ('file', 'split')]
  if not columns:
    text = f'no column of labels beside {", ".join(labels.columns)}'
    findings.fatal(f'{path}:1', 'columns', text)
  tags, exclusive, origin = None, taxonomy, None
  if new:
    if len(new) > 1 or (taxonomy and taxonomy.multi):
      raise UserError(
        f'--config.data.multi={",".join(names)}: several levels need '
        f'{path.parent / "taxonomy.csv"}, which says what is below what'
      )
    level = ONLY_LEVEL if new[0] in words else new[0]
    tags = _derive_tags(level, path, columns, sets, taxonomy)
    columns = [c for c in columns if c not in (level, *tags.names[0])]
  if taxonomy is None:
    taxonomies.check_levels([*columns, *(tags.levels if tags else ())], f'{path}:1', findings)
  if taxonomy is None and columns:
    exclusive, origin = _derive_exclusive(options, path, columns, records, findings)
  parts = [part for part in (None if taxonomy else exclusive, tags) if part]
  counts, name = ', '.join(map(taxonomies.describe, parts)), path.name
  if taxonomy is None:
    findings.note(f'taxonomy derived from {name} (no taxonomy.csv): {counts}')
  else:
    text = f'{level} is no level of the taxonomy and stands beside it: {counts}, by {name}'
    findings.note(text)
  if not (exclusive and tags):
    return exclusive or tags, origin
  above = np.full((len(tags.names[0]), len(exclusive.levels)), -1, np.int32)
  return Mixed(exclusive, tags, above), None


def _derive_exclusive(options, path, columns, records, findings):
  """The taxonomy of columns of labels, and its rows with the first row of each."""
  cells = [(row, [record[c] for c in columns]) for row, record in records]
  rows = [(f'{path}:{row}', names) for row, names in cells]
  listing = ', '.join(columns[:8]) + (' ...' if len(columns) > 8 else '')
  advice = f'; the levels were read from the columns {listing}, coarse to fine: choose others with '
  advice += '--config.data.levels'

  def report(where, text):
    findings.error(where, 'several paths', text + advice)

  try:
    exclusive, reading = taxonomies.derive(columns, rows, options.homonyms, report)
  except UserError as error:
    raise UserError(str(error).removesuffix(advice) + advice) from None
  taxonomies.remark_reading(reading, path, findings)
  first = {}
  for row, names in cells:
    first.setdefault(_last(names), row)
  last = [_last(names) for names in exclusive.rows()]
  numbered = [(first.get(name) or first.get(name.rpartition('/')[2], 0)) for name in last]
  return exclusive, (str(path), list(zip(numbered, exclusive.rows())))


def _last(names):
  return next((name for name in reversed(names) if name), '')


def _derive_tags(level, path, columns, sets, taxonomy):
  """The taxonomy of a tag level: the classes in its column, or the columns that are no level."""
  levels = taxonomy.levels if taxonomy else ()
  classes = [c for c in columns if c not in levels]
  if level in columns:
    classes = sorted({name for names in sets[level].values() for name in names})
    if not classes:
      raise UserError(f'{path}:1: column {level!r} names no class in any row')
  elif not classes or did_you_mean(level, columns):
    raise UserError(
      f'--config.data.multi={level}: no level {level!r}'
      f'{did_you_mean(level, [*levels, *columns])}; choices: '
      f'{", ".join([*levels, *level_words([])])}, or another column of {path.name}'
    )
  return TagTaxonomy.from_rows([level], [[name] for name in classes])


def _check_columns(path, columns, sets, taxonomy, findings):
  """Report columns that are no label, and missing ones; returns the columns of tags."""
  exclusive, tags = taxonomy.table('exclusive'), taxonomy.table('tags')
  flags = _tag_columns(tags) if tags else {}
  names = [*taxonomy.levels, *flags]
  for c in columns:
    if c in names or c in ('file', 'split'):
      continue
    text = f'column {c!r} is no {"level or class" if tags else "level"} of the taxonomy'
    close = close_matches(c, [n for n in names if n not in columns])
    if close:
      findings.error(f'{path}:1', 'columns', f'{text} (did you mean {close[0]!r}?)')
      continue
    text = f'column {c!r} is not used; the levels are {", ".join(taxonomy.levels)}'
    findings.say(f'{path}:1', 'columns', text)
  flags = {c: k for c, k in flags.items() if c in columns and c not in taxonomy.levels}
  sets = {level: sets[level] for level in tags.levels if level in columns} if tags else {}
  levels = exclusive.levels if exclusive else ()
  absent = [level for level in levels if level not in columns]
  for level in absent if len(absent) < len(levels) else ():
    text = f'has no column {level!r}: it is known only where a finer level determines it'
    findings.add('note', f'{path}:1', 'columns', text)
  lacking = tags.levels if tags and not flags and not sets else ()
  if exclusive and len(absent) == len(levels) and not (tags and (taxonomy.above >= 0).any()):
    lacking = levels
  if lacking:
    scope = f' of {", ".join(lacking)}' if exclusive and tags else ''
    text = f'no column of labels{scope}; the levels are {", ".join(taxonomy.levels)}, the columns '
    findings.fatal(f'{path}:1', 'columns', text + ', '.join(columns))
  return _TagColumns(sets, flags)


def _tag_columns(tags):
  """The index of each tag in a row of `multi`, at the level where it ends."""
  index = {}
  for level, names in zip(tags.levels, tags.names):
    for c, name in enumerate(names):
      index.setdefault(name, tags.columns[level].start + c)
  return index


def _read_rows(path, records, taxonomy, tag_columns, findings):
  """The table, its labels not yet completed; repeated rows are left out."""
  parts = {
    block.kind: np.full((len(records), block.taxonomy.width), -1, DTYPES[block.kind])
    for block in taxonomy.blocks
  }
  encode_exclusive = functools.partial(_encode_exclusive, ids={})
  encode_tags = functools.partial(_encode_tags, tag_columns=tag_columns)
  encoders = {'exclusive': encode_exclusive, 'tags': encode_tags}
  table = Table(taxonomy, [], [], [], None, None, rows=[])
  first_rows, repeated = {}, []
  for row, cell in records:
    where, n = f'{path}:{row}', len(table.files)
    file = image_files.check_path(cell['file'], where, findings)
    content = [cell.get(c) for c in ('split', *taxonomy.levels, *tag_columns.flags)]
    if file in first_rows:
      repeated.append(row)
      _check_repeated(file, content, where, *first_rows[file], findings)
      continue
    if file is None:
      table.invalid.add(n)
    else:
      first_rows[file] = row, content
    if cell.get('split') == '':
      text = 'no split; give one to every row, or leave out the column "split"'
      findings.error(where, 'no split', text)
    for block in taxonomy.blocks:
      encoders[block.kind](block.taxonomy, cell, where, parts[block.kind][n], findings)
    table.files.append(cell['file'] if file is None else file)
    table.splits.append(cell.get('split'))
    table.rows.append(row)
  if repeated:
    findings.note(
      f'{path.name}: {len(repeated)} repeated rows are left out, the first is row {repeated[0]}'
    )
  n = len(table.files)
  table.labels = parts['exclusive'][:n] if 'exclusive' in parts else np.zeros((n, 0), np.int32)
  table.multi = parts['tags'][:n] if 'tags' in parts else None
  exclusive = taxonomy.table('exclusive')
  for i in np.flatnonzero(~exclusive.valid(table.labels)) if exclusive else ():
    text = _contradiction(exclusive, table.labels[i])
    findings.error(f'{path}:{table.rows[i]}', CONTRADICTION, text)
  return table


def _check_repeated(file, content, where, first_row, first, findings):
  """Compare a row with an earlier one of the same file."""
  text = f'{file} stands in row {first_row} already'
  differs = {
    'with other labels': content[1:] != first[1:],
    'in another split': content[0] != first[0],
  }
  if not any(differs.values()):
    findings.add('warning', where, 'duplicate images', text)
    return
  kind = 'leak' if differs['in another split'] else 'duplicate images with different labels'
  findings.error(where, kind, f'{text}, {" and ".join(k for k, v in differs.items() if v)}')


def _encode_exclusive(taxonomy, cell, where, labels, findings, *, ids):
  """Write the class ids of a row into `labels`, int32 [L]; `ids` holds those of earlier rows."""
  key = tuple(cell.get(level, '') for level in taxonomy.levels)
  if key in ids:
    labels[:] = ids[key]
    return
  row = dict(zip(taxonomy.levels, key))
  try:
    labels[:] = ids[key] = taxonomy.encode(row)
  except UserError:
    for k, level in enumerate(taxonomy.levels):
      try:
        labels[k] = taxonomy.encode({level: row[level]})[k]
      except UserError as error:
        findings.error(where, UNKNOWN, str(error))


def _contradiction(taxonomy, labels):
  """The labels that no row of the taxonomy has together."""
  names = [
    f'{level} {names[c]!r}'
    for level, names, c in zip(taxonomy.levels, taxonomy.names, labels)
    if c >= 0
  ]
  text = f'no row of the taxonomy has {", ".join(names)} together'
  if labels[-1] >= 0:
    path = taxonomy.paths[labels[-1]]
    k = int(np.flatnonzero((labels >= 0) & (labels != path))[0])
    text += f'; {names[-1]} has {taxonomy.levels[k]} {taxonomy.names[k][path[k]]!r}'
  return text


def _encode_tags(tags, cell, where, multi, findings, *, tag_columns):
  """Write the tags of a row into `multi`, int8 [C]."""
  for level, cells in tag_columns.sets.items():
    if not cell[level]:
      continue
    part = multi[tags.columns[level]]
    part[:] = 0
    for name in cells[cell[level]]:
      try:
        part[tags.encode({level: name})[tags.index(level)]] = 1
      except UserError as error:
        findings.error(where, UNKNOWN, str(error))
  for name, k in tag_columns.flags.items():
    value = cell[name].casefold()
    if value not in FLAGS and value:
      text = (
        f'column {name!r} holds {cell[name]!r}; a class has 1, 0 or nothing, a column of sets is '
        'named in --config.data.multi, and one of an exclusive level in taxonomy.csv'
      )
      findings.error(where, 'columns', text)
    elif value:
      multi[k] = FLAGS[value]


def _complete_tags(table, where, findings):
  """Fill in what follows from the known labels of tag levels and the exclusive levels above."""
  taxonomy = table.taxonomy
  exclusive, tags = taxonomy.table('exclusive'), taxonomy.table('tags')
  known_labels = table.labels
  if exclusive:
    table.labels, table.multi = taxonomy.complete(known_labels, table.multi)
  else:
    table.multi = tags.complete(table.multi)
  names = [f'{level} {name!r}' for level, names in zip(tags.levels, tags.names) for name in names]
  conflicts = tags.contradicts(table.multi)
  for i in np.flatnonzero(conflicts[:, 0] >= 0):
    child, parent = conflicts[i]
    text = f'has {names[child]} but not {names[parent]}, under which the taxonomy has it'
    findings.error(where[i], CONTRADICTION, text)
  if not exclusive:
    return
  conflicts = (table.multi == 1) & ~taxonomy.fits(table.labels)
  for i in np.flatnonzero(conflicts.any(1)):
    text = _tag_conflict(table, exclusive, known_labels, i, conflicts[i].argmax(), names)
    findings.error(where[i], CONTRADICTION, text)
  for i in np.flatnonzero(~exclusive.valid(table.labels)):
    findings.error(where[i], CONTRADICTION, _contradiction(exclusive, table.labels[i]))


def _tag_conflict(table, exclusive, known_labels, i, tag, names):
  """Which exclusive class of example i the tag contradicts, and which other tag implies it."""
  above, labels = table.taxonomy.above, table.labels[i]
  k = int(np.flatnonzero((above[tag] >= 0) & (above[tag] != labels) & (labels >= 0))[0])
  level, classes = exclusive.levels[k], exclusive.names[k]
  others = np.flatnonzero((table.multi[i] == 1) & (above[:, k] == labels[k]))
  source = f' by {names[others[0]]}' if known_labels[i, k] < 0 and len(others) else ''
  return (
    f'has {names[tag]} but {level} {classes[labels[k]]!r}{source}; the taxonomy has it under '
    f'{level} {classes[above[tag, k]]!r}'
  )
