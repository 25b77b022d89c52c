"""Modules of users, which register backbones, heads, losses and metrics when imported."""

import contextlib
import hashlib
import importlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

from hierjax.core.errors import UserError


def load(names: Sequence[str]) -> None:
  """Import the modules and files that `config.plugins` names, each once in a process.

  Args:
    names: dotted module names, importable from the working directory or from PYTHONPATH, and
      paths of .py files.

  Raises:
    UserError: one is not there, or raises an error when it is imported.
  """
  for name in names:
    _check_present(name)
    try:
      _load_file(name) if is_file(name) else _load_module(name)
    except Exception as e:
      text = str(e) if isinstance(e, UserError) else f'{type(e).__name__}: {e}'
      raise UserError(f'--config.plugins: {name}: {text}') from e


def is_file(name: str) -> bool:
  """Whether a plugin is named by its file, not as a module."""
  return name.endswith('.py')


def absolute(names: Sequence[str]) -> tuple[str, ...]:
  """Return the plugins with the paths of files made absolute, as config.json remembers them."""
  return tuple(str(pathlib.Path(n).expanduser().resolve()) if is_file(n) else n for n in names)


def check_loaded(names: Sequence[str], workdir: str | os.PathLike) -> None:
  """Refuse plugins that a run names and nobody else, so that reading a run runs no code.

  Args:
    names: the plugins in the config.json of the run.
    workdir: folder of the run.

  Raises:
    UserError: one of them has not been imported in this process.
  """
  for name in names:
    if (_file_module(name) if is_file(name) else name) not in sys.modules:
      raise UserError(
        f'{workdir}: its config.json names the plugin {name}, and code is not run because a run '
        f'names it; if you trust it: --config.plugins={",".join(names)}, or import it before '
        'hierjax.load'
      )


def _check_present(name: str) -> None:
  """Refuse a plugin that is not there."""
  if is_file(name):
    if not pathlib.Path(name).expanduser().is_file():
      raise UserError(f'--config.plugins: {name}: no such file')
    return
  with _working_directory_importable():
    try:
      spec = importlib.util.find_spec(name.partition('.')[0])
    except (ImportError, ValueError):
      spec = None
  if spec is None:
    raise UserError(
      f'--config.plugins: no module {name!r} in the working directory or on PYTHONPATH'
    )


def _file_module(file: str) -> str:
  """The name under which a file is imported."""
  path = pathlib.Path(file).expanduser().resolve()
  return f'hierjax_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}'


def _load_module(name: str) -> None:
  with _working_directory_importable():
    importlib.import_module(name)


def _load_file(file: str) -> None:
  name = _file_module(file)
  if name in sys.modules:
    return
  spec = importlib.util.spec_from_file_location(name, pathlib.Path(file).expanduser().resolve())
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  try:
    spec.loader.exec_module(module)
  except BaseException:
    del sys.modules[name]
    raise


@contextlib.contextmanager
def _working_directory_importable() -> Iterator[None]:
  folder = str(pathlib.Path.cwd())
  is_new = folder not in sys.path
  if is_new:
    sys.path.append(folder)
  try:
    yield
  finally:
    if is_new:
      sys.path.remove(folder)
