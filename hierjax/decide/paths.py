"""Decisions on exclusive levels: from the probabilities of the heads to one class per level.

`independent` takes each head's best class, `leaf` reads all levels off the finest head's, `joint`
takes the best path of the taxonomy by all heads together.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hierjax.decide.calibration import most_likely_inverse
from hierjax.decide.subsets import LOWEST, condition
from hierjax.taxonomy import Taxonomy

# The logarithm of a probability that underflowed: very unlikely, yet finite, so that a weight of 0
# makes it 0.
TINY = np.finfo(np.float64).tiny
# The curvature of the prior of `tune`; the largest weight of a coarser head, the finest one's is 1.
PRIOR = 3.0
MAX_WEIGHT = 3.0
# What `tune` tries to multiply the likeliest weights by; the first of equals is taken.
FACTORS = (1.0, 0.75, 1.5, 0.5, 2.0, 0.25, 0.0)

TOP = 5  # classes ranked highest that a decision holds
BLOCK = 32  # neighbouring classes of which `top` first compares the maxima
SORTED = 500  # of so few scores, sorting all finds the highest faster than looking for each
# Fewer examples with a known path do not calibrate.
MIN_EXAMPLES = 100

# Per level float [N, C], None for a level without a head.
Probs = Sequence[np.ndarray | None]


class PathDecision(NamedTuple):
  """One class per example and level, with what ranked it.

  Attributes:
    pred: int32 [N, level].
    confidence: float64 [N, level], the probabilities of these classes.
    top: per level int32 [N, at most TOP], the classes ranked highest; the first is `pred`.
    outside: float64 [N], the probability of a class that is not allowed; None where all are.
    scores: per level float64 [N, C], which rank the classes.
    prob: per level float64 [N, C], the probability of each class; rows sum to 1.
  """

  pred: np.ndarray
  confidence: np.ndarray
  top: list[np.ndarray]
  outside: np.ndarray | None
  scores: list[np.ndarray] | None
  prob: list[np.ndarray] | None

  @classmethod
  def make(
    cls, scores: list[np.ndarray], prob: list[np.ndarray], outside: np.ndarray | None = None
  ) -> 'PathDecision':
    """Decide for the classes with the highest `scores`; `prob`, `outside`: see the attributes."""
    best = [top(x).astype(np.int32) for x in scores]
    pred, rows = np.stack([x[:, 0] for x in best], 1), np.arange(len(best[0]))
    confidence = np.stack([p[rows, pred[:, k]] for k, p in enumerate(prob)], 1)
    return cls(pred, confidence, best, outside, scores, prob)

  def reduce(self) -> 'PathDecision':
    """Return what is needed to judge the decision, however many classes there are."""
    return self._replace(scores=None, prob=None)


class PathRules(NamedTuple):
  """How `joint` decides, and how sure it is.

  Attributes:
    weights: {level: weight of its head}.
    temperature: divisor of the path scores, see `calibrate`.
    examples: number of examples that it was fitted on; 0 where it was not.
    gain: of full-path accuracy over the finest head alone, cross-fitted; None where not measured.
    gain_error: its standard error.
    allowed: bool [leaf], the finest classes that an image may have; None for all.
  """

  weights: Mapping[str, float]
  temperature: float = 1.0
  examples: int = 0
  gain: float | None = None
  gain_error: float | None = None
  allowed: np.ndarray | None = None


def independent(
  probs: Probs, taxonomy: Taxonomy, allowed: np.ndarray | None = None
) -> PathDecision:
  """Decide on each level by its own head; a level without one is read off the finest head's class.

  Args:
    probs: the probabilities of each level; the finest level needs a head.
    taxonomy: the table of these levels.
    allowed: bool [leaf], as in `joint`; each head is conditioned on their classes.
  """
  fallback = leaf(probs, taxonomy, allowed) if any(p is None for p in probs) else None
  scores, prob = [], []
  for k, p in enumerate(probs):
    if p is not None:
      p = np.asarray(p, np.float64)
      if allowed is not None:
        is_possible = np.isin(np.arange(p.shape[1]), taxonomy.paths[allowed, k])
        p = condition(np.log(np.maximum(p, TINY)), is_possible).prob
    scores.append(fallback.scores[k] if p is None else p)
    prob.append(fallback.prob[k] if p is None else p)
  return PathDecision.make(scores, prob)


def leaf(probs: Probs, taxonomy: Taxonomy, allowed: np.ndarray | None = None) -> PathDecision:
  """Decide by the finest head and read every ancestor off its class.

  That is `joint` without a weight on the coarser heads.
  """
  return joint(probs, taxonomy, np.eye(len(taxonomy.levels))[-1], allowed=allowed)


def joint(
  probs: Probs,
  taxonomy: Taxonomy,
  weights: Sequence[float],
  temperature: float = 1.0,
  allowed: np.ndarray | None = None,
) -> PathDecision:
  """Decide for the path of the taxonomy with the largest sum over levels of w_k log p_k.

  Levels without a head are skipped. A class of any level ranks by its best path; its probability is
  its share of softmax(path scores / temperature).

  Args:
    probs: the probabilities of each level; the finest level needs a head.
    taxonomy: the table of these levels.
    weights: w, one per level.
    temperature: above 1, the probabilities are less sure; the decision stays the same.
    allowed: bool [leaf], the leaves to condition on, see `subsets.condition`; None for all.
  """
  path_score = path_scores(probs, taxonomy, weights)
  posterior, outside = condition(path_score, allowed, temperature)
  if allowed is not None:
    path_score = np.where(allowed, path_score, -np.inf)
  best, rows = top(path_score, 1)[:, 0], np.arange(len(path_score))
  # among ties the predicted classes go first by one rounding step, so that ranks agree with them
  path_score[rows, best] = np.nextafter(path_score[rows, best], np.inf)
  scores, prob = taxonomy.merge(path_score, np.maximum), taxonomy.merge(posterior, np.add)
  return PathDecision.make(scores, prob, None if allowed is None else outside)


def path_scores(probs: Probs, taxonomy: Taxonomy, weights: Sequence[float]) -> np.ndarray:
  """Compute, for every leaf, the sum over the levels with a head of w_k log p_k at its class.

  Args:
    probs: the probabilities of each level.
    taxonomy: the table of these levels.
    weights: w, one per level.

  Returns:
    float64 [N, leaf].

  Raises:
    ValueError: the finest level has no head.
  """
  if probs[-1] is None:
    raise ValueError(
      f'decide: the finest level {taxonomy.levels[-1]!r} has no head; use '
      'taxonomy.coarsen(LEVEL) instead'
    )
  # down the levels as long as they nest
  scores, before = None, len(probs) - 1
  for k, (p, w) in enumerate(zip(probs, weights)):
    if p is None or not w:
      continue
    # the images of a class side by side, so that classes are moved as a whole
    x = np.maximum(np.asarray(p, np.float64, order='F'), TINY)
    np.log(x, out=x)
    if w != 1:
      x *= w
    if scores is not None and (k, before) in taxonomy.nested:
      x += scores.T[taxonomy.nested[k, before]].T
    elif scores is not None:
      x, k = x.T[taxonomy.paths[:, k]].T, len(probs) - 1
      x += scores.T[taxonomy.paths[:, before]].T
    scores, before = x, k
  return scores if before == len(probs) - 1 else scores.T[taxonomy.paths[:, before]].T


def _is_evidence(probs: Probs, taxonomy: Taxonomy, k: int) -> bool:
  """Whether level k has a head that says more than the sums of the leaves' probabilities do."""
  if probs[k] is None:
    return False
  # what some examples show holds of all
  p, leaves = (np.asarray(x[:1000], np.float64) for x in (probs[k], probs[-1]))
  sums = np.zeros_like(p)
  np.add.at(sums.T, taxonomy.paths[:, k], leaves.T)
  return not np.allclose(sums, p, atol=1e-5)


