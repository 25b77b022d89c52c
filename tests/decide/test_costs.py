"""Answers of least expected cost against brute force over all pairs of leaf and node."""

import numpy as np
import pytest

from hierjax.core.errors import UserError
from hierjax.decide import backoff, costs, lineages
from hierjax.taxonomy import Taxonomy

TREE = Taxonomy.from_rows(
  ('order', 'genus', 'species'), [[f'o{i // 6}', f'g{i // 2}', f's{i}'] for i in range(18)]
)
FACETS = Taxonomy.from_rows(
  ('make', 'type', 'model'), [[f'm{i % 4}', f't{(i * 7) % 3}', f'x{i}'] for i in range(20)]
)
UNEVEN = Taxonomy.from_rows(
  ('a', 'b', 'c'),
  [['p', '', ''], ['q', 'q1', ''], ['q', 'q2', 'z'], ['q', 'q2', 'y'], ['r', 'r1', 'r1a']],
)
TABLES = {
  'tree': (
    TREE,
    [('o1', 'o0', 7), ('', 'g8', 3), ('g0', 'g0', 0.02), ('s0', 's1', 0), ('', 's5', 9)],
  ),
  'facets': (FACETS, [('t1', 't0', 5), ('m0', 'm1', 0.1), ('x3', 't1', 2), ('x5', 'x5', 0.3)]),
  'uneven': (UNEVEN, [('p', 'q', 4), ('q', 'q', 0.1), ('z', 'y', 0.2), ('', 'r', 1.5)]),
}


def members(table, name):
  """The leaves of a class by its name, all without one."""
  rows = table.rows()
  return {i for i, row in enumerate(rows) if not name or name in row}


def node_leaves(table, leaf, depth):
  return {
    i for i, row in enumerate(table.paths) if (row[:depth] == table.paths[leaf, :depth]).all()
  }


def pair_cost(table, rows, price, truth, leaf, depth):
  """What it costs to answer the first levels of a leaf's path where another leaf is true."""
  levels, inside = len(table.levels), node_leaves(table, leaf, depth)
  left = levels - (levels if depth >= table.depth[leaf] else depth)
  if rows == costs.LCA:
    differs = [table.paths[truth, k] != table.paths[leaf, k] for k in range(depth)]
    return sum(differs) + price * (levels - depth)
  if depth == 0:
    return price
  if truth in inside:
    values = [c for a, b, c in rows if a == b and members(table, b) == inside]
    return [price * left / levels, *values][-1]
  cost = 1.0
  for a, b, c in rows:
    if a != b and truth in members(table, a) and inside <= members(table, b):
      cost = c
  return cost


def posterior(leaves, n=25, seed=0):
  p = np.random.default_rng(seed).dirichlet(np.full(leaves, 0.15), n)
  return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize('name', TABLES)
@pytest.mark.parametrize('kind', ['table', 'lca'])
def test_against_brute_force(name, kind, monkeypatch):
  monkeypatch.setattr(lineages, 'BLOCK_SIZE', 100)
  table, rows = TABLES[name]
  rows = costs.LCA if kind == 'lca' else rows
  built, n = costs.build(rows, table, 0.4), len(table.paths)
  p = posterior(n)
  nodes = [(leaf, depth) for leaf in range(n) for depth in range(1, 4)] + [(0, 0)]
  matrix = np.array([[pair_cost(table, rows, 0.4, t, *v) for v in nodes] for t in range(n)])
  brute = p @ matrix
  values = costs.expected(p, built)
  ids = [built.tree.of_leaf[leaf, d - 1] if d else -1 for leaf, d in nodes]
  np.testing.assert_allclose(values[:, ids], brute, atol=1e-12)
  answers = costs.answer(p, built)
  np.testing.assert_allclose(answers.cost[:, 0], brute.min(1), atol=1e-12)
  likely = [nodes.index((leaf, 3)) for leaf in p.argmax(1)]
  np.testing.assert_allclose(answers.cost[:, 1], brute[np.arange(25), likely], atol=1e-12)
  truth = np.arange(25) % n
  node = np.where(
    answers.depth, built.tree.of_leaf[answers.path[:, -1], np.maximum(answers.depth - 1, 0)], -1
  )
  realised = costs.realised(truth, node, built)
  for i in range(25):
    leaf, depth = answers.path[i, -1], answers.depth[i]
    assert realised[i] == pytest.approx(pair_cost(table, rows, 0.4, truth[i], leaf, depth))
    inside = sorted(node_leaves(table, leaf, depth))
    assert answers.prob[i] == pytest.approx(p[i, inside].sum())
  assert 0 < (answers.depth < 3).mean() < 1


def test_losses_of_a_lineage_are_those_of_its_wrong_nodes():
  table, rows = TABLES['tree']
  p = posterior(18, 40, 1)
  labels = table.paths[np.arange(40) % 18].copy()
  labels[3, 2] = -1
  line = lineages.lineage(p, table.paths)
  for kind in (rows, costs.LCA):
    built = costs.build(kind, table)
    losses = costs.losses(line.path, labels, built)
    assert np.isnan(losses[3]).all() and losses[4:].max() <= built.largest
    for i in (0, 1, 2, *range(4, 40)):
      for k in range(3):
        is_right = (line.path[i, : k + 1] == labels[i, : k + 1]).all()
        cost = pair_cost(table, kind, 0, labels[i, -1], line.path[i, -1], k + 1)
        assert losses[i, k] == pytest.approx(0 if is_right else cost)
    bound = built.largest
    rule = backoff.fit_backoff(line, losses, 0.3 * bound, bound=bound)
    depth = backoff.answered_depth(line, rule)
    rows_judged = np.isfinite(losses[:, 0])
    total = [losses[i, d - 1] if d else 0 for i, d in enumerate(depth) if rows_judged[i]]
    assert sum(total) <= 0.3 * bound * 40 - bound + 1e-6


def test_a_price_of_half_a_level_answers_to_the_depth_that_is_more_likely_than_not():
  p = posterior(18, 200, 2)
  answers = costs.answer(p, costs.build(costs.LCA, TREE, 0.5))
  line = lineages.lineage(p, TREE.paths)
  depth = (line.prob > 0.5).sum(1)
  assert (answers.depth == depth)[line.prob[:, 0] > 0.5].all()
  free = costs.answer(p, costs.build(costs.LCA, TREE, 1.0))
  assert (free.depth == 3).all()


def test_rows_that_name_no_class_or_cost_are_refused():
  with pytest.raises(UserError, match=r"the row o9,o0,1: .*'o9' is no class"):
    costs.build([('o9', 'o0', 1)], TREE)
  with pytest.raises(UserError, match='a number of 0 or more'):
    costs.build([('o1', 'o0', -1)], TREE)
