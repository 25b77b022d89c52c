"""From probabilities to decisions: arrays in, arrays out."""

from hierjax.decide.decisions import Decisions, Rules, decide, default_rules, tune
from hierjax.decide.paths import PathDecision, PathRules
from hierjax.decide.records import to_records
from hierjax.decide.thresholds import TagDecision

__all__ = [
  'Decisions',
  'PathDecision',
  'PathRules',
  'Rules',
  'TagDecision',
  'decide',
  'default_rules',
  'to_records',
  'tune',
]
