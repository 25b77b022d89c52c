"""The heads, and the classifier: a backbone, dropout, and what turns its features into logits of each level that has a head."""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from hierjax.core import config as config_lib
from hierjax.core.errors import UserError
from hierjax.models import layers
from hierjax.models import registry as models
from hierjax.taxonomy import Taxonomy

# uniform in +-1/sqrt(d): wide enough to start fine-tuning from, and what torch users compare with
initial = layers.uniform(lambda shape: shape[0] ** -0.5)


def _stop(x: jax.Array, stopped: bool) -> jax.Array:
  """x as a constant. In training only, so that a heatmap shows all that a logit depends on."""
  return lax.stop_gradient(x) if stopped else x


class Path(nn.Module):
  """The layers of one level, one at a time; with `paths` above 1 also what it takes of each of so many paths, itself the one with number `own`."""

  classes: int
  layers: int
  width: int
  own: int = 0
  paths: int = 1

  def setup(self):
    self.hidden = [layers.Dense(self.width, initial) for _ in range(self.layers)]
    self.output = layers.Dense(self.classes, initial)
    if self.paths > 1:
      start = np.where(np.arange(self.paths) == self.own, 0.9, 0.1 / (self.paths - 1))
      self.stitch = self.param('stitch', layers.constant(start), (self.layers, self.paths))

  def layer(self, i: int, x: jax.Array) -> jax.Array:
    return self.hidden[i](x)

  def mix(self, i: int, xs: Sequence[jax.Array]) -> jax.Array:
    return sum(self.stitch[i, k] * x for k, x in enumerate(xs)) if self.paths > 1 else xs[0]

  def out(self, x: jax.Array) -> jax.Array:
    return self.output(x)


class Tower(nn.Module):
  """A level's gate on the experts' outputs [B, E, w], and its own two layers."""

  classes: int
  width: int

  @nn.compact
  def __call__(self, x: jax.Array, experts: jax.Array) -> jax.Array:
    gate = nn.softmax(layers.Dense(experts.shape[1], initial, name='gate')(x))
    y = nn.relu(
      layers.Dense(self.width, initial, name='hidden')((gate[..., None] * experts).sum(1))
    )
    return layers.Dense(self.classes, initial, name='output')(y)


def normalized(x: jax.Array) -> jax.Array:
  """x with rows of length 1; a row of zeros stays."""
  return x * lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-12))


class Prototype(nn.Module):
  """The prototypes of a level, [C, width], unit vectors, perturbed in training."""

  classes: int
  noise: float

  @nn.compact
  def __call__(self, width: int, train: bool) -> jax.Array:
    p = normalized(self.param('prototypes', layers.normal(0.01), (self.classes, width)))
    if not train or self.noise == 0:
      return p
    return normalized(
      p
      + jax.random.uniform(self.make_rng('dropout'), p.shape, minval=-self.noise, maxval=self.noise)
    )


def first_rows(rows: Sequence[int]) -> np.ndarray:
  """int [C]: where the rows of each class begin, of classes with so many rows each."""
  return np.cumsum(rows) - np.asarray(rows)


def folded(z: jax.Array, rows: Sequence[int]) -> jax.Array:
  """Logits of rows [B, R] → of classes [B, C]: the log-sum-exp of a class's rows, so that their probabilities add up; one row's logit as it is."""
  rows, first = np.asarray(rows), first_rows(rows)
  several = np.flatnonzero(rows > 1)
  places = np.arange(max(rows))
  there = places < rows[several, None]
  parts = z[:, np.where(there, first[several, None] + places, 0)]
  return z[:, first].at[:, several].set(jax.nn.logsumexp(parts, -1, where=jnp.asarray(there)))


