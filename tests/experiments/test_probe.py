"""Probe mode: its heads against naive loops and scikit-learn, and that val never chooses."""

import copy
import itertools
import json
import os
import shutil

import numpy as np
import pytest
import tiny
from sklearn.linear_model import LogisticRegression

from hierjax import model
from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.data import sources
from hierjax.decide import paths
from hierjax.experiments import probe, probe_features, probe_fit, probe_grid
from hierjax.report import page
from hierjax.taxonomy import Taxonomy
from hierjax.train import setup

# make and type are facets: neither determines the other
ROWS = [('a', 'x', 'a1'), ('a', 'y', 'a2'), ('b', 'x', 'b1'), ('b', 'x', 'b2'), ('c', 'y', 'c1')]
TABLE = Taxonomy.from_rows(('make', 'type', 'model'), ROWS)
FORMS = {
  'flat': ({'model.heads': 'flat'}, [[1.0]]),
  'lca': ({'model.heads': 'flat', 'loss.lca': 4.0}, [[1.0]]),
  'margin': ({'model.heads': 'flat', 'loss.margin': 2.0}, [[1.0]]),
  'parallel': ({'model.heads': 'parallel'}, [[1.0, 1.0, 1.0]]),
  'path_sum': ({'model.heads': 'path_sum'}, [[0.2, 0.3, 0.5], [0.0, 0.0, 1.0]]),
  'marginal': ({'model.heads': 'marginal'}, [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]),
}


def problem(n=90, d=5, unknown=True):
  """Features of different scales, and labels, of which some are unknown from the fine end."""
  rng = np.random.default_rng(0)
  leaf = rng.integers(0, 5, n)
  x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=(5, d))[leaf]
  labels = TABLE.paths[leaf].copy()
  if unknown:
    labels[::7, 2] = -1
    labels[::14, 1] = -1
  return x.astype(np.float32), labels


def form_of(overrides, labels):
  c = config.default()
  for path, value in overrides.items():
    config.assign(c, path, value)
  return probe_fit.Form.of_config(c, TABLE, labels)


def fit_all(form, weights, decays, basis, x, labels, steps, size=None):
  """Fit to all examples, in one block, and judge the same."""
  rows = probe_fit.Rows.make(basis.transform(x), labels, 1, size or len(x))
  return probe_fit.Program(form, weights, decays, basis.variances, rows, 1, steps).fit([0], [0])


def fitted(name, weights=None, decays=(0.02,), steps=(400, 3)):
  (x, labels), (overrides, default) = problem(), FORMS[name]
  basis = probe_fit.Basis.of_features(x)
  form = form_of(overrides, labels)
  return form, fit_all(form, weights or default, decays, basis, x, labels, steps), basis


def log_softmax(z):
  z = z - z.max()
  return z - np.log(np.exp(z).sum())


def naive_logits(name, params, x):
  """Logits of one example, {level: [C]}, in loops."""
  z = {level: x @ p['kernel'] + p['bias'] for level, p in params.items()}
  if name in ('flat', 'lca', 'margin', 'parallel'):
    return z
  leaf = np.zeros(len(TABLE.paths))
  for c, path in enumerate(TABLE.paths):
    for k, level in enumerate(TABLE.levels):
      leaf[c] += z[level][path[k]] if level in z else 0.0
  out = {'model': leaf}
  for k, level in enumerate(TABLE.levels[:-1]):
    p = np.zeros(TABLE.num_classes(level))
    for c, path in enumerate(TABLE.paths):
      p[path[k]] += np.exp(leaf[c])
    out[level] = np.log(p)
  return out


