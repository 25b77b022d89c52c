"""Answers with a guarantee: fitted in a run's folder, printed by predict, measured by evaluate."""

import json

import numpy as np
import pytest
import tiny

import hierjax
from hierjax import decide
from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.decide import backoff, baselines, calibration, lineages, paths
from hierjax.evaluate import answers, collect, metrics
from hierjax.evaluate.predictor import Predictor
from hierjax.report import page, runs
from hierjax.report.sections import decisions
from hierjax.taxonomy import Taxonomy

TREE = Taxonomy.from_rows(
  ('order', 'genus', 'species'), [[f'o{i // 6}', f'g{i // 2}', f's{i}'] for i in range(18)]
)
FACETS = Taxonomy.from_rows(
  ('make', 'type', 'model'), [[f'm{i % 4}', f't{(i * 7) % 3}', f'x{i}'] for i in range(20)]
)


def sample(table, n, seed=0, skill=1.5, sharp=1.0):
  """Posteriors to the power of `sharp`, which are calibrated where it is 1, and labels."""
  rng = np.random.default_rng(seed)
  leaves = len(table.paths)
  truth = rng.integers(leaves, size=n)
  x = skill * rng.normal(size=(n, leaves)) + skill**2 * np.eye(leaves)[truth]
  p = np.exp(sharp * (x - x.max(1, keepdims=True)))
  return p / p.sum(1, keepdims=True), table.paths[truth]


def options(risk=0.1):
  c = config.default()
  c.decide.risk = risk
  return c


def outputs(table, n, **how):
  p, labels = sample(table, n, **how)
  return collect.Outputs({table.levels[-1]: p}, None, labels, np.arange(n), [])


# pure functions


def test_a_temperature_is_that_of_a_grid_and_undone_by_temper():
  p, labels = sample(TREE, 2000, sharp=2.5)
  fitted = calibration.fit_temperature(p, labels[:, -1])
  grid = np.geomspace(0.3, 8, 800)
  loss = [np.mean(calibration.log_loss(calibration.temper(p, t), labels[:, -1])) for t in grid]
  assert fitted == pytest.approx(grid[np.argmin(loss)], rel=5e-3) and 2.2 < fitted < 2.8
  exact, _ = sample(TREE, 2000)
  np.testing.assert_allclose(calibration.temper(p, 2.5), exact, atol=1e-12)
  assert calibration.fit_temperature(p, np.full(2000, -1)) == 1


def test_scores_against_loops():
  p, labels = sample(TREE, 40)
  y = np.where(np.arange(40) % 5, labels[:, -1], -1)
  brier, loss = calibration.brier(p, y), calibration.log_loss(p, y)
  for i, row in enumerate(p):
    if y[i] < 0:
      assert np.isnan(brier[i]) and np.isnan(loss[i])
    else:
      assert brier[i] == pytest.approx(((row - np.eye(18)[y[i]]) ** 2).sum())
      assert loss[i] == pytest.approx(-np.log(row[y[i]]))
  interval = metrics.ece_interval(p.max(1), p.argmax(1), y)
  expected = metrics.ece(p.max(1), p.argmax(1), y)
  assert interval['mean'] == expected and interval['low'] < interval['high']
  assert metrics.ece_interval(p.max(1), p.argmax(1), np.full(40, -1)) is None


@pytest.mark.parametrize('table', [TREE, FACETS], ids=['tree', 'facets'])
def test_baselines_against_loops(table, monkeypatch):
  monkeypatch.setattr(lineages, 'BLOCK_SIZE', 200)
  p, _ = sample(table, 30)
  tree, n = lineages.nodes(table.paths), len(table.paths)
  members = [tree.order[a:b] for a, b in zip(tree.start, tree.end)]
  bonuses = (0.0, 0.7, 5.0, 1000.0)
  picked = baselines.darts(p, table.paths, bonuses)
  node, prob = baselines.best_by_level(p, table.paths)
  ours = baselines.speciesnet(node, prob, 0.5, 0.4)
  for i, row in enumerate(p):
    sums = [row[m].sum() for m in members]
    for b, bonus in enumerate(bonuses):
      values = [(np.log2(n / len(m)) + bonus) * s for m, s in zip(members, sums)]
      best = picked[b, i]
      assert (bonus if best < 0 else values[best]) == pytest.approx(max(*values, bonus))
    expected = -1
    for depth, limit in ((1, 0.4), (2, 0.4), (3, 0.5)):
      level = [v for v in range(len(members)) if tree.depth[v] == depth]
      best = max(level, key=lambda v: sums[v])
      assert node[i, depth - 1] == best and prob[i, depth - 1] == pytest.approx(sums[best])
      if sums[best] >= limit:
        expected = best
    assert ours[i] == expected
  assert (picked[-1] == -1).mean() > 0.5 and (picked[0] >= 0).all()


