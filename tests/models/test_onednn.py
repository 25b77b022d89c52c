"""Convolutions and products by oneDNN against others, and what happens where it cannot be used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_layers
from test_layers import close, draw, lax_conv, with_gradients

from hierjax.evaluate import programs
from hierjax.models import cpu_kernels, functional, onednn, onednn_kernels
from hierjax.models.compute import Compute


@pytest.fixture
def with_onednn(monkeypatch):
  """Let `auto` choose oneDNN, where it is installed and can be compiled."""
  monkeypatch.setenv('HIERJAX_ONEDNN', '1')
  if not onednn.dtypes():
    pytest.skip('no oneDNN, or no C++ compiler')


def assert_equals_lax(x, kernel, stride, padding, calls=3):
  want = lax_conv(stride, padding)
  (dy,) = draw(1, jax.eval_shape(want, x, kernel).shape)
  ours = functools.partial(onednn_kernels.conv, stride=stride, padding=padding)
  program = jax.jit(with_gradients(ours))
  assert program.lower(dy, x, kernel).as_text().count('hierjax_conv') == calls
  close(program(dy, x, kernel), jax.jit(with_gradients(want))(dy, x, kernel))


@pytest.mark.parametrize('case', [c[:-1] for c in test_layers.CONVS if not c[-1]], ids=str)
def test_convolution_equals_xlas(with_onednn, case):
  h, w, k, stride, padding = case
  assert_equals_lax(*draw(0, (3, h, w, 6), (k, k, 6, 5)), stride, padding)


@pytest.mark.parametrize(
  'case', [(14, 14, 7, 1, 3), (3, 3, 7, 1, 3), (15, 9, 7, 2, 'SAME')], ids=str
)
def test_depthwise_convolution_of_large_kernels_equals_xlas(with_onednn, case):
  """The kernel's gradient is ours."""
  h, w, k, stride, padding = case
  assert_equals_lax(*draw(0, (3, h, w, 6), (k, k, 1, 6)), stride, padding, 2)


@pytest.mark.parametrize('channels', [(64, 64), (32, 48), (3, 64)], ids=str)
@pytest.mark.parametrize('stride', [1, 2])
def test_convolution_of_many_channels_equals_xlas(with_onednn, channels, stride):
  """The library has other code for multiples of its vectors' lengths."""
  assert_equals_lax(*draw(0, (2, 14, 15, channels[0]), (3, 3, *channels)), stride, 1)


@pytest.mark.parametrize('width,stride,padding', [(2, 1, 1), (3, 2, 'SAME'), (16, 1, 1)], ids=str)
def test_convolution_of_groups_equals_xlas(with_onednn, width, stride, padding):
  x, kernel = draw(0, (3, 9, 8, 4 * width), (3, 3, width, 4 * width + 4))
  assert_equals_lax(x, kernel, stride, padding)


def test_bfloat16_is_near_float32_of_the_same_numbers(with_onednn):
  if jnp.dtype(jnp.bfloat16) not in onednn.dtypes():
    pytest.skip('a processor without bfloat16')
  x, kernel, dy = draw(0, (2, 9, 8, 16), (3, 3, 16, 32), (2, 9, 8, 32))
  program = jax.jit(with_gradients(functools.partial(onednn_kernels.conv, padding=1)))
  half = [jnp.asarray(a, jnp.bfloat16) for a in (dy, x, kernel)]
  in_float32 = program(*(a.astype(jnp.float32) for a in half))
  for a, b in zip(jax.tree.leaves(program(*half)), jax.tree.leaves(in_float32), strict=True):
    assert a.dtype == jnp.bfloat16
    # eight binary digits, rounded once
    np.testing.assert_allclose(a.astype('f4'), b, rtol=2**-8, atol=1e-3 * np.abs(b).max())


@pytest.mark.parametrize('is_transposed', [False, True])
@pytest.mark.parametrize('lead', [(), (3,), (2, 5)], ids=str)
def test_product_equals_numpys(with_onednn, lead, is_transposed):
  """It and its gradients; [n, d] x [d, m] with n, d and m apart."""
  shape = (*lead, 4, 6) if is_transposed else (*lead, 6, 4)
  a, b, dy = draw(0, (*lead, 9, 6), shape, (*lead, 9, 4))
  multiply = functools.partial(onednn_kernels.product, is_transposed=is_transposed)
  program = jax.jit(with_gradients(multiply))
  assert program.lower(dy, a, b).as_text().count('hierjax_product') == 3
  y, (da, db) = program(dy, a, b)
  matrix = np.swapaxes(b, -1, -2) if is_transposed else b
  dmatrix = np.swapaxes(a, -1, -2) @ dy
  want = (
    dy @ np.swapaxes(matrix, -1, -2),
    np.swapaxes(dmatrix, -1, -2) if is_transposed else dmatrix,
  )
  close((y, da, db), (a @ matrix, *want))


