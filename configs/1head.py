"""The plain baseline: one head on the finest level, cross-entropy. Otherwise 3head.py.

  python main.py --config=configs/1head.py --config.data.root=FOLDER --workdir=runs/1head

Stanford Cars (5,685 training images, seed 0), 2 CPU cores: about 40 s an epoch; val, flip TTA: make
.909, type .908, model and full path .823.
"""

from hierjax import config


def get_config(_: str = ''):
  c = config.default()
  c.name = '1head'
  c.data.size = 128
  c.model.backbone, c.model.pretrained, c.model.heads = 'efficientnet_lite0', 'package', 'flat'
  c.model.dropout = 0.2
  c.optim.name, c.optim.lr, c.optim.weight_decay, c.optim.schedule = 'adamw', 1e-3, 1e-4, 'onecycle'
  c.train.epochs, c.train.batch_size = 12, 32
  c.eval.tta = 2
  return c
