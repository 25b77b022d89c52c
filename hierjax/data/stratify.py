"""Splits that keep the share of each class, and of each combination of classes, where an example has several."""

import hashlib
import heapq
import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def shuffled(files: Sequence, seed: int) -> list[int]:
  """The rows in the order of a hash of seed and file name: another order of the rows shuffles to the same order of files."""
  return sorted(
    range(len(files)),
    key=lambda i: (
      hashlib.blake2b(f'{seed}:{files[i]}'.encode(), digest_size=8).digest(),
      files[i],
    ),
  )


def iterative(
  labels: np.ndarray,
  fractions: Sequence[float],
  seed: int,
  files: Sequence[str] | None = None,
  order: int = 2,
  beside: np.ndarray | None = None,
) -> np.ndarray:
  """Iterative stratification: int [N], the part of each example, of len(fractions) parts that have these shares of the examples.

  labels [N, C] with 1 where a class holds, or int [N] of exclusive classes, -1 unknown; `beside` is an int [N] of exclusive classes that an example has as
  well. order=1 keeps the share of each class (Sechidis et al. 2011,
  doi:10.1007/978-3-642-23808-6_10), order=2 that of each pair of classes as well (Szymanski and Kajdanowicz 2017, arXiv:1704.08756): of all keys, pairs or
  classes, the one with the fewest examples left is spread first, each of its examples into the part that lacks most of it, of equals into the one that
  lacks most examples. Where the papers draw ties at random, the order of a hash of seed and file (by default the number of the row) decides.
  The sizes of parts follow, but for a few examples. Memory and time grow with the number of pairs that the examples have.
  """
  labels, share = np.asarray(labels), np.asarray(fractions, np.float64)
  share, n = share / share.sum(), len(labels)
  if labels.ndim == 1:
    keys = [[(c,)] if c >= 0 else [] for c in labels.tolist()]
  else:
    more = (
      [[]] * n
      if beside is None
      else [[labels.shape[1] + c] if c >= 0 else [] for c in beside.tolist()]
    )
    keys = [
      list(itertools.combinations_with_replacement(np.flatnonzero(row == 1).tolist() + own, order))
      for row, own in zip(labels, more)
    ]
  line, members = shuffled(range(n) if files is None else files, seed), defaultdict(list)
  for i in line:
    for key in keys[i]:
      members[key].append(i)
  left = {key: len(rows) for key, rows in members.items()}
  lacks = {key: (share * count).tolist() for key, count in left.items()}
  room, parts = (share * n).tolist(), np.full(n, -1)

  def put(i, want):
    part = max(
      range(len(share)), key=lambda k: (round(want[k], 9), round(room[k], 9))
    )  # rounded: equal shares are equal, whatever was subtracted before
    parts[i], room[part] = part, room[part] - 1
    for key in keys[i]:
      lacks[key][part] -= 1
      left[key] -= 1

  heap = [(count, key) for key, count in left.items()]
  heapq.heapify(heap)
  while heap:
    count, key = heapq.heappop(heap)
    if not count or count != left[key]:  # out of date: it was pushed again with what is left
      continue
    rows = [i for i in members[key] if parts[i] < 0]
    for i in rows:
      put(i, lacks[key])
    for other in {other for i in rows for other in keys[i]}:
      heapq.heappush(heap, (left[other], other))
  for i in line:
    if parts[i] < 0:
      put(i, room)
  return parts
