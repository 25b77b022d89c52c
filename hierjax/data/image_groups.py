"""The images that a caller hands over, in whatever form, some at a time."""

import itertools
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from hierjax.core.errors import UserError
from hierjax.data import image_files

Image = str | pathlib.Path | bytes | np.ndarray
ENCODED = (str, pathlib.Path, bytes)


class Reader:
  """Reads images from a list of paths, encoded bytes or arrays; worker processes can receive it."""

  def __init__(self, items: Sequence[Image]):
    self.items = items

  def __call__(self, i: int) -> bytes | np.ndarray:
    """Return image i as encoded bytes or an array."""
    item = self.items[i]
    return image_files.read_file(item) if isinstance(item, str | pathlib.Path) else item


def split(images: Iterable[Image] | Image, size: int) -> Iterator[tuple[list[str], list[Image]]]:
  """Split images into groups of at most `size`, in their order, taking no more than a group ahead.

  Args:
    images: an iterable, such as a list, an array [N, h, w, 3] or a generator, or a single image.
    size: of a group.

  Yields:
    The names of a group's images, paths or 'image NUMBER', and these. Nothing for an empty list.

  Raises:
    UserError: it is no iterable, something in it is no image, or an iterator is at its end.
  """
  is_one = isinstance(images, np.ndarray) and images.ndim not in (1, 4)
  if is_one or isinstance(images, ENCODED):
    images = [images]
  if not isinstance(images, Iterable):
    kind = type(images).__name__
    raise UserError(f'predict takes an image, or a list or other iterable of images, not {kind}')
  iterator, count = iter(images), 0
  while items := list(itertools.islice(iterator, size)):
    names = []
    for i, item in enumerate(items, count):
      if not isinstance(item, (*ENCODED, np.ndarray)):
        raise UserError(
          f'predict: image {i} is of type {type(item).__name__}; give paths, encoded bytes, or '
          'uint8 arrays [h, w, 3]'
        )
      names.append(str(item) if isinstance(item, str | pathlib.Path) else f'image {i}')
    yield names, items
    count += len(items)
  if not count and iterator is images:
    raise UserError(
      'predict: no image is left in the iterator; a generator can be read only once, and may have '
      'been read before'
    )
