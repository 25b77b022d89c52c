"""Counts, lists and durations as the report prints them; `core.metrics` has the metrics."""

from collections.abc import Iterable

import numpy as np

from hierjax.core.metrics import is_finite


def count(value: object) -> str:
  """Format a whole number with separators; anything else as it is."""
  return f'{value:,}' if isinstance(value, int | np.integer) else str(value)


def listed(words: Iterable) -> str:
  """Join words: 'a', 'a and b', 'a, b and c'."""
  *first, last = [str(word) for word in words] or ['']
  return f'{", ".join(first)} and {last}' if first else last


def duration(seconds: float | None) -> str:
  """Format a duration: '59 s', '24 min 09 s', '2 h 01 min'."""
  if not is_finite(seconds):
    return '–'
  seconds = round(seconds)
  if seconds < 120:
    return f'{seconds} s'
  if seconds < 7200:
    return f'{seconds // 60} min {seconds % 60:02d} s'
  return f'{seconds // 3600} h {seconds % 3600 // 60:02d} min'
