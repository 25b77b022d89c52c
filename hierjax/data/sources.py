"""Where examples come from: labels.csv and images, nested class folders, Parquet (here or on the hub), the original layouts of published data sets
(layouts.py), or the drawn toy set. All become a `Dataset`.

A data set's root may hold taxonomy.csv (else the taxonomy is derived from the labels). Splits come from the data; where they name none, one is made,
stratified by the finest class.
"""

import dataclasses
import errno
import fractions
import functools
import hashlib
import json
import os
import pathlib
import posixpath
import shutil
import stat
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from hierjax.core.config import level_words, split_names
from hierjax.core.errors import UserError, did_you_mean
from hierjax.data import layouts, stratify, toy, transforms
from hierjax.taxonomy import (
  Mixed,
  Taxonomy,
  close_matches,
  read_levels,
  read_table,
  read_taxonomy,
  with_tags,
)

IMAGE_SUFFIXES = (
  '.jpg',
  '.jpeg',
  '.png',
  '.webp',
  '.bmp',
  '.gif',
  '.tif',
  '.tiff',
  '.ppm',
  '.jfif',
)
SPLIT_FOLDERS = ('train', 'training', 'val', 'valid', 'validation', 'dev', 'test', 'testing')
MAX_BYTES = 1 << 30  # of an image's file
IMAGE_COLUMNS = ('img', 'image', 'images')


@dataclasses.dataclass(frozen=True)
class Examples:
  """One split: random access, picklable."""

  name: str
  files: Sequence[str]  # what people are shown, such as 'images/00001.jpg'
  labels: np.ndarray  # int32 [N, L], class ids per exclusive level of the taxonomy, -1 unknown
  reader: Callable[
    [int], bytes | np.ndarray
  ]  # encoded bytes, uint8 [h, w, 3], or float32 [d] features
  multi: np.ndarray | None = (
    None  # int8 [N, M], 0 and 1 for each class of the multi levels (Taxonomy.columns), -1 unknown
  )


@dataclasses.dataclass(frozen=True)
class Dataset:
  taxonomy: Taxonomy | Mixed
  splits: dict[str, Examples]
  notes: list[str]  # what the user should know, such as that a split was made


def load(data) -> Dataset:
  """The data set that `config.data` names (a ConfigDict or a namespace with its fields). UserError where it does not add up."""
  root, source = pathlib.Path(data.root).expanduser() if data.root else None, data.source
  if source == 'auto' and data.root.startswith('classes:'):
    return Dataset(_numbered(data.root), {}, [])
  if data.root.startswith('hf:'):
    root = layouts.hub_folder(data.root[3:])
  if source == 'auto':
    source = 'tfds' if data.root.startswith('tfds:') else _detect(root)
  multi = getattr(data, 'multi', '')
  if multi and source != 'csv':
    raise UserError(
      f'--config.data.multi={multi}: source {source} has one class a level; multi levels are read from labels.csv'
    )
  if source == 'toy':
    if data.taxonomy:
      raise UserError(
        f'--config.data.taxonomy={data.taxonomy}: the drawn set has its own taxonomy; give --config.data.root=FOLDER'
      )
    taxonomy, splits = toy.load(**dict(data.toy if hasattr(data.toy, 'keys') else vars(data.toy)))
    splits = {
      {'train': data.train, 'val': data.val}[k]: Examples(
        {'train': data.train, 'val': data.val}[k], *v
      )
      for k, v in splits.items()
    }
    return _reduced(
      data,
      Dataset(
        taxonomy,
        splits,
        ['no --config.data.root: these are the drawn vehicles'] if data.source == 'auto' else [],
      ),
    )
  if source not in LOADERS:
    raise UserError(
      f'--config.data.source={source!r}{did_you_mean(source, LOADERS)}; choices: auto, toy, {", ".join(LOADERS)}'
    )
  if root is None:
    raise UserError(f'--config.data.source={source} needs --config.data.root=FOLDER')
  if not root.is_dir() and source != 'tfds':
    raise UserError(f'--config.data.root={data.root}: no such folder')
  if data.crop_boxes and source not in layouts.LAYOUTS:
    raise UserError(f'--config.data.crop_boxes: source {source} has no boxes')
  taxonomy = data.taxonomy or (root / 'taxonomy.csv' if (root / 'taxonomy.csv').exists() else None)
  taxonomy, table, notes = LOADERS[source](
    data, root, _named(pathlib.Path(taxonomy).expanduser(), multi) if taxonomy else None
  )
  return _reduced(data, Dataset(taxonomy, _split(data, table, notes), notes))


def _named(path, multi):
  """The taxonomy in a file, with the multi levels that are there: _csv knows of the others."""
  levels, _ = read_levels(path)
  return read_taxonomy(
    path, ','.join(n for n in split_names(multi) if n in {*levels, *level_words([])})
  )


def _numbered(text):
  """The taxonomy of 'classes:make=49,model=196', so many classes a level, for counts of a model without data. UserError names what is wrong."""
  sizes = {}
  for item in text.removeprefix('classes:').split(','):
    level, _, n = item.partition('=')
    if not level or level in sizes or not n.isdecimal() or not 0 < int(n) <= 1000000:
      raise UserError(
        f'--config.data.root={text}: {item!r} is not LEVEL=NUMBER; write classes:make=49,model=196, coarse to fine'
      )
    sizes[level] = int(n)
  leaves = int(n)
  if max(sizes.values()) > leaves:
    raise UserError(
      f'--config.data.root={text}: the last level, {level}, is the finest and must have the most classes'
    )
  return Taxonomy.from_rows(
    list(sizes), [[f'{level} {min(i, n - 1)}' for level, n in sizes.items()] for i in range(leaves)]
  )


def with_features(examples: Examples, features: np.ndarray, index: np.ndarray) -> Examples:
  """The examples `index` with features float32 [len(index), d] in place of their images."""
  return Examples(
    examples.name,
    [examples.files[i] for i in index],
    examples.labels[index],
    np.asarray(features, np.float32).__getitem__,
    None if examples.multi is None else examples.multi[index],
  )


