"""--mode=describe: parameters and multiply-accumulates of a model."""

import json

from hierjax import model
from hierjax.cli.arguments import Arguments


def run(args: Arguments) -> int:
  """Print the counts as JSON."""
  print(json.dumps(model.describe(args.config)))
  return 0
