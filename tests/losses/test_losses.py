"""The losses against naive loops over examples and classes in float64; HCAL's against torch."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from parity import hcal, ours, seeded

from hierjax.losses import exclusive, terms
from hierjax.taxonomy import Taxonomy

TAXONOMIES = {
  'facets': Taxonomy.from_rows(
    ['make', 'type', 'model'],
    [
      ['Audi', 'Coupe', 'TT'],
      ['Audi', 'Sedan', 'A4'],
      ['Audi', 'Sedan', 'A6'],
      ['BMW', 'Sedan', '320'],
      ['BMW', 'SUV', 'X5'],
      ['Geo', 'SUV', 'Metro'],
    ],
  ),
  'early ends': Taxonomy.from_rows(
    ['order', 'family', 'species'],
    [
      ['Accipitriformes', 'Accipitridae', 'Buteo buteo'],
      ['Gaviiformes', '', ''],
      ['Passeriformes', 'Corvidae', 'Corvus corax'],
      ['Passeriformes', 'Corvidae', 'Pica pica'],
      ['Passeriformes', 'Paridae', ''],
    ],
  ),
  'one level': Taxonomy.from_rows(['class'], [['a'], ['b'], ['c']]),
  'one class': Taxonomy.from_rows(['kind', 'class'], [['a', 'b']]),
}

jit = functools.partial(
  jax.jit, compiler_options=ours.QUICK
)  # nearly all of the time goes into compiling


@pytest.fixture
def cars():
  return TAXONOMIES['facets']


def naive(logits, labels, targets):
  out = []
  for row, y in zip(np.asarray(logits, np.float64), labels):
    p = np.exp(row - row.max())
    p /= p.sum()
    out.append(0.0 if y < 0 else -sum(targets[y][k] * np.log(p[k]) for k in range(len(p))))
  return out


def test_cross_entropy_against_a_loop(cars):
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(7, 6)).astype(np.float32) * 4, np.array([0, 5, -1, 3, 2, 1, 4])
  soft = exclusive.smoothed_targets(cars, 0.1, ['make'])
  np.testing.assert_allclose(
    exclusive.cross_entropy(jnp.array(logits), jnp.array(labels)),
    naive(logits, labels, np.eye(6)),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    exclusive.cross_entropy(jnp.array(logits), jnp.array(labels), soft),
    naive(logits, labels, np.asarray(soft(jnp.arange(6)))),
    rtol=1e-5,
  )


def test_unknown_label_has_no_gradient():
  grad = jax.grad(lambda x: exclusive.cross_entropy(x, jnp.array([-1, 1])).sum())(jnp.ones((2, 3)))
  assert not grad[0].any()
  np.testing.assert_allclose(grad[1], [1 / 3, -2 / 3, 1 / 3], rtol=1e-5)


@pytest.mark.parametrize(
  ('by', 'rows'),
  [
    (['make'], {0: {0: 0.9, 1: 0.05, 2: 0.05}, 3: {3: 0.9, 4: 0.1}, 5: {5: 1.0}}),
    (['type'], {0: {0: 1.0}, 1: {1: 0.9, 2: 0.05, 3: 0.05}, 5: {5: 0.9, 4: 0.1}}),
    (['make', 'type'], {1: {1: 0.9, 2: 0.1}, 3: {3: 1.0}, 0: {0: 1.0}}),
  ],
)
def test_hierarchical_smoothing(cars, by, rows):
  targets = np.asarray(exclusive.smoothed_targets(cars, 0.1, by)(jnp.arange(6)))
  np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
  for y, expected in rows.items():
    np.testing.assert_allclose(targets[y], [expected.get(k, 0) for k in range(6)], atol=1e-7)


def test_masked_mean():
  assert exclusive.masked_mean(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([1, 0, 1])) == 2
  assert exclusive.masked_mean(jnp.array([5.0]), jnp.array([0])) == 0


# Losses on the logits of a taxonomy's levels: each against a loop, which takes one row.


def softmax(row):
  p = np.exp(row - np.max(row))
  return p / p.sum()


def fits(path, y, levels):
  return all(y[k] in (-1, path[k]) for k in levels)


def naive_any_level(rows, y, t):
  p = softmax(rows[-1])
  return -math.log(sum(p[i] for i, path in enumerate(t.paths) if fits(path, y, range(len(y)))))


def naive_hxe(rows, y, t, alpha):
  p, loss = softmax(rows[-1]), 0
  for k in range(len(y)):
    above, node = (
      sum(p[i] for i, path in enumerate(t.paths) if fits(path, y, range(end))) for end in (k, k + 1)
    )
    loss -= math.exp(-alpha * k) * math.log(node / above)
  return loss


def naive_hace(rows, y, t, dilution):
  """From the finest known level upwards, each with `dilution` of what the one below has."""
  p, weights, loss = softmax(rows[-1]), [], 0
  for k in reversed(range(len(y))):
    if y[k] >= 0:
      weights.append(dilution ** len(weights))
      node = sum(p[i] for i, path in enumerate(t.paths) if path[k] == y[k])
      loss -= weights[-1] * math.log(node)
  return loss / sum(weights) if weights else 0


def naive_margin(rows, y, t, margin):
  if max(y) < 0:
    return 0
  distance = [
    sum(y[k] >= 0 and path[k] != y[k] for k in range(len(y))) / len(y) for path in t.paths
  ]
  z = rows[-1] - max(rows[-1])
  fit = math.log(sum(math.exp(z[i]) for i, d in enumerate(distance) if d == 0))
  return math.log(sum(math.exp(z[i] + margin * d) for i, d in enumerate(distance))) - fit


def naive_tree_path(rows, y, t):
  is_known = [k for k in range(len(y)) if y[k] >= 0]
  if not is_known:
    return 0
  p = softmax(np.concatenate([rows[k] for k in is_known]))
  starts = np.cumsum([0] + [len(rows[k]) for k in is_known])
  return sum(
    math.log(1 / len(is_known) / p[start + y[k]]) / len(is_known)
    for start, k in zip(starts, is_known)
  )


def naive_matching(rows, y, t):
  p, loss = [softmax(row) for row in rows], 0
  for k in range(len(rows) - 1):
    for c in range(len(rows[k])):
      loss -= p[k][c] * math.log(sum(p[-1][i] for i, path in enumerate(t.paths) if path[k] == c))
  return loss / (len(rows) - 1)


def naive_co_annotation(rows, y, t):
  each = []
  for k, row in enumerate(rows):
    others = [j for j in range(len(y)) if j != k and y[j] >= 0]
    if others:
      leaves = [path for path in t.paths if fits(path, y, others)]
      each.append(-sum(math.log(softmax(row)[path[k]]) for path in leaves) / len(leaves))
  return np.mean(each) if each else 0


def on_finest(loss, *args):
  return lambda logits, labels, t: loss(logits[t.levels[-1]], labels, t.paths, *args)


LOSSES = {
  'any_level': (on_finest(exclusive.any_level), naive_any_level),
  'hxe 0': (on_finest(exclusive.hxe, 0.0), functools.partial(naive_hxe, alpha=0.0)),
  'hxe .7': (on_finest(exclusive.hxe, 0.7), functools.partial(naive_hxe, alpha=0.7)),
  'hace .3': (on_finest(exclusive.hace, 0.3), functools.partial(naive_hace, dilution=0.3)),
  'hace 1': (on_finest(exclusive.hace, 1.0), functools.partial(naive_hace, dilution=1.0)),
  'margin 2': (
    on_finest(exclusive.soft_max_margin, 2.0),
    functools.partial(naive_margin, margin=2),
  ),
  'tree_path': (terms.tree_path, naive_tree_path),
  'distribution_matching': (
    lambda logits, labels, t: terms.distribution_matching(logits, t),
    naive_matching,
  ),
  'co_annotation': (terms.co_annotation, naive_co_annotation),
}
CASES = [
  (loss, t)
  for loss in LOSSES
  for t in TAXONOMIES
  if (loss, t) != ('distribution_matching', 'one level')
]


def example(t, seed=0, n=9, scale=2.0):
  """Logits of each level and labels: the first row has none, the second all."""
  r = np.random.default_rng(seed)
  logits = {level: scale * r.standard_normal((n, t.num_classes(level))) for level in t.levels}
  labels = t.paths[r.integers(len(t.paths), size=n)].copy()
  labels[r.random(labels.shape) < 0.4] = -1
  labels[0], labels[1] = -1, t.paths[-1]
  return logits, labels


def as_float32(tree):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def slopes(f, arrays, step=1e-5):
  """Central differences of a scalar f(*arrays) with respect to every entry."""
  out = []
  for x in arrays:
    out.append(np.zeros_like(x))
    for position in np.ndindex(x.shape):
      remaining, values = x[position], []
      for x[position] in (remaining + step, remaining - step):
        values.append(f(*arrays))
      x[position] = remaining
      out[-1][position] = (values[0] - values[1]) / (2 * step)
  return out


def compare(loss, naive, arrays):
  """Compare values [B] and gradients in float32 with naive values and differences in float64."""
  expected = np.array(naive(*arrays))
  weights = np.random.default_rng(1).uniform(1, 2, expected.shape)

  def total(xs):
    value = loss(*xs)
    return (value * as_float32(weights)).sum(), value

  grads, value = jit(jax.grad(total, has_aux=True))(as_float32(arrays))
  assert value.shape == expected.shape and value.dtype == jnp.float32
  np.testing.assert_allclose(value, expected, rtol=1e-5, atol=2e-6)
  for actual, want in zip(
    grads, slopes(lambda *xs: np.sum(naive(*xs) * weights), arrays), strict=True
  ):
    np.testing.assert_allclose(actual, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name,kind', CASES)
def test_against_loops(name, kind):
  (loss, naive), t = LOSSES[name], TAXONOMIES[kind]
  logits, labels = example(t)
  compare(
    lambda *xs: loss(dict(zip(t.levels, xs)), jnp.asarray(labels), t),
    lambda *xs: [naive(rows, y, t) for *rows, y in zip(*xs, labels.tolist())],
    list(logits.values()),
  )


@pytest.mark.parametrize('name,kind', CASES)
def test_huge_logits_and_unknown_labels(name, kind):
  loss, t = LOSSES[name][0], TAXONOMIES[kind]
  logits, labels = example(t, scale=1e4)
  for x in logits.values():
    x[0] /= (
      1e4  # of which nothing is known: exactly 0, where huge ones would hide what rounding leaves
    )

  def total(x):
    value = loss(x, jnp.asarray(labels), t)
    return value.sum(), value

  grads, value = jit(jax.grad(total, has_aux=True))(as_float32(logits))
  assert (
    np.isfinite(value).all()
    and (value >= 0).all()
    and all(np.isfinite(g).all() for g in grads.values())
  )
  if name != 'distribution_matching':  # which asks for no label
    assert value[0] == 0 and not any(g[0].any() for g in grads.values())


@pytest.mark.parametrize('kind', ['facets', 'early ends'])
def test_with_the_finest_label_they_are_cross_entropy(kind):
  t = TAXONOMIES[kind]
  logits, labels = example(t)
  finest, leaf = as_float32(logits[t.levels[-1]]), np.arange(9) % len(t.paths)
  expected = exclusive.cross_entropy(finest, jnp.asarray(leaf))
  for coarser in (t.paths[leaf, :-1], np.full((9, 2), -1)):
    labels = jnp.asarray(np.concatenate([coarser, leaf[:, None]], 1))
    np.testing.assert_allclose(exclusive.any_level(finest, labels, t.paths), expected, rtol=1e-6)
    np.testing.assert_allclose(exclusive.hxe(finest, labels, t.paths, 0.0), expected, rtol=2e-6)
    for loss in (exclusive.hace, exclusive.soft_max_margin):
      np.testing.assert_allclose(loss(finest, labels, t.paths, 0.0), expected, rtol=2e-6)
  complete = jnp.asarray(t.paths[leaf])
  half = exclusive.hxe(finest, complete, t.paths, 0.5)
  assert (half <= expected * 1.00001).all() and (half < 0.9 * expected).sum() >= 5
  np.testing.assert_allclose(
    exclusive.hxe(finest, complete, t.paths, 50.0),
    exclusive.any_level(finest, complete.at[:, 1:].set(-1), t.paths),
    rtol=1e-5,
  )


def test_tree_path_is_0_on_the_path_and_leaves_unknown_levels_alone(cars):
  y = jnp.array([[1, 2, 4], [1, -1, 4]])
  logits = {
    level: 60.0 * jax.nn.one_hot(jnp.full(2, c), cars.num_classes(level))
    for level, c in zip(cars.levels, [1, 2, 4])
  }
  f = jit(jax.value_and_grad(lambda x: terms.tree_path(x, y, cars).sum()))
  np.testing.assert_allclose(f(logits)[0], 0, atol=1e-5)
  value, grads = f({k: 0 * x for k, x in logits.items()})
  np.testing.assert_allclose(value, np.log(12 / 3) + np.log(9 / 2), rtol=1e-6)
  assert grads['type'][0].any() and not grads['type'][1].any()


def test_matching_is_least_where_the_heads_agree(cars):
  """Heads that are certain and agree have loss 0; facets are matched over their leaves."""

  def certain(leaf):
    return {
      level: 40.0 * jax.nn.one_hot(jnp.array([cars.paths[leaf, k]]), cars.num_classes(level))
      for k, level in enumerate(cars.levels)
    }

  agree, other, matching = (
    certain(4),
    certain(0),
    jit(lambda x: terms.distribution_matching(x, cars)),
  )
  assert matching(agree)[0] < 1e-5
  assert matching({**agree, 'type': other['type']})[0] > 10
  assert cars.names[:2] == (('Audi', 'BMW', 'Geo'), ('Coupe', 'SUV', 'Sedan'))
  coupe, suv, sedan = (
    0.2,
    0.3,
    0.5,
  )  # a coupe is Audi's, an SUV BMW's or Geo's, a sedan Audi's in two of three models
  implied = [coupe + 2 / 3 * sedan, suv / 2 + sedan / 3, suv / 2]
  facets = {'make': jnp.zeros((1, 3)), 'type': jnp.log(jnp.array([[coupe, suv, sedan]]))}
  np.testing.assert_allclose(matching(facets), [-np.log(implied).mean()], rtol=1e-5)


def test_co_annotation_spreads_over_what_agrees(cars):
  """What a head's gradient pulls it to: of a Sedan by Audi, the two models; a model's make."""
  grad = jit(jax.grad(lambda x, y: terms.co_annotation(x, y, cars)[0]))

  def pull(level, y):
    return -grad({level: jnp.zeros((1, cars.num_classes(level)))}, jnp.array([y]))[level][0]

  make, kind = (cars.names[k].index(name) for k, name in enumerate(('Audi', 'Sedan')))
  np.testing.assert_allclose(
    pull('model', [make, kind, -1]) + 1 / 6, [0, 0.5, 0.5, 0, 0, 0], atol=1e-6
  )
  np.testing.assert_allclose(pull('model', [make, -1, 5]) + 1 / 6, [1 / 3] * 3 + [0] * 3, atol=1e-6)
  np.testing.assert_allclose(pull('make', [-1, -1, 4]) + 1 / 3, [0, 1, 0], atol=1e-6)
  assert not pull('make', [make, -1, -1]).any()


# Distillation.


def test_distillation_against_a_loop():
  """Known classes only; no gradient to the teacher, none where both agree, else T (p - q)."""
  r = np.random.default_rng(0)
  x, t = (
    {'make': 3 * r.standard_normal((4, 3)), 'model': 3 * r.standard_normal((4, 6))}
    for _ in range(2)
  )
  is_known = {
    'make': np.array([True] * 3),
    'model': np.array([True, False, True, True, False, False]),
  }

  def naive(heat):
    out = np.zeros(4)
    for level, entry in is_known.items():
      for i in range(4):
        q, p = (softmax((z[level][i] / heat)[entry]) for z in (t, x))
        out[i] += heat**2 * sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q)) / 2
    return out

  def cast(z):
    return {level: as_float32(v) for level, v in z.items()}

  for heat in (1.0, 2.0):
    np.testing.assert_allclose(
      terms.distillation(cast(x), terms.Teacher(cast(t), is_known), heat), naive(heat), rtol=1e-4
    )
  of_x, of_t = jax.grad(
    lambda a, b: terms.distillation(a, terms.Teacher(b, is_known), 2.0).sum(), (0, 1)
  )(cast(x), cast(t))
  assert not any(v.any() for v in of_t.values()) and not of_x['model'][:, ~is_known['model']].any()
  p, q = (np.array([softmax(row[is_known['model']] / 2) for row in z['model']]) for z in (x, t))
  np.testing.assert_allclose(
    of_x['model'][:, is_known['model']], 2 / 2 * (p - q), rtol=1e-3, atol=1e-6
  )
  assert (
    not np.abs(
      jax.grad(lambda a: terms.distillation(a, terms.Teacher(cast(t), is_known), 2.0).sum())(
        cast(t)
      )['model']
    ).max()
    > 1e-6
  )


@pytest.mark.parametrize('kind', ['facets', 'early ends'])
def test_the_joint_posterior_teaches_the_finest_head(kind):
  t = TAXONOMIES[kind]
  logits, _ = example(t)
  constant = [[softmax(row) for row in x] for x in logits.values()]

  def naive(*xs, heat=2.0):
    """The posterior of the heads as they are, whatever xs are: it has no gradient."""
    out = []
    for i in range(len(xs[-1])):
      joint = np.array(
        [math.prod(constant[k][i][c] for k, c in enumerate(path)) for path in t.paths]
      ) ** (1 / heat)
      q, p = joint / joint.sum(), softmax(xs[-1][i] / heat)
      out.append(heat**2 * np.sum(q * np.log(q / p)))
    return out

  compare(
    lambda *xs: terms.joint_distillation(dict(zip(t.levels, xs)), t, 2.0),
    naive,
    list(logits.values()),
  )


# The prior.


def test_log_prior():
  labels = np.array([0, 0, 0, 2, -1, -1, 2, 0])
  np.testing.assert_allclose(
    exclusive.log_prior(labels, 4), np.log(np.array([4, 1, 2, 1]) / 8), rtol=1e-6
  )


def test_logit_adjustment_learns_the_likelihood_of_a_long_tail():
  """Of two classes with the same image: plain training learns the prior, adjusted does not."""
  labels = jnp.array([0] * 9 + [1])
  shift = jnp.asarray(exclusive.log_prior(np.asarray(labels), 2))[None]

  def total(x, shift):
    return exclusive.cross_entropy(jnp.tile(x, (10, 1)) + shift, labels).sum()

  slope = jax.grad(total)
  np.testing.assert_allclose(slope(jnp.zeros((1, 2)), shift), 0, atol=1e-5)
  np.testing.assert_allclose(slope(shift, 0 * shift), 0, atol=1e-5)


# Soft labels of LCA distances.


@pytest.mark.parametrize('kind', TAXONOMIES)
def test_lca_targets_against_a_loop(kind):
  t = TAXONOMIES[kind]
  height = [[sum(a != b for a, b in zip(p, q)) for q in t.paths] for p in t.paths]
  top, leaves = max(max(h) for h in height) or 1, jnp.arange(len(t.paths))
  for beta in (0.0, 3.0, 30.0):
    np.testing.assert_allclose(
      exclusive.lca_targets(t, beta)(leaves),
      [softmax([-beta * h / top for h in row]) for row in height],
      rtol=1e-6,
    )
  np.testing.assert_allclose(exclusive.lca_targets(t, 1e6)(leaves), np.eye(len(t.paths)))


# HCAL.


def test_info_nce_against_a_loop():
  r, labels = np.random.default_rng(0), [2, 0, -1, 4, 1]

  def naive(moved, clean):
    out = []
    for m, c, y in zip(moved, clean, labels):
      positives, negatives = [c[y], m[y]], [m[j] for j in range(5) if j != y]
      out.append(
        0
        if y < 0
        else -sum(
          math.log(math.exp(p) / sum(math.exp(q) for q in positives + negatives)) for p in positives
        )
      )
    return out

  compare(
    lambda moved, clean: exclusive.info_nce(moved, jnp.array(labels), clean),
    naive,
    [3 * r.standard_normal((5, 5)) for _ in range(2)],
  )
  moved = as_float32(r.standard_normal((5, 5)))
  assert (
    exclusive.info_nce(moved, jnp.array(labels))
    == exclusive.cross_entropy(moved, jnp.array(labels))
  ).all()


def naive_class_means(features, labels, classes):
  means, present = np.zeros((classes, features.shape[1])), np.zeros(classes)
  for c in range(classes):
    if means_of_means := [f for f, y in zip(features, labels) if y == c]:
      means[c], present[c] = np.mean(means_of_means, 0), 1
  return means, present


def test_class_means_against_a_loop():
  r, labels = np.random.default_rng(0), np.array([3, 0, -1, 3, 3, 0, -1, 5])
  features = r.standard_normal((8, 4))
  means, present = exclusive.class_means(as_float32(features), jnp.asarray(labels), 6)
  expected = naive_class_means(features, labels, 6)
  np.testing.assert_allclose(means, expected[0], rtol=1e-6, atol=1e-7)
  assert (present == expected[1]).all() and present.tolist() == [1, 0, 0, 1, 0, 1]
  parents = np.array([0, 0, 1, 2, 2, 0])
  above, is_present = exclusive.class_means(
    means, jnp.where(present > 0, jnp.asarray(parents), -1), 4
  )
  np.testing.assert_allclose(
    above,
    [(expected[0][0] + expected[0][5]) / 2, np.zeros(4), expected[0][3], np.zeros(4)],
    rtol=1e-6,
  )
  assert is_present.tolist() == [1, 0, 1, 0]
  grad = jax.grad(lambda x: exclusive.class_means(x, jnp.asarray(labels), 6)[0].sum())(
    as_float32(features)
  )
  np.testing.assert_allclose(
    grad, np.array([1 / 3, 1 / 2, 0, 1 / 3, 1 / 3, 1 / 2, 0, 1])[:, None].repeat(4, 1), rtol=1e-6
  )
  nothing = exclusive.class_means(as_float32(features), jnp.full(8, -1), 6)
  assert not nothing[0].any() and not nothing[1].any()


@pytest.mark.parametrize('name', seeded.HCAL)
def test_hcal_is_torchs(name):
  assert hcal.difference(name, hcal.golden()[name], ours.QUICK) <= 1e-5


@pytest.mark.parametrize(
  'change',
  [
    {'model.normalize': True},
    {'model.head.dot_product': True},
    {'loss.positives': 'both'},
    {'loss.aggregate': 'samples'},
  ],
  ids=str,
)
def test_hcal_s_readings_are_told_apart(change):
  assert (
    hcal.difference('paper, 3 levels', hcal.golden()['paper, 3 levels'], ours.QUICK, **change)
    > 1e-2
  )


# Supervised contrastive.


def naive_contrast(features, labels, temperature):
  z = features / np.linalg.norm(features, axis=1, keepdims=True)
  out = np.zeros(len(z))
  for i in range(len(z)):
    for k in range(labels.shape[1]):
      others = [a for a in range(len(z)) if a != i and labels[a, k] >= 0]
      positives = [a for a in others if labels[a, k] == labels[i, k]]
      norm = sum(math.exp(z[i] @ z[a] / temperature) for a in others)
      out[i] += (
        sum(-math.log(math.exp(z[i] @ z[p] / temperature) / norm) for p in positives)
        / max(len(positives), 1)
        / labels.shape[1]
      )
  return out


def test_supervised_contrastive_against_a_loop():
  labels = np.array([[0, 0], [0, 1], [1, 2], [0, 0], [-1, -1], [1, -1], [2, 3]])
  features = np.random.default_rng(0).standard_normal((7, 4))
  compare(
    lambda x: terms.supervised_contrastive(x, jnp.asarray(labels), 0.3),
    lambda x: naive_contrast(x, labels, 0.3),
    [features],
  )


def test_supervised_contrastive_at_the_edges():
  x = as_float32(np.random.default_rng(0).standard_normal((4, 3))).at[2].set(0)
  value_and_grad = jit(
    jax.value_and_grad(
      lambda x, labels, temperature: terms.supervised_contrastive(x, labels, temperature).sum()
    )
  )

  def value(labels, x=x, temperature=0.1):
    out, grad = value_and_grad(x, jnp.array(labels)[:, None], temperature)
    assert np.isfinite(grad).all()
    return out

  assert value([0, 1, 2, 3]) == value([-1] * 4) == value([-1, -1, -1, 0]) == 0
  assert value([0] * 4) > 0 and np.isfinite(value([0] * 4, temperature=1e-4))
  np.testing.assert_allclose(value([0, 0, 1, 1], 1000 * x), value([0, 0, 1, 1], x), rtol=1e-5)
  assert terms.supervised_contrastive(x[:1], jnp.array([[0]]), 0.1) == 0


# The global batch under sharding: each device's shares of the loss add up, as in training.


def shares(kind, x, labels, prototypes, axis=None):
  """One device's share of a loss over the batch."""
  if kind == 'supervised_contrastive':
    return exclusive.masked_mean(
      terms.supervised_contrastive(x, labels, 0.2, axis), (labels >= 0).any(1), axis
    )
  means, present = exclusive.class_means(x, labels[:, 1], len(prototypes), axis)
  if kind == 'children':
    means, present = exclusive.class_means(
      means, jnp.where(present > 0, jnp.array([0, 0, 1, 1, 2, 2]), -1), 3
    )
  logits = means @ prototypes[: len(means)].T
  loss = exclusive.masked_mean(
    exclusive.info_nce(logits, jnp.arange(len(means)), logits / 2), present
  )
  return loss if axis is None else loss / jax.lax.axis_size(axis)


