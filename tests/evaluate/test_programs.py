"""Steps that were traced before: the same results, from the file alone, and never a wrong file."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hierjax.evaluate import programs
from hierjax.models import classifier, heads_base, layers

VARIABLES = {'params': {'kernel': jnp.arange(6.0).reshape(3, 2)}}
IMAGES = jnp.ones((4, 3), jnp.float32)


@jax.jit
def step(variables, images):
  return images @ variables['params']['kernel'], images


@jax.jit
def untraceable(variables, images):
  raise AssertionError('traced')


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  return tmp_path / 'hierjax' / 'programs'


def expect_result(program):
  for result, expected in zip(program(VARIABLES, IMAGES), step(VARIABLES, IMAGES)):
    np.testing.assert_array_equal(result, expected)


def test_a_later_program_reads_what_an_earlier_one_has_traced(folder):
  first = programs.Programs(step, ['a'])
  assert first.variables() is None
  expect_result(first)
  later = programs.Programs(untraceable, ['a'])
  assert later.variables() == jax.eval_shape(lambda: VARIABLES)
  expect_result(later)
  with pytest.raises(AssertionError, match='traced'):
    later(VARIABLES, IMAGES[:2])
  with pytest.raises(AssertionError, match='traced'):
    programs.Programs(untraceable, ['b'])(VARIABLES, IMAGES)


def test_a_program_with_linear_algebra_keeps_its_platform(folder):
  """What it is for: jax prepares LAPACK for it. Others run without."""

  @jax.jit
  def solving(variables, images):
    return jnp.linalg.solve(images.T @ images + jnp.eye(3), variables['params']['kernel'])

  expected = solving(VARIABLES, IMAGES)
  programs.Programs(solving, [])(VARIABLES, IMAGES)
  for function, platforms in ((solving, (jax.default_backend(),)), (step, ())):
    programs.Programs(function, [function.__name__])(VARIABLES, IMAGES)
    later = programs.Programs(untraceable, [function.__name__])
    assert later.variables()
    (program,) = later._exported.values()
    assert program.platforms == platforms
    if function is solving:
      np.testing.assert_allclose(later(VARIABLES, IMAGES), expected, rtol=1e-6)


def test_edited_source_and_options_of_jax_are_other_programs(folder, monkeypatch):
  expect_result(programs.Programs(step, []))
  assert programs.Programs(step, []).variables()
  before = jax.config.jax_default_matmul_precision
  jax.config.update('jax_default_matmul_precision', 'bfloat16')
  try:
    assert programs.Programs(step, []).variables() is None
  finally:
    jax.config.update('jax_default_matmul_precision', before)
  monkeypatch.setattr(programs, '_source', lambda: ['edited'])
  assert programs.Programs(step, []).variables() is None


@pytest.mark.parametrize('content', [b'', b'nonsense', None])
def test_a_damaged_file_is_made_anew(content, folder):
  expect_result(programs.Programs(step, []))
  (file,) = folder.iterdir()
  half = file.read_bytes()[: file.stat().st_size // 2]
  file.write_bytes(half if content is None else content)
  damaged = programs.Programs(step, [])
  assert damaged.variables() is None
  expect_result(damaged)
  expect_result(programs.Programs(untraceable, []))


def test_without_a_folder_it_traces(tmp_path, monkeypatch):
  (tmp_path / 'hierjax').write_text('a file where the folder would be')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  expect_result(programs.Programs(step, []))


def test_the_programs_that_were_used_last_stay(folder, monkeypatch):
  monkeypatch.setattr(programs, 'MAX_FILES', 2)
  for i in range(3):
    expect_result(programs.Programs(step, [i]))
  assert [programs.Programs(step, [i]).variables() is None for i in range(3)] == [
    True,
    False,
    False,
  ]


def test_modules_of_other_packages_are_traced_each_time(monkeypatch, request):
  """Their source may change without notice."""
  backbone, user_backbone = layers.Trunk(), tiny.Tiny()
  heads = heads_base.Heads((), ())
  build = functools.partial(classifier.Classifier, mean=(0.0,) * 3, std=(1.0,) * 3)
  assert not programs._can_keep(build(backbone, heads)), 'several devices'
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  # where an earlier test has loaded a model, it has turned this off, as there are several devices
  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', True)
  request.addfinalizer(lambda: jax.config.update('jax_enable_compilation_cache', before))
  assert programs._can_keep(build(backbone, heads))
  assert not programs._can_keep(build(user_backbone, heads))
  assert not programs._can_keep(build(backbone, heads, neck=nn.Dense(2)))
