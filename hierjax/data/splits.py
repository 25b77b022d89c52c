"""Splits that the data do not name, classes held out of training, and options that drop data."""

import dataclasses
import fractions
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from hierjax.core.errors import UserError
from hierjax.data import stratify
from hierjax.data.dataset import Dataset, Examples, Table, subset
from hierjax.data.findings import Findings
from hierjax.taxonomy import Taxonomy, close_matches

NOVEL = '_novel'  # suffix of a split's name: its images of held-out classes


def divide(options: ConfigDict, table: Table, findings: Findings) -> dict[str, Examples]:
  """Group the examples of a table by split, and make the splits that the data do not name.

  Without any split, `options.val_share` and `options.test_share` of each finest class become
  validation and test; without a validation split, a share of the training split becomes one.

  Args:
    options: `config.data`.
    table: the examples of all splits.
    findings: receives notes, and an error for splits that differ only in case.
  """
  splits = table.splits
  names = list(dict.fromkeys(splits or ()))
  folded = {}
  for name in names:
    first = folded.setdefault(name.casefold(), name)
    if first != name:
      text = f'the splits {first!r} and {name!r} differ only in case'
      findings.error(options.root, 'splits', text)
  if splits is None:
    splits = _all_splits(options, table, findings)
  elif options.train in names and options.val not in names and options.val == 'val':
    rows = np.flatnonzero([name == options.train for name in splits])
    val = _draw(table, rows, options.val_share, options.split_seed)
    splits = [options.val if i in val else name for i, name in enumerate(splits)]
    findings.note(
      f'split made: {len(val)} of the {len(rows)} {options.train} examples are {options.val} '
      f'({_share(options, table)}), since the data only have {", ".join(names)}'
    )
  groups = defaultdict(list)
  for i, name in enumerate(splits):
    groups[name].append(i)
  return {name: subset(table, rows, name) for name, rows in groups.items()}


def _all_splits(options, table, findings):
  """The split of each example of data that name none."""
  rows = np.arange(len(table.files))
  test = _draw(table, rows, options.test_share, options.split_seed)
  others = np.array([i for i in rows if i not in test], int)
  share = options.val_share / (1 - options.test_share)
  val = _draw(table, others, share, options.split_seed)
  splits = np.full(len(rows), options.train, object)
  splits[list(val)] = options.val
  splits[list(test)] = 'test'
  count = Counter(splits.tolist())
  text = f'split made: {count[options.train]} {options.train}, {count[options.val]} {options.val} '
  text += f'({_share(options, table)})'
  if options.test_share:
    text += f', {len(test)} test (a share of {options.test_share:g})'
  findings.note(text + ', since the data name no split')
  return splits.tolist()


def _share(options, table):
  groups = 'each finest class'
  if table.multi is not None:
    groups = 'all, by combinations of classes (iterative stratification)'
  return f'a share of {options.val_share:g} of {groups}, seed {options.split_seed}'


def _draw(table, rows, share, seed):
  """The set of a share of these rows, stratified by the finest class or by sets of tags."""
  if not share:
    return set()
  files = [table.files[i] for i in rows]
  labels = table.labels[rows]
  if table.multi is None:
    return set(rows[stratified(labels, files, share, seed)].tolist())
  # the path of the exclusive levels counts as one more tag
  _, path = np.unique(labels, axis=0, return_inverse=True)
  path = np.where((labels >= 0).any(1), path.ravel(), -1)
  shares = (1 - share, share)
  parts = stratify.iterative(table.multi[rows], shares, seed, files, extra=path)
  return set(rows[parts == 1].tolist())


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
  is_drawn, due = np.zeros(len(files), bool), 0.0
  for rows in _classes(labels, files, seed):
    due += share * len(rows)
    take = max(0, min(round(due), len(rows) - 1))
    due -= take
    is_drawn[rows[:take]] = True
  return is_drawn


def _classes(labels, files, seed):
  """Numbers of the examples of each finest class, in the order of a hash of seed and file name."""
  groups, labels = defaultdict(list), labels.tolist()
  for i in stratify.shuffled(files, seed):
    leaf = labels[i][-1:]
    groups[tuple(leaf) if leaf and leaf[0] >= 0 else tuple(labels[i])].append(i)
  return [groups[key] for key in sorted(groups)]


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
    close = close_matches(item, sorted({n for names in taxonomy.names for n in names}), 1)
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
  order = np.array(stratify.shuffled(taxonomy.names[-1], seed))
  for p in np.unique(parent):
    rows = order[parent[order] == p]
    is_held[rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]] = True
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
  new = Taxonomy.from_rows(old.levels, [row for row, out in zip(old.rows(), is_held) if not out])
  ids = []  # of each level: old class id -> new one; -1 at the end, where unknown labels point to
  for names, left in zip(old.names, new.names):
    number = {name: c for c, name in enumerate(left)}
    ids.append(np.array([*(number.get(name, -1) for name in names), -1], np.int32))
  splits, notes = {}, list(data.notes)
  for name, examples in data.splits.items():
    if name + NOVEL in data.splits:
      raise UserError(
        f'--config.data.hold_out makes a split {name + NOVEL!r}, and the data have one of that name'
      )
    labels = np.stack([new_id[examples.labels[:, k]] for k, new_id in enumerate(ids)], 1)
    is_novel = ((examples.labels >= 0) & (labels < 0)).any(1)
    examples = dataclasses.replace(examples, labels=labels)
    for part, rows in ((name, ~is_novel), (name + NOVEL, is_novel)):
      if rows.any():
        splits[part] = subset(examples, np.flatnonzero(rows))
    notes.append(
      f'{int(is_novel.sum())} of {len(is_novel)} {name} examples are of held-out classes '
      f'(data.hold_out), the split {name + NOVEL}'
    )
  counts = [
    f'{len(a) - len(b)} of {len(a)} {level}'
    for level, a, b in zip(old.levels, old.names, new.names)
    if len(a) > len(b)
  ]
  return Dataset(new, splits, [*notes, f'held out (data.hold_out): {", ".join(counts)}'])


def reduce_splits(options: ConfigDict, data: Dataset) -> Dataset:
  """Apply `data.limit` to every split, `data.unlabelled` and `data.partial` to training.

  Args:
    options: `config.data`.
    data: all splits.
  """
  splits, notes = dict(data.splits), list(data.notes)
  for name, examples in data.splits.items():
    n = len(examples.labels)
    if options.limit and options.limit < n:
      splits[name] = _limited(examples, options.limit, options.split_seed)
      notes.append(f'{options.limit} of {n} {name} examples are used (data.limit)')
  train = splits.get(options.train)
  if train is None:
    return Dataset(data.taxonomy, splits, notes)
  n = len(train.labels)
  if options.unlabelled:
    labels = train.labels.copy()
    for rows in _classes(labels, train.files, options.split_seed):
      # of each class one example keeps its label
      labels[rows[len(rows) - int(options.unlabelled * len(rows)) :], -1] = -1
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
  """Examples of each class in its proportion: those that come first in their class."""
  places = [
    ((k + 0.5) / len(rows), i)
    for rows in _classes(examples.labels, examples.files, seed)
    for k, i in enumerate(rows)
  ]
  places.sort(key=lambda place: place[0])
  return subset(examples, sorted(i for _, i in places[:limit]))
