"""The first screen in words: how good, does the hierarchy help, what is weak, what to do next."""

import pathlib
import shlex
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from hierjax.core.metrics import is_finite
from hierjax.data.splits import NOVEL
from hierjax.evaluate import bootstrap
from hierjax.report.runs import Run, get
from hierjax.report.section import Section
from hierjax.report.sections import images, verdict
from hierjax.report.templates import render

WEAK, PAIRS = 5, 3  # classes and pairs of classes that are listed


class Weak(NamedTuple):
  """A finest class, its images and those that are right, and what it is taken for most often."""

  name: str
  images: int
  right: int
  taken_for: str
  times: int


class Step(NamedTuple):
  """What to do next: why, and the command."""

  reason: str
  command: str


def numbers(run: Run) -> dict:
  """Collect what the first screen shows; `page` writes it to report.json, too.

  Args:
    run: the run.

  Returns:
    'split', 'images', 'decision', 'levels' {level: top-1}, 'full_path' and its 'interval',
    'hierarchy' (a `verdict.Comparison` or why there is none), 'gain' of the joint decision over the
    finest head alone with its standard error, 'weak', 'next' and 'unused', a split for a last test.
  """
  view, evaluation = run.exclusive, run.evaluation or {}
  decode = evaluation.get('decode') or {}
  decision = next((name for name in ('joint', 'leaf', 'independent') if decode.get(name)), None)
  scores = decode.get(decision) or {}
  interval = get(evaluation, f'intervals.{decision}.fpa') or {}
  result = verdict.compare(view) if decision and view else 'no evaluation'
  return {
    'split': run.splits[0] if run.splits else None,
    'images': evaluation.get('n'),
    'decision': decision,
    'levels': {level: values.get('top1') for level, values in scores.get('levels', {}).items()},
    'full_path': scores.get('fpa'),
    'interval': [interval[end] for end in ('low', 'high') if is_finite(interval.get(end))],
    'hierarchy': result,
    'gain': [get(evaluation, f'calibration.{name}') for name in ('gain', 'gain_error')],
    'weak': weak_classes(view) if view else [],
    'next': next_steps(run, result),
    'unused': unused_split(run),
  }


def weak_classes(run: Run) -> list[Weak]:
  """List the finest classes that are surely bad: those whose interval ends lowest.

  By the upper end of Wilson's interval a class with one wrong image of two is not worse than one
  with thirty of forty.

  Args:
    run: with its exclusive levels only.

  Returns:
    Up to WEAK classes with mistakes, the worst first; [] without predictions.
  """
  if run.predicted is None:
    return []
  names = run.taxonomy.names[-1]
  labels, pred = run.labelled(-1)
  total = np.bincount(labels, minlength=len(names))
  right = np.bincount(labels[pred == labels], minlength=len(names))
  _, upper = bootstrap.wilson(right, total)
  # classes without mistakes last
  upper = np.where(total > right, upper, np.inf)
  out = []
  for c in np.argsort(upper, kind='stable')[:WEAK].tolist():
    mistakes = pred[(labels == c) & (pred != c)]
    if len(mistakes):
      times = np.bincount(mistakes)
      other = int(times.argmax())
      out.append(Weak(names[c], int(total[c]), int(right[c]), names[other], int(times[other])))
  return out


def next_steps(run: Run, result: verdict.Comparison | str) -> list[Step]:
  """Choose the commands that would tell or gain most.

  Args:
    run: the run.
    result: its comparison with a baseline, or why there is none.
  """
  folder, val = shlex.quote(str(run.path)), get(run.config, 'data.val', 'val')
  if not run.evaluation:
    return [Step('Evaluate it.', f'hierjax evaluate --workdir={folder} --split={val}')]
  steps = []
  seeds = _command(run, '--config.baseline=train', '--config.baseline_seeds=3')
  is_open = isinstance(result, verdict.Comparison) and result.seeds < bootstrap.MEASURING_SEEDS
  if result == 'no baseline' and seeds:
    reason = 'Measure whether the hierarchy helps: train one head, and two more seeds of both.'
    steps.append(Step(f'{reason} That is five more trainings.', seeds))
  elif is_open and result.answer.startswith('No e') and seeds:
    steps.append(Step('Decide whether the hierarchy helps by three seeds of each.', seeds))
  unused = unused_split(run)
  if run.splits[0] == val and unused:
    reason = f'{val} helped to choose the checkpoint. For a figure to publish, use other images.'
    steps.append(Step(reason, f'hierjax evaluate --workdir={folder} --split={unused}'))
  use = Step('Use it.', f"hierjax predict --workdir={folder} --images='photos/*.jpg'")
  return [*steps, use]


def unused_split(run: Run) -> str | None:
  """Return the name of a split that training has not used, of runs that say which there are."""
  used = [get(run.config, f'data.{name}') or name for name in ('train', 'val', 'calibration')]
  names = [name for name in run.info.get('splits', ()) if not name.endswith(NOVEL)]
  return next((name for name in ('test', *names) if name in names and name not in used), None)


def _command(run: Run, *options: str) -> str:
  """Write the command that trained a run with other options; '' where it was none."""
  try:
    words = shlex.split(str(run.info.get('command') or ''))
  except ValueError:
    return ''
  words = words[1:] if words[:1] == ['python'] else words
  program = pathlib.PurePath(words[0]).name if words else ''
  if program not in ('main.py', 'hierjax'):
    return ''
  flags = tuple(f'{option.partition("=")[0]}=' for option in options)
  words = [word for word in words[1:] if not word.startswith(flags)]
  interpreter = ['python'] if program == 'main.py' else []
  return shlex.join([*interpreter, program, *words, *options])


def _render(run: Run, values: dict) -> Markup:
  """Render the answers; before the first evaluation only what to do."""
  view, result = run.exclusive, values['hierarchy']
  return render(
    'answers',
    run=run,
    **values,
    pairs=images.pairs(view, PAIRS) if view and view.predicted is not None else [],
    deviation=bootstrap.SEED_DEVIATION,
    comparison=result if isinstance(result, verdict.Comparison) else None,
    is_validation=run.splits[:1] == [get(run.config, 'data.val', 'val')],
  )


SECTION = Section('answers', 'In short', _render, numbers=numbers)
