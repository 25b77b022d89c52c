"""What differs between two taxonomies, in one line."""

from collections.abc import Iterable

import numpy as np

from hierjax.taxonomy.mixed import Mixed
from hierjax.taxonomy.table import Taxonomy


def describe_difference(a: Taxonomy | Mixed, b: Taxonomy | Mixed) -> str:
  """Say in one line in what two taxonomies differ.

  Args:
    a: 'here' in the text.
    b: 'there'.

  Returns:
    The line, '' where they are the same.
  """
  if a.multi != b.multi or len(a.tables) != len(b.tables):
    return f'levels {_describe_levels(a)} against {_describe_levels(b)}'
  differences = [_describe_tables(x, y) for x, y in zip(a.tables, b.tables)]
  if any(differences):
    return '; '.join(filter(None, differences))
  if isinstance(a, Mixed) and not np.array_equal(a.above, b.above):
    return f'{", ".join(a.multi)} below other classes'
  return ''


def _describe_levels(taxonomy):
  return ', '.join(
    f'{level} (multi)' if level in taxonomy.multi else level for level in taxonomy.levels
  )


def _describe_tables(a: Taxonomy, b: Taxonomy) -> str:
  if a.levels != b.levels:
    return f'levels {", ".join(a.levels)} against {", ".join(b.levels)}'
  old = {row[depth - 1]: row for row, depth in zip(a.rows(), a.depth)}  # by its finest name
  new = {row[depth - 1]: row for row, depth in zip(b.rows(), b.depth)}
  moved = [name for name in old if name in new and old[name] != new[name]]
  aliases = b.aliases.get(b.levels[-1], {})
  renamed = {name: aliases[name] for name in old if name not in new and name in aliases}
  only_here = [name for name in old if name not in new and name not in renamed]
  only_there = [name for name in new if name not in old and name not in renamed.values()]
  parts = [
    _count('renamed', (f'{name} to {new_name}' for name, new_name in renamed.items())),
    _count(f'{a.levels[-1]} only here', only_here),
    _count(f'{a.levels[-1]} only there', only_there),
    _count('moved', (f'{x} ({" / ".join(old[x])} against {" / ".join(new[x])})' for x in moved)),
  ]
  if not any(parts) and a.names[-1] != b.names[-1]:
    return 'the same classes in another order'
  return '; '.join(filter(None, parts))


def _count(kind: str, items: Iterable[str]) -> str:
  """The number of items and the first three; '' without any."""
  items = list(items)
  more = ', ...' if len(items) > 3 else ''
  return f'{len(items)} {kind}: {", ".join(items[:3])}{more}' if items else ''
