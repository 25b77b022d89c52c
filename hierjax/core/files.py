"""Files that appear whole or not at all, whatever moment the process is killed at."""

import os
import pathlib


def write(path: str | os.PathLike, content: str | bytes) -> pathlib.Path:
  """Writes a file beside `path`, makes it durable, and puts it in the place of `path` in one step. OSError where the disk is full or read-only."""
  path = pathlib.Path(path)
  partial = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    with open(partial, 'wb') as f:
      f.write(
        content.encode('utf-8', 'backslashreplace') if isinstance(content, str) else content
      )  # a file's name may hold what is not Unicode
      f.flush()
      os.fsync(f.fileno())
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
  return path
