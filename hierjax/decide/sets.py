"""Sets of leaves that hold the true one with a stated probability, and few nodes that cover them.

A set of leaves gives consistent sets on every level, the classes of its leaves, that all hold the
truth together whenever the set of leaves does.
"""

from typing import NamedTuple

import numpy as np

from hierjax.decide import lineages


class SetRule(NamedTuple):
  """Which leaves are in a set.

  Attributes:
    risk: probability at most that the true leaf is not.
    kind: 'lac' takes the leaves above a probability: the smallest sets on average (Sadinle et al.
      2019); 'aps' the most likely ones up to a total, whose size follows how hard an image is
      (Romano et al. 2020, without their randomisation).
    limit: of 1 - the probability, or of the total; inf where the examples are too few.
    examples: number of calibration examples.
    split: where they are from.
  """

  risk: float
  kind: str
  limit: float
  examples: int
  split: str = ''


def fit_sets(posterior: np.ndarray, leaf: np.ndarray, risk: float, kind: str = 'lac') -> SetRule:
  """Set the limit on calibration examples: the ceil((n + 1)(1 - risk))-th smallest they need.

  Args:
    posterior: float [N, leaf], rows sum to 1.
    leaf: int [N], the true ones; -1 unknown, which do not count.
    risk: see `SetRule`.
    kind: 'lac' or 'aps'.
  """
  # the limit at which the set of each example would hold its true leaf
  needed = np.full(len(leaf), np.inf)
  for rows, p in lineages.blocks(posterior):
    true_leaf = np.maximum(leaf[rows], 0)
    needed[rows] = _totals(p, kind)[np.arange(len(p)), true_leaf]
  needed = np.sort(needed[leaf >= 0])
  # rounding must not cost an example
  rank = int(np.ceil((len(needed) + 1) * (1 - risk) - 1e-9))
  limit = np.append(needed, np.inf)[rank - 1]
  return SetRule(risk, kind, float(limit), len(needed))


def _totals(p, kind):
  """Compute what the limit must be for each leaf to be in the set, float [N, leaf]."""
  if kind == 'lac':
    return 1 - p
  order = np.argsort(-p, 1, kind='stable')
  sums = np.cumsum(np.take_along_axis(p, order, 1), 1)
  totals = np.empty_like(p)
  np.put_along_axis(totals, order, sums, 1)
  return totals


def leaf_sets(posterior: np.ndarray, rule: SetRule) -> list[np.ndarray]:
  """Return for each example the leaves of its set, ascending; at least the most likely one.

  Args:
    posterior: float [N, leaf].
    rule: as `fit_sets` returns it.
  """
  sets = []
  for _, p in lineages.blocks(posterior):
    is_in = _totals(p, rule.kind) <= rule.limit
    is_in[np.arange(len(p)), p.argmax(1)] = True
    sets += [np.flatnonzero(row) for row in is_in]
  return sets


def level_sets(leaves: np.ndarray, paths: np.ndarray) -> list[np.ndarray]:
  """Return for each level the classes of a set of leaves, ascending.

  Args:
    leaves: int [n].
    paths: int [leaf, level], of the taxonomy.
  """
  return [np.unique(paths[leaves, k]) for k in range(paths.shape[1])]


def cover(leaves: np.ndarray, paths: np.ndarray, most: int) -> list[tuple[int, int]]:
  """Choose at most so many nodes of any level that hold a set of leaves and the fewest others.

  Args:
    leaves: int [n], at least one.
    paths: int [leaf, level], of the taxonomy.
    most: number of nodes.

  Returns:
    (leaf, depth) of each node: the first levels of that leaf's path; depth 0 is the root.
  """
  tree = lineages.nodes(paths)
  place = np.empty(len(paths), int)
  place[tree.order] = np.arange(len(paths))
  leaves = leaves[np.argsort(place[leaves])]

  def best(members, depth):
    """{number of nodes: (leaves in them, nodes)} below a node, by dynamic programming."""
    node = tree.of_leaf[members[0], depth - 1]
    size = int(tree.end[node] - tree.start[node]) if depth else len(paths)
    options = {1: (size, [(int(members[0]), depth)])}
    if depth == paths.shape[1] or len(members) == size:
      return options
    _, starts = np.unique(tree.of_leaf[members, depth], return_index=True)
    below = {0: (0, [])}
    for child in np.split(members, np.sort(starts)[1:]):
      below = _combine(below, best(child, depth + 1), most)
    for count, option in below.items():
      if count not in options or option[0] <= options[count][0]:
        options[count] = option
    return options

  options = best(leaves, 0)
  fewest_leaves = min(options, key=lambda count: (options[count][0], count))
  return options[fewest_leaves][1]


def _combine(options, others, most):
  """Join the nodes of each two options, and take the one with the fewest leaves of each number.

  Options are {number of nodes: (leaves in them, nodes)}, with at most `most` nodes.
  """
  joined = {}
  for number, (size, nodes) in options.items():
    for other_number, (other_size, other_nodes) in others.items():
      total = number + other_number
      if total > most:
        continue
      if total not in joined or size + other_size < joined[total][0]:
        joined[total] = (size + other_size, nodes + other_nodes)
  return joined
