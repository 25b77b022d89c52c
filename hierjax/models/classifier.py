"""The classifier: a backbone and heads, as a config describes them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from hierjax.core import config
from hierjax.core.errors import UserError, did_you_mean
from hierjax.models import layers, registry
from hierjax.models.compute import Compute
from hierjax.models.functional import normalized
from hierjax.models.heads import HEADS, Logits
from hierjax.models.initializers import torch_linear
from hierjax.taxonomy import Taxonomy

Array = jax.Array


class Classifier(layers.Layer):
  """A backbone, an optional neck, and heads.

  Attributes:
    backbone: see `registry.register_backbone`.
    heads: see `heads.register_head`.
    mean: that images are shifted by, for each channel in 0..255.
    std: that they are divided by.
    neck: a layer between backbone and heads.
    normalize: whether the features that the heads see have length 1.
  """

  backbone: nn.Module
  heads: nn.Module
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  neck: nn.Module | None = None
  normalize: bool = False

  def features(self, images: Array, train: bool = False) -> Array:
    """Compute the features [B, d] that the heads read.

    Args:
      images: uint8 [B, H, W, 3].
      train: whether the backbone is trained.
    """
    mean, std = (jnp.array(v, jnp.float32)[None, None, None] for v in (self.mean, self.std))
    x = ((images.astype(jnp.float32) - mean) / std).astype(self.compute.dtype)
    with nn.intercept_methods(_over_devices(self.compute.batch_axis)):
      out = self.backbone(x, train)
    x = out[0] if isinstance(out, tuple) else out
    x = x if self.neck is None else self.neck(x)
    return normalized(x.astype(jnp.float32)) if self.normalize else x

  def __call__(
    self, x: Array, train: bool = False, train_backbone: bool | None = None
  ) -> tuple[Logits, Array]:
    """Compute logits and features.

    Args:
      x: images uint8 [B, H, W, 3], or features float32 [B, d] computed before.
      train: whether the heads are trained.
      train_backbone: whether the backbone is; None is `train`.

    Returns:
      {level: logits [B, C]}, features [B, d].
    """
    is_trained = train if train_backbone is None else train_backbone
    features = x if x.ndim == 2 else self.features(x, is_trained)
    return self.heads(features, train), features


def _over_devices(axis: str | None) -> Callable:
  """Make an interceptor of module calls that gives Flax's own batch norms the mesh axis."""

  def intercept(call, args, kwargs, context):
    module = context.module
    if axis and isinstance(module, nn.BatchNorm) and module.axis_name is None:
      # A bound module is frozen; its fields are read only within this call.
      object.__setattr__(module, 'axis_name', axis)
    return call(*args, **kwargs)

  return intercept


def build(c: ConfigDict, taxonomy: Taxonomy, levels: tuple[str, ...]) -> Classifier:
  """Make the classifier that a config describes.

  Args:
    c: the config.
    taxonomy: of the data.
    levels: that have a head.

  Raises:
    UserError: a name is not registered, or an option does not fit it.
  """
  m = c.model
  spec = registry.BACKBONES[m.backbone]
  compute = Compute(jnp.dtype(m.dtype), m.remat)
  if m.stem not in spec.stems:
    choices = ', '.join(spec.stems)
    raise UserError(
      f'--config.model.stem={m.stem}: {m.backbone} has one stem only; choices: {choices}'
    )
  options = {} if m.stem == 'standard' else {'stem': m.stem}
  if m.drop_path is not None:
    if not spec.has_option('drop_path'):
      raise UserError(
        f'--config.model.drop_path: is for backbones with stochastic depth; {m.backbone} has none'
      )
    options['drop_path'] = m.drop_path
  neck = layers.Dense(m.neck, torch_linear, compute=compute) if m.neck else None
  heads = _build_heads(m, taxonomy, levels, m.neck or spec.features, compute.in_float32)
  mean, std = tuple(m.mean or spec.mean), tuple(m.std or spec.std)
  lora = (m.lora_rank, lora_scale(m)) if m.lora_rank else None
  trunk = dataclasses.replace(compute, lora=lora, has_frozen_norm=m.frozen_norm or bool(lora))
  backbone = spec.build(trunk, **options)
  return Classifier(backbone, heads, mean, std, neck, m.normalize, compute=compute)


def lora_scale(m: ConfigDict) -> float:
  """Return the factor on the low-rank updates, alpha / rank, of the `model` part of a config."""
  return 1.0 if m.lora_alpha is None else m.lora_alpha / m.lora_rank


