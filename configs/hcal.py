"""Paper S2's HCAL: prototypes, feature aggregation and adaptive loss weights.

  python main.py --config=configs/hcal.py:code --config.data.root=CIFAR100 --workdir=runs/hcal

Every level has prototypes, perturbed in training; coarser levels learn from the mean features of
their classes. The argument is READING,DATA. READING is where the paper and the authors' code differ
(SPEC: the papers' contradictions):
  paper  features as they are, averaged, then made unit vectors (equations 2, 5); of three levels
         the coarsest averages its child classes; epsilon .05
  code   features are unit vectors first, their means stay as they are; every level averages its
         samples; epsilon .01, and 0 with three levels
DATA is cifar100 (32 px, 3x3 stem without max-pool; the default) or aircraft (224 px, three levels,
the usual stem). Both end in a linear layer to 256 features. Any other number of levels works, too.
Both readings share SGD .9, weight decay 1e-4 on everything, no schedule, batch 32, lr .01,
prototypes .05 and twice as much for each level upwards, temperature .1, gamma .5. The paper states
no number of epochs; the code has 500 (CIFAR-100) and 1,000 (Aircraft), which take weeks on a CPU:
give --config.train.epochs. The authors start from ImageNet weights:
--config.model.pretrained=hf:timm/resnet18.tv_in1k.

--config.loss.positives=both is equation 6 as it is printed, --config.loss.aggregate= is the
ablation of feature aggregation (FA), --config.model.head.noise=0 that of the perturbation (PP),
--config.balance.name=fixed --config.balance.gamma= that of the adaptive weights (AWA).
"""

from hierjax import config
from hierjax.core.errors import check_choice

READINGS = ('paper', 'code')
DATA = ('cifar100', 'aircraft')


def get_config(text: str = 'code'):
  reading, _, data = text.partition(',')
  check_choice('configs/hcal.py: no reading', reading, READINGS)
  check_choice('configs/hcal.py: no data', data or 'cifar100', DATA)
  c = config.default()
  c.name = f'hcal {text}'
  a = c.data.augment
  a.brightness = a.contrast = a.saturation = 0.0
  if data == 'aircraft':
    c.data.size = 224
    c.model.backbone, c.model.neck = 'resnet18', 256
  else:
    c.data.size = 32
    a.crop, a.ratio = (
      (0.77, 1.0),
      (1.0, 1.0),
    )  # as much is seen as of a crop of 32 from 40 pixels, of which the padding is black
    c.model.backbone = 'resnet18_32px'
  c.model.heads = 'prototypes'
  c.model.head.temperature = 0.1
  if reading == 'code':
    c.model.normalize = c.model.head.dot_product = True
    c.model.head.noise, c.loss.aggregate = 0.0 if data == 'aircraft' else 0.01, 'samples'
  else:
    c.model.head.noise, c.loss.aggregate = 0.05, 'children'
  c.balance.name, c.balance.gamma = 'awa', 0.5
  c.optim.name, c.optim.lr, c.optim.momentum, c.optim.schedule = 'sgd', 0.01, 0.9, 'constant'
  c.optim.heads_lr, c.optim.heads_growth = 5.0, 2.0
  c.optim.weight_decay, c.optim.rules = 1e-4, (('.*', 1.0, 1.0),)
  c.train.batch_size, c.train.epochs = 32, 500 if data != 'aircraft' else 1000
  return c
