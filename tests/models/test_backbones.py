"""Counts, names, shapes, initialisation, kernels of whole trunks; test_parity has torch."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import ours, small

from hierjax.core.errors import UserError
from hierjax.models import compute, functional, initializers, registry
from hierjax.models.backbones import densenet, resnet, swin, vit
from hierjax.models.compute import Compute

# (parameters, running means and variances) of the trunk: torchvision 0.29.1's models without fc or
# the last linear of the classifier; timm 1.0.31's tf_efficientnet_lite* with num_classes=0.
COUNTS = {
  'resnet18': (11176512, 9600),
  'resnet34': (21284672, 17024),
  'resnet50': (23508032, 53120),
  'resnet101': (42500160, 105344),
  'resnet152': (58143808, 151424),
  'convnext_tiny': (27820128, 0),
  'convnext_small': (49454688, 0),
  'convnext_base': (87566464, 0),
  'convnext_large': (196230336, 0),
  'densenet121': (6953856, 83648),
  'densenet161': (26472000, 219936),
  'densenet169': (12484480, 158400),
  'densenet201': (18092928, 229056),
  'vgg11': (128766336, 0),
  'vgg16': (134260544, 0),
  'resnet18_32px': (11300160, 9600),
  'advanced_cnn': (11176512, 9600),
  'mobilenet_v2': (2223872, 34112),
  'mobilenet_v3_large': (4202032, 24400),
  'efficientnet_b0': (4007548, 42016),
  'efficientnet_b1': (6513184, 62048),
  'efficientnet_b2': (7700994, 67568),
  'efficientnet_b3': (10696232, 87296),
  'efficientnet_b4': (17548616, 125200),
  'efficientnet_b5': (28340784, 172736),
  'efficientnet_b6': (40735704, 224432),
  'efficientnet_b7': (63786960, 310720),
  'efficientnet_lite0': (3371008, 42016),
  'efficientnet_lite1': (4135680, 53664),
  'efficientnet_lite2': (4811072, 58096),
  'efficientnet_lite3': (6916096, 76672),
  'efficientnet_lite4': (11725568, 112368),
  'maxvit_t': (30407624, 47616),
  'swin_t': (27519354, 0),
  'swin_s': (48837258, 0),
  'swin_b': (86743224, 0),
  'vit_b_16': (85798656, 0),
}
TIMM = ours.timm_names()
NAMES = [  # backbone, scheme, ours, the state dict's
  ('resnet50', 'torchvision', 'conv1', 'conv1'),
  ('resnet50', 'torchvision', 'layer2_3/bn2', 'layer2.3.bn2'),
  ('resnet152', 'timm', 'layer3_35/conv3', 'layer3.35.conv3'),
  ('resnet18', 'torchvision', 'layer4_0/downsample_1', 'layer4.0.downsample.1'),
  ('convnext_tiny', 'torchvision', 'stem_1', 'features.0.1'),
  ('convnext_base', 'torchvision', 'stages_2_blocks_26', 'features.5.26'),
  ('convnext_base', 'torchvision', 'stages_2_blocks_26/fc2', 'features.5.26.block.5'),
  ('convnext_tiny', 'torchvision', 'stages_3_downsample_0', 'features.6.0'),
  ('convnext_tiny', 'torchvision', 'head_norm', 'classifier.0'),
  ('convnext_tiny', 'timm', 'stem_0', 'stem.0'),
  ('convnext_tiny', 'timm', 'stages_1_downsample_1', 'stages.1.downsample.1'),
  ('convnext_tiny', 'timm', 'stages_2_blocks_8/fc1', 'stages.2.blocks.8.mlp.fc1'),
  ('convnext_tiny', 'timm', 'head_norm', 'head.norm'),
  ('convnext_tiny', 'timm', 'stages_2_blocks_8/conv_dw', 'stages.2.blocks.8.conv_dw'),
  ('efficientnet_lite0', 'timm', 'conv_stem', 'conv_stem'),
  ('efficientnet_lite0', 'timm', 'blocks_6_0/conv_pwl', 'blocks.6.0.conv_pwl'),
  ('efficientnet_lite0', 'package', 'bn1', '_bn0'),
  ('efficientnet_lite0', 'package', 'bn2', '_bn1'),
  ('efficientnet_lite0', 'package', 'conv_head', '_conv_head'),
  ('efficientnet_lite0', 'package', 'blocks_0_0/conv_pw', '_blocks.0._project_conv'),
  ('efficientnet_lite0', 'package', 'blocks_0_0/bn1', '_blocks.0._bn1'),
  ('efficientnet_lite0', 'package', 'blocks_2_1/conv_pw', '_blocks.4._expand_conv'),
  ('efficientnet_lite0', 'package', 'blocks_6_0/bn1', '_blocks.15._bn0'),
  ('efficientnet_lite0', 'package', 'blocks_6_0/bn3', '_blocks.15._bn2'),
  ('efficientnet_lite4', 'package', 'blocks_6_0/conv_dw', '_blocks.29._depthwise_conv'),
  (
    'densenet121',
    'torchvision',
    'denseblock1_denselayer1/norm1',
    'features.denseblock1.denselayer1.norm1',
  ),
  (
    'densenet201',
    'torchvision',
    'denseblock3_denselayer48/conv2',
    'features.denseblock3.denselayer48.conv2',
  ),
  ('densenet121', 'timm', 'transition1_norm', 'features.transition1.norm'),
  ('densenet121', 'torchvision_old', 'norm5', 'features.norm5'),
  ('densenet121', 'torchvision_old', 'conv0', 'features.conv0'),
  ('densenet121', 'torchvision_old', 'transition3_conv', 'features.transition3.conv'),
  (
    'densenet121',
    'torchvision_old',
    'denseblock1_denselayer1/norm1',
    'features.denseblock1.denselayer1.norm.1',
  ),
  (
    'densenet121',
    'torchvision_old',
    'denseblock4_denselayer16/conv2',
    'features.denseblock4.denselayer16.conv.2',
  ),
  ('vgg11', 'torchvision', 'stage4/features_18', 'features.18'),
  ('vgg16', 'torchvision', 'stage2/features_14', 'features.14'),
  ('vgg16', 'torchvision', 'fc1', 'classifier.0'),
  ('vgg16', 'torchvision', 'fc2', 'classifier.3'),
  ('vgg11', 'timm', 'fc2', 'pre_logits.fc2'),
  ('vgg11', 'timm', 'stem/features_0', 'features.0'),
  ('resnet18_32px', 'torchvision', 'fc', 'fc'),
  ('mobilenet_v2', 'torchvision', 'blocks_0_0/conv_dw', 'features.1.conv.0.0'),
  ('mobilenet_v2', 'torchvision', 'blocks_0_0/bn2', 'features.1.conv.2'),
  ('mobilenet_v2', 'torchvision', 'blocks_2_1/bn2', 'features.5.conv.1.1'),
  ('mobilenet_v2', 'torchvision', 'blocks_6_0/conv_pwl', 'features.17.conv.2'),
  ('mobilenet_v2', 'torchvision', 'bn2', 'features.18.1'),
  ('mobilenet_v2', 'timm', 'blocks_3_3/conv_pwl', 'blocks.3.3.conv_pwl'),
  ('mobilenet_v3_large', 'torchvision', 'blocks_0_0/bn2', 'features.1.block.1.1'),
  ('mobilenet_v3_large', 'torchvision', 'blocks_2_0/se/conv_expand', 'features.4.block.2.fc2'),
  ('mobilenet_v3_large', 'torchvision', 'blocks_5_2/bn3', 'features.15.block.3.1'),
  ('mobilenet_v3_large', 'torchvision', 'conv_head', 'features.16.0'),
  ('mobilenet_v3_large', 'torchvision', 'classifier_0', 'classifier.0'),
  ('efficientnet_b0', 'torchvision', 'bn1', 'features.0.1'),
  ('efficientnet_b0', 'torchvision', 'blocks_0_0/se/conv_reduce', 'features.1.0.block.1.fc1'),
  ('efficientnet_b7', 'torchvision', 'blocks_6_3/conv_pwl', 'features.7.3.block.3.0'),
  ('efficientnet_b0', 'torchvision', 'bn2', 'features.8.1'),
  ('efficientnet_b0', 'timm', 'blocks_0_0/se/conv_reduce', 'blocks.0.0.se.conv_reduce'),
  ('efficientnet_b4', 'timm', 'conv_head', 'conv_head'),
  ('maxvit_t', 'torchvision', 'stem_2', 'stem.1.0'),
  (
    'maxvit_t',
    'torchvision',
    'blocks_2_4/MBconv/conv_b_1',
    'blocks.2.layers.4.layers.MBconv.layers.conv_b.1',
  ),
  ('maxvit_t', 'torchvision', 'blocks_0_0/MBconv/proj', 'blocks.0.layers.0.layers.MBconv.proj.1'),
  (
    'maxvit_t',
    'torchvision',
    'blocks_1_1/MBconv/squeeze_excitation/fc2',
    'blocks.1.layers.1.layers.MBconv.layers.squeeze_excitation.fc2',
  ),
  (
    'maxvit_t',
    'torchvision',
    'blocks_3_1/grid_attention/attn/proj',
    'blocks.3.layers.1.layers.grid_attention.attn_layer.1.merge',
  ),
  (
    'maxvit_t',
    'torchvision',
    'blocks_3_1/window_attention/norm2',
    'blocks.3.layers.1.layers.window_attention.mlp_layer.0',
  ),
  ('maxvit_t', 'torchvision', 'head_fc', 'classifier.3'),
  ('swin_t', 'torchvision', 'stages_2_blocks_5/attn/qkv', 'features.5.5.attn.qkv'),
  ('swin_b', 'torchvision', 'stages_3_downsample/reduction', 'features.6.reduction'),
  ('swin_t', 'torchvision', 'stem_1', 'features.0.2'),
  ('swin_t', 'torchvision', 'stages_0_blocks_1/fc2', 'features.1.1.mlp.3'),
  ('swin_s', 'timm', 'stages_2_blocks_17/fc1', 'layers.2.blocks.17.mlp.fc1'),
  ('swin_t', 'timm', 'stages_1_downsample/norm', 'layers.1.downsample.norm'),
  ('swin_t', 'timm', 'stem_0', 'patch_embed.proj'),
  ('vit_b_16', 'torchvision', 'blocks_11_norm1', 'encoder.layers.encoder_layer_11.ln_1'),
  ('vit_b_16', 'torchvision', 'norm', 'encoder.ln'),
  (
    'vit_b_16',
    'torchvision',
    'blocks_0/attn/qkv',
    'encoder.layers.encoder_layer_0.self_attention.in_proj_',
  ),
  (
    'vit_b_16',
    'torchvision',
    'blocks_0/attn/proj',
    'encoder.layers.encoder_layer_0.self_attention.out_proj',
  ),
  ('vit_b_16', 'timm', 'blocks_3_norm1', 'blocks.3.norm1'),
  ('vit_b_16', 'timm', 'blocks_3/attn/qkv', 'blocks.3.attn.qkv'),
  ('vit_b_16', 'timm', 'conv_proj', 'patch_embed.proj'),
  ('vit_b_16', 'timm', 'blocks_3/fc2', 'blocks.3.mlp.fc2'),
]


# Names and shapes of all are pinned in test_parity.py, which each variable's count and name follow
# from; one of each family is counted here in each run, the others by `make test-slow`.
QUICK = (
  'resnet50',
  'convnext_tiny',
  'densenet121',
  'vgg11',
  'resnet18_32px',
  'advanced_cnn',
  'mobilenet_v3_large',
  'efficientnet_b0',
  'efficientnet_lite0',
  'maxvit_t',
  'swin_t',
  'vit_b_16',
)
shapes = ours.shapes


def cases(rows):
  """Return the parameters of a test, a backbone's name first; those not in QUICK are slow."""
  rows = [row if isinstance(row, tuple) else (row,) for row in rows]
  return [pytest.param(*r, marks=() if r[0] in QUICK else pytest.mark.slow) for r in rows]


