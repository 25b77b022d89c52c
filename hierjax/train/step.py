"""The training step, a pure function: losses, gradients, balancing, update."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding

from hierjax.core import parallel
from hierjax.losses import balancing
from hierjax.losses.balancers import Balancer
from hierjax.losses.terms import Teacher
from hierjax.models import compute
from hierjax.train import mixing, optim, reduction
from hierjax.train.objective import Task, objective
from hierjax.train.state import TrainState

# {path of a parameter: array}, as flax.traverse_util.flatten_dict gives it
FlatParams = dict[tuple[str, ...], jax.Array]


class Gradients(NamedTuple):
  """Gradients of one micro-batch or batch, and what changes on the way to them.

  Attributes:
    grads: {path: gradient}; one of these a task, where they are balanced at the weights.
    metrics: as in `Objective`.
    batch_stats: the running statistics of the batch norms after it.
    balancer: the balancer's state after it.
    balance: what the balancer did, {'weight/NAME', 'cosine/A-B': value}.
  """

  grads: Any
  metrics: dict[str, jax.Array]
  batch_stats: Any
  balancer: Any
  balance: dict[str, jax.Array]


def balance(
  balancer: Balancer,
  task: Task,
  grads: Sequence[Any],
  state: Any,
  metrics: Mapping[str, jax.Array],
  key: jax.Array,
  axis: str | None = None,
) -> tuple[balancing.Shared, dict[str, jax.Array]]:
  """Combine the K tasks' gradients of what they share.

  Args:
    balancer: the method.
    task: the names of the tasks and their weights.
    grads: K trees, the gradients of the shared parameters or of the features.
    state: the balancer's state.
    metrics: of the whole batch, as in `Objective`.
    key: for balancers that draw, the same on all devices.
    axis: the axis of the mesh, where each device has its rows' part of the gradients.

  Returns:
    The outcome, and {'weight/NAME', 'cosine/A-B': value} to log.
  """
  names = task.names
  losses = jnp.stack([task.weights[name] * metrics[f'loss/{name}'] for name in names])
  accuracies = jnp.stack([metrics.get(f'acc/{name}', jnp.float32(jnp.nan)) for name in names])
  result = balancing.shared_gradient(
    balancer, losses, grads, state, axis=axis, accuracies=accuracies, key=key
  )
  cosines = balancing.cosines(result.gram)
  logged = {}
  for i, name in enumerate(names):
    logged[f'weight/{name}'] = task.weights[name] * result.shared_weights[i]
  for i, first in enumerate(names):
    for j, second in enumerate(names[i + 1 :], i + 1):
      logged[f'cosine/{first}-{second}'] = cosines[i, j]
  return result, logged


class ClassSplit(NamedTuple):
  """How a step splits the classes over the mesh's second axis, `parallel.CLASS_AXIS`.

  Trunks run by hand on each device's rows. The heads and their losses are left to XLA's
  partitioner, which computes the logits where their weights are and reduces a softmax's maximum and
  sum over the devices.

  Attributes:
    heads: the paths of the parameters that are split.
    mesh: the devices; None where the batch is split over the first axis, too, by a
      `jax.shard_map` around, which says it.
    unsplit: the sharding of what all of these devices have.
  """

  heads: frozenset[tuple[str, ...]]
  mesh: Mesh | None
  unsplit: jax.P | NamedSharding


class Context(NamedTuple):
  """What is the same for all micro-batches of a step.

  Attributes:
    task: the constants of the run.
    model: the classifier, which knows the axis of the mesh.
    phase: the phase of the curriculum.
    params: all parameters, those without a gradient too.
    teacher: {'variables', 'known': {level: bool [C]}} for distillation, {} without it.
    axis: the axis of the mesh that the batch is split over, None on one device.
    class_split: how the classes are split, None where each device has all of them.
    share: of an image where two are mixed, None where each shows one.
  """

  task: Task
  model: nn.Module
  phase: optim.Phase
  params: FlatParams
  teacher: Mapping
  axis: str | None
  class_split: ClassSplit | None
  share: jax.Array | None


class Forward(NamedTuple):
  """The forward pass of a micro-batch, and how to pull gradients back through it.

  Attributes:
    losses: float32 [K], weighted, of the levels and terms of the phase.
    metrics: as in `Objective`.
    batch_stats: the running statistics after it.
    pull_heads: gradient [K] of the losses → (gradients of the heads, gradient of the features).
    pull_trunk: gradient of the features → (gradients of the trunk,).
  """

  losses: jax.Array
  metrics: dict[str, jax.Array]
  batch_stats: Any
  pull_heads: Callable
  pull_trunk: Callable


def _trunk_features(trunk, images, others, batch_stats, key, context):
  """Features [B, d] of images, and the new batch_stats."""
  model, split, classes = context.model, context.class_split, parallel.CLASS_AXIS
  if split:
    axes = (context.axis, classes) if context.axis else classes
    model = compute.configured(model, batch_axis=axes)

  def apply(trunk, images, others, batch_stats, key):
    params = traverse_util.unflatten_dict({**others, **trunk})
    features, updated = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      images,
      context.phase.trains_backbone,
      mutable=['batch_stats'],
      rngs={'dropout': key},
      method='features',
    )
    return features, updated.get('batch_stats', batch_stats)

  if split:
    apply = jax.shard_map(
      apply,
      mesh=split.mesh,
      in_specs=(jax.P(), jax.P(classes), jax.P(), jax.P(), jax.P()),
      out_specs=(jax.P(classes), jax.P()),
      axis_names={classes},
      check_vma=False,
    )
  return apply(trunk, images, others, batch_stats, key)


def _head_losses(heads, features, batch, teacher, key, context):
  """The weighted losses [K] of the heads on features [B, d], and the metrics."""
  task, phase = context.task, context.phase
  params = traverse_util.unflatten_dict({**context.params, **heads})
  if context.class_split:
    # a device computes the logits of its classes for the rows of all that share out the classes
    unsplit = context.class_split.unsplit
    features, batch = jax.lax.with_sharding_constraint((features, batch), unsplit)

  def head(x, train):
    return context.model.apply({'params': params}, x, train, rngs={'dropout': key})[0]

  partners = None
  if context.share is not None:
    partners = mixing.Partners(batch['partners'], context.share)
  losses, metrics = objective(
    head, features, batch['labels'], task, phase, teacher, context.axis, partners
  )
  return jnp.stack([losses[name] for name in task.names_in(phase)]), metrics


def _forward(
  trained: FlatParams,
  batch_stats: Any,
  batch: Mapping[str, jax.Array],
  key: jax.Array,
  context: Context,
) -> Forward:
  """Run trunk and heads, each with its pull-back; a trunk of cached features has none."""
  trunk = {k: v for k, v in trained.items() if optim.group_of(k) == 'backbone'}
  heads = {k: v for k, v in trained.items() if k not in trunk}
  images, teacher = batch['image'], Teacher({}, {})
  if context.teacher:
    logits = context.model.apply(context.teacher['variables'], images)[0]
    teacher = Teacher(logits, context.teacher['known'])
  if images.ndim == 2:
    features, pull_trunk = images, lambda _: ({},)
  else:
    frozen = {k: v for k, v in context.params.items() if k not in trained}
    others = {**frozen, **heads}
    features, pull_trunk, batch_stats = jax.vjp(
      lambda trunk: _trunk_features(trunk, images, others, batch_stats, key, context),
      trunk,
      has_aux=True,
    )
  labels = {name: values for name, values in batch.items() if name != 'image'}
  losses, pull_heads, metrics = jax.vjp(
    lambda heads, x: _head_losses(heads, x, labels, teacher, key, context),
    heads,
    features,
    has_aux=True,
  )
  return Forward(losses, metrics, batch_stats, pull_heads, pull_trunk)


def micro_batch_gradients(
  trained: FlatParams,
  batch_stats: Any,
  balancer_state: Any,
  batch: Mapping[str, jax.Array],
  key: jax.Array,
  context: Context,
) -> Gradients:
  """Compute the gradients of one device's part of a micro-batch.

  The losses are differentiated with respect to the heads and the features, and the gradient of
  the features is pulled back through the trunk. With a balancer this happens loss by loss: up to
  the features, where the balancer combines them, or down to the weights (balance.at).

  Args:
    trained: the parameters with a gradient.
    batch_stats: the running statistics before it.
    balancer_state: the balancer's state before it.
    batch: 'image' uint8 [B, H, W, 3] (or cached features float32 [B, d]), 'labels' int32 [B, L],
      and 'partners', likewise, where images are mixed.
    key: of dropout.
    context: what is the same for all micro-batches.

  Returns:
    The device's shares of gradients and metrics.
  """
  task, phase, axis = context.task, context.phase, context.axis
  losses, metrics, batch_stats, pull_heads, pull_trunk = _forward(
    trained, batch_stats, batch, key, context
  )
  balancer = task.balancer_in(phase)
  if balancer is None:
    head_grads, feature_grad = pull_heads(jnp.ones(len(losses)))
    grads = {**pull_trunk(feature_grad)[0], **head_grads}
    return Gradients(grads, metrics, batch_stats, balancer_state, {})
  pulled = [pull_heads(one) for one in jnp.eye(len(losses))]
  if task.balances_weights_in(phase):
    grads = [{**pull_trunk(feature)[0], **head} for head, feature in pulled]
    return Gradients(grads, metrics, batch_stats, balancer_state, {})
  summed = jax.lax.psum(metrics, axis) if axis else metrics
  feature_grads = [feature for _, feature in pulled]
  balanced, logged = balance(balancer, task, feature_grads, balancer_state, summed, key, axis)
  trunk_grads = pull_trunk(balanced.gradient)[0]
  head_grads = balancing.weighted(balanced.loss_weights, [head for head, _ in pulled])
  grads = {**trunk_grads, **head_grads}
  return Gradients(grads, metrics, batch_stats, balanced.state, logged)


def batch_gradients(
  trained: FlatParams,
  batch_stats: Any,
  balancer_state: Any,
  batch: Mapping[str, Any],
  key: jax.Array,
  context: Context,
) -> Gradients:
  """Average the gradients of the micro-batches and add them up over the devices.

  Args:
    trained: the parameters with a gradient.
    batch_stats: the running statistics before the batch.
    balancer_state: the balancer's state before it.
    batch: one device's 'image', 'labels', 'partners' and 'flags' {name: float32 [1]}.
    key: of the step; each micro-batch has one made of it.
    context: what is the same for all micro-batches.

  Returns:
    The gradients and metrics of the whole batch; the flags, added up, are among the metrics.
  """
  axis, total, n = context.axis, None, context.task.micro_batches
  batch = dict(batch)
  flags = batch.pop('flags')
  # unrolled: a loop around a convolution's gradient is many times slower on a CPU
  for i in range(n):
    # every n-th example, from the i-th on
    part = {k: values.reshape(-1, n, *values.shape[1:])[:, i] for k, values in batch.items()}
    result = micro_batch_gradients(
      trained, batch_stats, balancer_state, part, jax.random.fold_in(key, i), context
    )
    batch_stats, balancer_state = result.batch_stats, result.balancer
    terms = (result.grads, result.metrics)
    total = terms if i == 0 else jax.tree.map(jnp.add, total, terms)
  grads, metrics = jax.tree.map(lambda x: x / n, total)
  flags = {name: raised.sum() for name, raised in flags.items()}
  if axis:
    split_heads = context.class_split.heads if context.class_split else frozenset()
    grads, metrics, flags = reduction.all_sum((grads, metrics, flags), split_heads, axis)
  return result._replace(grads=grads, metrics=metrics | flags)


def _balance_at_weights(
  result: Gradients, task: Task, phase: optim.Phase, key: jax.Array
) -> Gradients:
  """Combine the tasks' gradients of the shared weights; the others are weighed alone."""
  shared = [{k: v for k, v in grads.items() if optim.shared(k)} for grads in result.grads]
  others = [{k: v for k, v in grads.items() if not optim.shared(k)} for grads in result.grads]
  balancer = task.balancer_in(phase)
  balanced, logged = balance(balancer, task, shared, result.balancer, result.metrics, key)
  grads = {**balancing.weighted(balanced.loss_weights, others), **balanced.gradient}
  return result._replace(grads=grads, balancer=balanced.state, balance=logged)


