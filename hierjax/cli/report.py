"""--mode=report: the HTML report of a run."""

import sys

from hierjax.cli import runs
from hierjax.cli.arguments import Arguments
from hierjax.core.errors import UserError
from hierjax.experiments import complete, run_lock
from hierjax.report import page


def run(args: Arguments) -> int:
  """Evaluate what the report lacks, write it and print its path.

  Args:
    args: the arguments.
  """
  c = runs.run_config(args, args.workdir)
  with run_lock.RunLock(args.workdir):
    try:
      complete.complete(args.workdir, c, runs.print_progress)
    except UserError as e:
      print(f'the report shows what there is: {e}', file=sys.stderr)
    print(page.write(args.workdir))
  return 0
