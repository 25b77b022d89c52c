"""Mixing the images of a batch in pairs, and their targets with them: mixup and CutMix."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from hierjax.core.errors import UserError


class Mixing(NamedTuple):
  """The alphas of mixup and CutMix, whose shares are of Beta(alpha, alpha); None for never."""

  mixup: float | None
  cutmix: float | None


class Partners(NamedTuple):
  """The labels int32 [B, L] of the other image of each pair, and the share [] of the one."""

  labels: jax.Array
  share: jax.Array


def build(c: ConfigDict) -> Mixing | None:
  """Build the mixing that a config asks for, None for none; `UserError` where it cannot work."""
  a = c.data.augment
  if not a.enabled or (a.mixup is None and a.cutmix is None):
    return None
  name = 'cutmix' if a.mixup is None else 'mixup'
  flag = f'--config.data.augment.{name}={a[name]:g}'
  if c.train.batch_size % 2:
    raise UserError(f'{flag} mixes pairs: --config.train.batch_size={c.train.batch_size} is odd')
  for loss, is_used in (
    ('supervised_contrastive', 'supervised_contrastive' in c.loss.terms),
    ('loss.aggregate', c.loss.aggregate),
  ):
    if is_used:
      raise UserError(f'{flag}: {loss} needs images of one label each; leave one of them out')
  return Mixing(a.mixup, a.cutmix)


def swap(values: jax.Array) -> jax.Array:
  """Swap neighbours, rows 2i and 2i + 1: of an even number of rows, a device needs no others."""
  pairs = values.reshape(len(values) // 2, 2, *values.shape[1:])
  return pairs[:, ::-1].reshape(values.shape)


def _mixup(alpha, key, height, width):
  """mixup (Zhang et al., arXiv:1710.09412): the same share at each pixel."""
  return jnp.broadcast_to(jax.random.beta(key, alpha, alpha), (height, width))


def _cutmix(alpha, key, height, width):
  """CutMix (Yun et al., arXiv:1905.04899), equation 2: 0 in a box, which the borders may cut."""
  of_share, of_centre = jax.random.split(key)
  side = jnp.sqrt(1 - jax.random.beta(of_share, alpha, alpha))
  centre = jax.random.uniform(of_centre, (2,))
  inside = []
  for n, place in zip((height, width), centre):
    half = jnp.floor(n * side).astype(jnp.int32) // 2
    distance = jnp.arange(n) - jnp.floor(n * place).astype(jnp.int32)
    inside.append((distance >= -half) & (distance < half))
  return 1.0 - (inside[0][:, None] & inside[1][None])


def shares(mixing: Mixing, size: Sequence[int], key: jax.Array) -> jax.Array:
  """Draw the share of an image at each pixel of its mixture, float32 [height, width].

  Args:
    mixing: the methods; with both, one is drawn.
    size: height and width.
    key: of the step.
  """
  key, of_method = jax.random.split(key)
  if mixing.cutmix is None:
    return _mixup(mixing.mixup, key, *size)
  if mixing.mixup is None:
    return _cutmix(mixing.cutmix, key, *size)
  of_mixup, of_cutmix = _mixup(mixing.mixup, key, *size), _cutmix(mixing.cutmix, key, *size)
  return jnp.where(jax.random.bernoulli(of_method), of_mixup, of_cutmix)


def mix(
  mixing: Mixing, batch: Mapping[str, jax.Array], key: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
  """Mix each image with its neighbour.

  Args:
    mixing: the methods.
    batch: 'image' uint8 [B, H, W, 3] and 'labels' int32 [B, L] of the whole batch.
    key: of the step.

  Returns:
    The batch with mixed images and the labels of the others as 'partners'; an image's share, [].
  """
  images = batch['image']
  share = shares(mixing, images.shape[1:3], key)[None, :, :, None]  # of each pixel
  first, second = images.astype(jnp.float32), swap(images).astype(jnp.float32)
  mixed = jnp.round(second + share * (first - second)).astype(images.dtype)
  return {**batch, 'image': mixed, 'partners': swap(batch['labels'])}, share.mean()
