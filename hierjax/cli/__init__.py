"""The command line: arguments, help, errors in one line, and one file for each command.

The function `run` of a command's file returns an exit code, None for 0. Only here is the state of
the process touched: signals, environment, logging, compilation cache.
"""

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from hierjax.cli import process


def main(argv: Sequence[str] | None = None) -> NoReturn:
  """Run a command and exit.

  Args:
    argv: program name and arguments; by default those of this process, which is then set up as a
      program: its memory allocation, its streams and its handling of signals.
  """
  if argv is None:
    gc.disable()  # until all is imported, which leaves no garbage
    # XLA's C++ prints that compiling is slow; what fails jax raises
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    if sys.argv[1:2] != ['serve']:  # which gives back the memory of large images
      process.use_huge_pages()
    process.handle_interrupts()
    process.protect_streams()
    process.ignore_late_writes()
  # Imported only now: Ctrl-C is handled from the start, and the restart with huge pages is quick.
  program = importlib.import_module('hierjax.cli.program')
  code = program.run(sys.argv if argv is None else argv)
  # Python's last search for garbage would take half a second to look through what jax has traced.
  gc.freeze()
  sys.exit(code)
