"""Losses per example, pure functions of arrays. The caller averages, weighs and masks.

Each returns float32 [B], 0 without gradient for an example of which nothing is known that the loss needs. Labels are int, -1 unknown; rows of them are those
of some leaf (others are refused where data are read).
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from hierjax.core import config as config_lib
from hierjax.core.errors import UserError
from hierjax.taxonomy import Taxonomy

LOW = (
  -1e30
)  # the log of no probability: exp gives 0, and other than -inf it leaves no NaN in gradients


def cross_entropy(
  logits: jax.Array, labels: jax.Array, targets: jax.Array | None = None
) -> jax.Array:
  """-sum_c t_c log p_c. logits [B, C], labels int [B]; targets [C, C] holds a row of soft targets for each label, None is one-hot.

  Returns float32 [B]; a label of -1 (unknown) gives 0.
  """
  logp = jax.nn.log_softmax(logits.astype(jnp.float32))
  safe = jnp.maximum(labels, 0)
  if targets is None:
    loss = -jnp.take_along_axis(logp, safe[:, None], axis=1)[:, 0]
  else:
    loss = -jnp.sum(targets[safe] * logp, axis=1)
  return jnp.where(labels >= 0, loss, 0.0)


def smoothed_targets(taxonomy: Taxonomy, share: float, siblings: Sequence[str]) -> np.ndarray:
  """Hierarchical label smoothing (S0, section 3.3): 1 - share on the class, share spread evenly over the other classes that share its `siblings` levels.

  Returns float32 [C, C] over the finest level. A class without sibling keeps 1.
  """
  family = taxonomy.siblings(siblings).astype(np.float32)
  count = family.sum(1, keepdims=True)
  spread = np.where(count > 0, share * family / np.maximum(count, 1), 0)
  return (spread + np.diag(1 - spread.sum(1))).astype(np.float32)


def lca_targets(taxonomy: Taxonomy, beta: float) -> np.ndarray:
  """Soft labels softmax(-beta d / d_max), d the heights of lowest common ancestors (Making Better Mistakes, arXiv:1912.09393, section 3.2).

  Returns float32 [C, C] over the finest level; a large beta is one-hot.
  """
  d = taxonomy.lca_heights()
  weight = np.exp(-beta * d / max(d.max(), 1))
  return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def _agree(labels: jax.Array, paths: np.ndarray) -> jax.Array:
  """bool [L, B, leaf]: whether the label of that level is the leaf's, or unknown. labels [B, L], paths [leaf, L]."""
  y = labels.T[:, :, None]
  return (y < 0) | (y == jnp.asarray(paths).T[:, None])


def _log_sum(logp: jax.Array, leaves: jax.Array) -> jax.Array:
  """Log of the probability of a set of leaves, [B]. logp [B, leaf], leaves bool [B, leaf]."""
  return jax.nn.logsumexp(jnp.where(leaves, logp, LOW), axis=1)


def any_level(logits: jax.Array, labels: jax.Array, paths: np.ndarray) -> jax.Array:
  """-log of the probability of all leaves that agree with what is known: an image that is only a "BMW" trains the sum over BMW's models.

  logits [B, leaf] of the finest level, labels [B, L], paths [leaf, L] the taxonomy's. Cross-entropy where the finest label is known.
  """
  logp = jax.nn.log_softmax(logits.astype(jnp.float32))
  return jnp.where((labels >= 0).any(1), -_log_sum(logp, _agree(labels, paths).all(0)), 0.0)


def hxe(logits: jax.Array, labels: jax.Array, paths: np.ndarray, alpha: float) -> jax.Array:
  """Hierarchical cross-entropy (Making Better Mistakes, section 3.1): sum over levels k of exp(-alpha k) * -log p(node at k | node above).

  A node is the set of leaves that share a row's classes of the levels 0..k, so that facets nest too, and has their probability; an unknown label leaves the
  node as it is and costs nothing. alpha = 0 is any_level. The paper calls the exponent the node's height and says that it discounts "down the hierarchy";
  its authors' code counts from the root, and so does this: coarse decisions weigh most. They divide by the sum of all nodes' weights; here the coarsest
  level weighs 1. logits [B, leaf] of the finest level, labels [B, L], paths [leaf, L].
  """
  logp, agree = jax.nn.log_softmax(logits.astype(jnp.float32)), _agree(labels, paths)
  loss = above = 0.0
  for k in range(paths.shape[1]):
    node = _log_sum(logp, agree[: k + 1].all(0))
    loss += np.float32(np.exp(-alpha * k)) * jnp.where(labels[:, k] >= 0, above - node, 0.0)
    above = node
  return loss


