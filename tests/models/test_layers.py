"""The kernels for the CPU against lax and numpy: forward and gradients, over 8 devices too."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax import lax
from jax.sharding import PartitionSpec as P

from hierjax.models import compute, cpu_kernels, functional, initializers, layers
from hierjax.models.compute import KERNELS, Compute


def close(actual, want, tol=2e-5):
  for g, w in zip(jax.tree.leaves(actual), jax.tree.leaves(want), strict=True):
    assert g.shape == w.shape and g.dtype == w.dtype
    np.testing.assert_allclose(g, w, rtol=0, atol=tol * (np.abs(w).max() + 1e-6))


def draw(seed, *shapes):
  rng = np.random.default_rng(seed)
  return [rng.standard_normal(s, 'f4') for s in shapes]


def with_gradients(f):
  def g(cotangent, *args):
    y, vjp = jax.vjp(f, *args)
    return y, vjp(cotangent)

  return g


def lax_conv(stride, padding):
  pads = padding if padding == 'SAME' else [(padding, padding)] * 2

  def f(x, kernel):
    return lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      pads,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=x.shape[3] // kernel.shape[2],
    )

  return f


def assert_equals_lax(x, kernel, stride, padding):
  """The convolution and its gradients, by XLA's own."""
  want = lax_conv(stride, padding)
  (dy,) = draw(1, jax.eval_shape(want, x, kernel).shape)
  close(
    jax.jit(with_gradients(lambda x, kernel: cpu_kernels.conv(x, kernel, stride, padding)))(
      dy, x, kernel
    ),
    jax.jit(with_gradients(want))(dy, x, kernel),
  )


CONVS = [  # height, width, kernel, stride, padding, depthwise
  (8, 8, 1, 1, 0, False),
  (9, 7, 1, 2, 0, False),
  (8, 12, 4, 4, 0, False),
  (9, 8, 2, 2, 0, False),
  (8, 6, 3, 1, 1, False),
  (9, 8, 3, 2, 1, False),
  (11, 10, 7, 2, 3, False),
  (4, 4, 3, 1, 1, False),
  (2, 2, 3, 1, 1, False),
  (1, 1, 3, 1, 1, False),
  (2, 2, 3, 2, 1, False),
  (4, 5, 3, 2, 'SAME', False),
  (17, 6, 5, 1, 'SAME', True),
  (38, 5, 3, 2, 1, True),
  (8, 8, 3, 1, 'SAME', True),
  (16, 8, 3, 2, 'SAME', True),
  (7, 9, 5, 2, 'SAME', True),
  (4, 4, 5, 1, 'SAME', True),
  (13, 11, 5, 1, 2, True),
  (14, 14, 7, 1, 3, True),
  (3, 3, 7, 1, 3, True),
  (10, 9, 3, 3, 1, True),
  (9, 9, 3, 2, 0, True),
  (2, 1, 5, 2, 'SAME', True),
]


@pytest.mark.parametrize('case', CONVS, ids=str)
def test_convolution_equals_lax(case):
  h, w, k, stride, padding, depthwise = case
  x, kernel = draw(0, (3, h, w, 6), (k, k, 1, 6) if depthwise else (k, k, 6, 5))
  assert_equals_lax(x, kernel, stride, padding)


