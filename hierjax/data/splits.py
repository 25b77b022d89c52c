"""Splits that the data do not name, classes held out of training, and options that drop data."""

import dataclasses
import fractions
import pathlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from ml_collections import ConfigDict

from hierjax.core import files
from hierjax.core.declarations import OPTIONS
from hierjax.core.errors import UserError, did_you_mean
from hierjax.core.names import Names
from hierjax.data import stratify
from hierjax.data.dataset import Dataset, Examples, Table, subset
from hierjax.data.findings import Findings
from hierjax.taxonomy import Taxonomy, close_matches, read_table
from hierjax.taxonomy.table import with_aliases

TEST, CALIBRATION = 'test', 'calibration'
NOVEL = '_novel'  # suffix of a split's name: its images of held-out classes
_OLD_ROW = re.compile(r'(\.parquet):(\d+)$')


class Division(NamedTuple):
  """The examples of each split, and the files that an earlier record does not have."""

  splits: dict[str, Examples]
  new: Sequence[str]


class _Named(NamedTuple):
  """What the data say of their splits: each example's ('': not used), their names, and a reason."""

  splits: np.ndarray
  names: list[str]
  reason: str


class Earlier(Protocol):
  """The splits that files had before, by `file_key`, and whether others are used, too."""

  splits: Mapping[str, str]
  takes_new: bool


def divide(
  options: ConfigDict, table: Table, findings: Findings, record: Earlier | None = None
) -> Division:
  """Group the examples of a table by split, and draw the splits that the data do not name.

  Where the data have no such split, `options.test_share` of the training examples become test and
  `options.val_share` of them, or of the split `options.val_from`, validation; where it is asked
  for, `options.calibration_share` of the training examples become calibration. With
  `options.divide`, the data are that split alone and name no split.

  Args:
    options: `config.data`.
    table: the examples of all splits.
    findings: receives notes, and errors for splits that differ only in case and options that the
      data contradict.
    record: files that it has keep their split, unless the data name another.
  """
  named = _named(options, table, findings)
  splits = named.splits.copy()
  is_free = splits != ''  # examples whose split may be drawn
  new = []
  if record is not None:
    before = np.array([record.splits.get(file_key(file), '') for file in table.files], object)
    # a split that the data name is where they have it
    sources = [options.train, options.val_from or options.train]
    is_drawn = ~np.isin(before, ['', *named.names]) & np.isin(splits, sources)
    splits[is_drawn] = before[is_drawn]
    is_free &= before == ''
    new = Names.pack(table.files)[is_free]
    if not record.takes_new:
      splits[is_free] = ''
      is_free[:] = False
  if record is None or is_free.any():
    _fill(options, table, named, splits, is_free, findings)
  else:
    counts = Counter(splits[splits != ''].tolist())
    text = ', '.join(f'{n} {name}' for name, n in counts.items())
    findings.note(f'the split that the run was made with: {text}')
  examples = {}
  for name in filter(None, dict.fromkeys(splits.tolist())):
    # evaluations are written to files that are called like their split
    files.check_name(name, f'{options.root or "the drawn set"}: the split {name[:80]!r}')
    examples[name] = subset(table, np.flatnonzero(splits == name), name)
  return Division(examples, new)


def read_splits(path: str, files: Sequence[str], findings: Findings) -> list[str]:
  """Read the split of each file from a CSV.

  Args:
    path: of the CSV, which has the columns file and split, and may have others.
    files: of the data.
    findings: receives a note of files that the CSV does not have.

  Returns:
    [N], '' for a file that the CSV does not have.

  Raises:
    UserError: a column is missing, a file has two splits, or the CSV has none of the files.
  """
  columns, rows, *_ = read_table(pathlib.Path(path).expanduser())
  lower = [column.casefold() for column in columns]
  where = f'--config.data.splits={path}'
  if not {'file', 'split'} <= {*lower}:
    raise UserError(f'{where}: needs the columns file and split; it has {", ".join(columns)}')
  split_of = {}
  for number, row in rows:
    file, split = (row[lower.index(name)] for name in ('file', 'split'))
    if split_of.setdefault(file_key(file), split) != split:
      raise UserError(f'{where}: line {number} puts {file} into {split}, another line does not')
  splits = [split_of.get(file_key(file), '') for file in files]
  if not any(splits):
    raise UserError(
      f'{where}: has none of the {len(files)} images; they are named as in splits.csv of a run, '
      f'such as {file_key(files[0]) if files else ""}'
    )
  missing = [file for file, split in zip(files, splits) if not split]
  if missing:
    findings.note(f'{len(missing)} images are not in {path} and not used: {missing[0]}, ...')
  return splits


