"""Signals, terminals that close, and logs that nobody reads."""

import contextlib
import fcntl
import io
import json
import os
import pathlib
import pty
import signal
import subprocess
import sys
import termios

import pytest
import tiny

from hierjax.cli import process
from hierjax.core import config, files
from hierjax.data import pipeline
from hierjax.experiments import fit
from hierjax.train import checkpoint, log
from hierjax.train.interrupt import Interrupted, Signals

ROOT = pathlib.Path(__file__).resolve().parents[2]


def worker(workdir, steps: int) -> list[str]:
  """The command of a training that is evaluated and saved at its end only."""
  options = {'train.steps': steps, 'train.eval_steps': 0, 'log.tensorboard': False}
  flags = [f'--config.{name}={value}' for name, value in options.items()]
  return [
    sys.executable,
    'tests/worker.py',
    '--config=tests/tiny.py',
    f'--workdir={workdir}',
    *flags,
  ]


def environment() -> dict[str, str]:
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': os.environ['HIERJAX_TEST_XLA_FLAGS'],
    'JAX_COMPILATION_CACHE_DIR': os.environ['HIERJAX_TEST_CACHE'],
    'HIERJAX_HUGEPAGES': '0',
  }


def saved(workdir) -> list[int]:
  folders = (workdir / 'checkpoints').glob('*')
  return sorted(int(p.name) for p in folders if p.name.isdigit())


def test_sigusr1_saves_and_a_closed_terminal_saves_and_stops(tmp_path):
  """A run in a terminal that is too long to end before the terminal is closed."""
  workdir = tmp_path / 'run'
  master, slave = pty.openpty()

  def own_terminal():
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

  child = subprocess.Popen(
    worker(workdir, 1_000_000),
    cwd=ROOT,
    stdin=slave,
    stdout=slave,
    stderr=slave,
    env=environment(),
    preexec_fn=own_terminal,
  )
  os.close(slave)
  text, step = b'', None
  try:
    with contextlib.suppress(OSError):
      while step is None and (part := os.read(master, 4096)):
        text += part
        if b'first step after' in text and b'at the end of the step' not in text:
          child.send_signal(signal.SIGUSR1)
        step = next(iter(saved(workdir)), None)
    assert step is not None, text.decode()
    os.close(master)
    assert child.wait(120) == 128 + signal.SIGHUP
  finally:
    child.kill()
  assert 0 < step < max(saved(workdir))


def test_a_signal_while_the_last_checkpoint_is_written_stops_the_run(
  run_copy, tiny_backbone, one_device, no_report, monkeypatch
):
  """It must not be lost between training and evaluation, where a closed terminal's next line would
  be an error; the same command then evaluates and ends.
  """
  close = checkpoint.Checkpoints.close

  def close_late(store):
    signal.raise_signal(signal.SIGHUP)
    close(store)

  with monkeypatch.context() as patch, pytest.raises(Interrupted, match='SIGHUP at step 12'):
    patch.setattr(checkpoint.Checkpoints, 'close', close_late)
    fit.fit(tiny.run_config(), run_copy)
  assert fit.fit(tiny.run_config(), run_copy)['step'] == 12


@pytest.mark.parametrize('stderr', ['closed', 'a pipe that nobody reads'])
def test_a_log_that_cannot_be_printed_stops_nothing(stderr, tmp_path):
  """The run goes on to its end; stdout holds the result and nothing else."""
  command = [*worker(tmp_path / 'run', 12), '--json']
  if stderr == 'closed':
    command = ['bash', '-c', 'exec "$@" 2>&-', 'bash', *command]
    reader = None
  else:
    reader, writer = os.pipe()
    os.close(reader)
    reader = writer
  result = subprocess.run(
    command,
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=reader,
    text=True,
    env=environment(),
    timeout=120,
  )
  assert result.returncode == 0
  (line,) = result.stdout.splitlines()
  assert json.loads(line)['step'] == 12


class Dead(io.StringIO):
  """A stream whose other end is closed."""

  def write(self, text):
    raise BrokenPipeError(32, 'Broken pipe')

  def flush(self):
    raise OSError(5, 'Input/output error')


@pytest.mark.parametrize('stream', [None, Dead()])
def test_the_log_of_a_library_call_may_have_no_stderr(stream, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'stderr', stream)
  log.Log(tmp_path, 0, config.default()).say('step 1')
  assert not capsys.readouterr().out
  if stream is not None:
    print('step 2', file=process.LossyStream(stream), flush=True)


def test_nohup_is_respected_and_a_second_hangup_stops_nothing():
  """nohup's SIGHUP is ignored; a shell and the system may each send one where it is not."""
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with Signals() as signals:
      signal.raise_signal(signal.SIGHUP)
      assert not signals.received
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with Signals() as signals:
      for _ in range(3):
        signal.raise_signal(signal.SIGHUP)
      assert signals.received == signal.SIGHUP
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
  finally:
    signal.signal(signal.SIGHUP, before)


def test_sigusr1_is_noted_once_and_its_handler_goes():
  before = signal.getsignal(signal.SIGUSR1)
  with Signals() as signals:
    assert not signals.pop_save()
    signal.raise_signal(signal.SIGUSR1)
    assert signals.pop_save() and not signals.pop_save() and not signals.received
  assert signal.getsignal(signal.SIGUSR1) == before


def test_data_workers_leave_the_signals_to_their_parent():
  """While they start, none of the four reaches them."""
  masks = []

  def batches():
    masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    yield 0

  before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
  next(pipeline._Workers(batches()))
  assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1} <= masks[0]
  assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


class FullDisk:
  """A file system that refuses each write."""

  def __init__(self, file):
    self.file = file

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.file.close()

  def write(self, content):
    self.file.write(content[:3])
    raise OSError(28, 'No space left on device')


def test_files_are_durable_and_leave_no_part_behind(tmp_path, monkeypatch):
  """The file and then, once it has its name, the folder are synced; a full disk leaves the old."""
  synced, original = [], os.fsync

  def fsync(number):
    path = os.readlink(f'/proc/self/fd/{number}')
    synced.append((pathlib.Path(path).name, sorted(p.name for p in tmp_path.iterdir())))
    original(number)

  monkeypatch.setattr(os, 'fsync', fsync)
  files.write(tmp_path / 'a.json', '1')
  (first, before), (second, after) = synced
  assert before == [first] and first.startswith('.a.json') and after == ['a.json']
  assert second == tmp_path.name
  original_open = open
  monkeypatch.setattr(files, 'open', lambda *args: FullDisk(original_open(*args)), raising=False)
  with pytest.raises(OSError, match='No space left') as error:
    files.write(tmp_path / 'a.json', '123456')
  assert error.value.filename == str(tmp_path / 'a.json')
  assert [p.name for p in tmp_path.iterdir()] == ['a.json']
  assert (tmp_path / 'a.json').read_text() == '1'
