"""Each transform against separate, slower steps: Pillow, numpy mirrors, formulas of a pixel."""

import io
import math
import pickle

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageEnhance

from hierjax.data import decoding, transforms
from hierjax.data.decoding import BrokenImage
from hierjax.data.transforms import Augment

STILL = Augment(
  crop=(1.0, 1.0),
  ratio=(1.0, 1.0),
  flip=0.0,
  rotate=0.0,
  brightness=0.0,
  contrast=0.0,
  saturation=0.0,
)


class Draws:
  """A generator with fixed draws: area, ratio, x, y, angle, flip, three colour factors, hue."""

  def __init__(self, *values):
    self.values = np.array([*values, *[0.5] * 40])

  def random(self, n):
    return self.values[:n]


def picture(h, w, seed=0, blur=3):
  noise = np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)
  return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), blur), None, 0, 255, cv2.NORM_MINMAX)


def encoded(image, kind, **options):
  buffer = io.BytesIO()
  (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
    buffer, kind, **options
  )
  return buffer.getvalue()


def error(a, b):
  return np.abs(a.astype(float) - b.astype(float)).mean()


def test_without_randomness_training_is_a_plain_resize():
  image = picture(60, 90)
  np.testing.assert_allclose(
    transforms.train_transform(image, Draws(), 90, STILL).astype(int),
    np.asarray(Image.fromarray(image).resize((90, 90), Image.BILINEAR)).astype(int),
    atol=3,
  )
  out = transforms.train_transform(image, Draws(), 48, Augment(enabled=False))
  np.testing.assert_array_equal(out, transforms.eval_transform(image, 48))


def test_flip_is_the_exact_mirror_image():
  image = picture(64, 64)
  plain = transforms.train_transform(image, Draws(), 64, STILL)
  np.testing.assert_array_equal(plain, image)
  np.testing.assert_array_equal(
    transforms.train_transform(
      image, Draws(0.5, 0.5, 0.5, 0.5, 0.5, 0.0), 64, STILL._replace(flip=0.5)
    ),
    image[:, ::-1],
  )
  np.testing.assert_array_equal(
    transforms.train_transform(
      image, Draws(0.5, 0.5, 0.5, 0.5, 0.5, 0.6), 64, STILL._replace(flip=0.5)
    ),
    image,
  )


@pytest.mark.parametrize('share', [0.0, 0.25, 1.0])
def test_rotation_turns_about_the_centre_like_pillow(share):
  image = picture(81, 81)
  out = transforms.train_transform(
    image, Draws(0.5, 0.5, 0.5, 0.5, share), 81, STILL._replace(rotate=20.0)
  )
  expected = np.asarray(Image.fromarray(image).rotate(20 * (2 * share - 1), Image.BILINEAR))
  inside = slice(16, -16)  # beyond, Pillow is black and we mirror the border
  assert error(out[inside, inside], expected[inside, inside]) < 2
  assert error(out[inside, inside], image[inside, inside]) > 10


@pytest.mark.parametrize('resize', transforms.RESIZE)
def test_crop_shows_the_part_that_was_drawn(resize):
  image, size = picture(80, 120, blur=5), 64
  augment = STILL._replace(crop=(0.25, 0.25))
  out = transforms.train_transform(image, Draws(0.5, 0.5, 0.3, 0.8), size, augment, resize)
  if resize == 'squash':
    box = (0.3 * 60, 0.8 * 40, 0.3 * 60 + 60, 0.8 * 40 + 40)  # half of each side
  elif resize == 'crop':
    box = (0.3 * (120 - math.sqrt(2400)), 0.8 * (80 - math.sqrt(2400)))
  else:
    box = (0.3 * 60, 0.8 * 60 - 20, 0.3 * 60 + 60, 0.8 * 60 + 40)
  if resize == 'crop':
    box = (*box, box[0] + math.sqrt(2400), box[1] + math.sqrt(2400))
  source = Image.fromarray(image)
  if resize == 'pad':
    source = Image.new('RGB', (120, 120), transforms.PAD)
    source.paste(Image.fromarray(image), (0, 20))
    box = (box[0], box[1] + 20, box[2], box[3] + 20)
  expected = np.asarray(source.resize((size, size), Image.BILINEAR, box=box))
  assert error(out, expected) < 2.5, error(out, expected)


