"""Tag levels end to end on drawn squares: reading, training, thresholds, prediction, report."""

import itertools
import json
import re

import agreement
import cv2
import numpy as np
import pytest
import tiny
from sklearn import metrics as sklearn_metrics

import hierjax
from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.data import pipeline, sources
from hierjax.decide import thresholds
from hierjax.evaluate import collect, summary
from hierjax.experiments import fit
from hierjax.losses import build
from hierjax.taxonomy import TagTaxonomy
from hierjax.train import setup

TAGS = ('amber', 'blue', 'coral')  # each tints a third of the picture
GROUP = {'amber': 'warm', 'blue': 'cold', 'coral': 'warm'}


@pytest.fixture(autouse=True)
def small(monkeypatch):
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)


def draw(folder, n=96, columns=False, split=True, taxonomy=False):
  """n pictures whose three bands are bright where the tag is present, and their labels.csv."""
  rng, lines = np.random.default_rng(0), []
  (folder / 'images').mkdir()
  for i in range(n):
    is_drawn = rng.random(3) < (0.3, 0.5, 0.6)
    image = rng.integers(0, 90, (32, 32, 3), np.uint8)
    for k in np.flatnonzero(is_drawn):
      image[4:-4, 10 * k + 1 : 10 * k + 10, k] += rng.integers(60, 160, dtype=np.uint8)
    cv2.imwrite(str(folder / f'images/{i}.png'), image)
    cells = (
      [str(int(x)) for x in is_drawn]
      if columns
      else ['|'.join(t for t, x in zip(TAGS, is_drawn) if x) or '-']
    )
    lines.append(
      [f'images/{i}.png', *(['val' if i % 3 == 0 else 'train'] if split else []), *cells]
    )
  header = ['file', *(['split'] if split else []), *(TAGS if columns else ['tag'])]
  (folder / 'labels.csv').write_text('\n'.join(','.join(row) for row in [header, *lines]) + '\n')
  if taxonomy:
    (folder / 'taxonomy.csv').write_text(
      'group,tag\n' + ''.join(f'{g},{t}\n' for t, g in GROUP.items())
    )


def options(folder, **changes):
  return tiny.run_config(
    **{
      'data.source': 'csv',
      'data.root': str(folder),
      'data.multi': 'all',
      'train.best': 'loss',
      'optim.schedule': 'plateau',
      'train.steps': 24,
      'train.eval_steps': 12,
      'optim.lr': 1e-2,
      'data.augment.enabled': False,
      **changes,
    }
  )


def test_sets_and_columns_are_the_same_labels(tmp_path):
  for name, columns in (('sets', False), ('columns', True)):
    (tmp_path / name).mkdir()
    draw(tmp_path / name, 30, columns)
  a = sources.load(options(tmp_path / 'sets', **{'data.multi': 'tag'}).data)
  b = sources.load(options(tmp_path / 'columns', **{'data.multi': 'tag'}).data)
  assert (
    a.taxonomy.hash() == b.taxonomy.hash()
    and a.taxonomy.names == (TAGS,)
    and a.taxonomy.multi == ('tag',)
  )
  for split in ('train', 'val'):
    assert (
      np.array_equal(a.splits[split].multi, b.splits[split].multi)
      and a.splits[split].labels.shape[1] == 0
    )
  assert (a.splits['train'].multi.sum(1) > 1).any()
  batch = next(iter(pipeline.eval_batches(a.splits['val'], batch_size=16, size=32)))
  assert batch['labels'].shape == (16, 3) and batch['labels'].dtype == np.int32
  assert (
    np.array_equal(batch['labels'][:10], a.splits['val'].multi)
    and (batch['labels'][10:] == -1).all()
  )


@pytest.mark.parametrize(
  'line, message',
  [
    ('a.png,ambr,', r"labels\.csv:2: tag 'ambr' is not in the taxonomy; did you mean 'amber'"),
    ('a.png,amber,cold', r"labels\.csv:2: has tag 'amber' but not group 'warm'"),
  ],
)
def test_wrong_labels_name_their_row(tmp_path, line, message):
  (tmp_path / 'taxonomy.csv').write_text('group,tag\nwarm,amber\ncold,blue\nwarm,coral\n')
  (tmp_path / 'labels.csv').write_text(f'file,tag,group\n{line}\n')
  agreement.refuses(options(tmp_path).data, message)