def modules(tree):
  """Paths of the modules that own arrays."""
  return {
    '/'.join(k.key for k in path[:-1]) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def count(name):
  return tuple(
    sum(x.size for x in jax.tree.leaves(shapes(name).get(k, {}))) for k in ('params', 'batch_stats')
  )


def test_every_backbone_is_counted():
  """Each by a count here or by an entry of what timm has under its name."""
  assert set(COUNTS) | set(TIMM) == set(registry.BACKBONES)


# Without classifier.
LISTED = {
  'vit_small_patch14_dinov2': 22_056_192,
  'vit_small_patch14_reg4_dinov2': 22_057_344,
  'vit_small_patch16_dinov3': 21_586_944,
  'vit_base_patch16_siglip_224': 92_884_224,
  'vit_base_patch16_clip_224': 85_799_424,
  'vit_large_patch14_clip_224': 303_179_776,
  'eva02_small_patch14_224': 21_621_120,
  'convnextv2_tiny': 27_866_496,
  'tf_efficientnetv2_s': 20_177_488,
  'mobilenetv4_conv_small': 2_493_024,
  'regnety_016': 10_313_430,
  'resnet50d': 23_527_264,
  'swinv2_tiny_window8_256': 27_578_154,
}


@pytest.mark.parametrize('name', LISTED)
def test_parameters_that_timm_1_0_31_has(name):
  assert count(name)[0] == TIMM[name]['params'] == LISTED[name]


@pytest.mark.parametrize('name', TIMM)
def test_images_are_prepared_as_timm_does(name):
  spec, entry = registry.BACKBONES[name], TIMM[name]
  assert (spec.size, spec.features) == (entry['size'], entry['features'])
  # timm's default of these two is a fine-tuned model; OpenAI's and open_clip's files have CLIP's.
  if name not in ('vit_large_patch14_clip_224', 'vit_large_patch14_clip_336'):
    np.testing.assert_allclose((*spec.mean, *spec.std), (*entry['mean'], *entry['std']), atol=1e-3)


@pytest.mark.parametrize('name', cases(COUNTS))
def test_parameter_counts_are_the_originals(name):
  assert count(name) == COUNTS[name]


def test_parameter_counts_of_the_papers():
  assert count('resnet18_32px')[0] == 11300160  # S2
  assert (
    count('advanced_cnn')[0] + (512 + 1) * 10 == 11181642
  )  # S4, with its linear layer to 10 classes


@pytest.mark.parametrize('name', cases(COUNTS))
def test_torch_names_are_one_to_one(name):
  ours = modules(shapes(name)['params'])
  for scheme, rename in registry.BACKBONES[name].torch_names.items():
    expected = {rename(m) for m in ours}
    assert len(expected) == len(ours), scheme
    assert not any('/' in t for t in expected), scheme


@pytest.mark.parametrize('name,scheme,ours,expected', cases(NAMES))
def test_torch_names(name, scheme, ours, expected):
  assert ours in modules(shapes(name)['params'])
  assert registry.BACKBONES[name].torch_names[scheme](ours) == expected


@pytest.mark.parametrize(
  'name,kwargs,size,want',
  [
    (
      'resnet50',
      {},
      64,
      {
        'stem': (32, 64),
        'stage1': (16, 256),
        'stage2': (8, 512),
        'stage3': (4, 1024),
        'stage4': (2, 2048),
        'features': (2, 2048),
      },
    ),
    (
      'resnet18',
      {'stem': 'small'},
      32,
      {
        'stem': (32, 64),
        'stage1': (32, 64),
        'stage2': (16, 128),
        'stage3': (8, 256),
        'stage4': (4, 512),
        'features': (4, 512),
      },
    ),
    (
      'convnext_tiny',
      {},
      64,
      {
        'stem': (16, 96),
        'stage1': (16, 96),
        'stage2': (8, 192),
        'stage3': (4, 384),
        'stage4': (2, 768),
        'features': (2, 768),
      },
    ),
    (
      'efficientnet_lite2',
      {},
      72,
      {
        'stem': (36, 32),
        'stage1': (18, 24),
        'stage2': (9, 48),
        'stage3': (5, 120),
        'stage4': (3, 352),
        'features': (3, 1280),
      },
    ),
    (
      'densenet121',
      {},
      75,
      {
        'stem': (38, 64),
        'stage1': (19, 256),
        'stage2': (9, 512),
        'stage3': (4, 1024),
        'stage4': (2, 1024),
        'features': (2, 1024),
      },
    ),
    (
      'vgg16',
      {},
      45,
      {
        'stem': (22, 64),
        'stage1': (11, 128),
        'stage2': (5, 256),
        'stage3': (2, 512),
        'stage4': (1, 512),
        'features': (1, 512),
      },
    ),
    (
      'resnet18_32px',
      {},
      30,
      {
        'stem': (30, 64),
        'stage1': (30, 64),
        'stage2': (15, 128),
        'stage3': (8, 256),
        'stage4': (4, 512),
        'features': (4, 512),
      },
    ),
    (
      'mobilenet_v2',
      {},
      75,
      {
        'stem': (38, 32),
        'stage1': (19, 24),
        'stage2': (10, 32),
        'stage3': (5, 96),
        'stage4': (3, 320),
        'features': (3, 1280),
      },
    ),
    (
      'mobilenet_v3_large',
      {},
      64,
      {
        'stem': (32, 16),
        'stage1': (16, 24),
        'stage2': (8, 40),
        'stage3': (4, 112),
        'stage4': (2, 160),
        'features': (2, 960),
      },
    ),
    (
      'efficientnet_b0',
      {},
      17,
      {
        'stem': (9, 32),
        'stage1': (5, 24),
        'stage2': (3, 40),
        'stage3': (2, 112),
        'stage4': (1, 320),
        'features': (1, 1280),
      },
    ),
    (
      'maxvit_t',
      {},
      448,
      {
        'stem': (224, 64),
        'stage1': (112, 64),
        'stage2': (56, 128),
        'stage3': (28, 256),
        'stage4': (14, 512),
        'features': (14, 512),
      },
    ),
    (
      'swin_s',
      {},
      75,
      {
        'stem': (18, 96),
        'stage1': (18, 96),
        'stage2': (9, 192),
        'stage3': (5, 384),
        'stage4': (3, 768),
        'features': (3, 768),
      },
    ),
    (
      'vit_b_16',
      {},
      96,
      {
        'stem': (6, 768),
        'stage1': (6, 768),
        'stage2': (6, 768),
        'stage3': (6, 768),
        'stage4': (6, 768),
        'features': (6, 768),
      },
    ),
  ],
)
def test_endpoints(name, kwargs, size, want):
  """In bfloat16, which the maps have and the features have not; float32 is test_parity's."""
  backbone = registry.BACKBONES[name]
  module = backbone.build(Compute(jnp.bfloat16), **kwargs)
  x, ends = jax.eval_shape(
    lambda: module.init_with_output(
      {'params': jax.random.key(0)}, jnp.zeros((2, size, size, 3), jnp.bfloat16)
    )
  )[0]
  assert (x.shape, x.dtype) == ((2, backbone.features), jnp.float32)
  assert {k: v.shape for k, v in ends.items()} == {k: (2, n, n, c) for k, (n, c) in want.items()}
  assert {v.dtype for v in ends.values()} == {jnp.dtype(jnp.bfloat16)}


def test_initialisation_is_the_seed_s_and_has_the_originals_distributions():
  lite = registry.BACKBONES['efficientnet_lite0'].build()
  a, b, c = (initializers.init(lite, seed) for seed in (0, 0, 1))
  assert jax.tree.all(jax.tree.map(np.array_equal, a, b))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), a) == jax.tree.map(
    lambda x: (x.shape, x.dtype), shapes('efficientnet_lite0')
  )
  assert not np.array_equal(a['params']['conv_head']['kernel'], c['params']['conv_head']['kernel'])

  def check(kernel, std):
    tol = 5 / np.sqrt(2 * kernel.size)
    assert abs(kernel.std() / std - 1) < tol and abs(kernel.mean() / std) < 2 * tol

  check(a['params']['conv_head']['kernel'], np.sqrt(2 / 1280))  # fan_out: k * k * out
  check(a['params']['blocks_5_1']['conv_dw']['kernel'], np.sqrt(2 / 25))  # per group: one output
  check(a['params']['conv_stem']['kernel'], np.sqrt(2 / (9 * 32)))
  assert (a['params']['bn1']['scale'] == 1).all() and (a['params']['bn1']['bias'] == 0).all()
  assert (a['batch_stats']['bn1']['mean'] == 0).all() and (
    a['batch_stats']['bn1']['var'] == 1
  ).all()
  convnext = initializers.init(registry.BACKBONES['convnext_tiny'].build(), 0)['params']
  check(convnext['stages_2_blocks_3']['fc1']['kernel'], 0.02)
  check(convnext['stages_2_blocks_3']['conv_dw']['kernel'], 0.02)
  np.testing.assert_array_equal(convnext['stages_2_blocks_3']['gamma'], np.float32(1e-6))
  mobilenet = initializers.init(registry.BACKBONES['mobilenet_v3_large'].build(), 0)['params']
  check(
    mobilenet['blocks_5_1']['conv_dw']['kernel'], np.sqrt(2 / (25 * 960))
  )  # torchvision's: all channels
  check(mobilenet['blocks_5_1']['se']['conv_reduce']['kernel'], np.sqrt(2 / 240))
  check(mobilenet['classifier_0']['kernel'], 0.01)
  assert (mobilenet['blocks_5_1']['se']['conv_reduce']['bias'] == 0).all()
  check(
    initializers.init(registry.BACKBONES['efficientnet_b0'].build(), 0)['params']['blocks_5_1'][
      'conv_dw'
    ]['kernel'],
    np.sqrt(2 / (25 * 1152)),
  )
  dense = initializers.init(registry.BACKBONES['densenet121'].build(), 0)['params']
  check(dense['denseblock3_denselayer9']['conv2']['kernel'], np.sqrt(2 / (9 * 128)))  # fan_in
  check(dense['transition1_conv']['kernel'], np.sqrt(2 / 256))
  vgg = initializers.init(registry.BACKBONES['vgg11'].build(), 0)['params']
  check(vgg['fc2']['kernel'], 0.01)
  check(vgg['stage2']['features_6']['kernel'], np.sqrt(2 / (9 * 256)))
  assert (vgg['stem']['features_0']['bias'] == 0).all()
  fc = initializers.init(registry.BACKBONES['resnet18_32px'].build(), 0)['params']['fc']
  for x in fc.values():
    assert (
      0.98 < abs(x).max() * np.sqrt(512) <= 1 and abs(x.std() * np.sqrt(512 * 3) - 1) < 0.1
    )  # uniform on +-1/sqrt(512)
  swin = initializers.init(registry.BACKBONES['swin_t'].build(), 0)['params']
  for x in swin['stem_0'].values():
    assert (
      0.97 < abs(x).max() * np.sqrt(48) <= 1 and abs(x.std() * np.sqrt(48 * 3) - 1) < 0.1
    )  # uniform on +-1/sqrt(48)
  check(swin['stages_2_blocks_3']['attn']['qkv']['kernel'], 0.02)
  check(swin['stages_2_blocks_3']['attn']['relative_position_bias_table'], 0.02)
  swin_v2 = initializers.init(small.BACKBONES['small_swinv2'].build(), 0)['params']
  block = swin_v2['stages_1_blocks_1']
  assert not any(abs(block[name]['scale']).any() for name in ('norm1', 'norm2'))
  np.testing.assert_allclose(block['attn']['logit_scale'], np.log(10))
  vit = initializers.init(registry.BACKBONES['vit_b_16'].build(), 0)['params']
  check(vit['pos_embedding'], 0.02)
  check(vit['conv_proj']['kernel'], 1 / np.sqrt(768))
  for kernel, bound in (
    (vit['blocks_0']['attn']['qkv']['kernel'], np.sqrt(6 / (4 * 768))),
    (vit['blocks_0']['attn']['proj']['kernel'], 1 / np.sqrt(768)),
  ):
    assert (
      0.999 < abs(kernel).max() / bound <= 1 and abs(kernel.std() * np.sqrt(3) / bound - 1) < 0.01
    )
  check(vit['blocks_0']['fc1']['bias'], 1e-6)
  check(
    initializers.init(registry.BACKBONES['maxvit_t'].build(), 0)['params']['blocks_1_0']['MBconv'][
      'conv_b_0'
    ]['kernel'],
    0.02,
  )


