"""Users' own parts: the examples of docs/extending.md, from a folder outside the checkout."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import hierjax
from hierjax.core import config, plugins
from hierjax.core.errors import UserError

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
  env = {**os.environ, 'XLA_FLAGS': '', 'HIERJAX_HUGEPAGES': '0'}
  env.pop('PYTHONPATH', None)
  command = [sys.executable, str(ROOT / 'main.py'), *flags]
  process = subprocess.run(
    command, cwd=folder, env=env, capture_output=True, text=True, timeout=300
  )
  assert process.returncode == code and 'Traceback' not in process.stderr, process.stderr
  return process.stdout, process.stderr


def test_the_examples_train_resume_evaluate_and_predict(tmp_path):
  folder = tmp_path / 'elsewhere'
  shutil.copytree(ROOT / 'examples' / 'extending', folder)
  train = ('--config=my_config.py', f'--workdir={tmp_path}/run', *SMALL)
  out, _ = run(folder, *train)
  result = json.loads(out.splitlines()[-1])
  assert 0 <= result['decode']['joint']['coarse_error'] <= 1
  stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert stored['plugins'] == ['my_parts'] and stored['model']['backbone'] == 'two_layers'
  log = (tmp_path / 'run' / 'metrics.jsonl').read_text()
  assert 'loss/confidence_penalty' in log
  out, _ = run(folder, f'--workdir={tmp_path}/run')
  assert json.loads(out.splitlines()[-1])['state_sha256'] == result['state_sha256']
  out, _ = run(folder, '--mode=evaluate', f'--workdir={tmp_path}/run')
  assert json.loads(out.splitlines()[-1])['decode'] == result['decode']
  shutil.copy(ROOT / 'docs' / 'report.png', folder)
  moved = f'--config.plugins={folder}/my_parts.py'
  out, _ = run(tmp_path, '--mode=predict', f'--workdir={tmp_path}/run', moved,
               f'--images={folder}/report.png')  # fmt: skip
  assert json.loads(out)['file'].endswith('report.png')
  _, err = run(tmp_path, '--mode=evaluate', f'--workdir={tmp_path}/run', code=2)
  assert "no module 'my_parts' in the working directory or on PYTHONPATH" in err


def test_a_plugin_in_the_folder_of_a_run_is_refused(tmp_path, monkeypatch):
  """Neither a file nor a module nor a package from there is imported."""
  run_folder = tmp_path / 'run'
  (run_folder / 'baseline').mkdir(parents=True)
  (run_folder / 'package').mkdir()
  code = 'import pathlib\npathlib.Path("PWNED").touch()\n'
  (run_folder / 'evil.py').write_text(code)
  (run_folder / 'package' / '__init__.py').write_text(code)
  monkeypatch.chdir(run_folder)
  c = config.default()
  for name in ('evil.py', str(run_folder / 'evil.py'), 'evil', 'package.part'):
    c.plugins = (name,)
    (run_folder / 'config.json').write_text(config.to_json(c))
    (run_folder / 'baseline' / 'config.json').write_text(config.to_json(c))
    for folder in (run_folder, run_folder / 'baseline'):
      with pytest.raises(UserError, match='lies in the folder of the run'):
        hierjax.load(folder)
  assert not (run_folder / 'PWNED').exists()


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
