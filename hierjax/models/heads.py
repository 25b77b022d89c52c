"""The forms of heads, which turn features into logits of each level, and how users add theirs."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hierjax.core.registry import Registry
from hierjax.models import layers
from hierjax.models.functional import normalized
from hierjax.models.heads_base import Array, Heads, Logits
from hierjax.models.heads_joined import HierCos, Marginal, PathSum
from hierjax.models.initializers import constant, normal, torch_linear


def _stop(x: Array, is_stopped: bool) -> Array:
  # In training only, so that a heatmap shows all that a logit depends on.
  return lax.stop_gradient(x) if is_stopped else x


class Parallel(Heads):
  """A linear head for each level on the shared features (S0, section 3.2; S1 calls it parallel)."""

  @nn.nowrap
  def _logits(self, x: Array, train: bool) -> Logits:
    return {level: self.linear(level, n)(x) for level, n in self.classes}


class Cascaded(Heads):
  """Linear heads that also read the logits of the level before them (S1, section III-B).

  Attributes:
    order: of the levels; () is coarse to fine.
    stop_gradient: whether a level's loss leaves the logits of the level before it alone, in
      training.
  """

  order: tuple[str, ...] = ()
  stop_gradient: bool = False

  @nn.nowrap
  def _logits(self, x: Array, train: bool) -> Logits:
    out, sizes, previous = {}, dict(self.classes), []
    for level in self.order or sizes:
      out[level] = self.linear(level, sizes[level])(jnp.concatenate([x, *previous], -1))
      previous = [_stop(out[level], self.stop_gradient and train)]
    return {level: out[level] for level in sizes}


class Path(layers.Layer):
  """The layers of one level, called one at a time.

  Attributes:
    classes: of the level.
    layers: number of hidden layers.
    width: of a hidden layer.
    index: of this path among `paths`.
    paths: number of paths whose outputs it mixes after each layer; 1 mixes none.
  """

  classes: int
  layers: int
  width: int
  index: int = 0
  paths: int = 1

  def setup(self):
    """Make the layers."""
    options = {'initial': torch_linear, 'compute': self.compute}
    self.hidden = [layers.Dense(self.width, **options) for _ in range(self.layers)]
    self.output = layers.Dense(self.classes, **options)
    if self.paths > 1:
      is_self = np.arange(self.paths) == self.index
      start = constant(np.where(is_self, 0.9, 0.1 / (self.paths - 1)))
      self.stitch = self.weight('stitch', start, (self.layers, self.paths))

  def layer(self, i: int, x: Array) -> Array:
    """Apply the hidden layer i."""
    return self.hidden[i](x)

  def mix(self, i: int, xs: Sequence[Array]) -> Array:
    """Mix the outputs of layer i of all paths."""
    if self.paths == 1:
      return xs[0]
    return sum(self.stitch[i, k] * x for k, x in enumerate(xs))

  def out(self, x: Array) -> Array:
    """Compute the level's logits."""
    return self.output(x)


class Crosstalk(Heads):
  """Paths of dense layers, one a level, that read mixtures of each other.

  After each layer and its ReLU a cross-stitch unit gives each path a mixture of all (Misra et al.
  2016, arXiv:1604.03539, equation 1: one learned number for each pair of paths). It starts with .9
  of the path itself and .1 spread over the others.

  Attributes:
    layers: in a path.
    width: of a layer.
  """

  layers: int = 1
  width: int = 512

  @nn.nowrap
  def _logits(self, x: Array, train: bool) -> Logits:
    paths = {}
    for k, (level, n) in enumerate(self.classes):
      size = (n, self.layers, self.width, k, len(self.classes))
      paths[level] = Path(*size, compute=self.compute, name=level)
    xs = [x] * len(paths)
    for i in range(self.layers):
      ys = [nn.relu(path.layer(i, x)) for path, x in zip(paths.values(), xs)]
      xs = [path.mix(i, ys) for path in paths.values()]
    return {level: path.out(x) for (level, path), x in zip(paths.items(), xs)}


class Tower(layers.Layer):
  """A level's softmax gate on the experts, and its own two dense layers."""

  classes: int
  width: int

  @nn.compact
  def __call__(self, x: Array, experts: Array) -> Array:
    """Compute logits from features x [B, d] and the experts' outputs [B, E, w]."""
    options = {'initial': torch_linear, 'compute': self.compute}
    gate = nn.softmax(layers.Dense(experts.shape[1], **options, name='gate')(x))
    mixture = (gate[..., None] * experts).sum(1)
    y = nn.relu(layers.Dense(self.width, **options, name='hidden')(mixture))
    return layers.Dense(self.classes, **options, name='output')(y)


class MMoE(Heads):
  """Experts that the levels share, mixed for each level by a gate (Ma et al. 2018, KDD).

  With the sizes of HCAL's baseline.

  Attributes:
    experts: number of dense layers with ReLU.
    width: of an expert.
    tower: width of a level's hidden layer.
  """

  experts: int = 3
  width: int = 128
  tower: int = 256

  @nn.nowrap
  def _logits(self, x: Array, train: bool) -> Logits:
    shared = nn.relu(self.linear('shared', self.experts * self.width)(x))
    experts = shared.reshape(-1, self.experts, self.width)
    towers = {
      level: Tower(n, self.tower, compute=self.compute, name=level) for level, n in self.classes
    }
    return {level: tower(x, experts) for level, tower in towers.items()}


