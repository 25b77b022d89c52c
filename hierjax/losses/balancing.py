"""Balancing tasks that share parameters: weights of K losses, and of the K gradients of what is shared, as pure functions.

A balancer is a pair (init, update), like an optax transformation. Some look at the losses and weigh everything alike. Others look at the Gram matrix G [K, K]
of the tasks' gradients and weigh these, d = sum_k w_k g_k (gradient surgery is such a sum too); the heads keep their own plain gradients then, where libraries
differ (LibMTL multiplies the heads' losses as well in some). IMTL, GradNorm and DB-MTL say what they do with the heads. What is to be solved is solved inside
jit on K x K arrays, with norms relative to the largest, so that no weight depends on the scale of all losses together. A task whose gradient is NEGLIGIBLE
beside the largest (no image of the batch has its label, say) takes no part in that.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from hierjax.core.errors import UserError

NEGLIGIBLE = (
  1e-6  # share of the largest gradient's norm that is no more than float32's rounding of it
)
RIDGE = (
  1e-6  # added to the diagonal of the cosines, which parallel and opposite gradients make singular
)
EPS = 1e-8  # added to a loss before its logarithm, as FAMO's and DB-MTL's authors do
LARGEST = (
  10.0  # of a learned log-scale of a loss, either way; a loss of 0 would let it grow for ever
)


class Balancer(NamedTuple):
  """init(tasks, shared=None) -> state; `shared` is a tree like one task's gradient, needed only where there is a `smooth`.

  update(losses [K], state, *, gram=None, accuracies=None, key=None) -> (loss_weights [K], shared_weights [K], state), of the whole batch's losses.
  loss_weights multiply the losses for all that is not shared, shared_weights the K gradients of what is. `accuracies` [K] are read by DTP, NaN for a task
  without one; `key`, the same on all devices, by RLW, PCGrad and GradVac.
  """

  init: Callable
  update: Callable
  reads_gram: bool = False  # update needs gram [K, K], the inner products of the K gradients
  smooth: Callable | None = (
    None  # (losses, K gradients, state) -> (gradients, state), before the Gram matrix is taken
  )


def _balancer(rule: Callable, init: Callable = lambda tasks, shared=None: {}, **fields) -> Balancer:
  """A balancer whose update is rule(losses, state, gram=, accuracies=, key=), in float32, without gradients and with exact products."""

  def update(losses, state, *, gram=None, accuracies=None, key=None):
    losses, gram, accuracies = jax.tree.map(
      lambda x: jax.lax.stop_gradient(jnp.asarray(x, jnp.float32)), (losses, gram, accuracies)
    )
    with jax.default_matmul_precision('highest'):  # a TPU multiplies in bfloat16 otherwise
      return rule(losses, state, gram=gram, accuracies=accuracies, key=key)

  return Balancer(init, update, **fields)


def _of_losses(rule: Callable, init: Callable = lambda tasks, shared=None: {}) -> Balancer:
  """From rule(losses, state, ...) -> (weights, state): the same weights for heads and shared parameters."""

  def both(losses, state, **given):
    weights, state = rule(losses, state, **given)
    return weights, weights, state

  return _balancer(both, init)


def _of_gram(rule: Callable) -> Balancer:
  """From rule(gram) -> weights of the gradients; the heads' are 1."""
  return _balancer(
    lambda losses, state, gram, **_: (jnp.ones_like(losses), rule(gram), state), reads_gram=True
  )


def gram(grads: Sequence[Any], axis: str | None = None) -> jax.Array:
  """Inner products of K trees: float32 [K, K]. With an axis of the mesh, each device has its rows' part of the gradients (those at the feature)."""
  grads = [jax.tree.map(lambda x: x.astype(jnp.float32), g) for g in grads]
  lower = {
    (i, j): optax.tree.vdot(grads[i], grads[j]) for i in range(len(grads)) for j in range(i + 1)
  }
  out = jnp.stack(
    [jnp.stack([lower[max(i, j), min(i, j)] for j in range(len(grads))]) for i in range(len(grads))]
  )
  return jax.lax.psum(out, axis) if axis else out


