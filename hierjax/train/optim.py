"""Optimisation: schedules, parameter groups, and the curriculum's phases.

The learning rate is applied outside the transformation, `params - lr(step) * update`, so that one
schedule over the global step serves every group whatever phase it was frozen in, and
reduce-on-plateau is one factor on it.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from hierjax.core import config
from hierjax.core.errors import UserError, did_you_mean
from hierjax.core.options import level_words
from hierjax.models import adapting
from hierjax.models.adapting import Path

# of Adam, where it does not cycle
BETA1 = 0.9
# the label of parameters that no phase trains
FIXED = 'fixed'
# the parameters that low-rank updates stand in for
ADAPTED = rf'backbone/(?!.*/({"|".join(adapting.UPDATE)})$).*'


@dataclasses.dataclass(frozen=True)
class Phase:
  """A phase of the curriculum, the steps [start, end).

  Attributes:
    start: its first step.
    end: the step after its last.
    freeze: parameter groups without an update: 'backbone', 'heads/LEVEL', and 'heads/shared' where
      levels share parts of their heads.
    levels: the levels whose loss counts.
  """

  start: int
  end: int
  freeze: tuple[str, ...] = ()
  levels: tuple[str, ...] = ()

  @property
  def trains_backbone(self) -> bool:
    """Whether the backbone is updated."""
    return 'backbone' not in self.freeze

  def describe(self) -> str:
    """Describe the phase in a line."""
    text = f'steps {self.start}-{self.end}: loss of {", ".join(self.levels)}'
    return f'{text}; frozen: {", ".join(self.freeze)}' if self.freeze else text


def phases(
  c: ConfigDict, heads: Sequence[str], examples: int, total_steps: int, groups: Sequence[str] = ()
) -> list[Phase]:
  """Lay out the curriculum over the steps of a training.

  Paper S0's has one phase: the finest head frozen and its loss off for 5 epochs.

  Args:
    c: the config.
    heads: the levels with a head.
    examples: the size of the training split.
    total_steps: the length of the training.
    groups: the model's parameter groups.

  Returns:
    Phases that cover [0, total_steps); what comes after the configured ones trains everything.

  Raises:
    UserError: a phase names unknown groups or levels, or trains nothing.
  """
  laid_out, start = [], 0
  groups = list(dict.fromkeys(['backbone', *(f'heads/{level}' for level in heads), *groups]))
  for i, node in enumerate(c.curriculum):
    if start >= total_steps:
      break
    option = f'--config.curriculum[{i}]'
    if node.share is None:
      steps = config.steps(node, '', examples, c.train.batch_size, option)
    else:
      steps = max(1, round(node.share * total_steps))
    freeze = _frozen_groups(node.freeze, heads, groups, f'{option}.freeze')
    levels = config.resolve_levels(node.levels, heads, f'{option}.levels')
    if not levels:
      raise UserError(
        f'{option}.levels: names no level that has a head; choices: {", ".join(heads)}'
      )
    idle = {f'heads/{level}' for level in heads if level not in levels}
    if {*groups} - idle <= {*freeze}:
      raise UserError(
        f'{option}: nothing would train (backbone and every head with a loss are frozen)'
      )
    end = min(total_steps, start + steps)
    laid_out.append(Phase(start, end, freeze, levels))
    start = end
  if start < total_steps:
    laid_out.append(Phase(start, total_steps, (), tuple(heads)))
  return laid_out


def _frozen_groups(
  names: Sequence[str], heads: Sequence[str], groups: Sequence[str], option: str
) -> tuple[str, ...]:
  """The parameter groups that a phase freezes; 'heads/finest' and such are words for some."""
  words, freeze = {}, []
  for word, levels in level_words(heads).items():
    words[f'heads/{word}'] = [f'heads/{level}' for level in levels]
  for name in names:
    if name not in groups and name not in words:
      raise UserError(
        f'{option}: no parameter group {name!r}{did_you_mean(name, groups)}; '
        f'choices: {", ".join(groups)}'
      )
    freeze += [name] if name in groups else words[name]
  return tuple(freeze)


def schedule(c: ConfigDict, total_steps: int, examples: int) -> optax.Schedule:
  """Build the learning rate's schedule.

  Args:
    c: the config.
    total_steps: the length of the training, with warm-up.
    examples: the size of the training split.

  Returns:
    step → learning rate. Warm-up is linear from 0.

  Raises:
    UserError: warm-up does not fit the schedule or the length.
  """
  o, option = c.optim, '--config.optim.warmup_*'
  warmup = config.steps(o, 'warmup_', examples, c.train.batch_size, option) or 0
  if o.schedule == 'onecycle':
    if warmup:
      raise UserError(
        f'{option}: schedule=onecycle rises by itself; set the share of its rise with '
        '--config.optim.onecycle_rise'
      )
    return one_cycle(o.onecycle_rise, o.onecycle_anneal, total_steps, o.lr / 25, o.lr, o.lr / 25e4)
  if warmup >= total_steps:
    raise UserError(f'{option}: {warmup} steps of warm-up leave nothing of {total_steps} steps')
  base = optax.constant_schedule(o.lr)
  if o.schedule == 'cosine':
    base = optax.cosine_decay_schedule(o.lr, total_steps - warmup)
  if not warmup:
    return base
  return optax.join_schedules([optax.linear_schedule(0.0, o.lr, warmup), base], [warmup])


def one_cycle(
  rise: float, anneal: str, total_steps: int, start: float, peak: float, end: float
) -> optax.Schedule:
  """Build a schedule that goes to a peak and on to its end, as torch's OneCycleLR.

  The peak is at step rise * total_steps - 1 and the end at the last step, total_steps - 1.

  Args:
    rise: the share of the steps up to the peak.
    anneal: 'cosine' or 'linear', the form of both parts.
    total_steps: the length of the training.
    start: the value at step 0.
    peak: that at the peak.
    end: that at the last step.

  Returns:
    step → value.

  References:
    torch.optim.lr_scheduler.OneCycleLR with two phases; arXiv:1708.07120.
  """
  top, last = rise * total_steps - 1, total_steps - 1

  def part(step, a, b, first, length):
    share = (step - first) / length if length > 0 else 1.0
    if anneal == 'linear':
      return a + (b - a) * share
    return b + (a - b) / 2 * (1 + jnp.cos(jnp.pi * share))

  def value(step):
    rising = part(step, start, peak, 0, top)
    return jnp.where(step <= top, rising, part(step, peak, end, top, last - top))

  return value


def momentum_cycle(c: ConfigDict, total_steps: int) -> optax.Schedule | None:
  """Build the cycle of the momentum, or of Adam's beta1: low where the learning rate is high.

  Args:
    c: the config.
    total_steps: the length of the training.

  Returns:
    step → momentum; None where it stays the same.

  Raises:
    UserError: optim.onecycle_momentum is set with another schedule.
  """
  o = c.optim
  if o.onecycle_momentum is None:
    return None
  if o.schedule != 'onecycle':
    raise UserError(
      f'--config.optim.onecycle_momentum: goes with --config.optim.schedule=onecycle, '
      f'not {o.schedule}'
    )
  low, high = o.onecycle_momentum
  return one_cycle(o.onecycle_rise, o.onecycle_anneal, total_steps, high, low, high)


def group_of(path: Sequence[str]) -> str:
  """Return a path's parameter group: 'backbone' (with the neck), 'heads/LEVEL', 'heads/shared'."""
  return '/'.join(path[:2]) if path[0] == 'heads' else 'backbone'


