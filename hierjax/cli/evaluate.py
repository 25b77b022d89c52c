"""hierjax evaluate: metrics of a split."""

import pathlib
import re

from hierjax.cli import runs
from hierjax.cli.arguments import Arguments
from hierjax.core import json_files, parallel, terminal
from hierjax.experiments import run_lock
from hierjax.report import page


def run(args: Arguments) -> None:
  """Evaluate a split, write the report and print the metrics as JSON."""
  is_first, into = parallel.first(), None
  with run_lock.RunLock(args.workdir):
    trained = runs.load(args)
    if args.classes:
      # beside the evaluation of all classes, which the report shows
      name = args.region or pathlib.Path(args.classes).stem
      into = trained.workdir / 'subsets' / re.sub(r'[^\w-]+', '_', name)
      into.mkdir(parents=True, exist_ok=True)
    progress = terminal.Progress() if is_first else None
    result = trained.evaluate(args.split, progress=progress, into=into)
    if is_first and into:
      terminal.say(f'evaluation within {name}: {into}')
    elif is_first:
      terminal.say(f'report: {page.write(args.workdir)}')
  if is_first:
    print(json_files.dump(result))
