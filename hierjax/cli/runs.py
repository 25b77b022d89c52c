"""What several commands do with the folder of a run."""

import pathlib

from ml_collections import ConfigDict

from hierjax import model
from hierjax.cli.arguments import Arguments
from hierjax.core import config, plugins
from hierjax.taxonomy import read_classes

CHANGEABLE = ('data.', 'eval.', 'decide.', 'plugins')  # what evaluation may set otherwise


def run_config(
  args: Arguments, folder: str, changeable: tuple[str, ...] = CHANGEABLE
) -> ConfigDict:
  """Return the config of a trained run with the overrides of the command line.

  Args:
    args: the arguments; the file of --config does not count.
    folder: folder of the run.
    changeable: options that may be overridden, and groups of them with a dot at the end.

  Raises:
    UserError: an override is not among them, or the run names plugins that the user has not.
  """
  args.check_overrides(changeable, folder)
  c = model.run_config(pathlib.Path(folder))
  for path, value in args.overrides.items():
    config.assign(c, path, value)
  if 'plugins' in args.overrides:
    plugins.load(c.plugins)
    plugins.remember(c.plugins)
  plugins.require(c.plugins, folder)
  return c


def load(args: Arguments) -> model.Model:
  """Load the model of --workdir, restricted to --classes where these are given.

  Args:
    args: the arguments.

  Raises:
    UserError: see `model.load` and `taxonomy.read_classes`.
  """
  trained = model.load(args.workdir, run_config(args, args.workdir))
  if not args.classes:
    return trained
  return trained.within(read_classes(args.classes, trained.taxonomy, args.region))
