"""The work that a model does on one image, counted by tracing it: nothing is compiled or run."""

import math
import re
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hierjax.models import initializers, layers
from hierjax.models.compute import configured


def image(size: int) -> jax.ShapeDtypeStruct:
  """Describe one image of size x size pixels."""
  return jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)


def shapes(model: nn.Module, size: int) -> dict:
  """Return a model's variables as shapes.

  Args:
    model: a classifier or a backbone.
    size: pixels along a side of the images.
  """
  model = configured(model, kernels='plain')
  return jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, mutable=initializers.COLLECTIONS), image(size)
  )


def parameters(tree: Any) -> int:
  """Count the numbers in a tree of arrays or shapes."""
  return sum(x.size for x in jax.tree.leaves(tree))


def macs(model: nn.Module, variables: dict, size: int) -> int:
  """Count the multiply-accumulates of a forward pass of one image of size x size pixels.

  They are those of convolutions and matrix products.

  Args:
    model: as an image's forward pass calls it.
    variables: its arrays or shapes.
    size: pixels along a side.
  """
  model = configured(model, kernels='plain')
  total = 0
  for eqn in _equations(jax.make_jaxpr(model.apply)(variables, image(size)).jaxpr):
    if eqn.primitive.name == 'conv_general_dilated':
      kernel, spec = eqn.invars[1].aval.shape, eqn.params['dimension_numbers'].rhs_spec
      total += eqn.outvars[0].aval.size * (math.prod(kernel) // kernel[spec[0]])
    elif eqn.primitive.name == 'dot_general':
      (axes, _), _ = eqn.params['dimension_numbers']
      total += eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[d] for d in axes)
  return total


def _equations(jaxpr: Any) -> Iterator[Any]:
  """Yield the equations of a jaxpr and of all jaxprs in it."""
  for eqn in jaxpr.eqns:
    yield eqn
    values = list(eqn.params.values())
    for value in jax.tree.leaves(
      values, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
    ):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from _equations(inner)


# What thop 0.1.1 counts of a module, from its input and output; nothing of other modules.
THOP = {
  layers.Conv: lambda m, x, y: y.size * m.size**2 * (1 if m.depthwise else x.shape[-1] // m.groups),
  layers.Dense: lambda m, x, y: y.size * x.shape[-1],
  layers.BatchNorm: lambda m, x, y: 4 * x.size,
  layers.LayerNorm: lambda m, x, y: 4 * x.size,
  layers.AvgPool: lambda m, x, y: y.size,
  layers.AdaptiveAvgPool: lambda m, x, y: int((x.shape[1] * x.shape[2] / m.size**2 + 1) * y.size),
  layers.GlobalPool: lambda m, x, y: (x.shape[1] * x.shape[2] + 1) * y.size,
}


def thop_macs(model: nn.Module, size: int, uncounted: str) -> int:
  """Count what the tool thop 0.1.1 reports of the original as its MACs; papers print it as FLOPs.

  thop adds a rule's number for each module of a known type, so that norms and pools count, but not
  what is computed outside of such modules.

  Args:
    model: a classifier or a backbone.
    size: pixels along a side of the image.
    uncounted: regular expression of the paths of the backbone's modules that are none in the
      original (`Backbone.uncounted`).
  """
  counts = []

  def count(call, args, kwargs, context):
    y, path = call(*args, **kwargs), '/'.join(context.module.path)
    rule = THOP.get(type(context.module)) if context.method_name == '__call__' else None
    if rule and not re.fullmatch(f'(backbone/)?({uncounted})', path):
      counts.append(rule(context.module, args[0], y))
    return y

  with nn.intercept_methods(count):
    shapes(model, size)
  return sum(counts)
