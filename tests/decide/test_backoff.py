"""Back-off with a guarantee, against loops over nodes and thresholds, scipy and simulation."""

import json
import pathlib
import re

import numpy as np
import pytest
from scipy.stats import binom

from hierjax import decide
from hierjax.core.errors import UserError
from hierjax.decide import backoff, lineages, records
from hierjax.evaluate import rules
from hierjax.taxonomy import Taxonomy

TREE = Taxonomy.from_rows(
  ('order', 'genus', 'species'), [[f'o{i // 6}', f'g{i // 2}', f's{i}'] for i in range(18)]
)
FACETS = Taxonomy.from_rows(
  ('make', 'type', 'model'), [[f'm{i % 4}', f't{(i * 7) % 3}', f'x{i}'] for i in range(20)]
)
UNEVEN = Taxonomy.from_rows(
  ('a', 'b', 'c'),
  [['p', '', ''], ['q', 'q1', ''], ['q', 'q2', 'z'], ['q', 'q2', 'y'], ['r', 'r1', 'r1a']],
)
FITTED = backoff.Backoff(0.05, None, 'one', ((0.85,) * 3,), (), (100,))
TABLES = {'tree': TREE, 'facets': FACETS, 'uneven': UNEVEN}


def sample(table, n, seed=0, skill=1.5):
  """Posteriors float [n, leaf] that are right as often as they say, and labels [n, level]."""
  rng = np.random.default_rng(seed)
  leaves = len(table.paths)
  truth = rng.integers(leaves, size=n)
  x = skill * rng.normal(size=(n, leaves)) + skill**2 * np.eye(leaves)[truth]
  # each look also tells relatives apart less well
  p = np.exp(x - x.max(1, keepdims=True))
  return p / p.sum(1, keepdims=True), table.paths[truth]


def below(table, path, depth):
  """The leaves of a node, by a loop."""
  return [i for i, row in enumerate(table.paths) if (row[:depth] == path[:depth]).all()]


@pytest.mark.parametrize('table', TABLES.values(), ids=TABLES)
def test_lineages_against_a_loop(table, monkeypatch):
  monkeypatch.setattr(lineages, 'BLOCK_SIZE', 100)
  p, _ = sample(table, 23)
  line = lineages.lineage(p.astype(np.float32), table.paths)
  for i, row in enumerate(p.astype(np.float32).astype(float)):
    path = table.paths[row.argmax()]
    assert (line.path[i] == path).all()
    expected = [row[below(table, path, d)].sum() for d in range(1, 4)]
    np.testing.assert_allclose(line.prob[i], expected, rtol=1e-12)
  assert (np.diff(line.prob, axis=1) <= 0).all()
  depth = np.arange(23) % 4
  classes, prob = lineages.best_children(p, table.paths, line.path, depth)
  for i, d in enumerate(depth):
    inside, sums = below(table, line.path[i], d), {}
    for leaf in inside if d < 3 else ():
      c = table.paths[leaf, d]
      sums[c] = sums.get(c, 0) + p[i, leaf]
    best = sorted(sums.items(), key=lambda item: -item[1])[:2]
    best += [(-1, 0)] * (2 - len(best))
    assert classes[i].tolist() == [c for c, _ in best]
    np.testing.assert_allclose(prob[i], [q for _, q in best], atol=1e-12)


@pytest.mark.parametrize('table', TABLES.values(), ids=TABLES)
def test_node_sums_against_a_loop(table):
  p, _ = sample(table, 5)
  tree = lineages.nodes(table.paths)
  sums = lineages.node_sums(p, tree)
  assert sums.shape[1] == len(tree.depth)
  for leaf, path in enumerate(table.paths):
    for d in (1, 2, 3):
      v = tree.of_leaf[leaf, d - 1]
      assert tree.depth[v] == d
      members = tree.order[tree.start[v] : tree.end[v]]
      assert sorted(members) == below(table, path, d)
      np.testing.assert_allclose(sums[:, v], p[:, members].sum(1))


def needed_threshold(scores, labels, path):
  """The threshold of FIELD.md that an example needs: just above its last wrong node."""
  wrong = [k for k in range(len(path)) if (path[: k + 1] != labels[: k + 1]).any()]
  return np.nextafter(scores[wrong].max(), 2) if wrong else 0.0


