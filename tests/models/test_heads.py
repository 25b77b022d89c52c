"""The forms of heads: shapes, counts, order, where gradients go, and when two forms are one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hierjax.core import config, parallel
from hierjax.core.errors import UserError
from hierjax.decide import paths
from hierjax.experiments import describe
from hierjax.models import classifier, heads, heads_joined, initializers
from hierjax.taxonomy import TagTaxonomy, Taxonomy
from hierjax.train import optim, setup
from hierjax.train.step import train_step

D = 12
CLASSES = (('make', 3), ('type', 2), ('model', 5))
FACETS = ((), (), ('make', 'type'))  # make and type do not nest, model in both
X = np.random.default_rng(0).standard_normal((4, D), 'f4')
TREE = Taxonomy.from_rows(
  ['order', 'family', 'species'],
  [['o1', 'f1', 'a'], ['o1', 'f1', 'b'], ['o1', 'f2', 'c'], ['o2', 'f3', 'd']],
)
CARS = Taxonomy.from_rows(
  ['make', 'type', 'model'],
  [['a', 's', '1'], ['a', 't', '2'], ['b', 's', '3'], ['b', 't', '4'], ['c', 's', '5']],
)
# the first branch ends at the order, the second at the family
UNEVEN = Taxonomy.from_rows(
  ['order', 'family', 'species'],
  [['g', '', ''], ['p', 'q', ''], ['p', 'r', 'x'], ['p', 'r', 'y'], ['u', 'v', 'z']],
)
JOINED = ('marginal', 'path_sum', 'hier_cos')


def make(form, classes=CLASSES, ancestors=FACETS, seed=0, taxonomy=CARS, **options):
  """The heads and their parameters, drawn at random, biases too."""
  if form in JOINED:
    options['taxonomy'] = taxonomy
  module = heads.HEADS[form](classes, ancestors, **options)
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda x: rng.standard_normal(x.shape, 'f4') * 0.3,
    initializers.init(module, seed, X, False)['params'],
  )
  return module, params


def logits(module, params, x=X, train=False):
  return module.apply({'params': params}, x, train)


def dense(p, x):
  return x @ p['kernel'] + p['bias']


def relu(x):
  return np.maximum(x, 0)


def size(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


def reached(module, params, level, x=X):
  """Which parts a level's logits train: {name: bool}, and the gradient of the features [D]."""
  direction = (
    np.random.default_rng(1).standard_normal((len(x), dict(module.classes)[level])).astype('f4')
  )
  grads, slope = jax.grad(
    lambda p, x: (logits(module, p, x, True)[level] * direction).sum(), (0, 1)
  )(params, jnp.asarray(x))
  return {
    name: any(np.any(g != 0) for g in jax.tree.leaves(tree)) for name, tree in grads.items()
  }, np.abs(slope).sum(0)


def equal(a, b, rtol=1e-5):
  assert a.keys() == b.keys()
  for level in a:
    np.testing.assert_allclose(a[level], b[level], rtol=rtol, atol=1e-5, err_msg=level)


@pytest.mark.parametrize('form', heads.HEADS)
def test_shapes_and_groups(form):
  """Float32 logits in the order of the levels; every parameter in a group that can be frozen."""
  module, params = make(form)
  out = logits(module, params, jnp.asarray(X, jnp.bfloat16))
  assert [(level, x.shape, x.dtype) for level, x in out.items()] == [
    (level, (4, n), jnp.float32) for level, n in CLASSES
  ]
  levels = CLASSES[2:] if form == 'marginal' else CLASSES
  assert set(optim.groups({'heads': params})) == {f'heads/{level}' for level, _ in levels} | (
    {'heads/shared'} if form == 'mmoe' else set()
  )


@pytest.mark.parametrize('form', heads.HEADS)
def test_one_level_alone(form):
  module, params = make(form, CLASSES[2:], ((),))
  assert logits(module, params)['model'].shape == (4, 5)


def test_parallel_is_a_linear_map_a_level():
  module, params = make('parallel')
  equal(logits(module, params), {level: dense(params[level], X) for level, _ in CLASSES})
  assert size(params) == sum((D + 1) * n for _, n in CLASSES)
  assert reached(module, params, 'make')[0] == {'make': True, 'type': False, 'model': False}


# Cascaded.


def test_cascade_reads_the_logits_of_the_level_before():
  module, params = make('cascaded')
  out = logits(module, params)
  one = dense(params['make'], X)
  two = dense(params['type'], np.concatenate([X, one], 1))
  equal(
    out, {'make': one, 'type': two, 'model': dense(params['model'], np.concatenate([X, two], 1))}
  )


