"""Balancing tasks that share parameters: weights of K losses, and of the K gradients of what is shared, as pure functions.

A balancer is a pair (init, update), like an optax transformation, whose state is a tree of arrays of fixed shapes. Three kinds: those that look at the losses
weigh everything alike; those that look at the K x K Gram matrix G of the tasks' gradients weigh these gradients, d = sum_k w_k g_k, and leave the heads their
own plain ones (libraries differ here: LibMTL's Nash-MTL and FairGrad multiply the heads' losses too); IMTL, GradNorm and DB-MTL say how they do both. Gradient
surgery (PCGrad, GradVac) is such a weighted sum as well. Whatever is solved is solved inside jit, on K x K arrays, with norms relative to the largest gradient,
so that the weights do not depend on the scale of the losses. A task whose gradient is below NEGLIGIBLE of the largest (no image of the batch has its label, say)
takes no part in what is solved.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from hierjax.config import UserError

NEGLIGIBLE = 1e-6  # of the largest gradient's norm; below it, a gradient is float32's rounding of the others'
RIDGE = 1e-5  # on the diagonal of the cosines: keeps what parallel and opposite gradients make singular at what float32 can solve
EPS = 1e-8  # added to a loss before its logarithm, as FAMO's and DB-MTL's authors do
LARGEST = 10.0  # of a learned log-scale of a loss, either way: without it, a loss of 0 would let it grow for ever


class Balancer(NamedTuple):
  """init(tasks, shared=None) -> state; `shared` is a tree like one task's gradient, needed only where there is a `smooth`.

  update(losses [K], state, *, gram=None, accuracies=None, key=None) -> (loss_weights [K], shared_weights [K], state). The losses (and accuracies) are those of
  the whole batch; loss_weights multiply the losses for all that is not shared, shared_weights the K gradients of what is. `accuracies` [K] in 0..1 are read by
  DTP, NaN for a task without one; `key` by RLW, PCGrad, GradVac.
  """

  init: Callable
  update: Callable
  reads_gram: bool = False  # update needs gram [K, K], the inner products of the K gradients
  smooth: Callable | None = None  # (losses, K gradients, state) -> (gradients, state), before the Gram matrix is taken


def _balancer(rule, start=None, **fields) -> Balancer:
  """A balancer from rule(losses, state, *, gram, accuracies, key), in float32 and without gradient, and start(tasks) -> state where it has one."""

  def update(losses, state, *, gram=None, accuracies=None, key=None):
    losses, gram, accuracies = jax.tree.map(lambda x: jax.lax.stop_gradient(jnp.asarray(x, jnp.float32)), (losses, gram, accuracies))
    with jax.default_matmul_precision('highest'):  # a TPU multiplies in bfloat16 otherwise
      return rule(losses, state, gram=gram, accuracies=accuracies, key=key)

  return Balancer(lambda tasks, shared=None: start(tasks) if start else {}, update, **fields)


def gram(grads: Sequence[Any], axis: str | None = None) -> jax.Array:
  """Inner products of K trees: float32 [K, K]. With an axis of the mesh, each device has its rows' part of the gradients (those at the feature)."""
  grads = [jax.tree.map(lambda x: x.astype(jnp.float32), g) for g in grads]
  lower = {(i, j): optax.tree.vdot(grads[i], grads[j]) for i in range(len(grads)) for j in range(i + 1)}
  out = jnp.stack([jnp.stack([lower[max(i, j), min(i, j)] for j in range(len(grads))]) for i in range(len(grads))])
  return jax.lax.psum(out, axis) if axis else out


