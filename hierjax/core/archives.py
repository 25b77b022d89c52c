"""NumPy archives, those of strangers too: their size in memory is known before they are read."""

import io
import math
import os
import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np

from hierjax.core import files
from hierjax.core.errors import UserError, kind_and_text

MAX_BYTES = 512 * 2**20  # of all arrays of an archive, unpacked
_MAX_HEADER = 10_000  # bytes of an array's header
_HEADERS = {  # by the version of the format
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}


def write(
  path: str | os.PathLike, arrays: Mapping[str, np.ndarray], is_compressed: bool = True
) -> pathlib.Path:
  """Write arrays into a .npz file that appears whole, see `files.write`.

  Args:
    path: the file.
    arrays: {name: array}.
    is_compressed: whether by zlib.
  """
  content = io.BytesIO()
  save = np.savez_compressed if is_compressed else np.savez
  save(content, **arrays)
  return files.write(path, content.getvalue())


def read(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> dict[str, np.ndarray]:
  """Read the arrays of a .npz file.

  Args:
    path: the file.
    max_bytes: what the arrays may take in memory.

  Raises:
    OSError: the file is missing, or no regular file.
    UserError: it is damaged, or its arrays are too large.
  """
  try:
    with files.open_regular(path) as f, zipfile.ZipFile(f) as archive:
      members = [info for info in archive.infolist() if info.filename.endswith('.npy')]
      size = sum(info.file_size for info in members)
      if size > max_bytes:
        raise UserError(
          f'{path}: unpacks to {size / 2**20:.0f} MiB; at most {max_bytes / 2**20:.0f} are read'
        )
      return {info.filename.removesuffix('.npy'): _array(archive, info) for info in members}
  except UserError:
    raise
  except Exception as e:  # zipfile, zlib and NumPy raise many kinds on damaged files
    if isinstance(e, OSError) and e.filename:
      raise
    raise UserError(f'{path}: is damaged ({kind_and_text(e)})') from None


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
  """Read a member whose header says no more than it holds."""
  with archive.open(info) as f:
    shape, _, dtype = _HEADERS[np.lib.format.read_magic(f)](f, max_header_size=_MAX_HEADER)
    size = math.prod(shape) * dtype.itemsize
    # An array of elements without bytes may have any number of them.
    if dtype.hasobject or f.tell() + size != info.file_size or not dtype.itemsize:
      raise ValueError(f'{info.filename[:80]!r} does not hold the array that its header says')
    f.seek(0)
    return np.lib.format.read_array(f, allow_pickle=False, max_header_size=_MAX_HEADER)
