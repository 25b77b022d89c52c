"""hierjax probe: linear heads on a frozen backbone, the best of a grid."""

from hierjax.cli.arguments import Arguments
from hierjax.core import terminal
from hierjax.experiments import probe


def run(args: Arguments) -> None:
  """Choose and fit the heads, and print what was tried and how the choice does on val."""
  c = args.config
  workdir = args.workdir or f'runs/{c.name or "run"}_probe'
  terminal.show(probe.table(probe.probe(c, workdir, terminal.say)))
  if c.probe.head == 'knn':
    return
  terminal.say(
    f'{workdir} is a run: predict, evaluate and report read it, hierjax train goes on from it'
  )
