"""Decoding of pictures: encoded bytes become uint8 [h, w, 3], RGB and upright.

Memory is bounded by the number of pixels that a header claims: larger pictures are refused before
they are decoded. A JPEG can be decoded at a half, a quarter or an eighth of its size.
"""

import contextlib
import functools
import io
import math
import os
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

MAX_BYTES = 1 << 28  # of an image file
MAX_PIXELS = 1 << 26  # of a picture; 8192 x 8192 take some 470 MB while they are decoded
# Baseline JPEGs, which are decoded at reduced size, may be larger: up to Pillow's own limit.
MAX_JPEG_PIXELS = 2 * Image.MAX_IMAGE_PIXELS
JPEG_GROWTH = 4  # pixels of a JPEG that may be decoded, over those of another picture
MAX_SCANS = 500  # of a progressive JPEG; a dozen are usual
FULL_SIZE = 1 << 24  # pixels from which `decode` reduces a JPEG
STRIP = 1 << 20  # pixels that are converted at a time
OWN_RANGE = ('own',)


class BrokenImage(ValueError):
  """The bytes are no picture that can be read."""


class Decoding(NamedTuple):
  """How pictures are decoded.

  Attributes:
    max_pixels: a picture with more is refused; a JPEG that can be reduced may have four times as
      many.
    deep_range: of pictures with more than 8 bits, what becomes 0 and 255: (low, high), or ('own',)
      for the least and the largest value of each picture. None cuts whole numbers to their upper 8
      bits, and clips fractions to 0..255.
  """

  max_pixels: int = MAX_PIXELS
  deep_range: tuple | None = None


DEFAULT = Decoding()


class Part(bytes):
  """An encoded picture of which only a part is shown, or that is decoded as options say.

  Attributes:
    box: (left, top, right, bottom) in pixels of the upright picture, right and bottom excluded, as
      far as it lies inside; None for all of it.
    banner: rows at the lower edge that are never shown.
    decoding: how it is decoded.
  """

  def __new__(
    cls, data: bytes, box: tuple | None = None, banner: int = 0, decoding: Decoding = DEFAULT
  ) -> 'Part':
    part = super().__new__(cls, data)
    part.box, part.banner, part.decoding = box, banner, decoding
    return part


class Picture(NamedTuple):
  """Upright height and width; pixels(f): uint8 [h, w, 3], or from most JPEGs [h / f, w / f, 3]."""

  height: int
  width: int
  pixels: Callable[[int], np.ndarray]


@functools.cache
def _formats():
  """Pillow's formats, without those that would start a program on what stands in the file."""
  Image.init()
  return sorted({*Image.OPEN} - {'EPS', 'WMF'})


@functools.cache
def suffixes() -> frozenset[str]:
  """Return the suffixes of files that `decode` reads, in small letters: '.jpg' and so on."""
  stubs = {'BUFR', 'GRIB', 'HDF5', 'MPEG'}  # Pillow knows these formats, but cannot read them
  readable = {*_formats()} - stubs | {'MPO'}
  return frozenset(s for s, name in Image.registered_extensions().items() if name in readable)


def is_image(name: str) -> bool:
  """Whether `decode` reads files with the suffix of this name."""
  return os.path.splitext(name)[1].lower() in suffixes()


def _open(data):
  """Open a picture as `Image.open` does, whose limit warns in words that name no file."""
  for name in _formats():
    factory, accept = Image.OPEN[name]
    with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
      answer = accept is None or accept(data[:16])  # a text says why not
      if answer and not isinstance(answer, str):
        return factory(io.BytesIO(data), '')
  raise BrokenImage('not an image')


def _check_size(width, height, limit):
  if width * height > limit:
    raise BrokenImage(
      f'{width} x {height} pixels, more than the {limit} of data.max_pixels: refused as a '
      'decompression bomb'
    )


def _decode_any(data, decoding):
  """Decode any format: first frame, upright, transparent parts on white, deep pixels as 8 bits."""
  try:
    if not data:
      raise BrokenImage('empty: it has no bytes')
    if data.startswith((b'\0\0\1\0', b'icns')):
      # icons hold PNGs with sizes of their own, which are decoded when the icon is opened
      for header in re.findall(rb'IHDR(.{8})', data, re.DOTALL):
        _check_size(*struct.unpack('>II', header), decoding.max_pixels)
    with _open(data) as image:
      _check_size(*image.size, decoding.max_pixels)
      deep = _deep_colours(data, image) if decoding.deep_range else None
      image.load()
      ImageOps.exif_transpose(image, in_place=True)
      if deep is not None:
        return _scaled(deep, decoding.deep_range)
      return _eight_bits(image, decoding.deep_range)
  except BrokenImage:
    raise
  except Exception as error:
    # Pillow raises OSError, SyntaxError, struct.error and more, as the bytes fall
    raise BrokenImage(str(error) or type(error).__name__) from error


