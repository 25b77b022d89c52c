"""Files that appear whole or not at all, and reading files that may be pipes or huge."""

import contextlib
import csv
import errno
import io
import os
import pathlib
import stat
from collections.abc import Iterable
from typing import BinaryIO

from hierjax.core.errors import UserError

MAX_TEXT = 256 * 2**20  # bytes of a text file
MAX_NAME = 100  # bytes of a part of a file's name


def write(path: str | os.PathLike, content: str | bytes) -> pathlib.Path:
  """Write a file: next to its place, durably, and then into its place in one step.

  Args:
    path: its place.
    content: text, as UTF-8, or bytes.

  Returns:
    The path.

  Raises:
    OSError: the disk is full or read-only.
  """
  path = pathlib.Path(path)
  partial = path.with_name(f'.{path.name}.{os.getpid()}')
  if isinstance(content, str):
    # The name of a file, quoted in a text, may hold what is not Unicode.
    content = content.encode('utf-8', 'backslashreplace')
  try:
    # never through a link that somebody has put there
    partial.unlink(missing_ok=True)
    with open(partial, 'xb') as f:
      f.write(content)
      f.flush()
      os.fsync(f.fileno())
    os.replace(partial, path)
    sync(path.parent)
  except OSError as e:
    # the system does not say of which file a write has failed
    e.filename = e.filename or str(path)
    raise
  finally:
    partial.unlink(missing_ok=True)
  return path


def cache_folder(name: str) -> pathlib.Path:
  """Return a folder of the user's cache, ~/.cache/hierjax/NAME, which need not exist."""
  home = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
  return home / 'hierjax' / name


def csv_text(rows: Iterable[Iterable]) -> str:
  """Write rows of cells as the text of a CSV file."""
  text = io.StringIO(newline='')
  csv.writer(text, lineterminator='\n').writerows(rows)
  return text.getvalue()


def remove_partials(folder: pathlib.Path) -> None:
  """Remove what killed processes have left of `write` in a folder that no other one writes to."""
  for path in folder.glob('.*.*'):
    if path.suffix[1:].isdigit():
      path.unlink(missing_ok=True)


def sync(path: pathlib.Path) -> None:
  """Make a file, or the names in a folder, outlive a power loss.

  Args:
    path: of either; where the system cannot do it, nothing happens.
  """
  with contextlib.suppress(OSError):
    number = os.open(path, os.O_RDONLY)
    try:
      os.fsync(number)
    finally:
      os.close(number)


def open_regular(path: str | os.PathLike, max_bytes: int | None = None) -> BinaryIO:
  """Open a file to read, unless it is a pipe or a device, at which a reader could wait for ever.

  Args:
    path: the file.
    max_bytes: its greatest size; None for no limit.

  Raises:
    OSError: it is missing, not a regular file, too large, or cannot be read.
  """
  status = os.stat(path)
  if stat.S_ISDIR(status.st_mode):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
  if not stat.S_ISREG(status.st_mode):
    reason = 'is a pipe, socket or device; only regular files are read'
    raise OSError(errno.EINVAL, reason, str(path))
  if max_bytes is not None and status.st_size > max_bytes:
    reason = f'has {status.st_size / 2**20:.0f} MiB; at most {max_bytes / 2**20:.0f} are read'
    raise OSError(errno.EOVERFLOW, reason, str(path))
  return open(path, 'rb')


def read_bytes(path: str | os.PathLike, max_bytes: int = MAX_TEXT) -> bytes:
  """Read a regular file of at most `max_bytes`; see `open_regular`."""
  with open_regular(path, max_bytes) as f:
    return f.read(max_bytes)


def read_text(path: str | os.PathLike, max_bytes: int = MAX_TEXT, errors: str = 'strict') -> str:
  """Read a regular file of UTF-8 text, without its byte order mark.

  Args:
    path: the file.
    max_bytes: its greatest size.
    errors: what is done with other bytes, as in `bytes.decode`.

  Raises:
    OSError: see `open_regular`.
    UserError: the file is not UTF-8 text.
  """
  try:
    return read_bytes(path, max_bytes).decode('utf-8-sig', errors)
  except UnicodeDecodeError as e:
    raise UserError(f'{path}: is not UTF-8 text (byte {e.start})') from None


def of_split(folder: pathlib.Path, kind: str, split: str, ending: str) -> pathlib.Path:
  """Return the path of a file that is called like a split.

  Args:
    folder: of the run.
    kind: what the file holds: 'eval'.
    split: name of the split; it is checked by `check_name`.
    ending: 'json' or 'npz'.

  Raises:
    UserError: the split cannot be part of the name of a file.
  """
  check_name(split, f'the split {split[:80]!r}')
  return folder / f'{kind}_{split}.{ending}'


def check_name(name: str, subject: str) -> None:
  """Refuse a name that cannot be a part of the name of a file, or that leads elsewhere.

  Args:
    name: such as that of a split.
    subject: what it is, for errors: "the split '../x'".

  Raises:
    UserError: it is empty, starts with a dot, is longer than 100 bytes, or holds slashes, colons or
      what cannot be printed.
  """
  is_short = 0 < len(name.encode('utf-8', 'surrogatepass')) <= MAX_NAME
  if is_short and name.isprintable() and name[0] != '.' and not set(name) & set('/\\:'):
    return
  raise UserError(
    f'{subject} cannot be part of the name of a file: 1 to {MAX_NAME} bytes that can be printed, '
    'no slash, backslash or colon, and no dot at the beginning'
  )
