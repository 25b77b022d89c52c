"""State of the process that a program sets and a library must not."""

import contextlib
import os
import signal
import sys
import types
import warnings
from typing import TextIO

# Large temporaries would be fresh memory at each step, which the system clears: a tenth of a step.
# Huge pages, in one arena: others give large blocks back. malloc reads this when a process starts.
_TUNABLES = (
  'glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1:'
  'glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=67108864'
)


def use_huge_pages() -> None:
  """Start the program again with huge pages for malloc; HIERJAX_HUGEPAGES=0 leaves that out."""
  is_wanted = os.environ.get('HIERJAX_HUGEPAGES', '1') == '1'
  if sys.platform == 'linux' and is_wanted and 'GLIBC_TUNABLES' not in os.environ:
    environment = {**os.environ, 'GLIBC_TUNABLES': _TUNABLES}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def handle_interrupts() -> None:
  """Let Ctrl-C end the program in one line; training has handlers of its own, which save.

  SIGUSR1, which lets training save, does nothing elsewhere.
  """
  signal.signal(signal.SIGINT, interrupted)
  signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class LossyStream:
  """A stream whose text is lost where it cannot be written, as by a reader or terminal that closed.

  Args:
    stream: where it is written.
  """

  def __init__(self, stream: TextIO):
    self._stream = stream

  def __getattr__(self, name: str) -> object:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Write text, or lose it."""
    with contextlib.suppress(OSError):
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    """Write what is buffered, or lose it."""
    with contextlib.suppress(OSError):
      self._stream.flush()


def protect_streams() -> None:
  """Let a log that cannot be printed end nothing, and go nowhere else.

  Without a stderr Python's print would write to stdout, and a file that is opened next would get
  what libraries print.
  """
  null = os.open(os.devnull, os.O_RDWR)
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.dup2(null, number)
  sys.stdout = sys.stdout or os.fdopen(1, 'w', closefd=False)
  sys.stderr = LossyStream(sys.stderr or os.fdopen(2, 'w', closefd=False))
  # Orbax leaves them behind where it meets a damaged checkpoint, which has an error of its own.
  warnings.filterwarnings('ignore', "coroutine '.*_load.*' was never awaited")


def ignore_late_writes() -> None:
  """Say nothing of writes that end after the save that asked for them has failed.

  Where a file of a checkpoint cannot be written, Orbax gives up the save, which is an error of its
  own; the other files, as they end, find nobody who waits for them and print a traceback each.
  """

  def hook(unraisable):
    if str(unraisable.exc_value) != 'Event loop is closed':
      sys.__unraisablehook__(unraisable)

  sys.unraisablehook = hook


def discard_output() -> None:
  """Let what is still buffered for stdout, which nobody reads any more, be lost."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def interrupted(signum: int, frame: types.FrameType | None) -> None:
  """End the process at once: a handler of signals.

  A KeyboardInterrupt would be a traceback, or be lost where it meets a callback that cannot raise;
  and threads that read ahead are not waited for.

  Args:
    signum: the signal.
    frame: where it came.
  """
  with contextlib.suppress(OSError):
    os.write(2, b'\nstopped\n')
  os._exit(128 + signum)
