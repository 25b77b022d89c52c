"""--mode=evaluate: metrics of a split."""

import json
import sys

from hierjax import model
from hierjax.cli import runs
from hierjax.cli.arguments import Arguments
from hierjax.core import parallel
from hierjax.report import page


def run(args: Arguments) -> int:
  """Evaluate a split, write the report and print the metrics as JSON.

  Args:
    args: the arguments.
  """
  is_first = parallel.first()
  trained = model.load(args.workdir, runs.run_config(args, args.workdir))
  result = trained.evaluate(args.split, progress=runs.print_progress if is_first else None)
  if is_first:
    print(f'report: {page.write(args.workdir)}', file=sys.stderr)
    print(json.dumps(result))
  return 0
