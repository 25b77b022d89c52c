"""The images whose features are most like those of an image, by the cosine and NumPy alone."""

import numpy as np


def unit(features: np.ndarray) -> np.ndarray:
  """Return features [n, d] as float32 of length 1; zeros stay zeros."""
  x = features.astype(np.float32)
  return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def nearest(features: np.ndarray, others: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Find the k nearest of `others` [m, d] to each of `features` [n, d], both of length 1.

  Returns:
    Their rows int [n, min(k, m)], the nearest first and of equal ones the first, and the cosines.
  """
  cosines = features @ others.T
  rows = np.argsort(-cosines, axis=1, kind='stable')[:, :k]
  return rows, np.take_along_axis(cosines, rows, 1)