def subset(examples: Examples, keep) -> Examples:
  """The examples with the numbers `keep`."""
  keep = np.asarray(keep, int)
  return Examples(
    examples.name,
    [examples.files[i] for i in keep],
    examples.labels[keep],
    functools.partial(_read_of, reader=examples.reader, keep=keep),
    None if examples.multi is None else examples.multi[keep],
  )


def _detect(root):
  if root is None:
    return 'toy'
  if os.path.lexists(root / 'labels.csv'):
    return 'csv'  # a link to nowhere is a mistake to tell, not a reason to look for folders
  return layouts.recognise(root) or ('parquet' if _parquet_files(root) else 'folders')


def _parquet_files(root):
  return sorted(path for path in root.glob('**/*.parquet') if path.is_file())


# Splits


@dataclasses.dataclass(frozen=True)
class _Table:
  """What a source found, all splits together."""

  files: list[str]
  labels: np.ndarray  # int32 [N, L]
  splits: list[str] | None  # per example; None where the source names none
  reader: Callable[[np.ndarray], Callable]  # rows -> the reader of these rows
  multi: np.ndarray | None = None  # int8 [N, M]


def _split(data, table, notes):
  of = (
    'each finest class'
    if table.multi is None
    else 'all, by combinations of classes (iterative stratification)'
  )
  splits, share = table.splits, f'a share of {data.val_share:g} of {of}, seed {data.split_seed}'

  def hold(rows, part):
    if not part:
      return set()
    if table.multi is None:
      return set(
        rows[
          stratified(table.labels[rows], [table.files[i] for i in rows], part, data.split_seed)
        ].tolist()
      )
    _, own = np.unique(
      table.labels[rows], axis=0, return_inverse=True
    )  # the exclusive path counts as one class more of each image
    parts = stratify.iterative(
      table.multi[rows],
      (1 - part, part),
      data.split_seed,
      [table.files[i] for i in rows],
      beside=np.where((table.labels[rows] >= 0).any(1), own.ravel(), -1),
    )
    return set(rows[parts == 1].tolist())

  other = next((s for s in ('valid', 'validation', 'dev') if s in (splits or ())), None)
  if other and data.val == 'val' and data.val not in splits:
    splits = ['val' if s == other else s for s in splits]
    notes.append(f'split {other!r} is called val here')
  names = list(dict.fromkeys(splits or ()))
  folded = {}
  for name in names:
    if (other := folded.setdefault(name.casefold(), name)) != name:
      raise UserError(f'{data.root}: the splits {other!r} and {name!r} differ only in case')
  if splits is None:
    rows = np.arange(len(table.files))
    test = hold(rows, data.test_share)
    val = hold(np.array([i for i in rows if i not in test]), data.val_share / (1 - data.test_share))
    splits = ['test' if i in test else data.val if i in val else data.train for i in rows]
    count, tested = (
      Counter(splits),
      f', {len(test)} test (a share of {data.test_share:g})' if data.test_share else '',
    )
    notes.append(
      f'split made: {count[data.train]} {data.train}, {count[data.val]} {data.val} ({share}){tested}, since the data name no split'
    )
  elif data.train in names and data.val not in names and data.val == 'val':
    rows = np.array([i for i, s in enumerate(splits) if s == data.train])
    held = hold(rows, data.val_share)
    splits = [data.val if i in held else s for i, s in enumerate(splits)]
    notes.append(
      f'split made: {len(held)} of the {len(rows)} {data.train} examples are {data.val} ({share}), since the data only have {", ".join(names)}'
    )
  groups = defaultdict(list)
  for i, name in enumerate(splits):
    groups[name].append(i)
  return {
    name: Examples(
      name,
      [table.files[i] for i in rows],
      table.labels[rows],
      table.reader(np.array(rows)),
      None if table.multi is None else table.multi[rows],
    )
    for name, rows in groups.items()
  }


def stratified(labels, files, share, seed) -> np.ndarray:
  """bool [N]: a share of each finest class (of each row of known labels where the finest is unknown), chosen by a hash of seed and file name, so that the
  order of the rows does not matter. Every class keeps at least one example; over all classes the numbers add up to the share."""
  held, due = np.zeros(len(files), bool), 0.0
  for rows in _classes(labels, files, seed):
    due += share * len(rows)
    take = max(0, min(round(due), len(rows) - 1))
    due -= take
    held[rows[:take]] = True
  return held


def _classes(labels, files, seed) -> list[list[int]]:
  """The examples of each finest class (of each row of known labels where the finest is unknown), in the order of a hash of seed and file name."""
  groups, labels = defaultdict(list), labels.tolist()
  for i in stratify.shuffled(files, seed):
    leaf = labels[i][-1:]
    groups[tuple(leaf) if leaf and leaf[0] >= 0 else tuple(labels[i])].append(i)
  return [groups[key] for key in sorted(groups)]


NOVEL = '_novel'  # behind a split's name: its images of classes that are held out


def held_out(text: str, taxonomy: Taxonomy, seed: int) -> np.ndarray:
  """bool [leaf]: the finest classes that `data.hold_out` names, items separated by ';'. A class of any level is named, with all below
  it; a share, .3 or 1/3, is of the finest classes below each class of the level above, chosen by a hash of seed and name: rounded, at least one, but one is
  kept. UserError for other words."""
  held, names = (
    np.zeros(len(taxonomy.paths), bool),
    {name for level in taxonomy.names for name in level},
  )
  parent = taxonomy.paths[:, -2] if len(taxonomy.levels) > 1 else np.zeros(len(held), int)
  order = np.array(stratify.shuffled(taxonomy.names[-1], seed))
  for item in filter(None, map(str.strip, text.split(';'))):
    if item in names:
      for k, level in enumerate(taxonomy.names):
        if item in level:
          held |= taxonomy.paths[:, k] == level.index(item)
      continue
    try:
      share = float(fractions.Fraction(item))
    except (ValueError, ZeroDivisionError):
      close = close_matches(item, sorted(names), 1)
      hint = f'; did you mean {close[0]!r}?' if close else ' and no share such as 1/3 or .3'
      raise UserError(
        f'--config.data.hold_out: {item!r} is no class of {", ".join(taxonomy.levels)}{hint} (several are separated by ;)'
      ) from None
    if not 0 < share < 1:
      raise UserError(f'--config.data.hold_out: the share {item} must be above 0 and below 1')
    for p in np.unique(parent):
      rows = order[parent[order] == p]
      held[rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]] = True
  if text.strip() and (held.all() or not held.any()):
    raise UserError(
      f'--config.data.hold_out={text}: holds out {"every class" if held.all() else "no class"} of {len(held)}; some must be held out, some left'
    )
  return held


