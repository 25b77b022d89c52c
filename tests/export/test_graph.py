"""The translation of jax to ONNX, an operation, a form of heads or a backbone at a time.

onnxruntime is the oracle of the graph, jax that of the numbers.
"""

import functools
import os
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from jax import lax
from parity import ours

from hierjax import decide
from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.core.segments import segment_logsumexp
from hierjax.decide import decisions
from hierjax.decide.backoff import NEVER
from hierjax.evaluate import collect
from hierjax.export import answers, primitives, program
from hierjax.export.graph import Graph
from hierjax.models import classifier, compute, functional, heads, initializers, layers, registry
from hierjax.models.backbone import Backbone
from hierjax.models.compute import Compute
from hierjax.models.heads_base import folded
from hierjax.taxonomy import TagTaxonomy, Taxonomy
from hierjax.taxonomy.read import divide

(BATCH,) = jax.export.symbolic_shape('b')
RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((3, 3, 4, 6), np.float32)
DEPTHWISE = RNG.standard_normal((3, 3, 1, 4), np.float32)
SCALE, SHIFT = RNG.standard_normal((2, 6), np.float32)
CLASSES = np.array([0, 2, 1, 2])


def session(graph: Graph) -> onnxruntime.InferenceSession:
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3
  content = graph.model({}).SerializeToString()
  return onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])


def translated(function, shape: tuple, dtype=np.float32) -> onnxruntime.InferenceSession:
  """A session of a function of x [b, *shape]."""
  traced, out = jax.make_jaxpr(function, return_shape=True)(
    jax.ShapeDtypeStruct((BATCH, *shape), dtype)
  )
  graph = Graph(BATCH)
  (y,) = primitives.translate(graph, traced, [graph.input('x', dtype, (BATCH, *shape))])
  graph.output('y', graph.full(y, out.shape), out.dtype)
  return session(graph)


def conv(x, kernel=KERNEL, stride=1, pads=((1, 1), (0, 2)), groups=1, spread=1):
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    pads,
    rhs_dilation=(spread, spread),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )


def normed(x):
  y = conv(x)
  return jnp.clip(y * SCALE[None, None, None] + SHIFT[None, None, None], 0, 6)


def gated(x):
  y = conv(x, pads=((1, 1), (1, 1)))
  gate = nn.sigmoid(y.mean((1, 2), keepdims=True))
  return jnp.concatenate([y * gate, nn.relu(y)], -1).max((1, 2))


def two_views(x):
  y = conv(x, DEPTHWISE, pads=((1, 1), (1, 1)), groups=4)
  return conv(jnp.stack([y, jnp.flip(y, 2)], 1).reshape(-1, 6, 6, 4))


def layer_norm(x):
  d = x - x.mean(-1, keepdims=True)
  return d * lax.rsqrt(jnp.square(d).mean(-1, keepdims=True) + 1e-6)


