"""Guided crops and masks against crops by hand and loops over pixels; the CSV of the regions."""

import functools

import cv2
import numpy as np
import pytest
from PIL import Image

from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.data import dataset, lint, pipeline, regions, sources, transforms
from hierjax.data.transforms import Augment

NONE = float('nan')
STILL = Augment(
  crop=(1.0, 1.0),
  ratio=(1.0, 1.0),
  flip=0.0,
  rotate=0.0,
  brightness=0.0,
  contrast=0.0,
  saturation=0.0,
)


def picture(h, w, seed=0, blur=3):
  noise = np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)
  return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), blur), None, 0, 255, cv2.NORM_MINMAX)


def region(*values):
  return np.array([*values, *[NONE] * (8 - len(values))], np.float32).reshape(2, 4)


def rng(seed):
  return np.random.Generator(np.random.Philox(key=np.array([5, seed], np.uint64)))


class Middle:
  """A generator of whose draws each is one half."""

  def random(self, n):
    return np.full(n, 0.5)


def view(image, augment, box=None, seed=0, resize='squash', size=64):
  draws = Middle() if seed is None else rng(seed)
  return transforms.train_transform(image, draws, size, augment, resize, region=box)


# Views


@pytest.mark.parametrize('resize', transforms.RESIZE)
def test_a_guided_crop_is_the_box_with_its_margin_cropped_by_hand(resize):
  """Cut out with numpy, where the box is that of whole pixels, and resized by Pillow."""
  image = picture(60, 100, blur=5)
  # 3/10 to 6/10 of the width and 2/10 to 5/10 of the height, and 1/10 more on each side
  out = view(image, STILL._replace(guided_crop=1.0), region(0.3, 0.2, 0.6, 0.5), None, resize)
  part = image[6:36, 20:70]
  if resize == 'crop':
    part = part[:, 10:40]
  elif resize == 'pad':  # what lies around the box, and not grey
    part = np.pad(image, ((4, 0), (0, 0), (0, 0)), constant_values=127)[0:50, 20:70]
  expected = np.asarray(Image.fromarray(part).resize((64, 64), Image.BILINEAR)).astype(int)
  inside = slice(2, -2)  # at the edge, the cut part lacks the pixels beyond
  np.testing.assert_allclose(out[inside, inside].astype(int), expected[inside, inside], atol=4)
  assert np.abs(out.astype(int) - view(image, STILL, None, None, resize)).mean() > 10


def test_crops_are_drawn_within_the_box_and_the_image():
  augment = Augment(crop=(0.3, 1.0), ratio=(0.5, 2.0), guided_crop=1.0)
  corners = []
  for seed in range(200):
    draws = rng(seed).random(6).tolist()
    box, hot = transforms._guide(region(0.05, 0.4, 0.5, 0.95), augment, (0.5, 0.5))
    np.testing.assert_allclose(box, (0, 0.3, 0.6, 1), atol=1e-6)
    assert hot is None
    x, y, w, h = transforms._crop(60, 100, augment, 'crop', draws, box)
    assert x - w / 2 >= -1e-6 and y - h / 2 >= 18 - 1e-5
    assert x + w / 2 <= 60 + 1e-5 and y + h / 2 <= 60 + 1e-6
    corners.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
  low, high = np.min(corners, 0), np.max(corners, 0)
  assert low[0] < 1 and low[1] < 19 and high[2] > 59 and high[3] > 59


def test_crop_and_mask_have_a_draw_each():
  augment = STILL._replace(guided_crop=0.5, guided_mask=0.5)
  area = region(0.2, 0.2, 0.6, 0.6, 0.3, 0.3, 0.5, 0.5)
  for draws in ((0.4, 0.6), (0.6, 0.4), (0.4, 0.4), (0.6, 0.6)):
    box, hot = transforms._guide(area, augment, draws)
    assert (tuple(box) != (0, 0, 1, 1), hot is not None) == (draws[0] < 0.5, draws[1] < 0.5)