@pytest.mark.parametrize(
  'name,size',
  [
    ('resnet18', 32),
    pytest.param('efficientnet_lite0', 64, marks=pytest.mark.slow),
    pytest.param('convnext_tiny', 32, marks=pytest.mark.slow),
    ('mobilenet_v3_large', 64),
    ('swin_t', 40),
  ],
)
def test_whole_trunks_agree_with_both_kernels(name, size):
  """Features and running statistics in training; the gradients are tested layer by layer."""
  module = registry.BACKBONES[name].build()
  variables = initializers.init(module, 0)
  x = np.random.default_rng(0).standard_normal((4, size, size, 3), 'f4')

  def run(module, variables, x):
    (y, _), new = module.apply(
      variables, x, True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(1)}
    )
    return y, new

  outs = {}
  for kind in ('plain', 'cpu'):
    outs[kind] = jax.jit(run, static_argnums=0)(
      compute.configured(module, kernels=kind), variables, x
    )
  for a, b in zip(*map(jax.tree.leaves, outs.values()), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4 * (np.abs(a).max() + 1e-3))


def test_evaluation_uses_running_statistics_and_no_stochastic_depth():
  module = registry.BACKBONES['efficientnet_lite0'].build(drop_path=0.5)
  variables = initializers.init(module, 0)
  x = np.random.default_rng(0).standard_normal((4, 32, 32, 3), 'f4')
  apply = jax.jit(lambda v, x: module.apply(v, x, False)[0])
  one, other = apply(variables, x[:2]), apply(variables, x[[0, 3]])
  np.testing.assert_allclose(one[0], other[0], atol=1e-5)
  assert np.abs(one[1] - other[1]).max() > 1e-3