def tree_path(logits: Mapping[str, jax.Array], labels: jax.Array, taxonomy: Taxonomy) -> jax.Array:
  """KL(path || softmax over the concatenated logits of all levels), the path uniform over a row's known classes (H-CAST, arXiv:2406.11608, section 3.3).

  A level that is unknown in a row is left out of its softmax as well. logits {level: [B, C]}, labels [B, L] of all the taxonomy's levels.
  """
  levels = [level for level in taxonomy.levels if level in logits]
  labels = labels[:, np.array([taxonomy.index(level) for level in levels])]
  known = labels >= 0
  logp = jax.nn.log_softmax(
    jnp.concatenate(
      [
        jnp.where(known[:, k, None], logits[level].astype(jnp.float32), LOW)
        for k, level in enumerate(levels)
      ],
      1,
    )
  )
  first = np.cumsum([0, *(taxonomy.num_classes(level) for level in levels)], dtype=np.int32)[
    None, :-1
  ]
  own = jnp.take_along_axis(logp, jnp.where(known, labels + first, 0), 1)
  count = jnp.maximum(known.sum(1), 1)
  return jnp.where(
    known.any(1),
    -jnp.where(known, own, 0.0).sum(1) / count - jnp.log(count.astype(jnp.float32)),
    0.0,
  )


def _implied(logp: jax.Array, column: np.ndarray, other: np.ndarray) -> jax.Array:
  """log q of another level's classes [B, C'] that follows from log p [B, C] of one level's: q(c') = sum over c of p(c) * share of c's leaves that are c'.

  column, other int [leaf]: the leaves' classes at the two levels.
  """
  leaves = (logp - np.log(np.bincount(column)).astype(np.float32)[None])[
    :, column
  ].T  # a class's probability is spread evenly over its leaves
  classes = int(other.max()) + 1
  top = jax.ops.segment_max(
    jax.lax.stop_gradient(leaves), other, classes
  )  # of each class: exp neither overflows nor loses all of them
  return (jnp.log(jax.ops.segment_sum(jnp.exp(leaves - top[other]), other, classes)) + top).T


def distribution_matching(logits: Mapping[str, jax.Array], taxonomy: Taxonomy) -> jax.Array:
  """CMT's coupling of predictions (Kollias et al., arXiv:2401.01219): -sum_c p(c) log q(c), the mean over the coarser levels.

  p is what a coarser level's head predicts, q what follows for that level from the finest head, as CMT's q mixes p(attribute | class) over classes. Both get
  gradients; a cross-entropy, unlike a divergence, also sharpens p. Labels play no part. logits {level: [B, C]} of at least two levels.
  """
  logp = {level: jax.nn.log_softmax(x.astype(jnp.float32)) for level, x in logits.items()}
  *coarser, finest = [
    level for level in taxonomy.levels if level in logits
  ]  # a dict's own order does not outlive jit
  column = lambda level: taxonomy.paths[:, taxonomy.index(level)]
  return sum(
    -(jnp.exp(logp[level]) * _implied(logp[finest], column(finest), column(level))).sum(1)
    for level in coarser
  ) / len(coarser)


def co_annotation(
  logits: Mapping[str, jax.Array], labels: jax.Array, taxonomy: Taxonomy
) -> jax.Array:
  """CMT's soft co-annotation: cross-entropy of each head with soft labels made from the labels of the other levels, the mean over the heads that get some.

  CMT scores a class by the share of its attributes that are annotated, and takes a softmax. In a table a leaf either agrees with the labels of the other levels
  or does not: a class's soft label is its share of the leaves that agree (a make's models are equally likely, a model's make is certain). A level's own
  label plays no part. logits {level: [B, C]}, labels [B, L] of all the taxonomy's levels.
  """
  agree, loss, count = _agree(labels, taxonomy.paths), 0.0, 0
  for level, x in logits.items():
    k = taxonomy.index(level)
    others = np.delete(np.arange(len(taxonomy.levels)), k)
    leaves, told = agree[others].all(0), (labels[:, others] >= 0).any(1)
    shares = jax.ops.segment_sum(
      leaves.T.astype(jnp.float32), taxonomy.paths[:, k], x.shape[1]
    ).T / jnp.maximum(leaves.sum(1, keepdims=True), 1)
    loss += jnp.where(told, -(shares * jax.nn.log_softmax(x.astype(jnp.float32))).sum(1), 0.0)
    count += told
  return loss / jnp.maximum(count, 1)


