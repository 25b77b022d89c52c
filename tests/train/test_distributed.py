"""Several processes on this machine, over Gloo.

Each test starts real ones, kills them, and starts them again.
"""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import cv2
import jax
import numpy as np
import pytest
import tiny

from benchmarks import scaling
from hierjax import model
from hierjax.core import parallel
from hierjax.core.errors import UserError
from hierjax.experiments import fit
from hierjax.models import initializers
from hierjax.train import checkpoint, optim, setup
from hierjax.train.state import from_parts, to_parts
from hierjax.train.step import stepper

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 10  # seconds of silence until a process counts as dead


def free_port(low=20000, high=32000):
  while True:
    port = int(np.random.default_rng().integers(low, high))
    with contextlib.suppress(OSError), socket.create_server(('', port)):
      return port


def launched_by(launcher: str, n: int, i: int) -> tuple[list[str], dict[str, str]]:
  """Flags and environment of process i of n, as the launcher leaves them."""
  if launcher == 'flags':
    return ['--distributed', f'--num_processes={n}', f'--process_id={i}'], {}
  if launcher == 'slurm':
    return ['--distributed'], {
      'SLURM_STEP_NODELIST': 'localhost',
      'SLURM_NTASKS': str(n),
      'SLURM_PROCID': str(i),
      'SLURM_LOCALID': str(i),
    }
  return ['--distributed'], {
    'OMPI_COMM_WORLD_SIZE': str(n),
    'OMPI_COMM_WORLD_RANK': str(i),
    'OMPI_COMM_WORLD_LOCAL_RANK': str(i),
  }


class Job:
  """n processes of one command, one device each."""

  def __init__(self, folder, n, *flags, launcher='flags'):
    self.folder, self.processes = pathlib.Path(folder), []
    self.folder.mkdir(parents=True, exist_ok=True)
    job = free_port(61440, 65536) - 61440  # SLURM's and Open MPI's job number gives the port
    common = {
      'flags': {},
      'slurm': {'SLURM_JOB_ID': str(job)},
      'ompi': {'OMPI_MCA_orte_hnp_uri': f'{job * 4096}.0;tcp://127.0.0.1:1'},
    }[launcher]
    address = [f'--coordinator=localhost:{free_port()}'] if launcher == 'flags' else []
    for i in range(n):
      args, env = launched_by(launcher, n, i)
      args = [*args, *address, f'--peer_timeout={PATIENCE}', '--start_timeout=60']
      with (self.folder / f'out{i}').open('w') as out, (self.folder / f'err{i}').open('w') as err:
        self.processes.append(
          subprocess.Popen(
            [sys.executable, 'tests/worker.py', '--config=tests/tiny.py', *args, *flags],
            cwd=ROOT,
            stdout=out,
            stderr=err,
            env={
              **os.environ,
              'JAX_PLATFORMS': 'cpu',
              'XLA_FLAGS': os.environ['HIERJAX_TEST_XLA_FLAGS'],
              'JAX_COMPILATION_CACHE_DIR': os.environ['HIERJAX_TEST_CACHE'],
              **common,
              **env,
            },
          )
        )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for p in self.processes:
      p.kill()
      p.wait()

  def out(self, i=0):
    """The lines on stdout, without the one that Gloo writes there."""
    return [
      line
      for line in (self.folder / f'out{i}').read_text().splitlines()
      if not line.startswith('[Gloo]')
    ]

  def err(self, i=0):
    return (self.folder / f'err{i}').read_text()

  def until(self, pattern, i=0, timeout=120):
    """Waits until process i has said it on stderr."""
    end = time.monotonic() + timeout
    while not (match := re.search(pattern, self.err(i))):
      assert time.monotonic() < end and self.processes[i].poll() is None, self.err(i)
      time.sleep(0.01)
    return match

  def codes(self, timeout=120):
    return [p.wait(timeout) for p in self.processes]

  def errs(self):
    return '\n'.join(self.err(i) for i in range(len(self.processes)))


@pytest.fixture
def backbone(monkeypatch):
  tiny.register(monkeypatch)


