"""From pictures to squares: encoded bytes or uint8 [h, w, 3] become uint8 [size, size, 3], RGB.

Crop, flip, rotation and scale are one affine warp; brightness, contrast, saturation and hue are one
3x4 colour matrix; what a policy draws joins them as far as it can. A bilinear warp does not
average, so a picture that gets much smaller is shrunk first: by the JPEG decoder, which is faster
than decoding all of it, and by area averaging.

`resize` says how a picture becomes a square, in training and in evaluation: 'squash' stretches it,
'crop' takes the largest square in its middle (in training a crop of its own proportions), 'pad'
puts it in the middle of a grey square. A `Resize` says more of evaluation.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image as pillow

from hierjax.data import policy
from hierjax.data.decoding import open_picture

RESIZE = ('squash', 'crop', 'pad')
FILTERS = ('bilinear', 'bicubic', 'lanczos')
PAD = (127, 127, 127)
ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)  # share of the square; height / width
POLICY_DRAWS = 15  # the place of the policy's first draw
MAX_OPERATIONS = 10  # of a policy; the draws of regions come behind those of so many
WHOLE = (0.0, 0.0, 1.0, 1.0)
# by which a guided crop enlarges a box, of the image's sides, as implementations of WS-DAN do
MARGINS = np.array([-0.1, -0.1, 0.1, 0.1])
REDUCTIONS = (1, 2, 4, 8)  # by which the JPEG decoder can shrink
LUMA = (0.299, 0.587, 0.114)
RGB_TO_YIQ = np.array([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
YIQ_TO_RGB = np.linalg.inv(RGB_TO_YIQ)


class Resize(NamedTuple):
  """How evaluation makes a square of a picture.

  Attributes:
    mode: one of RESIZE.
    share: of the square's side that is shown, its middle; the rest is cut off.
    interpolation: one of FILTERS, with which timm's weights were evaluated; None averages where
      the picture shrinks, and is bilinear where it grows.
  """

  mode: str = 'squash'
  share: float = 1.0
  interpolation: str | None = None

  @classmethod
  def from_options(cls, data: Any) -> 'Resize':
    """Make it from the `data` part of a config."""
    return cls(data.resize, data.crop_share or 1.0, data.interpolation)


class Augment(NamedTuple):
  """What training does to a picture, as in `config.data.augment`.

  Attributes:
    enabled: off shows training the view of evaluation.
    crop: the crop's share of the area, from and to.
    ratio: width / height of the crop, from and to, log-uniform.
    flip: probability of a mirror image.
    rotate: degrees, uniform in +-.
    brightness, contrast, saturation: each factor is uniform in 1 +- this.
    hue: turns, uniform in +-.
    alternate_flip: mirrored in every other epoch, whatever `flip` is; the pipeline sees to it.
    policy: further operations, 'trivial' or 'rand'; None for none.
    rand_magnitude: their strength where the policy is 'rand', out of `policy.STEPS`.
    rand_operations: their number where the policy is 'rand'; 'trivial' has one.
    erase: probability that a rectangle becomes grey (Zhong et al., arXiv:1708.04896).
    guided_crop: probability of a crop within the box of a region and a margin (WS-DAN, Hu et al.,
      arXiv:1901.09891, section 3.3).
    guided_mask: probability that the hottest place of a region becomes grey (likewise).
    mixup, cutmix: of whole batches, see `hierjax.train.mixing`; nothing here.
  """

  enabled: bool = True
  crop: tuple[float, float] = (0.5, 1.0)
  ratio: tuple[float, float] = (0.75, 4 / 3)
  flip: float = 0.5
  rotate: float = 15.0
  brightness: float = 0.3
  contrast: float = 0.3
  saturation: float = 0.3
  hue: float = 0.0
  alternate_flip: bool = False
  policy: str | None = None
  rand_magnitude: float = 9.0
  rand_operations: int = 2
  erase: float = 0.0
  guided_crop: float = 0.0
  guided_mask: float = 0.0
  mixup: float | None = None
  cutmix: float | None = None

  @property
  def num_operations(self) -> int:
    """Return the number of operations that the policy draws."""
    return {None: 0, 'trivial': 1, 'rand': self.rand_operations}[self.policy]

  @classmethod
  def from_options(cls, options: Any) -> 'Augment':
    """Make it from `config.data.augment`.

    Args:
      options: a ConfigDict or dict; None gives the defaults.
    """
    if options is None or isinstance(options, cls):
      return options or cls()
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})


def _guide(region, augment, draws):
  """The box to crop from, and the area to cover or None, in fractions of the image."""
  if region is None:
    return WHOLE, None
  box, hot = region.astype(float)
  is_cropped = draws[0] < augment.guided_crop and not math.isnan(box[0])
  is_covered = draws[1] < augment.guided_mask and not math.isnan(hot[0])
  crop_box = np.clip(box + MARGINS, 0, 1) if is_cropped else WHOLE
  return crop_box, hot if is_covered else None


def _crop(h, w, augment, resize, draws, box=WHOLE):
  """The part of a box to show, (centre x, centre y, width, height) in pixels.

  As torchvision's random resized crop, but cut to fit where that draws again.
  """
  left, top = box[0] * w, box[1] * h
  w, h = box[2] * w - left, box[3] * h - top
  # 'squash' and 'pad' crop from the square that they make, of side 1
  full_w, full_h = (w, h) if resize == 'crop' else (1.0, 1.0)
  low, high = augment.ratio
  least_area, most_area = augment.crop
  area = least_area + (most_area - least_area) * draws[0]
  ratio = low * (high / low) ** draws[1]
  crop_w = min(full_w, math.sqrt(area * full_w * full_h * ratio))
  crop_h = min(full_h, math.sqrt(area * full_w * full_h / ratio))
  # where one side was cut, the other may have to be, so that the ratio stays within its range
  crop_w, crop_h = min(crop_w, crop_h * high), min(crop_h, crop_w / low)
  x = crop_w / 2 + (full_w - crop_w) * draws[2]
  y = crop_h / 2 + (full_h - crop_h) * draws[3]
  if resize == 'crop':
    return left + x, top + y, crop_w, crop_h
  if resize == 'squash':
    return left + x * w, top + y * h, crop_w * w, crop_h * h
  side = max(h, w)
  left, top = left + (w - side) / 2, top + (h - side) / 2
  return left + x * side, top + y * side, crop_w * side, crop_h * side


def _shrink(picture, shrink_x, shrink_y):
  """Shrink a picture that will be shrunk by these factors, to 1.25 pixels an output pixel.

  Returns:
    The pixels, and by how much they are smaller than the picture in x and in y.
  """
  factor = max(f for f in REDUCTIONS if f == 1 or f <= min(shrink_x, shrink_y))
  image = picture.pixels(factor)
  if image.shape[:2] == (picture.height, picture.width):
    factor = 1
  h, w = image.shape[:2]
  # below 1.1 it is not worth its time
  fx, fy = shrink_x / factor / 1.25, shrink_y / factor / 1.25
  fx, fy = (f if f > 1.1 else 1.0 for f in (fx, fy))
  if fx == fy == 1:
    return image, factor, factor
  size = max(1, round(w / fx)), max(1, round(h / fy))
  image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
  return image, factor * w / image.shape[1], factor * h / image.shape[0]


def colour_matrix(
  mean: Sequence[float],
  brightness: float = 1.0,
  contrast: float = 1.0,
  saturation: float = 1.0,
  hue: float = 0.0,
) -> np.ndarray:
  """The affine map of colours that changes brightness, contrast, saturation and hue, in this order.

  Args:
    mean: mean RGB of the picture; contrast is about its grey.
    brightness, contrast, saturation: factors as in torchvision's ColorJitter.
    hue: turns in YIQ (torchvision's in HSV).

  Returns:
    float64 [3, 4] for RGB in 0..255.
  """
  grey = brightness * sum(share * value for share, value in zip(LUMA, mean))
  scale = brightness * contrast
  mix = []
  for i in range(3):
    mix.append([scale * (saturation * (i == j) + (1 - saturation) * LUMA[j]) for j in range(3)])
  if hue:
    c, s = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    mix = YIQ_TO_RGB @ turn @ RGB_TO_YIQ @ np.array(mix)
  # saturation and hue leave a grey as it is, and so the offset
  offset = (1 - contrast) * grey
  return np.array([[*row, offset] for row in mix])


def train_transform(
  image: bytes | np.ndarray,
  rng: np.random.Generator,
  size: int,
  augment: Any = None,
  resize: str | Resize = 'squash',
  out: np.ndarray | None = None,
  region: np.ndarray | None = None,
) -> np.ndarray:
  """Make a random view of a picture for training.

  Args:
    image: encoded bytes, or uint8 [h, w, 3].
    rng: its draws have fixed places: one option does not move another's draws.
    size: pixels.
    augment: see `Augment`.
    resize: see the module.
    out: where the view is written.
    region: float [2, 4], see `Examples.regions`; None without one.

  Returns:
    uint8 [size, size, 3].

  Raises:
    BrokenImage: the picture cannot be read.
  """
  augment = Augment.from_options(augment)
  if not augment.enabled:
    return eval_transform(image, size, resize, out)
  n = augment.num_operations
  draws = rng.random(POLICY_DRAWS + 3 * max(n, MAX_OPERATIONS) + 2).tolist()
  triples = [draws[i : i + 3] for i in range(POLICY_DRAWS, POLICY_DRAWS + 3 * n, 3)]
  operations = policy.draw(augment.policy, augment.rand_magnitude, triples)
  picture, resize = open_picture(image), as_resize(resize).mode
  box, hot = _guide(region, augment, draws[-2:])
  crop = _crop(picture.height, picture.width, augment, resize, draws, box)
  image, kx, ky = _shrink(picture, crop[2] / size, crop[3] / size)
  matrix = _matrix(crop, kx, ky, size, augment, draws)
  if operations.maps:
    matrix = matrix @ policy.warp(operations.maps, size)
  border = cv2.BORDER_CONSTANT if resize == 'pad' else cv2.BORDER_REFLECT_101
  flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
  out = cv2.warpAffine(
    image, matrix, (size, size), dst=out, flags=flags, borderMode=border, borderValue=PAD
  )
  out = _change_colours(out, augment, draws[6:10], operations.factors)
  out = policy.change(out, operations.changes)
  if hot is not None:
    _cover(out, matrix, hot, picture.width / kx, picture.height / ky)
  if draws[10] < augment.erase:
    _erase(out, draws[11:POLICY_DRAWS])
  return out


def _matrix(crop, kx, ky, size, augment, draws):
  """The map of output pixels to pixels of the picture, kx and ky times smaller, 2 x 3."""
  # centre a pixel, turn it, mirror it, scale it, move it to the crop
  x, y, crop_w, crop_h = crop
  angle = math.radians(augment.rotate * (2 * draws[4] - 1))
  c, s = math.cos(angle), math.sin(angle)
  scale_x = crop_w / (size * kx)
  scale_y = crop_h / (size * ky)
  if draws[5] < augment.flip:
    scale_x = -scale_x
  middle = (size - 1) / 2
  offset_x = x / kx - 0.5 - scale_x * (c - s) * middle
  offset_y = y / ky - 0.5 - scale_y * (s + c) * middle
  return np.array([[scale_x * c, -scale_x * s, offset_x], [scale_y * s, scale_y * c, offset_y]])


def _change_colours(image, augment, draws, further):
  """Change the colours in place, with further factors of brightness, contrast and saturation."""
  ranges = augment.brightness, augment.contrast, augment.saturation
  factors = []
  for spread, draw, further_factor in zip(ranges, draws, further.values()):
    factors.append(further_factor * (1 + spread * (2 * draw - 1)))
  hue = augment.hue * (2 * draws[3] - 1)
  if not hue and all(factor == 1 for factor in factors):
    return image
  has_contrast = factors[1] != 1
  mean = cv2.mean(image) if has_contrast else (0, 0, 0)
  return cv2.transform(image, colour_matrix(mean, *factors, hue), dst=image)


def _erase(image, draws):
  """Fill a rectangle, drawn as torchvision draws it but cut to fit where that draws again."""
  size = len(image)
  least_area, most_area = ERASED_AREA
  low, high = ERASED_RATIO
  area = least_area + (most_area - least_area) * draws[0]
  ratio = low ** (1 - draws[1]) * high ** draws[1]
  h, w = round(size * math.sqrt(area * ratio)), round(size * math.sqrt(area / ratio))
  h, w = (min(size - 1, max(1, side)) for side in (h, w))
  y, x = int((size - h + 1) * draws[2]), int((size - w + 1) * draws[3])
  image[y : y + h, x : x + w] = PAD


def _cover(image, matrix, area, w, h):
  """Fill the pixels that show an area, fractions of the source of w x h pixels."""
  columns = np.arange(len(image))
  rows = columns[:, None]
  # where in the source the middle of each pixel comes from, [size, size]
  x, y = (a * columns + (b * rows + (c + 0.5)) for a, b, c in matrix)
  left, top, right, bottom = area
  is_across = (left * w <= x) & (x < right * w)
  is_down = (top * h <= y) & (y < bottom * h)
  image[is_across & is_down] = PAD


def as_resize(resize: str | Resize) -> Resize:
  """Return a `Resize`; a word is its mode."""
  return Resize(resize) if isinstance(resize, str) else resize


def _into(out, pixels):
  """Copy pixels to where they are to be written, if anywhere."""
  if out is None:
    return np.ascontiguousarray(pixels)
  out[:] = pixels
  return out


def _resample(image, w, h, out=None, interpolation=None):
  """Resize each axis as it needs: averaged where it shrinks, bilinear where it grows."""
  if interpolation:
    how = pillow.Resampling[interpolation.upper()]
    return _into(out, np.asarray(pillow.fromarray(image).resize((w, h), how)))
  old_h, old_w = image.shape[:2]
  if w < old_w or h < old_h:
    small = (min(w, old_w), min(h, old_h))
    is_done = small == (w, h)
    image = cv2.resize(image, small, dst=out if is_done else None, interpolation=cv2.INTER_AREA)
    if is_done:
      return image
  return cv2.resize(image, (w, h), dst=out, interpolation=cv2.INTER_LINEAR)


def _square(image, size, resize, out=None):
  """uint8 [h, w, 3] -> uint8 [size, size, 3]"""
  h, w = image.shape[:2]
  mode, share, how = resize
  if share < 1:
    # as timm: of a larger square, rounded down, the middle, rounded to even
    larger = int(size / share)
    offset = round((larger - size) / 2)
    square = _square(image, larger, resize._replace(share=1.0))
    return _into(out, square[offset : offset + size, offset : offset + size])
  if mode == 'pad':
    side = max(h, w)
    new_w, new_h = max(1, round(size * w / side)), max(1, round(size * h / side))
    if out is None:
      out = np.empty((size, size, 3), np.uint8)
    out[:] = PAD
    x, y = (size - new_w) // 2, (size - new_h) // 2
    out[y : y + new_h, x : x + new_w] = _resample(image, new_w, new_h, None, how)
    return out
  if mode == 'crop':
    side = min(h, w)
    x, y = (w - side) // 2, (h - side) // 2
    image = image[y : y + side, x : x + side]
  return _resample(image, size, size, out, how)


def _reduced(image, size, resize):
  """The pixels of a picture, at least twice as large as its view of this size."""
  h, w, pixels = open_picture(image)
  shown_size = size / resize.share
  sides = {'squash': (w, h), 'crop': (min(h, w),) * 2, 'pad': (max(h, w),) * 2}
  across, down = sides[resize.mode]
  factor = max(f for f in REDUCTIONS if f == 1 or 2 * f * shown_size <= min(across, down))
  image = pixels(factor)
  if image.shape[:2] == (h, w):
    return image
  # The decoder rounds its size up. The far edge is at most half a pixel off if that is cut, and a
  # quarter of an output pixel where two make one.
  return image[: round(h / factor), : round(w / factor)]


def eval_transform(
  image: bytes | np.ndarray,
  size: int,
  resize: str | Resize = 'squash',
  out: np.ndarray | None = None,
) -> np.ndarray:
  """Make the view of a picture that is evaluated.

  `image`, `size`, `resize` and `out` are those of `train_transform`.
  """
  resize = as_resize(resize)
  return _square(_reduced(image, size, resize), size, resize, out)


def view(image: bytes | np.ndarray, size: int, n: int, resize: str, out: np.ndarray) -> np.ndarray:
  """Make the one view of a picture, or n of several. Args: as `views`."""
  if n == 1:
    return eval_transform(image, size, resize, out)
  return views(image, size, n, resize, out)


def views(
  image: bytes | np.ndarray,
  size: int,
  n: int,
  resize: str | Resize = 'squash',
  out: np.ndarray | None = None,
) -> np.ndarray:
  """Make n views of a picture for test-time augmentation.

  Args:
    image, size, resize, out: see `train_transform`.
    n: 1 is the picture; 2 adds its mirror image; 3 the middle 7/8 enlarged (S0's 256 -> 224); 5
      also 7/8 from its upper left and its lower right corner.

  Returns:
    uint8 [n, size, size, 3].
  """
  if n not in (1, 2, 3, 5):
    raise ValueError(f'views={n}: choose 1, 2, 3 or 5')
  resize = as_resize(resize)
  image = _reduced(image, size, resize)
  if out is None:
    out = np.empty((n, size, size, 3), np.uint8)
  _square(image, size, resize, out[0])
  if n >= 2:
    cv2.flip(out[0], 1, dst=out[1])
  if n >= 3:
    larger = round(size * 8 / 7)
    enlarged, gap = _square(image, larger, resize), larger - size
    for view, offset in zip(out[2:], (gap // 2, 0, gap)):
      view[:] = enlarged[offset : offset + size, offset : offset + size]
  return out
