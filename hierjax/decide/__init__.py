"""From probabilities to decisions: arrays in, arrays out."""

from hierjax.decide import costs, sets
from hierjax.decide.backoff import Backoff, answer, fit_backoff, mistakes
from hierjax.decide.calibration import fit_temperature, temper
from hierjax.decide.decisions import AnswerRules, Rules, decide, default_rules, tune
from hierjax.decide.labelling import label_gains
from hierjax.decide.lineages import lineage
from hierjax.decide.records import (
  IN_RECORDS,
  add_label_gains,
  answer_or_new,
  answer_record,
  to_records,
)
