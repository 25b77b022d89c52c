"""A forecast of a run's time and memory, measured by rehearsing its parts in a temporary folder."""

import contextlib
import copy
import dataclasses
import pathlib
import tempfile
import time
from typing import NamedTuple

import numpy as np

from hierjax.data import sources
from hierjax.experiments import fit
from hierjax.experiments.workdir import prepare
from hierjax.report import page
from hierjax.train import log
from hierjax.train.interrupt import Signals
from hierjax.train.loop import Hook, Loop
from hierjax.train.setup import Setup

TIMED = 8  # steps, and seconds, that steps are timed at least
FEW, MOST = 64, 2000  # images in the smaller rehearsal of the end, and that are explained there
ENDLESS = 10**6  # steps

Timings = tuple[tuple[int, float], ...]  # (images, seconds) of the same with fewer and more images


class Measured(NamedTuple):
  """Seconds of the parts of a run whose programs are in the cache of compiled programs."""

  first: tuple[float, ...]  # for each phase, from its start through its first step
  step: tuple[float, ...]  # for each phase, of a step with its input
  evaluation: Timings  # of an evaluation on val, and saving
  end: Timings  # of the evaluation, explanation and report after the training
  memory: dict[str, float]  # peaks in GiB, see `log.memory`


class _Enough(Exception):
  """Steps have been timed for long enough."""


class _Stopwatch(Hook):
  """Notes when steps end, and ends the training when enough are timed.

  Args:
    skipped: the first times, that of the start included, which are not those of usual steps.
    least: steps, and seconds, that are timed at least.
  """

  def __init__(self, skipped: int, least: int):
    self.times, self._skipped, self._least = [time.monotonic()], skipped, least

  def after_step(self, loop: Loop) -> None:
    """Note the time; raise `_Enough` in the end."""
    self.times.append(time.monotonic())
    timed = self.times[self._skipped :]
    if len(timed) > self._least and timed[-1] - timed[0] >= self._least:
      self.step = (timed[-1] - timed[0]) / max(1, len(timed) - 1)
      raise _Enough


def rehearse(run: Setup) -> Measured:
  """Time steps, evaluations and what follows the training, with the very programs of a run."""
  c, n, first, step = copy.deepcopy(run.c), len(run.val.labels), [], []
  c.log.wandb = False
  run = dataclasses.replace(run, c=c, total_steps=ENDLESS, eval_steps=ENDLESS)
  # steps whose input is in store when the first begins
  in_store = 2 * max(c.data.threads, c.data.workers) + 2
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    for i, phase in enumerate(run.phases):
      short = dataclasses.replace(run, phases=(dataclasses.replace(phase, end=ENDLESS),))
      # twice: the first step of the first time is compiled
      for skipped, least in ((0, 0), (in_store, TIMED)):
        # what the loop before holds on the device is not needed any more
        stack.close()
        loop, workdir = None, pathlib.Path(folder, f'{i}-{least}')
        workdir.mkdir()
        watch = _Stopwatch(skipped, least)
        prepare(workdir, short)
        loop = Loop(short, workdir, Signals(), hooks=[watch])
        for part in (loop, loop.log, loop.checkpoints):
          stack.callback(part.close)
        with contextlib.suppress(_Enough):
          loop.train()
      first.append(watch.times[1] - watch.times[0])
      step.append(watch.step)
    # an evaluation is some three times as fast as training
    more = min(n, MOST, max(2 * FEW, int(TIMED / max(step) * c.train.batch_size)))
    timings = {'evaluation': [], 'end': []}
    for part, times in timings.items():
      for images in (more, *sorted({min(n, FEW), more})):
        val = sources.subset(run.val, np.arange(images) * n // images)  # evenly chosen
        start = time.monotonic()
        if part == 'evaluation':
          loop.evaluate(val)
          loop.checkpoints.wait()
        else:
          loop.run = dataclasses.replace(run, val=val)
          fit.finish(loop, workdir)
          page.write(workdir)
        times.append((images, time.monotonic() - start))
      # the first time is with programs to be compiled
      timings[part] = tuple(times[1:])
    return Measured(tuple(first), tuple(step), **timings, memory=log.memory())


def extrapolate(timings: Timings, images: int) -> float:
  """Return the seconds for a number of images, on the line through two timings."""
  (n, short), (more, long) = timings[0], timings[-1]
  return long + max(0.0, long - short) / max(1, more - n) * (images - more)


def seconds(run: Setup, m: Measured, start: float) -> dict[str, float]:
  """Return {part of a run: seconds} and their 'total', by m; start: until the data are read."""
  c, n = run.c, len(run.val.labels)
  steps = [phase.end - phase.start for phase in run.phases]
  evaluation, one = extrapolate(m.evaluation, n), extrapolate(m.evaluation, n - 1)
  parts = {
    'training': sum(m.first) + float(np.dot(steps, m.step)),
    'evaluations': -(-run.total_steps // run.eval_steps) * evaluation,
    # beyond those that are explained, an image is only evaluated, in each view
    'end': extrapolate(m.end, min(n, MOST)) + max(0, n - MOST) * (evaluation - one) * c.eval.tta,
  }
  runs = 2 * c.baseline_seeds if c.baseline == 'train' else 1
  parts = {'start': start, **parts, 'baseline, seeds': (runs - 1) * sum(parts.values())}
  return {**parts, 'total': sum(parts.values())}
