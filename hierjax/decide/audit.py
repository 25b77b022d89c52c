"""Which labels are probably wrong, and at which level: label noise along the taxonomy.

A label is right, or wrong at a level: the first, from the coarsest, at which it differs from the
truth t; then it is one of the n_k(t) leaves that do so. With p(t) of an image by a model that never
saw its label, the label y has the likelihood e_0 p(y) + sum over levels of e_k A_k(y), where A_k(y)
sums p(t) / n_k(t) over the t that differ from y first at level k. The shares e are fitted to all
images by maximum likelihood (expectation maximisation, as Dawid and Skene 1979), so that a
contradiction weighs by how sure the model is there: makes are told apart where models are not.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from hierjax.decide import lineages
from hierjax.taxonomy import Taxonomy

BLOCK = 256  # examples
BUCKET = 1024  # images with one key that are compared with each other
STEPS, TOLERANCE = 500, 1e-7
TINY = 1e-12
TABLES, SEED, SIMILARITY = 24, 0, 0.97
LAPSES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
LOG_BOUNDS = (-3.0, 3.0)


class Evidence(NamedTuple):
  """What probabilities say of the labels of N examples.

  Attributes:
    likelihood: float64 [N, L + 1], of the label if it is right, and if it is wrong first at each
      level.
    leaf: int32 [N, L], the likeliest truth in each of these cases.
    prob: float64 [N, L + 1], the probabilities of the label's leaf and of these.
  """

  likelihood: np.ndarray
  leaf: np.ndarray
  prob: np.ndarray


class LabelNoise(NamedTuple):
  """How likely labels are wrong.

  Attributes:
    rates: float64 [L], the share of labels that are wrong first at each level.
    wrong: float64 [N, L], the probability of that for each example.
    level: int [N], the likeliest level, if the label is wrong.
    score: float64 [N], the expected number of levels at which the label is wrong, where all finer
      ones are too; it ranks the examples.
  """

  rates: np.ndarray
  wrong: np.ndarray
  level: np.ndarray
  score: np.ndarray


def evidence(prob: np.ndarray, labels: np.ndarray, taxonomy: Taxonomy) -> Evidence:
  """Compute what the noise of labels is fitted to; the parts of a data set can be concatenated.

  Args:
    prob: float [N, leaf], calibrated, by a model that was not fitted to these labels.
    labels: int [N], the leaf that each example is labelled with.
    taxonomy: the table of the exclusive levels.
  """
  n, levels = len(labels), len(taxonomy.levels)
  # the leaves that agree in the first k levels
  groups = [np.zeros(len(taxonomy.paths), int), *lineages.nodes(taxonomy.paths).of_leaf.T]
  sizes = [np.bincount(group)[group] for group in groups]
  likelihood = np.zeros((n, levels + 1))
  leaf = np.zeros((n, levels), np.int32)
  leaf_prob = np.zeros((n, levels + 1))
  for rows, p in lineages.blocks(prob, BLOCK * prob.shape[1]):
    y = labels[rows]
    each = np.arange(len(y))
    likelihood[rows, 0] = p[each, y]
    leaf_prob[rows, 0] = p[each, y]
    for k in range(levels):
      # leaves that differ from the label first at level k
      differs = groups[k] == groups[k][y, None]
      differs &= groups[k + 1] != groups[k + 1][y, None]
      number = np.maximum(sizes[k] - sizes[k + 1], 1)
      likelihood[rows, k + 1] = np.where(differs, p / number, 0).sum(1)
      best = np.where(differs, p, -1).argmax(1)
      leaf[rows, k] = best
      leaf_prob[rows, k + 1] = p[each, best] * differs[each, best]
  return Evidence(likelihood, leaf, leaf_prob)


def fit_levels(prob: np.ndarray, labels: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
  """Find a temperature for each level: of a node among those with the same node above.

  The labels are most likely at them. As some labels are wrong, one of LAPSES, the likeliest, is the
  share that says nothing.

  Args:
    prob: float [N, leaf], by a model that was not fitted to these labels.
    labels: int [N], the leaf that each example is labelled with.
    taxonomy: the table of the exclusive levels.

  Returns:
    float64 [L], the inverse temperatures.
  """
  tree = lineages.nodes(taxonomy.paths)
  inverses = []
  for k in range(len(taxonomy.levels)):
    log_share, parent, node_of_leaf = _shares(prob, tree, k)
    node = node_of_leaf[labels]
    siblings = np.bincount(parent)[parent][node]
    arguments = log_share, parent, node, siblings
    fitted = minimize_scalar(_labels_loss, args=arguments, bounds=LOG_BOUNDS)
    inverses.append(np.exp(fitted.x))
  return np.array(inverses)


def _labels_loss(log_b, log_share, parent, node, siblings):
  """Compute minus the mean log likelihood of the labels' nodes, of which some say nothing."""
  p = _temper(log_share, parent, np.exp(log_b))[np.arange(len(node)), node]
  return -max(np.log((1 - lapse) * p + lapse / siblings).mean() for lapse in LAPSES)


