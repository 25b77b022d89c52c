"""Linear heads on features: for a form of heads many loss weights at once, along weight decays.

The loss is smooth and close to convex, so plain gradients need only the right scale: in the basis
where features are uncorrelated, the curvature of a class's parameters is about its frequency times
the variance of the feature. Accelerated steps of that scale need some ten passes over the features,
and a few more for each smaller decay, which starts from the solution of the larger one.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from hierjax import losses
from hierjax.core import config
from hierjax.losses.build import BlockLoss
from hierjax.models import classifier
from hierjax.taxonomy import Taxonomy

# x float32 [blocks, R, d] and labels int32 [blocks, R, L]. The last block is filled up with rows
# without labels, which count nowhere.
Rows = tuple[np.ndarray, np.ndarray]
BLOCK_ROWS = 1024  # the logits of a block stay in the processor's cache
# Scale of the curvature at the start; it grows where a step makes the loss larger.
CURVATURE = 8.0
# The axis of the settings in a parameter, by its name: the heads are one product of matrices.
SETTING_AXES = {'kernel': 1, 'bias': 0}


class Basis(NamedTuple):
  """The basis (features - mean [d]) @ rotation [d, d], standardised and uncorrelated.

  `variances` float32 [d] are those of the result.
  """

  mean: np.ndarray
  rotation: np.ndarray
  variances: np.ndarray

  @classmethod
  def of_features(cls, features: np.ndarray) -> 'Basis':
    """Compute the basis of features [N, d]."""
    x = features.astype(np.float64)
    mean, deviation = x.mean(0), x.std(0)
    scale = 1 / np.where(deviation > 1e-6, deviation, np.inf)
    x = (x - mean) * scale
    variances, vectors = np.linalg.eigh(x.T @ x / len(x))
    return cls(mean, scale[:, None] * vectors, np.float32(np.maximum(variances, 0)))

  def transform(self, features: np.ndarray) -> np.ndarray:
    """Turn features [N, d] into the basis, float32."""
    return (features - np.float32(self.mean)) @ np.float32(self.rotation)

  def heads(self, params: Mapping[str, Mapping[str, np.ndarray]]) -> dict:
    """Turn heads {level: {'kernel' [d, C], 'bias' [C]}} in the basis into heads on the features."""
    out = {}
    for level, p in params.items():
      kernel = self.rotation @ np.float64(p['kernel'])
      bias = np.float64(p['bias']) - self.mean @ kernel
      out[level] = {'kernel': np.float32(kernel), 'bias': np.float32(bias)}
    return out


class Form(NamedTuple):
  """A form of linear heads and its losses, as training has them; `levels` have logits."""

  heads: nn.Module
  loss: BlockLoss
  levels: tuple[str, ...]
  taxonomy: Taxonomy

  @classmethod
  def of_config(cls, c: ConfigDict, taxonomy: Taxonomy, labels: np.ndarray) -> 'Form':
    """Build what a config `c` describes, for int labels [N, L] of the exclusive `taxonomy`."""
    levels = config.head_levels(c.model, taxonomy.levels)
    heads = classifier.build(c, taxonomy, levels).heads
    return cls(heads, losses.build.build(c, taxonomy, levels, labels).blocks[0], levels, taxonomy)

  @property
  def is_joined(self) -> bool:
    """Whether the logits of a level depend on the parameters of others."""
    return hasattr(self.heads, 'taxonomy')

  def logits(self, params: Mapping, x: jax.Array) -> dict[str, jax.Array]:
    """Compute {level: logits [B, C]} of x [B, d]."""
    return self.heads.apply({'params': params}, x, False)

  def path_scores(self, logits: Mapping[str, jax.Array]) -> jax.Array:
    """Compute what ranks the leaves, [B, leaf]: of separate heads the sum of log p."""
    levels = self.levels[-1:] if self.is_joined else self.levels
    columns = [self.taxonomy.paths[:, self.taxonomy.index(level)] for level in levels]
    return sum(jax.nn.log_softmax(logits[l])[:, column] for l, column in zip(levels, columns))


def blocked(x: np.ndarray, labels: np.ndarray, count: int) -> Rows:
  """Divide examples x [N, d] with labels [N, L] into blocks, filled up to `count` rows or more."""
  blocks = -(-count // BLOCK_ROWS)
  size = -(-count // blocks)
  pad = ((0, blocks * size - len(x)), (0, 0))
  x, labels = np.pad(x, pad), np.pad(np.int32(labels), pad, constant_values=-1)
  return x.reshape(blocks, size, -1), labels.reshape(blocks, size, labels.shape[1])


class Fit(NamedTuple):
  """The fits of S settings to K decays.

  Attributes:
    params: {level: {'kernel' [d, S, C], 'bias' [S, C]}} at the last decay.
    right: bool [K, S, N, L], whether a held-out example is right at a level; False where its label
      is unknown.
    loss: float32 [K, S], the training loss before the last step, with its decay.
  """

  params: Any
  right: jax.Array
  loss: jax.Array


def fit(
  form: Form,
  weights: np.ndarray,
  decays: Sequence[float],
  variances: np.ndarray,
  train: Rows,
  held_out: Rows,
  steps: tuple[int, int],
) -> Fit:
  """Fit the heads of a form for several settings, from the largest decay to the smallest.

  The loss of a setting is the sum over the levels of its weight times the mean loss of the
  examples with a label there, plus decay / 2 times the squared kernels.

  Args:
    form: the heads, whose logits are linear in their parameters, and losses.
    weights: float32 [S, H], of the levels with logits.
    decays: K of them, descending.
    variances: float32 [d] of the uncorrelated features.
    train: the examples to fit.
    held_out: those to judge.
    steps: at the first decay and at each further one.
  """
  init = functools.partial(form.heads.init, jax.random.key(0), train[0][0], False)
  params, curvature = jax.eval_shape(init)['params'], {}
  for k, level in enumerate(form.levels):
    labels = train[1][..., form.taxonomy.index(level)]
    number = np.bincount(labels[labels >= 0], minlength=form.taxonomy.num_classes(level))
    share = np.maximum(number, 0.5) / max(number.sum(), 1)
    # where levels are joined, the loss of every level reaches the parameters of all
    weight = weights.sum(1) * len(params) if form.is_joined else weights[:, k]
    curvature[level] = np.float32(weight[:, None] * share)
  curvature = {level: curvature[level] for level in params}
  arguments = np.float32(weights), np.float32(decays), variances, curvature, train, held_out
  result = jax.tree.map(np.asarray, _program(form, *steps)(*arguments))
  # [K, blocks, S, R, L] → [K, S, N, L]
  right = np.moveaxis(result.right, 1, 2)
  return result._replace(right=right.reshape(*right.shape[:2], -1, right.shape[-1]))


@functools.lru_cache(maxsize=64)
def _program(form: Form, first: int, further: int):
  """Compile (weights, decays, variances, curvature of biases, rows) → Fit."""

  def run(weights, decays, variances, curvature, train, held_out):
    weights = weights / jnp.maximum(_examples(form, curvature, train), 1)[None]
    gradient = functools.partial(_gradient, form, weights, train)
    bounds = {
      level: {'kernel': variances[:, None, None] * c[None], 'bias': c}
      for level, c in curvature.items()
    }

    def at_decay(state, decay):
      state, loss = _descend(state, decay, gradient, bounds, further)
      return state, (_judge(form, state[0], held_out), loss)

    state = jax.tree.map(jnp.zeros_like, bounds), jnp.full(len(weights), CURVATURE)
    state, _ = _descend(state, decays[0], gradient, bounds, first)
    (params, _), (right, loss) = jax.lax.scan(at_decay, state, decays)
    return Fit(params, right, loss)

  return jax.jit(run)


def _level_losses(form, params, x, labels):
  """The losses of examples at the levels with logits, in their order."""
  logits = form.logits(params, x)
  by_level = form.loss(logits, logits, labels, 1.0)
  return [by_level[level] for level in form.levels]


def _examples(form, curvature, rows):
  """Count the examples with a loss at each level [H]; it may be known from a coarser label."""
  d, of_setting = rows[0].shape[-1], jax.tree.map(lambda c: c[0], curvature)
  params = {level: {'kernel': jnp.zeros((d, len(c))), 'bias': c} for level, c in of_setting.items()}

  def count(block):
    return jnp.stack([(level.mask > 0).sum() for level in _level_losses(form, params, *block)])

  return jax.lax.map(count, rows).sum(0)


def _gradient(form, weights, rows, params):
  """Compute the loss [S] of all settings without its decay, and the gradients."""
  axes = dict.fromkeys(params, SETTING_AXES)

  def loss(params, weights, x, labels):
    levels = _level_losses(form, params, x, labels)
    sums = [jnp.where(level.mask > 0, level.values, 0.0).sum() for level in levels]
    return (weights * jnp.stack(sums)).sum()

  function = jax.vmap(jax.value_and_grad(loss), (axes, 0, None, None), (0, axes))

  def add(total, block):
    return jax.tree.map(jnp.add, total, function(params, weights, *block)), None

  start = jnp.zeros(len(weights)), jax.tree.map(jnp.zeros_like, params)
  return jax.lax.scan(add, start, rows)[0]


def _descend(state, decay, gradient, bounds, steps):
  """Take Nesterov's steps from (parameters, scale of the bounds [S]): (state, loss [S]).

  Where the loss rises, the momentum starts anew (O'Donoghue and Candes, arXiv:1204.3982); where it
  rises almost without momentum, steps become smaller.
  """

  def column(values, parameter):
    return values[:, None] if parameter.ndim == 2 else values[None, :, None]

  def step(carry, _):
    params, before, age, scale, last = carry
    momentum = age / (age + 3)
    ahead = jax.tree.map(lambda p, b: p + column(momentum, p) * (p - b), params, before)
    loss, grads = gradient(ahead)
    loss += decay / 2 * sum((p['kernel'] ** 2).sum((0, 2)) for p in ahead.values())

    def move(p, grad, bound, weight_decay):
      curvature = column(scale, p) * bound + weight_decay + 1e-9
      return p - (grad + weight_decay * p) / curvature

    weight_decays = {level: {'kernel': decay, 'bias': 0.0} for level in params}
    after = jax.tree.map(move, ahead, grads, bounds, weight_decays)
    is_worse = loss > last * (1 + 1e-6)  # by more than rounding
    scale = jnp.where(is_worse & (age < 2), 2 * scale, scale)
    return (after, params, jnp.where(is_worse, 0.0, age + 1), scale, loss), None

  (params, scale), count = state, len(state[1])
  start = params, params, jnp.zeros(count), scale, jnp.full(count, jnp.inf)
  (params, _, _, scale, loss), _ = jax.lax.scan(step, start, length=steps)
  return (params, scale), loss


def _judge(form, params, rows):
  """Say of each example and level whether the decision is right, bool [blocks, S, R, L]."""
  paths = jnp.asarray(form.taxonomy.paths)

  def is_right(params, x, labels):
    decision = paths[form.path_scores(form.logits(params, x)).argmax(1)]
    return (decision == labels) & (labels >= 0)

  function = jax.vmap(is_right, (dict.fromkeys(params, SETTING_AXES), None, None))
  return jax.lax.map(lambda block: function(params, *block), rows)
