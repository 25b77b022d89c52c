"""--mode=evaluate: metrics of a split."""

from hierjax import model
from hierjax.cli import runs
from hierjax.cli.arguments import Arguments
from hierjax.core import json_files, parallel, terminal
from hierjax.experiments import run_lock
from hierjax.report import page


def run(args: Arguments) -> int:
  """Evaluate a split, write the report and print the metrics as JSON.

  Args:
    args: the arguments.
  """
  is_first = parallel.first()
  c = runs.run_config(args, args.workdir)
  with run_lock.RunLock(args.workdir):
    trained = model.load(args.workdir, c)
    result = trained.evaluate(args.split, progress=runs.print_progress if is_first else None)
    if is_first:
      terminal.say(f'report: {page.write(args.workdir)}')
  if is_first:
    print(json_files.dump(result))
  return 0
