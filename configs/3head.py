"""Make, type and model: three heads on a pretrained EfficientNet-Lite0, with flip TTA.

  python main.py --config=configs/3head.py --config.data.root=FOLDER --workdir=runs/mine

The config to start from with your own images. Any taxonomy will do: every level gets a head.
Without data.root it trains on the drawn vehicles.
Stanford Cars (5,685 training images, seed 0), 2 CPU cores: about 40 s an epoch; val, flip TTA:
joint make .926, type .933, model and full path .823 (HVR 0); the independent heads .912, .914,
.820, .760 (HVR .120). The one-head baseline (1head.py): .909, .908, .823, .823.
"""

from hierjax import config


def get_config(_: str = ''):
  c = config.default()
  c.name = '3head'
  c.data.size = 128
  c.model.backbone, c.model.pretrained = 'efficientnet_lite0', 'package'
  c.model.dropout, c.loss.margin = 0.2, 5.0
  c.optim.name, c.optim.lr, c.optim.weight_decay, c.optim.schedule = 'adamw', 1e-3, 1e-4, 'onecycle'
  c.train.epochs, c.train.batch_size = 12, 32
  c.eval.tta = 2
  return c
