"""Labels in columns of names, as CSV files have them: a row per image, a column per level.

An empty cell is an unknown label. A column of an exclusive level holds one class. A tag level has a
column of sets ('sea|sunset'; '-' is the empty set) or a column per class with 1, 0 or nothing. What
the taxonomy implies is filled in. csv_columns.py finds out which column holds what.
"""

import array
import os
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from hierjax.core.errors import UserError
from hierjax.core.names import Names
from hierjax.core.options import level_words
from hierjax.data import csv_columns, image_files, label_taxonomy, tag_cells
from hierjax.data.csv_columns import FLAGS
from hierjax.data.dataset import Table
from hierjax.data.findings import Findings
from hierjax.taxonomy import Mixed, Taxonomy, close_matches
from hierjax.taxonomy.csv_files import Column, CsvColumns, combinations
from hierjax.taxonomy.spelling import unify
from hierjax.taxonomy.table import class_ids, spellings

UNKNOWN, CONTRADICTION = 'label not in the taxonomy', 'label contradicts the taxonomy'


class _TagColumns(NamedTuple):
  """The columns of tags: {level: {cell: its tags}}, and {tag with a column: its index}."""

  sets: dict[str, dict[str, list[str]]]
  flags: dict[str, int]


class _Part(NamedTuple):
  """What some columns say: the labels of distinct cells, and what is wrong with some of these.

  Attributes:
    codes: int [N], the cells of each row.
    faults: {code: [(kind, text)]}.
    labels: int32 [D, L] of the cells, of exclusive levels.
  """

  codes: np.ndarray
  faults: dict[int, list[tuple[str, str]]]
  labels: np.ndarray | None = None


def named(
  column: Column, level: str, taxonomy: Taxonomy | None, where: str | os.PathLike
) -> Column:
  """Replace numbers, counted from 0, by names of a level; without a taxonomy they get to sort well.

  A column of other cells, or of names, is returned as it is. Errors name `where` it stands.
  """
  values = {value for value in column.values if value}
  has_level = taxonomy is not None and level in taxonomy.levels
  names = taxonomy.names[taxonomy.index(level)] if has_level else ()
  are_numbers = all(map(str.isdecimal, values))
  are_names = values <= set(names)
  if not are_numbers or are_names or (taxonomy and not has_level):
    return column
  if not taxonomy:
    width = max(map(len, values))
    return column.renamed(value.zfill(width) if value else '' for value in column.values)
  numbers = [int(value) for value in values]
  if max(numbers) >= len(names):
    text = f'goes from {min(numbers)} to {max(numbers)}, the taxonomy has {len(names)} classes'
    raise UserError(f'{where}: {level} {text} of {level}')
  return column.renamed(names[int(value)] if value else '' for value in column.values)


def encode(
  options: ConfigDict, content: CsvColumns, taxonomy: Taxonomy | Mixed | None, findings: Findings
) -> Table:
  """Return the table of columns, without a reader; a repeated row is left out.

  Args:
    options, taxonomy, findings: see `csv_columns.assign`; None derives a taxonomy.
    content: the columns that it returns.

  Raises:
    UserError: the columns hold no labels.
  """
  path, columns = content.path, content.columns
  _unify_spellings(options, path, columns, taxonomy, findings)
  sets = _read_sets(options, path, columns, taxonomy, findings)
  taxonomy, origin = label_taxonomy.complete(options, path, content, sets, taxonomy, findings)
  tag_columns = _check_columns(content.where(), columns, sets, taxonomy, findings)
  table = _read_rows(content, taxonomy, tag_columns, findings)
  table.origin = origin
  return table


def _unify_spellings(options, path, columns, taxonomy, findings):
  """Write, in place, one spelling of each class into the columns of exclusive levels."""
  table = taxonomy and taxonomy.table('exclusive')
  if taxonomy and not table:
    return
  levels = table.levels if table else [c for c in columns if c not in ('file', 'split')]
  levels = [c for c in columns if c in levels and c not in options.multi]
  for level in levels:
    counts = columns[level].counts()
    if options.multi and csv_columns.is_flag(counts):
      continue
    names = spellings(table, level) if table else ()
    new_names = unify(counts, names, options.fold_case)
    new_names.pop('', None)
    tag_cells.say_spellings(level, new_names, counts, path, findings)
    text = '' if table else tag_cells.made_of_others(level, counts, counts)
    if text:
      text += f'; if an image may have several: --config.data.multi={level}'
      findings.warn(path, 'names of several classes', text)
    if new_names:
      columns[level] = columns[level].renamed(new_names.get(cell, cell) for cell in counts)


