"""A run on a changed taxonomy: rows that are kept bit for bit, merges, splits and new classes, and
the difference by a naive comparison."""

import dataclasses
import json
import pathlib
import re
import types

import cv2
import jax
import numpy as np
import pytest
import tiny
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import hierjax
from hierjax.core.errors import UserError
from hierjax.data import dataset, sources
from hierjax.experiments import migrate, migrate_heads
from hierjax.models import heads
from hierjax.taxonomy import Taxonomy, read_taxonomy

RENAMES = {
  'merge': [('a0', 'm'), ('a1', 'm')],
  'split': [('a0', 's0'), ('a0', 's1'), ('a0', 's2')],
  'rename': [('a0', 'z')],
}


def changed(seed: int):
  """(old, new, renames of the finest level): a random forest, of whose leaves some go, come, move,
  and are renamed, merged or split."""
  rng = np.random.default_rng(seed)
  parent = {f'a{i}': f'p{rng.integers(4)}' for i in range(int(rng.integers(6, 14)))}
  kind = [*RENAMES, 'none'][seed % 4]
  after, renames = dict(parent), {}
  for name, target in RENAMES.get(kind, []):
    after.pop(name, None)
    after[target] = parent[name]
    renames.setdefault(('leaf', name), []).append(target)
  remainder = [n for n in after if n.startswith('a')]
  for name in rng.choice(remainder, 2, replace=False):
    after.pop(str(name))
  for name in rng.choice([n for n in after if n.startswith('a')], 2, replace=False):
    after[str(name)] = f'p{rng.integers(6)}'
  after |= {'n0': 'p0', 'n1': 'q'}
  order = [str(n) for n in rng.permutation([*after])]
  old = Taxonomy.from_rows(['parent', 'leaf'], [[p, n] for n, p in parent.items()])
  return old, Taxonomy.from_rows(['parent', 'leaf'], [[after[n], n] for n in order]), renames


def heads_of(form: str, rows: dict, **options):
  parts = tuple((level, n) for level, n in rows.items() if max(n) > 1)
  return heads.HEADS[form](
    tuple((level, sum(n)) for level, n in rows.items()), ((), ('parent',)), 0.0, parts, **options
  )


# the kinds of change alternate: one seed of each
@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize(
  'form', ['parallel', 'crosstalk', 'mmoe', 'residual', 'split', 'prototypes']
)
def test_classes_with_one_source_keep_their_logits_bit_for_bit(form, seed):
  old, new, renames = changed(seed)
  rng, results = np.random.default_rng(seed), migrate.correspond(old, new, renames)
  before = heads_of(form, {level: (1,) * old.num_classes(level) for level in old.levels})
  x = rng.normal(size=(7, 24)).astype(np.float32)
  params = jax.tree.map(
    lambda p: rng.normal(size=p.shape).astype(np.float32),
    jax.device_get(before.init(jax.random.key(0), x, False)['params']),
  )
  plans = {
    level: migrate_heads.plan(level, old, new, results[level], (1,) * old.num_classes(level))
    for level in old.levels
  }
  after = heads_of(form, {level: plans[level].rows for level in old.levels})
  grown = params | {
    level: migrate_heads.carry_over(params[level], plans[level]) for level in old.levels
  }
  a, b = before.apply({'params': params}, x, False), after.apply({'params': grown}, x, False)
  for level in old.levels:
    parts = np.bincount([i for s in results[level] for i in s], minlength=old.num_classes(level))
    for c, s in enumerate(results[level]):
      selected = np.asarray(b[level][:, c])
      assert np.isfinite(selected).all()
      if len(s) == 1 and parts[s[0]] == 1:
        np.testing.assert_array_equal(selected, a[level][:, s[0]])
      elif len(s) == 1 and form != 'prototypes':
        np.testing.assert_allclose(
          selected + np.log(parts[s[0]]), a[level][:, s[0]], rtol=1e-5, atol=1e-5
        )
      elif len(s) > 1:
        z = np.asarray(a[level], np.float64)[:, list(s)]
        np.testing.assert_allclose(
          selected,
          np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1),
          rtol=1e-5,
          atol=1e-5,
        )
      elif not s and form == 'parallel':
        under = {int(p) for p in new.paths[new.paths[:, 1] == c, 0]} if level == 'leaf' else set()
        kin = sorted(
          {
            i
            for leaf, p in new.paths[:, ::-1].tolist()
            if p in under
            for i in results['leaf'][leaf]
          }
        ) or range(old.num_classes(level))
        np.testing.assert_allclose(
          selected, np.asarray(a[level])[:, list(kin)].mean(1), rtol=1e-4, atol=1e-4
        )