def photos(folder):
  """48 and 20 images with labels.csv; some labels are unknown.

  Two training images, one in each half of a batch, and one of val are unreadable.
  """
  rng = np.random.default_rng(0)
  rows = ['file,split,make,model']
  for i in range(68):
    make, model = i % 3, i % 6
    image = rng.integers(0, 80, (40, 40, 3), dtype=np.uint8)
    image[..., make] += 60
    image[: 8 * model] += 40
    cv2.imwrite(str(folder / f'{i}.png'), image)
    rows.append(
      f'{i}.png,{"train" if i < 48 else "val"},{"" if i % 7 == 3 else f"make{make}"},'
      f'{"" if i % 5 == 1 else f"model{model}"}'
    )
  (folder / 'labels.csv').write_text('\n'.join(rows) + '\n')
  (folder / 'taxonomy.csv').write_text(
    'make,model\n' + ''.join(f'make{m % 3},model{m}\n' for m in range(6))
  )
  for i in (5, 30, 50):
    (folder / f'{i}.png').write_bytes(b'')


def logged(folder):
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  return [
    {
      k: v
      for k, v in line.items()
      if k not in ('seconds', 'images_per_s', 'data_wait', 'compile_seconds', 'memory_gib')
    }
    for line in lines
  ]


@pytest.mark.usefixtures('no_compilation_cache')
def test_two_processes_are_two_devices_of_one(tmp_path, backbone, monkeypatch):
  """Bit-identical in everything: state, metrics, decoding weights, files.

  With unknown labels, unreadable images, dropout, accumulation, EMA and clipping.
  """
  data = tmp_path / 'data'
  data.mkdir()
  photos(data)
  options = {
    'data.source': 'csv',
    'data.root': str(data),
    'optim.ema': 0.9,
    'optim.accumulate': 2,
    'optim.clip': 1.0,
    'model.dropout': 0.3,
    'data.balance': 'loss',
    'optim.schedule': 'plateau',
  }
  monkeypatch.setenv('HIERJAX_TEST_REPORT', '1')
  with Job(
    tmp_path / 'said',
    2,
    '--json',
    f'--workdir={tmp_path}/two',
    *(f'--config.{k}={v}' for k, v in options.items()),
  ) as job:
    assert job.codes() == [0, 0], job.errs()
    two = json.loads(*job.out())
    assert not job.out(1) and 'val at step' not in job.err(1)
  tiny.use_devices(monkeypatch, 2)
  one = json.loads(json.dumps(fit.fit(tiny.run_config(**options), tmp_path / 'one')))
  assert two == one
  assert logged(tmp_path / 'two') == logged(tmp_path / 'one') and [
    l['step'] for l in logged(tmp_path / 'two') if l['kind'] == 'val'
  ] == [6, 12]
  skipped = [
    json.loads((tmp_path / name / 'run.json').read_text())['skipped'] for name in ('two', 'one')
  ]
  assert skipped[0] == skipped[1] == ['30.png', '5.png', '50.png']
  assert json.loads((tmp_path / 'two' / 'decode.json').read_text()) == json.loads(
    (tmp_path / 'one' / 'decode.json').read_text()
  )
  assert {p.name for p in (tmp_path / 'two').iterdir()} == {
    p.name for p in (tmp_path / 'one').iterdir()
  }
  with Job(
    tmp_path / 'said', 2, '--mode=evaluate', '--split=train', f'--workdir={tmp_path}/two'
  ) as job:
    assert job.codes() == [0, 0], job.errs()
    assert not job.out(1)
    result = json.loads(*job.out())
  assert (
    result == json.loads(json.dumps(model.load(tmp_path / 'one').evaluate('train')))
    and result['n'] == 46
  )


def advance(c, devices, state, to, teacher=None):
  """In this process, on so many devices.

  The state after step `to`, from the state as numpy, None for the initial one.
  """
  run = setup.build(c, tiny.mesh(devices))
  task = run.task
  state = setup.initial_state(run) if state is None else parallel.put_replicated(state, run.mesh)
  step = stepper(task, run.phases[0], optim.transformation(c, task.labels), run.mesh)
  for batch in setup.batches(run, run.train, int(state.step), to):
    state, _ = step(
      state,
      parallel.put_train(batch, {'stop': False}, run.mesh),
      parallel.put_replicated(teacher or {}, run.mesh),
    )
  return jax.device_get(state)


def saved(c, folder, step):
  """The state that the run in the folder has saved at the step, as numpy."""
  run, store = setup.build(c), checkpoint.Checkpoints(folder / 'checkpoints', 'top1/model')
  state = setup.initial_state(run)
  state = from_parts(state, store.load(step, to_parts(state)))
  store.close()
  return jax.device_get(state)


