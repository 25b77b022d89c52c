"""Two heads, on the coarsest and the finest level, and cross-entropy. Otherwise 3head.py.

  python main.py --config=configs/2head.py --config.data.root=FOLDER --workdir=runs/2head

Other levels: --config.model.levels=type,model.
Stanford Cars (5,685 training images, seed 0), 2 CPU cores: about 40 s an epoch; val, flip TTA:
joint make .922, type .912, model and full path .825 (HVR 0); the independent heads make .908, model
.825, full path .797 (HVR .060).
"""

from hierjax import config


def get_config(_: str = ''):
  c = config.default()
  c.name = '2head'
  c.data.size = 128
  c.model.backbone, c.model.pretrained, c.model.levels = (
    'efficientnet_lite0',
    'package',
    ('coarsest', 'finest'),
  )
  c.model.dropout = 0.2
  c.optim.name, c.optim.lr, c.optim.weight_decay, c.optim.schedule = 'adamw', 1e-3, 1e-4, 'onecycle'
  c.train.epochs, c.train.batch_size = 12, 32
  c.eval.tta = 2
  return c