def test_crops_keep_to_the_limits_and_reach_everywhere():
  rng, area, corners = np.random.default_rng(0), [], []
  augment = Augment(crop=(0.3, 0.9), ratio=(0.75, 4 / 3))
  for _ in range(500):
    for resize in transforms.RESIZE:
      x, y, w, h = transforms._crop(60, 100, augment, resize, rng.random(4).tolist())
      fw, fh = (100, 100) if resize == 'pad' else (100, 60)
      x0, y0 = (0, -20) if resize == 'pad' else (0, 0)
      assert (
        x - w / 2 >= x0 - 1e-6
        and x + w / 2 <= x0 + fw + 1e-6
        and y - h / 2 >= y0 - 1e-6
        and y + h / 2 <= y0 + fh + 1e-6
      )
      ratio = w / h if resize != 'squash' else w / h * 60 / 100
      assert 0.75 - 1e-6 <= ratio <= 4 / 3 + 1e-6
      area.append(w * h / (fw * fh))
      corners.append((x - w / 2 - x0) / max(1e-9, fw - w))
  assert 0.29 < min(area) < 0.33 and 0.85 < max(area) <= 0.9 + 1e-6
  assert min(corners) < 0.02 and max(corners) > 0.98


@pytest.mark.parametrize(('draw', 'ratio'), [(0.0, 0.25), (0.25, 0.5), (0.5, 1), (0.75, 2)])
def test_the_aspect_ratio_is_log_uniform(draw, ratio):
  """Half of the draws are upright: from (1/4, 4), .5 gives a square and .75 twice as wide."""
  image = picture(120, 120, blur=5)
  augment = STILL._replace(crop=(0.04, 0.04), ratio=(0.25, 4.0))
  out = transforms.train_transform(image, Draws(0.5, draw, 0.3, 0.8), 64, augment, 'crop')
  w, h = 24 * math.sqrt(ratio), 24 / math.sqrt(ratio)
  x, y = 0.3 * (120 - w), 0.8 * (120 - h)
  box = (x, y, x + w, y + h)
  expected = np.asarray(Image.fromarray(image).resize((64, 64), Image.BILINEAR, box=box))
  assert error(out, expected) < 3, error(out, expected)


def test_colour_matrix_is_the_pixel_formulas():
  image = picture(20, 30)
  b, c, s = 1.2, 0.7, 1.4
  expected = []
  mean = (image @ np.array([0.299, 0.587, 0.114])).mean() * b
  for row in image.astype(float):
    for pixel in row:
      pixel = pixel * b
      pixel = c * pixel + (1 - c) * mean
      expected.append(
        s * pixel + (1 - s) * (0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2])
      )
  matrix = transforms.colour_matrix(image.reshape(-1, 3).mean(0), b, c, s)
  np.testing.assert_allclose(
    image.reshape(-1, 3) @ matrix[:, :3].T + matrix[:, 3], expected, atol=1e-6
  )


@pytest.mark.parametrize(('name', 'place'), [('Brightness', 6), ('Contrast', 7), ('Color', 8)])
def test_each_colour_option_is_pillows(name, place):
  image = picture(64, 64)
  option = {'Brightness': 'brightness', 'Contrast': 'contrast', 'Color': 'saturation'}[name]
  draws = [0.5] * 10
  draws[place] = 0.25
  out = transforms.train_transform(image, Draws(*draws), 64, STILL._replace(**{option: 0.6}))
  expected = np.asarray(getattr(ImageEnhance, name)(Image.fromarray(image)).enhance(1 - 0.3))
  np.testing.assert_allclose(out.astype(int), expected.astype(int), atol=2)


def test_hue_turns_colours_and_leaves_grey():
  third = transforms.colour_matrix((0, 0, 0), hue=1 / 3)
  np.testing.assert_allclose(third[:, :3] @ (90, 90, 90), (90, 90, 90), atol=0.1)
  np.testing.assert_allclose(np.linalg.matrix_power(third[:, :3], 3), np.eye(3), atol=1e-3)
  assert not np.allclose(third[:, :3], np.eye(3), atol=0.3)


