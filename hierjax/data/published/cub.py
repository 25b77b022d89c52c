"""CUB-200-2011 (Wah et al. 2011)."""

import pathlib
import re

from hierjax.core.errors import UserError
from hierjax.data.published.layout import Example, Layout, check_box, find, number, read_table

MARKS = ('image_class_labels.txt', 'CUB_200_2011/image_class_labels.txt')
TABLES = {
  'images': ('image_id', 'file'),
  'image_class_labels': ('image_id', 'class_id'),
  'train_test_split': ('image_id', 'is_training_image'),
}
BOXES = ('image_id', 'x', 'y', 'width', 'height')


def read(root: pathlib.Path, crop: bool) -> Layout:
  """Read CUB-200-2011.

  Args:
    root: the folder.
    crop: whether the boxes are read too.
  """
  base = find(root, *MARKS).parent
  columns = {**TABLES, 'bounding_boxes': BOXES} if crop else TABLES
  tables = {name: read_table(find(base, f'{name}.txt'), *c) for name, c in columns.items()}
  classes = read_table(find(base, 'classes.txt'), 'class_id', 'class_name')
  species = [re.sub(r'^\d+\.', '', name).replace('_', ' ') for _, (name,) in classes.values()]
  layout = Layout(('species',), [(name,) for name in species])
  label = {key: i for i, key in enumerate(classes)}
  folder = find(base, 'images').relative_to(root).as_posix()
  for image, (where, (file,)) in tables['images'].items():
    for name, table in tables.items():
      if image not in table:
        raise UserError(f'{where}: image_id {image} is not in {name}.txt')
    place, (key,) = tables['image_class_labels'][image]
    if key not in label:
      raise UserError(f'{place}: class_id {key} is not in classes.txt, which has {len(label)}')
    place, (is_train,) = tables['train_test_split'][image]
    split = 'train' if number(is_train, place, 'is_training_image', 0, 1) else 'test'
    box = _read_box(*tables['bounding_boxes'][image]) if crop else None
    layout.examples.append(Example(f'{folder}/{file}', label[key], split, where, box))
  return layout


def _read_box(where, cells):
  x, y, width, height = (number(c, where, 'a side of the box', kind=float) for c in cells)
  return check_box((x, y, x + width, y + height), where)
