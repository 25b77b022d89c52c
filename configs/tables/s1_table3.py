"""Paper S1, Table III: parameters and FLOPs, which are multiply-accumulates as thop counts them.

  python main.py table --config=configs/tables/s1_table3.py --workdir=runs/s1_table3
  python main.py describe --config=configs/tables/s1_table3.py:maxvit_t,cascaded

Nothing is trained; no data are needed; a few seconds a model. BACKBONE: densenet121, maxvit_t,
convnext_base; HEADS: flat (the paper's single-task model), parallel, cascaded; with Stanford Cars'
49 makes and 196 models. `params` and `thop_macs` are the paper's figures to the last digit, `macs`
is what the model does.
"""

from configs import s1
from hierjax.experiments.table import Row, Table


def get_config(model: str = 'densenet121,parallel'):
  c = s1.get_config(model)
  c.data.root = 'classes:make=49,model=196'
  return c


FIGURES = {  # (parameters, FLOPs) of flat, parallel, cascaded
  'densenet121': (
    (7_154_756, 2_896_183_808),
    (7_204_981, 2_896_233_984),
    (7_214_585, 2_896_243_588),
  ),
  'maxvit_t': (
    (30_508_172, 5_455_904_000),
    (30_533_309, 5_455_929_088),
    (30_542_913, 5_455_938_692),
  ),
  'convnext_base': (
    (87_767_364, 15_372_622_848),
    (87_817_589, 15_372_673_024),
    (87_827_193, 15_372_682_628),
  ),
}


def get_table() -> Table:
  return Table(
    title='S1, Table III: parameters and FLOPs',
    rows=[
      Row(f'{backbone},{heads}', label, figures, group=s1.BACKBONES[backbone][0])
      for backbone, three in FIGURES.items()
      for (heads, label), figures in zip(s1.HEADS.items(), three)
    ],
    published={'paper, parameters': 'params', 'paper, FLOPs': 'thop_macs'},
    source='Manole and Dioşan, Table III: 196 models and 49 makes of Stanford Cars, 224 px',
    columns=('params', 'thop_macs', 'macs'),
  )
