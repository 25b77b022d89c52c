"""Methods that balance tasks which share parameters: (init, update) pairs of pure functions.

Some look at the K losses and weigh everything alike. Others look at the Gram matrix of the tasks'
gradients of what is shared and weigh these (gradient surgery is such a sum too); the heads keep
their own plain gradients then, where libraries differ (LibMTL multiplies the heads' losses as well
in some). IMTL, GradNorm and DB-MTL say what they do with the heads. A factory's parameters are the
options of config.balance that it reads; epoch_steps is the number of steps in an epoch.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hierjax.losses import solvers

# Added to a loss before its logarithm, as FAMO's and DB-MTL's authors do.
EPS = 1e-8
# Of a learned log-scale of a loss, either way; a loss of 0 would let it grow for ever.
LARGEST = 10.0


class Balancer(NamedTuple):
  """A balancing method.

  Attributes:
    init: (tasks, shared=None) → state; `shared` is a tree like one task's gradient, needed only
      where there is a `smooth`.
    update: (losses [K], state, *, gram=None, accuracies=None, key=None) → (weights [K] of the
      losses for all that is not shared, weights [K] of the gradients of what is shared, state). The
      losses are those of the whole batch. accuracies [K] are read by DTP, NaN for a task without;
      key, the same on all devices, by RLW, PCGrad and GradVac.
    reads_gram: whether update needs gram [K, K], the inner products of the gradients.
    smooth: (losses, K gradients, state) → (gradients, state), before the Gram matrix is taken.
  """

  init: Callable
  update: Callable
  reads_gram: bool = False
  smooth: Callable | None = None


def _no_state(tasks: int, shared: Any = None) -> dict:
  return {}


def _balancer(rule: Callable, init: Callable = _no_state, **fields) -> Balancer:
  """From rule(losses, state, gram=, accuracies=, key=): float32, constants, exact products."""

  def update(losses, state, *, gram=None, accuracies=None, key=None):
    losses, gram, accuracies = jax.tree.map(
      lambda x: jax.lax.stop_gradient(jnp.asarray(x, jnp.float32)), (losses, gram, accuracies)
    )
    # a TPU multiplies in bfloat16 otherwise
    with jax.default_matmul_precision('highest'):
      return rule(losses, state, gram=gram, accuracies=accuracies, key=key)

  return Balancer(init, update, **fields)


def _of_losses(rule: Callable, init: Callable = _no_state) -> Balancer:
  """From rule(losses, state, ...) → (weights, state): the same for heads and what is shared."""

  def both(losses, state, **inputs):
    weights, state = rule(losses, state, **inputs)
    return weights, weights, state

  return _balancer(both, init)


def _of_gram(rule: Callable) -> Balancer:
  """From rule(gram) → weights of the gradients; the heads' are 1."""
  return _balancer(
    lambda losses, state, gram, **_: (jnp.ones_like(losses), rule(gram), state), reads_gram=True
  )


def _adam_step(
  tx: optax.GradientTransformation, gradient, value, opt_state, when=True
) -> tuple[jax.Array, Any]:
  """One step of tx on `value`; none where `when` is False."""
  updates, opt_after = tx.update(gradient, opt_state, value)
  after = optax.apply_updates(value, updates), opt_after
  return jax.tree.map(lambda new, old: jnp.where(when, new, old), after, (value, opt_state))


def fixed() -> Balancer:
  """Weigh all by 1: the losses come scaled by loss.weights."""
  return _of_losses(lambda losses, state, **_: (jnp.ones_like(losses), state))


def _log_scale(objective: Callable, weights: Callable, initial: float, lr: float) -> Balancer:
  """weights(s) of a scale s [K] that is learned by Adam along objective(s, losses)."""
  tx = optax.adam(lr)

  def init(tasks, shared=None):
    s = jnp.full(tasks, initial, jnp.float32)
    return {'log_scale': s, 'opt': tx.init(s)}

  def rule(losses, state, **_):
    s = state['log_scale']
    moved, opt = _adam_step(tx, jax.grad(objective)(s, losses), s, state['opt'])
    return weights(s), {'log_scale': jnp.clip(moved, -LARGEST, LARGEST), 'opt': opt}

  return _of_losses(rule, init)


