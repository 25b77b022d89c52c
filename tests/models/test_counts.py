"""Parameters and multiply-accumulates against thop, the papers' tables and counts by hand."""

import json
import pathlib
import runpy

import flax.linen as nn
import pytest
import tiny
from parity import ours

from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.experiments import describe
from hierjax.models import classifier, counts, heads, layers

ROOT = pathlib.Path(__file__).parents[2]
THOP = json.loads((ours.GOLDEN / 'thop.json').read_text())
SMALLEST = (
  'resnet18',
  'convnext_tiny',
  'vgg11',
  'mobilenet_v2',
  'mobilenet_v3_large',
  'efficientnet_b0',
  'vit_b_16',
  'swin_t',
)  # of what Table III lacks
TABLE3 = {  # S1: trunk; parameters and FLOPs of single-task, parallel and cascaded
  'densenet121': (
    6_953_856,
    (7_154_756, 7_204_981, 7_214_585),
    (2_896_183_808, 2_896_233_984, 2_896_243_588),
  ),
  'maxvit_t': (
    30_407_624,
    (30_508_172, 30_533_309, 30_542_913),
    (5_455_904_000, 5_455_929_088, 5_455_938_692),
  ),
  'convnext_base': (
    87_566_464,
    (87_767_364, 87_817_589, 87_827_193),
    (15_372_622_848, 15_372_673_024, 15_372_682_628),
  ),
}


def count_of(backbone, **changes):
  c = config.default()
  c.model.backbone = backbone
  for path, value in changes.items():
    config.assign(c, path.replace('__', '.'), value)
  return describe.describe(c)


def test_all_that_torchvision_has_is_counted():
  assert {name for name in ours.names() if 'torchvision' in ours.golden(name)} <= set(THOP)


@pytest.mark.parametrize(
  'name', [pytest.param(n, marks=() if n in SMALLEST else pytest.mark.slow) for n in THOP]
)
def test_trunks_have_the_counts_that_thop_gives_their_originals(name):
  assert ours.sizes(name) == THOP[name]


@pytest.mark.parametrize('backbone', TABLE3)
@pytest.mark.parametrize('heads', ['flat', 'parallel', 'cascaded'])
def test_s1_table_3(backbone, heads):
  trunk, params, flops = TABLE3[backbone]
  k = ('flat', 'parallel', 'cascaded').index(heads)
  description = describe.describe(
    runpy.run_path(str(ROOT / 'configs/tables/s1_table3.py'))['get_config'](f'{backbone},{heads}')
  )
  assert (description['trunk_params'], description['params'], description['thop_macs']) == (
    trunk,
    params[k],
    flops[k],
  )
  assert list(description['heads']) == (['model'] if heads == 'flat' else ['make', 'model'])


def test_s1_table_3_has_no_other_rows():
  get_config = runpy.run_path(str(ROOT / 'configs/tables/s1_table3.py'))['get_config']
  for text in ('resnet34,flat', 'densenet121,cascade', ''):
    with pytest.raises(UserError, match=r'no .* choices: '):
      get_config(text)


@pytest.mark.parametrize(
  'levels,params', [('model', 23_909_636), ('make,model', 24_010_037), ('all', 24_028_478)]
)
def test_resnet50_of_s0(levels, params):
  assert (
    count_of('resnet50', data__root='classes:make=49,type=9,model=196', model__levels=levels)[
      'params'
    ]
    == params
  )


def test_hcal_s_resnet18_and_advanced_cnn():
  """S2's trunk, and with 120 prototypes of 256; S4's network with 10 classes."""
  options = {
    'data__root': 'classes:super=20,sub=100',
    'data__size': 32,
    'model__heads': 'prototypes',
  }
  for counted in (
    count_of('resnet18_32px', **options),
    count_of('resnet18', model__stem='small', model__neck=256, **options),
  ):
    assert (counted['trunk_params'], counted['params']) == (11_300_160, 11_330_880)
  assert count_of('advanced_cnn', data__root='classes:class=10')['params'] == 11_181_642


class Everything(layers.Layer):
  """Each layer that thop knows, once; and a second norm, which the original has as a function."""

  @nn.compact
  def __call__(self, x, train=False):
    options = {'compute': self.compute}
    # 4 x 4 x 6 from 3 channels.
    x = layers.Conv(6, 3, 2, 1, use_bias=True, **options, name='conv')(x)
    x = layers.Conv(6, 3, 1, 1, depthwise=True, **options, name='depthwise')(x)
    x = nn.relu(layers.BatchNorm(**options, name='norm')(x, train))
    # 2 x 2 x 6.
    x = layers.AvgPool(2, 2, **options, name='pool')(x)
    x = layers.LayerNorm(name='function')(layers.LayerNorm(name='module')(x))
    return layers.Dense(5, name='dense')(layers.GlobalPool(name='all')(x)), {}


def test_rules_by_hand():
  conv, depthwise, norm, pool, layer_norm, pooled, dense = (
    96 * 3 * 9,
    96 * 9,
    4 * 96,
    24,
    4 * 24,
    (4 + 1) * 6,
    30,
  )
  expected = conv + depthwise + norm + pool + layer_norm + pooled + dense
  assert counts.thop_macs(Everything(), 8, 'function') == expected
  assert counts.thop_macs(Everything(), 8, '') == expected + layer_norm
  assert counts.thop_macs(Everything(), 8, 'function|depthwise') == expected - depthwise
  variables = counts.shapes(Everything(), 8)
  assert counts.macs(Everything(), variables, 8) == conv + depthwise + dense
  assert counts.parameters(variables['params']) == (27 * 6 + 6) + 54 + 12 + 12 + 12 + 35


def test_counting_neither_draws_nor_runs():
  """An image of 4 G pixels and a head of 68 GB."""
  model = classifier.Classifier(
    tiny.Tiny(), heads.Parallel((('model', 10**9),), ((),)), (0.0,) * 3, (1.0,) * 3
  )
  variables = counts.shapes(model, 65536)
  assert counts.parameters(variables['params']['heads']) == 17 * 10**9
  assert (
    counts.macs(model, variables, 65536) > counts.macs(model, variables, 32768) > 10**9
    and counts.thop_macs(model, 65536, '') > 10**9
  )


def test_shared_parts_of_heads_are_told(monkeypatch):
  tiny.register(monkeypatch)
  description = count_of('tiny', data__size=32, model__heads='mmoe')
  assert list(description['heads']) == ['make', 'type', 'model', 'shared'] and description[
    'params'
  ] == description['trunk_params'] + sum(description['heads'].values())
  json.dumps(description)


@pytest.mark.parametrize(
  'root,message',
  [
    ('classes:make=49,model', "'model' is not LEVEL=NUMBER; write classes:make=49,model=196"),
    ('classes:', "'' is not LEVEL=NUMBER"),
    ('classes:make=0,model=3', "'make=0' is not"),
    ('classes:a=2,a=3', "'a=3' is not"),
    ('classes:a=2,b=-3', "'b=-3' is not"),
    (
      'classes:model=196,make=49',
      'the last level, make, is the finest and must have the most classes',
    ),
  ],
)
def test_mistakes_in_numbers_of_classes(root, message):
  with pytest.raises(UserError, match=message):
    count_of('resnet18', data__root=root)


def test_there_is_nothing_to_train_on(monkeypatch):
  from hierjax.train import setup

  tiny.register(monkeypatch)
  with pytest.raises(
    UserError, match=r"data\.train='train': no such split; the data have no images"
  ):
    setup.build(tiny.run_config(**{'data.source': 'auto', 'data.root': 'classes:make=4,model=9'}))
