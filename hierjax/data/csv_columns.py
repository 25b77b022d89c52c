"""Which column of a CSV file holds what: image files, splits, levels from coarse to fine."""

import re
import unicodedata
from collections.abc import Iterable, Mapping

import numpy as np
from ml_collections import ConfigDict

from hierjax.core.errors import did_you_mean
from hierjax.data.decoding import is_image
from hierjax.data.findings import Findings
from hierjax.data.split_names import is_word, split_of
from hierjax.data.taxonomies import MAX_LEVELS
from hierjax.taxonomy import Mixed, Taxonomy
from hierjax.taxonomy.csv_files import Column, CsvColumns, combinations

FILES = """file filename filepath path image imagefile imagefilename imagename imagepath img imgfile
imgname imgpath picture photo relativepath imageid imgid""".split()
SPLITS = ('split', 'subset', 'set', 'partition', 'fold')
# Names of columns that hold no class, as annotation tools and data frames write them.
METADATA = frozenset(
  """
  id index idx uid uuid guid rownumber site siteid camera cameraid sensor device annotator
  annotatorid annotatedby annotationid labeler labeller reviewer userid taskid leadtime createdat
  updatedat date time datetime timestamp capturedat observedon url imageurl link width height lat
  lon lng latitude longitude xmin xmax ymin ymax licence license author copyright photographer md5
  sha1 sha256 hash checksum filesize confidence score probability comment comments notes
  """.split()
)
_DATE = re.compile(r'\d{4}-\d\d?-\d\d?([T ].*)?|\d\d?[./]\d\d?[./]\d{2,4}([T ].*)?')
_NUMBER = re.compile(r'[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?', re.IGNORECASE)
_UNIQUE_ROWS = 20  # so many rows, each with another text, hold no classes
FLAGS = {'1': 1, '1.0': 1, 'true': 1, '0': 0, '0.0': 0, 'false': 0}

Values = Mapping[str, Column]


def names_images(values: Values) -> list[str]:
  """Return the columns that may name image files, the likeliest first."""
  if 'file' in values:
    return ['file']
  by_content = [c for c in values if _share(values[c], is_image) > 0.5]
  by_name = [c for c in values if _plain(c) in FILES]
  by_name.sort(key=lambda c: FILES.index(_plain(c)))
  by_both = [c for c in by_name if c in by_content]
  return by_both or by_content or by_name


def is_flag(cells: Iterable[str]) -> bool:
  """Whether cells say of one tag whether an image has it."""
  return {c.casefold() for c in cells} <= {'', *FLAGS}


def assign(
  options: ConfigDict,
  where: str,
  table: CsvColumns,
  taxonomy: Taxonomy | Mixed | None,
  findings: Findings,
) -> CsvColumns:
  """Return the columns that are of use, called 'file', 'split' and by their levels.

  Args:
    options: `config.data`.
    where: 'FILE:1'.
    table: the file.
    taxonomy: that of taxonomy.csv, or None.
    findings: receives what was guessed, and an error where no column names images.
  """
  values = table.columns
  known_levels = taxonomy.levels if taxonomy else ()
  file = file_column(options, where, values, findings)
  split = _split_column(options, where, values, known_levels, findings)
  new_names = {c: name for c, name in ((file, 'file'), (split, 'split')) if c}
  # A level cannot be called like the column that an option has replaced.
  others = [c for c in values if c not in (*new_names, *new_names.values())]
  tags = [c for c in others if _plain(c) in map(_plain, options.multi)]
  flags = [c for c in others if options.multi and not tags and is_flag(values[c].values)]
  ignored, is_sorted = {}, False
  if options.levels:
    levels = [_named('levels', name, others, where, findings) for name in options.levels]
    others = list(dict.fromkeys([*filter(None, levels), *tags, *flags]))
    if len(levels) == len(known_levels) and all(levels):
      new_names |= dict(zip(levels, known_levels))
  elif taxonomy is None:
    candidates = {c: values[c] for c in others if c not in tags and c not in flags}
    ignored = _without_classes(candidates, bool(tags or flags))
    n = len(candidates.keys() - ignored.keys())
    if n > MAX_LEVELS:
      text = f'{n} columns may be levels: choose with --config.data.levels, coarse to '
      text += 'fine; if each is a tag, with 1 or 0, name their level with --config.data.multi'
      findings.fatal(where, 'columns', text)
    in_order = [c for c in others if c not in ignored and c not in tags]
    is_free = options.homonyms != 'split' and (tags or not options.multi)
    levels = _sorted(in_order, values) if is_free else in_order
    is_sorted = levels != in_order
    others = levels + tags
  for name in (*known_levels, *options.multi):
    same = [c for c in others if _plain(c) == _plain(name) and c not in new_names]
    if name not in (*values, *new_names.values()) and len(same) == 1:
      new_names[same[0]] = name
  columns = [*new_names, *(c for c in others if c not in new_names)]
  names = [new_names.get(c, c) for c in columns]
  is_renamed = any(c != name for c, name in new_names.items())
  if ignored or is_sorted or is_renamed:
    findings.say(where, 'columns', _describe_choice(file, split, names, is_sorted, ignored))
  return table._replace(columns={name: values[c] for name, c in zip(names, columns)})