def _directions(gram: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The Gram matrix as cosines [K, K], norms [K] relative to the largest, and which tasks take part, bool [K].

  A task that does not has cosine 0 to the others and norm 1; where there is no gradient at all, all take part, and so.
  """
  largest = jnp.max(jnp.diagonal(gram))
  unit = gram / jnp.where(largest > 0, largest, 1)
  norms = jnp.sqrt(jnp.diagonal(unit))
  present = (norms > NEGLIGIBLE) | (largest <= 0)
  norms = jnp.where(present & (largest > 0), norms, 1)
  cosine = jnp.where(present[:, None] & present[None], unit / (norms[:, None] * norms[None]), 0)
  return jnp.where(jnp.eye(len(norms), dtype=bool), 1, jnp.clip(cosine, -1, 1)), norms, present


def cosines(gram: jax.Array) -> jax.Array:
  """The cosines [K, K] of a Gram matrix, 0 between a task without a gradient and the others."""
  return _directions(gram)[0]


class Shared(NamedTuple):
  """What `shared_gradient` makes of K tasks."""

  gradient: Any
  loss_weights: jax.Array  # [K], of all that is not shared
  shared_weights: jax.Array  # [K], which gave the gradient
  gram: jax.Array  # [K, K]
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
  """From the K gradients of what is shared to the one to use. `axis` as in `gram`."""
  if balancer.smooth:
    grads, state = balancer.smooth(losses, grads, state)
  products = gram(grads, axis)
  loss_weights, weights, state = balancer.update(
    losses, state, gram=products, accuracies=accuracies, key=key
  )
  return Shared(weighted(weights, grads), loss_weights, weights, products, state)


def weighted(weights: jax.Array, trees: Sequence[Any]) -> Any:
  """sum_k weights[k] trees[k], in the leaves' own types."""
  each = list(weights)  # once, not for each leaf: a program of a thousand slices less
  return jax.tree.map(
    lambda *leaves: sum(w * x for w, x in zip(each, leaves)).astype(leaves[0].dtype), *trees
  )


def _learn(
  tx: optax.GradientTransformation,
  gradient: jax.Array,
  value: jax.Array,
  opt_state: Any,
  when: jax.Array | bool = True,
) -> tuple[jax.Array, Any]:
  """One step of tx on `value`, or none."""
  updates, after = tx.update(gradient, opt_state, value)
  return jax.tree.map(
    lambda new, old: jnp.where(when, new, old),
    (optax.apply_updates(value, updates), after),
    (value, opt_state),
  )


# Of the losses alone.


def fixed() -> Balancer:
  """All weights 1: the losses come scaled by config.loss.weights, which is what both 'equal' and 'fixed' mean here."""
  return _of_losses(lambda losses, state, **_: (jnp.ones_like(losses), state))


def _log_scale(objective: Callable, weights: Callable, initial: float, lr: float) -> Balancer:
  """weights(s) of a scale s [K] that is learned by Adam along objective(s, losses)."""
  tx = optax.adam(lr)

  def init(tasks, shared=None):
    s = jnp.full(tasks, initial, jnp.float32)
    return {'log_scale': s, 'opt': tx.init(s)}

  def rule(losses, state, **_):
    s = state['log_scale']
    moved, opt = _learn(tx, jax.grad(objective)(s, losses), s, state['opt'])
    return weights(s), {'log_scale': jnp.clip(moved, -LARGEST, LARGEST), 'opt': opt}

  return _of_losses(rule, init)


def uw(lr: float = 0.025) -> Balancer:
  """Uncertainty weighting (arXiv 1705.07115, section 3.2, s = log sigma^2): minimises sum_k L_k / (2 e^s_k) + s_k / 2 over s too, from -.5.

  The loss's factor 1/2 is a regression's; the paper gives a classification 1, LibMTL all of them 1/2, as here. lr is what GradNorm's paper used for it.
  """
  return _log_scale(
    lambda s, losses: jnp.sum(losses / (2 * jnp.exp(s)) + s / 2),
    lambda s: 1 / (2 * jnp.exp(s)),
    -0.5,
    lr,
  )


def imtl_l(lr: float = 0.025) -> Balancer:
  """IMTL-L (Liu et al., ICLR 2021, with base e): minimises sum_k e^s_k L_k - s_k over s too, from 0. Of a single task L_k, e^s_k tends to 1 / L_k."""
  return _log_scale(lambda s, losses: jnp.sum(jnp.exp(s) * losses - s), jnp.exp, 0.0, lr)


def dwa(epoch_steps: int, temperature: float = 2.0) -> Balancer:
  """Dynamic weight average (arXiv 1803.10704, eq. 7): K softmax(r / T), r the ratio of a loss's means over the last two epochs; 1 in the first two."""

  def init(tasks, shared=None):
    return {
      'step': jnp.int32(0),
      'mean': jnp.zeros(tasks),
      'last': jnp.ones(tasks),
      'before': jnp.ones(tasks),
    }

  def rule(losses, state, **_):
    done = state['step'] % epoch_steps  # steps of this epoch that are in its mean
    begins = (done == 0) & (state['step'] > 0)
    before, last, mean = (
      jnp.where(begins, *pair)
      for pair in (
        (state['last'], state['before']),
        (state['mean'], state['last']),
        (0, state['mean']),
      )
    )
    mean += (losses - mean) / (done + 1)
    ratio = jnp.where(before > 0, last / jnp.maximum(before, 1e-30), 1)
    weights = jnp.where(
      state['step'] >= 2 * epoch_steps, len(losses) * jax.nn.softmax(ratio / temperature), 1
    )
    return weights, {'step': state['step'] + 1, 'mean': mean, 'last': last, 'before': before}

  return _of_losses(rule, init)


def dtp(gamma: float = 1.0, decay: float = 0.9) -> Balancer:
  """Dynamic task prioritization (Guo et al., ECCV 2018): -(1 - a)^gamma log a of the moving average a of a task's accuracy, not below .001.

  A task without accuracy weighs 1; one that is missing for a step keeps its average. The paper leaves gamma and decay (its 1 - alpha) open.
  """

  def rule(losses, state, accuracies, **_):
    new, seen = ~jnp.isnan(accuracies), state['seen'] > 0
    average = jnp.where(seen, decay * state['accuracy'] + (1 - decay) * accuracies, accuracies)
    average, seen = jnp.where(new, average, state['accuracy']), new | seen
    a = jnp.clip(average, 1e-3, 1)
    return jnp.where(seen, -((1 - a) ** gamma) * jnp.log(a), 1), {
      'accuracy': average,
      'seen': seen.astype(jnp.int32),
    }

  return _of_losses(
    rule,
    lambda tasks, shared=None: {'accuracy': jnp.zeros(tasks), 'seen': jnp.zeros(tasks, jnp.int32)},
  )


def awa(gamma: float = 0.5) -> Balancer:
  """HCAL's adaptive weights (S2, eq. 11): softmax(L / gamma) of the current losses."""
  return _of_losses(lambda losses, state, **_: (jax.nn.softmax(losses / gamma), state))


def rlw() -> Balancer:
  """Random loss weighting (arXiv 2111.10603): the softmax of K standard normal numbers, drawn each step."""
  return _of_losses(
    lambda losses, state, key, **_: (jax.nn.softmax(jax.random.normal(key, losses.shape)), state)
  )


def gls() -> Balancer:
  """Geometric loss strategy (Chennupati et al., CVPRW 2019): trains (prod_k L_k)^(1/K), whose gradient has these weights; a loss of 0 takes no part."""

  def rule(losses, state, **_):
    present = losses > 0
    log, count = jnp.log(losses + EPS), jnp.maximum(jnp.sum(present), 1)
    return jnp.where(
      present, jnp.exp(jnp.sum(jnp.where(present, log, 0)) / count - log) / count, 0
    ), state

  return _of_losses(rule)


def famo(lr: float = 0.025, decay: float = 1e-3) -> Balancer:
  """FAMO (arXiv 2306.03792, algorithm 1, the least losses taken as 0): weights z_k / L_k over their sum, z = softmax(x).

  Adam lowers x where log L falls fastest, with weight decay in its gradient. The loss after an update is that of the next batch here, not a second forward pass
  over the same one. A loss of 0 takes no part.
  """
  tx = optax.chain(optax.add_decayed_weights(decay), optax.adam(lr))

  def rule(losses, state, **_):
    present, known = losses > 0, state['losses'] > 0
    fall = jnp.where(present & known, jnp.log(state['losses'] + EPS) - jnp.log(losses + EPS), 0)
    gradient = jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) * fall))(state['logits'])
    logits, opt = _learn(tx, gradient, state['logits'], state['opt'], when=jnp.any(known))
    weights = jax.nn.softmax(jnp.where(present, logits - jnp.log(losses + EPS), -1e9))
    return weights, {
      'logits': logits,
      'opt': opt,
      'losses': jnp.where(present, losses, state['losses']),
    }

  return _of_losses(
    rule,
    lambda tasks, shared=None: {
      'logits': jnp.zeros(tasks),
      'opt': tx.init(jnp.zeros(tasks)),
      'losses': jnp.zeros(tasks),
    },
  )


