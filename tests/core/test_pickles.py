"""Pickles that take for ever, crash the interpreter or flood the memory."""

import io
import pickle
import zipfile

import pytest

from hierjax.core import pickles
from hierjax.core.errors import UserError
from hierjax.data.published import cifar
from hierjax.models import torch_files

HEAD, ONE = b'\x80\x02', b'K\x01'
DEEP = 200_000  # enough to overflow the stack of a C function


class Plain(pickles.Unpickler):
  """Reads plain data."""

  names, purpose = frozenset({'collections.OrderedDict'}), 'numbers'

  def stand_in(self, name: str):
    """A class that takes any arguments."""
    return lambda *args: len(args)


def load(data: bytes):
  """Read a pickle of plain data."""
  return Plain(io.BytesIO(data), 'FILE', 'bytes').load()


def doubled(times: int) -> bytes:
  """A tuple that holds the same tuple twice, and so on: short to write, 2**times to hash."""
  steps = [b'h%ch%c\x86q%c0' % (i, i, i + 1) for i in range(times)]
  return b')q\x000' + b''.join(steps) + b'h%c' % times


CALL = b'ccollections\nOrderedDict\n'
# What each is, and a word of the refusal.
ATTACKS = {
  'doubled tuples as a key': (b'}' + doubled(90) + ONE + b's.', 'key of a dict is of type tuple'),
  'doubled tuples in many keys': (b'}(' + doubled(90) + ONE + b'u.', 'type tuple'),
  'doubled tuples in DICT': (b'(' + doubled(90) + ONE + b'd.', 'type tuple'),
  'doubled tuples as a value': (b'}X\x01\x00\x00\x00a' + doubled(90) + b's.', 'elements'),
  'doubled lists': (b']q\x00' + b''.join(b'](h%ch%ceq%c' % (i, i, i + 1) for i in range(40)) + b'.',
                    'elements'),
  'deeply nested tuples as a key': (b'})' + b'\x85' * DEEP + ONE + b's.', 'type tuple'),
  'deeply nested tuples': (b')' + b'\x85' * DEEP + b'.', 'nested more than 64 deep'),
  'deeply nested lists': (b']' * DEEP + b'a' * (DEEP - 1) + b'.', 'nested'),
  'a list of itself': (b']q\x00h\x00a.', 'nested'),
  'a dict of itself': (b'}q\x00' + ONE + b'h\x00s.', 'nested'),
  'None as a key': (b'}N' + ONE + b's.', 'NoneType'),
  'a number as a key': (b'}G' + bytes(8) + ONE + b's.', 'float'),
  'a long call': (b'(' + ONE * 20 + b't' + b'q\x00' + CALL + b'h\x00R.', '20 arguments'),
}  # fmt: skip


@pytest.mark.parametrize('name', ATTACKS)
def test_what_a_pickle_does_is_bounded(name):
  """Each is refused in a second or two; most would never end, or end the interpreter."""
  data, reason = ATTACKS[name]
  with pytest.raises(ValueError, match=reason):
    load(HEAD + data)


def test_operations_are_counted(monkeypatch):
  """A mark is a byte in the file and a list in memory."""
  monkeypatch.setattr(pickles, 'MAX_OPERATIONS', 1000)
  with pytest.raises(ValueError, match='more than 1000 operations'):
    load(HEAD + b'(' * 10**6)


@pytest.mark.parametrize('protocol', range(1, 6))
def test_plain_data_are_read(protocol):
  """As the standard library reads them, in every protocol."""
  value = {'a': [1, -(2**70), 2.5, None, True], 'b': ('x', ('ü',), {}), 7: []}
  if protocol > 2:
    value[b'bytes'] = b'b' * 300
  assert load(pickle.dumps(value, protocol)) == value


def test_several_pickles_in_one_file():
  """Each is read from where the one before ended, also behind frames."""
  data = io.BytesIO(pickle.dumps([1], 2) + pickle.dumps({'a': 2}, 5) + pickle.dumps('c', 1))
  values = [Plain(data, 'FILE', 'bytes').load() for _ in range(3)]
  assert values == [[1], {'a': 2}, 'c']


def test_a_state_is_for_stand_ins_only():
  """BUILD would set attributes of whatever a name stands for."""
  with pytest.raises(AttributeError):
    load(HEAD + CALL + b'}X\x08\x00\x00\x00__name__' + ONE + b'sb.')


def test_unknown_operations_are_named():
  """Those of the standard library by their name."""
  for code, name in ((b'\x81', 'NEWOBJ'), (b'\x8f', 'EMPTY_SET'), (b'\xff', 'operation 255')):
    with pytest.raises(UserError, match=f'FILE: its pickle uses .*{name}, which numbers do not'):
      load(HEAD + b'}' + code + b'.')


@pytest.mark.parametrize('name', ['doubled tuples as a key', 'doubled lists', 'None as a key'])
def test_attacks_on_cifar_and_weights_are_one_line(name, tmp_path):
  """The same in meta of CIFAR-100, and in both forms of torch files."""
  data = HEAD + ATTACKS[name][0]
  folder = tmp_path / 'cifar-100-python'
  folder.mkdir()
  (folder / 'meta').write_bytes(data)
  weights = tmp_path / 'w.pth'
  for attack in (lambda: cifar.read(tmp_path, False), lambda: torch_files.read(weights)):
    with zipfile.ZipFile(weights, 'w') as archive:
      archive.writestr('w/data.pkl', data)
    with pytest.raises(UserError) as e:
      attack()
    assert len(str(e.value)) < 500 and '\n' not in str(e.value)
  weights.write_bytes(torch_files.STREAM_MAGIC + data)
  with pytest.raises(UserError, match=r'w\.pth: is damaged'):
    torch_files.read(weights)


def torch_zip(path, pickled: bytes):
  """A torch file of this pickle and one storage of four numbers."""
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('w/data.pkl', HEAD + pickled)
    archive.writestr('w/data/0', bytes(16))
  return path


STORAGE = (
  b'(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ'
)
ATTACKS_ON_CALLS = {
  'OrderedDict of doubled tuples': CALL + b'](](' + doubled(60) + ONE + b'ee\x85R.',
  'a size of a long text': b'X\x40\x00\x00\x00' + b'a' * 64 + b'\x85q\x00ctorch\nSize\nh\x00R.',
  'a tensor of many dimensions': b'ctorch._utils\n_rebuild_tensor_v2\n(' + STORAGE
  + b'K\x00(' + ONE * 100 + b't(' + ONE * 100 + b'ttR.',
}  # fmt: skip


@pytest.mark.parametrize('name', ATTACKS_ON_CALLS)
def test_calls_of_stand_ins_are_bounded(name, tmp_path):
  """What a short call would copy or hash many times."""
  path = torch_zip(tmp_path / 'w.pth', ATTACKS_ON_CALLS[name])
  with pytest.raises(UserError, match=r'w\.pth: is damaged'):
    torch_files.read(path)


def test_an_array_of_many_dimensions(tmp_path):
  """Their product alone would take minutes."""
  folder = tmp_path / 'cifar-100-python'
  folder.mkdir()
  shape = b'(' + (b'\x8a\xff' + b'\x7f' * 255) * 2000 + b't'
  dtype = b'cnumpy\ndtype\n(U\x02u1K\x00K\x01tR'
  array = b'cnumpy.core.multiarray\n_reconstruct\n)R(K\x01' + shape + dtype + b'K\x00U\x01atb'
  (folder / 'meta').write_bytes(HEAD + b'}U\x04data' + array + b's.')
  with pytest.raises(UserError, match='something else than bytes'):
    cifar.read(tmp_path, False)
