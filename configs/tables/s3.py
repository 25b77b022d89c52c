r"""Paper S3: EfficientNet and ConvNeXt with heads for superclass and subclass; hierarchical F1.

  python main.py table --config=configs/tables/s3.py --config.data.root=FOLDER \
    --workdir=runs/s3

The paper names an aim (F1 above 80 %) and reports neither figures nor how it trained; the options
are this file's. Its images are 64 px, and so are these. Pretrained weights come from the hub, those
of EfficientNet-Lite0 from a package: --rows=efficientnet_lite0 needs no hub.

Birds, dogs and reptiles (4,395 training images, 3 superclasses, 87 subclasses), EfficientNet-Lite0,
seed 0: val, independent heads, hP, hR and hF1 .946, superclass .999, subclass and full path .892
(HVR .004); joint hF1 .946, subclass .895.
"""

from hierjax import config
from hierjax.core.errors import check_choice
from hierjax.experiments.table import Row, Table

BACKBONES = {
  'efficientnet_lite0': ('EfficientNet-Lite0', 'package'),
  'efficientnet_b0': ('EfficientNet-B0', 'hf:timm/efficientnet_b0.ra_in1k'),
  'convnext_tiny': ('ConvNeXt-T', 'hf:timm/convnext_tiny.fb_in1k'),
}


def get_config(backbone: str = 'efficientnet_lite0'):
  check_choice('configs/tables/s3.py: no row', backbone, BACKBONES)
  c = config.default()
  c.name = f's3 {backbone}'
  c.data.size = 64
  c.model.backbone, c.model.pretrained, c.model.levels = (
    backbone,
    BACKBONES[backbone][1],
    ('coarsest', 'finest'),
  )
  c.model.dropout = 0.2
  c.optim.name, c.optim.lr, c.optim.weight_decay, c.optim.schedule = 'adamw', 1e-3, 1e-4, 'onecycle'
  c.train.epochs, c.train.batch_size = 12, 32
  return c


def get_table() -> Table:
  return Table(
    title='S3: superclass and subclass',
    rows=[Row(backbone, label) for backbone, (label, _) in BACKBONES.items()],
    source='Huang, "Leveraging Transfer Learning Techniques for Multi-Class Image Categorization", '
    'names an aim, F1 above 80 %, and no measured figure',
    columns=(
      'hp',
      'hr',
      'hf1',
      'top1/coarsest,finest',
      'fpa',
      'hvr',
      'joint:hf1',
      'joint:top1/finest',
      'params',
    ),
    chart=('hp', 'hr', 'hf1'),
  )
