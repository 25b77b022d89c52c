"""Initialisers of parameters, and the quick initialisation of a model with numpy."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from hierjax.models import compute

Shape = tuple[int, ...]
Number = float | Callable[[Shape], float]
# What a model consists of. Backbones also `perturb` their last maps, for gradients with respect to
# them.
COLLECTIONS = ('params', 'batch_stats')


@dataclasses.dataclass(frozen=True)
class Initializer:
  """A distribution of parameters from which jax and numpy can draw.

  Attributes:
    with_key: (key, shape, dtype) -> array, as Flax's initialisers.
    with_numpy: (numpy generator, shape) -> float32 array. Other numbers than with a key.
  """

  with_key: Callable[[jax.Array, Shape, Any], jax.Array | np.ndarray]
  with_numpy: Callable[[np.random.Generator, Shape], np.ndarray]

  def __call__(self, key: jax.Array, shape: Shape, dtype: Any = jnp.float32):
    return self.with_key(key, shape, dtype)


def _evaluated(number: Number, shape: Shape) -> float:
  return number(shape) if callable(number) else number


def normal(std: Number) -> Initializer:
  """Normal distribution with mean 0.

  Args:
    std: standard deviation, or a function from the parameter's shape to it.
  """

  def with_key(key, shape, dtype):
    return jax.random.normal(key, shape, dtype) * _evaluated(std, shape)

  def with_numpy(generator, shape):
    return generator.standard_normal(shape, np.float32) * np.float32(_evaluated(std, shape))

  return Initializer(with_key, with_numpy)


def uniform(bound: Number) -> Initializer:
  """Uniform distribution on [-bound, bound].

  Args:
    bound: a number, or a function from the parameter's shape to it.
  """

  def with_key(key, shape, dtype):
    limit = _evaluated(bound, shape)
    return jax.random.uniform(key, shape, dtype, -limit, limit)

  def with_numpy(generator, shape):
    numbers = generator.random(shape, np.float32) * 2 - 1
    return numbers * np.float32(_evaluated(bound, shape))

  return Initializer(with_key, with_numpy)


def constant(value: float | np.ndarray) -> Initializer:
  """The same for every draw.

  Args:
    value: one number, or an array along the last axes.
  """

  def with_key(_, shape, dtype):
    return jnp.full(shape, value, dtype)

  def with_numpy(_, shape):
    return np.full(shape, value, np.float32)

  return Initializer(with_key, with_numpy)


zeros, ones = constant(0.0), constant(1.0)
# He et al. 2015, arXiv:1502.01852, equation 10: torch's kaiming_normal_ with mode='fan_in'.
fan_in = normal(lambda shape: math.sqrt(2 / math.prod(shape[:-1])))
# The same with fan_out. A depthwise kernel has one output channel a group, as timm's
# fix_group_fanout counts; ResNets have no such kernels.
fan_out = normal(
  lambda shape: math.sqrt(2 / (shape[0] * shape[1] * (1 if shape[2] == 1 else shape[3])))
)
# torch's kaiming_normal_(mode='fan_out') counts all channels of a depthwise kernel.
torch_fan_out = normal(lambda shape: math.sqrt(2 / (shape[0] * shape[1] * shape[3])))
# Glorot and Bengio 2010, equation 16: torch's xavier_uniform_.
glorot = uniform(lambda shape: math.sqrt(6 / sum(shape)))
# torch's default of the kernel of a linear layer.
torch_linear = uniform(lambda shape: shape[0] ** -0.5)
# Vision transformers' trunc_normal_(std=.02), which cuts at +-2: a hundred deviations away.
small_normal = normal(0.02)


def init(module: nn.Module, seed: int, *args: Any) -> dict:
  """Draw the variables of a module from a seed, as numpy arrays.

  A jitted `module.init` costs 8-10 s of compilation for a ResNet-50. Here the module is traced
  without compiling or running it, and the parameters of `compute.Layer`s are drawn by numpy
  meanwhile, in the order in which they are created. What other modules create is drawn by a jitted
  `module.init` of the same seed.

  Args:
    module: to initialise.
    seed: of all draws.
    *args: what the module is called with; by default one image of 224 x 224 pixels.

  Returns:
    {'params': ..., 'batch_stats': ...}, the latter where the module has such.
  """
  plain = compute.configured(module, kernels='plain')
  args = args or (jnp.zeros((1, 224, 224, 3)),)
  arrays, total = {}, 0

  def trace(key):
    nonlocal total
    variables = _initialized(plain, key, args, np.random.default_rng(seed))
    flat = traverse_util.flatten_dict(variables)
    total = len(flat)
    arrays.update({path: x for path, x in flat.items() if isinstance(x, np.ndarray)})

  def remaining(key):
    flat = traverse_util.flatten_dict(_initialized(plain, key, args, None))
    return {path: x for path, x in flat.items() if path not in arrays}

  key = jax.random.key(seed)
  jax.eval_shape(trace, key)
  if len(arrays) < total:
    arrays.update(jax.device_get(jax.jit(remaining)(key)))
  return traverse_util.unflatten_dict(arrays)


def shapes(module: nn.Module) -> dict:
  """Return the shapes and dtypes of what `init` draws, in a tree of the same structure."""
  plain, args = compute.configured(module, kernels='plain'), (jnp.zeros((1, 224, 224, 3)),)
  return jax.eval_shape(lambda key: _initialized(plain, key, args, None), jax.random.key(0))


def _initialized(module, key, args, generator) -> dict:
  """Initialise as `module.init`; `Layer`s draw with the generator, unless it is None."""

  def call(scope):
    return module.clone(parent=scope)(*args)

  initialize = flax.core.init(call, mutable=COLLECTIONS, flags={'generator': generator})
  return initialize({'params': key, 'dropout': key})[1]