@pytest.mark.parametrize('levels', [1, 2, 3, 6])
def test_scores_choose_what_maximises_depth_at_a_price_of_an_error(levels):
  rng = np.random.default_rng(levels)
  prob = np.sort(rng.uniform(size=(300, levels)).round(2), 1)[:, ::-1]
  scores, rows = backoff.level_scores(prob), np.arange(300)
  assert (np.diff(scores, axis=1) <= 0).all() and scores.min() >= 0 and scores.max() <= 1
  full = np.concatenate([np.ones((300, 1)), prob], 1)
  for threshold in (0.5, 0.6, 0.7, 0.85, 0.95, 0.999):
    depth = (scores >= threshold).sum(1)
    value = np.where(full >= 0.5, np.arange(levels + 1) * (1 - threshold) + full, 0)
    np.testing.assert_allclose(value[rows, depth], value.max(1), atol=1e-9)
  for threshold in (0.0, 0.1, 0.49):
    assert ((scores >= threshold) == (prob >= threshold)).all()
  # of equals the deepest
  np.testing.assert_allclose(backoff.level_scores(np.array([[0.9, 0.8, 0.7]])), [[0.9, 0.9, 0.9]])
  np.testing.assert_allclose(backoff.level_scores(np.array([[0.9, 0.6, 0.4]])), [[0.9, 0.7, 0.4]])


@pytest.mark.parametrize('n, risk', [(50, 0.05), (19, 0.05), (18, 0.05), (200, 0.02), (99, 0.1)])
def test_the_mean_guarantee_is_an_order_statistic(n, risk):
  p, labels = sample(TREE, n)
  line = lineages.lineage(p, TREE.paths)
  rule = backoff.fit_backoff(line, backoff.mistakes(line.path, labels), risk)
  needed = sorted(map(needed_threshold, backoff.level_scores(line.prob), labels, line.path))
  k = int(np.ceil(round((n + 1) * (1 - risk), 9)))
  assert rule.thresholds == ((needed[k - 1] if k <= n else backoff.NEVER,) * 3,)
  assert rule.examples == (n,) and (k <= n) == (risk >= backoff.smallest_risk(n) - 1e-12)


@pytest.mark.parametrize('n', [10, 50, 300])
@pytest.mark.parametrize('risk, confidence', [(0.05, 0.9), (0.1, 0.99), (0.3, 0.5)])
def test_the_guarantee_with_confidence_is_the_binomial_one(n, risk, confidence):
  p, labels = sample(TREE, n, seed=1)
  line = lineages.lineage(p, TREE.paths)
  rule = backoff.fit_backoff(line, backoff.mistakes(line.path, labels), risk, confidence)
  needed = sorted(map(needed_threshold, backoff.level_scores(line.prob), labels, line.path))
  ranks = [k for k in range(1, n + 1) if binom.sf(k - 1, n, 1 - risk) <= 1 - confidence]
  expected = needed[ranks[0] - 1] if ranks else backoff.NEVER
  assert rule.thresholds[0] == (expected,) * 3
  least = backoff.smallest_risk(n, confidence)
  assert binom.cdf(0, n, least) == pytest.approx(1 - confidence) and bool(ranks) == (risk >= least)


@pytest.mark.parametrize('confidence', [None, 0.8])
def test_costs_against_a_search_of_all_thresholds(confidence):
  rng = np.random.default_rng(3)
  p, labels = sample(FACETS, 80, seed=2)
  line = lineages.lineage(p, FACETS.paths)
  losses = backoff.mistakes(line.path, labels) * rng.uniform(0, 4, (80, 3))
  rule = backoff.fit_backoff(line, losses, 0.5, confidence, bound=4.0)
  limit = backoff.loss_limit(80, 0.5, confidence, 4.0, False)
  scores = backoff.level_scores(line.prob)
  candidates = sorted({0.0, *np.nextafter(scores, 2).ravel()})
  worst = np.maximum.accumulate(losses, 1)
  for theta in candidates:
    depth = (scores >= theta).sum(1)
    total = sum(worst[i, d - 1] for i, d in enumerate(depth) if d)
    if total <= limit:
      break
  assert rule.thresholds[0][0] == theta > 0
  if confidence is None:
    assert limit == pytest.approx(81 * 0.5 - 4)


def test_levels_have_thresholds_for_their_own_labels():
  p, labels = sample(TREE, 120, seed=4)
  labels[::3, 2] = -1
  line = lineages.lineage(p, TREE.paths)
  losses = backoff.mistakes(line.path, labels)
  rule = backoff.fit_backoff(line, losses, 0.1, by='level')
  for k in range(3):
    rows = labels[:, k] >= 0
    alone = lineages.Lineage(line.path[rows], line.prob[rows, k : k + 1])
    expected = backoff.fit_backoff(alone, losses[rows, k : k + 1], 0.1, by='level')
    assert rule.thresholds[0][k] == expected.thresholds[0][0]
  depth = backoff.answered_depth(line, rule)
  for i, q in enumerate(line.prob):
    safe = [q[k] >= rule.thresholds[0][k] for k in range(3)] + [False]
    assert depth[i] == safe.index(False)


