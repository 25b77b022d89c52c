"""Reading weight files without torch, and without running anything in them.

A torch file is a pickle, and a pickle is a program; `core.pickles` says what is done about that.
"""

import io
import math
import mmap
import pathlib
import struct
import zipfile
from collections import OrderedDict
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from hierjax.core import files, pickles
from hierjax.core.errors import UserError

# torch's format before 1.6 begins with the number 0x1950a86a20f9469cfc6c, pickled.
STREAM_MAGIC = b'\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.'
STORAGES = {
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16,
  'DoubleStorage': np.float64,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}
DTYPES = ('float32', 'float16', 'bfloat16', 'float64', 'int64', 'int32', 'int16', 'int8', 'uint8')
MAX_DIMENSIONS = 32
# What a pickle of weights may name.
GLOBALS = {
  'collections.OrderedDict',
  'torch._utils._rebuild_tensor_v2',
  'torch._utils._rebuild_parameter',
  'torch.Size',
  *(f'torch.{name}' for name in (*STORAGES, *DTYPES, 'bool')),
}
# Where trainers keep the weights; the averaged ones first, as timm does.
WRAPPERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model')
# DataParallel, torch.compile, and one inside the other.
PREFIXES = ('module.', '_orig_mod.', 'module.')


def shorten(text: str, limit: int) -> str:
  """Put a text on one line.

  Args:
    text: to put.
    limit: characters of the line at most.
  """
  text = ' '.join(text.split())
  return text if len(text) <= limit else text[: limit - 3] + '...'


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Read the state dict of a .safetensors file or of a torch file of either format.

  The format is recognised by the content, not by the name.

  Args:
    path: of the file.

  Returns:
    torch's names → arrays, which may be strided and read-only.

  Raises:
    UserError: the file is damaged, asks for code to be run, or is something else.
  """
  path = pathlib.Path(path)
  try:
    with files.open_regular(path) as f:
      head = f.read(40)
    if head.startswith(b'PK\x03\x04'):
      return _state_dict(_read_zip(path), path)
    if head.startswith(STREAM_MAGIC):
      return _state_dict(_read_stream(path), path)
    if head[8:9] == b'{':
      with safetensors.safe_open(path, framework='np') as f:
        return _state_dict({k: f.get_tensor(k) for k in f.keys()}, path)  # noqa: SIM118
  except UserError:
    raise
  except Exception as e:
    # pickle, zipfile and safetensors each raise many kinds on damaged files.
    reason = f'{type(e).__name__}: {shorten(str(e), 120)}'
    raise UserError(f'{path}: is damaged or was cut short ({reason})') from None
  if head.startswith(b'version https://git-lfs'):
    raise UserError(f'{path}: is a git-lfs pointer, not the weights: fetch the file itself')
  raise UserError(f'{path}: is neither a .safetensors file nor one that torch.save wrote')


def _state_dict(content: Any, path: pathlib.Path) -> dict[str, np.ndarray]:
  """Take the tensors out of the dicts in which trainers wrap them."""
  for _ in range(3):
    if not isinstance(content, dict):
      break
    inner = next((content[k] for k in WRAPPERS if isinstance(content.get(k), dict)), None)
    content = content if inner is None else inner
  state = {}
  for name, value in content.items() if isinstance(content, dict) else ():
    if isinstance(name, str) and isinstance(value, (_Tensor, np.ndarray)):
      state[name] = value.array() if isinstance(value, _Tensor) else value
  if not state:
    raise UserError(
      f'{path}: holds no tensors by name: save the weights alone, '
      'torch.save(model.state_dict(), FILE)'
    )
  for prefix in PREFIXES:
    if all(name.startswith(prefix) for name in state):
      state = {name.removeprefix(prefix): v for name, v in state.items()}
  return state


class _Storage:
  """A run of numbers in the file; `data`, a flat array, is set when all names are known."""

  def __init__(self, key, dtype, size):
    self.key, self.dtype, self.size, self.data = key, np.dtype(dtype), size, None


class _Tensor:
  """A view of a storage; offset and strides count numbers."""

  def __init__(self, storage, offset, shape, strides):
    is_valid = isinstance(storage, _Storage) and len(shape) == len(strides) <= MAX_DIMENSIONS
    if not is_valid or not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
      raise ValueError('a tensor without storage or with a negative size')
    self.storage, self.offset = storage, offset
    self.shape, self.strides = tuple(shape), tuple(strides)

  def array(self):
    """Return the view. Nothing is copied, so a broadcast or absurd shape takes no memory."""
    data, size = self.storage.data, self.storage.dtype.itemsize
    if data is None:
      raise ValueError(f'storage {self.storage.key} is absent')
    if math.prod(self.shape) == 0:
      return np.zeros(self.shape, data.dtype)
    # Unlike as_strided, np.ndarray checks the view against the buffer.
    strides = tuple(n * size for n in self.strides)
    return np.ndarray(self.shape, data.dtype, data, self.offset * size, strides)


class _Global:
  """Stands in for a class or function of torch; a call builds a stand-in, or is refused."""

  def __init__(self, name):
    self.name = name

  def __call__(self, *args):
    if self.name == 'torch._utils._rebuild_tensor_v2':
      return _Tensor(*args[:4])
    if self.name == 'torch._utils._rebuild_parameter':
      return args[0]
    if self.name == 'torch.Size' and len(*args) <= MAX_DIMENSIONS:
      return tuple(*args)
    raise ValueError(f'a call of {self.name}')


class _Unpickler(pickles.Unpickler):
  names, purpose = GLOBALS, 'weights'
  advice = '. Save the weights alone: torch.save(model.state_dict(), FILE), or as .safetensors'

  def __init__(self, data, path):
    super().__init__(data, path, 'utf-8')
    self.storages, self.pair_count = {}, 0

  def stand_in(self, name: str):
    """Return what stands in for a global."""
    return self._ordered_dict if name == 'collections.OrderedDict' else _Global(name)

  def _ordered_dict(self, pairs=()):
    """Make a dict; Python 2 pickled one as a call with a list of pairs."""
    self.pair_count += len(pairs)
    if self.pair_count > pickles.MAX_OPERATIONS:
      raise ValueError('dicts of too many entries')
    pickles.check_keys(key for key, _ in pairs)
    return OrderedDict(pairs)

  def persistent_load(self, pid: tuple) -> _Storage:
    """Return the storage of a tensor. Args: as `pickle.Unpickler`."""
    tag, kind, key, _location, size, *view = pid
    dtype = STORAGES.get(kind.name.removeprefix('torch.')) if isinstance(kind, _Global) else None
    is_known = tag == 'storage' and dtype is not None and all(v is None for v in view)
    if not is_known or type(size) is not int or size < 0 or not isinstance(key, str):
      raise ValueError('a storage of an unknown kind')
    storage = self.storages.setdefault(key, _Storage(key, dtype, size))
    if storage.dtype != np.dtype(dtype) or storage.size != size:
      raise ValueError('one storage told in two ways')
    return storage


def _unpickle(data, path) -> tuple[Any, dict[str, _Storage]]:
  """Read one pickle from where `data` stands: the object, and the storages by key."""
  unpickler = _Unpickler(data, path)
  return unpickler.load(), unpickler.storages


class _Members:
  """The members of a torch zip file: not compressed, so that all are no larger than the file."""

  def __init__(self, archive, path):
    self.archive, self.bytes_left = archive, path.stat().st_size
    names = archive.namelist()
    places = [n for n in names if n.split('/')[-1] == 'data.pkl' and n.count('/') <= 1]
    if not places:
      raise UserError(
        f'{path}: is a zip file, but not one that torch.save wrote: it has no data.pkl'
      )
    self.root = places[0].removesuffix('data.pkl')

  def __contains__(self, name):
    return self.root + name in self.archive.namelist()

  def read(self, name: str) -> bytes:
    """Return the bytes of a member, whose CRC is checked.

    Args:
      name: of the member, below the archive's folder.
    """
    info = self.archive.getinfo(self.root + name)
    self.bytes_left -= info.file_size
    is_stored = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
    if not is_stored or self.bytes_left < 0:
      raise ValueError(f'{shorten(name, 40)} is compressed, or larger than the file')
    return self.archive.read(info)


def _read_zip(path):
  """Read the format of torch.save since 1.6."""
  with zipfile.ZipFile(path) as archive:
    members = _Members(archive, path)
    if 'byteorder' in members and members.read('byteorder') != b'little':
      raise UserError(f'{path}: was written on a big-endian machine: save it as .safetensors')
    content, storages = _unpickle(io.BytesIO(members.read('data.pkl')), path)
    for s in storages.values():
      s.data = np.frombuffer(members.read(f'data/{s.key}'), s.dtype)
      if s.data.size != s.size:
        raise ValueError(f'storage {shorten(s.key, 40)} holds {s.data.size} numbers, not {s.size}')
  return content


def _read_stream(path):
  """Read the format of torch.save before 1.6.

  It has pickles of a magic number, a version, the machine, the object and the storages' keys; then
  the storages in turn.
  """
  with files.open_regular(path) as f:
    data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
  _magic, version, machine = (_unpickle(data, path)[0] for _ in range(3))
  if version != 1001 or not isinstance(machine, dict) or machine.get('little_endian') is not True:
    raise UserError(
      f'{path}: a torch file of an unknown version or byte order: save it as .safetensors'
    )
  content, storages = _unpickle(data, path)
  keys, _ = _unpickle(data, path)
  for key in keys:
    s, place = storages[key], data.tell() + 8
    if struct.unpack('<q', data.read(8)) != (s.size,):
      raise ValueError(f'storage {shorten(key, 40)} is not as long as it was said to be')
    # Raises past the end of the file.
    s.data = np.frombuffer(data, s.dtype, s.size, place)
    data.seek(place + s.data.nbytes)
  return content