def _hold_out(data, found) -> Dataset:
  """Without the classes of `data.hold_out`: the taxonomy lacks them, and each split's images of them are the split SPLIT_novel, which knows of their labels
  what is left of their path."""
  if not data.hold_out.strip():
    return found
  if found.taxonomy.multi:
    raise UserError(
      f'--config.data.hold_out={data.hold_out}: holds out classes of exclusive levels alone; {", ".join(found.taxonomy.multi)} (data.multi) '
      'must be left out of the data for it'
    )
  old, held = found.taxonomy, held_out(data.hold_out, found.taxonomy, data.split_seed)
  new = Taxonomy.from_rows(old.levels, [row for row, out in zip(old.rows(), held) if not out])
  ids = [
    np.array([*(new.names[k].index(n) if n in new.names[k] else -1 for n in names), -1])
    for k, names in enumerate(old.names)
  ]
  splits, notes = {}, list(found.notes)
  for name, examples in found.splits.items():
    if name + NOVEL in found.splits:
      raise UserError(
        f'--config.data.hold_out makes a split {name + NOVEL!r}, and the data have one of that name'
      )
    labels = np.stack([of[examples.labels[:, k]] for k, of in enumerate(ids)], 1).astype(np.int32)
    novel = ((examples.labels >= 0) & (labels < 0)).any(1)
    examples = dataclasses.replace(examples, labels=labels)
    for part, rows in ((name, np.flatnonzero(~novel)), (name + NOVEL, np.flatnonzero(novel))):
      if len(rows):
        splits[part] = subset(examples, rows)
    notes.append(
      f'{int(novel.sum())} of {len(novel)} {name} examples are of held-out classes (data.hold_out), the split {name + NOVEL}'
    )
  gone = [
    f'{before - after} of {before} {level}'
    for level, before, after in (
      (level, len(a), len(b)) for level, a, b in zip(old.levels, old.names, new.names)
    )
    if before > after
  ]
  return Dataset(new, splits, [*notes, f'held out (data.hold_out): {", ".join(gone)}'])


def _reduced(data, found) -> Dataset:
  """The splits with what `data.hold_out`, `data.limit`, `data.unlabelled` and `data.partial` take away."""
  found = _hold_out(data, found)
  splits, notes = dict(found.splits), list(found.notes)
  for name, examples in found.splits.items():
    if (
      0 < data.limit < len(examples.labels)
    ):  # every class in its proportion: those that stand first within theirs
      places = [
        ((k + 0.5) / len(rows), i)
        for rows in _classes(examples.labels, examples.files, data.split_seed)
        for k, i in enumerate(rows)
      ]
      splits[name] = subset(
        examples, sorted(i for _, i in sorted(places, key=lambda place: place[0])[: data.limit])
      )
      notes.append(f'{data.limit} of {len(examples.labels)} {name} examples are used (data.limit)')
  if data.train not in splits:
    return Dataset(found.taxonomy, splits, notes)
  examples = splits[data.train]
  if data.unlabelled:
    labels = examples.labels.copy()
    for rows in _classes(labels, examples.files, data.split_seed):
      labels[
        rows[len(rows) - int(data.unlabelled * len(rows)) :], -1
      ] = -1  # of each class one keeps its label
    hidden = int((labels != examples.labels).any(1).sum())
    notes.append(
      f'the finest label of {hidden} of {len(labels)} {data.train} examples is hidden (data.unlabelled)'
    )
    examples = splits[data.train] = dataclasses.replace(examples, labels=labels)
  if data.partial == 'drop' and (examples.labels[:, -1:] < 0).any():
    splits[data.train] = subset(examples, np.flatnonzero(examples.labels[:, -1] >= 0))
    notes.append(
      f'{len(examples.labels) - len(splits[data.train].labels)} {data.train} examples without a finest label are left out (data.partial)'
    )
  return Dataset(found.taxonomy, splits, notes)


def _read_of(i, *, reader, keep):
  return reader(int(keep[i]))


# CSV


def read_file(path) -> bytes:
  """The bytes of an image's file. OSError also for what is none: a named pipe would block for ever, a device never end, a film fill the memory."""
  found = os.stat(path)
  if not stat.S_ISREG(found.st_mode):
    raise OSError(errno.EINVAL, 'not a regular file')
  if found.st_size > MAX_BYTES:
    raise OSError(errno.EFBIG, f'has {found.st_size >> 20} MiB, more than any image')
  with open(path, 'rb') as f:
    return f.read()


def _read_file(i, *, root, files):
  return read_file(os.path.join(root, files[i]))


def _read_part(i, *, root, files, boxes, banner):
  return transforms.Part.of(read_file(os.path.join(root, files[i])), boxes[i], banner)


def file_reader(root, files, boxes=None, banner=0):
  """rows -> the reader of these rows; with boxes (or None for the whole) or a banner it reads transforms.Part."""
  if boxes is None and not banner:
    return lambda rows: functools.partial(
      _read_file, root=str(root), files=[files[i] for i in rows]
    )
  boxes = boxes or [None] * len(files)
  return lambda rows: functools.partial(
    _read_part,
    root=str(root),
    files=[files[i] for i in rows],
    boxes=[boxes[i] for i in rows],
    banner=banner,
  )


