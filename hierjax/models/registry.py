"""The backbones by torchvision's and timm's names, and how users add theirs."""

from collections.abc import Callable, Mapping

import flax.linen as nn

from hierjax.core.registry import Registry
from hierjax.models.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, Color
from hierjax.models.backbones import (
  convnext,
  densenet,
  efficientnet,
  efficientnet_v2,
  maxvit,
  mobilenet,
  resnet,
  swin,
  vgg,
  vit_families,
)

# timm's names of what has another one here.
ALIASES = {
  'mobilenetv2_100': 'mobilenet_v2',
  **{f'tf_efficientnet_lite{i}': f'efficientnet_lite{i}' for i in range(5)},
  **{f'swin_{size}_patch4_window7_224': f'swin_{size[0]}' for size in ('tiny', 'small', 'base')},
}


class Backbones(Registry[Backbone]):
  """Backbones by name, and by timm's name with the tag of its weights: [timm/]NAME.TAG."""

  def __getitem__(self, name: str) -> Backbone:
    """Return the backbone of a name; a `UserError` with the choices for an unknown one."""
    return super().__getitem__(self._canonical(name))

  def __contains__(self, name: object) -> bool:
    return super().__contains__(self._canonical(name))

  def _canonical(self, name: object) -> object:
    if not isinstance(name, str) or name in self.data:
      return name
    short = name.removeprefix('timm/').partition('.')[0]
    short = ALIASES.get(short, short)
    return short if short in self.data else name


# Of timm's weights, as their cards say; the first word that is in the name.
LICENCES = {
  'dinov3': 'DINOv3 License',
  'convnextv2': 'CC BY-NC 4.0',
  '_clip': 'MIT, Apache 2.0, CC BY-NC 4.0 or Apple',
  'eva02': 'MIT',
  'swin': 'MIT',
  'regnety': 'MIT, BSD, Apache 2.0, CC BY-NC 4.0 or SEER',
  '': 'mostly Apache 2.0',
}
BACKBONES: Registry[Backbone] = Backbones('backbone')
CNNS = (resnet, convnext, densenet, vgg, mobilenet, efficientnet, efficientnet_v2)
for family in (*CNNS, maxvit, swin, vit_families):
  for name, backbone in family.BACKBONES.items():
    BACKBONES.register(name, backbone)


def register_backbone(
  name: str,
  make: Callable[..., nn.Module],
  features: int,
  *,
  mean: Color = IMAGENET_MEAN,
  std: Color = IMAGENET_STD,
  size: int = 224,
  torch_names: Mapping[str, Callable[[str], str]] | None = None,
) -> None:
  """Add a backbone, for `model.backbone`.

  Args:
    name: of the backbone.
    make: a Flax module class, or a function that makes a module. The module is called as `module(x,
      train)` with normalised images x [B, H, W, 3], and returns features float32 [B, d], or
      (features, maps) as `layers.Trunk`. Initialisers and layers can be Flax's own. Where `make`
      takes an argument `dtype`, `remat`, `batch_axis` or `compute`, it is given what the config
      says. On several devices, `nn.BatchNorm`s get the moments of the whole batch by themselves.
    features: width d of the features.
    mean: for each RGB channel in 0..255, subtracted from images.
    std: for each RGB channel in 0..255, by which images are divided after that.
    size: of the images that it was made for, in pixels.
    torch_names: see `Backbone`; needed by `model.pretrained`.

  Raises:
    UserError: the name is taken or not a word.
  """
  BACKBONES.register(name, Backbone(make, features, mean, std, size, torch_names or {}))


def licence(name: str) -> str:
  """Return the licence of timm's weights for a backbone, as their cards say."""
  return next(text for word, text in LICENCES.items() if word in name)
