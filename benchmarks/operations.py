"""Milliseconds of single operations of a ResNet-50's and a transformer's train step on the CPU.

usage: operations.py [--batch 8] [--kernels cpu onednn] [--repeats 7]

One line an operation and pass: its shapes, and for each of the kernels the least time and the rate,
GFLOP/s of convolutions and products, GB/s of batch norm. Batch norm is taken to read its maps twice
and to write once; its gradient reads the maps three times, their gradient twice, and writes once.
Nothing else should run.
"""

import argparse
import os
import pathlib
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax

from hierjax.models.compute import KERNELS

# side of the maps, channels in and out, side of the kernel, stride
CONVOLUTIONS = [
  (224, 3, 64, 7, 2),
  (56, 64, 64, 3, 1),
  (56, 64, 256, 1, 1),
  (56, 256, 64, 1, 1),
  (56, 128, 128, 3, 2),
  (28, 128, 128, 3, 1),
  (28, 512, 128, 1, 1),
  (14, 256, 256, 3, 1),
  (14, 1024, 256, 1, 1),
  (7, 512, 512, 3, 1),
  (7, 2048, 512, 1, 1),
]
NORMS = [(112, 64), (56, 256), (28, 512), (14, 1024)]  # side of the maps, channels
ATTENTION = [(6, 197, 64), (192, 49, 32)]  # matrices an image, tokens, channels


def normal(*shape):
  """Draw an array."""
  return jax.random.normal(jax.random.key(len(shape)), shape)


def least_seconds(function, args, repeats):
  """Return the least time of a compiled function."""
  function, times = jax.jit(function), []
  for _ in range(repeats + 1):
    begin = time.perf_counter()
    jax.block_until_ready(function(*args))
    times.append(time.perf_counter() - begin)
  return min(times[1:])


def operations(batch, ops):
  """Yield (name, function, arguments, 1e9 operations or bytes) of each pass."""
  for side, inner, outer, k, stride in CONVOLUTIONS:
    x, kernel = normal(batch, side, side, inner), normal(k, k, inner, outer)

    def convolve(x, kernel, stride=stride, k=k):
      return ops.conv(x, kernel, stride, k // 2)

    dy = convolve(x, kernel)
    work = 2 * dy.size * inner * k * k / 1e9
    name = f'{k} x {k}, {inner} to {outer}, {side} px, stride {stride}'
    yield f'{name}: forward', convolve, (x, kernel), work
    for i, part in ((0, 'input'), (1, 'kernel')):
      yield f'{name}: gradient of the {part}', gradient(convolve, i), (dy, x, kernel), work
  for side, width in NORMS:
    x, vectors = normal(batch, side, side, width), (normal(width), normal(width))

    def norm(x, scale, bias):
      return ops.batch_norm(x, scale, bias, 1e-5, 'relu')[0]

    name = f'batch norm and ReLU, {width} channels, {side} px'
    yield f'{name}: forward', norm, (x, *vectors), 3 * x.nbytes / 1e9
    yield f'{name}: gradient of the input', gradient(norm, 0), (x, x, *vectors), 6 * x.nbytes / 1e9
  for count, n, d in ATTENTION:
    q, weights = normal(batch * count, n, d), normal(batch * count, n, n)
    work = 2 * weights.size * d / 1e9
    yield f'{batch * count} products q k^T, {n} x {d}', products(ops, True), (q, q), work
    yield f'{batch * count} products of weights and v', products(ops, False), (weights, q), work


def products(ops, is_transposed):
  """Return the function that multiplies stacks of matrices."""
  return lambda a, b: ops.product(a, b, is_transposed)


def gradient(function, i):
  """Return the function (cotangent, *arguments) → gradient of argument i."""

  def pull(dy, *args):
    def of_one(arg):
      return function(*args[:i], arg, *args[i + 1 :])

    return jax.vjp(of_one, args[i])[1](dy)[0]

  return pull


def main():
  """Print the lines."""
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--batch', type=int, default=8)
  p.add_argument('--kernels', nargs='+', choices=KERNELS, default=['cpu', 'onednn'])
  p.add_argument('--repeats', type=int, default=7)
  a = p.parse_args()
  print('| operation |', ' | '.join(f'{k}, ms, rate' for k in a.kernels), '|')
  print('|---' * (1 + len(a.kernels)) + '|')
  for rows in zip(*(operations(a.batch, KERNELS[k]) for k in a.kernels)):
    cells = []
    for _, function, args, work in rows:
      seconds = least_seconds(function, args, a.repeats)
      cells.append(f'{1e3 * seconds:.2f}, {work / seconds:.0f}')
    print(f'| {rows[0][0]} |', ' | '.join(cells), '|', flush=True)


if __name__ == '__main__':
  main()
