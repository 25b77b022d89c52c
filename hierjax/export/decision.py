"""The decisions of `hierjax.decide` as ONNX operators, in float64 as there."""

from collections.abc import Mapping

import numpy as np

from hierjax.decide.decisions import Rules, join
from hierjax.decide.paths import TINY
from hierjax.export.answers import add_answers
from hierjax.export.graph import Graph, Value, canonical, type_code
from hierjax.taxonomy import Mixed, Taxonomy

# The classes of each head that the graph lists.
TOP = 5


def add_decisions(
  graph: Graph, probs: Mapping[str, Value], taxonomy: Taxonomy | Mixed, rules: Rules
) -> None:
  """Add the joint decision, the present tags, and the first classes of each head, as outputs.

  These are `path` int64 [N, L], `path_probability/LEVEL` float32 [N, C], `present/LEVEL` bool
  [N, C], `top/LEVEL` int64 [N, k] and `top_probability/LEVEL` float32 [N, k]; and, of a run that
  is calibrated for a risk, what `add_answers` adds.

  Args:
    graph: the graph.
    probs: {level with a head: float32 [N, C]}.
    taxonomy: the levels.
    rules: of the run.
  """
  double = {k: graph.add('Cast', p.source, to=type_code(np.float64)) for k, p in probs.items()}
  path = None
  for block in taxonomy.blocks:
    if block.kind == 'exclusive':
      path, leaves, best = _add_path(graph, double, block, rules[block.kind])
      if 'answer' in rules:
        add_answers(graph, leaves, best, block.taxonomy, rules['answer'])
    else:
      _add_tags(graph, double, block, join(rules[block.kind], block), taxonomy, path)
  for level, p in probs.items():
    k = min(TOP, p.shape[1])
    values, classes = graph.add('TopK', p.source, np.array([k], np.int64), outputs=2, axis=1)
    graph.output(f'top/{level}', canonical(classes, (graph.batch, k)), np.int64)
    graph.output(f'top_probability/{level}', canonical(values, (graph.batch, k)), np.float32)


def _add_path(graph, probs, block, rules):
  """Add the path with the largest sum of w log p, and the probability of each class over paths.

  Returns the path, the probabilities of all leaves and the most likely one.
  """
  table, score = block.taxonomy, None
  for k, level in enumerate(block.levels):
    weight = rules.weights.get(level, 1.0)
    if level not in probs or not weight:
      continue
    term = graph.add('Log', graph.add('Max', probs[level], np.array(TINY)))
    term = graph.add('Mul', term, np.array(float(weight)))
    term = graph.add('Gather', term, table.paths[:, k].astype(np.int64), axis=1)
    score = term if score is None else graph.add('Add', score, term)
  best = graph.add('ArgMax', score, axis=1, keepdims=0)
  path = graph.add('Gather', table.paths.astype(np.int64), best, axis=0)
  graph.output('path', canonical(path, (graph.batch, len(block.levels))), np.int64)
  largest = graph.add('ReduceMax', score, np.array([1], np.int64), keepdims=1)
  scaled = graph.add('Div', graph.add('Sub', score, largest), np.array(float(rules.temperature)))
  leaves = graph.add('Softmax', scaled, axis=1)
  for k, (level, names) in enumerate(zip(block.levels, table.names)):
    p = graph.sums(leaves, table.paths[:, k], len(names))
    p = canonical(graph.add('Cast', p, to=type_code(np.float32)), (graph.batch, len(names)))
    graph.output(f'path_probability/{level}', p, np.float32)
  return path, leaves, best


def _add_tags(graph, probs, block, thresholds, taxonomy, path):
  """Add the tags that reach their thresholds and may stand beside the path, and all above them."""
  table = block.taxonomy
  p = graph.add('Concat', *(probs[level] for level in block.levels), axis=1)
  is_present = graph.add('GreaterOrEqual', p, thresholds)
  for k, ancestor in enumerate(taxonomy.ancestors.values()):
    column = graph.add('Gather', path, np.array([k], np.int64), axis=1)
    fits = graph.add('Equal', column, ancestor.astype(np.int64))
    is_present = graph.add('And', is_present, graph.add('Or', fits, ancestor < 0))
  above, below = table.edges
  number = graph.add('Cast', is_present, to=type_code(np.int32))
  number = graph.add('Gather', number, below.astype(np.int64), axis=1)
  number = graph.joined(number, above, np.zeros((table.width, 1), np.int32), 'max')
  present = graph.add('Cast', number, to=type_code(bool))
  for level, columns in table.columns.items():
    index = np.arange(columns.start, columns.stop)
    part = canonical(graph.add('Gather', present, index, axis=1), (graph.batch, len(index)))
    graph.output(f'present/{level}', part, bool)
