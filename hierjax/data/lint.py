"""Checks a taxonomy, a labels file and the images before anything is trained on them; every finding names its row."""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
import posixpath
import re
import unicodedata
import warnings
from collections.abc import Callable

import numpy as np

from hierjax.core.errors import UserError
from hierjax.data import sources, transforms
from hierjax.taxonomy import Taxonomy, check_rows, close_matches, read_levels, read_table

SEVERITIES = ('error', 'warning', 'note')


@dataclasses.dataclass(frozen=True)
class Problem:
  """One finding; where is 'FILE:ROW' (or 'FILE'), rows as an editor counts them."""

  severity: str  # error: training would be wrong or stop; warning: look at it; note: good to know
  where: str
  kind: str
  text: str


@dataclasses.dataclass
class Report:
  """What lint() found: problems in the order found, a summary that fits into JSON, and text() for people."""

  problems: list[Problem]
  summary: dict
  headlines: list[str]

  @property
  def counts(self) -> dict[str, int]:
    """severity -> number of problems."""
    return {s: sum(p.severity == s for p in self.problems) for s in SEVERITIES}

  def text(self, limit: int = 20) -> str:
    """The summary, then the problems by severity and kind, at most `limit` lines a kind; the last line counts them."""
    lines = list(self.headlines)
    groups = collections.defaultdict(list)
    for p in sorted(self.problems, key=lambda p: SEVERITIES.index(p.severity)):
      groups[p.severity, p.kind].append(p)
    for (severity, kind), members in groups.items():
      lines += ['', f'{severity}: {kind} ({len(members)})']
      lines += [f'  {p.where}: {p.text}' for p in members[:limit]]
      if len(members) > limit:
        lines.append(f'  and {len(members) - limit} more')
    counts = ', '.join(f'{n} {s}{"" if n == 1 else "s"}' for s, n in self.counts.items())
    return '\n'.join([*lines, '', counts])


def lint(
  taxonomy_csv,
  labels_csv=None,
  root=None,
  *,
  images: bool = True,
  train: str = 'train',
  threads: int | None = None,
) -> Report:
  """Checks a taxonomy and, where given, a labels file (columns file, split, one per level) and the files that it names below root.

  taxonomy_csv: None = derived from the labels. root: the folder of labels.csv where not given. images=False neither opens nor compares
  files. train: the split that the others are held against. Nothing raises: what cannot be read is an error in the report.
  """
  report = Report([], {}, [])
  found = (
    _taxonomy(taxonomy_csv, report) if taxonomy_csv is not None else _derived(labels_csv, report)
  )
  if found and labels_csv is not None:
    root = pathlib.Path(root) if root else pathlib.Path(labels_csv).parent
    rows = _labels(labels_csv, *found, taxonomy_csv or labels_csv, train, report)
    _compare(_below(rows, root, images, report), found[0], images, threads, report)
  return report


def from_config(data, *, images: bool = True) -> Report:
  """lint() of the data that `config.data` names, whatever their source; only a CSV has rows to name, others are told by file."""
  root = pathlib.Path(data.root).expanduser() if data.root else None
  path = data.taxonomy or (
    root / 'taxonomy.csv' if root and (root / 'taxonomy.csv').exists() else None
  )
  if not data.multi and (
    data.source == 'csv'
    or (data.source == 'auto' and root and os.path.lexists(root / 'labels.csv'))
  ):
    if root is None:
      raise UserError('--config.data.source=csv needs --config.data.root=FOLDER')
    return lint(path, root / 'labels.csv', root, images=images, train=data.train)
  if root is None and path and not data.multi:
    return lint(path)
  report = Report([], {}, [])
  found, name = _taxonomy(path, report) if path and not data.multi else None, str(root or 'toy')
  if path and not found and not data.multi:
    return report
  try:
    dataset = sources.load(data)
  except UserError as e:
    report.problems.append(Problem('error', name, 'data', str(e)))
    return report
  own = dataset.taxonomy.exclusive
  if not found and own:
    found = _structure(own.levels, [(0, cells) for cells in own.rows()], name, report)
  report.headlines += [f'  {note}' for note in dataset.notes]
  rows = [
    _Row(
      f'{name}/{file}' if root else file,
      0,
      file,
      split,
      label,
      functools.partial(examples.reader, i),
    )
    for split, examples in dataset.splits.items()
    for i, (file, label) in enumerate(zip(examples.files, examples.labels))
  ]
  if not rows:
    report.problems.append(Problem('error', name, 'data', 'no images'))
    return report
  if own:
    _coverage(found[0], found[1], rows, data.train, path or name, report, name)
  if dataset.taxonomy.several:
    _several(dataset, name, report)
  _compare([[r] for r in rows], own or dataset.taxonomy, images, None, report)
  return report