def boxes(image, axis, n):
  """Mean over n equal parts of an axis, parts of pixels counted by their share."""
  total = np.concatenate([np.zeros_like(image.take([0], axis)), np.cumsum(image, axis)], axis)
  edges = np.linspace(0, image.shape[axis], n + 1)
  low = np.minimum(edges.astype(int), image.shape[axis] - 1)
  share = np.expand_dims(edges - low, [a for a in range(3) if a != axis])
  return (
    np.diff(total.take(low, axis) * (1 - share) + total.take(low + 1, axis) * share, axis=axis)
    * n
    / image.shape[axis]
  )


def bilinear(image, axis, n):
  place = np.clip((np.arange(n) + 0.5) * image.shape[axis] / n - 0.5, 0, image.shape[axis] - 1)
  low = np.minimum(place.astype(int), image.shape[axis] - 2)
  share = np.expand_dims(place - low, [a for a in range(3) if a != axis])
  return image.take(low, axis) * (1 - share) + image.take(low + 1, axis) * share


@pytest.mark.parametrize('resize', transforms.RESIZE)
@pytest.mark.parametrize('shape', [(40, 60), (300, 200), (64, 64), (30, 300)])
def test_evaluation_averages_where_it_shrinks_and_interpolates_where_it_grows(resize, shape):
  image, size = picture(*shape), 64
  h, w = shape
  source = Image.fromarray(image)
  if resize == 'crop':
    x, y, side = (w - min(shape)) // 2, (h - min(shape)) // 2, min(shape)
    source = source.crop((x, y, x + side, y + side))
  target = (
    (size, size)
    if resize != 'pad'
    else (max(1, round(size * w / max(shape))), max(1, round(size * h / max(shape))))
  )
  out = transforms.eval_transform(image, size, resize)
  if resize == 'pad':
    x, y = (size - target[0]) // 2, (size - target[1]) // 2
    bars = np.ones((size, size), bool)
    bars[y : y + target[1], x : x + target[0]] = False
    assert (out[bars] == transforms.PAD[0]).all()
    out = out[y : y + target[1], x : x + target[0]]
  assert out.shape == (*target[::-1], 3)
  expected = np.asarray(source).astype(float)
  for axis in (0, 1):  # averaged where it shrinks, bilinear where it grows
    expected = (
      boxes(expected, axis, target[1 - axis])
      if target[1 - axis] < expected.shape[axis]
      else bilinear(expected, axis, target[1 - axis])
    )
  assert error(out, expected) < 1


def test_a_strong_shrink_does_not_alias():
  stripes = np.zeros((1024, 1024, 3), np.uint8)
  stripes[:, ::2] = 255  # averages to grey; sampled, it would be stripes again
  for image in (
    stripes,
    encoded(stripes, 'PNG'),
    simplejpeg.encode_jpeg(stripes, 95, colorsubsampling='444'),
  ):
    for out in (
      transforms.train_transform(image, Draws(), 60, STILL._replace(rotate=10.0)),
      transforms.eval_transform(image, 60),
    ):
      assert out.std() < 6 and abs(out.mean() - 127.5) < 3  # sampled, the deviation is 127


@pytest.mark.parametrize('size', [40, 100, 200])
def test_the_decoders_own_shrinking_changes_nothing_else(size):
  image = picture(401, 603, blur=10)
  jpeg = simplejpeg.encode_jpeg(image, 98, colorsubsampling='444')
  full = simplejpeg.decode_jpeg(jpeg)
  draws = (0.2, 0.8, 0.3, 0.6, 0.9, 0.1)
  augment = Augment(brightness=0.0, contrast=0.0, saturation=0.0)
  assert (
    error(
      transforms.train_transform(jpeg, Draws(*draws), size, augment),
      transforms.train_transform(full, Draws(*draws), size, augment),
    )
    < 1.5
  )
  assert error(transforms.eval_transform(jpeg, size), transforms.eval_transform(full, size)) < 1.5


def test_views():
  image = picture(100, 140)
  three, five = transforms.views(image, 56, 3), transforms.views(image, 56, 5)
  larger = transforms.eval_transform(image, 64)
  np.testing.assert_array_equal(five[:3], three)
  np.testing.assert_array_equal(three[0], transforms.eval_transform(image, 56))
  np.testing.assert_array_equal(three[1], three[0][:, ::-1])
  np.testing.assert_array_equal(three[2], larger[4:60, 4:60])
  np.testing.assert_array_equal(five[3:], [larger[:56, :56], larger[8:, 8:]])
  assert transforms.views(image, 56, 1).shape == (1, 56, 56, 3)
  with pytest.raises(ValueError, match='1, 2, 3 or 5'):
    transforms.views(image, 56, 4)


