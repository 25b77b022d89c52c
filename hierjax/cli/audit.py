"""hierjax audit: which labels are probably wrong, and which images are there twice."""

import pathlib

from hierjax.cli import runs
from hierjax.cli.arguments import Arguments
from hierjax.core import json_files, terminal
from hierjax.experiments import audit

CHANGEABLE = ('data.', 'eval.', 'probe.', 'train.', 'plugins')


def run(args: Arguments) -> None:
  """Audit the data of a config, or of a run by the weights, or the config, that it began with."""
  workdir, c = pathlib.Path(args.workdir or 'runs/audit'), None
  if (workdir / 'config.json').exists():
    c, workdir = runs.run_config(args, args.workdir, CHANGEABLE), workdir / 'audit'
  result = audit.audit_labels(c or args.config, workdir, terminal.say, args.trained)
  terminal.show(json_files.dump(result))
  terminal.say(f'{workdir}/audit.html shows the first images, audit.csv and duplicates.csv all')
