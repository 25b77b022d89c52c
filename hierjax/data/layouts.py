"""Published data sets as their users hold them: what lies in the folder becomes lists, of which sources.py makes the data set.

--config.data.root=FOLDER, the folder that holds what is named here; --config.data.source=NAME, or 'auto', which knows a set by the file marked *.
--config.data.crop_boxes shows the boxes only; each file of boxes is needed then, and else not looked at. A taxonomy.csv in FOLDER wins over the levels here.

stanford_cars  make, type, model. The devkit: devkit/{cars_meta,cars_train_annos*}.mat, cars_test_annos_withlabels.mat in devkit/ or beside it (where
               there is only cars_test_annos.mat, 'test' has no labels), cars_train/*.jpg, cars_test/*.jpg; boxes from the .mat files.
               Or Kaggle's class folders: car_data/car_data/{train*,test}/CLASS/*.jpg; boxes from anno_train.csv and anno_test.csv beside car_data.
               Make and type are read off the model's name, by the rule beside BODIES; the devkit's order of classes is kept, folders are in the alphabet's.
compcars       make, model, model_year. misc/make_model_name.mat*, image/MAKE/MODEL/YEAR/*.jpg (every folder is a class, whether or not a list names it),
               train_test_split/classification/{train,test}.txt; boxes from label/MAKE/MODEL/YEAR/*.txt.
fgvc_aircraft  manufacturer, family, variant. data/images_variant_train.txt*, with manufacturer and family, val and test, data/images/*.jpg, whose 20
               lowest rows, a banner with the photographer's name, are cut off; boxes from data/images_box.txt.
cifar100       coarse, fine. cifar-100-python/{meta*,train,test}, pickles of Python 2, read without running them. (Parquet: source parquet.)
cub200         species. image_class_labels.txt*, images.txt, classes.txt, train_test_split.txt, images/; boxes from bounding_boxes.txt. More levels by a
               taxonomy.csv such as order,family,genus,species, its last level CUB's classes.
tfds           --config.data.root=tfds:NAME[/CONFIG][:VERSION]: a data set that TFDS prepared as ArrayRecord below $TFDS_DATA_DIR (~/tensorflow_datasets).
               Its levels are its ClassLabels, the one with fewer classes first, without their ending '_label'. No boxes.
(hf:)          --config.data.root=hf:OWNER/NAME[@REVISION]: the Parquet files of a data set on the Hugging Face hub, read by source parquet.

A set may lie one folder deeper, as its archive unpacks (CUB_200_2011/...). Class names are matched with a taxonomy.csv without regard to case, spaces,
punctuation, a leading number and the 's of an owner: '001.Black_footed_Albatross' is 'Black-footed Albatross'.
"""

import dataclasses
import functools
import math
import mmap
import os
import pathlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np

from hierjax.core import pickles
from hierjax.core.errors import UserError
from hierjax.data import matfile
from hierjax.taxonomy import close_matches

# The files that tell a set, as the paths at which they may lie.
MARKS = {
  'stanford_cars': (
    'devkit/cars_train_annos.mat',
    'car_devkit/devkit/cars_train_annos.mat',
    'cars_train_annos.mat',
    'car_data/car_data/train',
  ),
  'compcars': ('misc/make_model_name.mat', 'data/misc/make_model_name.mat'),
  'fgvc_aircraft': tuple(
    f'{folder}images_variant_train.txt' for folder in ('data/', '', 'fgvc-aircraft-2013b/data/')
  ),
  'cifar100': ('cifar-100-python/meta',),
  'cub200': ('image_class_labels.txt', 'CUB_200_2011/image_class_labels.txt'),
}
TWO_WORDS = (
  'AM General',
  'Aston Martin',
  'Land Rover',
)  # the makes of Stanford Cars that are not their model's first word
# The type is the first of these with which a word of the name ends: 'SuperCab' is a Cab, 'Drophead Coupe Convertible' a Convertible, 'Wagon Van' a Wagon.
BODIES = ('Cab', 'Convertible', 'Minivan', 'SUV', 'Wagon', 'Hatchback', 'Sedan', 'Coupe', 'Van')
UNSAID = {  # the models whose name does not say it
  'Acura Integra Type R': 'Coupe',
  'Acura TL Type-S': 'Sedan',
  'Buick Regal GS': 'Sedan',
  'Chevrolet Cobalt SS': 'Coupe',
  'Chevrolet Corvette Ron Fellows Edition Z06': 'Coupe',
  'Chevrolet Corvette ZR1': 'Coupe',
  'Chevrolet HHR SS': 'Minivan',
  'Chevrolet TrailBlazer SS': 'SUV',
  'Chrysler 300 SRT-8': 'Sedan',
  'Dodge Challenger SRT8': 'Coupe',
  'Dodge Charger SRT-8': 'Sedan',
  'FIAT 500 Abarth': 'Coupe',
  'Jaguar XK XKR': 'Coupe',
  'Lamborghini Gallardo LP 570-4 Superleggera': 'Coupe',
}
BANNER = 20  # pixels, of FGVC-Aircraft