@pytest.mark.usefixtures('no_compilation_cache')
def test_distillation_is_the_same_over_devices(monkeypatch):
  """And it is not without effect: the teacher is another network."""
  tiny.register(monkeypatch)
  c = tiny.run_config(
    **{'loss.terms': 'distill', 'loss.weights': 'distill=30', 'optim.name': 'sgd'}
  )
  run = setup.build(c)
  other = initializers.init(run.task.model, 1, np.zeros((1, 32, 32, 3), np.float32))
  teacher = {
    'variables': dict(jax.device_get(other)),
    'known': {level: np.arange(run.taxonomy.num_classes(level)) % 3 > 0 for level in run.levels},
  }
  one, four = (advance(c, n, None, 3, teacher).params for n in (1, 4))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, four)
  teacher['known'] = {level: np.zeros_like(mask) for level, mask in teacher['known'].items()}
  without = advance(c, 1, None, 3, teacher).params
  assert (
    max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one, without))) > 1e-3
  )


STOPS = ((4, 'flags', signal.SIGTERM, 143), (2, 'ompi', signal.SIGINT, 130))


@pytest.mark.usefixtures('no_compilation_cache')
@pytest.mark.parametrize('first', [1, pytest.param(0, marks=pytest.mark.slow)])
def test_one_signal_stops_all_and_another_number_goes_on(
  first, tmp_path, backbone, no_report, monkeypatch, capsys
):
  """4 processes, SIGTERM to one (slow); 2, SIGINT to one; then 1 to the end.

  At each stop the state is that of as many devices in one process.
  """
  options = {'train.steps': 60, 'train.eval_steps': 0, 'train.log_steps': 1, 'optim.name': 'sgd'}
  flags, c = (
    [f'--workdir={tmp_path}/run', *(f'--config.{k}={v}' for k, v in options.items())],
    tiny.run_config(**options),
  )
  stops = []
  for n, launcher, number, code in STOPS[first:]:
    with Job(tmp_path / f'said{n}', n, *flags, launcher=launcher) as job:
      job.until('first step after')
      job.processes[n - 1].send_signal(number)
      codes = job.codes()
      assert codes == [143] * (n - 1) + [code], (
        job.errs()
      )  # who was not told by the system reports SIGTERM
      steps = {re.search(r'stopped by SIG\w+ at step (\d+)', job.err(i))[1] for i in range(n)}
      assert len(steps) == 1 and 'Traceback' not in job.errs(), job.errs()
      stops.append(int(steps.pop()))
  assert stops[0] > 0 and stops == sorted(set(stops)) and stops[-1] < 60
  *before, two = (saved(c, tmp_path / 'run', step) for step in stops)
  for four in before:
    # Gloo adds four numbers in another order than one process does: float32 rounding, grown over a
    # few steps. Two numbers have one order only.
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      advance(c, 4, None, stops[0]),
      four,
    )
  start = before[0] if before else None
  assert checkpoint.sha256(advance(c, 2, start, stops[-1])) == checkpoint.sha256(two)
  tiny.use_devices(monkeypatch)
  assert fit.fit(c, tmp_path / 'run')['step'] == 60
  assert f'resuming at step {stops[-1]} of 60' in capsys.readouterr().err
  assert checkpoint.sha256(advance(c, 1, two, 60).params) == checkpoint.sha256(
    saved(c, tmp_path / 'run', 60).params
  )
  steps = [l['step'] for l in logged(tmp_path / 'run') if l['kind'] == 'train']
  assert steps == sorted(set(steps)) and {s for s in steps if s > stops[-1] + 2} == {
    *range(stops[-1] + 3, 60)
  }