def top(scores: np.ndarray, n: int = TOP) -> np.ndarray:
  """Find the classes with the highest scores, the highest first, of equals the first.

  Args:
    scores: float [N, C].
    n: how many.

  Returns:
    int [N, at most n].
  """
  if scores.size <= SORTED:
    return np.argsort(-scores, 1, kind='stable')[:, :n]
  classes, rows = scores.shape[1], np.arange(len(scores))[:, None]
  if classes <= 2 * n * BLOCK:
    best = np.zeros((len(scores), min(n, classes)), int)
    # above those that are taken
    scores = np.maximum(scores, LOWEST, dtype=np.float64, order='C')
    for i in range(best.shape[1]):
      best[:, i] = scores.argmax(1)
      scores[rows, best[:, i : i + 1]] = -np.inf
    return best
  # they stand in the blocks with the highest maxima
  end = classes // BLOCK * BLOCK
  maxima = [scores[:, :end].reshape(len(scores), -1, BLOCK).max(2)]
  if end < classes:
    maxima.append(scores[:, end:].max(1, keepdims=True))
  blocks = np.sort(top(np.concatenate(maxima, 1), n), 1)
  columns = (blocks[:, :, None] * BLOCK + np.arange(BLOCK)).reshape(len(scores), -1)
  values = np.where(columns < classes, scores[rows, np.minimum(columns, classes - 1)], -np.inf)
  return columns[rows, top(values, n)]


