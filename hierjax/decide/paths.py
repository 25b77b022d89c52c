"""From the probabilities of the heads to one class per level: independent heads, read off the leaf, or the best valid path."""

import dataclasses

import numpy as np

from hierjax.taxonomy import Taxonomy

TINY = np.finfo(
  np.float64
).tiny  # log p of a probability that underflowed: very unlikely, yet finite, so that weight 0 times it is 0
WEIGHTS = (
  0.0,
  0.1,
  0.2,
  0.3,
  0.5,
  0.7,
  1.0,
  1.5,
  2.0,
  3.0,
)  # what tune() tries for each coarser head; the finest head counts 1


@dataclasses.dataclass(frozen=True)
class Decoded:
  """One class per example and level, with what ranked it."""

  pred: np.ndarray  # int32 [N, level]
  scores: list[np.ndarray]  # per level float64 [N, C]: ranks the classes; argmax == pred
  prob: list[np.ndarray]  # per level float64 [N, C]: probability of each class, rows sum to 1


def independent(probs, taxonomy: Taxonomy) -> Decoded:
  """Each level by its own head's argmax; a level without a head is read off the predicted finest class.

  probs: per taxonomy level float [N, C], or None without a head (the finest level needs one).
  """
  read_off = leaf(probs, taxonomy)
  scores = [s if p is None else np.asarray(p, np.float64) for p, s in zip(probs, read_off.scores)]
  prob = [q if p is None else np.asarray(p, np.float64) for p, q in zip(probs, read_off.prob)]
  pred = [read_off.pred[:, k] if p is None else p.argmax(-1) for k, p in enumerate(probs)]
  return Decoded(np.stack(pred, -1).astype(np.int32), scores, prob)


def leaf(probs, taxonomy: Taxonomy) -> Decoded:
  """The finest head decides and every ancestor is read off its class: joint() with no weight on the coarser heads."""
  return joint(probs, taxonomy, np.eye(len(taxonomy.levels))[-1])


def joint(probs, taxonomy: Taxonomy, weights) -> Decoded:
  """The valid path with the largest sum over levels of w_k log p_k; levels without a head are skipped.

  A class of any level ranks by its best path; its probability is its share of the posterior softmax(path scores).
  """
  score = path_scores(probs, taxonomy, weights)
  best = score.argmax(-1)
  pred = taxonomy.paths[best]
  posterior = np.exp(score - score.max(-1, keepdims=True))
  posterior /= posterior.sum(-1, keepdims=True)
  scores, prob = [], []
  for k in range(len(taxonomy.levels)):
    order = np.argsort(taxonomy.paths[:, k], kind='stable')  # the leaves class by class
    starts = np.searchsorted(taxonomy.paths[order, k], np.arange(len(taxonomy.names[k])))
    scores.append(_crown(np.maximum.reduceat(score[:, order], starts, axis=1), pred[:, k]))
    prob.append(np.add.reduceat(posterior[:, order], starts, axis=1))
  return Decoded(pred, scores, prob)


def path_scores(probs, taxonomy: Taxonomy, weights) -> np.ndarray:
  """float64 [N, leaf]: sum over the levels with a head of w_k log p_k at the leaf's class."""
  if probs[-1] is None:
    raise ValueError(
      f'decode: the finest level {taxonomy.levels[-1]!r} has no head; decode with taxonomy.coarsen(LEVEL) instead'
    )
  return sum(
    w * np.log(np.maximum(np.asarray(p, np.float64), TINY))[:, taxonomy.paths[:, k]]
    for k, (p, w) in enumerate(zip(probs, weights))
    if p is not None and w
  )


def _crown(scores, pred):
  """Where classes tie, the predicted one goes first by one rounding step, so that ranks agree with the decision."""
  rows = np.arange(len(scores))
  scores[rows, pred] = np.nextafter(scores[rows, pred], np.inf)
  return scores


def tune(probs, labels, taxonomy: Taxonomy, grid=WEIGHTS, limit: int = 20_000_000) -> np.ndarray:
  """Weights for joint(), float64 [level], finest 1: most full paths right on (validation) examples whose finest class is known.

  Coordinate search over the grid from two starts, leaf-only and all heads alike; ties go to leaf-only, then to the smaller sum, so a
  coarser head gets weight only where it helps. Above `limit` scores (examples times leaves) an even subset of the examples is used.
  """
  labels = np.asarray(labels)
  leaf_only = np.eye(len(taxonomy.levels))[-1]
  known = np.flatnonzero(labels[:, -1] >= 0)
  coarse = [k for k, p in enumerate(probs[:-1]) if p is not None]
  if not len(known) or not coarse:
    return leaf_only
  known = known[:: -(-len(known) * len(taxonomy.paths) // limit)]
  truth = labels[known, -1]
  logs = {
    k: np.log(np.maximum(np.asarray(probs[k], np.float64)[known], TINY))[:, taxonomy.paths[:, k]]
    for k in [*coarse, len(taxonomy.levels) - 1]
  }
  seen = {}

  def value(weights):  # the path is right exactly where its leaf is
    key = tuple(weights)
    if key not in seen:
      right = (sum(w * logs[k] for k, w in enumerate(key) if w).argmax(-1) == truth).sum()
      seen[key] = int(right), -sum(key), key
    return seen[key]

  for start in (0.0, 1.0):
    weights = leaf_only.copy()
    weights[coarse] = start
    best = None
    while best != value(weights):
      best = value(weights)
      for k in coarse:
        trials = np.repeat(weights[None], len(grid), 0)
        trials[:, k] = grid
        weights = max([weights, *trials], key=value)
  return np.array(max(seen.values())[2])
