"""Training: the state, one pure step, the loop, and `fit`, which does all that `--mode=train` does."""

import contextlib
import copy
import dataclasses
import datetime
import errno
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from ml_collections import ConfigDict

from hierjax import model as predict
from hierjax.core import config as config_lib
from hierjax.core import files, parallel, plugins
from hierjax.core.errors import UserError
from hierjax.core.metrics import is_better, worst
from hierjax.data import pipeline, sources
from hierjax.data.levels import restrict
from hierjax.evaluate import collect as evaluate
from hierjax.evaluate import embedding, summary
from hierjax.losses import balancing, build
from hierjax.losses.balancers import Balancer
from hierjax.losses.build import Losses
from hierjax.losses.exclusive import masked_mean
from hierjax.losses.terms import Teacher
from hierjax.models import classifier, compute, initializers, registry
from hierjax.models import weights as pretrained
from hierjax.models.heads import HEADS
from hierjax.report import page, runs
from hierjax.taxonomy import describe_difference, read_taxonomy
from hierjax.train import checkpoint, log, optim

# options that don't change what is learned
FREE_ON_RESUME = (
  'name',
  'baseline',
  'plugins',
  'data.workers',
  'data.threads',
  'train.log_steps',
  'train.save_minutes',
  'eval.',
  'log.',
)


class Interrupted(Exception):
  """Ctrl-C or SIGTERM came; the state is saved. `signum` says which."""

  def __init__(self, signum: int, step: int):
    super().__init__(
      f'stopped by {signal.Signals(signum).name} at step {step}; the same command goes on from there'
    )
    self.signum = signum


