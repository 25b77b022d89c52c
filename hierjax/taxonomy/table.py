"""A taxonomy is a table: one row per finest class, one column per level, coarse to fine.

A tree is the case where the columns nest; facets (make x type) are columns that do not; an empty cell is a branch that ends early.
Labels, heads, losses, decoding, metrics and reports are functions of this table, and nothing else in the code holds the hierarchy.

Levels are exclusive, one class an example, or multi, any number of them. A `Taxonomy` is of one kind; with both, there are two and `Mixed` holds them and what
of the one lies below what of the other. Either has `exclusive` and `several`, the taxonomy of each kind or None, so that nobody needs to ask which it is.
"""

import csv
import dataclasses
import difflib
import functools
import hashlib
import io
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from hierjax.core import files
from hierjax.core.config import resolve_levels
from hierjax.core.errors import UserError


def close_matches(name: str, choices: Iterable[str], n: int = 3) -> list[str]:
  """Up to n choices that look like the name, best first; case is ignored."""
  folded = {}
  for c in choices:
    folded.setdefault(c.casefold(), c)
  return [folded[m] for m in difflib.get_close_matches(name.casefold(), folded, n, 0.6)]


def read_table(path) -> tuple[list[str], list[tuple[int, list[str]]]]:
  """Reads a CSV as (columns, [(row, cells)]); row is the line an editor shows, the header's is 1.

  A byte order mark, CRLF, quotes and spaces around a cell are tolerated, blank lines are skipped, short rows are filled with empty cells.
  UserError: no such file, not UTF-8, zero bytes, empty, a column without a name or twice, a row with more cells than the header.
  """
  file = pathlib.Path(path)
  if file.exists() and not file.is_file():  # reading a named pipe would wait for ever
    raise UserError(f'{path}: cannot be read (not a regular file)')
  try:
    text = file.read_bytes().decode('utf-8-sig')
  except OSError as e:
    raise UserError(f'{path}: cannot be read ({e.strerror})') from None
  except UnicodeDecodeError as e:
    raise UserError(f'{path}: is not UTF-8 text (byte {e.start}); save it as "CSV UTF-8"') from None
  if '\0' in text:
    raise UserError(
      f'{path}:{text.count(chr(10), 0, text.index(chr(0))) + 1}: holds zero bytes: it is damaged, or no text'
    )
  reader, rows, last = csv.reader(io.StringIO(text, newline='')), [], 0
  try:
    for cells in reader:
      rows.append(
        (last + 1, [c.strip() for c in cells])
      )  # a quoted cell may span lines: the row starts where the last one ended
      last = reader.line_num
  except csv.Error as e:
    raise UserError(f'{path}:{last + 1}: is not CSV ({e})') from None
  rows = [(row, cells) for row, cells in rows if any(cells)]
  if not rows:
    raise UserError(f'{path}:1: is empty; the first row names the columns')
  header_row, columns = rows[0]
  for i, column in enumerate(columns):
    if not column:
      raise UserError(f'{path}:{header_row}: column {i + 1} of the header has no name')
    if column in columns[:i]:
      raise UserError(f'{path}:{header_row}: column {column!r} stands twice in the header')
  if len(columns) == 1 and any(s in columns[0] for s in ';\t'):
    raise UserError(
      f'{path}:{header_row}: one column {columns[0]!r}; cells are separated by commas here, not semicolons or tabs'
    )
  table = []
  for row, cells in rows[1:]:
    if any(cells[len(columns) :]):
      raise UserError(
        f'{path}:{row}: has {len(cells)} cells, the header {len(columns)}; a name with a comma stands in double quotes'
      )
    table.append((row, (cells + [''] * len(columns))[: len(columns)]))
  return columns, table


