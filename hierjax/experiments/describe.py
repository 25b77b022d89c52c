"""Parameters and multiply-accumulates of a configured model."""

from ml_collections import ConfigDict

from hierjax.core import config
from hierjax.data import sources
from hierjax.data.levels import restrict
from hierjax.models import classifier, counts, heads, registry


def describe(c: ConfigDict) -> dict:
  """Count the parameters and multiply-accumulates of the model of a configuration.

  Args:
    c: the configuration; its data need a taxonomy only.

  Returns:
    'params', 'trunk_params' (those of the backbone), 'macs' and 'thop_macs' (as thop counts) for an
    image of data.size, and 'heads' {level or 'shared': parameters}.

  Raises:
    UserError: an option or the data are wrong.
  """
  config.validate(c, {'model.backbone': registry.BACKBONES, 'model.heads': heads.HEADS})
  data, levels = restrict(sources.load(c.data), c.model)
  if not data.taxonomy.block('exclusive'):
    config.check_multi(c, levels)
  model = classifier.build(c, data.taxonomy, levels)
  variables, size = counts.shapes(model, c.data.size), counts.parameters
  params = variables['params']
  names = [*levels, *sorted({*params['heads']} - {*levels})]
  return {
    'trunk_params': size({k: v for k, v in params.items() if k != 'heads'}),
    'params': size(params),
    'macs': counts.macs(model, variables, c.data.size),
    'thop_macs': counts.thop_macs(
      model, c.data.size, registry.BACKBONES[c.model.backbone].uncounted
    ),
    'heads': {name: size(params['heads'].get(name, {})) for name in names},
  }
