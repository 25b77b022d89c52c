"""What an evaluation keeps of each image in place of the probabilities of all classes."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from hierjax.decide import baselines, calibration, lineages, paths, sets
from hierjax.decide.decisions import PATHS, Decisions, Rules, decide
from hierjax.taxonomy import Mixed, Taxonomy

# Probabilities of finest classes that are decided on at a time.
BLOCK_SIZE = 1_000_000
# Bonuses of DARTS that curves of depth against risk are drawn of.
BONUSES = (0.0, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class HeadResults(NamedTuple):
  """What is kept of one head's probabilities.

  Attributes:
    top: int32 [N, at most paths.TOP], the most probable classes.
    top_prob: float32, their probabilities.
    true_prob: float64 [N], the probability of the true class, NaN where it is unknown.
  """

  top: np.ndarray
  top_prob: np.ndarray
  true_prob: np.ndarray


class Curves(NamedTuple):
  """What curves of depth against risk are computed from.

  Attributes:
    lineage: of the most likely leaf.
    node: int [N, L], the most likely node of each level, see `baselines.best_by_level`.
    prob: float64 [N, L], their probabilities.
    darts: int [N, bonus], the nodes that DARTS chooses with each of BONUSES.
  """

  lineage: lineages.Lineage
  node: np.ndarray
  prob: np.ndarray
  darts: np.ndarray


class Results(NamedTuple):
  """Results of N images on the exclusive levels, a tree of arrays with a row an image.

  Attributes:
    decisions: as `decide` makes them, those on paths reduced; without tags.
    heads: {level with a head: HeadResults}.
    before: of the joint decision at temperature 1: 'confidence' float64 [N, L], and where answers
      are fitted 'brier' and 'log_loss', see `decide.calibration`, of each level.
    after: likewise, at the temperature of the rules.
    curves: None where no answers are fitted.
    sets: where they are fitted 'size' int [N, L], the number of classes of each level in the set,
      and 'is_in' bool [N], whether the true leaf is in it.
  """

  decisions: Decisions
  heads: dict[str, HeadResults]
  before: dict[str, np.ndarray]
  after: dict[str, np.ndarray]
  curves: Curves | None
  sets: dict[str, np.ndarray] | None


def reduce(
  probs: Mapping[str, np.ndarray],
  labels: np.ndarray,
  taxonomy: Taxonomy | Mixed,
  rules: Rules,
  names: Sequence[str] = PATHS,
) -> Results:
  """Decide on images, a block of them at a time, and keep what an evaluation needs.

  Args:
    probs: {level with a head: float [N, C]}.
    labels: int [N, columns], rows of labels as the taxonomy's blocks have them.
    taxonomy: the levels, of which some are exclusive.
    rules: of the decisions.
    names: of the decisions that are kept, with 'independent' and 'joint' among them.
  """
  block = taxonomy.block('exclusive')
  heads = [level for level in block.levels if level in probs]
  size = len(labels) * len(block.taxonomy.paths)
  parts = []
  for rows in np.array_split(np.arange(len(labels)), max(-(-size // BLOCK_SIZE), 1)):
    # the images of a class side by side, as `paths.path_scores` and `Merge` read them
    part = {level: np.asarray(probs[level][rows], np.float64, order='F') for level in heads}
    parts.append(_reduce_block(part, labels[rows, block.columns], block.taxonomy, rules, names))
  return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _reduce_block(probs, labels, table, rules, names):
  """Decide on images of which the probabilities of all classes may be held, see `reduce`."""
  decisions = decide(probs, table, rules, names)
  reduced = OrderedDict((name, d.reduce()) for name, d in decisions['exclusive'].items())
  rule = rules['exclusive']
  heads = {}
  for level, p in probs.items():
    k = table.index(level)
    top = reduced['independent'].top[k]
    if rule.allowed is not None:
      # within a subset of the classes, what is decided by the head alone ranks other probabilities
      top = paths.top(p).astype(np.int32)
    top_prob = np.take_along_axis(p, top, 1).astype(np.float32)
    true_prob = p[np.arange(len(p)), labels[:, k]]
    heads[level] = HeadResults(top, top_prob, np.where(labels[:, k] >= 0, true_prob, np.nan))
  joint = decisions['exclusive']['joint']
  untempered = joint
  if rule.temperature != 1:
    rule_before = {'exclusive': rule._replace(temperature=1.0)}
    untempered = decide(probs, table, rule_before, ('joint',))['exclusive']['joint']
  before = {'confidence': untempered.confidence}
  after = {'confidence': joint.confidence}
  curves = None
  if 'answer' in rules:
    before |= _proper_scores(untempered, labels)
    after |= _proper_scores(joint, labels)
    posterior = joint.prob[-1]
    node, prob = baselines.best_by_level(posterior, table.paths)
    darts = baselines.darts(posterior, table.paths, BONUSES).T
    curves = Curves(lineages.lineage(posterior, table.paths), node, prob, darts)
  in_sets = None
  if 'sets' in decisions:
    in_sets = _set_results(decisions.pop('sets'), labels, table)
  return Results({**decisions, 'exclusive': reduced}, heads, before, after, curves, in_sets)


def _proper_scores(decision, labels):
  """Compute the Brier score and the log loss of each level, float64 [n, L] each."""
  levels = list(zip(decision.prob, labels.T))
  return {
    'brier': np.stack([calibration.brier(p, y) for p, y in levels], 1),
    'log_loss': np.stack([calibration.log_loss(p, y) for p, y in levels], 1),
  }


def _set_results(leaf_sets, labels, table):
  """Count the classes of each level in each set, and say whether the true leaf is in it."""
  sizes = [[len(classes) for classes in sets.level_sets(s, table.paths)] for s in leaf_sets]
  is_in = [leaf in leaves for leaf, leaves in zip(labels[:, -1], leaf_sets)]
  return {'size': np.array(sizes), 'is_in': np.array(is_in)}