def info_nce(logits: jax.Array, labels: jax.Array, clean: jax.Array | None = None) -> jax.Array:
  """HCAL's contrast of features with prototypes (S2, equations 6 and 7), logits [B, C] = cosine / temperature with the perturbed ones: cross-entropy.

  With `clean` [B, C], those with the undisturbed ones, both prototypes of the own class are positives, as equation 6 has it: the sum of their two terms, each
  against both and the other classes' perturbed ones.
  """
  if clean is None:
    return cross_entropy(logits, labels)
  own = jnp.take_along_axis(clean, jnp.maximum(labels, 0)[:, None], axis=1)
  both = jnp.concatenate([logits, own], 1)
  return cross_entropy(both, labels) + cross_entropy(
    both, jnp.where(labels >= 0, logits.shape[1], -1)
  )


def class_means(
  features: jax.Array, labels: jax.Array, classes: int, axis: str | None = None
) -> tuple[jax.Array, jax.Array]:
  """HCAL's aggregation (S2, equations 1 and 2): the mean feature of each class [C, d] and, float32 [C], 1 where the class is present, else both are 0.

  features [B, d], labels [B]. With an axis of the mesh, [B] is a device's part of the batch, and every device gets the whole batch's means. The same with
  means for features and where(present > 0, taxonomy.parents(child, parent), -1) for labels gives a parent's mean over the means of its children, each
  of equal weight.
  """
  member = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
  sums, counts = (
    jnp.matmul(member.T, features.astype(jnp.float32), precision='highest'),
    member.sum(0),
  )
  if axis is not None:
    sums, counts = jax.lax.psum((sums, counts), axis)
  return sums / jnp.maximum(counts, 1)[:, None], (counts > 0).astype(jnp.float32)


def supervised_contrastive(
  features: jax.Array, labels: jax.Array, temperature: float, axis: str | None = None
) -> jax.Array:
  """Supervised contrastive loss (Khosla et al., arXiv:2004.11362, equation 2) on L2-normalised features, the mean over the levels.

  An example is compared with all others whose class is known at the level, its positives being those of its own class; without a positive the level gives 0.
  With an axis of the mesh, the others are those of the whole batch. features [B, d], labels [B, L].
  """
  x = features.astype(jnp.float32)
  x = x / jnp.sqrt(jnp.maximum((x * x).sum(1, keepdims=True), 1e-12))
  batch, y, first = x, labels, 0
  if axis is not None:
    batch, y = jax.lax.all_gather((x, labels), axis, tiled=True)
    first = jax.lax.axis_index(axis) * len(x)
  similar = jnp.matmul(x, batch.T, precision='highest') / temperature
  other = jnp.arange(len(batch))[None] != first + jnp.arange(len(x))[:, None]
  loss = 0.0
  for k in range(labels.shape[1]):
    counts = other & (y[:, k] >= 0)[None]
    positive = counts & (y[:, k][None] == labels[:, k][:, None])
    n = positive.sum(1)
    loss += jnp.where(
      n > 0,
      _log_sum(similar, counts) - jnp.where(positive, similar, 0.0).sum(1) / jnp.maximum(n, 1),
      0.0,
    )
  return loss / labels.shape[1]


def distillation(
  logits: Mapping[str, jax.Array],
  teacher: Mapping[str, jax.Array],
  known: Mapping[str, jax.Array],
  temperature: float,
) -> jax.Array:
  """What a teacher tells of the classes that it knows: temperature² KL(teacher || model), both a softmax at this temperature over these classes alone, the
  mean over the levels (Hinton et al. 2015, arXiv:1503.02531, section 2; Li and Hoiem 2016, Learning without Forgetting, arXiv:1606.09282, equation 2).

  logits, teacher {level: [B, C]}, known {level: bool [C]}. Gradients go to `logits`. Returns float32 [B].
  """
  loss = 0.0
  for level, x in logits.items():
    goal, logp = (
      jax.nn.log_softmax(jnp.where(known[level], z.astype(jnp.float32) / temperature, LOW))
      for z in (jax.lax.stop_gradient(teacher[level]), x)
    )
    loss += jnp.where(known[level], jnp.exp(goal) * (goal - logp), 0.0).sum(1)
  return temperature**2 * loss / len(logits)


def masked_mean(values: jax.Array, mask: jax.Array, axis: str | None = None) -> jax.Array:
  """Mean of values [B] where mask [B] is above 0; 0 where it is nowhere. With an axis of the mesh, [B] is a device's part of the batch, and the result is
  its share of the mean: the shares add up to it."""
  count = jnp.sum(mask > 0)
  return jnp.sum(jnp.where(mask > 0, values, 0.0)) / jnp.maximum(
    count if axis is None else jax.lax.psum(count, axis), 1
  )