def _eight_bits(image, deep_range):
  """The pixels of an upright image, uint8 [h, w, 3]."""
  if image.mode.startswith('I') or image.mode == 'F':
    return np.repeat(_grey(image, deep_range)[..., None], 3, -1)
  return _rgb(image)


def to_rgb(image: np.ndarray | Image.Image, decoding: Decoding = DEFAULT) -> np.ndarray:
  """Turn a picture in memory into uint8 [h, w, 3].

  Args:
    image: a Pillow image, or an array [h, w], [h, w, 1], [h, w, 3] (RGB) or [h, w, 4], of which
      transparent parts become white. An array holds uint8; uint16, of which the upper 8 bits count;
      fractions in 0..1; truth values; or other whole numbers in 0..255.
    decoding: its `deep_range` scales what has more than 8 bits instead.

  Raises:
    BrokenImage: it is none of these.
  """
  if isinstance(image, np.ndarray):
    return _of_array(image, decoding)
  _check_size(*image.size, decoding.max_pixels)
  try:
    return _eight_bits(ImageOps.exif_transpose(image), decoding.deep_range)
  except Exception as error:
    # an opened file is read only now, see `_decode_any`
    raise BrokenImage(str(error) or type(error).__name__) from error


def _of_array(values, decoding):
  """The pixels of an array, uint8 [h, w, 3]."""
  kind = f'{values.dtype} {list(values.shape)}'
  values = values[..., None] if values.ndim == 2 else values
  if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or not values.size:
    hint = '; the channels must be last' if values.shape[:1] in ((1,), (3,)) else ''
    raise BrokenImage(f'expected an array [h, w], [h, w, 3] or [h, w, 4], found {kind}{hint}')
  _check_size(values.shape[1], values.shape[0], decoding.max_pixels)
  if values.dtype != np.uint8:
    values = _bytes_of(values, kind, decoding.deep_range)
  if values.shape[2] == 4:
    return _rgb(Image.fromarray(values))
  return np.repeat(values, 3, -1) if values.shape[2] == 1 else values


def _bytes_of(values, kind, deep_range):
  """Numbers of another type as uint8."""
  if values.dtype.kind not in 'buif':
    raise BrokenImage(f'expected numbers, found {kind}')
  if deep_range and values.dtype.kind != 'b':
    return _scaled(values, deep_range)
  if values.dtype == np.uint16:
    return (values >> 8).astype(np.uint8)
  top, words = (1, 'fractions') if values.dtype.kind in 'bf' else (255, 'whole numbers')
  low, high = values.min(), values.max()
  if not (low >= 0 and high <= top):
    raise BrokenImage(
      f'{words} must lie in 0..{top}, found {kind} from {low:g} to {high:g}; give uint8, or set '
      'data.deep_range'
    )
  return np.rint(values * (255.0 / top)).astype(np.uint8)


def _rgb(image):
  """The pixels of an image in 8 bits, converted in strips: copies of all of it are large."""
  has_alpha = image.mode in ('RGBA', 'LA', 'PA', 'La', 'RGBa') or 'transparency' in image.info

  def convert(part):
    if has_alpha:
      part = part.convert('RGBA')
      part = Image.alpha_composite(Image.new('RGBA', part.size, 'white'), part)
    return np.asarray(part.convert('RGB'))

  w, h = image.size
  rows = max(1, STRIP // w)
  if h <= rows:
    return convert(image)
  out = np.empty((h, w, 3), np.uint8)
  for top in range(0, h, rows):
    out[top : top + rows] = convert(image.crop((0, top, w, min(h, top + rows))))
  return out


def _grey(image, deep_range):
  """The pixels of a grey image of 16 or 32 bits, uint8 [h, w]."""
  grey = np.asarray(image)
  if deep_range:
    return _scaled(grey, deep_range)
  if image.mode != 'F' and (image.mode != 'I' or grey.max(initial=0) > 255):
    grey = grey >> 8
  return np.clip(grey, 0, 255).astype(np.uint8)


def _scaled(values, deep_range):
  """Scale numbers so that a range, (low, high) or their own, becomes 0..255."""
  is_own = deep_range == OWN_RANGE
  low, high = (np.nanmin(values), np.nanmax(values)) if is_own else deep_range
  low, high = float(low), float(high)
  scale, out = 255 / max(high - low, 1e-30), np.empty(values.shape, np.uint8)
  rows = max(1, STRIP // values.shape[1])
  for top in range(0, len(values), rows):
    strip = np.nan_to_num((values[top : top + rows] - low) * scale)
    out[top : top + rows] = np.clip(np.rint(strip), 0, 255)
  return out


def _has_deep_colours(data, image):
  if image.mode not in ('RGB', 'RGBA', 'LA'):
    return False
  if image.format == 'PNG':
    return data[24:25] == b'\x10'
  return image.format == 'TIFF' and max(image.tag_v2.get(258, (8,))) > 8


def _deep_colours(data, image):
  """The pixels of a colour image of 16 bits a channel, [h, w, 3] upright; None for another."""
  if not _has_deep_colours(data, image):
    return None
  pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  if pixels is None or pixels.ndim != 3 or pixels.shape[2] < 3:
    return None
  return _upright(pixels[..., 2::-1], image.getexif().get(0x112, 1))


def is_deep(data: bytes) -> bool:
  """Whether a picture has more than 8 bits a channel; False if it cannot be read."""
  if data[:2] == b'\xff\xd8':
    return False
  try:
    with _open(data) as image:
      return image.mode.startswith('I') or image.mode == 'F' or _has_deep_colours(data, image)
  except Exception:
    # as in _decode_any, which says what is wrong
    return False


def _orientation(data):
  """EXIF orientation of a JPEG, 1 to 8; 1 for a damaged tag."""
  if b'Exif\0\0' not in data[: 1 << 16]:
    return 1
  try:
    with _open(data) as image:
      orientation = image.getexif().get(0x112, 1)
    return orientation if orientation in range(1, 9) else 1
  except Exception:
    return 1


def _upright(image, orientation):
  """Undo an EXIF orientation: 5 to 8 are transposed, then each is mirrored as it needs."""
  if orientation >= 5:
    image = image.swapaxes(0, 1)
  if orientation in (2, 3, 6, 7):
    image = image[:, ::-1]
  if orientation in (3, 4, 7, 8):
    image = image[::-1]
  return np.ascontiguousarray(image)


def _is_progressive(data):
  """Whether a JPEG is: it needs memory for all of its coefficients, whatever is decoded."""
  place = 2
  while data[place : place + 1] == b'\xff' and place + 4 <= len(data):
    marker = data[place + 1]
    if marker != 0xFF and 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
      return marker in (0xC2, 0xC6, 0xCA, 0xCE)
    # any number of bytes 0xff may stand before a marker
    place += 1 if marker == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4])
  return False


