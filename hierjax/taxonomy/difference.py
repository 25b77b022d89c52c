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
  old, new = ({r[d - 1]: r for r, d in zip(t.rows(), t.depth)} for t in (a, b))
  moved = [
    f'{name} ({" / ".join(old[name])} against {" / ".join(new[name])})'
    for name in old
    if name in new and old[name] != new[name]
  ]
  old_names, new_names = ([n for n in x if n not in y] for x, y in ((old, new), (new, old)))
  renamed = {name: b.aliases.get(b.levels[-1], {}).get(name) for name in old_names}
  parts = [
    _count('renamed', (f'{name} to {n}' for name, n in renamed.items() if n)),
    _count(f'{a.levels[-1]} only here', (name for name in old_names if not renamed[name])),
    _count(f'{a.levels[-1]} only there', (n for n in new_names if n not in renamed.values())),
    _count('moved', moved),
  ]
  if not any(parts) and a.names[-1] != b.names[-1]:
    return 'the same classes in another order'
  return '; '.join(filter(None, parts))


def _count(kind: str, items: Iterable[str]) -> str:
  """The number of items and the first three; '' without any."""
  items = list(items)
  if not items:
    return ''
  return f'{len(items)} {kind}: ' + ', '.join(items[:3] + ['...'] * (len(items) > 3))