def naive_loss(name, params, weights, decay, x, labels):
  """The objective in loops, float64."""
  levels = ('model',) if name in ('flat', 'lca', 'margin') else TABLE.levels
  total = 0.0
  for weight, level in zip(weights, levels):
    k, values = TABLE.index(level), []
    for row, y in zip(x, labels):
      logp = log_softmax(naive_logits(name, params, row)[level])
      if name == 'margin' and y.max() >= 0:  # a coarser label says which leaves are wrong
        margins = 2.0 * ((TABLE.paths != y) & (y >= 0)).mean(1)
        right = np.exp(logp[margins == 0]).sum()
        values.append(np.log(np.exp(logp + margins).sum()) - np.log(right))
      if name == 'margin' or y[k] < 0:
        continue
      if name == 'lca':
        heights = np.array([(TABLE.paths[c] != TABLE.paths[y[k]]).sum() for c in range(5)])
        target = np.exp(-4.0 * heights / 3)
        values.append(-(target / target.sum() * logp).sum())
      else:
        values.append(-logp[y[k]])
    total += weight * np.mean(values)
  return total + decay / 2 * sum((p['kernel'] ** 2).sum() for p in params.values())


def setting(result, s):
  return {
    level: {'kernel': np.float64(p['kernel'][:, s]), 'bias': np.float64(p['bias'][s])}
    for level, p in result.params.items()
  }


@pytest.mark.parametrize('name', FORMS)
def test_losses_are_those_of_naive_loops_and_minimal(name):
  x, labels = problem()
  _, result, basis = fitted(name)
  turned = np.float64(basis.transform(x))
  for s, weights in enumerate(FORMS[name][1]):
    params = setting(result, s)
    loss = naive_loss(name, params, weights, 0.02, turned, labels)
    assert loss == pytest.approx(result.loss[-1, s], rel=2e-5)
    rng = np.random.default_rng(s)
    for _ in range(4):
      moved = copy.deepcopy(params)
      for p in moved.values():
        p['kernel'] += rng.normal(size=p['kernel'].shape) * 0.02
        p['bias'] += rng.normal(size=p['bias'].shape) * 0.02
      assert naive_loss(name, moved, weights, 0.02, turned, labels) > loss


@pytest.mark.parametrize('name', FORMS)
def test_examples_that_are_right(name):
  x, labels = problem()
  _, result, basis = fitted(name, decays=(0.1, 0.02), steps=(20, 5))
  right = np.zeros(4)
  for row, y in zip(np.float64(basis.transform(x)), labels):
    logits = naive_logits(name, setting(result, 0), row)
    levels = TABLE.levels if name == 'parallel' else ('model',)
    scores = [
      sum(log_softmax(logits[level])[path[TABLE.index(level)]] for level in levels)
      for path in TABLE.paths
    ]
    hits = (TABLE.paths[np.argmax(scores)] == y) & (y >= 0)
    right += [*hits, hits.all()]
  judged = result.right[-1, 0]
  np.testing.assert_array_equal([*judged.sum(0), judged.all(1).sum()], right)


def test_separate_heads_decide_jointly():
  x, _ = problem()
  form, result, basis = fitted('parallel', steps=(20, 3))
  logits = form.logits(setting(result, 0), basis.transform(x))
  probs = [np.exp([log_softmax(np.float64(z)) for z in logits[level]]) for level in TABLE.levels]
  pred = paths.joint(probs, TABLE, (1.0, 1.0, 1.0)).pred
  np.testing.assert_array_equal(np.asarray(form.path_scores(logits)).argmax(1), pred[:, -1])


def test_flat_head_is_at_the_optimum_of_scikit_learn():
  x, labels = problem(unknown=False)
  basis = probe_fit.Basis.of_features(x)
  form = form_of({'model.heads': 'flat'}, labels)
  result = fit_all(form, [[1.0]], [0.01], basis, x, labels, (600, 3))
  heads = basis.heads(setting(result, 0))['model']
  standard = np.float64(x - x.mean(0)) / x.std(0)
  reference = LogisticRegression(C=1 / (len(x) * 0.01), tol=1e-10, max_iter=5000)
  expected = reference.fit(standard, labels[:, -1]).predict_proba(standard)
  p = np.exp([log_softmax(z) for z in np.float64(x @ heads['kernel'] + heads['bias'])])
  np.testing.assert_allclose(p, expected, atol=5e-5)


