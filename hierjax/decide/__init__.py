"""From probabilities to decisions: arrays in, arrays out."""

from hierjax.decide import costs, sets
from hierjax.decide.backoff import Answers, Backoff, answer, fit_backoff, mistakes, smallest_risk
from hierjax.decide.calibration import fit_temperature, temper
from hierjax.decide.decisions import AnswerRules, Decisions, Rules, decide, default_rules, tune
from hierjax.decide.labelling import label_gains
from hierjax.decide.lineages import Lineage, lineage
from hierjax.decide.paths import PathDecision, PathRules
from hierjax.decide.records import (
  IN_RECORDS,
  add_label_gains,
  answer_or_new,
  answer_record,
  to_records,
)
from hierjax.decide.thresholds import TagDecision

__all__ = [
  'IN_RECORDS',
  'AnswerRules',
  'Answers',
  'Backoff',
  'Decisions',
  'Lineage',
  'PathDecision',
  'PathRules',
  'Rules',
  'TagDecision',
  'add_label_gains',
  'answer',
  'answer_or_new',
  'answer_record',
  'costs',
  'decide',
  'default_rules',
  'fit_backoff',
  'fit_temperature',
  'label_gains',
  'lineage',
  'mistakes',
  'sets',
  'smallest_risk',
  'temper',
  'to_records',
  'tune',
]
