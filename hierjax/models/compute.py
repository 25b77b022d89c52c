"""How modules compute, as a static field that a trunk passes down to its layers."""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hierjax.models import cpu_kernels, onednn, onednn_kernels, plain_kernels

KERNELS = {'plain': plain_kernels, 'cpu': cpu_kernels, 'onednn': onednn_kernels}


@dataclasses.dataclass(frozen=True)
class Compute:
  """How a module computes. Static, so that jit compiles anew for another value.

  Attributes:
    dtype: of activations. Parameters, statistics and softmax are float32 in any case.
    remat: whether blocks are computed again in the backward pass instead of being kept.
    batch_axis: the mesh axis over which a batch is split within `jax.shard_map`, or None. Batch
      norm then has the moments of the whole batch, and random numbers are those of the whole batch.
    kernels: 'plain' (XLA's operations), 'cpu' (`cpu_kernels`), 'onednn' (`onednn_kernels`), or
      'auto', which becomes one of them by the platform of the moment and what is installed.
    lora: rank and scale of the low-rank updates that dense layers have, or None.
    has_frozen_norm: whether batch norms keep their running statistics, in training, too.
  """

  dtype: Any = jnp.float32
  remat: bool = False
  batch_axis: str | None = None
  kernels: str = 'auto'
  lora: tuple[int, float] | None = None
  has_frozen_norm: bool = False

  def __post_init__(self):
    if self.kernels == 'auto':
      object.__setattr__(self, 'kernels', _fastest())
    if self.kernels not in KERNELS:
      raise ValueError(f'kernels must be auto, {", ".join(KERNELS)}, not {self.kernels!r}')

  @property
  def ops(self) -> ModuleType:
    """The module with `conv`, `batch_norm` and the other functions of `plain_kernels`."""
    return KERNELS[self.kernels]

  @property
  def in_float32(self) -> 'Compute':
    """The same with float32 activations."""
    return dataclasses.replace(self, dtype=jnp.float32)


class Layer(nn.Module):
  """A Flax module with a `Compute` and parameters that `initializers.init` can draw with numpy."""

  compute: Compute = dataclasses.field(default_factory=Compute, kw_only=True)

  @nn.nowrap
  def weight(self, name: str, initial: Callable, shape: tuple[int, ...]) -> jax.Array:
    """Return a float32 parameter, creating it where it is missing, as `self.param`."""
    return self.param(name, self._drawer(initial, name), shape)

  @nn.nowrap
  def statistic(self, name: str, initial: Callable, shape: tuple[int, ...]) -> nn.Variable:
    """Return a running statistic, creating it where it is missing, as `self.variable`."""
    return self.variable('batch_stats', name, self._drawer(initial), None, shape)

  @nn.nowrap
  def _drawer(self, initial: Callable, name: str = '') -> Callable:
    if self.scope.has_variable('params', name):
      # Flax asks it for the shape alone, and draws are slow to trace
      return lambda key, shape: np.broadcast_to(np.float32(0), shape)
    generator = self.scope.get_flag('generator', None)
    with_numpy = getattr(initial, 'with_numpy', None)
    if generator is None or with_numpy is None:
      return initial
    return lambda key, shape: with_numpy(generator, shape)

  @nn.nowrap
  def remat(self, block: type[nn.Module]) -> type[nn.Module]:
    """Make a block's results be computed again in the backward pass, where `compute.remat` is set.

    Args:
      block: a module class, called as block(x, train).
    """
    # Initialisation has no backward pass, and numpy's draws would leave it as tracers.
    is_needed = self.compute.remat and not self.is_initializing()
    return nn.remat(block, static_argnums=(2,)) if is_needed else block


def _fastest() -> str:
  """Return the kernels that are the fastest on this machine."""
  if jax.default_backend() != 'cpu':
    return 'plain'
  return 'onednn' if onednn.dtypes() else 'cpu'


def configured(module: nn.Module, **changes: Any) -> nn.Module:
  """Copy a module, and the modules in its fields, with changes to how they compute.

  Args:
    module: unbound; a module without a field `compute`, or one of the names in `changes`, stays as
      it is.
    **changes: fields of `Compute`, as `batch_axis='data'`.
  """
  new = {}
  for field in dataclasses.fields(module):
    value = getattr(module, field.name, None)
    if field.name == 'compute' and isinstance(value, Compute):
      new['compute'] = dataclasses.replace(value, **changes)
    elif field.name in changes:
      new[field.name] = changes[field.name]
    elif isinstance(value, nn.Module) and field.name != 'parent':
      new[field.name] = configured(value, **changes)
  return module.clone(**new)


def compiler_options() -> dict[str, str] | None:
  """Options for compiling a network, so that `Compute.remat` and `ops.stored` have their effect.

  On the CPU, XLA would remove their barriers before it merges equal expressions, which merges what
  is to be computed again with what was computed before, and before it joins loops.
  """
  is_cpu = jax.default_backend() == 'cpu'
  return {'xla_disable_hlo_passes': 'cse_barrier_expander'} if is_cpu else None
