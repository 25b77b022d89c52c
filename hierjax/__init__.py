"""Hierarchical image classification in JAX and Flax: `fit(config, workdir)`, `load(workdir).predict(images)`, `load(workdir).evaluate(split)`."""


def fit(config, workdir):
  """Trains what `config` (a tree of `hierjax.config.default()`) describes into `workdir`; see `hierjax.train.fit`."""
  from hierjax import train
  return train.fit(config, workdir)


def load(workdir, config=None):
  """The model trained in `workdir`; see `hierjax.predict.Model`."""
  from hierjax import predict
  return predict.load(workdir, config)