def test_what_follows_is_filled_in(tmp_path):
  (tmp_path / 'taxonomy.csv').write_text('group,tag\nwarm,amber\ncold,blue\nwarm,coral\nplain,\n')
  rows = {
    'a': 'amber,',
    'b': ',cold',
    'c': '-,',
    'd': ',plain',
    'e': ',',
    'f': 'blue|coral,warm|cold',
  }
  (tmp_path / 'labels.csv').write_text(
    'file,tag,group\n' + ''.join(f'{k}.png,{v}\n' for k, v in rows.items())
  )
  for k in rows:
    cv2.imwrite(str(tmp_path / f'{k}.png'), np.zeros((8, 8, 3), np.uint8))
  data = sources.load(options(tmp_path, **{'data.val_share': 0.0}).data)
  assert data.taxonomy.names == (('cold', 'plain', 'warm'), ('amber', 'blue', 'coral', 'plain'))
  values = {
    f[0]: y.tolist() for f, y in zip(data.splits['train'].files, data.splits['train'].multi)
  }
  assert values == {
    'a': [0, 0, 1, 1, 0, 0, 0],
    'b': [1, 0, 0, 0, -1, 0, 0],
    'c': [0, 0, 0, 0, 0, 0, 0],
    'd': [0, 1, 0, 0, 0, 0, 1],
    'e': [-1] * 7,
    'f': [1, 0, 1, 0, 1, 1, 0],
  }


def test_a_cell_of_a_class_column_is_0_or_1(tmp_path):
  (tmp_path / 'labels.csv').write_text('file,sea,trees\na.png,1,2\n')
  with pytest.raises(UserError, match=r"labels\.csv:2: column 'trees' holds '2'"):
    sources.load(options(tmp_path).data)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'loss.smoothing': 0.1}, r'loss\.smoothing=0\.1 is for exclusive levels'),
    ({'data.balance': 'loss'}, r'data\.balance'),
    ({'data.multi': '', 'loss.binary': 'focal'}, r'loss\.binary=.focal. is for multi levels'),
    ({'data.source': 'toy'}, r'source toy has one class a level'),
    ({'data.multi': 'group'}, 'exclusive level tag stands below multi level group'),
    ({'train.best': 'fpa'}, r'choices: loss, map/group, map/tag'),
    ({'model.heads': 'flat'}, 'each of the multi levels needs a head'),
    ({'loss.pos_weight': 0.5}, r'pos_weight=0\.5'),
  ],
)
def test_options_that_do_not_fit(tmp_path, changes, message):
  draw(tmp_path, 12, taxonomy=True)
  with pytest.raises(UserError, match=message):
    setup.build(options(tmp_path, **changes))


def test_a_split_keeps_the_combinations(tmp_path):
  draw(tmp_path, 200, split=False)
  data = sources.load(options(tmp_path, **{'data.multi': 'tag', 'data.val_share': 0.25}).data)
  together = {
    name: e.multi.astype(float).T @ e.multi / len(e.multi) for name, e in data.splits.items()
  }  # the share with both of two classes
  assert len(data.splits['val'].files) == pytest.approx(50, abs=3)
  np.testing.assert_allclose(together['val'], together['train'], atol=0.03)


def test_one_level_as_s4_does(tmp_path):
  data, run = tmp_path / 'data', tmp_path / 'run'
  data.mkdir()
  draw(data, columns=True)
  c = options(data, **{'data.multi': 'tag'})
  result = fit.fit(c, run)
  values = result['multi']['tag']
  with np.load(run / 'predictions_val.npz') as archive:
    prob, y, pred = (
      archive['multi_prob'].astype(np.float64),
      archive['multi_labels'],
      archive['multi_pred'],
    )
  assert values['map_macro'] == pytest.approx(
    np.mean([sklearn_metrics.average_precision_score(y[:, k], prob[:, k]) for k in range(3)])
  )
  assert values['map_micro'] == pytest.approx(
    sklearn_metrics.average_precision_score(y.ravel(), prob.ravel())
  )
  rules = json.loads((run / 'decode.json').read_text())
  assert rules['split'] == 'val'
  for k, (name, tag_values) in enumerate(values['classes'].items()):
    precision, recall, thresholds = sklearn_metrics.precision_recall_curve(y[:, k], prob[:, k])
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert (
      rules['thresholds']['tag'][name]
      == tag_values['threshold']
      == pytest.approx(thresholds[f1[:-1].argmax()])
    )
    assert tag_values['after']['f1'] == pytest.approx(f1.max()) and tag_values['after']['f1'] >= (
      tag_values['before']['f1'] or 0
    )
    assert tag_values['after']['f1'] == pytest.approx(sklearn_metrics.f1_score(y[:, k], pred[:, k]))
  reloaded = hierjax.load(run)
  assert reloaded.evaluate('val')['multi'] == result['multi']
  changed = dict.fromkeys(TAGS, 1.1)
  (run / 'decode.json').write_text(json.dumps({'thresholds': {'tag': changed}}))
  assert not any(
    line['classes']['tag'] for line in hierjax.load(run).predict([str(data / 'images/0.png')])
  )
  (line,) = reloaded.predict([str(data / 'images/0.png')])
  assert line['classes']['tag'] == [t for t, x in zip(TAGS, pred[0]) if x] and line['prob']['tag'][
    'blue'
  ] == pytest.approx(prob[0, 1], abs=1e-4)
  page = (run / 'report.html').read_text()
  assert 'mAP, macro' in page and 'Learning rate' in page and 'precision over recall' in page
  assert 'could not be made' not in page and re.search(r'coral</th><td>\d+</td>', page)
  lines = [json.loads(l) for l in (run / 'metrics.jsonl').read_text().splitlines()]
  assert {'loss', 'map/tag', 'micro_map/tag', 'f1/tag'} <= [l for l in lines if l['kind'] == 'val'][
    -1
  ].keys()
  with pytest.raises(UserError, match=r'data\.multi'):
    fit.fit(options(data, **{'data.multi': 'all', 'data.taxonomy': str(run / 'taxonomy.csv')}), run)


