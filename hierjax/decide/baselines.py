"""Rules of others for how deep to answer, to compare with: none of them guarantees a risk.

Each returns nodes as `lineages.nodes` numbers them, -1 for the root.
"""

from collections.abc import Sequence

import numpy as np

from hierjax.decide import lineages

# SpeciesNet's thresholds: of a species, and of a sum over species.
SPECIES, SUMS = 0.8, 0.65


def darts(posterior: np.ndarray, paths: np.ndarray, bonuses: Sequence[float]) -> np.ndarray:
  """Choose the nodes with the largest (information gain + bonus) * probability.

  This is DARTS (Deng et al. 2012, "Hedging your bets"), whose bonus is tuned on validation images
  until few enough answers are wrong. A node's gain is the logarithm of the number of leaves over
  that of its own; the root's is 0.

  Args:
    posterior: float [N, leaf], rows sum to 1.
    paths: int [leaf, level].
    bonuses: values to try.

  Returns:
    int [bonus, N].
  """
  tree = lineages.nodes(paths)
  gain = np.log2(len(paths)) - np.log2(tree.end - tree.start)
  node = np.full((len(bonuses), len(posterior)), -1)
  for rows, p in lineages.blocks(posterior):
    sums = lineages.node_sums(p, tree)
    for i, bonus in enumerate(bonuses):
      values = sums * (gain + bonus)
      # of nodes with the same leaves the deepest
      best = values.shape[1] - 1 - values[:, ::-1].argmax(1)
      highest = values[np.arange(len(p)), best]
      node[i, rows] = np.where(highest >= bonus, best, -1)
  return node


def best_by_level(posterior: np.ndarray, paths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Find the most likely node of each level, which need not be on the most likely leaf's lineage.

  Args:
    posterior: float [N, leaf].
    paths: int [leaf, level].

  Returns:
    int [N, level], the nodes, and float64 [N, level], their probabilities.
  """
  tree = lineages.nodes(paths)
  shape = len(posterior), paths.shape[1]
  node = np.zeros(shape, int)
  prob = np.zeros(shape)
  for rows, p in lineages.blocks(posterior):
    for k in range(paths.shape[1]):
      sums = lineages.node_sums(p, tree, k + 1)
      best = sums.argmax(1)
      node[rows, k] = np.flatnonzero(tree.depth == k + 1)[best]
      prob[rows, k] = sums[np.arange(len(p)), best]
  return node, prob


def speciesnet(
  node: np.ndarray, prob: np.ndarray, species: float = SPECIES, sums: float = SUMS
) -> np.ndarray:
  """Choose the most likely leaf above one threshold, else the deepest sum above another.

  This is what SpeciesNet does with the scores of a classifier, without its rules by region.

  Args:
    node: int [N, level], as `best_by_level` gives it.
    prob: float [N, level], likewise.
    species: threshold of a leaf.
    sums: threshold of the sum over the leaves of a coarser node.

  Returns:
    int [N].
  """
  limits = np.full(node.shape[1], sums)
  limits[-1] = species
  is_safe = prob >= limits
  deepest = node.shape[1] - 1 - is_safe[:, ::-1].argmax(1)
  return np.where(is_safe.any(1), node[np.arange(len(node)), deepest], -1)


def on_lineage(prob: np.ndarray, threshold: float) -> np.ndarray:
  """Count the levels of lineages float [N, level] that reach a fixed threshold, int [N]."""
  return (prob >= threshold).sum(1)
