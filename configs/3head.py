"""Make, type and model: three heads on a pretrained EfficientNet-Lite0, with flip TTA.

  python main.py --config=configs/3head.py --config.data.root=FOLDER --workdir=runs/mine

The config to start from with your own images. Any taxonomy will do: every level gets a head.
Without data.root it trains on the drawn vehicles.
The margin and the equal weights were the best of 20 rows on a quarter of Cars' training images,
judged on others of them. Stanford Cars with 1,421 training images (--config.data.train_limit=1421),
val, flip TTA, seeds 0 to 2: joint make .666, type .749, model and full path .468, against .592,
.657 and .423 of one head (1head.py): +4.5 points of full path (+2.1 to +7.0 over images and seeds).
With all 5,685 images (seeds 0 to 2) .924, .931, .830 against .910, .910, .821: type +2.1 (+.8 to
+3.5), make +1.4 (-.2 to +2.9), full path +.9 (-1.5 to +3.2), and milder mistakes. With 1,421 images
of which half lack the model's label (--config.data.unlabelled=.5) full path .427 against .256, and
so on 2,500 images of CIFAR-100 .509 against .481. No gain on these with all labels, and none on
birds, dogs and reptiles: see docs/comparison.md.
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
