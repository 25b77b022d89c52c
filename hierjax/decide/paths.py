"""Decisions on exclusive levels: from the probabilities of the heads to one class per level.

`independent` takes each head's best class, `leaf` reads all levels off the finest head's, `joint`
takes the best path of the taxonomy by all heads together.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hierjax.decide.calibration import even_subset, most_likely_inverse
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
# Of Newton's method: its steps, the step that ends it, and passes over the weights in each.
STEPS, TOLERANCE, SWEEPS = 50, 1e-4, 100
# Fewer examples with a known path do not calibrate.
MIN_EXAMPLES = 100
# Scores, examples times leaves, above which an even subset of the examples calibrates.
MAX_SCORES = 10_000_000

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
    best = [top(level_scores).astype(np.int32) for level_scores in scores]
    pred = np.stack([classes[:, 0] for classes in best], 1)
    rows = np.arange(len(pred))
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
  fallback = None
  if any(p is None for p in probs):
    fallback = leaf(probs, taxonomy, allowed)
  scores, prob = [], []
  for k, p in enumerate(probs):
    if p is None:
      scores.append(fallback.scores[k])
      prob.append(fallback.prob[k])
      continue
    p = np.asarray(p, np.float64)
    if allowed is not None:
      is_possible = np.isin(np.arange(p.shape[1]), taxonomy.paths[allowed, k])
      p = condition(np.log(np.maximum(p, TINY)), is_possible).prob
    scores.append(p)
    prob.append(p)
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
  if allowed is None:
    outside = None
  else:
    path_score = np.where(allowed, path_score, -np.inf)
  rows = np.arange(len(path_score))
  best = top(path_score, 1)[:, 0]
  # among ties the predicted classes go first by one rounding step, so that ranks agree with them
  path_score[rows, best] = np.nextafter(path_score[rows, best], np.inf)
  scores = taxonomy.merge(path_score, np.maximum)
  prob = taxonomy.merge(posterior, np.add)
  return PathDecision.make(scores, prob, outside)


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
  finest = len(probs) - 1
  # the sums of the levels so far, float64 [N, C] for the classes of level `last`
  scores, last = None, finest
  for k, (p, weight) in enumerate(zip(probs, weights)):
    if p is None or not weight:
      continue
    # the images of a class side by side, so that classes are moved as a whole
    log_p = np.maximum(np.asarray(p, np.float64, order='F'), TINY)
    np.log(log_p, out=log_p)
    if weight != 1:
      log_p *= weight
    if scores is not None and (k, last) in taxonomy.nested:
      # every class has one parent, whose sum it takes on
      log_p += _columns(scores, taxonomy.nested[k, last])
    elif scores is not None:
      # only leaves have one class of both levels
      log_p = _columns(log_p, taxonomy.paths[:, k])
      log_p += _columns(scores, taxonomy.paths[:, last])
      k = finest
    scores, last = log_p, k
  return scores if last == finest else _columns(scores, taxonomy.paths[:, last])


def _columns(scores, classes):
  """Return scores[:, classes], by rows of the transpose, which lie in one piece."""
  return scores.T[classes].T


def _is_evidence(probs: Probs, taxonomy: Taxonomy, k: int) -> bool:
  """Whether level k has a head that says more than the sums of the leaves' probabilities do."""
  if probs[k] is None:
    return False
  # what some examples show holds of all
  p = np.asarray(probs[k][:1000], np.float64)
  leaf_prob = np.asarray(probs[-1][:1000], np.float64)
  sums = np.zeros_like(p)
  np.add.at(sums.T, taxonomy.paths[:, k], leaf_prob.T)
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
  if scores.shape[1] <= 2 * n * BLOCK:
    return _top_one_by_one(scores, n)
  return _top_by_blocks(scores, n)


def _top_one_by_one(scores, n):
  """Take the highest class n times, each time without those that are taken."""
  rows = np.arange(len(scores))
  best = np.zeros((len(scores), min(n, scores.shape[1])), int)
  # a copy, in which no score is as low as those that are taken become
  scores = np.maximum(scores, LOWEST, dtype=np.float64, order='C')
  for i in range(best.shape[1]):
    best[:, i] = scores.argmax(1)
    scores[rows, best[:, i]] = -np.inf
  return best