def read_levels(path) -> tuple[list[str], list[tuple[int, list[str]]]]:
  """read_table() of a taxonomy; UserError where the header is missing or is that of a labels file."""
  levels, rows = read_table(path)
  for column in ('file', 'split'):
    if column in levels:
      raise UserError(
        f'{path}:1: column {column!r} belongs into labels.csv; a taxonomy has a row per finest class, a column per level'
      )
  for k, level in enumerate(levels):
    again = next((row for row, cells in rows if cells[k] == level), None)
    if again is not None:
      raise UserError(
        f'{path}:1: the header is missing: {level!r} is a class in row {again}; the first row names the levels'
      )
  return levels, rows


def faults(
  levels: Sequence[str], rows: Iterable[tuple[int, Sequence[str]]]
) -> list[tuple[int, str, str]]:
  """What keeps rows [(row number, cells)] from being a taxonomy: [(row, kind, text)]; without the rows named here the rest is one."""
  out, kept, finest = [], [], {}
  for row, cells in rows:
    named = [bool(c) for c in cells]
    depth = sum(named)
    if not depth:
      out.append((row, 'empty row', 'names no class'))
    elif not all(named[:depth]):
      gap = named.index(False)
      after = next(i for i in range(gap, len(named)) if named[i])
      out.append(
        (
          row,
          'gap',
          f'{levels[gap]} is empty before {levels[after]} {cells[after]!r}; only the end of a row may be empty',
        )
      )
    else:
      leaf = cells[depth - 1]
      if leaf in finest:
        first, others = finest[leaf]
        if list(others) == list(cells):
          out.append(
            (
              row,
              'duplicate row',
              f'repeats row {first} ({levels[-1]} {leaf!r}); every finest class has one row',
            )
          )
        else:
          a, b = ' / '.join(others[:-1]), ' / '.join(cells[:-1])
          out.append(
            (
              row,
              'two parents',
              f'{levels[-1]} {leaf!r} stands under {b!r} here and under {a!r} in row {first}; '
              'every finest class has one row',
            )
          )
      else:
        finest[leaf] = row, cells
        kept.append((row, cells, depth))
  # A class that ends stands at every deeper level too: there nobody else may be called the same, and nothing may go on below it.
  used = {}
  for row, cells, depth in kept:
    for k in range(depth):
      goes_on = depth > k + 1
      used.setdefault((k, cells[k]), {}).setdefault(goes_on, row)
  for row, cells, depth in kept:
    if depth == len(levels):
      continue
    end = cells[depth - 1]
    below = used.get((depth - 1, end), {}).get(True)
    if below is not None:
      out.append(
        (
          row,
          'ends and goes on',
          f'{levels[depth - 1]} {end!r} ends here but goes on in row {below}',
        )
      )
      continue
    for k in range(depth, len(levels)):
      if (k, end) in used:
        other = min(used[k, end].values())
        out.append(
          (
            row,
            'ends and goes on',
            f'{levels[depth - 1]} {end!r} ends here, and {levels[k]} of row {other} has the same name',
          )
        )
        break
  return sorted(out)


@dataclasses.dataclass(frozen=True)
class Block:
  """Neighbouring levels of one kind: 'exclusive' (one class an example) or 'tags' (any number).

  Attributes:
    kind: 'exclusive' or 'tags'.
    taxonomy: the table of these levels alone.
    columns: their place in an example's row of labels: for exclusive levels one column a level
      with the class id, for tags one column a class with 0 or 1; -1 is unknown.
  """

  kind: str
  taxonomy: 'Taxonomy'
  columns: slice

  @property
  def levels(self) -> tuple[str, ...]:
    """The names of the block's levels, coarse to fine."""
    return self.taxonomy.levels


