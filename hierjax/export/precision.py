"""Graphs that compute in int8 or in float16, compared with float32 on images of val."""

import copy
import pathlib
import tempfile
import time
import types
from collections.abc import Iterable
from typing import Any

import numpy as np

from hierjax import decide, runtime
from hierjax.core.errors import UserError
from hierjax.decide.decisions import FITTED, Rules
from hierjax.evaluate import answers, collect, summary
from hierjax.export import papers
from hierjax.model import Model

# Training images from which the ranges of activations are taken, and how many are held at a time.
IMAGES, BATCH = 200, 16
# What computes in int8, from the first convolution to the features.
OPERATORS = ('Conv', 'Add', 'Clip', 'Relu', 'MaxPool')
# Batches whose speed is measured and how often, of which the fastest counts.
ROUNDS = {1: 64, 32: 7}
PATH = 'full paths'


def quantise(model: Any, batches: Iterable[np.ndarray]) -> Any:
  """Make a graph whose network computes in int8 up to its features.

  Activations become uint8 between the least and the largest value on the batches, weights int8 by
  one scale for each output channel. Weights have seven bits: so no sum of two products overflows
  16 bits, in which processors without VNNI add them, and all answer alike.

  Args:
    model: the `onnx.ModelProto` that `program.onnx_model` made.
    batches: uint8 images as the graph reads them.

  Raises:
    UserError: less than half of the network's weights are of convolutions.
  """
  import onnx
  from onnxruntime import quantization

  model, nodes = _named(model), _network(model.graph)
  sizes = {x.name: int(np.prod(x.dims)) for x in model.graph.initializer}
  count = {True: 0, False: 0}
  for node in nodes:
    count[node.op_type == 'Conv'] += sum(sizes.get(x, 0) for x in node.input)
  if count[True] < count[False]:
    raise UserError(
      f'--int8: convolutions have {count[True] / sum(count.values()):.0%} of the weights of this '
      'backbone, and only they would compute in int8: export it without'
    )
  # batch norms are in the kernels: there is nothing to preprocess, and nothing to be warned of
  text = {p.key: p.value for p in model.metadata_props}
  onnx.helper.set_model_props(model, text | {'onnx.quant.pre_process': 'onnxruntime.quant'})
  inputs = ({'images': images} for images in batches)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'model.onnx'
    quantization.quantize_static(
      model,
      path,
      types.SimpleNamespace(get_next=lambda: next(inputs, None)),
      op_types_to_quantize=[*OPERATORS],
      nodes_to_quantize=[node.output[0] for node in _from_first(nodes, ('Conv',))],
      per_channel=True,
      reduce_range=True,
      activation_type=quantization.QuantType.QUInt8,
      weight_type=quantization.QuantType.QInt8,
    )
    return onnx.load(path)


def halve(model: Any) -> Any:
  """Make a graph whose network computes in float16 up to its features, and holds its weights so.

  onnxruntime's own converter also rounds what stays in float32 to float16 between its operators,
  so that no decision would be exact.

  Args:
    model: the `onnx.ModelProto` that `program.onnx_model` made.
  """
  import onnx
  from onnx import TensorProto, helper, numpy_helper

  model = _named(model)
  graph, inferred = model.graph, onnx.shape_inference.infer_shapes(model).graph
  values = [*inferred.value_info, *inferred.input, *inferred.output]
  floats = {x.name for x in values if x.type.tensor_type.elem_type == TensorProto.FLOAT}
  constants = {x.name: x for x in graph.initializer if x.data_type == TensorProto.FLOAT}
  results = {x.name for x in graph.output}
  first = _from_first(_network(graph), ('Conv', 'MatMul', 'Gemm'))
  halved = {node.name for node in first if results.isdisjoint(node.output)}
  in_half = floats & {name for node in first if node.name in halved for name in node.output}
  # what a node in float16, and one in float32, reads in the other's type
  moved = {True: (floats | {*constants}) - in_half, False: in_half}
  nodes, converted = [], {}

  def convert(name, kind):
    """Return the name of a tensor, or a constant, in another type."""
    if (name, kind) not in converted:
      converted[name, kind] = other = f'{name}_as_{kind}'
      if name in constants:
        limit = float(np.finfo(np.float16).max)
        array = np.clip(numpy_helper.to_array(constants[name]), -limit, limit)
        graph.initializer.append(numpy_helper.from_array(array.astype(np.float16), other))
      else:
        nodes.append(helper.make_node('Cast', [name], [other], to=kind))
    return converted[name, kind]

  for node in graph.node:
    is_half = node.name in halved
    kind = TensorProto.FLOAT16 if is_half else TensorProto.FLOAT
    for i, name in enumerate(node.input):
      if name in moved[is_half]:
        node.input[i] = convert(name, kind)
    for attribute in node.attribute if is_half and node.op_type == 'Cast' else ():
      if attribute.i == TensorProto.FLOAT:
        attribute.i = kind
    nodes.append(node)
  del graph.node[:]
  graph.node.extend(nodes)
  used = {name for node in nodes for name in node.input}
  needed = [x for x in graph.initializer if x.name in used]
  del graph.initializer[:]
  graph.initializer.extend(needed)
  onnx.checker.check_model(model)
  return model


