"""What a label of an image would be worth, and of which level it need be."""

import numpy as np


def label_gains(posterior: np.ndarray, paths: np.ndarray) -> np.ndarray:
  """Compute by how many wrong levels a label is expected to correct the most likely path.

  It is the value of the information: the expected number of right levels where the class of a level
  is known, less that without. Images with the largest gain of the finest level come first.

  Args:
    posterior: float [N, leaf], rows sum to 1.
    paths: int [leaf, level], the table of the taxonomy.

  Returns:
    float64 [N, level]; of the finest level the expected number of wrong levels.
  """
  levels = paths.shape[1]
  before = _expected_right(posterior, paths, np.zeros(len(paths), int))
  after = [_expected_right(posterior, paths, paths[:, k]) for k in range(levels - 1)]
  return np.stack([*after, np.full(len(posterior), float(levels))], 1) - before[:, None]


def _expected_right(posterior, paths, group):
  """Expect the number of right levels where the group of the leaf is known, float64 [N]."""
  total = np.zeros(len(posterior))
  for g in np.unique(group):
    leaves = np.flatnonzero(group == g)
    prob = posterior[:, leaves]
    best = paths[leaves[prob.argmax(1)]]
    for k in range(paths.shape[1]):
      total += np.where(paths[leaves, k] == best[:, [k]], prob, 0).sum(1)
  return total
