"""Iterative stratification: splits that keep the share of each class and each pair of classes."""

import hashlib
import heapq
import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from hierjax.core.names import Names


def shuffled(files: Sequence, seed: int) -> np.ndarray:
  """Order the numbers of rows by a hash of seed and file name, whatever order they come in.

  Args:
    files: [N] names, or numbers.
    seed: another one gives another order.

  Returns:
    int [N].
  """
  start = f'{seed}:'.encode()
  encoded = Names.pack(files if isinstance(files, Names) else list(map(str, files))).encoded()
  digests = (hashlib.blake2b(start + name, digest_size=8).digest() for name in encoded)
  keys = np.frombuffer(b''.join(digests), '>u8').astype(np.uint64)
  if len(np.unique(keys)) < len(keys):
    return np.array(sorted(range(len(keys)), key=lambda i: (keys[i], files[i])), int)
  return np.argsort(keys)


def iterative(
  labels: np.ndarray,
  fractions: Sequence[float],
  seed: int,
  files: Sequence[str] | None = None,
  order: int = 2,
  extra: np.ndarray | None = None,
) -> np.ndarray:
  """Divide examples with several classes into parts with given shares of every class.

  Of all classes (order 1: Sechidis et al. 2011, doi:10.1007/978-3-642-23808-6_10) or pairs of
  classes (order 2: Szymanski and Kajdanowicz 2017, arXiv:1704.08756), that with the fewest examples
  left is distributed first: each of its examples goes to the part that lacks most of it, of equals
  to the part that lacks most examples. Ties are broken by a hash of seed and file name.

  Args:
    labels: [N, C], 1 where a class is present; or int [N] of exclusive classes, -1 unknown.
    fractions: share of each part.
    seed: of the hash.
    files: [N] names for the hash; by default the numbers of the rows.
    order: 1 for classes, 2 for pairs as well.
    extra: int [N], a further exclusive class of each example, -1 unknown.

  Returns:
    int [N], the part of each example; sizes of parts are met but for a few examples.
  """
  share = np.asarray(fractions, np.float64) / np.sum(fractions)
  keys = _keys(np.asarray(labels), order, extra)
  n = len(keys)
  line, members = shuffled(range(n) if files is None else files, seed).tolist(), defaultdict(list)
  for i in line:
    for key in keys[i]:
      members[key].append(i)
  left = {key: len(rows) for key, rows in members.items()}
  quota = {key: (share * count).tolist() for key, count in left.items()}
  room, parts = (share * n).tolist(), np.full(n, -1)

  def put(i, want):
    # rounded: equal shares are equal, whatever was subtracted before
    part = max(range(len(share)), key=lambda k: (round(want[k], 9), round(room[k], 9)))
    parts[i], room[part] = part, room[part] - 1
    for key in keys[i]:
      quota[key][part] -= 1
      left[key] -= 1

  heap = [(count, key) for key, count in left.items()]
  heapq.heapify(heap)
  while heap:
    count, key = heapq.heappop(heap)
    if not count or count != left[key]:
      continue  # out of date: it was pushed again with what is left
    rows = [i for i in members[key] if parts[i] < 0]
    for i in rows:
      put(i, quota[key])
    for other in {other for i in rows for other in keys[i]}:
      heapq.heappush(heap, (left[other], other))
  for i in line:
    if parts[i] < 0:
      put(i, room)
  return parts


def _keys(labels, order, extra):
  """The classes, or pairs of classes, of each example, as tuples."""
  if labels.ndim == 1:
    return [[(c,)] if c >= 0 else [] for c in labels.tolist()]
  classes = [np.flatnonzero(row == 1).tolist() for row in labels]
  if extra is not None:
    for row, c in zip(classes, extra.tolist()):
      row.extend([labels.shape[1] + c] if c >= 0 else [])
  return [list(itertools.combinations_with_replacement(row, order)) for row in classes]
