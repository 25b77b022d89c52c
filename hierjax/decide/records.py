"""Decisions as plain dicts for JSON, one an example."""

from collections.abc import Mapping, Sequence

import numpy as np

from hierjax.core.errors import UserError
from hierjax.decide.backoff import HALF, NEVER, Answers
from hierjax.decide.decisions import Decisions
from hierjax.decide.labelling import label_gains
from hierjax.decide.lineages import Lineage
from hierjax.decide.sets import level_sets
from hierjax.taxonomy import Mixed, Taxonomy

DIGITS = 6
# The decisions on exclusive levels that records are written from.
IN_RECORDS = ('independent', 'joint')
# Kinds of answers.
KNOWN, UNSURE, NEW = 'known', 'unsure', 'new'


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
    that the class is one of them, and 'outside' is that of the others; where rules for answers are
    fitted, 'answer', see `answer_record`; where sets are, 'sets' {level: [class, ...]}, the most
    likely first. Of tags: 'classes' {level: [class, ...]} and in 'prob' {level: {class:
    probability}}.
  """
  n = len(next(iter(probs.values())))
  records = [{} for _ in range(n)]
  for block in taxonomy.blocks:
    write = WRITERS[block.kind]
    write(records, decisions[block.kind], probs, block.taxonomy, top)
  if 'answer' in decisions:
    table = taxonomy.table('exclusive')
    for i, record in enumerate(records):
      record['answer'] = answer_record(decisions['answer'], i, table)
  if 'sets' in decisions:
    _write_sets(records, decisions, taxonomy.table('exclusive'))
  return records


def add_label_gains(
  records: Sequence[dict], decisions: Decisions, taxonomy: Taxonomy | Mixed
) -> None:
  """Add 'gain' {level: expected number of wrong levels that its label corrects} to records.

  Args:
    records: of N examples.
    decisions: on these.
    taxonomy: the levels.

  Raises:
    UserError: all levels are tags.
  """
  table = taxonomy.table('exclusive')
  if table is None:
    raise UserError('decide.label_gains: is for exclusive levels, of which this model has none')
  posterior = decisions['exclusive']['joint'].prob[-1]
  for record, gains in zip(records, label_gains(posterior, table.paths).tolist()):
    record['gain'] = {level: round(x, DIGITS) for level, x in zip(table.levels, gains)}


def _write_sets(records, decisions, table):
  """Write the classes of each set, level by level, the most likely first."""
  prob = decisions['exclusive']['joint'].prob
  for i, (record, leaves) in enumerate(zip(records, decisions['sets'])):
    record['sets'] = {}
    for k, classes in enumerate(level_sets(leaves, table.paths)):
      order = np.argsort(-prob[k][i, classes], kind='stable')
      record['sets'][table.levels[k]] = [table.names[k][c] for c in classes[order]]


def _write_paths(records, decision, probs, taxonomy, top):
  """Write the joint decision's path and the classes that each head ranks highest."""
  joint = decision['joint']
  head_prob = dict(zip(taxonomy.levels, decision['independent'].prob))
  heads = [level for level in taxonomy.levels if level in probs]
  # {level: int [N, top]}, the classes that are listed
  order = {level: np.argsort(-head_prob[level], kind='stable')[:, :top] for level in heads}
  for i, record in enumerate(records):
    record['path'], record['prob'], record['top'] = {}, {}, {}
    for k, level in enumerate(taxonomy.levels):
      c = joint.pred[i, k]
      record['path'][level] = taxonomy.names[k][c]
      record['prob'][level] = round(float(joint.prob[k][i, c]), DIGITS)
    for level in heads:
      names = taxonomy.names[taxonomy.index(level)]
      p = head_prob[level][i]
      classes = order[level][i]
      if joint.outside is not None:
        # without those that are not allowed
        classes = classes[p[classes] > 0]
      record['top'][level] = [[names[c], round(float(p[c]), DIGITS)] for c in classes]
    if joint.outside is not None:
      record['outside'] = round(float(joint.outside[i]), DIGITS)


def _write_tags(records, decision, probs, taxonomy, top):
  """Write the classes that are present and the probabilities of all."""
  pred = taxonomy.split(decision.pred)
  for i, record in enumerate(records):
    classes = record.setdefault('classes', {})
    prob = record.setdefault('prob', {})
    for level, names in zip(taxonomy.levels, taxonomy.names):
      is_present = pred[level][i]
      classes[level] = [name for c, name in enumerate(names) if is_present[c]]
      prob[level] = {name: round(float(p), DIGITS) for name, p in zip(names, probs[level][i])}


