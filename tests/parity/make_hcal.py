"""Makes tests/golden/hcal.json: HCAL's loss (S2) and its gradients by torch, float64, in the
readings of seeded.HCAL.

usage: python tests/parity/make_hcal.py OUT.json
Runs in the environment of requirements-parity.txt. Written from what the paper and its authors'
code do, with loops over classes and positives.
"""

import json
import pathlib
import sys

import seeded
import torch
from torch.nn.functional import cross_entropy, normalize

TAU, GAMMA = 0.1, 0.5


def contrast(x, labels, clean, moved, positives):
  """Mean over the rows of x of equation 6: the own class's perturbed prototype, or both of its
  prototypes, against themselves and the other perturbed ones."""
  if positives == 'perturbed':
    return cross_entropy(x @ moved.T / TAU, labels)
  rows = []
  for f, y in zip(x, labels.tolist()):
    target = [f @ clean[y] / TAU, f @ moved[y] / TAU]
    every = torch.stack(target + [f @ p / TAU for c, p in enumerate(moved) if c != y])
    rows.append(-sum(torch.log(torch.exp(s) / torch.exp(every).sum()) for s in target))
  return torch.stack(rows).mean()


def means_of(k, samples, labels, paths, children):
  """{class of level k: its mean} of the classes present: of its samples, or above the second level
  from below, where equation 2 is followed, of its
  children's means."""
  if not children or k >= paths.shape[1] - 2:
    return {c: samples[labels[:, k] == c].mean(0) for c in sorted(set(labels[:, k].tolist()))}
  below, out = means_of(k + 1, samples, labels, paths, children), {}
  for c in range(paths[:, k].max() + 1):
    present = [below[j] for j in sorted(set(paths[paths[:, k] == c, k + 1].tolist())) if j in below]
    if present:
      out[c] = torch.stack(present).mean(0)
  return out


def losses(name, features, labels, paths, prototypes, noise):
  """The loss of each level, coarse to fine."""
  case, out = seeded.HCAL[name], []
  for k, (p, n) in enumerate(zip(prototypes, noise)):
    clean = normalize(p, dim=1)
    moved = normalize(clean + n, dim=1)
    if k == len(prototypes) - 1:
      x, y = normalize(features, dim=1), torch.tensor(labels[:, k])
    else:
      means = means_of(
        k,
        normalize(features, dim=1) if case['reading'] == 'code' else features,
        labels,
        paths,
        case['reading'] == 'paper',
      )
      x, y = torch.stack(list(means.values())), torch.tensor(list(means))
      if case['reading'] == 'paper':
        x = normalize(x, dim=1)
    out.append(contrast(x, y, clean, moved, case['positives']))
  return torch.stack(out)


def pins(name):
  features, labels, paths, prototypes, noise = seeded.hcal(name)
  leaves = [torch.tensor(x, requires_grad=True) for x in (features, *prototypes)]
  each = losses(name, leaves[0], labels, paths, leaves[1:], [torch.tensor(n) for n in noise])
  weights = torch.softmax(each.detach() / GAMMA, 0)
  total = (weights * each).sum()
  alone = [torch.autograd.grad(x, leaves[0], retain_graph=True)[0] for x in each]
  total.backward()
  result = {
    'losses': each.detach(),
    'weights': weights,
    'total': total.detach(),
    'features': leaves[0].grad,
    **{f'prototypes {k}': x.grad for k, x in enumerate(leaves[1:])},
    **{f'features {k}': x for k, x in enumerate(alone)},
  }  # of one level's loss: the weights leave little of some in the total's
  return {k: seeded.pin(x.numpy()) for k, x in result.items()}


def main():
  rows = [f'{json.dumps(name)}: {json.dumps(pins(name))}' for name in seeded.HCAL]
  pathlib.Path(sys.argv[1]).write_text('{\n' + ',\n'.join(rows) + '\n}\n')


if __name__ == '__main__':
  main()
