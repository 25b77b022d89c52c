"""FGVC-Aircraft (Maji et al. 2013)."""

import pathlib

from hierjax.core.errors import UserError
from hierjax.data.published.layout import Example, Layout, corner_box, find, read_table

LEVELS = ('manufacturer', 'family', 'variant')
MARKS = tuple(
  f'{folder}images_variant_train.txt' for folder in ('data/', '', 'fgvc-aircraft-2013b/data/')
)
BANNER = 20  # rows of pixels with the photographer's name


def read(root: pathlib.Path, crop: bool) -> Layout:
  """Read FGVC-Aircraft.

  Args:
    root: the folder.
    crop: whether the boxes are read too.
  """
  base = find(root, *MARKS).parent
  folder = find(base, 'images').relative_to(root).as_posix()
  corners = ('image', 'xmin', 'ymin', 'xmax', 'ymax')
  boxes = read_table(find(base, 'images_box.txt'), *corners) if crop else {}
  first, rows = {}, []
  for split in ('train', 'val', 'test'):
    files = {level: find(base, f'images_{level}_{split}.txt') for level in LEVELS}
    tables = {level: read_table(file, 'image', level) for level, file in files.items()}
    for image, (where, (variant,)) in tables['variant'].items():
      for level in LEVELS:
        if image not in tables[level]:
          raise UserError(f'{where}: image {image} is not in {files[level].name}')
      path = tuple(tables[level][image][1][0] for level in LEVELS)
      other, place = first.setdefault(variant, (path, where))
      if other != path:
        raise UserError(
          f'{where}: variant {variant!r} is {" / ".join(path[:2])} here and '
          f'{" / ".join(other[:2])} in {place}'
        )
      if crop and image not in boxes:
        raise UserError(f'{base / "images_box.txt"}: has no box of image {image} ({where})')
      box = corner_box(boxes[image][1], boxes[image][0]) if crop else None
      rows.append((f'{folder}/{image}.jpg', path, split, where, box))
  layout = Layout(LEVELS, sorted({path for path, _ in first.values()}), banner=BANNER)
  label = {path: i for i, path in enumerate(layout.classes)}
  for file, path, split, where, box in rows:
    layout.examples.append(Example(file, label[path], split, where, box))
  layout.notes.append(f'the {BANNER} lowest rows of each image, a banner, are cut off')
  return layout
