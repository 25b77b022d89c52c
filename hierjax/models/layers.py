"""Layers of the backbones: convolution, dense, attention, norms, pooling, stochastic depth.

Images are [B, H, W, C], kernels [k, k, C, O] (depthwise [k, k, 1, C]), dense kernels [C, O].
Parameters are float32; each layer has a `Compute` that says in which dtype and by which kernels it
computes.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hierjax.models import functional
from hierjax.models.compute import Compute, Layer
from hierjax.models.initializers import (
  Initializer,
  constant,
  fan_out,
  ones,
  small_normal,
  torch_linear,
  zeros,
)

Array = jax.Array
# What a trunk returns: features float32 [B, d], and maps [B, H, W, C] by name.
Output = tuple[Array, dict[str, Array]]


class Conv(Layer):
  """Convolution with square kernels.

  Attributes:
    features: output channels; of a depthwise convolution also the input channels.
    size: the kernel's side in pixels.
    stride: in pixels.
    padding: in pixels, or TensorFlow's 'SAME'.
    depthwise: whether each channel has a kernel of its own.
    use_bias: whether a bias is added.
    initial: initialiser of the kernel.
    initial_bias: initialiser of the bias.
    groups: into which channels are divided; an output reads the channels of its group only.
  """

  features: int
  size: int
  stride: int = 1
  padding: int | str = 0
  depthwise: bool = False
  use_bias: bool = False
  initial: Initializer = fan_out
  initial_bias: Initializer = zeros
  groups: int = 1

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Convolve x [B, H, W, C] to [B, H', W', features]."""
    groups = x.shape[-1] if self.depthwise else self.groups
    shape = (self.size, self.size, x.shape[-1] // groups, self.features)
    kernel, dtype = self.weight('kernel', self.initial, shape), self.compute.dtype
    kernel = jnp.asarray(kernel, dtype)
    y = self.compute.ops.conv(x.astype(dtype), kernel, self.stride, self.padding)
    if self.use_bias:
      bias = self.weight('bias', self.initial_bias, (self.features,))
      y = y + functional.per_channel(jnp.asarray(bias, dtype), y)
    return y


class Dense(Layer):
  """Affine map of the last axis.

  With `compute.lora` its kernel has an update of low rank, W + scale A B, which begins as 0 (Hu et
  al. 2022, arXiv:2106.09685); the two factors are applied one after the other.
  """

  features: int
  initial: Initializer = small_normal
  use_bias: bool = True
  initial_bias: Initializer = zeros

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Map x [..., C] to [..., features]."""
    dtype, width = self.compute.dtype, x.shape[-1]
    x = x.astype(dtype)
    kernel = self.weight('kernel', self.initial, (width, self.features))
    y = functional.dense(x, jnp.asarray(kernel, dtype))
    if self.compute.lora:
      rank, scale = self.compute.lora
      a = self.weight('lora_a', torch_linear, (width, rank))
      b = self.weight('lora_b', zeros, (rank, self.features))
      x = functional.dense(x, jnp.asarray(a, dtype)) * scale
      y = y + functional.dense(x, jnp.asarray(b, dtype))
    if self.use_bias:
      bias = self.weight('bias', self.initial_bias, (self.features,))
      y = y + functional.per_channel(jnp.asarray(bias, dtype), y)
    return y


class Attention(Layer):
  """Multi-head self-attention among n tokens (Vaswani et al. 2017, arXiv:1706.03762).

  Attributes:
    heads: number of heads.
    scale: of the products of queries and keys; None is 1 / sqrt(C / heads).
    window: rows and columns where tokens are the pixels of a window; a learned bias of their
      relative position is added to the logits. None adds nothing.
    initial: initialisers of the kernels of the layers qkv and proj.
    biased: which of queries, keys and values have a bias: 'qkv', 'qv' or ''.
    is_split: whether the three have a layer each.
    norm_eps: of the layer norms of queries and keys; None has none.
    is_half: how channels are paired that a rotation turns, as in `functional.rotate`.
    is_cosine: whether the products are cosines times a learned scale, and the bias is that of a
      perceptron on displacements (Liu et al. 2021, arXiv:2111.09883, equations 2 to 4).
    reference: as in `functional.log_coordinates`, for that perceptron.
  """

  heads: int
  scale: float | None = None
  window: functional.Window | None = None
  initial: tuple[Initializer, Initializer] = (small_normal, small_normal)
  biased: str = 'qkv'
  is_split: bool = False
  norm_eps: float | None = None
  is_half: bool = False
  is_cosine: bool = False
  reference: int | None = None

  @nn.compact
  def __call__(
    self,
    x: Array,
    mask: Array | np.ndarray | None = None,
    rotation: tuple[Array, Array] | None = None,
  ) -> Array:
    """Attend among tokens.

    Args:
      x: tokens [..., n, C].
      mask: [parts, n, n], added to the logits for x [..., parts, n, C].
      rotation: by which queries and keys are turned, as in `functional.rotate`.
    """
    *lead, n, c = x.shape
    d = c // self.heads
    q, k, v = (jnp.swapaxes(y.reshape(*lead, n, self.heads, d), -2, -3) for y in self._qkv(x))
    if self.norm_eps:
      q = LayerNorm(self.norm_eps, compute=self.compute, name='q_norm')(q)
      k = LayerNorm(self.norm_eps, compute=self.compute, name='k_norm')(k)
    if rotation is not None:
      q, k = (functional.rotate(y, rotation, self.is_half) for y in (q, k))
    bias, scale = None, d**-0.5 if self.scale is None else self.scale
    if self.window:
      bias = functional.relative_position(self._displacements(), self.window)
      if mask is not None:
        bias = bias[None] + mask[:, None]
    if self.is_cosine:
      q, k = (functional.normalized(y.astype(jnp.float32)) for y in (q, k))
      scale = self.weight('logit_scale', constant(math.log(10)), (self.heads, 1, 1))
      scale = jnp.exp(jnp.minimum(scale, math.log(100)))
      scale = scale.reshape((1,) * len(lead) + scale.shape)
    q, k = (y.astype(v.dtype) for y in (q * scale, k))
    y = functional.attention(q, k, v, bias, self.compute.ops.product)
    y = y.swapaxes(-3, -2).reshape(*lead, n, c)
    return Dense(c, self.initial[1], compute=self.compute, name='proj')(y)

  @nn.nowrap
  def _displacements(self) -> Array:
    """Return the bias of each displacement in the window, float32 [displacements, heads]."""
    if not self.is_cosine:
      shape = (math.prod(2 * n - 1 for n in self.window), self.heads)
      table = self.weight('relative_position_bias_table', small_normal, shape)
      return jnp.asarray(table, jnp.float32)
    compute = self.compute.in_float32
    y = jnp.asarray(functional.log_coordinates(self.window, self.reference))
    y = nn.relu(Dense(512, compute=compute, name='cpb_mlp_0')(y))
    y = Dense(self.heads, use_bias=False, compute=compute, name='cpb_mlp_2')(y)
    return 16 * nn.sigmoid(y)

  @nn.nowrap
  def _qkv(self, x: Array) -> list[Array]:
    """Map tokens [..., C] to queries, keys and values, [..., C] each."""
    c, compute, initial = x.shape[-1], self.compute, self.initial[0]
    if self.is_split:
      return [
        Dense(c, initial, use_bias=name in self.biased, compute=compute, name=f'{name}_proj')(x)
        for name in 'qkv'
      ]
    qkv = Dense(3 * c, initial, use_bias=self.biased == 'qkv', compute=compute, name='qkv')(x)
    parts = [qkv[..., i * c : (i + 1) * c] for i in range(3)]
    if self.biased == 'qv':
      for i, name in ((0, 'q_bias'), (2, 'v_bias')):
        bias = jnp.asarray(self.weight(name, zeros, (c,)), compute.dtype)
        parts[i] = parts[i] + functional.per_channel(bias, parts[i])
    return parts


class BatchNorm(Layer):
  """Batch norm of the last axis with the activation after it (Ioffe and Szegedy 2015,
  arXiv:1502.03167).

  Statistics are float32 and those of the global batch. A momentum of .9 is torch's .1; the running
  variance takes the biased variance, as Flax does (torch takes n / (n - 1) times it).

  Attributes:
    act: a key of `functional.ACTIVATIONS`.
    eps: added to the variance.
    momentum: of the running statistics.
  """

  act: str = ''
  eps: float = 1e-5
  momentum: float = 0.9

  @nn.compact
  def __call__(self, x: Array, train: bool, moments: tuple[Array, Array] | None = None) -> Array:
    """Normalise x [B, H, W, C].

    Args:
      x: maps.
      train: whether by the batch's moments, which the running statistics then follow.
      moments: mean and variance [C] of x, where they have been computed before.
    """
    shape, ops = x.shape[-1:], self.compute.ops
    scale, bias = self.weight('scale', ones, shape), self.weight('bias', zeros, shape)
    mean, var = self.statistic('mean', zeros, shape), self.statistic('var', ones, shape)
    train = train and not self.compute.has_frozen_norm
    if train and moments is None:
      axis = self.compute.batch_axis
      y, m, v = ops.batch_norm(x, scale, bias, self.eps, self.act, axis)
    else:
      m, v = moments if train else (mean.value, var.value)
      factor = scale * lax.rsqrt(v + self.eps)
      y = ops.scale_shift(x, factor, bias - m * factor, self.act)
    if train and not self.is_initializing():
      mean.value = self.momentum * mean.value + (1 - self.momentum) * m
      var.value = self.momentum * var.value + (1 - self.momentum) * v
    return y.astype(self.compute.dtype)


class LayerNorm(Layer):
  """Layer norm of the last axis, computed in float32 (Ba et al. 2016, arXiv:1607.06450).

  Attributes:
    eps: added to the variance.
    initial: initialiser of the scale.
  """

  eps: float = 1e-6
  initial: Initializer = ones

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalise x [..., C]."""
    shape = x.shape[-1:]
    scale, bias = self.weight('scale', self.initial, shape), self.weight('bias', zeros, shape)
    x = x.astype(jnp.float32)
    d = x - x.mean(-1, keepdims=True)
    y = d * lax.rsqrt(jnp.square(d).mean(-1, keepdims=True) + self.eps)
    y = y * functional.per_channel(scale, x) + functional.per_channel(bias, x)
    return y.astype(self.compute.dtype)


class ResponseNorm(Layer):
  """Global response norm (Woo et al. 2023, arXiv:2301.00808): channels compete by their norm."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Scale the channels of x [B, H, W, C] by their norm over all pixels, and add x."""
    shape = x.shape[-1:]
    scale, bias = self.weight('scale', zeros, shape), self.weight('bias', zeros, shape)
    y = x.astype(jnp.float32)
    square = jnp.square(y).sum((1, 2), keepdims=True)
    # The slope of a root at 0 is infinite: a channel that is 0 everywhere has none here, as in
    # torch.
    norm = jnp.sqrt(jnp.where(square == 0, 1, square)) * (square > 0)
    factor = norm / (norm.mean(-1, keepdims=True) + 1e-6)
    y = y + y * factor * functional.per_channel(scale, y) + functional.per_channel(bias, y)
    return y.astype(self.compute.dtype)


class MaxPool(Layer):
  """Maximum of each window, in pixels."""

  window: int
  stride: int
  padding: int = 0

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Pool x [B, H, W, C]."""
    functional.check_pool_fits(x, self.window, self.padding)
    return self.compute.ops.max_pool(x, self.window, self.stride, self.padding)


class AvgPool(Layer):
  """Mean of each window, in pixels; padding counts as zeros."""

  window: int
  stride: int
  padding: int = 0

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Pool x [B, H, W, C]."""
    functional.check_pool_fits(x, self.window, self.padding)
    return self.compute.ops.avg_pool(x, self.window, self.stride, self.padding)


class AdaptiveAvgPool(nn.Module):
  """Means over a grid of size x size windows, as torch's AdaptiveAvgPool2d.

  Neighbouring windows can share pixels, and all do where the image is smaller than `size`.
  """

  size: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Pool x [B, H, W, C] to [B, size, size, C]."""
    if x.shape[1:3] == (self.size, self.size):
      return x
    y = jnp.einsum('ih,bhwc->biwc', self._averages(x.shape[1]), x.astype(jnp.float32))
    return jnp.einsum('jw,biwc->bijc', self._averages(x.shape[2]), y).astype(x.dtype)

  @nn.nowrap
  def _averages(self, n: int) -> Array:
    """Return the matrix [size, n] of means from floor(i n / size) to ceil((i + 1) n / size)."""
    window = np.arange(self.size)[:, None]
    pixel = np.arange(n)
    starts = window * n // self.size
    ends = -(-(window + 1) * n // self.size)  # rounded up
    is_inside = (pixel >= starts) & (pixel < ends)
    return jnp.asarray(is_inside / is_inside.sum(1, keepdims=True), jnp.float32)


class GlobalPool(nn.Module):
  """Mean over all pixels, a module because the original has one, which the tool thop counts."""

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Pool x [B, H, W, C] to float32 [B, C]."""
    return functional.global_pool(x)


class SqueezeExcite(Layer):
  """A gate for each channel, computed from the pooled maps (Hu et al. 2018, arXiv:1709.01507).

  Attributes:
    squeezed: channels between the two 1x1 convolutions.
    act: the activation between them, a key of `functional.ACTIVATIONS`.
    gate: the function after them.
    names: of the convolutions.
    initial: initialiser of their kernels.
  """

  squeezed: int
  act: str = 'relu'
  gate: Callable[[Array], Array] = nn.sigmoid
  names: tuple[str, str] = ('fc1', 'fc2')
  initial: Initializer = fan_out

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Scale the channels of x [B, H, W, C]."""
    options = {'use_bias': True, 'initial': self.initial, 'compute': self.compute}
    s = GlobalPool()(x)[:, None, None].astype(self.compute.dtype)
    s = functional.activate(Conv(self.squeezed, 1, **options, name=self.names[0])(s), self.act)
    return x * self.gate(Conv(x.shape[-1], 1, **options, name=self.names[1])(s))


class StochasticDepth(Layer):
  """Zero whole examples of a residual branch in training (Huang et al. 2016, arXiv:1603.09382).

  torchvision's mode 'row'. Draws from the rng 'dropout'.

  Attributes:
    rate: probability of zeros; the other examples are scaled by 1 / (1 - rate).
  """

  rate: float

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """Drop examples of x [B, ...]."""
    if not train or self.rate == 0:
      return x
    shape, axis = (len(x), *(1,) * (x.ndim - 1)), self.compute.batch_axis
    keep = functional.bernoulli(self.make_rng('dropout'), 1 - self.rate, shape, axis)
    return x * (keep / (1 - self.rate)).astype(x.dtype)


class Dropout(Layer):
  """Zero numbers with probability `rate` in training; draws from the rng 'dropout'.

  Unlike linen's, the mask does not depend on the number of devices.
  """

  rate: float

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """Drop numbers of x [B, ...]."""
    if not train or self.rate == 0:
      return x
    axis = self.compute.batch_axis
    keep = functional.bernoulli(self.make_rng('dropout'), 1 - self.rate, x.shape, axis)
    return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))


def mlp(
  x: Array,
  compute: Compute,
  initial: Initializer = small_normal,
  initial_bias: Initializer = zeros,
  *,
  hidden: int | None = None,
  act: str = 'gelu',
  gate: str | None = None,
  norm: Callable[[Array], Array] | None = None,
) -> Array:
  """Apply the dense layers fc1 and fc2 with an activation between them.

  They become submodules of the module that calls this.

  Args:
    x: [..., C].
    compute: of the layers.
    initial: initialiser of their kernels.
    initial_bias: initialiser of their biases.
    hidden: channels between them; None is four times as many.
    act: a key of `functional.ACTIVATIONS`.
    gate: None, or what multiplies the activated channels (SwiGLU; Shazeer 2020, arXiv:2002.05202):
      'packed', the second half of what fc1 yields, or 'split', a layer fc1_x beside fc1_g.
    norm: applied before fc2.
  """
  c, options = x.shape[-1], {'initial_bias': initial_bias, 'compute': compute}
  hidden = hidden or 4 * c
  if gate == 'split':
    y = functional.activate(Dense(hidden, initial, **options, name='fc1_g')(x), act)
    y = y * Dense(hidden, initial, **options, name='fc1_x')(x)
  elif gate == 'packed':
    y = Dense(2 * hidden, initial, **options, name='fc1')(x)
    y = functional.activate(y[..., :hidden], act) * y[..., hidden:]
  else:
    y = functional.activate(Dense(hidden, initial, **options, name='fc1')(x), act)
  y = norm(y) if norm else y
  return Dense(c, initial, **options, name='fc2')(y)


def drop_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
  """List the stochastic depth of each stage's blocks, rising linearly from 0.

  Args:
    last: that of the last block.
    depths: blocks of each stage.
  """
  count = sum(depths)
  rates = iter([last * k / max(count - 1, 1) for k in range(count)])
  return [list(itertools.islice(rates, depth)) for depth in depths]


class Trunk(Layer):
  """A backbone without its classifier, called as trunk(x, train).

  x are normalised images [B, H, W, 3]. What returns is (features, maps): the pooled features,
  float32 [B, d], and maps [B, H', W', C] by name: 'stem'; 'stage1' to 'stage4', at strides 4, 8,
  16, 32 in most; and 'features', the last ones, which are perturbed, for gradients with respect to
  them.
  """