def _update(
  state: TrainState,
  result: Gradients,
  flat: FlatParams,
  task: Task,
  tx: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """The state after the update with these gradients; learning rate and gradient norm."""
  grads = result.grads
  norm = optax.tree.norm(grads)
  if task.clip:
    clip = task.clip
    grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12)), grads)
  zeros = {k: jnp.zeros_like(v) for k, v in flat.items() if k not in grads}
  cycled = {'momentum': task.momentum(state.step)} if task.momentum else {}
  updates, opt_state = tx.update(
    traverse_util.unflatten_dict({**zeros, **grads}), state.opt_state, state.params, **cycled
  )
  lr = task.schedule(state.step) * (state.plateau.scale if state.plateau else 1.0)
  updates = traverse_util.flatten_dict(updates)
  params = {k: v - lr * updates[k] if k in grads else v for k, v in flat.items()}
  variables = {'params': traverse_util.unflatten_dict(params), 'batch_stats': result.batch_stats}
  ema = state.ema
  if ema:
    share = optim.averaging_share(task.ema, state.step + 1)
    ema = jax.tree.map(lambda e, p: e + share * (p - e), ema, variables)
  state = state.replace(
    step=state.step + 1, opt_state=opt_state, ema=ema, balancer=result.balancer, **variables
  )
  return state, {'lr': lr, 'grad_norm': norm, **cycled}


