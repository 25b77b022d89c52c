"""Batches from examples: which example stands at which place is a pure function of (seed, place), read ahead by threads or processes (Grain).

The order is the same for any number of threads, workers and processes: global batch t holds the places [t B, (t + 1) B) of one stream, process i of n its
i-th part. So a run that starts at step t continues exactly, and n processes see what one would.

A batch: image uint8 [B, S, S, 3] (evaluation with v > 1 views: [B, v, S, S, 3]; cached features: float32 [B, d]), labels int32 [B, L], or
[B, L + M] with multi levels, whose classes' 0 and 1 stand behind (Examples.multi), index int32 [B]
(-1 = padding), mask float32 [B] (0 = padding or unreadable), broken int32 [B] (index of an unreadable example that was met here, else -1).
"""

import functools
import multiprocessing
import os
import signal
import threading
from multiprocessing import resource_tracker

import grain
import numpy as np
from absl import flags

from hierjax.core.errors import UserError
from hierjax.data import transforms
from hierjax.data.sources import Examples
from hierjax.data.transforms import Augment, BrokenImage

FOREVER = 1 << 62  # steps


def train_batches(
  examples: Examples,
  *,
  batch_size,
  seed,
  size,
  steps=None,
  start_step=0,
  augment=None,
  resize='squash',
  balance=None,
  workers=0,
  threads=2,
  process_index=0,
  process_count=1,
  strict=False,
):
  """Iterator over the training batches [start_step, steps) of this process (steps None = without end); it has close().

  batch_size is global. Each epoch is a new shuffle without replacement. balance = the column of labels whose classes are drawn equally often: with
  replacement, by inverse frequency (unknown: the mean weight), one draw from each of N equal slices of the weights, so that every epoch is balanced.
  An unreadable image is replaced by the next readable one and named in 'broken'; strict makes it a UserError.
  """
  part = _part(batch_size, process_index, process_count)
  order = _order(examples, seed, balance)
  make = functools.partial(
    _train_batch,
    order=order,
    examples=examples,
    batch_size=batch_size,
    part=part,
    seed=seed,
    size=size,
    augment=Augment.of(augment),
    resize=resize,
    features=_features(examples),
    strict=strict,
  )
  return _read_ahead(make, start_step, FOREVER if steps is None else steps, workers, threads)


