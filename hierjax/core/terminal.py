"""Lines for people, which quote names from elsewhere but obey none of them."""

import contextlib
import datetime
import os
import sys
import time
from typing import TextIO

ERASE = '\r\x1b[K'  # what stands in the line of a terminal, such as a bar
COLOURS = {'error': 31, 'warning': 33, 'note': 36}  # of the word that a line begins with
BAR, SECONDS = 30, 30.0  # characters of a bar; between two lines of a log


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


def is_terminal(stream: TextIO | None) -> bool:
  """Whether lines of a stream can be erased and coloured."""
  return stream is not None and stream.isatty() and os.environ.get('TERM') != 'dumb'


def _styled(line, stream):
  """A line with its first word in colour, on a terminal whose user has not set NO_COLOR."""
  word, colon, text = line.partition(':')
  if word not in COLOURS or os.environ.get('NO_COLOR') or not is_terminal(stream):
    return line
  return f'\x1b[{COLOURS[word]}m{word}{colon}\x1b[0m{text}'


def say(text: object) -> None:
  """Print a line on stderr; where that is closed, or its terminal is, the line is lost.

  Args:
    text: see `printable`.
  """
  line = _styled(printable(str(text)), sys.stderr)
  erase = ERASE if is_terminal(sys.stderr) else ''
  _write(f'{erase}{line}\n')


def _write(text):
  # print to None would write to stdout, where programs read JSON
  if sys.stderr is not None:
    with contextlib.suppress(OSError):
      print(text, end='', file=sys.stderr, flush=True)


def show(text: str) -> None:
  """Print lines on stdout; each is made `printable`."""
  print('\n'.join(_styled(printable(line), sys.stdout) for line in text.split('\n')))


class Progress:
  """Says on stderr how far long work is, and how fast: a bar on a terminal, lines in a log.

  Args:
    unit: what is counted.
  """

  def __init__(self, unit: str = 'images'):
    self._unit, self._start = unit, time.monotonic()
    self._last = self._start

  def __call__(self, count: int, total: int) -> None:
    """Say that `count` of `total` are done."""
    is_bar = is_terminal(sys.stderr)
    clock = time.monotonic()
    interval = 0.1 if is_bar else SECONDS
    if count < total and clock - self._last < interval:
      return
    self._last = clock
    rate = count / max(clock - self._start, 1e-9)
    line = f'{count:,}/{total:,} {self._unit}, {rate:,.1f}/s'
    if 0 < count < total:
      seconds_left = round((total - count) / rate)
      line += f', {datetime.timedelta(seconds=seconds_left)} left'
    if not is_bar:
      say(line)
      return
    bar = '#' * (BAR * count // max(total, 1))
    line_end = '\n' if count == total else ''
    _write(f'{ERASE}[{bar:-<{BAR}}] {line}{line_end}')