def test_branches_with_few_examples_share_a_threshold():
  branch = np.repeat(np.arange(4), [50, 3, 9, 70])
  assert backoff._group_branches(branch, 6, 40) == (1, 1, 1, 0, 1, 1)
  assert backoff._group_branches(branch, 6, 12) == (1, 2, 2, 0, 2, 2)
  assert backoff._group_branches(branch, 4, 3) == (1, 3, 2, 0)
  assert backoff._group_branches(branch, 5, 1000) == (0,) * 5
  p, labels = sample(TREE, 300, seed=5)
  line = lineages.lineage(p, TREE.paths)
  losses = backoff.mistakes(line.path, labels)
  rule = backoff.fit_backoff(line, losses, 0.1, by='branch', branches=3, minimum=100)
  assert sum(rule.examples) == 300 and min(rule.examples) >= 100
  for g, row in enumerate(rule.thresholds):
    rows = np.array(rule.group)[line.path[:, 0]] == g
    alone = backoff.fit_backoff(
      lineages.Lineage(line.path[rows], line.prob[rows]), losses[rows], 0.1
    )
    assert alone.thresholds == (row,)


@pytest.mark.parametrize('by', ['one', 'level', 'branch'])
def test_the_guarantees_hold_in_simulation(by):
  """200 calibration sets of 120 of 3,000 examples: the risk on the others, how often too high."""
  p, labels = sample(TREE, 3000, seed=6)
  # a model that is far too sure of itself changes nothing
  p = p**3 / (p**3).sum(1, keepdims=True)
  line = lineages.lineage(p, TREE.paths)
  losses, rng = backoff.mistakes(line.path, labels), np.random.default_rng(7)
  risks, are_above = [], []
  for _ in range(200):
    order = rng.permutation(3000)
    calibration, others = order[:120], order[120:]
    fitted = lineages.Lineage(line.path[calibration], line.prob[calibration])
    new = lineages.Lineage(line.path[others], line.prob[others])
    for confidence in (None, 0.9):
      rule = backoff.fit_backoff(
        fitted, losses[calibration], 0.1, confidence, by=by, branches=3, minimum=30
      )
      depth = backoff.answered_depth(new, rule)
      if by == 'level':
        is_wrong = losses[others] * (depth[:, None] > np.arange(3))
      else:
        is_wrong = np.where(depth > 0, losses[others, np.maximum(depth - 1, 0)], 0)[:, None]
      (risks if confidence is None else are_above).append(is_wrong.mean(0))
  error = np.std(risks, axis=0) / np.sqrt(200)
  assert (np.mean(risks, 0) <= 0.1 + 2 * error).all()
  if by == 'one':
    assert np.mean(risks) > 0.07
    share = np.mean(np.array(are_above) > 0.1)
    assert 0.01 < share <= 0.1 + 2 * np.sqrt(0.1 * 0.9 / 200)


def test_an_answer_names_node_probability_and_rivals():
  p = np.zeros((3, 18))
  p[0, :3] = 0.75, 0.2, 0.05
  p[1, [0, 1, 6]] = 0.45, 0.45, 0.1
  p[2, [0, 6, 12]] = 0.4, 0.3, 0.3
  answers = backoff.answer(p, TREE.paths, FITTED)
  assert answers.depth.tolist() == [2, 2, 0]
  np.testing.assert_allclose(answers.prob, [0.95, 0.9, 1])
  np.testing.assert_allclose(answers.score, [0.8, 0.45, 0.4])
  assert answers.needed.tolist() == [0.85] * 3
  assert answers.classes.tolist() == [[0, 1], [0, 1], [0, 1]]
  np.testing.assert_allclose(answers.class_prob, [[0.75, 0.2], [0.45, 0.45], [0.4, 0.3]])
  silent = FITTED._replace(thresholds=((backoff.NEVER,) * 3,))
  assert backoff.answer(p, TREE.paths, silent).depth.tolist() == [0, 0, 0]
  full = FITTED._replace(thresholds=((0.0,) * 3,))
  answers = backoff.answer(p, TREE.paths, full)
  assert answers.depth.tolist() == [3, 3, 3] and (answers.classes == -1).all()


