"""main.py with the tiny backbone: `python tests/worker.py FLAGS`, which tests signal and kill.

Its runs have no report, unless HIERJAX_TEST_REPORT is 1.
"""

import os
import pathlib
import signal
import sys
import types

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
  is_training = all(a == '--mode=table' for a in sys.argv if a.startswith('--mode'))
  if is_training and os.environ.get('HIERJAX_TEST_REPORT') != '1':
    tiny.leave_out_report(types.SimpleNamespace(setattr=setattr))
  cli.main(sys.argv)
