"""Users' own parts: the examples of docs/extending.md, from a folder outside the checkout."""

import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import hierjax
from hierjax.cli import arguments
from hierjax.core import config, plugins
from hierjax.core.errors import UserError
from hierjax.report import page

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = (
  '--config.data.toy.train=32',
  '--config.data.toy.val=40',
  '--config.train.batch_size=16',
  '--config.train.epochs=',
  '--config.train.steps=4',
  '--config.train.log_steps=1',
)


def run(folder, *flags, code=0):
  """Run main.py in a folder; return its stdout and stderr."""
  env = os.environ | {
    'XLA_FLAGS': os.environ['HIERJAX_TEST_XLA_FLAGS'],
    'HIERJAX_HUGEPAGES': '0',
    'JAX_COMPILATION_CACHE_DIR': os.environ['HIERJAX_TEST_CACHE'],
  }
  env.pop('PYTHONPATH', None)
  command = [sys.executable, str(ROOT / 'main.py'), *flags]
  process = subprocess.run(
    command, cwd=folder, env=env, capture_output=True, text=True, timeout=300
  )
  assert process.returncode == code and 'Traceback' not in process.stderr, process.stderr
  return process.stdout, process.stderr


def test_the_examples_train_resume_evaluate_and_predict(tmp_path, monkeypatch):
  folder = tmp_path / 'elsewhere'
  shutil.copytree(ROOT / 'examples' / 'extending', folder)
  train = ('--config=my_config.py', f'--workdir={tmp_path}/run', *SMALL)
  out, _ = run(folder, *train, '--json')
  result = json.loads(out.splitlines()[-1])
  assert 0 <= result['decode']['joint']['coarse_error'] <= 1
  stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert stored['plugins'] == ['my_parts'] and stored['model']['backbone'] == 'two_layers'
  log = (tmp_path / 'run' / 'metrics.jsonl').read_text()
  assert 'loss/confidence_penalty' in log
  out, _ = run(folder, '--json', f'--workdir={tmp_path}/run', '--config.plugins=my_parts')
  assert json.loads(out.splitlines()[-1])['state_sha256'] == result['state_sha256']
  out, _ = run(folder, '--mode=evaluate', f'--workdir={tmp_path}/run')
  assert json.loads(out.splitlines()[-1])['decode'] == result['decode']
  shutil.copy(ROOT / 'docs' / 'report.png', folder)
  moved = f'--config.plugins={folder}/my_parts.py'
  out, _ = run(tmp_path, '--mode=predict', f'--workdir={tmp_path}/run', moved,
               f'--images={folder}/report.png')  # fmt: skip
  assert json.loads(out)['file'].endswith('report.png')
  monkeypatch.chdir(tmp_path)
  flags = ('--mode=evaluate', f'--workdir={tmp_path}/run', '--config.plugins=my_parts')
  with pytest.raises(UserError, match="no module 'my_parts' in the working directory or on PYTH"):
    importlib.import_module('hierjax.cli.evaluate').run(arguments.parse(['main.py', *flags]))


def test_a_plugin_that_the_user_has_run_is_run_again_until_it_changes(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path / 'state'))
  monkeypatch.chdir(tmp_path)
  names = ['by_module', str(tmp_path / 'by_file.py')]
  for name in ('by_module', 'by_file'):
    (tmp_path / f'{name}.py').write_text('import os\nos.environ["RUNS"] += "x"\n')
  monkeypatch.setenv('RUNS', '')

  def require_anew():
    for module in [m for m in sys.modules if 'by_module' in m or 'by_file' in m]:
      del sys.modules[module]
    plugins.require(names, 'run')

  with pytest.raises(UserError, match='because a run names it; if you trust it'):
    require_anew()
  plugins.remember(names)
  require_anew()
  assert os.environ['RUNS'] == 'xx'
  for name in ('by_module', 'by_file'):
    path = tmp_path / f'{name}.py'
    original = path.read_text()
    path.write_text(original + '# another\n')
    with pytest.raises(UserError, match=rf'names it \(.*{name}\.py has changed since\)'):
      require_anew()
    path.write_text(original)
  moved = tmp_path / 'elsewhere'
  moved.mkdir()
  (moved / 'by_module.py').write_text((tmp_path / 'by_module.py').read_text())
  monkeypatch.chdir(moved)
  with pytest.raises(UserError, match='because a run names it; if you trust it'):
    require_anew()
  (tmp_path / 'state' / 'hierjax' / 'plugins.json').write_text('[')
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match='because a run names it; if you trust it'):
    require_anew()


def test_no_code_is_run_because_a_run_names_it(tmp_path, monkeypatch):
  """Neither a file nor a module, in the folder of the run, beside it, or of the installation."""
  run_folder = tmp_path / 'run'
  (run_folder / 'package').mkdir(parents=True)
  code = 'import pathlib\npathlib.Path("PWNED").touch()\n'
  for file in ('run/evil.py', 'run/package/__init__.py', 'beside.py', 'beside2.py'):
    (tmp_path / file).write_text(code)
  monkeypatch.chdir(tmp_path)
  c = config.default()
  for name in ('run/evil.py', str(run_folder / 'evil.py'), 'evil', 'package.part', 'beside',
               'beside.py', str(tmp_path / 'beside2.py'), 'antigravity'):  # fmt: skip
    c.plugins = (name,)
    (run_folder / 'config.json').write_text(config.to_json(c))
    with pytest.raises(UserError, match=r'code is not run because a run names it.*--config\.plug'):
      hierjax.load(run_folder)
    for mode in ('evaluate', 'predict', 'report', 'train'):
      flags = [f'--mode={mode}', '--workdir=run', *['--images=x'] * (mode == 'predict')]
      args = arguments.parse(['main.py', *flags])
      with pytest.raises(UserError, match='because a run names it'):
        importlib.import_module(f'hierjax.cli.{mode}').run(args)
  page.write(run_folder)
  assert not list(tmp_path.rglob('PWNED')) and 'antigravity' not in sys.modules


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, 'no such file'),
    ('1 / 0\n', 'ZeroDivisionError: division by zero'),
    ('import nonsuch\n', 'ModuleNotFoundError'),
    ('def (\n', 'SyntaxError'),
  ],
)
def test_a_plugin_that_cannot_be_imported(tmp_path, content, message):
  path = tmp_path / 'broken.py'
  if content is not None:
    path.write_text(content)
  with pytest.raises(UserError, match=rf'--config\.plugins: .*broken\.py: {message}'):
    plugins.load([str(path)])


def test_a_plugin_file_is_imported_once(tmp_path, monkeypatch):
  (tmp_path / 'counted.py').write_text('import os\nos.environ["COUNT"] += "x"\n')
  monkeypatch.setenv('COUNT', '')
  plugins.load([str(tmp_path / 'counted.py')])
  plugins.load([str(tmp_path / 'counted.py')])
  assert os.environ['COUNT'] == 'x'
