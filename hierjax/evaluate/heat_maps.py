"""Heat maps as they are stored and shown."""

import numpy as np


def as_bytes(cams: np.ndarray) -> np.ndarray:
  """Scale maps [..., h, w] to uint8, the maximum of each at 255."""
  peaks = np.maximum(cams.max((-2, -1), keepdims=True), 1e-12)
  return np.round(255 * cams / peaks).astype(np.uint8)