@dataclasses.dataclass
class Layout:
  """What a data set holds, example by example."""

  levels: tuple[str, ...]
  classes: list[
    tuple[str, ...]
  ]  # names per level of each finest class, in the data set's own order
  banner: int = 0  # rows at the lower edge of every image that are no part of it
  files: list[str] = dataclasses.field(default_factory=list)  # below the root
  labels: list[int] = dataclasses.field(default_factory=list)  # places in `classes`, -1 unknown
  splits: list[str] = dataclasses.field(default_factory=list)
  where: list[str] = dataclasses.field(default_factory=list)  # what names the example: 'FILE:ROW'
  boxes: list[tuple[float, float, float, float] | None] = dataclasses.field(
    default_factory=list
  )  # left, top, right, bottom as in transforms.Part
  notes: list[str] = dataclasses.field(default_factory=list)
  reader: Callable[[np.ndarray], Callable] | None = (
    None  # rows -> the reader of these rows; None where `files` are files
  )

  def paths(self, taxonomy) -> np.ndarray:
    """int32 [class, level of the taxonomy]: each class's path in a taxonomy, found by its name at the taxonomy's last level, or else at its own last."""
    level = taxonomy.levels[-1]
    k = self.levels.index(level) if level in self.levels else -1
    plain = lambda name: re.sub(r"^\d+\.|['’]s?\b|[\W_]+", '', name.casefold())
    exact, folded, rows = {n: i for i, n in enumerate(taxonomy.names[-1])}, defaultdict(list), []
    for name, i in exact.items():
      folded[plain(name)].append(i)
    for path in self.classes:
      found = [exact[path[k]]] if path[k] in exact else folded[plain(path[k])]
      if len(found) != 1:
        near = [taxonomy.names[-1][i] for i in found] or close_matches(path[k], exact)
        raise UserError(
          f'class {path[k]!r} is {"several" if found else "not"} in the taxonomy: {level} '
          + (f'{" or ".join(map(repr, near))}?' if near else f'has {len(exact)} others')
        )
      rows.append(taxonomy.paths[found[0]])
    return np.array(rows)

  def add(self, file, label, split, where, box=None):
    for column, value in zip(
      (self.files, self.labels, self.splits, self.where, self.boxes),
      (file, label, split, where, box),
    ):
      column.append(value)


def read(source, root, crop) -> Layout:
  """The data set at root, a folder (for tfds a name), with boxes if they are to be cropped to."""
  try:
    layout = LAYOUTS[source](root, crop)
  except OSError as error:
    raise UserError(f'{error.filename or root}: cannot be read ({error.strerror})') from None
  if not layout.files:
    raise UserError(f'{root}: has no example')
  if crop and None in layout.boxes:
    raise UserError(f'--config.data.crop_boxes: {source} has no boxes')
  return layout


def recognise(root) -> str | None:
  """The source that reads this folder, where that is unmistakable."""
  return next(
    (name for name, marks in MARKS.items() if any((root / mark).exists() for mark in marks)), None
  )


# Files


def _find(root, *places):
  """The first of the places that exists below root."""
  for place in places:
    if (root / place).exists():
      return root / place
  try:
    found = sorted(os.listdir(root))
  except OSError:
    found = []
  others = f' (or {", ".join(places[1:])})' if places[1:] else ''
  raise UserError(
    f'{root}: expected {places[0]}{others}, found {", ".join(found[:8]) or "nothing"}{" ..." if found[8:] else ""}'
  )