def temper_levels(prob: np.ndarray, inverses: Sequence[float], taxonomy: Taxonomy) -> np.ndarray:
  """Apply the temperatures of levels: p(leaf) = product over levels of p(node | node above) ** b.

  Args:
    prob: float [N, leaf].
    inverses: b, one per level; each factor is normalised among its siblings.
    taxonomy: the table of the exclusive levels.

  Returns:
    float64 [N, leaf], rows sum to 1.
  """
  tree = lineages.nodes(taxonomy.paths)
  result = np.ones(prob.shape)
  for k, b in enumerate(inverses):
    log_share, parent, node = _shares(prob, tree, k)
    result *= _temper(log_share, parent, b)[:, node]
  return result


def _shares(prob, tree, k):
  """Compute log p(node | node above) [N, V] at level k; int [V] the node above, int [leaf] its own.

  The nodes of each level are numbered from 0.
  """
  node = tree.of_leaf[:, k] - tree.of_leaf[:, k].min()
  parent = np.zeros(node.max() + 1, int)
  total = np.ones((len(prob), 1))
  if k:
    parent[node] = tree.of_leaf[:, k - 1] - tree.of_leaf[:, k - 1].min()
    total = lineages.node_sums(prob, tree, k)
  log_sums = np.log(np.maximum(lineages.node_sums(prob, tree, k + 1), TINY**2))
  log_total = np.log(np.maximum(total, TINY**2))
  return log_sums - log_total[:, parent], parent, node


def _temper(log_share, parent, b):
  """Raise the shares to the power b, normalised among siblings, which stand side by side."""
  share = np.exp(b * log_share)
  starts = np.unique(parent, return_index=True)[1]
  return share / np.add.reduceat(share, starts, axis=1)[:, parent]


def fit_noise(likelihood: np.ndarray) -> LabelNoise:
  """Fit the shares of wrong labels, and with them how likely each label is wrong.

  Args:
    likelihood: float [N, L + 1], of `evidence`.
  """
  levels = likelihood.shape[1] - 1
  # a label that is impossible in all cases counts as right
  likelihood = np.maximum(likelihood, TINY * np.eye(1, levels + 1))
  shares = np.array([1 - 0.01 * levels] + [0.01] * levels)
  for _ in range(STEPS):
    weights = likelihood * shares
    weights /= weights.sum(1, keepdims=True)
    before, shares = shares, weights.mean(0)
    if np.abs(shares - before).max() < TOLERANCE:
      break
  wrong = weights[:, 1:]
  wrong_levels = wrong @ np.arange(levels, 0, -1)
  return LabelNoise(shares[1:], wrong, wrong.argmax(1), wrong_levels)


def near_duplicates(features: np.ndarray) -> list[tuple[float, int, int]]:
  """Find images that are nearly the same: a cosine of SIMILARITY or more of centred features.

  Only pairs that agree in log2(N) random signs of their projections (Charikar 2002) in one of
  TABLES draws are compared, so that the cost grows with N log N.

  Args:
    features: float [N, d].

  Returns:
    [(cosine, i, j)] with i < j, the most similar first.
  """
  mean = np.mean(features, 0, dtype=np.float64).astype(np.float32)
  x = np.asarray(features, np.float32) - mean
  x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), TINY)
  rng = np.random.default_rng(SEED)
  bits = max(1, int(np.log2(max(len(x), 2))))
  pairs = {}
  for _ in range(TABLES):
    # images have one key whose projections have the same signs
    axes = rng.normal(size=(x.shape[1], bits)).astype(np.float32)
    keys = (x @ axes > 0) @ (1 << np.arange(bits))
    order = np.argsort(keys, kind='stable')
    changes = np.flatnonzero(np.diff(keys[order])) + 1
    ends = np.union1d(changes, np.arange(BUCKET, len(x), BUCKET))
    for rows in np.split(order, ends):
      cosines = np.triu(x[rows] @ x[rows].T, 1)
      for a, b in np.argwhere(cosines >= SIMILARITY):
        pair = int(rows[a]), int(rows[b])
        pairs[pair] = float(cosines[a, b])
  ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
  return [(cosine, i, j) for (i, j), cosine in ranked]
