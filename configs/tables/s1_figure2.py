r"""Paper S1, Figure 2: nine families of backbones, to choose three; on Stanford Cars.

  python main.py table --config=configs/tables/s1_figure2.py --config.data.root=FOLDER \
    --workdir=runs/s1_table5

Each in three forms, without dropout or augmentation, with the weights .9 and .1. The bars have no
numbers: those of DenseNet-121, MaxViT-T and ConvNeXt-B are in Table V, whose runs they are (in its
--workdir nothing is trained again); of the six others the text says that they are at least 5 points
behind. It names the families and EfficientNet-B0; the other sizes are this file's: MobileNetV2,
ResNet-50, VGG-16, ViT-B/16 and Swin-T. Small budgets: as in s1_table5.py.
"""

from configs import s1
from configs.tables import s1_table5
from hierjax.experiments.table import Table

get_config = s1.get_config


def rows(figures):
  """The rows of all families, with the figures of those that have some."""
  return [
    s1.row((figure,) if figure else (), backbone, heads)
    for backbone in s1.BACKBONES
    for heads, figure in zip(s1.HEADS, figures.get(backbone, (None,) * 3))
  ]


def get_table() -> Table:
  return Table(
    title='S1, Figure 2: nine families on Stanford Cars',
    rows=rows({name: figures[:3] for name, figures in s1_table5.FIGURES.items()}),
    published={'paper, model': 'top1/finest'},
    source='Manole and Dioşan, Figure 2 and Table V: model accuracy on a tenth of the 8,144 '
    'labelled images of Stanford Cars, held out as test',
    columns=('top1/coarsest,finest', 'fpa', 'hvr'),
    chart=('top1/finest',),
  )
