"""Nodes of a taxonomy and their children, at which images of new classes are looked for."""

from collections.abc import Mapping

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


def level_logits(logits: Mapping[str, np.ndarray], taxonomy: Taxonomy) -> list[np.ndarray]:
  """Return the logits of every level.

  Args:
    logits: {level with a head: float [N, C]}, the finest level among them.
    taxonomy: the table of the exclusive levels.

  Returns:
    Per level float64 [N, C]; of a level without a head the log-sum-exp of the finest head's over
    the leaves of each class.
  """
  finest = np.asarray(logits[taxonomy.levels[-1]], np.float64)
  summed = taxonomy.merge(finest, np.logaddexp) if len(logits) < len(taxonomy.levels) else ()
  return [
    np.asarray(logits[level], np.float64) if level in logits else summed[k]
    for k, level in enumerate(taxonomy.levels)
  ]


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