def _describe_choice(file, split, names, is_sorted, ignored):
  """Say which columns were taken for what, and how to choose others."""
  levels = ', '.join(name for name in names if name not in ('file', 'split'))
  split_words = f'splits by {split!r}' if split else 'no column of splits'
  text = f'files by column {file!r}, {split_words}, labels by {levels}'
  if is_sorted:
    text += ' (coarse to fine, as a class of each has one class of those before)'
  if ignored:
    text += '; not used: ' + ', '.join(f'{c!r} ({why})' for c, why in ignored.items())
  return text + '; to choose others: data.file_column, data.split_column, data.levels'


def _plain(name):
  """A column's name without case, blanks and punctuation, in one Unicode form."""
  return re.sub(r'[\W_]+', '', unicodedata.normalize('NFC', name).casefold())


def _share(column, condition):
  """The share of the cells with content that fulfil a condition; of the first thousand."""
  cells = [cell for cell in column.take(slice(1000)) if cell]
  if not cells:
    return 0.0
  return sum(bool(condition(cell)) for cell in cells) / len(cells)


def _named(option, name, columns, where, findings):
  """The column that an option names; in any case, and without punctuation, if that is clear."""
  same = [c for c in columns if c == name]
  same = same or [c for c in columns if _plain(c) == _plain(name)]
  if len(same) == 1:
    return same[0]
  hint = did_you_mean(name, columns)
  text = f'--config.data.{option}: no column {name!r}{hint}; the columns are {", ".join(columns)}'
  return findings.error(where, 'columns', text)


def file_column(options: ConfigDict, where: str, values: Values, findings: Findings) -> str | None:
  """Return the column that names images.

  Args:
    options, where, findings: see `assign`.
    values: the columns.
  """
  if options.file_column:
    return _named('file_column', options.file_column, list(values), where, findings)
  candidates, columns = names_images(values), ', '.join(values)
  advice = 'choose one with --config.data.file_column'
  if any(map(is_image, values)):
    text = f'no column "file": the first row must name the columns, not an image ({columns})'
  elif not candidates:
    text = f'no column "file", nor another that names images; {advice}: the columns are {columns}'
  elif len(candidates) == 1 or _plain(candidates[0]) in FILES:
    return candidates[0]
  else:
    text = f'columns {", ".join(candidates)} name images; {advice}'
  return findings.error(where, 'columns', text)


def _split_column(options, where, values, levels, findings):
  """Return the column of splits: by an option, by its name and content, or by its content alone."""
  if options.split_column:
    return _named('split_column', options.split_column, list(values), where, findings)
  names = {options.train, options.val}
  free = [c for c in values if c not in (*levels, *options.levels, *options.multi)]
  cells = {c: [cell for cell in values[c].values if cell] for c in free}
  for word in SPLITS:
    for c in [c for c in free if _plain(c) == word]:
      is_split = cells[c] and all(cell in names or split_of(cell) for cell in cells[c])
      if word == 'split' or is_split:
        return c
  for c in free:
    if _are_splits(cells[c]) and len({split_of(cell) for cell in cells[c]}) > 1:
      return c
  return None


