"""main.py that knows the tiny backbone: `python tests/worker.py FLAGS`. One process of a distributed run."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import pytest
import tiny
from absl import app

import main

if __name__ == '__main__':
  jax.config.update('jax_numpy_rank_promotion', 'raise')
  tiny.register(pytest.MonkeyPatch())
  app.run(main.main, flags_parser=main.parse)
