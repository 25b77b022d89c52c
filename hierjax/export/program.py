"""A trained model as programs without training: ONNX and StableHLO."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from hierjax.core.errors import UserError
from hierjax.evaluate import collect, explain
from hierjax.export import decision, primitives
from hierjax.export.graph import OPSET, Graph, Value, canonical
from hierjax.model import Model
from hierjax.models import compute

# What the exported StableHLO runs on.
PLATFORMS = ('cpu', 'cuda', 'tpu')


def forward(trained: Model) -> tuple[Callable, jax.ShapeDtypeStruct]:
  """Return the program of a model in float32 and what it reads, for a symbolic batch size.

  The program maps uint8 images [b, S, S, 3] ([b, views, S, S, 3] where eval.tta is above 2) to the
  probabilities {level with a head: float32 [b, C]} and the features float32 [b, d].

  Args:
    trained: the model.
  """
  module = compute.configured(trained.classifier, kernels='plain', dtype=jnp.float32)
  variables, tta, size = jax.device_get(trained.variables), trained.c.eval.tta, trained.c.data.size

  def run(images):
    # the second view is the mirror image; the others are cut out of larger pictures
    images = jnp.stack([images, jnp.flip(images, 2)], 1) if tta == 2 else images
    return collect.eval_step(variables, images, module, trained.taxonomy)

  (batch,) = jax.export.symbolic_shape('b')
  views = (tta,) if tta > 2 else ()
  return run, jax.ShapeDtypeStruct((batch, *views, size, size, 3), jnp.uint8)


def onnx_model(trained: Model) -> Any:
  """Make the `onnx.ModelProto` of a model, its decisions inside.

  Its input is `images`; its outputs are `probability/LEVEL`, `features` [N, d], and what
  `decision.add_decisions` adds.

  Args:
    trained: the model.

  Raises:
    UserError: the model computes what has no translation to ONNX.
  """
  run, images = forward(trained)
  graph = Graph(images.shape[0])
  probs, features = _translated(graph, run, _pixels(graph, images))
  probs = {level: probs[level] for level in trained.levels}
  for level, value in probs.items():
    graph.output(f'probability/{level}', value, np.float32)
  graph.output('features', features, np.float32)
  decision.add_decisions(graph, probs, trained.taxonomy, trained.rules)
  return graph.model(_metadata(trained))


def maps_model(trained: Model) -> Any:
  """Make the `onnx.ModelProto` of a model's heat maps: `explain.grad_cam`, gradients and all.

  Its inputs are `images` uint8 [N, S, S, 3] and for each exclusive level with a head `class/LEVEL`
  int32 [N]; its outputs are `map/LEVEL` float32 [N, h, w].

  Args:
    trained: the model.

  Raises:
    UserError: no level has such a head, the backbone has no maps, or it computes what has no
      translation to ONNX.
  """
  module = compute.configured(trained.classifier, kernels='plain', dtype=jnp.float32)
  variables, size = jax.device_get(trained.variables), trained.c.data.size
  block = trained.taxonomy.block('exclusive')
  levels = [level for level in block.levels if level in trained.levels] if block else []
  if not levels:
    raise UserError('--maps: heat maps are of the classes of a path, and the data have tags alone')
  (batch,) = jax.export.symbolic_shape('b')
  images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
  apply = functools.partial(explain.apply_with_maps, module, variables)
  if jax.eval_shape(apply, images)[2] is None:
    raise UserError(f'--maps: {trained.c.model.backbone} returns its features alone, without maps')
  graph = Graph(batch)
  pixels, class_type = _pixels(graph, images), jax.ShapeDtypeStruct((batch,), jnp.int32)
  classes = [graph.input(f'class/{level}', np.int32, (batch,)) for level in levels]

  def run(images, *classes):
    return explain.grad_cam(variables, images, dict(zip(levels, classes)), module)[1]

  inputs = [pixels, *((value, class_type) for value in classes)]
  maps = _translated(graph, run, *inputs)
  for level in levels:
    graph.output(f'map/{level}', maps[level], np.float32)
  return graph.model(_metadata(trained))


def _pixels(graph, images):
  """Add the images to a graph, as a pair of their value and their shape."""
  pixels = graph.input('images', np.uint8, images.shape)
  if len(pixels.shape) == 4:
    # channels first from here on: a number for each channel is then quick to subtract
    moved = graph.stored(pixels, (0, 3, 1, 2))
    pixels = Value(moved, pixels.shape, (0, 3, 1, 2))
  return pixels, images


def _translated(graph, run, *inputs):
  """Add a program to a graph; returns its results, whole and with axes in their order."""
  values, shapes = zip(*inputs)
  traced, results = jax.make_jaxpr(run, return_shape=True)(*shapes)
  leaves = jax.tree.leaves(results)
  values = primitives.translate(graph, traced, values)
  values = [graph.stored(graph.full(v, x.shape)) for v, x in zip(values, leaves)]
  values = [canonical(v, x.shape) for v, x in zip(values, leaves)]
  return jax.tree.unflatten(jax.tree.structure(results), values)


def _metadata(trained):
  return {'taxonomy_sha256': trained.taxonomy.hash(), 'opset': f'{OPSET}'}


def stablehlo(trained: Model) -> bytes:
  """Serialise the program of a model for `jax.export.deserialize`."""
  run, images = forward(trained)
  return bytes(jax.export.export(jax.jit(run), platforms=PLATFORMS)(images).serialize())


def weights(trained: Model) -> bytes:
  """Serialise the parameters and statistics of a model as safetensors, by their paths."""
  flat = traverse_util.flatten_dict(jax.device_get(trained.variables), sep='/')
  arrays = {name: np.ascontiguousarray(array) for name, array in flat.items()}
  return safetensors.numpy.save(arrays, {'taxonomy_sha256': trained.taxonomy.hash()})