def _directions(gram: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The Gram matrix as cosines [K, K], norms [K] relative to the largest, and which tasks take part: bool [K].

  A task that does not has cosine 0 to the others and norm 1; without any gradient all take part, so, at right angles.
  """
  square = jnp.diagonal(gram)
  largest = jnp.max(square)
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


def shared_gradient(balancer: Balancer, losses: jax.Array, grads: Sequence[Any], state: Any, *, axis: str | None = None,
                    accuracies: jax.Array | None = None, key: jax.Array | None = None) -> Shared:
  """From the K gradients of what is shared to the one to use. Axis as in `gram`."""
  if balancer.smooth:
    grads, state = balancer.smooth(losses, grads, state)
  products = gram(grads, axis)
  loss_weights, weights, state = balancer.update(losses, state, gram=products, accuracies=accuracies, key=key)
  return Shared(weighted(weights, grads), loss_weights, weights, products, state)


def weighted(weights: jax.Array, trees: Sequence[Any]) -> Any:
  """sum_k weights[k] trees[k], in the leaves' own types."""
  return jax.tree.map(lambda *leaves: sum(w * x for w, x in zip(weights, leaves)).astype(leaves[0].dtype), *trees)


def _learn(tx: optax.GradientTransformation, gradient: jax.Array, value: jax.Array, opt_state: Any, when: jax.Array | bool = True) -> tuple[jax.Array, Any]:
  """One step of tx on `value`, or none."""
  updates, after = tx.update(gradient, opt_state, value)
  return jax.tree.map(lambda new, old: jnp.where(when, new, old), (optax.apply_updates(value, updates), after), (value, opt_state))


# Of the losses alone.


def fixed() -> Balancer:
  """All weights 1: the losses come scaled by config.loss.weights, which is what 'equal' and 'fixed' both mean here."""
  return _balancer(lambda losses, state, **_: (jnp.ones_like(losses), jnp.ones_like(losses), state))


def uw(lr: float = 0.025) -> Balancer:
  """Uncertainty weighting (arXiv 1705.07115, section 3.2, s = log sigma^2): minimises sum_k L_k / (2 e^s_k) + s_k / 2 over s too, from -.5, by Adam.

  The loss's factor 1/2 is a regression's; the paper gives a classification 1, LibMTL all of them 1/2, as here. The rate is that of GradNorm's paper for it.
  """
  tx = optax.adam(lr)

  def start(tasks):
    s = jnp.full(tasks, -0.5)
    return {'log_variance': s, 'opt': tx.init(s)}

  def rule(losses, state, **_):
    s = state['log_variance']
    gradient = jax.grad(lambda s: jnp.sum(losses / (2 * jnp.exp(s)) + s / 2))(s)
    moved, opt = _learn(tx, gradient, s, state['opt'])
    weights = 1 / (2 * jnp.exp(s))
    return weights, weights, {'log_variance': jnp.clip(moved, -LARGEST, LARGEST), 'opt': opt}

  return _balancer(rule, start)


def imtl_l(lr: float = 0.025) -> Balancer:
  """IMTL-L (Liu et al., ICLR 2021, with base e): weights e^s_k; minimises sum_k e^s_k L_k - s_k over s too, from 0, by Adam."""
  tx = optax.adam(lr)

  def start(tasks):
    return {'log_scale': jnp.zeros(tasks), 'opt': tx.init(jnp.zeros(tasks))}

  def rule(losses, state, **_):
    s = state['log_scale']
    moved, opt = _learn(tx, jax.grad(lambda s: jnp.sum(jnp.exp(s) * losses - s))(s), s, state['opt'])
    return jnp.exp(s), jnp.exp(s), {'log_scale': jnp.clip(moved, -LARGEST, LARGEST), 'opt': opt}

  return _balancer(rule, start)


def dwa(epoch_steps: int, temperature: float = 2.0) -> Balancer:
  """Dynamic weight average (arXiv 1803.10704, eq. 7): K softmax(r / T), r the ratio of a loss's means over the last two epochs; 1 in the first two."""

  def start(tasks):
    return {'step': jnp.int32(0), 'mean': jnp.zeros(tasks), 'last': jnp.ones(tasks), 'before': jnp.ones(tasks)}

  def rule(losses, state, **_):
    done = state['step'] % epoch_steps  # steps of this epoch that `mean` has
    begins = (done == 0) & (state['step'] > 0)
    last, before = (jnp.where(begins, state[new], state[old]) for new, old in (('mean', 'last'), ('last', 'before')))
    mean = jnp.where(begins, 0, state['mean'])
    mean += (losses - mean) / (done + 1)
    rate = jnp.where(before > 0, last / jnp.maximum(before, 1e-30), 1)
    weights = jnp.where(state['step'] >= 2 * epoch_steps, len(losses) * jax.nn.softmax(rate / temperature), 1)
    return weights, weights, {'step': state['step'] + 1, 'mean': mean, 'last': last, 'before': before}

  return _balancer(rule, start)


def dtp(gamma: float = 1.0, decay: float = 0.9) -> Balancer:
  """Dynamic task prioritization (Guo et al., ECCV 2018): -(1 - a)^gamma log a of the moving average a of a task's accuracy, at least .001.

  A task without accuracy weighs 1, and an accuracy that is missing in one batch leaves the average. The paper leaves gamma and decay (its 1 - alpha) open.
  """

  def start(tasks):
    return {'accuracy': jnp.zeros(tasks), 'seen': jnp.zeros(tasks, jnp.int32)}

  def rule(losses, state, accuracies, **_):
    new, seen = ~jnp.isnan(accuracies), state['seen']
    average = jnp.where(new, jnp.where(seen > 0, decay * state['accuracy'] + (1 - decay) * accuracies, accuracies), state['accuracy'])
    seen = jnp.where(new, 1, seen)
    a = jnp.clip(average, 1e-3, 1)
    weights = jnp.where(seen > 0, -((1 - a) ** gamma) * jnp.log(a), 1)
    return weights, weights, {'accuracy': average, 'seen': seen}

  return _balancer(rule, start)


def awa(gamma: float = 0.5) -> Balancer:
  """HCAL's adaptive weights (S2, eq. 11): softmax(L / gamma) of the current losses."""

  def rule(losses, state, **_):
    weights = jax.nn.softmax(losses / gamma)
    return weights, weights, state

  return _balancer(rule)


def rlw() -> Balancer:
  """Random loss weighting (arXiv 2111.10603): softmax of K standard normal numbers, drawn each step."""

  def rule(losses, state, key, **_):
    weights = jax.nn.softmax(jax.random.normal(key, losses.shape))
    return weights, weights, state

  return _balancer(rule)


def gls() -> Balancer:
  """Geometric loss strategy (Chennupati et al., CVPRW 2019): the gradient of (prod_k L_k)^(1/K); a loss of 0 takes no part.

  (LibMTL's logged weights lack the root; what it trains with is this.)
  """

  def rule(losses, state, **_):
    present = losses > 0
    log, count = jnp.log(losses + EPS), jnp.maximum(jnp.sum(present), 1)
    weights = jnp.where(present, jnp.exp(jnp.sum(jnp.where(present, log, 0)) / count - log) / count, 0)
    return weights, weights, state

  return _balancer(rule)


def famo(lr: float = 0.025, decay: float = 1e-3) -> Balancer:
  """FAMO (arXiv 2306.03792, algorithm 1, least losses 0): weights proportional to z / L with z = softmax(logits), sum 1.

  Adam moves the logits against z's change by log L_before - log L_after, so that z grows where a loss falls slowly. The loss after an update is that of the next
  batch here, not a second forward pass over the same one. A loss of 0 takes no part.
  """
  tx = optax.chain(optax.add_decayed_weights(decay), optax.adam(lr))

  def start(tasks):
    return {'logits': jnp.zeros(tasks), 'opt': tx.init(jnp.zeros(tasks)), 'losses': jnp.zeros(tasks)}

  def rule(losses, state, **_):
    present, known = losses > 0, state['losses'] > 0
    fall = jnp.where(present & known, jnp.log(state['losses'] + EPS) - jnp.log(losses + EPS), 0)
    gradient = jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) * fall))(state['logits'])
    logits, opt = _learn(tx, gradient, state['logits'], state['opt'], when=jnp.any(known))
    weights = jax.nn.softmax(jnp.where(present, logits - jnp.log(losses + EPS), -1e9))
    return weights, weights, {'logits': logits, 'opt': opt, 'losses': jnp.where(present, losses, state['losses'])}

  return _balancer(rule, start)