# Of the gradients.


def gradnorm(epoch_steps: int = 1, alpha: float = 1.5, lr: float = 0.025) -> Balancer:
  """GradNorm (arXiv 1711.02257, eqs 1-2): weights w = K softmax(s) of both losses and gradients, s from 1 by Adam with the paper's lr.

  It minimises sum_k | w_k |g_k| - mean_j(w_j |g_j|) r_k^alpha |, the second term constant, r_k = L_k / L_k(0) over its mean. L(0) is the mean over the first
  epoch_steps, with weights 1: one step in the paper, an epoch in LibMTL, as is the softmax (the paper rescales free weights to sum to K).
  """
  tx = optax.adam(lr)

  def init(tasks, shared=None):
    return {
      'step': jnp.int32(0),
      'first': jnp.zeros(tasks),
      'logits': jnp.ones(tasks),
      'opt': tx.init(jnp.ones(tasks)),
    }

  def rule(losses, state, gram, **_):
    step, started = state['step'], state['step'] >= epoch_steps
    first = jnp.where(
      started, state['first'], state['first'] + (losses - state['first']) / (step + 1)
    )
    norms = jnp.sqrt(jnp.diagonal(gram))
    ratio = jnp.where(first > 0, losses / jnp.maximum(first, 1e-30), 1)
    rate = ratio / jnp.where(jnp.any(ratio > 0), jnp.mean(ratio), 1)
    weights = len(losses) * jax.nn.softmax(state['logits'])
    target = jnp.mean(weights * norms) * rate**alpha
    gradient = jax.grad(
      lambda s: jnp.sum(jnp.abs(len(losses) * jax.nn.softmax(s) * norms - target))
    )(state['logits'])
    logits, opt = _learn(tx, gradient, state['logits'], state['opt'], when=started)
    return weights, weights, {'step': step + 1, 'first': first, 'logits': logits, 'opt': opt}

  return _balancer(rule, init, reads_gram=True)