def examples_of(data: Dataset, options: ConfigDict, option: str) -> Examples:
  """Return the split of `data` that `options` name as an `option`, train or val, or raise."""
  name, splits = options[option], data.splits
  if name in splits:
    return splits[name]
  reason = ''
  if any(note.startswith('split made') for note in data.notes):
    reason = f', and --config.data.val_share={options.val_share:g} of each class leaves it none'
  raise UserError(
    f'--config.data.{option}={name!r}: no such split{did_you_mean(name, list(splits))}; '
    f'the data have {", ".join(splits) or "no images"}{reason}'
  )


def file_key(file: str) -> str:
  """Return the name of a file as it is on every machine, in one form of Unicode."""
  text = file.encode('utf-8', 'backslashreplace').decode()
  if '.parquet:' in text:
    # earlier versions counted rows from 0: train.parquet:0
    text = _OLD_ROW.sub(lambda match: f'{match[1]}:row {int(match[2]) + 1}', text)
  return unicodedata.normalize('NFC', text).replace('\r', '\\r')


def _named(options, table, findings):
  """The splits that the data name."""
  splits, train = table.splits, options.train
  names = list(filter(None, dict.fromkeys(splits or ())))
  folded = {}  # {name without case: the first such name}
  for name in names:
    first = folded.setdefault(name.casefold(), name)
    if first != name:
      text = f'the splits {first!r} and {name!r} differ only in case'
      findings.error(options.root, 'splits', text)
  if not names:
    return _Named(np.full(len(table.files), train, object), [], 'the data name no split')
  splits = np.array(splits, object)
  if options.divide is None:
    return _Named(splits, names, f'the data only have {", ".join(names)}')
  if options.divide not in names:
    hint = did_you_mean(options.divide, names)
    text = f'no such split{hint}; the data have {", ".join(names)}'
    findings.fatal(f'--config.data.divide={options.divide}', 'splits', text)
  is_used = splits == options.divide
  if not is_used.all():
    count = int((~is_used).sum())
    others = ', '.join(name for name in names if name != options.divide)
    findings.note(
      f'{count} examples of {others} are left out: only {options.divide} is divided (data.divide)'
    )
  splits = np.where(is_used, train, '').astype(object)
  return _Named(splits, [], f'{options.divide} is divided (data.divide)')


def _fill(options, table, named, splits, is_free, findings):
  """Draw test, calibration and validation from the free examples, unless the data name them."""
  _check_effect(options, named, findings)
  has_train = options.train in (named.names or [options.train])
  portions = {}  # {split that is drawn: what it is, in words}
  left = 1.0  # share of the training examples that the portions so far have left
  calibration = options.calibration or CALIBRATION
  for name, share in ((TEST, options.test_share), (calibration, options.calibration_share)):
    if share and name not in named.names and has_train:
      rows = np.flatnonzero(is_free & (splits == options.train))
      drawn_rows = _draw(table, rows, share / left, options.split_seed)
      splits[drawn_rows] = name
      portions[name] = f'a share of {share:g}'
      left -= share
  source = options.train
  is_asked = options.val == 'val' or not named.names  # another name is not made up
  if options.val not in named.names and is_asked and has_train:
    source = _val_source(options, table, named, findings)
    rows = np.flatnonzero(is_free & (splits == source))
    share = options.val_share / (left if source == options.train else 1)
    drawn_rows = _draw(table, rows, share, options.split_seed)
    splits[drawn_rows] = options.val
    portions[options.val] = _share(options, table, source)
  if portions and is_free.any():
    count = Counter(splits[is_free].tolist())
    parts = []
    for name in dict.fromkeys([options.train, source, *reversed(portions)]):
      portion = f' ({portions[name]})' if name in portions else ''
      parts.append(f'{count[name]} {name}{portion}')
    findings.note(f'split made: {", ".join(parts)}, since {named.reason}')


