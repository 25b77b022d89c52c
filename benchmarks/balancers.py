"""What balancing costs: a training step with each balancer, relative to the sum of the losses.

usage: balancers.py [NAME[@features] ...] [--backbone resnet50] [--size 112] [--batch 8]
                    [--rounds 7] [--config.OPTION=VALUE ...]

NAMEs are those of --config.balance.name. The drawn data with three heads; the complete compiled
step with its optimiser. Each round times one step of every variant, so that a busy moment hits all
of them; the table has the median of the ratios within a round, and the seconds.
"""

import argparse
import ast
import os
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax

from hierjax.core import config, parallel
from hierjax.train import optim, setup
from hierjax.train.step import stepper


def variant(name, a, changes):
  """Return step, state and batch of a balancer; '' is the plain sum."""
  c = config.default()
  name, _, place = name.partition('@')
  values = {
    'data.source': 'toy',
    'data.size': a.size,
    'data.toy.train': 4 * a.batch,
    'data.toy.val': 8,
    'model.backbone': a.backbone,
    'train.batch_size': a.batch,
    'optim.name': 'adam',
    'balance.name': name or 'fixed',
    'balance.at': place or 'weights',
    **changes,
  }
  for path, value in values.items():
    config.assign(c, path, value)
  run = setup.build(c)
  task = run.task
  batch = parallel.put_train(next(iter(setup.batches(run, run.train, 0, 1))), {}, run.mesh)
  return (
    stepper(task, run.phases[0], optim.transformation(run.c, task.labels), run.mesh),
    setup.initial_state(run),
    batch,
  )


def main():
  """Time the variants in turn and print the table."""
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument(
    'names', nargs='*', default=['awa', 'uw', 'cagrad@features', 'nash@features', 'cagrad', 'nash']
  )
  p.add_argument('--backbone', default='resnet50')
  p.add_argument('--size', type=int, default=112)
  p.add_argument('--batch', type=int, default=8)
  p.add_argument('--rounds', type=int, default=7)
  a, options = p.parse_known_args()
  changes = {}
  for text in options:
    path, _, value = text.removeprefix('--config.').partition('=')
    try:
      changes[path] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      changes[path] = value
  variants = {name: variant(name, a, changes) for name in ['', *a.names]}
  times = {name: [] for name in variants}
  for i in range(a.rounds + 2):  # the first two compile and warm up
    for name, (step, state, batch) in variants.items():
      begin = time.perf_counter()
      state, _ = jax.block_until_ready(step(state, batch, {}))
      if i >= 2:
        times[name].append(time.perf_counter() - begin)
      variants[name] = step, state, batch
  print('| balancer | seconds a step | relative to the plain sum |\n|---|---|---|')
  for name, seconds in times.items():
    ratio = statistics.median(t / plain for t, plain in zip(seconds, times['']))
    print(f'| {name or "plain sum"} | {statistics.median(seconds):.3f} | {ratio:.2f} |')


if __name__ == '__main__':
  main()
