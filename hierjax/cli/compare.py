"""hierjax compare: runs, or folders of seeds, against the first of them."""

from hierjax.cli.arguments import Arguments
from hierjax.core import terminal
from hierjax.report import comparison


def run(args: Arguments) -> None:
  """Write the comparison and print what it says.

  Args:
    args: the arguments; the words after the command are the folders.
  """
  split = args.split if 'split' in args.present else ''
  path, sentences = comparison.write(args.patterns, args.workdir or 'runs/compare', split)
  for sentence in sentences:
    terminal.show(sentence)
  terminal.show(str(path))