def _rows(path, *columns, separator=None):
  """[(row, cells)] of a text file with these columns, separated by spaces; the last may hold some."""
  try:
    lines = path.read_text('utf-8').splitlines()
  except OSError as error:
    raise UserError(f'{path}: expected a file of {" ".join(columns)} ({error.strerror})') from None
  except UnicodeDecodeError as error:
    raise UserError(f'{path}: is not UTF-8 text (byte {error.start})') from None
  rows = [
    (i, line.strip().split(separator, len(columns) - 1))
    for i, line in enumerate(lines, 1)
    if line.strip()
  ]
  for i, cells in rows:
    if len(cells) != len(columns):
      raise UserError(f'{path}:{i}: expected {" ".join(columns)}, found {" ".join(cells)[:80]!r}')
  if not rows:
    raise UserError(f'{path}: is empty; expected rows of {" ".join(columns)}')
  return rows


def _table(path, *columns, separator=None):
  """{first cell: (row, the other cells)} of such a file, whose first column is a key."""
  table = {}
  for row, (key, *rest) in _rows(path, *columns, separator=separator):
    if key in table:
      raise UserError(f'{path}:{row}: {columns[0]} {key} stands in row {table[key][0]} already')
    table[key] = row, rest
  return table


def _number(text, where, what, low=-math.inf, high=math.inf, kind=int):
  try:
    value = kind(text)
  except (ValueError, OverflowError, TypeError):
    raise UserError(f'{where}: {what} {str(text)[:40]!r} is no number') from None
  if not low <= value <= high:
    raise UserError(f'{where}: {what} is {value}; expected {low} to {high}')
  return value


def _box(cells, where):
  """Four numbers, corners of the first and the last pixel, counted from 1."""
  left, top, right, bottom = (_number(c, where, 'a corner of the box', kind=float) for c in cells)
  return _full((left - 1, top - 1, right, bottom), where)


def _full(box, where):
  if not (all(map(math.isfinite, box)) and box[0] < box[2] and box[1] < box[3]):
    raise UserError(
      f'{where}: the box {", ".join(f"{v:g}" for v in box)} (left, top, right, bottom) is empty'
    )
  return box


def _mat(path, field):
  """A variable of a MATLAB 5 file: a list, of dicts (structs) or of values (cells)."""
  try:
    found = matfile.read(path)
  except OSError:
    raise
  except Exception as error:  # a damaged file meets all kinds
    raise UserError(
      f'{path}: cannot be read as a MATLAB 5 file ({type(error).__name__}: {str(error)[:120]})'
    ) from None
  if field not in found:
    raise UserError(f'{path}: expected {field}, found {", ".join(found) or "nothing"}')
  if not isinstance(found[field], list):
    raise UserError(f'{path}: {field} is no array of cells or structs')
  return found[field]


def _names(path, field):
  return [n.strip() if isinstance(n, str) else '' for n in _mat(path, field)]


# Stanford Cars


def car(model) -> tuple[str, str, str]:
  """(make, type, model) of a class name such as 'Audi TTS Coupe 2012'."""
  make = next((m for m in TWO_WORDS if model.startswith(f'{m} ')), model.split(' ')[0])
  name = re.sub(r' \d{4}$', '', model)
  kind = UNSAID.get(name) or next(
    (b for b in BODIES if any(word.endswith(b) for word in name.split())), None
  )
  if kind is None:
    raise UserError(
      f'Stanford Cars has no class {model!r}: its name has no type ({", ".join(BODIES)}); write taxonomy.csv to use your own'
    )
  return make, kind, model


def stanford_cars(root, crop):
  mark = _find(root, *MARKS['stanford_cars'], 'car_data/train', 'train')
  return (
    _car_folders(root, mark.parent, crop)
    if mark.name == 'train'
    else _car_devkit(root, mark.parent, crop)
  )


