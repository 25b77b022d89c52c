"""Weights of K task gradients from their Gram matrix, solved inside jit on K x K arrays.

Norms are relative to the largest, so that no weight depends on the scale of all losses together. A
task whose gradient is NEGLIGIBLE beside the largest (no image of the batch has its label, say) has
no part in it. All are float32; gram is [K, K] and weights are [K], d = sum_k w_k g_k.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Share of the largest gradient's norm that is no more than float32's rounding of it.
NEGLIGIBLE = 1e-6
# Added to the diagonal of the cosines, which parallel and opposite gradients make singular.
RIDGE = 1e-6


def directions(gram: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Split a Gram matrix into cosines [K, K], norms [K] and whether each task takes part, bool [K].

  A task that does not has cosine 0 to the others and norm 1. Where there is no gradient at all, all
  take part in this way.

  Args:
    gram: [K, K].
  """
  largest = jnp.max(jnp.diagonal(gram))
  unit = gram / jnp.where(largest > 0, largest, 1)
  norms = jnp.sqrt(jnp.diagonal(unit))
  present = (norms > NEGLIGIBLE) | (largest <= 0)
  norms = jnp.where(present & (largest > 0), norms, 1)
  both_present = present[:, None] & present[None]
  cosine = jnp.where(both_present, unit / (norms[:, None] * norms[None]), 0)
  cosine = jnp.clip(cosine, -1, 1)
  cosine = jnp.where(jnp.eye(len(norms), dtype=bool), 1, cosine)
  return cosine, norms, present


def random_orders(key: jax.Array, tasks: int) -> jax.Array:
  """Draw in which order each gradient meets the others: int [K, K], column i for gradient i.

  The turn of i itself is to be skipped.
  """
  return jnp.argsort(jax.random.uniform(key, (tasks, tasks)), axis=0)


def project_conflicts(gram: jax.Array, key: jax.Array) -> jax.Array:
  """Compute PCGrad's weights (arXiv:2001.06782, algorithm 1).

  Each gradient loses its part against each other one, in random order; then they are summed.
  (LibMTL has the task itself in that order, which matters where what is left of a gradient opposes
  it.)

  Args:
    gram: [K, K].
    key: draws the orders.
  """
  cosine, norms, _ = directions(gram)
  tasks = len(norms)
  # row i: what g_i / |g_i| has become, as a sum of unit gradients
  rows = jnp.eye(tasks)
  for other in random_orders(key, tasks):
    along = jnp.minimum(jnp.sum(rows * cosine[other], axis=1), 0)
    along = jnp.where(other != jnp.arange(tasks), along, 0)
    rows -= along[:, None] * jax.nn.one_hot(other, tasks)
  return norms @ rows / norms


