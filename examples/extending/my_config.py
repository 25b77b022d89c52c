"""Train with the parts of my_parts.py, on the drawn data set.

From this folder: python ../../main.py --config=my_config.py --workdir=/tmp/run
"""

from hierjax import config


def get_config(_: str = ''):
  c = config.default()
  c.name = 'my own parts'
  c.plugins = ('my_parts',)
  c.data.source, c.data.size = 'toy', 32
  c.model.backbone, c.model.heads = 'two_layers', 'hidden_layer'
  c.loss.terms = ('confidence_penalty',)
  c.loss.weights = (('confidence_penalty', 0.1),)
  c.train.epochs = 2
  return c
