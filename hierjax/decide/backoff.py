"""Answers as deep as is safe: the deepest node on the most likely leaf's lineage above a threshold.

What is compared with the threshold is how little probability a level more costs (`level_scores`):
of all rules on the lineage that answer what is more likely right than wrong, this one answers the
most levels for the errors that are to be expected. The threshold is set on calibration examples
such that a stated risk is not exceeded. The loss of an answer is 1 if its node is wrong, or a
user's cost; answers are nested, so it falls as the threshold rises. Two guarantees, for examples
that are drawn as the calibration examples were:

- on average over calibration sets and examples the loss is at most `risk` (conformal risk control,
  Angelopoulos et al. 2022, arXiv:2208.02814; for wrong nodes this is the order statistic
  ceil((n + 1)(1 - risk)) of the thresholds that the examples need);
- with probability `confidence` over calibration sets the mean loss is at most `risk`: for wrong
  nodes by the binomial distribution, for costs by the bounds of Hoeffding and Bentkus (Bates et
  al. 2021, arXiv:2101.02703).
"""

from typing import NamedTuple

import numpy as np

from hierjax.decide import lineages

# A threshold that no probability reaches: the answer is the root, that is none.
NEVER = 2.0
# Calibration examples that a branch needs for a threshold of its own.
MIN_BRANCH = 100
# A node with less is more likely wrong than right.
HALF = 0.5
# Rounding of `risk * (n + 1)`, which must not cost an example.
ROUNDING = 1e-9


class Backoff(NamedTuple):
  """When to stop along a lineage.

  Attributes:
    risk: what the mean loss may be.
    confidence: probability that it is; None for the mean over calibration sets.
    by: 'one' threshold; one a 'level', of its node's probability: for each level alone the share of
      examples with a wrong class there is at most `risk`; one a 'branch': the risk holds within
      each group of branches.
    thresholds: `[group][level]`; a node is answered if it and all above reach theirs, by their
      `level_scores`, or by their probabilities where each level has its own.
    group: the row of `thresholds` for each class of the coarsest level; () where there is one row.
    examples: number of calibration examples of each group.
  """

  risk: float
  confidence: float | None
  by: str
  thresholds: tuple[tuple[float, ...], ...]
  group: tuple[int, ...]
  examples: tuple[int, ...]


class Answers(NamedTuple):
  """What is answered for N examples, and why it is no deeper.

  Attributes:
    path: int32 [N, level], of which the first `depth` levels are the answer.
    depth: int [N]; 0 for the root: no answer.
    prob: float64 [N], the probability of the answer.
    needed: float64 [N], the threshold that the next node did not reach; of the finest level that
      which it has reached.
    score: float64 [N], what that node has instead, see `level_scores`; NaN where its probability
      is compared, and where costs decide.
    classes: int32 [N, 2], the most likely two classes of the next level below the answer, -1 none.
    class_prob: float64 [N, 2], the probabilities of these nodes.
    cost: float64 [N, 2], what is expected of the answer and of the most likely leaf, where costs
      decide; there nothing is `needed`.
  """

  path: np.ndarray
  depth: np.ndarray
  prob: np.ndarray
  needed: np.ndarray
  score: np.ndarray
  classes: np.ndarray
  class_prob: np.ndarray
  cost: np.ndarray | None = None


