import pytest

from hierjax.core import config
from hierjax.core.errors import UserError


def test_json_round_trip():
  c = config.default()
  c.optim.lr, c.data.augment.crop, c.optim.rules = 3e-4, (0.2, 0.9), (('.*', 1.0, 0.0),)
  back = config.from_json(config.to_json(c))
  assert config.differences(c, back) == []
  assert config.differences(config.default(), back) == [
    'data.augment.crop: (0.5, 1.0) -> (0.2, 0.9)',
    'optim.lr: 0.001 -> 0.0003',
    "optim.rules: (('.*/kernel', 1.0, 1.0), ('.*', 1.0, 0.0)) -> (('.*', 1.0, 0.0),)",
  ]


def test_json_with_unknown_option():
  with pytest.raises(UserError, match=r"unknown option optim\.lrr \(did you mean 'lr'\?\)"):
    config.from_json('{"optim": {"lrr": 1}}')


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    (
      'optim.schedule',
      'cosin',
      r"--config\.optim\.schedule='cosin' is not a choice \(did you mean 'cosine'\?\); choices: "
      r'constant, cosine',
    ),
    ('eval.tta', 4, r'choices: 1, 2, 3, 5'),
    ('model.backbone', 'resnet5', r"did you mean 'resnet50'.*choices: resnet18, resnet50"),
    ('data.size', 0, r'--config\.data\.size=0 must be at least 8'),
    ('model.dropout', 1.0, 'at least 0 and below 1'),
    ('optim.clip', -1.0, 'must be above 0, or None for off'),
    ('optim.accumulate', 5, 'must be a multiple of --config.optim.accumulate=5'),
  ],
)
def test_validate_names_option_and_choices(path, value, message):
  c = config.default()
  c.model.backbone = 'resnet18'
  registries = {'model.backbone': ['resnet18', 'resnet50']}
  config.validate(c, registries)
  config.assign(c, path, value)
  with pytest.raises(UserError, match=message):
    config.validate(c, registries)


def test_siblings_by_the_finest_level_are_none():
  c = config.default()
  c.loss.smoothing, c.loss.siblings = 0.1, ('finest',)
  with pytest.raises(UserError, match='siblings'):
    config.validate(c)


LEVELS = ('make', 'type', 'model')


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('all', LEVELS),
    ('finest', ('model',)),
    ('coarsest,finest', ('make', 'model')),
    ('coarser', ('make', 'type')),
    ('model, make', ('make', 'model')),
    ('', ()),
  ],
)
def test_resolve_levels(text, expected):
  assert config.resolve_levels(text, LEVELS, '--x') == expected


def test_resolve_levels_unknown():
  with pytest.raises(
    UserError,
    match=r"--x: no level 'modle' \(did you mean 'model'\?\); choices: make, type, model, "
    'coarsest, finest, all, coarser',
  ):
    config.resolve_levels('modle', LEVELS, '--x')


def test_durations():
  node = config.default().train
  node.epochs = 2.5
  assert config.steps(node, '', 100, 32, '--t') == 8  # 2.5 * 100 / 32 = 7.8
  node.epochs, node.examples = None, 64
  assert config.steps(node, '', 100, 32, '--t') == 2
  node.steps = 3
  with pytest.raises(UserError, match='only one of steps=3, examples=64'):
    config.steps(node, '', 100, 32, '--t')
