"""Config files: Python files with a function `get_config`, those of tables with `get_table`."""

import contextlib
import importlib
import importlib.util
import pathlib
import runpy
import sys
import traceback
from collections.abc import Iterator

from ml_collections import ConfigDict

from hierjax.core import config
from hierjax.core.errors import UserError, did_you_mean

CHECKOUT = pathlib.Path(__file__).parents[2] / 'configs'
INSTALLED = pathlib.Path(__file__).parents[1] / 'configs'


def folder() -> pathlib.Path:
  """Return the folder of the configs that come with hierjax."""
  return INSTALLED if INSTALLED.is_dir() else CHECKOUT


def load(spec: str) -> ConfigDict:
  """Return the config of a config file.

  Args:
    spec: FILE[:ARGUMENT].

  Raises:
    UserError: the file is not there, raises an error, or does not return a config.
  """
  file, colon, argument = spec.partition(':')
  namespace = read(spec)
  with explained(spec):
    if not callable(namespace.get('get_config')):
      raise UserError(f'{file} has no function get_config')
    c = namespace['get_config'](*([argument] if colon else []))
    config.check_tree(c)
  return c


def read(spec: str) -> dict:
  """Run a config file and return its names.

  Args:
    spec: FILE[:ARGUMENT].

  Raises:
    UserError: the file is not there, or raises an error.
  """
  path = find(spec)
  if importlib.util.find_spec('configs') is None:
    # `from configs import hcal` in a config file finds hierjax's own where it is installed
    sys.modules['configs'] = importlib.import_module('hierjax.configs')
  with explained(spec):
    return runpy.run_path(str(path))


def find(spec: str) -> pathlib.Path:
  """Return the path of a config file.

  Args:
    spec: FILE[:ARGUMENT]; FILE is a path, or the name of one of hierjax's own without .py.

  Raises:
    UserError: there is no such file.
  """
  name = spec.partition(':')[0]
  files = {path.stem: path for path in (*folder().glob('tables/*.py'), *folder().glob('*.py'))}
  files.pop('__init__', None)
  path = files.get(name, pathlib.Path(name))
  if not path.is_file():
    hint = did_you_mean(pathlib.Path(name).stem, files)
    raise UserError(f"--config={spec}: no such file{hint}; hierjax's own are in {folder()}")
  return path


@contextlib.contextmanager
def explained(spec: str) -> Iterator[None]:
  """Turn what a config file raises into a `UserError` that names file, line and error.

  Args:
    spec: FILE[:ARGUMENT].
  """
  file = str(find(spec))
  try:
    yield
  except UserError as e:
    raise UserError(f'--config={spec}: {e}') from None
  except (Exception, SystemExit) as e:
    if isinstance(e, SyntaxError):
      lines = [e.lineno]
    else:
      lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == file]
    where = f'line {lines[-1]}: ' if lines and lines[-1] else ''
    text = ' '.join(str(e).replace('\\n', ' ').replace('\\', '').split())
    if len(text) >= 300:
      text = f'{text[:130]} ... {text[-130:]}'
    raise UserError(f'--config={spec}: {where}{type(e).__name__}: {text}') from None
