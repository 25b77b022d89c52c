r"""Paper S1, Table V: single-task, parallel and cascaded heads under three pairs of loss weights.

  python main.py table --config=configs/tables/s1_table5.py --config.data.root=FOLDER \
    --workdir=runs/s1_table5

Without dropout or augmentation. Some rows only: --rows='densenet121*'. On a laptop: add
--config.model.backbone=efficientnet_lite0 --config.model.pretrained=package --config.data.size=96
--config.train.epochs=5, and --rows='densenet121*', since all three backbones would be the same.
Tables V and VI share rows: with the same --workdir what has finished there is not run again. A
folder without splits is split as the paper's; --split=test then shows its tenth.
"""

from configs import s1
from hierjax.experiments.table import Table

get_config = s1.get_config

WEIGHTS = (('.9', '.1'), ('.5', '.5'), ('.2', '.8'))
FIGURES = {  # single-task, then parallel and cascaded for each pair of weights
  'densenet121': (0.833, 0.861, 0.842, 0.833, 0.826, 0.787, 0.776),
  'maxvit_t': (0.878, 0.882, 0.881, 0.866, 0.864, 0.871, 0.872),
  'convnext_base': (0.883, 0.873, 0.871, 0.875, 0.861, 0.842, 0.808),
}


def get_table() -> Table:
  rows = []
  for backbone, (single, *multi) in FIGURES.items():
    rows.append(s1.row((single,), backbone, 'flat'))
    for i, weights in enumerate(WEIGHTS):
      rows += [
        s1.row((multi[2 * i + k],), backbone, heads, weights=weights)
        for k, heads in enumerate(('parallel', 'cascaded'))
      ]
  return Table(
    title='S1, Table V: loss weights',
    rows=rows,
    published={'paper, model': 'top1/finest'},
    source='Manole and Dioşan, Table V: model accuracy on a tenth of the 8,144 labelled images of '
    'Stanford Cars, held out as test; λ are the weights of model/make',
    columns=('top1/coarsest,finest', 'fpa', 'hvr', 'joint:top1/coarsest,finest'),
    chart=('top1/finest',),
  )
