"""Curves over the course of training, from metrics.jsonl."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from hierjax.core.metrics import is_finite
from hierjax.report import charts
from hierjax.report.formats import listed
from hierjax.report.runs import Run
from hierjax.report.section import Section
from hierjax.report.templates import paragraph, render

# Curves of gradients' cosines in one picture, the lowest on average.
COSINES = 12


class _Panel(NamedTuple):
  """A chart, its legend (name, style, colour), and options of the chart."""

  title: str
  curves: Sequence[charts.Curve]
  legend: Sequence[tuple]
  options: dict


def _render(run: Run) -> Markup:
  """Render loss, accuracy, learning rate, speed and others, with the changes of phase marked."""
  if not run.train and not run.val:
    return paragraph('No metrics.jsonl was found, so there are no curves.')
  axis = 'epoch' if all('epoch' in line for line in run.train + run.val) else 'step'
  positions = [line[axis] for line in run.train + run.val]
  span = min(0, *positions), max(positions)
  if len(positions) == 1:
    span = 0, max(positions[0], 1)
  starts = _phase_starts(run, axis)
  marks = tuple(starts.values())[1:]
  phases = [_phase(run, *start, axis) for start in starts.items()] if marks else []
  curve = functools.partial(_curve, run, axis)
  task_panels, smoothed, hidden = _task_panels(run, curve)
  panels = []
  for title, curves, legend, options in (*_score_panels(run, curve), *task_panels, *_cost(curve)):
    curves = tuple(c for c in curves if len(c.x))
    if curves:
      legend = legend if len(curves) > 1 or len(legend) == 1 else ()
      chart = charts.Chart(title, axis, curves, span, marks, **options)
      panels.append({'title': title, 'legend': legend, 'svg': charts.draw(chart)})
  return render(
    'curves',
    panels=panels,
    phases=phases,
    is_binned=len(run.train) > charts.POINTS,
    window=len(run.train) // charts.WINDOWS,
    smoothed=smoothed,
    hidden=hidden,
  )


def _curve(run, axis, source, key, colour, **style) -> charts.Curve:
  """Draw the values logged in `source`; validation has dots, training beside it is lighter."""
  is_val = source == 'val'
  style = {'has_dots': is_val, 'alpha': 1.0 if is_val else 0.55} | style
  return charts.logged_curve(run.val if is_val else run.train, axis, key, colour, **style)


def _keys_panel(curve, title: str, source: str, names: dict[str, str], **options) -> _Panel:
  """Draw a curve for each key of `names`, {key: name}."""
  curves = [curve(source, key, k, alpha=1.0) for k, key in enumerate(names)]
  legend = [(name, 'thick', k) for k, name in enumerate(names.values()) if name]
  return _Panel(title, curves, legend, options)


def _score_panels(run: Run, curve: Callable[..., charts.Curve]) -> Iterator[_Panel]:
  """Draw losses, accuracies, and the scores of tags and of whole paths."""
  levels, percent = run.levels, {'percent': True}
  curves = [curve('train', 'loss', 0), curve('val', 'loss', 1)]
  yield _Panel('Loss', curves, [('train', 'thin', 0), ('val', 'thick', 1)], {})
  if len(run.heads) > 1:
    losses = {f'loss/{level}': level for level in levels}
    yield _keys_panel(curve, 'Training loss per level', 'train', losses)
  curves = [curve('train', f'acc/{level}', k) for k, level in enumerate(levels)]
  curves += [curve('val', f'top1/{level}', k) for k, level in enumerate(levels)]
  legend = [(level, 'thick', k) for k, level in enumerate(levels)]
  legend += [('train', 'thin', 'ink'), ('val', 'thick', 'ink')]
  yield _Panel('Accuracy per level', curves, legend, percent)
  for key, title in (('map', 'mAP per level on val'), ('f1', 'F1 per level on val, at .5')):
    names = {f'{key}/{level}': level for level in levels}
    yield _keys_panel(curve, title, 'val', names, **percent)
  names = {'fpa': 'full path, independent', 'joint_fpa': 'full path, joint'}
  names |= {'hvr': 'contradictions (HVR)'}
  yield _keys_panel(curve, 'Whole path on val', 'val', names, **percent)


def _task_panels(run: Run, curve: Callable[..., charts.Curve]) -> tuple[list[_Panel], list, int]:
  """Draw loss weights that change, and cosines; return what is smoothed and left out, too."""
  weights, cosines = _logged(run, 'weight'), _logged(run, 'cosine')
  if not any(np.ptp(values) > 1e-6 for values in weights.values()):
    weights = {}
  # a level has the colour of its other curves
  colours = {name: k for k, name in enumerate(dict.fromkeys([*run.levels, *weights]))}
  lowest = sorted(cosines, key=lambda pair: np.mean(cosines[pair]))[:COSINES]

  def panel(kind, title, names, colours, **options):
    curves, legend = [], []
    for name, colour in zip(names, colours):
      curves.append(curve('train', f'{kind}/{name}', colour, alpha=1.0, smooth=True))
      legend.append((name, 'thick', colour))
    return _Panel(title, curves, legend, {'label': kind, **options})

  of_weights = panel('weight', 'Loss weights', weights, [colours[name] for name in weights])
  title, pairs = "Cosine of the tasks' gradients", range(len(lowest))
  of_cosines = panel('cosine', title, lowest, pairs, extent=(-1, 1))
  logged = {'loss weights': weights, 'cosines': cosines}
  smoothed = [title for title, values in logged.items() if values]
  return [of_weights, of_cosines], smoothed, len(cosines) - len(lowest)


def _cost(curve: Callable[..., charts.Curve]) -> Iterator[_Panel]:
  """Draw learning rate, speed, memory and gradient norm."""
  yield _keys_panel(curve, 'Learning rate', 'train', {'lr': ''})
  yield _keys_panel(curve, 'Images per second', 'train', {'images_per_s': ''})
  title = 'Share of the time spent waiting for data'
  yield _keys_panel(curve, title, 'train', {'data_wait': ''}, percent=True)
  memory = {'memory_gib': 'this process', 'device_memory_gib': 'its first device'}
  yield _keys_panel(curve, 'Peak memory in GiB', 'train', memory)
  yield _keys_panel(curve, 'Gradient norm', 'train', {'grad_norm': ''})


def _logged(run: Run, kind: str) -> dict[str, list[float]]:
  """Collect {NAME: values of KIND/NAME in the training log}, levels first."""
  values: dict[str, list[float]] = {level: [] for level in run.levels}
  for line in run.train:
    for key, value in line.items():
      if key.startswith(f'{kind}/') and is_finite(value):
        values.setdefault(key.removeprefix(f'{kind}/'), []).append(value)
  return {name: logged for name, logged in values.items() if logged}


def _phase_starts(run: Run, axis: str) -> dict[int | None, float]:
  """Find where each phase starts; its first line in the log comes later than run.json's."""
  phases = dict(enumerate(run.info.get('phases') or []))
  starts = {}
  for line in run.train:
    phase = line.get('phase')
    step = (phases.get(phase) or {}).get('start', line['step'])
    starts.setdefault(phase, step * line[axis] / max(line['step'], 1))
  return starts


def _phase(run: Run, phase: int | None, start: float, axis: str) -> str:
  """Describe a phase of the curriculum, counted from 1."""
  phases = run.info.get('phases') or []
  begin = f'from {axis} {start:.3g}' if start > run.train[0][axis] else 'at the start'
  if not isinstance(phase, int):
    return f'Phase {phase}, {begin}.'
  if not 0 <= phase < len(phases):
    return f'Phase {phase + 1}, {begin}.'
  levels = listed(phases[phase].get('levels') or ['nothing'])
  frozen = listed(phases[phase].get('freeze') or ['nothing'])
  return f'Phase {phase + 1}, {begin}: loss of {levels}; frozen: {frozen}.'


SECTION = Section('curves', 'Curves of training', _render, is_technical=True)
