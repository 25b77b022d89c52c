"""EfficientNetV2 and MobileNetV4's convolutional nets as in timm, in `mobilenet`'s notation.

Tan and Le 2021, arXiv:2104.00298; Qin et al. 2024, arXiv:2404.10518.
"""

import functools

import flax.linen as nn

from hierjax.models.backbone import HALVES, IMAGENET, Backbone, Colors
from hierjax.models.backbones import mobilenet
from hierjax.models.backbones.mobilenet import MobileNet, Style, parse_stages, round_channels
from hierjax.models.initializers import fan_out

# name: (channels of the stem, stages)
V2 = {
  'b': (32, 'cn_r1_k3_s1_e1_c16_skip er_r2_k3_s2_e4_c32 er_r2_k3_s2_e4_c48 '
   'ir_r3_k3_s2_e4_c96_se ir_r5_k3_s1_e6_c112_se ir_r8_k3_s2_e6_c192_se'),
  's': (24, 'cn_r2_k3_s1_e1_c24_skip er_r4_k3_s2_e4_c48 er_r4_k3_s2_e4_c64 '
   'ir_r6_k3_s2_e4_c128_se ir_r9_k3_s1_e6_c160_se ir_r15_k3_s2_e6_c256_se'),
  'm': (24, 'cn_r3_k3_s1_e1_c24_skip er_r5_k3_s2_e4_c48 er_r5_k3_s2_e4_c80 ir_r7_k3_s2_e4_c160_se '
   'ir_r14_k3_s1_e6_c176_se ir_r18_k3_s2_e6_c304_se ir_r5_k3_s1_e6_c512_se'),
  'l': (32, 'cn_r4_k3_s1_e1_c32_skip er_r7_k3_s2_e4_c64 er_r7_k3_s2_e4_c96 '
   'ir_r10_k3_s2_e4_c192_se ir_r19_k3_s1_e6_c224_se ir_r25_k3_s2_e6_c384_se '
   'ir_r7_k3_s1_e6_c640_se'),
}  # fmt: skip
# name: (size of the images, channels of the stem, stages, of which + joins parts)
V4 = {
  'small': (224, 32, 'cn_r1_k3_s2_c32+cn_r1_k1_s1_c32 cn_r1_k3_s2_c96+cn_r1_k1_s1_c64 '
   'uir_r1_a5_k5_s2_e3_c96+uir_r4_k3_s1_e2_c96+uir_r1_a3_k0_s1_e4_c96 '
   'uir_r1_a3_k3_s2_e6_c128+uir_r1_a5_k5_s1_e4_c128+uir_r1_k5_s1_e4_c128+uir_r1_k5_s1_e3_c128+'
   'uir_r2_k3_s1_e4_c128 cn_r1_k1_s1_c960'),
  'medium': (256, 32, 'er_r1_k3_s2_e4_c48 uir_r1_a3_k5_s2_e4_c80+uir_r1_a3_k3_s1_e2_c80 '
   'uir_r1_a3_k5_s2_e6_c160+uir_r2_a3_k3_s1_e4_c160+uir_r1_a3_k5_s1_e4_c160+'
   'uir_r1_a3_k3_s1_e4_c160+uir_r1_a3_k0_s1_e4_c160+uir_r1_k0_s1_e2_c160+uir_r1_a3_k0_s1_e4_c160 '
   'uir_r1_a5_k5_s2_e6_c256+uir_r1_a5_k5_s1_e4_c256+uir_r2_a3_k5_s1_e4_c256+uir_r1_k0_s1_e4_c256+'
   'uir_r1_a3_k0_s1_e4_c256+uir_r1_a3_k5_s1_e2_c256+uir_r1_a5_k5_s1_e4_c256+uir_r2_k0_s1_e4_c256+'
   'uir_r1_a5_k0_s1_e2_c256 cn_r1_k1_s1_c960'),
}  # fmt: skip


TORCH_NAMES = {'timm': mobilenet.timm_name}


def _v2(
  name: str, size: int, colors: Colors, is_same: bool, width: float = 1.0, depth: float = 1.0
) -> Backbone:
  """Describe an EfficientNetV2; those with the padding of TensorFlow have its eps, too."""
  stem, text = V2[name]
  stem = round_channels(stem * width, 0)
  style = Style(is_same, 1e-3 if is_same else 1e-5, excite=('silu', nn.sigmoid), initial=fan_out)
  head = round_channels(1280 * width, 0)
  stages = parse_stages(text, stem, 'silu', width, depth)
  make = functools.partial(MobileNet, stages, style, 'silu', stem, head)
  return Backbone(make, head, *colors, size=size, torch_names=TORCH_NAMES)


BACKBONES = {
  'efficientnetv2_s': _v2('s', 288, IMAGENET, False),
  'efficientnetv2_m': _v2('m', 320, IMAGENET, False),
  'efficientnetv2_l': _v2('l', 384, IMAGENET, False),
  'tf_efficientnetv2_s': _v2('s', 300, HALVES, True),
  'tf_efficientnetv2_m': _v2('m', 384, HALVES, True),
  'tf_efficientnetv2_l': _v2('l', 384, HALVES, True),
  'tf_efficientnetv2_b0': _v2('b', 192, IMAGENET, True),
  'tf_efficientnetv2_b1': _v2('b', 192, IMAGENET, True, 1.0, 1.1),
  'tf_efficientnetv2_b2': _v2('b', 208, IMAGENET, True, 1.1, 1.2),
  'tf_efficientnetv2_b3': _v2('b', 240, HALVES, True, 1.2, 1.4),
}
for name, (size, stem, text) in V4.items():
  parts = parse_stages(text, stem, 'relu'), Style(initial=fan_out), 'relu', stem
  make = functools.partial(MobileNet, *parts, is_pooled_first=True)
  BACKBONES[f'mobilenetv4_conv_{name}'] = Backbone(make, 1280, size=size, torch_names=TORCH_NAMES)
