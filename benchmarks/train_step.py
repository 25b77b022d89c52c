"""Seconds of one train step (forward, backward, Adam) of a trunk with classification heads.

usage: train_step.py MODEL BATCH SIZE [--heads 49 9 196] [--dtype f32|bf16] [--micro N]
                     [--mode train|infer] [--steps 5]

Prints one JSON line: seconds of compilation, median and least seconds of a step, least processor
seconds (both cores together; says more than the clock on a busy machine), images/s. --micro splits
the batch into N, one after the other, with batch norm over each. To compare with PyTorch run its
peer in turn with this.
"""

import argparse
import json
import os
import pathlib
import sys
import time

# Large pages and no return of memory to the system between steps: without it every large temporary
# is page-faulted anew (15 % of a step).
TUNABLES = (
  'glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:'
  'glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=67108864'
)
if __name__ == '__main__' and 'GLIBC_TUNABLES' not in os.environ:
  os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, 'GLIBC_TUNABLES': TUNABLES})
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from hierjax.models import initializers, registry  # noqa: E402
from hierjax.models.compute import Compute  # noqa: E402


def parse_arguments() -> argparse.Namespace:
  """Return the command line's arguments."""
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('model', choices=registry.BACKBONES)
  p.add_argument('batch', type=int)
  p.add_argument('size', type=int)
  p.add_argument('--dtype', choices=('f32', 'bf16'), default='f32')
  p.add_argument('--micro', type=int, default=1)
  p.add_argument('--mode', choices=('train', 'infer'), default='train')
  p.add_argument('--kernels', choices=('auto', 'plain', 'cpu'), default='auto')
  p.add_argument('--heads', type=int, nargs='*', default=[1000])
  p.add_argument('--steps', type=int, default=5)
  p.add_argument('--hlo', help='write the optimised HLO here')
  return p.parse_args()


def build(a: argparse.Namespace):
  """Return the step that is timed, its state, images and labels."""
  backbone = registry.BACKBONES[a.model]
  dtype = {'f32': jnp.float32, 'bf16': jnp.bfloat16}[a.dtype]
  trunk = backbone.build(Compute(dtype, kernels=a.kernels))
  variables = initializers.init(trunk, 0)
  rng = np.random.default_rng(0)
  params = {
    'trunk': variables['params'],
    'heads': [rng.uniform(-0.03, 0.03, (backbone.features, c)).astype('f4') for c in a.heads],
  }
  stats, key = variables.get('batch_stats', {}), jax.random.key(0)
  image = jnp.asarray(rng.random((a.batch, a.size, a.size, 3), 'f4'))
  labels = [jnp.arange(a.batch) % c for c in a.heads]
  optimizer = optax.adam(1e-4)

  def loss(params, stats, image, labels):
    variables = {'params': params['trunk'], 'batch_stats': stats}
    (x, _), new = trunk.apply(
      variables, image, True, mutable=['batch_stats'], rngs={'dropout': key}
    )
    losses = [
      optax.softmax_cross_entropy_with_integer_labels(x @ h, y).mean()
      for h, y in zip(params['heads'], labels)
    ]
    return sum(losses), new.get('batch_stats', {})

  def train(state, image, labels):
    params, stats, moments = state
    total, n = None, a.batch // a.micro
    for i in range(a.micro):
      part = slice(i * n, (i + 1) * n)
      grads, stats = jax.grad(loss, has_aux=True)(
        params, stats, image[part], [y[part] for y in labels]
      )
      total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    updates, moments = optimizer.update(jax.tree.map(lambda g: g / a.micro, total), moments)
    return optax.apply_updates(params, updates), stats, moments

  def infer(state, image, labels):
    x, _ = trunk.apply({'params': state[0]['trunk'], 'batch_stats': state[1]}, image, False)
    return [x @ h for h in state[0]['heads'][:1]]

  state = jax.tree.map(jnp.asarray, (params, stats, optimizer.init(params)))
  step = jax.jit(train, donate_argnums=0) if a.mode == 'train' else jax.jit(infer)
  return step, state, image, labels


def main():
  """Time the steps and print the line."""
  a = parse_arguments()
  step, state, image, labels = build(a)
  begin = time.perf_counter()
  step = step.lower(state, image, labels).compile()
  compiled = time.perf_counter() - begin
  if a.hlo:
    pathlib.Path(a.hlo).write_text(step.as_text())
  times, busy = [], []
  for _ in range(a.steps + 2):
    begin, before = time.perf_counter(), time.process_time()
    out = jax.block_until_ready(step(state, image, labels))
    times.append(time.perf_counter() - begin)
    busy.append(time.process_time() - before)
    state = out if a.mode == 'train' else state
  times = sorted(times[2:])
  median = times[len(times) // 2]
  row = {
    'jax': jax.__version__,
    **vars(a),
    'compile_s': round(compiled, 1),
    'median_s': round(median, 4),
    'least_s': round(times[0], 4),
    'least_cpu_s': round(min(busy[2:]), 4),
    'images_per_s': round(a.batch / median, 2),
  }
  print(json.dumps(row))


if __name__ == '__main__':
  main()