def shared(path: Sequence[str]) -> bool:
  """Whether the parameter at a path serves several levels."""
  return group_of(path) in ('backbone', 'heads/shared')


def trained(label_tree: Mapping, freeze: Sequence[str]) -> list[Path]:
  """List the paths of the parameters that train while groups are frozen.

  Args:
    label_tree: the label of each parameter, from `labels`.
    freeze: the groups.
  """
  flat = traverse_util.flatten_dict(label_tree)
  return [path for path, x in flat.items() if x != FIXED and group_of(path) not in freeze]


def groups(params: Mapping) -> list[str]:
  """List the parameter groups of a model."""
  return sorted({group_of(path) for path in traverse_util.flatten_dict(params)})


def rules(c: ConfigDict) -> tuple[tuple[str, float, float], ...]:
  """Return the config's rules; with low-rank updates the trunk's other parameters do not train."""
  return ((ADAPTED, 0.0, 0.0), *c.optim.rules) if c.model.lora_rank else tuple(c.optim.rules)


def labels(
  params: Mapping, rules: Sequence[tuple[str, float, float]], layer_decay: float | None = None
) -> Mapping:
  """Label each parameter with its group and the rule that it follows.

  Args:
    params: the parameters.
    rules: (regular expression over 'module/.../name', factor on lr, factor on weight decay). The
      first that matches the whole path wins.
    layer_decay: whether the trunk's parameters are told apart by depth, see `adapting.depths`.

  Returns:
    A tree like params whose leaves are 'GROUP#RULE', with layer_decay 'backbone#RULE#DEPTH', or
    FIXED where the factor on lr is 0.

  Raises:
    UserError: no rule matches a parameter.
  """
  labelled, depths = {}, adapting.depths(params) if layer_decay else {}
  for path in traverse_util.flatten_dict(params):
    name = '/'.join(path)
    matching = [i for i, (pattern, *_) in enumerate(rules) if re.fullmatch(pattern, name)]
    if not matching:
      raise UserError(
        f'--config.optim.rules: no rule matches the parameter {name!r}; '
        "end the list with ('.*', 1., 1.)"
      )
    labelled[path], rule = FIXED, matching[0]
    if rules[rule][1]:
      depth = f'#{depths[path]}' if path in depths else ''
      labelled[path] = f'{group_of(path)}#{rule}{depth}'
  return traverse_util.unflatten_dict(labelled)


