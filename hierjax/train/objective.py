"""What is minimised: the losses of a run, their weights, and the tasks that a balancer weighs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hierjax.losses.balancers import Balancer
from hierjax.losses.build import Losses
from hierjax.losses.exclusive import masked_mean
from hierjax.losses.terms import Teacher
from hierjax.train import optim
from hierjax.train.mixing import Mixing, Partners


class ClassWeights(NamedTuple):
  """Weights of the examples by their class at one level, for data.balance=loss.

  Attributes:
    column: the level's column in the labels.
    values: float32 [C], the weight of each class.
  """

  column: int
  values: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """The constants of a run that its step is compiled with.

  Attributes:
    model: the classifier.
    losses: of its levels, and further terms.
    class_weights: of the examples, None where data.balance is not 'loss'.
    weights: {level or term: weight}. Those above 0 are the tasks that the balancer weighs.
    balancer: None where nothing but `weights` weighs the losses.
    balance_at: 'weights' or 'features', where the balancer compares gradients.
    labels: the optimiser label of each parameter (`optim.labels`).
    schedule: step → learning rate.
    momentum: step → momentum or Adam's beta1, None where it stays the same.
    clip: the largest global gradient norm; 0 or None for any.
    ema: the decay per step of the averaged variables.
    micro_batches: the parts that a batch is computed in, one after the other.
    seed: of dropout, of balancers that draw, and of mixing.
    mixing: of the images of a batch, None for none.
  """

  model: nn.Module
  losses: Losses
  class_weights: ClassWeights | None
  weights: Mapping[str, float]
  balancer: Balancer | None
  balance_at: str
  labels: Any
  schedule: optax.Schedule
  momentum: optax.Schedule | None
  clip: float | None
  ema: float | None
  micro_batches: int
  seed: int
  mixing: Mixing | None = None

  @property
  def names(self) -> tuple[str, ...]:
    """The levels and terms with a weight above 0."""
    return tuple(name for name, weight in self.weights.items() if weight)

  def names_in(self, phase: optim.Phase) -> tuple[str, ...]:
    """The levels and terms that train in a phase."""
    return tuple(name for name in self.names if name in phase.levels or name in self.losses.terms)

  def balancer_in(self, phase: optim.Phase) -> Balancer | None:
    """Return the balancer where a phase has something to balance, else None.

    A balancer knows the run's tasks, so it waits for a phase that trains all of them. One that
    compares the gradients of shared parameters also waits until these train.

    Args:
      phase: the phase of the curriculum.
    """
    if self.balancer is None or len(self.names) < 2 or self.names_in(phase) != self.names:
      return None
    if self.balancer.reads_gram and not {'backbone', 'heads/shared'}.isdisjoint(phase.freeze):
      return None
    return self.balancer

  def balances_weights_in(self, phase: optim.Phase) -> bool:
    """Tell whether the balancer compares the gradients of the shared weights in a phase.

    Args:
      phase: the phase of the curriculum.
    """
    balancer = self.balancer_in(phase)
    return balancer is not None and balancer.reads_gram and self.balance_at == 'weights'


class Objective(NamedTuple):
  """Losses and metrics of one device's part of the batch.

  Attributes:
    losses: {level or term: loss times its weight}, of those that train in the phase.
    metrics: {name: value}: 'loss', 'loss/NAME' without its weight, 'acc/LEVEL'.
  """

  losses: dict[str, jax.Array]
  metrics: dict[str, jax.Array]


def objective(
  head: Callable[[jax.Array, bool], Mapping[str, jax.Array]],
  features: jax.Array,
  labels: jax.Array,
  task: Task,
  phase: optim.Phase,
  teacher: Teacher,
  axis: str | None = None,
  partners: Partners | None = None,
) -> Objective:
  """Compute the losses of a phase, each the mean over the examples labelled at its level.

  Of mixed images each loss and metric is the mean of those with either image's labels, weighted by
  the images' shares. A cross-entropy is linear in its targets, so this is that of mixed targets.

  Args:
    head: (features [B, d], train) → {level: logits [B, C]}.
    features: float32 [B, d], one device's part of the batch.
    labels: int32 [B, L], -1 where unknown.
    task: the losses and their weights.
    phase: the levels whose loss counts.
    teacher: what an earlier model predicts, for distillation.
    axis: the axis of the mesh that the batch is split over, None on one device.
    partners: the other labels of mixed images; None where each shows one.

  Returns:
    The device's shares of the losses and metrics, which add up to those of the batch.
  """
  # clean logits are without HCAL's noise; XLA drops what no loss reads
  logits, clean = head(features, True), head(features, False)

  def measure(labels):
    return _measure(head, (features, logits, clean), labels, task, phase, teacher, axis)

  values, metrics = measure(labels)
  if partners is not None:
    share, others = partners.share, measure(partners.labels)
    values, metrics = jax.tree.map(
      lambda a, b: share * a + (1 - share) * b, (values, metrics), others
    )
  weighted = {name: task.weights[name] * values[name] for name in task.names_in(phase)}
  metrics |= {f'loss/{name}': value for name, value in values.items()}
  return Objective(weighted, {'loss': sum(weighted.values()), **metrics})


def _measure(head, outputs, labels, task, phase, teacher, axis) -> tuple[dict, dict]:
  """The losses {level or term: value}, without their weights, and {'acc/LEVEL': value}."""
  losses, weight = task.losses, _example_weights(labels, task.class_weights)
  features, logits, clean = outputs
  means = losses.aggregate(features, labels, axis) if losses.aggregate else {}
  values, metrics = {}, {}
  for block in losses.blocks:
    for level, loss in block(logits, clean, labels, weight).items():
      if level not in phase.levels:
        continue
      if level in means:
        values[level] = _aggregated_loss(head, block, level, means[level], axis)
      else:
        values[level] = masked_mean(loss.values, loss.mask, axis)
      metrics[f'acc/{level}'] = masked_mean(loss.correct, loss.labelled, axis)
  for name, term in losses.terms.items():
    per_example, mask = term(logits, features, labels, teacher, axis)
    values[name] = masked_mean(weight * per_example, mask, axis)
  return values, metrics


def _example_weights(labels: jax.Array, weights: ClassWeights | None) -> jax.Array | float:
  """float32 [B]: the weight of each example's class, 1 where that is unknown."""
  if weights is None:
    return 1.0
  target = labels[:, weights.column]
  return jnp.where(target >= 0, jnp.asarray(weights.values)[jnp.maximum(target, 0)], 1.0)


def _aggregated_loss(head, block, level, means, axis) -> jax.Array:
  """A device's share of the loss of the classes' mean features, which every device has."""
  features, labels, mask = means
  devices = 1 if axis is None else jax.lax.axis_size(axis)
  logits, clean = ({level: head(features, train)[level]} for train in (True, False))
  values = block(logits, clean, labels, 1.0)[level].values
  return masked_mean(values, mask) / devices
