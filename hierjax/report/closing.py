"""What a finished training says to the person who waits for it, in about ten lines."""

import pathlib
import shlex

from hierjax.report import runs
from hierjax.report.sections import answers
from hierjax.report.templates import render


def lines(workdir: str | pathlib.Path) -> list[str]:
  """Sum up an evaluated run: scores, whether the hierarchy helped, and what to do next.

  Args:
    workdir: folder of the run.
  """
  run = runs.read(workdir)
  tags = (run.evaluation or {}).get('multi') or {}
  values = answers.numbers(run) | {'workdir': workdir, 'folder': shlex.quote(str(workdir))}
  return str(render('closing', tags=tags, **values)).splitlines()
