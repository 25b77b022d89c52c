"""Pictures in, squares out: encoded bytes or uint8 [h, w, 3] become uint8 [size, size, 3], RGB. numpy, OpenCV, simplejpeg and Pillow only. Bytes may be
a `Part`, of which the rest is cut off before all else.

Crop, flip, rotation and scale are one affine warp; brightness, contrast, saturation and hue are one 3x4 colour matrix. A bilinear warp does
not average, so what gets much smaller is shrunk beforehand: by the JPEG decoder, which is faster than decoding it all, and by area averaging.

How a picture that is not square becomes square is `resize`, the same in training and in evaluation: 'squash' stretches it, 'crop' takes the
largest square in its middle (in training: a crop of its own proportions), 'pad' puts it in the middle of a grey square.
"""

import io
import math
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

cv2.setNumThreads(1)  # the pipeline has threads of its own

RESIZE = ('squash', 'crop', 'pad')
PAD = (127, 127, 127)
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # Pillow's own limit for a decompression bomb: 179 million
Image.init()
FORMATS = sorted(
  {*Image.OPEN} - {'EPS', 'WMF'}
)  # those would start a program on what stands in the file
LUMA = (0.299, 0.587, 0.114)
RGB_TO_YIQ = np.array([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
YIQ_TO_RGB = np.linalg.inv(RGB_TO_YIQ)


class BrokenImage(ValueError):
  """The bytes are no picture that can be read."""


class Part(bytes):
  """An encoded picture of which only a part is shown: the box (left, top, right, bottom), in pixels from the upper left corner of the upright picture,
  right and bottom excluded, as far as it lies inside; None is all of it. The `banner` lowest rows are never shown."""

  box, banner = None, 0

  @classmethod
  def of(cls, data, box=None, banner=0):
    part = cls(data)
    part.box, part.banner = box, banner
    return part


class Augment(NamedTuple):
  """What training does to a picture; the fields of `config.data.augment`."""

  enabled: bool = True
  crop: tuple[float, float] = (0.5, 1.0)  # share of the area
  ratio: tuple[float, float] = (0.75, 4 / 3)  # width / height of the crop, log-uniform
  flip: float = 0.5  # probability
  rotate: float = 15.0  # degrees, uniform in +-
  brightness: float = 0.3  # each factor is uniform in 1 +- this
  contrast: float = 0.3
  saturation: float = 0.3
  hue: float = 0.0  # turns, uniform in +-

  @classmethod
  def of(cls, options):
    """From a ConfigDict, a dict, a namespace, None (the defaults) or an Augment."""
    if options is None or isinstance(options, cls):
      return options or cls()
    items = dict(options) if hasattr(options, 'keys') else vars(options)
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in items.items()})


# Decoding


def _pillow(data):
  """Any format and mode Pillow knows -> uint8 [h, w, 3]: first frame, upright, transparent parts on white, 16 bits cut to the upper 8."""
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      image.load()
      upright = ImageOps.exif_transpose(image)
      if upright.mode.startswith('I') or upright.mode == 'F':
        grey = np.asarray(upright)
        if upright.mode != 'F' and (upright.mode != 'I' or grey.max(initial=0) > 255):
          grey = grey >> 8
        return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, -1)
      if upright.mode in ('RGBA', 'LA', 'PA', 'La', 'RGBa') or 'transparency' in upright.info:
        upright = upright.convert('RGBA')
        upright = Image.alpha_composite(Image.new('RGBA', upright.size, 'white'), upright)
      return np.asarray(upright.convert('RGB'))
  except (
    Exception
  ) as error:  # Pillow raises OSError, SyntaxError, struct.error and more, as the bytes fall
    told = (
      'not an image'
      if isinstance(error, UnidentifiedImageError)
      else str(error) or type(error).__name__
    )
    raise BrokenImage(told) from error


def _orientation(data):
  """EXIF orientation of a JPEG, 1 to 8."""
  if b'Exif\0\0' not in data[: 1 << 16]:
    return 1
  try:
    with Image.open(io.BytesIO(data)) as image:
      turn = image.getexif().get(0x112, 1)
    return turn if turn in range(1, 9) else 1
  except Exception:
    return 1  # the tag is a courtesy: a picture with a damaged one is still a picture


def _upright(image, orientation):
  """Undo an EXIF orientation: 5 to 8 are transposed, then each is mirrored as it needs."""
  if orientation >= 5:
    image = image.swapaxes(0, 1)
  if orientation in (2, 3, 6, 7):
    image = image[:, ::-1]
  if orientation in (3, 4, 7, 8):
    image = image[::-1]
  return np.ascontiguousarray(image)


