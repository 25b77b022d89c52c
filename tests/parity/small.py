"""Small members of families whose smallest are too large to compute in each test run: the same code
as theirs with less depth and width. numpy only: the torch environment imports `TIMM`.
"""

# A narrow trunk with one block, as which each vision transformer is computed.
NARROW = {'embed_dim': 64, 'num_heads': 2}
# name: (timm's name, arguments of timm.create_model)
_VIT = {**NARROW, 'depth': 2, 'dynamic_img_size': True}
_SWIN = {'embed_dim': 32, 'depths': (2, 2, 1), 'num_heads': (2, 4, 8), 'drop_path_rate': 0.0}
TIMM = {
  'small_dinov2': ('vit_small_patch14_dinov2', {**_VIT, 'img_size': 56}),
  'small_reg4': ('vit_small_patch14_reg4_dinov2', {**_VIT, 'img_size': 56}),
  'small_dinov3': ('vit_small_patch16_dinov3', _VIT),
  'small_dinov3_plus': ('vit_small_plus_patch16_dinov3_qkvb', _VIT),
  'small_siglip': ('vit_large_patch16_siglip_512', {**_VIT, 'img_size': 64}),
  'small_clip': ('vit_base_patch16_clip_224', {**_VIT, 'img_size': 64}),
  'small_quickgelu': ('vit_base_patch16_clip_quickgelu_224', {**_VIT, 'img_size': 64}),
  'small_eva02': ('eva02_small_patch14_224', {**_VIT, 'img_size': 56}),
  'small_eva02_base': ('eva02_base_patch14_224', {**_VIT, 'img_size': 56}),
  'small_deit3': ('deit3_small_patch16_224', {**_VIT, 'img_size': 64}),
  'small_convnextv2': ('convnextv2_tiny', {'depths': (1, 1, 2, 1), 'dims': (16, 24, 32, 48)}),
  'small_resnet50d': ('resnet50d', {'layers': (1, 1, 2, 1)}),
  'small_resnext': ('resnext50_32x4d', {'layers': (1, 1, 2, 1)}),
  'small_efficientnetv2': ('efficientnetv2_s', {'depth_multiplier': 0.25}),
  'small_tf_efficientnetv2': ('tf_efficientnetv2_s', {'depth_multiplier': 0.25}),
  'small_qk_norm': ('vit_small_patch16_224', {**_VIT, 'img_size': 64, 'qk_norm': True}),
  'small_resnetrs': ('resnetrs50', {'layers': (1, 1, 2, 1)}),
  'small_swinv2': ('swinv2_tiny_window8_256', {**_SWIN, 'window_size': 8}),
  'small_swinv2_to16': ('swinv2_base_window12to16_192to256', {**_SWIN, 'window_size': 16}),
}


def scheme(name):
  """The naming scheme of timm's model: EVA's code has names of its own."""
  original = TIMM[name][0]
  return 'timm_eva' if 'eva' in original or 'dinov3' in original else 'timm'


def _backbones():
  """Our side of the same names, {name: Backbone}."""
  import dataclasses
  import functools

  from hierjax.models import registry
  from hierjax.models.backbones import (
    convnext,
    efficientnet_v2,
    mobilenet,
    resnet,
    swin,
    vit,
    vit_families,
  )

  rows = vit_families

  def small(options, patch, size=64, **more):
    return vit.backbone((64, 2, 2), patch, size, **{**options, **more})

  def small_swin(name, window, references):
    options = {'window': window, 'is_v2': True, 'references': references}
    make = functools.partial(swin.Swin, 'golden', **options)
    return dataclasses.replace(registry.BACKBONES[name], make=make, features=128)

  def shortened(name):
    backbone = registry.BACKBONES[name]
    make = functools.partial(backbone.make.func, v2, *backbone.make.args[1:])
    return dataclasses.replace(backbone, make=make)

  convnext.VARIANTS['v2_golden'] = ((1, 1, 2, 1), (16, 24, 32, 48), 0.0)
  resnet.DEPTHS['golden'] = (1, 1, 2, 1)
  swin.VARIANTS['golden'] = ((2, 2, 1), 32, 2, 0.0)
  v2 = mobilenet.parse_stages(efficientnet_v2.V2['s'][1], 24, 'silu', depth=0.25)

  return {
    'small_dinov2': small(rows.DINO_2, 14, 56),
    'small_reg4': small(rows.DINO_2 | rows.REGISTERS, 14, 56),
    'small_dinov3': small(rows.DINO_3, 16),
    'small_dinov3_plus': small(rows.DINO_3 | rows.PLUS, 16, biased='qv'),
    'small_siglip': small(rows.SIGLIP | rows.TANH, 16),
    'small_clip': small(rows.OPEN_CLIP, 16),
    'small_quickgelu': small(rows.OPEN_CLIP, 16, act='quick_gelu'),
    'small_eva02': small(rows.EVA_2_SMALL, 14, 56),
    'small_eva02_base': small(rows.EVA_2_BASE, 14, 56),
    'small_deit3': small(rows.DEIT_3, 16),
    'small_convnextv2': dataclasses.replace(
      registry.BACKBONES['convnextv2_tiny'],
      make=functools.partial(convnext.ConvNeXt, 'v2_golden'),
      features=48,
    ),
    'small_resnet50d': dataclasses.replace(
      registry.BACKBONES['resnet50d'], make=functools.partial(resnet.ResNet, 'golden', 'deep')
    ),
    'small_resnext': dataclasses.replace(
      registry.BACKBONES['resnext50_32x4d'],
      make=functools.partial(resnet.ResNet, 'golden', groups=32, group_width=4),
    ),
    'small_efficientnetv2': shortened('efficientnetv2_s'),
    'small_tf_efficientnetv2': shortened('tf_efficientnetv2_s'),
    'small_resnetrs': dataclasses.replace(
      registry.BACKBONES['resnetrs50'],
      make=functools.partial(resnet.ResNet, 'golden', 'deep', is_rs=True),
    ),
    'small_swinv2': small_swin('swinv2_tiny_window8_256', 8, swin.SAME),
    'small_swinv2_to16': small_swin('swinv2_base_window12to16_192to256', 16, swin.SMALLER),
    'small_qk_norm': small({}, 16, has_qk_norm=True),
  }


def __getattr__(name):
  if name == 'BACKBONES':
    globals()['BACKBONES'] = _backbones()
    return globals()['BACKBONES']
  raise AttributeError(name)