# fitted and measured


def test_a_separate_split_fits_the_temperature_and_keeps_the_weights():
  rules = decide.default_rules(TREE)
  calibrated = outputs(TREE, 3000, sharp=3.0)
  fitted, notes = answers.fit(calibrated, TREE, rules, options(), 'calibration')
  assert notes == [] and fitted['exclusive'].weights == rules['exclusive'].weights
  assert fitted['exclusive'].temperature == pytest.approx(3, rel=0.1)
  assert fitted['answer'].split == 'calibration' and fitted['answer'].examples == 3000
  new = outputs(TREE, 3000, seed=1, sharp=3.0)
  decided = decide.decide(new.probs, TREE, fitted)
  result = json.loads(json.dumps(answers.measure(new, decided, TREE, fitted)))
  assert result['measured']['risk']['mean'] == pytest.approx(0.1, abs=0.02)
  for level, scores in result['calibration'].items():
    assert scores['ece']['after']['mean'] < 0.03, level
    for name in ('brier', 'log_loss', 'ece'):
      assert scores[name]['after']['mean'] < scores[name]['before']['mean']
  assert sum(x['images'] for x in result['depths'].values()) == 3000
  wrong = sum(x['images'] * (x['wrong'] or 0) for x in result['depths'].values())
  assert wrong == pytest.approx(3000 * result['measured']['risk']['mean'])
  assert sum(x['images'] for x in result['branches'].values()) == 3000
  by_level = [result['measured'][f'risk/{level}']['mean'] for level in TREE.levels]
  assert max(by_level) <= result['measured']['risk']['mean'] and min(by_level) >= 0
  assert answers.describe(result).startswith('answers: ')
  # the same numbers decide on the lineage and within the curves
  for risk, depth in result['curves']['lineage'][-1:]:
    assert risk == 0 and depth < 0.5
  assert result['curves']['lineage'][0][1] == 3
  # at equal risk no rule answers more levels, but by chance
  depth = {
    name: decisions._depth_at(np.array(points), 0.1) for name, points in result['curves'].items()
  }
  assert depth['answers'] > max(depth[name] for name in ('lineage', 'darts', 'speciesnet')) - 0.01
  without, _ = answers.fit(calibrated, TREE, rules, options(risk=None), 'calibration')
  assert 'answer' not in without and without['exclusive'] == fitted['exclusive']


@pytest.mark.parametrize('by', ['one', 'branch'])
def test_other_risks_are_fitted_as_if_they_were_asked_for(by):
  """Those that the images can guarantee; each keeps its risk on new images."""
  c, calibrated, new = options(), outputs(TREE, 1200), outputs(TREE, 3000, seed=1)
  c.decide.by = by
  rule = answers.fit(calibrated, TREE, decide.default_rules(TREE), c, 'calibration')[0]['answer']
  # 1,200 images guarantee .005, the least of three branches of about 400 as well
  assert [*rule.risks] == [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3] and len(rule.others) == 6
  predictor = Predictor()
  predictor.taxonomy, predictor.rules = TREE, decide.default_rules(TREE) | {'answer': rule}
  depth = []
  for risk in rule.risks:
    c.decide.risk = risk
    expected = answers.fit(calibrated, TREE, decide.default_rules(TREE), c, 'calibration')[0]
    restricted = predictor.at_risk(risk)
    assert restricted.rules['answer'].backoff == expected['answer'].backoff
    decided = restricted.decide(new.probs)['answer']
    depth.append(decided.depth.mean())
    is_wrong = answers._is_wrong(decided.path, decided.depth, new.labels)
    assert is_wrong.mean() < risk + 3 * (risk / 3000 + risk / 1200) ** 0.5
  assert np.all(np.diff(depth) > 0)
  with pytest.raises(UserError, match=r'risk=0.03: .* calibrated for 0.005, 0.01, 0.02, 0.05'):
    predictor.at_risk(0.03)
  scarce = answers.fit(outputs(TREE, 30), TREE, decide.default_rules(TREE), options(), 'val')[0]
  assert [*scarce['answer'].risks] == [0.05, 0.1, 0.2, 0.3]