def _named(model):
  """A copy whose nodes have the names of their first outputs."""
  model = copy.deepcopy(model)
  for node in model.graph.node:
    node.name = node.output[0]
  return model


def _network(graph):
  """The nodes that the features need."""
  needed, nodes = {'features'}, []
  for node in reversed(graph.node):
    if needed.intersection(node.output):
      needed.update(node.input)
      nodes.insert(0, node)
  return nodes


def _from_first(nodes, operators):
  """The first nodes with these operators, and all that are computed from them."""
  reached, later = set(), []
  for node in nodes:
    if node.op_type in operators or reached.intersection(node.input):
      reached.update(node.output)
      later.append(node)
  return later


def as_run(trained: Model, exported: runtime.Exported) -> Model:
  """Return a run with the probabilities, features and rules of an exported model."""
  model = copy.copy(trained)
  model.rules = exported.rules

  def step(variables, images):
    # a graph that takes one view makes the mirror image itself
    has_mirrored = images.ndim == 5 and exported.view.views == 1
    outputs = exported.run(np.asarray(images)[:, 0] if has_mirrored else np.asarray(images))
    return {level: outputs[f'probability/{level}'] for level in model.levels}, outputs['features']

  model.eval_step = step
  return model


def fit_rules(model: Model, fitted: Rules) -> tuple[Rules, list[str]]:
  """Fit rules by the probabilities of a model, on the images that those of its run were fitted on.

  The risk of an answer is guaranteed for the scores that it was fitted with and for no others.
  Returns the rules and lines for the user.
  """
  options, taxonomy = copy.deepcopy(model.c), model.taxonomy
  outputs = model.collect(collect.to_fit(model.split(options.data.val), taxonomy))
  rules = decide.tune(outputs.probs, outputs.labels, taxonomy)
  answer, sets = fitted.get('answer'), fitted.get('sets')
  split = next((r.split for r in (answer, sets) if r), '') or answers.calibration_images(options)
  is_val = split == options.data.val
  if 'exclusive' not in rules or (is_val and not {*FITTED} & {*fitted}):
    return rules, []
  c, c.risk, c.costs, c.sets = options.decide, None, None, sets and sets.risk
  c.set_kind = sets.kind if sets else c.set_kind
  c.price = answer.price if answer else c.price
  if answer and answer.backoff:
    c.risk, c.confidence, c.by = answer.backoff[:3]
  if not is_val:
    outputs = model.collect(collect.to_fit(model.split(split), taxonomy))
  return answers.fit(outputs, taxonomy, rules, options, split, answer and answer.costs)