@pytest.mark.parametrize(
  'd,single,parallel,cascaded',
  [  # S1, table III: what is over the trunk
    (1024, 7_154_756 - 6_953_856, 7_204_981 - 6_953_856, 7_214_585 - 6_953_856),
    (512, 30_508_172 - 30_407_624, 30_533_309 - 30_407_624, 30_542_913 - 30_407_624),
  ],
)
def test_counts_of_s1(d, single, parallel, cascaded):
  def count(form, classes):
    module = heads.HEADS[form](classes, ((), ('make',))[: len(classes)])
    return size(jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, d)), False)))

  two = (('make', 49), ('model', 196))
  assert (count('flat', two[1:]), count('parallel', two), count('cascaded', two)) == (
    single,
    parallel,
    cascaded,
  )


def test_cascade_that_ignores_the_logits_is_parallel():
  module, params = make('cascaded')
  params = {
    level: {**p, 'kernel': np.concatenate([p['kernel'][:D], 0 * p['kernel'][D:]])}
    for level, p in params.items()
  }
  equal(
    logits(module, params),
    logits(
      heads.Parallel(CLASSES, FACETS),
      {level: {**p, 'kernel': p['kernel'][:D]} for level, p in params.items()},
    ),
  )


def test_cascade_in_another_order():
  module, params = make('cascaded', order=('model', 'make', 'type'))
  out = logits(module, params)
  assert list(out) == ['make', 'type', 'model']  # the levels' own order stays
  assert {level: p['kernel'].shape[0] for level, p in params.items()} == {
    'model': D,
    'make': D + 5,
    'type': D + 3,
  }
  np.testing.assert_allclose(
    out['type'], dense(params['type'], np.concatenate([X, out['make']], 1)), rtol=1e-5, atol=1e-5
  )


def test_gradient_through_the_logits_or_stopped():
  module, params = make('cascaded')
  stopped, _ = make('cascaded', stop_gradient=True)
  assert reached(module, params, 'model')[0] == {'make': True, 'type': True, 'model': True}
  assert reached(stopped, params, 'model')[0] == {'make': False, 'type': False, 'model': True}
  equal(logits(module, params, train=True), logits(stopped, params, train=True))
  slopes = [
    jax.grad(lambda x: logits(m, params, x)['model'].sum())(jnp.asarray(X))
    for m in (module, stopped)
  ]
  np.testing.assert_array_equal(
    *slopes
  )  # out of training, where heatmaps are made, there is no stop
  # past the stop the features get the model's gradient by its own head alone
  direction = np.random.default_rng(1).standard_normal((4, 5)).astype('f4')
  np.testing.assert_allclose(
    reached(stopped, params, 'model')[1],
    np.abs(direction @ params['model']['kernel'][:D].T).sum(0),
    rtol=1e-4,
  )


# Cross-talk.


@pytest.mark.parametrize('depth', [1, 3])
def test_crosstalk_with_units_at_identity_is_a_network_a_level(depth):
  module, params = make('crosstalk', layers=depth, width=7)
  for k, (level, _) in enumerate(CLASSES):
    params[level]['stitch'] = np.tile(np.eye(3, dtype='f4')[k], (depth, 1))
  expected = {}
  for level, _ in CLASSES:
    y = X
    for i in range(depth):
      y = relu(dense(params[level][f'hidden_{i}'], y))
    expected[level] = dense(params[level]['output'], y)
  equal(logits(module, params), expected)
  assert reached(module, params, 'make')[0] == {'make': True, 'type': False, 'model': False}


def test_crosstalk_mixes_every_layer_of_every_path():
  module, params = make('crosstalk', layers=2, width=7)
  ys = [X] * 3
  for i in range(2):
    zs = [relu(dense(params[level][f'hidden_{i}'], y)) for (level, _), y in zip(CLASSES, ys)]
    ys = [sum(a * z for a, z in zip(params[level]['stitch'][i], zs)) for level, _ in CLASSES]
  equal(
    logits(module, params),
    {level: dense(params[level]['output'], y) for (level, _), y in zip(CLASSES, ys)},
  )
  assert reached(module, params, 'make')[0] == {'make': True, 'type': True, 'model': True}
  assert size(params) == 3 * ((D + 1) * 7 + 8 * 7 + 2 * 3) + 8 * 10


