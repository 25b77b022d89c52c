"""--mode=describe: parameters and multiply-accumulates of a model."""

import json

from hierjax.cli.arguments import Arguments
from hierjax.experiments import describe


def run(args: Arguments) -> int:
  """Print the counts as JSON.

  Args:
    args: the arguments.
  """
  print(json.dumps(describe.describe(args.config)))
  return 0
