"""The tree of options: its defaults, changing it, checking it, and writing it as JSON.

A config file in `configs/` calls `default()`, changes what its experiment changes and returns the
tree; flags (`--config.optim.lr=3e-4`) come last. `hierjax.core.declarations` lists the options.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

from ml_collections import ConfigDict, FieldReference

from hierjax.core import curriculum, plugins, upgrade
from hierjax.core.curriculum import PhaseOptions, phase
from hierjax.core.declarations import OPTIONS
from hierjax.core.errors import UserError, did_you_mean
from hierjax.core.options import names

__all__ = ['PhaseOptions', 'phase']

MAX_STEPS = 2**31 - 1  # the step counter of the training state is an int32


def default() -> ConfigDict:
  """Return every option with its default, as a tree that takes values of the right types only."""
  c = ConfigDict()
  for option in OPTIONS.values():
    *parents, last = option.name.split('.')
    node = c
    for name in parents:
      if name not in node:
        node[name] = ConfigDict()
      node = node[name]
    node[last] = FieldReference(option.default, field_type=option.value_type)
  c.lock()
  return c


def value_at(c: ConfigDict, path: str) -> object:
  """Return the value of an option: `value_at(c, 'optim.lr')`."""
  for part in path.split('.'):
    c = c[part]
  return c


def assign(c: ConfigDict, path: str, value: object) -> None:
  """Set an option; text is read as the command line reads it.

  Args:
    c: the config to change.
    path: the option's name: 'loss.weights'.
    value: a value of its type, or text: 'make=1,type=.5'.

  Raises:
    UserError: there is no such option, or the value does not fit.
  """
  if path.startswith('curriculum.'):
    raise UserError(
      f'--config.{path}: the curriculum is a list of phases: '
      """--config.curriculum="[{'share': .25, 'freeze': 'heads/finest', 'levels': 'coarser'}]" """
    )
  if path not in OPTIONS:
    raise UserError(f'--config.{path}: no such option{did_you_mean(path, OPTIONS)}')
  value = OPTIONS[path].convert(value)
  *parents, last = path.split('.')
  for name in parents:
    c = c[name]
  c[last] = value


def paths(node: ConfigDict, prefix: str = '') -> list[str]:
  """Return the names of the options in a tree: 'optim.lr' and so on."""
  found = []
  for name, value in node.items():
    is_group = isinstance(value, ConfigDict)
    found += paths(value, f'{prefix}{name}.') if is_group else [prefix + name]
  return found


def differences(old: ConfigDict, new: ConfigDict, path: str = '') -> list[str]:
  """Return a line for each option that differs: 'optim.lr: 0.001 -> 0.01'."""
  lines = []
  for name in new:
    if isinstance(new[name], ConfigDict):
      lines += differences(old[name], new[name], f'{path}{name}.')
    elif old[name] != new[name]:
      lines.append(f'{path}{name}: {old[name]!r} -> {new[name]!r}')
  return lines


# Checks.


def check_tree(c: ConfigDict) -> None:
  """Raise a `UserError` where a tree does not have exactly the options of `default()`."""
  if not isinstance(c, ConfigDict):
    raise UserError(
      f'the config is of type {type(c).__name__}; it must be the tree that '
      'hierjax.config.default() returns, with some values changed'
    )
  present = paths(c)
  missing = [p for p in OPTIONS if p not in present]
  if missing:
    raise UserError(
      f'the config lacks {", ".join(missing[:5])}; begin it with c = hierjax.config.default()'
    )
  for p in present:
    if p not in OPTIONS:
      raise UserError(f'the config has an unknown option {p}{did_you_mean(p, OPTIONS)}')


def validate(c: ConfigDict, registries: Mapping[str, Iterable[str]] | None = None) -> None:
  """Import the plugins and check all that can be checked without the data.

  Args:
    c: the config.
    registries: for options that name an entry of a registry, the registry: 'model.backbone' ...

  Raises:
    UserError: an option's value is wrong; it names the option, the value and the choices.
  """
  check_tree(c)
  for path, option in OPTIONS.items():
    option.validate(value_at(c, path))
  plugins.load(c.plugins)
  for path, registry in (registries or {}).items():
    name = value_at(c, path)
    if name not in registry:
      choices = list(registry)
      raise UserError(
        f'--config.{path}={name!r} is not a choice{did_you_mean(name, choices)}; '
        f'choices: {", ".join(choices)}'
      )
  _check_combinations(c)


def _check_combinations(c: ConfigDict) -> None:
  """Raise a `UserError` for options that contradict each other."""
  if (c.model.mean is None) != (c.model.std is None):
    raise UserError(
      f'--config.model.mean={c.model.mean!r} and --config.model.std={c.model.std!r} must be three '
      'numbers each, of RGB in 0..255, or both None'
    )
  if c.train.batch_size % c.optim.accumulate:
    raise UserError(
      f'--config.train.batch_size={c.train.batch_size} must be a multiple of '
      f'--config.optim.accumulate={c.optim.accumulate}'
    )
  if c.data.val_share + c.data.test_share >= 1:
    raise UserError(
      f'--config.data.val_share={c.data.val_share:g} and '
      f'--config.data.test_share={c.data.test_share:g} leave nothing to train on'
    )
  finest = [k for k in ('smoothing', 'lca', 'hxe', 'any_level') if c.loss[k]]
  if len(finest) > 1:
    texts = ' and '.join(f'--config.loss.{k}={c.loss[k]}' for k in finest)
    raise UserError(f'{texts}: each is another loss of the finest head; choose one')
  if c.loss.positives == 'both' and c.model.heads != 'prototypes':
    raise UserError(
      f'--config.loss.positives=both needs --config.model.heads=prototypes, not {c.model.heads}'
    )
  if not c.data.multi:
    for path in changed(c, 'tags'):
      raise UserError(
        f'--config.{path}={value_at(c, path)!r} is for multi levels; '
        'name them with --config.data.multi'
      )
  if c.loss.binary == 'focal' and c.loss.pos_weight:
    raise UserError(
      f'--config.loss.binary=focal and --config.loss.pos_weight={c.loss.pos_weight:g}: '
      'each is against imbalance; choose one'
    )
  if c.loss.smoothing and 'finest' in c.loss.siblings:
    raise UserError(
      '--config.loss.siblings: a class has no sibling that shares its finest level; '
      'name coarser levels'
    )


def changed(c: ConfigDict, levels: str) -> list[str]:
  """Return the options of 'exclusive' or 'tags' levels that are not at their default."""
  return [
    path
    for path, option in OPTIONS.items()
    if option.levels == levels and value_at(c, path) != option.default
  ]


def check_multi(c: ConfigDict, levels: Sequence[str]) -> None:
  """Raise a `UserError` for an option of exclusive levels where all `levels` are tag levels."""
  for path in changed(c, 'exclusive'):
    verb = 'are' if len(levels) > 1 else 'is'
    raise UserError(
      f'--config.{path}={value_at(c, path)!r} is for exclusive levels; '
      f'--config.data.multi={",".join(c.data.multi)} has none, as {", ".join(levels)} {verb} multi'
    )


# Durations and levels.


def steps(
  node: ConfigDict | PhaseOptions, prefix: str, examples: int, batch_size: int, option: str
) -> int | None:
  """Return the steps in a duration that is given in steps, epochs or examples.

  Args:
    node: holds PREFIXsteps, PREFIXepochs and PREFIXexamples, at most one of them not `None`.
    prefix: '', 'eval_' or 'warmup_'.
    examples: number of training examples, that is, an epoch.
    batch_size: examples a step.
    option: name of the option, in errors.

  Returns:
    At least 1, or `None` where no duration is given.

  Raises:
    UserError: several are given, or more steps than an int32 counts.
  """
  durations = {u: getattr(node, prefix + u) for u in curriculum.UNITS}
  durations = {u: v for u, v in durations.items() if v is not None}
  if len(durations) > 1:
    texts = ', '.join(f'{prefix}{u}={v}' for u, v in durations.items())
    raise UserError(f'{option}: give only one of {texts}; set the others to None')
  for unit, value in durations.items():
    number = {
      'steps': value,
      'epochs': value * examples / batch_size,
      'examples': value / batch_size,
    }[unit]
    if number > MAX_STEPS:
      raise UserError(
        f'{option}: {unit}={value} are {number:.3g} steps; at most {MAX_STEPS} can be counted'
      )
    return max(1, round(number))
  return None


def level_words(levels: Sequence[str]) -> dict[str, Sequence[str]]:
  """Return the words that name levels of any taxonomy, and what they name in this one."""
  return {'coarsest': levels[:1], 'finest': levels[-1:], 'all': levels, 'coarser': levels[:-1]}


def resolve_levels(
  chosen: str | Sequence[str], levels: Sequence[str], option: str
) -> tuple[str, ...]:
  """Return the levels that names and words name, in the taxonomy's order.

  Args:
    chosen: names of levels or words, also as text with commas.
    levels: the levels there are, coarse to fine.
    option: name of the option, in errors.

  Raises:
    UserError: a name is no level; it names the choices.
  """
  words = level_words(levels)
  wanted = set()
  for name in names(chosen):
    if name not in words and name not in levels:
      raise UserError(
        f'{option}: no level {name!r}{did_you_mean(name, levels)}; '
        f'choices: {", ".join([*levels, *words])}'
      )
    wanted.update((name,) if name in levels else words[name])
  return tuple(l for l in levels if l in wanted)


def head_levels(m: ConfigDict, levels: Sequence[str], multi: Sequence[str] = ()) -> tuple[str, ...]:
  """Return the levels that have a head, in the taxonomy's order.

  Args:
    m: `config.model`. Of exclusive levels, flat heads have the last of `m.levels` only.
    levels: levels of the taxonomy.
    multi: those of them that are tag levels.
  """
  chosen = resolve_levels(m.levels, levels, '--config.model.levels')
  if m.heads != 'flat':
    return chosen
  without_head = ([l for l in chosen if l not in multi] or chosen)[:-1]
  return tuple(l for l in chosen if l not in without_head)


# JSON.


def to_json(c: ConfigDict) -> str:
  """Return the tree as JSON, with the version of its form."""
  tree = {'version': upgrade.VERSION, **c.to_dict()}
  return json.dumps(tree, indent=2, default=_phase_to_dict)


def _phase_to_dict(value: PhaseOptions) -> dict:
  return {k: v for k, v in dataclasses.asdict(value).items() if v is not None}


def tree_from_json(text: str) -> dict:
  """Return the tree in a config.json as plain dicts, in the present form whatever wrote it.

  Raises:
    UserError: the text is damaged, or written by a later version.
  """
  try:
    return upgrade.upgraded(json.loads(text))
  except UserError:
    raise
  except (ValueError, AttributeError, TypeError) as e:
    raise UserError(f'is damaged ({str(e).splitlines()[0][:200]})') from None


def from_json(text: str) -> ConfigDict:
  """Return the config that `to_json` or an earlier version wrote.

  Options that were added since keep their default.

  Raises:
    UserError: the text is damaged, or has an option that there is not.
  """
  c = default()
  tree = tree_from_json(text)
  try:
    _fill(c, tree, '')
  except UserError:
    raise
  except (ValueError, AttributeError, TypeError) as e:
    raise UserError(f'is damaged ({str(e).splitlines()[0][:200]})') from None
  return c


def _fill(node: ConfigDict, values: Mapping, path: str) -> None:
  for name, value in values.items():
    if name not in node:
      raise UserError(f'unknown option {path}{name}{did_you_mean(name, list(node))}')
    if isinstance(value, dict):
      _fill(node[name], value, f'{path}{name}.')
    elif path + name == 'curriculum':
      node[name] = curriculum.from_json(value)
    elif isinstance(value, list):
      node[name] = tuple(tuple(x) if isinstance(x, list) else x for x in value)
    else:
      node[name] = value