@pytest.mark.parametrize(
  'name,size,blocks',
  [
    ('resnet18_32px', 32, 8),
    ('convnext_tiny', 32, 18),
    ('mobilenet_v3_large', 32, 15),
    ('efficientnet_b0', 32, 16),
    ('efficientnet_lite0', 32, 16),
    ('swin_t', 64, 12),
    ('maxvit_t', 224, 11),
    ('vit_b_16', 64, 12),
  ],
)
def test_remat_is_on_every_block(name, size, blocks):
  for remat in (False, True):
    options = Compute(remat=remat, kernels='plain')
    module, x = registry.BACKBONES[name].build(options), jnp.zeros((1, size, size, 3))
    options = {'mutable': ['batch_stats'], 'rngs': {'dropout': jax.random.key(0)}}
    run = functools.partial(module.apply, train=True, **options)
    program = jax.make_jaxpr(run)(shapes(name), x)
    assert sum(eqn.primitive.name in ('remat2', 'checkpoint') for eqn in program.eqns) == (
      blocks if remat else 0
    )


@pytest.mark.parametrize(
  'name,start,size,multiple',
  [
    ('maxvit_t', 'maxvit_t', 192, 224),
    ('vit_b_16', r'this ViT \(patches of 16 pixels\)', 40, 16),
    ('vit_small_patch14_dinov2', r'this ViT \(patches of 14 pixels\)', 224 + 16, 14),
  ],
)
def test_a_size_that_does_not_fit_is_told(name, start, size, multiple):
  with pytest.raises(
    UserError,
    match=rf'data.size: {start} takes .* sides are multiples of {multiple}, not {size} x {size}',
  ):
    initializers.init(registry.BACKBONES[name].build(), 0, jnp.zeros((1, size, size, 3)))


