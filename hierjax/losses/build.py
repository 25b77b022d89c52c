"""The losses that a config chooses: of each block of levels, the terms, and HCAL's aggregation."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from hierjax.core.config import resolve_levels
from hierjax.core.errors import UserError
from hierjax.losses import exclusive, tags
from hierjax.losses.terms import LOSSES, Inputs, Teacher
from hierjax.taxonomy import Block, Mixed, Taxonomy


class LevelLoss(NamedTuple):
  """The loss of one level, per example.

  Attributes:
    values: float32 [B].
    mask: [B], above 0 for the examples whose value counts.
    correct: float32 [B], whether the prediction is right; of tags the share of right answers.
    labelled: [B], above 0 for the examples whose `correct` counts.
  """

  values: jax.Array
  mask: jax.Array
  correct: jax.Array
  labelled: jax.Array


Logits = Mapping[str, jax.Array]
# (logits {level: [B, C]}, the same without HCAL's perturbation, labels [B, width], weights of the
# examples [B] or 1.0) → {level: loss} of the block's levels among the logits
BlockLoss = Callable[[Logits, Logits, jax.Array, jax.Array | float], dict[str, LevelLoss]]
# (logits, features [B, d], labels [B, width], teacher, axis) → values [B], mask [B]
BuiltTerm = Callable[
  [Logits, jax.Array, jax.Array, Teacher, str | None], tuple[jax.Array, jax.Array]
]
# (features [B, d], labels [B, width], axis) → {level: (mean feature of each class [C, d], labels
# [C, width] of such an example, which classes are present [C])}
Aggregate = Callable[
  [jax.Array, jax.Array, str | None], dict[str, tuple[jax.Array, jax.Array, jax.Array]]
]


class Losses(NamedTuple):
  """All losses of a run.

  Attributes:
    blocks: one a block of levels of the taxonomy.
    terms: {name: term} of loss.terms.
    aggregate: HCAL's feature aggregation; None where off.
  """

  blocks: tuple[BlockLoss, ...]
  terms: dict[str, BuiltTerm]
  aggregate: Aggregate | None


def build(
  c: ConfigDict, taxonomy: Taxonomy | Mixed, levels: Sequence[str], train_labels: np.ndarray
) -> Losses:
  """Build the losses that config.loss describes.

  Args:
    c: the config.
    taxonomy: of all levels.
    levels: those that have a head.
    train_labels: int [N, width], rows of labels of the training split.

  Returns:
    The losses.

  Raises:
    UserError: an option does not fit the taxonomy, the levels or another option.
  """
  blocks = tuple(
    BLOCKS[block.kind](c, block, levels, train_labels[:, block.columns])
    for block in taxonomy.blocks
  )
  block = taxonomy.block('exclusive')
  if block is None:
    return Losses(blocks, {}, None)
  heads = [level for level in levels if level in block.levels]
  return Losses(blocks, _terms(c, block, heads), _aggregate(c, block, heads))


def _exclusive_block(
  c: ConfigDict, block: Block, levels: Sequence[str], train_labels: np.ndarray
) -> BlockLoss:
  """The losses of exclusive levels: cross-entropy and its relatives."""
  heads = [level for level in levels if level in block.levels]
  losses = {level: _adjusted(c, block.taxonomy, level, train_labels) for level in heads}

  def loss(logits, clean, labels, weights):
    labels, out = labels[:, block.columns], {}
    for level in heads:
      if level not in logits:
        continue
      y = labels[:, block.taxonomy.index(level)]
      values, mask = losses[level](logits[level], labels, clean[level])
      correct = (jnp.argmax(logits[level], -1) == y).astype(jnp.float32)
      out[level] = LevelLoss(weights * values, mask, correct, y >= 0)
    return out

  return loss


def _adjusted(c: ConfigDict, taxonomy: Taxonomy, level: str, train_labels: np.ndarray) -> Callable:
  """The loss of a level on logits that are adjusted by the prior, where the config asks for it."""
  loss = _exclusive_level(c, taxonomy, level)
  if not c.loss.logit_adjust:
    return loss
  labels = train_labels[:, taxonomy.index(level)]
  log_prior = exclusive.log_prior(labels, taxonomy.num_classes(level))
  shift = jnp.asarray(c.loss.logit_adjust * log_prior)[None]
  return lambda x, y, clean: loss(x + shift, y, clean + shift)


# Losses of the finest head that learn from a label of any level, by their options:
# (logits [B, leaf], labels [B, L], paths [leaf, L], value of the option) → float32 [B].
FROM_ANY_LABEL = {
  'hxe': exclusive.hxe,
  'hace': exclusive.hace,
  'margin': exclusive.soft_max_margin,
  # each of the others learns from any label by itself
  'any_level': lambda x, y, paths, _: exclusive.any_level(x, y, paths),
}


def _exclusive_level(c: ConfigDict, taxonomy: Taxonomy, level: str) -> Callable:
  """(logits [B, C], labels [B, L], unperturbed logits [B, C]) → values [B], mask [B]."""
  k = taxonomy.index(level)
  is_finest = level == taxonomy.levels[-1]
  for name, function in FROM_ANY_LABEL.items():
    if is_finest and c.loss[name]:
      return lambda x, y, _: (function(x, y, taxonomy.paths, c.loss[name]), (y >= 0).any(1))
  if c.loss.positives == 'both':
    return lambda x, y, clean: (exclusive.info_nce(x, y[:, k], clean), y[:, k] >= 0)
  targets = None  # one-hot
  if is_finest and c.loss.smoothing:
    family = resolve_levels(c.loss.siblings, taxonomy.levels, '--config.loss.siblings')
    targets = exclusive.smoothed_targets(taxonomy, c.loss.smoothing, family)
  if is_finest and c.loss.lca:
    targets = exclusive.lca_targets(taxonomy, c.loss.lca)
  return lambda x, y, _: (exclusive.cross_entropy(x, y[:, k], targets), y[:, k] >= 0)


def _tags_block(c: ConfigDict, block: Block, _, train_labels: np.ndarray) -> BlockLoss:
  """Binary cross-entropy or focal loss, through the max constraint where there are several levels.

  An image's loss at a level is the mean over the classes of the level that are known of it.
  """
  limit, table = c.loss.pos_weight, block.taxonomy
  pos_weight = np.ones(train_labels.shape[1], np.float32)
  if limit:
    pos_weight = tags.positive_weights(train_labels, limit)

  def loss(logits, clean, labels, weights):
    y = labels[:, block.columns]
    x = jnp.concatenate([logits[level] for level in block.levels], -1).astype(jnp.float32)
    trained = answer = x
    if len(block.levels) > 1:
      trained = tags.max_constraint(x, table.edges, y)
      answer = tags.max_constraint(x, table.edges)
    is_right, out = (answer >= 0) == (y == 1), {}
    for level, place in table.columns.items():
      z, t = trained[:, place], y[:, place]
      if c.loss.binary == 'focal':
        values = tags.focal(z, t, c.loss.focal_gamma)
      else:
        values = tags.binary_cross_entropy(z, t, jnp.asarray(pos_weight[place]))
      n = (t >= 0).sum(1)
      correct = ((t >= 0) & is_right[:, place]).sum(1) / jnp.maximum(n, 1)
      out[level] = LevelLoss(values, n, correct, n)
    return out

  return loss


BLOCKS = {'exclusive': _exclusive_block, 'tags': _tags_block}


# Terms by which heads learn from each other.
BETWEEN_HEADS = ('distribution_matching', 'joint_distill')


def _terms(c: ConfigDict, block: Block, heads: Sequence[str]) -> dict[str, BuiltTerm]:
  """The terms that loss.terms names, in the order of the registry."""
  names = c.loss.terms
  finest = block.levels[-1]
  for name in names:
    try:
      LOSSES[name]
    except UserError as e:
      raise UserError(f'--config.loss.terms: {e}') from None
    if name in BETWEEN_HEADS and (len(heads) < 2 or heads[-1] != finest):
      raise UserError(
        f'--config.loss.terms={name} matches the heads of coarser levels with that of the finest; '
        f'there is a head for {", ".join(heads)} only'
      )
    if name in BETWEEN_HEADS and c.model.heads in ('marginal', 'path_sum'):
      raise UserError(
        f'--config.loss.terms={name}: with --config.model.heads={c.model.heads} the levels agree '
        'already, as all follow from the finest'
      )

  def bind(function):
    def term(logits, features, labels, teacher, axis):
      logits = {level: logits[level] for level in heads}
      labels = labels[:, block.columns]
      return function(Inputs(logits, features, labels, block.taxonomy, c.loss, teacher, axis))

    return term

  return {name: bind(LOSSES[name]) for name in LOSSES if name in names}


def _aggregate(c: ConfigDict, block: Block, heads: Sequence[str]) -> Aggregate | None:
  """HCAL's aggregation: coarser heads learn from the mean features of their classes."""
  if c.loss.aggregate is None:
    return None
  table = block.taxonomy

  def aggregate(features, labels, axis):
    labels = labels[:, block.columns]
    out = {}
    finer = None
    for level in reversed(heads[:-1]):
      k, n = table.index(level), table.num_classes(level)
      if finer and c.loss.aggregate == 'children' and table.nests(finer, level):
        means, _, is_present = out[finer]
        parents = jnp.asarray(table.parents(finer, level))
        parents = jnp.where(is_present > 0, parents, -1)
        means, present = exclusive.class_means(means, parents, n)
      else:
        means, present = exclusive.class_means(features, labels[:, k], n, axis)
      # rows of labels [C, L] of the means: the class at this level, all others unknown
      is_level = jnp.arange(labels.shape[1])[None] == k
      rows = jnp.where(is_level, jnp.arange(n)[:, None], -1)
      out[level] = (means, rows, present)
      finer = level
    return out

  return aggregate