def _read_sets(options, path, columns, taxonomy, findings):
  """{level: {cell: its tags}} of the columns of sets."""
  tags = taxonomy and taxonomy.table('tags')
  tag_levels = tags.levels if tags else ()
  levels = {*options.multi, *tag_levels}
  if taxonomy is None and levels & level_words([]).keys():
    levels.add(label_taxonomy.ONLY_LEVEL)
  sets = {}
  for level in [c for c in columns if c in levels]:
    names = spellings(tags, level) if level in tag_levels else ()
    counts = columns[level].counts()
    sets[level] = tag_cells.read(options, level, counts, names, f'{path}:1', findings)
  return sets


def _check_columns(where, columns, sets, taxonomy, findings):
  """Report columns that are no label, and missing ones; returns the columns of tags."""
  exclusive, tags = taxonomy.table('exclusive'), taxonomy.table('tags')
  flags = _tag_columns(tags) if tags else {}
  _report_unused(where, columns, [*taxonomy.levels, *flags], taxonomy, findings)
  flags = {c: k for c, k in flags.items() if c in columns and c not in taxonomy.levels}
  sets = {level: sets[level] for level in tags.levels if level in columns} if tags else {}
  levels = exclusive.levels if exclusive else ()
  absent = [level for level in levels if level not in columns]
  if len(absent) < len(levels):
    for level in absent:
      text = f'has no column {level!r}: it is known only where a finer level determines it'
      findings.add('note', where, 'columns', text)
  implied_by_tags = tags is not None and exclusive is not None and (taxonomy.above >= 0).any()
  lacking = ()
  if tags and not flags and not sets:
    lacking = tags.levels
  if exclusive and len(absent) == len(levels) and not implied_by_tags:
    lacking = levels
  if lacking:
    scope = f' of {", ".join(lacking)}' if exclusive and tags else ''
    text = f'no column of labels{scope}; the levels are {", ".join(taxonomy.levels)}, the columns '
    findings.fatal(where, 'columns', text + ', '.join(columns))
  return _TagColumns(sets, flags)


def _report_unused(where, columns, names, taxonomy, findings):
  """Report columns that are not among the names of levels and tags."""
  tag_words = ' or class' if taxonomy.multi else ''
  for column in columns:
    if column in names or column in ('file', 'split'):
      continue
    close = close_matches(column, [name for name in names if name not in columns])
    if close:
      text = f'column {column!r} is no level{tag_words} of the taxonomy'
      findings.error(where, 'columns', f'{text} (did you mean {close[0]!r}?)')
      continue
    text = f'column {column!r} is not used; the levels are {", ".join(taxonomy.levels)}'
    findings.say(where, 'columns', text)


def _tag_columns(tags):
  """The index of each tag in a row of `multi`, at the level where it ends."""
  index = {}
  for level, names in zip(tags.levels, tags.names):
    for c, name in enumerate(names):
      index.setdefault(name, tags.columns[level].start + c)
  return index


def _read_rows(content, taxonomy, tag_columns, findings):
  """The table; labels are complete where there are no tags. Repeated rows are left out."""
  columns, exclusive, tags = content.columns, taxonomy.table('exclusive'), taxonomy.table('tags')
  n = len(content.rows)
  paths, is_valid = _normal_paths(columns['file'])
  first_of_path, _ = combinations([paths])
  first = first_of_path[paths.codes]  # [N], the first row with the same path
  is_repeated = is_valid & (first != np.arange(n))
  has_no_split = columns['split'].equals('') if 'split' in columns else np.zeros(n, bool)
  parts, multi = [], None
  if exclusive:
    parts.append(_encode_exclusive(exclusive, columns))
  if tags:
    multi = np.full((n, tags.width), -1, np.int8)
    parts += _encode_tags(tags, columns, tag_columns, multi)
  # only what has a fault is looked at row by row
  has_fault = np.any([np.isin(part.codes, list(part.faults)) for part in parts], 0)
  compared = [c for c in ('split', *taxonomy.levels, *tag_columns.flags) if c in columns]
  for i in np.flatnonzero(~is_valid | is_repeated | has_no_split | has_fault).tolist():
    where = content.where(i)
    image_files.check_path(columns['file'].cell(i), where, findings)
    if is_repeated[i]:
      text = f'{paths.cell(i)} stands in row {content.rows[first[i]]} already'
      differs = [c for c in compared if columns[c].cell(i) != columns[c].cell(first[i])]
      _report_repeated(text, differs, where, findings)
      continue
    if has_no_split[i]:
      text = 'no split; give one to every row, or leave out the column "split"'
      findings.error(where, 'no split', text)
    for part in parts:
      for kind, text in part.faults.get(int(part.codes[i]), ()):
        findings.error(where, kind, text)
  if is_repeated.any():
    rows = content.rows[is_repeated]
    text = f'{len(rows)} repeated rows are left out, the first is row {rows[0]}'
    findings.note(f'{content.path.name}: {text}')
  rows = np.flatnonzero(~is_repeated)
  labels = np.zeros((len(rows), 0), np.int32)
  table = Table(taxonomy, paths.values[paths.codes[rows]], labels, None, None)
  table.rows = array.array('q', content.rows[rows].tobytes()) if content.rows.any() else None
  table.invalid.update(np.flatnonzero(~is_valid[rows]).tolist())
  table.multi = None if multi is None else multi[rows]
  if 'split' in columns:
    table.splits = columns['split'].take(rows)
  if exclusive:
    _set_labels(table, parts[0], rows, content, findings)
  if tags:
    _complete_tags(table, lambda i: content.where(rows[i]), findings)
  return table


