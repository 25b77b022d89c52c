r"""Paper S0, Table 2: published classifiers of Stanford Cars next to the ladder's last rung.

  python main.py table --config=configs/tables/s0_table2.py --config.data.root=FOLDER \
    --workdir=runs/s0_table2 --split=test

The published classifiers are flat and were each trained by its own paper's recipe, on more epochs
and augmentation than S0's. Here their backbones are trained as S0 trains: one head on the model,
with the augmentation, balancing and schedule of rung 9. On a laptop: --config.data.size=96
--config.train.epochs=5 and --rows='resnet50 10'.
"""

from configs import ladder
from hierjax.core.errors import check_choice
from hierjax.experiments.table import Row, Table

BACKBONES = {
  'resnet50': ('ResNet-50', 0.920),
  'resnet152': ('ResNet-152', 0.926),
  'densenet161': ('DenseNet-161', 0.946),
  'vgg16': ('VGG-16', 0.840),
}
RUNGS = ('9', '10')


def get_config(row: str = '10'):
  check_choice('configs/tables/s0_table2.py: no row', row, (*BACKBONES, *RUNGS))
  if row in RUNGS:
    return ladder.get_config(row)
  c = ladder.get_config('9')
  c.name = f's0 {row}'
  c.model.backbone, c.model.pretrained = row, f'hf:timm/{row}.tv_in1k'
  c.model.heads, c.curriculum, c.loss.smoothing = 'flat', (), None
  return c


def get_table() -> Table:
  rows = [
    Row(name, f'{label}, one head', (figure,), 'Published, flat', 'resnet50' * (name != 'resnet50'))
    for name, (label, figure) in BACKBONES.items()
  ]
  rows += [
    Row('9', 'ResNet-50, three heads', (0.8795,), 'S0', 'resnet50'),
    Row('10', 'ResNet-50, three heads, two views', (0.8857,), 'S0', 'resnet50', evaluates='9'),
  ]
  return Table(
    title='S0, Table 2: against published results',
    rows=rows,
    published={'paper, model': 'top1/finest'},
    source='Freyr, Engels and Gyüre, Tables 1 and 2, after Valev et al. (ResNets, DenseNet-161) '
    'and Sánchez et al. (VGG-16): model accuracy on the 8,041 test images of Stanford Cars',
    columns=('top1/coarsest,finest', 'fpa', 'joint:top1/finest'),
    chart=('top1/finest',),
  )