# Of the gradients.


def gradnorm(epoch_steps: int = 1, alpha: float = 1.5, lr: float = 0.025) -> Balancer:
  """GradNorm (arXiv 1711.02257, eqs 1-2): weights w_k = K softmax(s)_k of losses and gradients, s from 1 by Adam (lr as in the paper).

  It minimises sum_k | w_k |g_k| - mean_j(w_j |g_j|) r_k^alpha |, the second term constant, r_k = L_k / L_k(0) over its mean. L(0) is the mean over the first
  epoch_steps, in which the weights are 1: 1 is the paper's reading, an epoch LibMTL's, as is the softmax (the paper rescales free weights to sum to K).
  """
  tx = optax.adam(lr)

  def start(tasks):
    return {'step': jnp.int32(0), 'first': jnp.zeros(tasks), 'logits': jnp.ones(tasks), 'opt': tx.init(jnp.ones(tasks))}

  def rule(losses, state, gram, **_):
    step, started = state['step'], state['step'] >= epoch_steps
    first = jnp.where(started, state['first'], state['first'] + (losses - state['first']) / (step + 1))
    norms = jnp.sqrt(jnp.diagonal(gram))
    progress = jnp.where(first > 0, losses / jnp.maximum(first, 1e-30), 1)
    rate = progress / jnp.where(jnp.any(progress > 0), jnp.mean(progress), 1)
    weights = len(losses) * jax.nn.softmax(state['logits'])
    target = jnp.mean(weights * norms) * rate**alpha
    gradient = jax.grad(lambda s: jnp.sum(jnp.abs(len(losses) * jax.nn.softmax(s) * norms - target)))(state['logits'])
    logits, opt = _learn(tx, gradient, state['logits'], state['opt'], when=started)
    return weights, weights, {'step': step + 1, 'first': first, 'logits': logits, 'opt': opt}

  return _balancer(rule, start, reads_gram=True)