def _build_heads(
  m: ConfigDict, taxonomy: Taxonomy, levels: Sequence[str], features: int, compute: Compute
) -> nn.Module:
  for name in ('shared', 'Dropout_0'):
    if name in levels:
      raise UserError(
        f'the taxonomy has a level called {name!r}, which is the name of a part of the heads; '
        'rename the level'
      )
  form, table = HEADS[m.heads], taxonomy.table('exclusive')
  fields = _fields(form)
  counts = {level: rows(m, taxonomy, level) for level in levels}
  parts = tuple((level, n) for level, n in counts.items() if max(n) > 1)
  if 'taxonomy' in fields and table is None:
    raise UserError(
      f'--config.model.heads={m.heads} joins exclusive levels; the data have tag levels only'
    )
  if m.dropout and 'dropout' not in fields:
    raise UserError(f'--config.model.dropout is not an option of --config.model.heads={m.heads}')
  # rows of a class would have to be joined before the levels are
  if parts and ('parts' not in fields or 'taxonomy' in fields):
    raise UserError(f'--config.model.parts is not an option of --config.model.heads={m.heads}')
  ancestors = []
  for k, level in enumerate(levels):
    ancestors.append(tuple(a for a in levels[:k] if taxonomy.nests(level, a)))
  values = {
    'classes': tuple((level, sum(n)) for level, n in counts.items()),
    'ancestors': tuple(ancestors),
    'dropout': m.dropout,
    'parts': parts,
    'taxonomy': table,
    'compute': compute,
  }
  values = {name: value for name, value in values.items() if name in fields}
  return form(**values, **options(m, levels, features))


def _fields(form: type[nn.Module]) -> set[str]:
  return {field.name for field in dataclasses.fields(form)}


def options(m: ConfigDict, levels: Sequence[str], features: int) -> dict[str, Any]:
  """Check the options of the heads, and return those that are set.

  Args:
    m: the `model` part of a config.
    levels: that have a head.
    features: width of what the heads read.

  Raises:
    UserError: an option is not one of the form, or does not fit the levels or features.
  """
  form = HEADS[m.heads]
  values = {k: v for k, v in m.head.items() if v is not None and v is not False}
  for k, v in values.items():
    if k not in _fields(form):
      forms = ', '.join(name for name in HEADS if k in _fields(HEADS[name]))
      raise UserError(
        f'--config.model.head.{k}={v!r} is only valid with --config.model.heads={forms}, '
        f'not with {m.heads}'
      )
  if values.get('order'):
    values['order'] = _resolved_order(values['order'], levels)
  widths = values.get('slices')
  if widths and (len(widths) != len(levels) or sum(widths) != features):
    source = f'neck={m.neck}' if m.neck else f'backbone={m.backbone}'
    raise UserError(
      f'--config.model.head.slices={widths!r} must be a width for each of {", ".join(levels)} that '
      f'add up to the {features} features of --config.model.{source}'
    )
  return values


def _resolved_order(order: Sequence[str], levels: Sequence[str]) -> tuple[str, ...]:
  option, names = '--config.model.head.order', []
  for word in order:
    names.extend(config.resolve_levels(word, levels, option))
  if sorted(names) != sorted(levels):
    raise UserError(
      f'{option}={",".join(order)} must name each level that has a head once; these are '
      f'{", ".join(levels)}'
    )
  return tuple(names)


def rows(m: ConfigDict, taxonomy: Taxonomy, level: str) -> tuple[int, ...]:
  """Return how many rows of a head each class has: 1 but for those of `model.parts`.

  Args:
    m: the `model` part of a config.
    taxonomy: with the level.
    level: of the head.

  Raises:
    UserError: an entry of `model.parts` is malformed, or the taxonomy lacks its class.
  """
  names = taxonomy.names[taxonomy.index(level)]
  out = [1] * len(names)
  for part in m.parts:
    is_valid = len(part) == 3 and part[0] in taxonomy.levels and isinstance(part[2], int)
    if not is_valid or part[2] < 2:
      raise UserError(
        f'--config.model.parts: {part!r} is not (level, class, number of rows from 2); '
        'hierjax migrate sets it'
      )
    if part[0] != level:
      continue
    if part[1] not in names:
      hint = did_you_mean(part[1], names)
      raise UserError(f'--config.model.parts: {level} {part[1]!r} is not in the taxonomy{hint}')
    out[names.index(part[1])] = part[2]
  return tuple(out)
