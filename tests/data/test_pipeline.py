"""The order is a pure function of (seed, place): epochs, resume, shards, workers, balancing."""

import dataclasses
import functools
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from PIL import Image

from hierjax.core.errors import UserError
from hierjax.data import image_files, pipeline, sources, transforms
from hierjax.data.transforms import Augment

N = 23


def read(i, bad=(), absent=()):
  """A picture whose colour is its index; module-level, so that workers can have it."""
  if i in absent:
    raise FileNotFoundError(2, 'No such file', 'x.png')
  if i in bad:
    return b'no picture'
  return np.full((12, 16, 3), 10 * i % 256, np.uint8)


def examples(n=N, labels=None, **broken):
  labels = np.arange(n) % 3 if labels is None else labels
  return sources.Examples(
    'train',
    [f'{i}.png' for i in range(n)],
    np.stack([labels * 0, labels], 1).astype(np.int32),
    functools.partial(read, **broken),
  )


def train(data=None, *, steps=None, **options):
  options = {'batch_size': 8, 'seed': 3, 'size': 8, 'threads': 0, **options}
  return pipeline.train_batches(data or examples(), steps=steps, **options)


def indices(batches):
  return np.concatenate([b['index'] for b in batches])


def same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b):
    assert x.keys() == y.keys()
    for k in x:
      np.testing.assert_array_equal(x[k], y[k])


def test_a_batch():
  batch = next(train())
  assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
    'image': ((8, 8, 8, 3), 'uint8'),
    'labels': ((8, 2), 'int32'),
    'index': ((8,), 'int32'),
    'mask': ((8,), 'float32'),
    'broken': ((8,), 'int32'),
  }
  np.testing.assert_array_equal(batch['labels'][:, 1], batch['index'] % 3)
  assert (batch['mask'] == 1).all() and (batch['broken'] == -1).all()
  steady = next(train(augment=Augment(enabled=False)))
  np.testing.assert_array_equal(steady['image'][:, 0, 0, 0], 10 * steady['index'].astype(np.uint8))


