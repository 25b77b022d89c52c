"""Conformal sets: order statistics, coverage by simulation, covers against all choices of nodes."""

import itertools

import numpy as np
import pytest

from hierjax.decide import lineages, sets
from hierjax.taxonomy import Taxonomy

TREE = Taxonomy.from_rows(
  ('order', 'genus', 'species'), [[f'o{i // 6}', f'g{i // 2}', f's{i}'] for i in range(18)]
)
FACETS = Taxonomy.from_rows(
  ('make', 'type', 'model'), [[f'm{i % 4}', f't{(i * 7) % 3}', f'x{i}'] for i in range(20)]
)


def sample(n, seed, leaves=18):
  rng = np.random.default_rng(seed)
  truth = rng.integers(leaves, size=n)
  p = np.exp(1.5 * rng.normal(size=(n, leaves)) + 2.25 * np.eye(leaves)[truth])
  return p / p.sum(1, keepdims=True), truth


@pytest.mark.parametrize('kind', ['lac', 'aps'])
def test_limits_and_sets_against_loops(kind, monkeypatch):
  monkeypatch.setattr(lineages, 'BLOCK_SIZE', 100)
  p, truth = sample(60, 0)
  labels = np.where(np.arange(60) % 6, truth, -1)
  rule = sets.fit_sets(p, labels, 0.1, kind)
  needed = []
  for row, y in zip(p, labels):
    if y >= 0:
      needed.append(1 - row[y] if kind == 'lac' else row[row >= row[y]].sum())
  assert rule.examples == 50 and rule.limit == pytest.approx(sorted(needed)[46 - 1])
  for row, leaves in zip(p, sets.leaf_sets(p, rule)):
    order, total, expected = np.argsort(-row), 0.0, []
    for leaf in order:
      total += row[leaf]
      value = 1 - row[leaf] if kind == 'lac' else total
      if value <= rule.limit + 1e-12 or not expected:
        expected.append(leaf)
    assert leaves.tolist() == sorted(expected)
  assert sets.fit_sets(p[:5], truth[:5], 0.1, kind).limit == np.inf


@pytest.mark.parametrize('kind', ['lac', 'aps'])
def test_all_levels_hold_the_truth_together_as_often_as_stated(kind):
  p, truth = sample(4000, 1)
  rng, shares = np.random.default_rng(2), []
  for _ in range(100):
    order = rng.permutation(4000)
    rule = sets.fit_sets(p[order[:100]], truth[order[:100]], 0.1, kind)
    new = order[100:400]
    shares.append(np.mean([y in s for y, s in zip(truth[new], sets.leaf_sets(p[new], rule))]))
  assert np.mean(shares) > 0.9 - 2 * np.std(shares) / 10
  leaves = sets.leaf_sets(p[:1], rule)[0]
  levels = sets.level_sets(leaves, TREE.paths)
  assert [set(x) for x in levels] == [{TREE.paths[i, k] for i in leaves} for k in range(3)]


@pytest.mark.parametrize('table', [TREE, FACETS], ids=['tree', 'facets'])
@pytest.mark.parametrize('most', [1, 2, 3])
def test_covers_against_all_choices_of_nodes(table, most):
  rng, n = np.random.default_rng(3), len(table.paths)
  nodes = {}
  for leaf, depth in itertools.product(range(n), range(4)):
    inside = (table.paths[:, :depth] == table.paths[leaf, :depth]).all(1)
    nodes[tuple(np.flatnonzero(inside))] = (leaf, depth)
  for _ in range(6):
    leaves = rng.choice(n, rng.integers(1, 6), replace=False)
    smallest = min(
      len({i for members in choice for i in members})
      for count in range(1, most + 1)
      for choice in itertools.combinations(nodes, count)
      if {*leaves} <= {i for members in choice for i in members}
    )
    cover = sets.cover(leaves, table.paths, most)
    covered = set()
    for leaf, depth in cover:
      inside = (table.paths[:, :depth] == table.paths[leaf, :depth]).all(1)
      covered |= {*np.flatnonzero(inside).tolist()}
    assert {*leaves.tolist()} <= covered and len(covered) == smallest and len(cover) <= most
