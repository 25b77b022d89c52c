"""A taxonomy is a table: one row per finest class, one column per level, coarse to fine.

A tree is the case where the columns nest; facets (make x type) are columns that do not; an empty
cell is a branch that ends early. Labels, heads, losses, decisions, metrics and reports are
functions of this table, and nothing else in the package holds the hierarchy.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hierjax.core.errors import UserError
from hierjax.taxonomy.aliases import Aliases
from hierjax.taxonomy.check import check_rows, close_matches
from hierjax.taxonomy.homonyms import SEPARATOR
from hierjax.taxonomy.levels import Levels
from hierjax.taxonomy.merges import Merge


class Match(NamedTuple):
  """Rows of labels and leaves with the same classes have the same key.

  Attributes:
    rows: int [R], which rows.
    leaf_keys: int [leaf], below the number of leaves and rows.
    row_keys: int [R].
  """

  rows: np.ndarray
  leaf_keys: np.ndarray
  row_keys: np.ndarray


def group(table: np.ndarray) -> np.ndarray:
  """Number the distinct rows of a table.

  Args:
    table: int [N, K] of classes, at least 0.

  Returns:
    int [N], below N; equal for equal rows.
  """
  keys = np.zeros(len(table), np.int64)
  for column in table.T:
    keys = np.unique(keys * (int(column.max(initial=0)) + 1) + column, return_inverse=True)[1]
  return keys


class Relations(Levels):
  """How the classes of a path table relate to each other.

  Attributes:
    paths: int32 [leaf, level], the class of each leaf at each level.
  """

  paths: np.ndarray

  @functools.cached_property
  def nested(self) -> dict[tuple[int, int], np.ndarray]:
    """{(finer, coarser level): int [C], the coarser class of each finer one} of those that nest."""
    pairs = itertools.combinations(range(len(self.levels)), 2)
    parents = {(j, i): self.parents(self.levels[j], self.levels[i]) for i, j in pairs}
    return {pair: classes for pair, classes in parents.items() if (classes >= 0).all()}

  @functools.cached_property
  def _merges(self) -> list[Merge]:
    """How each level but the finest is made of the next one that nests in it."""
    merges, finest = [], len(self.levels) - 1
    for k in range(finest):
      finer = next(j for j in range(k + 1, finest + 1) if (j, k) in self.nested)
      merges.append(Merge.make(finer, self.nested[finer, k]))
    return merges

  def merge(self, values: np.ndarray, function: np.ufunc) -> list[np.ndarray]:
    """Put values of leaves together to those of the classes of every level.

    Args:
      values: [N, leaf]; fast where the images of a leaf stand side by side (order 'F').
      function: of two values, such as `np.add`.

    Returns:
      Per level [N, C].
    """
    levels = [values] * len(self.levels)
    for k, merge in reversed([*enumerate(self._merges)]):
      levels[k] = merge.reduce(levels[merge.level], function)
    return levels

  def pairs(self, a: str, b: str) -> np.ndarray:
    """Return the classes of two levels that occur together in some leaf.

    Args:
      a: a level.
      b: another.

    Returns:
      int64 [P, 2], in ascending order; P is at most the number of leaves.
    """
    return np.stack(np.divmod(self._pair_keys(a, b), self.num_classes(b)), -1)

  def occur_together(self, a: str, b: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return whether some leaf has the class x of level `a` and y of `b`: bool [N] of int [N]."""
    keys, pairs = self._pair_keys(a, b), x.astype(np.int64) * self.num_classes(b) + y
    return keys[np.minimum(np.searchsorted(keys, pairs), len(keys) - 1)] == pairs

  def _pair_keys(self, a, b):
    i, j = self.index(a), self.index(b)
    return np.unique(self.paths[:, i].astype(np.int64) * self.num_classes(b) + self.paths[:, j])

  def related(self, a: str, b: str) -> list[np.ndarray]:
    """Return for each class of level `a` those of level `b` that occur with it, ascending."""
    pairs = self.pairs(a, b)
    return np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, self.num_classes(a))))

  def parents(self, child: str, parent: str) -> np.ndarray:
    """Return the class of one level above each class of another.

    Args:
      child: the finer level.
      parent: the coarser one.

    Returns:
      int32 [C_child], -1 for a class that occurs with more than one.
    """
    i, j = self.index(child), self.index(parent)
    low = np.full(len(self.names[i]), len(self.names[j]), np.int32)
    high = np.full(len(self.names[i]), -1, np.int32)
    np.minimum.at(low, self.paths[:, i], self.paths[:, j])
    np.maximum.at(high, self.paths[:, i], self.paths[:, j])
    return np.where(low == high, low, -1).astype(np.int32)

  def nests(self, child: str, parent: str) -> bool:
    """Return whether every class of level `child` has one class of level `parent`."""
    return bool((self.parents(child, parent) >= 0).all())

  def lca(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the number of levels at which leaves differ.

    In a tree that is the height of their lowest common ancestor.

    Args:
      a: int, leaves.
      b: int, leaves, of a shape that broadcasts with that of a.

    Returns:
      int of the common shape.
    """
    return (self.paths[a] != self.paths[b]).sum(-1)

  def height(self) -> int:
    """Return the largest `lca` of two leaves.

    Ordered pairs that share the classes of a set of levels at least are the squares of the sizes of
    its groups of leaves. Summed over all sets with (z - 1)^(its size), by inclusion and exclusion,
    they give the polynomial whose coefficient of z^m counts the pairs that share m levels.
    """
    count = len(self.levels)
    squares, pairs = {}, np.polynomial.Polynomial([0.0])
    for is_in_set in itertools.product((False, True), repeat=count):
      # what finer levels of the set determine divides nothing further
      is_fixed = {i for j, i in self.nested if is_in_set[j]}
      columns = tuple(i for i in range(count) if is_in_set[i] and i not in is_fixed)
      if columns not in squares:
        sizes = np.bincount(group(self.paths[:, columns])).astype(float)
        squares[columns] = np.square(sizes).sum()
      pairs += squares[columns] * np.polynomial.Polynomial([-1, 1]) ** sum(is_in_set)
    return count - int(np.flatnonzero(pairs.coef > 0.5)[0])


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Taxonomy(Relations):
  """The path table of exclusive levels, of which an example has one class each.

  The id of a finest class is its row. A branch that ends early carries its last class down to the
  deeper levels.

  Attributes:
    levels: names of the levels, coarse to fine.
    names: the classes of each level; the finest in the order of the file, the others sorted.
    paths: int32 [leaf, level], dense; paths[:, -1] is arange(leaf).
    depth: int32 [leaf], the number of levels that the branch reaches.
    aliases: {level: {other name: class}}.
  """

  levels: tuple[str, ...]
  names: tuple[tuple[str, ...], ...]
  paths: np.ndarray
  depth: np.ndarray
  aliases: Aliases = dataclasses.field(default_factory=dict)

  kind = 'exclusive'

  @property
  def tables(self) -> tuple['Taxonomy', ...]:
    """This table alone."""
    return (self,)

  @property
  def width(self) -> int:
    """The number of columns in a row of labels."""
    return len(self.levels)

  @classmethod
  def from_rows(cls, levels: Sequence[str], rows: Iterable[Sequence[str]]) -> 'Taxonomy':
    """Make the taxonomy of rows of names.

    Args:
      levels: names of the levels, coarse to fine.
      rows: one row a finest class with a cell a level, '' below the end of a branch.

    Raises:
      UserError: the rows are no taxonomy; it counts them from 1.
    """
    numbered = [(i, [str(c).strip() for c in row]) for i, row in enumerate(rows, 1)]
    return cls.from_numbered_rows(levels, numbered, 'taxonomy row ')

  @classmethod
  def from_numbered_rows(
    cls, levels: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]], source: str
  ) -> 'Taxonomy':
    """Make the taxonomy of rows with their numbers in a file.

    Args:
      levels: names of the levels, coarse to fine.
      rows: (row number, one cell per level).
      source: stands before the row number in errors.

    Raises:
      UserError: the rows are no taxonomy.
    """
    if not levels or len(set(levels)) < len(levels):
      raise UserError(f'taxonomy: levels must have names, each its own: {list(levels)}')
    for row, cells in rows:
      if len(cells) != len(levels):
        raise UserError(f'{source}{row}: has {len(cells)} cells for {len(levels)} levels')
    if problems := check_rows(levels, rows):
      others = len(problems) - 1
      more = f' (and {others} more; hierjax lint lists them)' if others else ''
      raise UserError(f'{source}{problems[0].row}: {problems[0].text}{more}')
    if not rows:
      raise UserError(f'{source}1: has no class below the header')
    depth = np.array([len(levels) - list(cells).count('') for _, cells in rows], np.int32)
    table = np.array([cells for _, cells in rows], object)
    for k in range(1, len(levels)):
      table[depth <= k, k] = table[depth <= k, k - 1]
    columns = [tuple(column.tolist()) for column in table.T]
    names = tuple(tuple(sorted(set(column))) for column in columns[:-1]) + (columns[-1],)
    ids = [{name: i for i, name in enumerate(ns)} for ns in names]
    paths = np.array([[*map(i.get, column)] for i, column in zip(ids, columns)], np.int32).T
    return cls(tuple(levels), names, np.ascontiguousarray(paths), depth)

  def rows(self) -> list[list[str]]:
    """Return the table in names, as the CSV file has it: '' below the end of a branch."""
    return [
      [self.names[k][c] if k < d else '' for k, c in enumerate(path)]
      for path, d in zip(self.paths.tolist(), self.depth)
    ]

  @functools.cached_property
  def _ids(self) -> tuple[dict[str, int], ...]:
    return tuple({name: i for i, name in enumerate(names)} for names in self.names)

  @functools.cached_property
  def _alias_ids(self) -> tuple[dict[str, int], ...]:
    """For each level {alias: class}; a class that is carried down takes its aliases along."""
    result, carried = [], {}
    for level, ids in zip(self.levels, self._ids):
      carried = {**carried, **self.aliases.get(level, {})}
      result.append({alias: ids[name] for alias, name in carried.items() if name in ids})
    return tuple(result)

  @functools.cached_property
  def _homonyms(self) -> tuple[dict[str, list[int]], ...]:
    """For each level {name: classes that are called by a class above them and this name}."""
    result = []
    for k, names in enumerate(self.names):
      classes = {}
      leaf_of = dict(zip(self.paths[:, k].tolist(), range(len(self.paths))))
      for c, name in enumerate(names):
        places = [i for i, letter in enumerate(name) if letter == SEPARATOR]
        above = {self.names[j][self.paths[leaf_of[c], j]] for j in range(k) if places}
        above |= {ancestor.rpartition(SEPARATOR)[2] for ancestor in above}
        for i in places:
          if name[:i] in above or name[:i].rpartition(SEPARATOR)[2] in above:
            classes.setdefault(name[i + 1 :], []).append(c)
      result.append({name: ids for name, ids in classes.items() if name not in self._ids[k]})
    return tuple(result)

  def encode(self, row: Mapping[str, str], where: str = '', has_hints: bool = True) -> np.ndarray:
    """Turn the names of classes into ids.

    A name that several classes have ('Plantae/Ammophila' and 'Animalia/Ammophila') stands for the
    one that goes with the other names.

    Args:
      row: {level: name}; a level that is absent or '' is unknown.
      where: what errors begin with.
      has_hints: whether they propose similar names, which takes long among many.

    Returns:
      int32 [level], -1 unknown.

    Raises:
      UserError: a name is no class of its level, for which it proposes similar ones; or it is that
        of several classes.
    """
    labels, homonyms = np.full(len(self.levels), -1, np.int32), {}
    prefix = f'{where}: ' if where else ''
    for k, level in enumerate(self.levels):
      name = (row.get(level) or '').strip()
      if name in self._ids[k]:
        labels[k] = self._ids[k][name]
      elif name in self._alias_ids[k]:
        labels[k] = self._alias_ids[k][name]
      elif name in self._homonyms[k]:
        homonyms[k] = self._homonyms[k][name]
      elif name:
        choices = spellings(self, level) if has_hints else ()
        close = ' or '.join(map(repr, close_matches(name, choices)))
        hint = f'did you mean {close}?' if close else f'it has {len(self.names[k])} classes'
        raise UserError(f'{prefix}{level} {name!r} is not in the taxonomy; {hint}')
    fits = ((labels < 0) | (labels == self.paths)).all(-1) if homonyms else None
    for k, classes in homonyms.items():
      fits &= np.isin(self.paths[:, k], classes)
    for k, classes in homonyms.items():
      # Where nothing fits, any of them contradicts the other names.
      possible = np.unique(self.paths[fits, k]) if fits.any() else classes[:1]
      if len(possible) > 1:
        names = ' or '.join(repr(self.names[k][c]) for c in possible[:4])
        name = row[self.levels[k]]
        raise UserError(
          f'{prefix}{self.levels[k]} {name!r} is the name of {len(possible)} classes; write {names}'
        )
      labels[k] = possible[0]
    return labels

  def carried(self, level: str) -> np.ndarray:
    """Return which classes of a level are those of branches that ended above it.

    Args:
      level: its name.

    Returns:
      bool [class]; each of these has one leaf.
    """
    k = self.index(level)
    is_carried = np.zeros(len(self.names[k]), bool)
    is_carried[self.paths[self.depth <= k, k]] = True
    return is_carried

  def valid(self, labels: np.ndarray, allowed: np.ndarray | bool = True) -> np.ndarray:
    """Return whether some leaf has all the known classes of a row.

    Args:
      labels: int [N, level], -1 unknown.
      allowed: bool [leaf], the leaves that count; True for all.

    Returns:
      bool [N].
    """
    labels, allowed = np.asarray(labels), np.broadcast_to(allowed, len(self.paths))
    # the finest class, where it is known, fixes the path
    leaf = labels[:, -1]
    is_valid = (leaf < 0) | allowed[leaf] & ((labels < 0) | (labels == self.paths[leaf])).all(-1)
    for match in self._matches(labels, leaf < 0):
      is_valid[match.rows] = np.isin(match.row_keys, match.leaf_keys[allowed])
    return is_valid

  def complete(self, labels: np.ndarray) -> np.ndarray:
    """Fill in the unknown labels that follow from the known ones.

    These are the coarser classes that the finer ones determine, and those below a class that ends
    early. Labels that contradict each other stay as they are.

    Args:
      labels: int [N, level], -1 unknown.

    Returns:
      int32 [N, level].
    """
    labels = np.array(labels, np.int32).reshape(-1, len(self.levels))
    # the finest class, where it is known, says all; what follows is for the others
    path, is_known = self.paths[labels[:, -1]], labels[:, -1:] >= 0
    labels = np.where(
      is_known & ((labels < 0) | (labels == path)).all(-1, keepdims=True), path, labels
    )
    for k in range(len(self.levels) - 1):
      self._carry_down(labels, k)
    for k in range(len(self.levels) - 2, -1, -1):
      finer, column = labels.copy(), self.paths[:, k]
      finer[:, : k + 1] = -1
      for match in self._matches(finer, labels[:, k] < 0):
        low = np.full(len(self.paths) + len(labels), len(self.names[k]), np.int32)
        high = np.full_like(low, -1)
        np.minimum.at(low, match.leaf_keys, column)
        np.maximum.at(high, match.leaf_keys, column)
        labels[match.rows, k] = np.where(low == high, low, -1)[match.row_keys]
    return labels

  def _carry_down(self, labels, k):
    """Write, in place, classes of level k that end there into the deeper levels."""
    leaf = np.full(len(self.names[k]), -1, np.int32)
    is_ended = self.depth <= k + 1
    leaf[self.paths[is_ended, k]] = np.flatnonzero(is_ended)
    rows = np.flatnonzero(labels[:, k] >= 0)
    rows = rows[leaf[labels[rows, k]] >= 0]
    deeper = labels[rows, k + 1 :]
    path = self.paths[leaf[labels[rows, k]], k + 1 :]
    labels[rows, k + 1 :] = np.where(deeper < 0, path, deeper)

  def _matches(self, labels, mask) -> Iterator['Match']:
    """Match rows where the mask holds and leaves, for each set of columns with labels in turn."""
    codes = (labels >= 0) @ (1 << np.arange(len(self.levels)))
    for code in np.unique(codes[mask & (codes > 0)]):
      rows = np.flatnonzero(mask & (codes == code))
      columns = labels[rows[0]] >= 0
      keys = group(np.concatenate([self.paths[:, columns], labels[rows][:, columns]]))
      yield Match(rows, keys[: len(self.paths)], keys[len(self.paths) :])

  def coarsen(self, level: str) -> 'Taxonomy':
    """Return the taxonomy that ends at a coarser level.

    Its finest classes are those of the level, with the same ids; it keeps the coarser levels that
    these determine.

    Args:
      level: its name.
    """
    k = self.index(level)
    columns = [j for j in range(k) if self.nests(level, self.levels[j])] + [k]
    # Any leaf of a class will do: these columns are the same for all.
    first_leaf = np.full(len(self.names[k]), len(self.paths), np.int64)
    np.minimum.at(first_leaf, self.paths[:, k], np.arange(len(self.paths)))
    rows = []
    for c, leaf in enumerate(first_leaf):
      end = min(self.depth[leaf] - 1, k)
      coarser = [self.names[j][self.paths[leaf, j]] if j <= end else '' for j in columns[:-1]]
      # Where the level at which the branch ends is dropped, its name moves to the finest one.
      rows.append([*coarser, '' if end in columns and end != k else self.names[k][c]])
    return with_aliases(Taxonomy.from_rows([self.levels[j] for j in columns], rows), self.aliases)


def with_aliases(taxonomy: Levels, aliases: Aliases) -> Levels:
  """Return a taxonomy with aliases of its classes; those of others are left out.

  Args:
    taxonomy: of any kind.
    aliases: {level: {other name: class}}.
  """
  names = dict(zip(taxonomy.levels, map(frozenset, taxonomy.names)))
  matching = {
    level: {alias: name for alias, name in items.items() if name in names[level]}
    for level, items in aliases.items()
    if level in names
  }
  fields = {f.name for f in dataclasses.fields(taxonomy)} & {'exclusive', 'tags'}
  tables = {field: with_aliases(getattr(taxonomy, field), aliases) for field in fields}
  return dataclasses.replace(taxonomy, aliases=matching, **tables)


def spellings(taxonomy: Taxonomy, level: str) -> list[str]:
  """Return all names by which `Taxonomy.encode` knows classes of a level.

  Args:
    taxonomy: the table.
    level: its name.
  """
  k = taxonomy.index(level)
  return [*taxonomy.names[k], *taxonomy._homonyms[k], *taxonomy._alias_ids[k]]


def class_ids(taxonomy: Taxonomy, level: str, names: Iterable[str]) -> np.ndarray:
  """Return the ids of names of one level, int32 [N]; -1 of '', -2 of what `encode` must judge.

  Args:
    taxonomy, level, names: the table, its level, and [N] names.
  """
  k = taxonomy.index(level)
  ids, aliases = taxonomy._ids[k], taxonomy._alias_ids[k]
  numbers = (ids.get(name, aliases.get(name, -2)) if name else -1 for name in names)
  return np.fromiter(numbers, np.int32)