class _Levels:
  """What a taxonomy of one kind and a mixed one share: both have levels, names, multi and rows()."""

  @functools.cached_property
  def blocks(self) -> tuple[Block, ...]:
    """The levels as blocks of one kind each, exclusive ones first, as a row of labels has them."""
    blocks, start = [], 0
    for table in filter(None, (self.exclusive, self.several)):
      kind = 'tags' if table.multi else 'exclusive'
      width = sum(map(len, table.names)) if table.multi else len(table.levels)
      blocks.append(Block(kind, table, slice(start, start + width)))
      start += width
    return tuple(blocks)

  def block(self, kind: str) -> Block | None:
    """The block of a kind, None where no level is of it."""
    return next((block for block in self.blocks if block.kind == kind), None)

  def to_csv(self, path) -> None:
    """Writes what load() reads back as the same taxonomy."""
    out = io.StringIO()
    csv.writer(out, lineterminator='\n').writerows([list(self.levels), *self.rows()])
    files.write(path, out.getvalue())

  def hash(self) -> str:
    """sha256 (hex) of levels and rows, order included: equal hashes mean equal class ids."""
    return hashlib.sha256(
      json.dumps(
        [list(self.levels), self.rows(), *([list(self.multi)] if self.multi else [])]
      ).encode()
    ).hexdigest()

  def __repr__(self):
    return (
      f'{type(self).__name__}('
      + ', '.join(f'{level} {len(names)}' for level, names in zip(self.levels, self.names))
      + ')'
    )

  def index(self, level: str) -> int:
    """Position of a level, coarsest 0; UserError for an unknown one."""
    if level not in self.levels:
      raise UserError(f'taxonomy: no level {level!r}; the levels are {", ".join(self.levels)}')
    return self.levels.index(level)

  def num_classes(self, level: str) -> int:
    """Number of classes of a level."""
    return len(self.names[self.index(level)])


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Taxonomy(_Levels):
  """The path table. The id of a finest class is its row; a branch that ends early carries its last class down to the deeper levels."""

  levels: tuple[str, ...]  # coarse to fine
  names: tuple[
    tuple[str, ...], ...
  ]  # names[k][c]; the last level in the order of the file, the others sorted
  paths: np.ndarray  # int32 [leaf, level], dense; paths[:, -1] == arange(leaf)
  depth: np.ndarray  # int32 [leaf], named levels: len(levels) unless the branch ends early
  multi: tuple[
    str, ...
  ] = ()  # the levels of which an example may have any number of classes: all or none

  # In and out.

  @classmethod
  def from_csv(cls, path) -> 'Taxonomy':
    """Reads one row per finest class; UserError 'FILE:ROW: ...' names what is wrong."""
    levels, rows = read_levels(path)
    return cls._from_rows(tuple(levels), rows, f'{path}:')

  @classmethod
  def from_rows(cls, levels: Sequence[str], rows: Iterable[Sequence[str]]) -> 'Taxonomy':
    """From names, one row of len(levels) cells per finest class ('' = the branch has ended); rows count from 1 in errors."""
    return cls._from_rows(
      tuple(levels),
      [(i, [str(c).strip() for c in row]) for i, row in enumerate(rows, 1)],
      'taxonomy row ',
    )

  @classmethod
  def _from_rows(cls, levels, rows, where):
    if not levels or len(set(levels)) < len(levels):
      raise UserError(f'taxonomy: levels must be named, each once: {list(levels)}')
    for row, cells in rows:
      if len(cells) != len(levels):
        raise UserError(f'{where}{row}: has {len(cells)} cells for {len(levels)} levels')
    if wrong := faults(levels, rows):
      more = f' (and {len(wrong) - 1} more; --mode=lint lists them)' if len(wrong) > 1 else ''
      raise UserError(f'{where}{wrong[0][0]}: {wrong[0][2]}{more}')
    if not rows:
      raise UserError(f'{where}1: has no class below the header')
    depth = np.array([sum(map(bool, cells)) for _, cells in rows], np.int32)
    dense = [
      [cells[min(k, d - 1)] for k in range(len(levels))] for (_, cells), d in zip(rows, depth)
    ]
    columns = list(zip(*dense))
    names = tuple(tuple(sorted(set(column))) for column in columns[:-1]) + (columns[-1],)
    ids = [{name: i for i, name in enumerate(ns)} for ns in names]
    paths = np.array([[i[name] for name in column] for i, column in zip(ids, columns)], np.int32).T
    return cls(levels, names, np.ascontiguousarray(paths), depth)

  def rows(self) -> list[list[str]]:
    """The table in names, as the CSV has it: '' below the end of a branch."""
    return [
      [self.names[k][c] if k < d else '' for k, c in enumerate(path)]
      for path, d in zip(self.paths.tolist(), self.depth)
    ]

  # Levels and classes.

  @property
  def exclusive(self) -> 'Taxonomy | None':
    """The taxonomy of the exclusive levels."""
    return None if self.multi else self

  @property
  def several(self) -> 'Taxonomy | None':
    """The taxonomy of the multi levels."""
    return self if self.multi else None

  @functools.cached_property
  def _ids(self) -> tuple[dict[str, int], ...]:
    return tuple({name: i for i, name in enumerate(names)} for names in self.names)

  def encode(self, row: Mapping[str, str], where: str = '') -> np.ndarray:
    """Names to ids, int32 [level]; '' or an absent level is -1 (unknown). UserError, prefixed with `where`, for an unknown name."""
    out = np.full(len(self.levels), -1, np.int32)
    for k, level in enumerate(self.levels):
      name = (row.get(level) or '').strip()
      if name:
        out[k] = self._ids[k].get(name, -2)
        if out[k] == -2:
          close = close_matches(name, self.names[k])
          hint = (
            f'; did you mean {" or ".join(map(repr, close))}?'
            if close
            else f'; it has {len(self.names[k])} classes'
          )
          raise UserError(
            f'{where}{": " if where else ""}{level} {name!r} is not in the taxonomy{hint}'
          )
    return out

  def carried(self, level: str) -> np.ndarray:
    """bool [class]: classes that a branch which ended above carries down to this level; each has one leaf."""
    k = self.index(level)
    out = np.zeros(len(self.names[k]), bool)
    out[self.paths[self.depth <= k, k]] = True
    return out

  # Relations.

  def relation(self, a: str, b: str) -> np.ndarray:
    """bool [C_a, C_b]: whether some leaf has both classes."""
    i, j = self.index(a), self.index(b)
    out = np.zeros((len(self.names[i]), len(self.names[j])), bool)
    out[self.paths[:, i], self.paths[:, j]] = True
    return out

  def parents(self, child: str, parent: str) -> np.ndarray:
    """int32 [C_child]: the one class of level `parent` that a class comes with, -1 where it comes with several."""
    i, j = self.index(child), self.index(parent)
    low = np.full(len(self.names[i]), len(self.names[j]), np.int32)
    high = np.full(len(self.names[i]), -1, np.int32)
    np.minimum.at(low, self.paths[:, i], self.paths[:, j])
    np.maximum.at(high, self.paths[:, i], self.paths[:, j])
    return np.where(low == high, low, -1).astype(np.int32)

  def nests(self, child: str, parent: str) -> bool:
    """Whether every class of `child` has one class of `parent`."""
    return bool((self.parents(child, parent) >= 0).all())

  def siblings(self, by: str | Sequence[str]) -> np.ndarray:
    """bool [leaf, leaf]: other leaves with the same class at level `by`, or at each of several levels; 'both' = all coarser levels."""
    if by == 'both' and by not in self.levels:
      by = self.levels[:-1]
    out = ~np.eye(len(self.paths), dtype=bool)
    for level in (by,) if isinstance(by, str) else by:
      column = self.paths[:, self.index(level)]
      out &= column[:, None] == column
    return out

  def lca(self, a, b) -> np.ndarray:
    """int: number of levels at which leaves a and b (broadcast) differ; in a tree the height of their lowest common ancestor."""
    return (self.paths[a] != self.paths[b]).sum(-1)

  def lca_heights(self) -> np.ndarray:
    """int32 [leaf, leaf]: lca() of every pair of leaves."""
    out = np.zeros((len(self.paths),) * 2, np.int32)
    for column in np.ascontiguousarray(self.paths.T):
      out += column[:, None] != column
    return out

  # Labels: int [N, level], -1 unknown.

  def _leaves(self, labels):
    """Yields (indices into labels, bool [n, leaf] leaves that agree with the known labels) for blocks of distinct rows."""
    rows, inverse = np.unique(labels, axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind='stable')
    ends = np.searchsorted(inverse.ravel()[order], np.arange(len(rows) + 1))
    step = max(1, 10_000_000 // len(self.paths))
    for start in range(0, len(rows), step):
      block = rows[start : start + step]
      fits = np.ones((len(block), len(self.paths)), bool)
      for k in range(len(self.levels)):
        fits &= (block[:, k, None] < 0) | (block[:, k, None] == self.paths[:, k])
      stop = start + len(block)
      members = order[ends[start] : ends[stop]]
      yield members, fits, inverse.ravel()[members] - start

  def valid(self, labels) -> np.ndarray:
    """bool [N]: whether some leaf has all the known classes of a row."""
    labels = np.asarray(labels)
    leaf = labels[:, -1]
    out = ((labels < 0) | (labels == self.paths[leaf])).all(
      -1
    )  # the finest class, where known, fixes the path
    rest = np.flatnonzero((leaf < 0) & (labels >= 0).any(-1))
    for members, fits, row in self._leaves(labels[rest]):
      out[rest[members]] = fits.any(-1)[row]
    return out

  def complete(self, labels) -> np.ndarray:
    """int32 [N, level]: fills unknown labels that the known finer ones determine, and those below a class that ends early.

    Labels that contradict each other stay as they are.
    """
    labels = np.array(labels, np.int32).reshape(-1, len(self.levels))
    for k in range(
      len(self.levels) - 1
    ):  # a class that has ended is the same class at every deeper level
      leaf = np.full(len(self.names[k]), -1, np.int32)
      ended = self.depth <= k + 1
      leaf[self.paths[ended, k]] = np.flatnonzero(ended)
      known = np.flatnonzero(labels[:, k] >= 0)
      known = known[leaf[labels[known, k]] >= 0]
      path = self.paths[leaf[labels[known, k]], k + 1 :]
      labels[known, k + 1 :] = np.where(labels[known, k + 1 :] < 0, path, labels[known, k + 1 :])
    for k in range(len(self.levels) - 2, -1, -1):
      finer = labels.copy()
      finer[:, : k + 1] = -1
      rows = np.flatnonzero((labels[:, k] < 0) & (finer >= 0).any(-1))
      column = self.paths[:, k]
      for members, fits, row in self._leaves(finer[rows]):
        low = np.where(fits, column, len(column)).min(-1)
        high = np.where(fits, column, -1).max(-1)
        labels[rows[members], k] = np.where(low == high, low, -1)[row]
    return labels

  # Multi levels: rows of 0 and 1, -1 unknown, int8 [N, M], the classes of one level after those of the other.

  def with_multi(self, text: str) -> 'Taxonomy | Mixed':
    """The same with the levels that config.data.multi names as its multi levels, as `load` reads it."""
    return _divided(self.levels, list(enumerate(self.rows(), 1)), text, 'taxonomy row ')

  @functools.cached_property
  def columns(self) -> dict[str, slice]:
    """Where the classes of each multi level stand in a row of M."""
    ends = np.cumsum([0, *(self.num_classes(level) for level in self.multi)]).tolist()
    return {level: slice(a, b) for level, a, b in zip(self.multi, ends, ends[1:])}

  @functools.cached_property
  def edges(self) -> tuple[np.ndarray, np.ndarray]:
    """(above, below), int32 [E] each, of the classes of all levels counted through, coarse to fine, sorted: class `below` lies below class `above`, as all its
    leaves have that one too, or is it.

    So a class has one class above it at each coarser level that it nests in, several where those are facets (a model's make, its type), and none where it
    comes with several.
    """
    first, found = np.cumsum([0, *map(len, self.names)]), []
    for i, upper in enumerate(self.levels):
      found.append(np.tile(np.arange(first[i], first[i + 1]), (2, 1)))
      for j in range(i + 1, len(self.levels)):
        parent = self.parents(self.levels[j], upper)
        lower = np.flatnonzero(parent >= 0)
        found.append(np.stack([first[i] + parent[lower], first[j] + lower]))
    above, below = np.concatenate(found, 1).astype(np.int32)
    order = np.lexsort((below, above))
    return above[order], below[order]

  @functools.cached_property
  def below(self) -> list[np.ndarray]:
    """Of each of those classes the ones below it, itself first."""
    above, below = self.edges
    return np.split(below, np.searchsorted(above, np.arange(1, above[-1] + 1)))

  def contradicts(self, rows) -> np.ndarray:
    """int [N, 2]: a class that is 1 without its ancestor being so, and that ancestor; -1, -1 where there is none. An unknown ancestor contradicts nothing."""
    rows = np.asarray(rows)
    out = np.full((len(rows), 2), -1)
    for a, below in enumerate(self.below):
      wrong = (rows[:, below] == 1) & (rows[:, a : a + 1] == 0)
      found = wrong.any(-1) & (out[:, 0] < 0)
      out[found] = np.stack([below[wrong[found].argmax(-1)], np.full(found.sum(), a)], -1)
    return out

  def complete_multi(self, rows) -> np.ndarray:
    """int8 [N, M] with what follows from the known: ancestors of a class that is there are there, descendants of one that is not are not; a class whose finer
    classes are all known not to be there is not there; a class that ends early is at the deeper levels what it is where it ends."""
    rows = np.array(rows, np.int8)
    for k, level in enumerate(self.multi[1:], 1):
      before = self.multi[k - 1]
      for c in np.flatnonzero(self.carried(level)):
        own, same = (
          rows[:, self.columns[level].start + c],
          rows[:, self.columns[before].start + self._ids[k - 1][self.names[k][c]]],
        )
        own[:] = np.where(same >= 0, same, own)
    for a, below in reversed(list(enumerate(self.below))):  # finer levels stand last
      finer, unknown = rows[:, below[1:]], rows[:, a] < 0
      rows[unknown & (finer == 1).any(-1), a] = 1
      if len(below) > 1:
        rows[unknown & (finer == 0).all(-1), a] = 0
    for a, below in enumerate(self.below):
      rows[:, below] = np.where((rows[:, a : a + 1] == 0) & (rows[:, below] < 0), 0, rows[:, below])
    return rows

  # Other taxonomies.

  def coarsen(self, level: str) -> 'Taxonomy':
    """The taxonomy whose finest classes are those of `level` (same ids), with the coarser columns that they determine."""
    k = self.index(level)
    keep = [j for j in range(k) if self.nests(level, self.levels[j])] + [k]
    first = np.full(len(self.names[k]), len(self.paths), np.int64)
    np.minimum.at(
      first, self.paths[:, k], np.arange(len(self.paths))
    )  # one leaf of each class: the kept columns are the same for all
    rows = []
    for c, leaf in enumerate(first):
      end = min(
        self.depth[leaf] - 1, k
      )  # the last named column; where it is dropped, the name moves to the level itself
      last = end if end in keep else k
      rows.append(
        [self.names[j][self.paths[leaf, j]] if j <= end else '' for j in keep[:-1]]
        + [self.names[k][c] if last == k else '']
      )
    return Taxonomy.from_rows([self.levels[j] for j in keep], rows)

  def diff(self, other: 'Taxonomy') -> str:
    """One line on what differs in `other`; '' if nothing does."""

    def some(what, items):
      items = list(items)
      return (
        [f'{len(items)} {what}: ' + ', '.join(items[:3]) + (', ...' if len(items) > 3 else '')]
        if items
        else []
      )

    if self.multi != other.multi:
      return (
        f'multi levels {", ".join(self.multi) or "none"} against {", ".join(other.multi) or "none"}'
      )
    if self.levels != other.levels:
      return f'levels {", ".join(self.levels)} against {", ".join(other.levels)}'
    mine, its = ({r[d - 1]: r for r, d in zip(t.rows(), t.depth)} for t in (self, other))
    out = some(f'{self.levels[-1]} only here', (n for n in mine if n not in its))
    out += some(f'{self.levels[-1]} only there', (n for n in its if n not in mine))
    out += some(
      'moved',
      (
        f'{n} ({" / ".join(mine[n])} against {" / ".join(its[n])})'
        for n in mine
        if n in its and mine[n] != its[n]
      ),
    )
    if not out and self.names[-1] != other.names[-1]:
      out = ['the same classes in another order']
    return '; '.join(out)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Mixed(_Levels):
  """Exclusive levels with multi ones below or beside them: an example has a path of the one taxonomy and any number of classes of the other. Its labels are
  int [N, L] of the exclusive levels and int8 [N, M] of the multi ones."""

  exclusive: Taxonomy
  several: Taxonomy
  above: np.ndarray  # int32 [M, L]: the exclusive class of each level that a multi class lies below, -1 for none, or several

  @property
  def levels(self) -> tuple[str, ...]:
    return self.exclusive.levels + self.several.levels

  @property
  def names(self) -> tuple[tuple[str, ...], ...]:
    return self.exclusive.names + self.several.names

  @property
  def multi(self) -> tuple[str, ...]:
    return self.several.levels

  @property
  def columns(self) -> dict[str, slice]:
    return self.several.columns

  def rows(self) -> list[list[str]]:
    """The table in names: first the exclusive classes, then each finest multi class with what it lies below."""
    own, last = self.exclusive.rows(), self.columns[self.multi[-1]]
    cells = [
      own[path[-1]]
      if path[-1] >= 0
      else [names[c] if c >= 0 else '' for names, c in zip(self.exclusive.names, path)]
      for path in self.above[last].tolist()
    ]
    return [
      *(row + [''] * len(self.multi) for row in own),
      *(upper + lower for upper, lower in zip(cells, self.several.rows())),
    ]

  def nests(self, child: str, parent: str) -> bool:
    """Whether every class of `child` has one class of `parent`."""
    for part in (self.exclusive, self.several):
      if child in part.levels and parent in part.levels:
        return part.nests(child, parent)
    return child in self.multi and bool(
      (self.above[self.columns[child], self.index(parent)] >= 0).all()
    )

  def fits(self, labels) -> np.ndarray:
    """bool [N, M]: whether each multi class may stand beside the exclusive classes int [N, L], of which -1 fits all."""
    labels = np.asarray(labels)
    out = np.ones((len(labels), len(self.above)), bool)
    for k, upper in enumerate(self.above.T):
      out &= (upper < 0) | (labels[:, k : k + 1] < 0) | (upper == labels[:, k : k + 1])
    return out

  def complete(self, labels, rows) -> tuple[np.ndarray, np.ndarray]:
    """(labels [N, L], rows [N, M]) with what follows from the known, within each kind and from one to the other: a multi class that is there tells what it lies
    below, and of an exclusive class that is known the multi classes below others are not there. What contradicts stays as it is: fits() shows it."""
    labels, rows = self.exclusive.complete(labels), self.several.complete_multi(rows)
    for k, upper in enumerate(self.above.T):
      told = (rows == 1) & (upper >= 0)
      new = np.flatnonzero((labels[:, k] < 0) & told.any(1))
      labels[new, k] = upper[told[new].argmax(1)]
    labels = self.exclusive.complete(labels)
    return labels, self.several.complete_multi(np.where((rows < 0) & ~self.fits(labels), 0, rows))

  def coarsen(self, level: str) -> 'Mixed':
    """With the exclusive taxonomy coarsened."""
    short = self.exclusive.coarsen(level)
    return Mixed(short, self.several, self.above[:, [self.index(l) for l in short.levels]])

  def diff(self, other: 'Taxonomy | Mixed') -> str:
    """One line on what differs in `other`; '' if nothing does."""
    if self.multi != other.multi or not other.exclusive:
      return f'levels {_kinds(self)} against {_kinds(other)}'
    found = [
      text
      for mine, its in ((self.exclusive, other.exclusive), (self.several, other.several))
      if (text := mine.diff(its))
    ]
    return '; '.join(found) or (
      ''
      if np.array_equal(self.above, other.above)
      else f'{", ".join(self.multi)} below other classes'
    )


def _kinds(taxonomy):
  return ', '.join(
    f'{level} (multi)' if level in taxonomy.multi else level for level in taxonomy.levels
  )


def load(path, multi: str = '') -> Taxonomy | Mixed:
  """Reads a taxonomy of which the levels that `multi` names, as config.data.multi does, are multi. Beside exclusive levels, the row of a multi class begins
  with what it lies below: a class, or only a coarser one, or nothing, for one that any example may have. UserError 'FILE:ROW: ...' names what is wrong."""
  levels, rows = read_levels(path)
  return _divided(tuple(levels), rows, multi, f'{path}:')


def _divided(levels, rows, multi, where):
  several = resolve_levels(multi, levels, '--config.data.multi')
  n = len(levels) - len(several)
  if n in (0, len(levels)):
    return dataclasses.replace(Taxonomy._from_rows(levels, rows, where), multi=several)
  if several != levels[n:]:
    lower = next(level for level in levels[levels.index(several[0]) :] if level not in several)
    raise UserError(
      f'--config.data.multi={multi}: exclusive level {lower} stands below multi level {several[0]} in the taxonomy ({", ".join(levels)}); it may '
      f'only stand above: name {lower} too, or put its column before {several[0]}'
    )
  rows = [(row, tuple(cells[:n]), tuple(cells[n:])) for row, cells in rows]
  own = {upper for _, upper, lower in rows if not any(lower)}
  stems = {upper[:k] for _, upper, _ in rows for k in range(1, sum(map(bool, upper)))}
  table, below, finest = [], [], {}
  for row, upper, lower in rows:
    if not any(lower):
      table.append((row, upper))
      continue
    leaf = next(c for c in reversed(lower) if c)
    first, other = finest.setdefault(leaf, (row, upper))
    if other != upper:
      a, b = (' / '.join(filter(None, cells)) or 'nothing' for cells in (upper, other))
      raise UserError(
        f'{where}{row}: {several[-1]} {leaf!r} stands under {a!r} here and under {b!r} in row {first}; a class has one row, and one that any may '
        f'have leaves {", ".join(levels[:n])} empty'
      )
    below.append((row, lower))
    if any(upper) and upper not in own and upper[: sum(map(bool, upper))] not in stems:
      own.add(upper)
      table.append((row, upper))
  exclusive, low = (
    Taxonomy._from_rows(levels[:n], table, where),
    Taxonomy._from_rows(levels[n:], below, where),
  )
  upper = exclusive.complete(
    [exclusive.encode(dict(zip(levels, cells))) for _, cells, lower in rows if any(lower)]
  )
  above = []
  for names, column in zip(low.names, low.paths.T):  # what all leaves of a class have in common
    least, most = (
      np.full((len(names), n), len(rows) + 1, np.int32),
      np.full((len(names), n), -1, np.int32),
    )
    np.minimum.at(least, column, upper)
    np.maximum.at(most, column, upper)
    above.append(np.where(least == most, least, -1))
  return Mixed(
    exclusive, dataclasses.replace(low, multi=several), np.concatenate(above).astype(np.int32)
  )
