"""Decoding: deep pictures, and pictures that claim to be larger than memory."""

import io
import pickle
import struct
import tracemalloc
import zlib

import agreement
import cv2
import numpy as np
import pytest
from PIL import Image
from test_folders import draw, options

from hierjax.data import decoding, image_files, lint, sources, transforms
from hierjax.data.decoding import BrokenImage, Decoding, Part


def encoded(pixels, kind='PNG', **settings):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, kind, **settings)
  return buffer.getvalue()


def deep(data, deep_range):
  return decoding.decode(Part(data, decoding=Decoding(deep_range=deep_range)))


# Deep pictures


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
@pytest.mark.parametrize(('low', 'high'), [(51241, 52181), (0, 4095), (100, 101), (0, 65535)])
def test_a_deep_grey_picture_is_scaled_by_its_own_or_another_range(kind, low, high):
  values = np.random.default_rng(low).integers(low, high + 1, (9, 7)).astype(np.uint16)
  values[0, :2] = low, high
  data = encoded(values, kind)
  assert decoding.is_deep(data)
  exact = (values.astype(float) - low) / (high - low) * 255
  scaled = deep(data, ('own',))
  assert scaled.shape == (9, 7, 3) and (scaled == scaled[..., :1]).all()
  np.testing.assert_allclose(scaled[..., 0], exact, atol=0.51)
  wide = deep(data, (low - 50.0, high + 50.0))
  np.testing.assert_allclose(
    wide[..., 0], (values.astype(float) - low + 50) / (high - low + 100) * 255, atol=0.51
  )
  assert (deep(data, (high + 1, high + 2)) == 0).all()
  # what is cut by default stays as it was
  np.testing.assert_array_equal(decoding.decode(data)[..., 0], values >> 8)


def test_fractions_are_scaled_and_what_is_no_number_is_black():
  values = np.array([[-2.5, 0.0, 2.5], [7.5, np.nan, 7.5]], np.float32)
  scaled = deep(encoded(values, 'TIFF'), ('own',))
  np.testing.assert_array_equal(scaled[..., 0], [[0, 64, 128], [255, 0, 255]])
  np.testing.assert_array_equal(
    deep(encoded(values, 'TIFF'), (0, 5))[..., 0], [[0, 0, 128], [255, 0, 255]]
  )


@pytest.mark.parametrize('suffix', ['.png', '.tiff'])
def test_deep_colours_are_scaled_together(suffix):
  values = np.random.default_rng(0).integers(1000, 3001, (5, 6, 3)).astype(np.uint16)
  values[0, 0], values[0, 1] = (1000, 2000, 3000), (3000, 2000, 1000)
  _, data = cv2.imencode(suffix, values[..., ::-1])
  data = data.tobytes()
  assert decoding.is_deep(data)
  np.testing.assert_allclose(deep(data, ('own',)), (values - 1000.0) / 2000 * 255, atol=0.51)


def test_eight_bits_and_what_cannot_be_read_are_not_deep():
  pixels = np.full((4, 4, 3), 7, np.uint8)
  for data in (encoded(pixels), encoded(pixels, 'JPEG'), encoded(pixels[..., 0]), b'', b'text'):
    assert not decoding.is_deep(data)
  np.testing.assert_array_equal(deep(encoded(pixels), ('own',)), pixels)


@pytest.mark.parametrize('data', [b'a', b'ab', b'\xff\xd8\xff', b'no picture'])
def test_a_few_bytes_are_not_an_image(data):
  with pytest.raises(decoding.BrokenImage, match=r'^not an image$'):
    decoding.decode(data)


def thermal(root, low, high):
  """Two classes of two deep pictures each in two splits."""
  rng = np.random.default_rng(0)
  for split in ('train', 'val'):
    for name in 'ab':
      for i in range(2):
        path = root / split / name / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(rng.integers(low, high + 1, (8, 9)).astype(np.uint16)))
  return root


