"""The drawn set: a pure function of (seed, split, index) that shows make, type and detail."""

import itertools
import pickle

import numpy as np
import pytest

from hierjax.data import dataset, toy


def load(**options):
  """The taxonomy and {split: (files, labels, reader)}."""
  table = toy.table(**options)
  parts = {}
  for split in ('train', 'val'):
    examples = dataset.subset(table, np.flatnonzero([s == split for s in table.splits]), split)
    parts[split] = examples.files, examples.labels, examples.reader
  return table.taxonomy, parts


@pytest.fixture(scope='module')
def toy_set():
  return load(train=400, val=100)


def test_taxonomy_has_facets_twins_and_a_make_with_one_model(toy_set):
  taxonomy, splits = toy_set
  assert taxonomy.levels == ('make', 'type', 'model')
  assert taxonomy.nests('model', 'make') and taxonomy.nests('model', 'type')
  assert not taxonomy.nests('type', 'make') and not taxonomy.nests('make', 'type')
  pairs = [tuple(p) for p in taxonomy.paths[:, :2].tolist()]
  assert len(set(pairs)) < len(pairs)  # two models that only a detail tells apart
  assert (np.bincount(taxonomy.paths[:, 0]) == 1).any()
  for (files, labels, _), n in zip(splits.values(), (400, 100)):
    assert len(files) == len(labels) == n and len(set(files)) == n
    np.testing.assert_array_equal(labels, taxonomy.paths[labels[:, -1]])
    assert (np.bincount(labels[:, -1], minlength=18) > 0).all()


def test_a_picture_depends_on_seed_split_and_index_alone(toy_set):
  _, splits = toy_set
  _, second = load(train=30, val=7)
  read, reread = splits['train'][2], pickle.loads(pickle.dumps(second['train'][2]))
  np.testing.assert_array_equal(splits['train'][1][:30], second['train'][1])
  order = [17, 3, 29, 3]
  for i in order:
    np.testing.assert_array_equal(read(i), reread(i))
  assert read(3).shape == (72, 96, 3) and read(3).dtype == np.uint8
  distinct = {read(i).tobytes() for i in range(30)} | {
    splits['val'][2](i).tobytes() for i in range(30)
  }
  distinct |= {load(train=30, val=1, seed=1)[1]['train'][2](i).tobytes() for i in range(30)}
  assert len(distinct) == 90


def test_every_class_is_drawn_differently():
  """The same draws for each model: what is left is what says the class."""
  pictures = [toy.draw(leaf, np.random.default_rng(4), 0.0) for leaf in range(len(toy.MODELS))]
  for a in range(len(pictures)):
    for b in range(a):
      moved = (np.abs(pictures[a].astype(int) - pictures[b]).max(-1) > 20).sum()
      same_pair = toy.MODELS[a][:2] == toy.MODELS[b][:2]
      assert moved > (8 if same_pair else 60), (toy.MODELS[a], toy.MODELS[b], moved)


def test_versions_of_a_model_are_look_alikes():
  """They differ visibly, by less than half of what makes do, and makes by less than types."""
  pictures = [
    [toy.draw(m, np.random.default_rng(4), 0.0, version=v).astype(int) for v in range(4)]
    for m in range(len(toy.MODELS))
  ]

  def moved(a, b):
    return (np.abs(a - b).max(-1) > 20).sum()

  versions = [moved(*pair) for row in pictures for pair in itertools.combinations(row, 2)]
  between_makes, between_types = [], []
  for a, b in itertools.combinations(range(len(pictures)), 2):
    if toy.MODELS[a][1] != toy.MODELS[b][1]:
      between_types.append(moved(pictures[a][0], pictures[b][0]))
    elif toy.MODELS[a][0] != toy.MODELS[b][0]:
      between_makes.append(moved(pictures[a][0], pictures[b][0]))
  assert min(versions) > 12
  assert 2 * np.median(versions) < np.median(between_makes) < np.median(between_types) / 2


def test_versions_are_the_finest_classes():
  table = toy.table(train=300, val=20, versions=3)
  taxonomy = table.taxonomy
  assert len(taxonomy.paths) == 3 * len(toy.MODELS)
  assert taxonomy.nests('model', 'make') and taxonomy.nests('model', 'type')
  names = [name for name in taxonomy.names[2] if name.startswith('Norvik Last')]
  assert names == ['Norvik Last', 'Norvik Last L', 'Norvik Last X']
  for i in (0, 7, 299):
    model, version = divmod(int(table.labels[i, 2]), 3)
    rng = np.random.Generator(np.random.Philox(key=[0, i]))
    np.testing.assert_array_equal(table.reader(i), toy.draw(model, rng, 1.0, version=version))


def test_pictures_without_versions_and_tail_are_the_former_ones():
  """The models follow the shares of MODELS, and the reader draws them as they are."""
  table, plain = toy.table(train=90, val=10), [row[3] for row in toy.MODELS]
  draws = np.random.default_rng((0, 0)).random(90) * np.cumsum(plain)[-1]
  expected = [next(m for m in range(18) if sum(plain[: m + 1]) > draw) for draw in draws]
  assert table.labels[:90, 2].tolist() == expected
  for i in (0, 89):
    rng = np.random.Generator(np.random.Philox(key=[0, i]))
    np.testing.assert_array_equal(table.reader(i), toy.draw(expected[i], rng))


@pytest.mark.parametrize('tail', [0.7, 1.5])
def test_class_sizes_follow_the_law_in_both_splits(tail):
  """Rank to the power -tail: the slope of log(size) over log(rank) is -tail."""
  n = 40_000
  table = toy.table(train=n, val=n, versions=2, tail=tail)
  weight = np.repeat([row[3] for row in toy.MODELS], 2)
  sizes = [np.bincount(part, minlength=36) for part in (table.labels[:n, 2], table.labels[n:, 2])]
  for size in sizes:
    share = np.sort(size / weight)[::-1]
    slope = np.polyfit(np.log(np.arange(1, 37)), np.log(share), 1)[0]
    assert abs(slope + tail) < 0.1
  # the same classes are frequent in both
  assert np.corrcoef(sizes)[0, 1] > 0.99


def test_difficulty_hides():
  def spread(difficulty):
    return np.mean(
      [
        np.abs(
          np.diff(toy.draw(3, np.random.default_rng(i), difficulty).astype(int), axis=0)
        ).mean()
        for i in range(40)
      ]
    )

  assert spread(0.0) < spread(2.0)


def test_any_size_of_picture():
  for size in ((36, 48), (144, 192)):
    assert toy.draw(0, np.random.default_rng(0), size=size).shape == (*size, 3)
