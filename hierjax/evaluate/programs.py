"""Evaluation steps that were traced before, in the user's cache beside what jax has compiled.

Tracing and lowering a network takes a second or more at each start of a program, even where its
compiled form is cached. What jax.export writes is lowered already, and says which variables it
takes, so that a checkpoint can be read without tracing the network's initialisation.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jaxlib
from jax import export
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hierjax.core import config, files, parallel
from hierjax.evaluate import collect
from hierjax.models import compute, initializers, onednn
from hierjax.taxonomy import Mixed, Taxonomy

MAX_FILES = 64  # of the cache; the programs that were used last stay
MAX_BYTES = 2**30  # of a program


class Programs:
  """A compiled step (variables, images) → outputs, which remembers what it has traced.

  Args:
    step: the function, compiled by `jax.jit`, for one device.
    identity: what the step depends on beside the shapes of its arguments, hierjax's source and the
      versions and options of jax and flax: what JSON can hold.
  """

  def __init__(self, step: Callable, identity: Any):
    parts = identity, _source(), jax.__version__, jaxlib.__version__, flax.__version__
    parts += jax.devices()[0].device_kind, sorted(jax.config.values.items())
    key = hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]
    self._step, self._folder, self._key = step, files.cache_folder('programs'), key
    self._exported, self._calls = {}, {}

  def variables(self) -> Any:
    """Return the shapes and dtypes of the variables that the step takes; None if not traced yet."""
    for path in self._folder.glob(f'{self._key}-*'):
      exported = self._read(path)
      if exported:
        shapes = map(_abstract, exported.in_avals)
        (variables, _), _ = jax.tree.unflatten(exported.in_tree, shapes)
        return variables
    return None

  def __call__(self, variables: Any, images: jax.Array) -> Any:
    """Run the step."""
    path = self._folder / f'{self._key}-{"x".join(map(str, images.shape))}-{images.dtype}'
    if path not in self._calls:
      exported = self._read(path) or self._trace(path, variables, images)
      self._calls[path] = jax.jit(exported.call, compiler_options=compute.compiler_options())
    return self._calls[path](variables, images)

  def _read(self, path: pathlib.Path) -> export.Exported | None:
    """Read the program of a file; None where there is none that can be read."""
    if path not in self._exported:
      try:
        content = files.read_bytes(path, MAX_BYTES)
        self._exported[path] = _without_lapack(export.deserialize(bytearray(content)))
      # a file of another version or a damaged one: flatbuffers raise all kinds of errors
      except Exception:
        return None
      with contextlib.suppress(OSError):  # a cache that others write
        path.touch()
    return self._exported[path]

  def _trace(self, path: pathlib.Path, variables: Any, images: jax.Array) -> export.Exported:
    # what serves this machine alone may call what is compiled here
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in onednn.TARGETS]
    arguments = jax.tree.map(_abstract, (variables, images))
    exported = export.export(self._step, disabled_checks=checks)(*arguments)
    # the cache may be read-only or full
    with contextlib.suppress(OSError):
      self._folder.mkdir(parents=True, exist_ok=True)
      files.write(path, bytes(exported.serialize()))
      by_age = sorted(self._folder.iterdir(), key=lambda file: file.stat().st_mtime)
      for file in by_age[:-MAX_FILES]:
        file.unlink(missing_ok=True)
    return exported


def stepper(
  classifier: nn.Module, mesh: Mesh, taxonomy: Taxonomy | Mixed, c: ConfigDict
) -> Callable:
  """Return the compiled `collect.eval_step`, with the memory of `Programs` where that is safe.

  Args:
    classifier: the model.
    mesh: the devices.
    taxonomy: the levels.
    c: the config that the classifier was built from.
  """
  step = collect.stepper(classifier, mesh, taxonomy)
  if c.plugins or not _can_keep(classifier):
    return step
  return Programs(step, [config.to_json(c), taxonomy.hash(), compute.Compute().kernels])


def variables(step: Callable, classifier: nn.Module, mesh: Mesh) -> dict:
  """Return the shapes, dtypes and shardings of the variables that a classifier's step takes.

  Args:
    step: of `stepper`.
    classifier: the model.
    mesh: the devices.
  """
  remembered = step.variables() if isinstance(step, Programs) else None
  shapes = {'batch_stats': {}} | (remembered or initializers.shapes(classifier))
  sharding = parallel.replicated(mesh)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def _can_keep(module: nn.Module) -> bool:
  """Whether all classes of a module are hierjax's, whose source the name of a program covers."""
  parts = module, *(value for value in vars(module).values() if isinstance(value, nn.Module))
  is_ours = all(type(part).__module__.startswith('hierjax.') for part in parts)
  return is_ours and jax.device_count() == 1 and jax.config.jax_enable_compilation_cache


def _without_lapack(exported: export.Exported) -> export.Exported:
  """Forget the platform of a program, for which jax would import SciPy's linear algebra.

  That takes .3 s, and no network calls it. The platform stands in the name of the file already.
  """
  if b'lapack' in exported.mlir_module_serialized:
    return exported
  checks = *exported.disabled_safety_checks, export.DisabledSafetyCheck.platform()
  return dataclasses.replace(exported, platforms=(), disabled_safety_checks=checks)


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _source() -> list:
  """Return what changes with hierjax's source files: their names, sizes and times."""
  folder = pathlib.Path(__file__).parents[1]
  stats = ((str(path), path.stat()) for path in sorted(folder.rglob('*.py')))
  return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