def _csv(data, root, taxonomy):
  """labels.csv: file, split, and a column per level, in which an empty cell is an unknown label: of an exclusive level one class, of a multi level a set of
  classes ('sea|sunset'; '-' = none of them); or, for multi levels, a column per class with 1, 0 or '' (unknown). What follows by the taxonomy is filled in."""
  path, notes = root / 'labels.csv', []
  columns, table = read_table(path)
  if 'file' not in columns:
    raise UserError(
      f'{path}:1: no column "file"{did_you_mean("file", columns)}; the columns are {", ".join(columns)}'
    )
  others = [c for c in columns if c not in ('file', 'split')]
  if not table:
    raise UserError(f'{path}:1: has no example below the header')
  taxonomy = _completed(
    data,
    path,
    others,
    [(f'{path}:{row}', dict(zip(columns, cells))) for row, cells in table],
    taxonomy,
    notes,
  )
  own, several = taxonomy.exclusive, taxonomy.several
  places = _places(several) if several else {}  # of a class's column in a row of M
  what, known = (
    ('level or class', [*taxonomy.levels, *places]) if several else ('level', taxonomy.levels)
  )
  for c in others:
    if c in known:
      continue
    if close := close_matches(c, [n for n in known if n not in columns]):
      raise UserError(
        f'{path}:1: column {c!r} is no {what} of the taxonomy (did you mean {close[0]!r}?)'
      )
    notes.append(
      f'{path.name}: column {c!r} is not used; the levels are {", ".join(taxonomy.levels)}'
    )
  places = {c: place for c, place in places.items() if c in others and c not in taxonomy.levels}
  sets = [level for level in several.levels if level in others] if several else []
  lacks = several and not places and not sets and several.levels
  if own and not {*own.levels} & {*others} and not (several and (taxonomy.above >= 0).any()):
    lacks = own.levels
  if lacks:
    of = f' of {", ".join(lacks)}' if own and several else ''
    raise UserError(
      f'{path}:1: no column of labels{of}; the levels are {", ".join(taxonomy.levels)}, the columns {", ".join(columns)}'
    )
  files, splits, rows, seen, ids, again = [], [], [], {}, {}, []
  labels, multi = (
    [],
    np.full((len(table), sum(map(len, several.names))), -1, np.int8) if several else None,
  )
  for row, cells in table:
    where, cell = f'{path}:{row}', dict(zip(columns, cells))
    file = _inside(cell['file'], where)
    read = [cell.get(c) for c in ('split', *taxonomy.levels, *places)]
    if file in seen:
      if seen[file][1] != read:
        raise UserError(
          f'{where}: {file} stands in row {seen[file][0]} already, with other labels or another split'
        )
      again.append(row)
      continue
    seen[file] = row, read
    if cell.get('split') == '':
      raise UserError(f'{where}: no split; give one to every row, or leave out the column "split"')
    if own:
      key = tuple(cell.get(l, '') for l in own.levels)
      if key not in ids:
        ids[key] = own.encode(cell, where)
        if not own.valid(ids[key][None])[0]:
          raise UserError(f'{where}: no row of the taxonomy has {_together(own, ids[key])}')
      labels.append(ids[key])
    for level in sets:
      if cell[level]:
        of = multi[len(files), several.columns[level]]
        of[:] = 0
        for name in _set(cell[level]):
          of[several.encode({level: name}, where)[several.index(level)]] = 1
    for c, place in places.items():
      if cell[c] not in ('0', '1', ''):
        raise UserError(
          f'{where}: column {c!r} holds {cell[c]!r}; a class has 1, 0 or nothing, a column of sets is named in --config.data.multi, and one '
          'of an exclusive level in taxonomy.csv'
        )
      if cell[c]:
        multi[len(files), place] = int(cell[c])
    files.append(file)
    splits.append(cell.get('split'))
    rows.append(row)
  labels = np.array(labels) if own else np.zeros((len(files), 0), np.int32)
  if several:
    labels, multi = _followed(
      taxonomy, labels, multi[: len(files)], [f'{path}:{row}' for row in rows]
    )
  else:
    labels = own.complete(labels)
  if again:
    notes.append(
      f'{path.name}: {len(again)} repeated rows are left out, the first is row {again[0]}'
    )
  _check_files(data, root, files, [f'{path}:{row}' for row in rows], notes)
  return (
    taxonomy,
    _Table(files, labels, splits if 'split' in columns else None, file_reader(root, files), multi),
    notes,
  )


def _completed(data, path, others, rows, taxonomy, notes):
  """The taxonomy with what labels.csv alone tells of it: all, where there is no taxonomy.csv, or a multi level that stands beside that one's. rows [(where,
  {column: cell})]."""
  names, words = split_names(getattr(data, 'multi', '')), level_words([])
  new = [n for n in names if taxonomy is None or n not in {*taxonomy.levels, *words}]
  if taxonomy and not new:
    return taxonomy
  if not others:
    raise UserError(f'{path}:1: no column of labels beside {", ".join(rows[0][1])}')
  own, several = taxonomy, None
  if new:
    if len(new) > 1 or (taxonomy and taxonomy.multi):
      raise UserError(
        f'--config.data.multi={data.multi}: several levels need {path.parent / "taxonomy.csv"}, which says what is below what'
      )
    level = 'class' if new[0] in words else new[0]
    classes = [c for c in others if c not in (taxonomy.levels if taxonomy else ())]
    if level in others:
      classes = sorted({n for _, cell in rows for n in _set(cell[level])})
      if not classes:
        raise UserError(f'{path}:1: column {level!r} names no class in any row')
    elif not classes or did_you_mean(level, others):
      raise UserError(
        f'--config.data.multi={data.multi}: no level {level!r}{did_you_mean(level, [*(taxonomy.levels if taxonomy else ()), *others])}; choices: '
        f'{", ".join([*(taxonomy.levels if taxonomy else ()), *words])}, or another column of {path.name}'
      )
    several = with_tags(Taxonomy.from_rows([level], [[n] for n in classes]), level)
    others = [c for c in others if c not in (level, *classes)]
  if taxonomy is None and others:
    own = derive(others, [(where, [cell[c] for c in others]) for where, cell in rows])
  found = [part for part in (own if taxonomy is None else None, several) if part]
  counts = ', '.join(f'{len(n)} {l}' for part in found for l, n in zip(part.levels, part.names))
  notes.append(
    f'taxonomy derived from {path.name} (no taxonomy.csv): {counts}'
    if taxonomy is None
    else f'{level} is no level of the taxonomy and stands beside it: {counts}, by {path.name}'
  )
  return (
    Mixed(own, several, np.full((len(classes), len(own.levels)), -1, np.int32))
    if own and several
    else own or several
  )