def _several(dataset, name, report):
  """How many images have each class of multi levels."""
  t = dataset.taxonomy.several
  for split, examples in dataset.splits.items():
    for (level, place), names in zip(t.columns.items(), t.names):
      there = (examples.multi[:, place] == 1).sum(0).tolist()
      report.headlines.append(
        f'  {split}, {len(examples.files)} images, {level}: '
        + ', '.join(f'{n} {k}' for n, k in zip(names, there))
      )
      report.problems += [
        Problem('warning', name, 'class without images', f'{level} {n!r} is in no image of {split}')
        for n, k in zip(names, there)
        if not k
      ]


# The taxonomy.


def _taxonomy(path, report):
  """(taxonomy of the sound rows, {(level index, name): first row}), or None."""
  try:
    return _structure(*read_levels(path), path, report)
  except UserError as e:
    report.problems.append(_unreadable_table(path, e))
    return None


def _derived(path, report):
  """The same from a labels file alone; the row of a class is the first that names it."""
  try:
    columns, table = read_table(path)
    levels = [c for c in columns if c not in ('file', 'split')]
    cells = [(row, [cells[columns.index(level)] for level in levels]) for row, cells in table]
    if not levels or not table:
      raise UserError(f'{path}:1: has no {"rows" if levels else "column of labels"}')
    rows = sources.derive(levels, [(f'{path}:{row}', names) for row, names in cells]).rows()
  except UserError as e:
    report.problems.append(_unreadable_table(path, e))
    return None
  first = {}
  for row, names in cells:
    first.setdefault(next((n for n in reversed(names) if n), ''), row)
  return _structure(
    levels, [(first[next(n for n in reversed(names) if n)], names) for names in rows], path, report
  )


def _structure(levels, rows, path, report):
  def add(severity, row, kind, text):
    report.problems.append(Problem(severity, _at(path, row), kind, text))

  wrong = check_rows(levels, rows)
  for row, kind, text in wrong:
    add('error', row, kind, text)
  bad = {row for row, _, _ in wrong}
  sound = [cells for row, cells in rows if row not in bad]
  if not sound:
    if not rows:
      add('error', 1, 'empty', 'has no class below the header')
    return None
  tax = Taxonomy.from_rows(levels, sound)
  first = {}
  for row, cells in rows:
    for k, name in enumerate(cells):
      if name:
        first[k, name] = min(
          row, first.get((k, name), row)
        )  # derived rows stand in the order of the classes
  trees = {
    (i, j) for i, j in itertools.combinations(range(len(levels)), 2) if _mostly_nests(tax, j, i)
  }
  for text, row in _cycles(rows, trees):
    add('error', row, 'cycle', text)
  for j in range(1, len(levels) - 1):
    i = next(
      (i for i in range(j - 1, -1, -1) if (i, j) in trees), None
    )  # the nearest level that this one hangs on
    if i is not None:
      for c in np.flatnonzero(tax.parents(levels[j], levels[i]) < 0):
        name = tax.names[j][c]
        seen = {}
        for row, cells in rows:
          if cells[j] == name and cells[i]:
            seen.setdefault(cells[i], row)
        places = ', '.join(f'{p!r}{_row(r)}' for p, r in itertools.islice(seen.items(), 4))
        add(
          'error',
          list(seen.values())[1],
          'two parents',
          f'{levels[j]} {name!r} stands under {len(seen)} {_many(levels[i])}: {places}',
        )
  for k in range(len(levels)):
    named = [
      name for name in tax.names[k] if (k, name) in first
    ]  # a carried name is the affair of its own level
    for a, b, why in near_duplicates(named):
      a, b = sorted((a, b), key=lambda n: first[k, n])
      add(
        'warning',
        first[k, b],
        'near-duplicate names',
        f'{levels[k]} {b!r} and {a!r}{_row(first[k, a])} {why}',
      )
  everywhere = collections.defaultdict(list)
  for (k, name), row in first.items():
    everywhere[name].append((k, row))
  for name, places in everywhere.items():
    if len(places) > 1:
      where = ' and '.join(f'{levels[k]}{_row(row)}' for k, row in sorted(places))
      add(
        'note',
        max(row for _, row in places),
        'one name at several levels',
        f'{name!r} is a class of {where}',
      )
  _describe(tax, path, trees, first, report, add)
  return tax, first


