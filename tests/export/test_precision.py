"""Exported models in int8 and fp16: what they compute, and what is said of them, measured anew."""

import copy
import json
import pathlib
import types

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from hierjax import decide, model, runtime
from hierjax.core.errors import UserError
from hierjax.decide.backoff import Backoff
from hierjax.decide.decisions import AnswerRules
from hierjax.decide.sets import SetRule
from hierjax.evaluate import answers
from hierjax.evaluate.collect import Outputs
from hierjax.export import artefact, precision

RNG = np.random.default_rng(5)


@pytest.fixture
def trained(finished_run, tiny_backbone, one_device) -> model.Model:
  """The run of the artefacts."""
  return model.load(finished_run)


def lower(name: str, finished_run, shared_folder) -> pathlib.Path:
  """The artefact of the finished run in a lower precision, to be read only."""

  def make(folder: pathlib.Path) -> None:
    import tiny

    with pytest.MonkeyPatch.context() as patch:
      tiny.register(patch)
      tiny.use_devices(patch)
      extras = artefact.Extras(**{name: 5.0})
      artefact.export(model.load(finished_run), folder / 'artefact', print, extras)

  return shared_folder(f'in_{name}', make) / 'artefact'


@pytest.fixture(scope='module')
def in_int8(finished_run, shared_folder) -> pathlib.Path:
  """The artefact in int8."""
  return lower('int8', finished_run, shared_folder)


@pytest.fixture(scope='module', params=['int8', 'fp16'])
def lowered(request, finished_run, shared_folder) -> tuple[str, pathlib.Path]:
  """A lower precision, and the artefact in it."""
  return request.param, lower(request.param, finished_run, shared_folder)


def small_graph(kernel: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
  """A convolution of drawn images, limited to 0..6, of which the means are the features."""
  nodes = [
    helper.make_node('Transpose', ['images'], ['moved'], perm=[0, 3, 1, 2]),
    helper.make_node('Cast', ['moved'], ['numbers'], to=onnx.TensorProto.FLOAT),
    helper.make_node('Mul', ['numbers', 'factor'], ['x']),
    helper.make_node('Conv', ['x', 'kernel', 'bias'], ['y']),
    helper.make_node('Clip', ['y', 'low', 'high'], ['z']),
    helper.make_node('ReduceMean', ['z', 'axes'], ['features'], keepdims=0),
  ]
  arrays = {'kernel': kernel, 'bias': bias, 'axes': np.array([2, 3])}
  arrays |= {'factor': np.float32(1 / 100), 'low': np.float32(0), 'high': np.float32(6)}
  graph = helper.make_graph(
    nodes,
    'small',
    [helper.make_tensor_value_info('images', onnx.TensorProto.UINT8, ['b', 8, 8, 3])],
    [helper.make_tensor_value_info('features', onnx.TensorProto.FLOAT, ['b', len(bias)])],
    [numpy_helper.from_array(x, name) for name, x in arrays.items()],
  )
  return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 20)], ir_version=10)


