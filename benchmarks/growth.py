"""How the cost of each stage grows with the taxonomy and with the rows of labels.csv.

usage: growth.py [--leaves 1000 10000 100000] [--rows 10000 100000 1000000] [--stages load complete]

Each stage runs in a process of its own, once. Printed are its seconds of CPU and the MiB that its
memory grew by at most, for each size, and the growth exponent between the smallest and the largest
size: the slope of log seconds over log size; 1 is linear. The taxonomy has seven levels of
biological shape, from phylum to species, with names of two words. `validation` decides on and
judges 10,000 images; the probabilities of one batch stand in for all. `drawn` draws the splits.
"""

import argparse
import itertools
import json
import math
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

LEVELS = ('phylum', 'class', 'order', 'family', 'subfamily', 'genus', 'species')
# classes of a level for each class below it
FAN = (6, 4, 5, 4, 2, 4)


def write_taxonomy(path: pathlib.Path, leaves: int) -> None:
  """Write taxonomy.csv with so many finest classes."""
  counts = [leaves]
  for fan in reversed(FAN):
    counts.insert(0, max(2, counts[0] // fan))
  rng = np.random.default_rng(0)
  parents = [np.sort(rng.integers(0, n, m)) for n, m in itertools.pairwise(counts)]
  syllables = [a + b for a in 'bcdfghklmnprstvz' for b in 'aeiou']
  n = len(syllables)
  lines = [','.join(LEVELS)]
  for leaf in range(leaves):
    path_ids = [leaf]
    for above in reversed(parents):
      path_ids.insert(0, int(above[path_ids[0]]))
    cells = []
    for level, i in zip(LEVELS, path_ids):
      word = ''.join(syllables[(i // n**p) % n] for p in range(3))
      cells.append(f'{level[:2]}{word}{i}')
    lines.append(','.join(cells))
  path.write_text('\n'.join(lines) + '\n')


def write_labels(folder: pathlib.Path, rows: int) -> None:
  """Write taxonomy.csv of 10,000 classes, labels.csv with so many rows, and empty files."""
  write_taxonomy(folder / 'taxonomy.csv', 10_000)
  species = [line.rpartition(',')[2] for line in (folder / 'taxonomy.csv').read_text().split()[1:]]
  rng = np.random.default_rng(1)
  with (folder / 'labels.csv').open('w') as f:
    f.write('file,split,species\n')
    for i, leaf in enumerate(rng.integers(0, len(species), rows)):
      split = 'val' if i % 10 == 0 else 'train'
      file = folder / 'images' / f'{i // 1000:04d}' / f'{i:08d}.jpg'
      file.parent.mkdir(parents=True, exist_ok=True)
      file.touch()
      f.write(f'{file.relative_to(folder)},{split},{species[leaf]}\n')


def measured(work) -> None:
  """Print the CPU seconds and the growth of the peak memory of a function, as JSON."""
  before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
  work()
  seconds = time.process_time() - start
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  print(json.dumps({'seconds': seconds, 'mib': (peak - before) / 1024}))


def validate(taxonomy, labels, batch: int = 64):
  """Return the work of a validation in training, with the probabilities of a batch for all."""
  # slow to import, as `collect` does
  import grain  # noqa: F401

  from hierjax.core import config, parallel
  from hierjax.data.dataset import Examples
  from hierjax.evaluate import collect, summary

  rng, probs, c = np.random.default_rng(3), {}, config.default()
  for level, names in zip(taxonomy.levels, taxonomy.names):
    p = np.exp(3 * rng.standard_normal((batch, len(names)), np.float32))
    probs[level] = p / p.sum(1, keepdims=True)
  c.eval.batch_size, mesh = batch, parallel.mesh()
  files = [f'{i}.jpg' for i in range(len(labels))]
  examples = Examples('val', files, labels, lambda i: np.zeros(1, np.float32))

  def step(variables, x):
    return probs, x

  def reduction(outputs):
    return summary.reduce_to_log(outputs, taxonomy)

  def work():
    outputs = collect.collect(step, {}, examples, c, mesh, reduction=reduction)
    summary.validate(outputs, taxonomy, dict.fromkeys(taxonomy.levels, 1.0))

  return work


def run_stage(stage: str, size: int, folder: pathlib.Path) -> None:
  """Run a stage once, on files that the calling process has written."""
  from hierjax.data import lint_taxonomy, sources
  from hierjax.data.findings import Findings
  from hierjax.evaluate import metrics
  from hierjax.taxonomy import read_levels, read_taxonomy

  path = folder / 'taxonomy.csv'
  if stage == 'load':
    return measured(lambda: read_taxonomy(path))
  if stage in ('labels', 'drawn'):
    from hierjax.core import config

    c = config.default()
    c.data.root = str(folder)
    c.data.divide = 'train' if stage == 'drawn' else None
    return measured(lambda: sources.load(c.data))
  taxonomy = read_taxonomy(path)
  rng = np.random.default_rng(2)
  leaves = rng.integers(0, size, 100_000)
  labels = taxonomy.paths[leaves].copy()
  if stage == 'lint':
    origin = lint_taxonomy.Origin(str(path), read_levels(path).rows)
    return measured(lambda: lint_taxonomy.check(taxonomy, origin, Findings()))
  if stage == 'complete':
    labels[:, :-1] = -1
    return measured(lambda: taxonomy.complete(labels))
  if stage == 'valid':
    labels[:, -1] = -1
    return measured(lambda: taxonomy.valid(labels))
  if stage == 'metrics':
    pred = taxonomy.paths[rng.integers(0, size, 100_000)]
    return measured(lambda: metrics.of_predictions(pred, labels, taxonomy))
  if stage == 'validation':
    return measured(validate(taxonomy, labels[:10_000]))
  return measured(lambda: run_loss(stage, taxonomy, labels[:32]))


def run_loss(stage, taxonomy, labels):
  """Build the loss of the finest level, and compute it and its gradient for 32 images."""
  import jax
  import jax.numpy as jnp

  from hierjax.losses import exclusive

  targets = {
    'cross-entropy': lambda: None,
    'smoothing': lambda: exclusive.smoothed_targets(taxonomy, 0.1, ['genus']),
    'lca': lambda: exclusive.lca_targets(taxonomy, 10.0),
  }[stage]()
  targets = jnp.asarray(targets) if isinstance(targets, np.ndarray) else targets
  y = jnp.asarray(labels[:, -1])

  @jax.jit
  def loss(x):
    return exclusive.cross_entropy(x, y, targets).mean()

  x = jnp.zeros((len(labels), len(taxonomy.paths)))
  jax.block_until_ready(jax.grad(loss)(x))


# {stage: whether its size is that of labels.csv, not of the taxonomy}
STAGES = {
  **dict.fromkeys(
    'load lint complete valid metrics validation cross-entropy smoothing lca'.split(), False
  ),
  **dict.fromkeys(('labels', 'drawn'), True),
}


def row(stage: str, sizes: list[int], root: pathlib.Path) -> str:
  """Measure a stage at all sizes, on files below a folder; return its line of the table."""
  cells, seconds = [], []
  for size in sizes:
    folder = root / f'{STAGES[stage]}-{size}'
    if not folder.exists():
      folder.mkdir()
      if STAGES[stage]:
        write_labels(folder, size)
      else:
        write_taxonomy(folder / 'taxonomy.csv', size)
    command = [sys.executable, __file__, '--run', stage, str(size), str(folder)]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    result = json.loads(out.splitlines()[-1])
    seconds.append(result['seconds'])
    cells.append(f'{size:,}: {result["seconds"]:.2f} s, {result["mib"]:.0f} MiB')
  slope = math.log(seconds[-1] / seconds[0]) / math.log(sizes[-1] / sizes[0])
  return f'{stage:13} {"; ".join(cells)}; exponent {slope:.2f}'


def main():
  """Print a table of the stages and their sizes."""
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--leaves', type=int, nargs='+', default=[1000, 10_000, 100_000])
  p.add_argument('--rows', type=int, nargs='+', default=[10_000, 100_000, 1_000_000])
  p.add_argument('--stages', nargs='+', choices=STAGES, default=list(STAGES))
  p.add_argument('--run', nargs=3, help=argparse.SUPPRESS)
  a = p.parse_args()
  if a.run:
    run_stage(a.run[0], int(a.run[1]), pathlib.Path(a.run[2]))
    return
  with tempfile.TemporaryDirectory() as root:
    for stage in a.stages:
      print(row(stage, a.rows if STAGES[stage] else a.leaves, pathlib.Path(root)), flush=True)


if __name__ == '__main__':
  main()