@pytest.mark.parametrize(
  'case',
  [(8, 6, 3, 1, 1, 2), (9, 8, 3, 2, 1, 3), (4, 4, 3, 1, 1, 2), (7, 5, 1, 1, 0, 3)]
  + [(9, 7, 3, 2, 'SAME', 6), (16, 8, 5, 1, 2, 4)],
  ids=str,
)
def test_convolution_of_groups_equals_lax(case):
  """Each output channel reads those of its group alone; twelve channels in, as many or more out."""
  h, w, k, stride, padding, width = case
  x, kernel = draw(0, (3, h, w, 12), (k, k, width, 12 + 12 // width))
  assert_equals_lax(x, kernel, stride, padding)


def test_stem_on_three_channels_equals_lax():
  x, kernel = draw(0, (2, 18, 16, 3), (3, 3, 3, 8))
  (dy,) = draw(1, (2, 9, 8, 8))
  close(
    jax.jit(with_gradients(lambda x, k: cpu_kernels.conv(x, k, 2, 'SAME')))(dy, x, kernel),
    jax.jit(with_gradients(lax_conv(2, 'SAME')))(dy, x, kernel),
  )


@pytest.mark.parametrize(
  'case', [(8, 6, 3, 1), (9, 7, 3, 'SAME'), (6, 7, 3, 0), (8, 9, 5, 2), (10, 7, 4, 'SAME')], ids=str
)
def test_convolution_to_few_channels_equals_lax(case):
  h, w, k, padding = case
  x, kernel = draw(0, (3, h, w, 8), (k, k, 8, 3))
  assert_equals_lax(x, kernel, 1, padding)


def numpy_batch_norm(x, scale, bias, eps, act, dy):
  """Forward and backward in float64, from the equations of Ioffe and Szegedy 2015."""
  x, dy = x.astype('f8'), dy.astype('f8')
  n = x[..., 0].size
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  inv = 1 / np.sqrt(var + eps)
  z = (x - mean) * inv
  y = z * scale + bias
  f, slope = numpy_activation(act, y)
  dy = dy * slope
  dscale, dbias, dz = (dy * z).sum((0, 1, 2)), dy.sum((0, 1, 2)), dy * scale
  dvar = (dz * (x - mean)).sum((0, 1, 2)) * -0.5 * inv**3
  dmean = -(dz * inv).sum((0, 1, 2))
  dx = dz * inv + dvar * 2 * (x - mean) / n + dmean / n
  return f, mean, var, dx, dscale, dbias


def numpy_activation(act, y):
  """The function and its slope, by the papers' definitions and central differences."""
  functions = {
    '': lambda y: y,
    'relu': lambda y: np.maximum(y, 0),
    'relu6': lambda y: np.clip(y, 0, 6),
    'silu': lambda y: y / (1 + np.exp(-y)),
    'hardswish': lambda y: y * np.clip(y + 3, 0, 6) / 6,
    'gelu': lambda y: y * (1 + scipy.special.erf(y / 2**0.5)) / 2,
    'gelu_tanh': lambda y: y * (1 + np.tanh((2 / np.pi) ** 0.5 * (y + 0.044715 * y**3))) / 2,
    'quick_gelu': lambda y: y / (1 + np.exp(-1.702 * y)),
  }
  return functions[act](y), (functions[act](y + 1e-5) - functions[act](y - 1e-5)) / 2e-5


@pytest.mark.parametrize('kind', ['plain', 'cpu'])
@pytest.mark.parametrize('act', functional.ACTIVATIONS)
@pytest.mark.parametrize('shape', [(4, 8, 6, 5), (2, 17, 3, 4)], ids=str)
def test_batch_norm_equals_numpy(shape, act, kind):
  x, dy, scale, bias = draw(0, shape, shape, shape[-1:], shape[-1:])
  x = x * 2 + 3

  def f(x, scale, bias):
    return KERNELS[kind].batch_norm(x, scale, bias, 1e-3, act)

  (y, mean, var), grads = jax.jit(with_gradients(f))(
    (dy, jnp.zeros(shape[-1]), jnp.zeros(shape[-1])), x, scale, bias
  )
  for actual, want in zip(
    (y, mean, var, *grads), numpy_batch_norm(x, scale, bias, 1e-3, act, dy), strict=True
  ):
    np.testing.assert_allclose(actual, want, rtol=0, atol=1e-5 * (np.abs(want).max() + 1))


def norm_of_two(a, b, variables, kind, train=True):
  """Batch norm and ReLU of two maps whose moments are known; and the new running statistics."""
  ops = KERNELS[kind]
  moments = tuple(map(jnp.concatenate, zip(ops.moments(a), ops.moments(b))))
  return layers.BatchNorm('relu', 1e-3, compute=Compute(kernels=kind)).apply(
    variables, jnp.concatenate([a, b], -1), train, moments, mutable=['batch_stats']
  )


@pytest.mark.parametrize('kind', ['plain', 'cpu'])
def test_batch_norm_with_known_moments_equals_numpy(kind):
  a, b, dy, scale, bias = draw(0, (4, 8, 6, 3), (4, 8, 6, 2), (4, 8, 6, 5), (5,), (5,))
  a, b = a * 2 + 3, b - 1
  stats = {'mean': np.zeros(5, 'f4'), 'var': np.ones(5, 'f4')}

  def f(a, b, scale, bias):
    variables = {'params': {'scale': scale, 'bias': bias}, 'batch_stats': stats}
    y, new = norm_of_two(a, b, variables, kind)
    return y, lax.stop_gradient(new['batch_stats'])

  (y, new), (da, db, *grads) = jax.jit(with_gradients(f))((dy, stats), a, b, scale, bias)
  actual = (
    y,
    (new['mean'] - 0) / 0.1,
    (new['var'] - 0.9) / 0.1,
    np.concatenate([da, db], -1),
    *grads,
  )
  for g, want in zip(
    actual, numpy_batch_norm(np.concatenate([a, b], -1), scale, bias, 1e-3, 'relu', dy), strict=True
  ):
    np.testing.assert_allclose(g, want, rtol=0, atol=1e-5 * (np.abs(want).max() + 1))


def test_batch_norm_in_evaluation_has_its_gradients_with_both_kernels():
  a, b, dy, scale, bias, mean = draw(0, (4, 8, 6, 3), (4, 8, 6, 2), (4, 8, 6, 5), (5,), (5,), (5,))

  def f(kind, a, b, scale, bias):
    stats = {'mean': mean, 'var': np.full(5, 2, 'f4')}
    variables = {'params': {'scale': scale, 'bias': bias}, 'batch_stats': stats}
    return norm_of_two(a, b, variables, kind, False)[0]

  cpu, plain = (
    jax.jit(with_gradients(functools.partial(f, kind)))(dy, a, b, scale, bias)
    for kind in ('cpu', 'plain')
  )
  close(cpu, plain, 1e-5)
  y, grads = cpu
  factor = scale / np.sqrt(np.float32(2 + 1e-3))
  x = np.concatenate([a, b], -1)
  z = (x - mean) * factor + bias
  close((y, grads[3]), (np.maximum(z, 0), (dy * (z > 0)).sum((0, 1, 2))), 1e-5)


def test_batch_norm_module_follows_flax():
  (x,) = draw(0, (4, 6, 6, 5))
  ours, flax_norm = layers.BatchNorm('relu', 1e-3), nn.BatchNorm(momentum=0.9, epsilon=1e-3)
  variables = ours.init(jax.random.key(0), x, True)
  assert jax.tree.map(np.shape, variables) == jax.tree.map(
    np.shape, flax_norm.init(jax.random.key(0), x, use_running_average=False)
  )
  for _ in range(2):
    y, new = ours.apply(variables, x, True, mutable=['batch_stats'])
    want, want_new = flax_norm.apply(
      variables, x, use_running_average=False, mutable=['batch_stats']
    )
    close((y, new), (nn.relu(want), want_new), 1e-5)
    variables = {**variables, **new}
  close(
    ours.apply(variables, x, False),
    nn.relu(flax_norm.apply(variables, x, use_running_average=True)),
    1e-5,
  )


def test_layer_norm_and_mean_equal_flax():
  (x,) = draw(0, (2, 9, 8, 6))
  norm = layers.LayerNorm()
  variables = norm.init(jax.random.key(0), x)
  close(norm.apply(variables, x), nn.LayerNorm(epsilon=1e-6).apply(variables, x), 1e-5)
  close(functional.global_pool(x), x.mean((1, 2)), 1e-6)


@pytest.mark.parametrize(
  'case',
  [(9, 8, 3, 2, 1), (8, 8, 3, 2, 1), (6, 6, 2, 2, 0), (7, 5, 3, 1, 1), (5, 5, 2, 3, 0)],
  ids=str,
)
def test_max_pool_gives_the_gradient_to_the_first_of_equal_pixels(case):
  h, w, k, stride, padding = case
  x = np.round(draw(0, (2, h, w, 3))[0])  # many ties
  out = [(n + 2 * padding - k) // stride + 1 for n in (h, w)]
  (dy,) = draw(1, (2, *out, 3))
  padded = np.full((2, h + 2 * padding, w + 2 * padding, 3), -np.inf)
  padded[:, padding : padding + h, padding : padding + w] = x
  y, dx = np.zeros(dy.shape), np.zeros(padded.shape)
  for b, i, j, c in np.ndindex(*dy.shape):
    window = padded[b, i * stride : i * stride + k, j * stride : j * stride + k, c]
    u, v = np.unravel_index(window.argmax(), window.shape)
    y[b, i, j, c] = window[u, v]
    dx[b, i * stride + u, j * stride + v, c] += dy[b, i, j, c]
  want = y, dx[:, padding : padding + h, padding : padding + w]
  for kind in ('cpu', 'plain'):
    pool = layers.MaxPool(k, stride, padding, compute=Compute(kernels=kind))
    actual, (grad,) = jax.jit(with_gradients(functools.partial(pool.apply, {})))(dy, x)
    np.testing.assert_allclose(actual, want[0], atol=1e-6)
    np.testing.assert_allclose(grad, want[1], atol=1e-5)


@pytest.mark.parametrize(
  'case', [(8, 6, 2, 2, 0), (9, 7, 2, 2, 0), (7, 5, 3, 2, 1), (6, 6, 3, 1, 1)], ids=str
)
def test_avg_pool_equals_a_naive_loop(case):
  h, w, k, stride, padding = case
  (x,) = draw(0, (2, h, w, 3))
  out = [(n + 2 * padding - k) // stride + 1 for n in (h, w)]
  (dy,) = draw(1, (2, *out, 3))
  padded = np.pad(x.astype('f8'), ((0, 0), *((padding, padding),) * 2, (0, 0)))
  y, dx = np.zeros(dy.shape), np.zeros(padded.shape)
  for b, i, j, c in np.ndindex(*dy.shape):
    place = b, slice(i * stride, i * stride + k), slice(j * stride, j * stride + k), c
    y[b, i, j, c] = padded[place].mean()
    dx[place] += dy[b, i, j, c] / k**2
  for kind in ('cpu', 'plain'):
    pool = layers.AvgPool(k, stride, padding, compute=Compute(kernels=kind))
    actual, (grad,) = jax.jit(with_gradients(functools.partial(pool.apply, {})))(dy, x)
    np.testing.assert_allclose(actual, y, atol=1e-6)
    np.testing.assert_allclose(grad, dx[:, padding : padding + h, padding : padding + w], atol=1e-6)


@pytest.mark.parametrize('size', [(2, 3), (1, 1), (7, 7), (9, 14), (5, 8)], ids=str)
def test_adaptive_average_pooling_has_torchs_windows(size):
  x, dy = draw(0, (2, *size, 3), (2, 7, 7, 3))
  y, dx = np.zeros(dy.shape), np.zeros(x.shape)
  for i, j in np.ndindex(7, 7):
    (top, bottom), (left, right) = (
      (place * n // 7, -(-(place + 1) * n // 7)) for place, n in zip((i, j), size)
    )
    y[:, i, j] = x[:, top:bottom, left:right].mean((1, 2))
    dx[:, top:bottom, left:right] += (dy[:, i, j] / ((bottom - top) * (right - left)))[
      :, None, None
    ]
  actual, (grad,) = jax.jit(with_gradients(lambda x: layers.AdaptiveAvgPool(7).apply({}, x)))(dy, x)
  close((actual, grad), (np.float32(y), np.float32(dx)), 1e-6)


def test_squeeze_and_excite_equals_numpy():
  (x,) = draw(0, (2, 5, 4, 6))
  module = layers.SqueezeExcite(3, 'silu', names=('conv_reduce', 'conv_expand'))
  variables = module.init(jax.random.key(0), x)
  p = jax.tree.map(lambda v: draw(2, v.shape)[0], variables['params'])
  a, b = p['conv_reduce'], p['conv_expand']
  s = x.mean((1, 2)) @ a['kernel'][0, 0] + a['bias']
  s = s / (1 + np.exp(-s)) @ b['kernel'][0, 0] + b['bias']
  close(module.apply({'params': p}, x), x * (1 / (1 + np.exp(-s)))[:, None, None], 1e-5)


def numpy_attention(q, k, v, bias):
  """One head of one window at a time, in float64."""
  out = np.zeros(q.shape)
  for place in np.ndindex(*q.shape[:-2]):
    logits = q[place].astype('f8') @ k[place].T + bias[place]
    p = np.exp(logits - logits.max(-1, keepdims=True))
    out[place] = p / p.sum(-1, keepdims=True) @ v[place]
  return out


def test_attention_equals_a_naive_loop():
  q, k, v = draw(0, *[(2, 4, 3, 9, 5)] * 3)  # images, windows, heads, tokens, channels
  bias, mask = draw(1, (3, 9, 9), (4, 9, 9))
  mask = np.where(mask > 1, -100, 0).astype('f4')
  close(
    jax.jit(functional.attention)(q, k, v),
    np.float32(numpy_attention(q, k, v, np.zeros((2, 4, 3, 1, 1)))),
  )
  close(
    jax.jit(functional.attention)(q, k, v, bias),
    np.float32(numpy_attention(q, k, v, np.broadcast_to(bias, (2, 4, 3, 9, 9)))),
  )
  both = np.broadcast_to(bias[None] + mask[:, None], (2, 4, 3, 9, 9))
  close(
    jax.jit(functional.attention)(q, k, v, bias[None] + mask[:, None]),
    np.float32(numpy_attention(q, k, v, both)),
  )
  low = functional.attention(
    *(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)), 50 + bias
  )  # with a softmax in bfloat16, .25 apart at 50, this is .1 off
  assert low.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    low.astype('f4'), numpy_attention(q, k, v, np.broadcast_to(bias, (2, 4, 3, 9, 9))), atol=0.04
  )


def test_attention_module_equals_a_naive_loop():
  x, mask = draw(0, (2, 4, 9, 12), (4, 9, 9))
  module = layers.Attention(3, window=(3, 3))
  variables = jax.jit(module.init)(jax.random.key(0), x)
  p = jax.tree.map(lambda v: draw(v.size, v.shape)[0], variables['params'])
  assert p['relative_position_bias_table'].shape == (25, 3)
  qkv = (x @ p['qkv']['kernel'] + p['qkv']['bias']).reshape(2, 4, 9, 3, 3, 4)
  q, k, v = (qkv[:, :, :, i].swapaxes(2, 3) for i in range(3))
  bias = np.zeros((4, 3, 9, 9))
  for i, j in np.ndindex(9, 9):
    down, right = i // 3 - j // 3, i % 3 - j % 3
    bias[:, :, i, j] = (
      p['relative_position_bias_table'][(down + 2) * 5 + right + 2] + mask[:, i, j, None]
    )
  y = (
    numpy_attention(q / 2, k, v, np.broadcast_to(bias, (2, 4, 3, 9, 9)))
    .swapaxes(2, 3)
    .reshape(2, 4, 9, 12)
  )
  close(
    jax.jit(module.apply)({'params': p}, x, mask),
    np.float32(y @ p['proj']['kernel'] + p['proj']['bias']),
  )
  half = layers.Attention(3, 0.25).apply({'params': {k: p[k] for k in ('qkv', 'proj')}}, x)
  y = numpy_attention(q / 4, k, v, np.zeros((2, 4, 3, 1, 1))).swapaxes(2, 3).reshape(2, 4, 9, 12)
  close(half, np.float32(y @ p['proj']['kernel'] + p['proj']['bias']))


def test_windows_and_their_inverse():
  (x,) = draw(0, (2, 6, 9, 4))
  near, far = functional.windows(x, (3, 3)), functional.windows(x, (3, 3), spread=True)
  np.testing.assert_array_equal(
    near[:, 4], x[:, 3:6, 3:6].reshape(2, 9, 4)
  )  # second row of windows, second column
  np.testing.assert_array_equal(
    far[:, 4], x[:, 1::2, 1::3].reshape(2, 9, 4)
  )  # every second row, every third column, from (1, 1)
  for parts, spread in ((near, False), (far, True)):
    assert parts.shape == (2, 6, 9, 4)
    np.testing.assert_array_equal(functional.from_windows(parts, (3, 3), 6, 9, spread), x)
  wide = functional.windows(x, (2, 3))
  np.testing.assert_array_equal(wide[:, 4], x[:, 2:4, 3:6].reshape(2, 6, 4))
  np.testing.assert_array_equal(functional.from_windows(wide, (2, 3), 6, 9), x)


def test_gelu_and_its_gradient():
  x = np.linspace(-9, 9, 1001, dtype='f4')
  exact = scipy.special.ndtr(x.astype('f8'))
  y, (dx,) = jax.jit(with_gradients(functional.gelu))(np.ones_like(x), x)
  np.testing.assert_allclose(y, x * exact, atol=1e-6)
  np.testing.assert_allclose(
    dx, exact + x * np.exp(-(x.astype('f8') ** 2) / 2) / np.sqrt(2 * np.pi), atol=1e-6
  )
  assert functional.gelu(jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16


class Small(layers.Layer):
  """One of everything."""

  @nn.compact
  def __call__(self, x):
    options = {'compute': self.compute}
    x = layers.Conv(8, 3, 2, 'SAME', **options)(x)
    x = layers.BatchNorm('relu6', **options, name='a')(x, True)
    y = layers.Conv(8, 3, 1, 'SAME', depthwise=True, **options)(x)
    y = layers.BatchNorm('relu6', **options, name='b')(y, True)
    x = x + layers.BatchNorm('', **options, name='c')(layers.Conv(8, 1, **options)(y), True)
    x = layers.MaxPool(3, 2, 1, **options)(x)
    x = layers.LayerNorm()(layers.Conv(8, 2, 2, **options)(x))
    return layers.Dense(4)(x).mean((1, 2))


@pytest.mark.parametrize('kind', ['plain', 'cpu'])
def test_eight_devices_equal_one(kind):
  """Gradients and statistics of a batch that is split over 8 devices are those on one."""
  assert jax.device_count() == 8
  x, w = draw(0, (16, 16, 16, 3), (16, 4))
  module = Small(compute=Compute(kernels=kind))
  variables = jax.jit(module.init)(jax.random.key(0), x)

  def step(params, x, w):
    def loss(params):
      y, new = module.apply(
        {'params': params, 'batch_stats': variables['batch_stats']}, x, mutable=['batch_stats']
      )
      return (y * w).mean(), new

    return jax.value_and_grad(loss, has_aux=True)(params)

  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  replicated, split = (jax.sharding.NamedSharding(mesh, s) for s in (P(), P('data')))
  one = jax.jit(step)(variables['params'], x, w)
  shardings = {'in_shardings': (replicated, split, split), 'out_shardings': replicated}
  split_result = jax.jit(step, **shardings)(variables['params'], x, w)
  close(split_result, one, 1e-5)


def test_stochastic_depth_drops_whole_examples_and_keeps_the_mean():
  x = jnp.ones((4000, 2, 2, 3))
  drop = layers.StochasticDepth(0.25)
  y = np.asarray(drop.apply({}, x, True, rngs={'dropout': jax.random.key(0)}))
  assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
  assert (y == y[:, :1, :1, :1]).all()
  assert abs(y.mean() - 1) < 0.03
  assert (drop.apply({}, x, False) == x).all()


def test_bfloat16_computes_in_bfloat16_with_float32_statistics():
  (x,) = draw(0, (4, 8, 8, 8))
  outs = []
  for kind in ('plain', 'cpu'):
    y, new = [], []
    for dtype in (jnp.float32, jnp.bfloat16):
      options = {'compute': Compute(dtype, kernels=kind)}
      conv = layers.Conv(8, 3, 1, 1, depthwise=True, **options)
      norm = layers.BatchNorm('relu', **options)
      c = conv.apply(conv.init(jax.random.key(0), x), x)
      n, stats = norm.apply(norm.init(jax.random.key(0), c, True), c, True, mutable=['batch_stats'])
      assert c.dtype == n.dtype == dtype
      y.append(n)
      new.append(stats)
    assert all(s.dtype == jnp.float32 for s in jax.tree.leaves(new))
    np.testing.assert_allclose(y[1].astype('f4'), y[0], atol=0.1)
    outs.append(y[0])
  close(outs[1], outs[0])


def test_kernels_are_chosen_once_and_make_jit_compile_anew():
  with pytest.raises(ValueError, match='auto, plain, cpu, onednn, not'):
    Compute(kernels='gpu')
  assert Compute().kernels == 'cpu' and Compute() == Compute(kernels='cpu')
  (x,) = draw(0, (2, 8, 8, 4))
  norm = layers.BatchNorm('relu')
  variables, programs = norm.init(jax.random.key(0), x, True), []

  @functools.partial(jax.jit, static_argnums=0)
  def run(module, x):
    programs.append(module.compute.kernels)
    return module.apply(variables, x, True, mutable=['batch_stats'])[0]

  for kind in ('cpu', 'plain', 'cpu'):
    run(compute.configured(norm, kernels=kind), x)
  assert programs == ['cpu', 'plain']


def test_configured_changes_a_module_and_those_in_its_fields():
  class Outer(nn.Module):
    inner: nn.Module
    batch_axis: str | None = None

  changed = compute.configured(Outer(layers.Conv(8, 3)), batch_axis='data')
  assert changed.batch_axis == changed.inner.compute.batch_axis == 'data'
  assert changed.inner.features == 8
  assert compute.configured(changed, kernels='plain').inner.compute.kernels == 'plain'


class Inverted(layers.Layer):
  """A residual block whose inside is ten times as wide as what goes through it."""

  @nn.compact
  def __call__(self, x, train):
    y = layers.BatchNorm('silu')(layers.Dense(80)(x), train)
    return x + layers.StochasticDepth(0.3)(layers.Dense(8)(y), train)


class Chain(layers.Layer):
  """Six blocks."""

  @nn.compact
  def __call__(self, x, train):
    for i in range(6):
      x = self.remat(Inverted)(name=f'block{i}')(x, train)
    return x


def test_remat_gives_the_same_gradients_with_less_memory():
  (x,) = draw(0, (8, 16, 16, 8))
  variables, outs, memory = (
    initializers.init(Chain(compute=Compute(remat=True)), 0, x, True),
    [],
    [],
  )
  for remat in (False, True):

    def loss(params):
      y, new = Chain(compute=Compute(remat=remat)).apply(
        {**variables, 'params': params},
        x,
        True,
        mutable=['batch_stats'],
        rngs={'dropout': jax.random.key(0)},
      )
      return jnp.square(y).sum(), new

    step = (
      jax.jit(jax.grad(loss, has_aux=True), compiler_options=compute.compiler_options())
      .lower(variables['params'])
      .compile()
    )
    outs.append(step(variables['params']))
    memory.append(step.memory_analysis().temp_size_in_bytes)
  close(outs[1], outs[0], 1e-5)
  assert memory[1] < 0.5 * memory[0]
