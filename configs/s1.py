r"""Paper S1's protocol, one model: BACKBONE,HEADS,DROPOUT,LAMBDA1,LAMBDA2.

  python main.py --config=configs/s1.py:densenet121,parallel,.25,.9,.1 \
    --config.data.root=FOLDER --workdir=runs/s1

BACKBONE: densenet121, maxvit_t or convnext_base, or one of the six others of the paper's Figures 2
and 3; HEADS: flat (its ancestors read off: the paper's single-task model), parallel or cascaded;
the lambdas are the loss weights of the finest level (model) and of the coarsest (make). What is
left out is DROPOUT 0 and no weights. 224 px, 25 epochs, Adam, one-cycle with the peak 3e-4. The
paper is silent on the batch (32 here) and on the shape of the cycle (as PyTorch's default: 30 % of
the steps up). Augmentation is off, as in the paper's Tables V and VI; tables/s1_table7.py turns it
on.

Train is divided .7/.2/.1: in the published layout 5,701, 1,629 and 814 of the 8,144 labelled images
of Stanford Cars; --split=test is the last. What the data call val or test is left out, and a folder
without splits is divided as a whole. On CompCars, whose own test images the paper takes:
--config.data.divide= --config.data.test_share=0.

Pretrained on ImageNet from the hub; MaxViT-T wants torchvision's file maxvit_t-bc5ab103.pth in the
current folder. Without a hub: --config.model.backbone=efficientnet_lite0
--config.model.pretrained=package --config.data.size=128.
"""

from hierjax import config
from hierjax.core.errors import UserError, check_choice
from hierjax.experiments import table

BACKBONES = {
  'mobilenet_v2': ('MobileNetV2', 'hf:timm/mobilenetv2_100.ra_in1k'),
  'resnet50': ('ResNet-50', 'hf:timm/resnet50.tv_in1k'),
  'vgg16': ('VGG-16', 'hf:timm/vgg16.tv_in1k'),
  'efficientnet_b0': ('EfficientNet-B0', 'hf:timm/efficientnet_b0.ra_in1k'),
  'vit_b_16': ('ViT-B/16', 'hf:timm/vit_base_patch16_224.augreg_in21k_ft_in1k'),
  'swin_t': ('Swin-T', 'hf:timm/swin_tiny_patch4_window7_224.ms_in1k'),
  'densenet121': ('DenseNet-121', 'hf:timm/densenet121.tv_in1k'),
  'maxvit_t': ('MaxViT-T', 'maxvit_t-bc5ab103.pth'),
  'convnext_base': ('ConvNeXt-B', 'hf:timm/convnext_base.fb_in1k'),
}
HEADS = {'flat': 'single-task', 'parallel': 'parallel', 'cascaded': 'cascaded'}


def get_config(model: str = 'densenet121,parallel,0,.9,.1'):
  backbone, heads, dropout, *weights = [
    *model.split(','),
    *('flat', '0')[min(model.count(','), 2) :],
  ]
  check_choice('configs/s1.py: no backbone', backbone, BACKBONES)
  check_choice('configs/s1.py: no heads', heads, HEADS)
  if len(weights) not in (0, 2) or (heads == 'flat' and weights):
    raise UserError(
      f'configs/s1.py:{model}: is not BACKBONE,HEADS,DROPOUT,LAMBDA1,LAMBDA2; the weights are two, '
      'and flat has none'
    )
  c = config.default()
  c.name = f's1 {model}'
  c.data.size, c.data.divide, c.data.val_share, c.data.test_share = 224, 'train', 0.2, 0.1
  c.data.augment.enabled = False
  c.model.backbone, c.model.pretrained = backbone, BACKBONES[backbone][1]
  c.model.levels, c.model.heads = ('coarsest', 'finest'), heads
  c.model.dropout = float(dropout)
  c.loss.weights = tuple(zip(('finest', 'coarsest'), map(float, weights)))
  c.optim.name, c.optim.lr, c.optim.weight_decay = 'adam', 3e-4, 0.0
  c.optim.schedule, c.optim.onecycle_rise = 'onecycle', 0.3
  c.optim.onecycle_momentum = (0.85, 0.95)
  c.train.epochs, c.train.batch_size = 25, 32
  return c


def row(
  published,
  backbone: str,
  heads: str,
  dropout: str = '0',
  weights: tuple[str, str] = ('.9', '.1'),
  note: str = '',
) -> table.Row:
  """Make a row of a table.

  That of multi-task heads is compared with the single-task model of the same dropout, which has no
  weights.
  """
  single = f'{backbone},flat,{dropout}'
  group = BACKBONES[backbone][0] + ('' if dropout == '0' else f', dropout {dropout}')
  if heads == 'flat':
    return table.Row(single, HEADS[heads], published, group, note=note)
  return table.Row(
    f'{backbone},{heads},{dropout},{",".join(weights)}',
    f'{HEADS[heads]}, λ {"/".join(weights)}',
    published,
    group,
    single,
    note=note,
  )