def test_every_epoch_shuffles_all_examples_anew():
  order = indices(train(steps=4 * N // 4, batch_size=4)).reshape(4, N)
  np.testing.assert_array_equal(np.sort(order, 1), np.tile(np.arange(N), (4, 1)))
  assert len({tuple(o) for o in order}) == 4 and all((o != np.arange(N)).any() for o in order)
  assert (indices(train(steps=2, seed=4)) != indices(train(steps=2, seed=3))).any()
  assert len(indices(train(steps=3, batch_size=64))) == 192  # a batch may be larger than the data


def test_the_same_example_looks_different_each_time():
  noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
  data = sources.Examples(
    'train', ['a'], np.zeros((1, 1), np.int32), functools.partial(dict.__getitem__, {0: noise})
  )
  images = next(train(data, batch_size=16))['image']
  assert len({x.tobytes() for x in images}) == 16
  np.testing.assert_array_equal(images, next(train(data, batch_size=16))['image'])


def test_resume_is_exact():
  full = list(train(steps=9))
  for start in (0, 1, 5, 9):
    same(list(train(steps=9, start_step=start)), full[start:])
  assert list(train(steps=3, start_step=7)) == []


@pytest.mark.parametrize('balance', [None, 1])
def test_processes_share_each_global_batch(balance):
  full = list(train(steps=5, balance=balance))
  parts = [
    list(train(steps=5, balance=balance, process_index=i, process_count=4)) for i in range(4)
  ]
  same([{k: np.concatenate([p[k] for p in step]) for k in step[0]} for step in zip(*parts)], full)
  with pytest.raises(UserError, match='batch size 9 must be a multiple of the 2 processes'):
    train(batch_size=9, process_count=2)


@pytest.mark.parametrize('threads', [1, 4])
def test_threads_change_nothing(threads):
  batches = train(steps=12, threads=threads, balance=1)
  same(list(batches), list(train(steps=12, balance=1)))


def test_workers_change_nothing_and_their_errors_arrive():
  guided = Augment(guided_crop=0.5, guided_mask=0.5)
  regions = np.tile(np.float32([0.1, 0.1, 0.6, 0.6, 0.3, 0.3, 0.5, 0.5]), (N, 1)).reshape(N, 2, 4)
  data = dataclasses.replace(examples(), regions=regions)
  workers = train(data, steps=6, start_step=1, workers=2, augment=guided)
  same(list(workers), list(train(data, steps=6, augment=guided))[1:])
  full = list(train(steps=6))
  last = int(
    set(full[1]['index'].tolist()).difference(full[0]['index'].tolist()).pop()
  )  # met in the second batch first
  batches = train(examples(bad=(last,)), steps=6, workers=1, strict=True)
  same([next(batches)], full[:1])
  with pytest.raises(UserError, match=f'^{last}.png: unreadable image'):
    next(batches)


def test_close_leaves_no_thread_and_no_process():
  import multiprocessing

  before = threading.active_count()
  batches = train(threads=3)
  next(batches)
  batches.close()
  deadline = time.time() + 5
  while threading.active_count() > before and time.time() < deadline:
    time.sleep(0.02)
  assert threading.active_count() <= before and not multiprocessing.active_children()


@pytest.mark.parametrize('stop', ['terminate the group', 'kill the parent'])
def test_workers_end_with_their_parent(stop, tmp_path):
  """A signal to all leaves workers to the parent; they end with it, even if it is killed."""
  code = f"""
    import os, signal, sys, time, multiprocessing
    import numpy as np
    from hierjax.data import pipeline, sources, toy
    if __name__ == '__main__':
      table = toy.table(train=40, val=1)
      data = sources.subset(table, range(40), 'train')
      batches = pipeline.train_batches(data, batch_size=4, seed=0, size=16, workers=1)
      next(batches)
      if {stop == 'terminate the group'}:
        signal.signal(signal.SIGTERM, lambda *_: None)
        os.killpg(0, signal.SIGTERM)
        time.sleep(.3)
        for _ in range(9): next(batches)
      print(multiprocessing.active_children()[0].pid, flush=True)
      if {stop == 'kill the parent'}: os.kill(os.getpid(), signal.SIGKILL)
  """
  script = tmp_path / 'script.py'
  script.write_text(textwrap.dedent(code))
  env = {**os.environ, 'PYTHONPATH': str(pathlib.Path(__file__).resolve().parents[2])}
  process = subprocess.run(
    [sys.executable, script],
    env=env,
    capture_output=True,
    text=True,
    timeout=60,
    start_new_session=True,
  )
  assert process.returncode == (-signal.SIGKILL if stop == 'kill the parent' else 0), process.stderr
  pid, deadline = int(process.stdout), time.time() + 10
  while alive(pid) and time.time() < deadline:
    time.sleep(0.05)
  assert not alive(pid)


def alive(pid):
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
  except FileNotFoundError:
    return False


# Alternating flip

ALTERNATE = Augment(
  crop=(1.0, 1.0),
  ratio=(1.0, 1.0),
  rotate=0.0,
  brightness=0.0,
  contrast=0.0,
  saturation=0.0,
  alternate_flip=True,
)


def ramp(i, bad=()):
  """A picture that is darker on one side, and says its number in another channel."""
  if i in bad:
    return b'no picture'
  image = np.full((8, 8, 3), i, np.uint8)
  image[..., 0] = np.arange(8) * 9
  return image


def sides(epochs, seed, data, **options):
  """bool [epochs, N]: whether each picture is mirrored, read in batches that cross epochs."""
  n = len(data.labels)
  batches = list(train(data, steps=-(-epochs * n // 8), seed=seed, augment=ALTERNATE, **options))
  index = indices(batches)[: epochs * n].reshape(epochs, n)
  images = np.concatenate([b['image'] for b in batches])[: epochs * n]
  np.testing.assert_array_equal(images[:, 0, 0, 1], index.ravel())
  mirrored = (images[:, 0, 0, 0] > images[:, 0, -1, 0]).reshape(epochs, n)
  return np.take_along_axis(mirrored, np.argsort(index, 1), 1)


def test_alternating_flip_shows_each_side_once_in_two_epochs():
  data = sources.Examples('train', ['x'] * 99, np.zeros((99, 1), np.int32), ramp)
  first = sides(4, 3, data)
  assert (first[0] ^ first[1]).all()
  np.testing.assert_array_equal(first[2:], first[:2])
  assert 25 < first[0].sum() < 74  # the first side is a fair coin's
  assert (first[0] != sides(1, 4, data)[0]).any()
  np.testing.assert_array_equal(sides(4, 3, data, threads=3), first)
  # a later start sees what the run saw
  options = {'augment': ALTERNATE, 'steps': 40}
  same(list(train(data, start_step=20, **options)), list(train(data, **options))[20:])


def test_alternating_flip_leaves_the_other_draws_alone():
  """A picture is what a run without it shows, on one side or on the other."""
  data = sources.Examples('train', ['x'] * 9, np.zeros((9, 1), np.int32), ramp)
  options = {'rotate': 20.0, 'brightness': 0.3, 'crop': (0.5, 1.0)}
  views = [
    next(train(data, augment=ALTERNATE._replace(**options, **change)))['image']
    for change in ({}, {'alternate_flip': False, 'flip': 0.0}, {'alternate_flip': False, 'flip': 1})
  ]
  equals = [[(a == b).all() for a, b in zip(views[0], other)] for other in views[1:]]
  assert (np.sum(equals, 0) == 1).all() and np.sum(equals, 1).min() > 0


# Balancing


def test_balanced_draws_follow_the_inverse_frequency():
  rng = np.random.default_rng(0)
  labels = rng.choice([-1, 0, 1, 2], 400, p=[0.1, 0.6, 0.25, 0.05])
  data, epochs = examples(400, labels), 25
  draws = indices(train(data, steps=4 * epochs, batch_size=100, balance=1))
  counts = np.bincount(draws, minlength=400)
  unknown = labels < 0
  weights = pipeline.sample_weights(labels)
  is_known = [weights[labels == c].sum() for c in range(3)]
  np.testing.assert_allclose(is_known, is_known[0])  # each class as likely as another
  np.testing.assert_allclose(weights[unknown], weights[~unknown].mean())
  np.testing.assert_allclose(weights.sum(), 1)
  expected = weights * 400 * epochs
  assert (np.abs(counts - expected) < 6 * np.sqrt(expected) + 1).all()
  for epoch in draws.reshape(epochs, 400):
    for c in range(-1, 3):
      assert abs((labels[epoch] == c).sum() - 400 * weights[labels == c].sum()) < 2
  assert len({tuple(d) for d in draws.reshape(epochs, 400)}) == epochs


def test_balancing_without_any_known_label():
  np.testing.assert_allclose(pipeline.sample_weights(np.full(5, -1)), 0.2)


# Broken images


def test_training_replaces_a_broken_image_by_the_next_readable_one():
  data = examples(bad=(4, 5), absent=(22,))
  plain, mended = list(train(steps=6)), list(train(data, steps=6))
  replaced = {4: 6, 5: 6, 22: 0}
  for a, b in zip(plain, mended):
    np.testing.assert_array_equal(b['index'], [replaced.get(i, i) for i in a['index'].tolist()])
    np.testing.assert_array_equal(
      b['broken'], [i if i in replaced else -1 for i in a['index'].tolist()]
    )
    np.testing.assert_array_equal(b['labels'][:, 1], b['index'] % 3)
    assert (b['mask'] == 1).all()
    full = ~np.isin(a['index'], list(replaced))
    np.testing.assert_array_equal(a['image'][full], b['image'][full])


@pytest.mark.parametrize('broken', [{'bad': (4,)}, {'absent': (4,)}])
@pytest.mark.parametrize('threads', [0, 2])
def test_strict_names_the_file(broken, threads):
  with pytest.raises(UserError, match=r"^4.png: unreadable image in split 'train' \(.+\)"):
    for _ in train(examples(**broken), strict=True, steps=8, threads=threads):
      pass


def test_no_readable_image_is_an_error():
  with pytest.raises(UserError, match='none of its 3 images can be read'):
    next(train(examples(3, bad=(0, 1, 2))))
  with pytest.raises(UserError, match="split 'train' is empty"):
    train(examples(0))


# Evaluation


def evaluated(data=None, **options):
  return list(
    pipeline.eval_batches(
      data or examples(), **{'batch_size': 8, 'size': 8, 'threads': 0, **options}
    )
  )


@pytest.mark.parametrize(('n', 'count'), [(N, 1), (N, 4), (24, 2), (3, 4), (8, 8)])
def test_evaluation_has_every_example_once(n, count):
  parts = [evaluated(examples(n), process_index=i, process_count=count) for i in range(count)]
  assert {len(p) for p in parts} == {-(-n // 8)}
  full = {
    k: np.concatenate([np.concatenate([p[k] for p in step]) for step in zip(*parts)])
    for k in parts[0][0]
  }
  np.testing.assert_array_equal(full['index'], [*range(n), *[-1] * (-n % 8)])
  np.testing.assert_array_equal(full['mask'], full['index'] >= 0)
  np.testing.assert_array_equal(full['labels'][n:], -1)
  np.testing.assert_array_equal(full['image'][:n, 0, 0, 0], (10 * np.arange(n)).astype(np.uint8))
  assert not full['image'][n:].any() and (full['broken'] == -1).all()


def test_evaluation_masks_and_names_the_broken():
  full = evaluated(examples(bad=(0, 9), absent=(22,)), threads=2)
  np.testing.assert_array_equal(
    np.concatenate([b['broken'] for b in full]), [i if i in (0, 9, 22) else -1 for i in range(24)]
  )
  np.testing.assert_array_equal(
    np.concatenate([b['mask'] for b in full]), [i not in (0, 9, 22, 23) for i in range(24)]
  )
  assert not np.concatenate([b['image'] for b in full])[[0, 9, 22, 23]].any()


def test_evaluation_in_views():
  batches = evaluated(views=3)
  assert batches[0]['image'].shape == (8, 3, 8, 8, 3)
  np.testing.assert_array_equal(batches[0]['image'][2], transforms.views(read(2), 8, 3))
  assert evaluated(views=1)[0]['image'].shape == (8, 8, 8, 3)


# Cached features


def test_features_pass_through_untouched():
  features = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
  data = sources.with_features(examples(), features, np.arange(N))
  batch = next(train(data))
  assert batch['image'].dtype == np.float32
  np.testing.assert_array_equal(batch['image'], features[batch['index']])
  full = evaluated(data, process_index=1, process_count=2)
  assert full[-1]['image'].shape == (4, 5)
  np.testing.assert_array_equal(full[0]['image'], features[4:8])


def test_files_of_pictures(tmp_path):
  for i in range(3):
    Image.fromarray(read(i)).save(tmp_path / f'{i}.png')
  files = [f'{i}.png' for i in range(4)]  # the last one is missing
  reader = image_files.FileReader(str(tmp_path), files)
  data = sources.Examples('val', files, np.zeros((4, 1), np.int32), reader)
  (batch,) = evaluated(data)
  np.testing.assert_array_equal(batch['image'][:3, 0, 0, 0], [0, 10, 20])
  assert batch['broken'].tolist() == [-1, -1, -1, 3, -1, -1, -1, -1]
