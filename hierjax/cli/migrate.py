"""hierjax migrate: carry a trained run over to a changed taxonomy."""

from hierjax.cli import runs
from hierjax.cli.arguments import Arguments
from hierjax.core import terminal
from hierjax.experiments import migrate

# All but the model, which comes from the trained run.
CHANGEABLE = tuple(
  'name seed plugins data. loss. balance. optim. train. log. curriculum eval.'.split()
)


def run(args: Arguments) -> None:
  """Make the new run and print what has changed."""
  source = args.flags['from']
  c = runs.run_config(args, source, CHANGEABLE)
  terminal.show(migrate.migrate(source, args.taxonomy, args.workdir, c, args.renames, args.shots))
  terminal.say(f'hierjax train --workdir={args.workdir} trains it further')
  if not {'train.epochs', 'train.steps', 'optim.lr'} & {*args.overrides}:
    terminal.say(
      'for as long as the old run took. Two epochs may do: migrate with --config.train.epochs=2 '
      f'--config.optim.lr={c.optim.lr / 3:.2g} --config.data.augment.enabled=False'
    )
