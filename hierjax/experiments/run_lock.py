"""One writer a folder: the process that writes into the folder of a run has a lock on a file there.

The lock of the operating system ends with its process, however that ends. It may not reach other
hosts; so the file also says who writes, and its owner touches it every few seconds.
"""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import shlex
import socket
import stat
import sys
import threading
import time

from hierjax.core import files, json_files, parallel, terminal
from hierjax.core.errors import UserError
from hierjax.train.loop import Hook, Loop

NAME = '.writer.json'
# Seconds between two signs of life, and without one until a process on another host counts as dead.
BEAT, SILENCE = 10, 60


def make_folder(workdir: pathlib.Path) -> None:
  """Make a folder; a `UserError` where that cannot be."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    reason = 'is a file, not a folder' if workdir.is_file() else e.strerror
    raise UserError(f'--workdir={workdir}: {reason}') from None


class RunLock(Hook):
  """A context in which only this run writes into a folder, which is made.

  Of several processes of a run the first one has the lock.

  Args:
    workdir: the folder.

  Attributes:
    notes: what the user should know: that the last writer has died.

  Raises:
    UserError: another run writes there.
  """

  def __init__(self, workdir: str | os.PathLike):
    self._workdir, self.notes = pathlib.Path(workdir), []
    self._path = self._workdir / NAME
    self._number, self._end = None, threading.Event()
    self._text = json.dumps(
      {
        'host': socket.gethostname(),
        'boot': _boot(),
        'process': os.getpid(),
        'since': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'command': shlex.join(sys.argv),
      }
    )

  def __enter__(self) -> 'RunLock':
    error = self._try_take() if parallel.first() else ''
    if error := parallel.exchange(error)[0]:
      raise UserError(error)
    return self

  def __exit__(self, *_):
    self._end.set()
    if self._number is not None:
      if self._is_held():
        self._path.unlink(missing_ok=True)
      os.close(self._number)

  def check(self) -> None:
    """Raise a `UserError` where the folder has been removed or taken over by another process."""
    if self._number is not None and not self._is_held():
      raise UserError(
        f'{self._workdir}: was removed, moved or taken over by another process while this one '
        f'(process {os.getpid()} on {socket.gethostname()}) wrote there; nothing more is written'
      )

  def after_step(self, loop: Loop) -> None:
    """Stop a run whose folder has been removed or taken over, before it writes there."""
    self.check()

  def _is_held(self) -> bool:
    """Whether the file in the folder is still the one that this process has locked and written."""
    return _is_same(self._path, self._number) and self._path.read_text() == self._text

  def _try_take(self) -> str:
    """Take the lock; return who has it, '' where this process has it now."""
    make_folder(self._workdir)
    is_locked = True
    while True:
      # a link could lead to a file that is none of the run's
      number = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
      if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise UserError(f'{self._path}: is not a regular file; remove it')
      try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        os.close(number)
        return self._refusal()
      except OSError:
        # a file system without locks
        is_locked = False
      # its last owner may have removed it in between
      if _is_same(self._path, number):
        break
      os.close(number)
    record = _read(self._path)
    if record and self._is_alive(record, is_locked):
      os.close(number)
      return self._refusal()
    if record:
      self.notes.append(
        f'{_describe(record)} wrote into {self._workdir} and has ended without a word; '
        'its lock is taken over'
      )
    files.remove_partials(self._workdir)
    try:
      os.ftruncate(number, 0)
      os.write(number, self._text.encode())
    except OSError as e:
      os.close(number)
      raise OSError(e.errno, e.strerror, str(self._path)) from None
    self._number = number
    threading.Thread(target=self._beat, daemon=True).start()
    return ''

  def _is_alive(self, record: dict, is_locked: bool) -> bool:
    """Whether the process that a file speaks of, whose lock is not in the way, lives."""
    if (record.get('host'), record.get('boot')) == (socket.gethostname(), _boot()):
      return not is_locked and pathlib.Path(f'/proc/{record.get("process")}').exists()
    terminal.say(
      f'{_describe(record)} wrote into {self._workdir}: waiting up to {SILENCE} s for a sign of '
      f'life; to go on at once, remove {self._path}'
    )
    end, before = time.monotonic() + SILENCE, self._touched()
    while time.monotonic() < end:
      time.sleep(0.2)
      if self._touched() != before:
        return self._path.exists()
    return False

  def _refusal(self) -> str:
    """Tell who writes into the folder."""
    end = time.monotonic() + 2
    # its owner may be about to write it
    while not (record := _read(self._path)) and time.monotonic() < end:
      time.sleep(0.05)
    return (
      f'{self._workdir}: {_describe(record)} writes into this folder: wait for its end, stop it, '
      f'or give another --workdir; only where it runs no more, remove {self._path}'
    )

  def _touched(self) -> int:
    """When the file was touched last, in ns; 0 where it is gone."""
    try:
      # opened, as a network file system may answer from its cache otherwise
      with open(self._path) as file:
        return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
      return 0

  def _beat(self) -> None:
    """Give a sign of life until the end."""
    while not self._end.wait(BEAT):
      with contextlib.suppress(OSError, ValueError):
        os.utime(self._number)


def _is_same(path: pathlib.Path, number: int) -> bool:
  """Whether an open file is the one at a path."""
  try:
    return os.path.samestat(os.stat(path), os.fstat(number))
  except FileNotFoundError:
    return False


def _read(path: pathlib.Path) -> dict:
  """What a lock file says, {} where it is empty or damaged."""
  try:
    return json_files.read_object(path)
  except (OSError, UserError):
    return {}


def _describe(record: dict) -> str:
  return (
    f'process {record.get("process")} on {record.get("host")}, since {record.get("since")} '
    f'({record.get("command")}),'
  )


def _boot() -> str:
  """What tells this boot of this machine from all others, '' where the system does not say."""
  try:
    return pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  except OSError:
    return ''
