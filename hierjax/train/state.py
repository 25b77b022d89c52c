"""The state of a training run, and its form in a checkpoint."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
from jax.sharding import Mesh

from hierjax.core import parallel
from hierjax.train import checkpoint


@flax.struct.dataclass
class TrainState:
  """Everything that training changes. All of it is saved and restored.

  Attributes:
    step: int32 [], the number of updates so far.
    params: the model's parameters, float32.
    batch_stats: the running statistics of its batch norms, float32.
    opt_state: the optimiser's state.
    ema: `{'params', 'batch_stats'}` averaged over the steps; `{}` where optim.ema is off.
    plateau: the state of the reduce-on-plateau schedule; `{}` without one.
    balancer: the state of the balancer; `{}` without one.
    monitor: `best`, the best val metric so far; `bad`, the evaluations since then; `evaluated`,
      the step of the last evaluation.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  ema: Any
  plateau: Any
  balancer: Any
  monitor: Any


AUTO_BYTES = 1 << 30  # of optimiser and averaged weights, from which train.shard=auto shares out


def shardings(state: TrainState, mesh: Mesh, shard: str | None) -> TrainState:
  """Return the sharding of each array of a state.

  Sharing out the optimiser's state is stage 1 of ZeRO (arXiv:1910.02054), the parameters too FSDP.
  The heads, and what belongs to their weights, are split over the mesh's class axis in any case.

  Args:
    state: of arrays of any kind.
    mesh: the devices.
    shard: `train.shard`.
  """
  moments = jax.tree.leaves([state.opt_state, state.ema])
  size = sum(x.size * x.dtype.itemsize for x in moments)
  shared_out = {'opt_state', 'ema'}
  if shard is None or (shard == 'auto' and size < AUTO_BYTES):
    shared_out = set()
  elif shard == 'all':
    shared_out |= {'params', 'batch_stats'}

  def place(path, x):
    part, *keys = (getattr(key, 'name', getattr(key, 'key', None)) for key in path)
    over_all = parallel.shared_out(x.shape, mesh)
    if part in shared_out and over_all.spec:
      return over_all
    axes = (parallel.CLASS_AXIS,) if 'heads' in keys else ()
    return parallel.shared_out(x.shape, mesh, axes)

  return jax.tree.map_with_path(place, state)


def variables(state: TrainState) -> dict:
  """Return the variables of the model as it trains."""
  return {'params': state.params, 'batch_stats': state.batch_stats}


def eval_variables(state: TrainState) -> dict:
  """Return the variables to evaluate: the averaged ones where there are any."""
  return dict(state.ema) if state.ema else variables(state)


def to_parts(state: TrainState) -> dict[str, dict]:
  """Split a state into the parts that a checkpoint stores.

  Args:
    state: the state, of arrays or of their shapes.

  Returns:
    `{'model': variables, 'rest': {path: array}}`, and 'ema' where it is on. Prediction reads
    'model' or 'ema' alone.
  """
  parts = {'model': variables(state), 'rest': checkpoint.flatten(_training_only(state))}
  return {**parts, 'ema': state.ema} if state.ema else parts


def from_parts(state: TrainState, parts: Mapping) -> TrainState:
  """Replace the values of a state by those of a checkpoint.

  Args:
    state: a state of the same structure.
    parts: what was stored, in the form of `to_parts(state)`.

  Returns:
    The state with the stored values.
  """
  return state.replace(
    **parts['model'],
    **checkpoint.unflatten(parts['rest'], _training_only(state)),
    ema=parts.get('ema', state.ema),
  )


def _training_only(state: TrainState) -> dict:
  """What evaluation does not need."""
  names = ('step', 'opt_state', 'plateau', 'balancer', 'monitor')
  return {name: getattr(state, name) for name in names}