def test_cross_stitch_units_start_near_the_identity():
  params = initializers.init(heads.Crosstalk(CLASSES, FACETS), 0, X, False)['params']
  stitch = np.stack([params[level]['stitch'] for level, _ in CLASSES])
  np.testing.assert_allclose(stitch[:, 0], 0.9 * np.eye(3) + 0.05 * (1 - np.eye(3)), rtol=1e-6)


# Mixture of experts.


def test_mmoe_mixes_experts_by_each_level_s_gate():
  module, params = make('mmoe', experts=4, width=6, tower=5)
  experts = relu(dense(params['shared'], X)).reshape(4, 4, 6)
  expected = {}
  for level, _ in CLASSES:
    p, gate = params[level], np.exp(dense(params[level]['gate'], X))
    gate /= gate.sum(1, keepdims=True)
    expected[level] = dense(
      p['output'], relu(dense(p['hidden'], np.einsum('be,bew->bw', gate, experts)))
    )
  equal(logits(module, params), expected)
  assert reached(module, params, 'make')[0] == {
    'shared': True,
    'make': True,
    'type': False,
    'model': False,
  }


def test_mmoe_with_one_expert_is_a_shared_bottom():
  module, params = make('mmoe', experts=1, width=6, tower=5)
  y = relu(dense(params['shared'], X))
  equal(
    logits(module, params),
    {
      level: dense(params[level]['output'], relu(dense(params[level]['hidden'], y)))
      for level, _ in CLASSES
    },
  )


def test_mmoe_has_hcal_s_sizes():
  """3 experts 512 → 128, towers 128 → 256 → C, on CIFAR-100's 20 and 100 classes."""
  module = heads.MMoE((('super', 20), ('sub', 100)), ((), ('super',)))
  params = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 512)), False))
  assert size(params) == 3 * (512 + 1) * 128 + 2 * ((512 + 1) * 3 + 129 * 256) + 257 * 120


# Residual.


def test_residual_adds_the_features_of_all_ancestors():
  module, params = make('residual', width=7, ancestors=((), ('make',), ('make', 'type')), layers=2)
  path_features = {
    level: dense(params[level]['hidden_1'], relu(dense(params[level]['hidden_0'], X)))
    for level, _ in CLASSES
  }
  total, expected = 0, {}
  for level, _ in CLASSES:
    total = total + path_features[level]
    expected[level] = dense(params[level]['output'], relu(total))
  equal(logits(module, params), expected)
  assert reached(module, params, 'type')[0] == {'make': True, 'type': True, 'model': False}


def test_residual_with_facets_adds_each_to_the_finest_but_not_to_each_other():
  module, params = make('residual', width=7)
  assert reached(module, params, 'type')[0] == {'make': False, 'type': True, 'model': False}
  assert reached(module, params, 'model')[0] == {'make': True, 'type': True, 'model': True}


def test_residual_without_own_features_of_the_ancestors_is_a_network_a_level():
  module, params = make('residual', width=7)
  for level in ('make', 'type'):
    params[level]['hidden_0'] = jax.tree.map(np.zeros_like, params[level]['hidden_0'])
  p = params['model']
  np.testing.assert_allclose(
    logits(module, params)['model'],
    dense(p['output'], relu(dense(p['hidden_0'], X))),
    rtol=1e-5,
    atol=1e-5,
  )


# Split.


def test_split_reads_finer_slices_without_changing_them():
  module, params = make('split', ancestors=((), ('make',), ('make', 'type')))
  equal(
    logits(module, params),
    {
      'make': dense(params['make'], X),
      'type': dense(params['type'], X[:, 4:]),
      'model': dense(params['model'], X[:, 8:]),
    },
  )
  for level, path_features in (
    ('make', slice(0, 4)),
    ('type', slice(4, 8)),
    ('model', slice(8, 12)),
  ):
    slope = reached(module, params, level)[1]
    assert (slope[path_features] > 0).all() and np.delete(slope, np.r_[path_features]).max() == 0, (
      level
    )
  # what is shown of a trained model is the whole dependence
  slope = jax.grad(lambda x: logits(module, params, x)['make'].sum())(jnp.asarray(X))
  assert (np.abs(slope).sum(0) > 0).all()


def test_split_with_facets_and_given_widths():
  module, params = make('split', slices=(2, 3, 7))
  equal(
    logits(module, params),
    {
      'make': dense(params['make'], np.concatenate([X[:, :2], X[:, 5:]], 1)),
      'type': dense(params['type'], X[:, 2:]),
      'model': dense(params['model'], X[:, 5:]),
    },
  )