def test_a_mask_covers_the_pixels_that_show_the_area():
  """Loops over pixels: their middles lie in the area."""
  image, hot = picture(24, 40), (0.3, 0.5, 0.56, 0.74)
  plain = view(image, STILL, size=10)
  out = view(image, STILL._replace(guided_mask=1.0), region(0, 0, 1, 1, *hot), size=10)
  expected = plain.copy()
  for i in range(10):
    for k in range(10):
      if hot[0] <= (k + 0.5) / 10 < hot[2] and hot[1] <= (i + 0.5) / 10 < hot[3]:
        expected[i, k] = transforms.PAD
  np.testing.assert_array_equal(out, expected)
  assert (out != plain).any(2).sum() in range(4, 9)


@pytest.mark.parametrize(
  ('resize', 'options'),
  [
    ('pad', {'rotate': 40.0}),
    ('pad', {'rotate': 20.0, 'policy': 'rand'}),
    # without what lies beyond the border, where the area is mirrored and stays
    ('squash', {'rotate': 0.0}),
    ('crop', {'rotate': 0.0}),
  ],
)
def test_a_mask_turns_and_moves_with_the_picture(resize, options):
  """The picture is white in the area and black elsewhere: the view without the mask shows where."""
  image = np.zeros((320, 400, 3), np.uint8)
  image[80:160, 100:260] = 255
  box = region(0.2, 0.2, 0.7, 0.6, 0.25, 0.25, 0.65, 0.5)
  colours = {'brightness': 0.0, 'contrast': 0.0, 'saturation': 0.0}
  augment = Augment(guided_crop=0.5, guided_mask=1.0, **colours, **options)
  count = 0
  for seed in range(30):
    plain = view(image, augment._replace(guided_mask=0.0), box, seed, resize)[..., 0]
    kernel = np.ones((3, 3), np.uint8)
    is_plain = cv2.dilate(plain, kernel) == cv2.erode(plain, kernel)
    values = {*np.unique(plain[is_plain]).tolist()}
    if not {255} <= values <= {0, 127, 255}:
      continue  # the area is not shown, or has another colour
    is_covered = (view(image, augment, box, seed, resize) == 127).all(2) & (plain != 127)
    np.testing.assert_array_equal(is_covered[is_plain], plain[is_plain] == 255)
    count += 1
  assert count > 8


def test_random_erasing_and_a_mask_come_together():
  image, box = picture(64, 64), region(0.2, 0.2, 0.6, 0.6, 0.4, 0.4, 0.6, 0.6)
  augment = STILL._replace(erase=1.0, guided_mask=1.0)
  both, erased, masked = (
    (view(image, augment._replace(**change), box, 2) == 127).all(2)
    for change in ({}, {'guided_mask': 0.0}, {'erase': 0.0})
  )
  np.testing.assert_array_equal(both, erased | masked)
  assert masked[26:38, 26:38].all() and not masked[:25].any() and erased.any()


def test_probabilities_and_fixed_places_of_draws():
  """What is drawn for a region moves nothing else, and without one all is as it was."""
  image, box = picture(40, 60), region(0.1, 0.1, 0.5, 0.5, 0.2, 0.2, 0.4, 0.4)
  options = {'policy': 'rand', 'erase': 0.5, 'hue': 0.1}
  counts = np.zeros(3, int)
  for seed in range(200):
    plain, guided, masked = (
      view(image, Augment(**options, **change), box, seed, size=24)
      for change in ({}, {'guided_crop': 0.3}, {'guided_mask': 0.6})
    )
    for augment in (Augment(**options), Augment(**options, guided_crop=1.0, guided_mask=1.0)):
      for no_region in (None, region()):
        np.testing.assert_array_equal(view(image, augment, no_region, seed, size=24), plain)
    differs = (masked != plain).any(2)
    assert (masked[differs] == 127).all()
    counts += (guided != plain).any(), differs.any(), 1
  assert 40 < counts[0] < 80 and 80 < counts[1] < 145
  off = Augment(enabled=False, guided_crop=1.0, guided_mask=1.0)
  np.testing.assert_array_equal(view(image, off, box), transforms.eval_transform(image, 64))


