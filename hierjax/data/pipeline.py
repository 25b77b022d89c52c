"""Batches of examples, read ahead by threads or processes (Grain).

Which example has which place is a pure function of (seed, place), whatever the number of threads,
workers and processes: global batch t holds the places [t B, (t + 1) B) of one stream, process i of
n its i-th part. A run that starts at step t continues exactly; n processes see what one would.

A batch is a dict of
  image: uint8 [B, S, S, 3]; with v > 1 views [B, v, S, S, 3]; float32 [B, d] features.
  labels: int32 [B, L + C], the exclusive levels and behind them the classes of the tag levels.
  index: int32 [B], number of the example, -1 for padding.
  mask: float32 [B], 0 for padding and unreadable images.
  broken: int32 [B], number of an unreadable example that was met here, else -1.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
from absl import flags

from hierjax.core.errors import UserError
from hierjax.data import transforms, workers
from hierjax.data.dataset import Examples
from hierjax.data.decoding import BrokenImage
from hierjax.data.transforms import Augment

FOREVER = 1 << 62  # steps

Batch = dict[str, np.ndarray]


def train_batches(
  examples: Examples,
  *,
  batch_size: int,
  seed: int,
  size: int,
  steps: int | None = None,
  start_step: int = 0,
  augment: Any = None,
  resize: str | transforms.Resize = 'squash',
  balance: int | None = None,
  workers: int = 0,
  threads: int = 2,
  process_index: int = 0,
  process_count: int = 1,
  strict: bool = False,
) -> Iterator[Batch]:
  """Iterate over the training batches of this process; each epoch is a new shuffle.

  An unreadable image is replaced by the next readable one and named in 'broken'.

  Args:
    examples: the training split.
    batch_size: over all processes.
    seed: of the order and of the augmentation.
    steps, start_step: the batches [start_step, steps); None is without end.
    size, augment, resize: see `transforms.train_transform`.
    balance: column of the labels whose classes are drawn equally often, with replacement; an
      unknown label has the mean weight.
    workers: processes that read; with 0 this one does, with `threads`.
    threads: of this process.
    process_index, process_count: which part of each batch is read.
    strict: an unreadable image is a `UserError`.

  Returns:
    An iterator with close().
  """
  make = _TrainBatch(
    examples,
    batch_size,
    _part(batch_size, process_index, process_count),
    size,
    resize,
    _num_features(examples),
    _order(examples, seed, balance),
    seed,
    Augment.from_options(augment),
    strict,
  )
  return _read_ahead(make, start_step, FOREVER if steps is None else steps, workers, threads)


def eval_batches(
  examples: Examples,
  *,
  batch_size: int,
  size: int,
  resize: str | transforms.Resize = 'squash',
  views: int = 1,
  workers: int = 0,
  threads: int = 2,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """Iterate over batches with every example once, in order, the last batch padded.

  Args:
    examples: the split.
    batch_size, size, resize, workers, threads, process_index, process_count: see `train_batches`.
    views: see `transforms.views`.

  Returns:
    An iterator with close(), equally long in each process.
  """
  part = _part(batch_size, process_index, process_count)
  make = _EvalBatch(examples, batch_size, part, size, resize, _num_features(examples), views)
  num_batches = -(-len(examples.labels) // batch_size)  # rounded up
  return _read_ahead(make, 0, num_batches, workers, threads)


def _part(batch_size, process_index, process_count):
  if batch_size % process_count:
    raise UserError(f'batch size {batch_size} must be a multiple of the {process_count} processes')
  size = batch_size // process_count
  return range(process_index * size, (process_index + 1) * size)


def _num_features(examples):
  """Dimension of cached features; None for images."""
  if not len(examples.labels):
    raise UserError(f'split {examples.name!r} is empty')
  for i in range(len(examples.labels)):
    with contextlib.suppress(BrokenImage, OSError):
      first = examples.reader(i)
      return len(first) if isinstance(first, np.ndarray) and first.ndim == 1 else None
  return None


def _order(examples, seed, balance):
  """Grain data set without end: place -> number of an example."""
  import grain  # slow to import

  n = len(examples.labels)
  order = grain.MapDataset.range(n).seed(seed % (1 << 32)).shuffle().repeat()
  if balance is None:
    return order
  labels = examples.labels[:, balance]
  # One draw from each of n equal slices of the weights. A class's examples lie side by side, so
  # that the slices share an epoch evenly among the classes.
  ranked = np.argsort(labels, kind='stable')
  ends = np.cumsum(sample_weights(labels)[ranked])
  return order.random_map(functools.partial(_draw, ranked=ranked, ends=ends))


def class_weights(labels: np.ndarray, classes: int = 0) -> np.ndarray:
  """Weigh classes by inverse frequency, with mean 1 over the labelled examples.

  Args:
    labels: int [N], -1 unknown.
    classes: number of classes, where the last ones have no example.

  Returns:
    float32 [C], 0 for a class without an example.
  """
  counts = np.bincount(labels[labels >= 0], minlength=classes)
  is_present = counts > 0
  weights = counts.sum() / (max(is_present.sum(), 1) * np.maximum(counts, 1))
  return np.where(is_present, weights, 0).astype(np.float32)


def sample_weights(labels: np.ndarray) -> np.ndarray:
  """Give each class, and in it each example, the same probability.

  Args:
    labels: int [N], -1 unknown.

  Returns:
    float64 [N] that sum to 1; label -1 has the mean weight of the others.
  """
  weights = np.ones(len(labels))
  is_labelled = labels >= 0
  weights[is_labelled] = class_weights(labels)[labels[is_labelled]]
  return weights / weights.sum()


def _draw(slot, rng, *, ranked, ends):
  place = (slot + rng.random()) / len(ranked)
  k = np.searchsorted(ends, place, side='right')
  return int(ranked[min(k, len(ranked) - 1)])


@dataclasses.dataclass(frozen=True)
class _Batches:
  """Makes the batch of a step; `part` are this process's places in a batch."""

  examples: Examples
  batch_size: int
  part: range
  size: int
  resize: str | transforms.Resize
  features: int | None

  def _places(self, step):
    return [step * self.batch_size + i for i in self.part]

  def _empty(self, *views):
    """Zeros for the images, or the cached features, of this process's part of a batch."""
    if self.features is not None:
      return np.zeros((len(self.part), self.features), np.float32)
    return np.zeros((len(self.part), *views, self.size, self.size, 3), np.uint8)

  def _read(self, i, out, transform):
    """Transform image i into `out`; an unreadable file is a broken image."""
    try:
      data = self.examples.reader(i)
    except OSError as error:
      raise BrokenImage(error.strerror or str(error)) from error
    if self.features is None:
      transform(data, out)
    else:
      out[:] = data

  def _collate(self, index, images, broken):
    """The batch, with labels by the index, in which -1 is padding."""
    examples, index = self.examples, np.asarray(index, np.int32)
    labels = examples.labels[index]
    if examples.multi is not None:
      labels = np.concatenate([labels, examples.multi[index]], 1)
    return {
      'image': images,
      'labels': np.where(index[:, None] < 0, -1, labels).astype(np.int32),
      'index': index,
      'mask': (index >= 0).astype(np.float32),
      'broken': np.asarray(broken, np.int32),
    }


