"""Heads whose levels are computed from each other along the tree, and how logits are joined."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from hierjax.core.segments import segment_logsumexp, segment_sum
from hierjax.models.heads_base import Array, Heads, Logits
from hierjax.taxonomy import Taxonomy


def distinct_nodes(taxonomy: Taxonomy, levels: Sequence[str]) -> dict[str, np.ndarray]:
  """Return which classes are nodes of the tree, not a branch's last class carried down.

  Args:
    taxonomy: of the levels.
    levels: some of these, coarse to fine.

  Returns:
    {level: bool [C]}, False for a class that one of the coarser levels in `levels` has already.
  """
  nodes, reached = {}, 0
  for level in levels:
    k = taxonomy.index(level)
    nodes[level] = np.ones(taxonomy.num_classes(level), bool)
    nodes[level][taxonomy.paths[taxonomy.depth <= reached, k]] = False
    reached = k + 1
  return nodes


def path_sums(logits: Logits, taxonomy: Taxonomy) -> Array:
  """Sum the logits of the nodes on the path of each leaf; a carried class counts once.

  Args:
    logits: {level: [B, C]} of the nodes, coarse to fine; other levels than the taxonomy's are left
      out.
    taxonomy: of the levels.

  Returns:
    [B, leaf].
  """
  nodes = distinct_nodes(taxonomy, [level for level in logits if level in taxonomy.levels])
  return sum(
    jnp.where(nodes[level][None], logits[level], 0.0)[:, taxonomy.paths[:, taxonomy.index(level)]]
    for level in nodes
  )


def marginals(leaf_logits: Array, taxonomy: Taxonomy, levels: Sequence[str]) -> Logits:
  """Compute logits of classes whose softmax is the sum of the probabilities of their leaves.

  Args:
    leaf_logits: [B, leaf].
    taxonomy: of the levels.
    levels: some of these.

  Returns:
    {level: [B, C]}.
  """
  logits = {}
  for level in levels:
    logits[level] = leaf_logits
    if level != taxonomy.levels[-1]:
      column = taxonomy.paths[:, taxonomy.index(level)]
      logits[level] = segment_logsumexp(leaf_logits, column, taxonomy.num_classes(level))
  return logits


class Marginal(Heads):
  """One linear head on the finest level; a coarser class's probability is the sum of its leaves'.

  The cross-entropy of a level is then the tree-marginal loss -log of that sum (as in HRN, Chen et
  al. 2022, arXiv:2201.03194), by which images with coarse labels train the finest classes too.
  Probabilities never contradict each other; the joint decision is that of the finest level. The
  most likely make need not be that of the most likely model.

  Attributes:
    taxonomy: of the exclusive levels. Tag levels have linear heads of their own.
  """

  taxonomy: Taxonomy | None = None

  @nn.nowrap
  def _logits(self, x: Array, train: bool) -> Logits:
    coarser = self.taxonomy.levels[:-1]
    nodes = {level: self.linear(level, n)(x) for level, n in self.classes if level not in coarser}
    return self._with_marginals(nodes, nodes[self.taxonomy.levels[-1]])

  @nn.nowrap
  def _with_marginals(self, nodes: Logits, leaf_logits: Array) -> Logits:
    """The logits of all levels: marginals of the leaves', and those of the tag levels."""
    levels = [level for level, _ in self.classes if level in self.taxonomy.levels]
    tags = {level: logits for level, logits in nodes.items() if level not in levels}
    return marginals(leaf_logits, self.taxonomy, levels) | tags


class PathSum(Marginal):
  """A linear head a level; a leaf's logit is the sum of the logits of the nodes on its path.

  The parameter-sharing softmax of Valmadre (2022, arXiv:2210.10929): softmax over the leaves, and a
  coarser class's probability is the sum of its leaves', as in `Marginal`. Leaves learn from each
  other through the nodes they share. Facets are nodes on the path, too. A branch that ends early
  has the nodes that it reaches.
  """

  @nn.nowrap
  def _logits(self, x: Array, train: bool) -> Logits:
    nodes = {level: self.linear(level, n)(x) for level, n in self.classes}
    return self._with_marginals(nodes, path_sums(nodes, self.taxonomy))


class HierCos(Heads):
  """A class's logit is the norm of the features' projection on its path and the classes below it.

  Hier-COS (Sani and Anand, CVPR 2026, arXiv:2503.07853): a linear layer gives each node a
  coordinate z, and as the nodes' basis vectors are orthonormal, score^2 = z^2 M' with M the 0/1
  masks of these nodes. For a leaf they are its path. The levels learn by cross-entropy on the
  scores here; the authors fit |z| of all nodes to a distribution over the path (KL divergence).
  Facets are not each other's ancestors; a branch that ends early has the nodes that it reaches.

  Attributes:
    taxonomy: of the exclusive levels. Tag levels have linear heads of their own.
  """

  taxonomy: Taxonomy | None = None

  @nn.nowrap
  def _logits(self, x: Array, train: bool) -> Logits:
    out = {level: self.linear(level, n)(x) for level, n in self.classes}
    levels, nests = [l for l in out if l in self.taxonomy.levels], self.taxonomy.nests
    nodes = distinct_nodes(self.taxonomy, levels)
    squares = {level: jnp.where(nodes[level][None], out[level] ** 2, 0.0) for level in levels}
    for k, level in enumerate(levels):
      total = squares[level]
      for coarser in levels[:k]:
        if nests(level, coarser):
          total += squares[coarser][:, self.taxonomy.parents(level, coarser)]
      for finer in levels[k + 1 :]:
        if nests(finer, level):
          total += segment_sum(squares[finer], self.taxonomy.parents(finer, level), total.shape[1])
      # the root has no slope at 0
      out[level] = jnp.sqrt(total + 1e-12)
    return out
