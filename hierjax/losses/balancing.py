"""Combine the losses and gradients of tasks that share parameters, as config.balance says."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from hierjax.core.errors import UserError
from hierjax.losses import solvers
from hierjax.losses.balancers import BALANCERS, Balancer

# (method, option) where 0 is not possible
DIVISORS = (('awa', 'gamma'), ('fairgrad', 'alpha'))


def gram(grads: Sequence[Any], axis: str | None = None) -> jax.Array:
  """Compute the inner products of K trees, float32 [K, K].

  Args:
    grads: K trees.
    axis: of the mesh, where each device has its rows' part of the gradients.
  """
  grads, n = [jax.tree.map(lambda x: x.astype(jnp.float32), g) for g in grads], len(grads)
  lower = {(i, j): optax.tree.vdot(grads[i], grads[j]) for i in range(n) for j in range(i + 1)}
  rows = [jnp.stack([lower[max(i, j), min(i, j)] for j in range(n)]) for i in range(n)]
  out = jnp.stack(rows)
  return jax.lax.psum(out, axis) if axis else out


def cosines(gram: jax.Array) -> jax.Array:
  """Compute the cosines [K, K] of a Gram matrix, 0 between a task without gradient and others."""
  return solvers.directions(gram)[0]


class Shared(NamedTuple):
  """The result of `shared_gradient`.

  Attributes:
    gradient: the tree to use.
    loss_weights: [K], of all that is not shared.
    shared_weights: [K], which gave the gradient.
    gram: [K, K].
    state: the balancer's.
  """

  gradient: Any
  loss_weights: jax.Array
  shared_weights: jax.Array
  gram: jax.Array
  state: Any


def shared_gradient(
  balancer: Balancer,
  losses: jax.Array,
  grads: Sequence[Any],
  state: Any,
  *,
  axis: str | None = None,
  accuracies: jax.Array | None = None,
  key: jax.Array | None = None,
) -> Shared:
  """Combine the K gradients of what is shared.

  Args:
    balancer: the method.
    losses: [K], of the whole batch.
    grads: K trees.
    state: the balancer's.
    axis: as in `gram`.
    accuracies: [K], NaN for a task without.
    key: for methods that draw, the same on all devices.
  """
  if balancer.smooth:
    grads, state = balancer.smooth(losses, grads, state)
  products = gram(grads, axis)
  loss_weights, weights, state = balancer.update(
    losses, state, gram=products, accuracies=accuracies, key=key
  )
  return Shared(weighted(weights, grads), loss_weights, weights, products, state)


def weighted(weights: jax.Array, trees: Sequence[Any]) -> Any:
  """Compute sum_k weights[k] trees[k], in the leaves' own types.

  Args:
    weights: [K].
    trees: K trees.
  """
  # sliced once, not for each leaf, which would make a program of a thousand slices
  each = list(weights)
  return jax.tree.map(
    lambda *leaves: sum(w * x for w, x in zip(each, leaves)).astype(leaves[0].dtype), *trees
  )


def build(b: ConfigDict, has_loss_weights: bool, epoch_steps: int) -> Balancer | None:
  """Build the balancer of config.balance.

  Args:
    b: config.balance; an option that is None has the method's own default.
    has_loss_weights: whether loss.weights is set.
    epoch_steps: number of steps in an epoch.

  Returns:
    The balancer; None for 'fixed' and 'equal', where loss.weights alone weighs.

  Raises:
    UserError: an option that the method does not read, or that does not fit another one.
  """
  readers = {name: inspect.signature(factory).parameters for name, factory in BALANCERS.items()}
  options = {k: v for k, v in b.items() if k not in ('name', 'at') and v is not None}
  for k, v in options.items():
    if (b.name, k) in DIVISORS and not v:
      raise UserError(
        f'--config.balance.{k}={v!r} must be above 0 for {b.name}, which divides by it'
      )
    if k not in readers[b.name]:
      raise UserError(
        f'--config.balance.{k}={v!r} is only valid with --config.balance.name='
        f'{", ".join(name for name in readers if k in readers[name])}, not with {b.name}'
      )
  if b.name == 'equal' and has_loss_weights:
    raise UserError(
      '--config.balance.name=equal excludes --config.loss.weights; choose --config.balance.name='
      'fixed'
    )
  if b.name in ('equal', 'fixed'):
    return None
  if 'epoch_steps' in readers[b.name]:
    options['epoch_steps'] = epoch_steps
  balancer = BALANCERS[b.name](**options)
  if balancer.smooth and b.at == 'features':
    raise UserError(
      f'--config.balance.name={b.name} averages gradients over steps, and those of features belong '
      'to one batch; set --config.balance.at=weights'
    )
  return balancer
