"""Signals: training saves its state at the end of the step, then stops, or goes on.

Ctrl-C, SIGTERM and SIGHUP, which a terminal sends when it is closed, stop it; SIGUSR1 does not.
"""

import contextlib
import os
import signal
import threading


class Interrupted(Exception):
  """Training was stopped by a signal, with its state saved.

  Args:
    signum: the signal; 0 where it came to another process.
    step: the step that was saved.
  """

  def __init__(self, signum: int, step: int):
    self.signum = signum or signal.SIGTERM
    name = signal.Signals(self.signum).name
    super().__init__(f'stopped by {name} at step {step}; the same command continues from there')


class Signals:
  """A context that notes signals; a second SIGINT or SIGTERM ends the program at once.

  A second SIGHUP does not: a shell and the system may each send one.

  Attributes:
    received: the number of the signal to stop, 0 before one came.
  """

  def __init__(self):
    self.received, self._is_save_requested = 0, False
    self._handlers = {}

  def __enter__(self) -> 'Signals':
    # Python allows handlers in the main thread only; a notebook's worker thread goes without
    if threading.current_thread() is threading.main_thread():
      handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), self._note)
      for signum, handler in {**handlers, signal.SIGUSR1: self._note_save}.items():
        # nohup ignores SIGHUP, and so must what it starts
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:
          self._handlers[signum] = signal.signal(signum, handler)
    return self

  def __exit__(self, *_):
    self._restore()

  def pop_save(self) -> bool:
    """Whether a signal to save has come since the last call."""
    is_requested, self._is_save_requested = self._is_save_requested, False
    return is_requested

  def _note_save(self, *_):
    self._is_save_requested = True
    _write(b'\nsaving the state at the end of the step\n')

  def _note(self, signum, _):
    if self.received and signum not in (signal.SIGINT, signal.SIGTERM):
      return
    if self.received:
      self._restore()
      signal.raise_signal(signum)
    self.received = signum
    _write(b'\nsaving the state before stopping (once more to stop at once)\n')

  def _restore(self):
    for signum, handler in self._handlers.items():
      signal.signal(signum, handler)


def _write(line: bytes) -> None:
  """Write to stderr, which may be closed; print may be in the middle of a line of its own."""
  with contextlib.suppress(OSError):
    os.write(2, line)
