"""Nodes of a taxonomy and their children, at which images of new classes are looked for."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from hierjax.taxonomy import Taxonomy

# The children of each node are left out a third at a time.
FOLDS = 3


def parent_levels(taxonomy: Taxonomy) -> tuple[int, ...]:
  """Find for each level the nearest coarser one that it nests in, -1 for the top.

  Args:
    taxonomy: the table of the exclusive levels.
  """
  parents = []
  for k, level in enumerate(taxonomy.levels):
    coarser = (j for j in range(k - 1, -1, -1) if taxonomy.nests(level, taxonomy.levels[j]))
    parents.append(next(coarser, -1))
  return tuple(parents)


def children(taxonomy: Taxonomy, k: int, nodes: np.ndarray) -> np.ndarray:
  """Return the children of nodes.

  Args:
    taxonomy: the table of the exclusive levels.
    k: the level of the children.
    nodes: int [N], classes of the level above (`parent_levels`); the top where there is none.

  Returns:
    bool [N, C_k].
  """
  j = parent_levels(taxonomy)[k]
  if j < 0:
    return np.ones((len(nodes), len(taxonomy.names[k])), bool)
  return taxonomy.parents(taxonomy.levels[k], taxonomy.levels[j]) == nodes[:, None]


def nodes_of(taxonomy: Taxonomy, k: int, pred: np.ndarray) -> np.ndarray:
  """Return the nodes at which paths are judged at a level.

  Args:
    taxonomy: the table of the exclusive levels.
    k: the level.
    pred: int [N, level], the paths.

  Returns:
    int [N], classes of the level above, 0 for the top.
  """
  j = parent_levels(taxonomy)[k]
  return pred[:, j] if j >= 0 else np.zeros(len(pred), int)


def level_logits(
  compute: Callable[[np.ndarray, str], np.ndarray], heads: Sequence[str], taxonomy: Taxonomy
) -> list[Callable[[np.ndarray], np.ndarray]]:
  """Return how the logits of every level are computed.

  Args:
    compute: features float [n, d] and a level with a head → its logits, float64 [n, C].
    heads: the levels that have one, the finest level among them.
    taxonomy: the table of the exclusive levels.

  Returns:
    Per level features → float64 [n, C]; of a level without a head the log-sum-exp of the finest
    head's over the leaves of each class.
  """

  def of_level(level, features):
    if level in heads:
      return compute(features, level)
    finest = compute(features, taxonomy.levels[-1])
    return taxonomy.merge(finest, np.logaddexp)[taxonomy.index(level)]

  return [functools.partial(of_level, level) for level in taxonomy.levels]


def folds(taxonomy: Taxonomy, k: int) -> np.ndarray:
  """Deal the children of each node out to the FOLDS folds in turn.

  Args:
    taxonomy: the table of the exclusive levels.
    k: the level of the children.

  Returns:
    int [C_k], the fold in which each class is left out.
  """
  j, fold = parent_levels(taxonomy)[k], np.zeros(len(taxonomy.names[k]), int)
  parent = taxonomy.parents(taxonomy.levels[k], taxonomy.levels[j]) if j >= 0 else fold
  for node in np.unique(parent):
    rows = np.flatnonzero(parent == node)
    fold[rows] = np.arange(len(rows)) % FOLDS
  return fold
