"""The table of the backbones: parameters, MACs, differences from the original, images/s of a step.

usage: backbones.py OUT.jsonl [--peer PYTHON] [--names 'swin_*'] [--mode train|infer] [--batch 8]
                    [--size 224] [--steps 3] [--rounds 2] [--differences]

One line a backbone is added to OUT.jsonl as soon as it is measured. What the file has already is
not measured again, so that the speeds can be taken when the machine is idle and the differences
later. The table of all is printed at the end.

PYTHON has torch, torchvision and timm, for the peer timm_step.py. The two take turns for --rounds,
and the better median of each counts; 0 rounds measure no speed.
--differences compares with the golden values of tests/golden, where a backbone has its own: the
worst relative difference of features in float32, and of gradients in float64 (in evaluation and
training mode).
"""

import argparse
import fnmatch
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from parity import ours  # noqa: E402

from hierjax.models import counts, registry  # noqa: E402

# What the peer calls them where it is not torchvision's name of ours; '' = it has none.
PEERS = {
  'resnet18_32px': '',
  'advanced_cnn': 'resnet18',
  'vit_b_16': 'timm:vit_base_patch16_224',
  'swin_t': 'timm:swin_tiny_patch4_window7_224',
  'swin_s': 'timm:swin_small_patch4_window7_224',
  'swin_b': 'timm:swin_base_patch4_window7_224',
  **{f'efficientnet_lite{v}': f'timm:tf_efficientnet_lite{v}' for v in range(5)},
  **{name: f'timm:{name}' for name in ours.timm_names()},
}
# what tells the lines apart
KEY = ('name', 'size', 'batch', 'mode')


def differences(name):
  """Return the worst differences of features and of gradients, over naming schemes and modes."""
  golden = ours.golden(name)
  features = max(ours.differences(name, scheme, golden[scheme]) for scheme in ours.schemes(golden))
  first = ours.schemes(golden)[0]
  return features, max(
    max(ours.gradient_differences(name, first, mode, golden[mode]).values())
    for mode in ('eval', 'train')
  )


def seconds(command):
  """Run a benchmark of a train step; return its median of seconds."""
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  if result.returncode:
    raise RuntimeError(f'{" ".join(map(str, command))}: {result.stderr.strip().splitlines()[-1]}')
  return json.loads(result.stdout.strip().splitlines()[-1])['median_s']


def measure(name, a, row):
  """Return the row completed with what it lacks."""
  row = dict(row)
  if 'params' not in row:
    module = registry.BACKBONES[name].build()
    shapes = counts.shapes(module, a.size)
    row |= {
      'params': counts.parameters(shapes['params']),
      'macs': counts.macs(module, shapes, a.size),
    }
  if a.differences and 'features' not in row and name in ours.names():
    row['features'], row['gradients'] = differences(name)
  sizes = [str(a.batch), str(a.size), '--mode', a.mode, '--steps', str(a.steps)]
  commands = {'hierjax': [sys.executable, ROOT / 'benchmarks/train_step.py', name, *sizes]}
  if a.peer and (peer := PEERS.get(name, name)):
    commands['torch'] = [a.peer, ROOT / 'benchmarks/timm_step.py', peer, *sizes]
  commands = {k: v for k, v in commands.items() if f'{k}_images_per_s' not in row}
  rounds = [{k: seconds(command) for k, command in commands.items()} for _ in range(a.rounds)]
  return row | {
    f'{k}_images_per_s': a.batch / min(r[k] for r in rounds) for k in commands if rounds
  }


def accuracy(difference):
  """Return a relative difference as a cell; golden values have nine digits."""
  if difference is None:
    return ''
  return f'{difference:.1e}' if difference > 1e-9 else '< 1e-9'


def table(rows):
  """Return the rows as a Markdown table."""
  lines = [
    '| backbone | parameters | MACs | features | gradients | hierjax, images/s | torch | ratio |',
    '|---|---|---|---|---|---|---|---|',
  ]
  for r in rows:
    speeds = [r.get(f'{k}_images_per_s') for k in ('hierjax', 'torch')]
    cells = [
      r['name'] + f', {r["size"]} px' * (r['size'] != 224) + ', inference' * (r['mode'] == 'infer'),
      f'{r["params"]:,}',
      f'{r["macs"] / 1e9:.2f} G',
    ]
    cells += [accuracy(r.get(k)) for k in ('features', 'gradients')]
    cells += [f'{v:.3g}' if v else '' for v in speeds] + [
      f'{speeds[0] / speeds[1]:.2f}' if all(speeds) else ''
    ]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def main():
  """Measure what OUT.jsonl lacks and print the table."""
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('out', type=pathlib.Path)
  p.add_argument('--peer')
  p.add_argument('--names', default='*')
  p.add_argument('--mode', choices=('train', 'infer'), default='train')
  p.add_argument('--batch', type=int, default=8)
  p.add_argument('--size', type=int, default=224)
  p.add_argument('--steps', type=int, default=3)
  p.add_argument('--rounds', type=int, default=2)
  p.add_argument('--differences', action='store_true')
  a = p.parse_args()
  lines = [json.loads(line) for line in a.out.read_text().splitlines()] if a.out.exists() else []
  lines = [{'mode': 'train', **line} for line in lines]  # older ones have no mode
  rows = {tuple(r[k] for k in KEY): r for r in lines}  # the last line of each counts
  for name in [
    n
    for n in registry.BACKBONES
    if any(fnmatch.fnmatch(n, pattern) for pattern in a.names.split(','))
  ]:
    key = (name, a.size, a.batch, a.mode)
    before = rows.get(key, dict(zip(KEY, key)))
    try:
      rows[key] = measure(name, a, before)
    except RuntimeError as e:
      print(e, file=sys.stderr)
      continue
    if rows[key] != before:
      with a.out.open('a') as f:
        f.write(json.dumps(rows[key]) + '\n')
      print(table([rows[key]]).splitlines()[-1], file=sys.stderr, flush=True)
  print(table(rows.values()))


if __name__ == '__main__':
  main()