def _orders(key: jax.Array, tasks: int) -> jax.Array:
  """Column i: the tasks in the random order in which they meet gradient i. int [K, K]; the turn of i itself is to be skipped."""
  return jnp.argsort(jax.random.uniform(key, (tasks, tasks)), axis=0)


def pcgrad() -> Balancer:
  """PCGrad (arXiv 2001.06782, algorithm 1): from each gradient its part against each other one is taken away, in random order; then their sum.

  (LibMTL's order has the task itself too, which matters where what is left of a gradient opposes the gradient itself.)
  """

  def rule(losses, state, gram, key, **_):
    cosine, norms, _ = _directions(gram)
    tasks = len(norms)
    rows = jnp.eye(tasks)  # row i: the changed g_i / |g_i|, as a sum of unit gradients
    for other in _orders(key, tasks):
      product = jnp.sum(rows * cosine[other], axis=1)
      against = jnp.where(other != jnp.arange(tasks), jnp.minimum(product, 0), 0)
      rows -= against[:, None] * jax.nn.one_hot(other, tasks)
    return jnp.ones_like(losses), norms @ rows / norms, state

  return _balancer(rule, reads_gram=True)


def gradvac(beta: float = 0.5) -> Balancer:
  """Gradient Vaccine (arXiv 2010.05874, algorithm 1) over all that is shared: where the cosine of a pair is below its moving average, g_j is added to g_i until
  it is there. The average, from 0, moves by beta each step (the paper; LibMTL's only where it was not reached) and is held at most .999 where it is the goal.
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

  return _balancer(rule, lambda tasks: {'cosines': jnp.zeros((tasks, tasks))}, reads_gram=True)


def _simplex(gram: jax.Array, conflict: float | None) -> tuple[jax.Array, jax.Array]:
  """The w >= 0 with sum 1 of the least c |g_s| |g_w| + <g_s, g_w>, where g_w = sum w_k g_k, g_s = sum g_k, c = conflict; of the least |g_w| where it is None.

  Exact, as there are few tasks: on the face of the simplex with the tasks S, in y = w * norms, R_SS q = 1 / norms and R_SS p = R g_s give Lagrange's point as
  q / A - p' / sqrt(A (c^2 |g_s|^2 - p'R p')), with A = q / norms and p' the part of p that changes no sum of w; the best such point inside its face is taken.
  Returns w [K] and |g_s| / |g_w|, the latter not below 1e-3 of what it would be without cancelling.
  """
  cosine, norms, present = _directions(gram)
  tasks = len(norms)
  whole = jnp.where(present, norms, 0)
  linear = jnp.zeros(tasks) if conflict is None else cosine @ whole
  length = jnp.sqrt(jnp.maximum(whole @ cosine @ whole, 0))
  kappa = 1.0 if conflict is None else conflict * length
  sets = jnp.asarray(np.arange(1, 2**tasks)[:, None] >> np.arange(tasks) & 1, jnp.float32)  # [faces, K]
  matrix = sets[:, :, None] * sets[:, None] * cosine[None] + jnp.eye(tasks)[None] * (1 - sets + RIDGE)[:, None]
  solved = jnp.linalg.solve(matrix, sets[:, :, None] * jnp.stack([1 / norms, linear], 1)[None])
  q, p = solved[..., 0], solved[..., 1]
  a, b = (x @ (1 / norms) for x in (q, p))
  a = jnp.where(a > 0, a, jnp.inf)[:, None]
  p -= q * b[:, None] / a
  root = a * (kappa**2 - jnp.sum(p * (p @ cosine), axis=1, keepdims=True))
  y = jnp.concatenate([q / a, jnp.where(root > 0, q / a - p / jnp.sqrt(jnp.where(root > 0, root, 1)), -1)])
  inside = jnp.isfinite(y).all(1) & (y >= 0).all(1) & (y > 0).any(1) & jnp.tile((present[None] | (sets == 0)).all(1), 2)
  y = jnp.where(inside[:, None], y, 0)
  lengths = jnp.sqrt(jnp.maximum(jnp.sum(y * (y @ cosine), axis=1), 0))
  best = jnp.argmin(jnp.where(inside, y @ linear + kappa * lengths, jnp.inf))
  return y[best] / norms, length / jnp.maximum(lengths[best], 1e-3 * jnp.sum(y[best]))


def mgda() -> Balancer:
  """MGDA (arXiv 1810.04650, eq. 3): the shortest vector among the averages of the gradients; the weights sum to 1. Gradients are not normalised before."""

  def rule(losses, state, gram, **_):
    return jnp.ones_like(losses), _simplex(gram, None)[0], state

  return _balancer(rule, reads_gram=True)


def cagrad(c: float = 0.4) -> Balancer:
  """CAGrad (arXiv 2110.14048, algorithm 1), 0 <= c < 1: (g_s + c |g_s| g_w / |g_w|) / (1 + c^2) with g_s the sum of the gradients and w as in the paper's dual.

  Of sums, as its authors' code scales it, so that c = 0 is plain training; LibMTL's is of means, 1/K of this, with c = .5.
  """

  def rule(losses, state, gram, **_):
    w, ratio = _simplex(gram, c)
    return jnp.ones_like(losses), (1 + c * ratio * w) / (1 + c**2), state

  return _balancer(rule, reads_gram=True)


def imtl_g() -> Balancer:
  """IMTL-G (Liu et al., ICLR 2021): the d = sum_k w_k g_k, sum of w 1, with equal projections on all unit gradients: w_k proportional to (R^-1 1)_k / |g_k|.

  w may be negative. Where such terms cancel, so that the sum 1 would take weights of more than 100 together or a step uphill for all, w is scaled to a smaller sum.
  """

  def rule(losses, state, gram, **_):
    cosine, norms, present = _directions(gram)
    w = jnp.where(present, jnp.linalg.solve(cosine + RIDGE * jnp.eye(len(norms)), jnp.ones_like(norms)) / norms, 0)
    return jnp.ones_like(losses), w / jnp.maximum(jnp.abs(jnp.sum(w)), 0.01 * jnp.sum(jnp.abs(w))), state

  return _balancer(rule, reads_gram=True)


def imtl(lr: float = 0.025) -> Balancer:
  """IMTL (Liu et al., ICLR 2021): IMTL-G of the gradients of IMTL-L's scaled losses, which the heads have too."""
  of_losses, of_gradients = imtl_l(lr), imtl_g()

  def rule(losses, state, gram, **_):
    scale, _, state = of_losses.update(losses, state)
    _, weights, _ = of_gradients.update(losses, {}, gram=gram * scale[:, None] * scale[None])
    return scale, scale * weights, state

  return _balancer(rule, of_losses.init, reads_gram=True)