class Heads(nn.Module):
  """What all forms share. features [B, d] → {level: float32 logits [B, C]}. A form's further fields are its options, `config.model.head`.

  Parameters lie under the level that they serve, those that serve several under 'shared': the groups that the curriculum can freeze.
  """

  classes: tuple[
    tuple[str, int], ...
  ]  # (level, number of classes, or of rows where `parts` says how they make classes), coarse to fine
  ancestors: tuple[
    tuple[str, ...], ...
  ]  # of each, in the same order: the levels among these that its class tells the class of
  dropout: float = 0.0
  parts: tuple[
    tuple[str, tuple[int, ...]], ...
  ] = ()  # (level, rows of each of its classes), of levels where a class has several

  @nn.compact
  def __call__(self, features: jax.Array, train: bool) -> dict[str, jax.Array]:
    out, parts = (
      self.logits(
        layers.Dropout(self.dropout, name='Dropout_0')(features.astype(jnp.float32), train), train
      ),
      dict(self.parts),
    )
    return {level: folded(z, parts[level]) if level in parts else z for level, z in out.items()}


class Parallel(Heads):
  """A linear head a level on the shared features (S0, section 3.2; S1 calls it parallel)."""

  @nn.nowrap
  def logits(self, x, train):
    return {level: layers.Dense(n, initial, name=level)(x) for level, n in self.classes}


class Cascaded(Heads):
  """A level's linear head reads the features and, beside them, the logits of the level before it in `order` (S1, section III-B: the make's for the model)."""

  order: tuple[str, ...] = ()  # () = coarse to fine
  stop_gradient: bool = (
    False  # whether a level's loss stops at the logits of the level before it, in training
  )

  @nn.nowrap
  def logits(self, x, train):
    out, sizes, before = {}, dict(self.classes), []
    for level in self.order or sizes:
      out[level] = layers.Dense(sizes[level], initial, name=level)(
        jnp.concatenate([x, *before], -1)
      )
      before = [_stop(out[level], self.stop_gradient and train)]
    return {level: out[level] for level in sizes}


class Crosstalk(Heads):
  """A path of `layers` dense layers a level, ReLU after each; after it a cross-stitch unit gives each path a mixture of all (Misra et al. 2016,
  arXiv:1604.03539, equation 1: one learned number for each pair of paths). It starts with .9 of the own path and .1 spread over the others."""

  layers: int = 1
  width: int = 512

  @nn.nowrap
  def logits(self, x, train):
    paths = {
      level: Path(n, self.layers, self.width, k, len(self.classes), name=level)
      for k, (level, n) in enumerate(self.classes)
    }
    xs = [x] * len(paths)
    for i in range(self.layers):
      ys = [nn.relu(path.layer(i, x)) for path, x in zip(paths.values(), xs)]
      xs = [path.mix(i, ys) for path in paths.values()]
    return {level: path.out(x) for (level, path), x in zip(paths.items(), xs)}


class MMoE(Heads):
  """Experts that the levels share, each a dense layer with ReLU; a level's softmax gate mixes them for its tower of two dense layers (Ma et al. 2018,
  with the sizes of HCAL's baseline)."""

  experts: int = 3
  width: int = 128
  tower: int = 256

  @nn.nowrap
  def logits(self, x, train):
    shared = nn.relu(layers.Dense(self.experts * self.width, initial, name='shared')(x)).reshape(
      -1, self.experts, self.width
    )
    return {level: Tower(n, self.tower, name=level)(x, shared) for level, n in self.classes}


class Residual(Heads):
  """A level's logits are a linear map of its own features plus those of its ancestors, own features being `layers` dense layers on the trunk's.

  HRN (Chen et al. 2022, arXiv:2201.03194): its classifiers read relu(own + parent's + grandparent's features). Here the trunk is shared up to the pooled
  features, where HRN has convolutions a level before them, and an ancestor is a level whose class follows from this one's: facets are not each other's.
  """

  layers: int = 1
  width: int = 512

  @nn.nowrap
  def logits(self, x, train):
    paths = {level: Path(n, self.layers, self.width, name=level) for level, n in self.classes}
    own = {}
    for level, path in paths.items():
      y = x
      for i in range(self.layers):
        y = path.layer(i, nn.relu(y) if i else y)
      own[level] = y
    return {
      level: paths[level].out(nn.relu(sum((own[a] for a in above), own[level])))
      for level, above in zip(paths, self.ancestors)
    }


