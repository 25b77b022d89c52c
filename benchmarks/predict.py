"""Prediction with a trained run: start-up, one image, many images, against the model alone.

python benchmarks/predict.py RUN [--images 1000 100000] [--side 64] [--workers 0] [--threads 2]

JPEG files of `side` x `side` pixels are drawn into a temporary folder (500 of them; the others are
links to these). Printed is a line of JSON for each measurement, in a process of its own:

  start        CPU and wall seconds of `hierjax predict` for one image, its programs compiled before
  one          milliseconds of Model.predict for a file and of the model's step for a batch of one,
               medians of 50, and their ratio
  N images     images/s of Model.predict_iter over N files, of the model's step at its batch size on
               pixels in memory, their ratio, and the peak memory of the process in MiB
  N lines      the same of the command line with --output=FILE.jsonl, its start and end included

The ratios need a machine that does nothing else; `load` is that of the last minute.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
DRAWN = 500


def draw(folder: pathlib.Path, n: int, side: int) -> None:
  """Fill a folder with n JPEG files."""
  rng = np.random.default_rng(0)
  for i in range(n):
    path = folder / f'{i:06}.jpg'
    if i < DRAWN:
      coarse = rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8)
      cv2.imwrite(str(path), cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC))
    else:
      os.link(folder / f'{i % DRAWN:06}.jpg', path)


def peak() -> int:
  """Return the peak memory of this process in MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def median(call, times: int) -> float:
  """Return the median seconds of a call."""
  seconds = []
  for _ in range(times):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds)


def step_seconds(model, rows: int, times: int) -> float:
  """Return the median seconds of the model's step on a batch of images in memory."""
  import jax

  from hierjax.core import parallel

  views = () if model.c.eval.tta == 1 else (model.c.eval.tta,)
  pixels = np.zeros((rows, *views, model.c.data.size, model.c.data.size, 3), np.uint8)
  x = parallel.put_images(pixels, model.mesh)
  jax.block_until_ready(model.eval_step(model.variables, x))
  return median(lambda: jax.block_until_ready(model.eval_step(model.variables, x)), times)


def load(args):
  """Load the run with the options of the measurement."""
  import hierjax
  from hierjax.model import run_config

  c = run_config(pathlib.Path(args.run))
  c.data.workers, c.data.threads = args.workers, args.threads
  return hierjax.load(args.run, c)


def measure_one(args, folder):
  """Measure Model.predict for one file."""
  model, file = load(args), str(folder / '000000.jpg')
  model.predict(file)
  api = median(lambda: model.predict(file), 50)
  step = step_seconds(model, model.mesh.size, 50)
  return {'api_ms': 1e3 * api, 'step_ms': 1e3 * step, 'ratio': api / step}


def measure_many(args, folder):
  """Measure Model.predict_iter for a folder."""
  from hierjax.evaluate import collect

  model, files = load(args), sorted(map(str, folder.iterdir()))
  rows = collect.rows(model.c.eval.batch_size, model.c.eval.tta, model.mesh)
  list(model.predict_iter(files[:rows]))  # compiles
  step = step_seconds(model, rows, 10)
  start = time.perf_counter()
  n = sum('error' not in record for record in model.predict_iter(files))
  api, pure = n / (time.perf_counter() - start), rows / step
  # the step once more, as the machine may have slowed down meanwhile
  pure = (pure + rows / step_seconds(model, rows, 10)) / 2
  rates = {'api_per_s': api, 'step_per_s': pure, 'ratio': api / pure}
  return {'images': n, 'batch': rows, **rates, 'peak_mib': peak()}


def command(args, images, *flags):
  """Run hierjax predict; returns its CPU and wall seconds."""
  words = ['predict', f'--workdir={args.run}', f'--images={images}', *flags]
  before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
  subprocess.run([sys.executable, str(ROOT / 'main.py'), *words], check=True, capture_output=True)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  return {'cpu_s': cpu, 'wall_s': time.perf_counter() - start}


def report(name, values):
  """Print a measurement."""
  rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in values.items()}
  print(json.dumps({'what': name, **rounded, 'load': round(os.getloadavg()[0], 1)}), flush=True)


def main():
  """Run all measurements, or one of them in a process of its own."""
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('run')
  p.add_argument('--images', type=int, nargs='+', default=[1000])
  p.add_argument('--side', type=int, default=64)
  p.add_argument('--workers', type=int, default=0)
  p.add_argument('--threads', type=int, default=2)
  p.add_argument('--only', choices=('one', 'many'))
  p.add_argument('--folder')
  args = p.parse_args()
  if args.only:
    measure = {'one': measure_one, 'many': measure_many}[args.only]
    print(json.dumps(measure(args, pathlib.Path(args.folder))))
    return
  shared = [args.run, f'--workers={args.workers}', f'--threads={args.threads}']

  def child(only, folder):
    words = [sys.executable, __file__, *shared, f'--only={only}', f'--folder={folder}']
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)

  with tempfile.TemporaryDirectory() as temporary:
    for n in args.images:
      folder = pathlib.Path(temporary) / str(n)
      folder.mkdir()
      draw(folder, n, args.side)
    first = folder / '000000.jpg'
    command(args, first)
    report('start', command(args, first))
    report('one', child('one', folder))
    for n in args.images:
      folder = pathlib.Path(temporary) / str(n)
      report(f'{n} images', child('many', folder))
      values = command(args, folder, f'--output={temporary}/{n}.jsonl')
      report(f'{n} lines', values | {'per_s': n / values['wall_s']})


if __name__ == '__main__':
  main()