def _car_devkit(root, devkit, crop):
  meta = _find(devkit, 'cars_meta.mat')
  layout = Layout(('make', 'type', 'model'), [car(name) for name in _names(meta, 'class_names')])
  above = os.path.relpath(root, devkit)
  lists = {
    'train': devkit / 'cars_train_annos.mat',
    'test': _find(
      devkit,
      'cars_test_annos_withlabels.mat',
      f'{above}/cars_test_annos_withlabels.mat',
      'cars_test_annos.mat',
    ),
  }
  for split, path in lists.items():
    rows, folder = _mat(path, 'annotations'), _find(root, f'cars_{split}')
    if (folder / folder.name).is_dir():
      folder /= folder.name
    fields = rows[0].keys() if rows and isinstance(rows[0], dict) else ()
    labelled, corners = (
      path.name != 'cars_test_annos.mat',
      ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2'),
    )
    if missing := [
      f for f in ('fname', *corners, *(['class'] if labelled else [])) if f not in fields
    ]:
      raise UserError(
        f'{path}: annotations has no field {", ".join(missing)}; it has {", ".join(fields) or "none"}'
      )
    if not labelled:
      layout.notes.append('test has no labels: there is no cars_test_annos_withlabels.mat')
    for i, row in enumerate(rows, 1):
      where = f'{path}:{i}'
      label = _number(row['class'], where, 'class', 1, len(layout.classes)) - 1 if labelled else -1
      layout.add(
        f'{folder.relative_to(root).as_posix()}/{row["fname"]}',
        label,
        split,
        where,
        _box([row[f] for f in corners], where) if crop else None,
      )
  return layout


def _car_folders(root, base, crop):
  found = {
    split: sorted(
      p for p in _find(base, split).glob('*/[!.]*') if p.suffix.lower() in ('.jpg', '.jpeg', '.png')
    )
    for split in ('train', 'test')
  }
  for split, paths in found.items():
    if not paths:
      raise UserError(
        f'{base / split}: expected class folders with images (Acura RL Sedan 2012/*.jpg), found none'
      )
  names = sorted({p.parent.name for paths in found.values() for p in paths})
  layout = Layout(
    ('make', 'type', 'model'), [car(n.replace('Ram C-V', 'Ram C/V')) for n in names]
  )  # a folder cannot have the slash
  label = {n: i for i, n in enumerate(names)}
  for split, paths in found.items():
    path = _find(root, *(f'{up}anno_{split}.csv' for up in ('', '../', '../../'))) if crop else None
    boxes = _table(path, 'file', 'x1', 'y1', 'x2', 'y2', 'class', separator=',') if crop else {}
    for p in paths:
      if crop and p.name not in boxes:
        raise UserError(f'{path}: has no box of {p.name}, which is in {p.parent}')
      box = _box(boxes[p.name][1][:4], f'{path}:{boxes[p.name][0]}') if crop else None
      layout.add(p.relative_to(root).as_posix(), label[p.parent.name], split, str(p), box)
  return layout


# CompCars


def compcars(root, crop):
  mat = _find(root, *MARKS['compcars'])
  base = mat.parent.parent
  makes, models = (
    {i: n for i, n in enumerate(_names(mat, field), 1) if n}
    for field in ('make_names', 'model_names')
  )
  image = _find(base, 'image')
  folders = sorted(
    (
      (make, model, p.name)
      for make in _numbered(image)
      for model in _numbered(image / make)
      for p in (image / make / model).iterdir()
      if p.is_dir()
    ),
    key=lambda f: (int(f[0]), int(f[1]), f[2]),
  )
  if not folders:
    raise UserError(f'{image}: expected MAKE/MODEL/YEAR/*.jpg, found no such folder')
  layout = Layout(('make', 'model', 'model_year'), [])
  make_name = _unique({int(make): makes.get(int(make), f'make {make}') for make, _, _ in folders})
  full = {}
  for make, model, _ in folders:
    name = models.get(int(model), f'model {model}')
    full[int(make), int(model)] = (
      name
      if name.casefold().startswith(make_name[int(make)].casefold())
      else f'{make_name[int(make)]} {name}'
    )
  model_name = _unique(full)
  for make, model, year in folders:
    name = model_name[int(make), int(model)]
    layout.classes.append((make_name[int(make)], name, f'{name} {year}'))
  if nameless := [m for m in make_name if m not in makes]:
    layout.notes.append(f'{mat.name} has no name of make {", ".join(map(str, nameless))}')
  if nameless := [m for _, m in full if m not in models]:
    layout.notes.append(f'{mat.name} has no name of {len(nameless)} models, such as {nameless[0]}')
  label = {'/'.join(folder): i for i, folder in enumerate(folders)}
  for split in ('train', 'test'):
    path = _find(base, f'train_test_split/classification/{split}.txt')
    for row, (file,) in _rows(path, 'MAKE/MODEL/YEAR/IMAGE'):
      where, box = f'{path}:{row}', None
      if (folder := file.rpartition('/')[0]) not in label:
        raise UserError(f'{where}: no folder image/{folder}')
      if crop:
        text = base / 'label' / pathlib.PurePosixPath(file).with_suffix('.txt')
        lines = _rows(text, 'viewpoint, 1 or x1 y1 x2 y2')
        if len(lines) < 3 or len(cells := lines[2][1][0].split()) != 4:
          raise UserError(f'{text}: expected the box, x1 y1 x2 y2, in row 3')
        box = _box(cells, text)
      layout.add(f'{image.relative_to(root).as_posix()}/{file}', label[folder], split, where, box)
  return layout