BEFORE = {
  None: (164.5, 149.4, 147.6, 118.3, 169.0, 135.6, 86.5, 145.9, 98.5, 131.1, 103.5, 130.2),
  'rand': (103.6, 177.0, 141.1, 122.0, 106.4, 136.6, 97.9, 144.9, 103.7, 131.9, 102.9, 121.4),
  'trivial': (164.5, 206.2, 141.2, 120.0, 89.2, 136.2, 86.2, 146.0, 99.1, 131.2, 101.9, 103.7),
}


@pytest.mark.parametrize('policy', BEFORE)
def test_views_without_regions_are_those_of_before(policy):
  """Mean values, from the time before there were regions; other draws move them."""
  options = {None: {}, 'rand': {'erase': 0.5}, 'trivial': {'hue': 0.2}}[policy]
  views = [
    view(picture(50 + 7 * k, 90 - 3 * k, k), Augment(policy=policy, **options), None, k, size=24)
    for k in range(12)
  ]
  np.testing.assert_allclose(np.mean(views, (1, 2, 3)), BEFORE[policy], atol=0.3)


# Batches


def read(i, bad=()):
  return b'no picture' if i in bad else picture(24, 32, seed=i)


def examples(**broken):
  rows = np.tile(region(0.3, 0.3, 0.7, 0.7, 0.4, 0.4, 0.6, 0.6), (9, 1, 1))
  rows[:, 0, 0] = np.linspace(0, 0.5, 9)
  rows[4] = NONE
  files = [f'{i}.png' for i in range(9)]
  labels = np.zeros((9, 1), np.int32)
  reader = functools.partial(read, **broken)
  return dataset.Examples('train', files, labels, reader, None, rows)


GUIDED = Augment(guided_crop=0.7, guided_mask=0.5)


def batches(data, **options):
  options = {'batch_size': 4, 'seed': 3, 'size': 16, 'threads': 0, 'augment': GUIDED, **options}
  return list(pipeline.train_batches(data, steps=6, **options))


def test_training_reads_the_region_of_each_example_and_resumes():
  data = examples(bad=(2,))  # which the third takes the place of, with its own region
  full = batches(data)
  index, images = (np.concatenate([b[key] for b in full]) for key in ('index', 'image'))
  for place, (i, image) in enumerate(zip(index.tolist(), images)):
    draws = np.random.Generator(np.random.Philox(key=np.array([3, place], np.uint64)))
    expected = transforms.train_transform(read(i), draws, 16, GUIDED, region=data.regions[i])
    np.testing.assert_array_equal(image, expected)
  plain = np.concatenate([b['image'] for b in batches(data, augment=Augment())])
  assert 8 < (images != plain).any((1, 2, 3)).sum() < 24
  # tests/data/test_pipeline.py has workers
  for options in ({'threads': 3}, {'start_step': 2}):
    others = batches(data, **options)
    for a, b in zip(others, full[-len(others) :], strict=True):
      np.testing.assert_array_equal(a['image'], b['image'])


def test_a_selection_takes_its_regions_along_and_evaluation_reads_none():
  data = examples()
  part = dataset.subset(data, [7, 1])
  np.testing.assert_array_equal(part.regions, data.regions[[7, 1]])
  batch = next(pipeline.eval_batches(part, batch_size=2, size=16, threads=0))
  for i, image in zip((7, 1), batch['image']):
    np.testing.assert_array_equal(image, transforms.eval_transform(read(i), 16))


# The file


def options(tmp_path, text, **augment):
  (tmp_path / 'boxes.csv').write_text(text)
  c = config.default().data
  c.toy.train, c.toy.val, c.regions = 8, 6, str(tmp_path / 'boxes.csv')
  c.augment.update(augment)
  return c


HEAD = 'score,file,left,top,right,bottom'


