"""Seconds of one train step (forward, backward, Adam) of a trunk with classification heads.

usage: train_step.py MODEL BATCH SIZE [--heads 49 9 196] [--dtype f32|bf16] [--micro N]
                     [--lora RANK] [--remat] [--mode train|infer] [--steps 5]

Prints one JSON line: seconds of compilation, median and least seconds of a step, least processor
seconds (both cores together; says more than the clock on a busy machine), images/s; the numbers of
parameters and of those that train; in GiB the memory of the step's arrays (its arguments, results
and temporaries, as XLA plans it) and the most that the process had in RAM, compilation included.
--steps 0 only compiles, to see the former before the memory is needed. --micro splits the batch
into N, one after the other, with batch norm over each. --lora trains low-rank updates of this rank
and the heads alone. To compare with PyTorch run its peer in turn with this.
"""

import argparse
import json
import pathlib
import resource
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from hierjax.cli import process

if __name__ == '__main__':
  process.use_huge_pages()

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from hierjax.models import adapting, initializers, registry
from hierjax.models.compute import KERNELS, Compute, compiler_options


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
  p.add_argument('--lora', type=int, metavar='RANK')
  p.add_argument('--remat', action='store_true')
  p.add_argument('--mode', choices=('train', 'infer'), default='train')
  p.add_argument('--kernels', choices=('auto', *KERNELS), default='auto')
  p.add_argument('--heads', type=int, nargs='*', default=[1000])
  p.add_argument('--steps', type=int, default=5)
  p.add_argument('--hlo', help='write the optimised HLO here')
  return p.parse_args()


def build(a: argparse.Namespace):
  """Return the step that is timed, its state, images and labels."""
  backbone = registry.BACKBONES[a.model]
  dtype = {'f32': jnp.float32, 'bf16': jnp.bfloat16}[a.dtype]
  lora = (a.lora, 1.0) if a.lora else None
  compute = Compute(dtype, a.remat, kernels=a.kernels, lora=lora, has_frozen_norm=bool(lora))
  trunk = backbone.build(compute)
  variables = initializers.init(trunk, 0)
  rng = np.random.default_rng(0)
  flat = traverse_util.flatten_dict(variables['params'])
  params = {
    'trunk': {path: x for path, x in flat.items() if not lora or path[-1] in adapting.UPDATE},
    'heads': [rng.uniform(-0.03, 0.03, (backbone.features, c)).astype('f4') for c in a.heads],
  }
  fixed = {path: x for path, x in flat.items() if path not in params['trunk']}
  stats, key = variables.get('batch_stats', {}), jax.random.key(0)
  image = jnp.asarray(rng.random((a.batch, a.size, a.size, 3), 'f4'))
  labels = [jnp.arange(a.batch) % c for c in a.heads]
  optimizer = optax.adam(1e-4)

  def trunk_variables(params, fixed, stats):
    flat = {**params['trunk'], **fixed}
    return {'params': traverse_util.unflatten_dict(flat), 'batch_stats': stats}

  def loss(params, fixed, stats, image, labels):
    variables = trunk_variables(params, fixed, stats)
    (x, _), new = trunk.apply(
      variables, image, True, mutable=['batch_stats'], rngs={'dropout': key}
    )
    losses = [
      optax.softmax_cross_entropy_with_integer_labels(x @ h, y).mean()
      for h, y in zip(params['heads'], labels)
    ]
    return sum(losses), new.get('batch_stats', {})

  def train(state, image, labels):
    params, fixed, stats, moments = state
    total, n = None, a.batch // a.micro
    for i in range(a.micro):
      part = slice(i * n, (i + 1) * n)
      grads, stats = jax.grad(loss, has_aux=True)(
        params, fixed, stats, image[part], [y[part] for y in labels]
      )
      total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    updates, moments = optimizer.update(jax.tree.map(lambda g: g / a.micro, total), moments)
    return optax.apply_updates(params, updates), fixed, stats, moments

  def infer(state, image, labels):
    x, _ = trunk.apply(trunk_variables(*state[:3]), image, False)
    return [x @ h for h in state[0]['heads'][:1]]

  state = jax.tree.map(jnp.asarray, (params, fixed, stats, optimizer.init(params)))
  if a.mode == 'infer':
    return jax.jit(infer, compiler_options=compiler_options()), state, image, labels
  step = jax.jit(train, donate_argnums=0, compiler_options=compiler_options())
  return step, state, image, labels


def planned_gib(step) -> float:
  """Return the memory of a compiled step's arguments, results and temporaries in GiB."""
  m = step.memory_analysis()
  return (
    m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
  ) / 2**30


def timed(step, a: argparse.Namespace, state, image, labels) -> dict:
  """Run the compiled step two times more than asked, and return what its last runs took."""
  times, busy = [], []
  for _ in range(a.steps + 2):
    begin, before = time.perf_counter(), time.process_time()
    out = jax.block_until_ready(step(state, image, labels))
    times.append(time.perf_counter() - begin)
    busy.append(time.process_time() - before)
    state = out if a.mode == 'train' else state
  times = sorted(times[2:])
  median = times[len(times) // 2]
  return {
    'median_s': round(median, 4),
    'least_s': round(times[0], 4),
    'least_cpu_s': round(min(busy[2:]), 4),
    'images_per_s': round(a.batch / median, 2),
  }


def main():
  """Time the steps and print the line."""
  a = parse_arguments()
  step, state, image, labels = build(a)
  begin = time.perf_counter()
  step = step.lower(state, image, labels).compile()
  compiled = time.perf_counter() - begin
  if a.hlo:
    pathlib.Path(a.hlo).write_text(step.as_text())
  trained, fixed = (sum(x.size for x in jax.tree.leaves(part)) for part in state[:2])
  row = {
    'jax': jax.__version__,
    **vars(a),
    'compile_s': round(compiled, 1),
    'params': trained + fixed,
    'trained': trained,
    'planned_gib': round(planned_gib(step), 2),
  }
  if a.steps:
    row |= timed(step, a, state, image, labels)
  row['peak_gib'] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
  print(json.dumps(row))


if __name__ == '__main__':
  main()
