"""hierjax pull: an exported model from the Hugging Face hub."""

import pathlib

from hierjax.cli.arguments import Arguments
from hierjax.core import terminal
from hierjax.export import hub


def run(args: Arguments) -> None:
  """Pull into a new folder."""
  hub.pull(args.patterns[0], pathlib.Path(args.patterns[1]).expanduser())
  terminal.say(f'{args.patterns[1]}: every file has the sha256 of the manifest')
