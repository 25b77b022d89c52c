"""The taxonomy of columns of labels, where taxonomy.csv does not have it or lacks a tag level."""

import pathlib
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from hierjax.core.errors import UserError, did_you_mean, listing
from hierjax.core.options import level_words
from hierjax.data import taxonomies
from hierjax.data.findings import Findings
from hierjax.taxonomy import Mixed, TagTaxonomy, Taxonomy
from hierjax.taxonomy.csv_files import CsvColumns, combinations

ONLY_LEVEL = 'class'  # what the tag level is called that data.multi names by a word such as 'all'
Origin = tuple[str, list[tuple[int, list[str]]]]  # a file, and (row, names) of each branch


def complete(
  options: ConfigDict,
  path: pathlib.Path,
  content: CsvColumns,
  sets: Mapping[str, Mapping[str, list[str]]],
  taxonomy: Taxonomy | Mixed | None,
  findings: Findings,
) -> tuple[Taxonomy | Mixed, Origin | None]:
  """Return the taxonomy with the levels that only the labels have.

  Args:
    options: `config.data`.
    path: the file of the labels.
    content: its columns.
    sets: {tag level: {cell: its tags}} of the columns of sets.
    taxonomy: that of taxonomy.csv, or None.
    findings: receives what was derived.

  Returns:
    The taxonomy, and its rows in the file where all come from there.

  Raises:
    UserError: the columns hold no labels, or several tag levels are not in taxonomy.csv.
  """
  names = options.multi
  words = level_words([])
  existing = () if taxonomy is None else (*taxonomy.levels, *words)
  new = [name for name in names if name not in existing]
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
    tag_levels = tags.levels if tags else ()
    taxonomies.check_levels([*columns, *tag_levels], content.where(), findings)
    if columns:
      exclusive, origin = _derive_exclusive(options, path, columns, content, findings)
  derived = [tags] if taxonomy else [exclusive, tags]
  counts = ', '.join(taxonomies.describe(table) for table in derived if table)
  if taxonomy is None:
    findings.note(f'taxonomy derived from {path.name} (no taxonomy.csv): {counts}')
  else:
    text = f'{level} is no level of the taxonomy and stands beside it: {counts}, by {path.name}'
    findings.note(text)
  if not (exclusive and tags):
    return exclusive or tags, origin
  above = np.full((len(tags.names[0]), len(exclusive.levels)), -1, np.int32)
  return Mixed(exclusive, tags, above), None


def _derive_exclusive(options, path, columns, content, findings):
  """The taxonomy of columns of labels, and its rows with the first row of each."""
  # a row with the cells of an earlier one says nothing new
  rows, _ = combinations([content.columns[c] for c in columns])
  rows = np.sort(rows)
  names_of_columns = [content.columns[c].take(rows) for c in columns]
  rows = rows.tolist()
  branches = [list(names) for names in zip(*names_of_columns)]  # of each row, a name a level
  advice = f'; the levels were read from the columns {listing(columns, 8)}, coarse to fine: choose '
  advice += 'others with --config.data.levels'

  def report(where, text):
    findings.error(where, 'several paths', text + advice)

  located = [(content.where(i), names) for i, names in zip(rows, branches)]
  try:
    exclusive, reading = taxonomies.derive(columns, located, options.homonyms, report)
  except UserError as error:
    raise UserError(str(error).removesuffix(advice) + advice) from None
  taxonomies.remark_reading(reading, path, findings)
  first_rows = {}  # {finest class: the first row of the file with it}
  for i, names in zip(rows, branches):
    first_rows.setdefault(_last(names), int(content.rows[i]))
  numbered = []
  for names in exclusive.rows():
    leaf = _last(names)
    # a homonym is called by its path now
    row = first_rows.get(leaf) or first_rows.get(leaf.rpartition('/')[2], 0)
    numbered.append((row, names))
  return exclusive, (str(path), numbered)


def _last(names):
  """Return the finest name of a branch, '' of an empty one."""
  return next((name for name in reversed(names) if name), '')


def _derive_tags(level, path, columns, sets, taxonomy):
  """The taxonomy of a tag level: the classes in its column, or the columns that are no level."""
  levels = taxonomy.levels if taxonomy else ()
  if level in columns:
    classes = sorted({name for names in sets[level].values() for name in names})
    if not classes:
      raise UserError(f'{path}:1: column {level!r} names no class in any row')
  else:
    classes = [c for c in columns if c not in levels]
    if not classes or did_you_mean(level, columns):
      hint = did_you_mean(level, [*levels, *columns])
      choices = ', '.join([*levels, *level_words([])])
      raise UserError(
        f'--config.data.multi={level}: no level {level!r}{hint}; choices: {choices}, '
        f'or another column of {path.name}'
      )
  return TagTaxonomy.from_rows([level], [[name] for name in classes])