def _describe(tax, path, trees, first, report, add):
  levels = tax.levels
  counts = {level: len(names) for level, names in zip(levels, tax.names)}
  report.headlines.append(
    f'{path}: ' + ', '.join(f'{n} {_many(level, n)}' for level, n in counts.items())
  )
  pairs = {}
  for i, j in itertools.combinations(range(len(levels)), 2):
    a, b = levels[i], levels[j]
    n = int(tax.relation(a, b).sum())
    kind = (
      'nested' if tax.nests(b, a) else 'nested with exceptions' if (i, j) in trees else 'facets'
    )
    pairs[f'{a}-{b}'] = {'pairs': n, 'kind': kind}
    if kind == 'facets':
      report.headlines.append(
        f'  {a} and {b} are facets, neither is above the other: {n} {a}-{b} pairs occur of {counts[a] * counts[b]}'
      )
  single = {}
  for i, level in enumerate(levels[:-1]):
    child = next(k for k in range(i + 1, len(levels)) if tax.nests(levels[k], level))
    own = ~tax.carried(levels[child])
    children = np.bincount(tax.parents(levels[child], level)[own], minlength=counts[level])
    lonely = [tax.names[i][c] for c in np.flatnonzero(children == 1)]
    single[level] = {'child': levels[child], 'count': len(lonely)}
    if lonely:
      report.headlines.append(f'  {len(lonely)} one-{levels[child]} {_many(level, len(lonely))}')
      add(
        'note',
        min(first[i, n] for n in lonely),
        'classes with no sibling',
        f'{len(lonely)} of {counts[level]} {_many(level)} have one {levels[child]}: {_some(lonely)}',
      )
  early = int((tax.depth < len(levels)).sum())
  if early:
    report.headlines.append(f'  {early} branches end early')
  report.summary |= {
    'levels': counts,
    'pairs': pairs,
    'single_child': single,
    'early': early,
    'hash': tax.hash(),
  }