def _numbered(folder):
  return [p.name for p in folder.iterdir() if p.is_dir() and p.name.isdecimal()]


def _unique(names):
  """{key: name}, with the last number of the key added to names that several have."""
  count = Counter(names.values())
  return {
    key: name if count[name] == 1 else f'{name} ({key[-1] if isinstance(key, tuple) else key})'
    for key, name in names.items()
  }


# FGVC-Aircraft


def fgvc_aircraft(root, crop):
  base = _find(root, *MARKS['fgvc_aircraft']).parent
  levels = ('manufacturer', 'family', 'variant')
  boxes = (
    _table(_find(base, 'images_box.txt'), 'image', 'xmin', 'ymin', 'xmax', 'ymax') if crop else {}
  )
  folder, first, found = _find(base, 'images').relative_to(root).as_posix(), {}, []
  for split in ('train', 'val', 'test'):
    paths = {level: _find(base, f'images_{level}_{split}.txt') for level in levels}
    tables = {level: _table(path, 'image', level) for level, path in paths.items()}
    for image, (row, (variant,)) in tables['variant'].items():
      where = f'{paths["variant"]}:{row}'
      for level in levels:
        if image not in tables[level]:
          raise UserError(f'{where}: image {image} is not in {paths[level].name}')
      path = tuple(tables[level][image][1][0] for level in levels)
      other, at = first.setdefault(variant, (path, where))
      if other != path:
        raise UserError(
          f'{where}: variant {variant!r} is {" / ".join(path[:2])} here and {" / ".join(other[:2])} in {at}'
        )
      if crop and image not in boxes:
        raise UserError(f'{base / "images_box.txt"}: has no box of image {image} ({where})')
      box = _box(boxes[image][1], f'{base / "images_box.txt"}:{boxes[image][0]}') if crop else None
      found.append((f'{folder}/{image}.jpg', path, split, where, box))
  layout = Layout(levels, sorted({path for path, _ in first.values()}), BANNER)
  label = {path: i for i, path in enumerate(layout.classes)}
  for file, path, *rest in found:
    layout.add(file, label[path], *rest)
  layout.notes.append(f'the {BANNER} lowest rows of each image, a banner, are cut off')
  return layout


# CIFAR-100


class _Array:
  """Stands where a pickle rebuilds a numpy array: of bytes only."""

  array = np.empty(0, np.uint8)

  def __setstate__(self, state):
    _, shape, dtype, _, raw = state
    if (
      not isinstance(dtype, _Dtype)
      or dtype.code not in (b'u1', 'u1')
      or not isinstance(raw, bytes)
      or len(raw) != math.prod(shape)
    ):
      raise ValueError('an array of something else than bytes')
    self.array = np.frombuffer(raw, np.uint8).reshape(shape)


class _Dtype:
  def __init__(self, code, *_):
    self.code = code

  def __setstate__(self, state):
    pass


class _Unpickler(pickles.Unpickler):
  names = frozenset(
    {
      'numpy.core.multiarray._reconstruct',
      'numpy._core.multiarray._reconstruct',
      'numpy.ndarray',
      'numpy.dtype',
    }
  )
  purpose = 'images and labels'

  def stand_in(self, name):
    return {'numpy.dtype': _Dtype, 'numpy.ndarray': None}.get(name, lambda *_: _Array())


