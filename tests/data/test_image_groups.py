"""The forms in which a caller may hand over images, and the batches that are read ahead of them."""

import io
import itertools
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from hierjax.core.errors import UserError
from hierjax.data import decoding, image_groups, workers

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), np.uint8)
ALPHA = np.dstack([RGB, RNG.integers(0, 256, (6, 9), np.uint8)])
VIEW = image_groups.View(8, resize='pad')


def encoded(image, kind='PNG', **options):
  stream = io.BytesIO()
  Image.fromarray(image).save(stream, kind, **options)
  return stream.getvalue()


def pixels(image):
  """The view of a single image, or why there is none."""
  (batch,) = image_groups.batches([image], VIEW, [1])
  return batch.errors[0] or batch.pixels[0]


FORMS = {
  'bytes': encoded(RGB),
  'bytearray': bytearray(encoded(RGB)),
  'memoryview': memoryview(encoded(RGB)),
  'pillow': Image.fromarray(RGB),
  'opened by pillow': Image.open(io.BytesIO(encoded(RGB))),
  'read backwards': RGB[::-1].copy()[::-1],
  'int64': RGB.astype(np.int64),
  'uint16': RGB.astype(np.uint16) * 257,
  'float32': RGB.astype(np.float32) / 255,
  'float64': RGB / 255,
  'opaque': np.dstack([RGB, np.full((6, 9), 255, np.uint8)]),
}


@pytest.mark.parametrize('form', FORMS)
def test_a_picture_is_the_same_in_every_form(form):
  np.testing.assert_array_equal(pixels(FORMS[form]), pixels(RGB))


def test_grey_alpha_and_orientation_are_as_in_files():
  """Arrays and Pillow images give what the decoder gives for a file of the same content."""
  for image in (ALPHA, RGB[..., 0], (RGB[..., 0] > 99)):
    file = pixels(encoded(image))
    np.testing.assert_array_equal(pixels(image), file)
    np.testing.assert_array_equal(pixels(Image.fromarray(image)), file)
  np.testing.assert_array_equal(pixels(RGB[..., :1]), pixels(RGB[..., 0]))
  exif = Image.Exif()
  exif[0x112] = 6
  turned = encoded(RGB, exif=exif)
  opened = Image.open(io.BytesIO(turned))
  np.testing.assert_array_equal(pixels(opened), pixels(turned))
  assert opened.getexif()[0x112] == 6 and opened.size == (9, 6)  # the caller's is as it was


def test_deep_range_scales_arrays_as_it_scales_files():
  deep = RNG.integers(100, 900, (6, 9)).astype(np.uint16)
  for how in (decoding.DEFAULT, decoding.Decoding(deep_range=(100.0, 900.0))):
    view = image_groups.View(8, how=how)
    batches = [next(image_groups.batches(x, view, [1])) for x in (deep, encoded(deep))]
    np.testing.assert_array_equal(batches[0].pixels, batches[1].pixels)
  scaled = decoding.to_rgb(deep.astype(np.float32), how)
  assert scaled.min() == 0 or scaled.max() > 200


BROKEN = {
  'fractions beyond 1': (RGB / 100, 'fractions must lie in 0..1'),
  'NaN': (np.full((4, 4), np.nan), 'fractions must lie in 0..1, found float64 [4, 4] from nan'),
  'negative': (RGB.astype(np.int16) - 100, 'whole numbers must lie in 0..255'),
  'channels first': (np.zeros((3, 6, 9), np.uint8), 'the channels must be last'),
  'five channels': (np.zeros((6, 9, 5), np.uint8), 'found uint8 [6, 9, 5]'),
  'a row': (np.zeros(5, np.uint8), 'found uint8 [5]'),
  'nothing': (np.zeros((0, 4, 3), np.uint8), 'found uint8 [0, 4, 3]'),
  'complex': (np.zeros((4, 4), complex), 'expected numbers'),
  'objects': (np.full((4, 4), None), 'expected numbers'),
  'no bytes': (b'', 'empty: it has no bytes'),
  'no image': (b'<html>404</html>', 'not an image'),
  'truncated': (encoded(RGB, 'BMP')[:-99], 'truncated'),
  'a truncated JPEG': (encoded(np.tile(RGB, (20, 20, 1)), 'JPEG')[:3000], 'truncated'),
  'truncated, opened': (Image.open(io.BytesIO(encoded(RGB, 'BMP')[:-99])), 'truncated'),
  'missing': ('gone.jpg', 'No such file or directory'),
  'a folder': ('.', 'Is a directory'),
  'no path': ('a\0b', 'null byte'),
}


