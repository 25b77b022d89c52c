"""Features of a frozen backbone, computed once and stored block by block."""

import hashlib
import io
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from hierjax.core import archives, files, parallel
from hierjax.core.errors import UserError
from hierjax.data import sources
from hierjax.evaluate import collect
from hierjax.train import checkpoint
from hierjax.train.setup import Setup

BLOCK = 1024  # examples in a file
VERSION = 1  # of what the files hold
DATA_OPTIONS = ('size', 'resize')
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


def compute(
  run: Setup,
  examples: sources.Examples,
  views: int,
  folder: pathlib.Path,
  progress: Callable[[str], None],
) -> Features:
  """Compute the features of a split, or read those that are stored.

  A file of the folder holds BLOCK examples; its name is a digest of what they depend on: the
  backbone's variables, the options of model and data, the names and content of the image files.

  Args:
    run: the model and its options.
    examples: the split.
    views: of each image, see `data.transforms.views`.
    folder: the store.
    progress: called with a line now and then.

  Raises:
    UserError: no image can be read, or one cannot and data.strict is set.
  """
  folder.mkdir(parents=True, exist_ok=True)
  n, parts, computed, c = len(examples.labels), [], 0, run.c
  backbone = {k: v for k, v in run.variables['params'].items() if k != 'heads'}
  digest = checkpoint.sha256([backbone, run.variables.get('batch_stats', {})])
  options = [c.data[name] for name in DATA_OPTIONS] + [c.model[name] for name in MODEL_OPTIONS]
  step, variables = _stepper(run), parallel.put_replicated(run.variables, run.mesh)
  for start in range(0, n, BLOCK):
    rows = np.arange(start, min(start + BLOCK, n))
    block = sources.subset(examples, rows)
    path = folder / f'{_digest([VERSION, views, *options, digest], block)}.npz'
    try:
      arrays = archives.read(path)
    except (OSError, UserError):
      outputs = collect.collect(
        step, variables, block, c, run.mesh, views, with_features=True, may_be_empty=True
      )
      values = np.stack(np.split(outputs.features, views, 1), 1)
      arrays, archive = {'features': values, 'index': np.asarray(outputs.index)}, io.BytesIO()
      np.savez(archive, **arrays)
      files.write(path, archive.getvalue())
      computed += len(rows)
      progress(f'features of split {examples.name}: {rows[-1] + 1} of {n} images')
    parts.append((arrays['features'], rows[arrays['index']]))
  values, index = (np.concatenate(arrays) for arrays in zip(*parts))
  if not len(index):
    raise UserError(f'split {examples.name!r}: none of its {n} images can be read')
  broken = sorted(examples.files[i] for i in np.setdiff1d(np.arange(n), index))
  return Features(values, index, broken, computed)


def _digest(facts: list, block: sources.Examples) -> str:
  text = repr([facts, list(block.files)])
  digest = hashlib.blake2b(text.encode('utf-8', 'backslashreplace'), digest_size=16)
  for i in range(len(block.labels)):
    try:
      content = block.reader(i)
    except (UserError, OSError, ValueError) as e:
      content = str(e).encode('utf-8', 'backslashreplace')
    # the part of the picture that is shown, where that is not all of it
    part = repr(getattr(content, '__dict__', None)).encode()
    content = content.tobytes() if isinstance(content, np.ndarray) else content
    digest.update(part + len(content).to_bytes(8, 'little') + content)
  return digest.hexdigest()


def _stepper(run: Setup) -> Callable:
  """Compile (variables, images) → ({}, features [B, views * d]), as `collect` calls it."""
  replicated, split = parallel.replicated(run.mesh), parallel.split(run.mesh)

  def step(variables, images):
    x = images if images.ndim == 5 else images[:, None]
    x = rearrange(x, 'b v h w c -> (b v) h w c')
    features = run.task.model.apply(variables, x, method='features').astype(jnp.float32)
    return {}, features.reshape(len(images), -1)

  return jax.jit(step, in_shardings=(replicated, split), out_shardings=(split, split))