MAPS = {
  'a convolution with uneven padding': conv,
  'strides': lambda x: conv(x, stride=2),
  'dilation': lambda x: conv(x, spread=2),
  'a depthwise convolution': lambda x: conv(x, DEPTHWISE, groups=4),
  'batch norm and relu6 in the kernel': normed,
  'one convolution twice': lambda x: conv(x) + 2.0 * conv(x) * SCALE[None, None, None],
  'a gate on maps': gated,
  'two views of maps': two_views,
  'layer norm': layer_norm,
  'gelu': functional.gelu,
  'max_pool': lambda x: nn.max_pool(conv(x), (3, 3), (2, 2), ((1, 1), (1, 1))),
  'avg_pool': lambda x: nn.avg_pool(x, (2, 2), (2, 2), ((1, 0), (0, 1))),
  'windows': lambda x: functional.windows(x, (2, 2)) @ KERNEL[0, 0],
  'windows back': lambda x: functional.from_windows(functional.windows(x, (3, 2)), (3, 2), 6, 6),
  'grid': lambda x: functional.windows(conv(x, pads=((1, 1), (1, 1))), (3, 3), True),
  'roll': lambda x: jnp.roll(x, (1, -2), (1, 2)),
  'flip': lambda x: jnp.stack([x, x[:, :, ::-1]], 1).reshape(-1, 6, 6, 4),
  'slices': lambda x: x[:, 1:5:2, :3, -1],
  'parts': lambda x: jnp.split(x, (1, 4), 2)[1] * jnp.split(x, 2, 2)[1],
  'one pixel': lambda x: x[:, 0, 2],
  'pixels by index': lambda x: x[:, CLASSES[:, None], CLASSES],
  'padding': lambda x: jnp.pad(conv(x), ((0, 0), (1, 2), (0, 0), (0, 1)), constant_values=3.0),
  'attention': lambda x: functional.attention(*(x.reshape(-1, 3, 12, 4) * k for k in (1, 2, 3))),
  'transposed in memory': lambda x: conv(x).transpose(3, 0, 2, 1).sum(2).T,
  'broadcast': lambda x: (
    jnp.broadcast_to(x[:, :1], (x.shape[0], 5, 6, 4)) + SCALE[None, None, None, :4]
  ),
  'a constant of the batch': lambda x: jnp.ones((x.shape[0], 3)) * x.shape[0],
  'mean of the batch': lambda x: x.mean((0, 1, 2))[None] + jnp.zeros((x.shape[0], 1)),
}
ROWS = {
  'class sums': lambda x: jax.ops.segment_sum(x.T, CLASSES, 4).T,
  'class logsumexp': lambda x: segment_logsumexp(x, CLASSES, 3),
  'softmax': jax.nn.softmax,
  'parts of classes': lambda x: folded(x, (1, 2, 1)),
  'powers': lambda x: x**3 + jnp.sqrt(x**2 + 1) - jnp.exp(-jnp.abs(x)),
  'choice': lambda x: jnp.where((x > 0) & (x != 1) | ~(x <= 2), jnp.log(x * x + 1), jnp.tanh(x)),
}


@pytest.mark.parametrize('name', [*MAPS, *ROWS])
def test_operations(name):
  """The same numbers as from jax, of any batch."""
  function, shape = (MAPS[name], (6, 6, 4)) if name in MAPS else (ROWS[name], (4,))
  run = translated(function, shape)
  x = RNG.standard_normal((3, *shape), np.float32)
  (y,) = run.run(None, {'x': x})
  expected = np.asarray(jax.jit(function)(x))
  assert y.shape == expected.shape and y.dtype == expected.dtype
  np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)
  assert np.ptp(expected) > 0 or name == 'a constant of the batch'
  assert run.run(None, {'x': x[:1]})[0].size * 3 == y.size


def test_batch_norm_costs_no_operation():
  """It stands in the kernel, and the layout changes once on the way in and once out."""
  ops = [node.op_type for node in translated_model(normed).graph.node]
  assert sorted(ops) == ['Clip', 'Conv', 'Identity', 'Transpose', 'Transpose']


def test_views_join_the_batch_as_they_lie_in_memory():
  """Channels stay first between two convolutions."""
  ops = [node.op_type for node in translated_model(two_views).graph.node]
  assert ops.count('Transpose') == 2 and ops.count('Reshape') == 3


def translated_model(function):
  traced = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((BATCH, 6, 6, 4), np.float32))
  graph = Graph(BATCH)
  (y,) = primitives.translate(graph, traced, [graph.input('x', np.float32, (BATCH, 6, 6, 4))])
  graph.output('y', y, np.float32)
  return graph.model({})


def test_an_operation_of_a_user(monkeypatch):
  """As docs/deploy.md adds it."""

  def tan(graph, equation, x):
    return x._replace(source=graph.add('Tan', x.source))

  monkeypatch.setattr(primitives, 'TRANSLATIONS', {**primitives.TRANSLATIONS})
  primitives.translates('tan')(tan)
  x = RNG.standard_normal((2, 4), np.float32)
  np.testing.assert_allclose(translated(jnp.tan, (4,)).run(None, {'x': x})[0], np.tan(x), rtol=1e-5)


