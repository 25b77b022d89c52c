"""Class activation maps: where in an image the evidence for a class lies, by NumPy alone.

Where features are the mean of a map over its places and logits are linear in them, Grad-CAM
(`evaluate.explain`) is relu(sum_c w_c A_c) / places with the class's weights w (Zhou et al., CVPR
2016, arXiv:1512.04150, equation 2; Selvaraju et al., section 3.1).
"""

import numpy as np


def class_maps(maps: np.ndarray, kernel: np.ndarray, classes: np.ndarray) -> np.ndarray:
  """Compute the map of a class for each image.

  Args:
    maps: float32 [n, h, w, d], the last feature maps.
    kernel: float32 [d, C], the weights of a head.
    classes: int [n].

  Returns:
    float32 [n, h, w], at least 0.
  """
  places = maps.shape[1] * maps.shape[2]
  return np.maximum(np.einsum('nhwd,dn->nhw', maps, kernel[:, classes]) / places, 0)


def as_bytes(cams: np.ndarray) -> np.ndarray:
  """Scale maps [..., h, w] to uint8, the maximum of each at 255."""
  peaks = np.maximum(cams.max((-2, -1), keepdims=True), 1e-12)
  return np.round(255 * cams / peaks).astype(np.uint8)