def train_step(
  state: TrainState,
  batch: Mapping[str, Any],
  teacher: Mapping,
  task: Task,
  phase: optim.Phase,
  tx: optax.GradientTransformationExtraArgs,
  mesh: Mesh,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Update the state once.

  Frozen groups are constants: no gradient is computed for them, and a frozen backbone runs with
  its running statistics. Each device takes the gradient of its share of the loss on its rows of
  the batch; one reduction adds up gradients, metrics and the flags by which one process tells all
  of them to do something at the same step. With accumulation, a balancer balances each
  micro-batch at the features, but their mean at the weights.

  Args:
    state: the state before.
    batch: 'image', 'labels' and 'flags', as `parallel.put_train` gives them.
    teacher: {'variables', 'known'} for distillation, {} without it.
    task: the constants of the run.
    phase: the phase of the curriculum.
    tx: the phase's optimiser (`optim.transformation`).
    mesh: the devices.

  Returns:
    The state after it, and the metrics by name, float32 [].
  """
  flat = traverse_util.flatten_dict(state.params)
  trained = {k: flat[k] for k in optim.trained(task.labels, phase.freeze)}
  key = jax.random.fold_in(jax.random.key(task.seed), state.step)
  batch, share = dict(batch), None
  if task.mixing:
    # before the batch is split: the same pairs however it is
    batch, share = mixing.mix(task.mixing, batch, jax.random.fold_in(key, task.micro_batches + 1))
  # XLA would leave a reduction over one device in the program, as copies
  axis = parallel.AXIS if mesh.shape[parallel.AXIS] > 1 else None
  model, split = compute.configured(task.model, batch_axis=axis), _class_split(trained, mesh)

  def gradients(trained, batch_stats, balancer_state, batch, teacher):
    context = Context(task, model, phase, flat, teacher, axis, split, share)
    return batch_gradients(trained, batch_stats, balancer_state, batch, key, context)

  if axis:
    gradients = jax.shard_map(
      gradients,
      mesh=mesh,
      in_specs=(jax.P(), jax.P(), jax.P(), jax.P(axis), jax.P()),
      out_specs=jax.P(),
      axis_names={axis},
      check_vma=False,
    )
  result = gradients(trained, state.batch_stats, state.balancer, batch, teacher)
  if task.balances_weights_in(phase):
    result = _balance_at_weights(result, task, phase, jax.random.fold_in(key, task.micro_batches))
  names = task.names_in(phase)
  weights = {f'weight/{name}': weight * (name in names) for name, weight in task.weights.items()}
  state, logged = _update(state, result, flat, task, tx)
  return state, {**result.metrics, **weights, **result.balance, **logged}


def _class_split(trained: FlatParams, mesh: Mesh) -> ClassSplit | None:
  """How the classes of the trained parameters are split over a mesh."""
  classes = (parallel.CLASS_AXIS,)
  if mesh.shape[parallel.CLASS_AXIS] == 1:
    return None
  heads = frozenset(
    path
    for path, x in trained.items()
    if path[0] == 'heads' and parallel.shared_out(x.shape, mesh, classes).spec
  )
  if mesh.shape[parallel.AXIS] == 1:
    return ClassSplit(heads, mesh, parallel.replicated(mesh))
  return ClassSplit(heads, None, jax.P())


def stepper(
  task: Task,
  phase: optim.Phase,
  tx: optax.GradientTransformation,
  mesh: Mesh,
  shardings: TrainState | None = None,
) -> Callable:
  """Compile the step of a phase over a mesh.

  Args:
    task: the constants of the run.
    phase: the phase of the curriculum.
    tx: the phase's optimiser.
    mesh: the devices.
    shardings: of the state, see `state.shardings`; None where all of it is replicated.

  Returns:
    (state, batch, teacher) → (state, metrics); it donates the state that it is given.
  """
  replicated, split = parallel.replicated(mesh), parallel.split(mesh)
  shardings = shardings or replicated
  return jax.jit(
    functools.partial(train_step, task=task, phase=phase, tx=tx, mesh=mesh),
    in_shardings=(shardings, split, replicated),
    out_shardings=(shardings, replicated),
    donate_argnums=0,
    compiler_options=compute.compiler_options(),
  )