def open_picture(image: bytes | np.ndarray) -> Picture:
  """Open what encoded bytes, a `Part` or uint8 [h, w, 3] show; `BrokenImage` if they cannot be."""
  if not isinstance(image, Part):
    return _open_all(image, DEFAULT)
  h, w, pixels = _open_all(image, image.decoding)
  left, top, right, bottom = image.box or (0, 0, w, h)
  x, x1 = max(0, math.floor(left)), min(w, math.ceil(right))
  y, y1 = max(0, math.floor(top)), min(h - image.banner, math.ceil(bottom))
  if x >= x1 or y >= y1:
    box = f'{left:g}, {top:g}, {right:g}, {bottom:g}'
    raise BrokenImage(f'nothing of its {w} x {h} pixels is left within {box}')

  def part(f):
    reduced = pixels(f)
    if reduced.shape[:2] == (h, w):
      f = 1
    row, column = round(y / f), round(x / f)  # at most half a reduced pixel off
    return reduced[row : row + -(-(y1 - y) // f), column : column + -(-(x1 - x) // f)]

  return Picture(y1 - y, x1 - x, part)


def _open_all(image, decoding):
  """The whole picture."""
  if isinstance(image, np.ndarray):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
      raise BrokenImage(f'expected uint8 [h, w, 3], found {image.dtype} {list(image.shape)}')
    return Picture(*image.shape[:2], lambda f: image)
  if image[:2] == b'\xff\xd8':
    try:
      h, w, space, _ = simplejpeg.decode_jpeg_header(image)
    except ValueError:
      h, w, space = 0, 0, ''
    if h and space in ('Gray', 'YCbCr', 'RGB'):
      _check_jpeg(image, w, h, decoding.max_pixels)
      return _open_jpeg(image, h, w, decoding)
  pixels = _decode_any(image, decoding)
  return Picture(*pixels.shape[:2], lambda f: pixels)


def _check_jpeg(data, w, h, max_pixels):
  if not _is_progressive(data):
    return _check_size(w, h, min(JPEG_GROWTH * max_pixels, MAX_JPEG_PIXELS))
  _check_size(w, h, max_pixels)
  if data.count(b'\xff\xda') > MAX_SCANS:
    raise BrokenImage(f'has more than {MAX_SCANS} scans: refused as a decompression bomb')


def _open_jpeg(data, h, w, decoding):
  orientation = _orientation(data)

  def pixels(f):
    try:
      image = simplejpeg.decode_jpeg(data, min_height=-(-h // f), min_width=-(-w // f))
    except ValueError:
      return _decode_any(data, decoding)  # decides whether the fault is a harmless one
    return _upright(image, orientation)

  return Picture(w, h, pixels) if orientation >= 5 else Picture(h, w, pixels)


def decode(image: bytes | np.ndarray) -> np.ndarray:
  """Decode a picture to uint8 [h, w, 3], RGB and upright; `BrokenImage` if it cannot be read.

  Of a JPEG with more than 16 million pixels, a half, a quarter or an eighth of the size.
  """
  h, w, pixels = open_picture(image)
  factor = next((f for f in (1, 2, 4) if h * w <= FULL_SIZE * f * f), 8)
  return pixels(factor)
