"""Graphs that compute in int8: calibrated on training images, compared on those of val."""

import copy
import os
import pathlib
import tempfile
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from hierjax import decide, runtime
from hierjax.core.errors import UserError
from hierjax.decide.decisions import FITTED, Rules, without_fitted
from hierjax.evaluate import answers, collect, summary
from hierjax.export import papers
from hierjax.model import Model

# Training images from which the ranges of activations are taken, and how many are held at a time.
IMAGES, BATCH = 200, 16
# What computes in int8, from the first convolution to the features.
OPERATORS = ('Conv', 'Add', 'Clip', 'Relu', 'MaxPool')
# Of the weights up to the features, convolutions must have so many: else little gets faster.
SHARE = 0.5
# Batches whose speed is measured, and how often, of which the fastest counts.
SIZES, ROUNDS = (1, 32), 7
PATH = 'full paths'


class _Reader:
  """Batches of images as onnxruntime's calibration asks for them."""

  def __init__(self, batches: Iterable[np.ndarray]):
    self._iterator = iter(batches)

  def get_next(self) -> dict[str, np.ndarray] | None:
    """Return the inputs of the graph for the next batch; None behind the last."""
    images = next(self._iterator, None)
    return None if images is None else {'images': images}


def quantise(model: Any, batches: Iterable[np.ndarray]) -> Any:
  """Make a graph whose network computes in int8 up to its features.

  Activations become uint8 between the least and the largest value on the batches, weights int8 by
  one scale for each output channel. Weights have seven bits: so no sum of two products overflows
  16 bits, in which processors without VNNI add them, and all answer alike.

  Args:
    model: the `onnx.ModelProto` that `program.onnx_model` made.
    batches: uint8 images as the graph reads them.

  Raises:
    UserError: too little of the network are convolutions.
  """
  import onnx
  from onnxruntime import quantization

  model = copy.deepcopy(model)
  for node in model.graph.node:
    node.name = node.output[0]
  nodes = _network(model.graph)
  _check_share(model.graph, nodes)
  # batch norms are in the kernels: there is nothing to preprocess, and nothing to be warned of
  text = {p.key: p.value for p in model.metadata_props}
  onnx.helper.set_model_props(model, text | {'onnx.quant.pre_process': 'onnxruntime.quant'})
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'model.onnx'
    quantization.quantize_static(
      model,
      path,
      _Reader(batches),
      op_types_to_quantize=[*OPERATORS],
      nodes_to_quantize=[node.name for node in nodes],
      per_channel=True,
      reduce_range=True,
      activation_type=quantization.QuantType.QUInt8,
      weight_type=quantization.QuantType.QInt8,
    )
    return onnx.load(path)


def _network(graph):
  """The nodes that the features need, from the first convolution on."""
  nodes, reached = _ancestors(graph, ['features']), set()
  for node in nodes:
    if node.op_type == 'Conv' or reached.intersection(node.input):
      reached.update(node.output)
  return [node for node in nodes if reached.issuperset(node.output)]


def _ancestors(graph, names):
  """The nodes that tensors need, in the order of the graph."""
  needed, nodes = {*names}, []
  for node in reversed(graph.node):
    if needed.intersection(node.output):
      needed.update(node.input)
      nodes.insert(0, node)
  return nodes


def _check_share(graph, nodes):
  sizes = {x.name: np.prod(x.dims) for x in graph.initializer}
  weights = [(node.op_type, sum(sizes.get(x, 0) for x in node.input)) for node in nodes]
  share = sum(n for op, n in weights if op == 'Conv') / max(sum(n for _, n in weights), 1)
  if share < SHARE:
    raise UserError(
      f'--int8: convolutions have {100 * share:.0f}% of the weights of this backbone, and only '
      'they compute in int8: export it without'
    )


