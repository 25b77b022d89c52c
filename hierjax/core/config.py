"""The tree of options: its defaults, changing it, checking it, and writing it as JSON.

A config file in `configs/` calls `default()`, changes what its experiment changes and returns the
tree; flags (`--config.optim.lr=3e-4`) come last. `hierjax.core.declarations` lists the options.
"""

import contextlib
import dataclasses
import functools
import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ml_collections import ConfigDict, FieldReference

from hierjax.core import curriculum, json_files, plugins, upgrade
from hierjax.core.curriculum import PhaseOptions
from hierjax.core.declarations import OPTIONS
from hierjax.core.errors import UserError, describe_choices, did_you_mean
from hierjax.core.options import resolve_levels

phase = PhaseOptions
MAX_STEPS = 2**31 - 1  # the step counter of the training state is an int32


class _Value(FieldReference):
  """The value of an option, of the option's type or None, which remembers whether it was set."""

  def __init__(self, initial: object, field_type: type):
    super().__init__(initial, field_type=field_type)
    self.is_set = False

  def set(self, value: object, type_safe: bool = True) -> None:
    """Set the value, and remember that."""
    super().set(value, type_safe)
    self.is_set = True

  def __setstate__(self, state: Mapping) -> None:
    super().__setstate__(state)
    self.is_set = state['is_set']


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
    node[last] = _Value(option.default, option.value_type)
  c.lock()
  return c


def value_at(c: ConfigDict, path: str | Sequence[str]) -> object:
  """Return the value of an option or a group: `value_at(c, 'optim.lr')` or of its path in parts."""
  parts = path.split('.') if isinstance(path, str) else path
  return functools.reduce(operator.getitem, parts, c)


def is_set(c: ConfigDict, path: str) -> bool:
  """Whether a config file, a flag or code has set an option, be it to its default."""
  *groups, last = path.split('.')
  return getattr(value_at(c, groups).get_ref(last), 'is_set', True)


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
  *groups, last = path.split('.')
  value_at(c, groups)[last] = OPTIONS[path].convert(value)


def _paths(node: ConfigDict, prefix: str = '') -> list[str]:
  """The names of the options in a tree: 'optim.lr' and so on."""
  paths = []
  for name, value in node.items():
    if isinstance(value, ConfigDict):
      paths += _paths(value, f'{prefix}{name}.')
    else:
      paths.append(prefix + name)
  return paths


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
  """Return a line for each option that differs: 'optim.lr: 0.001 -> 0.01'.

  Args:
    old: a config.
    new: another one.
  """
  lines = []
  for path in _paths(new):
    before, after = value_at(old, path), value_at(new, path)
    if before != after:
      lines.append(f'{path}: {before!r} -> {after!r}')
  return lines


def check_tree(c: ConfigDict) -> None:
  """Check that a tree has exactly the options of `default()`.

  Args:
    c: what a config file returned.

  Raises:
    UserError: it has others; one is named.
  """
  if not isinstance(c, ConfigDict):
    raise UserError(
      f'the config is of type {type(c).__name__}; it must be the tree that '
      'hierjax.config.default() returns, with some values changed'
    )
  present = _paths(c)
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
      choices = describe_choices(path.rpartition('.')[2], name, registry)
      raise UserError(f'--config.{path}={name!r} is not a choice{choices}')
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
  names = [n for n in ('val_share', 'test_share', 'calibration_share') if c.data[n] is not None]
  if sum(c.data[name] for name in names) >= 1:
    shares = [f'--config.data.{name}={c.data[name]:g}' for name in names]
    raise UserError(f'{", ".join(shares[:-1])} and {shares[-1]} leave nothing to train on')
  if c.decide.risk and c.decide.risk >= 1 and not c.decide.costs:
    raise UserError(
      f'--config.decide.risk={c.decide.risk:g}: a share of wrong answers must be below 1; only a '
      'mean cost (decide.costs) may be more'
    )
  if c.decide.confidence and not c.decide.risk:
    raise UserError(
      f'--config.decide.confidence={c.decide.confidence:g}: needs --config.decide.risk, the share '
      'of wrong answers that it is about'
    )
  finest = [k for k in ('smoothing', 'lca', 'hxe', 'hace', 'margin') if c.loss[k]]
  # the last three learn from coarser labels by themselves, so that any_level goes with them
  if c.loss.any_level and {'smoothing', 'lca'} & {*finest}:
    finest.append('any_level')
  if len(finest) > 1:
    texts = ' and '.join(f'--config.loss.{k}={c.loss[k]}' for k in finest)
    raise UserError(f'{texts}: each is another loss of the finest head; choose one')
  for path in ('data.balance', 'loss.aggregate'):
    if c.loss.logit_adjust and value_at(c, path):
      raise UserError(
        f'--config.loss.logit_adjust={c.loss.logit_adjust:g} is for classes as frequent as in the '
        f'training images, which --config.{path}={value_at(c, path)} changes; choose one'
      )
  if c.loss.positives == 'both' and c.model.heads != 'prototypes':
    raise UserError(
      f'--config.loss.positives=both needs --config.model.heads=prototypes, not {c.model.heads}'
    )
  if not c.data.multi:
    for path in _changed(c, 'tags'):
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


