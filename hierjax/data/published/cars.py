"""Stanford Cars (Krause et al. 2013): the devkit, or Kaggle's class folders."""

import os
import pathlib
import re

from hierjax.core.errors import UserError
from hierjax.data.published.layout import (
  Example,
  Layout,
  corner_box,
  find,
  number,
  read_mat,
  read_names,
  read_table,
)

LEVELS = ('make', 'type', 'model')
MARKS = (
  'devkit/cars_train_annos.mat',
  'car_devkit/devkit/cars_train_annos.mat',
  'cars_train_annos.mat',
  'car_data/car_data/train',
)
CORNERS = ('bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2')
# makes that are not their model's first word
TWO_WORDS = ('AM General', 'Aston Martin', 'Land Rover')
# The type is the first of these with which a word of the name ends: 'SuperCab' is a Cab, 'Drophead
# Coupe Convertible' a Convertible, 'Wagon Van' a Wagon.
BODIES = ('Cab', 'Convertible', 'Minivan', 'SUV', 'Wagon', 'Hatchback', 'Sedan', 'Coupe', 'Van')
# models whose name has no type
NO_TYPE = {
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


def car(model: str) -> tuple[str, str, str]:
  """Split the name of a class into make, type and model.

  Args:
    model: such as 'Audi TTS Coupe 2012'.
  """
  make = next((m for m in TWO_WORDS if model.startswith(f'{m} ')), model.split(' ')[0])
  name = re.sub(r' \d{4}$', '', model)
  words = name.split()
  body = next((b for b in BODIES if any(word.endswith(b) for word in words)), None)
  body = NO_TYPE.get(name, body)
  if body is None:
    raise UserError(
      f'Stanford Cars has no class {model!r}: its name has no type ({", ".join(BODIES)}); write '
      'taxonomy.csv to use your own'
    )
  return make, body, model


def read(root: pathlib.Path, crop: bool) -> Layout:
  """Read Stanford Cars.

  Args:
    root: the folder.
    crop: whether the boxes are read too.
  """
  mark = find(root, *MARKS, 'car_data/train', 'train')
  read_layout = _read_folders if mark.name == 'train' else _read_devkit
  return read_layout(root, mark.parent, crop)


def _read_devkit(root, devkit, crop):
  classes = [car(name) for name in read_names(find(devkit, 'cars_meta.mat'), 'class_names')]
  layout = Layout(LEVELS, classes)
  labelled = 'cars_test_annos_withlabels.mat'
  places = (labelled, f'{os.path.relpath(root, devkit)}/{labelled}', 'cars_test_annos.mat')
  lists = {'train': devkit / 'cars_train_annos.mat', 'test': find(devkit, *places)}
  for split, path in lists.items():
    has_labels = path.name != 'cars_test_annos.mat'
    if not has_labels:
      layout.notes.append(f'test has no labels: there is no {labelled}')
    rows, folder = read_mat(path, 'annotations'), find(root, f'cars_{split}')
    if (folder / folder.name).is_dir():
      folder /= folder.name
    fields = rows[0].keys() if rows and isinstance(rows[0], dict) else ()
    required = ('fname', *CORNERS, *(('class',) if has_labels else ()))
    missing = [f for f in required if f not in fields]
    if missing:
      raise UserError(
        f'{path}: annotations has no field {", ".join(missing)}; it has '
        f'{", ".join(fields) or "none"}'
      )
    for i, row in enumerate(rows, 1):
      where, label = f'{path}:{i}', -1
      if has_labels:
        label = number(row['class'], where, 'class', 1, len(classes)) - 1
      box = corner_box([row[f] for f in CORNERS], where) if crop else None
      file = f'{folder.relative_to(root).as_posix()}/{row["fname"]}'
      layout.examples.append(Example(file, label, split, where, box))
  return layout


def _read_folders(root, base, crop):
  paths = {}
  for split in ('train', 'test'):
    images = find(base, split).glob('*/[!.]*')
    paths[split] = sorted(p for p in images if p.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    if not paths[split]:
      raise UserError(
        f'{base / split}: expected class folders with images (Acura RL Sedan 2012/*.jpg), found '
        'none'
      )
  names = sorted({path.parent.name for split in paths for path in paths[split]})
  # a folder cannot have the slash
  layout = Layout(LEVELS, [car(name.replace('Ram C-V', 'Ram C/V')) for name in names])
  for split in paths:
    boxes = {}
    if crop:
      file = find(root, *(f'{up}anno_{split}.csv' for up in ('', '../', '../../')))
      boxes = read_table(file, 'file', 'x1', 'y1', 'x2', 'y2', 'class', separator=',')
    for path in paths[split]:
      if crop and path.name not in boxes:
        raise UserError(f'{file}: has no box of {path.name}, which is in {path.parent}')
      where, cells = boxes.get(path.name, ('', ()))
      box = corner_box(cells[:4], where) if crop else None
      label = names.index(path.parent.name)
      name = path.relative_to(root).as_posix()
      layout.examples.append(Example(name, label, split, str(path), box))
  return layout
