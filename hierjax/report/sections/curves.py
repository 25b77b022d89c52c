"""Curves over the course of training, from metrics.jsonl."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from hierjax.core.metrics import is_finite
from hierjax.report import charts
from hierjax.report.formats import listed
from hierjax.report.runs import Run
from hierjax.report.templates import paragraph, render

# Curves of gradients' cosines in one picture, the lowest on average.
COSINES = 12


class _Panels:
  """The charts of a run, all over the same axis."""

  def __init__(self, run: Run, axis: str, marks: Sequence[float]):
    positions = [line[axis] for line in run.train + run.val]
    span = (0, max(*positions, 1))
    if len(positions) > 1:
      span = (min(0, *positions), max(positions))
    self.axis, self.marks, self.span, self.lines = axis, tuple(marks), span, []
    self.logged = {'train': run.train, 'val': run.val}

  def curve(self, source: str, key: str, colour: int, **style) -> charts.Curve:
    """The logged values of a key; validation has dots, training next to it is lighter."""
    is_val = source == 'val'
    style = {'has_dots': is_val, 'alpha': 1.0 if is_val else 0.55} | style
    return charts.logged_curve(self.logged[source], self.axis, key, colour, **style)

  def add(self, title: str, curves: Sequence[charts.Curve], legend: Sequence = (), **options):
    """Add a chart of those curves that have points; none if there are none."""
    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
      return
    chart = charts.Chart(title, self.axis, tuple(curves), self.span, self.marks, **options)
    legend = legend if len(curves) > 1 or len(legend) == 1 else []
    self.lines.append({'title': title, 'legend': legend, 'svg': charts.draw(chart)})

  def add_keys(self, title: str, source: str, names: dict[str, str], **options) -> None:
    """Add a chart with a curve for each key of `names`, {key: name}."""
    curves = [self.curve(source, key, k, alpha=1.0) for k, key in enumerate(names)]
    legend = [(name, 'thick', k) for k, name in enumerate(names.values()) if name]
    self.add(title, curves, legend, **options)


def section(run: Run) -> Markup:
  """Render loss, accuracy, learning rate, speed and others, with the changes of phase marked."""
  if not run.train and not run.val:
    return paragraph('No metrics.jsonl was found, so there are no curves.')
  axis = 'epoch' if all('epoch' in line for line in run.train + run.val) else 'step'
  starts = _phase_starts(run, axis)
  phases = [_phase(run, *start, axis) for start in starts.items()] if len(starts) > 1 else []
  panels = _Panels(run, axis, list(starts.values())[1:])
  _add_scores(panels, run)
  smoothed, hidden = _add_tasks(panels, run)
  panels.add_keys('Learning rate', 'train', {'lr': ''})
  panels.add_keys('Images per second', 'train', {'images_per_s': ''})
  waiting = 'Share of the time spent waiting for data'
  panels.add_keys(waiting, 'train', {'data_wait': ''}, percent=True)
  memory = {'memory_gib': 'this process', 'device_memory_gib': 'its first device'}
  panels.add_keys('Peak memory in GiB', 'train', memory)
  panels.add_keys('Gradient norm', 'train', {'grad_norm': ''})
  return render(
    'curves',
    panels=panels.lines,
    phases=phases,
    is_binned=len(run.train) > charts.POINTS,
    window=len(run.train) // charts.WINDOWS,
    smoothed=smoothed,
    hidden=hidden,
  )


def _add_scores(panels: _Panels, run: Run) -> None:
  """Losses, accuracies, and the scores of tags and of whole paths."""
  levels = {level: level for level in run.levels}
  keys = [(level, 'thick', k) for k, level in enumerate(levels)]
  curves = [panels.curve('train', 'loss', 0), panels.curve('val', 'loss', 1)]
  panels.add('Loss', curves, [('train', 'thin', 0), ('val', 'thick', 1)])
  if len(run.heads) > 1:
    losses = {f'loss/{level}': level for level in levels}
    panels.add_keys('Training loss per level', 'train', losses)
  curves = [panels.curve('train', f'acc/{level}', k) for k, level in enumerate(levels)]
  curves += [panels.curve('val', f'top1/{level}', k) for k, level in enumerate(levels)]
  legend = [*keys, ('train', 'thin', 'ink'), ('val', 'thick', 'ink')]
  panels.add('Accuracy per level', curves, legend, percent=True)
  for key, title in (('map', 'mAP per level on val'), ('f1', 'F1 per level on val, at .5')):
    names = {f'{key}/{level}': level for level in levels}
    panels.add_keys(title, 'val', names, percent=True)
  paths = {'fpa': 'full path, independent', 'joint_fpa': 'full path, joint'}
  paths |= {'hvr': 'contradictions (HVR)'}
  panels.add_keys('Whole path on val', 'val', paths, percent=True)


def _add_tasks(panels: _Panels, run: Run) -> tuple[list[str], int]:
  """Loss weights where they change, and cosines; (what is smoothed, cosines that are left out)."""
  weights, cosines = _logged(run, 'weight'), _logged(run, 'cosine')
  if not any(np.ptp(values) > 1e-6 for values in weights.values()):
    weights = {}
  # a level has the colour of its other curves
  colours = {name: k for k, name in enumerate(dict.fromkeys([*run.levels, *weights]))}
  lowest = sorted(cosines, key=lambda pair: np.mean(cosines[pair]))[:COSINES]
  style = {'alpha': 1.0, 'smooth': True}
  curves = [panels.curve('train', f'weight/{name}', colours[name], **style) for name in weights]
  legend = [(name, 'thick', colours[name]) for name in weights]
  panels.add('Loss weights', curves, legend, label='weight')
  curves = [panels.curve('train', f'cosine/{pair}', k, **style) for k, pair in enumerate(lowest)]
  legend = [(pair, 'thick', k) for k, pair in enumerate(lowest)]
  title = "Cosine of the tasks' gradients"
  panels.add(title, curves, legend, label='cosine', extent=(-1, 1))
  smoothed = ['loss weights'] * bool(weights) + ['cosines'] * bool(cosines)
  return smoothed, len(cosines) - len(lowest)


def _logged(run: Run, kind: str) -> dict[str, list[float]]:
  """{NAME: values of KIND/NAME in the training log}, levels first."""
  values: dict[str, list[float]] = {level: [] for level in run.levels}
  for line in run.train:
    for key, value in line.items():
      if key.startswith(f'{kind}/') and is_finite(value):
        values.setdefault(key.removeprefix(f'{kind}/'), []).append(value)
  return {name: logged for name, logged in values.items() if logged}


def _phase_starts(run: Run, axis: str) -> dict[int | None, float]:
  """{phase: where it starts}; the first line logged in it comes a little later than run.json's."""
  phases, starts = dict(enumerate(run.info.get('phases') or [])), {}
  for line in run.train:
    phase = line.get('phase')
    step = (phases.get(phase) or {}).get('start', line['step'])
    starts.setdefault(phase, step * line[axis] / max(line['step'], 1))
  return starts


def _phase(run: Run, phase: int | None, start: float, axis: str) -> str:
  """A phase of the curriculum in words, counted from 1."""
  phases = run.info.get('phases') or []
  text = f'Phase {phase + 1 if isinstance(phase, int) else phase}, '
  text += f'from {axis} {start:.3g}' if start > run.train[0][axis] else 'at the start'
  if not isinstance(phase, int) or not 0 <= phase < len(phases):
    return text + '.'
  levels, frozen = (listed(phases[phase].get(key) or ['nothing']) for key in ('levels', 'freeze'))
  return f'{text}: loss of {levels}; frozen: {frozen}.'
