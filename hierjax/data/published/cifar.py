"""CIFAR-100 (Krizhevsky 2009) as pickles of Python 2, which are read without running them."""

import functools
import math
import mmap
import pathlib

import numpy as np

from hierjax.core import files, pickles
from hierjax.core.errors import UserError, kind_and_text
from hierjax.data.published.layout import Example, Layout, find, number

LEVELS = ('coarse', 'fine')
MARKS = ('cifar-100-python/meta',)
SIDE = 32  # pixels
RECONSTRUCT = ('numpy.core.multiarray._reconstruct', 'numpy._core.multiarray._reconstruct')


class _Array:
  """Takes the place of a NumPy array that a pickle rebuilds; only bytes are allowed."""

  array = np.empty(0, np.uint8)

  def __setstate__(self, state):
    _, shape, dtype, _, raw = state
    is_bytes = isinstance(dtype, _Dtype) and dtype.code in (b'u1', 'u1')
    is_sound = is_bytes and isinstance(raw, bytes) and len(shape) <= 2
    if not is_sound or len(raw) != math.prod(shape):
      raise ValueError('an array of something else than bytes')
    self.array = np.frombuffer(raw, np.uint8).reshape(shape)


class _Dtype:
  def __init__(self, code, *_):
    self.code = code

  def __setstate__(self, state):
    pass


class _Unpickler(pickles.Unpickler):
  names = frozenset((*RECONSTRUCT, 'numpy.ndarray', 'numpy.dtype'))
  purpose = 'images and labels'

  def stand_in(self, name: str):
    """Replace NumPy's names."""
    return {'numpy.dtype': _Dtype, 'numpy.ndarray': None}.get(name, lambda *_: _Array())


def _read_pixels(i, *, pixels, places):
  """Image i, uint8 [32, 32, 3], from the planes of its split, uint8 [N, 3 * 32 * 32]."""
  split, row = places[i]
  return np.ascontiguousarray(pixels[split][row].reshape(3, SIDE, SIDE).transpose(1, 2, 0))


def read(root: pathlib.Path, crop: bool) -> Layout:
  """Read CIFAR-100.

  Args:
    root: the folder.
    crop: whether the boxes are read too.
  """
  base = find(root, *MARKS, 'meta').parent
  names = _unpickle(base / 'meta', *(f'{level}_label_names' for level in LEVELS))
  if not all(isinstance(column, list) for column in names):
    raise UserError(f'{base / "meta"}: expected lists of names')
  names = [list(map(_text, column)) for column in names]
  parents, pixels, rows = {}, {}, []
  for split in ('train', 'test'):
    path = find(base, split)
    pixels[split], labels = _read_split(path)
    for i, pair in enumerate(labels):
      where = f'{path}: image {i}'
      coarse, fine = (
        number(c, where, f'{level}_labels', 0, len(n) - 1)
        for c, level, n in zip(pair, LEVELS, names)
      )
      other = parents.setdefault(fine, coarse)
      if other != coarse:
        first, second = names[0][other], names[0][coarse]
        raise UserError(f'{where}: {names[1][fine]!r} is {second!r} here and {first!r} before')
      rows.append((split, i, fine, where))
  order = sorted(parents)
  label = {fine: i for i, fine in enumerate(order)}
  return Layout(
    LEVELS,
    [(names[0][parents[fine]], names[1][fine]) for fine in order],
    [Example(f'{split}:{i}', label[fine], split, where) for split, i, fine, where in rows],
    reader=functools.partial(_read_pixels, pixels=pixels, places=[row[:2] for row in rows]),
  )


def _text(name):
  return name.decode('utf-8', 'replace') if isinstance(name, bytes) else str(name)


def _read_split(path):
  """Pixels, uint8 [N, 3072], and N pairs of labels."""
  data, *labels = _unpickle(path, 'data', *(f'{level}_labels' for level in LEVELS))
  is_sound = isinstance(data, _Array) and data.array.shape[1:] == (3 * SIDE * SIDE,)
  if not is_sound or any(not isinstance(c, list) or len(c) != len(data.array) for c in labels):
    raise UserError(f'{path}: expected data [N, 3072], N coarse_labels and N fine_labels')
  return data.array, zip(*labels)


def _unpickle(path, *keys):
  """The values of these keys of a dictionary of Python 2."""
  try:
    with files.open_regular(path) as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
      content = _Unpickler(data, path, 'bytes').load()
    content = {k.decode() if isinstance(k, bytes) else k: v for k, v in content.items()}
  except UserError:
    raise
  except OSError as error:
    raise UserError(f'{path}: cannot be read ({error.strerror})') from None
  except Exception as error:  # a damaged pickle raises all kinds
    raise UserError(f'{path}: is damaged or was cut short ({kind_and_text(error)})') from None
  missing = [key for key in keys if key not in content]
  if missing:
    present = ', '.join(map(str, content))[:200]
    raise UserError(f'{path}: expected {", ".join(missing)}, found {present}')
  return [content[key] for key in keys]