def vaccinate(
  gram: jax.Array, goals: jax.Array, beta: float, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Compute Gradient Vaccine's weights (arXiv:2010.05874, algorithm 1) and new goals [K, K].

  Where a pair's cosine is below its moving average, its goal, g_i gets the part of g_j that brings
  it there. The average moves by beta each step (LibMTL's only where it was not reached); as a goal
  it is at most .999.

  Args:
    gram: [K, K].
    goals: [K, K], from 0.
    beta: how fast the goals move.
    key: draws the orders.
  """
  cosine, norms, present = directions(gram)
  tasks = len(norms)
  # row i: what g_i / |g_i| has become, as a sum of unit gradients
  rows = jnp.eye(tasks)
  for other in random_orders(key, tasks):
    length = jnp.sqrt(jnp.maximum(jnp.sum(rows * (rows @ cosine), axis=1), 1e-12))
    current = jnp.clip(jnp.sum(rows * cosine[other], axis=1) / length, -1, 1)
    pair = jax.nn.one_hot(other, tasks)  # row i: 1 at the gradient that g_i meets now
    goal = jnp.clip(jnp.sum(goals * pair, axis=1), -0.999, 0.999)
    meets = present & present[other] & (other != jnp.arange(tasks))
    added = length * (goal * jnp.sqrt((1 - current**2) / (1 - goal**2)) - current)
    added = jnp.where(meets & (current < goal), added, 0)
    rows += added[:, None] * pair
    speed = jnp.where(meets, beta, 0)
    goals += speed[:, None] * pair * (current[:, None] - goals)
  return norms @ rows / norms, goals


def _faces(tasks: int, first: int) -> jax.Array:
  """Return sets of tasks as rows of 0 and 1, [F, K]: the binary digits of `first`, first + 1 ..."""
  numbers = np.arange(first, 2**tasks)[:, None]
  return jnp.asarray(numbers >> np.arange(tasks) & 1, jnp.float32)


def _cosines_within(faces: jax.Array, cosine: jax.Array) -> jax.Array:
  """Return the cosines between the tasks of each face, [F, K, K], the identity for the others."""
  matrix = faces[:, :, None] * faces[:, None] * cosine[None]
  return matrix + jnp.eye(len(cosine))[None] * (1 - faces + RIDGE)[:, None]


def least_on_simplex(gram: jax.Array, c: float | None) -> tuple[jax.Array, jax.Array]:
  """Minimise <g_s, g_w> + c |g_s| |g_w| over w >= 0 with sum 1; |g_w| where c is None.

  g_w = sum_k w_k g_k and g_s = sum_k g_k. Exact, as there are few tasks: on the face of the simplex
  with the tasks S, in y = w * norms, R_SS q = 1 / norms and R_SS p = R g_s, Lagrange's point is
  q / A - p' / sqrt(A (c^2 |g_s|^2 - p'R p')), with A = q / norms and p' the part of p that keeps
  the sum of w; the best one inside its face is the solution.

  Args:
    gram: [K, K].
    c: weight of the second term.

  Returns:
    w [K], and |g_s| / |g_w| with |g_w| at least 1e-3 of what it would be if nothing cancelled.
  """
  cosine, norms, present = directions(gram)
  sizes = jnp.where(present, norms, 0)
  length = jnp.sqrt(jnp.maximum(sizes @ cosine @ sizes, 0))  # |g_s|
  linear, kappa = jnp.zeros(len(norms)), 1.0
  if c is not None:
    linear, kappa = cosine @ sizes, c * length
  faces = _faces(len(norms), 1)
  right_sides = faces[:, :, None] * jnp.stack([1 / norms, linear], 1)[None]
  solved = jnp.linalg.solve(_cosines_within(faces, cosine), right_sides)
  q, p = solved[..., 0], solved[..., 1]  # [F, K]
  a = q @ (1 / norms)
  a = jnp.where(a > 0, a, jnp.inf)[:, None]
  p -= q * (p @ (1 / norms))[:, None] / a
  root = a * (kappa**2 - jnp.sum(p * (p @ cosine), axis=1, keepdims=True))
  has_point = root > 0
  point = jnp.where(has_point, q / a - p / jnp.sqrt(jnp.where(has_point, root, 1)), -1)
  # candidates [2 F, K]: the shortest g_w of each face, and Lagrange's point
  y = jnp.concatenate([q / a, point])
  takes_part = (present[None] | (faces == 0)).all(1)
  takes_part = jnp.tile(takes_part, 2)
  inside = jnp.isfinite(y).all(1) & (y >= 0).all(1) & (y > 0).any(1) & takes_part
  y = jnp.where(inside[:, None], y, 0)
  lengths = jnp.sqrt(jnp.maximum(jnp.sum(y * (y @ cosine), axis=1), 0))  # |g_w|
  values = y @ linear + kappa * lengths
  best = jnp.argmin(jnp.where(inside, values, jnp.inf))
  least_length = 1e-3 * jnp.sum(y[best])
  return y[best] / norms, length / jnp.maximum(lengths[best], least_length)


def project_on_dual_cone(gram: jax.Array) -> jax.Array:
  """Compute UPGrad's weights, the mean over the tasks i of argmin_{v >= e_i} v'Gv.

  The least v makes g_v the projection of g_i on the vectors that no gradient opposes (Quinton and
  Rey, arXiv:2406.16232, proposition 1). With v = e_i + y |g_i| / |g| these are
  min over y >= 0 of |g_i / |g_i| + sum_k y_k g_k / |g_k||. Exact, as there are few tasks: on the
  face where the tasks S have y > 0, R_SS y = -R_Si, and the best face is the solution.

  Args:
    gram: [K, K].

  Returns:
    float32 [K]. Without conflicts they are 1 / K, so that d is the mean of the gradients.
  """
  cosine, norms, present = directions(gram)
  tasks = len(norms)
  faces = _faces(tasks, 0)
  # [face, task k, task i]
  y = jnp.linalg.solve(_cosines_within(faces, cosine), -faces[:, :, None] * cosine[None])
  inside = jnp.isfinite(y).all(1) & (y >= 0).all(1)
  y = jnp.where(inside[:, None], y, 0)
  sums = jnp.eye(tasks)[None] + y
  lengths = jnp.sum(sums * jnp.einsum('jk,fki->fji', cosine, sums), axis=1)  # squared, [face, i]
  best = jnp.argmin(jnp.where(inside, lengths, jnp.inf), axis=0)
  y = y[best, :, jnp.arange(tasks)]  # [i, k], of the best face of each i
  v = jnp.eye(tasks) + y * norms[:, None] / norms[None]
  total = jnp.sum(jnp.where(present[:, None], v, 0), 0)
  return jnp.where(present, total / jnp.sum(present), 0)


def equal_projections(gram: jax.Array) -> jax.Array:
  """Compute IMTL-G's weights (Liu et al., ICLR 2021): equal projections on all unit gradients.

  That is w_k ~ (R^-1 1)_k / |g_k| with sum 1; w can be negative. Where its terms cancel, so that a
  sum of 1 would mean going uphill for all or weights above 100 in sum, their sum is left smaller.

  Args:
    gram: [K, K].
  """
  cosine, norms, present = directions(gram)
  ridged = cosine + RIDGE * jnp.eye(len(norms))
  solved = jnp.linalg.solve(ridged, jnp.ones_like(norms))
  w = jnp.where(present, solved / norms, 0)
  least_sum = 0.01 * jnp.sum(jnp.abs(w))
  return w / jnp.maximum(jnp.abs(jnp.sum(w)), least_sum)


def equal_singular_values(gram: jax.Array) -> jax.Array:
  """Compute Aligned-MTL's weights (arXiv:2305.19000), w = s_min V S^-1 V' 1 with V S^2 V' = G.

  All singular values of the gradients above float32's precision are set to the least of them.

  Args:
    gram: [K, K].
  """
  largest = jnp.max(jnp.diagonal(gram))
  values, vectors = jnp.linalg.eigh(gram / jnp.where(largest > 0, largest, 1))
  precision = jnp.max(values) * len(values) * jnp.finfo(jnp.float32).eps
  above = values > precision
  least = jnp.min(jnp.where(above, values, jnp.inf))
  scale = jnp.where(above, jnp.sqrt(least / jnp.where(above, values, 1)), 0)
  return vectors @ (scale * jnp.sum(vectors, axis=0))


def fair(gram: jax.Array, alpha: float) -> jax.Array:
  """Solve G w = w^(-1/alpha) for w > 0: FairGrad (arXiv:2402.15638), Nash-MTL with alpha = 1.

  G is over its Frobenius norm (which Nash-MTL's authors take, FairGrad's not), so that losses that
  are all multiplied by a number leave w as it is. With p = 1 / alpha and m = |g|^((p-1)/(p+1)),
  w = |g|^(-2/(p+1)) x for the x > 0 of the least (mx)'R(mx) / 2 + sum_k m_k^2 x_k^(1-p) / (p-1), a
  convex function: Newton's method from x = 1, its steps damped as the third derivative asks where
  an x falls, which keeps x positive.

  Args:
    gram: [K, K].
    alpha: the exponent.
  """
  power = 1 / alpha
  cosine, norms, present = directions(gram)
  size = jnp.where(present, norms, 0)
  norms = norms / jnp.sqrt(jnp.linalg.norm(cosine * size[:, None] * size[None]))
  m = norms ** ((power - 1) / (power + 1))
  ridged = cosine + RIDGE * jnp.eye(len(norms))
  # x stays in float32's range where a large alpha makes x^-power nearly constant
  least = 1e-20 ** (1 / (power + 1))

  def newton(carry):
    x, _, steps = carry
    hessian = ridged + jnp.diag(power * x ** (-power - 1))
    descent = m * x**-power - ridged @ (m * x)
    change = jnp.linalg.solve(hessian, descent) / m
    fall = jnp.maximum(jnp.max(-change / x), 0)
    damping = 1 + 1.1 * fall * max((power + 1) / 2, 1)
    new_x = jnp.clip(x + change / damping, least, 1e20)
    return new_x, jnp.max(jnp.abs(change / x)), steps + 1

  def goes_on(carry):
    _, largest_change, steps = carry
    return (largest_change > 1e-3) & (steps < 100)

  start = (jnp.ones_like(norms), jnp.float32(jnp.inf), 0)
  x, _, _ = jax.lax.while_loop(goes_on, newton, start)
  return jnp.where(present, norms ** (-2 / (power + 1)) * x, 0)
