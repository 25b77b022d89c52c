"""--mode=probe: linear heads on a frozen backbone, the best of a grid."""

import sys

from hierjax.cli.arguments import Arguments
from hierjax.experiments import probe


def run(args: Arguments) -> int:
  """Choose and fit the heads, and print what was tried and how the choice does on val.

  Args:
    args: the arguments.
  """
  c = args.config
  workdir = args.workdir or f'runs/{c.name or "run"}_probe'
  print(probe.table(probe.probe(c, workdir, _say)))
  print(
    f'{workdir} is a run: predict, evaluate and report read it, --mode=train goes on from it',
    file=sys.stderr,
  )
  return 0


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
