"""TrivialAugment, RandAugment and erasing against Pillow, torchvision's ranges and by counting."""

import collections
import math

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from test_transforms import STILL

from hierjax.core.declarations import OPTIONS
from hierjax.data import policy, transforms
from hierjax.data.transforms import Augment

SIZE = 64
SIGNED = (*policy.MAPS, 'brightness', 'contrast', 'saturation', 'sharpness')


class Draws:
  """A generator whose draws are .5, but for those at the places that are named."""

  def __init__(self, **places):
    self.places = {int(name[1:]): value for name, value in places.items()}

  def random(self, n):
    values = np.full(n, 0.5)
    for place, value in self.places.items():
      values[place] = value
    return values


def picture(size=SIZE, seed=0):
  noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
  image = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 20, 220, cv2.NORM_MINMAX)
  image[..., 2] //= 2  # channels of unlike ranges
  return image


def view(name, strength, is_negative=False, image=None, augment=STILL, **places):
  """The picture after one operation of TrivialAugment, its strength a whole number up to 30."""
  choice = (policy.NAMES.index(name) + 0.5) / len(policy.NAMES)
  draws = Draws(_15=choice, _16=(strength + 0.5) / 31, _17=0.25 if is_negative else 0.75, **places)
  image = picture() if image is None else image
  augment = augment._replace(policy='trivial')
  return transforms.train_transform(image, draws, len(image), augment).astype(int)


def pillow(name, share, image):
  """The operation by Pillow, as torchvision calls it; the share of its largest strength."""
  size = image.size[0]
  largest = policy.OPERATIONS[name][0]
  v = share * largest
  affine = {
    'shear_x': (1, v, 0, 0, 1, 0),
    'shear_y': (1, 0, 0, v, 1, 0),
    'translate_x': (1, 0, v * size, 0, 1, 0),
    'translate_y': (1, 0, 0, 0, 1, v * size),
  }
  enhance = {
    'brightness': ImageEnhance.Brightness,
    'contrast': ImageEnhance.Contrast,
    'saturation': ImageEnhance.Color,
    'sharpness': ImageEnhance.Sharpness,
  }
  if name in affine:
    return image.transform(image.size, Image.AFFINE, affine[name], Image.BILINEAR)
  if name in enhance:
    return enhance[name](image).enhance(1 + v)
  return {
    'identity': lambda: image,
    'rotate': lambda: image.rotate(v, Image.BILINEAR),
    'posterize': lambda: ImageOps.posterize(image, 8 - round(v)),
    'solarize': lambda: ImageOps.solarize(image, round(256 - v)),
    'autocontrast': lambda: ImageOps.autocontrast(image),
    'equalize': lambda: ImageOps.equalize(image),
  }[name]()