def test_out_is_filled_in_place():
  image, batch = picture(90, 70), np.zeros((3, 32, 32, 3), np.uint8)
  for resize in transforms.RESIZE:
    batch[:] = 0
    transforms.train_transform(image, np.random.default_rng(0), 32, Augment(), resize, out=batch[0])
    transforms.eval_transform(image, 32, resize, out=batch[1])
    transforms.eval_transform(picture(32, 32), 32, resize, out=batch[2])
    np.testing.assert_array_equal(
      batch[0], transforms.train_transform(image, np.random.default_rng(0), 32, Augment(), resize)
    )
    np.testing.assert_array_equal(batch[1], transforms.eval_transform(image, 32, resize))
    np.testing.assert_array_equal(batch[2], picture(32, 32))


# Formats


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(orientation):
  image = picture(40, 64, blur=6)
  exif = Image.Exif()
  exif[0x112] = orientation
  jpeg = encoded(image, 'JPEG', exif=exif, quality=98)
  from PIL import ImageOps

  expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(jpeg))))
  assert decoding.decode(jpeg).shape == expected.shape
  assert error(decoding.decode(jpeg), expected) < 1
  assert error(transforms.eval_transform(jpeg, 32), transforms.eval_transform(expected, 32)) < 1
  assert (
    error(
      transforms.train_transform(jpeg, Draws(0.1, 0.9, 0.2, 0.8), 32),
      transforms.train_transform(expected, Draws(0.1, 0.9, 0.2, 0.8), 32),
    )
    < 1
  )


def test_every_mode_becomes_rgb():
  image = picture(24, 36)
  rgb, grey = Image.fromarray(image), Image.fromarray(image[..., 0])
  assert error(decoding.decode(encoded(rgb, 'PNG')), image) == 0
  assert error(decoding.decode(encoded(rgb, 'WEBP', lossless=True)), image) == 0
  assert error(decoding.decode(encoded(rgb, 'BMP')), image) == 0
  np.testing.assert_array_equal(
    decoding.decode(encoded(grey, 'PNG')), np.repeat(image[..., :1], 3, 2)
  )
  assert (
    error(decoding.decode(encoded(grey, 'JPEG', quality=95)), np.repeat(image[..., :1], 3, 2)) < 3
  )
  assert (
    error(decoding.decode(encoded(rgb.convert('P', palette=Image.ADAPTIVE), 'PNG')), image) < 12
  )
  assert error(decoding.decode(encoded(rgb.convert('CMYK'), 'JPEG', quality=98)), image) < 6
  deep = Image.fromarray(image[..., 0].astype(np.uint16) * 257)
  np.testing.assert_array_equal(
    decoding.decode(encoded(deep, 'PNG')), np.repeat(image[..., :1], 3, 2)
  )
  np.testing.assert_array_equal(
    decoding.decode(encoded(grey.point(lambda v: 255 * (v > 99), '1'), 'PNG'))[..., 1],
    255 * (image[..., 0] > 99),
  )
  clear = rgb.convert('RGBA')
  clear.putalpha(
    Image.fromarray(np.where(np.arange(36) < 18, 255, 0).astype(np.uint8)[None].repeat(24, 0))
  )
  out = decoding.decode(encoded(clear, 'PNG'))
  assert error(out[:, :18], image[:, :18]) == 0 and (out[:, 18:] == 255).all()
  frames = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (200, 10)]
  gif = encoded(frames[0], 'GIF', save_all=True, append_images=frames[1:])
  assert abs(int(decoding.decode(gif).mean()) - 200) < 3


def test_a_harmless_fault_is_read_all_the_same():
  jpeg = encoded(picture(32, 32), 'JPEG')
  assert decoding.decode(jpeg + b'trailing bytes').shape == (32, 32, 3)
  messy = jpeg[:-2] + b'\0\1\2' + jpeg[-2:]  # bytes before the end marker, as some cameras leave
  assert decoding.decode(messy).shape == (32, 32, 3)


