"""decode.json: the rules of the decisions that were tuned on validation."""

import json
import pathlib

import numpy as np

from hierjax.core import files
from hierjax.core.errors import UserError
from hierjax.decide.decisions import Rules, default_rules
from hierjax.taxonomy import Block, Mixed, Taxonomy


def read_rules(path: pathlib.Path, taxonomy: Taxonomy | Mixed) -> Rules:
  """Read the rules that training has tuned; the default ones where it never came to that.

  Args:
    path: the file.
    taxonomy: the levels.

  Raises:
    UserError: the file is damaged, or of another taxonomy.
  """
  if not path.exists():
    return default_rules(taxonomy)
  try:
    content = json.loads(path.read_text())
    return {block.kind: READERS[block.kind](content, block) for block in taxonomy.blocks}
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(
      f'{path}: is damaged ({type(e).__name__}: {e}); without this file every head weighs 1 and '
      'every threshold is .5'
    ) from None


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
  files.write(path, json.dumps(content, indent=2) + '\n')


def _read_weights(content: dict, block: Block) -> dict[str, float]:
  weights = {level: float(content['weights'][level]) for level in block.levels}
  if not all(0 <= weight < np.inf for weight in weights.values()):
    raise ValueError(f'weights {weights}')
  return weights


def _read_thresholds(content: dict, block: Block) -> dict[str, np.ndarray]:
  table = block.taxonomy
  return {
    level: np.array([float(content['thresholds'][level][name]) for name in names])
    for level, names in zip(table.levels, table.names)
  }


def _write_weights(weights: dict[str, float], block: Block) -> dict:
  return {'weights': weights}


def _write_thresholds(thresholds: dict[str, np.ndarray], block: Block) -> dict:
  table = block.taxonomy
  by_class = {
    level: dict(zip(names, thresholds[level].tolist()))
    for level, names in zip(table.levels, table.names)
  }
  return {'thresholds': by_class}


READERS = {'exclusive': _read_weights, 'tags': _read_thresholds}
WRITERS = {'exclusive': _write_weights, 'tags': _write_thresholds}
