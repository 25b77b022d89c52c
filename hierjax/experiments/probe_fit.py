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


class Rows(NamedTuple):
  """Examples in blocks: x float32 [blocks, R, d] and labels int32 [blocks, R, L].

  Blocks are filled up with rows without labels, which count nowhere.
  """

  x: np.ndarray
  labels: np.ndarray

  @classmethod
  def make(cls, x: np.ndarray, labels: np.ndarray, blocks: int, size: int) -> 'Rows':
    """Divide examples x [N, d] with labels [N, L] into blocks of `size` rows."""
    padding = ((0, blocks * size - len(x)), (0, 0))
    x, labels = np.pad(x, padding), np.pad(np.int32(labels), padding, constant_values=-1)
    return cls(x.reshape(blocks, size, -1), labels.reshape(blocks, size, -1))


class Fit(NamedTuple):
  """The fits of S settings to K decays.

  Attributes:
    params: {level: {'kernel' [d, S, C], 'bias' [S, C]}} at the last decay.
    right: bool [K, S, N, L], whether a held-out example is right at a level; False where its label
      is unknown.
    loss: float32 [K, S], the training loss before the last step, with its decay.
  """

  params: Any
  right: np.ndarray
  loss: np.ndarray


class Program:
  """Fits the heads of a form, compiled once for all fits of some settings to some of the blocks.

  The loss of a setting is the sum over the levels of its weight times the mean loss of the
  examples with a label there, plus decay / 2 times the squared kernels.

  Args:
    form: the heads, whose logits are linear in their parameters, and losses.
    weights: float32 [S, H], for each setting the weights of the levels with logits.
    decays: K of them, descending: each fit starts from that to the decay before.
    variances: float32 [d] of the uncorrelated features.
    rows: the examples.
    num_judged: blocks that are judged by each fit.
    steps: at the first decay and at each further one.
  """

  def __init__(
    self,
    form: Form,
    weights: np.ndarray,
    decays: Sequence[float],
    variances: np.ndarray,
    rows: Rows,
    num_judged: int,
    steps: tuple[int, int],
  ):
    self.form, self._rows, self._decays = form, rows, np.float32(decays)
    self._weights, self._variances = np.float32(weights), variances
    init = functools.partial(form.heads.init, jax.random.key(0), rows.x[0], False)
    self._params = jax.eval_shape(init)['params']
    program = jax.jit(functools.partial(_fit, form, *steps))
    self._compiled = program.lower(*self._arguments([0], [0] * num_judged, 1)).compile()

  def fit(self, trained: Sequence[int], judged: Sequence[int], last: float | None = None) -> Fit:
    """Fit all settings to some blocks, from the largest decay to the smallest or to `last`.

    Args:
      trained: the numbers of the blocks to fit.
      judged: of those to judge, as many as the program is for.
      last: one of the decays.

    Returns:
      The fits; results for decays that were left out are 0.
    """
    count = len(self._decays)
    if last is not None:
      count = 1 + int(np.flatnonzero(self._decays == np.float32(last))[0])
    result = jax.tree.map(np.asarray, self._compiled(*self._arguments(trained, judged, count)))
    # [K, blocks, S, R, L] → [K, S, N, L]
    right = np.moveaxis(result.right, 1, 2)
    return result._replace(right=right.reshape(*right.shape[:2], -1, right.shape[-1]))

  def _arguments(self, trained, judged, num_decays):
    """Return the arguments of `_fit` after the form and the steps."""
    blocks = np.zeros(len(self._rows.x), np.int32)
    blocks[: len(trained)] = trained
    train = _Part(self._rows, blocks, np.int32(len(trained)))
    curvature = self._curvature(self._rows.labels[list(trained)])
    decays = self._decays, np.int32(num_decays)
    return self._weights, *decays, self._variances, curvature, train, np.int32(judged)

  def _curvature(self, labels):
    """Bound the curvature of the biases, {level: float32 [S, C]}, by the classes' frequencies."""
    form, curvature = self.form, {}
    for k, level in enumerate(form.levels):
      of_level = labels[..., form.taxonomy.index(level)]
      number = np.bincount(of_level[of_level >= 0], minlength=form.taxonomy.num_classes(level))
      share = np.maximum(number, 0.5) / max(number.sum(), 1)
      # where levels are joined, the loss of every level reaches the parameters of all
      weight = self._weights[:, k]
      if form.is_joined:
        weight = self._weights.sum(1) * len(self._params)
      curvature[level] = np.float32(weight[:, None] * share)
    return {level: curvature[level] for level in self._params}


