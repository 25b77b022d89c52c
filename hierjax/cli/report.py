"""hierjax report: the HTML report of a run."""

from hierjax.cli import runs
from hierjax.cli.arguments import Arguments
from hierjax.core import terminal
from hierjax.core.errors import UserError
from hierjax.experiments import complete, run_lock
from hierjax.report import page


def run(args: Arguments) -> None:
  """Evaluate what the report lacks, write it and print its path."""
  c = runs.run_config(args, args.workdir)
  with run_lock.RunLock(args.workdir):
    try:
      is_root_given = 'data.root' in args.overrides
      complete.complete(args.workdir, c, terminal.Progress(), is_root_given)
    except UserError as e:
      terminal.say(f'the report shows what there is: {e}')
    terminal.show(str(page.write(args.workdir)))