def test_a_dead_process_stops_the_others_and_a_restart_goes_on(
  tmp_path, backbone, no_report, monkeypatch, capsys
):
  """Killed: the first process, which the others find each other through.

  Silent: another one, with the connections open. Started as by SLURM. One process ends the run.
  """
  options = {'train.steps': 60, 'train.eval_steps': 5}
  flags = [f'--workdir={tmp_path}/run', *(f'--config.{k}={v}' for k, v in options.items())]
  for name, victim, number in (
    ('killed', 0, signal.SIGKILL),
    ('silent', 1, signal.SIGSTOP),
  ):  # the first one has saved by step 15
    with Job(tmp_path / name, 2, *flags, launcher='slurm') as job:
      job.until('val at step 15' if name == 'killed' else 'val at step')
      job.processes[victim].send_signal(number)
      began = time.monotonic()
      assert job.processes[1 - victim].wait(120) == parallel.LOST, job.errs()
      assert time.monotonic() - began < 3 * PATIENCE
      text = job.err(1 - victim)
      message = f'error: process {1 - victim} of 2 stops, since another one has stopped, died'
      # jax's own threads may print after it
      assert 'Traceback' not in text and f'\n{message}' in f'\n{text}', text
      assert (name == 'silent') == ('resuming at step' in job.err())
  tiny.use_devices(monkeypatch)
  assert fit.fit(tiny.run_config(**options), tmp_path / 'run')['step'] == 60
  assert 'resuming at step' in capsys.readouterr().err
  steps = [(l['kind'], l['step']) for l in logged(tmp_path / 'run')]
  assert len(set(steps)) == len(steps) and [s for k, s in steps if k == 'val'] == [*range(5, 61, 5)]


def test_folders_of_their_own_are_refused(tmp_path):
  """Each process has another --workdir, as where the folder is not shared.

  They find each other by the variables that Kubeflow Trainer sets.
  """
  port, processes = free_port(), []
  for i in range(2):
    args = ['--distributed', f'--workdir={tmp_path}/{i}']
    variables = dict(zip(parallel.VARIABLES, (f'localhost:{port}', '2', str(i))))
    processes.append(
      subprocess.Popen(
        [sys.executable, 'tests/worker.py', '--config=tests/tiny.py', *args],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'XLA_FLAGS': os.environ['HIERJAX_TEST_XLA_FLAGS'], **variables},
      )
    )
  errors = [p.communicate(timeout=120)[1] for p in processes]
  assert (
    processes[0].returncode == 2
    and 'do not see what process 0 writes there; --workdir must be a folder that all share'
    in errors[0]
  ), errors
  assert 'Traceback' not in errors[0] + errors[1]


@pytest.mark.parametrize(
  ('facts', 'message'),
  [
    (
      [{'options': 'a', 'mark': 'm'}, {'options': 'b', 'mark': 'm'}],
      'process 1 has other options than process 0',
    )
  ],
)
def test_processes_that_disagree(facts, message, monkeypatch, tmp_path):
  monkeypatch.setattr(parallel, 'exchange', lambda value: facts)
  with pytest.raises(UserError, match=message):
    parallel.check_same(tmp_path, {'options': 'a'})


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (('localhost:1',), 'go together: give all three'),
    (('', 2, 0), 'go together: give all three'),
    (('localhost', 2, 0), '--coordinator=localhost: not HOST:PORT'),
    (('localhost:1', 2, 2), '--process_id=2: must be from 0 to 1'),
    (
      ('localhost:1', 2, 1, 1),
      '--coordinator=localhost:1: no answer within 1 s .*Connection refused',
    ),
    (('nowhere.invalid:1', 2, 1, 1), '--coordinator=nowhere.invalid:1: no answer within 1 s'),
  ],
)
def test_mistakes_in_the_flags(args, message):
  with pytest.raises(UserError, match=message):
    parallel.start(*args)


class Called(Exception):
  """With the arguments."""


def test_the_variables_of_kubeflow_trainer(monkeypatch):
  """Flags come before them, and a coordinator alone is left to jax, which finds the numbers."""

  def call(*args):
    raise Called(*args)

  monkeypatch.setattr(parallel, '_check', call)
  monkeypatch.setattr(jax.distributed, 'initialize', lambda *args, **_: call(*args))
  monkeypatch.setattr(parallel, '_on_abort', lambda text: None)
  monkeypatch.setattr(jax.config, 'update', lambda *_: None)
  for name, value in zip(parallel.VARIABLES, ('job-node-0-0.job:6666', '4', '3')):
    monkeypatch.setenv(name, value)
  cases = {(): ('job-node-0-0.job:6666', 4, 3, 300), ('host:1', 2, 0): ('host:1', 2, 0, 300)}
  for args, expected in cases.items():
    with pytest.raises(Called) as called:
      parallel.start(*args)
    assert called.value.args == expected
  monkeypatch.delenv('JAX_PROCESS_ID')
  with pytest.raises(Called) as called:
    parallel.start()
  assert called.value.args == (None, None, None)


