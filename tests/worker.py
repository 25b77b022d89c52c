"""main.py with the tiny backbone, for tests that start, signal and kill processes."""

import pathlib
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main.py's handler is there
sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1])]

import tiny  # noqa: E402
from absl import app  # noqa: E402

import main  # noqa: E402
from hierjax.models import registry  # noqa: E402

if __name__ == '__main__':
  signal.signal(signal.SIGINT, main.interrupted)  # as main.py does where it is the program
  registry.BACKBONES['tiny'] = tiny.SPEC
  app.run(main.main, flags_parser=main.parse)
