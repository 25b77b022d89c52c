"""Which labels are probably wrong, and at which level: label noise along the taxonomy.

A label is right, or wrong at a level: the first, from the coarsest, at which it differs from the
truth t; then it is one of the n_k(t) leaves that do so. With p(t) of an image by a model that never
saw its label, the label y has the likelihood e_0 p(y) + sum over levels of e_k A_k(y), where A_k(y)
sums p(t) / n_k(t) over the t that differ from y first at level k. The shares e are fitted to all
images by maximum likelihood (expectation maximisation, as Dawid and Skene 1979), so that a
contradiction weighs by how sure the model is there: makes are told apart where models are not.
"""

from typing import NamedTuple

import numpy as np

from hierjax.taxonomy import Taxonomy

BLOCK = 256  # examples
BUCKET = 1024  # images with one key that are compared with each other
STEPS, TOLERANCE = 500, 1e-7
TINY = 1e-12
TABLES, SEED = 24, 0


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
  groups = [np.zeros(len(taxonomy.paths), int)]
  for k in range(levels):
    groups.append(np.unique(taxonomy.paths[:, : k + 1], axis=0, return_inverse=True)[1].ravel())
  sizes = [np.bincount(group)[group] for group in groups]
  result = Evidence(
    np.zeros((n, levels + 1)), np.zeros((n, levels), np.int32), np.zeros((n, levels + 1))
  )
  for start in range(0, n, BLOCK):
    rows = slice(start, min(start + BLOCK, n))
    p, y = np.asarray(prob[rows], np.float64), labels[rows]
    each = np.arange(len(y))
    result.likelihood[rows, 0] = result.prob[rows, 0] = p[each, y]
    for k in range(levels):
      differs = groups[k] == groups[k][y, None]
      differs &= groups[k + 1] != groups[k + 1][y, None]
      shares = np.where(differs, p / np.maximum(sizes[k] - sizes[k + 1], 1), 0)
      result.likelihood[rows, k + 1] = shares.sum(1)
      result.leaf[rows, k] = best = np.where(differs, p, -1).argmax(1)
      result.prob[rows, k + 1] = p[each, best] * differs[each, best]
  return result


def fit_noise(likelihood: np.ndarray) -> LabelNoise:
  """Fit the shares of wrong labels, and with them how likely each label is wrong.

  Args:
    likelihood: float [N, L + 1], of `evidence`.
  """
  levels = likelihood.shape[1] - 1
  shares = np.array([1 - 0.01 * levels] + [0.01] * levels)
  for _ in range(STEPS):
    weights = np.maximum(likelihood, TINY * np.eye(1, levels + 1)) * shares
    weights /= weights.sum(1, keepdims=True)
    before, shares = shares, weights.mean(0)
    if np.abs(shares - before).max() < TOLERANCE:
      break
  wrong = weights[:, 1:]
  return LabelNoise(shares[1:], wrong, wrong.argmax(1), wrong @ np.arange(levels, 0, -1))


def near_duplicates(features: np.ndarray, similarity: float = 0.97) -> list[tuple[float, int, int]]:
  """Find images that are nearly the same, by the cosine of their centred features.

  Only pairs that agree in log2(N) random signs of their projections (Charikar 2002) in one of
  TABLES draws are compared, so that the cost grows with N log N.

  Args:
    features: float [N, d].
    similarity: the least cosine.

  Returns:
    [(cosine, i, j)] with i < j, the most similar first.
  """
  x = np.asarray(features, np.float32) - np.mean(features, 0, dtype=np.float64).astype(np.float32)
  x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), TINY)
  rng, pairs = np.random.default_rng(SEED), {}
  bits = max(1, int(np.log2(max(len(x), 2))))
  for _ in range(TABLES):
    signs = x @ rng.normal(size=(x.shape[1], bits)).astype(np.float32) > 0
    keys = signs @ (1 << np.arange(bits))
    order = np.argsort(keys, kind='stable')
    ends = np.union1d(np.flatnonzero(np.diff(keys[order])) + 1, np.arange(BUCKET, len(x), BUCKET))
    for rows in np.split(order, ends):
      cosines = np.triu(x[rows] @ x[rows].T, 1)
      for a, b in zip(*np.nonzero(cosines >= similarity)):
        pairs[int(rows[a]), int(rows[b])] = float(cosines[a, b])
  return sorted(((s, i, j) for (i, j), s in pairs.items()), key=lambda p: (-p[0], p[1:]))