WRITERS = {'exclusive': _write_paths, 'tags': _write_tags}


def answer_record(answers: Answers, i: int, taxonomy: Taxonomy) -> dict:
  """Put one answer into words.

  Args:
    answers: of N examples.
    i: the row of the example.
    taxonomy: the exclusive levels.

  Returns:
    'kind', whether it is a leaf (known) or not (unsure); 'level', None where nothing is answered;
    'name' of the node, of facets all classes of it; 'prob' of the node; 'depth', the number of
    levels that it fixes; 'reason' why it is no deeper.
  """
  path = answers.path[i].tolist()
  # a branch that ended early is answered in full
  full_depth = int(taxonomy.depth[path[-1]])
  depth = min(int(answers.depth[i]), full_depth)
  kind = KNOWN if depth == full_depth else UNSURE
  return _node(kind, taxonomy, path, depth, answers.prob[i], _reason(answers, i, taxonomy))


def _node(kind, taxonomy, path, depth, prob, reason):
  """Describe the node that the first `depth` levels of a path are, see `answer_record`."""
  return {
    'kind': kind,
    'level': taxonomy.levels[depth - 1] if depth else None,
    'name': node_name(taxonomy, path, depth),
    'prob': round(float(prob), DIGITS),
    'depth': depth,
    'reason': reason,
  }


def answer_or_new(
  answer: dict | None, line: Lineage, i: int, taxonomy: Taxonomy, level: int, reason: str
) -> dict:
  """Say of one image whether it is known, unsure or new, where novelty is detected.

  Args:
    answer: as `answer_record` returns it; None where each leaf is answered.
    line: the lineages of N examples.
    i: the row of the example.
    taxonomy: the exclusive levels.
    level: at which the image is new, the number of levels where it is not.
    reason: why it is.

  Returns:
    The answer; of a new image of 'kind' new, and the node under which it is new, or one above it
    where that is unsure.
  """
  path = line.path[i].tolist()
  is_new = level < len(path)
  if answer and not is_new:
    return answer
  if answer and answer['depth'] < level:
    return {**answer, 'kind': NEW, 'reason': f'{reason}; {answer["reason"]}'}
  kind = NEW if is_new else KNOWN
  depth = min(level, int(taxonomy.depth[path[-1]]))
  prob = line.prob[i, depth - 1] if depth else 1
  return _node(kind, taxonomy, path, depth, prob, reason)


def node_name(taxonomy: Taxonomy, path: Sequence[int], depth: int) -> str:
  """Name the node that the first levels of a path are; '' for the root.

  Args:
    taxonomy: the exclusive levels.
    path: int [level].
    depth: the number of these levels; classes that those below them determine are left out.
  """
  names = []
  for k in range(depth):
    level = taxonomy.levels[k]
    deeper = taxonomy.levels[k + 1 : depth]
    if not any(taxonomy.nests(child, level) for child in deeper):
      names.append(taxonomy.names[k][path[k]])
  return ', '.join(names)


def _reason(answers, i, taxonomy):
  """Say why the answer of example i is no deeper."""
  if answers.cost is not None:
    cost, of_leaf = answers.cost[i].tolist()
    reason = f'least expected cost {cost:.2g}'
    return reason if of_leaf <= cost else f'{reason}, of the most likely leaf {of_leaf:.2g}'
  depth = int(answers.depth[i])
  needed = float(answers.needed[i])
  score = float(answers.score[i])
  # below one half, and where each level has its threshold, probabilities are compared
  by_prob = np.isnan(score) or needed < HALF
  if depth == len(taxonomy.levels):
    if by_prob:
      return f'its probability reaches {needed:.2g}'
    return f'no level costs more than {1 - needed:.2g} of the probability'
  level = taxonomy.levels[depth]
  if needed >= NEVER:
    return f'{level}: too few calibration images to answer at this risk'
  costs = f'a level more costs {1 - score:.2g} of the probability, at most {1 - needed:.2g} is safe'
  if by_prob:
    costs = f'{needed:.2g} is needed'
  elif score < HALF:
    costs = 'none is more likely right than wrong'
  children = [
    f'{taxonomy.names[depth][c]} at {p:.2g}'
    for c, p in zip(answers.classes[i].tolist(), answers.class_prob[i].tolist())
    if c >= 0
  ]
  return f'{level} unsure: {" and ".join(children)}; {costs}'
