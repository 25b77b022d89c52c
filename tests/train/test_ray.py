"""The script for Ray Train in docs/distributed.md, with two workers on this machine.

Only where ray is installed: `pip install 'ray[train]'`.
"""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
RAY = pathlib.Path(sys.executable).parent / 'ray'
PATIENCE = 240  # seconds

pytestmark = pytest.mark.skipif(
  not importlib.util.find_spec('ray') or not RAY.exists(), reason='ray is not installed'
)


@pytest.fixture
def cluster():
  """The environment of programs that use a Ray cluster, of which CPUs pass for two GPUs."""
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT), 'RAY_ADDRESS': 'auto'}
  env.pop('XLA_FLAGS', None)
  start = ['start', '--head', '--port=0', '--num-cpus=4', '--num-gpus=2']
  subprocess.run([RAY, *start, '--include-dashboard=false'], env=env, check=True)
  yield env
  subprocess.run([RAY, 'stop', '--force'], env=env, check=True)


def test_two_workers_of_which_one_dies(cluster, tmp_path):
  """Ray starts both again, and they go on from the last checkpoint."""
  text = (ROOT / 'docs/distributed.md').read_text()
  (script,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  (tmp_path / 'train_ray.py').write_text(script.replace('/shared/ray', str(tmp_path / 'ray')))
  run = tmp_path / 'run'
  flags = [f'--config={ROOT}/tests/tiny.py', '--config.model.backbone=efficientnet_lite0']
  flags += ['--config.train.steps=60', '--config.train.eval_steps=10', f'--workdir={run}']
  command = [sys.executable, tmp_path / 'train_ray.py', '2', *flags]
  with (tmp_path / 'log').open('w') as log:
    job = subprocess.Popen(command, cwd=ROOT, env=cluster, stdout=log, stderr=log)
    end = time.monotonic() + PATIENCE
    while not list(run.glob('checkpoints/10')):
      assert time.monotonic() < end and job.poll() is None, (tmp_path / 'log').read_text()
      time.sleep(0.1)
    subprocess.run(['pkill', '-9', '-n', '-f', 'ray::RayTrainWorker'], check=True)
    assert job.wait(PATIENCE) == 0, (tmp_path / 'log').read_text()
  steps = [json.loads(line)['step'] for line in (run / 'metrics.jsonl').read_text().splitlines()]
  assert steps[-1] == 60 and steps == sorted(steps)
  assert '2 cpu device(s)' in (tmp_path / 'log').read_text()
