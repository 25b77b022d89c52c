"""Hierarchical image classification in JAX and Flax.

`fit(config, workdir)` trains, `load(workdir).predict(images)` and `load(workdir).evaluate(split)`
use what was trained. Importing this package imports neither jax nor anything else that is heavy.
"""

import importlib


def fit(config, workdir):
  """Train what `config` describes into `workdir`; see `hierjax.experiments.fit.fit`."""
  from hierjax.experiments import fit as experiment

  return experiment.fit(config, workdir)


def load(workdir, config=None):
  """Load the model that was trained in `workdir`; see `hierjax.model.Model`."""
  from hierjax import model

  return model.load(workdir, config)


def __getattr__(name):
  if name == 'config':  # for config files, which begin with `from hierjax import config`
    return importlib.import_module('hierjax.core.config')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
