"""The report of a run as one HTML file that opens offline, and its numbers as JSON and CSV."""

import datetime
import logging
import os
import pathlib
import re
from typing import Any, NamedTuple

from markupsafe import Markup

from hierjax.core import files, json_files
from hierjax.core.metrics import METRICS
from hierjax.report import formats, predictions_csv, runs
from hierjax.report.section import Section
from hierjax.report.sections import SECTIONS, answers, headline
from hierjax.report.templates import paragraph, render

VERSION = 1  # of what report.json holds


class Part(NamedTuple):
  """A section of the page: its HTML, and the numbers that it was rendered from."""

  section: Section
  body: Markup
  numbers: Any


def write(workdir: str | os.PathLike) -> pathlib.Path:
  """Write report.html, report.json and predictions_SPLIT.csv from the files in a run's folder.

  Args:
    workdir: the folder.

  Returns:
    The path of report.html.

  Raises:
    UserError: the folder is not that of a run.
  """
  run = runs.read(workdir)
  # the headline last, as it names the files that the others could not read
  parts = [_part(section, run) for section in (answers.SECTION, *SECTIONS, headline.SECTION)]
  for split in run.splits:
    predictions = predictions_csv.table(run, split)
    if predictions:
      files.write(files.of_split(run.path, 'predictions', split, 'csv'), predictions)
  contents = {'version': VERSION, 'name': _name(run), 'date': _time(), 'faults': run.faults}
  contents |= {part.section.id: part.numbers for part in parts if part.numbers is not None}
  files.write(run.path / 'report.json', json_files.dump(formats.plain(contents), indent=1) + '\n')
  return files.write(run.path / 'report.html', _html(run, parts))


def _html(run: runs.Run, parts: list[Part]) -> str:
  """Render the page; a missing file gives a sentence in its section, never an error."""
  first, *others, top = parts
  sections, technical = [], []
  for section, body, _ in others:
    if body:
      group = technical if section.is_technical else sections
      group.append((section.id, section.title, body))
  return render_page(
    'page',
    _name(run),
    headline=top.body + first.body,
    sections=sections,
    technical=technical,
    words=_words(' '.join(str(part.body) for part in parts)),
    kind='report',
  )


def _words(html: str) -> Markup:
  """Explain the words and metrics that occur in a page, all in one place."""
  metrics = [(metric.label, metric.help) for metric in METRICS.values() if metric.place]
  text = re.sub(r'<svg.*?</svg>|<[^>]*>', ' ', html, flags=re.S)
  return render('words', text=text, metrics=metrics)


def _part(section: Section, run: runs.Run) -> Part:
  try:
    view = run.exclusive if section.is_of_exclusive_levels else run
    if not view:
      return Part(section, Markup(''), None)
    if not section.numbers:
      return Part(section, section.render(view), None)
    numbers = section.numbers(view)
    return Part(section, section.render(view, numbers), numbers)
  # a fault in drawing must not cost a training run its other results
  except Exception as error:
    logging.exception('report: the section %s could not be made', section.id)
    reason = f'This section could not be made ({type(error).__name__}: {error}).'
    return Part(section, paragraph(reason), None)


def _name(run: runs.Run) -> str:
  return str(run.config.get('name') or run.path.resolve().name)


def _time() -> str:
  return datetime.datetime.now().strftime('%Y-%m-%d %H:%M')


def render_page(template: str, name: str, **values: object) -> str:
  """Render a page from the values that TEMPLATE.html.j2 reads."""
  defaults = {'date': _time(), 'technical': [], 'words': ''}
  return str(render(template, name=name, **defaults | values))
