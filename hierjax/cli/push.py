"""hierjax push: an exported model to the Hugging Face hub."""

import pathlib

from hierjax.cli.arguments import Arguments
from hierjax.core import terminal
from hierjax.export import hub


def run(args: Arguments) -> None:
  """Push a folder, and say where it is."""
  address = hub.push(pathlib.Path(args.patterns[0]).expanduser(), args.patterns[1])
  terminal.say(f'{args.patterns[0]}: is at {address}; a new repository is private')