@pytest.mark.parametrize(
  ('function', 'text'),
  [
    (lambda x: lax.cumsum(x, 1), "'cumsum' of jax"),
    (lambda x: jnp.take(x, x.astype(int).argmax(-1), 1), 'of jax has no translation'),
    (lambda x: lax.pad(x, 0.0, [(0, 0, 0), (1, 1, 1)]), 'it pads between elements'),
  ],
)
def test_what_is_missing_is_named(function, text):
  """In one line that a user understands."""
  with pytest.raises(UserError, match=text):
    translated(function, (4,))


class Pixels(layers.Trunk):
  """A backbone without weights: the first pixels themselves."""

  @nn.compact
  def __call__(self, x, train: bool = False):
    return x[:, :4, :4].reshape(x.shape[0], -1)


CARS = Taxonomy.from_rows(
  ['make', 'type', 'model'],
  [['a', 's', '1'], ['a', 't', '2'], ['b', 's', '3'], ['b', 't', '4'], ['c', 's', '5']],
)
UNEVEN = Taxonomy.from_rows(
  ['order', 'family', 'species'],
  [['g', '', ''], ['p', 'q', ''], ['p', 'r', 'x'], ['p', 'r', 'y'], ['u', 'v', 'z']],
)
TAGS = TagTaxonomy.from_rows(['sky', 'cloud'], [['x', '1'], ['x', '2'], ['y', '3'], ['z', '']])
MIXED = divide(
  ['kind', 'tag'],
  list(enumerate([['d', 'blue'], ['d', 'green'], ['s', 'pink'], ['', 'red']], 1)),
  ('tag',),
  '',
)
CASES = [(name, CARS, {}) for name in heads.HEADS] + [
  ('parallel', UNEVEN, {}),
  ('marginal', UNEVEN, {'eval.tta': 2}),
  ('hier_cos', UNEVEN, {'eval.tta': 3}),
  ('parallel', TAGS, {'eval.tta': 5}),
  ('parallel', MIXED, {'model.neck': 7, 'model.normalize': True}),
  ('path_sum', MIXED, {}),
  ('parallel', CARS, {'model.parts': (('model', '2', 3),), 'model.dtype': 'bfloat16'}),
]


@pytest.mark.parametrize(('form', 'taxonomy', 'changes'), CASES)
def test_heads_views_and_decisions(form, taxonomy, changes, monkeypatch):
  """Probabilities, path, posterior, tags and first classes, by onnxruntime, jax and NumPy."""
  backbone = Backbone(Pixels, 48, (127.0,) * 3, (64.0,) * 3, 4)
  monkeypatch.setitem(registry.BACKBONES.data, 'pixels', backbone)
  c = config.default()
  values = {'model.backbone': 'pixels', 'model.heads': form, 'data.size': 4, **changes}
  for path, value in values.items():
    config.assign(c, path, value)
  trained = model_of(c, taxonomy)
  content = program.onnx_model(trained).SerializeToString()
  run = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
  names = [output.name for output in run.get_outputs()]
  views = (c.eval.tta,) if c.eval.tta > 2 else ()
  images = RNG.integers(0, 256, (64, *views, 4, 4, 3), np.uint8)
  x = np.stack([images, images[:, :, ::-1]], 1) if c.eval.tta == 2 else images
  module = compute.configured(trained.classifier, dtype=jnp.float32)
  step = jax.jit(lambda x: collect.eval_step(trained.variables, x, module, taxonomy))
  probs, features = step(x)
  for rows in (slice(0, 1), slice(1, 4), slice(None)):
    outputs = dict(zip(names, run.run(names, {'images': images[rows]})))
    np.testing.assert_allclose(outputs['features'], features[rows], rtol=1e-5, atol=1e-5)
    for level, p in probs.items():
      np.testing.assert_allclose(outputs[f'probability/{level}'], p[rows], atol=1e-5)
    check_decisions(outputs, trained, taxonomy)


def model_of(c, taxonomy):
  """What the export reads of a `Model`, with drawn weights and rules."""
  levels = config.head_levels(c.model, taxonomy.levels, taxonomy.multi)
  module = classifier.build(c, taxonomy, levels)
  variables = initializers.init(module, 0)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32) * 0.3, variables)
  rules = decide.default_rules(taxonomy)
  if 'exclusive' in rules:
    weights = dict(zip(taxonomy.levels, (0.5, 0.0, 1.0)))
    weights[taxonomy.table('exclusive').levels[-1]] = 1.0
    rules['exclusive'] = rules['exclusive']._replace(weights=weights, temperature=1.7)
  return types.SimpleNamespace(
    c=c, taxonomy=taxonomy, levels=levels, classifier=module, variables=variables, rules=rules
  )


