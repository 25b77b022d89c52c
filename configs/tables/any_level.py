r"""Labels at any level: are images without a finest label worth training on?

  python main.py table --config=configs/tables/any_level.py --config.data.root=FOLDER \
    --workdir=runs/any_level --seeds=0,1,2

Half of the training images of each finest class lose their finest label, and
  dropped    they are left out.
  coarse     they are kept for the heads of the coarser levels (three heads).
  any_level  they are kept: the finest head learns that the class is one of those that the known
             labels allow, -log of the sum of their probabilities.
  all        the upper bound: no label is hidden.
--config.data.unlabelled=.9 hides more. The model is 3head.py's with three heads, 1head.py's with
one.
"""

import importlib

from hierjax.core.errors import check_choice
from hierjax.experiments.table import Row, Table

ROWS = {
  'dropped': 'half of the images',
  'any_level': 'half with coarse labels only',
  'all': 'all finest labels',
}
HEADS = {'1head': 'one head', '3head': 'a head a level'}


def get_config(row: str = '1head_any_level'):
  heads, _, kind = row.partition('_')
  names = [f'{h}_{k}' for h in HEADS for k in (*ROWS, 'coarse')]
  check_choice('configs/tables/any_level.py: no row', row, names)
  c = importlib.import_module(f'configs.{heads}').get_config()
  c.name = f'any level: {row}'
  c.data.unlabelled = 0.0 if kind == 'all' else 0.5
  c.data.partial = 'drop' if kind == 'dropped' else 'keep'
  c.loss.any_level, c.loss.margin = kind == 'any_level', None
  return c


def get_table() -> Table:
  rows = [
    Row(
      f'{heads}_{kind}',
      label,
      group=HEADS[heads],
      baseline='' if kind == 'dropped' else f'{heads}_dropped',
    )
    for heads in HEADS
    for kind, label in {
      **ROWS,
      **({'coarse': 'half for the coarser heads only'} if heads == '3head' else {}),
    }.items()
  ]
  return Table(
    title='Labels at any level',
    rows=rows,
    source='no paper; the marginal loss over the leaves below a label is that of HRN (Chen et al. '
    '2022, arXiv:2201.03194)',
    columns=('top1/all', 'fpa', 'hvr', 'joint:top1/finest'),
    chart=('top1/finest',),
  )
