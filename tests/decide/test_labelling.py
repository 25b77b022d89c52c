"""The value of a label, by enumeration."""

import numpy as np
import pytest

from hierjax.decide.labelling import label_gains

TREE = np.array([[0, 0], [0, 1], [1, 2], [1, 3], [1, 4]])
FACETS = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 2], [1, 1, 3], [1, 1, 4]])


@pytest.mark.parametrize('paths', [TREE, FACETS])
def test_gains_are_those_of_enumeration(paths):
  posterior = np.random.default_rng(0).dirichlet(np.full(len(paths), 0.5), size=7)
  gains = label_gains(posterior, paths)
  for p, gain in zip(posterior, gains):
    guess = paths[p.argmax()]
    before = sum(q * (path == guess).sum() for q, path in zip(p, paths))
    for k in range(paths.shape[1]):
      after = 0
      for truth, q in enumerate(p):
        within = np.where(paths[:, k] == paths[truth, k], p, -1)
        after += q * (paths[truth] == paths[within.argmax()]).sum()
      assert gain[k] == pytest.approx(after - before)
  assert (gains >= -1e-12).all() or paths is FACETS


def test_the_level_that_is_in_doubt_gains():
  sure_of_parent = label_gains(np.array([[0.5, 0.5, 0, 0, 0]]), TREE)[0]
  np.testing.assert_allclose(sure_of_parent, [0, 0.5])
  unsure_of_parent = label_gains(np.array([[0.5, 0, 0.5, 0, 0]]), TREE)[0]
  np.testing.assert_allclose(unsure_of_parent, [1, 1])
