"""What an evaluation keeps of each image in place of the probabilities of all classes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from hierjax.decide import baselines, calibration, lineages, paths
from hierjax.decide.decisions import PATHS, Decisions, Rules, decide
from hierjax.decide.paths import Ranked
from hierjax.taxonomy import Mixed, Taxonomy

# Bonuses of DARTS whose curve of depth against risk an evaluation holds.
BONUSES = (0.0, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


BLOCK_SIZE = 1_000_000  # probabilities of leaves at a time


class Scores(NamedTuple):
  """How probable the joint decision's classes are, level by level: each float64 [N, L].

  Attributes:
    confidence: of the predicted classes.
    brier, log_loss: see `decide.calibration`; None where no answers are fitted.
  """

  confidence: np.ndarray
  brier: np.ndarray | None = None
  log_loss: np.ndarray | None = None


class Curves(NamedTuple):
  """What curves of depth against risk are made of; darts int [N, bonus], see `baselines`."""

  lineage: lineages.Lineage
  node: np.ndarray
  prob: np.ndarray
  darts: np.ndarray


class Results(NamedTuple):
  """Results of N images on the exclusive levels; parts of a data set can be concatenated.

  Attributes:
    decisions: as `decisions.decide` returns them, its path decisions `Ranked`; without tags.
    heads: {level with a head: the most probable classes int32 [N, at most paths.TOP], their
      probabilities float32, and that of the true class float64 [N], NaN where it is unknown}.
    before, after: of the joint decision at temperature 1, and at that of the rules.
    curves: where answers are fitted.
  """

  decisions: Decisions
  heads: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
  before: Scores
  after: Scores
  curves: Curves | None


def reduce(
  probs: Mapping[str, np.ndarray],
  labels: np.ndarray,
  taxonomy: Taxonomy | Mixed,
  rules: Rules,
  names: Sequence[str] = PATHS,
) -> Results:
  """Decide on images, block by block, and keep what an evaluation needs.

  Args:
    probs: {level with a head: float [N, C]}.
    labels: int [N, columns], rows of labels as the taxonomy's blocks have them.
    taxonomy: the levels, of which some are exclusive.
    rules: of the decisions.
    names: of the decisions that are kept.
  """
  block = taxonomy.block('exclusive')
  table, rules = block.taxonomy, {kind: rule for kind, rule in rules.items() if kind != 'tags'}
  probs = {level: probs[level] for level in table.levels if level in probs}
  count, parts = -(-len(labels) * len(table.paths) // BLOCK_SIZE), []
  for rows in np.array_split(np.arange(len(labels)), max(count, 1)):
    part = {level: np.asarray(p[rows], np.float64, order='F') for level, p in probs.items()}
    parts.append(_reduce_block(part, labels[rows, block.columns], table, rules, names))
  return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _reduce_block(probs, labels, table, rules, names):
  """The results of a few images, of which probabilities of all classes may be held."""
  decided = decide(probs, table, rules, names)
  ranked = {name: Ranked.reduce(d) for name, d in decided['exclusive'].items()}
  joint, rule, needs_scores = decided['exclusive']['joint'], rules['exclusive'], 'answer' in rules
  heads, rows = {}, np.arange(len(labels))
  for level, p in probs.items():
    k = table.index(level)
    # where all classes are allowed, the decision by the head alone ranks its probabilities
    best = ranked['independent'].top[k] if rule.allowed is None else paths.top(p).astype(np.int32)
    of_label = np.where(labels[:, k] >= 0, p[rows, labels[:, k]], np.nan)
    heads[level] = best, p[rows[:, None], best].astype(np.float32), of_label
  before = joint
  if rule.temperature != 1:
    weights = [rule.weights.get(level, 1.0) for level in table.levels]
    by_level = [probs.get(level) for level in table.levels]
    before = paths.joint(by_level, table, weights, allowed=rule.allowed)
  scores, curves = [Scores(decision.confidence) for decision in (before, joint)], None
  if needs_scores:
    posterior = joint.prob[-1]
    best = baselines.best_by_level(posterior, table.paths)
    darts = baselines.darts(posterior, table.paths, BONUSES).T
    curves = Curves(lineages.lineage(posterior, table.paths), *best, darts)
    for i, decision in enumerate((before, joint)):
      columns = list(zip(decision.prob, labels.T))
      parts = [[f(*c) for c in columns] for f in (calibration.brier, calibration.log_loss)]
      scores[i] = Scores(decision.confidence, *(np.stack(part, 1) for part in parts))
  return Results({**decided, 'exclusive': ranked}, heads, *scores, curves)
