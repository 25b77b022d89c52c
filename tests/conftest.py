"""Set before jax starts: eight CPU devices in one process, and shapes that must match by themselves."""

import os
import pathlib
import sys

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture
def shared() -> pathlib.Path:
  """The folder of real data that stands beside the checkout for development; users don't have it."""
  folder = pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'data'
  if not folder.exists():
    pytest.skip('no shared data beside the checkout')
  return folder