def _places(several):
  """Where each class of multi levels stands in a row of M: at the level where it ends, not where it is carried down to."""
  out = {}
  for level, names in zip(several.levels, several.names):
    for c, name in enumerate(names):
      out.setdefault(name, several.columns[level].start + c)
  return out


def _followed(taxonomy, labels, multi, where):
  """(labels, multi) with what follows filled in. UserError names the row that contradicts the taxonomy."""
  own, several, given = taxonomy.exclusive, taxonomy.several, labels
  if own:
    labels, multi = taxonomy.complete(labels, multi)
  else:
    multi = several.complete(multi)
  flat = [
    f'{level} {name!r}' for level, names in zip(several.levels, several.names) for name in names
  ]
  wrong = several.contradicts(multi)
  if len(bad := np.flatnonzero(wrong[:, 0] >= 0)):
    child, parent = wrong[bad[0]]
    raise UserError(
      f'{where[bad[0]]}: has {flat[child]} but not {flat[parent]}, under which the taxonomy has it'
    )
  if not own:
    return labels, multi
  wrong = (multi == 1) & ~taxonomy.fits(labels)
  if len(bad := np.flatnonzero(wrong.any(1))):
    i, child = bad[0], wrong[bad[0]].argmax()
    k = int(
      np.flatnonzero(
        (taxonomy.above[child] >= 0) & (taxonomy.above[child] != labels[i]) & (labels[i] >= 0)
      )[0]
    )
    level, name = own.levels[k], own.names[k][labels[i, k]]
    others = np.flatnonzero((multi[i] == 1) & (taxonomy.above[:, k] == labels[i, k]))
    by = f' by {flat[others[0]]}' if given[i, k] < 0 and len(others) else ''
    raise UserError(
      f'{where[i]}: has {flat[child]} but {level} {name!r}{by}; the taxonomy has it under {level} {own.names[k][taxonomy.above[child, k]]!r}'
    )
  if len(bad := np.flatnonzero(~own.valid(labels))):
    raise UserError(f'{where[bad[0]]}: no row of the taxonomy has {_together(own, labels[bad[0]])}')
  return labels, multi


def _together(taxonomy, labels):
  return (
    ', '.join(
      f'{level} {names[c]!r}'
      for level, names, c in zip(taxonomy.levels, taxonomy.names, labels)
      if c >= 0
    )
    + ' together'
  )


def _set(cell):
  """The names in a cell such as 'sea|sunset'; none in '-' and ''."""
  return [n.strip() for n in cell.split('|') if n.strip() and cell != '-']


def _inside(file, where):
  """The path as it stands under the root, with forward slashes."""
  if not file:
    raise UserError(f'{where}: the cell "file" is empty')
  path = posixpath.normpath(file.replace('\\', '/'))
  if posixpath.isabs(path) or path.startswith('..') or path[1:2] == ':':
    raise UserError(f"{where}: {file} leaves the root; paths are relative to the data set's folder")
  return path


def _check_files(data, root, files, where, notes):
  """Missing files: an error if strict or if most are missing (a wrong root), else they are counted like other unreadable images."""
  listed = {}

  def exists(file):
    folder, name = os.path.split(file)
    if folder not in listed:
      try:
        listed[folder] = set(os.listdir(os.path.join(root, folder)))
      except OSError:
        listed[folder] = set()
    return name in listed[folder]

  missing = [i for i, file in enumerate(files) if not exists(file)]
  if not missing:
    return
  file = files[missing[0]]
  near = [
    n
    for n in listed[os.path.dirname(file)]
    if n.rsplit('.', 1)[0].casefold() == os.path.basename(file).rsplit('.', 1)[0].casefold()
  ]
  near = near or close_matches(os.path.basename(file), listed[os.path.dirname(file)])
  text = f'{where[missing[0]]}: no file {file}' + (
    f' (did you mean {posixpath.join(os.path.dirname(file), near[0])}?)' if near else ''
  )
  if len(missing) > 1:
    text += f', and {len(missing) - 1} more of {len(files)} are missing'
  if data.strict or len(missing) * 2 > len(files):
    raise UserError(text)
  notes.append(text + '; they count as unreadable')


def derive(levels, rows) -> Taxonomy:
  """The taxonomy of labels: rows [(where, names per level)], '' unknown. Its classes are sorted by path. UserError names the row that contradicts another."""
  levels = list(levels)
  known, first = {}, {}
  for where, names in rows:
    if names[-1]:
      path = known.setdefault(names[-1], ['' for _ in levels])
      for k, name in enumerate(names):
        if name and path[k] and path[k] != name:
          raise UserError(
            f'{where}: {levels[-1]} {names[-1]!r} has {levels[k]} {name!r} here and {path[k]!r} in {first[names[-1], k]}; '
            'every finest class has one path'
          )
        if name and not path[k]:
          path[k] = name
          first[names[-1], k] = where
  paths = {tuple(p) for p in known.values()}
  for path in paths:
    if not all(path):
      k = path.index('')
      raise UserError(
        f'{first[path[-1], len(levels) - 1]}: {levels[-1]} {path[-1]!r} has no {levels[k]} in any row; give it in one, or write taxonomy.csv'
      )
  inner = [{p[k] for p in paths} for k in range(len(levels))]
  ends = {}
  for (
    where,
    names,
  ) in rows:  # a class that is never seen with a finer one is a branch that ends early
    depth = max((k + 1 for k, n in enumerate(names) if n), default=0)
    if 0 < depth < len(levels) and names[depth - 1] not in inner[depth - 1]:
      if not all(names[:depth]):
        raise UserError(
          f'{where}: {levels[depth - 1]} {names[depth - 1]!r} is in no complete row; write taxonomy.csv'
        )
      ends[tuple(names[:depth])] = True
  goes_on = {e[:k] for e in ends for k in range(1, len(e))}
  paths |= {e + ('',) * (len(levels) - len(e)) for e in ends if e not in goes_on}
  if not paths:
    raise UserError(f'{rows[0][0]}: no row has a label')
  return Taxonomy.from_rows(levels, sorted(paths))