def _orders(key: jax.Array, tasks: int) -> jax.Array:
  """Column i: the tasks in the random order in which they meet gradient i. int [K, K]; the turn of i itself is to be skipped."""
  return jnp.argsort(jax.random.uniform(key, (tasks, tasks)), axis=0)


def pcgrad() -> Balancer:
  """PCGrad (arXiv 2001.06782, algorithm 1): each gradient loses its part against each other one, in random order; then their sum.

  (LibMTL has the task itself in that order, which matters where what is left of a gradient opposes it.)
  """

  def rule(losses, state, gram, key, **_):
    cosine, norms, _ = _directions(gram)
    tasks = len(norms)
    rows = jnp.eye(tasks)  # row i: what g_i / |g_i| has become, as a sum of unit gradients
    for other in _orders(key, tasks):
      against = jnp.where(
        other != jnp.arange(tasks), jnp.minimum(jnp.sum(rows * cosine[other], axis=1), 0), 0
      )
      rows -= against[:, None] * jax.nn.one_hot(other, tasks)
    return jnp.ones_like(losses), norms @ rows / norms, state

  return _balancer(rule, reads_gram=True)


def gradvac(beta: float = 0.5) -> Balancer:
  """Gradient Vaccine (arXiv 2010.05874, algorithm 1) over all that is shared: where a pair's cosine is below its moving average, g_i gets the part of g_j that
  brings it there. The average, from 0, moves by beta each step (LibMTL's only where it was not reached); as a goal it is at most .999.
  """

  def rule(losses, state, gram, key, **_):
    cosine, norms, present = _directions(gram)
    tasks = len(norms)
    rows, goals = jnp.eye(tasks), state['cosines']
    for other in _orders(key, tasks):
      length = jnp.sqrt(jnp.maximum(jnp.sum(rows * (rows @ cosine), axis=1), 1e-12))
      now = jnp.clip(jnp.sum(rows * cosine[other], axis=1) / length, -1, 1)
      pair = jax.nn.one_hot(other, tasks)
      goal = jnp.clip(jnp.sum(goals * pair, axis=1), -0.999, 0.999)
      meets = present & present[other] & (other != jnp.arange(tasks))
      added = length * (goal * jnp.sqrt((1 - now**2) / (1 - goal**2)) - now)
      rows += jnp.where(meets & (now < goal), added, 0)[:, None] * pair
      goals += jnp.where(meets, beta, 0)[:, None] * pair * (now[:, None] - goals)
    return jnp.ones_like(losses), norms @ rows / norms, {'cosines': goals}

  return _balancer(
    rule, lambda tasks, shared=None: {'cosines': jnp.zeros((tasks, tasks))}, reads_gram=True
  )