def bomb():
  jpeg = bytearray(encoded(picture(16, 16), 'JPEG'))
  place = jpeg.index(b'\xff\xc0') + 5
  jpeg[place : place + 4] = b'\xff\xff\xff\xff'  # says 65535 x 65535
  return bytes(jpeg)


BROKEN = {
  'empty': b'',
  'text': b'<html>404</html>',
  'jpeg marker': b'\xff\xd8',
  'jpeg header': encoded(picture(64, 64), 'JPEG')[:200],
  'half a jpeg': (lambda b: b[: len(b) // 2])(encoded(picture(64, 64), 'JPEG')),
  'half a png': (lambda b: b[: len(b) // 2])(encoded(picture(64, 64), 'PNG')),
  'bomb': bomb(),
  'png bomb': encoded(picture(2, 2), 'PNG').replace(
    b'IHDR\0\0\0\2\0\0\0\2', b'IHDR\0\0\xff\xff\0\0\xff\xff'
  ),
  'array': np.zeros((4, 4), np.uint8),
  'no pixels': np.zeros((0, 4, 3), np.uint8),
}


@pytest.mark.parametrize('name', BROKEN)
def test_what_cannot_be_read_says_so(name):
  for read in (
    decoding.decode,
    lambda b: transforms.eval_transform(b, 16),
    lambda b: transforms.train_transform(b, Draws(), 16),
    lambda b: transforms.views(b, 16, 5),
  ):
    with pytest.raises(BrokenImage, match=r'.'):
      read(BROKEN[name])


def test_augment_from_any_kind_of_options():
  from ml_collections import ConfigDict

  assert Augment.from_options(None) == Augment()
  for options in (ConfigDict({'flip': 0.0, 'crop': (0.2, 0.4)}), {'flip': 0.0, 'crop': [0.2, 0.4]}):
    assert Augment.from_options(options) == Augment(flip=0.0, crop=(0.2, 0.4))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_decompression_bombs_are_refused_before_they_are_decoded(kind, monkeypatch):
  limit = 1600 if kind == 'PNG' else 400
  image = decoding.Part(encoded(picture(40, 40), kind), decoding=decoding.Decoding(limit))
  assert decoding.decode(image).shape == (40, 40, 3)
  image.decoding = decoding.Decoding(limit - 1)
  monkeypatch.setattr(decoding, '_decode_any' if kind == 'JPEG' else '_rgb', None)
  for read in (decoding.decode, lambda x: transforms.eval_transform(x, 8)):
    with pytest.raises(BrokenImage, match=r'data\.max_pixels: refused as a decompression bomb'):
      read(image)


# Parts


@pytest.mark.parametrize(('kind', 'size'), [('PNG', 48), ('JPEG', 160)])
def test_a_part_is_the_picture_cut_out(kind, size):
  image = picture(120, 160)
  data = encoded(image, kind)
  full = decoding.decode(data)
  for box, cut in {
    None: np.s_[:, :],
    (20.4, 10, 60, 70.2): np.s_[10:71, 20:60],
    (-9, -9, 50, 999): np.s_[: 50 + 70, :50],
  }.items():
    part = decoding.Part(data, box)
    np.testing.assert_array_equal(decoding.decode(part), full[cut])
    np.testing.assert_array_equal(
      decoding.decode(decoding.Part(data, box, banner=60)), full[:60][cut]
    )
    for resize in transforms.RESIZE:
      np.testing.assert_array_equal(
        transforms.eval_transform(part, size, resize),
        transforms.eval_transform(full[cut], size, resize),
      )
      a, b = (
        transforms.train_transform(x, np.random.default_rng(3), size, None, resize)
        for x in (part, full[cut])
      )
      np.testing.assert_array_equal(a, b)
  copy = pickle.loads(pickle.dumps(decoding.Part(data, (1, 2, 30, 40), 5)))
  assert (copy.box, copy.banner, bytes(copy)) == ((1, 2, 30, 40), 5, data)


@pytest.mark.parametrize(
  'box', [(200, 100, 1000, 700), (203, 101, 1003, 699), (0, 0, 1200, 900), (333, 222, 999, 888)]
)
def test_a_part_of_a_large_jpeg_is_read_small(box, monkeypatch):
  """The scaled decode rounds the box to its own pixels: at most half a pixel off."""
  data = encoded(picture(900, 1200, blur=12), 'JPEG', quality=95)
  cut = np.ascontiguousarray(decoding.decode(data)[box[1] : box[3], box[0] : box[2]])
  sizes, decode = [], simplejpeg.decode_jpeg

  def spy(*args, **kw):
    sizes.append(decode(*args, **kw).shape[0])
    return decode(*args, **kw)

  monkeypatch.setattr(simplejpeg, 'decode_jpeg', spy)
  part = decoding.Part(data, box)
  assert error(transforms.eval_transform(part, 96), transforms.eval_transform(cut, 96)) < 2
  assert (
    error(
      transforms.train_transform(part, Draws(), 96, STILL),
      transforms.train_transform(cut, Draws(), 96, STILL),
    )
    < 4
  )
  assert max(sizes) < 900
  shifted = decoding.Part(
    data, tuple(v + 12 for v in box)
  )  # an output pixel further: the error is seen
  assert error(transforms.eval_transform(shifted, 96), transforms.eval_transform(cut, 96)) > 8
  assert (
    error(
      transforms.train_transform(shifted, Draws(), 96, STILL),
      transforms.train_transform(cut, Draws(), 96, STILL),
    )
    > 8
  )


def test_a_part_is_of_the_upright_picture():
  image = picture(40, 60)
  exif = Image.Exif()
  exif[0x112] = 6
  data = encoded(image, 'PNG')
  turned = encoded(Image.fromarray(image), 'JPEG', quality=100, subsampling=0, exif=exif)
  assert decoding.decode(turned).shape == (60, 40, 3)
  np.testing.assert_array_equal(
    decoding.decode(decoding.Part(turned, (5, 10, 30, 50))), decoding.decode(turned)[10:50, 5:30]
  )
  for box in ((60, 0, 70, 10), (0, 40, 10, 50), (-5, -5, 0, 0)):
    with pytest.raises(BrokenImage, match='nothing of its 60 x 40 pixels is left'):
      decoding.decode(decoding.Part(data, box))
  with pytest.raises(BrokenImage, match='nothing of its 60 x 40'):
    decoding.decode(decoding.Part(data, None, 40))
  with pytest.raises(BrokenImage):
    decoding.decode(decoding.Part(b'no picture', (0, 0, 1, 1)))


@pytest.mark.parametrize('how', ['bilinear', 'bicubic', 'lanczos'])
def test_a_share_is_shown_as_timm_shows_it(how):
  """The steps of timm's evaluation: Resize of int(size / share), then torchvision's CenterCrop."""
  image, size, share = picture(90, 140), 32, 0.875
  larger, filters = int(size / share), {'lanczos': Image.Resampling.LANCZOS}
  filters |= {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
  pixels = Image.fromarray(image)
  squashed = pixels.resize((larger, larger), filters[how])
  cut = round((larger - size) / 2)
  expected = np.asarray(squashed.crop((cut, cut, cut + size, cut + size)))
  resize, out = transforms.Resize('squash', share, how), np.zeros((size, size, 3), np.uint8)
  np.testing.assert_array_equal(transforms.eval_transform(image, size, resize), expected)
  transforms.eval_transform(image, size, resize, out)
  np.testing.assert_array_equal(out, expected)
  # the shorter side becomes 36 pixels, and the middle is shown; here the square is cut out first
  wide = pixels.resize((int(larger * 140 / 90), larger), filters[how])
  left = round((wide.width - size) / 2)
  expected = np.asarray(wide.crop((left, cut, left + size, cut + size)))
  view = transforms.eval_transform(image, size, resize._replace(mode='crop'))
  assert error(view, expected) < 3
  views = transforms.views(image, size, 3, resize)
  np.testing.assert_array_equal(views[0], out)


def test_a_resize_of_options():
  from hierjax.core import config

  c = config.default()
  assert transforms.Resize.from_options(c.data) == transforms.as_resize('squash')
  c.data.resize, c.data.crop_share, c.data.interpolation = 'crop', 0.9, 'bicubic'
  assert transforms.Resize.from_options(c.data) == ('crop', 0.9, 'bicubic')