def tune(
  probs: Probs, labels: np.ndarray, taxonomy: Taxonomy, limit: int = 20_000_000
) -> np.ndarray:
  """Fit the weights of `joint` by the likelihood of the true paths of validation examples.

  With p(path) = softmax(sum over levels of w_k log p_k) this is a conditional logit (McFadden
  1974), concave in w, here w >= 0, with the prior PRIOR/2 |w - the finest head alone|^2. Towards
  the fit of the finest head alone the weights shrink by max(0, 1 - K / G), in the manner of James
  and Stein, where G is the log likelihood gained by the K coarser heads; heads that know nothing
  gain about K/2 by chance. Last, the factor of FACTORS on the coarser heads' weights is taken
  with which most paths are right, as a more likely truth is not always the first choice. A search
  of all weights by the number of right paths, which only examples near a tie decide, chose worse
  on few examples but where labels are wrong (benchmarks/joint_weights.py). A level whose
  probabilities are sums over the leaves (heads `marginal` and `path_sum`) gets no weight.

  Args:
    probs: the probabilities of each level.
    labels: int [N, level]; examples whose finest class is unknown (-1) do not count.
    taxonomy: the table of these levels.
    limit: above so many scores (examples times leaves) an even subset of the examples is used.

  Returns:
    float64 [level], 1 for the finest one, at most MAX_WEIGHT.
  """
  labels = np.asarray(labels)
  weights = np.eye(len(taxonomy.levels))[-1]
  rows = np.flatnonzero(labels[:, -1] >= 0)
  coarse = [k for k in range(len(probs) - 1) if _is_evidence(probs, taxonomy, k)]
  if not len(rows) or not coarse:
    return weights
  rows = rows[:: -(-len(rows) * len(taxonomy.paths) // limit)]
  truth, logs = labels[rows, -1], []
  for k in [*coarse, len(taxonomy.levels) - 1]:
    log_p = np.log(np.maximum(np.asarray(probs[k], np.float64)[rows], TINY))
    log_p = log_p[:, taxonomy.paths[:, k]]
    logs.append(log_p - log_p[np.arange(len(rows)), truth][:, None])
  fitted, loss = _most_likely_weights(logs)
  alone, loss_alone = _most_likely_weights(logs[-1:])
  fitted[-1] -= alone[0]
  fitted *= 1 - len(coarse) / max(loss_alone - loss, len(coarse))
  fitted[-1] += alone[0]
  scale = max(fitted[-1], fitted.max() / MAX_WEIGHT, TINY)

  def count_right(coarse_weights):
    scores = sum(w * x for w, x in zip([*coarse_weights, 1.0], logs) if w)
    return (scores.argmax(-1) == truth).sum()

  trials = [np.minimum(np.round(f * fitted[:-1] / scale, 3), MAX_WEIGHT) for f in FACTORS]
  weights[coarse] = max(trials, key=count_right)
  return weights


def _most_likely_weights(logs, tolerance=1e-4, steps=50):
  """The w >= 0 [K] with the least sum(log sum exp(w logs)) + prior, by Newton's method; that least.

  `logs` are K arrays [n, leaves] of log(p / p of the truth).
  """
  prior_mean = np.eye(len(logs))[-1]

  def loss_and_posterior(w):
    scores = sum(v * x for v, x in zip(w, logs))
    highest = scores.max(-1, keepdims=True)
    p = np.exp(scores - highest)
    total = p.sum(-1, keepdims=True)
    return (np.log(total) + highest).sum() + PRIOR / 2 * np.sum((w - prior_mean) ** 2), p / total

  w = prior_mean
  loss, p = loss_and_posterior(w)
  for _ in range(steps):
    means = np.stack([(p * x).sum(-1) for x in logs])
    slope = means.sum(1) + PRIOR * (w - prior_mean)
    squares = np.array([[np.vdot(px, y) for y in logs] for px in (p * x for x in logs)])
    curvature = squares - means @ means.T + PRIOR * np.eye(len(w))
    step = _minimise_quadratic(curvature, slope, w) - w
    new_loss, new_p = loss_and_posterior(w + step)
    # a full step may be too long far from the optimum
    while new_loss > loss and np.abs(step).max() > tolerance:
      step = step / 2
      new_loss, new_p = loss_and_posterior(w + step)
    if new_loss <= loss:
      w, loss, p = w + step, new_loss, new_p
    if np.abs(step).max() <= tolerance:
      break
  return w, loss


def _minimise_quadratic(curvature, slope, start, sweeps=100):
  """The x >= 0 that minimises slope (x - start) + (x - start)' curvature (x - start) / 2."""
  x = start.copy()
  for _ in range(sweeps):
    for k in range(len(x)):
      gradient = slope[k] + curvature[k] @ (x - start)
      x[k] = max(0.0, x[k] - gradient / curvature[k, k])
  return x


def calibrate(
  probs: Probs,
  labels: np.ndarray,
  taxonomy: Taxonomy,
  weights: Sequence[float],
  limit: int = 10_000_000,
) -> PathRules:
  """Fit the temperature at which the true paths of validation examples are most likely.

  This is temperature scaling (Guo et al. 2017, arXiv:1706.04599), cross-fitted: the weights that
  score one half of the examples are tuned on the other half, so that no example serves for both.
  Fitted is the factor b on the weighted mean of the log probabilities, which the halves share
  whatever their weights; the temperature is the sum of the weights over b. Below MIN_EXAMPLES b is
  1: right if the heads all say the same, not sure enough if each knows something else. The same
  scores of each half tell what the weights gain on examples that did not tune them.

  Args:
    probs: the probabilities of each level.
    labels: int [N, level]; examples whose finest class is unknown (-1) do not count.
    taxonomy: the table of these levels.
    weights: those that the temperature is for, one per level, as `tune` gives them.
    limit: above so many scores (examples times leaves) an even subset of the examples is used.

  Returns:
    The rules: these weights, the temperature, which was fitted if `examples` is not 0, the gain.
  """
  labels, by_level = np.asarray(labels), dict(zip(taxonomy.levels, map(float, weights)))
  rows = np.flatnonzero(labels[:, -1] >= 0)
  if len(rows) < MIN_EXAMPLES:
    return PathRules(by_level, float(np.sum(weights)))
  rows = rows[:: -(-len(rows) * len(taxonomy.paths) // limit)]
  scores = np.empty((len(rows), len(taxonomy.paths)))
  for half in (0, 1):
    others, scored = (
      [None if p is None else p[rows[k::2]] for p in probs] for k in (1 - half, half)
    )
    half_weights = tune(others, labels[rows[1 - half :: 2]], taxonomy)
    scores[half::2] = path_scores(scored, taxonomy, half_weights) / half_weights.sum()
  truth = labels[rows, -1]
  gain = (scores.argmax(-1) == truth) * 1.0 - (probs[-1][rows].argmax(-1) == truth)
  temperature = float(f'{np.sum(weights) / most_likely_inverse(scores, truth):.4g}')
  error = gain.std(ddof=1) / np.sqrt(len(rows))
  return PathRules(by_level, temperature, len(rows), float(gain.mean()), float(error))


def recalibrate(
  probs: Probs, labels: np.ndarray, taxonomy: Taxonomy, rules: PathRules, limit: int = 10_000_000
) -> PathRules:
  """Fit the temperature on calibration examples, which the weights were not tuned on.

  Args:
    probs: the probabilities of each level.
    labels: int [N, level]; examples whose finest class is unknown (-1) do not count.
    taxonomy: the table of these levels.
    rules: of which all but the temperature stays.
    limit: above so many scores an even subset of the examples is used.

  Returns:
    The rules; unchanged below MIN_EXAMPLES.
  """
  weights = np.array([rules.weights.get(level, 1.0) for level in taxonomy.levels])
  rows = np.flatnonzero(labels[:, -1] >= 0)
  if len(rows) < MIN_EXAMPLES:
    return rules
  rows = rows[:: -(-len(rows) * len(taxonomy.paths) // limit)]
  scores = path_scores([None if p is None else p[rows] for p in probs], taxonomy, weights)
  truth = labels[rows, -1]
  if rules.allowed is not None:
    truth, scores = (np.cumsum(rules.allowed) - 1)[truth], scores[:, rules.allowed]
  inverse = most_likely_inverse(scores / weights.sum(), truth)
  temperature = float(f'{weights.sum() / inverse:.4g}')
  return rules._replace(temperature=temperature, examples=len(rows))
