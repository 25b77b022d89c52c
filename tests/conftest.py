"""Set before jax starts: eight CPU devices in one process, and shapes that must match exactly."""

import contextlib
import fcntl
import gc
import os
import pathlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# of what the cache keeps, here and in the processes that tests start
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
# Most of the time goes into compiling: few of LLVM's optimisations, XLA's older emitters of fused
# loops and one thread save two thirds of it. Processes that tests start take the same, so that what
# they compute is bit-identical.
os.environ.setdefault(
  'HIERJAX_TEST_XLA_FLAGS',
  os.environ.get('XLA_FLAGS', '')
  + ' --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
  + ' --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1',
)
os.environ['XLA_FLAGS'] = (
  os.environ['HIERJAX_TEST_XLA_FLAGS'] + ' --xla_force_host_platform_device_count=8'
)
# only the tests of oneDNN use it: the others are of what all users have
os.environ.setdefault('HIERJAX_ONEDNN', '0')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import pytest
import tiny

# Tracing makes many objects and few cycles: looked for at each 700, they take a tenth of the time.
gc.set_threshold(50_000, 20, 100)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# A program is compiled once for all workers of a session. A folder that the environment names stays
# for the next session.
is_temporary = 'HIERJAX_TEST_CACHE' not in os.environ
CACHE = os.environ.setdefault('HIERJAX_TEST_CACHE', tempfile.mkdtemp(prefix='hierjax-test-'))
jax.config.update('jax_compilation_cache_dir', CACHE)
# what the command line notes of a user's plugins
os.environ['XDG_STATE_HOME'] = CACHE
# features that probes compute
os.environ['XDG_CACHE_HOME'] = CACHE


def pytest_unconfigure(config):
  """Remove the cache of compiled programs, in the process that made it."""
  if is_temporary and not hasattr(config, 'workerinput'):
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture
def shared() -> pathlib.Path:
  """The folder of real data beside a developer's checkout; users don't have it."""
  folder = pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'data'
  if not folder.exists():
    pytest.skip('no shared data beside the checkout')
  return folder


@pytest.fixture
def tiny_backbone(monkeypatch) -> None:
  """The backbone `tiny` can be chosen."""
  tiny.register(monkeypatch)


@pytest.fixture
def no_compilation_cache() -> Iterator[None]:
  """Nothing is kept in the cache: from there, steps over several CPU devices end the process.

  XLA's programs for CPUs then run their collectives in another order on each device (jax 0.10.2).
  """
  name = 'jax_persistent_cache_min_compile_time_secs'
  before = jax.config.values[name]
  jax.config.update(name, 1e9)
  yield
  jax.config.update(name, before)


@pytest.fixture
def one_device(monkeypatch) -> None:
  """Training and evaluation see one of the eight devices."""
  tiny.use_devices(monkeypatch)


@pytest.fixture
def no_report(monkeypatch) -> None:
  """Runs end without their report."""
  tiny.leave_out_report(monkeypatch)


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
  """Hold a lock file, against other workers."""
  with path.open('w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


@pytest.fixture(scope='session')
def shared_folder(
  tmp_path_factory,
) -> Callable[[str, Callable[[pathlib.Path], None]], pathlib.Path]:
  """A function `(name, make)` that returns a folder which `make(folder)` filled once a session.

  All tests of all workers that ask for the same name read the same folder; none may write to it.
  """
  root = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    root = root.parent

  def get(name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    folder, complete = root / name, root / f'{name}.complete'
    with locked(root / f'{name}.lock'):
      if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        make(folder)
        complete.touch()
    return folder

  return get


@pytest.fixture(scope='session')
def finished_run(shared_folder) -> pathlib.Path:
  """The folder of `tiny.run_config()` trained on one device, to be read only; see `run_copy`."""

  def make(folder: pathlib.Path) -> None:
    from hierjax.experiments import fit

    with pytest.MonkeyPatch.context() as patch:
      tiny.register(patch)
      tiny.use_devices(patch)
      fit.fit(tiny.run_config(), folder)

  return shared_folder('finished_run', make)


@pytest.fixture(scope='session')
def exported(finished_run, shared_folder) -> pathlib.Path:
  """The artefact of the finished run with all extras, to be read only."""

  def make(folder: pathlib.Path) -> None:
    from hierjax import model
    from hierjax.export import artefact

    with pytest.MonkeyPatch.context() as patch:
      tiny.register(patch)
      tiny.use_devices(patch)
      extras = artefact.Extras(True, similar=40, thumbnails=True, licence='of the drawings: CC0')
      artefact.export(model.load(finished_run), folder / 'artefact', print, extras)

  return shared_folder('exported', make) / 'artefact'


@pytest.fixture
def run_copy(finished_run, tmp_path) -> pathlib.Path:
  """A copy of the finished run that a test may change."""
  return pathlib.Path(shutil.copytree(finished_run, tmp_path / 'run'))


@pytest.fixture
def no_waiting() -> Iterator[None]:
  """A test that waits for ever fails after half a minute."""

  def stop(*_):
    raise AssertionError('waits for ever')

  signal.signal(signal.SIGALRM, stop)
  signal.alarm(30)
  yield
  signal.alarm(0)
