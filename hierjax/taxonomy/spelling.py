"""Spellings of one name: they differ in case, blanks or Unicode form only."""

import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping


def fold(name: str, case: bool = True) -> str:
  """Return a name without what spellings of it differ in.

  Args:
    name: as it was written.
    case: whether upper and lower case are the same.
  """
  if name.isascii():
    text = ' '.join(name.split())
    return text.casefold() if case else text
  letters = filter(lambda c: unicodedata.category(c) != 'Cf', unicodedata.normalize('NFC', name))
  text = ' '.join(''.join(letters).split())
  return unicodedata.normalize('NFC', text.casefold()) if case else text


def unify(
  counts: Mapping[str, int], names: Collection[str] = (), case: bool = True
) -> dict[str, str]:
  """Find the names that spellings stand for.

  Args:
    counts: {spelling: how often it occurs}.
    names: the names there are; without any, the most frequent spelling is the name.
    case: whether upper and lower case are the same.

  Returns:
    {spelling: name} for spellings that are not the name itself; none where two names are as near.
  """
  groups, names_by_key, result = defaultdict(list), defaultdict(list), {}
  for spelling in counts:
    groups[fold(spelling, case)].append(spelling)
  for name in names:
    names_by_key[fold(name, case)].append(name)
  for key, spellings in groups.items():
    targets = names_by_key[key] if names else [max(spellings, key=counts.get)]
    if len(targets) == 1:
      result |= {s: targets[0] for s in spellings if s != targets[0]}
  return result