def uw(lr: float = 0.025) -> Balancer:
  """Uncertainty weighting (arXiv:1705.07115, section 3.2, s = log sigma^2).

  Minimises sum_k L_k / (2 e^s_k) + s_k / 2 over s too, from -.5. The factor 1/2 of the loss is a
  regression's; the paper gives a classification 1, LibMTL all of them 1/2, as here. lr is what
  GradNorm's paper used for it.
  """
  return _log_scale(
    lambda s, losses: jnp.sum(losses / (2 * jnp.exp(s)) + s / 2),
    lambda s: 1 / (2 * jnp.exp(s)),
    -0.5,
    lr,
  )


def imtl_l(lr: float = 0.025) -> Balancer:
  """IMTL-L (Liu et al., ICLR 2021, with base e): minimises sum_k e^s_k L_k - s_k over s, from 0.

  Of a single task L_k, e^s_k tends to 1 / L_k.
  """
  return _log_scale(lambda s, losses: jnp.sum(jnp.exp(s) * losses - s), jnp.exp, 0.0, lr)


def dwa(epoch_steps: int, temperature: float = 2.0) -> Balancer:
  """Dynamic weight average (arXiv:1803.10704, eq. 7): K softmax(r / T).

  r is the ratio of a loss's means over the last two epochs; the weights are 1 in the first two.

  Args:
    epoch_steps: number of steps in an epoch.
    temperature: T.
  """

  def init(tasks, shared=None):
    last, before = jnp.ones(tasks), jnp.ones(tasks)
    return {'step': jnp.int32(0), 'mean': jnp.zeros(tasks), 'last': last, 'before': before}

  def rule(losses, state, **_):
    # steps of this epoch that are in its mean
    steps = state['step'] % epoch_steps
    begins = (steps == 0) & (state['step'] > 0)
    before = jnp.where(begins, state['last'], state['before'])
    last = jnp.where(begins, state['mean'], state['last'])
    mean = jnp.where(begins, 0, state['mean'])
    mean += (losses - mean) / (steps + 1)
    ratio = jnp.where(before > 0, last / jnp.maximum(before, 1e-30), 1)
    weights = len(losses) * jax.nn.softmax(ratio / temperature)
    weights = jnp.where(state['step'] >= 2 * epoch_steps, weights, 1)
    return weights, {'step': state['step'] + 1, 'mean': mean, 'last': last, 'before': before}

  return _of_losses(rule, init)


def dtp(gamma: float = 1.0, decay: float = 0.9) -> Balancer:
  """Dynamic task prioritization (Guo et al., ECCV 2018): weights -(1 - a)^gamma log a.

  a is the moving average of a task's accuracy, not below .001. A task without accuracy weighs 1;
  one that is missing for a step keeps its average. The paper leaves gamma and decay (its 1 - alpha)
  open.

  Args:
    gamma: how much harder tasks count.
    decay: of the moving average.
  """

  def init(tasks, shared=None):
    return {'accuracy': jnp.zeros(tasks), 'seen': jnp.zeros(tasks, jnp.int32)}

  def rule(losses, state, accuracies, **_):
    is_new, has_average = ~jnp.isnan(accuracies), state['seen'] > 0
    moved = decay * state['accuracy'] + (1 - decay) * accuracies
    average = jnp.where(has_average, moved, accuracies)
    average = jnp.where(is_new, average, state['accuracy'])
    has_average = is_new | has_average
    a = jnp.clip(average, 1e-3, 1)
    weights = jnp.where(has_average, -((1 - a) ** gamma) * jnp.log(a), 1)
    return weights, {'accuracy': average, 'seen': has_average.astype(jnp.int32)}

  return _of_losses(rule, init)


def awa(gamma: float = 0.5) -> Balancer:
  """HCAL's adaptive weights (S2, eq. 11): softmax(L / gamma) of the current losses."""
  return _of_losses(lambda losses, state, **_: (jax.nn.softmax(losses / gamma), state))


def rlw() -> Balancer:
  """Random loss weighting (arXiv:2111.10603): softmax of K normal numbers drawn each step."""
  return _of_losses(
    lambda losses, state, key, **_: (jax.nn.softmax(jax.random.normal(key, losses.shape)), state)
  )


def gls() -> Balancer:
  """Geometric loss strategy (Chennupati et al., CVPRW 2019): trains (prod_k L_k)^(1/K).

  The weights are those of its gradient; a loss of 0 takes no part.
  """

  def rule(losses, state, **_):
    present = losses > 0
    log, count = jnp.log(losses + EPS), jnp.maximum(jnp.sum(present), 1)
    mean = jnp.sum(jnp.where(present, log, 0)) / count
    return jnp.where(present, jnp.exp(mean - log) / count, 0), state

  return _of_losses(rule)


