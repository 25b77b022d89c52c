"""main.py with the tiny backbone: `python tests/worker.py FLAGS`, which tests signal and kill."""

import pathlib
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the handler of the command line is there
sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1])]

import tiny  # noqa: E402

from hierjax import cli  # noqa: E402
from hierjax.models import registry  # noqa: E402

if __name__ == '__main__':
  cli.process.handle_interrupts()
  cli.process.protect_streams()
  cli.process.ignore_late_writes()
  registry.BACKBONES.register('tiny', tiny.SPEC)
  cli.main(sys.argv)