def test_heads_of_joined_levels_are_not_carried_over():
  module = heads.PathSum((('make', 2),), ((),))
  trained = types.SimpleNamespace(
    c=tiny.run_config(**{'model.heads': 'path_sum'}), classifier=types.SimpleNamespace(heads=module)
  )
  with pytest.raises(UserError, match='run: path_sum heads compute levels from each other'):
    migrate._check_heads(trained, pathlib.Path('run'), {}, 0)


def test_merged_and_split_classes_can_be_changed_again():
  old = Taxonomy.from_rows(['leaf'], [['a'], ['b'], ['c']])
  new = Taxonomy.from_rows(['leaf'], [['m'], ['c']])
  last = Taxonomy.from_rows(['leaf'], [['all']])
  first = migrate_heads.plan(
    'leaf',
    old,
    new,
    migrate.correspond(old, new, {('leaf', 'a'): ['m'], ('leaf', 'b'): ['m']})['leaf'],
    (1, 1, 1),
  )
  assert first.rows == (2, 1) and first.source.tolist() == [0, 1, 2]
  second = migrate_heads.plan(
    'leaf',
    new,
    last,
    migrate.correspond(new, last, {('leaf', 'm'): ['all'], ('leaf', 'c'): ['all']})['leaf'],
    first.rows,
  )
  assert second.rows == (3,) and second.source.tolist() == [0, 1, 2]


def test_a_new_class_starts_from_the_classes_of_the_nearest_parent_that_has_any():
  """Not from those of the farthest: by hand, with three levels."""
  levels = ['top', 'middle', 'leaf']
  rows = [['t', 'm', 'a'], ['t', 'm', 'b'], ['t', 'n', 'c'], ['u', 'o', 'd']]
  fresh = [['t', 'm', 'beside a and b'], ['t', 'new', 'below t'], ['new', 'new too', 'alone']]
  old, new = Taxonomy.from_rows(levels, rows), Taxonomy.from_rows(levels, [*rows, *fresh])
  sources = migrate.correspond(old, new, {})['leaf']
  plan = migrate_heads.plan('leaf', old, new, sources, (1,) * 4)
  donors = {
    new.names[2][row]: sorted(old.names[2][i] for i in rows_of_old)
    for row, rows_of_old in plan.donors.items()
  }
  assert donors == {
    'beside a and b': ['a', 'b'],
    'below t': ['a', 'b', 'c'],
    'alone': ['a', 'b', 'c', 'd'],
  }


@pytest.mark.parametrize('seed', range(8))
def test_the_difference_is_that_of_a_naive_comparison(seed):
  old, new, renames = changed(seed)
  results = migrate.class_changes(old, new, renames)['leaf']
  was, current = ({leaf: parent for parent, leaf in t.rows()} for t in (old, new))
  to = {a: renames.get(('leaf', a), [a] if a in current else []) for a in was}
  comes = {n: [a for a in was if n in to[a]] for n in current}
  assert sorted(results['added']) == sorted(n for n in current if not comes[n])
  assert sorted(results['removed']) == sorted(a for a in was if not to[a])
  single = {n: s[0] for n, s in comes.items() if len(s) == 1}
  renamed = [f'{a} -> {n}' for n, a in single.items() if len(to[a]) == 1 and a != n]
  assert sorted(results['renamed']) == sorted(renamed)
  assert len(results['merged']) == sum(len(s) > 1 for s in comes.values()) and len(
    results['split']
  ) == sum(len(t) > 1 for t in to.values())
  assert sorted(text.split(':')[0] for text in results['moved']) == sorted(
    n for n, s in comes.items() if s and current[n] not in {was[a] for a in s}
  )


