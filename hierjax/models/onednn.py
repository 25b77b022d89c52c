"""Convolutions and matrix products by oneDNN, a library of Intel's, on x86-64 CPUs under Linux.

Optional: `requirements-onednn.txt` has the library and its headers. `onednn.cc`, through which XLA
calls it, is compiled once by the machine's C++ compiler (c++, or what CXX names), and kept in the
user's cache. HIERJAX_ONEDNN=0 leaves oneDNN out.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from hierjax.core import files
from hierjax.models.cpu_kernels import Array, Pads

SOURCE = pathlib.Path(__file__).with_suffix('.cc')
LIBRARY, HEADERS = 'onednn-cpu-gomp', 'onednn-devel-cpu-gomp'
# names of the functions in SOURCE that XLA calls
CONV, INPUT_GRADIENT = 'hierjax_conv', 'hierjax_conv_input_gradient'
KERNEL_GRADIENT, PRODUCT = 'hierjax_conv_kernel_gradient', 'hierjax_product'
TARGETS = CONV, INPUT_GRADIENT, KERNEL_GRADIENT, PRODUCT


class BuildError(Exception):
  """oneDNN is installed and cannot be used."""


def dtypes() -> frozenset[np.dtype]:
  """Return the dtypes that oneDNN computes with on this machine; none where it is not used.

  Warns once where it is installed and cannot be used.
  """
  return _usable_dtypes() if os.environ.get('HIERJAX_ONEDNN', '1') == '1' else frozenset()


@functools.cache
def _usable_dtypes() -> frozenset[np.dtype]:
  if not _version(LIBRARY):
    return frozenset()
  try:
    library = _load()
  except (BuildError, OSError) as e:
    warnings.warn(f'oneDNN is installed but not used: {e}', stacklevel=3)
    return frozenset()
  for name in TARGETS:
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform='cpu')
  library.hierjax_has_bfloat16.restype = ctypes.c_bool
  is_half = library.hierjax_has_bfloat16()
  return frozenset(np.dtype(t) for t in (jnp.float32, *[jnp.bfloat16] * is_half))


def _load() -> ctypes.CDLL:
  """Load oneDNN, and the compiled SOURCE, which finds it by its name."""
  with _sleeping_threads():
    ctypes.CDLL(str(_installed(LIBRARY, 'libdnnl.so.3')))
  return ctypes.CDLL(str(_compiled()))


def _compiled() -> pathlib.Path:
  """Return the compiled SOURCE in the user's cache, compiling it where it is missing."""
  versions = jaxlib.__version__, *map(_version, (LIBRARY, HEADERS))
  key = hashlib.sha256(repr((SOURCE.read_text(), versions)).encode()).hexdigest()[:32]
  path = files.cache_folder('onednn') / f'{key}.so'
  if path.exists():
    return path
  compiler = os.environ.get('CXX', 'c++')
  if not shutil.which(compiler):
    raise BuildError(f'there is no C++ compiler {compiler!r}; install g++, or set CXX')
  headers = _installed(HEADERS, 'oneapi/dnnl/dnnl.hpp').parents[2]
  includes = [option for h in (jax.ffi.include_dir(), headers) for option in ('-isystem', str(h))]
  with tempfile.TemporaryDirectory() as folder:
    output = pathlib.Path(folder, path.name)
    command = [compiler, '-O2', '-std=c++17', '-shared', '-fPIC', *includes, str(SOURCE)]
    command += ['-o', str(output), str(_installed(LIBRARY, 'libdnnl.so.3'))]
    result = subprocess.run(command, capture_output=True, text=True, errors='replace', check=False)
    if result.returncode:
      raise BuildError(f'{compiler} failed: {result.stderr.strip()[-300:]}')
    path.parent.mkdir(parents=True, exist_ok=True)
    return files.write(path, output.read_bytes())


def _version(package: str) -> str:
  """Return the version of an installed package, '' if it is not installed."""
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    return importlib.metadata.version(package)
  return ''


def _installed(package: str, ending: str) -> pathlib.Path:
  """Find the file of an installed package by the end of its path."""
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    for file in importlib.metadata.files(package) or ():
      if file.as_posix().endswith(ending):
        return pathlib.Path(file.locate()).resolve()
  raise BuildError(f'{package} is not installed, or lacks {ending}')


@contextlib.contextmanager
def _sleeping_threads() -> Iterator[None]:
  """Let the threads of OpenMP, which oneDNN loads, sleep between calls: XLA needs the cores."""
  is_set = 'OMP_WAIT_POLICY' in os.environ
  os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
  try:
    yield
  finally:
    if not is_set:
      del os.environ['OMP_WAIT_POLICY']


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: Array, kernel: Array, stride: int, pads: Pads) -> Array:
  """Convolve maps with a kernel.

  Args:
    x: [B, H, W, C], of a dtype in `dtypes()`.
    kernel: [k, k, C / groups, O], of the same dtype.
    stride: in pixels.
    pads: pixels (above, below), (left, right).
  """
  return _forward(x, kernel, stride, pads)[0]


def _call(target: str, result: tuple[int, ...], a: Array, b: Array, **numbers: tuple[int, ...]):
  call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(result, a.dtype))
  return call(a, b, **{name: np.array(x, np.int64) for name, x in numbers.items()})


def _forward(x, kernel, stride, pads):
  size = [(n + sum(p) - k) // stride + 1 for n, p, k in zip(x.shape[1:3], pads, kernel.shape)]
  shape = x.shape[0], *size, kernel.shape[3]
  geometry = stride, *pads[0], *pads[1]
  return _call(CONV, shape, x, kernel, geometry=geometry), (x, kernel)


def _backward(stride, pads, saved, dy):
  (x, kernel), geometry = saved, (stride, *pads[0], *pads[1])
  dx = _call(INPUT_GRADIENT, x.shape, dy, kernel, geometry=geometry)
  return dx, _call(KERNEL_GRADIENT, kernel.shape, x, dy, geometry=geometry)


conv.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(a: Array, b: Array, is_transposed: bool) -> Array:
  """Multiply matrices, those of each leading index by themselves.

  Args:
    a: [..., n, d], of a dtype in `dtypes()`.
    b: [..., d, m], or [..., m, d], of the same dtype.
    is_transposed: whether b is the latter.

  Returns:
    [..., n, m], of this dtype.
  """
  return _multiply(a, b, (False, is_transposed))


def _multiply(a: Array, b: Array, transposed: tuple[bool, bool]) -> Array:
  n, m = a.shape[-1 if transposed[0] else -2], b.shape[-2 if transposed[1] else -1]
  matrices = [x.reshape(-1, *x.shape[-2:]) for x in (a, b)]
  shape = len(matrices[0]), n, m
  return _call(PRODUCT, shape, *matrices, transposed=transposed).reshape(*a.shape[:-2], n, m)


def _product_forward(a, b, is_transposed):
  return product(a, b, is_transposed), (a, b)


def _product_backward(is_transposed, saved, dy):
  a, b = saved
  da = _multiply(dy, b, (False, not is_transposed))
  first, second = (dy, a) if is_transposed else (a, dy)
  return da, _multiply(first, second, (True, False))


product.defvjp(_product_forward, _product_backward)
