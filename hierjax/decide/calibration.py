"""Calibration of probabilities: a temperature, and per example how wrong probabilities are.

One number changes no decision and makes the leaves' probabilities, and so their sums over any node,
as sure as they are right.
"""

import numpy as np

# Probabilities below this one do not make the log loss larger.
SMALLEST = 1e-12
# Scores, examples times classes, that a temperature is fitted on at most.
LIMIT = 4_000_000
# Bounds of the inverse temperature, and steps of the bisection between them.
INVERSE_BOUNDS, STEPS = (0.05, 20.0), 16


def even_subset(rows: np.ndarray, width: int, limit: int) -> np.ndarray:
  """Take every k-th row, with the least k at which the rows' scores are within a limit.

  Args:
    rows: int [n], at least one.
    width: scores of a row.
    limit: of the scores of all rows together.

  Returns:
    int [at most n].
  """
  step = -(-len(rows) * width // limit)  # rounded up
  return rows[::step]


def fit_temperature(prob: np.ndarray, labels: np.ndarray) -> float:
  """Find the temperature at which the true classes are most likely (Guo et al. 2017).

  Args:
    prob: float [N, C], rows sum to 1; log p plus any constant of the row will do as `np.exp` of it.
    labels: int [N], -1 unknown; above LIMIT probabilities an even subset of the examples is used.

  Returns:
    T, by which p becomes proportional to p ** (1 / T), see `temper`; 1 without a label.
  """
  rows = np.flatnonzero(labels >= 0)
  if not len(rows):
    return 1.0
  rows = even_subset(rows, prob.shape[1], LIMIT)
  p = np.asarray(prob[rows], np.float64)
  log_p = np.log(np.maximum(p, np.finfo(np.float64).tiny))
  return 1 / most_likely_inverse(log_p, labels[rows])


def most_likely_inverse(scores: np.ndarray, truth: np.ndarray) -> float:
  """Find the b within INVERSE_BOUNDS at which softmax(b scores) makes the truth most likely.

  It is concave in b with the slope mean(true score - expected score): bisection of log b.

  Args:
    scores: float64 [N, C].
    truth: int [N].
  """
  # softmax stays the same, and exp cannot overflow
  scores = scores - scores.max(-1, keepdims=True)
  true_mean = scores[np.arange(len(truth)), truth].mean()
  low, high = np.log(INVERSE_BOUNDS)
  for _ in range(STEPS):
    middle = (low + high) / 2
    p = np.exp(np.exp(middle) * scores)
    expected = ((p * scores).sum(-1) / p.sum(-1)).mean()
    if true_mean > expected:
      low = middle
    else:
      high = middle
  return float(np.exp((low + high) / 2))


def temper(prob: np.ndarray, temperature: float) -> np.ndarray:
  """Make probabilities less sure (a temperature above 1) or surer.

  Args:
    prob: float [N, C].
    temperature: T.

  Returns:
    float64 [N, C], p ** (1 / T) with rows that sum to 1.
  """
  p = np.asarray(prob, np.float64)
  p = (p / p.max(-1, keepdims=True)) ** (1 / temperature)
  return p / p.sum(-1, keepdims=True)


def log_loss(prob: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Compute -log of the probability of each true class, float64 [N], NaN where it is unknown.

  Args:
    prob: float [N, C].
    labels: int [N], -1 unknown.
  """
  loss = -np.log(np.maximum(_of_classes(prob, labels), SMALLEST))
  return np.where(labels >= 0, loss, np.nan)


def brier(prob: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Compute the squared distance to the true class, float64 [N], NaN where it is unknown.

  Args:
    prob: float [N, C].
    labels: int [N], -1 unknown.
  """
  # |p - the one-hot truth|^2 = 1 - 2 p(truth) + |p|^2
  squares = np.einsum('nc,nc->n', prob, prob)
  distance = 1 - 2 * _of_classes(prob, labels) + squares
  return np.where(labels >= 0, distance, np.nan)


def _of_classes(prob, labels):
  """Take the probability of each example's class, float [N]; any where it is unknown (-1)."""
  classes = np.maximum(labels, 0)
  return np.take_along_axis(prob, classes[:, None], 1)[:, 0]