def _set_labels(table, part, rows, content, findings):
  """Write the exclusive labels of rows into a table, and report those that no leaf has."""
  exclusive = table.taxonomy.table('exclusive')
  codes = part.codes[rows]
  is_valid = exclusive.valid(part.labels)[codes]
  for i in np.flatnonzero(~is_valid):
    text = _contradiction(exclusive, part.labels[codes[i]])
    findings.error(content.where(rows[i]), CONTRADICTION, text)
  labels = part.labels if table.taxonomy.multi else exclusive.complete(part.labels)
  table.labels = labels[codes]


def _normal_paths(files):
  """The column of normalised paths, and which rows have one, bool [N]."""
  if isinstance(files.values, Names):  # all are paths of files, letter by letter
    return files, np.ones(len(files.codes), bool)
  silent = Findings(gather=True)
  paths = [image_files.check_path(file, '', silent) for file in files.values]
  is_valid = np.array([path is not None for path in paths], bool)
  column = files.renamed(path or file for path, file in zip(paths, files.values))
  column = column._replace(values=Names.pack(column.values))
  return column, is_valid[files.codes]


def _report_repeated(text, differs, where, findings):
  """Report a row of the same file as an earlier one, with the columns in which they differ."""
  if not differs:
    findings.add('warning', where, 'duplicate images', text)
    return
  ways = []
  if differs != ['split']:
    ways.append('with other labels')
  if 'split' in differs:
    ways.append('in another split')
  kind = 'leak' if 'split' in differs else 'duplicate images with different labels'
  findings.error(where, kind, f'{text}, {" and ".join(ways)}')


def _encode_exclusive(taxonomy, columns):
  """The labels of each combination of cells that occurs, and what is wrong with it."""
  levels = [level for level in taxonomy.levels if level in columns]
  level_columns = [columns[level] for level in levels]
  if not levels:  # one combination, of no cells
    level_columns = [Column([''], np.zeros(len(columns['file'].codes), np.int32))]
  first, codes = combinations(level_columns)
  labels = np.full((len(first), len(taxonomy.levels)), -1, np.int32)
  for level in levels:
    column = columns[level]
    ids = class_ids(taxonomy, level, column.values)
    labels[:, taxonomy.index(level)] = ids[column.codes[first]]
  faults = {}
  for d in np.flatnonzero((labels < -1).any(1)).tolist():
    row = {level: columns[level].cell(first[d]) for level in levels}
    has_hints = len(faults) < image_files.MAX_HINTS
    labels[d], texts = _encode_row(taxonomy, row, has_hints)
    if texts:
      faults[d] = [(UNKNOWN, text) for text in texts]
  return _Part(codes, faults, labels)


def _encode_row(taxonomy, row, has_hints):
  """The labels of {level: class}, int32 [L], and what is wrong with them."""
  try:
    return taxonomy.encode(row, has_hints=False), []
  except UserError:
    pass  # which names are wrong is found level by level
  labels = np.full(len(taxonomy.levels), -1, np.int32)
  texts = []
  for level, name in row.items():
    try:
      labels = np.maximum(labels, taxonomy.encode({level: name}, has_hints=has_hints))
    except UserError as error:
      texts.append(str(error))
  return labels, texts