def test_vit_interpolates_position_embeddings_as_torchvision():
  """Values of torchvision 0.29.1's interpolate_embeddings(16 * n, 16, ...) of the same numbers.

  The middle row for n = 3, the diagonal for n = 17.
  """
  grid = np.random.default_rng(0).standard_normal(197)[1:].reshape(14, 14)

  def to(n):
    return vit.resample(n).astype('f8') @ grid @ vit.resample(n).T

  np.testing.assert_allclose(to(3)[1], [-0.5408896, -0.4633765, -0.5881324], atol=1e-6)
  np.testing.assert_allclose(
    to(17).diagonal(),
    [
      -0.1321049,
      -0.3797414,
      -0.6274052,
      0.1082348,
      1.323412,
      -1.200944,
      -0.6717069,
      1.206557,
      -0.4633765,
      0.2612951,
      0.8515448,
      1.410595,
      0.4582583,
      -0.103901,
      -0.707896,
      -0.4655573,
      -1.282649,
    ],
    atol=1e-6,
  )
  np.testing.assert_array_equal(vit.resample(14), np.eye(14))


def test_vit_interpolates_position_embeddings_as_timm():
  """Values of torch 2.14.1's interpolate(..., mode='bicubic', antialias=True) of 4 numbers."""
  numbers = np.array([0.0, 1.0, 4.0, 9.0])
  np.testing.assert_array_equal(vit.resample(4, 4, True), np.eye(4))
  for expected in (
    [-0.0657895, 0.2941176, 1.3611111, 3.3611111, 6.8235294, 9.3289474],
    [0.0755149, 2.3591954, 7.9359268],
    [0.6033058, 6.0826446],
  ):
    matrix = vit.resample(len(expected), 4, True)
    np.testing.assert_allclose(matrix @ numbers, expected, atol=1e-6)