def _unpickled(path, *keys):
  """What a dictionary of Python 2 holds under these keys."""
  try:
    with path.open('rb') as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
      found = _Unpickler(data, path, 'bytes').load()
    found = {k.decode() if isinstance(k, bytes) else k: v for k, v in found.items()}
  except UserError:
    raise
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({error.strerror})') from None
  except Exception as error:
    raise UserError(
      f'{path}: is damaged or was cut short ({type(error).__name__}: {str(error)[:120]})'
    ) from None
  if missing := [k for k in keys if k not in found]:
    raise UserError(f'{path}: expected {", ".join(missing)}, found {", ".join(map(str, found))}')
  return [found[k] for k in keys]


def cifar100(root, crop):
  base = _find(root, *MARKS['cifar100'], 'meta').parent
  levels = ('coarse', 'fine')
  names = _unpickled(base / 'meta', *(f'{l}_label_names' for l in levels))
  if not all(isinstance(column, list) for column in names):
    raise UserError(f'{base / "meta"}: expected lists of names')
  names = [
    [n.decode('utf-8', 'replace') if isinstance(n, bytes) else str(n) for n in column]
    for column in names
  ]
  parents, pixels, places = {}, {}, []
  for split in ('train', 'test'):
    path = _find(base, split)
    data, *labels = _unpickled(path, 'data', *(f'{l}_labels' for l in levels))
    if (
      not isinstance(data, _Array)
      or data.array.shape[1:] != (3 * 32 * 32,)
      or any(not isinstance(l, list) or len(l) != len(data.array) for l in labels)
    ):
      raise UserError(f'{path}: expected data [N, 3072], N coarse_labels and N fine_labels')
    pixels[split] = data.array
    for i, pair in enumerate(zip(*labels)):
      where = f'{path}: image {i}'
      coarse, fine = (
        _number(v, where, f'{l}_labels', 0, len(n) - 1) for v, l, n in zip(pair, levels, names)
      )
      other = parents.setdefault(fine, coarse)
      if other != coarse:
        raise UserError(
          f'{where}: {names[1][fine]!r} is {names[0][coarse]!r} here and {names[0][other]!r} before'
        )
      places.append((split, i, fine, where))
  order = sorted(parents)
  layout, label = (
    Layout(levels, [(names[0][parents[f]], names[1][f]) for f in order]),
    {f: i for i, f in enumerate(order)},
  )
  for split, i, fine, where in places:
    layout.add(f'{split}:{i}', label[fine], split, where)
  layout.reader = lambda rows: functools.partial(
    _read_planes, pixels=pixels, places=[places[i][:2] for i in rows]
  )
  return layout


def _read_planes(i, *, pixels, places):
  split, row = places[i]
  return np.ascontiguousarray(pixels[split][row].reshape(3, 32, 32).transpose(1, 2, 0))


# CUB-200-2011


def cub200(root, crop):
  base = _find(root, *MARKS['cub200']).parent
  tables = {
    name: _table(_find(base, f'{name}.txt'), *columns)
    for name, columns in {
      'images': ('image_id', 'file'),
      'image_class_labels': ('image_id', 'class_id'),
      'train_test_split': ('image_id', 'is_training_image'),
      'classes': ('class_id', 'class_name'),
      **({'bounding_boxes': ('image_id', 'x', 'y', 'width', 'height')} if crop else {}),
    }.items()
  }
  layout = Layout(
    ('species',),
    [(re.sub(r'^\d+\.', '', name).replace('_', ' '),) for _, (name,) in tables['classes'].values()],
  )
  label, folder = (
    {key: i for i, key in enumerate(tables['classes'])},
    _find(base, 'images').relative_to(root).as_posix(),
  )
  for image, (row, (file,)) in tables['images'].items():
    for name in tables:
      if name != 'classes' and image not in tables[name]:
        raise UserError(f'{base / "images.txt"}:{row}: image_id {image} is not in {name}.txt')
    at, (key,) = tables['image_class_labels'][image]
    if key not in label:
      raise UserError(
        f'{base / "image_class_labels.txt"}:{at}: class_id {key} is not in classes.txt, which has {len(label)}'
      )
    at, (train,) = tables['train_test_split'][image]
    train = _number(train, f'{base / "train_test_split.txt"}:{at}', 'is_training_image', 0, 1)
    box = None
    if crop:
      at, cells = tables['bounding_boxes'][image]
      at = f'{base / "bounding_boxes.txt"}:{at}'
      x, y, w, h = (_number(c, at, 'a side of the box', kind=float) for c in cells)
      box = _full((x, y, x + w, y + h), at)
    layout.add(
      f'{folder}/{file}',
      label[key],
      'train' if train else 'test',
      f'{base / "images.txt"}:{row}',
      box,
    )
  return layout


