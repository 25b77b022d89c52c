"""Clocks of the training loop: throughput, time to go, and when to save."""

import contextlib
import datetime
import time
from collections.abc import Iterator
from typing import Any, NamedTuple


class Rate(NamedTuple):
  """How fast training went since the last log line.

  Attributes:
    images_per_s: over all devices.
    data_wait: the share of the time in which the loop waited for data.
  """

  images_per_s: float
  data_wait: float


class Throughput:
  """Measures images per second without evaluation, saving and compilation.

  Args:
    batch_size: over all devices.
    step: the step at which it begins.
  """

  def __init__(self, batch_size: int, step: int):
    self._batch_size = batch_size
    self.restart(step)

  def restart(self, step: int) -> None:
    """Begin a new measurement at a step."""
    self._step, self._start, self._waited = step, time.monotonic(), 0.0

  @property
  def seconds(self) -> float:
    """Seconds since the measurement began, without pauses."""
    return time.monotonic() - self._start

  def has_steps(self, step: int) -> bool:
    """Whether there is something to measure at a step."""
    return step > self._step

  def read(self, batches: Iterator) -> Iterator[Any]:
    """Iterate over batches and count the time spent waiting for them."""
    while True:
      start = time.monotonic()
      batch = next(batches, None)
      if batch is None:
        return
      self._waited += time.monotonic() - start
      yield batch

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leave out what happens within it."""
    start = time.monotonic()
    yield
    self._start += time.monotonic() - start

  def rate(self, step: int) -> Rate:
    """Return the rate since the measurement began.

    Args:
      step: the current step.

    Returns:
      Images per second and the share of waiting.
    """
    seconds = max(self.seconds, 1e-9)
    return Rate((step - self._step) * self._batch_size / seconds, self._waited / seconds)


def clock(seconds: float) -> str:
  """Format a duration as 'H:MM:SS'."""
  return str(datetime.timedelta(seconds=round(seconds)))
