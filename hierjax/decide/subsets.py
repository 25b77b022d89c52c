"""Decisions within a subset of the classes: an assortment, the species of a region.

Filtering the answers of a classifier leaves the mass of what was filtered out nowhere. Conditioning
asks how likely each allowed class is, given that the image shows one of them, and says how likely
it is that it shows none.
"""

from typing import NamedTuple

import numpy as np

# Takes the place of the logarithm of 0; differences of it are finite.
LOWEST = -1e200


class Conditioned(NamedTuple):
  """Probabilities given that the class is one of those allowed.

  Attributes:
    prob: float64 [N, C], 0 for classes that are not allowed; rows sum to 1.
    outside: float64 [N], the probability that the class is not allowed.
  """

  prob: np.ndarray
  outside: np.ndarray


def condition(
  scores: np.ndarray, allowed: np.ndarray | None = None, temperature: float = 1.0
) -> Conditioned:
  """Condition a distribution over classes on a subset of them.

  p(c | allowed) = p(c) / (sum of p over the allowed), computed from logarithms, so that it holds
  where the allowed classes are as unlikely as floats can be.

  Args:
    scores: float [N, C]; p = softmax(scores / temperature), so log p will do, -inf for p = 0.
    allowed: bool [C], at least one True; None for all.
    temperature: divisor of the scores.
  """
  scores = np.asarray(scores, np.float64)
  if allowed is None:
    inside, _ = _exponentials(scores, temperature)
    inside /= inside.sum(-1, keepdims=True)
    return Conditioned(inside, np.zeros(len(scores)))
  inside, highest = _exponentials(scores[:, allowed], temperature)
  total, prob = inside.sum(-1), np.zeros(scores.shape)
  prob[:, allowed] = inside / total[:, None]
  if np.all(allowed):
    return Conditioned(prob, np.zeros(len(scores)))
  others, highest_other = _exponentials(scores[:, ~allowed], temperature)
  log_odds = (highest_other - highest) / temperature + np.log(others.sum(-1)) - np.log(total)
  return Conditioned(prob, np.exp(-np.logaddexp(0, -log_odds)))


def _exponentials(scores, temperature):
  """Return exp((scores - highest) / temperature) [N, C] and the highest scores [N]."""
  x = np.maximum(scores, LOWEST)
  highest = x.max(-1, keepdims=True)
  # in place: fresh memory costs more than the arithmetic
  x -= highest
  if temperature != 1:
    x /= temperature
  return np.exp(x, out=x), highest[:, 0]
