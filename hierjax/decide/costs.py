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
  tree = lineages.nodes(taxonomy.paths)
  levels = len(taxonomy.levels)
  # of the nodes and the root
  unanswered = levels - np.append(tree.depth, 0)
  # a branch that ended early is answered in full
  first_leaf = tree.order[tree.start]
  unanswered[:-1][taxonomy.depth[first_leaf] <= tree.depth] = 0
  if isinstance(rows, str):
    return Costs(taxonomy.paths, tree, price, price * unanswered)
  right = price * unanswered / levels
  # of each row the true leaves bool [leaf] and the answered nodes bool [V]
  true, answered = [], []
  for source, target, cost in rows:
    where = f'costs: the row {source},{target},{cost}'
    if not np.isfinite(cost) or cost < 0:
      raise UserError(f'{where}: a cost must be a number of 0 or more')
    inside = leaves_of([target], taxonomy, where)
    leaves = leaves_of([source], taxonomy, where) if source else np.ones_like(inside)
    nodes = lineages.all_leaves(inside, tree)
    if source == target:
      is_target = nodes & (tree.end - tree.start == inside.sum())
      right[:-1][is_target] = cost
      # such a row says nothing of wrong answers
      leaves = np.zeros_like(inside)
    true.append(leaves)
    answered.append(nodes)
  leaf_group = _groups(true, len(taxonomy.paths))
  node_group = _groups(answered, len(tree.depth))
  wrong = np.ones((leaf_group.max() + 1, node_group.max() + 1))
  for leaves, nodes, (_, _, cost) in zip(true, answered, rows):
    true_groups = np.unique(leaf_group[leaves])
    answered_groups = np.unique(node_group[nodes])
    wrong[np.ix_(true_groups, answered_groups)] = cost
  return Costs(taxonomy.paths, tree, price, right, wrong, leaf_group, node_group)


def _groups(sets, size):
  """Number the members so that those of the same sets are in one group, int [size]."""
  group = np.zeros(size, np.int64)
  for members in sets:
    # each group is split into the members of this set and the others
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
  groups = len(costs.wrong)
  mass = np.zeros((len(posterior), groups))
  for g in range(groups):
    mass[:, g] = posterior[:, costs.leaf_group == g].sum(1)
  # what each node costs if it is wrong for all leaves, then less that of the leaves in it
  wrong = (mass @ costs.wrong)[:, costs.node_group]
  for t, column in enumerate(costs.wrong.T):
    members = np.flatnonzero(costs.node_group == t)
    if np.ptp(column) == 0:
      wrong[:, members] -= column[0] * prob[:, members]
      continue
    # a group's nodes lie side by side in a tree, so that this is one pass over all groups
    start, end = tree.start[members], tree.end[members]
    first, last = start.min(), end.max()
    leaves = tree.order[first:last]
    leaf_costs = posterior[:, leaves] * column[costs.leaf_group[leaves]]
    sums = np.zeros((len(posterior), last - first + 1))
    np.cumsum(leaf_costs, 1, out=sums[:, 1:])
    wrong[:, members] -= sums[:, end - first] - sums[:, start - first]
  values = np.empty((len(posterior), prob.shape[1] + 1))
  values[:, -1] = costs.right[-1]
  np.multiply(prob, costs.right[:-1], out=values[:, :-1])
  # differences of sums may be below 0 by rounding
  values[:, :-1] += np.maximum(wrong, 0, out=wrong)
  return values


def _expected_heights(posterior, costs):
  """Compute `expected` of 'lca': over the levels the probability of an error, or the price."""
  tree = costs.tree
  root = len(tree.depth)
  values = np.empty((len(posterior), root + 1))
  values[:, root] = costs.price * costs.paths.shape[1]
  for k, classes in enumerate(costs.paths.T):
    order = np.argsort(classes, kind='stable')
    starts = np.searchsorted(classes[order], np.arange(classes.max() + 1))
    right = np.add.reduceat(posterior[:, order], starts, axis=1)  # [N, C]
    nodes = np.flatnonzero(tree.depth == k + 1)
    first_leaf = tree.order[tree.start[nodes]]
    parent = tree.of_leaf[first_leaf, k - 1] if k else np.full(len(nodes), root)
    # as the node above, with the probability of an error at this level instead of its price
    block = values[:, nodes[0] : nodes[-1] + 1]
    np.take(values, parent, axis=1, out=block, mode='clip')
    block += 1 - costs.price
    block -= right[:, classes[first_leaf]]
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
  values = np.full(labels.shape, np.nan)
  is_judged = (labels >= 0).all(1)
  path, labels = path[is_judged], labels[is_judged]
  node = costs.tree.of_leaf[path[:, -1]]  # [N, level]
  is_wrong = np.maximum.accumulate(path != labels, 1)
  for k in range(labels.shape[1]):
    cost = realised(labels[:, -1], node[:, k], costs)
    # of 'lca' without the price of the levels below, which is no mistake
    price = 0.0 if costs.wrong is not None else costs.price * (labels.shape[1] - k - 1)
    values[is_judged, k] = (cost - price) * is_wrong[:, k]
  return values


def answer(posterior: np.ndarray, costs: Costs) -> backoff.Answers:
  """Answer with the node of least expected cost, the deepest of equals.

  Args:
    posterior: float [N, leaf], rows sum to 1.
    costs: as `build` makes them.
  """
  tree = costs.tree
  root = len(tree.depth)
  n = len(posterior)
  node, prob, cost = np.zeros(n, int), np.ones(n), np.zeros((n, 2))
  deeper_first = 1e-12 * np.append(tree.depth, 0)
  for rows, p in lineages.blocks(posterior):
    values = expected(p, costs)
    values -= deeper_first
    index = np.arange(len(p))
    best = values.argmin(1)
    likely_leaf = tree.of_leaf[p.argmax(1), -1]
    cost[rows] = np.stack([values[index, best], values[index, likely_leaf]], 1)
    node[rows] = best
    is_node = best < root
    sums = lineages.node_sums(p, tree)
    prob[rows] = np.where(is_node, sums[index, np.where(is_node, best, 0)], 1.0)
  is_root = node == root
  # any node stands for the root, whose path is not read
  node = np.where(is_root, 0, node)
  depth = np.where(is_root, 0, tree.depth[node])
  path = costs.paths[tree.order[tree.start[node]]].astype(np.int32)
  classes, class_prob = lineages.best_children(posterior, costs.paths, path, depth)
  needed, score = np.full((2, n), np.nan)
  return backoff.Answers(path, depth, prob, needed, score, classes, class_prob, cost)
