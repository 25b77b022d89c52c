"""Write tests/golden/layer_decay.json: how many units of depth timm counts above each parameter.

python tests/parity/make_layer_decay.py     with timm and torch
"""

import json
import math
import pathlib

import timm
from timm.optim import param_groups_layer_decay

NAMES = (
  'vit_small_patch16_224',
  'convnext_tiny',
  'swin_tiny_patch4_window7_224',
  'resnet50',
  'efficientnet_lite0',
  'regnety_016',
)
GOLDEN = pathlib.Path(__file__).resolve().parents[1] / 'golden' / 'layer_decay.json'


def units(name: str) -> list[list[str]]:
  """The parameters of timm's model beside the heads, then those of each unit below."""
  model = timm.create_model(name)
  names = {id(p): n for n, p in model.named_parameters()}
  groups = {}
  for group in param_groups_layer_decay(model, layer_decay=0.5):
    depth = round(-math.log2(group['lr_scale']))
    groups.setdefault(depth, []).extend(names[id(p)] for p in group['params'])
  return [sorted(groups.get(depth, [])) for depth in range(max(groups) + 1)]


if __name__ == '__main__':
  golden = {name: units(name) for name in NAMES}
  rows = [f'{json.dumps(name)}: {json.dumps(units)}' for name, units in golden.items()]
  GOLDEN.write_text('{\n' + ',\n'.join(rows) + '\n}' + '\n')
