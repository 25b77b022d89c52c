"""hierjax export: a folder that predicts without jax."""

from hierjax.cli import runs
from hierjax.cli.arguments import Arguments
from hierjax.core import terminal
from hierjax.export import artefact


def run(args: Arguments) -> None:
  """Write the artefact of a run, and say how it compares with the run."""
  extras = artefact.Extras(
    args.maps, args.similar, args.thumbnails, args.int8, args.licence, args.fp16
  )
  facts = artefact.export(runs.load(args), args.output, terminal.say, extras)
  verified = facts['verified']
  answers = 'in float32, it answered' if extras.lowered else 'answers'
  terminal.say(
    f'{args.output}: {answers} as the run does on {verified["val"]} images of val and '
    f'{verified["drawn"]} drawn ones; probabilities differ by {verified["largest_difference"]:.1e} '
    f'at most. hierjax predict --artefact={args.output} needs no jax'
  )