def with_decisions(quantised: Any, decided: Any) -> Any:
  """Put the decisions of a graph behind the network of a quantised one.

  Args:
    quantised: the `onnx.ModelProto` of `quantise`.
    decided: that of the same network in float32, with other rules.
  """
  outputs = [x.name for x in decided.graph.output]
  names = [x for x in outputs if x in ('features', 'maps') or x.startswith('probability/')]
  computed = {x for node in _ancestors(decided.graph, names) for x in node.output}
  network = _ancestors(quantised.graph, names)
  others = [node for node in decided.graph.node if not computed.intersection(node.output)]
  constants = []
  for model, nodes in ((quantised, network), (decided, others)):
    used = {x for node in nodes for x in node.input}
    constants += [x for x in model.graph.initializer if x.name in used]
  result, graph = copy.deepcopy(quantised), decided.graph
  fields = {'node': network + others, 'initializer': constants, 'output': [*graph.output]}
  for field, values in (fields | {'value_info': []}).items():
    result.graph.ClearField(field)
    getattr(result.graph, field).extend(values)
  return result


def as_run(trained: Model, exported: runtime.Exported) -> Model:
  """Return a run whose probabilities and features an exported model computes.

  Args:
    trained: the run, of which data and options are read.
    exported: the model, whose rules decide.
  """
  model = copy.copy(trained)
  model.rules, views = exported.rules, exported.view.views

  def step(variables, images):
    images = np.asarray(images)
    # a graph that takes one view makes the mirror image itself
    outputs = exported.run(images[:, 0] if images.ndim == 5 and views == 1 else images)
    return {level: outputs[f'probability/{level}'] for level in model.levels}, outputs['features']

  model.eval_step = step
  return model


def fit_rules(model: Model, fitted: Rules) -> tuple[Rules, list[str]]:
  """Fit rules by the probabilities of a model, on the images that those of its run were fitted on.

  The risk of an answer is guaranteed for the scores that it was fitted with and for no others.

  Args:
    model: that computes the probabilities.
    fitted: the rules of the run.

  Returns:
    The rules and lines for the user.
  """
  c, taxonomy = copy.deepcopy(model.c), model.taxonomy
  outputs = model.collect(collect.to_fit(model.split(c.data.val), taxonomy))
  rules = decide.tune(outputs.probs, outputs.labels, taxonomy)
  answer, sets = fitted.get('answer'), fitted.get('sets')
  split = next((r.split for r in (answer, sets) if r and r.split), answers.calibration_images(c))
  if not taxonomy.block('exclusive') or (split == c.data.val and not {*FITTED} & {*fitted}):
    return rules, []
  c.decide.risk, c.decide.costs, rows = None, None, answer and answer.costs
  c.decide.sets = sets and sets.risk
  c.decide.set_kind = sets.kind if sets else c.decide.set_kind
  c.decide.price = answer.price if answer else c.decide.price
  if answer and answer.backoff:
    c.decide.risk, c.decide.confidence, c.decide.by = answer.backoff[:3]
  if split != c.data.val:
    outputs = model.collect(collect.to_fit(model.split(split), taxonomy))
  return answers.fit(outputs, taxonomy, rules, c, split, rows)


def compare(trained: Model, exact: runtime.Exported, exported: runtime.Exported) -> dict:
  """Measure what int8 costs on val.

  Args:
    trained: the run.
    exact: its artefact in float32.
    exported: that in int8.

  Returns:
    {'split', 'images', 'float32' and 'int8': as `papers.measured`, 'losses': {name: points} of full
    paths (of levels, where no image has one) and tag levels, 'interval' of 95% of the first in
    points or None, 'equal': share of images with the same answers, 'largest_difference': of
    probabilities}.
  """
  split, table = trained.c.data.val, trained.taxonomy
  examples, rows, collected, decided = collect.to_fit(trained.split(split), table), [], [], []
  for model in (as_run(trained, exact), as_run(trained, exported)):
    model.rules = without_fitted(model.rules)
    outputs = model.collect(examples)
    decided.append(outputs.decide(table, model.rules))
    collected.append(outputs)
    summarized = summary.summarize(split, outputs, decided[-1], table, model.rules, 1)
    rows.append(papers.measured(summarized))
  n, block, is_equal = len(outputs.index), table.block('exclusive'), True
  before, after = map(_figures, rows)
  losses, interval = {name: 100 * (x - after[name]) for name, x in before.items()}, None
  if block:
    labels = outputs.labels[:, block.columns]
    paths = [decisions['exclusive']['joint'].pred for decisions in decided]
    is_equal = (paths[0] == paths[1]).all(1)
    right = [(path == labels).all(1)[(labels >= 0).all(1)] for path in paths]
    if len(right[0]):
      interval = [100 * x for x in paired_interval(*right)]
  if 'tags' in decided[0]:
    is_equal &= (decided[0]['tags'].pred == decided[1]['tags'].pred).all(1)
  probs = [outputs.probs for outputs in collected]
  largest = max(float(np.abs(p - probs[1][level]).max()) for level, p in probs[0].items())
  facts = {'split': split, 'images': n, 'float32': rows[0], 'int8': rows[1], 'losses': losses}
  facts |= {'interval': interval, 'equal': float(np.mean(is_equal))}
  return facts | {'largest_difference': largest}


