"""The command line: arguments, help, errors in one line, and one file for each command.

Only here is the state of the process touched: signals, environment, logging, compilation cache.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from hierjax.cli import arguments, errors, process, usage
from hierjax.core.errors import UserError


def main(argv: Sequence[str] | None = None) -> NoReturn:
  """Run a command and exit.

  Args:
    argv: program name and arguments; by default those of this process, which is then set up as a
      program: its memory allocation and its handling of Ctrl-C.
  """
  if argv is None:
    process.use_huge_pages()
    process.handle_interrupts()
  try:
    parsed = arguments.parse(sys.argv if argv is None else argv)
  except UserError as e:
    sys.exit(errors.report(str(e)))
  if parsed is None:
    print(usage.text())
    sys.exit(1)
  process.silence_libraries()
  # Imported only now, with jax: help and mistakes in the arguments are answered at once.
  commands = importlib.import_module('hierjax.cli.commands')
  sys.exit(commands.execute(parsed))
