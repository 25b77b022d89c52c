"""Iterative stratification: what it promises, and the papers' algorithm in plain loops."""

import csv
import itertools
from collections import Counter

import numpy as np
import pytest

from hierjax.data import stratify


def draw(seed, n=300, classes=7):
  """Labels whose classes come together: a row is a few of some themes, most of them rare."""
  rng = np.random.default_rng(seed)
  themes = rng.random((5, classes)) < 0.35
  return (
    themes[np.minimum(rng.geometric(0.45, n), 5) - 1] & (rng.random((n, classes)) < 0.8)
  ).astype(np.int8)


def plain(labels, share, line, order):
  """The algorithm as the papers print it, without a heap, on dense columns."""
  classes = range(labels.shape[1])
  columns = {
    key: labels[:, list(key)].all(1)
    for key in itertools.combinations_with_replacement(classes, order)
  }
  lacks = {key: [s * column.sum() for s in share] for key, column in columns.items()}
  room, parts = [s * len(labels) for s in share], np.full(len(labels), -1)

  def put(i, want):
    best = max(range(len(share)), key=lambda k: (round(want[k], 9), round(room[k], 9)))
    parts[i] = best
    room[best] -= 1
    for key, column in columns.items():
      lacks[key][best] -= column[i]

  while True:
    left = {key: int((column & (parts < 0)).sum()) for key, column in columns.items()}
    subset = [(count, key) for key, count in left.items() if count]
    if not subset:
      break
    key = min(subset)[1]
    for i in line:
      if columns[key][i] and parts[i] < 0:
        put(i, lacks[key])
  for i in line:
    if parts[i] < 0:
      put(i, room)
  return parts


@pytest.mark.parametrize('order', [1, 2])
@pytest.mark.parametrize('fractions', [(0.8, 0.2), (0.7, 0.2, 0.1), (1, 1, 1, 1)])
def test_against_plain_loops(fractions, order):
  for seed in range(4):
    labels = draw(seed, 120, 5)
    share = np.array(fractions) / sum(fractions)
    expected = plain(labels, share, stratify.shuffled(range(len(labels)), seed), order)
    np.testing.assert_array_equal(
      stratify.iterative(labels, fractions, seed, order=order), expected
    )


def off(labels, parts, share, order):
  """How far the parts are from their shares, in examples: the worst part, mean over the keys."""
  keys = [
    labels[:, list(key)].all(1) for key in itertools.combinations(range(labels.shape[1]), order)
  ]
  return np.mean(
    [
      np.abs(np.bincount(parts[k], minlength=len(share)) - share * k.sum()).max()
      for k in keys
      if k.any()
    ]
  )


def test_classes_and_pairs_keep_their_shares_better_than_by_chance():
  share, result = np.array([0.7, 0.2, 0.1]), []
  for seed in range(10):
    labels = draw(seed)
    chance = np.random.default_rng(seed).permutation(np.repeat([0, 1, 2], [210, 60, 30]))
    splits = [stratify.iterative(labels, share, seed, order=order) for order in (1, 2)]
    result.append(
      [[off(labels, parts, share, order) for order in (1, 2)] for parts in (chance, *splits)]
    )
    for parts in splits:
      assert np.abs(np.bincount(parts, minlength=3) - 300 * share).max() <= 6
  chance, first, second = np.mean(result, 0)
  assert (
    first[0] < 0.3 * chance[0]
    and second[0] < 0.5 * chance[0]
    and second[1] < 0.4 * chance[1]
    and second[1] < 0.8 * first[1]
  ), (chance, first, second)


def test_exclusive_classes_are_within_one_example_of_their_share():
  rng = np.random.default_rng(0)
  labels, share = rng.choice(9, 500, p=rng.dirichlet(np.ones(9))), np.array([0.65, 0.2, 0.15])
  for partial in (labels, np.eye(9, dtype=int)[labels]):
    parts = stratify.iterative(partial, share, 3)
    for c in range(9):
      assert (
        np.abs(np.bincount(parts[labels == c], minlength=3) - share * (labels == c).sum()).max() < 1
      )


def test_rows_without_a_class_are_spread_by_what_room_is_left():
  for labels in (np.zeros((40, 3), int), np.full((40, 3), -1), np.full(40, -1)):
    assert np.bincount(stratify.iterative(labels, (0.75, 0.25), 0)).tolist() == [30, 10]
  labels = np.array([[1, 0]] * 10 + [[0, 0]] * 30)
  assert np.bincount(stratify.iterative(labels, (0.5, 0.5), 0)).tolist() == [20, 20]


def test_a_class_of_one_example_stays_in_the_largest_part():
  labels = np.eye(5, dtype=int)
  assert stratify.iterative(labels, (0.2, 0.7, 0.1), 0).tolist() == [1] * 5


def test_the_seed_decides_and_the_order_of_the_rows_does_not():
  labels, files = draw(1), [f'images/{i}.jpg' for i in range(300)]
  parts = stratify.iterative(labels, (0.8, 0.2), 5, files)
  np.testing.assert_array_equal(parts, stratify.iterative(labels, (0.8, 0.2), 5, files))
  assert (parts != stratify.iterative(labels, (0.8, 0.2), 6, files)).any()
  mixed = np.random.default_rng(0).permutation(300)
  np.testing.assert_array_equal(
    parts[mixed], stratify.iterative(labels[mixed], (0.8, 0.2), 5, [files[i] for i in mixed])
  )


@pytest.mark.parametrize('labels', [np.zeros((0, 4), int), np.zeros(0, int)])
def test_nothing(labels):
  assert stratify.iterative(labels, (0.8, 0.2), 0).shape == (0,)


def test_scenes_keep_their_label_sets(shared):
  with (shared / 'scenes' / 'labels.csv').open() as file:
    rows = list(csv.DictReader(file))
  names = [k for k in rows[0] if k not in ('file', 'split')]
  labels, files = (
    np.array([[int(row[k]) for k in names] for row in rows]),
    [row['file'] for row in rows],
  )
  parts = stratify.iterative(labels, (0.8, 0.2), 0, files)
  sets = Counter(map(tuple, labels.tolist()))
  mask = Counter(map(tuple, labels[parts == 1].tolist()))
  assert max(abs(mask[s] - 0.2 * n) for s, n in sets.items()) <= 3
