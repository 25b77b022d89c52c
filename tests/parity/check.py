"""What `make parity` runs: remakes the golden values with torch, compares them with the committed
ones, and both with hierjax.

usage: python tests/parity/check.py PYTHON_WITH_TORCH
Prints a table of the worst relative difference per backbone, checks the restricted reader on files
that torch.save wrote, and leaves 1 if anything is off.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from parity import hcal, ours, seeded  # noqa: E402

REMADE, OURS = 1e-6, 1e-5


def nested(x, path=()):
  """{path: pin} of a golden tree."""
  if isinstance(x, dict) and 'norm' in x:
    return {path: x}
  if not isinstance(x, dict | list):
    return {}
  items = x.items() if isinstance(x, dict) else enumerate(x)
  return {k: v for i, y in items for k, v in nested(y, (*path, i)).items()}


def compare(old, new):
  """Worst relative difference between the pins of two golden trees."""
  pins, before = nested(new), nested(old)
  return max(seeded.difference(before[p], pins[p]) if p in before else float('inf') for p in pins)


def main():
  bad = []

  def row(label, remade, result):
    ok = remade <= REMADE and all(d <= OURS for d in result)
    print(
      f'{label:42} {remade:10.1e} '
      + ' '.join(f'{d:12.1e}' for d in result)
      + ('' if ok else '  <- too far'),
      flush=True,
    )
    if not ok:
      bad.append(label)

  with tempfile.TemporaryDirectory() as folder:
    command = [sys.argv[1], str(HERE / 'make_golden.py'), folder, '--files', f'{folder}/files']
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f'{"worst relative difference":42} {"remade":>10} {"hierjax auto":>12} {"plain":>12}')
    for name in ours.names(folder):
      new, old = ours.golden(name, folder), ours.golden(name) if name in ours.names() else {}
      for scheme in ours.schemes(new):
        expected, before = new[scheme], old.get(scheme, {})
        remade = (
          compare(before, expected) if before.get('names') == expected['names'] else float('inf')
        )
        row(
          f'{name}, {scheme}',
          remade,
          [ours.differences(name, scheme, expected, f) for f in ('auto', 'plain')],
        )
      for mode in ('eval', 'train'):
        scheme, remade = ours.schemes(new)[0], compare(old.get(mode, {}), new[mode])
        result = [max(ours.gradient_differences(name, scheme, mode, new[mode]).values())]
        row(f'{name}, gradients, {mode} mode', remade, result)
    subprocess.run(
      [sys.argv[1], str(HERE / 'make_thop.py'), f'{folder}/thop.json'],
      check=True,
      stdout=subprocess.DEVNULL,
    )
    new, old = (
      json.loads((pathlib.Path(p) / 'thop.json').read_text()) for p in (folder, ours.GOLDEN)
    )
    result = {name: ours.sizes(name) for name in new}
    off = [
      name
      for name in new.keys() | old.keys()
      if not new.get(name) == old.get(name) == result.get(name)
    ]
    print(
      f'parameters and MACs as thop counts them: {len(new)} backbones'
      + (f'  <- differ: {", ".join(sorted(off))}' if off else ', all equal')
    )
    bad += [f'counts of {name}' for name in off]
    command = [sys.argv[1], str(HERE / 'make_timm_names.py'), f'{folder}/timm_names.json']
    subprocess.run([*command, *ours.timm_names()], check=True)
    new, old = ours.timm_names(folder), ours.timm_names()
    for name in new:
      if 'narrow' in new[name]:
        pin = new[name].pop('narrow')
        remade = seeded.difference(old[name].pop('narrow'), pin)
        row(f'{name}, one narrow block', remade, [ours.narrow_difference(name, pin)])
    bad += [f'what timm has under the name {name}' for name in new if new[name] != old[name]]
    new, old = ours.lite0_package(folder), ours.lite0_package()
    pins = [seeded.pin(g['logits'], 2000) for g in (old, new)]
    row(
      'efficientnet_lite0, package, logits',
      seeded.difference(*pins),
      [ours.lite0_difference(new, f) for f in ('auto', 'plain')],
    )
    subprocess.run(
      [sys.argv[1], str(HERE / 'make_hcal.py'), f'{folder}/hcal.json'],
      check=True,
      stdout=subprocess.DEVNULL,
    )
    new, old = hcal.golden(folder), hcal.golden()
    for name in new:
      row(
        f'HCAL, {name}', compare(old.get(name, {}), new[name]), [hcal.difference(name, new[name])]
      )
    command = [sys.argv[1], str(HERE / 'make_one_cycle.py'), f'{folder}/one_cycle.json']
    subprocess.run(command, check=True)
    new, old = (
      json.loads((pathlib.Path(p) / 'one_cycle.json').read_text()) for p in (folder, ours.GOLDEN)
    )
    for name, rows in new.items():
      remade = max(
        abs(a - b) for k in ('lr', 'beta1', 'parameter') for a, b in zip(rows[k], old[name][k])
      )
      row(f'one-cycle, {name}', remade, [])
    tests = [
      sys.executable,
      '-m',
      'pytest',
      '-q',
      str(HERE.parent / 'models/test_pretrained.py'),
      '-k',
      'torch_save',
    ]
    if subprocess.run(
      tests, env={**os.environ, 'HIERJAX_TORCH_FILES': f'{folder}/files'}, check=False
    ).returncode:
      bad.append('files written by torch.save')
  print('parity: ' + (f'NOT reached: {", ".join(bad)}' if bad else 'all within bounds'))
  sys.exit(bool(bad))


if __name__ == '__main__':
  main()
