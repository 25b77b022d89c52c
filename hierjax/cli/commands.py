"""Running a command: the start of several processes, the compilation cache, and the exit code."""

import importlib
import sys

from hierjax.cli import arguments, errors
from hierjax.core import parallel, terminal
from hierjax.train.interrupt import Interrupted


def execute(args: arguments.Arguments) -> int:
  """Run a command and return the exit code; errors are one line."""
  code, are_together = 0, False  # whether all processes have come to the same end
  try:
    if args.distributed:
      # Before anything else: it must come before any use of a device.
      parallel.start(
        args.coordinator, args.num_processes, args.process_id, args.start_timeout, args.peer_timeout
      )
    parallel.use_compilation_cache()
    # Imported only now: a command needs no package that only others need.
    code = importlib.import_module(f'hierjax.cli.{args.mode}').run(args)
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
  parallel.stop(code, are_together)
  return code
