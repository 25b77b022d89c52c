"""Cells that hold sets of tags: what separates them, and which names they hold."""

import re
from collections import Counter
from collections.abc import Collection, Mapping

from ml_collections import ConfigDict

from hierjax.data.findings import Findings
from hierjax.taxonomy.spelling import fold, unify

SEPARATORS = {'pipe': '|', 'semicolon': ';', 'comma': ',', 'blank': None}
_LIST = re.compile(r'\[.*\]|\{.*\}', re.DOTALL)  # as programs write lists: ['sea', 'sunset']
_ITEM = re.compile(r""""[^"]*"|'[^']*'|[^,\s][^,]*""")
SIGNS, _BLANKS = r"[^\w\s'-]+|[\r\n]+", r'[\s_-]+'  # between names; names have blanks, too


def read(
  options: ConfigDict,
  level: str,
  counts: Mapping[str, int],
  names: Collection[str],
  where: str,
  findings: Findings,
) -> dict[str, list[str]]:
  """Find the tags that each cell of a column holds.

  Args:
    options: `config.data`.
    level: the column.
    counts: {cell: number of rows with it}.
    names: the tags that there may be; none if the cells say it.
    where: 'FILE:1'.
    findings: receives how tags are separated and spelled, and an error for names that are made of
      others.

  Returns:
    {cell: its tags}; none in '-' and ''.
  """
  folded = {fold(name) for name in names}
  separator = options.tag_separator or _separator(level, counts, folded, where, findings)
  tags = {cell: [cell] if fold(cell) in folded else _split(cell, separator) for cell in counts}
  spellings = Counter()
  for cell, n in counts.items():
    spellings.update(dict.fromkeys(tags[cell], n))
  same = unify(spellings, names, options.fold_case)
  say_spellings(level, same, spellings, where, findings)
  used = {same.get(name, name) for name in spellings}
  new, used = used.difference(names), used.union(names)
  joined = made_of_others(level, new, used)
  text = joined or made_of_others(level, new, used, _BLANKS)
  if text and options.tag_separator != 'never':
    text += ': separate them by one sign in all rows, or say with --config.data.tag_separator by '
    # once the user has said what separates tags, other signs may belong to names
    report = findings.error if joined and not options.tag_separator else findings.warn
    report(where, 'tags', text + 'which, or never')
  return {cell: [same.get(name, name) for name in row] for cell, row in tags.items()}


def made_of_others(
  level: str, names: Collection[str], others: Collection[str], signs: str = SIGNS
) -> str:
  """Say which `names` of a `level` are two or more `others`, joined by `signs`; '' if none is."""
  folded, joint = {fold(name) for name in others}, {}
  for name in sorted(names):
    parts = [part.strip() for part in re.split(signs, name) if part.strip()]
    if len(parts) > 1 and all(fold(part) in folded for part in parts):
      joint[name] = ', '.join(parts)
  if not joint:
    return ''
  name, parts = next(iter(joint.items()))
  more = f' (and {len(joint) - 1} more such names)' if len(joint) > 1 else ''
  return f'{level} {name!r}{more} is made of other classes ({parts})'


def say_spellings(
  level: str, same: Mapping[str, str], counts: Mapping[str, int], where: str, findings: Findings
) -> None:
  """Say how many cells of a level are another spelling of a class.

  Args:
    level: its name.
    same: {spelling: name of the class}.
    counts: {spelling: number of rows}.
    where: the file.
    findings: receives the remark.
  """
  if same:
    spelling, name = next(iter(same.items()))
    text = f'{sum(counts[s] for s in same)} cells of {level} are another spelling of a class '
    text += f'(case, blanks, Unicode form), such as {spelling!r} for {name!r}'
    findings.say(where, 'spellings', f'{text} (case kept apart: data.fold_case=false)')


def _split(cell, separator):
  if not cell or cell == '-':
    return []
  parts = [cell]
  if separator != 'never' and _LIST.fullmatch(cell):
    parts = [item.strip().strip('\'"') for item in _ITEM.findall(cell[1:-1])]
  elif separator != 'never':
    parts = cell.split(SEPARATORS[separator])
  return list(dict.fromkeys(filter(None, map(str.strip, parts))))


def _separator(level, counts, names, where, findings):
  """The name of the sign between tags: one whose parts occur by themselves or in other sets."""
  lists = {cell for cell in counts if _LIST.fullmatch(cell)}
  if lists:
    findings.say(where, 'tags', f'{level} are lists in brackets, as in {max(lists, key=len)!r}')
  for separator in ('pipe', 'semicolon', 'comma'):
    plain = [cell for cell in counts if cell not in lists and fold(cell) not in names]
    sets = {cell: _split(cell, separator) for cell in plain}
    cells_of = Counter(fold(part) for parts in sets.values() for part in parts)
    joint = [cell for cell, parts in sets.items() if len(parts) > 1]
    parts = {fold(part) for cell in joint for part in sets[cell]}
    if joint and separator == 'pipe':
      return separator
    if parts & names or (not names and any(cells_of[part] > 1 for part in parts)):
      text = f'{level} are separated by a {separator}, as in {joint[0]!r} (data.tag_separator)'
      findings.say(where, 'tags', text)
      return separator
    if joint and not names:
      text = f'{level} {joint[0]!r} may be one class or several: say with '
      text += f'--config.data.tag_separator={separator} or never'
      findings.error(where, 'tags', text)
  return 'pipe'
