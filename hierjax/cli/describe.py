"""hierjax describe: parameters and multiply-accumulates of a model."""

from hierjax.cli.arguments import Arguments
from hierjax.core import json_files
from hierjax.experiments import describe


def run(args: Arguments) -> None:
  """Print the counts as JSON."""
  print(json_files.dump(describe.describe(args.config)))
