"""RegNetY as in timm (Radosavovic et al. 2020, arXiv:2003.13678)."""

import functools
import re

import flax.linen as nn
import jax

from hierjax.models import layers
from hierjax.models.backbone import Backbone
from hierjax.models.backbones.resnet import Block

# name: (blocks of each stage, their widths, width of a group)
VARIANTS = {
  '002': ((1, 1, 4, 7), (24, 56, 152, 368), 8),
  '004': ((1, 3, 6, 6), (48, 104, 208, 440), 8),
  '006': ((1, 3, 7, 4), (48, 112, 256, 608), 16),
  '008': ((1, 3, 8, 2), (64, 128, 320, 768), 16),
  '016': ((2, 6, 17, 2), (48, 120, 336, 888), 24),
  '032': ((2, 5, 13, 1), (72, 216, 576, 1512), 24),
  '040': ((2, 6, 12, 2), (128, 192, 512, 1088), 64),
  '064': ((2, 7, 14, 2), (144, 288, 576, 1296), 72),
  '080': ((2, 4, 10, 1), (168, 448, 896, 2016), 56),
  '120': ((2, 5, 11, 1), (224, 448, 896, 2240), 112),
  '160': ((2, 4, 11, 1), (224, 448, 1232, 3024), 112),
  '320': ((2, 5, 12, 1), (232, 696, 1392, 3712), 232),
}


def _timm_name(path: str) -> str:
  """Return timm's state dict prefix of a module path."""
  path = re.sub(r'^(s\d)_|^(stem)_', lambda m: f'{m[1] or m[2]}.', path)
  path = re.sub(r'/bn(\d)$', r'/conv\1.bn', re.sub(r'/(conv\d)$', r'/\1.conv', path))
  path = path.replace('downsample_0', 'downsample.conv').replace('downsample_1', 'downsample.bn')
  return path.replace('/', '.')


class RegNet(layers.Trunk):
  """Trunk of a RegNetY.

  Attributes:
    variant: a key of `VARIANTS`.
  """

  variant: str = '016'

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> layers.Output:
    """Compute features and maps."""
    compute, block = self.compute, self.remat(Block)
    x = layers.Conv(32, 3, 2, 1, compute=compute, name='stem_conv')(x)
    x = layers.BatchNorm('relu', compute=compute, name='stem_bn')(x, train)
    maps = {'stem': x}
    depths, widths, group = VARIANTS[self.variant]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
      for i in range(1, depth + 1):
        options = {'out': width, 'groups': width // group, 'squeezed': round(x.shape[-1] / 4)}
        name, stride = f's{stage}_b{i}', 2 if i == 1 else 1
        x = block(width, stride, True, **options, compute=compute, name=name)(x, train)
      maps[f'stage{stage}'] = x
    x = maps['features'] = self.perturb('features', x)
    return layers.GlobalPool()(x), maps


BACKBONES = {
  f'regnety_{variant}': Backbone(
    functools.partial(RegNet, variant), widths[-1], torch_names={'timm': _timm_name}
  )
  for variant, (_, widths, _) in VARIANTS.items()
}