def aligned() -> Balancer:
  """Aligned-MTL (arXiv 2305.19000): the singular values of the gradients are set to the least one: w = s_min V S^-1 V' 1 with V S^2 V' = G.

  Of the values above float32's precision, as in the authors' code.
  """

  def rule(losses, state, gram, **_):
    largest = jnp.max(jnp.diagonal(gram))
    values, vectors = jnp.linalg.eigh(gram / jnp.where(largest > 0, largest, 1))
    kept = values > jnp.max(values) * len(values) * jnp.finfo(jnp.float32).eps
    least = jnp.min(jnp.where(kept, values, jnp.inf))
    scale = jnp.where(kept, jnp.sqrt(least / jnp.where(kept, values, 1)), 0)
    return jnp.ones_like(losses), vectors @ (scale * jnp.sum(vectors, axis=0)), state

  return _balancer(rule, reads_gram=True)


def fairgrad(alpha: float = 1.0) -> Balancer:
  """FairGrad (arXiv 2402.15638, eq. 8): the w > 0 with G w = w^(-1/alpha), alpha = 1 being Nash-MTL; of G over its Frobenius norm.

  So scaled (as Nash-MTL's authors do, FairGrad's not) all losses times a number leave the weights as they are. With p = 1 / alpha and m = |g|^((p-1)/(p+1)),
  w = |g|^(-2/(p+1)) x for the least 1/2 |M x|_R^2 + sum m^2 x^(1-p) / (p-1), which is convex: Newton from x = 1 with steps damped as its third derivative
  asks, so that x stays positive.
  """
  power = 1 / alpha

  def rule(losses, state, gram, **_):
    cosine, norms, present = _directions(gram)
    size = jnp.where(present, norms, 0)
    norms = norms / jnp.sqrt(jnp.linalg.norm(cosine * size[:, None] * size[None]))
    m, ridged = norms ** ((power - 1) / (power + 1)), cosine + RIDGE * jnp.eye(len(norms))

    def newton(carry):
      x, _, steps = carry
      change = jnp.linalg.solve(ridged + jnp.diag(power * x ** (-power - 1)), m * x**-power - ridged @ (m * x)) / m
      ratio = jnp.max(jnp.abs(change / x))
      return x + change / (1 + 1.1 * ratio * max((power + 1) / 2, 1)), ratio, steps + 1

    x, _, _ = jax.lax.while_loop(lambda carry: (carry[1] > 1e-3) & (carry[2] < 60), newton, (jnp.ones_like(norms), jnp.float32(jnp.inf), 0))
    return jnp.ones_like(losses), jnp.where(present, norms ** (-2 / (power + 1)) * x, 0), state

  return _balancer(rule, reads_gram=True)