def test_settings_together_are_those_one_at_a_time():
  _, both, _ = fitted('path_sum', decays=(0.1, 0.02), steps=(8, 3))
  for s, weights in enumerate(FORMS['path_sum'][1]):
    _, single, _ = fitted('path_sum', [weights], decays=(0.1, 0.02), steps=(8, 3))
    np.testing.assert_array_equal(single.right[:, 0], both.right[:, s])
    for level, p in setting(both, s).items():
      np.testing.assert_allclose(setting(single, 0)[level]['kernel'], p['kernel'], atol=1e-5)


def test_rows_that_fill_up_a_block_count_nowhere():
  x, labels = problem()
  basis = probe_fit.Basis.of_features(x)
  form = form_of({'model.heads': 'marginal'}, labels)
  fits = [
    fit_all(form, [[1.0] * 3], [0.1], basis, x, labels, (8, 3), size) for size in (len(x), 150)
  ]
  np.testing.assert_allclose(*(fit.params['model']['kernel'] for fit in fits), atol=1e-5)


def test_a_program_fits_and_judges_the_blocks_that_it_is_told():
  x, labels = problem()
  basis = probe_fit.Basis.of_features(x)
  form, decays = form_of({'model.heads': 'path_sum'}, labels), [1.0, 0.1, 0.01]
  rows = probe_fit.Rows.make(basis.transform(x), labels, 4, 25)
  program = probe_fit.Program(form, [[0.0, 0.0, 1.0]], decays, basis.variances, rows, 1, (5, 3))
  result = program.fit([3, 1], [2], 0.1)
  x, y = (np.concatenate([values[75:90], values[25:50]]) for values in (x, labels))
  expected = fit_all(form, [[0.0, 0.0, 1.0]], decays[:2], basis, x, y, (5, 3))
  for level, p in expected.params.items():
    np.testing.assert_allclose(result.params[level]['kernel'], p['kernel'], atol=1e-5)
  np.testing.assert_allclose(result.loss[:2], expected.loss, rtol=1e-5)
  judged = np.asarray(form.path_scores(form.logits(setting(expected, 0), rows.x[2]))).argmax(1)
  np.testing.assert_array_equal(
    result.right[1, 0], (TABLE.paths[judged] == labels[50:75]) & (labels[50:75] >= 0)
  )
  assert not result.right[2].any() and not result.loss[2].any()


def test_a_feature_that_never_changes():
  x, _ = problem()
  basis = probe_fit.Basis.of_features(np.append(x, np.full((len(x), 1), 3.0, np.float32), 1))
  assert np.isfinite(basis.rotation).all() and not basis.rotation[-1].any()


def test_more_than_a_hundred_settings_by_default():
  grid = probe_grid.recipes(config.default(), TABLE)
  count = sum(map(len, grid.values())) * len(config.default().probe.decays)
  assert count >= 100 and next(iter(grid)) == 'flat'
  with pytest.raises(UserError, match=r'probe.forms=hier: no such form; choices: flat, lca'):
    c = config.default()
    c.probe.forms = ('hier',)
    probe_grid.recipes(c, TABLE)
  c.probe.forms, c.probe.decays = ('marginal',), ()
  with pytest.raises(UserError, match=r'probe.decays= is empty'):
    probe_grid.recipes(c, TABLE)


def test_a_setting_is_the_config_of_a_run():
  recipes = probe_grid.recipes(config.default(), TABLE)['path_sum']
  recipe = next(recipe for recipe in recipes if recipe.share == 0.9)
  c = config.default()
  c.model.levels = TABLE.levels
  c = recipe.config(c)
  weights = setup.parse_weights(c.loss.weights, TABLE.levels)
  assert c.model.heads == 'path_sum' and weights == pytest.approx(
    {'make': 0.05, 'type': 0.05, 'model': 0.9}
  )
  (recipe,) = probe_grid.recipes(config.default(), TABLE)['parallel, margin 5']
  c = recipe.config(config.default())
  assert (c.model.heads, c.loss.margin, recipe.name) == ('parallel', 5.0, 'parallel, margin 5')


