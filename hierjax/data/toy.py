"""The drawn data set: vehicles from the side, make x type x model.

A picture is drawn when it is read, and is a pure function of (seed, split, number). The type is the
silhouette. The make shows in its colours: a stripe, the rims, the badge, the grille. The model is
both, and for some one detail more: a loaded roof, a spoiler, a box on the bed. Body colour, place,
size, tilt, light, background, noise and what stands in front of the vehicle are random. Models may
come in versions that differ in a small part only, and the sizes of the classes may have a tail.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from hierjax.data.dataset import Table
from hierjax.taxonomy import Taxonomy

SIZE = 72, 96  # height, width
LEVELS = 'make', 'type', 'model'
MODELS = (  # make, type, model, share of the pictures, detail
  ('Bramley', 'Pickup', 'Bramley Drover', 0.9, ''),
  ('Bramley', 'Pickup', 'Bramley Drover HD', 0.9, 'box'),
  ('Bramley', 'Sedan', 'Bramley Duke', 1.2, ''),
  ('Bramley', 'SUV', 'Bramley Heath', 1.0, ''),
  ('Castavo', 'Coupe', 'Castavo Brio', 1.1, ''),
  ('Castavo', 'Coupe', 'Castavo Brio S', 0.9, 'spoiler'),
  ('Castavo', 'Sedan', 'Castavo Corsina', 1.2, ''),
  ('Castavo', 'Van', 'Castavo Furgo', 0.8, ''),
  ('Norvik', 'Sedan', 'Norvik Fjord', 1.2, ''),
  ('Norvik', 'Pickup', 'Norvik Last', 0.8, ''),
  ('Norvik', 'SUV', 'Norvik Tind', 1.0, ''),
  ('Norvik', 'SUV', 'Norvik Tind Trail', 0.9, 'rack'),
  ('Tamaru', 'Van', 'Tamaru Haku', 1.0, ''),
  ('Tamaru', 'Sedan', 'Tamaru Kite', 1.2, ''),
  ('Tamaru', 'SUV', 'Tamaru Mori', 1.1, ''),
  ('Tamaru', 'Pickup', 'Tamaru Riku', 0.8, ''),
  ('Tamaru', 'Coupe', 'Tamaru Sora', 0.8, ''),
  ('Zephra', 'Coupe', 'Zephra Ion', 0.8, ''),
)
# What the name of a model's first, second, ... version ends in.
VERSIONS = '', ' L', ' X', ' GT'

# fmt: off
# Side views, front to the right: x from 0 (rear) to 100 (front), y up from the road.
BODY = {
  'Sedan': ((1, 8), (0, 18), (3, 25), (18, 27), (30, 38), (56, 38), (70, 27), (92, 22),
            (99, 17), (99, 8)),
  'Coupe': ((1, 6), (0, 13), (3, 17), (12, 20), (36, 27), (52, 26.5), (70, 17.5),
            (92, 14), (100, 10), (99, 6)),
  'SUV': ((1, 12), (0, 28), (2, 47), (8, 49), (58, 48.5), (69, 33), (93, 30), (99, 23), (99, 12)),
  'Pickup': ((1, 12), (0, 26), (44, 26), (47, 44), (64, 44), (74, 30), (94, 27), (99, 20),
             (99, 12)),
  'Van': ((1, 8), (0, 30), (1, 56), (5, 58), (74, 58), (92, 34), (99, 28), (99, 8)),
}
GLASS = {
  'Sedan': (((21, 27.5), (31, 36), (42, 36), (42, 27.5)),
            ((45, 27.5), (45, 36), (55, 36), (65, 27.5))),
  'Coupe': (((28, 19), (38, 25), (51, 24.5), (64, 18)),),
  'SUV': (((5, 34), (6, 46), (24, 46), (24, 34)), ((27, 34), (27, 46), (41, 46), (41, 34)),
          ((44, 34), (44, 46), (57, 45.5), (65, 34))),
  'Pickup': (((49, 31), (51, 41.5), (63, 41.5), (71, 31)),),
  'Van': (((56, 36), (56, 54), (72, 54), (86, 36)), ((36, 38), (36, 53), (52, 53), (52, 38))),
}
# rear and front axle, radius of the wheels
AXLES = {
  'Sedan': (19, 80, 8), 'Coupe': (18, 80, 8.5), 'SUV': (20, 79, 10.5), 'Pickup': (19, 80, 10.5),
  'Van': (17, 80, 8),
}
# the edge of the door
DOORS = {
  'Sedan': ((43.5, 10), (43.5, 27)), 'Coupe': ((37, 8), (36, 19)), 'SUV': ((42.5, 13), (42.5, 33)),
  'Pickup': ((46, 14), (46, 29)), 'Van': ((54, 11), (54, 55)),
}
# RGB of the accent and of the rim, spokes, height of the stripe as a share of the body's, grille
MAKES = {
  'Bramley': ((196, 30, 36), (205, 170, 80), 8, 0.14, 'bars'),
  'Castavo': ((250, 205, 40), (60, 62, 66), 5, 0.40, 'oval'),
  'Norvik': ((30, 110, 220), (225, 228, 232), 6, 0.14, 'slot'),
  'Tamaru': ((20, 170, 110), (225, 228, 232), 4, 0.40, 'none'),
  'Zephra': ((235, 90, 200), (40, 42, 48), 3, 0.27, 'none'),
}
# fmt: on
SHIFT = 4  # bits below a pixel in OpenCV's drawing
UNIT = 1 << SHIFT
SPINS = 8  # positions of a turning wheel

Colour = Sequence[float]  # RGB in 0..255


def table(
  names: tuple[str, str] = ('train', 'val'),
  train: int = 3600,
  val: int = 600,
  seed: int = 0,
  difficulty: float = 1.0,
  versions: int = 1,
  tail: float = 0.0,
) -> Table:
  """Make the table of the drawn data set; a picture is drawn when it is read.

  Both splits have the same distribution of classes, as a random split of images would.

  Args:
    names: of the training and the validation split.
    train, val: number of pictures of each.
    seed: another seed draws other pictures.
    difficulty: scales clutter, noise and what stands in front of the vehicle.
    versions: of each model, look-alikes that differ in a small part; they are finest classes.
    tail: the share of a class is also proportional to its rank to the power -tail (Zipf's law).
  """
  rows = [(*row[:2], row[2] + end) for row in MODELS for end in VERSIONS[:versions]]
  taxonomy = Taxonomy.from_rows(LEVELS, rows)
  ranks = 1 + np.random.default_rng(0).permutation(len(rows))
  shares = np.cumsum(np.repeat([row[3] for row in MODELS], versions) * ranks ** -float(tail))
  leaves, places, files, splits = [], [], [], []
  for split, n in enumerate((train, val)):
    draws = np.random.default_rng((seed, split)).random(n) * shares[-1]
    leaves.append(np.searchsorted(shares, draws, side='right').astype(np.int32))
    places.append(np.stack([np.full(n, split), np.arange(n)], 1))
    files += [f'toy/{("train", "val")[split]}/{i:05d}' for i in range(n)]
    splits += [names[split]] * n
  leaves = np.concatenate(leaves)
  options = {'seed': seed, 'difficulty': difficulty, 'leaves': leaves, 'versions': versions}
  reader = functools.partial(_read, places=np.concatenate(places), **options)
  return Table(taxonomy, files, taxonomy.paths[leaves], splits, reader)


def _read(i, *, seed, difficulty, leaves, versions, places):
  """Draw picture i; `places`, int [N, 2], have the number of its split and its number there."""
  split, number = places[i].tolist()
  rng = np.random.Generator(np.random.Philox(key=[seed << 8 | split, number]))
  model, version = divmod(int(leaves[i]), versions)
  return draw(model, rng, difficulty, version=version)


class _Part(NamedTuple):
  """A disc, a filled outline or a line of the vehicle: points[first:last], drawn in their order."""

  how: str
  first: int
  last: int
  width: float
  colour: str


class _Vehicle:
  """The parts of a vehicle, in vehicle units: x from 0 to 100, y up from the road."""

  def __init__(self):
    self.points: list[tuple[float, float]] = []
    self.parts: list[_Part] = []

  def _add(self, how, points, colour, width=0.0):
    n = len(self.points)
    self.points.extend(points)
    self.parts.append(_Part(how, n, len(self.points), width, colour))

  def fill(self, points: Sequence, colour: str):
    """Add a filled outline."""
    self._add('fill', points, colour)

  def line(self, points: Sequence, colour: str, width: float):
    """Add a line."""
    self._add('line', points, colour, width)

  def disc(self, x: float, y: float, radius: float, colour: str):
    """Add a disc."""
    self._add('disc', [(x, y)], colour, radius)


@functools.cache
def _vehicle(leaf, version, spin):
  """The parts of a version of MODELS[leaf]: points float64 [n, 2] and their order."""
  make, kind, _, _, detail = MODELS[leaf]
  vehicle, top, sill = _Vehicle(), max(y for _, y in BODY[kind]), BODY[kind][0][1]
  belt = min(y for pane in GLASS[kind] for _, y in pane)
  nose = belt - {'Coupe': 4, 'Van': 9}.get(kind, 7)
  fill, line = vehicle.fill, vehicle.line
  if detail == 'rack':  # loaded
    fill([(8, top + 2), (9, top + 13), (31, top + 13), (31, top + 2)], 'case')
    fill([(33, top + 2), (33, top + 9), (52, top + 9), (54, top + 2)], 'canvas')
    line([(8, top + 2.2), (56, top + 1.8)], 'black', 2)
  fill(_smooth(BODY[kind]), 'body')
  # the lower part, in shade
  fill([(2, sill + 0.3), (1, sill + 4.5), (98.5, sill + 4.5), (98, sill + 0.3)], 'dark')
  line([(4, belt - 1.2), (50, belt - 0.4), (93, nose + 2.5)], 'bright', 1.2)
  for pane in GLASS[kind]:
    fill(pane, 'glass')
  (x0, y0), (x1, y1) = GLASS[kind][0][:2]
  fill([(x0, y0), (x1, y1), (x1 + 5, y1), (x0 + 5, y0)], 'glint')
  line(DOORS[kind], 'dark', 0.9)
  if kind == 'Pickup':
    line([(2, 25.2), (42, 25.2)], 'dark', 1.5)
  if detail == 'box':
    fill([(-1, 24), (-1, 53), (44, 53), (44, 24)], 'canvas')
    for x in (10, 21.5, 33):
      line([(x, 25), (x, 52)], 'black', 1)
  if detail == 'spoiler':  # and a black roof
    roof = [(14, 21.5), (36, 28), (52, 27.5), (58, 23.5), (50, 25), (38, 25.5), (28, 20)]
    fill(roof, 'black')
    line([(7, 18), (5, 29)], 'black', 3)
    fill([(-3, 28), (-2, 33), (15, 31), (15, 27.5)], 'black')
  _add_make(vehicle, make, kind, sill, belt, nose)
  fill([(90, nose + 0.5), (91, nose + 3), (96.5, nose + 1.5), (98, nose - 0.8)], 'lamp')
  fill([(0.2, belt - 7.5), (0.6, belt - 4), (4, belt - 4), (3.5, belt - 7.5)], 'tail')
  _add_version(vehicle, version, kind, sill)
  rear, front, radius = AXLES[kind]
  for x in (rear, front):
    _add_wheel(vehicle, x, radius, MAKES[make][2], spin)
  return np.array(vehicle.points, np.float64), vehicle.parts


def _add_make(vehicle, make, kind, sill, belt, nose):
  """What shows the make: the stripe, the grille and the badge."""
  _, _, _, stripe, grille = MAKES[make]
  rear, front, radius = AXLES[kind]
  left, right, y = rear + radius + 2.5, front - radius - 2.5, sill + stripe * (belt - sill) + 1.5
  stripe = [(left, y - 1.7), (left, y + 1.7), (right, y + 1.7), (right, y - 1.7)]
  vehicle.fill(stripe, 'accent')
  if grille == 'bars':
    for x in (93.5, 96, 98):
      vehicle.line([(x, sill + 2.5), (x, nose)], 'white', 1)
  if grille == 'oval':
    vehicle.disc(96, (sill + 2.5 + nose) / 2, 3, 'black')
  if grille == 'slot':
    vehicle.fill([(91, nose - 1), (91, nose - 3.6), (99, nose - 4), (99, nose - 1.4)], 'black')
  badge = front - radius - 5.5, sill + 0.62 * (belt - sill)
  vehicle.disc(*badge, 2.9, 'white')
  vehicle.disc(*badge, 2.1, 'accent')


def _add_version(vehicle, version, kind, sill):
  """What shows the version: a bright sill, a black rear window, or a lamp in the bumper."""
  rear, front, radius = AXLES[kind]
  if version == 1:
    ends = (rear + radius + 3, sill + 1.5), (front - radius - 3, sill + 1.5)
    vehicle.line(ends, 'chrome', 3.5)
  if version == 2:
    vehicle.fill(GLASS[kind][0], 'black')
  if version == 3:
    vehicle.disc(94, sill + 2.5, 2.5, 'lamp')


def _add_wheel(vehicle, x, radius, spokes, spin):
  vehicle.disc(x, radius - 0.3, radius + 1.6, 'arch')
  vehicle.disc(x, radius, radius, 'tyre')
  vehicle.disc(x, radius, radius * 0.7, 'rim')
  size = radius * (0.2 if spokes < 7 else 0.13)
  for k in range(spokes):  # the gaps between the spokes
    angle = math.tau * (k / spokes + spin / SPINS)
    dx, dy = radius * 0.45 * math.cos(angle), radius * 0.45 * math.sin(angle)
    vehicle.disc(x + dx, radius + dy, size, 'gap')
  vehicle.disc(x, radius, radius * 0.17, 'accent')


def _smooth(points):
  """Cut the corners of a closed line twice, after Chaikin."""
  for _ in range(2):
    points = [
      tuple(f * a + (1 - f) * b for a, b in zip(p, q))
      for p, q in zip(points, (*points[1:], points[0]))
      for f in (0.82, 0.18)
    ]
  return points


@functools.cache
def _noise():
  return np.clip(np.random.default_rng(0).normal(128, 40, (256, 256, 3)), 0, 255).astype(np.uint8)


def draw(
  leaf: int,
  rng: np.random.Generator,
  difficulty: float = 1.0,
  size: tuple[int, int] = SIZE,
  version: int = 0,
) -> np.ndarray:
  """Draw a picture.

  Args:
    leaf: the model, a row of `MODELS`.
    rng: of which 128 draws are taken.
    difficulty: scales clutter, noise and what stands in front of the vehicle.
    size: height and width in pixels.
    version: of the model, a number in `VERSIONS`.

  Returns:
    uint8 [height, width, 3], RGB.
  """
  h, w = size
  draws = iter(rng.random(128).tolist())

  def between(low, high):
    return low + (high - low) * next(draws)

  image = _background(h, w, between, difficulty)
  # From the vehicle's units to pixels: tilt, scale, mirror, place.
  scale, tilt = w / 100 * between(0.68, 0.90), math.radians(between(-5, 5))
  mirror = -1 if between(0, 1) < 0.5 else 1
  c, s = math.cos(tilt) * scale, math.sin(tilt) * scale
  matrix = np.array([[c * mirror, -s], [-s * mirror, -c]])
  road, middle = h * between(0.76, 0.93), w * (0.5 + between(-0.07, 0.07))
  points, parts = _vehicle(leaf, version, int(between(0, 1) * SPINS))
  offset = np.array([middle, road]) - matrix @ (50, 0)
  points = np.rint((points @ matrix.T + offset) * UNIT - UNIT / 2).astype(np.int32)
  colours = _colours(MODELS[leaf][0], between, difficulty)
  shade = [v * 0.45 for v in image[min(h - 1, int(road)), w // 2].tolist()]
  centre = int(middle * UNIT), int((road - 0.5) * UNIT)
  axes = int(54 * scale * UNIT), int(3.2 * scale * UNIT)
  angle = -math.degrees(tilt) * mirror
  cv2.ellipse(image, centre, axes, angle, 0, 360, shade, -1, cv2.LINE_AA, SHIFT)
  _draw_parts(image, parts, points, colours, scale)
  _foreground(image, between, difficulty)
  strength, y, x = between(0, 0.25) * difficulty, int(between(0, 256 - h)), int(between(0, 256 - w))
  if between(0, 1) < 0.2 * difficulty:
    image = cv2.GaussianBlur(image, (3, 3), 0.8)
  noise = _noise()[y : y + h, x : x + w]
  return cv2.addWeighted(image, 1, noise, strength, -128 * strength, dst=image)


def _colours(make, between, difficulty):
  """{part: colour}"""
  light, is_painted = between(0.75, 1.1), between(0, 1) < 0.7
  body = _hsv(between(0, 1), between(0, 0.75) * is_painted, between(0.25, 0.95) * light)
  glass = _hsv(0.56, 0.25, between(0.18, 0.45))
  fade = min(0.95, between(0, 0.9) * difficulty)  # the make's colours may be dirty

  def tint(colour):
    return [v * (1 - fade) * light + b * fade for v, b in zip(colour, body)]

  accent, rim = MAKES[make][:2]
  return {
    'body': body,
    'dark': [v * 0.62 for v in body],
    'bright': [v * 1.18 + 14 for v in body],
    'arch': [v * 0.3 for v in body],
    'glass': glass,
    'glint': [v + 50 for v in glass],
    'black': (40, 40, 44),
    'chrome': (214, 214, 220),
    'tyre': (26, 26, 28),
    'gap': (30, 30, 33),
    'lamp': (255, 246, 214),
    'tail': (190, 24, 30),
    'case': (150, 92, 48),
    'canvas': (206, 200, 184),
    'white': tint((240, 240, 240)),
    'accent': tint(accent),
    'rim': tint(rim),
  }


def _draw_parts(image, parts, points, colours, scale):
  centres = points.tolist()
  for part in parts:
    colour, outline = colours[part.colour], [points[part.first : part.last]]
    if part.how == 'disc':
      radius = round(part.width * scale * UNIT)
      cv2.circle(image, centres[part.first], radius, colour, -1, cv2.LINE_AA, SHIFT)
    elif part.how == 'fill':
      cv2.fillPoly(image, outline, colour, cv2.LINE_AA, SHIFT)
    else:
      width = max(1, round(part.width * scale))
      cv2.polylines(image, outline, False, colour, width, cv2.LINE_AA, SHIFT)


def _hsv(hue, saturation, value):
  """RGB in 0..255 of floats in 0..1."""
  v = min(1.0, value)

  def channel(n):
    k = (n + hue * 6) % 6
    return 255 * (v - v * saturation * max(0, min(k, 4 - k, 1)))

  return [channel(5), channel(3), channel(1)]


def _background(h, w, between: Callable[[float, float], float], difficulty):
  """Sky, ground, houses and trees."""
  horizon = int(h * between(0.42, 0.66))
  hue, day = between(0.5, 0.68), between(0.55, 1)
  top = _hsv(hue, between(0.15, 0.6), day)
  bottom = _hsv(between(0.02, 0.14), between(0.05, 0.4), day)
  is_road = between(0, 1) < 0.7  # else grass
  hues, saturations = ((0.08, 0.12), (0.05, 0.3)) if is_road else ((0.2, 0.33), (0.2, 0.45))
  ground = between(*hues), between(*saturations)
  value = between(0.3, 0.7) * day
  corners = np.empty((4, 1, 3), np.uint8)
  corners[:, 0] = top, bottom, _hsv(*ground, value * 1.15), _hsv(*ground, value * 0.8)
  image = np.empty((h, w, 3), np.uint8)
  cv2.resize(corners[:2], (w, horizon), dst=image[:horizon], interpolation=cv2.INTER_LINEAR)
  cv2.resize(corners[2:], (w, h - horizon), dst=image[horizon:], interpolation=cv2.INTER_LINEAR)
  for _ in range(int(between(1, 2 + 4 * difficulty))):
    x, tall, wide = between(0, 1) * w, between(0.1, 0.45) * h, between(0.06, 0.2) * w
    colour = _hsv(between(0, 1), between(0.05, 0.45), between(0.25, 0.75) * day)
    if between(0, 1) < 0.5:
      _draw_house(image, x, horizon, tall, wide, colour)
    else:
      trunk = (int(x), horizon), (int(x), int(horizon - tall * 0.6))
      cv2.line(image, *trunk, (84, 60, 40), max(1, w // 48))
      crown = (int(x), int(horizon - tall * 0.75)), int(wide * 0.5)
      leaves = _hsv(between(0.22, 0.4), 0.5, between(0.25, 0.6) * day)
      cv2.circle(image, *crown, leaves, -1, cv2.LINE_AA)
  return image


def _draw_house(image, x, horizon, tall, wide, colour):
  corner = (int(x - wide / 2), int(horizon - tall))
  cv2.rectangle(image, corner, (int(x + wide / 2), horizon), colour, -1)
  window, width = [v * 0.6 + 70 for v in colour], max(1, int(tall * 0.1))
  for row in range(2):
    y = int(horizon - tall * (0.8 - 0.4 * row))
    cv2.line(image, (int(x - wide * 0.3), y), (int(x + wide * 0.3), y), window, width)


def _foreground(image, between, difficulty):
  """Posts, bushes and passers-by in front of the vehicle."""
  h, w = image.shape[:2]
  for chance in (0.35, 0.15):
    x, kind = between(0, 1) * w, between(0, 1)
    colour = _hsv(between(0, 1), between(0.1, 0.7), between(0.2, 0.8))
    a, b = between(0.4, 1), between(0.6, 1.1)
    if between(0, 1) > chance * difficulty:
      continue
    if kind < 0.4:
      grey = [v * 0.5 + 50 for v in colour]
      cv2.rectangle(image, (int(x), 0), (int(x + w * 0.035 * b), h), grey, -1)
    elif kind < 0.7:
      for k in (-1, 0, 1):
        centre = int(x + k * w * 0.06), int(h * (1.02 - 0.03 * (k == 0)))
        green = (40 + 30 * a, 30 + 90 * a, 40)
        cv2.circle(image, centre, int(w * 0.08 * b), green, -1, cv2.LINE_AA)
    else:
      tall, foot = h * 0.3 * b, h * 0.98
      centre, axes = (int(x), int(foot - tall * 0.5)), (max(2, int(w * 0.028)), int(tall * 0.5))
      cv2.ellipse(image, centre, axes, 0, 0, 360, colour, -1, cv2.LINE_AA)
      centre = int(x), int(foot - tall * 1.05)
      cv2.circle(image, centre, max(2, int(w * 0.026)), (214, 170, 140), -1, cv2.LINE_AA)
