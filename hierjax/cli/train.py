"""--mode=train: train a config, or continue the run in the folder."""

import os

from hierjax.cli import runs
from hierjax.cli.arguments import Arguments
from hierjax.core import config, json_files, parallel
from hierjax.experiments import fit


def run(args: Arguments) -> int:
  """Train and print the final metrics as JSON.

  Args:
    args: the arguments.
  """
  c = args.config
  workdir = args.workdir or f'runs/{c.name or "run"}'
  if not args.config_file and os.path.exists(os.path.join(workdir, 'config.json')):
    # Without --config the run continues with the options that it began with.
    c = runs.run_config(args, workdir, tuple(config.default()))
  result = fit.fit(c, workdir, resume_from=args.resume_from)
  if parallel.first():
    print(json_files.dump(result))
  return 0