def compare(trained: Model, exact: runtime.Exported, exported: runtime.Exported, name: str) -> dict:
  """Measure what a lower precision costs on val, and what it gains on this machine.

  Args:
    trained: the run.
    exact, exported: its artefacts in float32 and in the lower precision.
    name: of that.

  Returns:
    {'split', 'images', 'float32' and NAME: as `papers.measured`, 'losses': {name: points} of full
    paths (of levels, where no image has one) and tag levels, 'interval' of 95% of the first in
    points or None, 'equal': share of images with the same answers, 'largest_difference': of
    probabilities, 'rates': {batch: {'float32' and NAME: images a second}}}.
  """
  split, table = trained.c.data.val, trained.taxonomy
  examples, block = collect.to_fit(trained.split(split), table), table.block('exclusive')
  outputs, rows, preds, right, interval = [], [], [], [], None
  for model in (as_run(trained, exact), as_run(trained, exported)):
    outputs.append(model.collect(examples))
    decisions, labels = outputs[-1].decide(table, model.rules), outputs[-1].labels
    result = summary.summarize(split, outputs[-1], decisions, table, model.rules, 1)
    rows.append(papers.measured(result))
    preds.append([decisions['tags'].pred] if 'tags' in decisions else [])
    if block:
      preds[-1].append(decisions['exclusive']['joint'].pred)
      labels = labels[:, block.columns]
      right.append((preds[-1][-1] == labels).all(1)[(labels >= 0).all(1)])
  before, after = map(_figures, rows)
  if PATH in before:
    interval = [100 * x for x in paired_interval(*right)]
  same = [(p == q).all(1) for p, q in zip(*preds)]
  pairs = [(p, outputs[1].probs[level]) for level, p in outputs[0].probs.items()]
  return {
    'split': split,
    'images': len(outputs[0].index),
    'float32': rows[0],
    name: rows[1],
    'losses': {name: 100 * (x - after[name]) for name, x in before.items()},
    'interval': interval,
    'equal': float(np.all(same, 0).mean()),
    'largest_difference': max(float(np.abs(p - q).max()) for p, q in pairs),
    'rates': _rates({'float32': exact, name: exported}),
  }


def _figures(row):
  """Shares of right paths (where no image has a full one, of levels) and precisions of tags."""
  shares = row['top1'] if row['path'] is None else {PATH: row['path']}
  return {name: x for name, x in {**shares, **row['map']}.items() if x is not None}


def paired_interval(before: np.ndarray, after: np.ndarray, z: float = 1.96) -> tuple[float, float]:
  """Compute the interval of a share minus another of the same images, bool [N] each.

  It counts half an image more in each of the four cells of the table (Agresti and Min, Statistics
  in Medicine 24, 2005), so it does not shrink to nothing where no image changes.

  Args:
    before, after: whether an image is in the first and in the second share.
    z: quantile of the normal distribution; 1.96 gives 95%.
  """
  n = len(before) + 2
  lost, won = (before & ~after).sum() + 0.5, (after & ~before).sum() + 0.5
  half = z * np.sqrt(lost + won - (lost - won) ** 2 / n) / n
  return float((lost - won) / n - half), float((lost - won) / n + half)


def _rates(models):
  """Images a second of models {name: artefact} in turn: {batch: {name: number}}."""
  rates, shape = {}, models['float32'].session.get_inputs()[0].shape[1:]
  for size, rounds in ROUNDS.items():
    images = np.random.default_rng(0).integers(0, 256, (size, *shape), np.uint8)
    seconds = {name: [] for name in models}
    for name in [*models] * rounds:
      start = time.perf_counter()
      models[name].run(images)
      seconds[name].append(time.perf_counter() - start)
    rates[f'{size}'] = {name: size / min(times) for name, times in seconds.items()}
  return rates


def check(facts: dict, name: str, limit: float) -> list[str]:
  """Return lines for the user on what a lower precision costs and gains.

  Args:
    facts: what `compare` returned.
    name: of the precision.
    limit: points that it may lose.

  Raises:
    UserError: it loses more points than the limit on val, or that cannot be measured.
  """
  losses, n, interval = facts['losses'], facts['images'], facts['interval']
  if not losses:
    raise UserError(f'--{name}: no image of val has a label, so what it loses cannot be measured')
  worst = max(losses, key=losses.get)
  text = f'{name} loses {losses[worst]:.2f} points of {worst}'
  text += f' (95%: {interval[0]:.2f} to {interval[1]:.2f})' if worst == PATH else ''
  text += f' on {n} images of {facts["split"]}'
  if not losses[worst] <= limit:
    raise UserError(f'--{name}={limit:g}: {text}, more than that; nothing is written')
  lines = [f'{text}; {facts["equal"]:.1%} of the answers are the same']
  if interval and interval[1] > limit:
    lines.append(f'note: {n} images are too few to say that others lose no more than {limit:g}')
  rates = facts['rates'].items()
  text = ', '.join(f'{x[name] / x["float32"]:.2f} times at batches of {size}' for size, x in rates)
  return [*lines, f'images a second, of those of float32 on this machine: {text}']
