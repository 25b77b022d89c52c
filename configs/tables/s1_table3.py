"""Paper S1, Table III: parameters and FLOPs of BACKBONE,HEADS with Stanford Cars' 49 makes and 196 models; needs no data.

  python main.py --mode=describe --config=configs/tables/s1_table3.py:maxvit_t,cascaded

BACKBONE: densenet121, maxvit_t or convnext_base; HEADS: flat (the paper's single-task model), parallel or cascaded. `params` and `thop_macs` are the
paper's figures to the last digit; its FLOPs are multiply-accumulates as the tool thop counts them, `macs` those that the model does. `trunk_params` is
the paper's base model. One to three seconds a model.
"""

from hierjax import config
from hierjax.config import UserError, did_you_mean

BACKBONES, HEADS = ('densenet121', 'maxvit_t', 'convnext_base'), ('flat', 'parallel', 'cascaded')


def get_config(model: str = 'densenet121,parallel'):
  backbone, _, heads = model.partition(',')
  for what, name, choices in (('backbone', backbone, BACKBONES), ('heads', heads, HEADS)):
    if name not in choices:
      raise UserError(f'configs/tables/s1_table3.py:{model}: no {what} {name!r}{did_you_mean(name, choices)}; choices: {", ".join(choices)}')
  c = config.default()
  c.name = f's1_table3 {model}'
  c.data.root = 'classes:make=49,model=196'
  c.model.backbone, c.model.heads = backbone, heads
  return c
