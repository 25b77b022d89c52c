"""--mode=migrate: carry a trained run over to a changed taxonomy."""

import sys

from hierjax.cli import runs
from hierjax.cli.arguments import Arguments
from hierjax.experiments import migrate

# All but the model, which comes from the trained run.
CHANGEABLE = (
  'name',
  'seed',
  'plugins',
  'data.',
  'loss.',
  'balance.',
  'optim.',
  'train.',
  'log.',
  'curriculum',
  'eval.',
)


def run(args: Arguments) -> int:
  """Make the new run and print what has changed.

  Args:
    args: the arguments.
  """
  source = args.flags['from']
  c = runs.run_config(args, source, CHANGEABLE)
  print(migrate.migrate(source, args.taxonomy, args.workdir, c, args.renames, args.shots))
  print(f'--mode=train --workdir={args.workdir} trains it further', file=sys.stderr)
  return 0