def test_answers_in_words():
  p = np.zeros((4, 18))
  p[0, :3] = 0.75, 0.2, 0.05
  p[1, [0, 1, 6]] = 0.45, 0.45, 0.1
  p[2, [0, 6, 12]] = 0.4, 0.3, 0.3
  p[3, 17] = 1
  fitted = decide.default_rules(TREE) | {'answer': decide.AnswerRules('val', 100, FITTED)}
  probs = {'species': p}
  answers = [
    r['answer'] for r in decide.to_records(decide.decide(probs, TREE, fitted), probs, TREE)
  ]
  reason = (
    'species unsure: s0 at 0.75 and s1 at 0.2; a level more costs 0.2 of the probability, at most '
    '0.15 is safe'
  )
  expected = {'kind': 'unsure', 'level': 'genus', 'name': 'g0', 'prob': 0.95, 'depth': 2}
  expected['reason'] = reason
  assert answers[0] == expected and answers[1]['prob'] == 0.9
  assert answers[2]['level'] is None and answers[2]['name'] == '' and answers[2]['prob'] == 1
  reason = 'order unsure: o0 at 0.4 and o1 at 0.3; none is more likely right than wrong'
  assert answers[2]['reason'] == reason
  assert [answer['kind'] for answer in answers] == ['unsure'] * 3 + ['known']
  assert answers[3]['name'] == 's17' and answers[3]['reason'] == (
    'no level costs more than 0.15 of the probability'
  )
  rule = decide.AnswerRules('val', 100, FITTED._replace(by='level'))
  answer = decide.to_records(decide.decide(probs, TREE, fitted | {'answer': rule}), probs, TREE)
  assert answer[0]['answer']['reason'] == 'species unsure: s0 at 0.75 and s1 at 0.2; 0.85 is needed'
  path = FACETS.paths[5].tolist()
  names = [records.node_name(FACETS, path, depth) for depth in range(4)]
  assert names == ['', 'm1', 'm1, t2', 'x5']
  posterior = np.full((1, 5), [0.9, 0.1, 0, 0, 0])
  result = backoff.answer(posterior, UNEVEN.paths, FITTED)
  record = records.answer_record(result, 0, UNEVEN)
  assert (record['level'], record['name'], record['depth']) == ('a', 'p', 1)
  silent = FITTED._replace(thresholds=((backoff.NEVER,) * 3,))
  record = records.answer_record(backoff.answer(posterior, UNEVEN.paths, silent), 0, UNEVEN)
  assert record['reason'] == 'a: too few calibration images to answer at this risk'


@pytest.mark.parametrize('by', ['one', 'level', 'branch'])
def test_rules_are_read_as_they_were_written(tmp_path, by):
  p, labels = sample(TREE, 300)
  line = lineages.lineage(p, TREE.paths)
  losses = backoff.mistakes(line.path, labels)
  rule = backoff.fit_backoff(line, losses, 0.05, 0.9, by=by, branches=3)
  answer = decide.AnswerRules('calibration', 300, rule, others=(rule._replace(risk=0.1),))
  fitted = decide.default_rules(TREE) | {'answer': answer}
  path = tmp_path / 'decode.json'
  rules.write_rules(path, 'val', fitted, TREE)
  assert rules.read_rules(path, TREE) == fitted
  content = json.loads(path.read_text())
  del content['answer']['others']
  path.write_text(json.dumps(content))
  assert rules.read_rules(path, TREE)['answer'] == answer._replace(others=())
  for name, value in (
    ('backoff', {**content['answer']['backoff'], 'thresholds': [[0.5]]}),
    ('others', [1]),
  ):
    path.write_text(json.dumps(content | {'answer': content['answer'] | {name: value}}))
    with pytest.raises(UserError, match=r'decode\.json: answer cannot be read'):
      rules.read_rules(path, TREE)


def test_the_example_in_the_docs_keeps_its_risk():
  page = pathlib.Path(__file__).resolve().parents[2] / 'docs' / 'decisions.md'
  names = {}
  for code in re.findall(r'```python\n(.*?)```', page.read_text(), re.DOTALL):
    exec(compile(code, str(page), 'exec'), names)
  assert names['is_wrong'].mean() < 0.05 + 2 * (0.05 / 500 + 0.05 / 400) ** 0.5
  assert names['answers'].depth.mean() > 2 and names['temperature'] > 1.3
  assert names['cheapest'].cost[:, 0].max() <= names['cheapest'].cost[:, 1].max()
