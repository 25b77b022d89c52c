"""Ctrl-C and SIGTERM: training saves its state at the end of the step, then stops."""

import os
import signal
import threading


class Interrupted(Exception):
  """Training was stopped by a signal, with its state saved.

  Args:
    signum: the signal.
    step: the step that was saved.
  """

  def __init__(self, signum: int, step: int):
    name = signal.Signals(signum).name
    super().__init__(f'stopped by {name} at step {step}; the same command continues from there')
    self.signum = signum


class Signals:
  """A context that notes the first SIGINT or SIGTERM; the second one ends the program at once.

  Attributes:
    received: the number of the signal, 0 before one came.
  """

  def __init__(self):
    self.received = 0
    self._handlers = {}

  def __enter__(self) -> 'Signals':
    # Python allows handlers in the main thread only; a notebook's worker thread goes without
    if threading.current_thread() is threading.main_thread():
      for signum in (signal.SIGINT, signal.SIGTERM):
        self._handlers[signum] = signal.signal(signum, self._note)
    return self

  def __exit__(self, *_):
    self._restore()

  def _note(self, signum, _):
    if self.received:
      self._restore()
      signal.raise_signal(signum)
    self.received = signum
    # print may be in the middle of a line, where it cannot be called again
    os.write(2, b'\nsaving the state before stopping (once more to stop at once)\n')

  def _restore(self):
    for signum, handler in self._handlers.items():
      signal.signal(signum, handler)