def test_what_is_kept_was_judged():
  x, labels = problem(unknown=False)
  c = config.default()
  c.model.levels, c.probe.decays, c.probe.folds = TABLE.levels, (1.0, 0.1, 0.01), 2
  data = probe_grid.Data.make(x[:, None], labels, [f'{i}' for i in range(len(x))], c)
  recipe = probe_grid.Recipe('path_sum', 'path_sum', {'model.heads': 'path_sum'}, 1.0)
  choice = probe_grid.Grid(c, c, TABLE, data).fit(probe_grid.Setting(recipe, 0.1, None, None))
  is_fitted, form = data.fold == 0, probe_grid.Form.of_config(recipe.config(c), TABLE, labels)
  judged = fit_all(
    form,
    [[0.0, 0.0, 1.0]],
    [1.0, 0.1],
    data.basis,
    x[is_fitted],
    labels[is_fitted],
    probe_grid.PATH_STEPS,
  )
  probs = choice.predict(np.flatnonzero(~is_fitted))['model']
  for row, p in zip(data.basis.transform(x[~is_fitted]), probs):
    logits = naive_logits('path_sum', setting(judged, 0), np.float64(row))['model']
    np.testing.assert_allclose(np.log(p), log_softmax(logits), atol=1e-3)


# ---- the whole command ----


@pytest.mark.parametrize(
  ('won', 'lost', 'is_clear'), [(30, 10, True), (30, 20, False), (0, 0, False), (10, 30, False)]
)
def test_the_best_must_beat_flat_by_more_than_chance(won, lost, is_clear):
  flat, other = (probe_grid.Recipe(name, name, {}, 1.0) for name in ('flat', 'path_sum'))
  settings = [probe_grid.Setting(recipe, 0.1, np.zeros((3, 4)), None) for recipe in (other, flat)]
  gains = np.repeat([1.0, -1.0, 0.0], (won, lost, 1000))
  assert probe_grid.choose(settings, lambda best, flat: gains) is settings[0 if is_clear else 1]
  assert probe_grid.choose(settings[1:], lambda best, flat: 1 / 0) is settings[1]


def test_gains_are_extrapolated_to_all_folds(monkeypatch):
  x, labels = problem()
  c = config.default()
  c.model.levels = TABLE.levels
  data = probe_grid.Data.make(x[:, None], labels, [f'{i}' for i in range(len(x))], c)
  grid = probe_grid.Grid(c, c, TABLE, data)
  rng = np.random.default_rng(0)
  one_fold = {'a': rng.random(len(x)) < 0.5, 'b': rng.random(len(x)) < 0.5}
  two_folds = {'a': rng.random(len(x)) < 0.5, 'b': rng.random(len(x)) < 0.5}
  monkeypatch.setattr(grid, '_right_after_one_fold', one_fold.__getitem__)
  settings = [probe_grid.Setting(name, 0.1, None, two_folds[name]) for name in 'ab']
  gains = grid.gains_at_full_size(*settings)
  # a line through the gains with one and two of three folds, over the logarithm of their number
  expected = []
  for i in np.flatnonzero((labels >= 0).all(1)):
    one, two = (float(right['a'][i]) - float(right['b'][i]) for right in (one_fold, two_folds))
    slope = (two - one) / (np.log(2) - np.log(1))
    expected.append(one + slope * np.log(3))
  np.testing.assert_allclose(gains, expected, atol=1e-12)


@pytest.mark.parametrize('views', [1, 2])
def test_paths_are_judged_by_fits_without_them(views):
  x, labels = problem()
  c = config.default()
  c.model.levels, c.probe.decays, c.probe.forms = TABLE.levels, (3.0, 0.3), ()
  x = np.stack([x, 1.2 * x][:views], 1)
  data = probe_grid.Data.make(x, labels, [f'{i}' for i in range(len(x))], c)
  grid = probe_grid.Grid(c, config.default(), TABLE, data)
  settings = {
    setting.decay: setting for setting in grid.search(print) if setting.recipe.form == 'flat'
  }
  flat = settings[3.0].recipe
  form = probe_grid.Form.of_config(flat.config(config.default()), TABLE, data.labels)
  # by the other two folds, and by the next one
  expected = np.zeros((2, 2, len(x)), bool)
  for fold, (k, decays) in itertools.product(range(3), enumerate(([3.0], [3.0, 0.3]))):
    held_out = data.fold == fold
    for split, is_fitted in enumerate((~held_out, data.fold == (fold + 1) % 3)):
      rows = x[is_fitted].reshape(-1, x.shape[-1]), np.repeat(labels[is_fitted], views, 0)
      fit = fit_all(form, [[1.0]], decays, data.basis, *rows, probe_grid.PATH_STEPS)
      head = fit.params['model']
      first_view = data.basis.transform(x[held_out, 0])
      leaf = (first_view @ head['kernel'][:, 0] + head['bias'][0]).argmax(1)
      expected[split, k, held_out] = leaf == labels[held_out, 2]
      expected[split, k, held_out] &= (TABLE.paths[leaf] == labels[held_out]).all(1)
  for k, decay in enumerate((3.0, 0.3)):
    np.testing.assert_array_equal(settings[decay].is_right, expected[0, k])
  after_one = grid._right_after_one_fold(flat)
  np.testing.assert_array_equal(after_one, expected[1, expected[1].sum(1).argmax()])