def famo(lr: float = 0.025, decay: float = 1e-3) -> Balancer:
  """FAMO (arXiv:2306.03792, algorithm 1, the least losses taken as 0): z_k / L_k over their sum.

  z = softmax(x); Adam lowers x where log L falls fastest, with weight decay in its gradient. The
  loss after an update is that of the next batch here, not a second forward pass over the same one.
  A loss of 0 takes no part.

  Args:
    lr: Adam's.
    decay: of the weights.
  """
  tx = optax.chain(optax.add_decayed_weights(decay), optax.adam(lr))

  def init(tasks, shared=None):
    logits = jnp.zeros(tasks)
    return {'logits': logits, 'opt': tx.init(logits), 'losses': jnp.zeros(tasks)}

  def rule(losses, state, **_):
    present, has_last = losses > 0, state['losses'] > 0
    fall = jnp.log(state['losses'] + EPS) - jnp.log(losses + EPS)
    fall = jnp.where(present & has_last, fall, 0)
    gradient = jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) * fall))(state['logits'])
    logits, opt = _adam_step(tx, gradient, state['logits'], state['opt'], when=jnp.any(has_last))
    weights = jax.nn.softmax(jnp.where(present, logits - jnp.log(losses + EPS), -1e9))
    last = jnp.where(present, losses, state['losses'])
    return weights, {'logits': logits, 'opt': opt, 'losses': last}

  return _of_losses(rule, init)


def gradnorm(epoch_steps: int = 1, alpha: float = 1.5, lr: float = 0.025) -> Balancer:
  """GradNorm (arXiv:1711.02257, eqs 1-2): weights w = K softmax(s) of losses and gradients.

  Adam minimises sum_k | w_k |g_k| - mean_j(w_j |g_j|) r_k^alpha | over s, from 1 with the paper's
  lr; the second term is constant, and r_k = L_k / L_k(0) over its mean. L(0) is the mean over the
  first epoch_steps, with weights 1: one step in the paper, an epoch in LibMTL, as is the softmax
  (the paper rescales free weights to sum to K).

  Args:
    epoch_steps: number of steps that L(0) is the mean of.
    alpha: how fast slow tasks catch up.
    lr: Adam's.
  """
  tx = optax.adam(lr)

  def init(tasks, shared=None):
    logits, first = jnp.ones(tasks), jnp.zeros(tasks)
    return {'step': jnp.int32(0), 'first': first, 'logits': logits, 'opt': tx.init(logits)}

  def rule(losses, state, gram, **_):
    step, started = state['step'], state['step'] >= epoch_steps
    running = state['first'] + (losses - state['first']) / (step + 1)
    first = jnp.where(started, state['first'], running)
    norms = jnp.sqrt(jnp.diagonal(gram))
    ratio = jnp.where(first > 0, losses / jnp.maximum(first, 1e-30), 1)
    rate = ratio / jnp.where(jnp.any(ratio > 0), jnp.mean(ratio), 1)
    weights = len(losses) * jax.nn.softmax(state['logits'])
    target = jnp.mean(weights * norms) * rate**alpha
    gradient = jax.grad(
      lambda s: jnp.sum(jnp.abs(len(losses) * jax.nn.softmax(s) * norms - target))
    )(state['logits'])
    logits, opt = _adam_step(tx, gradient, state['logits'], state['opt'], when=started)
    return weights, weights, {'step': step + 1, 'first': first, 'logits': logits, 'opt': opt}

  return _balancer(rule, init, reads_gram=True)


def pcgrad() -> Balancer:
  """PCGrad (arXiv:2001.06782), see `solvers.project_conflicts`."""

  def rule(losses, state, gram, key, **_):
    return jnp.ones_like(losses), solvers.project_conflicts(gram, key), state

  return _balancer(rule, reads_gram=True)


def gradvac(beta: float = 0.5) -> Balancer:
  """Gradient Vaccine (arXiv:2010.05874) over all that is shared, see `solvers.vaccinate`.

  Args:
    beta: how fast the average of the cosines moves.
  """

  def rule(losses, state, gram, key, **_):
    weights, goals = solvers.vaccinate(gram, state['cosines'], beta, key)
    return jnp.ones_like(losses), weights, {'cosines': goals}

  return _balancer(
    rule, lambda tasks, shared=None: {'cosines': jnp.zeros((tasks, tasks))}, reads_gram=True
  )


def mgda() -> Balancer:
  """MGDA (arXiv:1810.04650, eq. 3): the shortest average of the gradients, not normalised."""
  return _of_gram(lambda gram: solvers.least_on_simplex(gram, None)[0])


