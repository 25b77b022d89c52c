"""The forecast of hierjax plan beside the time that the same runs then take.

usage: forecast.py FOLDER [--roots DATA [DATA ...]] [--runs NAME ...]

Five runs of different size: each is forecast and then trained into FOLDER/NAME by the same options
with --config.plan=true, one right after the other. Prints one JSON line each: seconds of the
forecast, of the whole command and their ratio, both peaks of memory in GiB, and the load between;
at the end how many ratios are within 25 %. Two of the runs read the first and the last folder of
--roots; without it all are of the drawn images. For an idle machine.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
PHASES = "[{'share': .5, 'freeze': 'backbone'}]"
RUNS = {
  'small': ('3head', 'data.size=64', 'data.toy.train=640', 'data.toy.val=200', 'train.epochs=4'),
  'baseline': ('quickstart', 'data.toy.train=1200', 'data.toy.val=300', 'train.epochs=2'),
  'one_head': ('1head', 'data.size=96', 'data.limit=1500', 'train.epochs=4'),
  'resnet': (
    '3head',
    'model.backbone=resnet18',
    'model.pretrained=',
    'model.heads=crosstalk',
    'data.size=64',
    'data.toy.train=960',
    'data.toy.val=1200',
    'train.epochs=3',
    'train.eval_epochs=.5',
  ),
  'phases': (
    '3head',
    f'curriculum={PHASES}',
    'data.size=64',
    'data.limit=2400',
    'train.batch_size=64',
    'train.epochs=3',
  ),
}
REAL = {'one_head': 0, 'phases': -1}  # the place of their folder among --roots


class Timed(NamedTuple):
  """What a command printed, and the seconds that it took."""

  output: str
  seconds: float


def command(*flags: str) -> Timed:
  """Run main.py."""
  start, arguments = time.monotonic(), [sys.executable, str(ROOT / 'main.py'), *flags]
  result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
  if result.returncode:
    sys.exit(result.stderr)
  return Timed(result.stdout, time.monotonic() - start)


def compare(name: str, folder: pathlib.Path, roots: list[str]) -> dict:
  """Forecast a run and train it."""
  config, *options = RUNS[name]
  if name in REAL and roots:
    options.append(f'data.root={roots[REAL[name]]}')
  flags = [f'--config=configs/{config}.py', *(f'--config.{option}' for option in options)]
  plan = json.loads(command('--mode=plan', '--json', *flags).output)
  load = os.getloadavg()[0]
  seconds = command('--config.plan=true', f'--workdir={folder / name}', *flags).seconds
  record = json.loads((folder / name / 'run.json').read_text())
  return {
    'run': name,
    'forecast': round(plan['seconds']['total'], 1),
    'actual': round(seconds, 1),
    'ratio': round(plan['seconds']['total'] / seconds, 3),
    'memory_forecast': round(plan['measured']['memory']['memory_gib'], 2),
    'memory_actual': record['memory_gib'],
    'load': load,
  }


def main() -> None:
  """Compare all runs."""
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('folder', type=pathlib.Path)
  p.add_argument('--roots', nargs='*', default=[])
  p.add_argument('--runs', nargs='*', default=list(RUNS), choices=RUNS)
  a = p.parse_args()
  lines = []
  for name in a.runs:
    lines.append(compare(name, a.folder, a.roots))
    print(json.dumps(lines[-1]), flush=True)
  within = sum(0.75 <= line['ratio'] <= 1.25 for line in lines)
  print(json.dumps({'runs': len(lines), 'within_25_percent': within}))


if __name__ == '__main__':
  main()
