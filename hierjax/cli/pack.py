"""hierjax pack: many small image files into one, which is read faster."""

import pathlib

from hierjax.cli.arguments import Arguments
from hierjax.core import config, terminal
from hierjax.data import packed, sources

NAMED = 3  # unreadable images that are named


def run(args: Arguments) -> None:
  """Pack the data, and say what was packed."""
  config.validate(args.config)
  options, output = args.config.data, pathlib.Path(args.output).expanduser()
  data = sources.load(options)
  for note in data.notes:
    terminal.say(f'note: {note}')
  result = packed.pack(data, output, options.threads, terminal.Progress())
  if result.unreadable:
    names = ', '.join(result.unreadable[:NAMED])
    more = ', ...' if len(result.unreadable) > NAMED else ''
    terminal.say(f'{len(result.unreadable)} images cannot be read, and are empty: {names}{more}')
  terminal.say(
    f'{output}: {result.images:,} images, {result.size / 2**20:,.1f} MiB; --data={output} reads it'
  )