# What a config makes of them.

# (logits [B, C] of a level, labels [B, L] of the taxonomy, the level's undisturbed logits) → values [B], and which of them count.
Loss = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
# ({level: a teacher's logits [B, C]}, {level: which classes it knows, bool [C]}); {} each without one
Told = tuple[Mapping[str, jax.Array], Mapping[str, jax.Array]]
# ({level: logits [B, C]}, features [B, d], labels [B, L], what a teacher says, axis) → values [B], and which of them count
Term = Callable[
  [Mapping[str, jax.Array], jax.Array, jax.Array, Told, str | None], tuple[jax.Array, jax.Array]
]
# (features [B, d], labels [B, L], axis) → {level: (mean features [C, d], labels [C, L] of such an example, which are there [C])}
Aggregate = Callable[
  [jax.Array, jax.Array, str | None], dict[str, tuple[jax.Array, jax.Array, jax.Array]]
]


def build(
  c: ConfigDict, taxonomy: Taxonomy, levels: Sequence[str]
) -> tuple[dict[str, Loss], dict[str, Term], Aggregate | None]:
  """Of the config's `loss`: the loss of each of `levels`, the further terms, and the aggregation of features, None where it is off."""
  finest, paths = taxonomy.levels[-1], taxonomy.paths
  columns = np.array([taxonomy.index(level) for level in levels])

  def of_level(level):
    k, targets = taxonomy.index(level), None
    if level == finest and c.loss.any_level:
      return lambda x, y, _: (any_level(x, y, paths), (y >= 0).any(1))
    if level == finest and c.loss.hxe:
      return lambda x, y, _: (hxe(x, y, paths, c.loss.hxe), (y >= 0).any(1))
    if c.loss.positives == 'both':
      return lambda x, y, clean: (info_nce(x, y[:, k], clean), y[:, k] >= 0)
    if level == finest and c.loss.smoothing:
      family = config_lib.resolve_levels(c.loss.siblings, taxonomy.levels, '--config.loss.siblings')
      targets = jnp.asarray(smoothed_targets(taxonomy, c.loss.smoothing, family))
    if level == finest and c.loss.lca:
      targets = jnp.asarray(lca_targets(taxonomy, c.loss.lca))
    return lambda x, y, _: (cross_entropy(x, y[:, k], targets), y[:, k] >= 0)

  terms = {
    'tree_path': lambda x, f, y, told, axis: (
      tree_path(x, y, taxonomy),
      (y[:, columns] >= 0).any(1),
    ),
    'distribution_matching': lambda x, f, y, told, axis: (
      distribution_matching(x, taxonomy),
      jnp.ones(len(y)),
    ),
    'co_annotation': lambda x, f, y, told, axis: (co_annotation(x, y, taxonomy), (y >= 0).any(1)),
    'supervised_contrastive': lambda x, f, y, told, axis: (
      supervised_contrastive(f, y[:, columns], c.loss.temperature, axis),
      (y[:, columns] >= 0).any(1),
    ),
    'distill': lambda x, f, y, told, axis: (
      distillation(x, *told, c.loss.distill_temperature),
      jnp.ones(len(y)),
    ),
  }
  chosen = config_lib.split_names(c.loss.terms)
  for name in chosen:
    if name not in terms:
      raise UserError(
        f'--config.loss.terms: no term {name!r}{config_lib.did_you_mean(name, terms)}; choices: {", ".join(terms)}'
      )
    if name == 'distribution_matching' and (len(levels) < 2 or levels[-1] != finest):
      raise UserError(
        f'--config.loss.terms={name} matches the heads of coarser levels with that of the finest; there is a head for {", ".join(levels)} only'
      )

  def aggregate(features, labels, axis):
    out, finer = {}, None
    for level in reversed(levels[:-1]):
      k, n = taxonomy.index(level), taxonomy.num_classes(level)
      if finer and c.loss.aggregate == 'children' and taxonomy.nests(finer, level):
        means, _, there = out[finer]
        means, present = class_means(
          means, jnp.where(there > 0, jnp.asarray(taxonomy.parents(finer, level)), -1), n
        )
      else:
        means, present = class_means(features, labels[:, k], n, axis)
      own = jnp.where(jnp.arange(labels.shape[1])[None] == k, jnp.arange(n)[:, None], -1)
      out[level], finer = (means, own, present), level
    return out

  return (
    {level: of_level(level) for level in levels},
    {name: terms[name] for name in terms if name in chosen},
    aggregate if c.loss.aggregate != 'none' else None,
  )