def eval_batches(
  examples: Examples,
  *,
  batch_size,
  size,
  resize='squash',
  views=1,
  workers=0,
  threads=2,
  process_index=0,
  process_count=1,
):
  """Iterator over batches that hold every example once, in order, the last one padded; equally many for each process. It has close()."""
  part = _part(batch_size, process_index, process_count)
  make = functools.partial(
    _eval_batch,
    examples=examples,
    batch_size=batch_size,
    part=part,
    size=size,
    resize=resize,
    views=views,
    features=_features(examples),
  )
  return _read_ahead(make, 0, -(-len(examples.labels) // batch_size), workers, threads)


def _part(batch_size, process_index, process_count):
  if batch_size % process_count:
    raise UserError(f'batch size {batch_size} must be a multiple of the {process_count} processes')
  size = batch_size // process_count
  return slice(process_index * size, (process_index + 1) * size)


def _features(examples):
  """Dimension of cached features; None for images."""
  if not len(examples.labels):
    raise UserError(f'split {examples.name!r} is empty')
  try:
    first = examples.reader(0)
  except (BrokenImage, OSError):
    return None
  return len(first) if isinstance(first, np.ndarray) and first.ndim == 1 else None


# Order


def _order(examples, seed, balance):
  """Grain data set without end: place -> index of an example."""
  n = len(examples.labels)
  order = grain.MapDataset.range(n).seed(seed % (1 << 32)).shuffle().repeat()
  if balance is None:
    return order
  labels = examples.labels[:, balance]
  ranked = np.argsort(
    labels, kind='stable'
  )  # a class's examples lie side by side, so that the slices share an epoch evenly among the classes
  return order.random_map(
    functools.partial(_draw, ranked=ranked, ends=np.cumsum(sample_weights(labels)[ranked]))
  )


def class_weights(labels, classes=0):
  """float32 [C]: inverse frequencies of the classes of int [N], with mean 1 over the known (not -1) labels; 0 for a class without example."""
  counts = np.bincount(labels[labels >= 0], minlength=classes)
  return np.where(
    counts > 0, counts.sum() / (max((counts > 0).sum(), 1) * np.maximum(counts, 1)), 0
  ).astype(np.float32)


def sample_weights(labels):
  """float64 [N] that sum to 1: each class of int [N] equally likely, its examples among themselves; -1 has the mean weight of the known."""
  weights = np.ones(len(labels))
  known = labels >= 0
  weights[known] = class_weights(labels)[labels[known]]
  return weights / weights.sum()


def _draw(slot, rng, *, ranked, ends):
  n = len(ranked)
  return int(ranked[min(np.searchsorted(ends, (slot + rng.random()) / n, side='right'), n - 1)])


# Batches


def _read(examples, i, transform):
  try:
    return transform(examples.reader(i))
  except OSError as error:
    raise BrokenImage(error.strerror or str(error)) from error


def _collate(examples, indices, images, broken):
  """Labels and the rest beside the images; index -1 is padding."""
  indices = np.asarray(indices, np.int32)
  labels = (
    examples.labels
    if examples.multi is None
    else np.concatenate([examples.labels, examples.multi], 1)
  )
  labels = np.where(indices[:, None] < 0, -1, labels[indices]).astype(np.int32)
  broken = np.asarray(broken, np.int32)
  return {
    'image': images,
    'labels': labels,
    'index': indices,
    'mask': (indices >= 0).astype(np.float32),
    'broken': broken,
  }


def _train_batch(
  step, *, order, examples, batch_size, part, seed, size, augment, resize, features, strict
):
  places = range(step * batch_size + part.start, step * batch_size + part.stop)
  n = len(examples.labels)
  images = (
    np.empty((len(places), size, size, 3), np.uint8)
    if features is None
    else np.empty((len(places), features), np.float32)
  )
  indices, broken = [], []
  for row, place in enumerate(places):
    asked = order[place]
    for i in range(asked, asked + n):
      try:
        if features is None:
          rng = np.random.Generator(
            np.random.Philox(key=[seed % (1 << 64), place])
          )  # an example's draws are its place's own
          _read(
            examples,
            i % n,
            lambda image: transforms.train_transform(
              image, rng, size, augment, resize, out=images[row]
            ),
          )
        else:
          images[row] = examples.reader(i % n)
        break
      except BrokenImage as error:
        if strict:
          raise UserError(
            f'{examples.files[i % n]}: unreadable image in split {examples.name!r} ({error}); without data.strict it is skipped'
          ) from None
    else:
      raise UserError(
        f'split {examples.name!r}: none of its {n} images can be read; the first is {examples.files[0]}'
      )
    indices.append(i % n)
    broken.append(-1 if i == asked else asked)
  return _collate(examples, indices, images, broken)


def _eval_batch(step, *, examples, batch_size, part, size, resize, views, features):
  n = len(examples.labels)
  indices = [
    i if i < n else -1 for i in range(step * batch_size + part.start, step * batch_size + part.stop)
  ]
  shape = (len(indices), size, size, 3) if views == 1 else (len(indices), views, size, size, 3)
  images = (
    np.zeros(shape, np.uint8)
    if features is None
    else np.zeros((len(indices), features), np.float32)
  )
  broken = [-1] * len(indices)
  for row, i in enumerate(indices):
    if i < 0:
      continue
    try:
      if features is not None:
        images[row] = examples.reader(i)
      elif views == 1:
        _read(
          examples, i, lambda image: transforms.eval_transform(image, size, resize, out=images[row])
        )
      else:
        _read(
          examples, i, lambda image: transforms.views(image, size, views, resize, out=images[row])
        )
    except BrokenImage:
      images[row], broken[row] = 0, i
  batch = _collate(examples, indices, images, broken)
  batch['mask'][batch['broken'] >= 0] = 0
  return batch


# Reading ahead


def _read_ahead(make, start, stop, workers, threads):
  steps = grain.MapDataset.range(start, max(start, stop)).map(make)
  if workers:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # Grain reads flags of its own, which outside of main.py nobody has parsed
    read = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    return _Workers(
      iter(
        read.mp_prefetch(
          grain.MultiprocessingOptions(workers, per_worker_buffer_size=2), worker_init_fn=_worker
        )
      )
    )
  batches = iter(
    steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
  )
  batches.start_prefetch()  # the first batches are read while the step compiles
  return batches


class _Workers:
  """Batches of worker processes, all of which start at the first one. They inherit that SIGINT and SIGTERM are blocked then, and keep it so: a signal to the
  whole group must not end one before the parent has saved, not even while it starts. The parent meets a signal of that moment right after it."""

  def __init__(self, batches):
    self.batches, self.started = batches, False

  def __iter__(self):
    return self

  def __next__(self):
    if self.started:
      return next(self.batches)
    resource_tracker.ensure_running()  # it unblocks both when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
      return next(self.batches)
    finally:
      self.started = True
      signal.pthread_sigmask(signal.SIG_SETMASK, before)

  def close(self):
    self.batches.close()


def _worker(index, count):
  """Ends with the parent, however its end came."""
  parent = multiprocessing.parent_process()
  threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