def small_config():
  return tiny.run_config(
    **{
      'probe.forms': ('path_sum', 'parallel'),
      'probe.decays': (0.03, 0.3),
      'probe.shares': (0.5,),
      'probe.margins': (),
      'eval.tta': 2,
    }
  )


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """(folder, content of probe.json) of a probe of the tiny backbone on right_of images."""
  with pytest.MonkeyPatch.context() as patch:
    tiny.register(patch)
    tiny.use_devices(patch)
    folder = tmp_path_factory.mktemp('probe') / 'run'
    patch.setenv('XDG_CACHE_HOME', str(folder.parent / 'cache'))
    yield folder, probe.probe(small_config(), folder)


def test_a_probe_is_a_run(finished):
  folder, result = finished
  trained = model.load(folder)
  evaluation = trained.evaluate('val')['decode']['joint']
  baseline = model.load(folder / 'baseline').evaluate('val')['decode']['joint']
  for name, row in result['val'].items():
    for evaluated, value in ((baseline, row['flat']), (evaluation, row['choice'])):
      level = evaluated['levels'].get(name.removesuffix('.top1'))
      assert value == pytest.approx(level['top1'] if level else evaluated[name], abs=0.03)
  assert page.write(folder).exists()
  images = [np.zeros((32, 32, 3), np.uint8)]
  assert trained.predict(images)[0].keys() >= {'file'}
  settings = result['settings']
  assert len(settings) == 2 * (1 + 1 + 2) and settings[0]['folds'] == 3
  assert result['choice'] in (settings[0]['name'], result['flat'])
  assert ('val' in result['reason']) == (result['choice'] != result['flat'])
  assert json.loads((folder / 'probe.json').read_text()) == result


def test_features_in_place_of_images(finished, monkeypatch):
  """Probabilities are the mean over the views; unreadable images stay so; val is decided on batch
  by batch."""
  trained, run = model.load(finished[0]), setup.build(small_config())
  features = probe_features.compute(run, run.val, 2, finished[0].parent / 'of_val', print)
  readable = np.setdiff1d(features.index, [0, 7])
  part = features._replace(values=features.values[readable], index=readable)
  judge, examples = probe._of_features(trained, part), part.examples(run.val)
  outputs = judge.collect(examples)
  np.testing.assert_array_equal(outputs.index, readable)
  assert outputs.broken == sorted(run.val.files[i] for i in (0, 7))
  of_images = trained.collect(run.val)
  for level, p in outputs.probs.items():
    np.testing.assert_allclose(p, of_images.probs[level][readable], rtol=1e-4, atol=1e-5)
  collect = model.Model.collect

  def by_batch(self, *args, reduction=None, **options):
    assert reduction, 'all probabilities are held'
    return collect(self, *args, reduction=reduction, **options)

  monkeypatch.setattr(model.Model, 'collect', by_batch)
  assert judge.evaluate('val', examples)['n'] == len(readable)


def test_a_trained_run_is_not_written_over(finished, run_copy):
  with pytest.raises(UserError, match='there is a trained run already'):
    probe.probe(small_config(), run_copy)


