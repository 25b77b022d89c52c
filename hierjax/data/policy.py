"""Random policies of augmentation: TrivialAugment and RandAugment.

Müller and Hutter (arXiv:2103.10158) draw one operation for a picture and its strength; Cubuk et al.
(arXiv:1909.13719) draw several, all of one strength. The operations are those of both papers, their
ranges torchvision's. Shears, translations and rotations join the affine warp, and factors of
brightness, contrast and saturation the colour matrix, so that they cost next to nothing; what is
left changes the finished square. Where RandAugment draws several, this fixes their order.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

STEPS = 30  # from no strength to the largest
VALUES = np.arange(256)


class Range(NamedTuple):
  """The largest strength of an operation under each policy, and whether it has two directions."""

  trivial: float = 0.0
  rand: float = 0.0
  is_signed: bool = False


OPERATIONS = {
  'identity': Range(),
  'shear_x': Range(0.99, 0.3, True),
  'shear_y': Range(0.99, 0.3, True),
  'translate_x': Range(32 / 224, 150 / 331, True),  # shares of the side
  'translate_y': Range(32 / 224, 150 / 331, True),
  'rotate': Range(135.0, 30.0, True),  # degrees
  'brightness': Range(0.99, 0.9, True),  # the factor is 1 + this
  'contrast': Range(0.99, 0.9, True),
  'saturation': Range(0.99, 0.9, True),
  'sharpness': Range(0.99, 0.9, True),
  'posterize': Range(6.0, 4.0),  # bits that are cleared
  'solarize': Range(256.0, 256.0),  # values at the upper end that are inverted
  'autocontrast': Range(),
  'equalize': Range(),
}
NAMES = tuple(OPERATIONS)


class Operations(NamedTuple):
  """The operations that a policy draws for a picture, and their strengths with a sign.

  Attributes:
    maps: of the affine warp.
    factors: of the colour matrix, each 1 where it changes nothing.
    changes: of the pixels of the finished square, in their order.
  """

  maps: tuple[tuple[str, float], ...]
  factors: dict[str, float]
  changes: tuple[tuple[str, float], ...]


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
    limits = OPERATIONS[name]
    if policy == 'trivial':
      strength = limits.trivial * int(size * (STEPS + 1)) / STEPS
    else:
      strength = limits.rand * magnitude / STEPS
    if limits.is_signed and direction < 0.5:
      strength = -strength
    if name in factors:
      # these commute, whatever their order: contrast is about the mean grey, which moves with them
      factors[name] *= 1 + strength
    elif name in MAPS:
      maps.append((name, strength))
    elif name != 'identity':
      changes.append((name, strength))
  return Operations(tuple(maps), factors, tuple(changes))


# Maps of the unit square: where the value of a place comes from, float [3, 3].


def _rotate(degrees):
  c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
  return [[c, -s, (1 - c + s) / 2], [s, c, (1 - s - c) / 2], [0, 0, 1]]


MAPS = {
  'shear_x': lambda v: [[1, v, 0], [0, 1, 0], [0, 0, 1]],
  'shear_y': lambda v: [[1, 0, 0], [v, 1, 0], [0, 0, 1]],
  'translate_x': lambda v: [[1, 0, v], [0, 1, 0], [0, 0, 1]],
  'translate_y': lambda v: [[1, 0, 0], [0, 1, v], [0, 0, 1]],
  'rotate': _rotate,
}


def warp(maps: Sequence[tuple[str, float]], size: int) -> np.ndarray:
  """Compute the affine map of maps that are applied one after the other.

  Args:
    maps: names and strengths.
    size: of the square, in pixels.

  Returns:
    float64 [3, 3], output pixel → input pixel (x, y, 1), pixels counted at their centres.
  """
  # in pixels, whose centres lie half a pixel from the edge
  matrix = np.array([[size, 0, -0.5], [0, size, -0.5], [0, 0, 1]])
  for name, strength in maps:
    matrix = matrix @ MAPS[name](strength)
  return matrix @ [[1 / size, 0, 0.5 / size], [0, 1 / size, 0.5 / size], [0, 0, 1]]


# Changes of pixels: tables of 256 values, [256] or [256, 3] where the channels differ.


def _by_channel(table, image):
  """[256, 3]: the table that a function makes of the histogram of each channel."""
  histograms = [cv2.calcHist([image], [i], None, [256], [0, 256]).ravel() for i in range(3)]
  return np.stack([table(histogram) for histogram in histograms], 1)


def _stretched(histogram):
  """The table by which the least value becomes 0 and the largest 255."""
  low, high = np.flatnonzero(histogram)[[0, -1]]
  return VALUES if low == high else (VALUES - low) * 255 / (high - low)


def _equalized(histogram):
  """Pillow's table by which all values become equally frequent."""
  histogram = histogram.astype(np.int64)
  last = histogram[np.flatnonzero(histogram)[-1]]
  step = (histogram.sum() - last) // 255
  return VALUES if step == 0 else (step // 2 + np.cumsum(histogram) - histogram) // step


TABLES = {
  'posterize': lambda image, bits: VALUES & (-1 << round(bits)),
  'solarize': lambda image, v: np.where(VALUES + v < 256, VALUES, 255 - VALUES),
  'autocontrast': lambda image, _: _by_channel(_stretched, image),
  'equalize': lambda image, _: _by_channel(_equalized, image),
}


def _sharpen(image, strength):
  """Blend with the smoothed picture, as Pillow's Sharpness with the factor 1 + strength."""
  # 9/13 of the mean of 3 x 3 pixels and 4/13 of the one in their middle are Pillow's smooth filter
  mean, share = cv2.blur(image, (3, 3)), strength * 9 / 13
  return cv2.addWeighted(image, 1 + share, mean, -share, 0, dst=image)


def change(image: np.ndarray, changes: Sequence[tuple[str, float]]) -> np.ndarray:
  """Change the pixels of a square in place.

  Args:
    image: uint8 [size, size, 3].
    changes: names and strengths.
  """
  for name, strength in changes:
    if name == 'sharpness':
      image = _sharpen(image, strength)
    else:
      table = np.clip(TABLES[name](image, strength), 0, 255).astype(np.uint8)
      image = cv2.LUT(image, table[None], dst=image)
  return image
