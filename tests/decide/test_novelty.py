"""Novelty on planted clusters: closed forms, scikit-learn, held-out classes to predictions."""

import dataclasses
import json

import numpy as np
import pytest
import tiny
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import entropy, norm
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

import hierjax
from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.data import sources, splits
from hierjax.decide import nodes, novelty, novelty_scores
from hierjax.evaluate.novelty import measure
from hierjax.model import run_config
from hierjax.taxonomy import Taxonomy

PARENTS, CHILDREN, DIM = 4, 6, 24
FULL = Taxonomy.from_rows(
  ('kind', 'breed'), [[f'k{p}', f'b{p}{c}'] for p in range(PARENTS) for c in range(CHILDREN)]
)


def held_out(text, seed=0):
  """The leaves of FULL that items separated by ';' hold out."""
  return splits.held_out(tuple(filter(None, map(str.strip, text.split(';')))), FULL, seed)


def planted(hold_out: str, n: int = 40, seed: int = 0):
  """Kinds far apart, breeds nearer by, as a perfect network sees them.

  Returns (taxonomy, train, val, novel); predicted is the parent of the nearest class.
  """
  rng = np.random.default_rng(seed)
  kinds = 30 * rng.normal(size=(PARENTS, DIM))
  centres = kinds[FULL.paths[:, 0]] + 5 * rng.normal(size=(len(FULL.paths), DIM))
  is_novel = held_out(hold_out)
  taxonomy = Taxonomy.from_rows(
    FULL.levels, [row for row, out in zip(FULL.rows(), is_novel) if not out]
  )
  places = np.flatnonzero(~is_novel)

  def near(x):
    return -((x[:, None] - centres[places]) ** 2).sum(-1)

  def evidence(leaves):
    x = centres[leaves] + rng.normal(size=(len(leaves), DIM))
    rows = [
      [
        taxonomy.names[k].index(name) if name in taxonomy.names[k] else -1
        for k, name in enumerate(row)
      ]
      for row in (FULL.rows()[leaf] for leaf in leaves)
    ]
    return novelty.Evidence(
      nodes.level_logits(lambda x, _: near(x) / 10, ['breed'], taxonomy),
      x,
      taxonomy.paths[near(x).argmax(1)],
      np.array(rows, np.int32).reshape(-1, 2),
    )

  return (
    taxonomy,
    evidence(np.repeat(places, n)),
    evidence(np.repeat(places, n // 2)),
    evidence(np.repeat(np.flatnonzero(is_novel), n // 2)),
  )


@pytest.mark.parametrize('score', ['auto', *novelty_scores.FEATURE_SCORES])
def test_new_breeds_are_found_under_their_kind(score):
  t, train, val, novel = planted('1/3')
  detector = novelty.Detector.fit(train, val, t, score)
  measured = measure(detector, val, novel, 0.05)
  breed, kind = measured['levels']['breed'], measured['levels']['kind']
  assert (
    breed['auroc'] > (0.99 if score == 'auto' else 0.9)
    and breed['parent'] == 1
    and kind['auroc'] is None
    and kind['novel'] == 0
  )
  assert score != 'auto' or (
    measured['found'] > 0.9
    and breed['placed'] > 0.9 * (1 - novelty.MISPLACED)
    and measured['kept'] >= 0.95
    and breed['known'] > 0.9
  )
  flagged = np.flatnonzero(detector.decide(novel, 0.05).level == 1)
  for i in flagged:
    assert detector.describe(1, novel.pred[i]) == f'new kind of {t.names[0][novel.labels[i, 0]]}'


def test_too_few_calibration_images_call_nothing_new():
  t, train, val, new = planted('1/3')
  detector = novelty.Detector.fit(train, val, t, 'mahalanobis')
  measured = measure(detector, val, new, 0.5 / len(val.labels))
  assert (measured['kept'], measured['found']) == (1, 0)
  finest = [node for node in measured['nodes'] if node['level'] == 'breed']
  assert len(finest) == PARENTS and all(node['threshold'] is None for node in finest)
  assert json.dumps(measured, allow_nan=False)


def test_a_new_kind_is_new_at_the_top():
  t, train, val, novel = planted('k1')
  assert t.names[0] == ('k0', 'k2', 'k3') and (novel.labels == -1).all()
  detector = novelty.Detector.fit(train, val, t)
  measured = measure(detector, val, novel, 0.05)
  assert (
    measured['levels']['kind']['auroc'] > 0.99
    and measured['levels']['kind']['placed'] > 0.95
    and measured['found'] > 0.95
  )
  assert (
    measured['levels']['breed']['auroc'] is None
    and detector.describe(0, novel.pred[0]) == 'new kind'
    and detector.describe(2, novel.pred[0]) == ''
  )


def test_auroc_and_the_share_at_95_percent_are_those_of_plain_counting():
  t, train, val, novel = planted('1/3')
  detector = novelty.Detector.fit(train, val, t, 'softmax')
  a, b = (detector.score(1, e, ['softmax'])['softmax'] for e in (val, novel))
  measured = measure(detector, val, novel, 0.1)['levels']['breed']
  assert measured['auroc'] == pytest.approx(
    roc_auc_score(np.repeat([0, 1], [len(a), len(b)]), np.r_[a, b])
  )
  assert measured['auroc'] == measured['softmax'] == measured['by_score']['softmax']
  assert measured['auroc'] == pytest.approx(
    (b[:, None] > a).mean() + 0.5 * (b[:, None] == a).mean()
  )
  cut = sorted(b, reverse=True)[int(np.ceil(0.95 * len(b))) - 1]
  assert (b >= cut).mean() >= 0.95
  assert measured['known'] == pytest.approx(
    ((a < cut) & (val.pred[:, 1] == val.labels[:, 1])).mean(), abs=0.02
  )
  curve = np.array(measured['roc'])
  assert abs(np.trapezoid(curve[:, 1], curve[:, 0]) - measured['auroc']) < 0.02


def test_gaussians_are_the_closed_form():
  rng = np.random.default_rng(1)
  x, y = rng.normal(size=(300, 7)) @ rng.normal(size=(7, 7)), rng.integers(-1, 3, 300)
  g = novelty_scores.fit_classes(x, y, 4)
  means = np.stack([x[y == c].mean(0) for c in range(3)])
  is_known = y >= 0
  precision = LedoitWolf(assume_centered=True).fit(x[is_known] - means[y[is_known]]).precision_
  probes = rng.normal(size=(20, 7))
  difference = probes[:, None] - means
  np.testing.assert_allclose(
    g.distances(probes)[:, :3],
    np.einsum('ncd,de,nce->nc', difference, precision, difference),
    rtol=1e-8,
  )
  assert (
    np.isnan(g.distances(probes)[:, 3]).all() and np.isnan(g.cosines(probes)[:, 3]).all()
  )  # a class without an example
  centre = x[is_known].mean(0)
  root = np.linalg.cholesky(precision)
  a, b = (probes - centre) @ root, (means - centre) @ root
  np.testing.assert_allclose(
    g.cosines(probes)[:, :3],
    a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1),
    rtol=1e-8,
  )


def test_the_likelihood_ratio_is_that_of_normal_densities():
  """In the space of the class means, against a new class with its mean drawn as theirs were."""
  rng = np.random.default_rng(4)
  y = np.repeat([0, 1, 2, 4], [30, 20, 25, 1])
  x = rng.normal(size=(len(y), 9)) + 3 * rng.normal(size=(5, 9))[y]
  g = novelty_scores.fit_classes(x, y, 5, ('likelihood',))
  z = g.normalized(x)
  present, counts = np.unique(y, return_counts=True)
  means = np.stack([z[y == c].mean(0) for c in present])
  axes = np.linalg.svd(means - means.mean(0))[2][:3]
  u, m = z @ axes.T, means @ axes.T
  within = np.sum([((u[y == c] - m[i]) ** 2).sum(0) for i, c in enumerate(present)], 0) / 72
  between = ((m - m.mean(0)) ** 2).sum(0) / 3 - within * np.mean(1 / counts)
  probes = rng.normal(size=(8, 9))
  fit, v = g.fit_of_classes('likelihood', probes), g.normalized(probes) @ axes.T
  for i, n in enumerate(counts):
    of_class = norm.logpdf(v, m[i], np.sqrt(within * (1 + 1 / n))).sum(1)
    of_new = norm.logpdf(v, m.mean(0), np.sqrt(within + np.maximum(between, 0))).sum(1)
    np.testing.assert_allclose(fit[:, present[i]], of_class - of_new, rtol=1e-8, atol=1e-8)
  assert np.isnan(fit[:, 3]).all()


def test_scores_are_the_closed_forms():
  rng = np.random.default_rng(2)
  fit, allowed = rng.normal(size=(6, 4)), np.array([[1, 1, 0, 0]] * 5 + [[0] * 4], bool)
  p = softmax(fit[:, :2], 1)
  for name, expected in (
    ('softmax', -fit[:, :2].max(1)),
    ('mahalanobis', -fit[:, :2].max(1)),
    ('energy', -logsumexp(fit[:, :2], axis=1)),
    ('likelihood', -logsumexp(fit[:, :2], axis=1)),
    ('entropy', entropy(p, axis=1) / (np.exp(fit[:, :2]).sum(1) + entropy(p, axis=1))),
    ('cosine_softmax', -log_softmax(fit[:, :2] / 0.05, 1).max(1)),
  ):
    scores = novelty_scores.novelty(name, fit, allowed)
    np.testing.assert_allclose(scores[:5], expected[:5], atol=1e-12)
    assert scores[5] == np.inf
  fit[0, 0] = np.nan
  assert novelty_scores.novelty('mahalanobis', fit, allowed)[0] == -fit[0, 1]


def test_leaving_out_is_a_fit_without_the_class():
  """The scores of left-out images are those of a detector that never saw their classes."""
  t, train, val, _ = planted('1/3')
  # so near to each other that left-out images do not all rank last
  rng = np.random.default_rng(1)
  train, val = (
    e._replace(features=e.features + 8 * rng.normal(size=e.features.shape)) for e in (train, val)
  )
  detector, fold = novelty.Detector.fit(train, val, t, 'mahalanobis'), nodes.folds(t, 1)
  expected = []
  for part in range(nodes.FOLDS):
    used = fold[train.labels[:, 1]] != part
    g = novelty_scores.fit_classes(train.features[used], train.labels[used, 1], len(t.names[1]))
    is_child = (t.parents('breed', 'kind') == val.pred[:, :1]) & (fold != part)
    distances = np.nanmin(np.where(is_child, g.distances(val.features), np.nan), 1)
    is_left_out = fold[val.labels[:, 1]] == part
    others = distances[~is_left_out]
    for distance in distances[is_left_out]:
      expected.append((1 + sum(others >= distance)) / (len(others) + 1))
  np.testing.assert_allclose(detector.left_out[1, -1], np.sort(expected), rtol=1e-8)
  assert len(np.unique(expected)) > 50


def test_arrays_round_trip():
  t, train, val, novel = planted('1/3')
  detector = novelty.Detector.fit(train, val, t)
  back = novelty.Detector.from_arrays(detector.to_arrays(), t)
  for a, b in zip(detector.decide(novel, 0.1), back.decide(novel, 0.1)):
    np.testing.assert_array_equal(a, b)
  with pytest.raises(ValueError, match='another taxonomy'):
    novelty.Detector.from_arrays(detector.to_arrays(), FULL)


@pytest.mark.parametrize('heads', [('breed',), ('kind', 'breed')])
def test_scores_of_the_head_are_those_of_a_loop_and_read_a_block_at_a_time(heads, monkeypatch):
  """Image by image, over all of the logits that are otherwise computed when they are read."""
  t, train, val, _ = planted('1/3')
  rng, sizes = np.random.default_rng(2), []
  weights = {level: rng.normal(size=(DIM, t.num_classes(level))) / 20 for level in t.levels}

  def compute(x, level):
    sizes.append(x.shape[0] * weights[level].shape[1])
    return x @ weights[level]

  lazy = val._replace(logits=nodes.level_logits(compute, heads, t))
  monkeypatch.setattr(novelty, 'BLOCK', 7 * t.num_classes('breed'))
  names = ('softmax', 'energy', 'entropy')
  detector = novelty.Detector.fit(train, lazy, t, 'softmax')
  blocks = {k: detector.score(k, lazy, names) for k in range(2)}
  left_out = np.arange(t.num_classes('breed')) % 3 == 0
  without = detector.score(1, lazy, ['softmax'], None, left_out)['softmax']
  assert len(sizes) > 20 and max(sizes) <= novelty.BLOCK
  breed = t.paths[:, 1]
  for i in range(0, len(val.pred), 29):
    logits = val.features[i] @ weights['breed']
    by_kind = [logsumexp(logits[breed[t.paths[:, 0] == c]]) for c in range(len(t.names[0]))]
    by_level = val.features[i] @ weights['kind'] if 'kind' in heads else by_kind, logits
    children = range(len(t.names[0])), breed[t.paths[:, 0] == val.pred[i, 0]]
    for k in range(2):
      p = softmax(by_level[k])[list(children[k])]
      h = entropy(p / p.sum())
      energy = -logsumexp([by_level[k][c] for c in children[k]])
      expected = {'softmax': -np.log(p.max()), 'energy': energy, 'entropy': h / (p.sum() + h)}
      assert {name: blocks[k][name][i] for name in names} == pytest.approx(expected)
    counted = [c for c in children[1] if not left_out[c]]
    expected = logsumexp(logits[~left_out]) - max(logits[counted])
    assert without[i] == pytest.approx(expected)


def test_a_branch_that_has_ended_and_facets():
  t = Taxonomy.from_rows(
    ('kind', 'breed'), [['a', 'a1'], ['a', 'a2'], ['b', 'b1'], ['b', 'b2'], ['end', '']]
  )
  detector = novelty.Detector(
    t,
    ['softmax'] * 2,
    {},
    {},
    {(0, -1): np.zeros(30), (1, -1): np.zeros(30)},
    {},
    np.linspace(0.1, 1, 30),
    [{}, {}],
  )
  pred = t.paths[[0, 4]]
  logits = [lambda x, n=n: np.full((len(x), n), -9.0) for n in (3, 5)]
  thresholds = detector.decide(
    novelty.Evidence(logits, np.zeros((2, 1)), pred, pred), 0.5
  ).thresholds
  assert np.isfinite(thresholds[0, 1]) and thresholds[1, 1] == np.inf
  facets = Taxonomy.from_rows(
    ('make', 'type', 'model'), [['m', 's', '1'], ['m', 't', '2'], ['n', 's', '3']]
  )
  assert nodes.parent_levels(facets) == (-1, -1, 1)
  d = dataclasses.replace(detector, taxonomy=facets)
  assert [d.describe(k, facets.paths[0]) for k in range(4)] == [
    'new make',
    'new type',
    'new kind of s',
    '',
  ]


def test_bad_input():
  t, train, val, _ = planted('1/3')
  with pytest.raises(
    UserError, match=r"no score 'cosin' \(did you mean 'cosine'\?\); choices: auto, softmax"
  ):
    novelty.Detector.fit(train, val, t, 'cosin')
  with pytest.raises(UserError, match='none of the 3 training images has a label'):
    novelty_scores.fit_classes(np.zeros((3, 2)), np.full(3, -1), 2)
  with pytest.raises(UserError, match='not finite'):
    novelty_scores.fit_classes(np.full((3, 2), np.nan), np.zeros(3, int), 2)
  single = Taxonomy.from_rows(('a', 'b'), [['x', 'y']])
  one = novelty.Evidence(
    [lambda x: np.zeros((len(x), 1))] * 2, np.eye(4), np.zeros((4, 2), int), np.zeros((4, 2), int)
  )
  with pytest.raises(UserError, match='none can be left out'):
    novelty.Detector.fit(one, one, single)
  c = config.default()
  c.decide.novelty = 1.0
  with pytest.raises(UserError, match=r'decide\.novelty=1\.0 must be above 0 and below 1'):
    config.validate(c)


# Held-out classes.


def test_held_out_shares_and_names():
  third = held_out('1/3')
  assert [third[FULL.paths[:, 0] == p].sum() for p in range(PARENTS)] == [2] * PARENTS
  assert (third != held_out('1/3', 1)).any() and (third == held_out('0.3333')).all()
  both = held_out('k2; b00')
  assert [FULL.names[-1][i] for i in np.flatnonzero(both)] == [
    'b00',
    *(f'b2{c}' for c in range(CHILDREN)),
  ]
  assert held_out('.99').sum() == PARENTS * (CHILDREN - 1)  # each parent keeps one
  assert not held_out('').any()


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('b0x', "'b0x' is no class of kind, breed; did you mean 'b"),
    ('zebra', "'zebra' is no class of kind, breed and no share"),
    ('1/0', 'is no class'),
    ('1', 'share 1 must be above 0 and below 1'),
    ('-.5', 'must be above 0'),
    ('k0;k1;k2;k3', 'every class'),
  ],
)
def test_hold_out_says_what_is_wrong(text, message):
  with pytest.raises(UserError, match=message):
    held_out(text)


def test_held_out_images_leave_training_and_keep_what_is_left_of_their_path():
  full = sources.load(tiny.run_config().data)
  c = tiny.run_config(**{'data.hold_out': '1/3'})
  data = sources.load(c.data)
  assert set(data.splits) == {'train', 'val', 'train_novel', 'val_novel'}
  for name in ('train', 'val'):
    inliers, novel, split = data.splits[name], data.splits[f'{name}_novel'], full.splits[name]
    assert sorted([*inliers.files, *novel.files]) == sorted(split.files)
    assert (inliers.labels >= 0).all() and (novel.labels[:, -1] == -1).all()
    truth = dict(zip(split.files, split.labels.tolist()))
    for part in (inliers, novel):
      for file, row in zip(part.files, part.labels.tolist()):
        for k, label in enumerate(row):
          class_name = full.taxonomy.names[k][truth[file][k]]
          assert (
            (data.taxonomy.names[k][label] == class_name)
            if label >= 0
            else class_name not in data.taxonomy.names[k]
          )
      np.testing.assert_array_equal(
        part.reader(len(part.files) - 1), split.reader(list(split.files).index(file))
      )
  assert any('held out' in note for note in data.notes)


def test_a_run_with_held_out_classes_says_new_under(tmp_path, monkeypatch):
  """Training, evaluation, the report and prediction, whole."""
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)
  options = {
    'data.hold_out': '1/3',
    'decide.novelty': 0.1,
    'data.toy.train': 240,
    'data.toy.val': 120,
    'train.steps': 6,
  }
  result = hierjax.fit(tiny.run_config(**options), tmp_path)
  novel, levels = (
    sources.load(tiny.run_config(**options).data).splits['val_novel'],
    result['decode']['joint']['levels'],
  )
  assert (
    result['novelty']['novel_images'] == len(novel.labels)
    and 0 <= levels['model']['novel_auroc'] <= 1
  )
  html = (tmp_path / 'report.html').read_text()
  assert 'Novelty detection' in html and 'could not be made' not in html
  c = run_config(tmp_path)
  model = hierjax.load(tmp_path, c)
  images = [novel.reader(i) for i in range(len(novel.labels))]
  records = model.predict(images)
  for record in records:
    answer = record['answer']
    assert (answer['kind'] == 'new') == bool(record['new']) and answer['kind'] != 'unsure'
    if record['new']:
      # a model is compared with those of its type, whatever their make
      *_, parent = answer['name'].split(', ')
      assert record['new'] in ('new make', 'new type', f'new kind of {parent}')
      assert answer['reason'].startswith('less like any ')
  assert all(set(s['novelty']) == set(model.taxonomy.levels) for s in records)
  measured = result['novelty']['found']
  assert np.mean([bool(s['new']) for s in records]) == pytest.approx(
    measured, abs=0.02
  )  # the same decision as in the evaluation
  c.decide.novelty_score = 'energy'
  with pytest.raises(
    UserError,
    match=r'novelty\.npz: is of step 6 and score auto, not of 6 and energy; hierjax evaluate '
    '--split=val --config.decide.novelty=0.1',
  ):
    hierjax.load(tmp_path, c).predict(images[:1])
  c.decide.novelty_score = 'auto'
  with np.load(tmp_path / 'novelty.npz') as archive:
    arrays = dict(archive)
  del arrays['ranks']
  np.savez(tmp_path / 'novelty.npz', **arrays)
  with pytest.raises(UserError, match=r'is of an earlier version of hierjax; hierjax evaluate'):
    hierjax.load(tmp_path, c).predict(images[:1])
  (tmp_path / 'novelty.npz').write_bytes(b'no archive')
  with pytest.raises(UserError, match='is damaged'):
    hierjax.load(tmp_path, c).predict(images[:1])
  (tmp_path / 'novelty.npz').unlink()
  with pytest.raises(UserError, match='is missing'):
    hierjax.load(tmp_path, c).predict(images[:1])
  c.decide.novelty = None
  assert 'new' not in hierjax.load(tmp_path, c).predict(images[:1])[0]
