"""Makes tests/golden/one_cycle.json: what torch's OneCycleLR gives an Adam, step by step.

usage: python tests/parity/make_one_cycle.py OUT.json
Runs in the environment of requirements-parity.txt. For each case the learning rate, beta1 and the
parameter after each step, which starts at 1 and whose gradient at step t is cos(t).
"""

import json
import math
import pathlib
import sys

import torch

# name: total steps, pct_start, anneal_strategy, max_lr, base_momentum, max_momentum
CASES = {
  'torch default': (20, 0.3, 'cos', 0.1, 0.85, 0.95),
  'linear': (20, 0.3, 'linear', 0.1, 0.85, 0.95),
  'short rise': (13, 0.1, 'cos', 3e-4, 0.85, 0.95),
  'long rise': (31, 0.85, 'cos', 2.0, 0.5, 0.9),
  'linear, peak between steps': (17, 0.25, 'linear', 1e-3, 0.8, 0.99),
  'rise below a step': (9, 0.05, 'linear', 0.1, 0.85, 0.95),
  'no rise': (8, 0.0, 'cos', 0.1, 0.85, 0.95),
  'single step': (1, 0.3, 'cos', 0.1, 0.85, 0.95),
}


def steps(total, rise, anneal, peak, low, high) -> dict[str, list[float]]:
  """Return learning rate, beta1 and parameter of each step."""
  x = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
  adam = torch.optim.Adam([x], lr=peak)
  schedule = torch.optim.lr_scheduler.OneCycleLR(
    adam,
    peak,
    total_steps=total,
    pct_start=rise,
    anneal_strategy=anneal,
    base_momentum=low,
    max_momentum=high,
  )
  rows = {'lr': [], 'beta1': [], 'parameter': []}
  for t in range(total):
    group = adam.param_groups[0]
    rows['lr'].append(group['lr'])
    rows['beta1'].append(group['betas'][0])
    x.grad = torch.tensor(math.cos(t), dtype=torch.float64)
    adam.step()
    rows['parameter'].append(x.item())
    if t + 1 < total:
      schedule.step()
  return rows


def main():
  rows = {name: {'case': case, **steps(*case)} for name, case in CASES.items()}
  text = ',\n'.join(f'{json.dumps(name)}: {json.dumps(row)}' for name, row in rows.items())
  pathlib.Path(sys.argv[1]).write_text('{\n' + text + '\n}\n')


if __name__ == '__main__':
  main()