def _val_source(options, table, named, findings):
  """The split that validation is drawn from."""
  source = options.val_from or options.train
  if source == options.train:
    return source
  rows = np.flatnonzero(named.splits == source)
  is_labelled = (table.labels[rows] >= 0).any()
  if table.multi is not None:
    is_labelled |= (table.multi[rows] >= 0).any()
  if source in named.names and is_labelled:
    return source
  reason = 'it has no label' if source in named.names else 'the data have no such split'
  where = f'--config.data.val_from={source}'
  findings.say(where, 'splits', f'{reason}; {options.val} is drawn from {options.train}')
  return options.train


def _check_effect(options, named, findings):
  """Report options of splits that change nothing, since the data name these splits."""
  names, kind = ', '.join(named.names), 'option without effect'
  if options.test_share and TEST in (*named.names, options.val):
    text = f'the data have a split test ({names})' if names else 'data.val is called so'
    findings.error(
      f'--config.data.test_share={options.test_share:g}',
      kind,
      f'{text}; set it to 0, or let --config.data.divide={options.train} divide that split into '
      'train, val and test',
    )
  calibration, share = options.calibration or CALIBRATION, options.calibration_share
  if share and calibration in (*named.names, options.val, options.train):
    text = f'the data have a split {calibration} ({names})' if names else 'it is used otherwise'
    where = f'--config.data.calibration_share={share:g}'
    findings.error(where, kind, f'{text}; leave the share out, or name the split otherwise')
  elif options.calibration and not share and options.calibration not in named.names:
    hint = did_you_mean(options.calibration, named.names)
    text = f'no such split{hint}; --config.data.calibration_share makes it'
    findings.error(f'--config.data.calibration={options.calibration}', 'splits', text)
  for name in ('val_share', 'val_from') if options.val in named.names else ():
    if getattr(options, name) != OPTIONS[f'data.{name}'].default:
      text = f'has no effect: the data have a split {options.val} ({names})'
      findings.say(f'--config.data.{name}={getattr(options, name)}', kind, text)
  is_drawn = options.val not in named.names or options.test_share or share
  if options.split_seed and not (
    is_drawn or options.limit or options.unlabelled or options.hold_out
  ):
    text = f'has no effect: the data name their splits ({names})'
    findings.say(f'--config.data.split_seed={options.split_seed}', kind, text)


def _share(options, table, source):
  """Say what share validation is, of what, and by which seed."""
  groups = 'each finest class'
  if table.multi is not None:
    groups = 'all, by combinations of classes (iterative stratification)'
  origin = '' if source == options.train else f' of {source}'
  return f'a share of {options.val_share:g} of {groups}{origin}, seed {options.split_seed}'


def _draw(table, rows, share, seed):
  """A share of these rows, stratified by the finest class or by sets of tags."""
  if not share:
    return rows[:0]
  files = Names.pack(table.files)[rows]
  labels = table.labels[rows]
  if table.multi is None:
    return rows[stratified(labels, files, share, seed)]
  # the path of the exclusive levels counts as one more tag
  _, path = np.unique(labels, axis=0, return_inverse=True)
  path = np.where((labels >= 0).any(1), path.ravel(), -1)
  shares = (1 - share, share)
  parts = stratify.iterative(table.multi[rows], shares, seed, files, extra=path)
  return rows[parts == 1]


def stratified(labels: np.ndarray, files: Sequence[str], share: float, seed: int) -> np.ndarray:
  """Draw a share of each finest class by a hash of seed and file name.

  The order of the rows does not matter. Images without a finest label form a class for each
  combination of their other labels. Each class keeps one example; over all classes the numbers add
  up to the share.

  Args:
    labels: int [N, L].
    files: [N] names.
    share: what to draw of each class.
    seed: of the hash.

  Returns:
    bool [N].
  """
  is_drawn = np.zeros(len(files), bool)
  due = 0.0  # examples that the classes so far should have given, less those that they did
  for rows in _classes(labels, files, seed):
    due += share * len(rows)
    take = max(0, min(round(due), len(rows) - 1))
    due -= take
    is_drawn[rows[:take]] = True
  return is_drawn


