"""Which column of a CSV file holds what: image files, splits, levels from coarse to fine."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from hierjax.core.errors import did_you_mean
from hierjax.data.findings import Findings
from hierjax.data.image_files import is_image
from hierjax.data.split_names import split_of
from hierjax.taxonomy import CsvFile, Mixed, Taxonomy

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
_NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?', re.IGNORECASE)
_UNIQUE_ROWS = 20  # so many rows, each with another text, hold no classes

Records = list[tuple[int, dict[str, str]]]


class Labels(NamedTuple):
  """The rows of a CSV file by what they hold.

  Attributes:
    columns: 'file', 'split' where there is one, and the columns of labels.
    records: (row, {column: cell}).
    levels: the columns of labels in words, for errors.
  """

  columns: list[str]
  records: Records
  levels: str


def names_images(columns: Sequence[str], values: Mapping[str, Sequence[str]]) -> list[str]:
  """Find the columns that may name image files, the likeliest first.

  Args:
    columns: their names.
    values: {column: its cells}.
  """
  if 'file' in columns:
    return ['file']
  by_content = [c for c in columns if _share(values[c], is_image) > 0.5]
  by_name = sorted((c for c in columns if _plain(c) in FILES), key=lambda c: FILES.index(_plain(c)))
  return [c for c in by_name if c in by_content] or by_content or by_name


def transposed(table: CsvFile) -> dict[str, Sequence[str]]:
  """Return {column: its cells} of a file."""
  columns = zip(*(cells for _, cells in table.rows)) if table.rows else [()] * len(table.columns)
  return dict(zip(table.columns, columns))


def assign(
  options: ConfigDict,
  where: str,
  table: CsvFile,
  taxonomy: Taxonomy | Mixed | None,
  findings: Findings,
) -> Labels:
  """Find out what the columns hold, and call them 'file', 'split' and by their levels.

  Args:
    options: `config.data`.
    where: 'FILE:1'.
    table: the file.
    taxonomy: that of taxonomy.csv, or None.
    findings: receives what was guessed, and an error where no column names images.
  """
  values = transposed(table)
  file = _file_column(options, where, values, findings)
  split = _split_column(options, where, values, taxonomy, findings)
  new_names = {c: name for c, name in ((file, 'file'), (split, 'split')) if c}
  others = [c for c in values if c not in new_names]
  ignored, is_sorted = {}, False
  if options.levels:
    levels = [_named(options.levels, c, others, where, 'levels', findings) for c in options.levels]
    tags = [c for c in others if _plain(c) in map(_plain, options.multi)]
    flags = [c for c in others if options.multi and not tags and is_flag(values[c])]
    others = list(dict.fromkeys([*filter(None, levels), *tags, *flags]))
    if taxonomy and len(levels) == len(taxonomy.levels) and all(levels):
      new_names |= dict(zip(levels, taxonomy.levels))
  elif taxonomy is None:
    ignored = _without_classes(options, {c: values[c] for c in others})
    others = [c for c in others if c not in ignored]
    tags = [c for c in others if _plain(c) in map(_plain, options.multi)]
    is_flags = options.multi and not tags
    levels = [c for c in others if c not in tags]
    if not is_flags and options.homonyms != 'split':
      levels = _sorted(levels, values)
    is_sorted = levels != [c for c in others if c not in tags]
    others = levels + tags
  for name in (*(taxonomy.levels if taxonomy else ()), *options.multi):
    same = [c for c in others if _plain(c) == _plain(name) and c not in new_names]
    if name not in (*values, *new_names.values()) and len(same) == 1:
      new_names[same[0]] = name
  columns = [*new_names, *(c for c in others if c not in new_names)]
  names = [new_names.get(c, c) for c in columns]
  text = ', '.join(c for c in names if c not in ('file', 'split'))
  if ignored or is_sorted or any(c != name for c, name in new_names.items()):
    _remark(where, file, split, text, ignored, is_sorted, findings)
  cells = zip(*(values[c] for c in columns))
  records = [(row, dict(zip(names, line))) for (row, _), line in zip(table.rows, cells)]
  return Labels(names, records, text)


def _remark(where, file, split, levels, ignored, is_sorted, findings):
  """One note on all that was guessed."""
  text = f'files by column {file!r}, {f"splits by {split!r}" if split else "no column of splits"}, '
  text += f'labels by {levels}'
  text += ' (coarse to fine, as a class of each has one class of those before)' * is_sorted
  if ignored:
    text += f'; not used: {", ".join(f"{c!r} ({why})" for c, why in ignored.items())}'
  options = 'data.file_column, data.split_column, data.levels'
  findings.say(where, 'columns', f'{text}; to choose others: {options}')


def _plain(name):
  """A column's name without case, blanks and punctuation."""
  return re.sub(r'[\W_]+', '', name.casefold())


def _share(cells, condition):
  """The share of the cells with content that fulfil a condition; of the first thousand."""
  cells = [c for c in cells[:1000] if c]
  return sum(bool(condition(c)) for c in cells) / len(cells) if cells else 0.0


def is_flag(cells: Iterable[str]) -> bool:
  """Whether cells say of one tag whether an image has it."""
  return {c.casefold() for c in cells} <= {'', *FLAGS}


FLAGS = {'1': 1, '1.0': 1, 'true': 1, '0': 0, '0.0': 0, 'false': 0}


