"""What is fixed about a backbone: how it is made, its width, its images and its weight files."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping

import flax.linen as nn

from hierjax.models.compute import Compute

Color = tuple[float, float, float]
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

# Mean and standard deviation.
Colors = tuple[Color, Color]
IMAGENET, HALVES = (IMAGENET_MEAN, IMAGENET_STD), ((127.5,) * 3, (127.5,) * 3)
# openai/CLIP, clip/clip.py.
CLIP = ((122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305))


@dataclasses.dataclass(frozen=True)
class Backbone:
  """What is fixed about a backbone.

  Attributes:
    make: makes the module; a class or a function of keyword arguments.
    features: width of the pooled features.
    mean: of the images that it was trained with, for each RGB channel in 0..255.
    std: the same for the standard deviation.
    size: of those images in pixels.
    multiple: of pixels that a side of the input should be.
    torch_names: for each naming scheme of weight files the function from a module's path in the
      parameter tree ('layer1_0/conv1') to its prefix in the state dict ('layer1.0.conv1').
    stems: for each choice of model.stem the modules that a weight file of the original need not
      fit: they stay as initialised where it does not.
    uncounted: regular expression of the paths of the modules that stand for what the original
      computes outside of modules that the tool thop knows (see `counts.thop_macs`).
  """

  make: Callable[..., nn.Module]
  features: int
  mean: Color = IMAGENET_MEAN
  std: Color = IMAGENET_STD
  size: int = 224
  multiple: int = 32
  torch_names: Mapping[str, Callable[[str], str]] = dataclasses.field(default_factory=dict)
  stems: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: {'standard': ()})
  uncounted: str = ''

  def has_option(self, name: str) -> bool:
    """Whether `make` has an argument of a name."""
    return name in inspect.signature(self.make).parameters

  def build(self, compute: Compute | None = None, **options) -> nn.Module:
    """Make the module.

    Args:
      compute: how it computes. `make` is given those of `compute`, `dtype`, `remat` and
        `batch_axis` that it takes by name.
      **options: further arguments of `make`.
    """
    compute = compute or Compute()
    if self.has_option('compute'):
      options['compute'] = compute
    for name in ('dtype', 'remat', 'batch_axis'):
      if self.has_option(name):
        options[name] = getattr(compute, name)
    return self.make(**options)
