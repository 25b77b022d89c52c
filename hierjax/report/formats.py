"""Counts, lists and durations as the report prints them; `core.metrics` has the metrics."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

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


def is_mentioning(text: str, term: str) -> bool:
  """Whether a text has a term as a word, perhaps in the plural, in any case."""
  return bool(re.search(rf'(?<![\w-]){re.escape(term)}s?(?![\w-])', text, re.I))


def plain(value: Any) -> Any:
  """Turn numbers of a report into what JSON has: named tuples into objects, NaN into None.

  Args:
    value: of named tuples, mappings, sequences, arrays, numbers and text.
  """
  if hasattr(value, '_asdict'):
    value = value._asdict()
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  is_number = isinstance(value, int | float)
  return value if not is_number or is_finite(value) else None