@pytest.mark.parametrize('strength', [6, 21])
@pytest.mark.parametrize('name', policy.NAMES)
def test_each_operation_is_pillows(name, strength):
  for is_negative in (False, True) if name in SIGNED else (False,):
    image = picture()
    share = strength / 30 * (-1 if is_negative else 1)
    expected = np.asarray(pillow(name, share, Image.fromarray(image))).astype(int)
    out = view(name, strength, is_negative)
    if name in policy.MAPS:
      # Pillow leaves black what lies outside, and the border mirrors the picture here
      inside = np.asarray(pillow(name, share, Image.new('RGB', (SIZE, SIZE), 'white')))
      inside = cv2.erode(inside, np.ones((3, 3)), borderValue=255) == 255
      assert inside.mean() > 0.2 and np.abs(out - expected)[inside].max() <= 4
      changed = np.abs(image.astype(int) - expected)[inside].mean()
      assert changed > 5 * np.abs(out - expected)[inside].mean()
    elif name == 'sharpness':
      np.testing.assert_allclose(out[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1)
    elif name in ('brightness', 'contrast', 'saturation'):
      np.testing.assert_allclose(out, expected, atol=2)
    elif name == 'autocontrast':
      np.testing.assert_allclose(out, expected, atol=1)  # Pillow cuts 254.9999 to 254
    else:
      np.testing.assert_array_equal(out, expected)


def test_equalize_and_autocontrast_leave_a_picture_of_one_colour():
  flat = np.full((16, 16, 3), 77, np.uint8)
  for name in ('equalize', 'autocontrast'):
    np.testing.assert_array_equal(view(name, 0, image=flat), flat)


@pytest.mark.parametrize('name', sorted(policy.MAPS))
def test_a_folded_map_is_the_map_of_the_finished_view(name):
  """One warp of crop, rotation, mirror and operation against two, the second by Pillow."""
  image = cv2.GaussianBlur(picture(160), (0, 0), 2)
  augment = STILL._replace(crop=(0.4, 0.4), flip=1.0, rotate=20.0)
  places = {'_2': 0.3, '_3': 0.8, '_4': 0.9}
  first = transforms.train_transform(image, Draws(**places), 64, augment)
  expected = np.asarray(pillow(name, 0.5, Image.fromarray(first))).astype(int)
  inside = np.asarray(pillow(name, 0.5, Image.new('RGB', (64, 64), 'white')))
  inside = cv2.erode(inside, np.ones((3, 3)), borderValue=255) == 255
  choice = (policy.NAMES.index(name) + 0.5) / len(policy.NAMES)
  draws = Draws(_15=choice, _16=15.5 / 31, _17=0.75, **places)
  out = transforms.train_transform(image, draws, 64, augment._replace(policy='trivial'))
  error = np.abs(out.astype(int) - expected)[inside]
  assert error.mean() < 1 and error.max() < 8
  assert np.abs(first.astype(int) - expected)[inside].mean() > 8


def test_maps_are_applied_one_after_the_other():
  """The second map moves what the first one made: Pillow's two transforms in this order."""
  image = Image.fromarray(cv2.GaussianBlur(picture(), (0, 0), 2))
  for names in (('rotate', 'translate_x'), ('translate_x', 'rotate')):
    maps = [(name, policy.OPERATIONS[name][1] * 0.7) for name in names]
    expected = inside = None
    for name, v in maps:
      share = v / policy.OPERATIONS[name][0]
      expected = pillow(name, share, expected or image)
      inside = pillow(name, share, inside or Image.new('RGB', (SIZE, SIZE), 'white'))
    mask = cv2.erode(np.asarray(inside), np.ones((3, 3)), borderValue=0) == 255
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    out = cv2.warpAffine(np.asarray(image), policy.warp(maps, SIZE)[:2], (SIZE, SIZE), flags=flags)
    assert mask.mean() > 0.3
    assert np.abs(out.astype(int) - np.asarray(expected).astype(int))[mask].mean() < 1


def test_factors_join_the_colour_matrix_in_any_order():
  """The options' change and then the operation, as two matrices without rounding in between."""
  image = cv2.normalize(picture(), None, 100, 130, cv2.NORM_MINMAX)
  augment = STILL._replace(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02)
  first = transforms.colour_matrix(cv2.mean(image), 1.1, 0.9, 1.1, 0.01)
  mean = first @ (*cv2.mean(image)[:3], 1)
  for name in ('brightness', 'contrast', 'saturation'):
    second = transforms.colour_matrix(mean, **{name: 1 + 0.33})
    expected = (image @ first[:, :3].T + first[:, 3]) @ second[:, :3].T + second[:, 3]
    places = {'_6': 0.75, '_7': 0.25, '_8': 0.75, '_9': 0.75}
    out = view(name, 10, image=image, augment=augment, **places)
    np.testing.assert_allclose(out, np.clip(expected, 0, 255), atol=0.75)  # OpenCV: fixed point


def operations_of(name, magnitude=9.0, operations=1, n=30000):
  rng = np.random.default_rng(0)
  return [policy.draw(name, magnitude, rng.random((operations, 3))) for _ in range(n)]


def listed(operations):
  factors = {k: v for k, v in operations.factors.items() if v != 1}
  return [*operations.maps, *factors.items(), *operations.changes]


def test_trivialaugment_draws_each_operation_and_strength_equally_often():
  n = 30000
  strengths = collections.defaultdict(list)
  for operations in operations_of('trivial', n=n):
    entries = listed(operations)
    assert len(entries) <= 1  # none: identity, or a factor of 1
    for name, value in entries:
      strengths[name].append(value - 1 if name in operations.factors else value)
  expected = n / len(policy.NAMES)
  deviation = math.sqrt(expected)
  for name, (largest, _) in policy.OPERATIONS.items():
    values = np.array(strengths[name])
    if name == 'identity':
      continue
    # a factor of strength 0 is not listed
    share = 30 / 31 if name in ('brightness', 'contrast', 'saturation') else 1
    assert abs(len(values) - share * expected) < 4.5 * deviation, name
    bins = np.rint(np.abs(values) / (largest or 1) * 30)
    if largest:
      np.testing.assert_allclose(bins / 30 * largest, np.abs(values), atol=1e-12)
      counts = np.bincount(bins.astype(int), minlength=31)[1:]
      assert np.abs(counts - expected / 31).max() < 4.5 * math.sqrt(expected / 31), name
    if name in SIGNED:
      assert abs((values < 0).mean() - 0.5) < 0.06, name
    else:
      assert (values >= 0).all()


def test_randaugment_draws_so_many_operations_of_one_strength():
  n, counts = 6000, collections.Counter()
  for operations in operations_of('rand', 12.0, 3, n):
    for name, value in [*operations.maps, *operations.changes]:
      assert abs(value) == pytest.approx(policy.OPERATIONS[name][1] * 12 / 30)
      counts[name] += 1
    # a factor that is drawn twice is a product
    for factor in operations.factors.values():
      n_of = [(a, b) for a in range(4) for b in range(4 - a)]
      assert min(abs(factor - 1.36**a * 0.64**b) for a, b in n_of) < 1e-9
  expected = 3 * n / len(policy.NAMES)
  for name in [*policy.MAPS, *policy.TABLES, 'sharpness']:
    assert abs(counts[name] - expected) < 4.5 * math.sqrt(expected), name
  assert operations_of('rand', 30.0, 0, 1)[0].maps == []


def test_strengths_are_torchvisions():
  """The largest strengths of torchvision's TrivialAugmentWide and RandAugment at 331 pixels."""
  trivial = {'shear_x': 0.99, 'translate_x': 32, 'rotate': 135, 'contrast': 0.99, 'sharpness': 0.99}
  rand = {'shear_y': 0.3, 'translate_y': 150, 'rotate': 30, 'saturation': 0.9, 'sharpness': 0.9}
  for name, value in trivial.items():
    scale = 224 if name == 'translate_x' else 1
    assert policy.OPERATIONS[name][0] * scale == pytest.approx(value)
  for name, value in rand.items():
    scale = 331 if name == 'translate_y' else 1
    assert policy.OPERATIONS[name][1] * scale == pytest.approx(value)
  bits = [8 - round(policy.OPERATIONS['posterize'][0] * k / 30) for k in range(31)]
  expected = 8 - (np.arange(31) / ((31 - 1) / 6)).round().astype(int)
  np.testing.assert_array_equal(bits, expected)
  assert len(policy.NAMES) == 14 and set(OPTIONS['data.augment.policy'].choices) == {
    'trivial',
    'rand',
  }


def erased(n, size=48, erase=1.0):
  """(area, height / width) of the grey rectangle in views of a white picture; None without."""
  rng, out = np.random.default_rng(0), []
  white = np.full((size, size, 3), 255, np.uint8)
  for _ in range(n):
    view = transforms.train_transform(white, rng, size, STILL._replace(erase=erase))
    rows, columns = (
      np.nonzero((view != 255).any((1, 2)))[0],
      np.nonzero((view != 255).any((0, 2)))[0],
    )
    if not len(rows):
      out.append(None)
      continue
    box = view[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert (box == transforms.PAD[0]).all()
    out.append((box.shape[0], box.shape[1], rows[0], columns[0]))
  return out


def test_erasing_keeps_to_torchvisions_area_and_aspect():
  size, boxes = 96, np.array(erased(1500, 96))
  h, w, y, x = boxes.T
  # half a pixel of rounding on each side
  area_low, area_high = (h - 0.5) * (w - 0.5) / size**2, (h + 0.5) * (w + 0.5) / size**2
  assert (area_high >= 0.02).all() and (area_low <= 0.33).all()
  assert ((h + 0.5) / (w - 0.5) >= 0.3).all() and ((h - 0.5) / (w + 0.5) <= 3.3).all()
  # uniform in the area and in the logarithm of the aspect, where nothing had to be cut
  assert abs((h * w / size**2).mean() - 0.175) < 0.012
  assert abs(np.log(h / w).mean()) < 0.06 and np.log(h / w).std() > 0.6
  assert (h < size).all() and (w < size).all()
  for start, length in ((y, h), (x, w)):
    share = start / (size - length)
    assert share.min() < 0.02 and share.max() > 0.98 and abs(share.mean() - 0.5) < 0.04


def test_erasing_happens_as_often_as_the_option_says():
  hits = sum(box is not None for box in erased(1200, 12, 0.25))
  assert abs(hits - 300) < 4 * math.sqrt(1200 * 0.25 * 0.75)
  assert not any(erased(30, 12, 0.0))


def test_no_option_moves_the_draws_of_another():
  """With a policy and erasing the rest of the view is what it was without."""
  image = picture()
  augment = Augment(policy='rand', rand_operations=3, erase=1.0)

  def views(**changes):
    return [
      transforms.train_transform(image, np.random.default_rng(i), 32, augment._replace(**changes))
      for i in range(40)
    ]

  policies = [views(policy=p, erase=0.0) for p in ('rand', 'trivial', None)]
  for p, plain in zip(('rand', 'trivial', None), policies):
    for view, before in zip(views(policy=p), plain):
      is_erased = (view == transforms.PAD[0]).all(-1)
      np.testing.assert_array_equal(view[~is_erased], before[~is_erased])
  # the rectangles are the same under every policy
  first, second = (
    [(a != b).any(-1) for a, b in zip(views(policy=p), views(policy=p, erase=0.0))]
    for p in ('rand', None)
  )
  assert np.mean([(a ^ b).mean() for a, b in zip(first, second)]) < 0.01
  # identity is the view without a policy
  assert sum((a == b).all() for a, b in zip(policies[1], policies[2])) >= 1
