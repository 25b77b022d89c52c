"""The peer of train_step.py: a step of timm's or torchvision's model, with torch on the CPU.

usage: timm_step.py MODEL BATCH SIZE [--heads 49 9 196] [--mode train|infer] [--steps 5]

MODEL is a name of torchvision, or timm:NAME. Prints one JSON line, as train_step.py does. Run it by
a Python that has torch, torchvision and timm; it needs nothing of hierjax.
"""

import argparse
import json
import time

import timm
import torch
import torchvision
from torch import nn


def trunk(name: str, size: int) -> tuple[nn.Module, int]:
  """Return a model without its classifier, for images of a size, and the width of its features."""
  if name.startswith('timm:'):
    try:
      model = timm.create_model(name[5:], num_classes=0, img_size=size)
    except TypeError:  # takes images of any size
      model = timm.create_model(name[5:], num_classes=0)
    return model, getattr(model, 'head_hidden_size', model.num_features)
  model = torchvision.models.get_model(name, weights=None)
  last = next(part for part in ('fc', 'classifier', 'head') if hasattr(model, part))
  classifier = getattr(model, last)
  if isinstance(classifier, nn.Sequential):
    width, classifier[-1] = classifier[-1].in_features, nn.Identity()
  else:
    width = classifier.in_features
    setattr(model, last, nn.Identity())
  return model, width


def parse_arguments() -> argparse.Namespace:
  """Return the command line's arguments."""
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('model')
  p.add_argument('batch', type=int)
  p.add_argument('size', type=int)
  p.add_argument('--mode', choices=('train', 'infer'), default='train')
  p.add_argument('--heads', type=int, nargs='*', default=[1000])
  p.add_argument('--steps', type=int, default=5)
  return p.parse_args()


def build(a: argparse.Namespace):
  """Return the step that is timed."""
  torch.manual_seed(0)
  model, width = trunk(a.model, a.size)
  model = model.to(memory_format=torch.channels_last).train(a.mode == 'train')
  heads = nn.ModuleList(nn.Linear(width, c) for c in a.heads)
  image = torch.rand(a.batch, 3, a.size, a.size).contiguous(memory_format=torch.channels_last)
  labels = [torch.arange(a.batch) % c for c in a.heads]
  optimizer = torch.optim.Adam([*model.parameters(), *heads.parameters()], 1e-4)

  def train():
    x = model(image)
    loss = sum(nn.functional.cross_entropy(head(x), y) for head, y in zip(heads, labels))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()

  @torch.inference_mode()
  def infer():
    x = model(image)
    return [head(x) for head in heads[:1]]

  return train if a.mode == 'train' else infer


def main():
  """Time the steps and print the line."""
  a = parse_arguments()
  step, times = build(a), []
  for _ in range(a.steps + 2):
    begin = time.perf_counter()
    step()
    times.append(time.perf_counter() - begin)
  times = sorted(times[2:])
  median = times[len(times) // 2]
  row = {'median_s': round(median, 4), 'least_s': round(times[0], 4)}
  versions = {'torch': torch.__version__, 'timm': timm.__version__}
  print(json.dumps({**versions, **vars(a), **row, 'images_per_s': round(a.batch / median, 2)}))


if __name__ == '__main__':
  main()
