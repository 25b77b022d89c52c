"""What one training step costs a device, and what it sends, for 1 to 256 simulated devices.

usage: scaling.py [BACKBONE] [SIZE] [--batch 2] [--micro 1] [--kernels plain]
                  [--devices 1 2 4 ...]

All numbers are read from the compiled program; nothing is run. The batch is per device (weak
scaling), the step is that of training with three heads on the drawn set. Expected between devices:

  one all-reduce of all gradients, with the loss, the accuracies and the stop flag in it
  one of the numbers of labelled examples, which the loss divides by
  for each batch norm and micro-batch the sums of its statistics and those of their gradients, at
  most one all-reduce each

The exit code is 1 if bytes are left over or missing, if there is another kind of collective, or if
FLOPs, collectives or bytes depend on the number of devices. `plain` is what a GPU or TPU computes,
`cpu` what a CPU does; the compiler is XLA's for CPUs either way.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

KINDS = (
  'all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|'
  'collective-broadcast|ragged-all-to-all'
)
COLLECTIVE = re.compile(rf'^ *(?:ROOT )?%?\S+ = (.*?) ({KINDS})(?:-start)?\(', re.MULTILINE)
NAMES = 'gradients', 'counts', 'batch norm', 'other'
SHAPE = re.compile(r'(pred|[a-z]+[0-9]+)\[([0-9,]*)\]')


def collectives(hlo: str) -> list[tuple[str, list[tuple[str, tuple[int, ...]]]]]:
  """Return (kind, [(type, shape) of each result]) of each collective of a compiled program."""
  return [
    (kind, [(t, tuple(int(d) for d in dims.split(',') if d)) for t, dims in SHAPE.findall(result)])
    for result, kind in COLLECTIVE.findall(hlo)
  ]


def size(shapes) -> int:
  """Return the bytes that a collective leaves on a device."""
  return sum(
    math.prod(s) * (1 if t == 'pred' else int(re.search(r'\d+', t)[0]) // 8) for t, s in shapes
  )


def sort(
  instructions, params: int, widths: list[int], micro: int = 1
) -> tuple[dict[str, tuple[int, int]], list[str]]:
  """Sort collectives by purpose and check that every value is reduced once.

  The gradients must be reduced in one piece, with at most a hundred more numbers, and four vectors
  for each batch norm.

  Args:
    instructions: what `collectives` returns.
    params: the number of parameters.
    widths: the channels of each batch norm.
    micro: the number of micro-batches.

  Returns:
    {purpose: (number, bytes)} and a list of complaints.
  """
  groups = {'gradients': [], 'counts': [], 'batch norm': [], 'other': []}
  for kind, shapes in instructions:
    sizes = [math.prod(s) for _, s in shapes]
    if kind != 'all-reduce':
      name = 'other'
    elif all(t == 's32' and n == 1 for (t, _), n in zip(shapes, sizes)):
      name = 'counts'
    elif all(n == max(s, default=0) and n in widths for (_, s), n in zip(shapes, sizes)):
      name = 'batch norm'
    else:
      name = 'gradients'
    groups[name].append(shapes)
  out = {name: (len(g), sum(map(size, g))) for name, g in groups.items()}
  complaints = [
    f'{kind} of {", ".join(f"{t}{list(s)}" for t, s in shapes[:4])}'
    for kind, shapes in instructions
    if kind != 'all-reduce'
  ]
  if out['gradients'][0] != 1 or not 0 <= out['gradients'][1] - 4 * params <= 400:
    complaints.append(
      f'{out["gradients"][1]:,} bytes in {out["gradients"][0]} all-reduces for {params:,} gradients'
    )
  if out['batch norm'][0] > 2 * len(widths) * micro or out['batch norm'][1] != 16 * micro * sum(
    widths
  ):
    complaints.append(
      f'{out["batch norm"][1]:,} bytes in {out["batch norm"][0]} all-reduces '
      f'for {len(widths)} batch norms'
    )
  return out, complaints


def measure(a) -> dict:
  """Return a row: the step for as many devices as this process has."""
  import jax
  import numpy as np
  from flax import traverse_util

  from hierjax.core import config, parallel
  from hierjax.models import compute
  from hierjax.train import optim, setup
  from hierjax.train.step import stepper

  n, c = jax.device_count(), config.default()
  c.data.source, c.data.size, c.model.backbone, c.train.batch_size, c.optim.accumulate = (
    'toy',
    a.size,
    a.backbone,
    a.batch * n,
    a.micro,
  )
  run = setup.build(c)
  task, across = run.task, run.mesh
  # values on one device; only their shapes are needed
  one = dataclasses.replace(run, mesh=parallel.mesh(devices=jax.devices()[:1]))
  state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), setup.initial_state(one))
  batch = {
    'image': jax.ShapeDtypeStruct((a.batch * n, a.size, a.size, 3), np.uint8),
    'flags': {'stop': jax.ShapeDtypeStruct((n,), np.float32)},
    'labels': jax.ShapeDtypeStruct((a.batch * n, len(run.taxonomy.levels)), np.int32),
  }
  began = time.monotonic()
  task = dataclasses.replace(task, model=compute.configured(task.model, kernels=a.kernels))
  step = stepper(task, run.phases[-1], optim.transformation(c, task.labels), across)
  compiled = step.lower(state, batch, {}).compile()
  params = sum(x.size for x in jax.tree.leaves(state.params))
  widths = [
    x.shape[0]
    for k, x in traverse_util.flatten_dict(dict(state.batch_stats)).items()
    if k[-1] == 'mean'
  ]
  instructions = collectives(compiled.as_text())
  row = {
    'devices': n,
    'flops': compiled.cost_analysis()['flops'],
    'seconds': round(time.monotonic() - began, 1),
    'params': params,
  }
  if n > 1:
    groups, row['complaints'] = sort(instructions, params, widths, a.micro)
    row |= groups
  else:
    row |= dict.fromkeys(NAMES, (0, 0)) | {
      'complaints': [f'{kind} on a single device' for kind, _ in instructions]
    }
  return row


def parse_arguments() -> argparse.Namespace:
  """Return the command line's arguments."""
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('backbone', nargs='?', default='efficientnet_lite0')
  p.add_argument('size', nargs='?', type=int, default=64)
  p.add_argument('--batch', type=int, default=2)
  p.add_argument('--micro', type=int, default=1)
  p.add_argument('--kernels', choices=('plain', 'cpu'), default='plain')
  p.add_argument('--devices', type=int, nargs='*', default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
  p.add_argument('--row', action='store_true', help=argparse.SUPPRESS)
  return p.parse_args()


def run_row(devices: int) -> dict:
  """Measure in a new process that simulates so many devices."""
  env = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
  }
  command = [sys.executable, __file__, *sys.argv[1:], '--row']
  result = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(result.stdout.splitlines()[-1])


