r"""Paper S4: several labels an image; mAP, and F1 before and after the thresholds are tuned.

  python main.py table --config=configs/tables/s4.py --config.data.root=FOLDER \
    --workdir=runs/s4

AdvancedCNN from scratch, and a pretrained EfficientNet-Lite0. The paper's data, ten classes of
vehicles and instruments, are not public: its mAP, of its test split, is of other images. It trains
AdvancedCNN alone; the learning rate of the pretrained network, 3e-4, is this file's.
"""

from configs import multilabel
from hierjax.core.errors import check_choice
from hierjax.experiments.table import Row, Table

ROWS = {
  'advanced_cnn': 'AdvancedCNN, from scratch',
  'efficientnet_lite0': 'EfficientNet-Lite0, pretrained',
}


def get_config(row: str = 'advanced_cnn'):
  check_choice('configs/tables/s4.py: no row', row, ROWS)
  c = multilabel.get_config()
  c.name, c.model.backbone = f's4 {row}', row
  if row == 'efficientnet_lite0':
    c.model.pretrained, c.model.mean, c.model.std, c.optim.lr = 'package', None, None, 3e-4
  return c


def get_table() -> Table:
  return Table(
    title='S4: several labels an image',
    source='S4, Table 2: ten classes of vehicles and instruments, which are not public; on test',
    rows=[
      Row(row, label, (0.9604,) if row == 'advanced_cnn' else ()) for row, label in ROWS.items()
    ],
    published={'S4': 'map/all'},
    columns=(
      'map/all',
      'micro_map/all',
      'f1/all',
      'tuned_f1/all',
      'micro_f1/all',
      'tuned_micro_f1/all',
    ),
    chart=('map/all',),
  )
