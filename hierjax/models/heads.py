"""The heads, and the classifier: a backbone, dropout, and one linear head for each level that has one."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hierjax import models
from hierjax.config import UserError
from hierjax.models import layers
from hierjax.taxonomy import Taxonomy


class Parallel(nn.Module):
  """One linear head a level on the shared features (S0, section 3.2; S1 calls it parallel). features [B, d] → {level: float32 logits [B, C]}."""

  classes: tuple[tuple[str, int], ...]  # (level, number of classes)
  dropout: float = 0.0

  @nn.compact
  def __call__(self, features: jax.Array, train: bool) -> dict[str, jax.Array]:
    x = layers.Dropout(self.dropout, name='Dropout_0')(features.astype(jnp.float32), train)
    # uniform in +-1/sqrt(d): wide enough to start fine-tuning from, and what torch users compare with
    kernel = layers.uniform(lambda shape: shape[0] ** -0.5)
    return {level: nn.Dense(n, kernel_init=kernel, bias_init=layers.zeros, name=level)(x) for level, n in self.classes}


class Classifier(nn.Module):
  """images uint8 [B, H, W, 3], or features float32 [B, d] computed before → ({level: logits [B, C]}, features [B, d])."""

  backbone: nn.Module
  heads: nn.Module
  mean: tuple[float, float, float]  # in 0..255
  std: tuple[float, float, float]
  dtype: jnp.dtype = jnp.float32

  def features(self, images: jax.Array, train: bool = False) -> jax.Array:
    x = (images.astype(jnp.float32) - jnp.array(self.mean, jnp.float32)[None, None, None]) / jnp.array(self.std, jnp.float32)[None, None, None]
    return self.backbone(x.astype(self.dtype), train)[0]

  def __call__(self, x: jax.Array, train: bool = False, train_backbone: bool | None = None):
    features = x if x.ndim == 2 else self.features(x, train if train_backbone is None else train_backbone)
    return self.heads(features, train), features


def build(c, taxonomy: Taxonomy, levels: tuple[str, ...]) -> Classifier:
  """The classifier that config `c` describes, with a head for each of `levels`."""
  spec = models.BACKBONES[c.model.backbone]
  if c.model.stem not in spec.stems:
    raise UserError(f'--config.model.stem={c.model.stem}: {c.model.backbone} has one stem only; choices: {", ".join(spec.stems)}')
  options = {} if c.model.stem == 'standard' else {'stem': c.model.stem}
  dtype = jnp.dtype(c.model.dtype)
  backbone = spec.make(dtype=dtype, remat=c.model.remat, **options)
  heads = Parallel(tuple((level, taxonomy.num_classes(level)) for level in levels), c.model.dropout)
  return Classifier(backbone, heads, tuple(c.model.mean) or spec.mean, tuple(c.model.std) or spec.std, dtype)