@pytest.mark.parametrize(('low', 'high', 'left'), [(30000, 30900, 4), (0, 2047, 8), (900, 1000, 1)])
def test_deep_pictures_that_lose_their_values_are_no_secret(tmp_path, low, high, left):
  root = thermal(tmp_path, low, high)
  assert agreement.assert_agree(options(root)) == ''
  data, report = sources.load(options(root)), lint.check(options(root))
  notes = [note for note in data.notes if 'more than 8 bits' in note]
  assert len(notes) == 1 and f'{left} different values are left' in notes[0]
  warnings = [p for p in report.problems if p.severity == 'warning']
  assert [p.kind for p in warnings] == ['nearly constant images']
  assert '8 of 8 images' in warnings[0].text and '--config.data.deep_range=own' in warnings[0].text
  for value in ('own', f'{low},{high}'):
    scaled = sources.load(options(root, deep_range=value))
    assert not any('more than 8 bits' in note for note in scaled.notes)
    assert lint.check(options(root, deep_range=value)).problems == []
    reader = pickle.loads(pickle.dumps(scaled.splits['train'])).reader
    pixels = decoding.decode(reader(0))
    assert pixels.min() < 20 and pixels.max() > 235
    assert transforms.eval_transform(reader(0), 8).max() > 200


def test_black_photographs_are_named_without_advice_on_bits(tmp_path):
  root = draw(tmp_path, 'train/cat*3, train/dog*3, val/cat, val/dog')
  (root / 'train/cat/black.png').write_bytes(encoded(np.zeros((8, 8, 3), np.uint8)))
  (root / 'train/dog/dark.png').write_bytes(encoded(np.full((8, 8, 3), 9, np.uint8)))
  (warning,) = lint.check(options(root)).problems
  assert warning.severity == 'warning' and '2 of 10 images are nearly constant' in warning.text
  assert 'train/cat/black.png, train/dog/dark.png' in warning.text and 'bits' not in warning.text


# Large pictures


