"""Optimisation: schedules, parameter groups, and the curriculum's phases.

The learning rate is applied outside the transformation, `params - lr(step) * update`, so that one schedule over the global step serves every group
whatever phase it was frozen in, and reduce-on-plateau is one factor on it.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from hierjax.core import config as config_lib
from hierjax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Phase:
  """Steps [start, end) of the curriculum: the parameter groups without update, and the levels whose loss counts."""

  start: int
  end: int
  freeze: tuple[
    str, ...
  ] = ()  # of 'backbone', 'heads/LEVEL', and 'heads/shared' where levels share parts of their heads
  levels: tuple[str, ...] = ()

  @property
  def trains_backbone(self) -> bool:
    return 'backbone' not in self.freeze

  def describe(self) -> str:
    return f'steps {self.start}-{self.end}: loss of {", ".join(self.levels)}' + (
      f'; frozen: {", ".join(self.freeze)}' if self.freeze else ''
    )


def phases(
  c: ConfigDict, heads: Sequence[str], examples: int, total_steps: int, groups: Sequence[str] = ()
) -> list[Phase]:
  """The curriculum as a list that covers [0, total_steps). Paper S0's: the finest head frozen and its loss off for 5 epochs.

  `heads` are the levels that have one, `groups` the model's parameter groups where there are others beside those of levels and the backbone.
  """
  out, start = [], 0
  words = {
    f'heads/{word}': [f'heads/{l}' for l in named]
    for word, named in config_lib.level_words(heads).items()
  }
  known = list(dict.fromkeys(['backbone', *(f'heads/{l}' for l in heads), *groups]))
  for i, node in enumerate(c.curriculum):
    option = f'--config.curriculum[{i}]'
    if start >= total_steps:
      continue
    if node.share is None:
      n = config_lib.steps(node, '', examples, c.train.batch_size, option)
    else:
      n = max(1, round(node.share * total_steps))
    freeze = []
    for g in node.freeze:
      if g not in known and g not in words:
        raise UserError(
          f'{option}.freeze: no parameter group {g!r}{config_lib.did_you_mean(g, known)}; choices: {", ".join(known)}'
        )
      freeze += [g] if g in known else words[g]
    levels = config_lib.resolve_levels(node.levels, heads, f'{option}.levels')
    if not levels:
      raise UserError(
        f'{option}.levels: names no level that has a head; choices: {", ".join(heads)}'
      )
    if {*known} - {f'heads/{l}' for l in heads if l not in levels} <= {*freeze}:
      raise UserError(
        f'{option}: nothing would train (backbone and every head with a loss are frozen)'
      )
    end = min(total_steps, start + n)
    out.append(Phase(start, end, tuple(freeze), levels))
    start = end
  if start < total_steps:
    out.append(Phase(start, total_steps, (), tuple(heads)))
  return out


def schedule(c: ConfigDict, total_steps: int, examples: int) -> optax.Schedule:
  """step → learning rate. Warm-up is linear from 0 and counts within total_steps."""
  o = c.optim
  warmup = (
    config_lib.steps(o, 'warmup_', examples, c.train.batch_size, '--config.optim.warmup_*') or 0
  )
  if o.schedule == 'onecycle':
    if warmup:
      raise UserError(
        '--config.optim.warmup_*: schedule=onecycle rises by itself; set the share of its rise with --config.optim.onecycle_rise'
      )
    # optax divides by zero where the rise or the fall is less than a step long
    rise = min(max(o.onecycle_rise, 1 / max(total_steps, 2)), 1 - 1 / max(total_steps, 2))
    return optax.cosine_onecycle_schedule(max(total_steps, 2), o.lr, rise, 25.0, 1e4)
  if warmup >= total_steps:
    raise UserError(
      f'--config.optim.warmup_*: {warmup} steps of warm-up leave nothing of {total_steps} steps'
    )
  base = (
    optax.cosine_decay_schedule(o.lr, total_steps - warmup)
    if o.schedule == 'cosine'
    else optax.constant_schedule(o.lr)
  )
  return (
    optax.join_schedules([optax.linear_schedule(0.0, o.lr, warmup), base], [warmup])
    if warmup
    else base
  )


def group_of(path: Sequence[str]) -> str:
  """The parameter group of a path: 'backbone' (with the neck), 'heads/LEVEL' or 'heads/shared'."""
  return '/'.join(path[:2]) if path[0] == 'heads' else 'backbone'


def shared(path: Sequence[str]) -> bool:
  """Whether the parameter at a path serves several levels."""
  return group_of(path) in ('backbone', 'heads/shared')


def groups(params: Mapping) -> list[str]:
  """The parameter groups that there are."""
  return sorted({group_of(path) for path in traverse_util.flatten_dict(params)})


def labels(params: Mapping, rules: Sequence[tuple[str, float, float]]) -> Mapping:
  """A tree like params whose leaves are 'GROUP#RULE'; the first rule that matches the whole path wins, and each path must match one."""
  out = {}
  for path in traverse_util.flatten_dict(params):
    name = '/'.join(path)
    rule = next((i for i, r in enumerate(rules) if re.fullmatch(r[0], name)), None)
    if rule is None:
      raise UserError(
        f"--config.optim.rules: no rule matches the parameter {name!r}; end the list with ('.*', 1., 1.)"
      )
    out[path] = f'{group_of(path)}#{rule}'
  return traverse_util.unflatten_dict(out)


def hold(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """The frozen form of tx: same state, untouched, and no update; so that opt_state has one structure in all phases."""
  return optax.GradientTransformation(
    tx.init, lambda updates, state, params=None: (jax.tree.map(jnp.zeros_like, updates), state)
  )


def heads_factor(c: ConfigDict, group: str) -> float:
  """The factor on lr of a parameter group: heads_lr for the finest head, times heads_growth for each level upwards (S2, section 4.1.3: 5 and 2)."""
  if group == 'backbone':
    return 1.0
  levels = c.model.levels  # a run keeps them by name, coarse to fine
  level = group.removeprefix('heads/')
  return c.optim.heads_lr * c.optim.heads_growth ** (
    levels[::-1].index(level) if level in levels else 0
  )


def transformation(
  c: ConfigDict, label_tree: Mapping, freeze: Sequence[str] = ()
) -> optax.GradientTransformation:
  """`optax.multi_transform` over the groups, those in `freeze` on hold. Its updates are to be multiplied by -lr."""
  o = c.optim

  def one(factor, decay_factor):
    decay = (
      [optax.add_decayed_weights(o.weight_decay * decay_factor)]
      if o.weight_decay and decay_factor
      else []
    )
    core = [optax.trace(o.momentum)] if o.name == 'sgd' else [optax.scale_by_adam()]
    chain = core + decay if o.name == 'adamw' else decay + core
    return optax.chain(*chain, *([optax.scale(factor)] if factor != 1 else []))

  txs = {}
  for label in sorted(set(jax.tree.leaves(label_tree))):
    group, rule = label.rsplit('#', 1)
    factor, decay_factor = o.rules[int(rule)][1:]
    tx = one(factor * heads_factor(c, group), decay_factor)
    txs[label] = hold(tx) if group in freeze else tx
  return optax.multi_transform(txs, label_tree)


def plateau(c: ConfigDict) -> optax.GradientTransformationExtraArgs | None:
  """optax's reduce-on-plateau, updated on the host once an evaluation with value=val loss; its state's `scale` multiplies the schedule.

  The factor comes with evaluation patience + 1 without a lower loss, as in torch (and so in S4); optax counts one less.
  """
  if c.optim.schedule != 'plateau':
    return None
  return optax.contrib.reduce_on_plateau(
    c.optim.plateau_factor, c.optim.plateau_patience + 1, rtol=1e-4
  )
