"""Errors in one line."""

import errno
import signal

from hierjax.cli import process
from hierjax.core import terminal
from hierjax.core.errors import UserError, missing_extra

EXIT_CODE = 2
CLOSED = (errno.EPIPE, errno.EIO)


def exit_code(error: Exception) -> int | None:
  """Report what a user can do something about and return the exit code; None for other errors."""
  if isinstance(error, OSError) and error.filename is None and error.errno in CLOSED:
    # nobody reads stdout any more
    process.discard_output()
    return 128 + signal.SIGPIPE
  text = message(error)
  return report(text) if text else None


def message(error: Exception) -> str:
  """Return in words what a user can do something about.

  Args:
    error: what a command raised.

  Returns:
    One line; '' for a fault of the program.
  """
  if isinstance(error, UserError):
    return str(error)
  if isinstance(error, OSError) and error.filename is not None:
    return f'{error.filename}: {error.strerror}'
  if extra := missing_extra(error):
    return extra
  # jax reports the memory of an accelerator as RESOURCE_EXHAUSTED.
  is_exhausted = isinstance(error, RuntimeError) and 'RESOURCE_EXHAUSTED' in str(error)
  if isinstance(error, MemoryError) or is_exhausted:
    return (
      f'out of memory ({str(error)[:200] or "of this machine"}); lower --config.train.batch_size, '
      '--config.eval.batch_size or --config.data.size'
    )
  return ''


def report(text: str) -> int:
  """Print an error and return the exit code.

  Args:
    text: becomes one line, whatever names and cells it quotes.
  """
  line = terminal.printable(text)
  if len(line) >= 1000:
    line = f'{line[:700]} ... {line[-250:]}'
  terminal.say(f'error: {line}')
  return EXIT_CODE
