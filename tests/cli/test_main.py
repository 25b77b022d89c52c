"""The command line as a user meets it: each test is a process."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest

import hierjax
from hierjax.cli import arguments, config_files, evaluate, report
from hierjax.core.declarations import OPTIONS
from hierjax.core.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_program(*args, code=0, program='main.py'):
  env = os.environ | {
    'XLA_FLAGS': os.environ['HIERJAX_TEST_XLA_FLAGS'],
    'HIERJAX_HUGEPAGES': '0',
    'JAX_COMPILATION_CACHE_DIR': os.environ['HIERJAX_TEST_CACHE'],
  }
  result = subprocess.run(
    [sys.executable, program, *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
  )
  assert result.returncode == code, result.stdout + result.stderr
  assert 'Traceback' not in result.stderr, result.stderr
  return result.stdout, result.stderr


def test_help():
  out, _ = run_program('--help')
  assert '--mode' in out and '--config=3head' in out and '--config.optim.lr' in out
  out, _ = run_program(code=1)
  assert out.count('  hierjax ') == 3 and len(out.splitlines()) < 12
  out, _ = run_program('options', 'EPOCHS', 'warm')
  assert [line for line in out.splitlines() if line.startswith('  --')] == [
    '  --config.optim.warmup_epochs'
  ]
  assert run_program('--version')[0] == f'hierjax {hierjax.__version__}\n'
  _, err = run_program('options', 'epochz', code=2)
  assert 'no option has epochz in its name or help' in err


def test_commands_and_short_names_are_the_flags_that_they_stand_for():
  short = arguments.parse(
    ['', 'table', '--config=s1_table5', '--lr', '3e-4', '--data=x', '--seed=4']
  )
  long = arguments.parse(
    [
      '',
      '--mode=table',
      '--config=s1_table5',
      '--config.optim.lr=3e-4',
      '--config.data.root=x',
      '--config.seed=4',
    ]
  )
  assert short == long and short.overrides == {'optim.lr': '3e-4', 'data.root': 'x', 'seed': '4'}
  path = ROOT / 'configs' / 'tables' / 's1_table5.py'
  assert config_files.find(short.config_file) == config_files.find(str(path)) == path
  assert set(arguments.ALIASES.values()) < set(OPTIONS)


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--config.optim.lrr=3'], "did you mean 'optim.lr'"),
    (['--config=configs/nope.py'], 'nope.py'),
    (['trian'], "'trian' is no command (did you mean 'train'?); commands: train, evaluate"),
    (['--config=configs/ladder.py:11'], 'choices: 1, 2, 3, 4, 5, 5.5'),
  ],
)
def test_mistakes_are_one_line(args, message):
  """A process each; tests/cli/test_bad_input.py has the others in one."""
  _, err = run_program(*args, code=2)
  lines = [line for line in err.splitlines() if line]
  assert len(lines) == 1 and lines[0].startswith('error: ') and message in lines[0], err


def test_describe_and_lint():
  out, _ = run_program('--mode=describe', '--config=configs/2head.py')
  result = json.loads(out.splitlines()[-1])
  assert result['trunk_params'] == 3_371_008 and list(result['heads']) == ['make', 'model']
  assert result['params'] == result['trunk_params'] + sum(result['heads'].values())
  out, _ = run_program('--mode=lint')
  assert '5 makes' in out and '0 errors' in out


def test_train_evaluate_predict(tmp_path, monkeypatch, capsys, tiny_backbone, one_device):
  """The three commands in turn, on the drawn data with a small backbone and two steps."""
  run = f'--workdir={tmp_path}/run'
  train = [
    '--config=configs/quickstart.py',
    run,
    '--config.baseline=',
    '--config.baseline_seeds=1',
    '--config.data.size=32',
    '--config.data.toy.train=64',
    '--config.data.toy.val=40',
    '--config.model.backbone=tiny',
    '--config.model.pretrained=',
    '--config.train.epochs=0',
    '--config.train.steps=2',
  ]
  main = functools.partial(run_program, program='tests/worker.py')
  out, err = main(*train, '--json')  # without its report, which the next one makes
  result = json.loads(out.splitlines()[-1])
  assert (
    len(result['state_sha256']) == 64
    and result['split'] == 'val'
    and result['n'] == 40
    and 'report.html' in err
  )
  monkeypatch.setenv('HIERJAX_TEST_REPORT', '1')
  out, _ = main(*train)
  assert (tmp_path / 'run' / 'explain_val.npz').exists()
  assert (tmp_path / 'run' / 'report.html').exists()
  info = json.loads((tmp_path / 'run' / 'run.json').read_text())
  assert info['state_sha256'] == result['state_sha256']
  top1 = {k: v['top1'] for k, v in result['decode']['joint']['levels'].items()}
  scores = ', '.join(f'{level} {100 * value:.1f} %' for level, value in top1.items())
  assert f'Right on 40 images of val (joint decision): {scores}, whole path ' in out
  assert 'no baseline to compare with: add --config.baseline=train' in out
  assert f'hierjax predict --workdir={tmp_path}/run ' in out and len(out.splitlines()) <= 10
  out, _ = main('--mode=evaluate', run, '--split=train', '--config.eval.tta=2')
  result = json.loads(out.splitlines()[-1])
  assert (
    result == json.loads((tmp_path / 'run' / 'eval_train.json').read_text())
    and result['tta'] == 2
    and result['n'] == 64
  )
  with pytest.raises(UserError, match='takes its model from'):
    evaluate.run(arguments.parse(['', '--mode=evaluate', run, '--config.optim.lr=1']))
  (tmp_path / 'run' / 'explain_val.npz').unlink()
  report.run(arguments.parse(['', '--mode=report', run]))
  assert capsys.readouterr().out.strip() == f'{tmp_path}/run/report.html'
  assert (tmp_path / 'run' / 'explain_val.npz').exists()
  (tmp_path / 'bad.jpg').write_bytes(b'')
  out, _ = main('--mode=predict', run, f'--images={tmp_path}/*.jpg')
  assert json.loads(out) == {'file': f'{tmp_path}/bad.jpg', 'error': 'empty: it has no bytes'}
