"""Modules of users, which register backbones, heads, losses and metrics when imported."""

import contextlib
import hashlib
import importlib
import importlib.util
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
    locations(name)
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


def locations(name: str) -> list[pathlib.Path]:
  """Return where the code of a plugin lies: its file, or the files and folders of its package.

  Nothing is imported.

  Args:
    name: of a module or a .py file.

  Raises:
    UserError: there is no such file or module.
  """
  if is_file(name):
    path = pathlib.Path(name).expanduser().resolve()
    if not path.is_file():
      raise UserError(f'--config.plugins: {name}: no such file')
    return [path]
  package = name.partition('.')[0]
  with _working_directory_importable():
    try:
      spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
      spec = None
  if spec is None:
    raise UserError(
      f'--config.plugins: no module {name!r} in the working directory or on PYTHONPATH'
    )
  files = [spec.origin] if spec.has_location else []
  folders = list(spec.submodule_search_locations or ())
  return [pathlib.Path(p).resolve() for p in files + folders if p]


def refuse_inside(names: Sequence[str], workdir: pathlib.Path) -> None:
  """Refuse plugins that lie in the folder of a run, so that loading a run runs no code from it.

  Args:
    names: the plugins.
    workdir: folder of the run, or of a run within it.

  Raises:
    UserError: one of them does.
  """
  root = workdir.resolve()
  while (root.parent / 'config.json').is_file():  # a baseline lies in the folder of its run
    root = root.parent
  for name in names:
    if any(path.is_relative_to(root) for path in locations(name)):
      raise UserError(
        f'{workdir}: its plugin {name} lies in the folder of the run, and code from there is not '
        'run; if you trust it, move it elsewhere and name it with --config.plugins'
      )


def _load_module(name: str) -> None:
  with _working_directory_importable():
    importlib.import_module(name)


def _load_file(file: str) -> None:
  path = pathlib.Path(file).expanduser().resolve()
  name = f'hierjax_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}'
  if name in sys.modules:
    return
  spec = importlib.util.spec_from_file_location(name, path)
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