@flax.struct.dataclass
class TrainState:
  """All that a step changes; all of it is saved and restored."""

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  ema: Any  # {'params', 'batch_stats'} averaged, or {} where off
  plateau: Any  # reduce-on-plateau's state, or {}
  balancer: Any  # the balancer's state
  monitor: (
    Any  # best: the best val metric so far; bad: evaluations since; evaluated: step of the last one
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """What the step is closed over: constants of the run."""

  model: nn.Module
  levels: tuple[str, ...]  # with a head
  losses: Losses
  weights: Mapping[
    str, float
  ]  # of levels and terms; those above 0 are the tasks that the balancer weighs
  balancer: Balancer | None  # None: nothing but `weights` weighs
  balance_at: str
  example_weights: (
    np.ndarray | None
  )  # of the classes of column `balance_column`, for data.balance=loss
  balance_column: int
  labels: Any  # optimiser label of each parameter
  schedule: optax.Schedule
  clip: float
  ema: float
  micro: int
  seed: int

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(name for name, weight in self.weights.items() if weight)

  def balancer_in(self, phase: optim.Phase) -> Balancer | None:
    """The balancer, where there is something to balance: it knows the run's tasks, so it waits for a phase with all of them, and one that compares gradients
    of what is shared waits until that is trained."""
    there = all(name in phase.levels or name in self.losses.terms for name in self.names)
    idle = (
      self.balancer
      and self.balancer.reads_gram
      and not {'backbone', 'heads/shared'}.isdisjoint(phase.freeze)
    )
    return self.balancer if there and not idle and len(self.names) > 1 else None


def objective(
  head: Callable[[jax.Array, bool], Mapping[str, jax.Array]],
  features: jax.Array,
  labels: jax.Array,
  task: Task,
  phase: optim.Phase,
  told: Teacher,
  axis: str | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """The phase's losses by name, each the mean over the examples that are labelled there, times its weight; and the metrics.

  head(features [B, d], train) are the logits of each level, `told` is what a teacher says. Of a device's part of the batch: its shares of the losses and
  metrics, which add up to those of the batch.
  """
  devices = 1 if axis is None else jax.lax.axis_size(axis)
  weight = 1.0
  if task.example_weights is not None:
    y = labels[:, task.balance_column]
    weight = jnp.where(y >= 0, jnp.asarray(task.example_weights)[jnp.maximum(y, 0)], 1.0)
  # what no loss reads is not computed
  logits, clean = head(features, True), head(features, False)
  means = task.losses.aggregate(features, labels, axis) if task.losses.aggregate else {}
  shares, out = {}, {}
  for block in task.losses.blocks:
    for level, loss in block(logits, clean, labels, weight).items():
      if level not in phase.levels:
        continue
      if level in means:
        # of each class, the mean features of its examples; every device has them all
        x, rows, present = means[level]
        pooled, pooled_clean = ({level: head(x, train)[level]} for train in (True, False))
        values = block(pooled, pooled_clean, rows, 1.0)[level].values
        shares[level] = masked_mean(values, present) / devices
      else:
        shares[level] = masked_mean(loss.values, loss.mask, axis)
      out[f'acc/{level}'] = masked_mean(loss.correct, loss.labelled, axis)
  for name, term in task.losses.terms.items():
    values, mask = term(logits, features, labels, told, axis)
    shares[name] = masked_mean(weight * values, mask, axis)
  out |= {f'loss/{name}': value for name, value in shares.items()}
  shares = {name: task.weights[name] * shares[name] for name in task.names if name in shares}
  return shares, {'loss': sum(shares.values()), **out}


def train_step(
  state: TrainState,
  batch: Mapping[str, jax.Array],
  teacher: Mapping,
  task: Task,
  phase: optim.Phase,
  tx: optax.GradientTransformation,
  mesh,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update. Frozen groups are constants here: no gradient is computed for them, and a frozen backbone runs with its running statistics.

  Each device takes the gradient of its share of the loss on its rows of the batch; then one reduction adds them up, and the metrics with them. So are the
  batch's flags (each float32 [devices]), by which one process tells all to do something at the same step.

  With a balancer, the losses are pulled back to the features one by one. There, or after the trunk at its weights (balance.at), the balancer combines them.
  Of micro-batches each is balanced by itself at the features; at the weights it is their mean. `teacher` is what `teacher_of` gives, {} without one.
  """
  flat = traverse_util.flatten_dict(state.params)
  frozen = {k: v for k, v in flat.items() if optim.group_of(k) in phase.freeze}
  trained = {k: v for k, v in flat.items() if k not in frozen}
  trunk = [k for k in trained if optim.group_of(k) == 'backbone']
  step_key = jax.random.fold_in(jax.random.key(task.seed), state.step)
  balance_key = jax.random.fold_in(step_key, task.micro)
  balancer, names = (
    task.balancer_in(phase),
    [name for name in task.names if name in phase.levels or name in task.losses.terms],
  )
  at_weights = balancer is not None and balancer.reads_gram and task.balance_at == 'weights'
  axis = (
    parallel.AXIS if mesh.size > 1 else None
  )  # XLA leaves a reduction over one device in the program, as copies
  model = compute.configured(task.model, batch_axis=axis)

  def balanced(grads, balancer_state, out, key, axis=None):
    """(weights of the losses, combined gradient, state, what is to be seen of it), from the K gradients and the metrics of the whole batch"""
    values = jnp.stack([task.weights[name] * out[f'loss/{name}'] for name in names])
    accuracies = jnp.stack([out.get(f'acc/{name}', jnp.float32(jnp.nan)) for name in names])
    found = balancing.shared_gradient(
      balancer, values, grads, balancer_state, axis=axis, accuracies=accuracies, key=key
    )
    cosines = balancing.cosines(found.gram)
    seen = {
      f'weight/{name}': task.weights[name] * found.shared_weights[i] for i, name in enumerate(names)
    }
    seen |= {
      f'cosine/{a}-{b}': cosines[i, j]
      for i, a in enumerate(names)
      for j, b in enumerate(names)
      if i < j
    }
    return found.loss_weights, found.gradient, found.state, seen

  def of_micro_batch(trained, batch_stats, balancer_state, micro, teacher, key):
    """(gradients, or those of each task at the weights; batch_stats; balancer_state; metrics; what is to be seen of the balancer)"""
    heads = {k: v for k, v in trained.items() if k not in trunk}
    told = Teacher({}, {})
    if teacher:
      logits = model.apply(teacher['variables'], micro['image'])[0]
      told = Teacher(logits, teacher['known'])

    def run_trunk(weights):
      variables = {
        'params': traverse_util.unflatten_dict({**frozen, **heads, **weights}),
        'batch_stats': batch_stats,
      }
      features, updated = model.apply(
        variables,
        micro['image'],
        phase.trains_backbone,
        mutable=['batch_stats'],
        rngs={'dropout': key},
        method='features',
      )
      return features, updated.get('batch_stats', batch_stats)

    def run_heads(weights, features):
      params = traverse_util.unflatten_dict({**flat, **weights})
      head = lambda x, train: model.apply({'params': params}, x, train, rngs={'dropout': key})[0]
      shares, out = objective(head, features, micro['labels'], task, phase, told, axis)
      return jnp.stack([shares[name] for name in names]), out

    if micro['image'].ndim == 2:  # the features were computed before
      features, back = micro['image'], lambda _: ({},)
    else:
      features, back, batch_stats = jax.vjp(run_trunk, {k: trained[k] for k in trunk}, has_aux=True)
    _, pull, out = jax.vjp(run_heads, heads, features, has_aux=True)
    if balancer is None:
      of_heads, of_features = pull(jnp.ones(len(names)))
      return {**back(of_features)[0], **of_heads}, batch_stats, balancer_state, out, {}
    pulled = [pull(one) for one in jnp.eye(len(names))]
    if at_weights:
      return (
        [{**back(d)[0], **of_heads} for of_heads, d in pulled],
        batch_stats,
        balancer_state,
        out,
        {},
      )
    whole = jax.lax.psum(out, axis) if axis else out
    weights, of_features, balancer_state, seen = balanced(
      [d for _, d in pulled], balancer_state, whole, key, axis
    )
    grads = {
      **back(of_features)[0],
      **balancing.weighted(weights, [of_heads for of_heads, _ in pulled]),
    }
    return grads, batch_stats, balancer_state, out, seen

  def gradients(trained, batch_stats, balancer_state, batch, teacher):
    sums, seen = None, None
    for i in range(
      task.micro
    ):  # unrolled: a loop around a convolution's gradient is many times slower on the CPU
      part = {
        k: batch[k].reshape(len(batch[k]) // task.micro, task.micro, *batch[k].shape[1:])[:, i]
        for k in ('image', 'labels')
      }
      g, batch_stats, balancer_state, o, seen = of_micro_batch(
        trained, batch_stats, balancer_state, part, teacher, jax.random.fold_in(step_key, i)
      )
      sums = (g, o) if i == 0 else jax.tree.map(jnp.add, sums, (g, o))
    sums = jax.tree.map(lambda x: x / task.micro, sums)
    sums = (*sums, {name: raised.sum() for name, raised in batch['flags'].items()})
    if axis:  # as one vector: XLA reduces parts of a tree early, some of them together with a batch norm's sums
      vector, unravel = jax.flatten_util.ravel_pytree(sums)
      sums = unravel(jax.lax.psum(vector, axis))
    return sums, batch_stats, balancer_state, seen

  if axis:
    gradients = jax.shard_map(
      gradients,
      mesh=mesh,
      in_specs=(jax.P(), jax.P(), jax.P(), jax.P(axis), jax.P()),
      out_specs=jax.P(),
      check_vma=False,
    )
  (grads, out, flags), batch_stats, balancer_state, seen = gradients(
    trained, state.batch_stats, state.balancer, dict(batch), teacher
  )
  if at_weights:
    mine = [{k: v for k, v in g.items() if optim.shared(k)} for g in grads]
    weights, combined, balancer_state, seen = balanced(mine, balancer_state, out, balance_key)
    grads = {
      **balancing.weighted(
        weights, [{k: v for k, v in g.items() if not optim.shared(k)} for g in grads]
      ),
      **combined,
    }
  out |= (
    {f'weight/{name}': weight * (name in names) for name, weight in task.weights.items()}
    | seen
    | flags
  )

  norm = optax.tree.norm(grads)
  if task.clip:
    grads = jax.tree.map(
      lambda g: g * jnp.minimum(1.0, task.clip / jnp.maximum(norm, 1e-12)), grads
    )
  everything = traverse_util.unflatten_dict(
    {**{k: jnp.zeros_like(v) for k, v in frozen.items()}, **grads}
  )
  updates, opt_state = tx.update(everything, state.opt_state, state.params)
  lr = task.schedule(state.step) * (state.plateau.scale if state.plateau else 1.0)
  moved = traverse_util.flatten_dict(updates)
  params = traverse_util.unflatten_dict(
    {k: v if k in frozen else v - lr * moved[k] for k, v in flat.items()}
  )
  new = {'params': params, 'batch_stats': batch_stats}
  ema = (
    jax.tree.map(lambda e, p: e + (1 - task.ema) * (p - e), state.ema, new)
    if state.ema
    else state.ema
  )
  return state.replace(
    step=state.step + 1, opt_state=opt_state, ema=ema, balancer=balancer_state, **new
  ), {**out, 'lr': lr, 'grad_norm': norm}


def stepper(task: Task, phase: optim.Phase, tx: optax.GradientTransformation, mesh) -> Callable:
  """The compiled step of a phase over the mesh: (state, batch, teacher) → (state, metrics)."""
  r, d = parallel.replicated(mesh), parallel.split(mesh)
  step = functools.partial(train_step, task=task, phase=phase, tx=tx, mesh=mesh)
  return jax.jit(
    step,
    in_shardings=(r, d, r),
    out_shardings=(r, r),
    donate_argnums=0,
    compiler_options=compute.compiler_options(),
  )


def eval_variables(state: TrainState) -> dict:
  return (
    dict(state.ema) if state.ema else {'params': state.params, 'batch_stats': state.batch_stats}
  )


def parse_weights(
  pairs: Sequence[tuple[str, float]], levels: Sequence[str], terms: Sequence[str] = ()
) -> dict[str, float]:
  """Weight of each level and term by `loss.weights`, 1 where it is not named."""
  weights = dict.fromkeys([*levels, *terms], 1.0)
  for name, number in pairs:
    chosen = (
      (name,) if name in terms else config_lib.resolve_levels(name, levels, '--config.loss.weights')
    )
    if not chosen:
      raise UserError(f'--config.loss.weights: {name!r} names no level that has a head')
    weights.update(dict.fromkeys(chosen, number))
  return weights


class Run:
  """One training run: what config and data make of each other. Nothing here is state of the training; that is TrainState."""

  def __init__(self, c: ConfigDict):
    registries = {
      'model.backbone': registry.BACKBONES,
      'model.heads': HEADS,
      'balance.name': balancing.BALANCERS,
    }
    config_lib.validate(c, registries)
    if (
      c.baseline not in (None, 'train') and not (pathlib.Path(c.baseline) / 'config.json').is_file()
    ):
      raise UserError(
        f"--config.baseline={c.baseline}: not a run (no config.json); choices: 'train', the folder of a run, or None"
      )
    c = self.c = copy.deepcopy(c)
    self.mesh = parallel.mesh()
    parallel.check_batch(
      c.train.batch_size, self.mesh, '--config.train.batch_size', c.optim.accumulate
    )
    data, self.levels = restrict(sources.load(c.data), c.model)
    c.model.levels = self.levels  # kept by name
    c.plugins = plugins.absolute(c.plugins)
    self.taxonomy, self.splits, self.notes = data.taxonomy, data.splits, list(data.notes)
    own, several = self.taxonomy.table('exclusive'), self.taxonomy.table('tags')
    heads = tuple(level for level in self.levels if level not in self.taxonomy.multi)
    if not own:
      config_lib.check_multi(c, self.levels)
    for option in ('train', 'val'):
      if c.data[option] not in self.splits:
        made = (
          f', and --config.data.val_share={c.data.val_share:g} of each class leaves it none'
          if any(n.startswith('split made') for n in self.notes)
          else ''
        )
        raise UserError(
          f'--config.data.{option}={c.data[option]!r}: no such split{config_lib.did_you_mean(c.data[option], list(self.splits))}; '
          f'the data have {", ".join(self.splits) or "no images"}{made}'
        )
    self.train, self.val = self.splits[c.data.train], self.splits[c.data.val]
    n = len(self.train.labels)
    self.total = config_lib.steps(c.train, '', n, c.train.batch_size, '--config.train')
    if self.total is None:
      raise UserError('--config.train: one of steps, epochs, examples must be given')
    self.eval_every = (
      config_lib.steps(c.train, 'eval_', n, c.train.batch_size, '--config.train.eval_*')
      or self.total
    )
    self.best = summary.best_metric(c.train.best, self.taxonomy, self.levels)
    metric, _, level = self.best.partition('/')
    judged = {'loss': self.levels, 'hvr': heads}.get(metric, [level or (own or several).levels[-1]])
    for examples, wanted in ((self.train, self.levels), (self.val, judged)):
      known = lambda level: (
        examples.multi[:, several.columns[level]]
        if level in self.taxonomy.multi
        else examples.labels[:, own.index(level)]
      )
      if not any((known(level) >= 0).any() for level in wanted):
        raise UserError(
          f'split {examples.name!r}: none of its {len(examples.labels)} images has a label of {" or ".join(wanted)}'
        )
    if not several and own.num_classes(own.levels[-1]) < 2:
      raise UserError(
        f'the taxonomy has one class of {own.levels[-1]}, {own.names[-1][0]!r}: nothing to tell apart'
      )
    self.initial = self.variables()
    self.phases = optim.phases(c, self.levels, n, self.total, optim.groups(self.initial['params']))
    self.model = classifier.build(c, self.taxonomy, self.levels)
    self.heads = heads
    rows = [self.train.labels, *([self.train.multi] if several else [])]
    self.losses = build.build(c, self.taxonomy, self.levels, np.concatenate(rows, 1))
    if clash := {*self.losses.terms} & {*self.levels}:
      raise UserError(
        f'--config.loss.terms={clash.pop()}: the taxonomy has a level of that name; call it otherwise'
      )
    self.weights = parse_weights(c.loss.weights, self.levels, list(self.losses.terms))
    self.balancer = balancing.build(
      c.balance, bool(c.loss.weights), math.ceil(n / c.train.batch_size)
    )
    for phase in self.phases:
      if not any(self.weights[level] for level in phase.levels):
        raise UserError(
          f'--config.loss.weights={dict(c.loss.weights)}: nothing would train in {phase.describe()}: all their weights are 0'
        )
    self.plateau = optim.plateau(c)
    self.task()  # an option that does not fit is told before anything is written

  def task(self) -> Task:
    c, own, column, balance = self.c, self.taxonomy.table('exclusive'), self.balance_column(), None
    if c.data.balance == 'loss':
      balance = pipeline.class_weights(
        self.train.labels[:, column], own.num_classes(own.levels[column])
      )
    return Task(
      model=self.model,
      levels=self.levels,
      losses=self.losses,
      weights=self.weights,
      balancer=self.balancer,
      balance_at=c.balance.at,
      example_weights=balance,
      balance_column=column,
      labels=optim.labels(self.initial['params'], c.optim.rules),
      schedule=optim.schedule(c, self.total, len(self.train.labels)),
      clip=c.optim.clip,
      ema=c.optim.ema,
      micro=c.optim.accumulate,
      seed=c.seed,
    )

  def balance_column(self) -> int:
    """That of data.balance_level in the labels."""
    own = self.taxonomy.table('exclusive')
    return (
      own.index(
        config_lib.resolve_levels(
          self.c.data.balance_level, own.levels, '--config.data.balance_level'
        )[0]
      )
      if own
      else 0
    )

  def variables(self) -> dict:
    """The initial ones as numpy: seeded, with the backbone's from a file where model.pretrained names one."""
    m, size = self.c.model, self.c.data.size
    variables = initializers.init(
      classifier.build(self.c, self.taxonomy, self.levels),
      self.c.seed,
      jnp.zeros((1, size, size, 3)),
    )
    if m.pretrained:
      variables, found = pretrained.load(m.backbone, variables, m.pretrained, stem=m.stem)
      if m.mean is None:  # kept in config.json, so that prediction normalises as training did
        m.mean, m.std = found['mean'], found['std']
      fresh = f'; not from there, but drawn: {", ".join(found["fresh"])}' if found['fresh'] else ''
      self.notes.append(f'{found["tensors"]} tensors of the backbone from {found["file"]}{fresh}')
    return variables

  def state(self, task: Task) -> TrainState:
    params, batch_stats = self.initial['params'], self.initial.get('batch_stats', {})
    shared = {k: v for k, v in traverse_util.flatten_dict(params).items() if optim.shared(k)}
    state = TrainState(
      step=np.int32(0),
      params=params,
      batch_stats=batch_stats,
      opt_state=optim.transformation(self.c, task.labels).init(params),
      ema={'params': params, 'batch_stats': batch_stats} if self.c.optim.ema else {},
      plateau=self.plateau.init(params) if self.plateau else {},
      balancer=self.balancer.init(len(task.names), shared) if self.balancer else {},
      monitor={'best': np.float32(worst(self.best)), 'bad': np.int32(0), 'evaluated': np.int32(0)},
    )
    return parallel.put_replicated(state, self.mesh)

  def batches(self, examples: sources.Examples, start: int, end: int):
    c = self.c
    column = self.balance_column() if c.data.balance == 'sample' else None
    return pipeline.train_batches(
      examples,
      batch_size=c.train.batch_size,
      seed=c.seed,
      steps=end,
      start_step=start,
      size=c.data.size,
      resize=c.data.resize,
      augment=c.data.augment,
      balance=column,
      workers=c.data.workers,
      threads=c.data.threads,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      strict=c.data.strict,
    )


def teacher_of(workdir: pathlib.Path, run: Run) -> dict:
  """What loss.terms=distill holds on to: {'variables' of the run that --mode=migrate began with, 'known': {level: bool [C], classes that it had learned}}; {}
  where that is no term."""
  if 'distill' not in run.losses.terms:
    return {}
  classes = runs.read(workdir, baseline=False).migration['classes']
  known = {
    level: np.array(
      [
        classes[level][name]['kind'] != 'new'
        for name in run.taxonomy.names[run.taxonomy.index(level)]
      ]
    )
    for level in run.levels
  }
  return parallel.put_replicated(
    {'variables': predict.load(workdir / runs.START).variables, 'known': known}, run.mesh
  )


def rest(state: TrainState) -> dict:
  """What evaluation does not need."""
  return {k: getattr(state, k) for k in ('step', 'opt_state', 'plateau', 'balancer', 'monitor')}


def parts(state: TrainState) -> dict[str, dict]:
  """The state as the checkpoint stores it."""
  out = {
    'model': {'params': state.params, 'batch_stats': state.batch_stats},
    'rest': checkpoint.named(rest(state)),
  }
  return {**out, 'ema': state.ema} if state.ema else out


def restored(state: TrainState, loaded: Mapping) -> TrainState:
  """`state` with the values of `loaded`, which has the form of parts(state)."""
  return state.replace(
    **loaded['model'],
    **checkpoint.unnamed(loaded['rest'], rest(state)),
    ema=loaded.get('ema', state.ema),
  )


def clock(seconds: float) -> str:
  return str(datetime.timedelta(seconds=round(seconds)))


class Signals:
  """Notes the first SIGINT or SIGTERM, so that the loop can save at the end of its step; the second one ends the program at once."""

  def __enter__(self):
    self.got, self.old = 0, {}
    if (
      threading.current_thread() is threading.main_thread()
    ):  # Python allows handlers there only; a notebook's worker thread goes without
      self.old = {s: signal.signal(s, self.note) for s in (signal.SIGINT, signal.SIGTERM)}
    return self

  def note(self, signum, _):
    if self.got:
      self.restore()
      signal.raise_signal(signum)
    self.got = signum
    os.write(
      2, b'\nsaving the state before stopping (once more to stop at once)\n'
    )  # print may be in the middle of a line, where it cannot be called again

  def restore(self):
    for s, handler in self.old.items():
      signal.signal(s, handler)

  def __exit__(self, *_):
    self.restore()


class Loop:
  """The training loop over one run's phases."""

  def __init__(self, run: Run, workdir: pathlib.Path):
    self.run, self.c, self.mesh, self.compiled = run, run.c, run.mesh, log.compile_seconds()
    self.checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', run.best, writes=True)
    self.task, self.teacher = run.task(), teacher_of(workdir, run)
    self.state = run.state(self.task)
    self.params = sum(x.size for x in jax.tree.leaves(run.initial['params']))
    self.saved, loaded = self.checkpoints.load_latest(parts(self.state))
    if loaded:
      self.state = restored(self.state, loaded)
    self.step = int(self.state.step)
    self.log = log.Log(workdir, self.step, self.c)
    run.notes += self.checkpoints.said
    self.log.say(
      f'{workdir}: resuming at step {self.step} of {run.total}'
      if loaded
      else f'{workdir}: {run.c.model.backbone}, {self.params:,} parameters, {len(run.train.labels):,} training images, {run.total} steps, '
      f'{self.mesh.size} {jax.devices()[0].platform} device(s)'
    )
    self.eval_step = evaluate.stepper(run.model, self.mesh, run.taxonomy)
    first = workdir / 'embedding_first.npz'
    self.embedding = (
      None if parallel.exchange(first.exists())[0] else first
    )  # where to write that of the first evaluation
    self.broken: set[str] = set()
    self.seconds, self.saving, self.before, self.saved_at = 0.0, 0.0, None, time.monotonic()
    # What one process wants all to do, the same on all of them at the same step: a signal came; it is time to save.
    self.stop = self.asked = self.late = False

  def features(self, examples: sources.Examples, signals: Signals) -> sources.Examples:
    """The split with the frozen backbone's features instead of images, computed once."""
    self.log.say(
      f'computing the features of split {examples.name} once: the backbone is frozen and there is no augmentation'
    )
    variables = {'params': self.state.params, 'batch_stats': self.state.batch_stats}
    out = evaluate.collect(
      self.eval_step,
      variables,
      examples,
      self.c,
      self.mesh,
      with_features=True,
      progress=self.heed(signals),
    )
    self.broken.update(out.broken)
    return sources.with_features(examples, out.features, out.index)

  @property
  def compilation(self) -> float:
    return log.compile_seconds() - self.compiled  # not that of a run before in this process

  def took(self) -> dict[str, float]:
    """Seconds of this process: in the phases, of these blocked by saving, and of compilation."""
    return {
      'seconds': self.seconds,
      'saving_seconds': self.saving,
      'compile_seconds': self.compilation,
    }

  def heed(self, signals: Signals):
    """For `collect`: stops in the middle of a split. Where several processes must do the same, the split is finished first."""

    def progress(*_):
      if signals.got and jax.process_count() == 1:
        self.interrupt(signals)

    return progress

  def interrupt(self, signals: Signals) -> None:
    self.save(None)
    self.checkpoints.wait()
    self.broken = set().union(*parallel.exchange(sorted(self.broken)))
    raise Interrupted(signals.got or signal.SIGTERM, self.step)

  def flags(self, signals: Signals) -> dict[str, bool]:
    """What this process wants; the first one's clock tells when to save."""
    minutes = self.c.train.save_minutes
    late = (
      bool(minutes)
      and parallel.first()
      and not self.asked
      and time.monotonic() - self.saved_at > 60 * minutes
    )
    self.asked = self.asked or late
    return {'stop': bool(signals.got), 'save': late}

  def save(self, values: Mapping[str, float] | None) -> None:
    """Saves the state, once a step; `values` are the val metrics, None where it has not been evaluated."""
    before = time.monotonic()
    if values or self.step != self.saved:
      self.checkpoints.save(self.step, parts(self.state), values)
    self.saved, self.saved_at, self.asked, self.late = self.step, time.monotonic(), False, False
    self.saving += self.saved_at - before

  def validate(self, val: sources.Examples, signals: Signals) -> dict[str, float]:
    out = evaluate.collect(
      self.eval_step,
      eval_variables(self.state),
      val,
      self.c,
      self.mesh,
      progress=self.heed(signals),
    )
    self.broken = set(out.broken).union(*parallel.exchange(sorted(self.broken)))
    values = summary.validate(out, self.run.taxonomy, self.run.weights)
    return parallel.exchange(values)[
      0
    ]  # what is decided by them must not hang on the rounding of another kind of processor

  def check(self, pending, files: Sequence[str]) -> dict[str, float] | None:
    """The metrics of the step before, read while the next one runs. Stops on NaN."""
    if pending is None:
      return None
    step, device, index = pending
    values = {
      k: float(v) for k, v in jax.device_get(device).items()
    }  # one wait for all: an accelerator answers each question in turn
    # a step is looked at twice where it is evaluated or saved, but its flags are acted on once
    for flag in ('stop', 'save'):
      device.pop(flag, None)
    self.stop |= values.pop('stop', 0.0) > 0
    self.late |= values.pop('save', 0.0) > 0
    if not (
      np.isfinite(values['loss']) and np.isfinite(values['grad_norm'])
    ):  # a bad gradient has spoilt the parameters already
      names = ', '.join(files[i] for i in index[:8]) + (' ...' if len(index) > 8 else '')
      raise UserError(
        f'NaN or infinity at step {step}: loss {values["loss"]:.4g}, gradient norm {values["grad_norm"]:.4g}, lr {values["lr"]:.3g}; '
        f'files of that batch: {names}. '
        'Lower --config.optim.lr or set --config.optim.clip; the last checkpoint is from before it'
      )
    return values

  def train(self, signals: Signals) -> None:
    for i, phase in enumerate(self.run.phases):
      if self.stopped or self.step > phase.end or (self.step == phase.end and not self.due):
        continue
      train, val = self.run.train, self.run.val
      if not phase.trains_backbone and not self.c.data.augment.enabled:
        train = self.features(train, signals)
        if not self.state.ema:  # the averaged backbone still moves towards the frozen one
          val = self.features(val, signals)
      if len(self.run.phases) > 1:
        self.log.say(f'phase {i + 1} of {len(self.run.phases)}, {phase.describe()}')
      started = time.monotonic()
      try:
        self.phase(phase, i, train, val, signals)
      finally:
        self.seconds += time.monotonic() - started
      if any(parallel.exchange(bool(signals.got))):  # it came with the phase's last step
        self.interrupt(signals)

  @property
  def due(self) -> bool:
    """Whether this step is to be evaluated and has not been; after an interrupted evaluation it still is."""
    evaluation = self.step % self.run.eval_every == 0 or self.step == self.run.total
    return evaluation and self.step > int(self.state.monitor['evaluated'])

  @property
  def stopped(self) -> bool:
    return (
      bool(self.c.train.early_stop) and int(self.state.monitor['bad']) >= self.c.train.early_stop
    )

  def phase(self, phase: optim.Phase, number: int, train, val, signals: Signals) -> None:
    c, run = self.c, self.run
    step_fn = stepper(
      self.task, phase, optim.transformation(c, self.task.labels, phase.freeze), self.mesh
    )
    pending, per_epoch = None, len(train.labels) / c.train.batch_size
    if self.due:
      self.evaluate_and_save(val, per_epoch, signals)
      if self.stopped:
        return
    waited, since, since_step, first, compiled = (
      0.0,
      time.monotonic(),
      self.step,
      self.step,
      log.compile_seconds(),
    )
    batches = run.batches(train, self.step, phase.end)
    iterator = iter(batches)
    try:
      while True:
        asked = time.monotonic()
        batch = next(iterator, None)
        if batch is None:
          break
        waited += time.monotonic() - asked
        self.broken.update(train.files[b] for b in batch['broken'][batch['broken'] >= 0])
        self.state, out = step_fn(
          self.state, parallel.put_train(batch, self.flags(signals), self.mesh), self.teacher
        )
        values = self.check(pending, train.files)
        if values and pending[0] % c.train.log_steps == 0 and self.step > since_step:
          now = time.monotonic()
          rate = (self.step - since_step) * c.train.batch_size / max(now - since, 1e-9)
          left = (run.total - self.step) * c.train.batch_size / rate
          share = waited / max(now - since, 1e-9)
          self.log.write(
            pending[0],
            'train',
            {
              'epoch': pending[0] / per_epoch,
              'phase': number,
              'images_per_s': rate,
              'data_wait': share,
              'compile_seconds': self.compilation,
              **log.memory(),
              **values,
            },
          )
          accuracies = ' '.join(f'{l} {values[f"acc/{l}"]:.3f}' for l in phase.levels)
          self.log.say(
            f'step {pending[0]}/{run.total} epoch {pending[0] / per_epoch:.2f} loss {values["loss"]:.3f} {accuracies} '
            f'lr {values["lr"]:.2g} | {rate:.1f} images/s, {clock(left)} left'
          )
          waited, since, since_step = 0.0, now, self.step
        self.step += 1
        pending = (self.step, out, batch['index'])
        if self.step == first + 1:  # it was compiled: not the training's rate
          jax.block_until_ready(out)
          self.log.say(
            f'first step after {time.monotonic() - since:.1f} s, of which {log.compile_seconds() - compiled:.1f} s compilation'
          )
          waited, since, since_step = 0.0, time.monotonic(), self.step
        before = time.monotonic()
        if self.due:
          self.check(pending, train.files)
          self.evaluate_and_save(val, per_epoch, signals)
          if self.stopped:
            self.log.say(f'early stop: no better {run.best} for {c.train.early_stop} evaluations')
            return
          self.stop = self.stop or any(parallel.exchange(bool(signals.got)))
        elif self.late:
          self.check(pending, train.files)
          self.save(None)
        since += time.monotonic() - before  # neither is the training's rate
        if self.stop:
          self.check(pending, train.files)
          self.interrupt(signals)
    finally:
      batches.close()

  def evaluate_and_save(self, val: sources.Examples, per_epoch: float, signals: Signals) -> None:
    run = self.run
    before = time.monotonic()
    values = self.validate(val, signals)
    if self.embedding:
      embedding.write_embedding(
        self.embedding,
        self.eval_step,
        eval_variables(self.state),
        val,
        self.c,
        self.mesh,
        run.taxonomy,
      )
      self.embedding = None
    self.log.write(
      self.step,
      'val',
      {'epoch': self.step / per_epoch, 'seconds': time.monotonic() - before, **values},
    )
    best, bad = float(self.state.monitor['best']), int(self.state.monitor['bad'])
    value = values.get(run.best, worst(run.best))
    better = is_better(run.best, value, best)
    self.log.say(
      f'val at step {self.step} (epoch {self.step / per_epoch:.2f}): '
      + ' '.join(f'{k.removeprefix("top1/")} {v:.4f}' for k, v in values.items())
      + (f'  best {run.best} so far' if better else '')
    )
    monitor = {
      'best': np.float32(value if better else best),
      'bad': np.int32(0 if better else bad + 1),
      'evaluated': np.int32(self.step),
    }
    self.state = self.state.replace(monitor=parallel.put_replicated(monitor, self.mesh))
    if run.plateau:
      _, plateau = run.plateau.update({}, jax.device_get(self.state.plateau), value=values['loss'])
      self.state = self.state.replace(
        plateau=parallel.put_replicated(jax.device_get(plateau), self.mesh)
      )
    self.save(values)


def objection(workdir: pathlib.Path, run: Run) -> str:
  """Why `run` can't go on with what the folder holds; '' where it can."""
  path = workdir / 'config.json'
  if (
    not path.exists()
    or not (workdir / 'checkpoints').exists()
    or not any((workdir / 'checkpoints').iterdir())
  ):
    return ''
  changed = [
    d
    for d in config_lib.differences(predict.run_config(workdir), run.c)
    if not d.startswith(FREE_ON_RESUME)
  ]
  if changed:
    return f'{workdir} holds a run with other options ({"; ".join(changed)}): give another --workdir, the old options, or remove the folder'
  old = read_taxonomy(workdir / 'taxonomy.csv', run.c.data.multi)
  if old.hash() != run.taxonomy.hash():
    return (
      f'{workdir} holds a run on another taxonomy ({describe_difference(old, run.taxonomy)}): give another --workdir or the old taxonomy, or carry its classes over: '
      f'--mode=migrate --from={workdir} --taxonomy=NEW.csv --workdir=NEWRUN'
    )
  return ''


def prepare_workdir(workdir: pathlib.Path, run: Run) -> None:
  """Writes config.json and taxonomy.csv, or checks that a run that is resumed here is the same, and that all processes run it here."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(
      f'--workdir={workdir}: {"is a file, not a folder" if workdir.is_file() else e.strerror}'
    ) from None
  plugins.refuse_inside(run.c.plugins, workdir)
  parallel.check_same(
    workdir,
    {
      'options': config_lib.to_json(run.c),
      'taxonomy': run.taxonomy.hash(),
      **{
        f'{x.name} examples': hashlib.sha256(
          repr(
            [list(x.files), x.labels.tolist(), None if x.multi is None else x.multi.tolist()]
          ).encode()
        ).hexdigest()
        for x in (run.train, run.val)
      },
    },
  )
  if told := parallel.exchange(objection(workdir, run) if parallel.first() else '')[
    0
  ]:  # the first one reads, as it is the one that writes
    raise UserError(told)
  if parallel.first():
    files.write(workdir / 'config.json', config_lib.to_json(run.c) + '\n')
    run.taxonomy.to_csv(workdir / 'taxonomy.csv')


def fit(c: ConfigDict, workdir: str | pathlib.Path) -> dict:
  """Trains what config `c` describes into `workdir`, or goes on with it, and returns the final val metrics and the digest of the TrainState.

  Leaves config.json, taxonomy.csv, run.json, metrics.jsonl, checkpoints/, eval_VAL.json, predictions_VAL.npz, explain_VAL.npz, embedding_first.npz and
  embedding_last.npz (of prototype heads) and report.html there. Raises UserError for a user's mistake and Interrupted where Ctrl-C or SIGTERM came.
  """
  with enough_disk(pathlib.Path(workdir)):
    return train_and_report(c, pathlib.Path(workdir))


def train_and_report(c: ConfigDict, workdir: pathlib.Path) -> dict:
  started, run = now(), Run(c)
  if 'distill' in run.losses.terms and not all(
    (workdir / name).exists() for name in ('migration.json', runs.START)
  ):
    raise UserError(
      f'--config.loss.terms=distill: {workdir} has nothing to hold on to; it is for runs that --mode=migrate has made'
    )
  prepare_workdir(workdir, run)
  loop = Loop(run, workdir)
  for note in run.notes:
    loop.log.say(f'note: {note}')
  record(workdir, run, loop, started)
  with Signals() as signals:
    try:
      loop.train(signals)
      loop.checkpoints.wait()
    except BaseException:
      with contextlib.suppress(UserError, OSError):  # the reason is told, not what follows from it
        loop.checkpoints.wait()
        record(workdir, run, loop, started)
      raise
  loop.checkpoints.close()
  loop.log.close()
  digest = checkpoint.sha256(loop.state)
  record(workdir, run, loop, started, finished=now(), state_sha256=digest)
  if loop.broken:
    names = ', '.join(sorted(loop.broken)[:5]) + (' ...' if len(loop.broken) > 5 else '')
    loop.log.say(
      f'{len(loop.broken)} unreadable image(s) skipped: {names} (all in {workdir}/run.json; --mode=lint says why)'
    )
  model = predict.load(workdir)
  result = model.evaluate(run.c.data.val, examples=run.val, tune=True)
  for name, d in result['decode'].items():
    accuracies = ' '.join(
      f'{level} {v["top1"]:.4f}' for level, v in d['levels'].items() if v['top1'] is not None
    )
    loop.log.say(
      f'{run.c.data.val}, {result["n"]} images, {name}: {accuracies} full path {d["fpa"] or 0:.4f} HVR {d["hvr"]:.4f}'
    )
  for level, found in result.get('multi', {}).items():
    loop.log.say(
      f'{run.c.data.val}, {result["n"]} images, {level}: mAP macro {found["map_macro"] or 0:.4f} micro {found["map_micro"] or 0:.4f}; macro F1 '
      f'{found["before"]["f1_macro"] or 0:.4f} at .5, {found["after"]["f1_macro"] or 0:.4f} at the tuned thresholds'
    )
  model.explain(run.c.data.val, examples=run.val)
  embedding.write_embedding(
    pathlib.Path(workdir) / 'embedding_last.npz',
    model.eval_step,
    model.variables,
    run.val,
    run.c,
    model.mesh,
    run.taxonomy,
  )
  if run.c.baseline == 'train':
    loop.log.say('training the baseline: one head, ancestors read off')
    fit(baseline_config(run.c), workdir / 'baseline')
  if parallel.first():
    loop.log.say(f'report: {page.write(workdir)}')
  return {'step': loop.step, **result, 'state_sha256': digest}


@contextlib.contextmanager
def enough_disk(workdir: pathlib.Path):
  """A full or failing disk as a UserError with what is safe: a checkpoint has its number as its name only when it is whole."""
  try:
    yield
  except OSError as e:
    if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO):
      raise
    last = max(
      (int(p.name) for p in (workdir / 'checkpoints').glob('*') if p.name.isdigit()), default=None
    )
    good = (
      f'the checkpoint of step {last} is intact'
      if last is not None
      else 'there is no checkpoint yet'
    )
    raise UserError(
      f'{workdir}: cannot be written to ({e.strerror}); {good}; the same command goes on from there'
    ) from e


def now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def record(workdir: pathlib.Path, run: Run, loop: Loop, started: str, **end) -> None:
  """run.json: what the report says of a run beside its numbers; over all the times that it was resumed."""
  if not parallel.first():
    return
  path = workdir / 'run.json'
  if loop.before is None:
    try:
      loop.before = dict(json.loads(path.read_text())) if path.exists() and loop.step else {}
    except (OSError, ValueError, TypeError) as e:
      loop.before = {}
      loop.log.say(f'{path} is damaged ({e}): what it told of the time before is lost')
  packages = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
  loop.broken.update(loop.before.get('skipped', ()))
  files.write(
    path,
    json.dumps(
      {
        'command': shlex.join(sys.argv),
        'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
        'versions': {
          'python': platform.python_version(),
          **{p: importlib.metadata.version(p) for p in packages},
        },
        'started': loop.before.get('started', started),
        'finished': None,
        **{k: round(loop.before.get(k, 0) + v, 1) for k, v in loop.took().items()},
        **{k: round(v, 2) for k, v in log.memory().items()},
        'params': loop.params,
        'heads': list(run.levels),
        'classes': {level: run.taxonomy.num_classes(level) for level in run.taxonomy.levels},
        'train_examples': len(run.train.labels),
        'val_examples': len(run.val.labels),
        'phases': [dataclasses.asdict(p) for p in run.phases],
        'skipped': sorted(loop.broken),
        'notes': run.notes,
        'step': loop.step,
        **end,
      },
      indent=2,
    )
    + '\n',
  )


def baseline_config(c: ConfigDict) -> ConfigDict:
  """Run `c` without the hierarchy: one linear head on the finest level, plain cross-entropy, no phases, no balancer."""
  b, default = copy.deepcopy(c), config_lib.default()
  b.baseline, b.model.heads, b.model.normalize, b.train.best = None, 'flat', False, 'top1/finest'
  b.optim.heads_lr = b.optim.heads_growth = 1.0
  b.model.parts = ()
  b.model.head, b.curriculum, b.loss, b.balance = (
    default.model.head,
    default.curriculum,
    default.loss,
    default.balance,
  )
  return b
