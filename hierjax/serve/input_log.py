"""The images that a server was sent, and what it answered, for a later audit."""

import contextlib
import datetime
import fcntl
import hashlib
import io
import os
import pathlib
import threading
from collections import Counter
from collections.abc import Iterable

from hierjax.core import json_files, terminal

BLOCK = 4096  # bytes that the smallest file takes on a disk
LEFT_OUT = ('maps', 'similar')  # of a record: both follow from the image


class InputLog:
  """A folder of images, each once by its sha256, and log.jsonl with a line for each that came.

  No name that a client has sent is a path. Where the folder would outgrow its bound, or cannot be
  written, logging ends and says so; requests go on.

  Args:
    folder: of the log; an earlier one is continued, and counts.
    max_bytes: of the folder.
    counts: get the numbers of images that were logged and that were not.

  Raises:
    OSError: the folder cannot be written, or another server logs into it.
  """

  def __init__(self, folder: str | os.PathLike, max_bytes: int, counts: Counter):
    self._images, self._max_bytes, self._counts = pathlib.Path(folder) / 'images', max_bytes, counts
    # they may show what is nobody else's business
    self._images.mkdir(mode=0o700, parents=True, exist_ok=True)
    self._file = io.FileIO(self._images.parent / 'log.jsonl', 'a')
    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    sizes = (entry.stat().st_size for entry in os.scandir(self._images))
    self._size = self._file.tell() + sum(map(_on_disk, sizes))
    self._lock, self._is_open = threading.Lock(), True
    counts.update({'inputs_logged_total': 0, 'inputs_not_logged_total': 0})

  def write(self, contents: Iterable[bytes], records: Iterable[dict], query: str = '') -> None:
    """Log images, their answers, and how a request asked; what is no image has a line alone."""
    with self._lock:
      for data, record in zip(contents, records):
        self._is_open = self._is_open and self._add(data, record, query)
        self._counts['inputs_logged_total' if self._is_open else 'inputs_not_logged_total'] += 1

  def _add(self, data, record, query):
    """Write an image and its line; return whether they were written."""
    digest = hashlib.sha256(data).hexdigest()
    record = {name: value for name, value in record.items() if name not in LEFT_OUT}
    moment = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
    facts = {'time': moment, 'sha256': digest, 'query': query, 'record': record}
    line, path = f'{json_files.dump(facts)}\n'.encode(), self._images / digest
    partial, start = self._images / '.partial', self._file.tell()
    reason = f'--log_bytes={self._max_bytes} are reached'
    try:
      is_new = 'error' not in record and not path.exists()
      size = len(line) + _on_disk(len(data)) * is_new
      if self._size + size <= self._max_bytes:
        if is_new:
          partial.write_bytes(data)
          os.replace(partial, path)
        if self._file.write(line) == len(line):
          self._size += size
          return True
        self._file.truncate(start)
        reason = 'the disk is full'
    except OSError as e:
      reason = e.strerror or str(e)
    with contextlib.suppress(OSError):
      partial.unlink()
    terminal.say(f'note: no inputs are logged from now on: {self._images.parent}: {reason}')
    return False


def _on_disk(size):
  return -(-size // BLOCK) * BLOCK