@pytest.mark.parametrize('name', ['vgg11', 'densenet121'])
def test_an_image_of_which_nothing_is_left_is_told(name):
  with pytest.raises(UserError, match=r'--config.data.size: the images are too small'):
    initializers.init(registry.BACKBONES[name].build(), 0, jnp.zeros((1, 16, 16, 3)))


def test_swin_s_mask_parts_what_the_shift_brings_together():
  """A pixel of the last window sees those that were its neighbours before the map was rolled."""
  mask = swin.shift_mask((14, 14), (7, 7), (3, 3))
  rolled = np.roll(
    np.stack(np.divmod(np.arange(196), 14)).reshape(2, 14, 14), (-3, -3), (1, 2)
  )  # where each pixel was
  pixels = np.asarray(functional.windows(rolled.transpose(1, 2, 0)[None], (7, 7)))[0]
  far = np.abs(pixels[:, :, None] - pixels[:, None]).max(-1) >= 7
  np.testing.assert_array_equal(mask, np.where(far, -100, 0))
  one = swin.shift_mask((7, 14), (7, 7), (0, 3))
  assert (
    one.shape == (2, 49, 49) and (one[0] == 0).all() and (one[1] == -100).mean() == 2 * 3 * 4 / 49
  )


@pytest.fixture
def densenet8(monkeypatch):
  """step(options) of a small DenseNet: from (params, images) to gradients and new running
  statistics; and parameters to take it at. Their biases are drawn: where a norm's are 0, the norms
  after it take its scale away, and the gradient is nothing but rounding."""
  monkeypatch.setitem(densenet.VARIANTS, 8, (4, (4, 1, 1, 1), 8))
  variables, rng = initializers.init(densenet.DenseNet(8), 0), np.random.default_rng(1)
  params = jax.tree_util.tree_map_with_path(
    lambda path, p: rng.uniform(-1, 1, p.shape).astype('f4') if path[-1].key == 'bias' else p,
    variables['params'],
  )

  def step(**options):
    module, axis = densenet.DenseNet(8, compute=Compute(**options)), options.get('batch_axis')

    def loss(params, x):
      (y, _), new = module.apply({**variables, 'params': params}, x, True, mutable=['batch_stats'])
      return jnp.sin(3 * y).sum(), new['batch_stats']

    def f(params, x):
      grads, stats = jax.grad(loss, has_aux=True)(params, x)
      return grads if axis is None else jax.lax.psum(grads, axis), stats

    return f

  return step, params