@pytest.mark.parametrize('binary', ['bce', 'focal'])
def test_several_levels_never_contradict(tmp_path, binary):
  data, run = tmp_path / 'data', tmp_path / 'run'
  data.mkdir()
  draw(data, taxonomy=True)
  result = fit.fit(
    options(data, **{'loss.binary': binary, 'train.steps': 12, 'train.eval_steps': 12}), run
  )
  assert set(result['multi']) == {'group', 'tag'} and result['hvr']['decided'] == 0
  model = hierjax.load(run)
  for changed in (
    {},
    {'group': np.ones(2), 'tag': np.zeros(3)},
  ):  # the second: every tag, and no group for itself
    model.rules['tags'] = changed or model.rules['tags']
    for line in model.predict([str(p) for p in sorted((data / 'images').glob('*.png'))][:20]):
      assert {GROUP[tag] for tag in line['classes']['tag']} <= set(line['classes']['group'])
      assert all(p <= line['prob']['group'][GROUP[tag]] for tag, p in line['prob']['tag'].items())
      assert not changed or set(line['classes']['group']) == {'warm', 'cold'}


def forest(rng):
  """A random taxonomy of two to four levels, some of whose branches end early."""
  levels = [f'l{k}' for k in range(rng.integers(2, 5))]
  rows = [
    [f'{k}.{i // 2 ** (len(levels) - k - 1)}' for k in range(len(levels))]
    for i in range(rng.integers(2, 12))
  ]
  ends = {row[0] for row in rows if rng.random() < 0.2}
  rows = [row for row in rows if row[0] not in ends] + [
    [e] + [''] * (len(levels) - 1) for e in sorted(ends)
  ]
  return TagTaxonomy.from_rows(levels, rows)


def test_random_forests():
  """Decisions at any thresholds, and labels made of any finest classes, contradict nothing."""
  rng = np.random.default_rng(0)
  for _ in range(25):
    t = forest(rng)
    m = sum(map(len, t.names))
    below = np.zeros((m, m), bool)
    below[t.edges] = True
    prob = (rng.random((30, 1, m)) * below).max(-1)
    decided = thresholds.decide_tags(prob, rng.random(m), t).pred
    assert (t.contradicts(decided) == -1).all()
    rows = np.full((20, m), -1, np.int8)
    leaves = rng.random((20, len(t.paths))) < 0.3
    rows[:, t.columns[t.levels[-1]]] = leaves
    full = t.complete(rows)
    expected = np.zeros_like(full)
    for i, leaf in itertools.product(range(20), range(len(t.paths))):
      if leaves[i, leaf]:
        expected[
          i, [t.columns[level].start + t.paths[leaf, k] for k, level in enumerate(t.levels)]
        ] = 1
    assert np.array_equal(full, expected)


def test_loss_of_unknown_labels_and_weights():
  """Unknown classes cost nothing; positive weights are negatives / positives."""
  t = TagTaxonomy.from_rows(['tag'], [[n] for n in TAGS])
  c = config.default()
  labels = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 1], [0, 1, 0]], np.int8)
  rows = np.array([[1, -1, 0], [-1, -1, -1]], np.int32)
  x = np.array([[0.3, 5.0, -0.2], [1.0, 1.0, 1.0]], np.float32)
  right = -np.log([1 / (1 + np.exp(-0.3)), 1 / (1 + np.exp(-0.2))])

  def loss():
    return build.build(c, t, ('tag',), labels).blocks[0]({'tag': x}, {}, rows, 1.0)['tag']

  value, n, _, _ = loss()
  np.testing.assert_allclose(value, [right.mean(), 0], rtol=1e-5)
  assert n.tolist() == [2, 0]
  c.loss.pos_weight = 10.0
  value = loss().values
  np.testing.assert_allclose(
    value[0], (3 * right[0] + right[1]) / 2, rtol=1e-5
  )  # amber: 3 negatives, 1 positive
  out = collect.Outputs(
    {'tag': 1 / (1 + np.exp(-x.astype(np.float64)))}, None, rows, np.arange(2), []
  )
  assert summary.loss(out, t, {'tag': 1.0}) == pytest.approx(right.mean(), rel=1e-5)
