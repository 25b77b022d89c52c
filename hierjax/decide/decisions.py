"""All decisions on a set of examples: from probabilities, block by block of the taxonomy.

Rules and decisions are dicts by the kind of block. Rules of 'exclusive' levels are the `PathRules`
of the joint decision; those of 'tags' are thresholds, {level: float64 [C]}. Decisions on
'exclusive' levels are {'independent', 'leaf', 'joint': PathDecision}; that on 'tags' is a
TagDecision. Where the rules have 'answer', `AnswerRules` that were fitted on calibration examples,
so have the decisions, `backoff.Answers` on the exclusive levels; where they have 'sets', a
`SetRule`, the decisions have the leaves in the set of each example.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hierjax.decide import backoff, costs, paths, sets, thresholds
from hierjax.decide.costs import PRICE, Rows
from hierjax.taxonomy import Block, Mixed, Taxonomy

Probs = Mapping[str, np.ndarray]


class AnswerRules(NamedTuple):
  """How to answer, fitted on calibration examples by the posterior of the joint decision.

  Attributes:
    split: of these examples.
    examples: how many had a full path.
    backoff: when to stop along the lineage of the most likely leaf; None to answer at least cost.
    costs: rows (from, to, cost) or 'lca', see `decide.costs`; None where a wrong answer costs 1.
    price: of a level that is not answered.
    others: as `backoff`, for other risks that these examples can guarantee.
  """

  split: str
  examples: int
  backoff: backoff.Backoff | None
  costs: Rows | str | None = None
  price: float = PRICE
  others: tuple[backoff.Backoff, ...] = ()

  @property
  def risks(self) -> dict[float, backoff.Backoff]:
    """The rules by their risks, ascending."""
    rules = (self.backoff, *self.others) if self.backoff else self.others
    return {rule.risk: rule for rule in sorted(rules, key=lambda rule: rule.risk)}


# Rules that are fitted on calibration examples, for the classes that are allowed there.
FITTED = ('answer', 'sets')
# Decisions on exclusive levels.
PATHS = ('independent', 'leaf', 'joint')

Rules = dict[str, paths.PathRules | dict[str, np.ndarray] | AnswerRules | sets.SetRule]
Decisions = dict[
  str, dict[str, paths.PathDecision] | thresholds.TagDecision | backoff.Answers | list[np.ndarray]
]


def without_fitted(rules: Rules) -> Rules:
  """Return the rules without those of FITTED."""
  return {kind: rule for kind, rule in rules.items() if kind not in FITTED}


def default_rules(taxonomy: Taxonomy | Mixed) -> Rules:
  """Return the rules before any tuning: heads weigh 1 at temperature 1, thresholds are .5."""
  return {block.kind: DEFAULTS[block.kind](block.taxonomy) for block in taxonomy.blocks}


def tune(probs: Probs, labels: np.ndarray, taxonomy: Taxonomy | Mixed) -> Rules:
  """Choose the rules that are best on validation examples (never on a test split).

  Args:
    probs: {level with a head: float64 [N, C]}.
    labels: int [N, columns], rows of labels as the taxonomy's blocks have them.
    taxonomy: the levels.
  """
  return {
    block.kind: TUNERS[block.kind](probs, labels[:, block.columns], block)
    for block in taxonomy.blocks
  }


def decide(
  probs: Probs,
  taxonomy: Taxonomy | Mixed,
  rules: Rules,
  names: Sequence[str] = PATHS,
  exclusive: Decisions | None = None,
) -> Decisions:
  """Decide on all levels. Tags must go with the joint decision on the exclusive levels.

  Args:
    probs: {level with a head: float64 [N, C]}.
    taxonomy: the levels.
    rules: as `default_rules` or `tune` give them.
    names: of PATHS, those that are wanted, 'joint' among them.
    exclusive: the decisions on the exclusive levels; None to make them.
  """
  decisions = exclusive or {}
  block = taxonomy.block('exclusive')
  if block and not decisions:
    decisions['exclusive'] = _decide_paths(probs, block, rules['exclusive'], names)
    posterior = decisions['exclusive']['joint'].prob[-1]
    if 'answer' in rules:
      decisions['answer'] = _answer(posterior, block.taxonomy, rules['answer'])
    if 'sets' in rules:
      decisions['sets'] = sets.leaf_sets(posterior, rules['sets'])
  tags = taxonomy.block('tags')
  if tags:
    is_possible = taxonomy.fits(decisions['exclusive']['joint'].pred) if block else True
    decision = thresholds.decide_tags(
      join(probs, tags), join(rules['tags'], tags), tags.taxonomy, is_possible
    )
    decisions = {**decisions, 'tags': decision}
  return decisions


def _answer(posterior, table, rule):
  """Answer at least cost, or as deep as is safe where the rule says when to stop."""
  if rule.backoff is None:
    return costs.answer(posterior, costs.build(rule.costs, table, rule.price))
  return backoff.answer(posterior, table.paths, rule.backoff)


def join(values: Mapping[str, np.ndarray], block: Block) -> np.ndarray:
  """Concatenate {level: [..., C]} of a block's levels to [..., M]."""
  arrays = [values[level] for level in block.levels]
  return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, -1)


def _decide_paths(probs, block, rules, names):
  """Make the named decisions on the exclusive levels, {name: PathDecision}."""
  level_probs = [probs.get(level) for level in block.levels]
  table, allowed = block.taxonomy, rules.allowed
  decisions = {}
  if 'independent' in names:
    decisions['independent'] = paths.independent(level_probs, table, allowed)
  if 'leaf' in names:
    decisions['leaf'] = paths.leaf(level_probs, table, allowed)
  if 'joint' in names:
    weights = [rules.weights.get(level, 1.0) for level in block.levels]
    decisions['joint'] = paths.joint(level_probs, table, weights, rules.temperature, allowed)
  return decisions


def _tune_paths(probs, labels, block):
  level_probs = [probs.get(level) for level in block.levels]
  weights = paths.tune(level_probs, labels, block.taxonomy)
  return paths.calibrate(level_probs, labels, block.taxonomy, weights)


def _tune_tags(probs, labels, block):
  return block.taxonomy.split(thresholds.tune_thresholds(join(probs, block), labels))


def _default_thresholds(table):
  return {
    level: np.full(len(names), thresholds.HALF) for level, names in zip(table.levels, table.names)
  }


TUNERS = {'exclusive': _tune_paths, 'tags': _tune_tags}
DEFAULTS = {
  'exclusive': lambda table: paths.PathRules(dict.fromkeys(table.levels, 1.0)),
  'tags': _default_thresholds,
}
