"""Random policies of augmentation: TrivialAugment and RandAugment.

Müller and Hutter (arXiv:2103.10158) draw one operation for a picture and its strength; Cubuk et
al. (arXiv:1909.13719) draw several, all of one strength. The ranges are torchvision's. Shears,
translations and rotations join the affine warp, factors of brightness, contrast and saturation the
colour matrix; what is left changes the finished square. This fixes the order of several.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

STEPS = 30  # from no strength to the largest
VALUES = np.arange(256)
ENHANCED = (0.99, 0.9)  # a factor is 1 + this
# The largest strength under each policy, 'trivial' and 'rand'.
OPERATIONS = {
  'identity': (0.0, 0.0),
  **dict.fromkeys(('shear_x', 'shear_y'), (0.99, 0.3)),
  **dict.fromkeys(('translate_x', 'translate_y'), (32 / 224, 150 / 331)),  # shares of the side
  'rotate': (135.0, 30.0),  # degrees
  **dict.fromkeys(('brightness', 'contrast', 'saturation', 'sharpness'), ENHANCED),
  'posterize': (6.0, 4.0),  # bits that are cleared
  'solarize': (256.0, 256.0),  # values at the upper end that are inverted
  **dict.fromkeys(('autocontrast', 'equalize'), (0.0, 0.0)),
}
NAMES = tuple(OPERATIONS)


class Operations(NamedTuple):
  """What a policy draws for a picture, with strengths that have a sign.

  Attributes:
    maps: (name, strength) of those that join the affine warp.
    factors: {name: factor} of the colour matrix, 1 where it changes nothing.
    changes: (name, strength) of those that change the pixels of the finished square.
  """

  maps: list[tuple[str, float]]
  factors: dict[str, float]
  changes: list[tuple[str, float]]


def draw(policy: str | None, magnitude: float, draws: Sequence[Sequence[float]]) -> Operations:
  """Draw the operations of a picture.

  Args:
    policy: 'trivial' or 'rand'; None has no draws.
    magnitude: strength under 'rand', out of `STEPS`.
    draws: for each operation three numbers in [0, 1): which one, its strength, its direction.
  """
  maps, factors, changes = [], {'brightness': 1.0, 'contrast': 1.0, 'saturation': 1.0}, []
  for choice, size, direction in draws:
    name = NAMES[int(choice * len(NAMES))]
    trivial, rand = OPERATIONS[name]
    strength = rand * magnitude / STEPS
    if policy == 'trivial':
      strength = trivial * int(size * (STEPS + 1)) / STEPS
    if direction < 0.5 and name not in TABLES:
      strength = -strength
    if name in factors:
      # these commute: contrast is about the mean grey, which moves with the others
      factors[name] *= 1 + strength
    elif name != 'identity':
      (maps if name in MAPS else changes).append((name, strength))
  return Operations(maps, factors, changes)


def _rotate(degrees):
  c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
  return [[c, -s, (1 - c + s) / 2], [s, c, (1 - s - c) / 2], [0, 0, 1]]


# Of the unit square: where the value of a place comes from.
MAPS = {
  'shear_x': lambda v: [[1, v, 0], [0, 1, 0], [0, 0, 1]],
  'shear_y': lambda v: [[1, 0, 0], [v, 1, 0], [0, 0, 1]],
  'translate_x': lambda v: [[1, 0, v], [0, 1, 0], [0, 0, 1]],
  'translate_y': lambda v: [[1, 0, 0], [0, 1, v], [0, 0, 1]],
  'rotate': _rotate,
}


def warp(maps: Sequence[tuple[str, float]], size: int) -> np.ndarray:
  """Compute the affine map of maps of a square of `size` pixels, one applied after the other.

  Returns:
    float64 [3, 3], output pixel → input pixel (x, y, 1), pixels counted at their centres.
  """
  matrix = np.array([[size, 0, -0.5], [0, size, -0.5], [0, 0, 1]])  # unit square → input pixel
  for name, strength in maps:
    matrix = matrix @ MAPS[name](strength)
  to_unit_square = [[1 / size, 0, 0.5 / size], [0, 1 / size, 0.5 / size], [0, 0, 1]]
  return matrix @ to_unit_square


def _by_channel(table, image):
  """[256, 3]: the table that a function makes of the histogram of each channel."""
  histograms = [cv2.calcHist([image], [i], None, [256], [0, 256]).ravel() for i in range(3)]
  return np.stack([table(histogram.astype(int)) for histogram in histograms], 1)


def _stretched(histogram):
  low, high = np.flatnonzero(histogram)[[0, -1]]
  return VALUES if low == high else (VALUES - low) * 255 / (high - low)


def _equalized(histogram):
  """Pillow's table by which all values become equally frequent."""
  step = (histogram.sum() - histogram[np.flatnonzero(histogram)[-1]]) // 255
  return VALUES if step == 0 else (step // 2 + np.cumsum(histogram) - histogram) // step


# The new value of each, [256], or [256, 3] where the channels differ.
TABLES = {
  'posterize': lambda image, bits: VALUES & (-1 << round(bits)),
  'solarize': lambda image, v: np.where(VALUES + v < 256, VALUES, 255 - VALUES),
  'autocontrast': lambda image, _: _by_channel(_stretched, image),
  'equalize': lambda image, _: _by_channel(_equalized, image),
}


def change(image: np.ndarray, changes: Sequence[tuple[str, float]]) -> np.ndarray:
  """Change the pixels of a square, uint8 [size, size, 3], in place."""
  for name, strength in changes:
    if name == 'sharpness':
      # 9/13 of the mean of 3 x 3 pixels and 4/13 of the middle one are Pillow's smooth filter
      mean, share = cv2.blur(image, (3, 3)), strength * 9 / 13
      image = cv2.addWeighted(image, 1 + share, mean, -share, 0, dst=image)
    else:
      table = np.clip(TABLES[name](image, strength), 0, 255).astype(np.uint8)
      image = cv2.LUT(image, table[None], dst=image)
  return image