class _Part(NamedTuple):
  """The first `count` of the blocks int32 [blocks] of the examples."""

  rows: Rows
  blocks: jax.Array
  count: jax.Array


def _fit(
  form, first, further, weights, decays, num_decays, variances, curvature, train, judged
) -> Fit:
  """Fit the first decays to a part of the examples, and judge other blocks int32 [J] of them."""
  weights = weights / jnp.maximum(_examples(form, curvature, train), 1)[None]
  gradient = functools.partial(_gradient, form, weights, train)
  bounds = {
    level: {'kernel': variances[:, None, None] * c[None], 'bias': c}
    for level, c in curvature.items()
  }

  def more_steps(i, carry):
    # i = 0: the first steps; then those at each decay. One body is half as long to compile as two.
    (params, scale), rights, losses = carry
    k, steps = jnp.maximum(i - 1, 0), jnp.where(i == 0, first, further)
    params, scale, loss = _descend(params, scale, decays[k], gradient, bounds, steps)
    right = _judge(form, params, train.rows, judged)
    return (params, scale), rights.at[k].set(right), losses.at[k].set(loss)

  start = jax.tree.map(jnp.zeros_like, bounds), jnp.full(len(weights), CURVATURE)
  shape = len(decays), len(judged), len(weights), *train.rows.labels.shape[1:]
  empty = jnp.zeros(shape, bool), jnp.zeros((len(decays), len(weights)))
  (params, _), right, loss = jax.lax.fori_loop(0, num_decays + 1, more_steps, (start, *empty))
  return Fit(params, right, loss)


def _sum_over_blocks(function, train):
  """Sum a function of x [R, d] and labels [R, L] over the blocks of a part."""

  def of_block(i):
    block = train.blocks[i]
    return function(train.rows.x[block], train.rows.labels[block])

  def add(i, total):
    return jax.tree.map(jnp.add, total, of_block(i))

  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(of_block, 0))
  return jax.lax.fori_loop(0, train.count, add, zeros)


def _level_losses(form, params, x, labels):
  """The losses of examples at the levels with logits, in their order."""
  logits = form.logits(params, x)
  by_level = form.loss(logits, logits, labels, 1.0)
  return [by_level[level] for level in form.levels]


def _examples(form, curvature, train):
  """Count the examples with a loss at each level [H]; it may be known from a coarser label."""
  d, of_setting = train.rows.x.shape[-1], jax.tree.map(lambda c: c[0], curvature)
  params = {level: {'kernel': jnp.zeros((d, len(c))), 'bias': c} for level, c in of_setting.items()}

  def count(x, labels):
    levels = _level_losses(form, params, x, labels)
    return jnp.stack([(level.mask > 0).sum() for level in levels])

  return _sum_over_blocks(count, train)


def _gradient(form, weights, train, params):
  """Compute the loss [S] of all settings without its decay, and the gradients."""
  axes = dict.fromkeys(params, SETTING_AXES)

  def loss(params, weights, x, labels):
    levels = _level_losses(form, params, x, labels)
    sums = [jnp.where(level.mask > 0, level.values, 0.0).sum() for level in levels]
    return (weights * jnp.stack(sums)).sum()

  function = jax.vmap(jax.value_and_grad(loss), (axes, 0, None, None), (0, axes))
  return _sum_over_blocks(functools.partial(function, params, weights), train)


def _descend(params, scale, decay, gradient, bounds, steps):
  """Take Nesterov's steps: (parameters, scale of the bounds [S], loss [S]).

  Where the loss rises, the momentum starts anew (O'Donoghue and Candes, arXiv:1204.3982); where it
  rises almost without momentum, steps become smaller.
  """

  def column(values, parameter):
    return values[:, None] if parameter.ndim == 2 else values[None, :, None]

  def step(_, carry):
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
    return after, params, jnp.where(is_worse, 0.0, age + 1), scale, loss

  count = len(scale)
  start = params, params, jnp.zeros(count), scale, jnp.full(count, jnp.inf)
  params, _, _, scale, loss = jax.lax.fori_loop(0, steps, step, start)
  return params, scale, loss


def _judge(form, params, rows, judged):
  """Say of each example and level whether the decision is right, bool [J, S, R, L]."""
  paths = jnp.asarray(form.taxonomy.paths)

  def is_right(params, x, labels):
    decision = paths[form.path_scores(form.logits(params, x)).argmax(1)]
    return (decision == labels) & (labels >= 0)

  function = jax.vmap(is_right, (dict.fromkeys(params, SETTING_AXES), None, None))
  return jax.lax.map(lambda i: function(params, rows.x[i], rows.labels[i]), judged)
