"""hierjax regions: boxes in the training images, by a run's heat maps."""

import pathlib

from hierjax.cli import runs
from hierjax.cli.arguments import Arguments
from hierjax.core import terminal
from hierjax.experiments import regions


def run(args: Arguments) -> None:
  """Write the regions, and say how a training takes them."""
  path = pathlib.Path(args.output or f'{args.workdir}/regions.csv')
  n = regions.write(runs.load(args), path, terminal.Progress())
  flags = f'--config.data.regions={path} and --config.data.augment.guided_crop or guided_mask'
  terminal.say(f'{path}: regions of {n} training images; hierjax train takes them with {flags}')