def _freeze(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """tx without updates and with its state untouched: opt_state has one structure in all phases."""

  def update(updates, state, params=None, **_):
    return jax.tree.map(jnp.zeros_like, updates), state

  return optax.GradientTransformationExtraArgs(tx.init, update)


def _with_momentum(
  make: Callable[[float | jax.Array], optax.GradientTransformation], default: float
) -> optax.GradientTransformationExtraArgs:
  """make(momentum), of which each update may have another: update(..., momentum=)."""

  def update(updates, state, params=None, *, momentum=None, **_):
    return make(default if momentum is None else momentum).update(updates, state, params)

  return optax.GradientTransformationExtraArgs(make(default).init, update)


def _heads_factor(c: ConfigDict, group: str) -> float:
  """The factor on lr of a group: heads_lr at the finest head, heads_growth for each level upwards.

  Both are 1 but in S2 (section 4.1.3: 5 and 2).
  """
  if group == 'backbone':
    return 1.0
  levels = c.model.levels
  level, steps_up = group.removeprefix('heads/'), 0
  if level in levels:
    steps_up = len(levels) - 1 - levels.index(level)
  return c.optim.heads_lr * c.optim.heads_growth**steps_up


def transformation(
  c: ConfigDict, label_tree: Mapping, freeze: Sequence[str] = ()
) -> optax.GradientTransformationExtraArgs:
  """Build the optimiser of a phase.

  Args:
    c: the config; its model.levels are names of levels, coarse to fine.
    label_tree: the label of each parameter, from `labels`.
    freeze: the groups without an update.

  Returns:
    A transformation whose updates are to be multiplied by -lr; its update takes `momentum`, None
    for the configured one. Its state has the same structure whatever is frozen.
  """
  o, transformations, ordered = c.optim, {}, rules(c)
  for label in sorted(set(jax.tree.leaves(label_tree))):
    if label == FIXED:
      transformations[label] = optax.set_to_zero()
      continue
    # the name of a level may have any character
    is_trunk = label.startswith('backbone#')
    group, rule, *depth = label.split('#') if is_trunk else label.rsplit('#', 1)
    _, factor, decay_factor = ordered[int(rule)]
    factor *= o.layer_decay ** int(depth[0]) if depth else 1
    decay = []
    if o.weight_decay and decay_factor:
      decay = [optax.add_decayed_weights(o.weight_decay * decay_factor)]
    core = [_with_momentum(optax.scale_by_adam, BETA1)]
    if o.name == 'sgd':
      core = [_with_momentum(optax.trace, o.momentum)]
    # adamw decays weights apart from the gradient, adam and sgd through it
    chain = core + decay if o.name == 'adamw' else decay + core
    factor *= _heads_factor(c, group)
    if factor != 1:
      chain.append(optax.scale(factor))
    tx = optax.chain(*chain)
    transformations[label] = _freeze(tx) if group in freeze else tx
  return optax.multi_transform(transformations, label_tree)


def averaging_share(decay: float, count: jax.Array) -> jax.Array:
  """Return the share of the newest variables in their average, (1 - decay) / (1 - decay^count).

  With it the average of the variables x_1 ... x_t is Σ decay^(t-i) x_i / Σ decay^(t-i), as Adam
  corrects its moments: the initial variables have no part in it, and with a decay near to 1 it is
  the mean of all steps.

  Args:
    decay: optim.ema, in (0, 1).
    count: int32 [], the number of variables in the average, the newest too.
  """
  log = math.log(decay)
  return jnp.expm1(jnp.float32(log)) / jnp.expm1(log * count)


def plateau(c: ConfigDict) -> optax.GradientTransformationExtraArgs | None:
  """Build optax's reduce-on-plateau, where optim.schedule asks for it.

  It is updated on the host once an evaluation with value=val loss; its state's `scale` multiplies
  the schedule. The factor comes with evaluation patience + 1 without a lower loss, as in torch (and
  so in S4); optax counts one less.

  Args:
    c: the config.

  Returns:
    The transformation, None for another schedule.
  """
  if c.optim.schedule != 'plateau':
    return None
  patience = c.optim.plateau_patience + 1
  return optax.contrib.reduce_on_plateau(c.optim.plateau_factor, patience, rtol=1e-4)