@pytest.mark.parametrize('kind', ['supervised_contrastive', 'class_means', 'children'])
def test_eight_devices_are_one(kind):
  r = np.random.default_rng(0)
  x, prototypes = as_float32([r.standard_normal((16, 5)), r.standard_normal((6, 5))])
  labels = r.integers(-1, [3, 5], size=(16, 2))
  labels[:4] = -1  # the first two devices know nothing
  f = jax.value_and_grad(functools.partial(shares, kind), (0, 2))

  def device(x, labels, prototypes):
    value, (by_features, by_prototypes) = jax.value_and_grad(
      functools.partial(shares, kind, axis='data'), (0, 2)
    )(x, labels, prototypes)
    return jax.lax.psum((value, by_prototypes), 'data'), by_features

  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  batch = jax.shard_map(
    device,
    mesh=mesh,
    in_specs=(jax.P('data'), jax.P('data'), jax.P()),
    out_specs=(jax.P(), jax.P('data')),
    check_vma=False,
  )
  (value, by_prototypes), by_features = jit(batch)(x, jnp.asarray(labels), prototypes)
  expected, (features, others) = jit(f)(x, jnp.asarray(labels), prototypes)
  assert expected > 0.1 and np.abs(features).max() > 1e-3
  for actual, want in ((value, expected), (by_features, features), (by_prototypes, others)):
    np.testing.assert_allclose(actual, want, rtol=1e-5, atol=1e-6)
