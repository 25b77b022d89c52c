"""Paper S0's ladder (its Table 1): RUNG[,CROP], each rung adding to the one before.

  python main.py --config=configs/ladder.py:9 --config.data.root=FOLDER --workdir=runs/ladder9

ResNet-50, batch 32, Adam 1e-4, 20 epochs, 224 px. Two heads are the coarsest and the finest level
of the taxonomy, three are all its levels. The curriculum's first phase is a quarter of the
training, the paper's 5 of 20 epochs. Rung 10 is rung 9's training, evaluated with two views.
The paper trains on all 8,144 training images of Stanford Cars and has no val: here it is a tenth of
the 8,041 test images where the data have none, 804, and test the other 7,237 (--split=test).
CROP is the least share of the area that a random crop keeps: .08, torchvision's default for the
RandomResizedCrop that the paper names, or .5, hierjax's own.
All rungs next to the published figures: hierjax table --config=s0_table1.

With EfficientNet-Lite0 at 96 px, 5 epochs of about 27 s on 2 CPU cores (the command is in
BUILD_NOTES.md), Stanford Cars val, independent heads, rung by rung: model accuracy 26.1, 54.9,
55.9, 55.5, 58.3, 54.5, 57.4, 57.9, 55.2, 47.1, 50.4; far from convergence, so no verdict on the
paper.

Without a hub: --config.model.backbone=efficientnet_lite0 --config.model.pretrained=package
--config.data.size=128.
"""

from hierjax import config
from hierjax.core.errors import check_choice

RUNGS = {
  '1': 'one head, frozen backbone',
  '2': 'the backbone trains',
  '3': 'two heads',
  '4': '+ augmentation',
  '5': '+ class balancing',
  '5.5': 'two heads + curriculum',
  '6': 'three heads, no curriculum',
  '7': '+ curriculum',
  '8': '+ hierarchical label smoothing',
  '9': '+ cosine schedule',
  '10': '+ test-time augmentation',
}


def get_config(text: str = '10'):
  rung, _, crop = text.partition(',')
  check_choice('configs/ladder.py: no crop', crop or '.08', ('.08', '.5'))
  check_choice('configs/ladder.py: no rung', rung, RUNGS)
  number = float(rung)
  c = config.default()
  c.name = f'ladder{text}'
  c.data.val_from, c.data.val_share = 'test', 0.1
  c.model.backbone, c.model.pretrained = 'resnet50', 'hf:timm/resnet50.tv_in1k'
  c.model.heads = 'flat' if number < 3 else 'parallel'
  c.model.levels = ('coarsest', 'finest') if 3 <= number < 6 else ('all',)
  c.data.augment.enabled = number >= 4
  if c.data.augment.enabled:
    c.data.augment.crop = (float(crop or '.08'), 1.0)
  c.data.balance = 'sample' if number >= 5 else None
  c.optim.name, c.optim.lr, c.optim.weight_decay = 'adam', 1e-4, 0.0
  c.optim.schedule = 'cosine' if number >= 9 else 'constant'
  c.train.batch_size, c.train.epochs = 32, 20
  if number == 1:
    c.curriculum = (config.phase(share=1.0, freeze=('backbone',)),)
  if number == 5.5 or number >= 7:
    c.curriculum = (config.phase(share=0.25, freeze=('heads/finest',), levels=('coarser',)),)
  c.loss.smoothing = 0.1 if number >= 8 else None
  c.eval.tta = 2 if number == 10 else 1
  return c
