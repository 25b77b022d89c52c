"""Homonyms: one name for several classes, such as a genus of plants and one of animals.

A table of names does not say whether two columns are a tree or facets. Where nearly all classes of
a level have one class above them, it is a tree, and a name with several is that of several classes:
each is then called by its path, 'Plantae/Ammophila'. Elsewhere (makes and types of cars) the levels
are facets, and the name is one class.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SEPARATOR = '/'


class Reading(NamedTuple):
  """How a table of names was read.

  Attributes:
    rows: the rows, in which every class has a name of its own.
    homonyms: {level: {name that stood for several classes: their names now}}.
    facets: (level, level above) of which neither is above the other, and the finer level has
      classes with one class of the coarser one as well as classes with several.
  """

  rows: list[list[str]]
  homonyms: dict[str, dict[str, list[str]]]
  facets: list[tuple[str, str]]


def is_tree(nests: np.ndarray, leaves: np.ndarray) -> bool:
  """Tell whether a level lies below another, apart from a few classes.

  Args:
    nests: bool [C], whether a class of the level has one class of the other.
    leaves: int [C], the number of finest classes of a class.
  """
  exceptions = int((~nests).sum())
  # A class with one leaf has one class of every other level and shows nothing.
  is_majority = exceptions < int((nests & (leaves > 1)).sum())
  are_few = exceptions <= max(1, len(nests) // 10)
  return exceptions < int(nests.sum()) and (is_majority or are_few)


def resolve(levels: Sequence[str], rows: Sequence[Sequence[str]], mode: str) -> Reading:
  """Give each class of a table a name of its own.

  Args:
    levels: names of the columns, coarse to fine.
    rows: one cell a level, '' below the end of a branch.
    mode: 'auto': inner levels of a tree, see `is_tree`; 'split': all levels are a tree; 'merge':
      one name of a level is one class.
  """
  reading = Reading([list(row) for row in rows], {}, [])
  if mode == 'merge':
    return reading
  last = len(levels) - (mode == 'auto')
  for k in range(1, last):
    above = [k - 1] if mode == 'split' else range(k - 1, -1, -1)
    for j in above:
      pairs = [(row[k], row[j]) for row in reading.rows if row[k] and row[j]]
      num_leaves = Counter(name for name, _ in pairs)
      num_parents = Counter(name for name, _ in set(pairs))
      nests = np.array([number == 1 for number in num_parents.values()], bool)
      leaves = np.array([num_leaves[name] for name in num_parents])
      if mode == 'split' or is_tree(nests, leaves):
        homonyms = {name for name, number in num_parents.items() if number > 1}
        _rename(reading, levels[k], k, j, homonyms)
        break
      # Levels that are independent of each other throughout need no word.
      if nests.any():
        reading.facets.append((levels[k], levels[j]))
  return reading


def _rename(reading, level, k, j, homonyms):
  """Write the class of level j before the name of each homonym of level k."""
  existing = {row[k] for row in reading.rows}
  for row in reading.rows:
    name = row[k]
    if name not in homonyms or not row[j]:
      continue
    path = SEPARATOR.join((row[j], name))
    if path in existing:  # another class is called so: all classes above tell them apart
      path = SEPARATOR.join(filter(None, row[: k + 1]))
    row[k] = path
    new_names = reading.homonyms.setdefault(level, {}).setdefault(name, [])
    if path not in new_names:
      new_names.append(path)
