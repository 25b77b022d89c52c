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

from hierjax.core.errors import UserError, did_you_mean
from hierjax.core.names import Names
from hierjax.core.options import level_words
from hierjax.data import csv_columns, image_files, tag_cells, taxonomies
from hierjax.data.csv_columns import FLAGS
from hierjax.data.dataset import Table
from hierjax.data.findings import Findings
from hierjax.taxonomy import Mixed, TagTaxonomy, Taxonomy, close_matches
from hierjax.taxonomy.csv_files import Column, CsvColumns, combinations
from hierjax.taxonomy.spelling import unify
from hierjax.taxonomy.table import class_ids, spellings

ONLY_LEVEL = 'class'  # what the tag level is called that data.multi names by a word such as 'all'
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
  names = taxonomy.names[taxonomy.index(level)] if taxonomy and level in taxonomy.levels else ()
  if not all(map(str.isdecimal, values)) or values <= {*names} or (taxonomy and not names):
    return column
  if not taxonomy:
    width = max(map(len, values))
    return column.renamed(value and value.zfill(width) for value in column.values)
  numbers = list(map(int, values))
  if max(numbers) >= len(names):
    text = f'goes from {min(numbers)} to {max(numbers)}, the taxonomy has {len(names)} classes'
    raise UserError(f'{where}: {level} {text} of {level}')
  return column.renamed(value and names[int(value)] for value in column.values)


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
  taxonomy, origin = _complete_taxonomy(options, path, content, sets, taxonomy, findings)
  tag_columns = _check_columns(content.where(), columns, sets, taxonomy, findings)
  table = _read_rows(content, taxonomy, tag_columns, findings)
  table.origin = origin
  return table


def _unify_spellings(options, path, columns, taxonomy, findings):
  """Write, in place, one spelling of each class into the columns of exclusive levels."""
  table = taxonomy and taxonomy.table('exclusive')
  levels = table.levels if table else [c for c in columns if c not in ('file', 'split')]
  for level in (c for c in columns if c in levels and c not in options.multi):
    counts = columns[level].counts()
    if (taxonomy and not table) or (options.multi and csv_columns.is_flag(counts)):
      continue
    same = unify(counts, spellings(table, level) if table else (), options.fold_case)
    same.pop('', None)
    tag_cells.say_spellings(level, same, counts, path, findings)
    if not table and (text := tag_cells.made_of_others(level, counts, counts)):
      text += f'; if an image may have several: --config.data.multi={level}'
      findings.warn(path, 'names of several classes', text)
    if same:
      columns[level] = columns[level].renamed(same.get(cell, cell) for cell in counts)


def _read_sets(options, path, columns, taxonomy, findings):
  """{level: {cell: its tags}} of the columns of sets."""
  tags = taxonomy and taxonomy.table('tags')
  levels = {*options.multi, *(tags.levels if tags else ())}
  if taxonomy is None and levels & {*level_words([])}:
    levels.add(ONLY_LEVEL)
  sets = {}
  for level in (c for c in columns if c in levels):
    names = spellings(tags, level) if tags and level in tags.levels else ()
    counts = columns[level].counts()
    sets[level] = tag_cells.read(options, level, counts, names, f'{path}:1', findings)
  return sets


def _complete_taxonomy(options, path, content, sets, taxonomy, findings):
  """The taxonomy with the levels that only the labels have, and its rows if all come from there."""
  names, words = options.multi, level_words([])
  new = [n for n in names if taxonomy is None or n not in {*taxonomy.levels, *words}]
  if taxonomy and not new:
    return taxonomy, None
  columns = [c for c in content.columns if c not in ('file', 'split')]
  if not columns:
    text = f'no column of labels beside {", ".join(content.columns)}'
    findings.fatal(content.where(), 'columns', text)
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
    taxonomies.check_levels([*columns, *(tags.levels if tags else ())], content.where(), findings)
  if taxonomy is None and columns:
    exclusive, origin = _derive_exclusive(options, path, columns, content, findings)
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


def _derive_exclusive(options, path, columns, content, findings):
  """The taxonomy of columns of labels, and its rows with the first row of each."""
  # a row with the cells of an earlier one says nothing new
  rows = np.sort(combinations([content.columns[c] for c in columns])[0])
  names = zip(*(content.columns[c].take(rows) for c in columns))
  cells = list(zip(rows.tolist(), map(list, names)))
  rows = [(content.where(i), names) for i, names in cells]
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
  for i, names in cells:
    first.setdefault(_last(names), int(content.rows[i]))
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