@dataclasses.dataclass(frozen=True)
class _TrainBatch(_Batches):
  order: Any  # a grain.MapDataset
  seed: int
  augment: Augment
  strict: bool

  def __call__(self, step):
    images, n = self._empty(), len(self.examples.labels)
    index, broken = [], []
    for row, place in enumerate(self._places(step)):
      first = self.order[place]
      i = self._read_next(first, place, images[row])
      index.append(i % n)
      broken.append(-1 if i == first else first)
    return self._collate(index, images, broken)

  def _read_next(self, first, place, out):
    """Read the first readable example from number `first` on; its number may exceed N."""
    examples, n = self.examples, len(self.examples.labels)
    for i in range(first, first + n):
      try:
        self._read(i % n, out, functools.partial(self._view, i=i % n, place=place))
        return i
      except BrokenImage as error:
        if self.strict:
          raise UserError(
            f'{examples.files[i % n]}: unreadable image in split {examples.name!r} ({error}); '
            'without data.strict it is skipped'
          ) from None
    raise UserError(
      f'split {examples.name!r}: none of its {n} images can be read; the first is '
      f'{examples.files[0]}'
    )

  def _view(self, image, out, i, place):
    # the draws belong to the place, whichever example has it
    rng, augment = np.random.Generator(self._stream(place)), self.augment
    if augment.alternate_flip:
      # the first side belongs to the example, whose stream is that of no place
      side = self._stream((1 << 63) + int(i)).random_raw()
      epoch = place // len(self.examples.labels)
      augment = augment._replace(flip=float((side + epoch) % 2))
    region = None if self.examples.regions is None else self.examples.regions[i]
    transforms.train_transform(image, rng, self.size, augment, self.resize, out, region)

  def _stream(self, number):
    return np.random.Philox(key=np.array([self.seed % (1 << 64), number], np.uint64))


@dataclasses.dataclass(frozen=True)
class _EvalBatch(_Batches):
  views: int

  def __call__(self, step):
    n = len(self.examples.labels)
    index = [i if i < n else -1 for i in self._places(step)]
    images = self._empty(*([self.views] if self.views > 1 else []))
    broken = [-1] * len(index)
    for row, i in enumerate(index):
      if i < 0:
        continue
      try:
        self._read(i, images[row], self._view)
      except BrokenImage:
        images[row], broken[row] = 0, i
    batch = self._collate(index, images, broken)
    batch['mask'][batch['broken'] >= 0] = 0
    return batch

  def _view(self, image, out):
    transforms.view(image, self.size, self.views, self.resize, out)


def _read_ahead(make: Callable[[int], Batch], start, stop, processes, threads):
  import grain  # slow to import

  cv2.setNumThreads(1)  # the pipeline has threads of its own
  steps = grain.MapDataset.range(start, max(start, stop)).map(make)
  if processes:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # Grain reads flags of its own
    read = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(processes, per_worker_buffer_size=2)
    return _Workers(iter(read.mp_prefetch(options, worker_init_fn=workers.start)))
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
  batches = iter(steps.to_iter_dataset(options))
  batches.start_prefetch()  # the first batches are read while the step compiles
  return batches


class _Workers:
  """Batches of worker processes, which all start at the first one."""

  def __init__(self, batches):
    self.batches, self.has_started = batches, False

  def __iter__(self):
    return self

  def __next__(self):
    if self.has_started:
      return next(self.batches)
    self.has_started = True
    with workers.signals_blocked():
      return next(self.batches)

  def close(self):
    """End the workers."""
    self.batches.close()