def _named(value, name, columns, where, option, findings):
  """The column that an option names; in any case, and without punctuation, if that is clear."""
  same = [c for c in columns if c == name] or [c for c in columns if _plain(c) == _plain(name)]
  if len(same) == 1:
    return same[0]
  text = (
    f'--config.data.{option}={value if isinstance(value, str) else ",".join(value)}: no column '
  )
  text += f'{name!r}{did_you_mean(name, columns)}; the columns are {", ".join(columns)}'
  findings.error(where, 'columns', text)
  return None


def _file_column(options, where, values, findings):
  if options.file_column:
    name = options.file_column
    return _named(name, name, list(values), where, 'file_column', findings)
  candidates = names_images(list(values), values)
  is_clear = len(candidates) == 1 or (candidates and _plain(candidates[0]) in FILES)
  if is_clear and not any(map(is_image, values)):
    return candidates[0]
  columns = ', '.join(values)
  if any(map(is_image, values)):
    text = f'no column "file": the first row must name the columns, not an image ({columns})'
  elif candidates:
    text = f'columns {", ".join(candidates)} name images; choose one with --config.data.file_column'
  else:
    text = (
      'no column "file", nor another that names images; choose one with '
      f'--config.data.file_column: the columns are {columns}'
    )
  findings.error(where, 'columns', text)
  return None


def _split_column(options, where, values, taxonomy, findings):
  if options.split_column:
    name = options.split_column
    return _named(name, name, list(values), where, 'split_column', findings)
  levels = (*(taxonomy.levels if taxonomy else ()), *options.levels, *options.multi)
  names = {options.train, options.val}
  for word in SPLITS:
    for c in (c for c in values if _plain(c) == word and c not in levels):
      contents = {v for v in values[c] if v}
      if word == 'split' or (contents and all(v in names or split_of(v) for v in contents)):
        return c
  return None


def _without_classes(options, values):
  """{column that holds no classes: why}, as long as another one may hold some."""
  ignored = {c: 'empty' for c in values if not any(values[c])}
  doubtful = {c: _doubt(c, cells) for c, cells in values.items() if c not in ignored}
  names = [_plain(name) for name in options.multi]
  flags = [c for c in values if options.multi and is_flag(values[c])]
  doubtful = {c: why for c, why in doubtful.items() if why and _plain(c) not in names}
  doubtful = {c: why for c, why in doubtful.items() if c not in flags}
  others = [c for c in values if c not in ignored and c not in doubtful]
  if not others:
    return {}
  ignored |= doubtful
  if options.multi and not any(_plain(c) in names for c in others):
    return ignored
  is_number = {c: _share(values[c], _NUMBER.fullmatch) == 1 for c in others}
  words = [c for c in others if not is_number[c]]
  combinations = _combinations(words + [c for c in others if is_number[c]], values)
  for c in others if words else ():
    if is_number[c] and _is_redundant(c, words, combinations):
      ignored[c] = 'numbers beside names'
    elif len(words) > 1 and _UNIQUE_ROWS <= len(values[c]) == len(set(values[c])):
      ignored[c] = 'another text in every row'
      words.remove(c)
  return ignored


def _doubt(name, cells):
  """Why a column probably holds no classes, '' if it may."""
  if name.startswith(('(column ', 'Unnamed:')):
    return 'no name'
  if _plain(name) in METADATA:
    return 'named like metadata'
  if _share(cells, _DATE.fullmatch) == 1:
    return 'dates'
  if _share(cells, is_image) > 0.5:
    return 'image files'
  if _share(cells, _NUMBER.fullmatch) < 1:
    return ''
  if not all(c.isdecimal() for c in cells if c):
    return 'measures'
  return 'numbers the rows' if 2 < len(cells) == len(set(cells)) else ''


def _is_redundant(column, words, combinations):
  """Whether numbers are no level: constant, ids of named classes, or not determined by these."""
  numbers = combinations[column]
  if len(set(numbers)) < 2:
    return True
  pairs = [
    (_determines(combinations[c], numbers), _determines(numbers, combinations[c])) for c in words
  ]
  return (True, True) in pairs or not any(downward for downward, _ in pairs)


def _combinations(columns, values):
  """{column: its cells in each combination of cells that occurs}."""
  lines = dict.fromkeys(zip(*(values[c] for c in columns)))
  return dict(zip(columns, zip(*lines)))


def _determines(finer, coarser):
  """Whether each value of one column comes with one of another, where both are known."""
  pairs = {(a, b) for a, b in zip(finer, coarser) if a and b}
  return len(pairs) == len({a for a, _ in pairs})


def _mostly_nests(columns, cells):
  """Whether the last level has few classes with several above: mistakes or homonyms."""
  for c in columns[:-1]:
    above = defaultdict(set)
    for name, parent in zip(cells[columns[-1]], cells[c]):
      above[name].add(parent)
    exceptions = sum(len(parents) > 1 for parents in above.values())
    if exceptions and (exceptions < len(above) - exceptions or len(above) < 2):
      return True
  return False


def _sorted(columns, values):
  """Columns from coarse to fine, where they nest; those that do not stay in their order."""
  cells = _combinations(columns, values)
  above = {
    (a, b)
    for a in columns
    for b in columns
    if _determines(cells[b], cells[a]) and not _determines(cells[a], cells[b])
  }
  finest = [c for c in columns if all(_determines(cells[c], cells[b]) for b in columns)]
  if not finest or (columns[-1] not in finest and _mostly_nests(columns, cells)):
    return columns
  others, result = [c for c in columns if c != finest[-1]], []
  while others:
    free = (c for c in others if not any((b, c) in above for b in others))
    result.append(next(free, others[0]))
    others.remove(result[-1])
  return [*result, finest[-1]]
