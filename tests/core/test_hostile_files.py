"""Files of strangers: nothing waits, floods the memory or ends in a traceback."""

import io
import json
import os
import zipfile

import numpy as np
import pytest

from hierjax.core import archives, files, json_files
from hierjax.core.errors import UserError

# What each is, and a word of the refusal.
JSON = {
  'brackets': ('[' * 200_000, 'nested'),
  'objects': ('{"a":' * 5_000 + '1' + '}' * 5_000, 'nested'),
  'depth the parser bears': ('[' * 100 + ']' * 100, 'nested'),
  'long integer': ('{"a": ' + '7' * 5_000 + '}', 'integer of 5000 digits'),
  'integer of 65 bits': ('{"a": -18446744073709551616}', 'integer of 21 digits'),
  'number': ('[1e999]', '1e999 is too large'),
  'negative number': ('{"a": {"b": -1.5e4000}}', 'too large'),
  'NaN': ('{"a": NaN}', 'NaN is not a finite number'),
  'infinity': ('[-Infinity]', '-Infinity is not'),
  'a key twice': ('{"a": 1, "b": 2, "a": 1}', "'a' is there 2 times"),
  'not UTF-8': (b'{"caf\xe9": 1}', 'byte 5 is not UTF-8'),
  'UTF-16': ('{"a": 1}'.encode('utf-16'), 'not UTF-8'),
  'cut off': ('{"a": [1, 2', 'delimiter'),
  'empty': ('', 'Expecting value'),
  'two documents': ('{} {}', 'Extra data'),
  'zero bytes': (b'\0' * 1000, 'Expecting value'),
}


@pytest.mark.parametrize('name', JSON)
def test_damaged_json_is_one_line(name, tmp_path):
  """Each kind of damage is a sentence that begins with the file."""
  content, reason = JSON[name]
  path = tmp_path / 'a.json'
  path.write_bytes(content.encode() if isinstance(content, str) else content)
  with pytest.raises(UserError) as e:
    json_files.read(path)
  text = str(e.value)
  assert text.startswith(f'{path}: is damaged (') and reason in text
  assert '\n' not in text and len(text) < 400


@pytest.mark.parametrize(
  'value', [{}, [], None, 0.1, 'text', {'a': [[1], {'b': None}], '\udcff': 2**63}, [[[]]] * 1000]
)
def test_sound_json_is_read(value, tmp_path):
  """Also behind a byte order mark, and with lone surrogates, which names of files have."""
  path = tmp_path / 'a.json'
  path.write_bytes(b'\xef\xbb\xbf' + json.dumps(value).encode())
  assert json_files.read(path) == value == json_files.parse(json.dumps(value))


def test_a_large_text_is_not_read(tmp_path):
  """A sparse file of a terabyte takes no memory."""
  path = tmp_path / 'a.json'
  with path.open('wb') as f:
    f.truncate(2**40)
  for read in (json_files.read, files.read_text, files.read_bytes):
    with pytest.raises(OSError, match='1048576 MiB; at most'):
      read(path)


@pytest.mark.parametrize('name', ['pipe', '/dev/zero', 'folder', 'absent', 'link to a pipe'])
def test_only_regular_files_are_opened(name, tmp_path):
  """A pipe without a writer would wait for ever, a device would never end."""
  path = tmp_path / name
  if name == 'folder':
    path.mkdir()
  elif 'pipe' in name:
    os.mkfifo(tmp_path / 'p')
    path.symlink_to('p')
  for read in (files.open_regular, files.read_text, json_files.read, archives.read):
    with pytest.raises(OSError) as e:
      read(path)
    assert e.value.filename == str(path) and e.value.strerror


