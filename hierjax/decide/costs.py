"""Answers by what errors cost: the node or leaf of least expected cost, inner nodes included.

Costs are 'lca', the number of levels at which answer and truth differ, or a table of rows (from,
to, cost). A row is what it costs to answer `to`, or a wrong class below it, where the truth is
`from` or below it; with `from` = `to` it is the price of that answer where it is right; with `from`
'' the truth is any class. Later rows go before earlier ones. Where no row is, a wrong answer costs
1. A level that is not answered costs `price`, a share of what a wrong one does.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hierjax.core.errors import UserError
from hierjax.decide import backoff, lineages
from hierjax.taxonomy import Taxonomy, leaves_of

LCA = 'lca'
PRICE = 0.5

Rows = Sequence[tuple[str, str, float]]


class Costs(NamedTuple):
  """What answering each node costs where each leaf is true.

  Attributes:
    paths: int [leaf, level], of the taxonomy.
    tree: its nodes, V of them.
    price: of a level that is not answered.
    right: float [V + 1], of nodes that are right; the root is the last.
    wrong: float [F, T], of wrong answers, by groups of leaves and of nodes; None for 'lca'.
    leaf_group: int [leaf].
    node_group: int [V].
  """

  paths: np.ndarray
  tree: lineages.Nodes
  price: float
  right: np.ndarray
  wrong: np.ndarray | None = None
  leaf_group: np.ndarray | None = None
  node_group: np.ndarray | None = None

  @property
  def largest(self) -> float:
    """The largest cost of a wrong answer."""
    return float(self.paths.shape[1] if self.wrong is None else self.wrong.max())


def build(rows: Rows | str, taxonomy: Taxonomy, price: float = PRICE) -> Costs:
  """Make costs of rows of names.

  Args:
    rows: (from, to, cost), names of any level; or 'lca'.
    taxonomy: the exclusive levels.
    price: of a level that is not answered, as a share of that of a wrong one.

  Raises:
    UserError: a name is no class, or a cost no number of 0 or more.
  """
  tree, levels = lineages.nodes(taxonomy.paths), len(taxonomy.levels)
  unanswered = levels - np.append(tree.depth, 0)
  # a branch that ended early is answered in full
  ends = taxonomy.depth[tree.order[tree.start]] <= tree.depth
  unanswered[:-1][ends] = 0
  if isinstance(rows, str):
    return Costs(taxonomy.paths, tree, price, price * unanswered)
  right = price * unanswered / levels
  true, answered = [], []
  for source, target, cost in rows:
    where = f'costs: the row {source},{target},{cost}'
    if not np.isfinite(cost) or cost < 0:
      raise UserError(f'{where}: a cost must be a number of 0 or more')
    inside = leaves_of([target], taxonomy, where)
    outside = leaves_of([source], taxonomy, where) if source else np.ones_like(inside)
    true.append(outside)
    answered.append(lineages.all_leaves(inside, tree))
    if source == target:
      right[:-1][answered[-1] & (tree.end - tree.start == inside.sum())] = cost
      true[-1] = np.zeros_like(inside)
  leaf_group, node_group = _groups(true, len(taxonomy.paths)), _groups(answered, len(tree.depth))
  wrong = np.ones((leaf_group.max() + 1, node_group.max() + 1))
  for is_true, is_answered, (_, _, cost) in zip(true, answered, rows):
    pairs = np.ix_(np.unique(leaf_group[is_true]), np.unique(node_group[is_answered]))
    wrong[pairs] = cost
  return Costs(taxonomy.paths, tree, price, right, wrong, leaf_group, node_group)


def _groups(sets, size):
  """int [size]: members of the same sets are in one group."""
  group = np.zeros(size, np.int64)
  for members in sets:
    _, group = np.unique(2 * group + members, return_inverse=True)
  return group.reshape(size)


def expected(posterior: np.ndarray, costs: Costs) -> np.ndarray:
  """Compute the expected cost of answering each node.

  Args:
    posterior: float64 [N, leaf]; use `lineages.blocks` for many rows.
    costs: as `build` makes them.

  Returns:
    float64 [N, V + 1], of the nodes and the root.
  """
  if costs.wrong is None:
    return _expected_heights(posterior, costs)
  tree = costs.tree
  prob = lineages.node_sums(posterior, tree)
  f = costs.wrong.shape[0]
  mass = np.zeros((len(posterior), f))
  for g in range(f):
    mass[:, g] = posterior[:, costs.leaf_group == g].sum(1)
  wrong = (mass @ costs.wrong)[:, costs.node_group]
  for t, column in enumerate(costs.wrong.T):
    members = np.flatnonzero(costs.node_group == t)
    if np.ptp(column) == 0:
      wrong[:, members] -= column[0] * prob[:, members]
      continue
    # a group's nodes lie side by side in a tree, so that this is one pass over all groups
    start, end = tree.start[members].min(), tree.end[members].max()
    leaves = tree.order[start:end]
    sums = np.zeros((len(posterior), end - start + 1))
    np.cumsum(posterior[:, leaves] * column[costs.leaf_group[leaves]], 1, out=sums[:, 1:])
    wrong[:, members] -= sums[:, tree.end[members] - start] - sums[:, tree.start[members] - start]
  values = np.empty((len(posterior), prob.shape[1] + 1))
  values[:, -1] = costs.right[-1]
  np.multiply(prob, costs.right[:-1], out=values[:, :-1])
  values[:, :-1] += np.maximum(wrong, 0, out=wrong)
  return values


def _expected_heights(posterior, costs):
  """`expected` of 'lca': the sum over the levels of the probability of an error, or the price."""
  tree, levels = costs.tree, costs.paths.shape[1]
  values = np.empty((len(posterior), len(tree.depth) + 1))
  values[:, -1] = costs.price * levels
  for k, classes in enumerate(costs.paths.T):
    order = np.argsort(classes, kind='stable')
    starts = np.searchsorted(classes[order], np.arange(classes.max() + 1))
    right = np.add.reduceat(posterior[:, order], starts, axis=1)
    nodes = np.flatnonzero(tree.depth == k + 1)
    leaf = tree.order[tree.start[nodes]]
    above = tree.of_leaf[leaf, k - 1] if k else np.full(len(leaf), len(tree.depth))
    block = values[:, nodes[0] : nodes[-1] + 1]
    np.take(values, above, axis=1, out=block, mode='clip')
    block += 1 - costs.price
    block -= right[:, classes[leaf]]
  return values


def realised(leaf: np.ndarray, node: np.ndarray, costs: Costs) -> np.ndarray:
  """Compute what answers cost.

  Args:
    leaf: int [N], the true ones.
    node: int [N], the answers; -1 for the root.
    costs: as `build` makes them.

  Returns:
    float64 [N].
  """
  tree = costs.tree
  depth = np.where(node >= 0, tree.depth[node], 0)
  first = np.where(node >= 0, tree.order[tree.start[node]], leaf)
  if costs.wrong is None:
    levels = np.arange(costs.paths.shape[1])
    is_wrong = (costs.paths[first] != costs.paths[leaf]) & (levels < depth[:, None])
    return is_wrong.sum(1) + costs.price * (len(levels) - depth)
  is_wrong = (node >= 0) & (tree.of_leaf[leaf, depth - 1] != node)
  wrong = costs.wrong[costs.leaf_group[leaf], costs.node_group[node]]
  return np.where(is_wrong, wrong, costs.right[node])


def losses(path: np.ndarray, labels: np.ndarray, costs: Costs) -> np.ndarray:
  """Compute what wrong nodes on lineages cost, as `backoff.fit_backoff` takes it.

  Args:
    path: int [N, level], paths of the taxonomy.
    labels: int [N, level], -1 unknown.
    costs: as `build` makes them.

  Returns:
    float64 [N, level], 0 for a right node, NaN without a full path.
  """
  is_judged, values = (labels >= 0).all(1), np.full(labels.shape, np.nan)
  leaf, node = labels[is_judged, -1], costs.tree.of_leaf[path[is_judged, -1]]
  is_wrong = np.maximum.accumulate(path[is_judged] != labels[is_judged], 1)
  for k in range(labels.shape[1]):
    price = 0.0 if costs.wrong is not None else costs.price * (labels.shape[1] - k - 1)
    values[is_judged, k] = (realised(leaf, node[:, k], costs) - price) * is_wrong[:, k]
  return values


def answer(posterior: np.ndarray, costs: Costs) -> backoff.Answers:
  """Answer with the node of least expected cost, the deepest of equals.

  Args:
    posterior: float [N, leaf], rows sum to 1.
    costs: as `build` makes them.
  """
  tree, n = costs.tree, len(posterior)
  node, prob, cost = np.zeros(n, int), np.ones(n), np.zeros((n, 2))
  bias = 1e-12 * np.append(tree.depth, 0)
  for rows, p in lineages.blocks(posterior):
    values, index = expected(p, costs), np.arange(len(p))
    likely = tree.of_leaf[p.argmax(1), -1]
    values -= bias
    best = values.argmin(1)
    cost[rows] = np.stack([values[index, best], values[index, likely]], 1)
    sums = lineages.node_sums(p, tree)
    node[rows], is_node = best, best < len(tree.depth)
    prob[rows] = np.where(is_node, sums[index, np.where(is_node, best, 0)], 1.0)
  is_root = node == len(tree.depth)
  first = tree.order[tree.start[np.where(is_root, 0, node)]]
  depth = np.where(is_root, 0, tree.depth[np.where(is_root, 0, node)])
  path = costs.paths[first].astype(np.int32)
  below = lineages.best_children(posterior, costs.paths, path, depth)
  return backoff.Answers(path, depth, prob, *np.full((2, n), np.nan), *below, cost)