def _top_by_blocks(scores, n):
  """Search the n blocks of neighbouring classes with the highest maxima: all others are lower."""
  count, classes = scores.shape
  end = classes // BLOCK * BLOCK  # of the last block that is full
  maxima = [scores[:, :end].reshape(count, -1, BLOCK).max(2)]
  if end < classes:
    maxima.append(scores[:, end:].max(1, keepdims=True))
  # in ascending order, so that of equal classes the first is taken
  blocks = np.sort(top(np.concatenate(maxima, 1), n), 1)
  columns = blocks[:, :, None] * BLOCK + np.arange(BLOCK)
  columns = columns.reshape(count, -1)
  rows = np.arange(count)[:, None]
  # the last block may end beyond the last class
  values = scores[rows, np.minimum(columns, classes - 1)]
  values = np.where(columns < classes, values, -np.inf)
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
  finest = len(probs) - 1
  coarse = [k for k in range(finest) if _is_evidence(probs, taxonomy, k)]
  if not len(rows) or not coarse:
    return weights
  rows = even_subset(rows, len(taxonomy.paths), limit)
  truth = labels[rows, -1]
  logs = []  # per level with a weight log(p of each leaf's class / p of the true leaf's) [n, leaf]
  for k in (*coarse, finest):
    log_p = np.log(np.maximum(np.asarray(probs[k][rows], np.float64), TINY))
    log_p = log_p[:, taxonomy.paths[:, k]]
    logs.append(log_p - log_p[np.arange(len(truth)), truth][:, None])
  fitted, loss = _most_likely_weights(logs)
  alone, loss_alone = _most_likely_weights(logs[-1:])
  gained = max(loss_alone - loss, len(coarse))
  fitted[-1] -= alone[0]
  fitted *= 1 - len(coarse) / gained
  fitted[-1] += alone[0]
  # what the finest head's weight is divided by to be 1
  scale = max(fitted[-1], fitted.max() / MAX_WEIGHT, TINY)

  def count_right(coarse_weights):
    scores = sum(w * x for w, x in zip([*coarse_weights, 1.0], logs) if w)
    return (scores.argmax(-1) == truth).sum()

  trials = [np.round(factor * fitted[:-1] / scale, 3) for factor in FACTORS]
  weights[coarse] = max((np.minimum(trial, MAX_WEIGHT) for trial in trials), key=count_right)
  return weights


def _most_likely_weights(logs):
  """Find the weights >= 0 [K] with the least loss by Newton's method; return them and the loss.

  The loss is sum(log sum exp(weights logs)) + prior. `logs` are K arrays [n, leaves] of log(p / p
  of the truth).
  """
  prior_mean = np.eye(len(logs))[-1]

  def loss_and_posterior(weights):
    scores = sum(w * x for w, x in zip(weights, logs))
    highest = scores.max(-1, keepdims=True)
    p = np.exp(scores - highest)
    total = p.sum(-1, keepdims=True)
    log_loss = (np.log(total) + highest).sum()
    penalty = PRIOR / 2 * np.sum((weights - prior_mean) ** 2)
    return log_loss + penalty, p / total

  weights = prior_mean
  loss, p = loss_and_posterior(weights)
  for _ in range(STEPS):
    gradient, curvature = _derivatives(logs, p, weights, prior_mean)
    step = _minimise_quadratic(curvature, gradient, weights) - weights
    new_loss, new_p = loss_and_posterior(weights + step)
    # a full step may be too long far from the optimum
    while new_loss > loss and np.abs(step).max() > TOLERANCE:
      step = step / 2
      new_loss, new_p = loss_and_posterior(weights + step)
    if new_loss <= loss:
      weights, loss, p = weights + step, new_loss, new_p
    if np.abs(step).max() <= TOLERANCE:
      break
  return weights, loss


