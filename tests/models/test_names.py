"""timm's names and files of open_clip, and the command that lists the backbones."""

import json
from unittest import mock

import numpy as np
import pytest
from flax import traverse_util
from parity import ours, seeded, small
from safetensors.numpy import save_file

from hierjax.cli import program
from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.models import weights
from hierjax.models.registry import BACKBONES
from hierjax.train import setup


@pytest.mark.parametrize(
  'name,entry',
  [
    ('vit_small_patch14_dinov2.lvd142m', 'vit_small_patch14_dinov2'),
    ('timm/vit_base_patch16_siglip_224.v2_webli', 'vit_base_patch16_siglip_224'),
    ('resnet50.a1_in1k', 'resnet50'),
    ('tf_efficientnet_lite0.in1k', 'efficientnet_lite0'),
    ('swin_small_patch4_window7_224.ms_in22k', 'swin_s'),
  ],
)
def test_names_with_the_tag_of_weights(name, entry):
  assert name in BACKBONES and BACKBONES[name] is BACKBONES[entry]


def test_an_unknown_name_gets_the_nearest():
  assert 'vit_small_patch15_dinov2.lvd142m' not in BACKBONES and '.a1' not in BACKBONES
  with pytest.raises(
    UserError,
    match=r"'vit_small_patch15_dinov2' \(did you mean 'vit_small_patch.*' or 'vit_.*'\?\)",
  ) as e:
    BACKBONES['vit_small_patch15_dinov2']
  assert str(e.value).endswith("'hierjax backbones PATTERN' lists them")
  assert len(str(e.value)) < 250


def open_clip_state():
  """A file of both towers, as open_clip writes it, of a small net."""
  entries = ours.torch_entries('small_clip', 'open_clip').values()
  state = {key: seeded.tensor(key, shape) for key, shape in entries}
  for key in ('visual.class_embedding', 'visual.positional_embedding'):
    state[key] = state[key].reshape(state[key].shape[-2:] if 'pos' in key else -1)
  others = ('visual.proj', 'text_projection', 'positional_embedding', 'ln_final.weight')
  others += ('token_embedding.weight', 'transformer.resblocks.0.attn.in_proj_weight')
  return (
    state
    | {key: np.zeros((2, 3), np.float32) for key in others}
    | {'logit_scale': np.zeros((), np.float32)}
  )


def test_a_file_of_open_clip(tmp_path):
  state = open_clip_state()
  save_file(state, tmp_path / 'open_clip_model.safetensors')
  config = {'preprocess_cfg': {'size': 224, 'mean': [0.5, 0.5, 0.25], 'interpolation': 'bicubic'}}
  (tmp_path / 'open_clip_config.json').write_text(json.dumps(config))
  with mock.patch.object(weights, 'BACKBONES', small.BACKBONES):
    new, report = weights.load(
      'small_clip', ours.shapes('small_clip'), str(tmp_path / 'open_clip_model.safetensors')
    )
  assert report['scheme'] == 'open_clip' and report['size'] == 224 and report['crop'] is None
  assert report['mean'] == (127.5, 127.5, 63.75) and report['interpolation'] == 'bicubic'
  flat = traverse_util.flatten_dict(new)
  for path, (key, shape) in ours.torch_entries('small_clip', 'open_clip').items():
    np.testing.assert_array_equal(ours.to_torch(path[-1], flat[path]), state[key].reshape(shape))


def test_what_open_clip_does_not_have_is_an_error(tmp_path):
  state = open_clip_state() | {'visual.extra': np.zeros(3, np.float32)}
  del state['visual.ln_pre.bias']
  save_file(state, tmp_path / 'w.safetensors')
  with (
    mock.patch.object(weights, 'BACKBONES', small.BACKBONES),
    pytest.raises(UserError, match=r'1 missing: visual.ln_pre.bias; 1 unexpected: visual.extra'),
  ):
    weights.load('small_clip', ours.shapes('small_clip'), str(tmp_path / 'w.safetensors'))


def test_a_file_of_swin_v2_in_its_authors_layout(tmp_path):
  """A stage ends with its downsampling, and buffers are stored."""
  entries = ours.torch_entries('small_swinv2', 'original')
  state = {key: seeded.tensor(key, shape) for key, shape in entries.values()}
  assert state['layers.0.downsample.norm.weight'].shape == (64,)
  buffers = ('relative_coords_table', 'relative_position_index', 'k_bias')
  others = {f'layers.1.blocks.1.attn.{name}': np.zeros(3, np.float32) for name in buffers}
  others['layers.0.blocks.1.attn_mask'] = np.zeros((2, 3), np.float32)
  save_file(state | others, tmp_path / 'w.safetensors')
  with mock.patch.object(weights, 'BACKBONES', small.BACKBONES):
    new, report = weights.load(
      'small_swinv2', ours.shapes('small_swinv2'), str(tmp_path / 'w.safetensors')
    )
  assert (report['scheme'], report['tensors']) == ('original', len(entries))
  flat = traverse_util.flatten_dict(new)
  for path, (key, _) in entries.items():
    np.testing.assert_array_equal(ours.to_torch(path[-1], flat[path]), state[key])


def test_the_config_beside_a_file(tmp_path):
  """timm's: size, crop share and interpolation."""
  state = {
    key: seeded.tensor(key, shape)
    for key, shape in ours.torch_entries('regnety_002', 'timm').values()
  }
  save_file(state, tmp_path / 'model.safetensors')
  config = {'input_size': [3, 288, 288], 'crop_pct': 0.95, 'interpolation': 'bilinear'}
  (tmp_path / 'config.json').write_text(json.dumps({'pretrained_cfg': config}))
  path = str(tmp_path / 'model.safetensors')
  _, report = weights.load('regnety_002', ours.shapes('regnety_002'), path)
  assert (report['size'], report['crop'], report['interpolation']) == (288, 0.95, 'bilinear')
  assert report['mean'] == BACKBONES['regnety_002'].mean


@pytest.mark.parametrize(
  'changes,expected',
  [
    ({}, (0.95, 'bicubic')),
    ({'data.crop_share': 1.0, 'data.interpolation': 'bilinear'}, (1.0, 'bilinear')),
    ({'data.resize': 'pad'}, (None, 'bicubic')),
  ],
)
def test_images_are_evaluated_as_the_config_says(changes, expected):
  c = config.default()
  for path, value in changes.items():
    config.assign(c, path, value)
  setup._prepare_alike(c.data, {'crop': 0.95, 'interpolation': 'bicubic'})
  assert (c.data.crop_share, c.data.interpolation) == expected
  before = c.data.to_json()
  setup._prepare_alike(c.data, {'crop': 'large', 'interpolation': 'random'})
  assert c.data.to_json() == before


def test_the_command(capsys):
  assert program.run(['hierjax', 'backbones', 'regnety_002', '*_lite0']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[:4] for line in lines[1:]] == [
    ['regnety_002', '224', '368', '2793996'],
    ['efficientnet_lite0', '224', '1280', '3371008'],
  ]
  assert program.run(['hierjax', 'backbones']) == 0
  assert len(capsys.readouterr().out.splitlines()) == len(BACKBONES) + 1
  assert program.run(['hierjax', 'backbones', 'vit_small_patch14_dinov4']) == 2
  assert "(did you mean 'vit_small_patch14_dinov2', 'vit_" in capsys.readouterr().err
