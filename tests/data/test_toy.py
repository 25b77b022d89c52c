"""The drawn set: a pure function of (seed, split, index) that shows make, type and detail."""

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
