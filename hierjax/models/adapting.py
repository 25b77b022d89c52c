"""Adapting a pretrained trunk: low-rank updates of dense kernels, and the depth of parameters."""

import re
from collections.abc import Mapping

from flax import traverse_util

from hierjax.core.errors import UserError

Path = tuple[str, ...]
# The leaves of a dense layer that hold the low-rank update of its kernel; see `layers.Dense`.
UPDATE = ('lora_a', 'lora_b')
# Modules of a trunk that stand for a unit of depth, with their numbers: a block of a stage.
_UNIT = re.compile(
  r'(?:layer|stages?_?|blocks_|s|denseblock|transition)(\d+)(?:_(?:blocks_|denselayer|b)?(\d+))?'
)
# What timm counts to the last unit, and what it counts to the heads.
_LAST = re.compile(r'norm|conv_head|bn2')
_HEAD = re.compile(r'fc_norm|norm_head|head_\w+|attn_pool|norm5|classifier_\d|fc\d?')


def merge(variables: Mapping, scale: float) -> dict:
  """Add the low-rank updates to the kernels, W + scale A B, and leave the updates out.

  Args:
    variables: {'params', 'batch_stats'} of a model.
    scale: of the updates.
  """
  flat = traverse_util.flatten_dict(variables, keep_empty_nodes=True)
  merged = {path: x for path, x in flat.items() if path[-1] not in UPDATE}
  for *module, name in flat:
    if name == 'lora_a':
      a, b = (flat[(*module, part)] for part in UPDATE)
      merged[(*module, 'kernel')] = flat[(*module, 'kernel')] + scale * (a @ b)
  return traverse_util.unflatten_dict(merged)


def with_updates(variables: Mapping, initial: Mapping) -> dict:
  """Give variables without low-rank updates those of other variables, as they were drawn.

  Args:
    variables: of a model.
    initial: of the same model, with updates or without.
  """
  flat = traverse_util.flatten_dict(initial, keep_empty_nodes=True)
  updates = {path: x for path, x in flat.items() if path[-1] in UPDATE}
  flat = traverse_util.flatten_dict(variables, keep_empty_nodes=True)
  return traverse_util.unflatten_dict({**flat, **updates})


def depths(params: Mapping) -> dict[Path, int]:
  """Count the units of the trunk from each parameter up to the heads, timm's grouping by depth.

  A block is a unit, with what brings its stage to size; the stem is one. The norm after the last
  block belongs to it; what follows the pooling, and a neck, to the heads.

  Args:
    params: of a model that has its trunk under 'backbone'.

  Returns:
    {path in the trunk: 0 beside the heads, 1 in the last block, ..., the largest in the stem}.

  Raises:
    UserError: the trunk has no numbered blocks.

  References:
    timm, optim/_param_groups.py, param_groups_layer_decay; Bao et al. 2022, arXiv:2106.08254.
  """
  modules = {name: _unit(name) for name in params['backbone']}
  units = sorted({unit for unit in modules.values() if unit})
  if not units:
    raise UserError('--config.optim.layer_decay: the backbone has no blocks with numbers')
  places = {unit: len(units) - i for i, unit in enumerate(units)} | {None: len(units) + 1}
  flat, result = traverse_util.flatten_dict({'backbone': params['backbone']}), {}
  for path in flat:
    name = path[1]
    result[path] = places[modules[name]]
    if modules[name] is None and (_LAST.fullmatch(name) or _HEAD.fullmatch(name)):
      result[path] = 1 if _LAST.fullmatch(name) else 0
  return result


def _unit(name: str) -> tuple[int, int] | None:
  """The numbers of the unit that a module of a trunk is part of."""
  match = _UNIT.match(name)
  # DenseNet's transitions stand between its blocks
  return match and (int(match[1]) + name.startswith('transition'), int(match[2] or 0))
