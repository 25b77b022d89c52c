"""Lines for people, which quote names from elsewhere but obey none of them."""

import contextlib
import sys


def printable(text: str) -> str:
  """Return a text on one line, without what a terminal would act on.

  Args:
    text: may hold escape sequences, marks that reverse the direction of writing, line breaks and
      what is not Unicode; these are shown as Python writes them, blanks as a space.
  """
  return text if text.isprintable() else ''.join(map(_visible, text))


def _visible(character: str) -> str:
  if character.isprintable():
    return character
  return ' ' if character.isspace() else repr(character)[1:-1]


def say(text: object) -> None:
  """Print a line on stderr; where that is closed, or its terminal is, the line is lost.

  Args:
    text: see `printable`.
  """
  # print to None would write to stdout, where programs read JSON
  if sys.stderr is not None:
    with contextlib.suppress(OSError):
      print(printable(str(text)), file=sys.stderr, flush=True)


def show(text: str) -> None:
  """Print lines on stdout; each is made `printable`."""
  print('\n'.join(map(printable, text.split('\n'))))