# Folders


def _folders(data, root, taxonomy):
  """Nested class folders: ROOT/[SPLIT/]COARSE/.../FINE/image. The finest class is the deepest folder."""
  notes, found = [], []
  real = {
    str(root): {os.path.realpath(root)}
  }  # a folder's and those above it: a link back to one of them would never end
  for folder, inner, names in os.walk(root, followlinks=True):
    below, above = os.path.relpath(folder, root).replace(os.sep, '/'), real.pop(folder)
    targets = {
      d: os.path.realpath(os.path.join(folder, d)) for d in sorted(inner) if not d.startswith('.')
    }
    notes += [
      f'folder {posixpath.normpath(f"{below}/{d}")} is a link back to one above it and is left out'
      for d, to in targets.items()
      if to in above
    ]
    inner[:] = [d for d, to in targets.items() if to not in above]
    real |= {os.path.join(folder, d): above | {targets[d]} for d in inner}
    found += [
      (below, n)
      for n in sorted(names)
      if n.lower().endswith(IMAGE_SUFFIXES) and not n.startswith('.')
    ]
  if not found:
    raise UserError(
      f'{root}: no labels.csv, no *.parquet and no image in class folders ({" ".join(IMAGE_SUFFIXES[:4])} ...)'
    )
  parts = [() if folder == '.' else tuple(folder.split('/')) for folder, _ in found]
  tops = {p[0] for p in parts if p}
  splits, known = None, {*SPLIT_FOLDERS, data.train, data.val}
  if tops and all(t in known or t.lower() in known for t in tops) and all(parts):
    splits, parts = [p[0] if p[0] in known else p[0].lower() for p in parts], [p[1:] for p in parts]
  if loose := [
    f'{folder}/{name}'.removeprefix('./') for (folder, name), p in zip(found, parts) if not p
  ]:
    raise UserError(
      f'{root}: {loose[0]} is in no class folder'
      + (f', nor are {len(loose) - 1} more' if len(loose) > 1 else '')
    )
  depth = max(map(len, parts))
  inner = {p[:k] for p in parts for k in range(1, len(p))}
  if taxonomy is None:
    levels = (
      ('class',)
      if depth == 1
      else ('superclass', 'class')
      if depth == 2
      else tuple(f'level{k}' for k in range(1, depth)) + ('class',)
    )
    ends = {p for p in parts if p not in inner}
    names = _qualified(ends)
    taxonomy = Taxonomy.from_rows(
      levels, sorted([*p[:-1], names[p]] + [''] * (depth - len(p)) for p in ends)
    )
    notes.append(
      f'taxonomy from folders: {", ".join(f"{len(n)} {l}" for l, n in zip(levels, taxonomy.names))}'
    )
  else:
    if depth > len(taxonomy.levels):
      deep = '/'.join(next(p for p in parts if len(p) == depth))
      raise UserError(
        f'{root}: folder {deep} is {depth} levels deep, the taxonomy has {len(taxonomy.levels)}: {", ".join(taxonomy.levels)}'
      )
    names = _qualified({p for p in parts if p not in inner})
  ids = {p: _encode_folder(taxonomy, p, names, '/'.join(p), root) for p in dict.fromkeys(parts)}
  labels = taxonomy.complete(np.array([ids[p] for p in parts]))
  if coarse := [p for p in ids if p in inner]:
    notes.append(
      f'folder {"/".join(coarse[0])} holds images beside class folders: known at its own level only'
      + (f' (so do {len(coarse) - 1} more)' if len(coarse) > 1 else '')
    )
  files = [posixpath.normpath(f'{folder}/{name}') for folder, name in found]
  return taxonomy, _Table(files, labels, splits, file_reader(root, files)), notes


def _qualified(ends):
  """Folder paths -> names of finest classes: the folder's, with as many parents before it as make it unique among them."""
  names = {}
  for k in range(1, max(map(len, ends), default=0) + 1):
    count = Counter(p[-k:] for p in ends if p not in names)
    taken = set(names.values())
    for p in sorted(ends):
      if p not in names and count[p[-k:]] == 1 and '/'.join(p[-k:]) not in taken:
        names[p] = '/'.join(p[-k:])
  return names


def _encode_folder(taxonomy, path, names, shown, root):
  """Labels of a class folder: its path's names at the first levels, or only its own name where the tree has fewer folders than levels."""
  if path in names:
    for name in dict.fromkeys(
      (names[path], path[-1], '/'.join(path))
    ):  # the taxonomy may or may not qualify its names
      if name in taxonomy.names[-1]:
        row = taxonomy.paths[taxonomy.names[-1].index(name)]
        if all(parent in {taxonomy.names[k][c] for k, c in enumerate(row)} for parent in path[:-1]):
          return row
    if len(path) == 1 or len(path) == len(taxonomy.levels):
      close = close_matches(path[-1], taxonomy.names[-1])
      wrong = 'is under another parent' if path[-1] in taxonomy.names[-1] else 'is not in it'
      hint = '' if path[-1] in taxonomy.names[-1] or not close else f' (did you mean {close[0]!r}?)'
      raise UserError(
        f'{root}: folder {shown}: {taxonomy.levels[-1]} {path[-1]!r} does not agree with the taxonomy: it {wrong}{hint}'
      )
  return taxonomy.encode(dict(zip(taxonomy.levels, path)), f'{root}: folder {shown}')


