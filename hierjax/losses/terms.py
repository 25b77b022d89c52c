"""Further losses beside those of the levels (loss.terms), and the registry that users add to.

A term is a function of `Inputs` that returns a value for each example and which of them count.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from hierjax.core.registry import Registry
from hierjax.core.segments import segment_logsumexp
from hierjax.losses.exclusive import LOW, agreement, masked_logsumexp
from hierjax.taxonomy import Taxonomy


class Teacher(NamedTuple):
  """What an earlier model predicts for the batch; both are empty without one.

  Attributes:
    logits: {level: [B, C]}.
    is_known: {level: bool [C]}, the classes that it had learned.
  """

  logits: Mapping[str, jax.Array]
  is_known: Mapping[str, jax.Array]


class Inputs(NamedTuple):
  """What a term is computed from; of several devices each has its part of the batch.

  Attributes:
    logits: {level: [B, C]} of the exclusive levels that have a head.
    features: [B, d], what the heads see.
    labels: int [B, L] of all exclusive levels, -1 for unknown.
    taxonomy: of the exclusive levels.
    options: config.loss.
    teacher: for distillation.
    axis: of the mesh, for collectives over the batch; None on a single device.
  """

  logits: Mapping[str, jax.Array]
  features: jax.Array
  labels: jax.Array
  taxonomy: Taxonomy
  options: ConfigDict
  teacher: Teacher
  axis: str | None

  @property
  def head_labels(self) -> jax.Array:
    """int [B, H]: the labels of the levels that have a head."""
    return self.labels[:, np.array([self.taxonomy.index(level) for level in self.logits])]


# Inputs → (values float32 [B], mask [B]: above 0 for the examples that count).
Term = Callable[[Inputs], tuple[jax.Array, jax.Array]]

LOSSES: Registry[Term] = Registry('term of the loss')


def register_loss(name: str, function: Term) -> Term:
  """Add a loss that configs can name in loss.terms, and weigh by loss.weights.

      def entropy(inputs):
        p = jax.nn.softmax(inputs.logits['model'])
        return -jnp.sum(p * jnp.log(p + 1e-8), axis=1), jnp.ones(len(p))

      hierjax.register_loss('entropy', entropy)

  Args:
    name: of letters, digits, '_', '-', '.'.
    function: `Inputs` → (values float32 [B], mask [B]); the loss is the mean of the values where
      the mask is above 0. It is traced by jax.

  Returns:
    The function.

  Raises:
    UserError: the name is taken or cannot be a name.
  """
  return LOSSES.register(name, function)


def tree_path(logits: Mapping[str, jax.Array], labels: jax.Array, taxonomy: Taxonomy) -> jax.Array:
  """Compute KL(path || softmax over the concatenated logits of all levels).

  The path is uniform over a row's known classes; a level that is unknown in a row is left out of
  its softmax as well. H-CAST (arXiv:2406.11608), section 3.3.

  Args:
    logits: {level: [B, C]}.
    labels: int [B, L] of all the taxonomy's levels.
    taxonomy: of the exclusive levels.

  Returns:
    float32 [B].
  """
  levels = [level for level in taxonomy.levels if level in logits]
  labels = labels[:, np.array([taxonomy.index(level) for level in levels])]
  is_known = labels >= 0
  parts = []
  for k, level in enumerate(levels):
    parts.append(jnp.where(is_known[:, k, None], logits[level].astype(jnp.float32), LOW))
  logp = jax.nn.log_softmax(jnp.concatenate(parts, 1))
  # where the classes of each level begin among the concatenated ones
  sizes = [taxonomy.num_classes(level) for level in levels]
  first = np.cumsum([0, *sizes], dtype=np.int32)[None, :-1]
  path = jnp.where(is_known, labels + first, 0)
  picked = jnp.take_along_axis(logp, path, 1)
  count = jnp.maximum(is_known.sum(1), 1)
  loss = -jnp.where(is_known, picked, 0.0).sum(1) / count - jnp.log(count.astype(jnp.float32))
  return jnp.where(is_known.any(1), loss, 0.0)


def _implied(logp: jax.Array, column: np.ndarray, other: np.ndarray) -> jax.Array:
  """log q [B, C'] of another level's classes that follows from log p [B, C] of one level's.

  q(c') = sum over c of p(c) times the share of c's leaves that are c'; column, other int [leaf] are
  the leaves' classes at the two levels.
  """
  # a class's probability is spread evenly over its leaves
  leaves = (logp - np.log(np.bincount(column)).astype(np.float32)[None])[:, column]
  return segment_logsumexp(leaves, other, int(other.max()) + 1)


def distribution_matching(logits: Mapping[str, jax.Array], taxonomy: Taxonomy) -> jax.Array:
  """Compute CMT's coupling of predictions -sum_c p(c) log q(c), the mean over the coarser levels.

  p is what a coarser level's head predicts, q what follows for that level from the finest head, as
  CMT's q mixes p(attribute | class) over classes. Both get gradients; a cross-entropy, unlike a
  divergence, also sharpens p. Labels play no part. Kollias et al. (arXiv:2401.01219).

  Args:
    logits: {level: [B, C]} of at least two levels.
    taxonomy: of the exclusive levels.

  Returns:
    float32 [B].
  """
  logp = {level: jax.nn.log_softmax(x.astype(jnp.float32)) for level, x in logits.items()}
  # jit sorts the keys of a dict, so the order comes from the taxonomy
  *coarser, finest = [level for level in taxonomy.levels if level in logits]
  columns = {level: taxonomy.paths[:, taxonomy.index(level)] for level in logits}
  losses = [
    -(jnp.exp(logp[level]) * _implied(logp[finest], columns[finest], columns[level])).sum(1)
    for level in coarser
  ]
  return sum(losses) / len(coarser)


def co_annotation(
  logits: Mapping[str, jax.Array], labels: jax.Array, taxonomy: Taxonomy
) -> jax.Array:
  """Compute CMT's soft co-annotation: cross-entropy with soft labels from the other levels' labels.

  CMT scores a class by the share of its attributes that are annotated, and takes a softmax. In a
  table a leaf either agrees with the labels of the other levels or does not: a class's soft label
  is its share of the leaves that agree (a make's models are equally likely, a model's make is
  certain). A level's own label plays no part. Kollias et al. (arXiv:2401.01219).

  Args:
    logits: {level: [B, C]}.
    labels: int [B, L] of all the taxonomy's levels.
    taxonomy: of the exclusive levels.

  Returns:
    float32 [B], the mean over the heads of which another level is labelled.
  """
  agree = agreement(labels, taxonomy.paths)  # [L, B, leaf]
  loss, count = 0.0, 0
  for level, x in logits.items():
    k = taxonomy.index(level)
    others = np.delete(np.arange(len(taxonomy.levels)), k)
    leaves = agree[others].all(0)  # [B, leaf]
    is_labelled = (labels[:, others] >= 0).any(1)
    numbers = jax.ops.segment_sum(leaves.T.astype(jnp.float32), taxonomy.paths[:, k], x.shape[1])
    shares = numbers.T / jnp.maximum(leaves.sum(1, keepdims=True), 1)  # [B, C]
    value = -(shares * jax.nn.log_softmax(x.astype(jnp.float32))).sum(1)
    loss += jnp.where(is_labelled, value, 0.0)
    count += is_labelled
  return loss / jnp.maximum(count, 1)


def supervised_contrastive(
  features: jax.Array, labels: jax.Array, temperature: float, axis: str | None = None
) -> jax.Array:
  """Compute the supervised contrastive loss on L2-normalised features, the mean over the levels.

  An example is compared with all others whose class is known at the level, its positives being
  those of the same class; without a positive the level gives 0. Khosla et al. (arXiv:2004.11362),
  equation 2.

  Args:
    features: [B, d].
    labels: int [B, L].
    temperature: that the cosines are divided by.
    axis: of the mesh; the others are then those of the whole batch.

  Returns:
    float32 [B].
  """
  x = features.astype(jnp.float32)
  x = x / jnp.sqrt(jnp.maximum((x * x).sum(1, keepdims=True), 1e-12))
  batch, y, first = x, labels, 0  # `first` is the number in the batch of this device's first row
  if axis is not None:
    batch, y = jax.lax.all_gather((x, labels), axis, tiled=True)
    first = jax.lax.axis_index(axis) * len(x)
  similar = jnp.matmul(x, batch.T, precision='highest') / temperature
  is_other = jnp.arange(len(batch))[None] != first + jnp.arange(len(x))[:, None]
  loss = 0.0
  for k in range(labels.shape[1]):
    counts = is_other & (y[:, k] >= 0)[None]
    positive = counts & (y[:, k][None] == labels[:, k][:, None])
    n = positive.sum(1)
    mean_positive = jnp.where(positive, similar, 0.0).sum(1) / jnp.maximum(n, 1)
    value = masked_logsumexp(similar, counts) - mean_positive
    loss += jnp.where(n > 0, value, 0.0)
  return loss / labels.shape[1]


def distillation(
  logits: Mapping[str, jax.Array], teacher: Teacher, temperature: float
) -> jax.Array:
  """Compute temperature² KL(teacher || model), the mean over the levels.

  Both are a softmax at this temperature over the classes that the teacher knows. Hinton et al. 2015
  (arXiv:1503.02531), section 2; Li and Hoiem 2016, Learning without Forgetting (arXiv:1606.09282),
  equation 2. Gradients go to `logits` alone.

  Args:
    logits: {level: [B, C]}.
    teacher: its logits and the classes that it knows.
    temperature: of both.

  Returns:
    float32 [B].
  """

  def log_softmax(x, is_known):
    scaled = x.astype(jnp.float32) / temperature
    return jax.nn.log_softmax(jnp.where(is_known, scaled, LOW))

  loss = 0.0
  for level, x in logits.items():
    is_known = teacher.is_known[level]
    target = log_softmax(jax.lax.stop_gradient(teacher.logits[level]), is_known)
    logp = log_softmax(x, is_known)
    loss += jnp.where(is_known, jnp.exp(target) * (target - logp), 0.0).sum(1)
  return temperature**2 * loss / len(logits)


def joint_distillation(
  logits: Mapping[str, jax.Array], taxonomy: Taxonomy, temperature: float
) -> jax.Array:
  """Compute the distillation of the joint posterior of all heads into the finest one.

  The posterior of a leaf is the softmax of the sum over the levels of log p of its classes, which
  is what the joint decision ranks by with weights of 1; it is a constant. The ensemble teaches its
  member, as in ONE (Lan et al. 2018, arXiv:1806.04606). Labels play no part, so images
  without a finest label teach it too.

  Args:
    logits: {level: [B, C]} of at least two levels.
    taxonomy: of the exclusive levels.
    temperature: of both.

  Returns:
    float32 [B], temperature² KL(posterior || finest head).
  """
  joint = 0.0
  for level, x in logits.items():
    logp = jax.nn.log_softmax(x.astype(jnp.float32))
    joint += logp[:, taxonomy.paths[:, taxonomy.index(level)]]
  finest = taxonomy.levels[-1]
  teacher = Teacher({finest: joint}, {finest: np.ones(joint.shape[1], bool)})
  return distillation({finest: logits[finest]}, teacher, temperature)


def _tree_path(x: Inputs):
  return tree_path(x.logits, x.labels, x.taxonomy), (x.head_labels >= 0).any(1)


def _distribution_matching(x: Inputs):
  return distribution_matching(x.logits, x.taxonomy), jnp.ones(len(x.labels))


def _co_annotation(x: Inputs):
  return co_annotation(x.logits, x.labels, x.taxonomy), (x.labels >= 0).any(1)


def _supervised_contrastive(x: Inputs):
  y = x.head_labels
  return supervised_contrastive(x.features, y, x.options.temperature, x.axis), (y >= 0).any(1)


def _distill(x: Inputs):
  values = distillation(x.logits, x.teacher, x.options.distill_temperature)
  return values, jnp.ones(len(x.labels))


def _joint_distill(x: Inputs):
  values = joint_distillation(x.logits, x.taxonomy, x.options.distill_temperature)
  return values, jnp.ones(len(x.labels))


LOSSES.register('tree_path', _tree_path)
LOSSES.register('distribution_matching', _distribution_matching)
LOSSES.register('co_annotation', _co_annotation)
LOSSES.register('supervised_contrastive', _supervised_contrastive)
LOSSES.register('distill', _distill)
LOSSES.register('joint_distill', _joint_distill)
