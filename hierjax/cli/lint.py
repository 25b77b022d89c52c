"""hierjax lint: check taxonomy, labels and images."""

from hierjax.cli.arguments import Arguments
from hierjax.core import config, terminal
from hierjax.data import lint


def run(args: Arguments) -> int:
  """Print all problems of the data; the exit code is 1 where one is an error."""
  config.validate(args.config)
  checked = lint.check(args.config.data, progress=terminal.Progress(), sample=args.sample)
  terminal.show(checked.text())
  return int(any(p.severity == 'error' for p in checked.problems))