# Parquet


def _parquet(data, root, taxonomy):
  """SPLIT.parquet, SPLIT-00000-of-00001.parquet or SPLIT/0000.parquet with img {bytes, path} and LEVEL_label or LEVEL per level: names, or integers in the
  taxonomy's order."""
  notes, paths = [], _parquet_files(root)
  if not paths:
    raise UserError(f'{root}: no *.parquet')
  stores = [_store(path) for path in paths]
  splits = [path.name.removesuffix('.parquet').split('-')[0] for path in paths]
  if all(split.isdecimal() for split in splits):
    splits = [path.parent.name for path in paths]  # the hub's own conversion: SPLIT/0000.parquet
  columns = stores[0][1]['columns']
  for path, (_, meta) in zip(paths, stores):
    if set(meta['columns']) != set(columns):
      raise UserError(
        f'{path}: its columns ({", ".join(meta["columns"])}) are not those of {paths[0].name}'
      )
  labels = {c.removesuffix('_label'): c for c in columns}
  if taxonomy is None:
    labels = {l: c for l, c in labels.items() if c.endswith('label')}
    if not labels:
      raise UserError(
        f'{paths[0]}: no column LEVEL_label ({", ".join(columns)}); to use others as levels, write {root / "taxonomy.csv"}'
      )
    levels = sorted(
      labels, key=lambda l: len({v for _, m in stores for v in m['columns'][labels[l]]['names']})
    )  # coarse ones have fewer classes
    values = [_names(stores, labels[l]) for l in levels]
    taxonomy = derive(levels, [(str(root), row) for row in dict.fromkeys(zip(*values))])
    notes.append(
      f'taxonomy derived from Parquet: {", ".join(f"{len(n)} {l}" for l, n in zip(taxonomy.levels, taxonomy.names))}'
    )
  if not set(labels) & set(taxonomy.levels):
    raise UserError(
      f'{paths[0]}: no column of labels; the levels are {", ".join(taxonomy.levels)}, the columns {", ".join(columns)}'
    )
  if unused := [labels[l] for l in labels if l not in taxonomy.levels]:
    notes.append(f'Parquet columns {", ".join(unused)} are not used')
  ids = np.concatenate(
    [
      _parquet_labels(path, folder, meta, labels, taxonomy)
      for path, (folder, meta) in zip(paths, stores)
    ]
  )
  bad = np.flatnonzero(~taxonomy.valid(ids))
  ends = np.cumsum([m['rows'] for _, m in stores])
  if len(bad):
    file = int(np.searchsorted(ends, bad[0], side='right'))
    row = bad[0] - (ends[file - 1] if file else 0)
    raise UserError(
      f'{paths[file]}: row {row + 1}: labels {ids[bad[0]].tolist()} contradict the taxonomy ({", ".join(taxonomy.levels)})'
    )
  table = _Table(
    [f'{path.name}:{i}' for path, (_, m) in zip(paths, stores) for i in range(m['rows'])],
    taxonomy.complete(ids),
    [s for s, (_, m) in zip(splits, stores) for _ in range(m['rows'])],
    lambda rows: functools.partial(
      _read_store, folders=tuple(str(f) for f, _ in stores), ends=ends, rows=rows
    ),
  )
  if len(set(splits)) == 1 and splits[0] not in {*SPLIT_FOLDERS, data.train, data.val}:
    table = dataclasses.replace(table, splits=None)
  return taxonomy, table, notes


def _names(stores, column):
  """Class names of a column, per example."""
  out = []
  for folder, meta in stores:
    names = meta['columns'][column]['names']
    width = len(str(max(map(int, names)))) if meta['columns'][column]['bare'] and names else 0
    names = [n.zfill(width) for n in names]  # integers without names: sorted as numbers
    out += [names[v] if v >= 0 else '' for v in np.load(folder / f'{column}.npy')]
  return out


def _parquet_labels(path, folder, meta, labels, taxonomy):
  """int32 [N, L]"""
  out = np.full((meta['rows'], len(taxonomy.levels)), -1, np.int32)
  for k, level in enumerate(taxonomy.levels):
    if level not in labels:
      continue
    column = meta['columns'][labels[level]]
    names = column['names']
    if column['bare']:  # integers without names stand in the order of the taxonomy
      lookup = np.array([int(n) for n in names], np.int64)
      if len(lookup) and (lookup.max() >= len(taxonomy.names[k]) or lookup.min() < 0):
        raise UserError(
          f'{path}: {labels[level]} goes from {lookup.min()} to {lookup.max()}, the taxonomy has {len(taxonomy.names[k])} classes of {level}'
        )
    else:
      lookup = np.array([taxonomy.encode({level: n}, str(path))[k] for n in names], np.int64)
    values = np.load(folder / f'{labels[level]}.npy')
    out[:, k] = np.where(values < 0, -1, np.append(lookup, -1)[values])
  return out


def cache_folder() -> pathlib.Path:
  """Where converted data lie: $XDG_CACHE_HOME/hierjax or ~/.cache/hierjax. Deleting it costs a conversion."""
  return (
    pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache') / 'hierjax'
  )


def _store(path):
  """(folder, its meta.json) of a Parquet file's copy for random access, made once: images.bin (all bytes), ends.npy, one COLUMN.npy of codes per column.
  The key is the file's path, size and time; the folder appears whole or not at all."""
  stat = path.stat()
  key = hashlib.sha256(
    f'1:{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}'.encode()
  ).hexdigest()[:24]
  folder = cache_folder() / 'parquet' / key
  if not folder.exists():
    try:
      folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(
        f'{folder.parent}: no place for the copy of {path.name} ({error.strerror}); set XDG_CACHE_HOME'
      ) from None
    draft = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix='draft-'))
    try:
      _convert(path, draft)
      draft.rename(folder)
    except OSError:
      if not folder.exists():
        raise  # else another process was faster
    finally:
      shutil.rmtree(draft, ignore_errors=True)
  return folder, json.loads((folder / 'meta.json').read_text())


