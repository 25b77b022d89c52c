"""Makes tests/golden/timm_names.json with timm: what its models of our names hold, and how their
images are prepared. Nothing of their size is drawn or computed, so that the largest cost as little
as the others. Vision transformers are also made with one narrow block and all their other options.

usage: python tests/parity/make_timm_names.py OUT.json NAME...
"""

import json
import pathlib
import sys

import seeded
import small
import timm
import torch


def features(model, patch):
  """Pin of the features of seeded images of 2 x 3 patches, with seeded weights."""
  state = {
    k: torch.from_numpy(seeded.tensor(k, tuple(v.shape))) for k, v in model.state_dict().items()
  }
  model.load_state_dict(state)
  images = torch.from_numpy(seeded.images((2, 2 * patch, 3 * patch))).double().permute(0, 3, 1, 2)
  with torch.no_grad():
    return seeded.pin(model.double().eval()(images).numpy(), 8)


def entry(name):
  with torch.device('meta'):
    model = timm.create_model(name, num_classes=0)
  parameters = dict(model.named_parameters())
  weights = {
    k: seeded.linear(v.shape)
    for k, v in model.state_dict().items()
    if k in parameters or k.endswith(('running_mean', 'running_var'))
  }
  config = model.pretrained_cfg
  narrow = {}
  if hasattr(model, 'patch_embed') and hasattr(model, 'cls_token'):
    patch = model.patch_embed.patch_size[0]
    options = {'depth': 1, 'dynamic_img_size': True, **small.NARROW}
    narrow = {'narrow': features(timm.create_model(name, num_classes=0, **options), patch)}
  return {
    'params': sum(p.numel() for p in parameters.values()),
    'names': seeded.names_digest(weights),
    'features': model.head_hidden_size,
    'size': config['input_size'][1],
    'crop': config['crop_pct'],
    'interpolation': config['interpolation'],
    'mean': [round(255 * v, 4) for v in config['mean']],
    'std': [round(255 * v, 4) for v in config['std']],
    **narrow,
  }


if __name__ == '__main__':
  rows = [f'{json.dumps(name)}: {json.dumps(entry(name))}' for name in sorted(sys.argv[2:])]
  pathlib.Path(sys.argv[1]).write_text('{\n' + ',\n'.join(rows) + '\n}\n')
