"""Push and pull against a folder as hub; its functions have the parameters of the real ones."""

import importlib
import inspect
import os
import pathlib
import shutil

import pytest

from hierjax.cli import arguments
from hierjax.core import hub
from hierjax.core.config import default
from hierjax.core.errors import UserError
from hierjax.data import sources
from hierjax.data.findings import Findings
from hierjax.models import weights

SECRET = 'hf_secret'


@pytest.fixture
def repository(tmp_path, monkeypatch) -> pathlib.Path:
  """The folder of the repository one/model of the hub."""
  real = pytest.importorskip('huggingface_hub')
  root = tmp_path / 'hub'
  signatures = {
    f: inspect.signature(getattr(real.HfApi, f)) for f in ('create_repo', 'upload_folder')
  }
  download, matching = inspect.signature(real.snapshot_download), real.utils.filter_repo_objects

  class Api:
    def create_repo(self, *args, **options):
      signatures['create_repo'].bind(self, *args, **options)
      assert args == ('one/model',) and options == {'private': True, 'exist_ok': True}
      (root / 'one' / 'model').mkdir(parents=True, exist_ok=True)
      return 'https://hub/one/model'

    def upload_folder(self, **options):
      signatures['upload_folder'].bind(self, **options)
      for name in options['allow_patterns']:
        shutil.copy(options['folder_path'] / name, root / options['repo_id'] / name)

  def snapshot_download(repository, **options):
    download.bind(repository, **options)
    if not (root / repository).exists():
      raise OSError('401 Client Error: no such repository')
    for name in matching(os.listdir(root / repository), allow_patterns=options['allow_patterns']):
      (options['local_dir'] / '.cache').mkdir(parents=True, exist_ok=True)
      shutil.copy(root / repository / name, options['local_dir'] / name)

  monkeypatch.setattr(real, 'HfApi', Api)
  monkeypatch.setattr(real, 'snapshot_download', snapshot_download)
  monkeypatch.setenv('HF_TOKEN', SECRET)
  monkeypatch.chdir(tmp_path)
  return root / 'one' / 'model'


def run(mode, *words):
  command = importlib.import_module(f'hierjax.cli.{mode}')
  command.run(arguments.parse(['hierjax', mode, *map(str, words)]))


def test_what_is_pulled_is_what_was_pushed(repository, exported, tmp_path, capsys):
  """The files of the manifest and no others; a file that was changed on the way is refused."""
  source = pathlib.Path(shutil.copytree(exported, tmp_path / 'source'))
  (source / 'notes.txt').write_text('of mine')
  run('push', source, 'hf:one/model')
  assert {p.name for p in repository.iterdir()} == {p.name for p in exported.iterdir()}
  (repository / 'other.bin').write_bytes(b'x')
  run('pull', 'hf:one/model', 'new')
  assert {p.name: p.read_bytes() for p in (tmp_path / 'new').iterdir()} == {
    p.name: p.read_bytes() for p in exported.iterdir()
  }
  with pytest.raises(UserError, match='new: exists'):
    run('pull', 'hf:one/model', 'new')
  (repository / 'README.md').write_text('changed')
  with pytest.raises(UserError, match=r'README.md: is damaged'):
    run('pull', 'hf:one/model@main', 'newer')
  (repository / 'manifest.json').unlink()
  with pytest.raises(UserError, match='no exported model'):
    run('pull', 'hf:one/model', 'newer')
  with pytest.raises(UserError, match=r'could not be pulled \(OSError: 401'):
    run('pull', 'hf:one/none', 'newer')
  assert sorted(os.listdir(tmp_path)) == ['hub', 'new', 'source']
  assert SECRET not in ''.join(capsys.readouterr())


def test_what_is_damaged_or_badly_named_is_not_pushed(repository, exported, tmp_path):
  source = pathlib.Path(shutil.copytree(exported, tmp_path / 'source'))
  (source / 'README.md').write_text('changed')
  with pytest.raises(UserError, match='is damaged'):
    run('push', source, 'hf:one/model')
  for words in (('push', exported), ('pull', 'hf:one/model')):
    with pytest.raises(UserError, match=f'{words[0]} is called as hierjax {words[0]}'):
      run(*words)
  assert not repository.exists()


@pytest.mark.parametrize(
  'address',
  (
    'hf:model',
    'hf:',
    'hf:one/two/three',
    'hf:one/model@',
    'hf:../one',
    'hf:one/model ',
    'hf:a/b@c d',
  ),
)
def test_a_wrong_address_is_refused_in_the_same_words_everywhere(tmp_path, address):
  """Of models to push and to pull, of data sets and of weights; nothing is asked of a network."""
  options = default().data
  options.root = address
  uses = (
    lambda: run('push', tmp_path, address),
    lambda: run('pull', address, tmp_path / 'new'),
    lambda: sources.read_table(options, Findings()),
    lambda: weights.load('resnet18', {}, address),
  )
  words = f'{address}: must be hf:OWNER/NAME or hf:OWNER/NAME@REVISION, '
  for use in uses:
    with pytest.raises(UserError) as error:
      use()
    assert str(error.value).startswith(words) and ', as hf:timm/resnet18.a1' in str(error.value)
  with pytest.raises(UserError, match='one/model: must be hf:OWNER/NAME or'):
    run('push', tmp_path, 'one/model')


def test_addresses_are_parsed():
  assert hub.parse('hf:one/model-1.0_b') == ('one/model-1.0_b', None)
  assert hub.parse('hf:one/data@refs/pr/1') == ('one/data', 'refs/pr/1')