@pytest.mark.parametrize('name', BROKEN)
def test_what_is_no_picture_says_why(name):
  image, reason = BROKEN[name]
  assert reason in pixels(image)


def test_limits_hold_for_every_form():
  view = image_groups.View(8, max_bytes=50, how=decoding.Decoding(max_pixels=53))
  small = np.zeros((4, 4, 3), np.uint8)
  images = [RGB, Image.fromarray(RGB), encoded(RGB), small]
  (batch,) = image_groups.batches(images, view, [4])
  assert ['pixels, more than the 53' in e for e in batch.errors] == [True, True, False, False]
  assert 'more than the 50 of data.max_bytes' in batch.errors[2] and batch.errors[3] == ''


def test_the_forms_of_many_images(tmp_path):
  """A folder, one image, an array of images, names in an array; and what cannot be one."""
  for name in ('b.png', 'sub/a.PNG', 'notes.txt'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(encoded(RGB))
  names = [name for name, _ in image_groups.named(tmp_path)]
  assert names == [f'{tmp_path}/b.png', f'{tmp_path}/sub/a.PNG']
  assert [name for name, _ in image_groups.named(np.array(names))] == names
  assert [name for name, _ in image_groups.named(names[0])] == names[:1]
  for images, n in ((RGB, 1), (RGB[..., 0], 1), (np.stack([RGB] * 3), 3), (b'x', 1), ([], 0)):
    assert len(list(image_groups.named(images))) == n
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match='no image lies in or below'):
    next(image_groups.named(tmp_path / 'empty'))
  for wrong, words in ((5, 'not int'), ([RGB, {}], 'image 1 is of type dict')):
    with pytest.raises(UserError, match=words):
      list(image_groups.named(wrong))


@pytest.mark.parametrize(
  ('n', 'rows'), [(0, []), (1, [1]), (2, [4]), (4, [4]), (5, [16]), (16, [16]), (33, [16] * 3)]
)
def test_batches_are_no_larger_than_they_need_be(n, rows):
  batches = list(image_groups.batches([RGB] * n, VIEW, [1, 4, 16]))
  assert [len(b.pixels) for b in batches] == rows
  assert [name for b in batches for name in b.names] == [f'image {i}' for i in range(n)]
  if n:
    assert not batches[-1].pixels[len(batches[-1].names) :].any()


def test_an_endless_generator_is_read_a_few_batches_ahead():
  taken = itertools.count()
  batches = image_groups.batches((RGB for _ in taken), VIEW, [2, 4], threads=3)
  for _ in range(5):
    next(batches)
  batches.close()
  assert next(taken) <= 4 * (5 + 2 * 3 + 1)


def test_threads_start_once_and_end():
  before = {*threading.enumerate()}
  batches = image_groups.batches([RGB] * 64, VIEW, [2], threads=3)
  new = {thread for _ in batches for thread in threading.enumerate()} - before
  for thread in new:
    thread.join(timeout=10)
  assert 0 < len(new) <= 3 and not any(thread.is_alive() for thread in new)


def test_processes_start_once_and_give_the_same(tmp_path):
  """Two processes read all batches, and the error of a file comes through them."""
  images = [RGB, encoded(RGB), Image.fromarray(RGB), 'gone.jpg'] * 5
  expected = list(image_groups.batches(images, VIEW, [4]))
  result = list(image_groups.batches(images, VIEW, [4], processes=2))
  for a, b in zip(expected, result, strict=True):
    np.testing.assert_array_equal(a.pixels, b.pixels)
    assert a.names == b.names and a.errors == b.errors
  pids = list(workers.ordered_map(os.getpid, [()] * 12, workers=2))
  assert os.getpid() not in pids and len(set(pids)) <= 2
  with pytest.raises(UserError, match=r'has died.*data\.workers=0'):
    list(workers.ordered_map(os._exit, [(1,)] * 3, workers=1))


def test_reading_needs_no_jax():
  code = (
    'import sys, hierjax.data.image_groups; print({"jax", "grain", "sklearn"} & {*sys.modules})'
  )
  result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert result.stdout.strip() == 'set()'
