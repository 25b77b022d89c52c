"""decode.json: the rules of the decisions that were tuned on validation."""

import pathlib
from collections.abc import Sequence

import numpy as np

from hierjax.core import files, json_files
from hierjax.core.errors import UserError
from hierjax.core.metrics import is_finite
from hierjax.decide import costs
from hierjax.decide.backoff import Backoff
from hierjax.decide.decisions import AnswerRules, Rules, default_rules
from hierjax.decide.paths import PathRules
from hierjax.decide.sets import SetRule
from hierjax.taxonomy import Block, Mixed, Taxonomy


def read_rules(
  path: pathlib.Path, taxonomy: Taxonomy | Mixed, heads: Sequence[str] | None = None
) -> Rules:
  """Read the rules that training has tuned; the default ones where it never came to that.

  Args:
    path: the file.
    taxonomy: the levels.
    heads: those that have a head; None for all.

  Raises:
    UserError: the file is damaged, of another taxonomy, or decides nothing.
  """
  if not path.exists():
    return default_rules(taxonomy)
  try:
    content = json_files.read_object(path)
    rules = {block.kind: READERS[block.kind](content, block) for block in taxonomy.blocks}
    if 'exclusive' in rules:
      _check_weights(rules['exclusive'].weights, heads)
    if content.get('sets') is not None:
      rules['sets'] = _read_sets(content['sets'])
    if content.get('answer') is not None:
      rules['answer'] = _read_answer(content['answer'], taxonomy.table('exclusive'))
  except UserError as e:
    text = str(e).removeprefix(f'{path}: ')
    raise UserError(
      f'{path}: {text}; without this file every head weighs 1 and every threshold is .5'
    ) from None
  return rules


def write_rules(path: pathlib.Path, split: str, rules: Rules, taxonomy: Taxonomy | Mixed) -> None:
  """Write rules.

  Args:
    path: the file.
    split: that they were tuned on.
    rules: as `decide.tune` returns them.
    taxonomy: the levels.
  """
  content = {'split': split}
  for block in taxonomy.blocks:
    content |= WRITERS[block.kind](rules[block.kind], block)
  if 'answer' in rules:
    answer = rules['answer']
    content['answer'] = answer._asdict() | {'others': [x._asdict() for x in answer.others]}
    if answer.backoff:
      content['answer']['backoff'] = answer.backoff._asdict()
  if 'sets' in rules:
    content['sets'] = rules['sets']._asdict()
  files.write(path, json_files.dump(content, indent=2) + '\n')


def _read_path_rules(content: dict, block: Block) -> PathRules:
  weights = _read_numbers(content.get('weights'), block.levels, 'weights')
  # files of earlier versions have no temperature
  temperature, examples = content.get('temperature', 1.0), content.get('temperature_examples', 0)
  if not is_finite(temperature) or temperature <= 0 or not is_finite(examples):
    raise UserError(f'temperature must be a number above 0, not {temperature!r} of {examples!r}')
  gain = [content.get(name) for name in ('gain', 'gain_error')]
  gain = [x if is_finite(x) else None for x in gain]
  return PathRules(dict(zip(block.levels, weights)), float(temperature), examples, *gain)


def _check_weights(weights: dict[str, float], heads: Sequence[str] | None) -> None:
  used = {level: w for level, w in weights.items() if heads is None or level in heads}
  if min(weights.values()) < 0 or not any(used.values()):
    text = ', '.join(f'{level} {w:g}' for level, w in weights.items())
    raise UserError(
      f'weights must be 0 or more, and above 0 for one of the heads ({", ".join(used)}), not {text}'
    )


def _read_numbers(values: object, names: Sequence[str], field: str) -> list[float]:
  """Check that an object has numbers for just these names, and return them."""
  if not isinstance(values, dict) or set(values) != set(names):
    listed = ', '.join(names[:10]) + (', ...' if len(names) > 10 else '')
    raise UserError(f'{field} must have a number for each of {listed}, and no others')
  for name, value in values.items():
    if isinstance(value, bool) or not is_finite(value):
      raise UserError(f'{field} of {name} must be a number, not {value!r}')
  return [float(values[name]) for name in names]


def _read_thresholds(content: dict, block: Block) -> dict[str, np.ndarray]:
  table, thresholds = block.taxonomy, content.get('thresholds')
  if not isinstance(thresholds, dict) or not set(table.levels) <= set(thresholds):
    raise UserError(f'thresholds must have the levels {", ".join(table.levels)}')
  return {
    level: np.array(_read_numbers(thresholds[level], names, f'thresholds of {level}'))
    for level, names in zip(table.levels, table.names)
  }


def _write_path_rules(rules: PathRules, block: Block) -> dict:
  return {
    'weights': dict(rules.weights),
    'temperature': rules.temperature,
    'temperature_examples': rules.examples,
    'gain': rules.gain,
    'gain_error': rules.gain_error,
  }


def _write_thresholds(thresholds: dict[str, np.ndarray], block: Block) -> dict:
  table = block.taxonomy
  by_class = {
    level: dict(zip(names, thresholds[level].tolist()))
    for level, names in zip(table.levels, table.names)
  }
  return {'thresholds': by_class}


def _read_sets(content: object) -> SetRule:
  """Read the rule of sets, of a file that something else may have written."""
  try:
    rule = SetRule(**content)
    is_sound = is_finite(rule.limit) and 0 < rule.risk < 1 and rule.kind in ('lac', 'aps')
  except TypeError as e:
    raise UserError(f'sets cannot be read: {e!r}; remove it to do without') from None
  if not is_sound:
    raise UserError(f'sets cannot be read: {content!r}; remove it to do without')
  return rule


def _read_answer(content: object, taxonomy: Taxonomy) -> AnswerRules:
  """Read the rules of answers, of a file that something else may have written."""
  try:
    fields = dict(content)
    # files of earlier versions have no others
    fields['others'] = tuple(_read_backoff(x, taxonomy) for x in fields.get('others', ()))
    if isinstance(fields.get('costs'), list):
      rows = [(str(a), str(b), float(cost)) for a, b, cost in fields['costs']]
      fields['costs'] = tuple(rows)
    if fields.get('costs'):
      costs.build(fields['costs'], taxonomy, float(fields['price']))
    if fields['backoff'] is None and fields['costs']:
      return AnswerRules(**fields)
    return AnswerRules(**fields | {'backoff': _read_backoff(fields['backoff'], taxonomy)})
  except (TypeError, KeyError, ValueError) as e:
    raise UserError(f'answer cannot be read: {e!r}; remove it to do without') from None


def _read_backoff(content, taxonomy):
  fields = dict(content)
  rows = tuple(tuple(map(float, row)) for row in fields['thresholds'])
  group = tuple(map(int, fields['group']))
  is_of_taxonomy = all(len(row) == len(taxonomy.levels) for row in rows)
  if group:
    is_of_taxonomy &= len(group) == len(taxonomy.names[0]) and set(group) <= {*range(len(rows))}
  if not rows or not is_of_taxonomy:
    raise ValueError('its thresholds are of another taxonomy')
  fields |= {'thresholds': rows, 'group': group, 'examples': tuple(fields['examples'])}
  return Backoff(**fields)


READERS = {'exclusive': _read_path_rules, 'tags': _read_thresholds}
WRITERS = {'exclusive': _write_path_rules, 'tags': _write_thresholds}