# TFDS


def tfds(root, crop):
  name = str(root).removeprefix('tfds:')
  if not re.fullmatch(r'\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?', name):
    raise UserError(f'--config.data.root={root}: expected tfds:NAME[/CONFIG][:1.2.3]')
  import tensorflow_datasets as library  # takes .5 s, without TensorFlow

  folder = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  advice = f'prepare it once, where TensorFlow is installed: tfds build {name.split(":")[0]} --file_format=array_record --data_dir={folder}'
  try:
    builder = library.builder(name, data_dir=os.environ.get('TFDS_DATA_DIR') or None)
    sources = {
      split: builder.as_data_source(split=split, decoders=_undecoded(library, builder, root))
      for split in builder.info.splits
    }
    if not sources:
      raise FileNotFoundError('nothing is prepared')
  except UserError:
    raise
  except Exception as error:  # it raises its own, assertions and the system's
    told = str(error).splitlines()[0][:160] if str(error) else ''
    raise UserError(
      f'tfds:{name}: cannot be read from {folder} as ArrayRecord ({type(error).__name__}: {told}); {advice}'
    ) from None
  features = builder.info.features
  image = next(k for k in features if isinstance(features[k], library.features.Image))
  labels = sorted(
    (k for k in features if isinstance(features[k], library.features.ClassLabel)),
    key=lambda k: features[k].num_classes,
  )
  if not labels:
    raise UserError(f'tfds:{name}: has no ClassLabel; its features are {", ".join(features)}')
  names, rows = [features[k].names for k in labels], {}
  for split, source in sources.items():
    for i in range(len(source)):
      try:
        example = source[i]
      except Exception as error:
        raise UserError(
          f'tfds:{name}: example {split}:{i} cannot be read ({type(error).__name__}: {str(error)[:120]})'
        ) from None
      rows[split, i] = tuple(int(example[k]) for k in labels)
  classes = sorted(
    set(rows.values()) if len(labels) > 1 else [(c,) for c in range(len(names[0]))],
    key=lambda row: row[::-1],
  )
  classes = [row for row in classes if row[-1] >= 0]
  layout = Layout(
    tuple(k.removesuffix('_label') for k in labels),
    [tuple(n[c] if c >= 0 else '' for n, c in zip(names, row)) for row in classes],
  )
  label = {row: i for i, row in enumerate(classes)}
  for (split, i), row in rows.items():
    layout.add(f'{split}:{i}', label.get(row, -1), split, f'tfds:{name} {split}:{i}')
  places = list(rows)
  layout.reader = lambda rows: functools.partial(
    _read_tfds, sources=sources, places=[places[i] for i in rows], image=image
  )
  return layout


def _undecoded(library, builder, root):
  images = [k for k, f in builder.info.features.items() if isinstance(f, library.features.Image)]
  if len(images) != 1:
    raise UserError(
      f'{root}: expected one feature with images; its features are {", ".join(builder.info.features)}'
    )
  return {images[0]: library.decode.SkipDecoding()}


def _read_tfds(i, *, sources, places, image):
  split, row = places[i]
  return sources[split][row][image]


# The hub


def hub_folder(name) -> pathlib.Path:
  """The local copy of the Parquet files of a data set on the Hugging Face hub, 'OWNER/NAME' or 'OWNER/NAME@REVISION'."""
  import huggingface_hub

  repo, _, revision = name.partition('@')
  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        repo,
        repo_type='dataset',
        revision=revision or None,
        allow_patterns=['*.parquet', 'taxonomy.csv'],
      )
    )
  except Exception as error:  # the hub client raises its own, httpx's and the system's errors
    told = ' '.join(str(error).split())[:160]
    raise UserError(
      f'--config.data.root=hf:{name}: could not be downloaded ({type(error).__name__}: {told}); by hand, where there is a network: '
      f"hf download {repo} --repo-type dataset --include '*.parquet' --local-dir FOLDER, then --config.data.root=FOLDER"
    ) from None


LAYOUTS = {
  'stanford_cars': stanford_cars,
  'compcars': compcars,
  'fgvc_aircraft': fgvc_aircraft,
  'cifar100': cifar100,
  'cub200': cub200,
  'tfds': tfds,
}