def test_few_images_are_said_with_the_risk_that_they_guarantee():
  rules = decide.default_rules(TREE)
  fitted, notes = answers.fit(outputs(TREE, 30), TREE, rules, options(0.02), 'val')
  assert fitted['answer'].backoff.thresholds[0][0] == backoff.NEVER
  assert fitted['exclusive'] == rules['exclusive']
  assert 'fitted on val, which also chose the checkpoint' in notes[0]
  assert notes[1].startswith('30 images of val are too few to guarantee a risk of 0.02')
  assert notes[1].endswith('so many can guarantee 0.032')


def test_a_restricted_temperature_is_fitted_on_the_classes_that_are_left():
  p, labels = sample(TREE, 3000, sharp=2.0)
  allowed = TREE.paths[:, 0] < 2
  rows = allowed[labels[:, -1]]
  rules = paths.PathRules(dict.fromkeys(TREE.levels, 1.0), allowed=allowed)
  probs = [None, None, p[rows]]
  fitted = paths.recalibrate(probs, labels[rows], TREE, rules)
  prob = paths.joint(probs, TREE, [1, 1, 1], allowed=allowed).prob[-1][:, allowed]
  truth = (np.cumsum(allowed) - 1)[labels[rows, -1]]
  assert fitted.temperature == pytest.approx(calibration.fit_temperature(prob, truth), rel=1e-3)


@pytest.mark.parametrize('kind', ['lac', 'aps'])
@pytest.mark.parametrize('table', [TREE, FACETS], ids=['tree', 'facets'])
def test_sets_miss_no_more_images_than_wanted_and_name_classes(table, kind):
  c, calibrated, new = options(risk=None), outputs(table, 1500), outputs(table, 3000, seed=1)
  c.decide.sets, c.decide.set_kind = 0.1, kind
  rules, notes = answers.fit(calibrated, table, decide.default_rules(table), c, 'calibration')
  assert not notes and 'answer' not in rules
  assert rules['sets'][:2] == (0.1, kind) and rules['sets'].examples == 1500
  result = json.loads(json.dumps(answers.measure_sets(new.reduce(table, rules), table, rules)))
  decided = decide.decide(new.probs, table, rules)
  records = decide.to_records(decided, new.probs, table)
  posterior, missed, sizes = decided['exclusive']['joint'].prob[-1], 0, np.zeros(len(table.levels))
  for p, record, path in zip(posterior, records, new.labels):
    order = np.argsort(-p)
    totals = 1 - p[order] if kind == 'lac' else np.cumsum(p[order])
    leaves = order[: max(1, (totals <= rules['sets'].limit).sum())]
    for k, level in enumerate(table.levels):
      names = record['sets'][level]
      assert {*names} == {table.names[k][c] for c in table.paths[leaves, k]}
      sizes[k] += len(names)
    assert record['sets'][table.levels[-1]] == [table.names[-1][c] for c in leaves]
    missed += table.names[-1][path[-1]] not in record['sets'][table.levels[-1]]
  assert result['measured']['missed']['mean'] == pytest.approx(missed / 3000)
  assert missed / 3000 == pytest.approx(0.1, abs=3 * (0.09 / 3000 + 0.09 / 1500) ** 0.5)
  for level, size in zip(table.levels, sizes / 3000):
    assert result['measured'][f'size/{level}']['mean'] == pytest.approx(size)
  assert answers.describe_sets(result).startswith('sets: ')


def test_sets_and_answers_are_fitted_one_after_the_other():
  c, calibrated, rules = options(), outputs(TREE, 300), decide.default_rules(TREE)
  c.data.calibration = 'calibration'
  with_risk, _ = answers.fit(calibrated, TREE, rules, c, 'calibration')
  c.decide.risk, c.decide.sets = None, 0.1
  assert answers.calibration_split(c, with_risk, False) == 'calibration'
  with_both, _ = answers.fit(calibrated, TREE, with_risk, c, 'calibration')
  assert with_both['answer'] == with_risk['answer'] and with_both['sets'].split == 'calibration'
  assert answers.calibration_split(c, with_both, False) is None
  c.decide.set_kind = 'aps'
  assert answers.calibration_split(c, with_both, False) == 'calibration'
  # fitted on other images with another temperature
  with_sets, _ = answers.fit(calibrated, TREE, with_both, c, 'other')
  assert 'answer' not in with_sets and with_sets['sets'].kind == 'aps'
  c.decide.sets = 0.001
  scarce, notes = answers.fit(calibrated, TREE, rules, c, 'calibration')
  assert 'sets' not in scarce
  assert notes == [
    '300 images of calibration are too few for sets that miss the class of only 0.001 of the '
    'images: none are listed'
  ]
  predictor = Predictor()
  predictor.taxonomy, predictor.rules = TREE, with_both
  assert {*predictor.within(['o1']).rules} == {'exclusive'}