def cagrad(c: float = 0.4) -> Balancer:
  """CAGrad (arXiv:2110.14048, algorithm 1): (g_s + c |g_s| g_w / |g_w|) / (1 + c^2), 0 <= c < 1.

  g_s is the sum of the gradients and w that of the dual. Of the sum as in the authors' code, so
  that c = 0 is plain training; LibMTL's is of the mean, 1/K of it, with c = .5.

  Args:
    c: how far d may be from the plain sum.
  """

  def rule(gram):
    w, ratio = solvers.least_on_simplex(gram, c)
    return (1 + c * ratio * w) / (1 + c**2)

  return _of_gram(rule)


def upgrad() -> Balancer:
  """UPGrad (Quinton and Rey, arXiv:2406.16232), see `solvers.project_on_dual_cone`.

  No task's loss rises along d. Its scale is that of the mean of the gradients, where plain training
  has their sum.
  """
  return _of_gram(solvers.project_on_dual_cone)


def imtl_g() -> Balancer:
  """IMTL-G (Liu et al., ICLR 2021), see `solvers.equal_projections`."""
  return _of_gram(solvers.equal_projections)


def imtl(lr: float = 0.025) -> Balancer:
  """IMTL (Liu et al., ICLR 2021): IMTL-G of the gradients of the losses as IMTL-L scales them.

  The heads learn from the scaled losses too.

  Args:
    lr: Adam's, of the scales.
  """
  of_losses, of_gradients = imtl_l(lr), imtl_g()

  def rule(losses, state, gram, **_):
    scale, _, state = of_losses.update(losses, state)
    _, weights, _ = of_gradients.update(losses, {}, gram=gram * scale[:, None] * scale[None])
    return scale, scale * weights, state

  return _balancer(rule, of_losses.init, reads_gram=True)


def aligned() -> Balancer:
  """Aligned-MTL (arXiv:2305.19000), see `solvers.equal_singular_values`."""
  return _of_gram(solvers.equal_singular_values)


def fairgrad(alpha: float = 1.0) -> Balancer:
  """FairGrad (arXiv:2402.15638), see `solvers.fair`.

  For alpha > 1 the step grows with the tasks' conflict: its authors clip it to norm 1 (optim.clip).
  """
  return _of_gram(lambda gram: solvers.fair(gram, alpha))


def nash() -> Balancer:
  """Nash-MTL (arXiv:2202.01017, claim 3.2): G w = 1 / w, without its sequence of cvxpy programs.

  Its authors also clip the result to norm 1, for which there is optim.clip.
  """
  return fairgrad(1.0)


def db_mtl(beta: float = 0.9, power: float = 0.5) -> Balancer:
  """DB-MTL (arXiv:2308.12029, algorithm 1): gradients of log L_k, averaged over steps, equal norms.

  Step n keeps beta / n^power of the past; the norms are scaled to the largest. The heads learn from
  log L_k too: weight 1 / L_k. The state holds K float32 gradients of what is shared, which must be
  parameters: a feature's gradients belong to the images of their batch.

  Args:
    beta: share of the past.
    power: how fast that share falls.
  """

  def init(tasks, shared=None):
    zeros = [jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shared) for _ in range(tasks)]
    return {'step': jnp.int32(0), 'grads': zeros}

  def smooth(losses, grads, state):
    past = beta / (state['step'] + 1).astype(jnp.float32) ** power
    scale = 1 / (jax.lax.stop_gradient(losses) + EPS)
    of_log = [jax.tree.map(lambda g: scale[k] * g, tree) for k, tree in enumerate(grads)]
    grads = jax.tree.map(lambda old, new: past * old + (1 - past) * new, state['grads'], of_log)
    return grads, {'step': state['step'] + 1, 'grads': grads}

  def rule(losses, state, gram, **_):
    return 1 / (losses + EPS), 1 / solvers.directions(gram)[1], state

  return _balancer(rule, init, reads_gram=True, smooth=smooth)


_LOSS_METHODS = (fixed, uw, dwa, dtp, gradnorm, awa, rlw, gls, famo)
_GRADIENT_METHODS = (pcgrad, gradvac, cagrad, imtl, imtl_l, imtl_g, mgda, nash, aligned, fairgrad)
METHODS = (*_LOSS_METHODS, *_GRADIENT_METHODS, upgrad, db_mtl)
BALANCERS: Mapping[str, Callable[..., Balancer]] = {
  'equal': fixed,
  **{method.__name__: method for method in METHODS},
}