def _classes(labels, files, seed):
  """Numbers of the examples of each finest class, in the order of a hash of seed and file name."""
  order = stratify.shuffled(files, seed)
  keys = labels[order]  # a copy, [N, L], in the order of the hash; equal for equal classes
  is_known = (labels[order, -1:] >= 0).any(1)
  # a finest class comes before the other labels that begin with its number
  keys[is_known, :1] = keys[is_known, -1:]
  keys[is_known, 1:] = -2
  by_class = np.lexsort(keys.T[::-1]) if keys.shape[1] else np.arange(len(keys))
  is_new_class = (np.diff(keys[by_class], axis=0) != 0).any(1)
  return np.split(order[by_class], 1 + np.flatnonzero(is_new_class))


def held_out(items: Sequence[str], taxonomy: Taxonomy, seed: int) -> np.ndarray:
  """Find the finest classes that `data.hold_out` names.

  Args:
    items: names of classes, with all below them, or a share such as '1/3' of the finest classes
      below each class of the level above: by a hash of seed and name, rounded, at least one, but
      one is left.
    taxonomy: of exclusive levels.
    seed: of the hash.

  Returns:
    bool [number of finest classes].

  Raises:
    UserError: an item is neither, or every class or none would be held out.
  """
  is_held = np.zeros(len(taxonomy.paths), bool)
  for item in items:
    levels = [k for k, names in enumerate(taxonomy.names) if item in names]
    for k in levels:
      is_held |= taxonomy.paths[:, k] == taxonomy.names[k].index(item)
    if not levels:
      is_held |= _held_share(item, taxonomy, seed)
  if items and (is_held.all() or not is_held.any()):
    scope = 'every class' if is_held.all() else 'no class'
    raise UserError(
      f'--config.data.hold_out={"; ".join(items)}: holds out {scope} of {len(is_held)}; some must '
      'be held out, some left'
    )
  return is_held


def _held_share(item, taxonomy, seed):
  """bool [leaf]: a share of the finest classes below each class of the level above."""
  try:
    share = float(fractions.Fraction(item))
  except (ValueError, ZeroDivisionError):
    names = {name for names in taxonomy.names for name in names}
    close = close_matches(item, sorted(names), 1)
    hint = f'; did you mean {close[0]!r}?' if close else ' and no share such as 1/3 or .3'
    raise UserError(
      f'--config.data.hold_out: {item!r} is no class of {", ".join(taxonomy.levels)}{hint} '
      '(several are separated by ;)'
    ) from None
  if not 0 < share < 1:
    raise UserError(f'--config.data.hold_out: the share {item} must be above 0 and below 1')
  is_held = np.zeros(len(taxonomy.paths), bool)
  has_parents = len(taxonomy.levels) > 1
  parent = taxonomy.paths[:, -2] if has_parents else np.zeros(len(is_held), int)
  order = stratify.shuffled(taxonomy.names[-1], seed)
  for p in np.unique(parent):
    children = order[parent[order] == p]
    count = max(1, round(share * len(children)))
    count = min(count, len(children) - 1)
    is_held[children[:count]] = True
  return is_held