def _check_columns(where, columns, sets, taxonomy, findings):
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
      findings.error(where, 'columns', f'{text} (did you mean {close[0]!r}?)')
      continue
    text = f'column {c!r} is not used; the levels are {", ".join(taxonomy.levels)}'
    findings.say(where, 'columns', text)
  flags = {c: k for c, k in flags.items() if c in columns and c not in taxonomy.levels}
  sets = {level: sets[level] for level in tags.levels if level in columns} if tags else {}
  levels = exclusive.levels if exclusive else ()
  absent = [level for level in levels if level not in columns]
  for level in absent if len(absent) < len(levels) else ():
    text = f'has no column {level!r}: it is known only where a finer level determines it'
    findings.add('note', where, 'columns', text)
  lacking = tags.levels if tags and not flags and not sets else ()
  if exclusive and len(absent) == len(levels) and not (tags and (taxonomy.above >= 0).any()):
    lacking = levels
  if lacking:
    scope = f' of {", ".join(lacking)}' if exclusive and tags else ''
    text = f'no column of labels{scope}; the levels are {", ".join(taxonomy.levels)}, the columns '
    findings.fatal(where, 'columns', text + ', '.join(columns))
  return _TagColumns(sets, flags)


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
  first = combinations([paths])[0][paths.codes]
  is_repeated = is_valid & (first != np.arange(n))
  has_no_split = columns['split'].equals('') if 'split' in columns else np.zeros(n, bool)
  parts, multi = [_encode_exclusive(exclusive, columns)] if exclusive else [], None
  if tags:
    multi = np.full((n, tags.width), -1, np.int8)
    parts += _encode_tags(tags, columns, tag_columns, multi)
  # only what has a fault is looked at row by row
  has_fault = [np.isin(part.codes, list(part.faults)) for part in parts]
  compared = [c for c in ('split', *taxonomy.levels, *tag_columns.flags) if c in columns]
  for i in np.flatnonzero(~is_valid | is_repeated | has_no_split | np.any(has_fault, 0)).tolist():
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
  exclusive, codes = table.taxonomy.table('exclusive'), part.codes[rows]
  for i in np.flatnonzero(~exclusive.valid(part.labels)[codes]):
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
  return column._replace(values=Names.pack(column.values)), is_valid[files.codes]


def _report_repeated(text, differs, where, findings):
  """Report a row of the same file as an earlier one, with the columns in which they differ."""
  if not differs:
    findings.add('warning', where, 'duplicate images', text)
    return
  is_moved, is_relabelled = 'split' in differs, differs != ['split']
  kind = 'leak' if is_moved else 'duplicate images with different labels'
  ways = ['with other labels'] * is_relabelled + ['in another split'] * is_moved
  findings.error(where, kind, f'{text}, {" and ".join(ways)}')


def _encode_exclusive(taxonomy, columns):
  """The labels of each combination of cells that occurs, and what is wrong with it."""
  levels = [level for level in taxonomy.levels if level in columns]
  same = Column([''], np.zeros(len(columns['file'].codes), np.int32))
  first, codes = combinations([columns[level] for level in levels] or [same])
  labels, faults = np.full((len(first), len(taxonomy.levels)), -1, np.int32), {}
  for level in levels:
    column = columns[level]
    ids = class_ids(taxonomy, level, column.values)
    labels[:, taxonomy.index(level)] = ids[column.codes[first]]
  for d in np.flatnonzero((labels < -1).any(1)).tolist():
    row = {level: columns[level].cell(first[d]) for level in levels}
    labels[d], texts = _encode_row(taxonomy, row, len(faults) < image_files.MAX_HINTS)
    if texts:
      faults[d] = [(UNKNOWN, text) for text in texts]
  return _Part(codes, faults, labels)


def _encode_row(taxonomy, row, has_hints):
  """The labels of {level: class}, int32 [L], and what is wrong with them."""
  try:
    return taxonomy.encode(row, has_hints=False), []
  except UserError:
    labels, texts = np.full(len(taxonomy.levels), -1, np.int32), []
  for level, name in row.items():
    try:
      labels = np.maximum(labels, taxonomy.encode({level: name}, has_hints=has_hints))
    except UserError as error:
      texts.append(str(error))
  return labels, texts


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


def _encode_tags(tags, columns, tag_columns, multi):
  """Write the tags of all rows into `multi`, int8 [N, M]; return what is wrong with them."""
  parts = []
  for level, tags_of in tag_columns.sets.items():
    column, place, faults = columns[level], tags.columns[level], {}
    rows = np.full((len(column.values), place.stop - place.start), -1, np.int8)
    for d, cell in enumerate(column.values):
      rows[d] = 0 if cell else -1
      for name in tags_of[cell]:
        try:
          rows[d, tags.encode({level: name})[tags.index(level)]] = 1
        except UserError as error:
          faults.setdefault(d, []).append((UNKNOWN, str(error)))
    multi[:, place] = rows[column.codes]
    parts.append(_Part(column.codes, faults))
  for name, k in tag_columns.flags.items():
    column, faults = columns[name], {}
    for d, cell in enumerate(column.values):
      if cell and cell.casefold() not in FLAGS:
        text = (
          f'column {name!r} holds {cell!r}; a class has 1, 0 or nothing, a column of sets is '
          'named in --config.data.multi, and one of an exclusive level in taxonomy.csv'
        )
        faults[d] = [('columns', text)]
    flags = np.array([FLAGS.get(cell.casefold(), -1) for cell in column.values], np.int8)
    multi[:, k] = np.where(flags[column.codes] < 0, multi[:, k], flags[column.codes])
    parts.append(_Part(column.codes, faults))
  return parts


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
    findings.error(where(i), CONTRADICTION, text)
  if not exclusive:
    return
  conflicts = (table.multi == 1) & ~taxonomy.fits(table.labels)
  for i in np.flatnonzero(conflicts.any(1)):
    text = _tag_conflict(table, exclusive, known_labels, i, conflicts[i].argmax(), names)
    findings.error(where(i), CONTRADICTION, text)
  for i in np.flatnonzero(~exclusive.valid(table.labels)):
    findings.error(where(i), CONTRADICTION, _contradiction(exclusive, table.labels[i]))


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
