"""hierjax regions: boxes in the training images, by a run's heat maps."""

import pathlib

from hierjax.cli import runs
from hierjax.cli.arguments import Arguments
from hierjax.core import terminal
from hierjax.experiments import regions


def run(args: Arguments) -> int:
  """Write the regions, and say how a training takes them."""
  trained = runs.load(args)
  path = pathlib.Path(args.output or trained.workdir / 'regions.csv')
  count = regions.write(trained, path, terminal.Progress())
  terminal.say(
    f'{path}: regions of {count} training images; train takes them with --config.data.regions='
    f'{path} and --config.data.augment.guided_crop or guided_mask'
  )
  return 0