def assert_close(actual, want, tol):
  for g, w in zip(*map(jax.tree.leaves, (actual, want)), strict=True):
    np.testing.assert_allclose(g, w, rtol=0, atol=tol * (np.abs(w).max() + 1e-3))


def test_densenet_s_shared_statistics_over_devices(densenet8):
  """Gradients and statistics of a batch that is split over 8 devices are those on one."""
  step, params = densenet8
  x = np.random.default_rng(0).standard_normal((16, 40, 32, 3), 'f4')
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  one = jax.jit(step(kernels='cpu'), compiler_options=ours.QUICK)(params, x)
  split_result = jax.shard_map(
    step(kernels='cpu', batch_axis='data'),
    mesh=mesh,
    in_specs=(jax.P(), jax.P('data')),
    out_specs=jax.P(),
    check_vma=False,
  )
  split_result = jax.jit(split_result, compiler_options=ours.QUICK)(params, x)
  assert_close(split_result, one, 2e-4)


def test_densenet_agrees_with_both_kernels_and_under_remat(densenet8):
  step, params = densenet8
  x, out = np.random.default_rng(0).standard_normal((4, 64, 64, 3), 'f4'), []
  for kind, remat in (('plain', False), ('cpu', False), ('cpu', True)):
    f = step(kernels=kind, remat=remat)
    out.append(jax.jit(f, compiler_options=ours.QUICK)(params, x))
  assert_close(out[1], out[0], 2e-4)
  assert_close(out[2], out[1], 2e-5)