def check_decisions(outputs, trained, taxonomy):
  """The graph's decisions are those of `decide` on its probabilities."""
  probs = {level: outputs[f'probability/{level}'].astype(np.float64) for level in trained.levels}
  decided = decide.decide(probs, taxonomy, trained.rules)
  if 'exclusive' in decided:
    joint = decided['exclusive']['joint']
    np.testing.assert_array_equal(outputs['path'], joint.pred)
    for level, p in zip(taxonomy.levels, joint.prob):
      np.testing.assert_allclose(outputs[f'path_probability/{level}'], p, atol=1e-6)
  if 'tags' in decided:
    for level, pred in taxonomy.table('tags').split(decided['tags'].pred).items():
      np.testing.assert_array_equal(outputs[f'present/{level}'], pred)
  for level, p in probs.items():
    order = np.argsort(-p, kind='stable')[:, :5]
    np.testing.assert_array_equal(outputs[f'top/{level}'], order)
    first = np.take_along_axis(p, order, 1)
    np.testing.assert_array_equal(outputs[f'top_probability/{level}'], first)


@pytest.mark.parametrize('by', ['one', 'level', 'branch'])
@pytest.mark.parametrize('table', [CARS, UNEVEN])
def test_answers_are_as_deep_as_by_the_rule(table, by):
  """onnxruntime counts the levels that NumPy's rule answers, at its own and at other risks."""
  rng, n, levels = np.random.default_rng(3), 4000, len(table.levels)
  thresholds = rng.uniform(0.3, 0.95, (2, levels))
  if by != 'level':
    thresholds = np.repeat(thresholds[:, :1], levels, 1)
  group = ()
  if by == 'branch':
    group = tuple((np.arange(len(table.names[0])) % 2).tolist())
  rows = thresholds.tolist() if group else thresholds[:1].tolist()
  rule = decide.Backoff(0.05, None, by, tuple(map(tuple, rows)), group, (n,))
  refusing = rule._replace(risk=0.001, thresholds=((NEVER,) * levels,), group=())
  rules = decisions.AnswerRules('val', n, rule, others=(refusing,))
  logits = rng.standard_normal((n, len(table.paths))) * rng.uniform(0.2, 4, (n, 1))
  posterior = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  graph = Graph(BATCH)
  leaves = graph.input('leaves', np.float64, (BATCH, len(table.paths)))
  best = graph.add('ArgMax', leaves.source, axis=1, keepdims=0)
  answers.add_answers(graph, leaves.source, best, table, rules)
  names = ['answer', 'answer/0.05', 'answer/0.001']
  outputs = dict(zip(names, session(graph).run(names, {'leaves': posterior})))
  expected = decide.answer(posterior, table.paths, rule).depth
  assert {0, 1, levels} <= {*expected.tolist()}
  np.testing.assert_array_equal(outputs['answer'], expected)
  np.testing.assert_array_equal(outputs['answer/0.05'], expected)
  assert not outputs['answer/0.001'].any()


SIZES = {'maxvit_t': 224, 'resnet18_32px': 32, 'advanced_cnn': 32}
# A small one of each family. HIERJAX_ALL_BACKBONES=1 tries all, for hours.
FAMILIES = """
  resnet18 resnet50 resnet18_32px advanced_cnn resnet18d resnet50d regnety_002 convnext_tiny
  convnextv2_atto densenet121 vgg11 mobilenet_v2 mobilenet_v3_large mobilenetv4_conv_small
  mobilenetv4_conv_medium efficientnet_b0 efficientnet_lite0 efficientnetv2_s tf_efficientnetv2_b0
  resnetrs50 maxvit_t swin_t swinv2_tiny_window8_256 vit_b_16 vit_tiny_patch16_224
  vit_small_patch32_224 vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2
  vit_small_patch16_dinov3 vit_small_patch16_dinov3_qkvb vit_small_plus_patch16_dinov3
  vit_base_patch16_siglip_224 vit_base_patch32_clip_224 vit_base_patch16_clip_224
  vit_base_patch16_clip_quickgelu_224 eva02_tiny_patch14_224 eva02_base_patch14_224
  deit3_small_patch16_224
""".split()
TRIED = [*registry.BACKBONES] if os.environ.get('HIERJAX_ALL_BACKBONES') else FAMILIES


