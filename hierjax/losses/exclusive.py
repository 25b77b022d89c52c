"""Losses of exclusive levels, one class an example: pure functions of arrays.

Each returns float32 [B], one value an example, which is 0 without gradient where no label that it
needs is known. The caller averages, weighs and masks. Labels are int, -1 for unknown; a row of them
is that of some leaf of the taxonomy.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hierjax.taxonomy import Taxonomy
from hierjax.taxonomy.relations import group

# The log of no probability: exp gives 0, and unlike -inf it leaves no NaN in gradients.
LOW = -1e30
# The soft targets of a batch over the finest level: labels int [B] → float32 [B, C].
Targets = Callable[[jax.Array], jax.Array]


def cross_entropy(
  logits: jax.Array, labels: jax.Array, targets: Targets | None = None
) -> jax.Array:
  """Compute the cross-entropy -sum_c t_c log p_c.

  Args:
    logits: [B, C].
    labels: int [B].
    targets: gives the soft targets of labels; None for one-hot targets.

  Returns:
    float32 [B], 0 for an unknown label.
  """
  logp = jax.nn.log_softmax(logits.astype(jnp.float32))
  safe = jnp.maximum(labels, 0)
  if targets is None:
    loss = -jnp.take_along_axis(logp, safe[:, None], axis=1)[:, 0]
  else:
    loss = -jnp.sum(targets(safe) * logp, axis=1)
  return jnp.where(labels >= 0, loss, 0.0)


def smoothed_targets(taxonomy: Taxonomy, share: float, siblings: Sequence[str]) -> Targets:
  """Make the targets of hierarchical label smoothing (S0, section 3.3).

  Args:
    taxonomy: of the exclusive levels.
    share: what goes from the true class to its siblings, evenly.
    siblings: levels that siblings share; a class without sibling keeps 1.
  """
  columns = [taxonomy.index(level) for level in siblings]
  family = group(taxonomy.paths[:, columns])
  count = np.bincount(family)[family] - 1  # siblings of each class
  spread = np.where(count > 0, np.float32(share) / np.maximum(count, 1), 0).astype(np.float32)
  stays = jnp.asarray(1 - spread * count, jnp.float32)
  family = jnp.asarray(family)

  def targets(labels):
    true = jax.nn.one_hot(labels, len(family), dtype=bool)
    is_sibling = family[labels][:, None] == family[None]
    spread_out = jnp.where(is_sibling, jnp.asarray(spread)[labels][:, None], 0.0)
    return jnp.where(true, stays[labels][:, None], spread_out)

  return targets


def lca_targets(taxonomy: Taxonomy, beta: float) -> Targets:
  """Make soft labels softmax(-beta d / d_max), d the heights of lowest common ancestors.

  Making Better Mistakes (Bertinetto et al., arXiv:1912.09393), section 3.2.

  Args:
    taxonomy: of the exclusive levels.
    beta: large values give one-hot labels.
  """
  columns = jnp.asarray(taxonomy.paths.T)
  scale = beta / max(taxonomy.height(), 1)

  def targets(labels):
    height = sum((c[labels][:, None] != c[None]).astype(jnp.float32) for c in columns)
    return jax.nn.softmax(-scale * height)

  return targets


def agreement(labels: jax.Array, paths: np.ndarray) -> jax.Array:
  """Compute which leaves agree with the label of each level; an unknown label agrees with all.

  Args:
    labels: int [B, L].
    paths: int [leaf, L], the taxonomy's.

  Returns:
    bool [L, B, leaf].
  """
  y = labels.T[:, :, None]
  return (y < 0) | (y == jnp.asarray(paths).T[:, None])


def masked_logsumexp(values: jax.Array, mask: jax.Array) -> jax.Array:
  """Compute log sum exp of values [B, N] where mask [B, N] holds: [B]."""
  return jax.nn.logsumexp(jnp.where(mask, values, LOW), axis=1)


def any_level(logits: jax.Array, labels: jax.Array, paths: np.ndarray) -> jax.Array:
  """Compute -log of the probability of all leaves that agree with the known labels.

  An image that is only labelled "BMW" trains the sum over BMW's models. Where the finest label is
  known, it is cross-entropy.

  Args:
    logits: [B, leaf] of the finest level.
    labels: int [B, L].
    paths: int [leaf, L], the taxonomy's.
  """
  logp = jax.nn.log_softmax(logits.astype(jnp.float32))
  loss = -masked_logsumexp(logp, agreement(labels, paths).all(0))
  return jnp.where((labels >= 0).any(1), loss, 0.0)


def hxe(logits: jax.Array, labels: jax.Array, paths: np.ndarray, alpha: float) -> jax.Array:
  """Compute hierarchical cross-entropy, sum over levels k of exp(-alpha k) -log p(node_k | above).

  Making Better Mistakes (arXiv:1912.09393), section 3.1. A node is the set of leaves that share the
  row's classes of levels 0..k, so that facets nest too, and has their probability; an unknown label
  leaves the node as it is and costs nothing. alpha = 0 is `any_level`. The paper calls the exponent
  the node's height; its authors' code counts from the root, and so does this: coarse decisions
  weigh most. They divide by the sum of all nodes' weights; here the coarsest level weighs 1.

  Args:
    logits: [B, leaf] of the finest level.
    labels: int [B, L].
    paths: int [leaf, L], the taxonomy's.
    alpha: how fast the weights of finer levels fall.
  """
  logp = jax.nn.log_softmax(logits.astype(jnp.float32))
  agree = agreement(labels, paths)
  loss = above = 0.0  # the root has probability 1
  for k in range(paths.shape[1]):
    node = masked_logsumexp(logp, agree[: k + 1].all(0))
    weight = np.float32(np.exp(-alpha * k))
    loss += weight * jnp.where(labels[:, k] >= 0, above - node, 0.0)
    above = node
  return loss


def hace(logits: jax.Array, labels: jax.Array, paths: np.ndarray, dilution: float) -> jax.Array:
  """Compute hierarchy-aware cross-entropy, sum over the known levels of t_k -log p(class_k).

  HACE (Chan et al., arXiv:2605.06274): a class has the sum of its leaves' probabilities (equation
  2), and the target spreads from the true class to its ancestors, by the factor `dilution` less
  with each step up (equation 4). Here a step is a level that is known, t sums to 1, and the root,
  whose probability is 1, has no share. An image without a finest label starts at a coarser one.

  Args:
    logits: [B, leaf] of the finest level.
    labels: int [B, L].
    paths: int [leaf, L], the taxonomy's.
    dilution: 0 is cross-entropy; 1 is the mean over the levels.
  """
  logp, agree = jax.nn.log_softmax(logits.astype(jnp.float32)), agreement(labels, paths)
  loss = total = jnp.zeros(len(labels))
  weight = jnp.ones(len(labels))
  for k in reversed(range(paths.shape[1])):
    is_known = labels[:, k] >= 0
    loss -= jnp.where(is_known, weight * masked_logsumexp(logp, agree[k]), 0.0)
    total += jnp.where(is_known, weight, 0.0)
    weight *= jnp.where(is_known, dilution, 1.0)
  return loss / jnp.maximum(total, 1.0)


def soft_max_margin(
  logits: jax.Array, labels: jax.Array, paths: np.ndarray, margin: float
) -> jax.Array:
  """Compute log sum_i exp(z_i + margin d_i) - log sum exp z_i over the leaves that fit the labels.

  d_i is the share of the levels at which leaf i has another class than the labels say: with all
  known, the height of the lowest common ancestor over the tree's. Valmadre (2022, arXiv:2210.10929)
  has it with the distance in the tree, for leaves twice the height, and with 0 or 1. margin = 0 is
  `any_level`.

  Args:
    logits: [B, leaf] of the finest level.
    labels: int [B, L].
    paths: int [leaf, L], the taxonomy's.
    margin: of a leaf that shares nothing with the labels.
  """
  logp = jax.nn.log_softmax(logits.astype(jnp.float32))
  agree = agreement(labels, paths)
  distance = jnp.mean(~agree, axis=0)
  all_leaves = jax.nn.logsumexp(logp + margin * distance, 1)
  loss = all_leaves - masked_logsumexp(logp, agree.all(0))
  return jnp.where((labels >= 0).any(1), loss, 0.0)


def log_prior(labels: np.ndarray, classes: int) -> np.ndarray:
  """Compute the log of each class's share of the labels, for logit adjustment.

  Menon et al. (ICLR 2021, arXiv:2007.07314), equation 10: cross-entropy of logits + tau * log
  prior, by which rare classes get larger logits. At a coarser level it is the prior of its nodes.

  Args:
    labels: int [N] of the training split, -1 for unknown.
    classes: their number C.

  Returns:
    float32 [C]; a class without an example counts as one with one.
  """
  counts = np.maximum(np.bincount(labels[labels >= 0], minlength=classes), 1)
  return np.log(counts / counts.sum()).astype(np.float32)


def info_nce(logits: jax.Array, labels: jax.Array, clean: jax.Array | None = None) -> jax.Array:
  """Compute HCAL's contrast of features with prototypes (S2, equations 6 and 7).

  With the perturbed prototypes alone this is cross-entropy. With `clean`, both prototypes of the
  true class are positives, as equation 6 has it: the sum of their two terms, each against both and
  the perturbed ones of the other classes.

  Args:
    logits: [B, C], cosine / temperature with the perturbed prototypes.
    labels: int [B].
    clean: [B, C], the same with the unperturbed prototypes.
  """
  if clean is None:
    return cross_entropy(logits, labels)
  positive = jnp.take_along_axis(clean, jnp.maximum(labels, 0)[:, None], axis=1)
  both = jnp.concatenate([logits, positive], 1)
  last = jnp.where(labels >= 0, logits.shape[1], -1)
  return cross_entropy(both, labels) + cross_entropy(both, last)


def class_means(
  features: jax.Array, labels: jax.Array, classes: int, axis: str | None = None
) -> tuple[jax.Array, jax.Array]:
  """Compute the mean feature of each class in the batch, HCAL's aggregation (S2, eqs. 1 and 2).

  With the means as features and `where(present > 0, taxonomy.parents(child, parent), -1)` as labels
  it gives a parent's mean over the means of its children, each of equal weight.

  Args:
    features: [B, d].
    labels: int [B].
    classes: their number C.
    axis: of the mesh, where [B] is a device's part of the batch; every device gets the means of the
      whole batch.

  Returns:
    Means [C, d] and float32 [C], 1 where the class is present; both are 0 elsewhere.
  """
  member = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
  sums = jnp.matmul(member.T, features.astype(jnp.float32), precision='highest')
  counts = member.sum(0)
  if axis is not None:
    sums, counts = jax.lax.psum((sums, counts), axis)
  return sums / jnp.maximum(counts, 1)[:, None], (counts > 0).astype(jnp.float32)


def masked_mean(values: jax.Array, mask: jax.Array, axis: str | None = None) -> jax.Array:
  """Compute the mean of values [B] where mask [B] is above 0; 0 where it is so nowhere.

  Args:
    values: [B].
    mask: [B].
    axis: of the mesh, where [B] is a device's part of the batch; the result is then its share of
      the mean, and the shares add up to it.
  """
  count = jnp.sum(mask > 0)
  if axis is not None:
    count = jax.lax.psum(count, axis)
  return jnp.sum(jnp.where(mask > 0, values, 0.0)) / jnp.maximum(count, 1)