@pytest.mark.parametrize('name,most', [('densenet121', 0.4), ('vgg11', 0.6)])
def test_remat_keeps_less_for_the_backward_pass(name, most):
  def residual_size(remat):
    module = registry.BACKBONES[name].build(Compute(remat=remat))

    def apply(v, x):
      options = {'mutable': ['batch_stats'], 'rngs': {'dropout': jax.random.key(0)}}
      return module.apply(v, x, True, **options)[0][0]

    left = jax.eval_shape(
      lambda v, x: jax.vjp(apply, v, x)[1],
      shapes(name),
      jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32),
    )
    return sum(r.size for r in jax.tree.leaves(left)) - count(name)[0]

  assert residual_size(True) < most * residual_size(False), (
    residual_size(True),
    residual_size(False),
  )


class Chain(nn.Module):
  """Residual blocks that keep their maps' shape."""

  depth: int

  @nn.compact
  def __call__(self, x, train):
    for i in range(self.depth):
      x = resnet.Block(4, 1, True, compute=Compute(kernels='cpu'), name=str(i))(x, train)
    return x


def test_work_of_a_residual_block_does_not_grow_with_depth():
  """XLA would sum up what all blocks before have added, anew in each block."""

  def most_operands(depth):
    module, x = Chain(depth), jnp.ones((2, 8, 8, 16))
    variables = module.init(jax.random.key(0), x, True)

    def loss(variables, x):
      return module.apply(variables, x, True, mutable=['batch_stats'])[0].sum()

    program = jax.jit(jax.grad(loss), compiler_options=compute.compiler_options())
    text = program.lower(variables, x).compile().as_text()
    operands = re.findall(r' fusion\((.*?)\), kind', text)
    return max(len(o.split(', ')) for o in operands)

  assert most_operands(6) == most_operands(3) <= 12