def test_a_renamed_parent_moves_nobody():
  old = Taxonomy.from_rows(['parent', 'leaf'], [['p', 'a'], ['q', 'b']])
  new = Taxonomy.from_rows(['parent', 'leaf'], [['r', 'a'], ['q', 'b']])
  assert migrate.class_changes(old, new, {('parent', 'p'): ['r']})['leaf']['moved'] == []
  assert migrate.class_changes(old, new)['leaf']['moved'] == ['a: parent p (gone) -> r']
  assert migrate.class_changes(old, old) == {
    level: {kind: [] for kind in migrate.KINDS} for level in old.levels
  }
  assert migrate.describe(migrate.class_changes(old, old)) == 'parent: unchanged\nleaf: unchanged'


@pytest.mark.parametrize(
  'text, message',
  [
    ('level,from,new\n', ':1: the columns'),
    ('level,old,new\nleaf,x,a\n', ":2: leaf 'x' is not in the old"),
    ('level,old,new\nleaves,a,b\n', "no level 'leaves'"),
    ('level,old,new\nleaf,a,bb\n', "'bb' is not in the new taxonomy; did you mean 'b'"),
    ('level,old,new\nleaf,a,b\nleaf,a,b\n', ':3: repeats'),
  ],
)
def test_renames_that_do_not_fit_are_told_by_row(tmp_path, text, message):
  t = Taxonomy.from_rows(['leaf'], [['a'], ['b']])
  (tmp_path / 'r.csv').write_text(text)
  with pytest.raises(UserError, match=r'r\.csv') as e:
    migrate.read_renames(tmp_path / 'r.csv', t, t)
  assert message in str(e.value)


def classes_of(seed, counts, d=6):
  """Features [n, d] and classes [n] of Gaussian classes with one covariance; means; covariance."""
  rng = np.random.default_rng(seed)
  means, factor = rng.normal(size=(len(counts), d)), np.eye(d) + rng.normal(size=(d, d)) / 10
  y = np.repeat(np.arange(len(counts)), counts)
  return means[y] + rng.normal(size=(len(y), d)) @ factor, y, means, factor.T @ factor


def test_rows_of_gaussians_are_those_of_scikit_learns_discriminant():
  """Of classes with equally many images, up to what all logits have in common."""
  x, y, _, _ = classes_of(0, [9] * 5)
  means = np.stack([x[y == k].mean(0) for k in range(5)])
  shrinkage = ledoit_wolf(x - means[y], assume_centered=True)[1]
  oracle = LinearDiscriminantAnalysis('lsqr', shrinkage=shrinkage).fit(x, y)
  expected = np.concatenate([oracle.coef_.T, oracle.intercept_[None]])
  fit = migrate_heads.gaussians(x, y, 6)
  assert np.isnan(fit[:, 5]).all()
  for weights in (fit := fit[:, :5], expected):
    weights -= weights.mean(1, keepdims=True)
  np.testing.assert_allclose(fit, expected, rtol=1e-7, atol=1e-9)


def test_the_logit_of_a_class_of_one_image_is_unbiased():
  """Over draws of the image, at the class's true mean, against the logit by what is true."""
  x, y, means, covariance = classes_of(1, [300, 100])
  (a, b), exact, draws = means, np.linalg.inv(covariance), []
  for i in range(300, 400):
    rows = np.array([*range(300), i])
    fit = migrate_heads.gaussians(x[rows], y[rows], 2)
    weights = fit[:, 1] - fit[:, 0]
    draws.append(b @ weights[:-1] + weights[-1])
  error = np.std(draws) / np.sqrt(len(draws))
  # without the term d / (2 n) it is 3 lower
  assert error < 0.6
  np.testing.assert_allclose(np.mean(draws), (b - a) @ exact @ (b - a) / 2, atol=2 * error)


