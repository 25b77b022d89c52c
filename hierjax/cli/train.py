"""hierjax train: train a config, or continue the run in the folder."""

import os
import sys

from hierjax.cli import runs
from hierjax.cli.arguments import Arguments
from hierjax.core import config, json_files, parallel, plugins, terminal
from hierjax.experiments import fit
from hierjax.report import closing
from hierjax.train.loop import Hook, Loop


class StepBar(Hook):
  """Shows the steps as a bar on a terminal; a log has lines of its own."""

  def __init__(self):
    self._progress = terminal.Progress('steps')

  def after_step(self, loop: Loop) -> None:
    """Show the step, on the first process."""
    if parallel.first() and terminal.is_terminal(sys.stderr):
      self._progress(loop.step, loop.run.total_steps)


def run(args: Arguments) -> None:
  """Train, and print what came of it: lines for a person, or the metrics as JSON."""
  c = args.config
  workdir = args.workdir or f'runs/{c.name or "run"}'
  if not args.config_file and os.path.exists(os.path.join(workdir, 'config.json')):
    # Without --config the run continues with the options that it began with.
    c = runs.run_config(args, workdir, tuple(config.default()))
  plugins.load(c.plugins)
  plugins.remember(c.plugins)
  result = fit.fit(c, workdir, [StepBar()], args.resume_from)
  if parallel.first():
    terminal.show(json_files.dump(result) if args.json else '\n'.join(closing.lines(workdir)))
