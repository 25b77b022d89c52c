"""One writer a folder: who writes there is said, and the lock of a dead process is taken over."""

import contextlib
import errno
import json
import os
import pathlib
import subprocess
import sys

import pytest

from hierjax.cli import errors
from hierjax.core.errors import UserError
from hierjax.experiments import run_lock, workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from hierjax.experiments.run_lock import RunLock
from hierjax.core.errors import UserError
sys.stdin.readline()
try:
  with RunLock(sys.argv[1]):
    print('writes', flush=True)
    sys.stdin.readline()
  print('ended', flush=True)
except UserError as e:
  print(e, flush=True)
"""


def holder(folder) -> subprocess.Popen:
  """Start a process that takes the lock at its first line of input, and leaves it at its second."""
  return subprocess.Popen(
    [sys.executable, '-c', HOLD, str(folder)],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
  )


def send(process) -> None:
  process.stdin.write('\n')
  process.stdin.flush()


def test_starts_of_several_processes_at_once(tmp_path):
  """Of four that start together one writes; the others say who that is. Killed, it is replaced."""
  processes = [holder(tmp_path / 'run') for _ in range(4)]
  with contextlib.ExitStack() as stack:
    for process in processes:
      stack.callback(process.wait)
      stack.callback(process.kill)
    for process in processes:
      send(process)
    lines = [process.stdout.readline().strip() for process in processes]
    assert lines.count('writes') == 1, lines
    writer = processes[lines.index('writes')]
    for line in lines:
      text = f'process {writer.pid} on {os.uname().nodename}, since 20'
      assert line == 'writes' or (text in line and 'give another --workdir' in line), lines
    with (
      pytest.raises(UserError, match=f'process {writer.pid} '),
      run_lock.RunLock(tmp_path / 'run'),
    ):
      pass
    writer.kill()
    writer.wait()
    with run_lock.RunLock(tmp_path / 'run') as lock:
      (note,) = lock.notes
      assert f'process {writer.pid} on' in note and 'taken over' in note
      lock.check()
    assert not (tmp_path / 'run' / run_lock.NAME).exists()


def test_parts_of_files_that_a_killed_process_left_go(tmp_path):
  for name in ('.run.json.4711', '.hidden', 'eval_val.json', '.report.html.1'):
    (tmp_path / name).write_text('{')
  with run_lock.RunLock(tmp_path):
    pass
  assert sorted(p.name for p in tmp_path.iterdir()) == ['.hidden', 'eval_val.json']


def test_a_clean_end_leaves_nothing(tmp_path):
  for _ in range(2):
    with run_lock.RunLock(tmp_path / 'run') as lock:
      assert not lock.notes
      with (
        pytest.raises(UserError, match='writes into this folder'),
        run_lock.RunLock(lock._workdir),
      ):
        pass
  assert not list((tmp_path / 'run').iterdir())


@pytest.mark.parametrize('is_alive', [True, False])
def test_a_writer_on_another_host(is_alive, tmp_path, monkeypatch, capsys):
  """It is watched for a sign of life; without one its lock is taken over."""
  path = tmp_path / run_lock.NAME
  record = {'host': 'node7', 'boot': 'x', 'process': 41, 'since': '2026-01-02', 'command': 'train'}
  path.write_text(json.dumps(record))
  monkeypatch.setattr(run_lock, 'SILENCE', 0.5)
  original = run_lock.time.sleep

  def sleep(seconds):
    if is_alive:
      os.utime(path, (1, 1))
    original(seconds)

  monkeypatch.setattr(run_lock.time, 'sleep', sleep)
  if is_alive:
    with pytest.raises(UserError, match='process 41 on node7, since 2026-01-02'):
      run_lock.RunLock(tmp_path).__enter__()
    assert json.loads(path.read_text()) == record
  else:
    with run_lock.RunLock(tmp_path) as lock:
      assert 'process 41 on node7' in lock.notes[0]
  assert f'to go on at once, remove {path}' in capsys.readouterr().err


def test_a_file_system_without_locks(tmp_path, monkeypatch):
  """What the file says of a process of this host decides."""

  def refuse(*_):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(run_lock.fcntl, 'flock', refuse)
  with run_lock.RunLock(tmp_path):
    with pytest.raises(UserError, match=f'process {os.getpid()} '):
      run_lock.RunLock(tmp_path).__enter__()
    record = json.loads((tmp_path / run_lock.NAME).read_text())
  (tmp_path / run_lock.NAME).write_text(json.dumps({**record, 'process': 2**22 + 1}))
  with run_lock.RunLock(tmp_path) as lock:
    assert 'taken over' in lock.notes[0]


@pytest.mark.parametrize('how', ['removed', 'taken over', 'made anew'])
def test_a_folder_that_is_lost_stops_its_writer(how, tmp_path):
  path = tmp_path / 'run' / run_lock.NAME
  with run_lock.RunLock(tmp_path / 'run') as lock:
    lock.check()
    if how == 'taken over':
      path.write_text('{"process": 1}')
    else:
      path.unlink()
      path.parent.rmdir()
    if how == 'made anew':
      with run_lock.RunLock(tmp_path / 'run'), pytest.raises(UserError, match='wrote there'):
        lock.check()
    with pytest.raises(UserError, match='removed, moved or taken over by another process'):
      lock.check()
  if how == 'taken over':
    assert path.read_text() == '{"process": 1}'


def test_errors_in_a_removed_folder_are_one_line(tmp_path):
  folder = tmp_path / 'run'
  with pytest.raises(UserError, match='run: was removed or moved'), workdir.disk_errors(folder):
    (folder / 'metrics.jsonl').open('a')
  with pytest.raises(FileNotFoundError), workdir.disk_errors(folder):
    (tmp_path / 'labels.csv').open()


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r'--workdir=.*file: is a file, not a folder'):
    run_lock.RunLock(tmp_path / 'file').__enter__()


def test_a_full_disk_is_one_line_and_leaves_no_lock(tmp_path, monkeypatch):
  """The system does not say of which file a write has failed; the lock is free afterwards."""

  def write(number, data):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch, pytest.raises(OSError) as e:
    patch.setattr(os, 'write', write)
    run_lock.RunLock(tmp_path).__enter__()
  assert errors.message(e.value) == f'{tmp_path / run_lock.NAME}: No space left on device'
  with run_lock.RunLock(tmp_path) as lock:
    assert lock.notes == []
