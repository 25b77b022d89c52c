"""Paper S1, Table VI: dropout before the heads, at loss weights .9 (model) and .1 (make), on Stanford Cars and on CompCars; no augmentation.

  python main.py --mode=table --config=configs/tables/s1_table6.py --config.data.root=FOLDER --workdir=runs/s1_table6

Both columns of the paper are shown; FOLDER is the one or the other data set. Small budgets and some rows only: as in s1_table5.py, whose rows these share.
"""

from configs import s1
from hierjax.experiments.table import Table

get_config = s1.get_config

FIGURES = {  # for each dropout: single-task, parallel, cascaded; (Stanford Cars, CompCars)
  'densenet121': {'0': ((.833, .723), (.861, .743), (.842, .734)),
                  '.25': ((.832, .798), (.841, .806), (.835, .810)),
                  '.5': ((.832, .724), (.844, .739), (.830, .735))},
  'maxvit_t': {'0': ((.878, .766), (.882, .778), (.881, .781)),
               '.25': ((.873, .765), (.864, .775), (.877, .778)),
               '.5': ((.880, .722), (.869, .738), (.873, .734))},
  'convnext_base': {'0': ((.883, .754), (.873, .777), (.871, .760)),
                    '.25': ((.894, .771), (.861, .797), (.862, .772)),
                    '.5': ((.866, .749), (.868, .780), (.857, .757))}}


def get_table() -> Table:
  return Table(
    title='S1, Table VI: dropout',
    rows=[s1.row(figures, backbone, heads, dropout) for backbone, drops in FIGURES.items() for dropout, three in drops.items()
          for heads, figures in zip(s1.HEADS, three)],
    published={'paper, model, Stanford Cars': 'top1/finest', 'paper, model, CompCars': 'top1/finest'},
    source="Manole and Dioşan, Table VI: model accuracy on the test tenth of Stanford Cars' labelled images and on CompCars' 14,939 test images",
    columns=('top1/coarsest,finest', 'fpa', 'hvr', 'joint:top1/coarsest,finest'), chart=('top1/finest',))
