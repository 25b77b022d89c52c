"""Published data sets in their original layouts.

`--config.data.root=FOLDER` is the folder that holds what is listed here, `--config.data.source` the
name or 'auto', which recognises a layout by the file marked *. Boxes are read only for
`--config.data.crop_boxes`. A taxonomy.csv in FOLDER replaces the levels listed here.

stanford_cars  make, type, model. The devkit: devkit/{cars_meta,cars_train_annos*}.mat,
               cars_test_annos_withlabels.mat in devkit/ or beside it (with cars_test_annos.mat
               alone, 'test' has no labels), cars_train/*.jpg, cars_test/*.jpg; boxes from the .mat
               files. Or Kaggle's class folders: car_data/car_data/{train*,test}/CLASS/*.jpg; boxes
               from anno_train.csv and anno_test.csv beside car_data. Make and type are read off the
               model's name, see cars.py.
compcars       make, model, model_year. misc/make_model_name.mat*, image/MAKE/MODEL/YEAR/*.jpg (each
               folder is a class), train_test_split/classification/{train,test}.txt; boxes from
               label/MAKE/MODEL/YEAR/*.txt.
fgvc_aircraft  manufacturer, family, variant. data/images_variant_train.txt*, with manufacturer and
               family, val and test, data/images/*.jpg, whose 20 lowest rows, a banner with the
               photographer's name, are cut off; boxes from data/images_box.txt.
cifar100       coarse, fine. cifar-100-python/{meta*,train,test}, pickles of Python 2, read without
               running them. (As Parquet: source parquet.)
cub200         species. image_class_labels.txt*, images.txt, classes.txt, train_test_split.txt,
               images/; boxes from bounding_boxes.txt. More levels by a taxonomy.csv such as
               order,family,genus,species, whose last level has CUB's classes.
tfds           `--config.data.root=tfds:NAME[/CONFIG][:VERSION]`: what TFDS prepared as ArrayRecord
               below $TFDS_DATA_DIR (~/tensorflow_datasets). Its levels are its ClassLabels, that
               with fewer classes first, without their ending '_label'. No boxes.

A data set may lie one folder deeper, as its archive unpacks (CUB_200_2011/...).
"""

import pathlib

import numpy as np
from ml_collections import ConfigDict

from hierjax.core.errors import UserError
from hierjax.data import image_files, taxonomies
from hierjax.data.dataset import Table
from hierjax.data.findings import Findings
from hierjax.data.published import aircraft, cars, cifar, compcars, cub, tfds
from hierjax.data.published.layout import Layout
from hierjax.taxonomy import Taxonomy

# source: (function that reads it, the files that it is recognised by)
LAYOUTS = {
  'stanford_cars': (cars.read, cars.MARKS),
  'compcars': (compcars.read, compcars.MARKS),
  'fgvc_aircraft': (aircraft.read, aircraft.MARKS),
  'cifar100': (cifar.read, cifar.MARKS),
  'cub200': (cub.read, cub.MARKS),
  'tfds': (tfds.read, ()),
}


def recognise(root: pathlib.Path) -> str | None:
  """Name the layout that a folder has.

  Args:
    root: the folder; one of the layout's marks is in it.
  """
  for name, (_, marks) in LAYOUTS.items():
    if any((root / mark).exists() for mark in marks):
      return name
  return None


def read(
  options: ConfigDict,
  root: pathlib.Path,
  taxonomy: Taxonomy | None,
  findings: Findings,
  source: str,
) -> Table:
  """Read a published data set.

  Args:
    options: `config.data`; for tfds, its root names the data set.
    root: the folder.
    taxonomy: that of taxonomy.csv, whose last level names classes of the layout; None makes one of
      the layout's levels, its classes in the layout's order.
    findings: receives what is wrong.
    source: a name in `LAYOUTS`.

  Raises:
    UserError: a file is missing or damaged, or contradicts another; names file and row.
  """
  root = options.root if source == 'tfds' else root
  layout = _read_layout(source, root, options.crop_boxes)
  for note in layout.notes:
    findings.note(note)
  if taxonomy is None:
    taxonomy = Taxonomy.from_rows(layout.levels, layout.classes)
    findings.note(f'taxonomy of {source}: {taxonomies.describe(taxonomy)}')
  # -1 at the end, where unknown labels point to
  paths = np.pad(layout.paths(taxonomy), ((0, 1), (0, 0)), constant_values=-1).astype(np.int32)
  files = [e.file for e in layout.examples]
  splits = [e.split for e in layout.examples]
  table = Table(taxonomy, files, paths[[e.label for e in layout.examples]], splits, layout.reader)
  if layout.reader is None:
    _use_files(options, root, layout, table, findings)
  return table


def _read_layout(source, root, crop) -> Layout:
  try:
    layout = LAYOUTS[source][0](root, crop)
  except OSError as error:
    raise UserError(f'{error.filename or root}: cannot be read ({error.strerror})') from None
  if not layout.examples:
    raise UserError(f'{root}: has no example')
  if crop and any(e.box is None for e in layout.examples):
    raise UserError(f'--config.data.crop_boxes: {source} has no boxes')
  return layout


def _use_files(options, root, layout, table, findings):
  """Check the files of a layout and make their reader."""
  files, boxes, margin = [], None, options.crop_margin
  for i, e in enumerate(layout.examples):
    path = image_files.check_path(e.file, e.where, findings)
    if path is None:
      table.invalid.add(i)
    files.append(path or e.file)
  where = [e.where for e in layout.examples]
  splits = np.array(table.splits)
  # each split by itself: one archive of several may not be there
  for split in dict.fromkeys(table.splits) if findings.files else ():
    index = np.flatnonzero(splits == split).tolist()
    image_files.check_files(table, where.__getitem__, root, options.strict, findings, index)
  if options.crop_boxes:
    boxes = []
    for left, top, right, bottom in (e.box for e in layout.examples):
      x, y = margin * (right - left), margin * (bottom - top)
      boxes.append((left - x, top - y, right + x, bottom + y))
  table.reader = image_files.FileReader(str(root), files, boxes, layout.banner)
