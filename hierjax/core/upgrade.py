"""Reading config.json of earlier versions.

Version 1, which has no number, wrote 0, '' or 'none' for off, lists as text, and a curriculum of
three phases p1, p2, p3.
"""

from collections.abc import Mapping

from hierjax.core import options
from hierjax.core.declarations import OPTIONS
from hierjax.core.errors import UserError

VERSION = 2
# Of novelty detection in runs that stated another share.
FALSE_ALARMS = 0.05
_DEFAULT_BY_ZERO = ('balance.', 'model.head.')
_TEXT_LISTS = ('data.multi', 'model.levels', 'loss.siblings', 'loss.terms', 'model.head.order')


def upgraded(tree: Mapping) -> dict:
  """Return the tree of a config.json in the form of `VERSION`, without the version number.

  Args:
    tree: as it was written.

  Raises:
    UserError: the tree was written by a later version.
  """
  tree = dict(tree)
  # What did not exist was as if it had this value, which is no longer the default.
  if isinstance(tree.get('data'), dict):
    tree['data'] = {'homonyms': 'merge', **tree['data']}
  _rename_novelty(tree)
  version = tree.pop('version', 1)
  if version == VERSION:
    return tree
  if version != 1:
    raise UserError(f'is of version {version}; this hierjax reads versions 1 to {VERSION}')
  return _from_version_1(tree, '')


def _rename_novelty(tree):
  """Read eval.novelty, the share of new images to detect, as decide.novelty, of false alarms."""
  if isinstance(tree.get('eval'), dict):
    tree['eval'] = dict(tree['eval'])
    share, score = (tree['eval'].pop(f'novelty{end}', None) for end in ('', '_score'))
    new = {'novelty': FALSE_ALARMS} if share else {}
    if score in OPTIONS['decide.novelty_score'].choices:
      new['novelty_score'] = score
    tree['decide'] = {**tree.get('decide', {}), **new}


def _from_version_1(node: Mapping, path: str) -> dict:
  result = {}
  for name, value in node.items():
    full = path + name
    if full == 'curriculum':
      value = _phases(value) if isinstance(value, dict) else value
    elif isinstance(value, dict):
      value = _from_version_1(value, f'{full}.')
    elif full in OPTIONS:
      value = _value(full, value)
    result[name] = value
  return result


def _value(name: str, value: object) -> object:
  option = OPTIONS[name]
  if name == 'loss.weights':
    return OPTIONS[name].convert(value) if isinstance(value, str) else value
  if name == 'data.hold_out' and isinstance(value, str):
    return options.names(value, ';')
  if name in _TEXT_LISTS and isinstance(value, str):
    return options.names(value) or option.default
  if option.is_optional and value in ('', 'none', []):
    return None
  if not options.is_number(value):
    return value
  if value == 0 and name.startswith(_DEFAULT_BY_ZERO):
    return None
  return option.convert(value)


def _phases(tree: Mapping) -> list[dict]:
  """Convert p1, p2, p3; a duration of -1 lasted to the end, and one of 0 was absent."""
  phases = []
  for name in sorted(tree):
    old = tree[name]
    durations = {k: old.get(k) for k in ('epochs', 'steps', 'examples', 'share') if old.get(k)}
    if not durations:
      continue
    if min(durations.values()) < 0:
      durations = {'share': 1.0}
    freeze, levels = options.names(old.get('freeze', '')), options.names(old.get('levels', 'all'))
    phases.append({**durations, 'freeze': freeze, 'levels': levels})
  return phases
