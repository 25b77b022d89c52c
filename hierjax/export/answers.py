"""Answers as deep as is safe as ONNX operators: `decide.backoff` in float64, as there."""

import numpy as np

from hierjax.decide import lineages
from hierjax.decide.backoff import HALF, Backoff
from hierjax.decide.decisions import AnswerRules
from hierjax.export.graph import Graph, Source, canonical, type_code
from hierjax.taxonomy import Taxonomy

DECIMALS = 1e12  # scores are rounded to twelve


def add_answers(
  graph: Graph, leaves: Source, best: Source, table: Taxonomy, rules: AnswerRules
) -> None:
  """Add how many levels of the path are answered, as outputs int64 [N].

  These are `answer`, at the run's own risk, and for each risk r of the rules `answer/r`.

  Args:
    graph: the graph.
    leaves: float64 [N, leaf], their probabilities.
    best: int64 [N], the most likely leaf.
    table: of the exclusive levels.
    rules: of the run.
  """
  best = graph.add('Unsqueeze', best, np.array([1], np.int64))
  prob = _lineage(graph, leaves, best, table.paths)
  scores = _level_scores(graph, prob)
  named = {'answer': rules.backoff} if rules.backoff else {}
  named |= {f'answer/{risk:g}': rule for risk, rule in rules.risks.items()}
  for name, rule in named.items():
    compared = prob if rule.by == 'level' else scores
    depth = _depth(graph, compared, best, table.paths[:, 0], rule)
    graph.output(name, canonical(depth, (graph.batch,)), np.int64)


def _lineage(graph, leaves, best, paths):
  """Probabilities of the nodes above the most likely leaf, and its own: [N, 1] for each level."""
  prob = []
  for of_leaf in lineages.nodes(paths).of_leaf.T:
    node = np.asarray(of_leaf - of_leaf.min(), np.int64)
    sums = graph.sums(leaves, node, node.max() + 1)
    p = graph.add('GatherElements', sums, graph.add('Gather', node, best), axis=1)
    prob.append(graph.add('Min', prob[-1], p) if prob else p)
  return prob


def _level_scores(graph, prob):
  """`backoff.level_scores` of each level [N, 1], before the least of it and those above is taken.

  Nodes that are more likely wrong than right have lost infinitely much, so no mean ends there.
  """
  is_likely = [graph.add('GreaterOrEqual', p, np.array(HALF)) for p in prob]
  lost = [np.zeros((1, 1))]
  for p, likely in zip(prob, is_likely):
    lost.append(graph.add('Where', likely, graph.add('Sub', np.array(1.0), p), np.array(np.inf)))
  scores = []
  for k, p in enumerate(prob):
    least = [
      _extreme(graph, 'Min', [_mean(graph, lost, i, j) for j in range(k + 1, len(lost))])
      for i in range(k + 1)
    ]
    score = graph.add('Sub', np.array(1.0), _extreme(graph, 'Max', least))
    score = graph.add('Where', is_likely[k], score, p)
    rounded = graph.add('Round', graph.add('Mul', score, np.array(DECIMALS)))
    scores.append(graph.add('Div', rounded, np.array(DECIMALS)))
  return scores


def _mean(graph, lost, i, j):
  return graph.add('Div', graph.add('Sub', lost[j], lost[i]), np.array(float(j - i)))


def _extreme(graph, op, values):
  return values[0] if len(values) == 1 else graph.add(op, *values)


def _depth(graph, scores, best, coarsest, rule: Backoff):
  """How many levels reach their thresholds, and all above them."""
  thresholds = np.array(rule.thresholds)
  if rule.group:
    group = np.array(rule.group)[coarsest]
    rows = graph.add('Squeeze', best, np.array([1], np.int64))
    thresholds = graph.add('Gather', thresholds[group], rows, axis=0)
  is_safe = graph.add('GreaterOrEqual', graph.add('Concat', *scores, axis=1), thresholds)
  misses = graph.add('Cast', graph.add('Not', is_safe), to=type_code(np.int32))
  misses = graph.add('CumSum', misses, np.array(1))
  is_answered = graph.add('Equal', misses, np.array(0, np.int32))
  is_answered = graph.add('Cast', is_answered, to=type_code(np.int64))
  return graph.add('ReduceSum', is_answered, np.array([1], np.int64), keepdims=0)