def _convert(path, folder):
  import pyarrow.parquet  # takes .2 s, and only Parquet needs it

  try:
    file = pyarrow.parquet.ParquetFile(path)
  except (ValueError, OSError) as error:
    raise UserError(f'{path}: cannot be read as Parquet ({str(error).splitlines()[0]})') from None
  columns = file.schema_arrow.names
  image = next((c for c in IMAGE_COLUMNS if c in columns), None)
  if image is None:
    raise UserError(
      f'{path}: no column of images ({", ".join(IMAGE_COLUMNS)}); the columns are {", ".join(columns)}'
    )
  kinds = {f.name: f.type for f in file.schema_arrow}
  plain = [
    c
    for c in columns
    if c != image
    and any(
      t(kinds[c])
      for t in (
        pyarrow.types.is_integer,
        pyarrow.types.is_string,
        pyarrow.types.is_large_string,
        pyarrow.types.is_dictionary,
      )
    )
  ]
  described = _described(path, file.schema_arrow.metadata or {})
  values, ends, end = {c: [] for c in plain}, [], 0
  with open(folder / 'images.bin', 'wb') as out:
    for batch in _parquet_batches(path, file, [image, *plain]):
      for item in batch[image]:
        data = (item or {}).get('bytes') if isinstance(item, dict) or item is None else item
        if not isinstance(data, bytes | None):
          raise UserError(
            f'{path}: column {image!r} holds {type(data).__name__}, not the bytes of images'
          )
        out.write(data or b'')  # an empty one is met as an unreadable image, by its row
        end += len(data or b'')
        ends.append(end)
      for c in plain:
        values[c] += batch[c]
  meta = {'rows': len(ends), 'columns': {}}
  if not end:
    raise UserError(f'{path}: column {image!r} holds no bytes')
  for c in plain:
    names, bare = described.get(c), False
    if names and (high := max((v for v in values[c] if isinstance(v, int)), default=-1)) >= len(
      names
    ):
      raise UserError(f'{path}: {c} goes up to {high}, but it has only {len(names)} names')
    if not names or pyarrow.types.is_integer(kinds[c]) is False:
      found = {v for v in values[c] if v is not None and v != '' and (isinstance(v, str) or v >= 0)}
      bare = pyarrow.types.is_integer(kinds[c])
      names = sorted(found)
      codes = {v: i for i, v in enumerate(names)}
      values[c] = [codes.get(v, -1) for v in values[c]]
    np.save(folder / f'{c}.npy', np.array([-1 if v is None else v for v in values[c]], np.int32))
    meta['columns'][c] = {'names': [str(n) for n in names], 'bare': bare}
  np.save(folder / 'ends.npy', np.array(ends, np.int64))
  (folder / 'meta.json').write_text(json.dumps(meta))


def _described(path, metadata):
  """{column: names of its classes}, as the hub writes them into the file."""
  try:
    features = json.loads(metadata.get(b'huggingface', b'{}')).get('info', {}).get('features', {})
    return {
      c: list(f['names']) for c, f in features.items() if isinstance(f, dict) and f.get('names')
    }
  except (ValueError, AttributeError, TypeError) as error:
    raise UserError(
      f'{path}: what the hub says of its columns (metadata "huggingface") is damaged ({error})'
    ) from None


def _parquet_batches(path, file, columns):
  """Yields {column: list of values}."""
  try:
    for batch in file.iter_batches(256, columns=columns):
      yield {c: batch.column(c).to_pylist() for c in columns}
  except (
    OSError,
    ValueError,
    MemoryError,
  ) as error:  # Arrow's are kinds of these; a damaged page may say any size
    raise UserError(
      f'{path}: is damaged or was cut short ({str(error).splitlines()[0][:200]})'
    ) from None


@functools.lru_cache(maxsize=64)
def _mapped(folder):
  return np.memmap(f'{folder}/images.bin', np.uint8, 'r'), np.load(f'{folder}/ends.npy')


def _read_store(i, *, folders, ends, rows):
  row = int(rows[i])
  file = int(np.searchsorted(ends, row, side='right'))
  row -= int(ends[file - 1]) if file else 0
  data, stops = _mapped(folders[file])
  return data[stops[row - 1] if row else 0 : stops[row]].tobytes()


# Published data sets


def _layout(data, root, taxonomy, *, source):
  """A data set in its original layout, its classes in its own order, or in those of a taxonomy whose last level names them."""
  layout = layouts.read(source, data.root if source == 'tfds' else root, data.crop_boxes)
  notes = layout.notes
  if taxonomy is None:
    taxonomy = Taxonomy.from_rows(layout.levels, layout.classes)
    notes.append(
      f'taxonomy of {source}: {", ".join(f"{len(n)} {l}" for l, n in zip(taxonomy.levels, taxonomy.names))}'
    )
  labels = np.append(layout.paths(taxonomy), np.full((1, len(taxonomy.levels)), -1, np.int32), 0)[
    layout.labels
  ]
  reader, boxes = layout.reader, None
  if reader is None:
    files = [_inside(file, where) for file, where in zip(layout.files, layout.where)]
    for split in dict.fromkeys(
      layout.splits
    ):  # each by itself: one archive of several may not be there
      rows = [i for i, s in enumerate(layout.splits) if s == split]
      _check_files(data, root, [files[i] for i in rows], [layout.where[i] for i in rows], notes)
    if data.crop_boxes:
      m = data.crop_margin
      boxes = [
        (l - m * (r - l), t - m * (b - t), r + m * (r - l), b + m * (b - t))
        for l, t, r, b in layout.boxes
      ]
    reader = file_reader(root, files, boxes, layout.banner)
  return taxonomy, _Table(layout.files, labels, layout.splits, reader), notes


LOADERS = {
  'csv': _csv,
  'folders': _folders,
  'parquet': _parquet,
  **{name: functools.partial(_layout, source=name) for name in layouts.LAYOUTS},
}
