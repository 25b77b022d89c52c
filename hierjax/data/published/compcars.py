"""CompCars (Yang et al. 2015), its classification part."""

import pathlib
from collections import Counter

from hierjax.core.errors import UserError
from hierjax.data.published.layout import Example, Layout, corner_box, find, read_names, read_rows

MARKS = ('misc/make_model_name.mat', 'data/misc/make_model_name.mat')


def read(root: pathlib.Path, crop: bool) -> Layout:
  """Read CompCars; every folder is a class, whether or not a list has it.

  Args:
    root: the folder.
    crop: whether the boxes are read too.
  """
  mat = find(root, *MARKS)
  base = mat.parent.parent
  image = find(base, 'image')
  folders = _class_folders(image)
  layout = _name_classes(mat, folders)
  labels = {'/'.join(folder): i for i, folder in enumerate(folders)}
  for split in ('train', 'test'):
    path = find(base, f'train_test_split/classification/{split}.txt')
    for row, (file,) in read_rows(path, 'MAKE/MODEL/YEAR/IMAGE'):
      where, folder = f'{path}:{row}', file.rpartition('/')[0]
      if folder not in labels:
        raise UserError(f'{where}: no folder image/{folder}')
      text = base / 'label' / pathlib.PurePosixPath(file).with_suffix('.txt')
      box = _read_box(text) if crop else None
      name = f'{image.relative_to(root).as_posix()}/{file}'
      layout.examples.append(Example(name, labels[folder], split, where, box))
  return layout


def _class_folders(image):
  """(make, model, year) of each class folder, sorted by number."""

  def numbered(folder):
    return [p.name for p in folder.iterdir() if p.is_dir() and p.name.isdecimal()]

  folders = []
  for make in numbered(image):
    for model in numbered(image / make):
      years = [p.name for p in (image / make / model).iterdir() if p.is_dir()]
      folders += [(make, model, year) for year in years]
  if not folders:
    raise UserError(f'{image}: expected MAKE/MODEL/YEAR/*.jpg, found no such folder')
  return sorted(folders, key=lambda f: (int(f[0]), int(f[1]), f[2]))


def _name_classes(mat, folders):
  """The layout with the classes of these folders; names that several have get their number."""
  make_list, model_list = (
    {i: name for i, name in enumerate(read_names(mat, field), 1) if name}
    for field in ('make_names', 'model_names')
  )
  make_numbers = list(dict.fromkeys(int(make) for make, _, _ in folders))
  make_names = _unique({(m,): make_list.get(m, f'make {m}') for m in make_numbers})
  model_names = {}
  for make, model, _ in folders:
    name, make_name = model_list.get(int(model), f'model {model}'), make_names[int(make),]
    if not name.casefold().startswith(make_name.casefold()):
      name = f'{make_name} {name}'
    model_names[int(make), int(model)] = name
  model_names = _unique(model_names)
  classes = []
  for make, model, year in folders:
    name = model_names[int(make), int(model)]
    classes.append((make_names[int(make),], name, f'{name} {year}'))
  layout = Layout(('make', 'model', 'model_year'), classes)
  unnamed = [str(m) for m in make_numbers if m not in make_list]
  if unnamed:
    layout.notes.append(f'{mat.name} has no name of make {", ".join(unnamed)}')
  unnamed = [m for _, m in model_names if m not in model_list]
  if unnamed:
    layout.notes.append(f'{mat.name} has no name of {len(unnamed)} models, such as {unnamed[0]}')
  return layout


def _unique(names):
  """The names, with the last number of the key added to those that several have."""
  count = Counter(names.values())
  return {key: name if count[name] == 1 else f'{name} ({key[-1]})' for key, name in names.items()}


def _read_box(path):
  """The box in the third row of a label file."""
  rows = read_rows(path, 'viewpoint, 1 or x1 y1 x2 y2')
  cells = rows[2][1][0].split() if len(rows) > 2 else ()
  if len(cells) != 4:
    raise UserError(f'{path}: expected the box, x1 y1 x2 y2, in row 3')
  return corner_box(cells, str(path))