def _are_splits(cells):
  """Return whether all cells with content are usual names of splits, and there is one."""
  return any(cells) and all(is_word(cell) for cell in cells if cell)


def _without_classes(values, has_tags):
  """{column that holds no classes: why}, as long as another one may hold some."""
  ignored = {}
  for c, column in values.items():
    doubt = _doubt(c, column)
    if doubt:
      ignored[c] = doubt
  others = [c for c in values if c not in ignored]
  if not others:
    return ignored if has_tags else {}
  numbers = [c for c in others if _share(values[c], _NUMBER.fullmatch) == 1]
  words = [c for c in others if c not in numbers]
  combinations = _combinations(others, values)
  for c in numbers if 0 < len(words) <= MAX_LEVELS else ():
    # ids of named classes, one number in all rows, or what no class determines
    up = [w for w in words if _determines(combinations[w], combinations[c])]
    is_id = any(_determines(combinations[c], combinations[w]) for w in up)
    if is_id or not up or len(values[c].values) == 1:
      ignored[c] = 'numbers beside names'
  for c in list(words):
    if len(words) > 1 and _UNIQUE_ROWS <= len(values[c].codes) == len(values[c].values):
      ignored[c] = 'another text in every row'
      words.remove(c)
  return ignored


def _doubt(name, column):
  """Why a column probably holds no classes, '' if it may."""
  is_number, cells = _share(column, _NUMBER.fullmatch) == 1, column.values
  doubts = {
    'empty': not any(cells),
    'no name': name.startswith(('(column ', 'Unnamed:')),
    'named like metadata': _plain(name) in METADATA,
    'names of splits': _are_splits(cells),
    'dates': _share(column, _DATE.fullmatch) == 1,
    'image files': _share(column, is_image) > 0.5,
    'measures': is_number and not all(c.isdecimal() for c in cells if c),
    'numbers the rows': is_number and 2 < len(column.codes) == len(cells),
  }
  return next((why for why, holds in doubts.items() if holds), '')


def _combinations(columns, values):
  """{column: int [C], its cell in each combination of cells that occurs, 0 for an empty one}."""
  rows, _ = combinations([values[c] for c in columns])
  cells = {}
  for c in columns:
    numbers = (1 + values[c].codes) * ~values[c].equals('')
    cells[c] = numbers[rows]
  return cells


def _determines(finer, coarser):
  """Whether each value of one column comes with one of another, where both are known."""
  is_known = (finer > 0) & (coarser > 0)
  pairs = np.unique([finer[is_known], coarser[is_known]], axis=1)
  return len(pairs.T) == len(np.unique(pairs[0]))


def _mostly_nests(finer, coarser):
  """Whether few values of a column come with several of another: mistakes or homonyms."""
  pairs = np.unique(np.stack([finer, coarser]), axis=1)
  counts = np.unique(pairs[0], return_counts=True)[1]
  exceptions = int((counts > 1).sum())
  return exceptions and (2 * exceptions < len(counts) or len(counts) < 2)


def _sorted(columns, values):
  """Columns from coarse to fine, where they nest; those that do not stay in their order."""
  if len(columns) < 2:
    return columns
  cells = _combinations(columns, values)
  # {column: those of which it does not determine the class}
  apart = {c: {b for b in columns if not _determines(cells[c], cells[b])} for c in columns}
  finest = [c for c in columns if not apart[c]]
  *first, last = columns
  if last not in finest and any(_mostly_nests(cells[last], cells[c]) for c in first):
    finest = []
  if not finest:
    return columns
  others, result = [c for c in columns if c != finest[-1]], []

  def is_finer(a, b):
    return b not in apart[a] and a in apart[b]

  while others:
    free = (c for c in others if not any(is_finer(c, b) for b in others))
    result.append(next(free, others[0]))
    others.remove(result[-1])
  return [*result, finest[-1]]
