"""Rendering of the report's Jinja templates, which lie here and in `sections/`."""

import functools
import pathlib

import jinja2
from markupsafe import Markup

from hierjax.core import metrics
from hierjax.report import formats


@functools.cache
def _environment() -> jinja2.Environment:
  folder = pathlib.Path(__file__).parent
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader([folder, folder / 'sections']),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.globals['METRICS'] = metrics.METRICS
  environment.filters.update(
    number=metrics.number,
    signed=metrics.signed,
    count=formats.count,
    listed=formats.listed,
    duration=formats.duration,
  )
  environment.tests.update(finite=metrics.is_finite, mentioning=formats.is_mentioning)
  return environment


def render(template: str, **values: object) -> Markup:
  """Render TEMPLATE.html.j2; every value that is not Markup is escaped."""
  return Markup(_environment().get_template(f'{template}.html.j2').render(**values))


def paragraph(sentence: str) -> Markup:
  """Make a paragraph of a sentence."""
  return Markup('<p>{}</p>').format(sentence)