def _look(image):
  """(height, width, pixels), upright. pixels(f), f in 1, 2, 4, 8: uint8 [h, w, 3], or [h / f, w / f, 3] from most JPEGs."""
  if not isinstance(image, Part):
    return _whole(image)
  h, w, pixels = _whole(image)
  left, top, right, bottom = image.box or (0, 0, w, h)
  x, y, x1, y1 = (
    max(0, math.floor(left)),
    max(0, math.floor(top)),
    min(w, math.ceil(right)),
    min(h - image.banner, math.ceil(bottom)),
  )
  if x >= x1 or y >= y1:
    raise BrokenImage(
      f'nothing of its {w} x {h} pixels is left within {left:g}, {top:g}, {right:g}, {bottom:g}'
    )

  def part(f):
    found = pixels(f)
    if found.shape[:2] == (h, w):
      f = 1
    v, u = round(y / f), round(x / f)  # half a pixel of the reduced picture off at most
    return found[v : v + -(-(y1 - y) // f), u : u + -(-(x1 - x) // f)]

  return y1 - y, x1 - x, part


def _whole(image):
  if isinstance(image, np.ndarray):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
      raise BrokenImage(f'expected uint8 [h, w, 3], found {image.dtype} {list(image.shape)}')
    return *image.shape[:2], lambda f: image
  if image[:2] == b'\xff\xd8':
    try:
      h, w, space, _ = simplejpeg.decode_jpeg_header(image)
    except ValueError:
      h = w = 0
    if h * w > MAX_PIXELS:
      raise BrokenImage(f'{w} x {h} pixels: refused as a decompression bomb')
    if h and space in ('Gray', 'YCbCr', 'RGB'):
      turn = _orientation(image)

      def pixels(f):
        try:
          whole = simplejpeg.decode_jpeg(image, min_height=-(-h // f), min_width=-(-w // f))
        except ValueError:
          return _pillow(image)  # decides whether the fault is a harmless one
        return _upright(whole, turn)

      return (w, h, pixels) if turn >= 5 else (h, w, pixels)
  whole = _pillow(image)
  return *whole.shape[:2], lambda f: whole


def _reduced(pixels, h, w, shrink_x, shrink_y):
  """(pixels, kx, ky): a picture that is to be shrunk by these factors, already shrunk to 1.25 source pixels per output pixel, by kx and ky."""
  factor = max(f for f in (1, 2, 4, 8) if f == 1 or f <= min(shrink_x, shrink_y))
  image = pixels(factor)
  if image.shape[:2] == (h, w):
    factor = 1
  h1, w1 = image.shape[:2]
  fx, fy = (
    f if f > 1.1 else 1.0 for f in (shrink_x / factor / 1.25, shrink_y / factor / 1.25)
  )  # below that it is not worth its time
  if fx == fy == 1:
    return image, factor, factor
  image = cv2.resize(
    image, (max(1, round(w1 / fx)), max(1, round(h1 / fy))), interpolation=cv2.INTER_AREA
  )
  return image, factor * w1 / image.shape[1], factor * h1 / image.shape[0]


def decode(image):
  """Encoded bytes (or an array) -> uint8 [h, w, 3], upright. Raises BrokenImage."""
  return _look(image)[2](1)


# Training


def _crop(h, w, augment, resize, draws):
  """The part that is shown, (centre x, centre y, width, height) in pixels: torchvision's random resized crop, cut to fit where it tries again."""
  fw, fh = (
    (w, h) if resize == 'crop' else (1.0, 1.0)
  )  # 'squash' and 'pad' crop from the square they make
  low, high = augment.ratio
  area, ratio = (
    augment.crop[0] + (augment.crop[1] - augment.crop[0]) * draws[0],
    low * (high / low) ** draws[1],
  )
  cw, ch = min(fw, math.sqrt(area * fw * fh * ratio)), min(fh, math.sqrt(area * fw * fh / ratio))
  cw, ch = min(cw, ch * high), min(ch, cw / low)
  x, y = cw / 2 + (fw - cw) * draws[2], ch / 2 + (fh - ch) * draws[3]
  if resize == 'crop':
    return x, y, cw, ch
  if resize == 'squash':
    return x * w, y * h, cw * w, ch * h
  side = max(h, w)
  return x * side + (w - side) / 2, y * side + (h - side) / 2, cw * side, ch * side


def colour_matrix(mean, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0):
  """float64 [3, 4] for RGB in 0..255. Factors as in torchvision's ColorJitter, applied in the order of the arguments; contrast is about the
  grey of `mean`, the picture's mean RGB; hue is in turns, and turns in YIQ (torchvision's in HSV)."""
  grey = brightness * sum(l * m for l, m in zip(LUMA, mean))
  mix = [
    [brightness * contrast * (saturation * (i == j) + (1 - saturation) * LUMA[j]) for j in range(3)]
    for i in range(3)
  ]
  if hue:
    c, s = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    mix = YIQ_TO_RGB @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ RGB_TO_YIQ @ np.array(mix)
  return np.array(
    [[*row, (1 - contrast) * grey] for row in mix]
  )  # a grey stays a grey under the rest, so the offset does


def train_transform(image, rng, size, augment=None, resize='squash', out=None):
  """A random view, uint8 [size, size, 3], of bytes or uint8 [h, w, 3], drawn with a numpy Generator, written to `out` if given."""
  augment = Augment.of(augment)
  if not augment.enabled:
    return eval_transform(image, size, resize, out)
  draws = rng.random(
    10
  ).tolist()  # always as many, so that one option does not move another's draws
  h, w, pixels = _look(image)
  x, y, cw, ch = _crop(h, w, augment, resize, draws)
  image, kx, ky = _reduced(pixels, h, w, cw / size, ch / size)
  # output pixel -> source pixel: centre it, turn it, mirror it, scale it, move it to the crop
  angle = math.radians(augment.rotate * (2 * draws[4] - 1))
  c, s = math.cos(angle), math.sin(angle)
  sx, sy = cw / (size * kx), ch / (size * ky)
  if draws[5] < augment.flip:
    sx = -sx
  middle = (size - 1) / 2
  matrix = np.array(
    [
      [sx * c, -sx * s, x / kx - 0.5 - sx * (c - s) * middle],
      [sy * s, sy * c, y / ky - 0.5 - sy * (s + c) * middle],
    ]
  )
  border = cv2.BORDER_CONSTANT if resize == 'pad' else cv2.BORDER_REFLECT_101
  flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
  out = cv2.warpAffine(
    image, matrix, (size, size), dst=out, flags=flags, borderMode=border, borderValue=PAD
  )
  if augment.brightness or augment.contrast or augment.saturation or augment.hue:
    b, c, s = (
      1 + a * (2 * u - 1)
      for a, u in zip((augment.brightness, augment.contrast, augment.saturation), draws[6:9])
    )
    matrix = colour_matrix(
      cv2.mean(out) if augment.contrast else (0, 0, 0), b, c, s, augment.hue * (2 * draws[9] - 1)
    )
    out = cv2.transform(out, matrix, dst=out)
  return out


# Evaluation


def _resample(image, w, h, out=None):
  """Resize each axis as it needs: averaged where it shrinks, bilinear where it grows."""
  h0, w0 = image.shape[:2]
  if w < w0 or h < h0:
    small = (min(w, w0), min(h, h0))
    image = cv2.resize(
      image, small, dst=out if small == (w, h) else None, interpolation=cv2.INTER_AREA
    )
    if small == (w, h):
      return image
  return cv2.resize(image, (w, h), dst=out, interpolation=cv2.INTER_LINEAR)


def _square(image, size, resize, out=None):
  """uint8 [h, w, 3] -> uint8 [size, size, 3]"""
  h, w = image.shape[:2]
  if resize == 'pad':
    side = max(h, w)
    nw, nh = max(1, round(size * w / side)), max(1, round(size * h / side))
    if out is None:
      out = np.empty((size, size, 3), np.uint8)
    out[:] = PAD
    x, y = (size - nw) // 2, (size - nh) // 2
    out[y : y + nh, x : x + nw] = _resample(image, nw, nh)
    return out
  if resize == 'crop':
    side = min(h, w)
    x, y = (w - side) // 2, (h - side) // 2
    image = image[y : y + side, x : x + side]
  return _resample(image, size, size, out)


def _prepared(image, size, resize):
  h, w, pixels = _look(image)
  across, down = {'squash': (w, h), 'crop': (min(h, w),) * 2, 'pad': (max(h, w),) * 2}[resize]
  # The decoder rounds its size up: the far edge is half a pixel off at most if it is cut, and a quarter of an output pixel where two make one.
  factor = max(f for f in (1, 2, 4, 8) if f == 1 or 2 * f * size <= min(across, down))
  image = pixels(factor)
  return image if image.shape[:2] == (h, w) else image[: round(h / factor), : round(w / factor)]


def eval_transform(image, size, resize='squash', out=None):
  """The view that is judged, uint8 [size, size, 3]: bytes or uint8 [h, w, 3] in. Written to `out` where given. Raises BrokenImage."""
  return _square(_prepared(image, size, resize), size, resize, out)


def views(image, size, n, resize='squash', out=None):
  """Views for test-time augmentation, uint8 [n, size, size, 3]: 1 the picture, 2 and its mirror image, 3 and the middle 7/8 enlarged (S0's
  256 -> 224), 5 and 7/8 from its upper left and its lower right corner. Raises BrokenImage."""
  if n not in (1, 2, 3, 5):
    raise ValueError(f'views={n}: choose 1, 2, 3 or 5')
  larger = round(size * 8 / 7)
  image = _prepared(image, size, resize)
  if out is None:
    out = np.empty((n, size, size, 3), np.uint8)
  out[0] = _square(image, size, resize)
  if n >= 2:
    out[1] = out[0][:, ::-1]
  if n >= 3:
    whole, gap = _square(image, larger, resize), larger - size
    for view, at in zip(out[2:], (gap // 2, 0, gap)):
      view[:] = whole[at : at + size, at : at + size]
  return out