class Split(Heads):
  """The features are cut into a slice a level. A level's linear head reads its own and those of the levels that are finer than it, which its loss does
  not change: the gradient stops there (FGN, Chang et al. 2021, arXiv:2011.09040)."""

  slices: tuple[
    int, ...
  ] = ()  # widths in the order of the levels; () = equal ones, the finest with what is left

  @nn.nowrap
  def logits(self, x, train):
    n, d = len(self.classes), x.shape[-1]
    widths = self.slices or (*[d // n] * (n - 1), d - d // n * (n - 1))
    ends = [sum(widths[: k + 1]) for k in range(n)]
    parts = {
      level: x[:, end - width : end] for (level, _), width, end in zip(self.classes, widths, ends)
    }
    out = {}
    for level, c in self.classes:
      finer = [
        _stop(parts[l], train)
        for (l, _), above in zip(self.classes, self.ancestors)
        if level in above
      ]
      out[level] = layers.Dense(c, initial, name=level)(jnp.concatenate([parts[level], *finer], -1))
    return out


class Prototypes(Heads):
  """Learned prototypes of a level's classes, unit vectors; a logit is the cosine of the features and a prototype over `temperature` (HCAL, S2, section 3.3
  and equation 5), so that the nearest prototype's class is predicted and cross-entropy is its InfoNCE (equation 6 with one positive).

  In training each coordinate of each prototype is moved by a uniform draw from [-noise, noise], and the result made a unit vector again (equations 3, 4); the
  draw is new in each step and the same for all examples.
  """

  temperature: float = 0.1
  noise: float = 0.0
  dot_product: bool = False  # the features as they are: for such as are unit vectors already, or means of those (the authors' code)

  @nn.nowrap
  def logits(self, x, train):
    x = x if self.dot_product else normalized(x)
    return {
      level: x @ Prototype(n, self.noise, name=level)(x.shape[-1], train).T / self.temperature
      for level, n in self.classes
    }


# A form's fields beyond those of Heads are the options that it reads. 'flat' is one linear head, on the finest of the levels (see config.head_levels).
HEADS: dict[str, type[Heads]] = {
  'flat': Parallel,
  'parallel': Parallel,
  'cascaded': Cascaded,
  'crosstalk': Crosstalk,
  'mmoe': MMoE,
  'residual': Residual,
  'split': Split,
  'prototypes': Prototypes,
}


def options(m: ConfigDict, levels: Sequence[str], features: int) -> dict:
  """What `config.model.head` sets of the form's fields; None is the form's own default. UserError for what it does not read."""
  reads = {name: {f.name for f in dataclasses.fields(form)} for name, form in HEADS.items()}
  given = {k: v for k, v in m.head.items() if v is not None and v is not False}
  for k, v in given.items():
    if k not in reads[m.heads]:
      raise UserError(
        f'--config.model.head.{k}={v!r} is only valid with --config.model.heads='
        f'{", ".join(name for name in HEADS if k in reads[name])}, not with {m.heads}'
      )
  if text := given.get('order'):
    option = '--config.model.head.order'
    given['order'] = tuple(
      level
      for word in text
      for level in config_lib.resolve_levels(word, levels, option)
    )
    if sorted(given['order']) != sorted(levels):
      raise UserError(
        f'{option}={",".join(text)} must name each level that has a head once; these are {", ".join(levels)}'
      )
  if (widths := given.get('slices')) and (len(widths) != len(levels) or sum(widths) != features):
    raise UserError(
      f'--config.model.head.slices={widths!r} must be a width for each of {", ".join(levels)} that add up to the {features} features of '
      + (f'--config.model.neck={m.neck}' if m.neck else f'--config.model.backbone={m.backbone}')
    )
  return given


def rows(m: ConfigDict, taxonomy: Taxonomy, level: str) -> tuple[int, ...]:
  """How many rows of the level's head each class has: 1 but for those of `config.model.parts`. UserError for what the taxonomy lacks."""
  names, out = taxonomy.names[taxonomy.index(level)], [1] * taxonomy.num_classes(level)
  for part in m.parts:
    if (
      len(part) != 3
      or part[0] not in taxonomy.levels
      or not isinstance(part[2], int)
      or part[2] < 2
    ):
      raise UserError(
        f'--config.model.parts: {part!r} is not (level, class, number of rows from 2); --mode=migrate sets it'
      )
    if part[0] == level:
      if part[1] not in names:
        raise UserError(
          f'--config.model.parts: {level} {part[1]!r} is not in the taxonomy{config_lib.did_you_mean(part[1], names)}'
        )
      out[names.index(part[1])] = part[2]
  return tuple(out)


class Classifier(nn.Module):
  """images uint8 [B, H, W, 3], or features float32 [B, d] computed before → ({level: logits [B, C]}, features [B, d])."""

  backbone: nn.Module
  heads: nn.Module
  mean: tuple[float, float, float]  # in 0..255
  std: tuple[float, float, float]
  dtype: jnp.dtype = jnp.float32
  neck: nn.Module | None = None
  normalize: bool = False  # the features that the heads see have length 1

  def features(self, images: jax.Array, train: bool = False) -> jax.Array:
    x = (
      images.astype(jnp.float32) - jnp.array(self.mean, jnp.float32)[None, None, None]
    ) / jnp.array(self.std, jnp.float32)[None, None, None]
    x = self.backbone(x.astype(self.dtype), train)[0]
    x = x if self.neck is None else self.neck(x)
    return normalized(x.astype(jnp.float32)) if self.normalize else x

  def __call__(self, x: jax.Array, train: bool = False, train_backbone: bool | None = None):
    features = (
      x if x.ndim == 2 else self.features(x, train if train_backbone is None else train_backbone)
    )
    return self.heads(features, train), features


def build(c: ConfigDict, taxonomy: Taxonomy, levels: tuple[str, ...]) -> Classifier:
  """The classifier that config `c` describes, with a head for each of `levels`."""
  spec = models.BACKBONES[c.model.backbone]
  if c.model.stem not in spec.stems:
    raise UserError(
      f'--config.model.stem={c.model.stem}: {c.model.backbone} has one stem only; choices: {", ".join(spec.stems)}'
    )
  kind = {} if c.model.stem == 'standard' else {'stem': c.model.stem}
  dtype = jnp.dtype(c.model.dtype)
  backbone = spec.make(dtype=dtype, remat=c.model.remat, **kind)
  if taken := {'shared', 'Dropout_0'} & {*levels}:
    raise UserError(
      f'the taxonomy has a level called {taken.pop()!r}, which names a part of the heads; call it otherwise'
    )
  counts = {level: rows(c.model, taxonomy, level) for level in levels}
  classes = tuple((level, sum(n)) for level, n in counts.items())
  parts = tuple((level, n) for level, n in counts.items() if max(n) > 1)
  ancestors = tuple(
    tuple(a for a in levels[:k] if taxonomy.nests(level, a)) for k, level in enumerate(levels)
  )
  heads = HEADS[c.model.heads](
    classes,
    ancestors,
    c.model.dropout,
    parts,
    **options(c.model, levels, c.model.neck or spec.features),
  )
  neck = layers.Dense(c.model.neck, initial, dtype=dtype) if c.model.neck else None
  return Classifier(
    backbone,
    heads,
    c.model.mean or spec.mean,
    c.model.std or spec.std,
    dtype,
    neck,
    c.model.normalize,
  )
