"""The embedded default: drawn vehicles, make x type x model, a small ResNet at 64 px on a laptop's CPU; then the one-head baseline to compare with.

  python main.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

from hierjax import config


def get_config(_: str = ''):
  c = config.default()
  c.name = 'quickstart'
  c.baseline = 'train'
  c.data.source, c.data.size = 'toy', 64
  c.model.backbone = 'resnet18'
  c.optim.lr, c.optim.schedule = 2e-3, 'onecycle'
  c.train.epochs, c.train.batch_size = 8, 32
  c.eval.tta = 1
  return c