def nash() -> Balancer:
  """Nash-MTL (arXiv 2202.01017, claim 3.2): G w = 1 / w, of G over its Frobenius norm as in the authors' code.

  They clip the result to norm 1, for which there is config.optim.clip, and solve it by a sequence of cvxpy programs.
  """
  return fairgrad(1.0)


def db_mtl(beta: float = 0.9, power: float = 0.5) -> Balancer:
  """DB-MTL (arXiv 2308.12029, algorithm 1): the gradients of log L_k, smoothed over steps n by beta / n^power, are all scaled to the largest one's norm.

  The heads learn from log L_k too, so that their weights are 1 / L_k. The state holds K gradients (in float32) of what is shared, which must be parameters: a
  feature's gradients belong to the images of their batch.
  """

  def init(tasks, shared):
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shared)
    return {'step': jnp.int32(0), 'grads': [zeros for _ in range(tasks)]}

  def smooth(losses, grads, state):
    step = state['step'] + 1
    keep, scale = beta / step.astype(jnp.float32)**power, 1 / (jax.lax.stop_gradient(losses) + EPS)
    grads = [jax.tree.map(lambda old, g: keep * old + (1 - keep) * scale[k] * g, state['grads'][k], grads[k]) for k in range(len(grads))]
    return grads, {'step': step, 'grads': grads}

  def rule(losses, state, gram, **_):
    return 1 / (losses + EPS), 1 / _directions(gram)[1], state

  return _balancer(rule, reads_gram=True, smooth=smooth)._replace(init=init)


BALANCERS: Mapping[str, Callable[..., Balancer]] = {
  'equal': fixed, 'fixed': fixed, 'uw': uw, 'dwa': dwa, 'dtp': dtp, 'gradnorm': gradnorm, 'awa': awa, 'rlw': rlw, 'gls': gls, 'famo': famo, 'pcgrad': pcgrad,
  'gradvac': gradvac, 'cagrad': cagrad, 'imtl': imtl, 'imtl_l': imtl_l, 'imtl_g': imtl_g, 'mgda': mgda, 'nash': nash, 'aligned': aligned, 'fairgrad': fairgrad,
  'db_mtl': db_mtl}


def build(b: ConfigDict, loss_weights: str, epoch_steps: int) -> Balancer | None:
  """The balancer that `config.balance` names; None where nothing but loss.weights weighs. UserError for options that do not fit."""
  factories = {name: inspect.signature(factory).parameters for name, factory in BALANCERS.items()}
  given = {k: v for k, v in b.items() if k not in ('name', 'at') and v}
  for k, v in given.items():
    if k not in factories[b.name]:
      raise UserError(f'--config.balance.{k}={v!r} means nothing to --config.balance.name={b.name}, only to '
                      f'{", ".join(name for name in factories if k in factories[name])}')
  if b.name == 'equal' and loss_weights:
    raise UserError(f'--config.balance.name=equal leaves no room for --config.loss.weights={loss_weights}; choose fixed')
  if b.name in ('equal', 'fixed'):
    return None
  balancer = BALANCERS[b.name](**given, **({'epoch_steps': epoch_steps} if 'epoch_steps' in factories[b.name] else {}))
  if balancer.smooth and b.at == 'features':
    raise UserError(f'--config.balance.name={b.name} averages gradients over steps, and those of features belong to one batch; set --config.balance.at=weights')
  return balancer