def _changed(c: ConfigDict, levels: str) -> list[str]:
  """The options of 'exclusive' or 'tags' levels that are not at their default."""
  return [
    path
    for path, option in OPTIONS.items()
    if option.levels == levels and value_at(c, path) != option.default
  ]


def check_multi(c: ConfigDict, levels: Sequence[str]) -> None:
  """Check, where all levels are tag levels, that no option of exclusive ones is set.

  Args:
    c: the config.
    levels: the tag levels.

  Raises:
    UserError: one is.
  """
  for path in _changed(c, 'exclusive'):
    verb = 'are' if len(levels) > 1 else 'is'
    raise UserError(
      f'--config.{path}={value_at(c, path)!r} is for exclusive levels; '
      f'--config.data.multi={",".join(c.data.multi)} has none, as {", ".join(levels)} {verb} multi'
    )


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
  given_units = [unit for unit in curriculum.UNITS if getattr(node, prefix + unit) is not None]
  if not given_units:
    return None
  if len(given_units) > 1:
    texts = ', '.join(f'{prefix}{unit}={getattr(node, prefix + unit)}' for unit in given_units)
    raise UserError(f'{option}: give only one of {texts}; set the others to None')
  unit = given_units[0]
  value = getattr(node, prefix + unit)
  if unit == 'epochs':
    number = value * examples / batch_size
  elif unit == 'examples':
    number = value / batch_size
  else:
    number = value
  if number > MAX_STEPS:
    raise UserError(
      f'{option}: {unit}={value} are {number:.3g} steps; at most {MAX_STEPS} can be counted'
    )
  return max(1, round(number))


def head_levels(m: ConfigDict, levels: Sequence[str], multi: Sequence[str] = ()) -> tuple[str, ...]:
  """Return the levels that have a head, in the taxonomy's order.

  Args:
    m: `config.model`. Of exclusive levels, flat heads have the last of `m.levels` only.
    levels: levels of the taxonomy.
    multi: those of them that are tag levels.
  """
  selected = resolve_levels(m.levels, levels, '--config.model.levels')
  if m.heads != 'flat':
    return selected
  exclusive = [level for level in selected if level not in multi]
  without_head = exclusive[:-1] if exclusive else selected[:-1]
  return tuple(level for level in selected if level not in without_head)


def to_json(c: ConfigDict) -> str:
  """Return the tree as JSON, with the version of its form."""

  def phase_to_dict(value: PhaseOptions) -> dict:
    return {k: v for k, v in dataclasses.asdict(value).items() if v is not None}

  return json.dumps({'version': upgrade.VERSION, **c.to_dict()}, indent=2, default=phase_to_dict)


def tree_from_json(text: str | bytes) -> dict:
  """Return the tree in a config.json as plain dicts, in the present form whatever wrote it."""
  tree = json_files.parse(text)
  if not isinstance(tree, dict):
    raise UserError('is damaged (not a JSON object)')
  with _damage_explained():
    return upgrade.upgraded(tree)


def from_json(text: str | bytes) -> ConfigDict:
  """Return the config that `to_json` or an earlier version wrote.

  Args:
    text: content of config.json; options that were added since keep their default.

  Raises:
    UserError: the text is damaged, or has an option that there is not.
  """
  c = default()
  with _damage_explained():
    _fill(c, tree_from_json(text), '')
  return c


@contextlib.contextmanager
def _damage_explained() -> Iterator[None]:
  try:
    yield
  except UserError:
    raise
  except (ValueError, AttributeError, TypeError) as e:
    raise UserError(f'is damaged ({str(e).splitlines()[0][:200]})') from None


def _fill(node: ConfigDict, values: Mapping, path: str) -> None:
  for name, value in values.items():
    if name not in node:
      raise UserError(f'unknown option {path}{name}{did_you_mean(name, list(node))}')
    if isinstance(value, dict):
      _fill(node[name], value, f'{path}{name}.')
    elif path + name == 'curriculum':
      node[name] = curriculum.from_dicts(value)
    elif isinstance(value, list):
      node[name] = tuple(tuple(x) if isinstance(x, list) else x for x in value)
    else:
      node[name] = value
