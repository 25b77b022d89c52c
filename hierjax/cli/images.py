"""The images that --images names."""

import os
import pathlib
from collections.abc import Iterator

from hierjax.core.errors import UserError
from hierjax.data import image_groups
from hierjax.model import Model


def expand(pattern: str) -> list[str]:
  """List the files that --images names, sorted.

  Args:
    pattern: a glob, a folder or a file.

  Raises:
    UserError: no file matches.
  """
  path = pathlib.Path(pattern).expanduser()
  if path.name == '**':
    path /= '*'
  try:
    if path.is_dir():
      files = image_groups.below(path)
    elif os.path.lexists(path):
      files = [path]
    else:
      # pathlib's ** does not follow links, which may lead in a circle.
      matches = pathlib.Path(path.anchor).glob(str(path.relative_to(path.anchor)))
      files = [p for p in matches if not p.name.startswith('.')]
  except (OSError, ValueError) as e:
    raise UserError(f'--images={pattern}: {e}') from None
  if not files:
    raise UserError(f'--images={pattern}: no file matches')
  return [str(p) for p in sorted(files)]


def predict_files(model: Model, pattern: str) -> Iterator[dict]:
  """Predict all files of a pattern.

  Args:
    model: the trained model.
    pattern: a glob, a folder or a file.

  Yields:
    One record an image, see `Model.predict`.
  """
  yield from model.predict_iter(expand(pattern))