def test_processes_that_an_engine_has_joined_stay_joined(monkeypatch):
  """As those of Ray Train's JaxTrainer."""
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  monkeypatch.setattr(jax.distributed, 'initialize', lambda *_, **__: pytest.fail('joined again'))
  texts = []
  monkeypatch.setattr(parallel, '_on_abort', texts.append)
  monkeypatch.setattr(jax.config, 'update', lambda *_: None)
  parallel.start()
  assert 'another one has stopped' in texts[-1]


def test_port_in_use():
  with (
    socket.create_server(('', 0)) as taken,
    pytest.raises(UserError, match='process 0 cannot listen there'),
  ):
    parallel.start(f'localhost:{taken.getsockname()[1]}', 2, 0, 1)


@pytest.mark.parametrize(
  ('args', 'code', 'message'),
  [
    (
      ['--distributed'],
      2,
      'error: --distributed: found no cluster (SLURM, Open MPI, GKE, Cloud TPU); '
      'give --coordinator=HOST:PORT',
    ),
    (
      ['--num_processes=2'],
      2,
      'error: --coordinator, --num_processes and --process_id need --distributed',
    ),
    (
      ['--distributed', '--mode=predict'],
      2,
      'error: --distributed: hierjax predict runs in one process',
    ),
    (
      ['--distributed', '--num_processes=2', '--process_id=0', '--start_timeout=1'],
      75,
      'error: not all processes came together within 1 s',
    ),
  ],
)
def test_mistakes_on_the_command_line(args, code, message):
  if code == 75:
    args = [*args, f'--coordinator=localhost:{free_port()}']
  process = subprocess.run(
    [sys.executable, 'main.py', *args],
    cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': os.environ['HIERJAX_TEST_XLA_FLAGS'], 'HIERJAX_HUGEPAGES': '0'},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert process.returncode == code and process.stderr.strip().splitlines()[-1].startswith(
    message
  ), process.stderr


@pytest.mark.parametrize('devices', [2, 8])
def test_one_reduction_of_the_gradients_and_two_for_each_batch_norm(devices, backbone):
  """Read from the compiled step.

  The flag, the loss and the accuracies go with the gradients; the same bytes for any number of
  devices.
  """
  c = tiny.run_config()
  run = setup.build(c, tiny.mesh(devices))
  task = run.task
  state = setup.initial_state(run)
  batch = next(iter(setup.batches(run, run.train, 0, 1)))
  step = stepper(task, run.phases[0], optim.transformation(c, task.labels), run.mesh)
  hlo = (
    step.lower(state, parallel.put_train(batch, {'stop': False}, run.mesh), {}).compile().as_text()
  )
  params, widths = sum(x.size for x in jax.tree.leaves(state.params)), [16, 16]
  scalars = 1 + 3 + 3 + 1  # loss, loss and accuracy a level, flag
  groups, complaints = scaling.sort(scaling.collectives(hlo), params, widths)
  assert not complaints
  assert groups == {
    'gradients': (1, 4 * (params + scalars)),
    'counts': (1, 3 * 4),
    'batch norm': (4, 4 * 4 * sum(widths)),
    'other': (0, 0),
  }


def test_what_is_not_expected_between_devices_is_noticed():
  line = '  %x.1 = {} {}(%y), channel_id=1\n'
  gradients = line.format('f32[800]{0}', 'all-reduce')
  norms = line.format('(f32[16]{0}, f32[16]{0})', 'all-reduce-start') * 2
  assert scaling.sort(scaling.collectives(gradients + norms), 792, [16]) == (
    {'gradients': (1, 3200), 'counts': (0, 0), 'batch norm': (2, 256), 'other': (0, 0)},
    [],
  )
  for more, message in (
    (line.format('bf16[8,64]{1,0}', 'all-gather'), 'all-gather of bf16[8, 64]'),
    (gradients, '6,400 bytes in 2 all-reduces for 792'),
    (norms, '512 bytes in 4 all-reduces for 1 batch'),
  ):
    assert any(
      message in c
      for c in scaling.sort(scaling.collectives(gradients + norms + more), 792, [16])[1]
    )
  assert scaling.sort(scaling.collectives(gradients), 792, [16])[1] == [
    '0 bytes in 0 all-reduces for 1 batch norms'
  ]
