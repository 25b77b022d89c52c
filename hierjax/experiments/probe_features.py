"""Features of a frozen backbone, computed once and stored for all runs."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from ml_collections import ConfigDict

from hierjax.core import files, parallel
from hierjax.core.errors import UserError
from hierjax.data import sources
from hierjax.data.decoding import BrokenImage
from hierjax.evaluate import collect
from hierjax.train import checkpoint
from hierjax.train.setup import Setup

BLOCK = 1024  # examples in a file
VERSION = 2  # of what the files hold
DIGEST_BYTES = 16
MAX_BYTES = 20 * 2**30  # of all stores in the user's cache; those that were used last stay
DATA_OPTIONS = ('size', 'resize', 'crop_share', 'interpolation', 'deep_range')
MODEL_OPTIONS = ('backbone', 'stem', 'mean', 'std', 'neck', 'normalize', 'dtype')


class Features(NamedTuple):
  """The features `values` float32 [n, views, d] of the n readable examples of a split.

  `index` int [n] are their numbers, `broken` the names of the unreadable files, and `computed`
  counts the examples that were not in the store.
  """

  values: np.ndarray
  index: np.ndarray
  broken: list[str]
  computed: int

  def examples(self, split: sources.Examples) -> sources.Examples:
    """Return the split with the features of all views [views * d] in place of each image.

    Args:
      split: that the features are of; what is unreadable in it is so in the result.
    """
    rows = np.full(len(split.labels), -1)
    rows[self.index] = np.arange(len(self.index))
    values = self.values.reshape(len(self.values), -1)
    return dataclasses.replace(split, reader=functools.partial(_row, values=values, rows=rows))


def _row(number: int, *, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """Read the features of an example."""
  if rows[number] < 0:
    raise BrokenImage('no features')
  return values[rows[number]]


class Store:
  """Features by the digest of the image that they are of, in memory-mapped files.

  Runs that use it at the same time may compute an image twice. Two files hold a block: NAME.npy
  float32 [n, views, d], in which an unreadable image is NaN, and after it NAME.keys uint8 [n, 16].

  Args:
    folder: of the features of one backbone and preparation of images; a damaged block of it is
      computed again.

  Attributes:
    places: {digest: (block, row)} of the images that there are.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder, self.places = folder, {}
    self._blocks: dict[str, np.ndarray] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob('*.keys')):
      with contextlib.suppress(OSError, ValueError):
        keys = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, DIGEST_BYTES)
        self._map(path.stem, [key.tobytes() for key in keys])

  def _map(self, name: str, keys: Sequence[bytes]) -> None:
    values = np.load(self.folder / f'{name}.npy', mmap_mode='r', allow_pickle=False)
    if values.ndim == 3 and values.dtype == np.float32 and len(values) == len(keys):
      self._blocks[name] = values
      self.places |= {key: (name, row) for row, key in enumerate(keys)}

  def add(self, keys: Sequence[bytes], values: np.ndarray) -> None:
    """Add features float32 [n, views, d] of n images by their digests."""
    content, joined = io.BytesIO(), b''.join(keys)
    np.save(content, np.ascontiguousarray(values, np.float32))
    name = hashlib.blake2b(joined, digest_size=DIGEST_BYTES).hexdigest()
    files.write(self.folder / f'{name}.npy', content.getvalue())
    files.write(self.folder / f'{name}.keys', joined)
    self._map(name, keys)

  def read(self, keys: Sequence[bytes]) -> np.ndarray:
    """Return the features float32 [n, views, d] of images that are in the store."""
    names = np.array([self.places[key][0] for key in keys])
    rows = np.array([self.places[key][1] for key in keys])
    out = np.empty((len(keys), *self._blocks[names[0]].shape[1:]), np.float32)
    for name in np.unique(names):
      out[names == name] = self._blocks[name][rows[names == name]]
    return out


def folder(c: ConfigDict) -> pathlib.Path:
  """Return the folder of the features of all runs: probe.store, or one in the user's cache."""
  return pathlib.Path(c.probe.store or files.cache_folder('features')).expanduser()