def test_attention_equals_that_of_xla(with_onednn):
  q, k, v, bias = draw(0, (2, 3, 7, 4), (2, 3, 7, 4), (2, 3, 7, 4), (3, 7, 7))
  ours = functools.partial(functional.attention, multiply=onednn_kernels.product)
  close(jax.jit(ours)(q, k, v, bias), jax.jit(functional.attention)(q, k, v, bias))
  half = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
  np.testing.assert_array_equal(ours(*half), functional.attention(*half))


@pytest.mark.parametrize(
  'shape,kernel_shape,dtype',
  [
    ((2, 8, 8, 6), (5, 5, 1, 6), jnp.float32),
    ((2, 8, 8, 6), (7, 7, 1, 6), jnp.bfloat16),
    ((2, 8, 8, 6), (3, 3, 6, 4), jnp.float16),
    ((0, 8, 8, 6), (3, 3, 6, 4), jnp.float32),
  ],
  ids=['small depthwise', 'bfloat16 depthwise', 'float16', 'empty'],
)
def test_what_onednn_does_not_compute_is_computed_without(with_onednn, shape, kernel_shape, dtype):
  x, kernel = (jnp.asarray(a, dtype) for a in draw(0, shape, kernel_shape))
  program = jax.jit(functools.partial(onednn_kernels.conv, padding=1))
  assert 'hierjax_conv' not in program.lower(x, kernel).as_text()
  np.testing.assert_array_equal(
    program(x, kernel), jax.jit(functools.partial(cpu_kernels.conv, padding=1))(x, kernel)
  )


def test_eight_devices_equal_one(with_onednn):
  x, w = draw(0, (16, 16, 16, 3), (16, 4))
  module = test_layers.Small(compute=Compute(kernels='cpu'))
  variables = jax.jit(module.init)(jax.random.key(0), x)

  def step(params, x, w, options):
    def loss(params):
      module = test_layers.Small(compute=options)
      all_variables = {'params': params, 'batch_stats': variables['batch_stats']}
      y, _ = module.apply(all_variables, x, mutable=['batch_stats'])
      return (y * w).sum()

    gradients = jax.grad(loss)(params)
    return jax.lax.psum(gradients, 'data') if options.batch_axis else gradients

  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.shard_map(
    functools.partial(step, options=Compute(batch_axis='data')),
    mesh=mesh,
    in_specs=(jax.P(), jax.P('data'), jax.P('data')),
    out_specs=jax.P(),
    check_vma=False,
  )
  program = jax.jit(split)
  assert 'hierjax_conv' in program.lower(variables['params'], x, w).as_text()
  one = jax.jit(functools.partial(step, options=Compute(kernels='cpu')))
  close(program(variables['params'], x, w), one(variables['params'], x, w))


def test_kept_programs_of_evaluation_call_it(with_onednn, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  x, kernel = draw(0, (2, 8, 8, 4), (3, 3, 4, 4))
  step = jax.jit(lambda kernel, x: onednn_kernels.conv(x, kernel, 1, 1))
  first = programs.Programs(step, [])(kernel, x)

  @jax.jit
  def untraceable(*_):
    raise AssertionError

  np.testing.assert_array_equal(programs.Programs(untraceable, [])(kernel, x), first)
  close(first, lax_conv(1, 1)(x, kernel))


def test_used_where_it_is_installed_and_not_turned_off(with_onednn, monkeypatch):
  assert Compute().kernels == 'onednn'
  monkeypatch.setenv('HIERJAX_ONEDNN', '0')
  assert Compute().kernels == 'cpu'


@pytest.mark.parametrize(
  'compiler,problem',
  [('no-such-compiler', "no C.. compiler 'no-such-compiler'; install"), ('false', 'false failed')],
)
def test_without_a_compiler_that_works_a_warning_says_so(
  with_onednn, tmp_path, monkeypatch, compiler, problem
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setenv('CXX', compiler)
  with pytest.warns(UserWarning, match=f'oneDNN is installed but not used: .*{problem}'):
    assert not onednn._usable_dtypes.__wrapped__()
  assert not [*tmp_path.rglob('*.so')]


def test_without_its_headers_a_warning_says_what_is_missing(with_onednn, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(onednn, 'HEADERS', 'no-such-package')
  with pytest.warns(UserWarning, match='no-such-package is not installed'):
    assert not onednn._usable_dtypes.__wrapped__()


def test_nothing_is_said_where_it_is_not_installed(monkeypatch):
  monkeypatch.setattr(onednn, 'LIBRARY', 'no-such-package')
  assert not onednn._usable_dtypes.__wrapped__()
