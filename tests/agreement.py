"""Training and lint read data with the same readers: what one refuses, the other reports."""

import re

from hierjax.core.errors import UserError
from hierjax.data import lint, sources


def assert_agree(options) -> str:
  """Load and lint the data of `options`; return the error of loading, '' if there is none."""
  try:
    sources.load(options)
    error = ''
  except UserError as e:
    error = str(e)
  stops = [str(p) for p in lint.check(options).problems if p.stops]
  assert stops[:1] == ([error] if error else [])
  return error


def refuses(options, pattern):
  """Assert that both training and lint refuse the data with this message, in one line."""
  error = assert_agree(options)
  assert error and '\n' not in error
  assert re.search(pattern, error), error
