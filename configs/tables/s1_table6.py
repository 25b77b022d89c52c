r"""Paper S1, Table VI: dropout before the heads, on Stanford Cars and on CompCars.

  python main.py table --config=configs/tables/s1_table6.py --config.data.root=FOLDER \
    --workdir=runs/s1_table6

Loss weights .9 (model) and .1 (make), no augmentation. Both columns of the paper are shown; FOLDER
is the one or the other data set. Small budgets and some rows only: as in s1_table5.py, whose rows
these share.
"""

from configs import s1
from hierjax.experiments.table import Table

get_config = s1.get_config

FIGURES = {  # for each dropout: single-task, parallel, cascaded; (Stanford Cars, CompCars)
  'densenet121': {
    '0': ((0.833, 0.723), (0.861, 0.743), (0.842, 0.734)),
    '.25': ((0.832, 0.798), (0.841, 0.806), (0.835, 0.810)),
    '.5': ((0.832, 0.724), (0.844, 0.739), (0.830, 0.735)),
  },
  'maxvit_t': {
    '0': ((0.878, 0.766), (0.882, 0.778), (0.881, 0.781)),
    '.25': ((0.873, 0.765), (0.864, 0.775), (0.877, 0.778)),
    '.5': ((0.880, 0.722), (0.869, 0.738), (0.873, 0.734)),
  },
  'convnext_base': {
    '0': ((0.883, 0.754), (0.873, 0.777), (0.871, 0.760)),
    '.25': ((0.894, 0.771), (0.861, 0.797), (0.862, 0.772)),
    '.5': ((0.866, 0.749), (0.868, 0.780), (0.857, 0.757)),
  },
}


def get_table() -> Table:
  return Table(
    title='S1, Table VI: dropout',
    rows=[
      s1.row(figures, backbone, heads, dropout)
      for backbone, drops in FIGURES.items()
      for dropout, three in drops.items()
      for heads, figures in zip(s1.HEADS, three)
    ],
    published={
      'paper, model, Stanford Cars': 'top1/finest',
      'paper, model, CompCars': 'top1/finest',
    },
    source='Manole and Dioşan, Table VI: model accuracy on the test tenth of the labelled images '
    'of Stanford Cars and on the 14,939 test images of CompCars',
    columns=('top1/coarsest,finest', 'fpa', 'hvr', 'joint:top1/coarsest,finest'),
    chart=('top1/finest',),
  )
