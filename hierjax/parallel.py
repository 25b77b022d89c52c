"""The mesh, and arrays over it: one axis, `data`; parameters replicated, batches split."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hierjax.config import UserError


def mesh() -> Mesh:
  """All devices of all processes on one axis. Auto axes: linen's Dropout does not run under Explicit ones."""
  return jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))


def replicated(m: Mesh) -> NamedSharding:
  return NamedSharding(m, P())


def split(m: Mesh) -> NamedSharding:
  return NamedSharding(m, P('data'))


def check_batch(size: int, m: Mesh, option: str, micro: int = 1) -> None:
  if size % (m.size * micro):
    raise UserError(f'{option}={size} must be a multiple of {m.size} device(s)' + (f' x {micro} micro-batches' if micro > 1 else ''))


def put_batch(batch: dict[str, np.ndarray], m: Mesh) -> dict[str, jax.Array]:
  """This process's rows of a batch → global arrays split over the mesh."""
  return {k: jax.make_array_from_process_local_data(split(m), v) for k, v in batch.items()}


def put_replicated(tree, m: Mesh):
  """The same host values on every process → global replicated arrays. Copies, so that donating them later leaves the caller's values alone."""
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(replicated(m), np.array(x)), tree)


def gather(tree):
  """Global arrays split over processes → the whole, as numpy, on every process."""
  return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True)) if jax.process_count() > 1 else jax.tree.map(np.asarray, tree)


def sync(name: str) -> None:
  """Waits until every process is here; nothing where there is one."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
