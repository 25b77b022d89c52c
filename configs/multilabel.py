"""S4: several labels an image. AdvancedCNN from scratch with binary cross-entropy.

  python main.py --config=configs/multilabel.py --config.data.root=FOLDER --workdir=runs/multilabel

The learning rate is halved on a plateau; a threshold is tuned for each class on val.
FOLDER/labels.csv has a column per class with 0 and 1, or a column of sets ('sea|sunset') that
--config.data.multi=COLUMN names. With a taxonomy.csv of several levels, a class always comes with
those above it. Pretrained instead: --config.model.backbone=efficientnet_lite0
--config.model.pretrained=package --config.model.mean= --config.model.std=.
"""

from hierjax import config


def get_config(_: str = ''):
  c = config.default()
  c.name = 'multilabel'
  c.data.multi = ('all',)
  c.data.size = 224
  c.data.augment.crop = c.data.augment.ratio = (1.0, 1.0)
  c.data.augment.flip, c.data.augment.rotate = 0.5, 0.0
  c.data.augment.brightness = c.data.augment.contrast = c.data.augment.saturation = 0.0
  c.model.backbone, c.model.dropout = 'advanced_cnn', 0.5
  c.model.mean = c.model.std = (127.5, 127.5, 127.5)
  c.optim.name, c.optim.lr, c.optim.weight_decay = 'adam', 1e-3, 0.0
  c.optim.schedule, c.optim.plateau_factor, c.optim.plateau_patience = 'plateau', 0.5, 2
  c.train.epochs, c.train.batch_size = 100, 32
  c.train.best, c.train.early_stop = 'loss', 5
  return c