def test_equal_slices_leave_the_rest_to_the_finest():
  module, params = make('split', classes=CLASSES, slices=())
  wide = initializers.init(module, 0, np.zeros((1, 14), 'f4'), False)['params']
  assert wide['model']['kernel'].shape == (6, 5) and wide['make']['kernel'].shape == (4 + 6, 3)
  assert params['model']['kernel'].shape == (4, 5)


# Heads of joined levels.


def softmax(x):
  p = np.exp(x - x.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def path(taxonomy, leaf):
  """The nodes of a leaf by hand: (level, class), a carried class once, where it ends."""
  return [(taxonomy.levels[k], taxonomy.paths[leaf, k]) for k in range(taxonomy.depth[leaf])]


def example(form, taxonomy):
  """The module on a taxonomy, its parameters, and the logits of its linear layers."""
  classes = tuple((level, taxonomy.num_classes(level)) for level in taxonomy.levels)
  module, params = make(form, classes, ((),) * 3, taxonomy=taxonomy)
  return module, params, {level: dense(p, X) for level, p in params.items()}


@pytest.mark.parametrize('taxonomy', [CARS, UNEVEN, TREE], ids=['facets', 'uneven', 'tree'])
@pytest.mark.parametrize('form', ['marginal', 'path_sum'])
def test_probabilities_of_classes_are_sums_over_their_leaves(form, taxonomy):
  module, params, z = example(form, taxonomy)
  leaves = z[taxonomy.levels[-1]]
  if form == 'path_sum':
    leaves = np.stack(
      [sum(z[l][:, c] for l, c in path(taxonomy, i)) for i in range(len(taxonomy.paths))], 1
    )
  p, out = softmax(leaves), logits(module, params)
  for k, level in enumerate(taxonomy.levels):
    expected = np.zeros((len(X), taxonomy.num_classes(level)))
    for leaf, classes in enumerate(taxonomy.paths):
      expected[:, classes[k]] += p[:, leaf]
    np.testing.assert_allclose(softmax(out[level]), expected, rtol=1e-5, err_msg=level)
  np.testing.assert_allclose(out[taxonomy.levels[-1]], leaves, rtol=1e-5, atol=1e-5)


def test_a_path_without_the_level_where_it_ends():
  """With heads on the two finer levels, the node of the order is on the family's."""
  nodes = heads_joined.distinct_nodes(UNEVEN, ['family', 'species'])
  assert UNEVEN.names[1] == ('g', 'q', 'r', 'v') and nodes['family'].all()
  assert nodes['species'].tolist() == [False, False, True, True, True]


@pytest.mark.parametrize('scale', [1e4, -1e4])
def test_huge_logits_of_joined_levels(scale):
  """Neither overflow nor a gradient that is lost."""
  leaves = jnp.asarray(X[:, :5] * scale)
  out, slopes = jax.value_and_grad(
    lambda x: sum(v.sum() for v in heads_joined.marginals(x, CARS, CARS.levels).values())
  )(leaves)
  assert np.isfinite(out) and np.isfinite(slopes).all()
  # each class of each of the three levels gives its leaves 1 in all
  np.testing.assert_allclose(slopes.sum(1), 3 + 2 + 5, rtol=1e-5)


@pytest.mark.parametrize('form', ['marginal', 'path_sum'])
def test_the_joint_decision_of_joined_levels_is_that_of_the_leaves(form):
  """Levels that follow from the leaves get no weight, though val asks for one."""
  module, params, _ = example(form, CARS)
  x = 3 * np.random.default_rng(0).standard_normal((200, D), 'f4')
  out = logits(module, params, x)
  probs = [softmax(np.asarray(out[level])) for level in CARS.levels]
  product = paths.joint(probs, CARS, [1, 1, 1]).pred
  best = probs[-1].argmax(-1)
  assert (product[:, -1] != best).any()
  # labels by which weights of 1 would be right always
  weights = paths.tune(probs, product, CARS)
  np.testing.assert_array_equal(weights, [0, 0, 1])
  np.testing.assert_array_equal(paths.joint(probs, CARS, weights).pred, CARS.paths[best])


@pytest.mark.parametrize('taxonomy', [CARS, UNEVEN, TREE], ids=['facets', 'uneven', 'tree'])
def test_hier_cos_against_masks_of_ancestors_and_descendants(taxonomy):
  """Score^2 = z^2 M' with M node by node from the paths."""
  module, params, z = example('hier_cos', taxonomy)
  nodes = sorted({node for leaf in range(len(taxonomy.paths)) for node in path(taxonomy, leaf)})
  squares = np.stack([np.asarray(z[level])[:, c] ** 2 for level, c in nodes], 1)
  below = {
    (level, c): {leaf for leaf, row in enumerate(taxonomy.paths) if row[k] == c}
    for k, level in enumerate(taxonomy.levels)
    for c in range(taxonomy.num_classes(level))
  }
  out = logits(module, params)
  for k, level in enumerate(taxonomy.levels):
    for c in range(taxonomy.num_classes(level)):
      leaves = below[level, c]
      mask = []
      for name, d in nodes:
        j, other = taxonomy.levels.index(name), below[name, d]
        is_above = j < k and leaves <= other and taxonomy.nests(level, name)
        is_below = j > k and other <= leaves and taxonomy.nests(name, level)
        mask.append(is_above or is_below or (name, d) == (level, c))
      np.testing.assert_allclose(
        out[level][:, c],
        np.sqrt(squares @ np.array(mask, float)),
        rtol=1e-4,
        err_msg=f'{level} {c}',
      )


def test_hier_cos_has_a_slope_where_all_is_0():
  module, params, _ = example('hier_cos', CARS)
  zeros = jax.tree.map(np.zeros_like, params)
  slopes = jax.grad(lambda p: sum(v.sum() for v in logits(module, p).values()))(zeros)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(slopes))