def _figures(row):
  """Shares of right paths (where no image has a full one, of levels) and precisions of tags."""
  shares = row['top1'] if row['path'] is None else {PATH: row['path']}
  return {name: x for name, x in {**shares, **row['map']}.items() if x is not None}


def paired_interval(before: np.ndarray, after: np.ndarray, z: float = 1.96) -> tuple[float, float]:
  """Compute the interval of a share minus another of the same images.

  It counts half an image more in each of the four cells of the table (Agresti and Min, Statistics
  in Medicine 24, 2005), so it does not shrink to nothing where no image changes.

  Args:
    before, after: bool [N].
    z: quantile of the normal distribution; 1.96 gives 95%.
  """
  n = len(before) + 2
  lost, won = (before & ~after).sum() + 0.5, (after & ~before).sum() + 0.5
  half = z * np.sqrt(lost + won - (lost - won) ** 2 / n) / n
  return float((lost - won) / n - half), float((lost - won) / n + half)


def speed(exact: runtime.Exported, exported: runtime.Exported) -> dict:
  """Measure images a second on this machine, in turn.

  Args:
    exact: the artefact in float32.
    exported: that in int8.

  Returns:
    {'processors': number, 'rates': {batch: {'float32': rate, 'int8': rate}}}.
  """
  rates, shape = {}, exact.session.get_inputs()[0].shape[1:]
  for size in SIZES:
    images = np.random.default_rng(0).integers(0, 256, (size, *shape), np.uint8)
    seconds = [np.inf, np.inf]
    for _ in range(ROUNDS):
      for i, model in enumerate((exact, exported)):
        start = time.perf_counter()
        model.run(images)
        seconds[i] = min(seconds[i], time.perf_counter() - start)
    rates[f'{size}'] = {name: size / s for name, s in zip(('float32', 'int8'), seconds)}
  return {'processors': os.cpu_count(), 'rates': rates}


def check(facts: dict, limit: float) -> list[str]:
  """Refuse a model that loses too much; return lines for the user.

  Args:
    facts: of `compare` and `speed`.
    limit: in points.

  Raises:
    UserError: it loses more than the limit on the images of val, or that cannot be measured.
  """
  losses, n, interval = facts['losses'], facts['images'], facts['interval']
  if not losses:
    raise UserError('--int8: no image of val has a label, so what it loses cannot be measured')
  worst = max(losses, key=losses.get)
  text = f'int8 loses {losses[worst]:.2f} points of {worst}'
  text += f' (95%: {interval[0]:.2f} to {interval[1]:.2f})' if worst == PATH else ''
  text += f' on {n} images of {facts["split"]}'
  if losses[worst] > limit:
    raise UserError(f'--int8={limit:g}: {text}, more than that; nothing is written')
  lines = [f'{text}; {100 * facts["equal"]:.1f}% of the answers are the same']
  if interval and interval[1] > limit:
    lines.append(f'note: {n} images are too few to say that others lose no more than {limit:g}')
  ratios = {size: row['int8'] / row['float32'] for size, row in facts['rates'].items()}
  text = ', '.join(f'{x:.2f} times at batches of {size}' for size, x in ratios.items())
  return [*lines, f'images a second, of those of float32 on this machine: {text}']
