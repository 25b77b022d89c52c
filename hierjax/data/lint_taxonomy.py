"""Checks of a taxonomy that training does not need: trees with mistakes, similar names, counts.

A CSV does not say whether two columns are levels of a tree or facets. Where nearly all classes of a
level have one class of a coarser level, the two are a tree, and the exceptions are mistakes.
"""

import dataclasses
import graphlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from hierjax.core.errors import and_more
from hierjax.data.findings import Findings
from hierjax.data.near_duplicates import near_duplicates
from hierjax.taxonomy import Taxonomy, homonyms

Rows = Sequence[tuple[int, Sequence[str]]]


@dataclasses.dataclass
class Origin:
  """Where the classes of a taxonomy stand.

  Attributes:
    path: the file; another name for a taxonomy without rows.
    rows: (row number or 0, names per level).
    first: {(level index, name): the first row with it}.
  """

  path: str
  rows: Rows

  def __post_init__(self):
    self.first: dict[tuple[int, str], int] = {}
    for row, cells in self.rows:
      for k, name in enumerate(cells):
        if name:
          self.first[k, name] = min(row, self.first.get((k, name), row))

  def where(self, row: int) -> str:
    """'FILE:ROW'; the file alone for row 0."""
    return f'{self.path}:{row}' if row else self.path


def check(taxonomy: Taxonomy, origin: Origin, findings: Findings) -> tuple[dict, list[str]]:
  """Check the structure and the names of a taxonomy.

  Args:
    taxonomy: of exclusive levels.
    origin: the rows that it is made of.
    findings: receives the findings.

  Returns:
    A summary that fits into JSON, and lines for people.
  """
  trees = set()  # numbers of levels, of which the second nests in the first but for few mistakes
  for i, j in itertools.combinations(range(len(taxonomy.levels)), 2):
    nests = taxonomy.parents(taxonomy.levels[j], taxonomy.levels[i]) >= 0
    if homonyms.is_tree(nests, np.bincount(taxonomy.paths[:, j], minlength=len(nests))):
      trees.add((i, j))
  for text, row in find_cycles(origin.rows, trees):
    findings.add('error', origin.where(row), 'cycle', text)
  _check_parents(taxonomy, origin, trees, findings)
  _check_names(taxonomy, origin, findings)
  return _describe(taxonomy, origin, trees, findings)


def _check_parents(taxonomy, origin, trees, findings):
  """Report classes under several classes of the nearest level above them in a tree."""
  for j in range(1, len(taxonomy.levels) - 1):
    i = next((i for i in range(j - 1, -1, -1) if (i, j) in trees), None)
    if i is None:
      continue
    child, parent = taxonomy.levels[j], taxonomy.levels[i]
    for c in np.flatnonzero(taxonomy.parents(child, parent) < 0):
      name, first = taxonomy.names[j][c], {}
      for row, cells in origin.rows:
        if cells[j] == name and cells[i]:
          first.setdefault(cells[i], row)
      places = ', '.join(f'{p!r}{row_words(r)}' for p, r in itertools.islice(first.items(), 4))
      text = f'{child} {name!r} stands under {len(first)} {plural(parent)}: {places}'
      findings.add('error', origin.where(list(first.values())[1]), 'two parents', text)


def _check_names(taxonomy, origin, findings):
  """Report similar names in a level, and names that several levels have."""
  first, rows = origin.first, defaultdict(list)
  for k, level in enumerate(taxonomy.levels):
    # a name that is carried down was looked at where its branch ends
    names = [name for name in taxonomy.names[k] if (k, name) in first]
    for pair in near_duplicates(names):
      a, b = sorted(pair[:2], key=lambda name: first[k, name])
      text = f'{level} {b!r} and {a!r}{row_words(first[k, a])} {pair[2]}'
      findings.add('warning', origin.where(first[k, b]), 'near-duplicate names', text)
  for (k, name), row in first.items():
    rows[name].append((k, row))
  for name, places in rows.items():
    if len(places) > 1:
      levels = [f'{taxonomy.levels[k]}{row_words(row)}' for k, row in sorted(places)]
      where = origin.where(max(row for _, row in places))
      text = f'{name!r} is a class of {" and ".join(levels)}'
      findings.add('note', where, 'one name at several levels', text)