@pytest.mark.parametrize('form', JOINED)
def test_what_joined_levels_refuse(form):
  with pytest.raises(UserError, match=f'parts is not an option of --config.model.heads={form}'):
    build(**{'model.heads': form, 'model.parts': (('species', 'a', 2),)})
  tags = TagTaxonomy.from_rows(('kind', 'tag'), [['x', 'a'], ['x', 'b'], ['y', 'c']])
  with pytest.raises(UserError, match=f'heads={form} joins exclusive levels.*tag levels only'):
    build(tags.levels, tags, **{'model.heads': form})


def test_a_level_without_parameters_is_described():
  c = tiny.run_config(**{'model.heads': 'marginal'})
  assert describe.describe(c)['heads'] == {'make': 0, 'type': 0, 'model': (16 + 1) * 18}


# The config.


def build(levels=TREE.levels, taxonomy=TREE, **changes):
  return classifier.build(tiny.run_config(**changes), taxonomy, levels)


@pytest.fixture(autouse=True)
def backbone(monkeypatch):
  tiny.register(monkeypatch)


def test_ancestors_are_the_levels_that_a_class_determines():
  facets = Taxonomy.from_rows(
    ['make', 'type', 'model'], [['a', 's', '1'], ['a', 't', '2'], ['b', 's', '3']]
  )
  assert build().heads.ancestors == ((), ('order',), ('order', 'family'))
  assert build(facets.levels, facets).heads.ancestors == ((), (), ('make', 'type'))
  assert build(('order', 'species')).heads.ancestors == ((), ('order',))


def test_options_reach_the_form():
  head = build(
    **{
      'model.heads': 'cascaded',
      'model.head.order': 'finest,family,coarsest',
      'model.head.stop_gradient': True,
      'model.dropout': 0.5,
    }
  ).heads
  assert (type(head), head.order, head.stop_gradient, head.dropout) == (
    heads.Cascaded,
    ('species', 'family', 'order'),
    True,
    0.5,
  )
  head = build(
    **{'model.heads': 'mmoe', 'model.head.experts': 5, 'model.head.width': 6, 'model.head.tower': 7}
  ).heads
  assert (head.experts, head.width, head.tower) == (5, 6, 7)
  assert build(**{'model.heads': 'split', 'model.head.slices': (4, 4, 8)}).heads.slices == (4, 4, 8)
  default = build(**{'model.heads': 'crosstalk'}).heads
  assert default == heads.Crosstalk(default.classes, default.ancestors)