def test_a_detectors_file(tmp_path):
  lines = [HEAD, '.9,toy/train/00002,0,.25,1,0.5', '.8,./toy\\train\\00005,.1,.2,.3,.4']
  lines += ['.7,toy/val/00001,0,0,1,1', '.1,toy/train/00006,,,,', '.1,elsewhere,0,0,1,1']
  c = options(tmp_path, '\n'.join(lines), guided_crop=0.5)
  data = sources.load(c)
  train = data.splits['train']
  expected = np.full((8, 2, 4), np.nan, np.float32)
  expected[2, 0], expected[5, 0] = (0, 0.25, 1, 0.5), (0.1, 0.2, 0.3, 0.4)
  np.testing.assert_array_equal(train.regions, expected)
  notes = [note for note in data.notes if 'boxes.csv' in note]
  assert len(notes) == 2 and '1 of its 5 files are no image of the data: elsewhere' in notes[0]
  assert '6 of 8 training images have no box, such as toy/train/00000' in notes[1]
  c.train_limit = 5
  limited = sources.load(c).splits['train']
  rows = [int(file[-5:]) for file in limited.files]
  np.testing.assert_array_equal(limited.regions, expected[rows])
  assert len(rows) == 5
  # the same as notes of lint
  problems = [str(p) for p in lint.check(c, images=False).problems if p.kind == 'regions']
  assert problems == notes
  c.regions = None
  off = sources.load(c)
  assert off.splits['train'].regions is None
  assert any('guided_crop=0.5: has no effect without data.regions' in x for x in off.notes)


FAULTS = {
  'no column': ('file,left,top,right\na,0,0,1', ":1: no column 'bottom'; the columns are file"),
  'pixels': (f'{HEAD}\n1,toy/train/00000,0,0,1,1\n1,b,0,0,153,1', ':3: right=153 must be a frac'),
  'text': (f'{HEAD}\n1,toy/train/00000,x,0,1,1', ':2: left=x must be a fraction of the image'),
  'nan': (f'{HEAD}\n1,toy/train/00000,0,nan,1,1', ':2: top=nan must be a fraction'),
  'part': (f'{HEAD}\n1,toy/train/00000,0,,1,1', ':2: top= must be a fraction'),
  'turned': (
    f'{HEAD}\n\n1,a,0,.8,1,.4\n1,b,0,1,1,.4',
    ':3: top=.8 must be less than bottom; rows with that: 2',
  ),
  'narrow': (f'{HEAD}\n1,a,.5,0,.5,1', ':2: left=.5 must be less than right'),
  'twice': (f'{HEAD}\n1,a,0,0,1,1\n1,b,0,0,1,1\n1,./a,0,0,1,1', ':4: ./a has a region in row 2, '),
  'others': (
    f'{HEAD}\n1,a,0,0,1,1',
    ": 8 of 8 training images have no box: they are called as 'toy/",
  ),
  'val alone': (f'{HEAD}\n1,toy/val/00001,0,0,1,1', ': 8 of 8 training images have no box'),
  'empty': (HEAD, ': 8 of 8 training images have no box'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_faults_name_file_row_and_column(tmp_path, name):
  text, message = FAULTS[name]
  c = options(tmp_path, text)
  with pytest.raises(UserError) as error:
    sources.load(c)
  assert str(error.value).startswith(f'{c.regions}{message}'), error.value
  report = lint.check(c, images=False)
  assert any(p.stops and str(p) == str(error.value) for p in report.problems)


def test_masks_need_the_hot_columns(tmp_path):
  c = options(tmp_path, f'{HEAD}\n1,toy/train/00000,0,0,1,1', guided_mask=0.5)
  with pytest.raises(UserError, match=r"no column 'hot_left', which data\.aug"):
    sources.load(c)
  hot = ','.join(regions.HOT)
  text = f'{HEAD},{hot}\n1,toy/train/00000,0,0,1,1,.2,.3,.4,.5\n1,toy/train/00001,0,0,1,1,,,,'
  train = sources.load(options(tmp_path, text, guided_mask=0.5)).splits['train']
  np.testing.assert_array_equal(train.regions[0], np.float32([[0, 0, 1, 1], [0.2, 0.3, 0.4, 0.5]]))
  np.testing.assert_array_equal(np.isnan(train.regions[1]), [[False] * 4, [True] * 4])
  c = options(tmp_path, text.replace('.4,.5', '.2,.5'))
  with pytest.raises(UserError, match=r':2: hot_left=.2 must be less than hot_right'):
    sources.load(c)