def _derivatives(logs, p, weights, prior_mean):
  """Compute gradient [K] and Hessian [K, K] of that loss, where p [n, leaves] is the posterior."""
  # the means and covariances of the logs under p, summed over the examples
  means = np.zeros((len(logs), len(p)))
  squares = np.zeros((len(logs), len(logs)))
  for i, x in enumerate(logs):
    weighted = p * x
    means[i] = weighted.sum(-1)
    squares[i] = [np.vdot(weighted, y) for y in logs]
  gradient = means.sum(1) + PRIOR * (weights - prior_mean)
  curvature = squares - means @ means.T + PRIOR * np.eye(len(weights))
  return gradient, curvature


def _minimise_quadratic(curvature, slope, start):
  """Find the x >= 0 that minimises slope (x - start) + (x - start)' curvature (x - start) / 2."""
  x = start.copy()
  # each coordinate in turn goes to its minimum
  for _ in range(SWEEPS):
    for k in range(len(x)):
      gradient = slope[k] + curvature[k] @ (x - start)
      x[k] = max(0.0, x[k] - gradient / curvature[k, k])
  return x


def calibrate(
  probs: Probs, labels: np.ndarray, taxonomy: Taxonomy, weights: Sequence[float]
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

  Returns:
    The rules: these weights, the temperature, which was fitted if `examples` is not 0, the gain.
  """
  labels = np.asarray(labels)
  by_level = {level: float(weight) for level, weight in zip(taxonomy.levels, weights)}
  rows = np.flatnonzero(labels[:, -1] >= 0)
  if len(rows) < MIN_EXAMPLES:
    return PathRules(by_level, float(np.sum(weights)))
  rows = even_subset(rows, len(taxonomy.paths), MAX_SCORES)
  scores = np.empty((len(rows), len(taxonomy.paths)))
  for half in (0, 1):
    scored_rows = rows[half::2]
    tuned_rows = rows[1 - half :: 2]
    half_weights = tune(_select(probs, tuned_rows), labels[tuned_rows], taxonomy)
    half_scores = path_scores(_select(probs, scored_rows), taxonomy, half_weights)
    scores[half::2] = half_scores / half_weights.sum()
  truth = labels[rows, -1]
  temperature = float(f'{np.sum(weights) / most_likely_inverse(scores, truth):.4g}')
  is_right = scores.argmax(-1) == truth
  is_right_alone = probs[-1][rows].argmax(-1) == truth
  gain = is_right * 1.0 - is_right_alone
  error = gain.std(ddof=1) / np.sqrt(len(rows))
  return PathRules(by_level, temperature, len(rows), float(gain.mean()), float(error))


def _select(probs: Probs, rows: np.ndarray) -> Probs:
  """Return the probabilities of some examples."""
  return [None if p is None else p[rows] for p in probs]


def recalibrate(
  probs: Probs, labels: np.ndarray, taxonomy: Taxonomy, rules: PathRules
) -> PathRules:
  """Fit the temperature on calibration examples, which the weights were not tuned on.

  Args:
    probs: the probabilities of each level.
    labels: int [N, level]; examples whose finest class is unknown (-1) do not count.
    taxonomy: the table of these levels.
    rules: of which all but the temperature stays.

  Returns:
    The rules; unchanged below MIN_EXAMPLES.
  """
  weights = np.array([rules.weights.get(level, 1.0) for level in taxonomy.levels])
  rows = np.flatnonzero(labels[:, -1] >= 0)
  if len(rows) < MIN_EXAMPLES:
    return rules
  rows = even_subset(rows, len(taxonomy.paths), MAX_SCORES)
  scores = path_scores(_select(probs, rows), taxonomy, weights)
  truth = labels[rows, -1]
  if rules.allowed is not None:
    scores = scores[:, rules.allowed]
    # the allowed leaves are numbered 0, 1, ... without the others
    truth = (np.cumsum(rules.allowed) - 1)[truth]
  inverse = most_likely_inverse(scores / weights.sum(), truth)
  temperature = float(f'{weights.sum() / inverse:.4g}')
  return rules._replace(temperature=temperature, examples=len(rows))