def test_every_option_of_the_heads_is_a_field_of_a_form():
  with pytest.raises(
    UserError, match=r"no heads 'parallell'.*did you mean 'parallel'.*choices: flat"
  ):
    build(**{'model.heads': 'parallell'})
  fields = {name for form in heads.HEADS for name in heads.HEADS[form].__dataclass_fields__}
  assert set(config.default().model.head) <= fields


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'model.head.experts': 5},
      r'model\.head\.experts=5 is only valid with --config\.model\.heads=mmoe, not with parallel$',
    ),
    (
      {'model.heads': 'cascaded', 'model.head.width': 64},
      'head.width=64 is only valid with .*crosstalk, mmoe, residual, not with cascaded$',
    ),
    (
      {'model.heads': 'cascaded', 'model.head.order': 'order,family'},
      'must name each level that has a head once; these are order, family, species',
    ),
    (
      {'model.heads': 'cascaded', 'model.head.order': 'order,family,specie'},
      r"head\.order: no level 'specie' \(did you mean 'species'\?\)",
    ),
    (
      {'model.heads': 'split', 'model.head.slices': (8, 8)},
      'must be a width for each of order, family, species that add up to the 16 features of .*tiny',
    ),
    ({'model.heads': 'split', 'model.head.slices': (4, 4, 4)}, 'add up to the 16 features'),
  ],
)
def test_mistakes(changes, message):
  with pytest.raises(UserError, match=message):
    build(**changes)


def test_a_level_with_a_name_of_a_part():
  taxonomy = Taxonomy.from_rows(['shared', 'species'], [['x', 'a'], ['y', 'b']])
  with pytest.raises(UserError, match="a level called 'shared'"):
    build(taxonomy.levels, taxonomy, **{'model.heads': 'mmoe'})


def test_shared_parts_can_be_frozen_and_are_listed():
  c = tiny.run_config(
    **{
      'model.heads': 'mmoe',
      'curriculum': (config.phase(steps=5, freeze='backbone,heads/shared'),),
    }
  )
  run = setup.build(c)
  assert run.phases[0].freeze == ('backbone', 'heads/shared')
  c.curriculum = (config.phase(steps=5, freeze='backbone,heads/all'),)
  assert setup.build(c).phases[0].freeze == (
    'backbone',
    'heads/make',
    'heads/type',
    'heads/model',
  )  # the experts still train
  c.curriculum = (config.phase(steps=5, freeze='backbone,heads/all,heads/shared'),)
  with pytest.raises(UserError, match='nothing would train'):
    setup.build(c)
  c.curriculum = (config.phase(steps=5, freeze='experts'),)
  with pytest.raises(
    UserError, match='choices: backbone, heads/make, heads/type, heads/model, heads/shared'
  ):
    setup.build(c)
  c.model.heads = 'parallel'
  c.curriculum = (config.phase(steps=5, freeze='heads/shared'),)
  with pytest.raises(
    UserError,
    match=r"no parameter group 'heads/shared'.*: backbone, heads/make, heads/type, heads/model$",
  ):
    setup.build(c)


# Training.


@pytest.mark.parametrize('form', heads.HEADS)
def test_features_computed_before_give_the_same_logits(form):
  """A frozen backbone's features are cached; and prediction goes through images."""
  classifier = build(TREE.levels if form != 'flat' else TREE.levels[-1:], **{'model.heads': form})
  images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), 'u1')
  variables = initializers.init(classifier, 0, images)
  through, features = classifier.apply(variables, images)
  before, same = classifier.apply(variables, features)
  assert same is features
  equal(through, before)


@pytest.mark.parametrize('form', heads.HEADS)
def test_a_step_of_each(form, monkeypatch):
  """Every part moves but what is frozen."""
  tiny.use_devices(monkeypatch)
  c = tiny.run_config(
    **{
      'model.heads': form,
      'model.dropout': 0.5,
      'curriculum': (
        config.phase(
          share=1.0,
          freeze='backbone' if form in ('flat', 'marginal') else 'backbone,heads/coarsest',
        ),
      ),
    }
  )
  run = setup.build(c)
  task = run.task
  state, phase = setup.initial_state(run), run.phases[0]
  tx = optim.transformation(c, task.labels, phase.freeze)
  batch = next(iter(setup.batches(run, run.train, 0, 1)))
  step = jax.jit(lambda s, b: train_step(s, b, {}, task, phase, tx, run.mesh))
  after, out = step(state, parallel.put_train(batch, {}, run.mesh))
  moved = {
    name: any(
      np.any(a != b)
      for a, b in zip(
        jax.tree.leaves(state.params['heads'][name]), jax.tree.leaves(after.params['heads'][name])
      )
    )
    for name in state.params['heads']
  }
  assert np.isfinite(out['loss']) and out['grad_norm'] > 0
  assert moved == {
    'flat': {'model': True},
    'marginal': {'model': True},
    'mmoe': {'make': False, 'type': True, 'model': True, 'shared': True},
  }.get(form, {'make': False, 'type': True, 'model': True})