def mistakes(path: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Judge the nodes of lineages.

  Args:
    path: int [N, level].
    labels: int [N, level], -1 unknown.

  Returns:
    float64 [N, level], 1 for a node with a wrong class, 0 for a right one, NaN where the label of
    its level or one above is unknown.
  """
  is_wrong = np.maximum.accumulate(path != labels, 1)
  return np.where(np.minimum.accumulate(labels >= 0, 1), is_wrong, np.nan)


def loss_limit(
  n: int, risk: float, confidence: float | None = None, bound: float = 1.0, is_binary: bool = True
) -> float:
  """Compute how large the losses of n calibration examples may be together.

  Args:
    n: number of examples.
    risk: what the mean loss of others may be.
    confidence: see `Backoff`.
    bound: the largest loss.
    is_binary: whether every loss is 0 or `bound`.

  Returns:
    The largest sum that guarantees the risk; below 0 where none does.
  """
  if confidence is None:
    return risk * (n + 1) - bound + ROUNDING * (risk > 0)
  from scipy.special import bdtr, rel_entr  # slow to import, and not needed to answer

  share = min(risk / bound, 1.0)
  # how likely losses whose sum is so small, in units of `bound`, are where their mean is the risk
  count = np.arange(n + 1)
  tail = bdtr(count, n, share)
  if not is_binary:
    mean = np.minimum(count / max(n, 1), share)
    divergence = rel_entr(mean, share) + rel_entr(1 - mean, 1 - share)
    bentkus = np.e * tail
    hoeffding = np.exp(-n * divergence)
    tail = np.minimum(bentkus, hoeffding)
  largest = (tail <= 1 - confidence).sum() - 1
  return float(largest) * bound + ROUNDING


def smallest_risk(n: int, confidence: float | None = None) -> float:
  """Compute the smallest risk of a wrong node that n calibration examples can guarantee.

  Args:
    n: number of examples.
    confidence: see `Backoff`.
  """
  if confidence is None:
    return 1 / (n + 1)
  return 1 - (1 - confidence) ** (1 / n) if n else 1.0


def level_scores(prob: np.ndarray) -> np.ndarray:
  """Score the nodes of lineages by how little probability each level costs.

  Of the nodes that are more likely right than wrong, with p_0 = 1, the one that maximises
  depth + p / price is a vertex of the concave majorant of p over the depth; it moves up as the
  price falls. The score is 1 - the loss of p a level on the majorant's piece before the node: 1 -
  the isotonic regression of the losses, by its min-max formula. That is at least .5; nodes below
  have their probability as score, so that they are answered only where all others may be.

  Args:
    prob: float [N, level], falling along each lineage.

  Returns:
    float64 [N, level], within 0 and 1, falling along each lineage.
  """
  # rounding must not make a piece of the majorant rise
  scores = prob.astype(np.float64).round(12)
  depth = (prob >= HALF).sum(1)
  for d in range(1, prob.shape[1] + 1):
    rows = np.flatnonzero(depth == d)
    # [n, d + 1], the probability lost down to each depth, from the root on
    lost = np.concatenate([np.zeros((len(rows), 1)), 1 - prob[rows, :d]], 1)
    for k in range(d):
      # min-max formula: the largest over the starts i <= k of the least mean loss from i to a j > k
      least = []
      for i in range(k + 1):
        means = [(lost[:, j] - lost[:, i]) / (j - i) for j in range(k + 1, d + 1)]
        least.append(np.min(means, 0))
      scores[rows, k] = (1 - np.max(least, 0)).round(12)
  return np.minimum.accumulate(np.clip(scores, 0, 1), 1)


def threshold(scores: np.ndarray, losses: np.ndarray, limit: float) -> float:
  """Find the lowest threshold at which the losses of the answers are small enough together.

  Args:
    scores: float [N, level], falling along each lineage.
    losses: float [N, level], of answering each node; an answer counts as bad as the worst above.
    limit: of their sum, see `loss_limit`.

  Returns:
    The threshold: 0 where every leaf may be answered, NEVER where nothing may.
  """
  if limit < 0:
    return NEVER
  # by how much answering each node makes the loss of its example worse
  rises = np.diff(np.maximum.accumulate(losses, 1), axis=1, prepend=0)
  is_rise = rises > 0
  scores, rises = scores[is_rise], rises[is_rise]
  # as the threshold falls, these nodes are answered one after another
  order = np.argsort(-scores, kind='stable')
  too_many = np.flatnonzero(np.cumsum(rises[order]) > limit)
  if not len(too_many):
    return 0.0
  first_refused = scores[order[too_many[0]]]
  return float(np.nextafter(first_refused, np.inf))


def fit_backoff(
  lineage: lineages.Lineage,
  losses: np.ndarray,
  risk: float,
  confidence: float | None = None,
  by: str = 'one',
  bound: float = 1.0,
  branches: int = 1,
  minimum: int = MIN_BRANCH,
) -> Backoff:
  """Set the thresholds on calibration examples, which must not have trained or tuned the model.

  Args:
    lineage: of N examples.
    losses: float [N, level] of answering each node, as `mistakes` gives them; NaN unknown. Examples
      with an unknown one do not count; for thresholds by level they do down to there.
    risk: what the mean loss may be.
    confidence: see `Backoff`.
    by: see `Backoff`.
    bound: the largest loss.
    branches: number of classes of the coarsest level.
    minimum: examples of a branch with a threshold of its own; smaller ones share one.
  """
  is_judged = np.isfinite(losses).all(1)
  is_binary = bool(np.isin(losses[np.isfinite(losses)], (0, bound)).all())

  def fit(scores, losses):
    rows = np.isfinite(losses).all(1)
    limit = loss_limit(int(rows.sum()), risk, confidence, bound, is_binary)
    return threshold(scores[rows], losses[rows], limit)

  scores = _scores(lineage, by)
  levels = lineage.prob.shape[1]
  if by == 'level':
    by_level = tuple(fit(scores[:, [k]], losses[:, [k]]) for k in range(levels))
    return Backoff(risk, confidence, by, (by_level,), (), (int(is_judged.sum()),))
  # the group of each coarsest class, and of each example
  of_class = ()
  group = np.zeros(len(losses), int)
  if by == 'branch':
    of_class = _group_branches(lineage.path[is_judged, 0], branches, minimum)
    group = np.array(of_class)[lineage.path[:, 0]]
  count = np.bincount(group[is_judged], minlength=max(of_class, default=0) + 1)
  fitted = [fit(scores[group == g], losses[group == g]) for g in range(len(count))]
  thresholds = tuple((one,) * levels for one in fitted)
  return Backoff(risk, confidence, by, thresholds, of_class, tuple(count.tolist()))


def _group_branches(branch, classes, minimum):
  """Give each class the number of its group: its own, or the last one of all that are too small."""
  count = np.bincount(branch, minlength=classes)
  order = np.argsort(-count, kind='stable')
  single = int((count >= minimum).sum())
  # the small ones take in larger ones until they are enough together
  while 0 < single < classes and count[order[single:]].sum() < minimum:
    single -= 1
  group = np.full(classes, single)
  group[order[:single]] = np.arange(single)
  return tuple(group.tolist())


def answered_depth(lineage: lineages.Lineage, rule: Backoff) -> np.ndarray:
  """Count the levels that are answered.

  Args:
    lineage: of N examples.
    rule: as `fit_backoff` returns it.

  Returns:
    int [N].
  """
  is_safe = _scores(lineage, rule.by) >= _thresholds(lineage, rule)
  return np.minimum.accumulate(is_safe, 1).sum(1)


def _scores(lineage, by):
  """Return what is compared with the thresholds, float64 [N, level]."""
  return lineage.prob if by == 'level' else level_scores(lineage.prob)


def _thresholds(lineage, rule):
  """Return the thresholds of each example, float [N, level], or [1, level] of all."""
  thresholds = np.array(rule.thresholds)
  if not rule.group:
    return thresholds
  group = np.array(rule.group)[lineage.path[:, 0]]
  return thresholds[group]


def answer(posterior: np.ndarray, paths: np.ndarray, rule: Backoff) -> Answers:
  """Answer with the deepest node of each most likely leaf's lineage that is safe.

  Args:
    posterior: float [N, leaf], rows sum to 1.
    paths: int [leaf, level], the table of the taxonomy.
    rule: as `fit_backoff` returns it.
  """
  lineage = lineages.lineage(posterior, paths)
  depth = answered_depth(lineage, rule)
  rows = np.arange(len(posterior))
  prob = np.where(depth > 0, lineage.prob[rows, depth - 1], 1.0)
  # the next node below the answer, or the leaf where that is the answer
  judged = np.minimum(depth, paths.shape[1] - 1)
  needed = np.broadcast_to(_thresholds(lineage, rule), lineage.prob.shape)[rows, judged]
  score = np.full(len(rows), np.nan)
  if rule.by != 'level':
    score = level_scores(lineage.prob)[rows, judged]
  classes, class_prob = lineages.best_children(posterior, paths, lineage.path, depth)
  return Answers(lineage.path, depth, prob, needed, score, classes, class_prob)
