"""A few inputs of `fuzz.py` for each reader, in this process."""

import fuzz
import pytest

from hierjax.core import json_files

COUNTS = {'csv': 12, 'tar': 25, 'parquet': 25, 'pickle': 40, 'mat': 40, 'json': 40, 'images': 60,
          'config': 300, 'npz': 100}  # fmt: skip


@pytest.mark.parametrize('name', fuzz.READERS)
def test_hostile_inputs_are_read_or_refused(name, tmp_path, monkeypatch):
  """Nothing else is raised; `make fuzz` reads more of them, and watches memory, time and files."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  for number in range(COUNTS[name]):
    fault = fuzz.attempt(name, fuzz.make_input(name, 7, number), tmp_path / f'input{number}')
    assert not fault, f'{name} {number}: {fault}'


def test_samples_are_sound(tmp_path):
  """A fuzzer of samples that are refused anyway would only test the first check."""
  for name, reader in fuzz.READERS.items():
    for i, files in enumerate(fuzz.samples_of(name)):
      if name == 'pickle' and 'a.pth' not in files and 'cifar-100-python/train' not in files:
        continue
      folder = tmp_path / f'{name}{i}'
      for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
      if name == 'pickle' and 'a.pth' in files:
        assert fuzz.torch_files.read(folder / 'a.pth')['w'].shape == (2, 2)
      elif files:
        reader.read(folder)


def test_the_fuzzer_notices(tmp_path, monkeypatch):
  """Exceptions of other kinds, and memory."""
  for error in (IndexError('x'), MemoryError(), RecursionError()):

    def read(folder, error=error):
      raise error

    monkeypatch.setitem(fuzz.READERS, 'json', fuzz.READERS['json']._replace(read=read))
    assert type(error).__name__ in fuzz.attempt('json', {}, tmp_path / type(error).__name__)
  read = json_files.read
  monkeypatch.setitem(
    fuzz.READERS, 'json', fuzz.READERS['json']._replace(read=lambda folder: read(folder / 'a'))
  )
  assert fuzz.attempt('json', {'a': b'{'}, tmp_path / 'refused') == ''


def test_an_input_is_determined_by_its_number():
  """So that a finding can be read again."""
  for name in fuzz.READERS:
    assert fuzz.make_input(name, 1, 5) == fuzz.make_input(name, 1, 5)
    assert any(fuzz.make_input(name, 1, i) != fuzz.make_input(name, 2, i) for i in range(5))
