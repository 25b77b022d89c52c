"""Makes tests/golden/thop.json: parameters and thop's MACs of torchvision's models without their
classifier, one 224 x 224 image.

usage: python tests/parity/make_thop.py OUT.json [NAME ...]
Runs in the environment of requirements-parity.txt; without names, all that make_golden.py compares.
"""

import json
import pathlib
import sys

import make_golden
import thop
import torch


def counts(name: str) -> dict[str, int]:
  model = make_golden.torchvision_trunk(name)
  macs, _ = thop.profile(model, (torch.zeros(1, 3, 224, 224),), verbose=False)
  return {'params': sum(p.numel() for p in model.parameters()), 'thop_macs': int(macs)}


def main():
  out, *names = sys.argv[1:]
  rows = []
  for name in names or make_golden.TORCHVISION:
    rows.append(f'{json.dumps(name)}: {json.dumps(counts(name))}')
    print(rows[-1], flush=True)
  pathlib.Path(out).write_text('{\n' + ',\n'.join(rows) + '\n}\n')


if __name__ == '__main__':
  main()