def test_a_new_row_is_that_of_the_gaussians_in_the_scale_of_the_head():
  """A head whose known rows are the Gaussians', divided by 7, and something common to all."""
  x, y, _, _ = classes_of(3, [20, 30, 25, 12])
  rng, rows = np.random.default_rng(4), (1, 2, 1, 1)
  common, fit = rng.normal(size=7), migrate_heads.gaussians(x, y, 4)
  expected = (fit / 7 + common[:, None])[:, [0, 1, 1, 2, 3]].astype(np.float32)
  start = expected.copy()
  start[:, [3, 4]] = rng.normal(size=(7, 2))
  head = {'kernel': start[:-1].copy(), 'bias': start[-1].copy()}
  # an image without a label does not count
  x, y = np.concatenate([x, 100 * x[:1]]), np.concatenate([y, [-1]])
  migrate_heads.start_new(head, rows, [2, 3], x, y)
  np.testing.assert_array_equal(head['kernel'][:, :3], start[:-1, :3])
  np.testing.assert_array_equal(head['bias'][:3], start[-1, :3])
  np.testing.assert_allclose(head['kernel'], expected[:-1], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(head['bias'], expected[-1], rtol=1e-5, atol=1e-5)
  # new classes without images stay as they are
  head = {'kernel': start[:-1].copy(), 'bias': start[-1].copy()}
  migrate_heads.start_new(head, rows, [2, 3], x[y < 2], y[y < 2])
  np.testing.assert_array_equal(head['kernel'], start[:-1])


def test_a_new_prototype_is_the_mean_feature_as_a_unit_vector():
  x, y, _, _ = classes_of(5, [4, 3, 2])
  head = {'prototypes': np.zeros((3, 6))}
  migrate_heads.start_new(head, (1, 1, 1), [1], x, y)
  mean = x[4:7].mean(0)
  np.testing.assert_allclose(head['prototypes'], [[0] * 6, mean / np.linalg.norm(mean), [0] * 6])


@pytest.mark.parametrize('shots', [2, None])
def test_features_are_computed_of_so_many_images_of_new_classes(monkeypatch, shots):
  """Against a loop: of new classes the first in the shuffled order; of others up to the limit."""
  monkeypatch.setattr(migrate_heads, 'MAX_IMAGES', 12)
  rng = np.random.default_rng(6)
  taxonomy = Taxonomy.from_rows(['parent', 'leaf'], [[f'p{i // 2}', f'a{i}'] for i in range(6)])
  leaves = rng.integers(-1, 6, 60)
  labels = np.stack([np.where(leaves < 0, -1, leaves // 2), leaves], 1).astype(np.int32)
  examples = sources.load(tiny.run_config().data).splits['train']
  examples = dataclasses.replace(
    dataset.subset(examples, np.zeros(60, int)), labels=labels, files=[f'{i}' for i in range(60)]
  )

  def collect(images, with_features, reduction):
    numbers = np.array([int(name) for name in images.files])
    assert with_features and (images.labels == -1).all()
    return types.SimpleNamespace(features=numbers[1:, None], index=np.arange(1, len(numbers)))

  trained = types.SimpleNamespace(taxonomy=taxonomy, collect=collect)
  classes = {'parent': [], 'leaf': [1, 4]}
  images = migrate_heads.sample(trained, examples, classes, taxonomy, shots, 7)
  order, counts, selected = np.random.default_rng(7).permutation(60).tolist(), {1: 0, 4: 0}, set()
  candidates = []
  for i in order:
    c = leaves[i]
    if c in counts:
      counts[c] += 1
      if counts[c] > (shots or 6):
        continue
      selected.add(i)
    if c >= 0:
      candidates.append(i)
  expected = sorted(selected | set(candidates[:12]))
  # the first is unreadable
  assert images.x[:, 0].tolist() == expected[1:]
  assert images.y[:, 1].tolist() == leaves[expected[1:]].tolist()
  unlabelled = dataclasses.replace(examples, labels=np.full_like(labels, -1))
  empty = migrate_heads.sample(trained, unlabelled, classes, taxonomy, shots, 7)
  head = {'kernel': np.eye(1, 6), 'bias': np.zeros(6)}
  migrate_heads.start_new(head, (1,) * 6, [1, 4], empty.x, empty.y[:, 1])
  np.testing.assert_array_equal(head['kernel'], np.eye(1, 6))


# A whole run


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A short run on a folder with labels.csv and taxonomy.csv; its data, and a second folder with
  one class merged of two, one new and one gone."""
  with pytest.MonkeyPatch.context() as patch:
    tiny.register(patch)
    tiny.use_devices(patch)
    toy = sources.load(tiny.run_config().data)
    t, train = toy.taxonomy, toy.splits['train']
    root, grown = tmp_path_factory.mktemp('old'), tmp_path_factory.mktemp('new')
    rows = [[t.names[k][c] for k, c in enumerate(labels)] for labels in train.labels.tolist()]
    a, b, removed, fresh = (t.names[-1][i] for i in range(4))
    for place in (root, grown):
      for i in range(len(rows)):
        cv2.imwrite(str(place / f'{i}.png'), train.reader(i)[..., ::-1])
    for place, skipped, to in ((root, {fresh}, {}), (grown, {removed}, {a: 'merged', b: 'merged'})):
      remaining = [
        (i, [*row[:2], to.get(row[2], row[2])])
        for i, row in enumerate(rows)
        if row[2] not in skipped
      ]
      table = {r[2]: [*r] for r in t.rows() if r[2] not in skipped}
      table = {to.get(n, n): [*r[:2], to.get(n, n)] for n, r in table.items()}
      for _, row in remaining:
        row[:2] = table[row[2]][:2]
      (place / 'taxonomy.csv').write_text(
        'make,type,model\n' + ''.join(','.join(r) + '\n' for r in table.values())
      )
      (place / 'labels.csv').write_text(
        'file,split,make,type,model\n'
        + ''.join(
          f'{i}.png,{"val" if i % 3 == 0 else "train"},{",".join(row)}\n' for i, row in remaining
        )
      )
    (grown / 'renames.csv').write_text(f'level,old,new\nmodel,{a},merged\nmodel,{b},merged\n')
    workdir = tmp_path_factory.mktemp('run')
    hierjax.fit(
      tiny.run_config(**{'data.source': 'auto', 'data.root': str(root), 'train.steps': 6}), workdir
    )
    yield workdir, grown, (a, b, removed, fresh)


@pytest.mark.parametrize('shots', [0, None])
def test_a_migrated_run_predicts_and_trains_on(run, tmp_path, monkeypatch, shots):
  workdir, grown, (a, b, removed, fresh) = run
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)
  old = hierjax.load(workdir)
  c = old.c.copy_and_resolve_references()
  c.data.root = str(grown)
  text = migrate.migrate(
    workdir, str(grown / 'taxonomy.csv'), tmp_path / 'new', c, str(grown / 'renames.csv'), shots
  )
  assert (
    f'1 added: {fresh}' in text
    and f'1 removed: {removed}' in text
    and f'1 merged: {a} + {b} -> merged' in text
  )
  new = hierjax.load(tmp_path / 'new')
  assert new.taxonomy.names[-1] == read_taxonomy(grown / 'taxonomy.csv').names[
    -1
  ] and new.c.model.parts == (('model', 'merged', 2),)
  examples = new.split('val')
  x = np.asarray(new.collect(examples, with_features=True).features)
  before = old.classifier.apply(jax.device_get(old.variables), x, False)[0]['model']
  after = new.classifier.apply(jax.device_get(new.variables), x, False)[0]['model']
  names, was = new.taxonomy.names[-1], old.taxonomy.names[-1]
  for name in set(names) - {fresh, 'merged'}:
    np.testing.assert_array_equal(after[:, names.index(name)], before[:, was.index(name)])
  np.testing.assert_allclose(
    after[:, names.index('merged')],
    np.logaddexp(before[:, was.index(a)], before[:, was.index(b)]),
    rtol=1e-5,
    atol=1e-5,
  )
  assert json.loads((tmp_path / 'new/migration.json').read_text())['changes']['model']['added'] == [
    fresh
  ]
  with pytest.raises(UserError, match='there is a run already'):
    migrate.migrate(workdir, str(grown / 'taxonomy.csv'), tmp_path / 'new', c)
  message = json.loads((tmp_path / 'new/migration.json').read_text())['classes']['model']
  assert {message[name]['kind'] for name in names if name not in (fresh, 'merged')} == {'kept'}
  assert (message[fresh]['kind'], message['merged']['kind'], message[fresh]['images']) == (
    'new',
    'merged',
    0,
  )
  with np.load(workdir / 'predictions_val.npz') as results:
    y, right = results['labels'][:, -1], (results['pred_joint'] == results['labels'])[:, -1]
  for name, sources_of in {
    'merged': [a, b],
    **{name: [name] for name in set(names) - {fresh, 'merged'}},
  }.items():
    selected = np.isin(y, [was.index(s) for s in sources_of])
    assert (message[name]['right'], message[name]['images']) == (
      right[selected].sum(),
      selected.sum(),
    ), name
  start = tmp_path / 'new/start'
  shares = [share(start, set(names)), share(start, set(names) - {fresh})]
  assert f'val, model, untrained: all {shares[0]}, known {shares[1]} (' in text
  if shots is None:
    result = hierjax.fit(new.c, tmp_path / 'new')
    assert result['step'] == 6
    page = (tmp_path / 'new/report.html').read_text()
    assert 'a new class was initialised from its training images' in page
    assert 'could not be made' not in page and 'Before and after the taxonomy changed' in page
    row = re.search(
      rf'<tr><th scope="row">{re.escape(fresh)}</th><td class="text">new</td>.*?</tr>', page
    )[0]
    cells = re.findall('<td>(.*?)</td>', row)
    assert cells[1:4] == [
      '–',
      share(tmp_path / 'new/start', {fresh}),
      share(tmp_path / 'new', {fresh}),
    ]


def share(workdir, names):
  """Of the val images of these models, those whose joint decision is right, as the report prints
  it."""
  t = read_taxonomy(workdir / 'taxonomy.csv')
  with np.load(workdir / 'predictions_val.npz') as results:
    selected = np.isin(results['labels'][:, -1], [t.names[-1].index(name) for name in names])
    return f'{100 * (results["pred_joint"] == results["labels"])[selected, -1].mean():.1f}%'


def test_distillation_holds_on_to_what_was_known(run, tmp_path, no_report, monkeypatch):
  """With a weight that drowns the labels the logits of known classes, relative to each other, stay
  nearer to where they began than without."""
  workdir, grown, _ = run
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)
  moved = {}
  for name, terms in (('plain', ()), ('held', ('distill',))):
    c = hierjax.load(workdir).c.copy_and_resolve_references()
    c.data.root, c.loss.terms, c.loss.weights, c.optim.lr = (
      str(grown),
      terms,
      (('distill', 30.0),) if terms else (),
      1e-2,
    )
    c.train.steps = c.train.eval_steps = 30
    place = tmp_path / name
    migrate.migrate(workdir, str(grown / 'taxonomy.csv'), place, c, str(grown / 'renames.csv'))
    hierjax.fit(hierjax.load(place).c, place)
    models = [hierjax.load(place / 'start'), hierjax.load(place)]
    probs = [np.log(m.collect(m.split('val')).probs['model']) for m in models]
    is_known = [
      i
      for i, members in enumerate(
        json.loads((place / 'migration.json').read_text())['classes']['model'].values()
      )
      if members['kind'] != 'new'
    ]
    before, after = (p[:, is_known] - p[:, is_known].mean(1, keepdims=True) for p in probs)
    moved[name] = np.abs(after - before).mean()
  assert moved['held'] < 0.5 * moved['plain'], moved
  with pytest.raises(UserError, match='has nothing to hold on to'):
    hierjax.fit(tiny.run_config(**{'loss.terms': 'distill'}), tmp_path / 'other')


def test_what_cannot_be_migrated_is_told(run, tmp_path, monkeypatch):
  workdir, grown, _ = run
  tiny.register(monkeypatch)
  (tmp_path / 'flat.csv').write_text('model\na\nb\n')
  c = hierjax.load(workdir).c
  with pytest.raises(UserError, match='has no level make, type'):
    migrate.migrate(workdir, str(tmp_path / 'flat.csv'), tmp_path / 'new', c)
  with pytest.raises(UserError, match='hierjax migrate --from='):
    c.data.root = str(grown)
    hierjax.load(workdir, c).split('val')
