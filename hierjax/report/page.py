"""What every section of the report is written with: numbers in words and the macros."""

import functools
import pathlib

import jinja2
import numpy as np
from markupsafe import Markup

from hierjax.core.metrics import METRICS, number, signed
from hierjax.core.metrics import is_finite as finite


def count(value) -> str:
  return f'{value:,}' if isinstance(value, int | np.integer) else str(value)


def listed(words) -> str:
  """'a', 'a and b', 'a, b and c'."""
  words = [str(word) for word in words]
  return (
    words[0] if len(words) == 1 else ', '.join(words[:-1]) + ' and ' + words[-1] if words else ''
  )


def duration(seconds) -> str:
  if not finite(seconds):
    return '–'
  seconds = round(seconds)
  if seconds < 120:
    return f'{seconds} s'
  return (
    f'{seconds // 60} min {seconds % 60:02d} s'
    if seconds < 7200
    else f'{seconds // 3600} h {seconds % 3600 // 60:02d} min'
  )


@functools.cache
def _macros() -> dict:
  loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
  environment = jinja2.Environment(
    loader=loader,
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.globals.update(METRICS=METRICS, listed=listed, count=count)
  return {
    name: macro
    for file in ('report.html.j2', 'table.html.j2')
    for name, macro in vars(environment.get_template(file).module).items()
  }


def render(macro: str, *args, **values) -> Markup:
  """A macro of report.html.j2 or table.html.j2; everything that is not Markup already is escaped."""
  return _macros()[macro](*args, **values)


__all__ = ['count', 'duration', 'listed', 'number', 'render', 'signed']
