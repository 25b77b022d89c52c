"""Hierarchical image classification in JAX and Flax.

`fit(config, workdir)` trains, `load(workdir).predict(images)` and `load(workdir).evaluate(split)`
use what was trained, `Classifier` does both as scikit-learn does; `config` has the options;
`register_backbone`, `register_head`, `register_loss` and `register_metric` add parts of your own
(docs/extending.md).

Importing this package imports nothing heavy: each name is imported when it is used.
"""

import importlib

__version__ = '0.1.0'

_PLACES = {
  'Classifier': 'hierjax.estimator:Classifier',
  'config': 'hierjax.core.config',
  'fit': 'hierjax.experiments.fit:fit',
  'load': 'hierjax.model:load',
  'register_backbone': 'hierjax.models.registry:register_backbone',
  'register_head': 'hierjax.models.heads:register_head',
  'register_loss': 'hierjax.losses.terms:register_loss',
  'register_metric': 'hierjax.core.metrics:register_metric',
}


def __getattr__(name: str) -> object:
  if name not in _PLACES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module, _, attribute = _PLACES[name].partition(':')
  try:
    value = importlib.import_module(module)
  except ModuleNotFoundError as e:
    e.msg = importlib.import_module('hierjax.core.errors').missing_extra(e) or e.msg
    raise
  return getattr(value, attribute) if attribute else value
