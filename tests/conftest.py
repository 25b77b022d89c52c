"""Set before jax starts: eight CPU devices in one process, and shapes that must match by themselves."""

import os
import pathlib
import shutil
import sys
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
# one program is compiled once for all tests and workers of a session; a folder that is given is kept for the next
own_cache = 'HIERJAX_TEST_CACHE' not in os.environ
jax.config.update(
  'jax_compilation_cache_dir',
  os.environ.setdefault('HIERJAX_TEST_CACHE', tempfile.mkdtemp(prefix='hierjax-test-')),
)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


def pytest_unconfigure(config):
  if own_cache and not hasattr(config, 'workerinput'):
    shutil.rmtree(os.environ['HIERJAX_TEST_CACHE'], ignore_errors=True)


@pytest.fixture
def shared() -> pathlib.Path:
  """The folder of real data that stands beside the checkout for development; users don't have it."""
  folder = pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'data'
  if not folder.exists():
    pytest.skip('no shared data beside the checkout')
  return folder