def compute(
  run: Setup,
  examples: sources.Examples,
  views: int,
  folder: pathlib.Path,
  progress: Callable[[str], None],
) -> Features:
  """Compute the features of a split, or read those that are stored.

  Features are looked up by what they depend on: the backbone's variables, the options of model and
  data, the content of the image file.

  Args:
    run: the model and its options.
    examples: the split.
    views: of each image, see `data.transforms.views`.
    folder: the store.
    progress: called with a line now and then.

  Raises:
    UserError: no image can be read, or one cannot and data.strict is set.
  """
  n = len(examples.labels)
  c = run.c
  store = Store(folder / _store_name(run, views))
  keys = [_image_digest(examples, i) for i in range(n)]
  # one example of each image that is not in the store
  missing = list({key: i for i, key in enumerate(keys) if key not in store.places}.values())
  step = _stepper(run)
  variables = parallel.put_replicated(run.variables, run.mesh)
  for start in range(0, len(missing), BLOCK):
    rows = np.array(missing[start : start + BLOCK])
    subset = sources.subset(examples, rows)
    outputs = collect.collect(
      step, variables, subset, c, run.mesh, views, with_features=True, may_be_empty=True
    )
    readable = np.stack(np.split(outputs.features, views, 1), 1)  # [readable, views, d]
    values = np.full((len(rows), *readable.shape[1:]), np.nan, np.float32)
    values[np.asarray(outputs.index, int)] = readable
    store.add([keys[i] for i in rows], values)
    progress(f'features of split {examples.name}: {start + len(rows)} of {len(missing)} images')
  values = store.read(keys)
  if folder == files.cache_folder('features'):
    _drop_oldest(store.folder)
  index = np.flatnonzero(~np.isnan(values).all((1, 2)))
  if not len(index):
    raise UserError(f'split {examples.name!r}: none of its {n} images can be read')
  broken = sorted(examples.files[i] for i in np.setdiff1d(np.arange(n), index))
  return Features(values[index], index, broken, len(missing))


def _store_name(run: Setup, views: int) -> str:
  """Name the store by all that features depend on beside the image."""
  backbone = {name: x for name, x in run.variables['params'].items() if name != 'heads'}
  digest = checkpoint.sha256([backbone, run.variables.get('batch_stats', {})])
  options = [run.c.data[name] for name in DATA_OPTIONS]
  options += [run.c.model[name] for name in MODEL_OPTIONS]
  return _digest(repr([VERSION, views, *options, digest]).encode()).hex()


def _drop_oldest(used: pathlib.Path) -> None:
  """Remove the stores that were used longest ago, beyond MAX_BYTES; never the one in use."""
  used.touch()
  total = 0
  folders = filter(pathlib.Path.is_dir, used.parent.iterdir())
  for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
    total += sum(path.stat().st_size for path in folder.iterdir())
    if total > MAX_BYTES and folder != used:
      shutil.rmtree(folder, ignore_errors=True)


def _digest(*parts: bytes) -> bytes:
  digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
  for part in parts:
    digest.update(len(part).to_bytes(8, 'little') + part)
  return digest.digest()


def _image_digest(examples: sources.Examples, number: int) -> bytes:
  """Digest the content of an image file, or why it cannot be read."""
  try:
    content = examples.reader(number)
  except (UserError, OSError, ValueError) as e:
    content = str(e).encode('utf-8', 'backslashreplace')
  # the part of the picture that is shown, where that is not all of it
  part = repr(getattr(content, '__dict__', None)).encode()
  is_array = isinstance(content, np.ndarray)
  return _digest(part, repr(content.shape).encode() if is_array else b'', bytes(content))


def _stepper(run: Setup) -> Callable:
  """Compile (variables, images) → ({}, features [B, views * d]), as `collect` calls it."""

  def step(variables, images):
    x = images if images.ndim == 5 else images[:, None]
    x = rearrange(x, 'b v h w c -> (b v) h w c')
    features = run.task.model.apply(variables, x, method='features').astype(jnp.float32)
    return {}, features.reshape(len(images), -1)

  return collect.compiled(step, run.mesh)
