"""A taxonomy is a table: one row per finest class, one column per level, coarse to fine.

A tree is the case where the columns nest; facets (make x type) are columns that do not; an empty
cell is a branch that ends early. Labels, heads, losses, decisions, metrics and reports are
functions of this table, and nothing else in the package holds the hierarchy.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hierjax.core.errors import UserError
from hierjax.taxonomy.aliases import Aliases
from hierjax.taxonomy.check import check_rows, close_matches
from hierjax.taxonomy.homonyms import SEPARATOR
from hierjax.taxonomy.levels import Levels
from hierjax.taxonomy.relations import Relations, common_values, group


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
    stripped = [[str(cell).strip() for cell in row] for row in rows]
    return cls.from_numbered_rows(levels, list(enumerate(stripped, 1)), 'taxonomy row ')

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
    _check_numbered_rows(levels, rows, source)
    depth = np.array([len(levels) - list(cells).count('') for _, cells in rows], np.int32)
    table = np.array([cells for _, cells in rows], object)  # [leaf, level] of names
    for k in range(1, len(levels)):
      has_ended = depth <= k
      table[has_ended, k] = table[has_ended, k - 1]
    columns = [tuple(column.tolist()) for column in table.T]
    # Coarser classes are sorted, the finest ones stay in the order of the rows.
    names = [tuple(sorted(set(column))) for column in columns[:-1]]
    names.append(columns[-1])
    paths = np.empty(table.shape, np.int32)
    for k, column in enumerate(columns):
      ids = {name: c for c, name in enumerate(names[k])}
      paths[:, k] = [ids[name] for name in column]
    return cls(tuple(levels), tuple(names), paths, depth)

  def rows(self) -> list[list[str]]:
    """Return the table in names, as the CSV file has it: '' below the end of a branch."""
    rows = []
    for path, depth in zip(self.paths.tolist(), self.depth.tolist()):
      names = [self.names[k][c] for k, c in enumerate(path[:depth])]
      rows.append(names + [''] * (len(path) - depth))
    return rows

  @functools.cached_property
  def _ids(self) -> tuple[dict[str, int], ...]:
    return tuple({name: i for i, name in enumerate(names)} for names in self.names)

  @functools.cached_property
  def _alias_ids(self) -> tuple[dict[str, int], ...]:
    """For each level {alias: class}; a class that is carried down takes its aliases along."""
    result, carried = [], {}
    for level, ids in zip(self.levels, self._ids):
      carried |= self.aliases.get(level, {})
      result.append({alias: ids[name] for alias, name in carried.items() if name in ids})
    return tuple(result)

  @functools.cached_property
  def _homonyms(self) -> tuple[dict[str, list[int]], ...]:
    """For each level {name: classes that are called by a class above them and this name}."""
    result = []
    for k, names in enumerate(self.names):
      # Any leaf of a class will do: homonyms are told apart by levels that they nest in.
      some_leaf = dict(zip(self.paths[:, k].tolist(), range(len(self.paths))))
      classes = {}
      for c, name in enumerate(names):
        if SEPARATOR in name:
          for short_name in self._short_names(name, self.paths[some_leaf[c], :k]):
            classes.setdefault(short_name, []).append(c)
      result.append({name: ids for name, ids in classes.items() if name not in self._ids[k]})
    return tuple(result)

  def _short_names(self, name: str, path: np.ndarray) -> list[str]:
    """Return what follows the class above in a name: 'Ammophila' of 'Plantae/Ammophila'.

    Args:
      name: of a class.
      path: int [k], the classes above it, coarse to fine.
    """
    ancestors = {self.names[j][c] for j, c in enumerate(path)}
    # An ancestor may itself be called by its path.
    ancestors |= {ancestor.rpartition(SEPARATOR)[2] for ancestor in ancestors}
    short_names, parts = [], name.split(SEPARATOR)
    for i in range(1, len(parts)):
      above = SEPARATOR.join(parts[:i])
      if above in ancestors or parts[i - 1] in ancestors:
        short_names.append(SEPARATOR.join(parts[i:]))
    return short_names

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
    labels = np.full(len(self.levels), -1, np.int32)
    homonyms = {}  # {number of the level: classes that a name may stand for}
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
    if homonyms:
      self._choose_homonyms(labels, homonyms, row, prefix)
    return labels

  def _choose_homonyms(self, labels, homonyms, row, prefix):
    """Write, in place, the one class of each homonym that goes with all other names of a row."""
    fits = ((labels < 0) | (labels == self.paths)).all(-1)  # [leaf]
    for k, classes in homonyms.items():
      fits &= np.isin(self.paths[:, k], classes)
    for k, classes in homonyms.items():
      # Where nothing fits, any of them contradicts the other names.
      possible = np.unique(self.paths[fits, k]) if fits.any() else classes[:1]
      if len(possible) > 1:
        level = self.levels[k]
        names = ' or '.join(repr(self.names[k][c]) for c in possible[:4])
        raise UserError(
          f'{prefix}{level} {row[level]!r} is the name of {len(possible)} classes; write {names}'
        )
      labels[k] = possible[0]

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
    labels = np.asarray(labels)
    allowed = np.broadcast_to(allowed, len(self.paths))
    # the finest class, where it is known, fixes the path
    leaf = labels[:, -1]
    agrees = ((labels < 0) | (labels == self.paths[leaf])).all(-1)
    is_valid = (leaf < 0) | (allowed[leaf] & agrees)
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
    # the finest class, where it is known, fixes the path; what follows is for the others
    leaf = labels[:, -1]
    path = self.paths[leaf]
    agrees = ((labels < 0) | (labels == path)).all(-1)
    has_path = (leaf >= 0) & agrees
    labels = np.where(has_path[:, None], path, labels)
    for k in range(len(self.levels) - 1):
      self._carry_down(labels, k)
    for k in reversed(range(len(self.levels) - 1)):
      finer = labels.copy()
      finer[:, : k + 1] = -1
      for match in self._matches(finer, labels[:, k] < 0):
        num_keys = len(self.paths) + len(labels)
        class_of_key = common_values(match.leaf_keys, self.paths[:, k], num_keys)
        labels[match.rows, k] = class_of_key[match.row_keys]
    return labels

  def _carry_down(self, labels, k):
    """Write, in place, classes of level k that end there into the deeper levels."""
    is_ended = self.depth <= k + 1
    ended_leaf = np.full(len(self.names[k]), -1, np.int32)  # of each class; -1 for one that goes on
    ended_leaf[self.paths[is_ended, k]] = np.flatnonzero(is_ended)
    leaf = np.where(labels[:, k] >= 0, ended_leaf[labels[:, k]], -1)  # [N]
    rows = np.flatnonzero(leaf >= 0)
    deeper = labels[rows, k + 1 :]
    path = self.paths[leaf[rows], k + 1 :]
    labels[rows, k + 1 :] = np.where(deeper < 0, path, deeper)

  def _matches(self, labels, mask) -> Iterator['Match']:
    """Match rows where the mask holds and leaves, for each set of columns with labels in turn."""
    # A bit a level, set where the label is known, so that equal codes are equal sets of columns.
    codes = (labels >= 0) @ (1 << np.arange(len(self.levels)))
    for code in np.unique(codes[mask & (codes > 0)]):
      rows = np.flatnonzero(mask & (codes == code))
      columns = labels[rows[0]] >= 0
      both = np.concatenate([self.paths[:, columns], labels[rows][:, columns]])
      leaf_keys, row_keys = np.split(group(both), [len(self.paths)])
      yield Match(rows, leaf_keys, row_keys)

  def coarsen(self, level: str) -> 'Taxonomy':
    """Return the taxonomy that ends at a coarser level.

    Its finest classes are those of the level, with the same ids; it keeps the coarser levels that
    these determine.

    Args:
      level: its name.
    """
    k = self.index(level)
    coarser = [j for j in range(k) if self.nests(level, self.levels[j])]
    # Any leaf of a class will do: these columns are the same for all.
    first_leaf = np.full(len(self.names[k]), len(self.paths), np.int64)
    np.minimum.at(first_leaf, self.paths[:, k], np.arange(len(self.paths)))
    rows = []
    for c, leaf in enumerate(first_leaf):
      path = self.paths[leaf]
      end = min(self.depth[leaf] - 1, k)  # the last level of the branch
      row = [self.names[j][path[j]] if j <= end else '' for j in coarser]
      # Where the level at which the branch ends is dropped, its name moves to the finest one.
      row.append('' if end in coarser else self.names[k][c])
      rows.append(row)
    levels = [self.levels[j] for j in (*coarser, k)]
    return with_aliases(Taxonomy.from_rows(levels, rows), self.aliases)


def _check_numbered_rows(
  levels: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]], source: str
) -> None:
  """Raise a `UserError` where rows are no taxonomy; see `Taxonomy.from_numbered_rows`."""
  if not levels or len(set(levels)) < len(levels):
    raise UserError(f'taxonomy: levels must have names, each its own: {list(levels)}')
  for row, cells in rows:
    if len(cells) != len(levels):
      raise UserError(f'{source}{row}: has {len(cells)} cells for {len(levels)} levels')
  problems = check_rows(levels, rows)
  if problems:
    others = len(problems) - 1
    more = f' (and {others} more; hierjax lint lists them)' if others else ''
    raise UserError(f'{source}{problems[0].row}: {problems[0].text}{more}')
  if not rows:
    raise UserError(f'{source}1: has no class below the header')


def with_aliases(taxonomy: Levels, aliases: Aliases) -> Levels:
  """Return a taxonomy with aliases of its classes; those of others are left out.

  Args:
    taxonomy: of any kind.
    aliases: {level: {other name: class}}.
  """
  names = {level: frozenset(names) for level, names in zip(taxonomy.levels, taxonomy.names)}
  matching = {}
  for level, items in aliases.items():
    if level in names:
      matching[level] = {alias: name for alias, name in items.items() if name in names[level]}
  # A mixed taxonomy holds two tables, whose aliases are these, too.
  parts = [field for field in ('exclusive', 'tags') if hasattr(taxonomy, field)]
  tables = {part: with_aliases(getattr(taxonomy, part), aliases) for part in parts}
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
  ids = {**taxonomy._alias_ids[k], **taxonomy._ids[k], '': -1}
  return np.fromiter((ids.get(name, -2) for name in names), np.int32)
