"""From the arguments to the exit code."""

import gc
import importlib
import sys
from collections.abc import Sequence

from absl import logging

import hierjax
from hierjax.cli import arguments, errors, process, usage
from hierjax.core import terminal
from hierjax.core.errors import UserError
from hierjax.train.interrupt import Interrupted


def run(argv: Sequence[str]) -> int:
  """Parse the arguments, run the command and return the exit code.

  Args:
    argv: program name and arguments.
  """
  if len(argv) < 2:
    return _answer(usage.SHORT, 1)
  if argv[1] == '--version':
    return _answer(f'hierjax {hierjax.__version__}')
  try:
    parsed = arguments.parse(argv)
    if parsed is None:
      return _answer(usage.text())
    if parsed.mode == 'options':
      return _answer(usage.matching_options(parsed.patterns))
  except UserError as e:
    return errors.report(str(e))
  # The logs of libraries stay off stderr; what matters of them is raised, too.
  logging.use_absl_handler()
  logging.set_verbosity(logging.FATAL)
  return _execute(parsed)


def _execute(args: arguments.Arguments) -> int:
  """Run a command and return the exit code; errors are one line."""
  code, are_together, parallel = 0, False, None  # whether all processes came to the same end
  try:
    if not args.artefact and args.mode != 'serve':
      # Imported only now, with jax: help and mistakes in the arguments are answered at once.
      parallel = importlib.import_module('hierjax.core.parallel')
      if args.distributed:
        # Before anything else: it must come before any use of a device.
        wait, silence = args.start_timeout, args.peer_timeout
        parallel.start(args.coordinator, args.num_processes, args.process_id, wait, silence)
      parallel.use_compilation_cache()
    # Imported only now: a command needs no package that only others need.
    command = importlib.import_module(f'hierjax.cli.{args.mode}')
    gc.enable()  # `main` has put it off
    code = command.run(args) or 0
    sys.stdout.flush()
    are_together = True
  except Interrupted as e:
    terminal.say(e)
    code, are_together = 128 + e.signum, True
  except Exception as e:
    code = errors.exit_code(e)
    if code is None and not args.distributed:
      raise
    code = parallel.explain(e) if code is None else code
  if parallel:
    parallel.stop(code, are_together)
  return code


def _answer(text: str, code: int = 0) -> int:
  """Print what needs no command; `head` and pagers may close the pipe before its end."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    process.discard_output()
  return code