class Residual(Heads):
  """Linear heads on the sum of a level's features and those of its ancestors.

  A level's features are dense layers on the trunk's. HRN (Chen et al. 2022, arXiv:2201.03194): its
  classifiers read relu(own + parent's + grandparent's features). Here the trunk is shared up to the
  pooled features, where HRN has convolutions for each level before them, and facets are not each
  other's ancestors.

  Attributes:
    layers: of a level.
    width: of a layer.
  """

  layers: int = 1
  width: int = 512

  @nn.nowrap
  def _logits(self, x: Array, train: bool) -> Logits:
    options = {'compute': self.compute}
    paths = {
      level: Path(n, self.layers, self.width, **options, name=level) for level, n in self.classes
    }
    features = {}
    for level, path in paths.items():
      y = x
      for i in range(self.layers):
        y = path.layer(i, nn.relu(y) if i else y)
      features[level] = y
    out = {}
    for (level, path), ancestors in zip(paths.items(), self.ancestors):
      out[level] = path.out(nn.relu(sum((features[a] for a in ancestors), features[level])))
    return out


class Split(Heads):
  """Linear heads on slices of the features, a slice for each level.

  A head reads the slice of its level and those of finer levels, where its gradient stops (FGN,
  Chang et al. 2021, arXiv:2011.09040).

  Attributes:
    slices: widths in the order of the levels; () is equal ones, the finest with the remainder.
  """

  slices: tuple[int, ...] = ()

  @nn.nowrap
  def _logits(self, x: Array, train: bool) -> Logits:
    n, d = len(self.classes), x.shape[-1]
    widths = self.slices or (*[d // n] * (n - 1), d - d // n * (n - 1))
    ends = np.cumsum(widths)
    parts = {
      level: x[:, end - width : end] for (level, _), width, end in zip(self.classes, widths, ends)
    }
    out = {}
    for level, rows in self.classes:
      # finer levels are those that have this one among their ancestors
      finer = [other for (other, _), above in zip(self.classes, self.ancestors) if level in above]
      features = [parts[level], *(_stop(parts[other], train) for other in finer)]
      out[level] = self.linear(level, rows)(jnp.concatenate(features, -1))
    return out


class Prototype(layers.Layer):
  """The prototypes of a level's classes, unit vectors, perturbed in training."""

  classes: int
  noise: float

  @nn.compact
  def __call__(self, width: int, train: bool) -> Array:
    """Return the prototypes [C, width]."""
    p = normalized(self.weight('prototypes', normal(0.01), (self.classes, width)))
    if not train or self.noise == 0:
      return p
    key = self.make_rng('dropout')
    noise = jax.random.uniform(key, p.shape, minval=-self.noise, maxval=self.noise)
    return normalized(p + noise)


class Prototypes(Heads):
  """Cosines of the features and learned prototypes of each class (HCAL, S2, section 3.3, equation
  5).

  The nearest prototype's class is predicted, and cross-entropy is InfoNCE (equation 6 with one
  positive). In training each coordinate of each prototype is moved by a uniform draw from [-noise,
  noise], and the result made a unit vector again (equations 3, 4); the draw is new in each step and
  the same for all examples.

  Attributes:
    temperature: by which the cosines are divided.
    noise: see above.
    dot_product: whether features are taken as they are: unit vectors already, or means of those
      (the authors' code).
  """

  temperature: float = 0.1
  noise: float = 0.0
  dot_product: bool = False

  @nn.nowrap
  def _logits(self, x: Array, train: bool) -> Logits:
    x, out = x if self.dot_product else normalized(x), {}
    for level, n in self.classes:
      prototypes = Prototype(n, self.noise, compute=self.compute, name=level)
      out[level] = x @ prototypes(x.shape[-1], train).T / self.temperature
    return out


HEADS: Registry[type[nn.Module]] = Registry('heads')
# One linear head, on the finest of the levels (see config.head_levels).
HEADS.register('flat', Parallel)
HEADS.register('parallel', Parallel)
HEADS.register('cascaded', Cascaded)
HEADS.register('crosstalk', Crosstalk)
HEADS.register('mmoe', MMoE)
HEADS.register('residual', Residual)
HEADS.register('split', Split)
HEADS.register('prototypes', Prototypes)
HEADS.register('marginal', Marginal)
HEADS.register('path_sum', PathSum)
HEADS.register('hier_cos', HierCos)


def register_head(name: str, module: type[nn.Module]) -> None:
  """Add a form of heads, for `model.heads`.

  Args:
    name: of the form.
    module: a Flax module class, called as `module(features, train)` with features float32 [B, d];
      it returns logits {level: [B, C]}. It has a field `classes`, ((level, C), ...) from coarse to
      fine; where it has the fields `ancestors`, `dropout`, `parts` or `compute`, they are set as
      those of `Heads`, `taxonomy` as the table of the exclusive levels (such a form has no parts),
      and fields that are options of `model.head` by the config. Parameters under a level's name are
      that level's group, for freezing and learning rates; others are shared.

  Raises:
    UserError: the name is taken or not a word.
  """
  HEADS.register(name, module)
