"""A taxonomy of tags, and drawn logits and targets of tags, for the tests of losses and metrics."""

import numpy as np

from hierjax.taxonomy import TagTaxonomy

ANIMALS = TagTaxonomy.from_rows(
  ('kind', 'animal', 'breed'),
  [
    ['mammal', 'dog', 'poodle'],
    ['mammal', 'dog', 'husky'],
    ['mammal', 'cat', 'siamese'],
    ['bird', 'owl', ''],
  ],
)


def draw(seed, n=40, classes=6, unknown=0.2):
  """Random logits and targets, some of which are unknown."""
  rng = np.random.default_rng(seed)
  targets = (rng.random((n, classes)) < rng.uniform(0.1, 0.7, classes)).astype(np.int32)
  targets[rng.random(targets.shape) < unknown] = -1
  return rng.normal(0, 3, (n, classes)).astype(np.float32), targets