def _simplex(gram: jax.Array, c: float | None) -> tuple[jax.Array, jax.Array]:
  """The w >= 0 with sum 1 of the least <g_s, g_w> + c |g_s| |g_w|, where g_w = sum_k w_k g_k and g_s = sum_k g_k; where c is None, of the least |g_w|.

  Exact, as there are few tasks: on the face of the simplex with the tasks S, in y = w * norms, R_SS q = 1 / norms and R_SS p = R g_s, Lagrange's point is
  q / A - p' / sqrt(A (c^2 |g_s|^2 - p'R p')), with A = q / norms and p' the part of p that keeps the sum of w; the best one inside its face is the solution.
  Returns w [K] and |g_s| / |g_w|, |g_w| taken as at least 1e-3 of what it would be if nothing cancelled.
  """
  cosine, norms, present = _directions(gram)
  tasks, all_of_it = len(norms), jnp.where(present, norms, 0)
  length = jnp.sqrt(jnp.maximum(all_of_it @ cosine @ all_of_it, 0))
  linear, kappa = (jnp.zeros(tasks), 1.0) if c is None else (cosine @ all_of_it, c * length)
  sets = jnp.asarray(
    np.arange(1, 2**tasks)[:, None] >> np.arange(tasks) & 1, jnp.float32
  )  # [faces, K]
  matrix = (
    sets[:, :, None] * sets[:, None] * cosine[None]
    + jnp.eye(tasks)[None] * (1 - sets + RIDGE)[:, None]
  )
  solved = jnp.linalg.solve(matrix, sets[:, :, None] * jnp.stack([1 / norms, linear], 1)[None])
  q, p = solved[..., 0], solved[..., 1]
  a = q @ (1 / norms)
  a = jnp.where(a > 0, a, jnp.inf)[:, None]
  p -= q * (p @ (1 / norms))[:, None] / a
  root = a * (kappa**2 - jnp.sum(p * (p @ cosine), axis=1, keepdims=True))
  y = jnp.concatenate(
    [q / a, jnp.where(root > 0, q / a - p / jnp.sqrt(jnp.where(root > 0, root, 1)), -1)]
  )
  inside = (
    jnp.isfinite(y).all(1)
    & (y >= 0).all(1)
    & (y > 0).any(1)
    & jnp.tile((present[None] | (sets == 0)).all(1), 2)
  )
  y = jnp.where(inside[:, None], y, 0)
  lengths = jnp.sqrt(jnp.maximum(jnp.sum(y * (y @ cosine), axis=1), 0))
  best = jnp.argmin(jnp.where(inside, y @ linear + kappa * lengths, jnp.inf))
  return y[best] / norms, length / jnp.maximum(lengths[best], 1e-3 * jnp.sum(y[best]))


def mgda() -> Balancer:
  """MGDA (arXiv 1810.04650, eq. 3): the shortest of the averages of the gradients, weights of sum 1. The gradients are not normalised before."""
  return _of_gram(lambda gram: _simplex(gram, None)[0])