def moved_variables(variables, rng):
  """Move initial variables a little: some scales begin as 0, which would hide what they scale."""

  def moved(path, x):
    noise, key = rng.standard_normal(x.shape, np.float32), path[-1].key
    if key == 'var':
      return x * (1 + 0.2 * np.abs(noise))
    return x + noise * (0.1 if key == 'scale' else 0.05 * (x.ndim == 1))

  return jax.tree_util.tree_map_with_path(moved, variables)


def fitted_statistics(module, variables, x):
  """The variables with the batch norm statistics of images x, whatever the norms' momentum."""

  def follow(variables, x):
    rngs = {'dropout': jax.random.key(0)}
    return module.apply(variables, x, True, mutable=['batch_stats'], rngs=rngs)[1]['batch_stats']

  # not compiled as a whole: that takes 18 GB for the deepest
  stats = variables['batch_stats']
  # of m * old + (1 - m) * new, where all old ones are 0, and where all are 1
  zero, one = (
    follow({**variables, 'batch_stats': jax.tree.map(lambda a: np.full_like(a, old), stats)}, x)
    for old in (0, 1)
  )
  new = jax.tree.map(lambda zero, one: np.asarray(zero / (1 - (one - zero))), zero, one)
  return {**variables, 'batch_stats': new}


def in_float64(name, variables, x):
  """Features that jax computes in float64."""
  with jax.enable_x64(True):
    module = registry.BACKBONES[name].build(Compute(jnp.float64, kernels='plain'))
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), variables)
    return np.asarray(module.apply(wide, x.astype(np.float64))[0])


def exported_differences(name: str) -> tuple[float, float]:
  """Differences of the features, relative to the largest: of ONNX, and what is allowed.

  Weights and statistics are drawn, batches of 1 and 3; ONNX is compared with jax, and 1e-4 allowed.
  Deep networks may be ill-conditioned with such weights. Those get the statistics of images, so
  that no map explodes, and are compared with float64, from which ONNX may be off by twice as much
  as jax's own float32.
  """
  size = SIZES.get(name, 70 if 'patch14' in name else 64)
  module = registry.BACKBONES[name].build(Compute(kernels='plain'))
  rng = np.random.default_rng(0)
  variables = initializers.init(module, 0, np.zeros((1, size, size, 3), np.float32))
  if sum(x.nbytes for x in jax.tree.leaves(variables)) >= 2**31:
    pytest.skip('an ONNX file holds 2 GiB')
  variables = moved_variables(variables, rng)
  images = rng.standard_normal((16, size, size, 3), np.float32)
  x = images[:3]

  def features(variables, x):
    return module.apply(variables, x)[0]

  def both(variables):
    run = translated(functools.partial(features, variables), (size, size, 3))
    parts = [run.run(None, {'x': x[:n]})[0] for n in (1, 3)]
    return parts, np.asarray(jax.jit(features, compiler_options=ours.QUICK)(variables, x))

  def largest(parts, expected):
    difference = max(np.abs(part - expected[: len(part)]).max() for part in parts)
    return float(difference / np.abs(expected).max())

  difference = largest(*both(variables))
  if difference <= 1e-4 or 'batch_stats' not in variables:
    return difference, 1e-4
  variables = fitted_statistics(module, variables, images)
  parts, from_jax = both(variables)
  exact = in_float64(name, variables, x)
  return largest(parts, exact), 2 * largest([from_jax], exact)


@pytest.mark.slow
@pytest.mark.parametrize('name', TRIED)
def test_backbones(name):
  jax.clear_caches()  # they hold the weights of the one before, gigabytes
  difference, allowed = exported_differences(name)
  assert difference <= allowed <= 0.05
