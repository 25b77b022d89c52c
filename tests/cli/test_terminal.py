"""Names from elsewhere on the terminal, and a terminal that is closed."""

import io
import json
import pathlib
import subprocess
import sys
import types

import pytest

from hierjax.cli import errors
from hierjax.core import terminal
from hierjax.train import log

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What a terminal would act on, and what is shown instead.
CODES = {
  'a\x1b[2Jb': 'a\\x1b[2Jb',
  '\x1b]0;title\x07': '\\x1b]0;title\\x07',
  '\x9b31m': '\\x9b31m',
  '\x1b]8;;http://x\x1b\\link': '\\x1b]8;;http://x\\x1b\\link',
  'row\nerror: all is lost': 'row error: all is lost',
  'over\rwritten': 'over written',
  '\u202egpj.exe': '\\u202egpj.exe',
  '\u2066a\u2069\u200f': '\\u2066a\\u2069\\u200f',
  'a\u2028b\x85c': 'a b c',
  'zero\x00\x08': 'zero\\x00\\x08',
  'no text \udcff': 'no text \\udcff',
  'Käfer, 甲虫, 🪲 $x': 'Käfer, 甲虫, 🪲 $x',
}


@pytest.mark.parametrize('text', CODES)
def test_no_name_speaks_to_the_terminal(text, capfd):
  """Neither in the log nor in errors nor in what lint and tables print."""
  line = CODES[text]
  terminal.say(text)
  log.Log.say(None, text)
  errors.report(text)
  assert capfd.readouterr().err == f'{line}\n{line}\nerror: {line}\n'
  terminal.show(f'{text.replace(chr(10), " ")}\nsecond')
  assert capfd.readouterr().out == f'{line}\nsecond\n'


class Screen(io.StringIO):
  """A stream that is a terminal."""

  def isatty(self) -> bool:
    return True


def test_a_terminal_gets_colours_and_a_bar_and_a_log_neither(monkeypatch):
  screen = Screen()
  monkeypatch.setattr(sys, 'stderr', screen)
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.delenv('NO_COLOR', raising=False)
  clock = [0.0]
  monkeypatch.setattr(terminal, 'time', types.SimpleNamespace(monotonic=lambda: clock[0]))
  progress = terminal.Progress('files')
  progress(1, 4)  # too early for a bar
  clock[0] = 1.0
  progress(2, 4)
  terminal.say('note: half')
  progress(4, 4)
  bars = (
    f'[{"#" * 15}{"-" * 15}] 2/4 files, 2.0/s, 0:00:01 left',
    f'[{"#" * 30}] 4/4 files, 4.0/s\n',
  )
  lines = ['', bars[0], '\x1b[36mnote:\x1b[0m half\n', bars[1]]
  assert screen.getvalue() == terminal.ERASE.join(lines)
  monkeypatch.setenv('NO_COLOR', '1')
  terminal.say('note: plain')
  assert screen.getvalue().endswith(f'{terminal.ERASE}note: plain\n')
  log_file = io.StringIO()
  monkeypatch.setattr(sys, 'stderr', log_file)
  for n in range(1, 101):
    clock[0] += 1.0
    progress(n, 100)
  assert log_file.getvalue().splitlines() == [
    '30/100 files, 1.0/s, 0:01:12 left',
    '60/100 files, 1.0/s, 0:00:41 left',
    '90/100 files, 1.0/s, 0:00:10 left',
    '100/100 files, 1.0/s',
  ]


SAY = """
import json
from hierjax.core import terminal
terminal.say('a line of the log')
print(json.dumps({'a': 1}))
"""


def test_with_stderr_closed_the_log_stays_off_stdout():
  """`print(file=None)` writes to stdout, where programs read JSON."""
  command = [sys.executable, '-c', SAY]
  process = subprocess.run(
    ['bash', '-c', '"$@" 2>&-', '', *command],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    check=True,
    timeout=60,
  )
  assert json.loads(process.stdout) == {'a': 1}


LATE = """
import asyncio, tensorstore
from hierjax.cli import process
process.ignore_late_writes()
promise, future = tensorstore.Promise.new()

async def write():
  await future

async def save():
  task = asyncio.ensure_future(write())
  await asyncio.sleep(0)
  return task

loop = asyncio.new_event_loop()
task = loop.run_until_complete(save())
loop.close()
promise.set_result(1)
print('over', flush=True)
import os
os._exit(0)
"""


def test_writes_that_end_after_a_failed_save_print_nothing():
  """Their callbacks meet an event loop that is closed, and printed a traceback each."""
  command = [sys.executable, '-c', LATE]
  process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert (process.stdout, process.stderr) == ('over\n', '')
  noisy = [sys.executable, '-c', LATE.replace('process.ignore_late_writes()', '')]
  process = subprocess.run(noisy, cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert 'Event loop is closed' in process.stderr
