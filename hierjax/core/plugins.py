"""Modules of users, which register backbones, heads, losses and metrics when imported."""

import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

from hierjax.core import files, json_files
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
    if is_file(name):
      if not pathlib.Path(name).expanduser().is_file():
        raise UserError(f'--config.plugins: {name}: no such file')
    elif _spec(name.partition('.')[0]) is None:
      raise UserError(
        f'--config.plugins: no module {name!r} in the working directory or on PYTHONPATH'
      )
    try:
      if is_file(name):
        _load_file(name)
      else:
        with _working_directory_importable():
          importlib.import_module(name)
    except Exception as e:
      text = str(e) if isinstance(e, UserError) else f'{type(e).__name__}: {e}'
      raise UserError(f'--config.plugins: {name}: {text}') from e


def is_file(name: str) -> bool:
  """Whether a plugin is named by its file, not as a module."""
  return name.endswith('.py')


def absolute(names: Sequence[str]) -> tuple[str, ...]:
  """Return the plugins with the paths of files made absolute, as config.json remembers them."""
  return tuple(str(pathlib.Path(n).expanduser().resolve()) if is_file(n) else n for n in names)


def require(names: Sequence[str], workdir: str | os.PathLike) -> None:
  """Import the plugins that a run names, if the user has chosen them: no run makes code run.

  Those are the plugins imported in this process, and the files that `remember` has noted and that
  have not changed since.

  Args:
    names: the plugins in the config.json of the run.
    workdir: folder of the run.

  Raises:
    UserError: one of them is not chosen, or raises an error when it is imported.
  """
  digests = _remembered()
  for name in names:
    if (_file_module(name) if is_file(name) else name) in sys.modules:
      continue
    origin = _origin(name)
    if origin is None or digests.get(str(origin)) != _digest(origin):
      changed = f' ({origin} has changed since)' if str(origin) in digests else ''
      raise UserError(
        f'{workdir}: its config.json names the plugin {name}, and code is not run because a run '
        f'names it{changed}; if you trust it: --config.plugins={",".join(names)}, or import it '
        'before hierjax.load'
      )
    load([name])


def remember(names: Sequence[str]) -> None:
  """Note the files of plugins that the user has chosen, so that `require` finds them later.

  A module inside a package is not noted, since importing it runs other files too. Nothing is noted
  where the file in the user's home cannot be written.

  Args:
    names: plugins that have been imported.
  """
  digests = _remembered()
  selected = {str(path): _digest(path) for name in names if (path := _origin(name))}
  if selected.items() <= digests.items():
    return
  path = _memory()
  with contextlib.suppress(OSError):
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json_files.dump(digests | selected, indent=2) + '\n')


def _memory() -> pathlib.Path:
  """The file with the digests of chosen plugins, {path: sha256}."""
  state = os.environ.get('XDG_STATE_HOME') or os.path.expanduser('~/.local/state')
  return pathlib.Path(state) / 'hierjax' / 'plugins.json'


def _remembered() -> dict[str, str]:
  try:
    return json_files.read_object(_memory())
  except (UserError, OSError):
    return {}


def _origin(name: str) -> pathlib.Path | None:
  """The one file of a plugin; None if there is none, or it is inside of a package."""
  if is_file(name):
    path = pathlib.Path(name).expanduser().resolve()
    return path if path.is_file() else None
  spec = None if '.' in name else _spec(name)
  if spec is None or not spec.has_location or spec.submodule_search_locations:
    return None
  return pathlib.Path(spec.origin).resolve()


def _digest(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
  """How a module would be imported; None where there is none."""
  with _working_directory_importable():
    try:
      return importlib.util.find_spec(name)
    except (ImportError, ValueError):
      return None


def _file_module(file: str) -> str:
  """The name under which a file is imported."""
  path = pathlib.Path(file).expanduser().resolve()
  return f'hierjax_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}'


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
