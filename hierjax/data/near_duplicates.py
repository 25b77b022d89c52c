"""Names that are probably the same: they differ in spelling only, or by a slip of the keyboard."""

import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

MAX_WORD = 40  # letters; the slips of longer words are too many to compare


def near_duplicates(names: Sequence[str]) -> list[tuple[str, str, str]]:
  """Find pairs of names that are probably the same.

  They differ in case, accents, spaces and punctuation only; or by one slip in one word of at least
  five letters and no digit (two slips from ten letters on; words over `MAX_WORD` are left out).

  Args:
    names: of one level.

  Returns:
    [(name, other name, what sets them apart)].
  """
  folded, words = defaultdict(list), {}
  for name in names:
    words[name] = _words(name)
    folded[''.join(words[name])].append(name)
  pairs = []
  for group in folded.values():
    for a, b in itertools.combinations(group, 2):
      pairs.append((a, b, 'differ in case, accents, spaces or punctuation'))
  slots = defaultdict(dict)  # the name without one of its words -> {that word: name}
  for first, *_ in folded.values():
    for i, word in enumerate(words[first]):
      if 5 <= len(word) <= MAX_WORD and not re.search(r'\d', word):
        slots[i, *words[first][:i], None, *words[first][i + 1 :]][word] = first
  for slot in slots.values():
    pairs += [(slot[a], slot[b], 'are nearly the same') for a, b in _slips(slot)]
  return pairs


def _words(name):
  """The words of a name without case, accents and punctuation."""
  letters = unicodedata.normalize('NFKD', name.casefold())
  plain = ''.join(c for c in letters if not unicodedata.combining(c))
  return re.findall(r'[^\W_]+', plain) or [name]


def _slips(words):
  """Pairs of words that one slip sets apart, or two if both are long; sorted."""
  near = defaultdict(list)
  for word in words:
    for part in _deletions(word, 2 if len(word) >= 10 else 1):
      near[part].append(word)
  pairs = set()
  for group in near.values():
    pairs.update(itertools.combinations(sorted(group), 2))
  for a, b in sorted(pairs):
    slips = 2 if min(len(a), len(b)) >= 10 else 1
    # the first letter is hardly ever mistyped: mouse and house are two words
    if max(len(a), len(b)) >= 6 and a[0] == b[0] and edit_distance(a, b) <= slips:
      yield a, b


def _deletions(word, n):
  """The word with up to n letters left out."""
  parts = {word}
  for _ in range(n):
    parts |= {w[:i] + w[i + 1 :] for w in parts for i in range(len(w))}
  return parts


def edit_distance(a: str, b: str) -> int:
  """Count the insertions, deletions, substitutions and swaps of neighbours between two words.

  Args:
    a, b: the words; their distance is that of optimal string alignment.
  """
  before, row = [], list(range(len(b) + 1))  # of each beginning of a: to each beginning of b
  for i, x in enumerate(a, 1):
    older, before, row = before, row, [i]
    for j, y in enumerate(b, 1):
      row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
      if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:  # the two last are swapped
        row[j] = min(row[j], older[j - 2] + 1)
  return row[-1]