def _mostly_nests(tax, j, i):
  """Whether level j hangs on level i like a tree, a few mistakes aside; only classes with two leaves or more can show that."""
  nested = tax.parents(tax.levels[j], tax.levels[i]) >= 0
  several = np.bincount(tax.paths[:, j], minlength=len(nested)) > 1
  bad = int((~nested).sum())
  return bool(nested.any()) and (bad < (nested & several).sum() or bad <= max(1, len(nested) // 10))


def _cycles(rows, trees):
  """Yields (text, row) for names that stand above and below each other; columns that are facets say nothing about above."""
  above = collections.defaultdict(dict)  # name -> {name below: row}
  for row, cells in rows:
    for i, j in trees:
      if cells[i] and cells[j] and cells[i] != cells[j]:
        above[cells[i]].setdefault(cells[j], row)
  core = dict(above)
  while True:  # what has nobody below it within the rest is in no cycle
    rest = {a: {b: row for b, row in below.items() if b in core} for a, below in core.items()}
    rest = {a: below for a, below in rest.items() if below}
    if len(rest) == len(core):
      break
    core = rest
  told = set()
  for start in core:
    if start in told:
      continue
    back, queue = {}, collections.deque([start])
    while queue and start not in back:
      node = queue.popleft()
      for below in core.get(node, {}):
        if below not in back:
          back[below] = node
          queue.append(below)
    if start in back:
      chain = [start]
      while len(chain) < 2 or chain[-1] != start:
        chain.append(back[chain[-1]])
      chain = chain[::-1]
      told |= set(chain)
      steps = [(a, b, core[a][b]) for a, b in itertools.pairwise(chain)]
      yield (
        'is its own ancestor: ' + ', '.join(f'{a!r} above {b!r}{_row(row)}' for a, b, row in steps),
        max(row for _, _, row in steps),
      )


def near_duplicates(names):
  """[(a, b, why)]: pairs that differ in case, accents, spaces and punctuation, or by a slip in one long word without digits."""
  folded, words = collections.defaultdict(list), {}
  for name in names:
    plain = ''.join(
      c for c in unicodedata.normalize('NFKD', name.casefold()) if not unicodedata.combining(c)
    )
    words[name] = re.findall(r'[^\W_]+', plain) or [name]
    folded[''.join(words[name])].append(name)
  out = [
    (a, b, 'differ in case, accents, spaces or punctuation')
    for group in folded.values()
    for a, b in itertools.combinations(group, 2)
  ]
  masked = collections.defaultdict(dict)  # the name with one word left out -> {that word: name}
  for group in folded.values():
    for i, word in enumerate(words[group[0]]):
      if len(word) >= 5 and not re.search(r'\d', word):
        masked[i, *words[group[0]][:i], None, *words[group[0]][i + 1 :]][word] = group[0]
  for slot in masked.values():
    if len(slot) < 2:
      continue
    near = collections.defaultdict(list)
    for word in slot:
      for part in _deletions(word, 2 if len(word) >= 10 else 1):
        near[part].append(word)
    pairs = {tuple(sorted(p)) for group in near.values() for p in itertools.combinations(group, 2)}
    for a, b in sorted(pairs):
      slips = 2 if min(len(a), len(b)) >= 10 else 1
      if (
        max(len(a), len(b)) >= 6 and a[0] == b[0] and edit_distance(a, b) <= slips
      ):  # mouse and house are no slip
        out.append((slot[a], slot[b], 'are nearly the same'))
  return out


def _deletions(word, n):
  out = {word}
  for _ in range(n):
    out |= {w[:i] + w[i + 1 :] for w in out for i in range(len(w))}
  return out


def edit_distance(a: str, b: str) -> int:
  """Insertions, deletions, substitutions and swaps of neighbours that turn a into b (optimal string alignment)."""
  before, row = [], list(range(len(b) + 1))
  for i, x in enumerate(a, 1):
    older, before, row = before, row, [i]
    for j, y in enumerate(b, 1):
      row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
      if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
        row[j] = min(row[j], older[j - 2] + 1)
  return row[-1]


# The labels.


@dataclasses.dataclass(eq=False)
class _Row:
  where: str
  row: int  # 0 where there are no rows
  file: str
  split: str
  label: np.ndarray  # int32 [level], completed
  read: Callable[[], bytes | np.ndarray] | None = None

  def __str__(self):
    return f'{self.file!r} ({f"row {self.row}, " if self.row else ""}{self.split or "no split"})'


def _labels(path, tax, first, taxonomy_csv, train, report):
  """The rows of a labels file."""

  def add(severity, row, kind, text):
    report.problems.append(Problem(severity, f'{path}:{row}', kind, text))

  try:
    columns, table = read_table(path)
  except UserError as e:
    report.problems.append(_unreadable_table(path, e))
    return []
  if 'file' not in columns:
    add('error', 1, 'columns', f'has no column "file"; its columns are {", ".join(columns)}')
    return []
  given = [level for level in tax.levels if level in columns]
  for column in columns:
    if column not in ('file', 'split', *tax.levels):
      close = close_matches(column, [level for level in tax.levels if level not in given])
      add(
        'warning' if close else 'note',
        1,
        'columns',
        f'column {column!r} is not a level and not read'
        + (f'; did you mean {close[0]!r}?' if close else ''),
      )
  if not given:
    add('error', 1, 'columns', f"has no column of the taxonomy's levels {', '.join(tax.levels)}")
    return []
  for level in tax.levels:
    if level not in given:
      add(
        'note',
        1,
        'columns',
        f'has no column {level!r}: it is known only where a finer level determines it',
      )
  if not table:
    add('error', 1, 'empty', 'names no image')
    return []
  labels = np.full((len(table), len(tax.levels)), -1, np.int32)
  ids = [{name: c for c, name in enumerate(names)} for names in tax.names]
  unknown = collections.defaultdict(list)
  for n, (row, cells) in enumerate(table):
    record = dict(zip(columns, cells))
    for k, level in enumerate(tax.levels):
      name = record.get(level)
      if name and name in ids[k]:
        labels[n, k] = ids[k][name]
      elif name:
        unknown[k, name].append(row)
  for (k, name), where in unknown.items():
    close = close_matches(name, tax.names[k])
    times = f' ({len(where)} rows)' if len(where) > 1 else ''
    add(
      'error',
      where[0],
      'label not in the taxonomy',
      f'{tax.levels[k]} {name!r}{times}'
      + (f'; close: {", ".join(map(repr, close))}' if close else ''),
    )
  for n in np.flatnonzero(~tax.valid(labels)):
    add('error', table[n][0], 'label contradicts the taxonomy', _contradiction(tax, labels[n]))
  unlabelled = [
    table[n][0]
    for n in np.flatnonzero((labels < 0).all(1))
    if not any(dict(zip(columns, table[n][1]))[g] for g in given)
  ]
  if unlabelled:
    add(
      'warning',
      unlabelled[0],
      'no label',
      f'{len(unlabelled)} rows have no label at any level (rows {_some(map(str, unlabelled), 10)})',
    )
  splits = [dict(zip(columns, cells)).get('split', '') for _, cells in table]
  if '' in splits and any(splits):
    add(
      'warning',
      table[splits.index('')][0],
      'no split',
      f'{splits.count("")} rows name no split, the others do',
    )
  rows = [
    _Row(f'{path}:{row}', row, dict(zip(columns, cells))['file'], split, label)
    for (row, cells), split, label in zip(table, splits, tax.complete(labels))
  ]
  _coverage(tax, first, rows, train, taxonomy_csv, report, path)
  return rows


def _coverage(tax, first, rows, train, taxonomy_csv, report, name):
  """How many images and unknown labels; classes without images: in no split, in train but not elsewhere, elsewhere but not in train."""

  def add(severity, where, kind, text):
    report.problems.append(Problem(severity, where, kind, text))

  labels, splits = np.array([r.label for r in rows]), np.array([r.split for r in rows])
  sizes = {s: int((splits == s).sum()) for s in dict.fromkeys(splits.tolist())}
  report.headlines.append(
    f'{name}: {len(rows)} images: '
    + ', '.join(f'{s or "(no split)"} {n}' for s, n in sizes.items())
  )
  unknown = {level: int((labels[:, k] < 0).sum()) for k, level in enumerate(tax.levels)}
  report.headlines += [f'  {level} unknown: {n}' for level, n in unknown.items() if n]
  report.summary |= {'splits': sizes, 'unknown': unknown}
  for k, level in enumerate(tax.levels):

    def has(where, k=k):
      return np.bincount(labels[where & (labels[:, k] >= 0), k], minlength=len(tax.names[k])) > 0

    some = has(np.ones(len(labels), bool))
    if not some.any():
      continue
    own = ~tax.carried(level)  # a carried class was looked at where it ended
    for c in np.flatnonzero(~some & own):
      add(
        'warning',
        _at(taxonomy_csv, first[k, tax.names[k][c]]),
        'classes with no image',
        f'{level} {tax.names[k][c]!r}',
      )
    if train not in sizes:
      continue
    trained = has(splits == train)
    for split in sizes:
      if split == train:
        continue
      here = has(splits == split)
      for c in np.flatnonzero(here & ~trained & own):
        n = np.flatnonzero((splits == split) & (labels[:, k] == c))
        add(
          'warning',
          rows[n[0]].where,
          f'classes that {train} never has',
          f'{level} {tax.names[k][c]!r} is in {split or "(no split)"} ({len(n)} images) but not in {train}',
        )
      absent = [tax.names[k][c] for c in np.flatnonzero(trained & ~here & own)]
      if absent and here.any():
        add(
          'note',
          _at(taxonomy_csv, first[k, absent[0]]),
          f'classes that {split or "(no split)"} never has',
          f'{len(absent)} of {int(trained.sum())} {_many(level)}: {_some(absent)}',
        )


def _contradiction(tax, label):
  last, leaf = tax.levels[-1], label[-1]
  if leaf >= 0:
    path = tax.paths[leaf]
    k = int(np.flatnonzero((label >= 0) & (label != path))[0])
    return (
      f'{tax.levels[k]} {tax.names[k][label[k]]!r} does not fit {last} {tax.names[-1][leaf]!r}, whose {tax.levels[k]} is '
      f'{tax.names[k][path[k]]!r}'
    )
  known = ' and '.join(
    f'{level} {tax.names[k][c]!r}' for k, (level, c) in enumerate(zip(tax.levels, label)) if c >= 0
  )
  return f'no {last} has {known}'


# The images.


def _below(rows, root, look, report):
  """Groups of rows that name the same file below the root; with `look` only files that are there."""

  def add(row, kind, text):
    report.problems.append(Problem('error', row.where, kind, text))

  files = {}
  for r in rows:
    path = posixpath.normpath(r.file.replace('\\', '/'))
    if not r.file:
      add(r, 'no file', 'the column "file" is empty')
    elif posixpath.isabs(path) or path.split('/')[0] == '..' or path[1:2] == ':':
      add(r, 'path leaves the root', f'{r.file!r} is not a path below {root}')
    else:
      r.read = functools.partial(sources.read_file, root / path)
      files.setdefault(path, []).append(r)
  if look:
    missing = {f for f in files if not os.path.lexists(root / f)}
    report.summary['files'] = {'named': len(files), 'missing': len(missing)}
    listing = functools.cache(lambda folder: os.listdir(folder) if folder.is_dir() else [])
    if len(missing) == len(files) > 1:
      one = next(iter(files.values()))[0]
      add(
        one,
        'missing files',
        f'none of {len(files)} files is below {root} (such as {one.file!r}); is the root right?',
      )
    else:
      for f in files:
        if f in missing:
          near = [
            n
            for n in listing((root / f).parent)
            if n.casefold() == posixpath.basename(f).casefold()
          ]
          add(
            files[f][0],
            'missing files',
            f'{files[f][0].file!r}' + (f'; there is {near[0]!r}' if near else ''),
          )
    files = {f: group for f, group in files.items() if f not in missing}
  return list(files.values())


def _compare(groups, tax, look, threads, report):
  """Reads each group's image, then tells the unreadable ones and those that occur more than once."""
  if look:
    with (
      warnings.catch_warnings(),
      concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count()) as pool,
    ):
      warnings.simplefilter('ignore')  # Pillow's about odd metadata, which name no file
      read = list(pool.map(_digest, (group[0].read for group in groups)))
    same, unreadable = collections.defaultdict(list), 0
    for group, (digest, wrong) in zip(groups, read):
      if wrong:
        unreadable += 1
        report.problems.append(
          Problem('error', group[0].where, 'unreadable images', f'{group[0].file!r}: {wrong}')
        )
      if digest:
        same[digest] += group
    groups = same.values()
    files = report.summary['files'] = (
      {'named': len(read), 'missing': 0}
      | report.summary.get('files', {})
      | {'unreadable': unreadable}
    )
    report.headlines.append(
      f'  {files["named"]} files: {files["missing"]} missing, {unreadable} unreadable'
    )
  for group in groups:
    if len(group) < 2:
      continue
    group = sorted(group, key=lambda r: r.row)
    one, others = (
      group[0],
      ', '.join(map(str, group[1:5])) + (f' and {len(group) - 5} more' if len(group) > 5 else ''),
    )
    same = 'has the same bytes as' if len({r.file for r in group}) > 1 else 'is named again:'
    text = f'{one} {same} {others}'
    if clash := _clash(group, tax):
      report.problems.append(
        Problem(
          'error', group[-1].where, 'duplicate images with different labels', f'{text}; {clash}'
        )
      )
    if len({r.split for r in group}) > 1:
      report.problems.append(Problem('error', group[-1].where, 'leak', text))
    elif not clash:
      report.problems.append(Problem('warning', group[-1].where, 'duplicate images', text))


def _clash(group, tax):
  """What two labels of one image disagree on, or ''."""
  for k in range(len(tax.levels) - 1, -1, -1):
    seen = {}
    for r in group:
      if r.label[k] >= 0:
        seen.setdefault(int(r.label[k]), r)
    if len(seen) > 1:
      return f'{tax.levels[k]} ' + ' against '.join(
        f'{tax.names[k][c]!r} ({f"row {r.row}" if r.row else r.file})'
        for c, r in itertools.islice(seen.items(), 3)
      )
  return ''


def _digest(read):
  """(sha256 or None, what is wrong or None) of an image, decoded in full as training does: a header may be sound and the rest cut off."""
  try:
    data = read()
  except OSError as e:
    return None, e.strerror
  if not len(data):
    return None, 'is empty'
  digest = hashlib.sha256(data if isinstance(data, bytes) else np.ascontiguousarray(data)).digest()
  try:
    transforms.decode(data)
  except transforms.BrokenImage as e:
    return digest, f'cannot be decoded ({e})'
  return digest, None


# Words.


def _at(path, row):
  return f'{path}:{row}' if row else str(path)


def _row(number):
  return f' (row {number})' if number else ''


def _unreadable_table(path, error):
  told = re.fullmatch(r'(?::(\d+))?: (.*)', str(error).removeprefix(str(path)), re.DOTALL)
  row, text = told.groups() if told else (None, str(error))
  return Problem('error', _at(path, row), 'unreadable table', text)


def _some(names, n=20):
  names = list(names)
  return ', '.join(names[:n]) + (f' and {len(names) - n} more' if len(names) > n else '')


def _many(level, n=2):
  """The plural of a level's name, for people."""
  if n == 1 or (level.endswith('s') and not level.endswith('ss')):
    return level
  if level.endswith('y') and level[-2:-1] not in 'aeiou':
    return level[:-1] + 'ies'
  return level + ('es' if level.endswith(('ss', 'x', 'ch', 'sh')) else 's')