def test_the_backbone_of_a_trained_run(finished, finished_run):
  c = small_config()
  c.probe.run = str(finished_run)
  run, trained = probe.build(c), model.load(finished_run).variables
  assert run.levels == TABLE.levels and 'the backbone is that of' in run.notes[-1]
  np.testing.assert_array_equal(
    run.variables['params']['backbone']['conv']['kernel'],
    trained['params']['backbone']['conv']['kernel'],
  )


def test_the_table(finished):
  text = probe.table(finished[1])
  assert 'choice: ' in text and 'difference (95%)' in text and 'fpa' in text


def test_the_stores_that_were_used_last_stay(tmp_path, monkeypatch):
  monkeypatch.setattr(probe_features, 'MAX_BYTES', 250)
  (tmp_path / 'a file').write_text('')
  for age, name in enumerate('abcd'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'x.npy').write_bytes(bytes(100))
    os.utime(tmp_path / name, (10_000 - age, 10_000 - age))
  probe_features._drop_oldest(tmp_path / 'd')
  assert {path.name for path in tmp_path.iterdir()} == {'a file', 'a', 'd'}
  monkeypatch.setattr(probe_features, 'MAX_BYTES', 50)
  probe_features._drop_oldest(tmp_path / 'd')
  assert {path.name for path in tmp_path.iterdir()} == {'a file', 'd'}


def test_features_are_stored(finished, tmp_path):
  shutil.copytree(probe_features.folder(small_config()), tmp_path / 'features')
  for damaged in (tmp_path / 'features').rglob('*.npy'):
    damaged.write_bytes(damaged.read_bytes()[:100])
  run = setup.build(small_config())
  calls = []
  first = probe_features.compute(run, run.train, 1, tmp_path / 'features', calls.append)
  second = probe_features.compute(run, run.train, 1, tmp_path / 'features', calls.append)
  assert first.computed == 96 and second.computed == 0
  np.testing.assert_array_equal(first.values, second.values)
  # images that a smaller split had, are there already
  part = sources.subset(run.train, np.arange(5, 15))
  values = probe_features.compute(run, part, 1, tmp_path / 'fresh', calls.append).values
  fresh = probe_features.compute(run, run.train, 1, tmp_path / 'fresh', calls.append)
  assert fresh.computed == 86
  np.testing.assert_allclose(values, fresh.values[5:15], rtol=1e-5)
  np.testing.assert_allclose(fresh.values, second.values, rtol=1e-5)
  other = small_config()
  other.data.resize = 'pad'
  changed = setup.build(other)
  assert probe_features.compute(changed, run.train, 1, tmp_path / 'fresh', calls.append).computed


def test_val_takes_no_part_in_the_choice(finished, tmp_path, monkeypatch):
  """With other labels of val, another outcome on val, and the same choice."""
  build = setup.build

  def permuted(*args):
    run = build(*args)
    run.val.labels[:] = run.val.labels[np.random.default_rng(0).permutation(len(run.val.labels))]
    return run

  monkeypatch.setattr(setup, 'build', permuted)
  result = probe.probe(small_config(), tmp_path / 'run')
  assert result['computed_features'] == 0
  same = ('choice', 'flat', 'reason', 'settings', 'temperature', 'weights')
  assert {key: result[key] for key in same} == {key: finished[1][key] for key in same}
  assert result['val'] != finished[1]['val']


def test_heads_without_training(finished, tmp_path):
  """That of class means is a run; neighbours are judged. Features are those of the other probe."""
  c = small_config()
  for head in ('ncm', 'knn'):
    c.probe.head = head
    result = probe.probe(c, tmp_path / head)
    assert result['computed_features'] == 0 and result['train_images'] == 96
    assert set(result['val']) == {'make.top1', 'type.top1', 'model.top1', 'fpa', 'severity'}
    assert probe.table(result).startswith(f'{head} of 96 images')
  joint = model.load(tmp_path / 'ncm').evaluate('val')['decode']['joint']
  ncm = json.loads((tmp_path / 'ncm' / 'probe.json').read_text())['val']
  assert joint['fpa'] == pytest.approx(ncm['fpa']['choice'], abs=0.03)
  assert not (tmp_path / 'knn' / 'config.json').exists()