def hold_out(options: ConfigDict, data: Dataset) -> Dataset:
  """Take the classes of `data.hold_out` out of the taxonomy.

  The images of these classes move from each split to the split SPLIT_novel, with the labels of
  their path that are left.

  Args:
    options: `config.data`.
    data: all splits.

  Raises:
    UserError: see `held_out`; or there are tag levels, or a split is called SPLIT_novel.
  """
  if not options.hold_out:
    return data
  old = data.taxonomy
  if old.multi:
    raise UserError(
      f'--config.data.hold_out={"; ".join(options.hold_out)}: only classes of exclusive levels can '
      f'be held out; leave {", ".join(old.multi)} (data.multi) out of the data'
    )
  is_held = held_out(options.hold_out, old, options.split_seed)
  rows_left = [row for row, is_out in zip(old.rows(), is_held) if not is_out]
  new = with_aliases(Taxonomy.from_rows(old.levels, rows_left), old.aliases)
  new_ids = _new_ids(old, new)
  splits, notes = {}, list(data.notes)
  for name, examples in data.splits.items():
    if name + NOVEL in data.splits:
      raise UserError(
        f'--config.data.hold_out makes a split {name + NOVEL!r}, and the data have one of that name'
      )
    labels = np.stack([ids[examples.labels[:, k]] for k, ids in enumerate(new_ids)], 1)
    is_novel = ((examples.labels >= 0) & (labels < 0)).any(1)
    examples = dataclasses.replace(examples, labels=labels)
    for part, is_in_part in ((name, ~is_novel), (name + NOVEL, is_novel)):
      if is_in_part.any():
        splits[part] = subset(examples, np.flatnonzero(is_in_part))
    notes.append(
      f'{int(is_novel.sum())} of {len(is_novel)} {name} examples are of held-out classes '
      f'(data.hold_out), the split {name + NOVEL}'
    )
  counts = []
  for level, names, names_left in zip(old.levels, old.names, new.names):
    if len(names) > len(names_left):
      counts.append(f'{len(names) - len(names_left)} of {len(names)} {level}')
  return Dataset(new, splits, [*notes, f'held out (data.hold_out): {", ".join(counts)}'])


def _new_ids(old, new):
  """Return for each level int32 [C + 1], the new id of each class, -1 of one that is out.

  The last entry is -1, too: an unknown label, -1, points to it.
  """
  new_ids = []
  for names, names_left in zip(old.names, new.names):
    number = {name: c for c, name in enumerate(names_left)}
    ids = [number.get(name, -1) for name in names]
    new_ids.append(np.array([*ids, -1], np.int32))
  return new_ids


def reduce_splits(options: ConfigDict, data: Dataset) -> Dataset:
  """Apply `data.limit` to every split; `train_limit`, `unlabelled` and `partial` to training.

  Args:
    options: `config.data`.
    data: all splits.
  """
  splits, notes = dict(data.splits), list(data.notes)
  limits = [('limit', name) for name in splits] + [('train_limit', options.train)]
  for option, name in limits:
    limit = options[option]
    n = len(splits[name].labels) if name in splits else 0
    if limit and limit < n:
      splits[name] = _limited(splits[name], limit, options.split_seed)
      notes.append(f'{limit} of {n} {name} examples are used (data.{option})')
  train = splits.get(options.train)
  if train is None:
    return Dataset(data.taxonomy, splits, notes)
  n = len(train.labels)
  if options.unlabelled:
    labels = train.labels.copy()
    for rows in _classes(labels, train.files, options.split_seed):
      # of each class one example keeps its label
      num_labelled = len(rows) - int(options.unlabelled * len(rows))
      labels[rows[num_labelled:], -1] = -1
    count = int((labels != train.labels).any(1).sum())
    train = dataclasses.replace(train, labels=labels)
    notes.append(
      f'the finest label of {count} of {n} {options.train} examples is hidden (data.unlabelled)'
    )
  has_leaf = (train.labels[:, -1:] >= 0).all(1)
  if options.partial == 'drop' and not has_leaf.all():
    train = subset(train, np.flatnonzero(has_leaf))
    notes.append(
      f'{n - len(train.labels)} {options.train} examples without a finest label are left out '
      '(data.partial)'
    )
  return Dataset(data.taxonomy, {**splits, options.train: train}, notes)


def _limited(examples, limit, seed):
  """Return examples of each class in its proportion: those that come first in their class."""
  places = []  # (place within the class from 0 to 1, example)
  for rows in _classes(examples.labels, examples.files, seed):
    for k, i in enumerate(rows):
      places.append(((k + 0.5) / len(rows), i))
  places.sort(key=lambda place: place[0])
  return subset(examples, sorted(i for _, i in places[:limit]))
