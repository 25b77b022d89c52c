"""Images per second of the training input pipeline on a folder of images; prints one JSON line.

python benchmarks/input_pipeline.py FOLDER [--size 224] [--threads 1] [--workers 0] [--seconds 5]
python benchmarks/input_pipeline.py FOLDER --profile     microseconds of each part, one thread

The pipeline reads, decodes, crops, flips, rotates, scales and changes colours. Batches of 32 uint8
images come out; their normalisation is part of the model's step. The peer is
`../shared/bench/torch_pipeline.py`; its `--workers 1` is one process that reads (here: --workers 1,
or --threads 1), its `--workers 0` reads in between (here: --threads 0).
"""

import argparse
import json
import pathlib
import sys
import time

import cv2
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from hierjax.data import decoding, image_files, pipeline, sources, transforms


def examples(folder):
  """Return all images below a folder as examples of one class."""
  root = pathlib.Path(folder)
  files = sorted(str(p.relative_to(root)) for p in root.rglob('*') if decoding.is_image(p.name))
  if not files:
    raise SystemExit(f'{folder}: no images')
  return sources.Examples(
    'all', files, np.zeros((len(files), 1), np.int32), image_files.FileReader(str(root), files)
  )


def rate(data, size, threads, workers, seconds, augment):
  """Return the images per second of the pipeline once it has warmed up."""
  batches = pipeline.train_batches(
    data, batch_size=32, seed=0, size=size, augment=augment, threads=threads, workers=workers
  )
  for _ in range(3 + 4 * (threads + workers)):
    next(batches)  # past what was read ahead
  start, n = time.perf_counter(), 0
  while time.perf_counter() - start < seconds:
    n += len(next(batches)['index'])
  batches.close()
  return n / (time.perf_counter() - start)


def profile(data, size, augment, n=512):
  """Return the microseconds an image of each part."""
  raw = [data.reader(i % len(data.files)) for i in range(n)]
  pictures = [decoding.decode(b) for b in raw]
  out = np.empty((size, size, 3), np.uint8)
  turn = cv2.getRotationMatrix2D((size / 2, size / 2), 8, 1)
  rng = np.random.default_rng(0)
  parts = {
    'read': lambda i: data.reader(i % len(data.files)),
    'decode': lambda i: decoding.decode(raw[i]),
    'all but decode': lambda i: transforms.train_transform(
      pictures[i], rng, size, augment, out=out
    ),
    'of it, a warp': lambda i: cv2.warpAffine(pictures[i], turn, (size, size), dst=out),
    'whole': lambda i: transforms.train_transform(raw[i], rng, size, augment, out=out),
  }
  for name, part in parts.items():
    start = time.perf_counter()
    for i in range(n):
      part(i)
    parts[name] = round((time.perf_counter() - start) / n * 1e6, 1)
  return parts


def main():
  """Measure the rate, or the parts."""
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('folder')
  p.add_argument('--size', type=int, default=224)
  p.add_argument('--threads', type=int, default=1)
  p.add_argument('--workers', type=int, default=0)
  p.add_argument('--seconds', type=float, default=5)
  p.add_argument(
    '--crop',
    type=float,
    default=0.08,
    help="the smallest crop's share of the area; .08 is torchvision's default and the peer's",
  )
  p.add_argument('--profile', action='store_true')
  a = p.parse_args()
  # the peer's augmentation
  augment = transforms.Augment(crop=(a.crop, 1.0), brightness=0.4, contrast=0.4, saturation=0.4)
  data = examples(a.folder)
  if a.profile:
    print(json.dumps({'size': a.size, 'microseconds': profile(data, a.size, augment)}))
    return
  speed = rate(data, a.size, a.threads, a.workers, a.seconds, augment)
  print(
    json.dumps(
      {
        'images_per_s': round(speed, 1),
        'size': a.size,
        'threads': a.threads,
        'workers': a.workers,
        'images': len(data.files),
        'crop': a.crop,
      }
    )
  )


if __name__ == '__main__':
  main()
