"""The work that a model does on one image, counted by tracing it: nothing is compiled or run."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hierjax.models import layers
from hierjax.models import registry as models


def shapes(model: nn.Module, size: int) -> dict:
  """The model's variables as shapes, for images of size x size."""
  return jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, mutable=models.COLLECTIONS), image(size)
  )


def image(size: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)


def parameters(tree) -> int:
  return sum(x.size for x in jax.tree.leaves(tree))


def macs(model: nn.Module, variables: dict, size: int) -> int:
  """Multiply-accumulates of one forward pass of one size x size image: those of its convolutions and matrix products. variables: arrays or shapes."""
  with layers.formulation('plain'):
    return jaxpr_macs(jax.make_jaxpr(model.apply)(variables, image(size)).jaxpr)


def jaxpr_macs(jaxpr) -> int:
  total = 0
  for eqn in jaxpr.eqns:
    out = eqn.outvars[0].aval.shape if eqn.outvars else ()
    if eqn.primitive.name == 'conv_general_dilated':
      kernel, spec = eqn.invars[1].aval.shape, eqn.params['dimension_numbers'].rhs_spec
      total += int(np.prod(out)) * int(np.prod(kernel)) // kernel[spec[0]]
    elif eqn.primitive.name == 'dot_general':
      (contract, _), _ = eqn.params['dimension_numbers']
      total += int(np.prod(out)) * int(np.prod([eqn.invars[0].aval.shape[d] for d in contract]))
    for value in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
    ):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        total += jaxpr_macs(inner)
  return total


# What thop 0.1.1 counts of a module, from its input and output; of the modules that are not here, nothing.
THOP = {
  layers.Conv: lambda m, x, y: y.size * m.size**2 * (1 if m.depthwise else x.shape[-1]),
  layers.Dense: lambda m, x, y: y.size * x.shape[-1],
  layers.BatchNorm: lambda m, x, y: 4 * x.size,
  layers.LayerNorm: lambda m, x, y: 4 * x.size,
  layers.AvgPool: lambda m, x, y: y.size,
  layers.AdaptiveAvgPool: lambda m, x, y: int((x.shape[1] * x.shape[2] / m.size**2 + 1) * y.size),
  layers.GlobalPool: lambda m, x, y: (x.shape[1] * x.shape[2] + 1) * y.size,
}


def thop_macs(model: nn.Module, size: int, unseen: str) -> int:
  """What the tool thop 0.1.1 reports of the original as its MACs, for one size x size image; papers print it as FLOPs.

  It adds a rule's number for each module of a known type, so that norms and pools count, but not what is computed outside of such modules. `unseen` is the
  regular expression of the backbone's module paths that stand for the latter (models.Backbone.unseen).
  """
  counted = []

  def count(call, args, kwargs, context):
    y, path = call(*args, **kwargs), '/'.join(context.module.path)
    rule = THOP.get(type(context.module))
    if (
      rule
      and context.method_name == '__call__'
      and not re.fullmatch(f'(backbone/)?({unseen})', path)
    ):
      counted.append(rule(context.module, args[0], y))
    return y

  with layers.formulation('plain'), nn.intercept_methods(count):
    shapes(model, size)
  return sum(counted)
