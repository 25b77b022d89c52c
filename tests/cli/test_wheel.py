"""What is installed: all of the package, and the configs as hierjax.configs."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_installed_package_is_whole_and_its_configs_work(tmp_path):
  """A config that builds on another is found from outside the checkout."""
  build = ['build', '--build-base', str(tmp_path / 'build')]
  setup = 'import setuptools; setuptools.setup()'
  subprocess.run(
    [sys.executable, '-c', setup, '-q', 'egg_info', '--egg-base', str(tmp_path), *build],
    cwd=ROOT,
    check=True,
    capture_output=True,
  )
  installed = tmp_path / 'build' / 'lib' / 'hierjax'
  files = {path.relative_to(installed) for path in installed.rglob('*') if path.is_file()}
  expected = set()
  for folder, base in ((ROOT / 'hierjax', ROOT / 'hierjax'), (ROOT / 'configs', ROOT)):
    for pattern in ('*.py', '*.j2'):
      expected |= {path.relative_to(base) for path in folder.rglob(pattern)}
  assert files == expected
  code = (
    'from hierjax.cli import config_files\n'
    'c = config_files.load(str(config_files.folder() / "tables" / "s2_table1.py") + ":cagrad")\n'
    'print(c.balance.name, config_files.__file__)\n'
  )
  env = {**os.environ, 'PYTHONPATH': str(tmp_path / 'build' / 'lib')}
  process = subprocess.run(
    [sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True
  )
  assert process.stdout.split() == ['cagrad', str(installed / 'cli' / 'config_files.py')], (
    process.stderr
  )
