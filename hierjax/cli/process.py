"""State of the process that a program sets and a library must not."""

import os
import signal
import sys
import types

# Large temporaries are fresh memory at each step; huge pages make them an eighth cheaper on Linux
# CPUs. malloc reads this only when a process starts.
_TUNABLES = (
  'glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:'
  'glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=67108864'
)


def use_huge_pages() -> None:
  """Start the program again with huge pages for malloc; HIERJAX_HUGEPAGES=0 leaves that out."""
  is_wanted = os.environ.get('HIERJAX_HUGEPAGES', '1') == '1'
  if sys.platform == 'linux' and is_wanted and 'GLIBC_TUNABLES' not in os.environ:
    environment = {**os.environ, 'GLIBC_TUNABLES': _TUNABLES}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def handle_interrupts() -> None:
  """Let Ctrl-C end the program in one line; training has a handler of its own, which saves."""
  signal.signal(signal.SIGINT, interrupted)


def interrupted(signum: int, frame: types.FrameType | None) -> None:
  """End the process at once: a handler of signals.

  A KeyboardInterrupt would be a traceback, or be lost where it meets a callback that cannot raise;
  and threads that read ahead are not waited for.

  Args:
    signum: the signal.
    frame: where it came.
  """
  os.write(2, b'\nstopped\n')
  os._exit(128 + signum)
