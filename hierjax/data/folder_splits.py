"""Which folder on the way from the root to an image names its split."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from hierjax.data.split_names import is_word, split_of

Path = tuple[str, ...]  # names of the folders from the root to an image


class Division(NamedTuple):
  """Where a tree of folders has its splits.

  Attributes:
    splits: of each image the folder that names its split; None for one beside the split folders.
    paths: of each image its folders without that one; for one beside, down to where they stand.
  """

  splits: list[str | None]
  paths: list[Path]


def divide(paths: Sequence[Path], train: str, val: str, depth: int | None) -> Division | None:
  """Find the folders that name splits: ROOT/train/CLASS, ROOT/CLASS/train, ROOT/images/train/CLASS.

  Folders beside them are left out if there is one for training and another. Above the split
  folders a single folder is no level.

  Args:
    paths: of each image its folders, at least one.
    train, val: names of folders that are splits, beside the usual words.
    depth: the number of levels, if the user has said so.

  Returns:
    None if no folder names a split.
  """
  meanings = {train: 'train', val: 'val'}
  meanings = {name: meanings.get(name) or split_of(name) for path in set(paths) for name in path}
  longest = max(map(len, paths))
  for place in (*range(longest), -1):
    rows = [
      i for i, path in enumerate(paths) if len(path) > max(place, 0) and meanings[path[place]]
    ]
    if not rows or not _are_splits(paths, rows, place, meanings, (train, val)):
      continue
    division = _without(paths, rows, place, meanings)
    levels = max(len(division.paths[i]) for i in rows)
    if (levels or len(rows) == len(paths)) and (depth in (None, levels) or longest != depth):
      return division
  return None


def _are_splits(paths, rows, place, meanings, requested):
  """Whether the folders at a place, called like splits, are splits and not classes."""
  names = {paths[i][place] for i in rows}
  siblings = defaultdict(set)
  for i in rows:
    siblings[paths[i][:place]].add(meanings[paths[i][place]])
  if len(rows) < len(paths):
    return any('train' in group and len(group) > 1 for group in siblings.values())
  is_usual = any(name in requested or is_word(name) for name in names)
  return is_usual or len(names) == 1 or len(set.union(*siblings.values())) > 1


def _without(paths, rows, place, meanings):
  """The division at a place."""
  above = {paths[i][:place] for i in rows}
  start = place if place > 0 and len(above) == 1 else 0
  # seg_train/seg_train/CLASS: archives repeat their name
  is_repeated = place >= 0 and all(
    len(paths[i]) > place + 2 and meanings[paths[i][place + 1]] == meanings[paths[i][place]]
    for i in rows
  )
  splits = [None] * len(paths)
  inner = [path[: place + 1] if place >= 0 else path for path in paths]
  for i in rows:
    path = paths[i]
    splits[i] = path[place]
    below = path[place + 1 + is_repeated :] if place >= 0 else ()
    inner[i] = path[start:place] + below
  return Division(splits, inner)
