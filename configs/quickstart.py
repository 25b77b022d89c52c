"""The drawn vehicles, make x type x model: a first run on a laptop, and its one-head baseline.

  python main.py --config=configs/quickstart.py --workdir=runs/quickstart

A pretrained EfficientNet-Lite0 at 64 px. 2 idle CPU cores: under 3 minutes. The training is
chaotic, so another seed or machine gives other figures. Seeds 0 to 2, --config.baseline_seeds=3:
val model accuracy .917 to .948 by the joint decision (HVR 0), .930 to .945 for the baseline, no
evidence of a difference; the independent heads contradict each other on .7 to 1.2 % of the images.
"""

from hierjax import config


def get_config(_: str = ''):
  c = config.default()
  c.name = 'quickstart'
  c.baseline = 'train'
  c.data.source, c.data.size = 'toy', 64
  c.data.augment.crop, c.data.augment.rotate = (
    (0.8, 1.0),
    5.0,
  )  # the drawings fill their frame already
  c.data.augment.brightness = c.data.augment.contrast = c.data.augment.saturation = 0.15
  c.model.backbone, c.model.pretrained = 'efficientnet_lite0', 'package'
  c.optim.lr, c.optim.schedule = 2e-3, 'onecycle'
  c.train.epochs, c.train.batch_size = 5, 32
  return c
