"""A trained model as programs without training: ONNX and StableHLO."""

import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from hierjax.evaluate import collect, explain
from hierjax.export import decision, primitives
from hierjax.export.graph import OPSET, Graph, Value, canonical
from hierjax.model import Model
from hierjax.models import compute

# What the exported StableHLO runs on.
PLATFORMS = ('cpu', 'cuda', 'tpu')


def forward(trained: Model, has_maps: bool = False) -> tuple[Callable, jax.ShapeDtypeStruct]:
  """Return the program of a model in float32 and what it reads, for a symbolic batch size.

  The program maps uint8 images [b, S, S, 3] ([b, views, S, S, 3] where eval.tta is above 2) to the
  probabilities {level with a head: float32 [b, C]} and the features float32 [b, d].

  Args:
    trained: the model.
    has_maps: whether the features are a pair with the last feature maps of the first view, float32
      [b, h, w, c], or None of a backbone without.
  """
  module = compute.configured(trained.classifier, kernels='plain', dtype=jnp.float32)
  variables, tta, size = jax.device_get(trained.variables), trained.c.eval.tta, trained.c.data.size

  def apply_with_maps(variables, images):
    logits, features, maps = explain.apply_with_maps(module, variables, images)
    return logits, (features, maps)

  model = types.SimpleNamespace(apply=apply_with_maps) if has_maps else module

  def run(images):
    # the second view is the mirror image; the others are cut out of larger pictures
    images = jnp.stack([images, jnp.flip(images, 2)], 1) if tta == 2 else images
    return collect.eval_step(variables, images, model, trained.taxonomy)

  (batch,) = jax.export.symbolic_shape('b')
  views = (tta,) if tta > 2 else ()
  return run, jax.ShapeDtypeStruct((batch, *views, size, size, 3), jnp.uint8)


def onnx_model(trained: Model, has_maps: bool = False) -> Any:
  """Make the `onnx.ModelProto` of a model, its decisions inside.

  Its input is `images`; its outputs are `probability/LEVEL`, `features` [N, d], `maps` [N, h, w, c]
  if they are asked for and exist, and what `decision.add_decisions` adds.

  Args:
    trained: the model.
    has_maps: whether maps are asked for.

  Raises:
    UserError: the model computes what has no translation to ONNX.
  """
  run, images = forward(trained, has_maps)
  traced, shapes = jax.make_jaxpr(run, return_shape=True)(images)
  graph = Graph(images.shape[0])
  pixels = graph.input('images', np.uint8, images.shape)
  if len(pixels.shape) == 4:
    # channels first from here on: a number for each channel is then quick to subtract
    moved = graph.stored(pixels, (0, 3, 1, 2))
    pixels = Value(moved, pixels.shape, (0, 3, 1, 2))
  values = primitives.translate(graph, traced, [pixels])
  values = [graph.stored(graph.full(v, x.shape)) for v, x in zip(values, jax.tree.leaves(shapes))]
  values = [canonical(v, x.shape) for v, x in zip(values, jax.tree.leaves(shapes))]
  probs, features = jax.tree.unflatten(jax.tree.structure(shapes), values)
  features, maps = features if has_maps else (features, None)
  probs = {level: probs[level] for level in trained.levels}
  for level, value in probs.items():
    graph.output(f'probability/{level}', value, np.float32)
  graph.output('features', features, np.float32)
  if maps is not None:
    graph.output('maps', maps, np.float32)
  decision.add_decisions(graph, probs, trained.taxonomy, trained.rules)
  return graph.model({'taxonomy_sha256': trained.taxonomy.hash(), 'opset': f'{OPSET}'})


def stablehlo(trained: Model) -> bytes:
  """Serialise the program of a model for `jax.export.deserialize`."""
  run, images = forward(trained)
  return bytes(jax.export.export(jax.jit(run), platforms=PLATFORMS)(images).serialize())


def weights(trained: Model) -> bytes:
  """Serialise the parameters and statistics of a model as safetensors, by their paths."""
  flat = traverse_util.flatten_dict(jax.device_get(trained.variables), sep='/')
  arrays = {name: np.ascontiguousarray(array) for name, array in flat.items()}
  return safetensors.numpy.save(arrays, {'taxonomy_sha256': trained.taxonomy.hash()})
