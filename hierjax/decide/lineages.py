"""Probabilities of the nodes of a taxonomy, and the lineage of the most likely leaf.

A node is a partial path: the classes of the first levels, one of them or all. In a tree that is a
class with its ancestors; of facets it is a combination (Audi; Audi and coupe). All functions take
the table `Taxonomy.paths`, int [leaf, level], and a posterior, float [N, leaf], of any kind of
array that can be sliced, of which a block of rows is held at a time.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Elements of a temporary array [rows, leaves].
BLOCK_SIZE = 300_000


class Nodes(NamedTuple):
  """The V nodes of a taxonomy, level by level; those of a level in the order of their leaves.

  Attributes:
    order: int [leaf], the leaves such that those of each node stand side by side.
    depth: int [V], the number of levels that a node fixes.
    start: int [V], where its leaves begin in `order`.
    end: int [V], where they end.
    of_leaf: int [leaf, level], the node of each leaf at each level.
  """

  order: np.ndarray
  depth: np.ndarray
  start: np.ndarray
  end: np.ndarray
  of_leaf: np.ndarray


class Lineage(NamedTuple):
  """The most likely leaf of N examples and the nodes above it.

  Attributes:
    path: int32 [N, level], the classes of the leaf.
    prob: float64 [N, level], the probability of the node at each level; it falls with the depth.
  """

  path: np.ndarray
  prob: np.ndarray


def nodes(paths: np.ndarray) -> Nodes:
  """List the nodes of a taxonomy.

  A branch that ends early has a node at each deeper level, too, all of the same leaf.

  Args:
    paths: int [leaf, level].
  """
  # by the class of the first level, then of the second, ...
  order = np.lexsort(paths.T[::-1])
  # a leaf begins a node where its class of that level, or of one above, is another
  is_new = np.ones(paths.shape, bool)
  is_new[1:] = np.maximum.accumulate(np.diff(paths[order], axis=0) != 0, 1)
  level, start = np.nonzero(is_new.T)
  # a node ends where the next one starts; the last of a level with the last leaf
  end = np.append(start[1:], len(paths))
  end[end == 0] = len(paths)
  counts = is_new.sum(0)
  first_of_level = counts.cumsum() - counts
  of_leaf = np.empty(paths.shape, np.int64)
  of_leaf[order] = is_new.cumsum(0) - 1 + first_of_level
  return Nodes(order, level + 1, start, end, of_leaf)


def blocks(posterior: np.ndarray, size: int = BLOCK_SIZE) -> Iterator[tuple[slice, np.ndarray]]:
  """Yield slices of the rows, and these rows as float64.

  Args:
    posterior: float [N, leaf].
    size: elements of a block, at most.
  """
  step = max(1, size // max(posterior.shape[1], 1))
  for start in range(0, len(posterior), step):
    rows = slice(start, min(start + step, len(posterior)))
    yield rows, np.asarray(posterior[rows], np.float64)


def node_sums(values: np.ndarray, tree: Nodes, depth: int | None = None) -> np.ndarray:
  """Sum values of the leaves over those of each node.

  Args:
    values: float [N, leaf].
    tree: the nodes.
    depth: of the nodes; None for all.

  Returns:
    float [N, V], or the nodes of that depth alone.
  """
  ordered = values[:, tree.order]
  depths = range(1, tree.of_leaf.shape[1] + 1) if depth is None else (depth,)
  sums = [np.add.reduceat(ordered, tree.start[tree.depth == d], axis=1) for d in depths]
  return np.concatenate(sums, 1)


def all_leaves(members: np.ndarray, tree: Nodes) -> np.ndarray:
  """Find the nodes whose leaves are all in a set.

  Args:
    members: bool [leaf], the set.
    tree: the nodes.

  Returns:
    bool [V].
  """
  count = np.append(0, np.cumsum(members[tree.order]))
  return count[tree.end] - count[tree.start] == tree.end - tree.start


def lineage(posterior: np.ndarray, paths: np.ndarray) -> Lineage:
  """Find the most likely leaf of each example and the probabilities of the nodes above it.

  Args:
    posterior: float [N, leaf], rows sum to 1.
    paths: int [leaf, level].
  """
  tree = nodes(paths)
  leaf = np.zeros(len(posterior), np.int64)
  prob = np.zeros((len(posterior), paths.shape[1]))
  for rows, p in blocks(posterior):
    leaf[rows] = p.argmax(1)
    sums = node_sums(p, tree)
    prob[rows] = np.take_along_axis(sums, tree.of_leaf[leaf[rows]], 1)
  # sums of the same numbers in another order differ by rounding
  return Lineage(paths[leaf].astype(np.int32), np.minimum.accumulate(prob, 1))


def best_children(
  posterior: np.ndarray, paths: np.ndarray, path: np.ndarray, depth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Find the two most likely children of a node of each example.

  Args:
    posterior: float [N, leaf].
    paths: int [leaf, level].
    path: int [N, level], of which the first levels are the node.
    depth: int [N], how many; 0 for the root.

  Returns:
    int32 [N, 2], classes of the next level, -1 where there is none, and float64 [N, 2], the
    probabilities of the nodes.
  """
  tree = nodes(paths)
  classes = np.full((len(path), 2), -1, np.int32)
  prob = np.zeros((len(path), 2))
  for block, p in blocks(posterior):
    depths = depth[block]
    for d in np.unique(depths[depths < paths.shape[1]]):
      members = np.flatnonzero(depths == d)
      rows = block.start + members
      children = np.flatnonzero(tree.depth == d + 1)
      child_path = paths[tree.order[tree.start[children]]]  # [child, level]
      is_below = np.ones((len(members), len(children)), bool)
      for k in range(d):
        is_below &= path[rows, k, None] == child_path[:, k]
      sums = np.where(is_below, node_sums(p[members], tree, d + 1), -1)
      best = np.argsort(-sums, 1, kind='stable')[:, :2]
      best_sums = np.take_along_axis(sums, best, 1)
      # a level may have a single node
      width = best.shape[1]
      classes[rows, :width] = np.where(best_sums >= 0, child_path[best, d], -1)
      prob[rows, :width] = np.maximum(best_sums, 0)
  return classes, prob
