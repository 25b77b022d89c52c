"""What is installed: the package, its configs as hierjax.configs, and what each part needs."""

import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import venv

import pytest

from hierjax.core.errors import EXTRAS, UserError, missing_extra

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def build(tmp_path_factory) -> pathlib.Path:
  """A folder with what a wheel would have: lib/ and hierjax.egg-info/."""
  folder = tmp_path_factory.mktemp('wheel')
  command = [sys.executable, '-W', 'ignore', 'setup.py', '-q', 'egg_info', '--egg-base', folder]
  command += ['build', '--build-base', folder]
  subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
  return folder


def test_the_installed_package_is_whole_and_its_configs_work(build, tmp_path):
  """A config that builds on another is found from outside the checkout."""
  installed = build / 'lib' / 'hierjax'
  files = {path.relative_to(installed) for path in installed.rglob('*') if path.is_file()}
  expected = set()
  for folder, base in ((ROOT / 'hierjax', ROOT / 'hierjax'), (ROOT / 'configs', ROOT)):
    for pattern in ('*.py', '*.j2', '*.cc', 'serve/page/*'):
      expected |= {path.relative_to(base) for path in folder.rglob(pattern)}
  assert files == expected
  code = (
    'from hierjax.cli import config_files\n'
    'c = config_files.load(str(config_files.folder() / "tables" / "s2_table1.py") + ":cagrad")\n'
    'print(c.balance.name, config_files.__file__)\n'
  )
  env = {**os.environ, 'PYTHONPATH': str(build / 'lib')}
  process = subprocess.run(
    [sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True
  )
  assert process.stdout.split() == ['cagrad', str(installed / 'cli' / 'config_files.py')], (
    process.stderr
  )


def test_each_package_has_one_range_of_versions(build):
  """And each module that only some parts need is in the extra that its error names."""
  sections = (build / 'hierjax.egg-info' / 'requires.txt').read_text().split('\n\n')
  extras, ranges = {}, {}
  for section in sections:
    heading = re.match(r'\[(.*)\]', section)
    for name, versions in re.findall(r'^([a-zA-Z][\w.-]*(?:\[\w+\])?)(.*)', section, re.MULTILINE):
      assert ranges.setdefault(name.lower(), versions) == versions, name
      extras.setdefault(name.lower(), set()).add(heading and heading[1])
  extra_names = set().union(*extras.values())
  assert set('train export serve cuda12 tpu wandb test docs'.split()) <= extra_names
  assert all(extras[name] == {None} for name in ('jax', 'flax', 'grain', 'pillow'))
  assert extras['onnxruntime'] == {'export', 'serve'} and 'serve' in extras['uvicorn']
  distributions = importlib.metadata.packages_distributions()
  for module, extra in EXTRAS.items():
    if module in distributions and module != 'threadpoolctl':  # which scikit-learn brings
      assert extra in set().union(*(extras.get(x.lower(), {}) for x in distributions[module])), (
        module
      )


BLOCKED = """
import sys
sys.path.insert(0, {root!r})
import hierjax
from hierjax.core.errors import EXTRAS
class Absent:
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in EXTRAS:
      raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
import hierjax.cli.predict, hierjax.cli.lint, hierjax.cli.describe, hierjax.cli.program
try:
  hierjax.Classifier
except ModuleNotFoundError as e:
  print(e)
from hierjax.cli import program
sys.exit(program.run(['hierjax', 'train', '--config=3head']))
"""


def test_prediction_needs_no_extra_and_training_says_which(tmp_path):
  """Without any extra: predict, lint and describe are imported, train says what is missing."""
  code = BLOCKED.format(root=str(ROOT))
  process = subprocess.run(
    [sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=120
  )
  extra = "comes with: pip install 'hierjax[train]'"
  assert process.stdout == f'sklearn is not installed; it {extra}\n', process.stderr
  assert process.stderr == f'error: optax is not installed; it {extra}\n'
  assert process.returncode == 2
  assert missing_extra(UserError('x')) == missing_extra(ModuleNotFoundError(name='x')) == ''


@pytest.mark.slow
def test_the_wheel_in_empty_environments(tmp_path):
  """Trains the quick start with the extra train, and predicts without any; both elsewhere."""
  # what is built, and what PYTHONPATH names, must not lie beside the checkout's own files
  skipped = shutil.ignore_patterns('.*', 'runs', 'shared', 'build', '*.egg-info', '__pycache__')
  source = shutil.copytree(ROOT, tmp_path / 'source', ignore=skipped)
  # one device, as users have it, and not the eight of these tests
  env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'XLA_FLAGS')}

  def run(*words: str | pathlib.Path) -> str:
    result = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout

  run(sys.executable, '-m', 'pip', '-q', 'wheel', '--no-deps', '-w', tmp_path / 'wheels', source)
  (wheel,) = (tmp_path / 'wheels').glob('hierjax-*.whl')
  full, bare = tmp_path / 'full' / 'bin', tmp_path / 'bare' / 'bin'
  for folder, extra in ((full, '[train]'), (bare, '')):
    venv.create(folder.parent, with_pip=True)
    run(folder / 'pip', '-q', 'install', f'{wheel}{extra}')
  options = ['--epochs=1', '--config.data.toy.train=64', '--config.data.toy.val=64']
  options += ['--config.baseline_seeds=1', '--workdir=run']
  text = run(full / 'hierjax', 'train', '--config=quickstart', *options)
  assert 'Right on 64 images of val' in text and (tmp_path / 'run' / 'report.html').exists()
  image = next((ROOT / 'docs').glob('*.png'))
  assert '"path"' in run(bare / 'hierjax', 'predict', '--workdir=run', f'--images={image}')
  packages = run(bare / 'pip', 'list')
  # flax itself brings optax
  assert not re.findall('tensorflow|matplotlib|tensorboard|scikit|pyarrow', packages)