def compare(rows: list[dict]) -> list[str]:
  """Return the complaints of all rows and what depends on the number of devices."""
  shared = [r for r in rows if r['devices'] > 1]
  complaints = sorted({c for r in rows for c in r['complaints']})
  for name in NAMES:
    if len({tuple(r[name]) for r in shared}) > 1:
      complaints.append(f'{name} depend on the number of devices')
  flops, single = [r['flops'] for r in shared], [r['flops'] for r in rows if r['devices'] == 1]
  if shared and max(flops) > 1.001 * min(flops):
    complaints.append(f'FLOPs a device depend on the number of devices: {sorted(flops)}')
  # a little more is what can't be fused over a reduction between devices
  if flops and single and max(flops) > 1.05 * single[0]:
    complaints.append(f'{max(flops):.4g} FLOPs a device of several, {single[0]:.4g} on one alone')
  return complaints


def main():
  """Print a row for each number of devices, then the complaints."""
  a = parse_arguments()
  if a.row:
    print(json.dumps(measure(a)))
    return
  print(f'{a.backbone}, {a.size} px, {a.batch} images a device, {a.kernels} layers')
  print('collectives as number: bytes a device')
  heads = ('GFLOP a device', 'gradients', 'counts', 'batch norm', 'other', 'compiled in')
  widths = (14, 14, 9, 13, 5, 11)
  print(f'{"devices":>7}', *(f'{h:>{w}}' for h, w in zip(heads, widths)))
  rows = []
  for n in a.devices:
    r = run_row(n)
    rows.append(r)
    cells = [f'{r["flops"] / 1e9:.4f}', *('{}: {:,}'.format(*r[name]) for name in NAMES[:3])]
    cells += [str(r['other'][0]), f'{r["seconds"]} s']
    print(f'{n:>7}', *(f'{c:>{w}}' for c, w in zip(cells, widths)), flush=True)
  complaints = compare(rows)
  verdict = '; '.join(complaints) or (
    'each value is reduced once, nothing depends on the number of devices'
  )
  print(f'{rows[0]["params"]:,} parameters; {verdict}')
  sys.exit(bool(complaints))


if __name__ == '__main__':
  main()
