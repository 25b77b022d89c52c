"""Files that appear whole or not at all, whenever the process is killed."""

import os
import pathlib


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
    with open(partial, 'wb') as f:
      f.write(content)
      f.flush()
      os.fsync(f.fileno())
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
  return path
