"""Features of a frozen backbone, computed once and stored block by block."""

import hashlib
import io
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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

# Examples in a file.
BLOCK = 1024
# Of the form of the files and of what they hold.
VERSION = 1
# The options of the data that decide what the backbone sees of a file.
DATA_OPTIONS = ('size', 'resize')
MODEL_OPTIONS = ('backbone', 'stem', 'mean', 'std', 'neck', 'normalize', 'dtype')


class Features(NamedTuple):
  """The features of the n readable examples of a split.

  Attributes:
    values: float32 [n, views, d].
    index: int [n], numbers of the examples.
    broken: names of the unreadable files.
    computed: the number of examples that were not in the store.
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
  n, parts, computed = len(examples.labels), [], 0
  facts, step = _facts(run, views), _stepper(run)
  variables = parallel.put_replicated(run.variables, run.mesh)
  for start in range(0, n, BLOCK):
    rows = np.arange(start, min(start + BLOCK, n))
    block = sources.subset(examples, rows)
    path = folder / f'{_digest(facts, block)}.npz'
    arrays = _stored(path)
    if arrays is None:
      outputs = collect.collect(
        step, variables, block, run.c, run.mesh, views, with_features=True, may_be_empty=True
      )
      values = np.stack(np.split(outputs.features, views, 1), 1)
      arrays = {'features': values, 'index': np.asarray(outputs.index)}
      archive = io.BytesIO()
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


def _facts(run: Setup, views: int) -> str:
  """What the features of every block depend on."""
  backbone = {k: v for k, v in run.variables['params'].items() if k != 'heads'}
  stats = run.variables.get('batch_stats', {})
  options = [(name, run.c.data[name]) for name in DATA_OPTIONS]
  options += [(name, run.c.model[name]) for name in MODEL_OPTIONS]
  return repr((VERSION, views, options, checkpoint.sha256([backbone, stats])))


def _digest(facts: str, block: sources.Examples) -> str:
  digest = hashlib.blake2b(f'{facts} {list(block.files)}'.encode('utf-8', 'backslashreplace'))
  for i in range(len(block.labels)):
    try:
      content = block.reader(i)
    except (UserError, OSError, ValueError) as e:
      content = str(e).encode('utf-8', 'backslashreplace')
    content = content.tobytes() if isinstance(content, np.ndarray) else content
    digest.update(len(content).to_bytes(8, 'little') + content)
  return digest.hexdigest()[:32]


def _stored(path: pathlib.Path) -> Mapping[str, np.ndarray] | None:
  """The arrays of a file of the store; None where it is missing or damaged."""
  try:
    arrays = archives.read(path)
  except (OSError, UserError):
    return None
  return arrays if {*arrays} == {'features', 'index'} else None


def _stepper(run: Setup) -> Callable:
  """Compile (variables, images) → ({}, features [B, views * d]), as `collect` calls it."""
  replicated, split = parallel.replicated(run.mesh), parallel.split(run.mesh)

  def step(variables: Any, images: jax.Array):
    views = images.shape[1] if images.ndim == 5 else 1
    x = rearrange(images, 'b v h w c -> (b v) h w c') if images.ndim == 5 else images
    features = run.task.model.apply(variables, x, method='features').astype(jnp.float32)
    return {}, rearrange(features, '(b v) d -> b (v d)', v=views)

  return jax.jit(step, in_shardings=(replicated, split), out_shardings=(split, split))