def blank_png(width, height, depth=8, colour=2):
  """A PNG of zeros: some thousandth of its pixels in bytes."""
  channels = {0: 1, 2: 3, 6: 4}[colour]
  row = bytes(1 + width * channels * depth // 8)
  packer, body = zlib.compressobj(9), b''
  for _ in range(height):
    body += packer.compress(row)
  body += packer.flush()

  def chunk(kind, content):
    crc = struct.pack('>I', zlib.crc32(kind + content))
    return struct.pack('>I', len(content)) + kind + content + crc

  header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
  signature = b'\x89PNG\r\n\x1a\n'
  return signature + chunk(b'IHDR', header) + chunk(b'IDAT', body) + chunk(b'IEND', b'')


def peak_of(read, data):
  """The most memory that Python and NumPy hold while a picture is read, in bytes."""
  tracemalloc.start()
  try:
    read(data)
    return tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


def test_a_png_that_claims_too_many_pixels_is_refused_unread():
  data = blank_png(8193, 8192)
  assert len(data) < 300_000
  for read in (decoding.decode, lambda x: transforms.train_transform(x, np.random, 32)):
    with pytest.raises(BrokenImage, match=r'8193 x 8192 pixels, more than the 67108864 of data\.'):
      read(data)

  def attempt(x):
    with pytest.raises(BrokenImage):
      decoding.decode(x)

  assert peak_of(attempt, data) < 1 << 20


def test_a_large_transparent_picture_is_converted_in_strips():
  """The pixels are those of converting all at once, with the memory of one copy."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (1500, 1100, 4)).astype(np.uint8)
  image = Image.fromarray(pixels)
  white = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
  data = encoded(pixels, compress_level=1)
  np.testing.assert_array_equal(decoding.decode(data), np.asarray(white))
  large = blank_png(3000, 4000, colour=6)
  # 12 million pixels of three bytes, and a strip
  assert peak_of(decoding.decode, large) < 3.6e7 + 2e7


def test_a_png_within_an_icon_is_no_way_around():
  icon = bytearray(encoded(np.zeros((16, 16, 4), np.uint8), 'ICO', sizes=[(16, 16)]))
  place = icon.index(b'IHDR') + 4
  icon[place : place + 8] = struct.pack('>II', 9000, 9000)
  icon[place + 13 : place + 17] = struct.pack('>I', zlib.crc32(icon[place - 4 : place + 13]))
  with pytest.raises(BrokenImage, match='9000 x 9000 pixels'):
    decoding.decode(bytes(icon))


def test_large_jpegs_are_read_at_reduced_size():
  """A plain JPEG of 100 million pixels is read; a progressive one needs all of its memory."""
  rows = np.repeat(np.arange(10_000) % 251, 16).reshape(10_000, 16).astype(np.uint8)
  pixels = np.tile(rows, (1, 625))
  plain = encoded(pixels, 'JPEG', quality=30)
  assert peak_of(lambda x: transforms.eval_transform(x, 64), plain) < 1 << 24
  assert peak_of(decoding.decode, plain) < 1 << 26
  h, w, _ = decoding.decode(plain).shape
  assert (h, w) == (2500, 2500)
  small = decoding.Decoding(max_pixels=100_000)
  progressive = encoded(pixels[:400, :400], 'JPEG', progressive=True)
  same = encoded(pixels[:400, :400], 'JPEG')
  assert decoding.decode(Part(same, decoding=small)).shape == (400, 400, 3)
  with pytest.raises(BrokenImage, match='400 x 400 pixels, more than the 100000'):
    decoding.decode(Part(progressive, decoding=small))


def test_a_progressive_jpeg_of_endless_scans_is_refused():
  data = encoded(np.zeros((32, 32, 3), np.uint8), 'JPEG', progressive=True)
  assert decoding.decode(data).shape == (32, 32, 3)
  scan = data.rindex(b'\xff\xda')
  with pytest.raises(BrokenImage, match='more than 500 scans'):
    decoding.decode(data[:-2] + data[scan:-2] * 600 + b'\xff\xd9')


def test_limits_are_options_and_hold_wherever_images_are_read(tmp_path):
  root = draw(tmp_path, 'train/cat*3, train/dog*3, val/cat, val/dog')
  size = (root / 'train/cat/0.png').stat().st_size
  (root / 'train/cat/wide.png').write_bytes(blank_png(100, 100))
  (root / 'train/dog/long.png').write_bytes(blank_png(4, 4) + bytes(9000))
  assert lint.check(options(root)).counts['error'] == 0
  for name, value, file, fault in (
    ('max_pixels', 9_999, 'wide.png', '100 x 100 pixels, more than the 9999 of data.max_pixels'),
    ('max_bytes', size + 1000, 'long.png', 'MiB; at most'),
  ):
    problems = [p for p in lint.check(options(root, **{name: value})).problems if p.stops is False]
    errors = [p.text for p in problems if p.severity == 'error']
    assert len(errors) == 1 and file in errors[0] and fault in errors[0]
    reader = sources.load(options(root, **{name: value})).splits['train'].reader
    assert pickle.loads(pickle.dumps(reader))(0)


def test_rows_that_are_no_files_keep_the_limits(tmp_path):
  data = options('', max_bytes=100, max_pixels=50, deep_range='own')
  reader = image_files.with_limits([b'x' * 100, b'x' * 101, np.zeros((2, 2, 3))].__getitem__, data)
  assert reader(0).decoding == Decoding(50, ('own',)) and reader.select(np.array([2]))(0).sum() == 0
  with pytest.raises(OSError, match=r'101 bytes, more than the 100 of data\.max_bytes'):
    reader(1)


@pytest.mark.parametrize(
  ('side', 'limit'), [(9500, 1 << 26), (13_400, 1 << 26), (9500, 90_000_000)]
)
def test_one_limit_of_pixels_decides(side, limit):
  """Pillow has limits of its own, at which it warned or refused in other words."""
  picture = Part(blank_png(side, side, 1, 0), decoding=Decoding(limit))
  text = f'^{side} x {side} pixels, more than the {limit} of data.max_pixels'
  with pytest.raises(BrokenImage, match=text):
    decoding.decode(picture)
  assert not decoding.is_deep(picture)