def _contradiction(taxonomy, labels):
  """Say which labels no row of the taxonomy has together."""
  names = []
  for level, classes, c in zip(taxonomy.levels, taxonomy.names, labels):
    if c >= 0:
      names.append(f'{level} {classes[c]!r}')
  text = f'no row of the taxonomy has {", ".join(names)} together'
  leaf = labels[-1]
  if leaf >= 0:
    path = taxonomy.paths[leaf]
    k = int(np.flatnonzero((labels >= 0) & (labels != path))[0])
    text += f'; {names[-1]} has {taxonomy.levels[k]} {taxonomy.names[k][path[k]]!r}'
  return text


def _encode_tags(tags, columns, tag_columns, multi):
  """Write the tags of all rows into `multi`, int8 [N, M]; return what is wrong with them."""
  parts = []
  for level, tags_of in tag_columns.sets.items():
    column = columns[level]
    rows, faults = _encode_sets(
      tags, level, [tags_of[cell] if cell else None for cell in column.values]
    )
    multi[:, tags.columns[level]] = rows[column.codes]
    parts.append(_Part(column.codes, faults))
  for name, k in tag_columns.flags.items():
    column = columns[name]
    faults = {}
    for d, cell in enumerate(column.values):
      if cell and cell.casefold() not in FLAGS:
        text = (
          f'column {name!r} holds {cell!r}; a class has 1, 0 or nothing, a column of sets is '
          'named in --config.data.multi, and one of an exclusive level in taxonomy.csv'
        )
        faults[d] = [('columns', text)]
    flags = np.array([FLAGS.get(cell.casefold(), -1) for cell in column.values], np.int8)
    flags = flags[column.codes]
    multi[:, k] = np.where(flags < 0, multi[:, k], flags)
    parts.append(_Part(column.codes, faults))
  return parts


def _encode_sets(tags, level, sets):
  """Return int8 [D, C], the tags of a level in each of D sets (None: unknown), and the faults."""
  rows = np.full((len(sets), tags.num_classes(level)), -1, np.int8)
  faults = {}
  for d, names in enumerate(sets):
    if names is None:
      continue
    rows[d] = 0
    for name in names:
      try:
        tag = tags.encode({level: name})[tags.index(level)]
        rows[d, tag] = 1
      except UserError as error:
        faults.setdefault(d, []).append((UNKNOWN, str(error)))
  return rows, faults


def _complete_tags(table, where, findings):
  """Fill in what follows from the known labels of tag levels and the exclusive levels above."""
  taxonomy = table.taxonomy
  exclusive, tags = taxonomy.table('exclusive'), taxonomy.table('tags')
  known_labels = table.labels
  if exclusive:
    table.labels, table.multi = taxonomy.complete(known_labels, table.multi)
  else:
    table.multi = tags.complete(table.multi)
  names = []  # of each tag, with its level
  for level, classes in zip(tags.levels, tags.names):
    names += [f'{level} {name!r}' for name in classes]
  conflicts = tags.contradicts(table.multi)
  for i in np.flatnonzero(conflicts[:, 0] >= 0):
    child, parent = conflicts[i]
    text = f'has {names[child]} but not {names[parent]}, under which the taxonomy has it'
    findings.error(where(i), CONTRADICTION, text)
  if not exclusive:
    return
  conflicts = (table.multi == 1) & ~taxonomy.fits(table.labels)
  for i in np.flatnonzero(conflicts.any(1)):
    tag = conflicts[i].argmax()
    text = _tag_conflict(table, exclusive, known_labels, i, tag, names)
    findings.error(where(i), CONTRADICTION, text)
  for i in np.flatnonzero(~exclusive.valid(table.labels)):
    findings.error(where(i), CONTRADICTION, _contradiction(exclusive, table.labels[i]))


def _tag_conflict(table, exclusive, known_labels, i, tag, names):
  """Which exclusive class of example i the tag contradicts, and which other tag implies it."""
  above = table.taxonomy.above  # [tag, level]
  labels = table.labels[i]
  contradicts = (above[tag] >= 0) & (labels >= 0) & (above[tag] != labels)
  k = int(np.flatnonzero(contradicts)[0])
  level = exclusive.levels[k]
  label_name = exclusive.names[k][labels[k]]
  tag_parent = exclusive.names[k][above[tag, k]]
  source = ''
  if known_labels[i, k] < 0:  # the label was completed from another tag
    others = np.flatnonzero((table.multi[i] == 1) & (above[:, k] == labels[k]))
    source = f' by {names[others[0]]}' if len(others) else ''
  return (
    f'has {names[tag]} but {level} {label_name!r}{source}; the taxonomy has it under '
    f'{level} {tag_parent!r}'
  )