def find_cycles(rows: Rows, trees: set[tuple[int, int]]) -> Iterator[tuple[str, int]]:
  """Find names that stand above and below each other in levels that form a tree.

  Args:
    rows: (row number, names per level).
    trees: pairs of level indices (parent, child); facets say nothing about above.

  Yields:
    A text and its last row, for each cycle.
  """
  below = defaultdict(dict)  # name -> {name below it: row}
  for row, cells in rows:
    for i, j in trees:
      if cells[i] and cells[j] and cells[i] != cells[j]:
        below[cells[i]].setdefault(cells[j], row)
  while True:
    try:
      graphlib.TopologicalSorter(below).prepare()
      return
    except graphlib.CycleError as error:
      cycle = error.args[1][::-1]
    steps = [(a, b, below[a][b]) for a, b in itertools.pairwise(cycle)]
    text = ', '.join(f'{a!r} above {b!r}{row_words(row)}' for a, b, row in steps)
    yield f'is its own ancestor: {text}', max(row for _, _, row in steps)
    for name in cycle:
      below.pop(name, None)
      for lower in below.values():
        lower.pop(name, None)


def _describe(taxonomy, origin, trees, findings):
  """The summary and lines of `check`: sizes, relations of levels, classes without siblings."""
  levels = taxonomy.levels
  counts = {level: len(names) for level, names in zip(levels, taxonomy.names)}
  sizes = ', '.join(f'{n} {plural(level, n)}' for level, n in counts.items())
  lines, pairs, single = [f'{origin.path}: {sizes}'], {}, {}
  for i, j in itertools.combinations(range(len(levels)), 2):
    a, b = levels[i], levels[j]
    n, kind = len(taxonomy.pairs(a, b)), 'facets'
    if (i, j) in trees or taxonomy.nests(b, a):
      kind = 'nested' if taxonomy.nests(b, a) else 'nested with exceptions'
    pairs[f'{a}-{b}'] = {'pairs': n, 'kind': kind}
    if kind == 'facets':
      lines.append(
        f'  {a} and {b} are facets, neither is above the other: {n} {a}-{b} pairs occur of '
        f'{counts[a] * counts[b]}'
      )
  for i, level in enumerate(levels[:-1]):
    child = next(c for c in levels[i + 1 :] if taxonomy.nests(c, level))
    ends_below = ~taxonomy.carried(child)
    children = np.bincount(taxonomy.parents(child, level)[ends_below], minlength=counts[level])
    names = [taxonomy.names[i][c] for c in np.flatnonzero(children == 1)]
    single[level] = {'child': child, 'count': len(names)}
    if names:
      lines.append(f'  {len(names)} one-{child} {plural(level, len(names))}')
      text = f'{len(names)} of {counts[level]} {plural(level)} have one {child}: {and_more(names)}'
      where = origin.where(min(origin.first[i, name] for name in names))
      findings.add('note', where, 'classes with no sibling', text)
  early = int((taxonomy.depth < len(levels)).sum())
  if early:
    lines.append(f'  {early} branches end early')
  summary = {'levels': counts, 'pairs': pairs, 'single_child': single, 'early': early}
  return summary | {'hash': taxonomy.hash()}, lines


def row_words(row: int) -> str:
  """' (row 3)'; '' for row 0."""
  return f' (row {row})' if row else ''


def plural(level: str, n: int = 2) -> str:
  """Return the English plural of a level's name.

  Args:
    level: the name.
    n: the number of classes.
  """
  if n == 1 or (level.endswith('s') and not level.endswith('ss')):
    return level
  if level.endswith('y') and level[-2:-1] not in 'aeiou':
    return level[:-1] + 'ies'
  return level + ('es' if level.endswith(('ss', 'x', 'ch', 'sh')) else 's')
