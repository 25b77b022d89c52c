"""Decisions as plain dicts for JSON, one an example."""

from collections.abc import Mapping

import numpy as np

from hierjax.decide.decisions import Decisions
from hierjax.taxonomy import Mixed, Taxonomy

DIGITS = 6


def to_records(
  decisions: Decisions, probs: Mapping[str, np.ndarray], taxonomy: Taxonomy | Mixed, top: int = 5
) -> list[dict]:
  """Turn decisions into what `Model.predict` returns.

  Args:
    decisions: of N examples.
    probs: {level with a head: float64 [N, C]} that they were made from.
    taxonomy: the levels.
    top: classes of each head to list.

  Returns:
    N dicts. Of exclusive levels: 'path' {level: class} by the joint decision, 'prob' {level: the
    probability of that class over all paths} and 'top' {level: [[class, the head's probability],
    ...]}; where the rules allow a subset of the classes only, these are the probabilities given
    that the class is one of them, and 'outside' is that of the others. Of tags: 'classes' {level:
    [class, ...]} and in 'prob' {level: {class: probability}}.
  """
  n = len(next(iter(probs.values())))
  records = [{} for _ in range(n)]
  for block in taxonomy.blocks:
    WRITERS[block.kind](records, decisions[block.kind], probs, block.taxonomy, top)
  return records


def _write_paths(records, decision, probs, taxonomy, top):
  joint, prob = decision['joint'], dict(zip(taxonomy.levels, decision['independent'].prob))
  heads = [level for level in taxonomy.levels if level in probs]
  order = {level: np.argsort(-prob[level], kind='stable')[:, :top] for level in heads}
  for i, record in enumerate(records):
    record['path'], record['prob'], record['top'] = {}, {}, {}
    for level, names, c, p in zip(taxonomy.levels, taxonomy.names, joint.pred[i], joint.prob):
      record['path'][level] = names[c]
      record['prob'][level] = round(float(p[i, c]), DIGITS)
    for level in heads:
      names = taxonomy.names[taxonomy.index(level)]
      record['top'][level] = [
        [names[c], round(float(prob[level][i, c]), DIGITS)]
        for c in order[level][i]
        if joint.outside is None or prob[level][i, c] > 0
      ]
    if joint.outside is not None:
      record['outside'] = round(float(joint.outside[i]), DIGITS)


def _write_tags(records, decision, probs, taxonomy, top):
  pred = taxonomy.split(decision.pred)
  for i, record in enumerate(records):
    classes, prob = record.setdefault('classes', {}), record.setdefault('prob', {})
    for level, names in zip(taxonomy.levels, taxonomy.names):
      classes[level] = [name for name, is_present in zip(names, pred[level][i]) if is_present]
      prob[level] = {name: round(float(p), DIGITS) for name, p in zip(names, probs[level][i])}


WRITERS = {'exclusive': _write_paths, 'tags': _write_tags}
