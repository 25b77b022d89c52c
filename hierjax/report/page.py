"""The report of a run as one HTML file that opens offline."""

import datetime
import logging
import os
import pathlib

from markupsafe import Markup

from hierjax.core import files
from hierjax.report import runs
from hierjax.report.section import Section
from hierjax.report.sections import SECTIONS, headline
from hierjax.report.templates import paragraph, render


def write(workdir: str | os.PathLike) -> pathlib.Path:
  """Write WORKDIR/report.html from the files in a run's folder.

  Args:
    workdir: the folder.

  Returns:
    The path of the report.

  Raises:
    UserError: the folder is not that of a run.
  """
  run = runs.read(workdir)
  return files.write(run.path / 'report.html', html(run))


def html(run: runs.Run) -> str:
  """Render the page of a run; a missing file gives a sentence in its section, never an error."""
  sections = [(section.id, section.title, _body(section, run)) for section in SECTIONS]
  return _page(
    'page',
    name=str(run.config.get('name') or run.path.resolve().name),
    headline=_body(headline.SECTION, run),
    sections=[section for section in sections if section[2]],
    kind='report',
  )


def _body(section: Section, run: runs.Run) -> Markup:
  try:
    view = run.exclusive if section.is_of_exclusive_levels else run
    return section.render(view) if view else Markup('')
  # a fault in drawing must not cost a training run its other results
  except Exception as error:
    logging.exception('report: the section %s could not be made', section.id)
    return paragraph(f'This section could not be made ({type(error).__name__}: {error}).')


def table(name: str, **values: object) -> str:
  """Render the page of a table of experiments from the values that table.html.j2 reads."""
  return _page('table', name=name, **values)


def _page(template: str, **values) -> str:
  return str(render(template, date=datetime.datetime.now().strftime('%Y-%m-%d %H:%M'), **values))
