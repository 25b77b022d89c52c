"""The vision transformers by timm's names, and torchvision's ViT-B/16."""

import dataclasses

from hierjax.models.backbone import CLIP, HALVES, IMAGENET
from hierjax.models.backbones import vit
from hierjax.models.backbones.vit import Rotary

# (width, depth, heads)
TRUNKS = {
  'tiny': (192, 12, 3),
  'small': (384, 12, 6),
  'small_plus': (384, 12, 6),
  'medium': (512, 12, 8),
  'base': (768, 12, 12),
  'large': (1024, 24, 16),
  'so400m': (1152, 27, 16),
  'huge': (1280, 32, 16),
}
# Fields of `vit.Style` and `vit.ViT` by the works that introduced them: Oquab et al. 2023,
# arXiv:2304.07193; Darcet et al. 2024, arXiv:2309.16588; Simeoni et al. 2025, arXiv:2508.10104.
DINO_2 = {'scale': 1e-5}
REGISTERS = {'registers': 4, 'has_prefix_positions': False}
DINO_3 = {'scale': 1e-5, 'eps': 1e-5, 'rotary': Rotary(100, None, True), 'grid': None}
DINO_3 |= {'registers': 4, 'pool': 'mean', 'biased': ''}
QKVB = DINO_3 | {'biased': 'qv'}
PLUS = {'gate': 'split', 'act': 'silu'}
# Zhai et al. 2023, arXiv:2303.15343; Tschannen et al. 2025, arXiv:2502.14786.
SIGLIP = {'has_class_token': False, 'pool': 'map'}
SO400M = SIGLIP | {'ratio': 3.7362}
TANH = {'act': 'gelu_tanh'}
# Radford et al. 2021, arXiv:2103.00020.
OPEN_CLIP = {'eps': 1e-5, 'has_pre_norm': True}
QUICK = OPEN_CLIP | {'act': 'quick_gelu'}
# Fang et al. 2023, arXiv:2303.11331.
EVA_2 = {'ratio': 4 * 2 / 3, 'act': 'silu', 'rotary': Rotary(1e4, 16, False), 'pool': 'mean'}
EVA_2 |= {'is_pooled_first': True, 'biased': 'qv'}
EVA_2_SMALL = EVA_2 | {'gate': 'packed'}
EVA_2_BASE = EVA_2 | {'gate': 'split', 'has_mlp_norm': True, 'is_split': True}
# Touvron et al. 2022, arXiv:2204.07118.
DEIT_3 = {'scale': 1e-6, 'has_prefix_positions': False}

SBL = ('small', 'base', 'large')
# (name with places for trunk and size, trunks, side of a patch in pixels, sides of the images,
# their normalisation, options)
FAMILIES = (
  ('vit_{0}_patch16_{1}', ('tiny', *SBL), 16, (224, 384), HALVES, {}),
  ('vit_{0}_patch32_{1}', ('small', 'base'), 32, (224, 384), HALVES, {}),
  ('vit_{0}_patch14_dinov2', SBL, 14, (518,), IMAGENET, DINO_2),
  ('vit_{0}_patch14_reg4_dinov2', SBL, 14, (518,), IMAGENET, DINO_2 | REGISTERS),
  ('vit_{0}_patch16_dinov3', SBL, 16, (256,), IMAGENET, DINO_3),
  ('vit_{0}_patch16_dinov3_qkvb', SBL, 16, (256,), IMAGENET, QKVB),
  ('vit_{0}_patch16_dinov3', ('small_plus',), 16, (256,), IMAGENET, DINO_3 | PLUS),
  ('vit_{0}_patch16_dinov3_qkvb', ('small_plus',), 16, (256,), IMAGENET, QKVB | PLUS),
  ('vit_{0}_patch16_siglip_{1}', ('base',), 16, (224, 256, 384, 512), HALVES, SIGLIP),
  ('vit_{0}_patch16_siglip_{1}', ('large',), 16, (256, 384), HALVES, SIGLIP),
  ('vit_{0}_patch16_siglip_{1}', ('large',), 16, (512,), HALVES, SIGLIP | TANH),
  ('vit_{0}_patch14_siglip_{1}', ('so400m',), 14, (224, 378, 384), HALVES, SO400M),
  ('vit_{0}_patch16_siglip_{1}', ('so400m',), 16, (256, 384, 512), HALVES, SO400M | TANH),
  ('vit_{0}_patch32_clip_{1}', ('base',), 32, (224, 256, 384), CLIP, OPEN_CLIP),
  ('vit_{0}_patch16_clip_{1}', ('base',), 16, (224, 384), CLIP, OPEN_CLIP),
  ('vit_{0}_patch14_clip_{1}', ('large', 'huge'), 14, (224, 336), CLIP, OPEN_CLIP),
  ('vit_{0}_patch16_clip_quickgelu_{1}', ('base',), 16, (224,), CLIP, QUICK),
  ('vit_{0}_patch14_clip_quickgelu_{1}', ('large',), 14, (224, 336), CLIP, QUICK),
  ('eva02_{0}_patch14_{1}', ('tiny', 'small'), 14, (224, 336), CLIP, EVA_2_SMALL),
  ('eva02_{0}_patch14_{1}', ('base', 'large'), 14, (224, 448), CLIP, EVA_2_BASE),
  ('deit3_{0}_patch16_{1}', SBL, 16, (224, 384), IMAGENET, DEIT_3),
  ('deit3_{0}_patch16_{1}', ('medium',), 16, (224,), IMAGENET, DEIT_3),
)

_B_16 = vit.backbone(TRUNKS['base'], 16, 224, initial=vit.TORCHVISION_INITIAL, is_antialiased=False)
BACKBONES = {
  'vit_b_16': dataclasses.replace(
    _B_16,
    torch_names={'torchvision': vit.torchvision_name, **_B_16.torch_names},
    # In torch's MultiheadAttention these are no modules that are called, so thop does not count
    # them.
    uncounted=r'.*/attn/(qkv|proj)',
  )
} | {
  name.format(trunk, size): vit.backbone(TRUNKS[trunk], patch, size, colors, **options)
  for name, trunks, patch, sizes, colors, options in FAMILIES
  for trunk in trunks
  for size in sizes
}