def cagrad(c: float = 0.4) -> Balancer:
  """CAGrad (arXiv 2110.14048, algorithm 1), 0 <= c < 1: (g_s + c |g_s| g_w / |g_w|) / (1 + c^2) with g_s the sum of the gradients and w that of the dual.

  Of the sum as in the authors' code, so that c = 0 is plain training; LibMTL's is of the mean, 1/K of it, with c = .5.
  """

  def rule(gram):
    w, ratio = _simplex(gram, c)
    return (1 + c * ratio * w) / (1 + c**2)

  return _of_gram(rule)


def imtl_g() -> Balancer:
  """IMTL-G (Liu et al., ICLR 2021): the d = sum_k w_k g_k, sum of w 1, of equal projections on all unit gradients, which is w_k ~ (R^-1 1)_k / |g_k|.

  w can be negative. Where its terms cancel, so that a sum of 1 would mean going uphill for all or weights above 100 in sum, their sum is left smaller.
  """

  def rule(gram):
    cosine, norms, present = _directions(gram)
    w = jnp.where(
      present,
      jnp.linalg.solve(cosine + RIDGE * jnp.eye(len(norms)), jnp.ones_like(norms)) / norms,
      0,
    )
    return w / jnp.maximum(jnp.abs(jnp.sum(w)), 0.01 * jnp.sum(jnp.abs(w)))

  return _of_gram(rule)


def imtl(lr: float = 0.025) -> Balancer:
  """IMTL (Liu et al., ICLR 2021): IMTL-G of the gradients of the losses as IMTL-L scales them; the heads learn from these too."""
  of_losses, of_gradients = imtl_l(lr), imtl_g()

  def rule(losses, state, gram, **_):
    scale, _, state = of_losses.update(losses, state)
    _, weights, _ = of_gradients.update(losses, {}, gram=gram * scale[:, None] * scale[None])
    return scale, scale * weights, state

  return _balancer(rule, of_losses.init, reads_gram=True)


def aligned() -> Balancer:
  """Aligned-MTL (arXiv 2305.19000): all singular values of the gradients set to the least, w = s_min V S^-1 V' 1 with V S^2 V' = G.

  Of the values above float32's precision, as in the authors' code.
  """

  def rule(gram):
    largest = jnp.max(jnp.diagonal(gram))
    values, vectors = jnp.linalg.eigh(gram / jnp.where(largest > 0, largest, 1))
    kept = values > jnp.max(values) * len(values) * jnp.finfo(jnp.float32).eps
    least = jnp.min(jnp.where(kept, values, jnp.inf))
    return vectors @ (
      jnp.where(kept, jnp.sqrt(least / jnp.where(kept, values, 1)), 0) * jnp.sum(vectors, axis=0)
    )

  return _of_gram(rule)


def fairgrad(alpha: float = 1.0) -> Balancer:
  """FairGrad (arXiv 2402.15638): the w > 0 with G w = w^(-1/alpha), where alpha = 1 is Nash-MTL; of G over its Frobenius norm.

  With that norm (which Nash-MTL's authors take, FairGrad's not) losses that are all multiplied by a number leave w as it is. With p = 1 / alpha and
  m = |g|^((p-1)/(p+1)), w = |g|^(-2/(p+1)) x for the x > 0 of the least (mx)'R(mx) / 2 + sum_k m_k^2 x_k^(1-p) / (p-1), a convex function: Newton's method from
  x = 1, its steps damped as the third derivative asks where an x falls, which keeps x positive. For alpha > 1 the step grows with the tasks' conflict: its
  authors clip it to norm 1 (config.optim.clip).
  """
  power = 1 / alpha

  def rule(gram):
    cosine, norms, present = _directions(gram)
    size = jnp.where(present, norms, 0)
    norms = norms / jnp.sqrt(jnp.linalg.norm(cosine * size[:, None] * size[None]))
    m, ridged = norms ** ((power - 1) / (power + 1)), cosine + RIDGE * jnp.eye(len(norms))
    least = 1e-20 ** (
      1 / (power + 1)
    )  # x stays in float32's range where a large alpha makes x^-power nearly constant

    def newton(carry):
      x, _, steps = carry
      change = (
        jnp.linalg.solve(
          ridged + jnp.diag(power * x ** (-power - 1)), m * x**-power - ridged @ (m * x)
        )
        / m
      )
      down = jnp.maximum(jnp.max(-change / x), 0)
      return (
        jnp.clip(x + change / (1 + 1.1 * down * max((power + 1) / 2, 1)), least, 1e20),
        jnp.max(jnp.abs(change / x)),
        steps + 1,
      )

    x, _, _ = jax.lax.while_loop(
      lambda carry: (carry[1] > 1e-3) & (carry[2] < 100),
      newton,
      (jnp.ones_like(norms), jnp.float32(jnp.inf), 0),
    )
    return jnp.where(present, norms ** (-2 / (power + 1)) * x, 0)

  return _of_gram(rule)