def quantised(x: np.ndarray, low: float, high: float) -> np.ndarray:
  """The nearest of 256 numbers between 0 or less and 0 or more, of which 0 is one."""
  low, high = min(low, 0.0), max(high, 0.0)
  scale = np.float32((high - low) / 255)
  zero = np.round(-low / scale)
  return (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale


def convolved(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
  """A convolution without padding, place by place: [N, C, h, w]."""
  (n, _, h, w), (channels, _, size, _) = x.shape, kernel.shape
  out = np.zeros((n, channels, h - size + 1, w - size + 1))
  for row in range(out.shape[2]):
    for column in range(out.shape[3]):
      part = x[:, :, row : row + size, column : column + size]
      for c in range(channels):
        out[:, c, row, column] = (part * kernel[c]).sum((1, 2, 3)) + bias[c]
  return out


def session(graph: onnx.ModelProto):
  import onnxruntime

  return onnxruntime.InferenceSession(graph.SerializeToString(), providers=['CPUExecutionProvider'])


def test_a_convolution_by_numpy():
  """Ranges of the calibration images, a scale for each channel of the kernel, seven bits."""
  kernel = (
    RNG.standard_normal((5, 3, 3, 3), np.float32) * np.geomspace(0.03, 3, 5)[:, None, None, None]
  )
  kernel, bias = kernel.astype(np.float32), RNG.standard_normal(5, np.float32)
  graph = small_graph(kernel, bias)
  images = RNG.integers(0, 200, (12, 8, 8, 3), np.uint8)
  run = session(precision.quantise(graph, [images[:4], images[4:8]]))
  x = np.float32(images).transpose(0, 3, 1, 2) * np.float32(1 / 100)
  y = np.clip(convolved(x, kernel, bias), 0, 6)
  scales = np.abs(kernel).max((1, 2, 3), keepdims=True) / 64
  weights = np.round(kernel / scales) * scales
  inside = quantised(x, x[:8].min(), x[:8].max())
  outside = np.clip(convolved(inside, weights, bias), 0, 6)
  expected = quantised(outside, y[:8].min(), y[:8].max()).mean((2, 3))
  (features,) = run.run(['features'], {'images': images})
  # a value between two numbers may be rounded to either: one of 36 places, a step of 6 / 255
  np.testing.assert_allclose(features, expected, atol=1.01 * 6 / 255 / 36)
  assert np.median(np.abs(features - expected)) < 1e-5
  (exact,) = session(graph).run(['features'], {'images': images})
  assert 1e-3 < np.abs(features - exact).max() < 0.1


def test_seven_bits_hold_every_sum_of_two_products(in_int8):
  """Also where a processor adds them in 16 bits; each kernel uses its range."""
  graph = onnx.load(in_int8 / 'model.onnx').graph
  kernels = [
    x for x in map(numpy_helper.to_array, graph.initializer) if x.dtype == np.int8 and x.ndim == 4
  ]
  assert len(kernels) == 2
  for kernel in kernels:
    assert 63 <= np.abs(kernel.astype(int)).max() <= 64
  assert 2 * 255 * 64 < 2**15


def test_what_is_recorded_is_what_the_two_artefacts_answer(lowered, exported, trained):
  """Accuracy at each level, equal answers and the largest difference, by the runtime alone."""
  name, folder = lowered
  facts = json.loads((folder / 'hierjax.json').read_text())
  assert facts['precision'] == name and set(facts[name]['rates']) == {'1', '32'}
  record, val, table = facts[name], trained.split('val'), trained.taxonomy
  images = [val.reader(i) for i in range(len(val.labels))]
  assert record['images'] == len(images) == 40 and facts['metrics'][f'val, {name}'] == record[name]
  paths, probs = [], []
  for kind, place in (('float32', exported), lowered):
    loaded = runtime.load(place)
    records = loaded.predict(images)
    pred = [
      [table.names[k].index(r['path'][x]) for k, x in enumerate(table.levels)] for r in records
    ]
    right = np.array(pred) == val.labels
    assert record[kind]['path'] == pytest.approx(right.all(1).mean())
    for k, level in enumerate(table.levels):
      assert record[kind]['top1'][level] == pytest.approx(right[:, k].mean())
    paths.append(pred)
    probs.append(loaded.probabilities(images))
  assert record['equal'] == np.mean([a == b for a, b in zip(*paths)])
  largest = max(np.abs(probs[0][level] - probs[1][level]).max() for level in probs[0])
  assert 1e-6 < largest == pytest.approx(record['largest_difference'], abs=1e-6)
  losses = 100 * (record['float32']['path'] - record[name]['path'])
  assert record['losses'] == {'full paths': pytest.approx(losses)}


def test_its_rules_are_fitted_by_its_own_probabilities(lowered, trained):
  """As `decide.tune` fits them on val; the graph decides by them; jax gets no program."""
  name, folder = lowered
  loaded, val = runtime.load(folder), trained.split('val')
  images = [val.reader(i) for i in range(len(val.labels))]
  expected = decide.tune(loaded.probabilities(images), val.labels, trained.taxonomy)['exclusive']
  rules = loaded.rules['exclusive']
  assert rules.temperature == pytest.approx(expected.temperature, rel=1e-6)
  assert rules.weights == pytest.approx(expected.weights)
  batch = loaded.view.batch([('', image) for image in images], 40)
  outputs = loaded.run(batch.pixels)
  joint = loaded.decide(loaded.probabilities(images))['exclusive']['joint']
  np.testing.assert_array_equal(outputs['path'], joint.pred)
  for k, level in enumerate(loaded.taxonomy.levels):
    np.testing.assert_allclose(outputs[f'path_probability/{level}'], joint.prob[k], atol=1e-5)
  assert not (folder / 'model.stablehlo').exists()
  assert f'computes in {name};' in (folder / 'README.md').read_text()


def test_halves_are_numbers_of_sixteen_bits(exported, finished_run, shared_folder):
  """Each weight of the network is the nearest float16; the decisions stay in float64."""
  folder = lower('fp16', finished_run, shared_folder)
  graphs = [onnx.load(place / 'model.onnx').graph for place in (exported, folder)]
  exact, half = ({x.name: numpy_helper.to_array(x) for x in g.initializer} for g in graphs)
  kernels = [name for name, x in exact.items() if x.ndim == 4 and x.shape[-1] > 1]
  assert len(kernels) == 2
  halves = [x for x in half.values() if x.dtype == np.float16]
  for name in kernels:
    assert name not in half
    assert any(np.array_equal(x, exact[name].astype(np.float16)) for x in halves)
  doubles = [name for name, x in exact.items() if x.dtype == np.float64]
  assert doubles and all(half[name].dtype == np.float64 for name in doubles)
  assert (folder / 'model.onnx').stat().st_size < 0.9 * (exported / 'model.onnx').stat().st_size


def test_one_precision_at_a_time(trained, tmp_path):
  """Both at once are refused before anything is written."""
  with pytest.raises(UserError, match=r'^--int8 and --fp16: give one of them$'):
    artefact.export(trained, tmp_path / 'new', print, artefact.Extras(int8=5.0, fp16=5.0))
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize('split', ['val', 'calibration'])
def test_guarantees_are_fitted_anew_as_the_run_has_them(trained, split):
  """The same risks, costs and kind of sets, on the same split, by other probabilities."""
  table, n = trained.taxonomy, 300
  labels = {name: table.paths[RNG.integers(len(table.paths), size=n)] for name in ('val', split)}
  probs = {
    name: {
      level: softmax(3 * np.eye(len(names))[y[:, k]] + RNG.standard_normal((n, len(names))))
      for k, (level, names) in enumerate(zip(table.levels, table.names))
    }
    for name, y in labels.items()
  }
  fake = types.SimpleNamespace(
    c=trained.c,
    taxonomy=table,
    split=lambda name: types.SimpleNamespace(name=name, labels=labels[name]),
    collect=lambda x: Outputs(probs[x.name], None, labels[x.name], np.arange(n), []),
  )
  rule = Backoff(0.2, None, 'one', ((0.5,) * 3,), (), (9,))
  before = {
    'exclusive': trained.rules['exclusive'],
    'answer': AnswerRules(split, 9, rule, None, 0.25),
    'sets': SetRule(0.1, 'aps', 0.5, 9, split),
  }
  rules, _ = precision.fit_rules(fake, before)
  c = copy.deepcopy(trained.c)
  c.decide.risk, c.decide.sets, c.decide.set_kind, c.decide.price = 0.2, 0.1, 'aps', 0.25
  tuned = decide.tune(probs['val'], labels['val'], table)
  expected, _ = answers.fit(fake.collect(fake.split(split)), table, tuned, c, split)
  assert rules == expected
  assert rules['answer'].backoff.risk == 0.2 and rules['answer'].examples == n
  assert rules['sets'].limit != 0.5 and rules['sets'][:2] == (0.1, 'aps')
  assert rules['exclusive'].temperature != before['exclusive'].temperature
  by_cost = before | {'answer': AnswerRules('', 0, None, 'lca', 0.25)}
  del by_cost['sets']
  rules, _ = precision.fit_rules(fake, by_cost)
  assert rules['answer'] == AnswerRules('', 0, None, 'lca', 0.25) and 'sets' not in rules


def softmax(x: np.ndarray) -> np.ndarray:
  """Probabilities of scores."""
  e = np.exp(x)
  return e / e.sum(1, keepdims=True)


FACTS = {
  'split': 'val',
  'images': 400,
  'int8': {'images': 400, 'path': 0.5, 'top1': {}, 'map': {}},
  'losses': {'full paths': 0.75, 'sky': 0.2},
  'interval': [-0.4, 1.9],
  'equal': 0.975,
  'rates': {'1': {'float32': 10.0, 'int8': 17.0}},
}


def test_what_loses_too_much_is_refused(trained, tmp_path, monkeypatch):
  """With the number, its interval and the images; and nothing is left of it."""
  with pytest.raises(UserError, match=r'loses 0\.75 points of full paths \(95%: -0\.40 to 1\.90\)'):
    precision.check(FACTS, 'int8', 0.5)
  lines = precision.check(FACTS, 'int8', 1)
  assert '97.5% of the answers' in lines[0] and 'too few' in lines[1] and '1.70 times' in lines[2]
  assert len(precision.check(FACTS, 'int8', 2)) == 2
  with pytest.raises(UserError, match=r'0\.60 points of sky on 400'):
    precision.check(FACTS | {'losses': {'full paths': 0.1, 'sky': 0.6}}, 'int8', 0.5)
  with pytest.raises(UserError, match='nothing is written'):
    precision.check(FACTS, 'int8', float('nan'))
  with pytest.raises(UserError, match='no image of val has a label'):
    precision.check(FACTS | {'losses': {}}, 'int8', 0.5)
  monkeypatch.setattr(precision, 'compare', lambda *_: FACTS)
  monkeypatch.setattr(precision, 'quantise', lambda graph, batches: graph)
  with pytest.raises(UserError, match='nothing is written'):
    artefact.export(trained, tmp_path / 'new', print, artefact.Extras(int8=0.5))
  assert not [*tmp_path.iterdir()]


def test_a_network_of_dense_layers_is_refused():
  """Where convolutions have less than half of the weights."""
  graph = small_graph(np.zeros((5, 3, 3, 3), np.float32), np.zeros(5, np.float32))
  graph.graph.node[-1].output[0] = 'pooled'
  graph.graph.node.append(helper.make_node('MatMul', ['pooled', 'dense'], ['features']))
  graph.graph.initializer.append(numpy_helper.from_array(np.zeros((5, 40), np.float32), 'dense'))
  with pytest.raises(UserError, match='convolutions have 41% of the weights'):
    precision.quantise(graph, [])


def test_the_interval_of_a_loss_holds():
  """In at least 93 of 100 draws of a change, also of few images; it is never empty."""
  for n, lost, won in ((40, 0.02, 0.01), (400, 0.02, 0.01), (400, 0.005, 0.005)):
    inside = 0
    for _ in range(400):
      draws = RNG.random(n)
      before = draws < 0.8 + lost
      after = (draws < 0.8) | (draws > 1 - won)
      low, high = precision.paired_interval(before, after)
      inside += low <= lost - won <= high
    assert inside >= 372
  low, high = precision.paired_interval(np.ones(40, bool), np.ones(40, bool))
  assert low == -high and 0.04 < high < 0.05
