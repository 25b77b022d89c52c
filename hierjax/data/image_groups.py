"""The images that a caller hands over, in whatever form, as batches that are read ahead.

Nothing here needs jax: a model that runs without it is fed by the same functions.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image as pillow

from hierjax.core import files
from hierjax.core.errors import UserError
from hierjax.data import decoding, transforms, workers
from hierjax.data.decoding import BrokenImage

PATHS = (str, os.PathLike)
ENCODED = (bytes, bytearray, memoryview)
Image = str | os.PathLike | bytes | bytearray | memoryview | np.ndarray | pillow.Image


class Batch(NamedTuple):
  """Images as a model takes them.

  Attributes:
    names: [n] a path, or 'image NUMBER'.
    pixels: uint8 [B, size, size, 3], or [B, views, size, size, 3] of several views; B >= n, and
      zeros stand behind the images and in place of those that cannot be read.
    errors: [n] why an image cannot be read; '' for one that is read.
  """

  names: list[str]
  pixels: np.ndarray
  errors: list[str]


@dataclasses.dataclass(frozen=True)
class View:
  """How an image becomes what a model sees; worker processes can receive it.

  Attributes:
    size, resize, views: see `transforms.views`.
    max_bytes: the most bytes of an encoded image.
    how: how it is decoded.
  """

  size: int
  resize: str | transforms.Resize = 'squash'
  views: int = 1
  max_bytes: int = decoding.MAX_BYTES
  how: decoding.Decoding = decoding.DEFAULT

  def read(self, image: Image, out: np.ndarray) -> None:
    """Read an image into uint8 [size, size, 3], or [views, size, size, 3] of several views.

    Args:
      image: see `batches`.
      out: where it is written.

    Raises:
      BrokenImage, OSError, ValueError: it cannot be read; the text says why.
    """
    if isinstance(image, PATHS):
      image = files.read_bytes(image, self.max_bytes)
    if isinstance(image, ENCODED):
      if len(image) > self.max_bytes:
        text = f'{len(image)} bytes, more than the {self.max_bytes} of data.max_bytes'
        raise BrokenImage(text)
      image = decoding.Part(image, decoding=self.how)
    else:
      image = decoding.to_rgb(image, self.how)
    transforms.view(image, self.size, self.views, self.resize, out)

  def batch(self, pairs: Sequence[tuple[str, Image]], rows: int) -> Batch:
    """Read images.

    Args:
      pairs: (name, image) of each.
      rows: of the batch, B.
    """
    views = () if self.views == 1 else (self.views,)
    pixels = np.zeros((rows, *views, self.size, self.size, 3), np.uint8)
    errors = [''] * len(pairs)
    for i, (_, image) in enumerate(pairs):
      try:
        self.read(image, pixels[i])
      except (OSError, ValueError) as error:
        pixels[i], errors[i] = 0, getattr(error, 'strerror', None) or str(error)
    return Batch([name for name, _ in pairs], pixels, errors)


def batches(
  images: Iterable[Image] | Image,
  view: View,
  sizes: Sequence[int],
  threads: int = 2,
  processes: int = 0,
) -> Iterator[Batch]:
  """Read images ahead, in batches and in their order.

  Threads or processes start once, and hold a few batches, however many images there are.

  Args:
    images: a path, a folder, encoded bytes, a Pillow image or an array as `decoding.to_rgb` takes
      it; or a list or other iterable of such, with or without an end, or an array [N, h, w, C]. An
      array or image must not change before its result is there.
    view: how they are read.
    sizes: images that a batch may have, ascending. All batches have the least in which all images
      find room, or else the last.
    threads: that read.
    processes: that read in place of the threads, where there are several batches; 0 for none.

  Raises:
    UserError: it is no iterable, something in it is no image, a folder has no images, or an
      iterator is at its end.
  """
  pairs = named(images)
  first = list(itertools.islice(pairs, sizes[-1]))
  rows = min(size for size in sizes if size >= len(first))
  if len(first) == 1 < sizes[-1]:
    # a thread costs more than it saves
    yield view.batch(first, rows)
    return
  processes = processes if len(first) == sizes[-1] else 0
  others = iter(lambda: list(itertools.islice(pairs, rows)), [])
  groups = itertools.chain(iter([first] if first else []), others)
  del first  # else it would be held to the end
  tasks = ((group, rows) for group in groups)
  yield from workers.ordered_map(view.batch, tasks, threads, processes)


def named(images: Iterable[Image] | Image) -> Iterator[tuple[str, Image]]:
  """Name images, taking one after the other.

  Args:
    images: see `batches`.

  Yields:
    Its path or 'image NUMBER', and the image. Nothing for an empty list.

  Raises:
    UserError: see `batches`.
  """
  iterator, number = _iterator(images), -1
  for number, item in enumerate(iterator):
    if isinstance(item, PATHS):
      yield os.fspath(item), item
      continue
    if hasattr(item, '__array__') and not isinstance(item, pillow.Image):
      item = np.asarray(item)
    if not isinstance(item, (*ENCODED, np.ndarray, pillow.Image)):
      raise UserError(
        f'predict: image {number} is of type {type(item).__name__}; give paths, encoded bytes, '
        'Pillow images, or arrays such as uint8 [h, w, 3]'
      )
    yield f'image {number}', item
  if number < 0 and iterator is images:
    raise UserError(
      'predict: no image is left in the iterator; a generator can be read only once, and may have '
      'been read before'
    )


def _iterator(images):
  """An iterator over what a caller hands over."""
  if isinstance(images, PATHS) and os.path.isdir(images):
    paths = below(images)
    if not paths:
      raise UserError(f'{images}: no image lies in or below this folder')
    return iter(paths)
  if isinstance(images, (*PATHS, *ENCODED, pillow.Image)):
    return iter([images])
  if hasattr(images, '__array__'):
    images = np.asarray(images)
    is_one = images.ndim != 4 and images.dtype.kind not in 'OUST'
    return iter([images] if is_one else images)
  if not isinstance(images, Iterable):
    kind = type(images).__name__
    raise UserError(f'predict takes an image, or a list or other iterable of images, not {kind}')
  return iter(images)


def below(folder: str | os.PathLike) -> list[str]:
  """List the images in and below a folder, sorted; links to folders are not followed."""
  paths = []
  for top, folders, names in os.walk(folder):
    # a folder that is called like an image will be an error, not passed over
    paths += [os.path.join(top, name) for name in folders + names if decoding.is_image(name)]
  return sorted(paths)