def nash() -> Balancer:
  """Nash-MTL (arXiv 2202.01017, claim 3.2): G w = 1 / w, of G over its Frobenius norm as in the authors' code, where a sequence of cvxpy programs solves it.

  They also clip the result to norm 1, for which there is config.optim.clip.
  """
  return fairgrad(1.0)


def db_mtl(beta: float = 0.9, power: float = 0.5) -> Balancer:
  """DB-MTL (arXiv 2308.12029, algorithm 1): the gradients of log L_k, averaged over steps n (beta / n^power of the past), scaled to the largest's norm.

  The heads learn from log L_k too: weight 1 / L_k. The state holds K float32 gradients of what is shared, which must be parameters: a feature's gradients
  belong to the images of their batch.
  """

  def init(tasks, shared=None):
    return {
      'step': jnp.int32(0),
      'grads': [
        jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shared) for _ in range(tasks)
      ],
    }

  def smooth(losses, grads, state):
    past, scale = (
      beta / (state['step'] + 1).astype(jnp.float32) ** power,
      1 / (jax.lax.stop_gradient(losses) + EPS),
    )
    of_log = [jax.tree.map(lambda g: scale[k] * g, tree) for k, tree in enumerate(grads)]
    grads = jax.tree.map(lambda old, new: past * old + (1 - past) * new, state['grads'], of_log)
    return grads, {'step': state['step'] + 1, 'grads': grads}

  return _balancer(
    lambda losses, state, gram, **_: (1 / (losses + EPS), 1 / _directions(gram)[1], state),
    init,
    reads_gram=True,
    smooth=smooth,
  )


BALANCERS: Mapping[str, Callable[..., Balancer]] = {
  'equal': fixed,
  'fixed': fixed,
  'uw': uw,
  'dwa': dwa,
  'dtp': dtp,
  'gradnorm': gradnorm,
  'awa': awa,
  'rlw': rlw,
  'gls': gls,
  'famo': famo,
  'pcgrad': pcgrad,
  'gradvac': gradvac,
  'cagrad': cagrad,
  'imtl': imtl,
  'imtl_l': imtl_l,
  'imtl_g': imtl_g,
  'mgda': mgda,
  'nash': nash,
  'aligned': aligned,
  'fairgrad': fairgrad,
  'db_mtl': db_mtl,
}


def build(b: ConfigDict, loss_weights: Sequence, epoch_steps: int) -> Balancer | None:
  """The balancer that `config.balance` names; None where nothing but loss.weights weighs. UserError for options that do not fit."""
  factories = {name: inspect.signature(factory).parameters for name, factory in BALANCERS.items()}
  given = {k: v for k, v in b.items() if k not in ('name', 'at') and v is not None}
  for k, v in given.items():
    if k not in factories[b.name]:
      raise UserError(
        f'--config.balance.{k}={v!r} is only valid with --config.balance.name='
        f'{", ".join(name for name in factories if k in factories[name])}, not with {b.name}'
      )
  if b.name == 'equal' and loss_weights:
    raise UserError(
      f'--config.balance.name=equal leaves no room for --config.loss.weights={dict(loss_weights)}; choose fixed'
    )
  if b.name in ('equal', 'fixed'):
    return None
  balancer = BALANCERS[b.name](
    **given, **({'epoch_steps': epoch_steps} if 'epoch_steps' in factories[b.name] else {})
  )
  if balancer.smooth and b.at == 'features':
    raise UserError(
      f'--config.balance.name={b.name} averages gradients over steps, and those of features belong to one batch; set --config.balance.at=weights'
    )
  return balancer