def test_a_run_gets_answers_by_evaluate_and_predict_prints_them(run_copy, monkeypatch, capsys):
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)
  before = json.loads((run_copy / 'decode.json').read_text())
  model = hierjax.load(run_copy)
  image = np.zeros((32, 32, 3), np.uint8)
  assert 'answer' not in model.predict(image)[0]
  model.c.decide.risk = 0.3
  result = model.evaluate('val')
  assert result['answers']['split'] == 'val' and result['answers']['examples'] == 40
  assert 'fitted on val, which also chose the checkpoint' in capsys.readouterr().err
  after = json.loads((run_copy / 'decode.json').read_text())
  answer = after.pop('answer')
  assert after == before and answer['backoff']['risk'] == 0.3
  model = hierjax.load(run_copy)
  model.c.decide.sets = 0.2
  assert model.evaluate('val')['sets']['examples'] == 40
  assert 'fitted on val, which also chose the checkpoint' in capsys.readouterr().err
  model = hierjax.load(run_copy)
  record = model.predict(image)[0]
  assert {*record['sets']} == {*model.taxonomy.levels} and all(record['sets'].values())
  model.c.decide.label_gains = True
  gain, posterior = model.predict(image)[0]['gain'], model.probabilities(image)
  posterior = model.decide(posterior)['exclusive']['joint'].prob[-1]
  expected = decide.label_gains(posterior, model.taxonomy.paths)[0]
  assert [*gain.values()] == pytest.approx(expected, abs=1e-6) and expected[-1] > 0
  assert set(record['answer']) == {'kind', 'level', 'name', 'prob', 'depth', 'reason'}
  model.c.decide.risk = 0.3
  model.evaluate('val')
  # it is not fitted again
  assert 'chose the checkpoint' not in capsys.readouterr().err
  # another split that training sets apart also calibrates
  model.c.data.calibration = 'train'
  model.c.decide.costs = 'lca'
  result = model.evaluate('val', tune=True)
  assert result['answers']['split'] == 'train' and result['answers']['examples'] == 96
  assert result['answers']['costs'] == 'lca' and result['answers']['risk'] == 0.3
  run = runs.read(run_copy)
  run.evals['val']['sets'] = {
    'risk': 0.1,
    'examples': 96,
    'split': 'train',
    'measured': {'missed': {'mean': 0.08, 'low': 0.05, 'high': 0.1}, 'size/make': {'mean': 1.25}},
  }
  html = str(decisions.SECTION.render(run, decisions.SECTION.numbers(run)))
  assert 'miss the class of 8.0 %' in html and 'On average they have 1.25 of make.' in html
  for text in ('96 images of train', 'Cost per 1,000 images', 'DARTS', 'log loss', '<svg'):
    assert text in html, text
  assert 'could not be made' not in page.write(run_copy).read_text(encoding='utf-8')
  run.evals['val'].pop('answers')
  assert decisions.SECTION.render(run, decisions.SECTION.numbers(run)) == ''
  model.c.decide.risk, model.c.decide.costs = None, str(run_copy / 'costs.csv')
  levels = [names[0] for names in model.taxonomy.names]
  (run_copy / 'costs.csv').write_text(f'From,to,cost\n,{levels[0]},5\n{levels[2]},{levels[1]},2\n')
  result = model.evaluate('val')['answers']
  assert result['costs'] == 2 and result['split'] == '' and result['risk'] is None
  assert result['measured']['cost']['mean'] < result['measured']['cost_argmax']['mean']
  loaded = hierjax.load(run_copy)
  assert loaded.rules['answer'] == model.rules['answer']
  assert loaded.predict(image)[0]['answer']['reason'].startswith('least expected cost')
  (run_copy / 'costs.csv').write_text(f'from,to,price\n,{levels[0]},5\n')
  with pytest.raises(UserError, match='has no columns from, to and cost, but from, to, price'):
    model.evaluate('val')
