r"""Paper S1, Figure 3: nine families of backbones, to choose three; on CompCars.

  python main.py table --config=configs/tables/s1_figure3.py --config.data.root=COMPCARS \
    --workdir=runs/s1_figure3 --split=test

As s1_figure2.py, on the split that CompCars brings: a fifth of its 16,016 training images is val
(12,813 and 3,203), and its 14,939 test images are test. The figures of DenseNet-121, MaxViT-T and
ConvNeXt-B are those of Table VI.
"""

from configs import s1
from configs.tables import s1_figure2, s1_table6
from hierjax.experiments.table import Table


def get_config(model: str = 'densenet121,parallel,0,.9,.1'):
  c = s1.get_config(model)
  c.data.divide, c.data.test_share = None, 0.0
  return c


def get_table() -> Table:
  figures = {
    backbone: [compcars for _, compcars in drops['0']]
    for backbone, drops in s1_table6.FIGURES.items()
  }
  return Table(
    title='S1, Figure 3: nine families on CompCars',
    rows=s1_figure2.rows(figures),
    published={'paper, model': 'top1/finest'},
    source='Manole and Dioşan, Figure 3 and Table VI: model accuracy on the 14,939 test images of '
    'CompCars',
    columns=('top1/coarsest,finest', 'fpa', 'hvr'),
    chart=('top1/finest',),
  )