def test_text_is_utf8(tmp_path):
  """A byte order mark is dropped, other bytes are an error."""
  path = tmp_path / 'a.txt'
  path.write_bytes('\ufeffKäfer\n'.encode())
  assert files.read_text(path) == 'Käfer\n'
  path.write_bytes('Käfer\n'.encode('latin-1'))
  with pytest.raises(UserError, match=r'a\.txt: is not UTF-8 text \(byte 1\)'):
    files.read_text(path)
  assert files.read_text(path, errors='replace') == 'K\ufffdfer\n'


ARRAYS = {
  'a': np.arange(6).reshape(2, 3),
  's': np.array(['ä', 'bb', '']),
  'f': np.asfortranarray(np.ones((3, 4), np.float32)),
  'none': np.zeros((0, 5)),
  'scalar': np.array('x'),
}


def test_an_archive_is_read_as_numpy_reads_it(tmp_path):
  """All arrays, compressed or not."""
  for save in (np.savez, np.savez_compressed):
    save(tmp_path / 'a.npz', **ARRAYS)
    arrays = archives.read(tmp_path / 'a.npz')
    assert list(arrays) == list(ARRAYS)
    for key, value in ARRAYS.items():
      assert arrays[key].dtype == value.dtype
      np.testing.assert_array_equal(arrays[key], value)


def header(text: str) -> bytes:
  """The beginning of a .npy file whose header is this text."""
  return b'\x93NUMPY\x01\x00' + len(text).to_bytes(2, 'little') + text.encode('latin-1')


def npy(shape: str, dtype: str = "'<f8'") -> bytes:
  """The beginning of a .npy file."""
  return header(f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}")


DAMAGED = {
  'a header of 8 TiB': npy('(1099511627776,)') + bytes(64),
  'sizes that overflow': npy('(4294967296, 4294967296, 2)') + bytes(32),
  'a negative size': npy('(-1,)') + bytes(8),
  'elements without bytes': npy('(1000000000000,)', "'V0'"),
  'objects': npy('(1,)', "'|O'") + b'\x80\x04N.',
  'fewer bytes': npy('(9,)') + bytes(8),
  'more bytes': npy('(1,)') + bytes(80),
  'a header of brackets': header('(' * 5000),
  'a long header': header(' ' * 60_000),
  'no header': b'hello',
  'empty': b'',
}


@pytest.mark.parametrize('name', DAMAGED)
def test_a_damaged_archive_is_one_line(name, tmp_path):
  """What a header says is compared with what there is."""
  path = tmp_path / 'a.npz'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('x.npy', DAMAGED[name])
  with pytest.raises(UserError) as e:
    archives.read(path)
  assert str(e.value).startswith(f'{path}: is damaged (') and len(str(e.value)) < 400


def bomb(path, size: int) -> None:
  """Write an archive of one array of zeros, compressed to a thousandth."""
  with (
    zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    archive.open('predictions.npy', 'w', force_zip64=True) as f,
  ):
    f.write(npy(f'({size},)', "'|u1'"))
    for _ in range(size // 2**20):
      f.write(bytes(2**20))


def test_a_bomb_is_not_unpacked(tmp_path):
  """600 MiB in 3 MB; the limit is an argument."""
  path = tmp_path / 'a.npz'
  bomb(path, 600 * 2**20)
  assert path.stat().st_size < 4 * 2**20
  with pytest.raises(UserError, match=r'a\.npz: unpacks to 600 MiB; at most 512 are read'):
    archives.read(path)
  bomb(path, 2**20)
  assert archives.read(path)['predictions'].shape == (2**20,)
  with pytest.raises(UserError, match='unpacks to 1 MiB; at most 0 are read'):
    archives.read(path, 1000)


def test_a_file_that_is_no_archive(tmp_path):
  """Random bytes, a cut archive, a folder's name."""
  sound = io.BytesIO()
  np.savez(sound, **ARRAYS)
  for content in (b'', b'PK\x03\x04', bytes(1000), sound.getvalue()[:-30]):
    (tmp_path / 'a.npz').write_bytes(content)
    with pytest.raises(UserError, match=r'a\.npz: is damaged \('):
      archives.read(tmp_path / 'a.npz')
