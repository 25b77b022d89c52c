"""Exclusive and multi levels in one model: what lies below what, what follows from labels, that
nothing contradicts, and runs from the command line."""

import json
import os
import pathlib
import re

import agreement
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy.special import softmax
from test_bad_input import run as run_main

from hierjax import decide
from hierjax.core.declarations import OPTIONS
from hierjax.core.errors import UserError
from hierjax.data import lint, sources
from hierjax.decide import decisions
from hierjax.evaluate import collect, summary
from hierjax.experiments import fit, migrate
from hierjax.model import load, run_config
from hierjax.report import page, runs
from hierjax.taxonomy import Mixed, Taxonomy, describe_difference, read_taxonomy
from hierjax.train import setup
from hierjax.train.objective import objective

BELOW = 'kind,tag\ndisc,disc blue\ndisc,disc green\nsquare,square blue\n,red\n'
BESIDE = 'category,article\nround,disc\nround,ring\nedgy,square\nedgy,frame\n'
COLOURS = ('blue', 'green', 'red')


@pytest.fixture(autouse=True)
def small(monkeypatch):
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)


def draw(folder, n=96, split=True, columns=False):
  """n pictures of one of four articles in grey, above it a bright patch for each colour; labels.csv
  with category (of a few), article (of the others) and
  colour, a column of sets or one per colour; taxonomy.csv of the first two."""
  folder.mkdir(exist_ok=True)
  rng, lines = np.random.default_rng(0), []
  for i in range(n):
    category, article = BESIDE.split()[1 + i % 4].split(',')
    is_present, image = rng.random(3) < (0.3, 0.5, 0.6), rng.integers(0, 60, (32, 32, 3), np.uint8)
    image[16:28, 4:28] = 60 * (i % 4) + 40
    for k in np.flatnonzero(is_present):
      image[:12, 10 * k + 1 : 10 * k + 10, k] = 250
    cv2.imwrite(str(folder / f'{i}.png'), image)
    target = [category, ''] if i % 8 == 5 else ['', article]
    sets = (
      [str(int(x)) for x in is_present]
      if columns
      else ['|'.join(c for c, x in zip(COLOURS, is_present) if x) or '-']
    )
    lines.append(
      [f'{i}.png', *(['val' if i % 12 < 4 else 'train'] if split else []), *target, *sets]
    )
  header = [
    'file',
    *(['split'] if split else []),
    'category',
    'article',
    *(COLOURS if columns else ['colour']),
  ]
  (folder / 'labels.csv').write_text('\n'.join(','.join(row) for row in [header, *lines]) + '\n')
  (folder / 'taxonomy.csv').write_text(BESIDE)
  return folder


def table(folder, labels, taxonomy=BELOW):
  """labels.csv whose images are there, and taxonomy.csv."""
  folder.mkdir(exist_ok=True)
  (folder / 'labels.csv').write_text(labels)
  if taxonomy:
    (folder / 'taxonomy.csv').write_text(taxonomy)
  for line in labels.splitlines()[1:]:
    cv2.imwrite(str(folder / line.split(',')[0]), np.zeros((8, 8, 3), np.uint8))
  return folder


def options(folder, **changes):
  return tiny.run_config(
    **{
      'data.source': 'csv',
      'data.root': str(folder),
      'data.multi': 'colour',
      'train.steps': 24,
      'train.eval_steps': 12,
      'optim.lr': 1e-2,
      'data.augment.enabled': False,
      **changes,
    }
  )


def rows_of(run):
  """The labels of a run's training split, those of tags behind."""
  parts = [run.train.labels, run.train.multi]
  return np.concatenate([part for part in parts if part is not None], 1)


# The taxonomy.


def forest(rng):
  """(levels, rows) of a random mixed taxonomy: an exclusive tree with branches that end early,
  multi levels whose finest classes begin with a path, with the
  upper part of one, or with nothing, and whose coarser classes may lie below several."""
  exclusive, multiple = (
    [f'e{k}' for k in range(rng.integers(1, 4))],
    [f'm{k}' for k in range(rng.integers(1, 4))],
  )
  paths = [
    [f'e{k}.{i // 2 ** (len(exclusive) - k - 1)}' for k in range(len(exclusive))]
    for i in range(rng.integers(2, 10))
  ]
  ends = {p[0] for p in paths if len(p) > 1 and rng.random() < 0.2}
  paths = [p for p in paths if p[0] not in ends] + [
    [e] + [''] * (len(exclusive) - 1) for e in sorted(ends)
  ]
  rows = [p + [''] * len(multiple) for p in paths if rng.random() < 0.7]
  for i in range(rng.integers(1, 12)):
    path, keep = paths[rng.integers(len(paths))], rng.integers(0, len(exclusive) + 1)
    lower = [f'm{k}.{i // 2 ** (len(multiple) - k - 1)}' for k in range(len(multiple))]
    rows.append([c if k < keep else '' for k, c in enumerate(path)] + lower)
  rows += [[*p, *[''] * len(multiple)] for p in paths if [*p, *[''] * len(multiple)] not in rows]
  return exclusive + multiple, [rows[i] for i in rng.permutation(len(rows))], ','.join(multiple)


def written(folder, levels, rows):
  path = folder / 'taxonomy.csv'
  path.write_text('\n'.join(','.join(row) for row in [levels, *rows]) + '\n')
  return path


def class_above(rows, k, table):
  """The only class of exclusive level k that the rows of a tag have, -1 where it is open."""
  n = len(table.levels)
  paths = [row[:n] for row in table.rows()]
  classes = {row[k] for row in rows}
  # ended above, and carried down to here, or left open
  if '' in classes:
    ended = [row for row in rows if row[k] == '' and any(row[:k]) and row[:n] in paths]
    classes = {
      next(x for x in reversed(row[: k + 1]) if x) if row in ended else row[k] for row in rows
    }
  is_single = len(classes) == 1 and '' not in classes
  return table.names[k].index(classes.pop()) if is_single else -1


def test_what_lies_below_what(tmp_path):
  """`above` against sets of rows; written and read again it is the same; nothing else than the two
  tables is kept."""
  rng = np.random.default_rng(0)
  for _ in range(40):
    levels, rows, multiple = forest(rng)
    t = read_taxonomy(written(tmp_path, levels, rows), multiple)
    n = len(t.exclusive.levels)
    assert (
      isinstance(t, Mixed)
      and t.levels == tuple(levels)
      and t.multi == tuple(multiple.split(','))
      and t.above.shape == (sum(map(len, t.tags.names)), n)
    )
    for level, place in t.columns.items():
      for c, name in enumerate(t.tags.names[t.tags.index(level)]):
        selected = [row for row in rows if row[levels.index(level)] == name]
        for k in range(n):
          assert t.above[place][c, k] == class_above(selected, k, t.exclusive)
    t.to_csv(tmp_path / 'again.csv')
    repeated = read_taxonomy(tmp_path / 'again.csv', multiple)
    assert (
      repeated.hash() == t.hash()
      and np.array_equal(repeated.above, t.above)
      and not describe_difference(t, repeated)
    )
    assert repeated.exclusive.rows() == t.exclusive.rows() and repeated.tags.rows() == t.tags.rows()
    short = t.coarsen(t.levels[0])
    short.to_csv(tmp_path / 'short.csv')
    assert read_taxonomy(
      tmp_path / 'short.csv', multiple
    ).hash() == short.hash() and np.array_equal(short.above[:, 0], t.above[:, 0])


@pytest.mark.parametrize(
  'rows, multi, message',
  [
    (
      'tag,kind\nred,disc\n',
      'tag',
      r'exclusive level kind stands below multi level tag in the taxonomy \(tag, kind\).*'
      'name kind too, or put its column before',
    ),
    ('a,b,c\nx,y,z\n', 'b', 'exclusive level c stands below multi level b'),
    (
      'kind,tag\ndisc,red\nsquare,red\n',
      'tag',
      r"t.csv:3: tag 'red' stands under 'square' here and under 'disc' in row 2; .*"
      'leaves kind empty',
    ),
    (
      'kind,tag\ndisc,red\n,red\n',
      'tag',
      r"t.csv:3: tag 'red' stands under 'nothing' here and under 'disc' in row 2",
    ),
    ('kind,tag\ndisc,red\ndisc,red\n', 'tag', r't.csv:3: repeats row 2'),
    ('kind,tag\n,red\n', 'tag', 't.csv:1: has no class below the header'),
    ('kind,sort,tag\n,disc,red\n', 'tag', 't.csv:2: kind is empty before sort'),
    ('kind,tag\ndisc,\ndisc,\n', 'tag', 't.csv:3: repeats row 2'),
    (
      'kind,tag\ndisc,red\n',
      'tagg',
      r"no level 'tagg' \(did you mean 'tag'\?\); choices: kind, tag",
    ),
  ],
)
def test_no_taxonomy(tmp_path, rows, multi, message):
  (tmp_path / 't.csv').write_text(rows)
  with pytest.raises(UserError, match=message):
    read_taxonomy(tmp_path / 't.csv', multi)


def test_all_of_one_kind_are_what_they_were(tmp_path):
  (tmp_path / 't.csv').write_text('kind,tag\ndisc,red\n')
  plain, every = read_taxonomy(tmp_path / 't.csv'), read_taxonomy(tmp_path / 't.csv', 'all')
  assert (
    plain.hash() == read_taxonomy(tmp_path / 't.csv').hash()
    and plain.table('exclusive') is plain
    and plain.table('tags') is None
  )
  assert (
    isinstance(every, Taxonomy)
    and every.table('tags') is every
    and every.table('exclusive') is None
    and every.multi == ('kind', 'tag')
  )
  mixed = read_taxonomy(tmp_path / 't.csv', 'tag')
  assert len({t.hash() for t in (plain, every, mixed)}) == 3
  assert all(
    describe_difference(a, b)
    for a in (plain, every, mixed)
    for b in (plain, every, mixed)
    if a is not b
  )


# Labels, probabilities, decisions: properties on random forests.


def truth(t, rng, n):
  """Images with a path and any of the finest multi classes that may stand beside it: (labels,
  rows), all known."""
  labels = t.exclusive.paths[rng.integers(len(t.exclusive.paths), size=n)]
  last = t.columns[t.multi[-1]]
  rows = np.zeros((n, len(t.above)), np.int8)
  for i, j in zip(*np.nonzero(rng.random((n, last.stop - last.start)) < 0.4)):
    if ((t.above[last][j] < 0) | (t.above[last][j] == labels[i])).all():
      rows[i, [t.columns[level].start + c for level, c in zip(t.multi, t.tags.paths[j])]] = 1
  return labels, rows


def test_random_forests(tmp_path):
  rng = np.random.default_rng(1)
  for _ in range(8):  # each shape is compiled
    t = read_taxonomy(written(tmp_path, *(f := forest(rng))[:2]), f[2])
    m, edges = len(t.above), t.tags.edges
    # what follows from known labels is true, contradicts nothing, and is all that a tag and a
    # kind tell of each other
    labels, rows = truth(t, rng, 40)
    assert t.fits(labels)[rows == 1].all()
    sparse = [np.where(rng.random(x.shape) < 0.5, -1, x) for x in (labels, rows)]
    message, is_present = t.complete(*sparse)
    assert (
      ((message == labels) | (message < 0)).all()
      and ((is_present == rows) | (is_present < 0)).all()
      and ((sparse[0] < 0) | (message >= 0)).all()
    )
    assert not (~t.fits(message) & (is_present != 0)).any()
    for i, j in zip(*np.nonzero(is_present == 1)):
      assert ((t.above[j] < 0) | (message[i] == t.above[j])).all()
    full = t.complete(labels, np.where(rows == 1, 1, -1))
    assert (
      np.array_equal(full[0], labels) and ((full[1] == 0) == ((rows == 0) & (full[1] >= 0))).all()
    )
    # probabilities: none above that of a class above it, bit for bit
    probs = {
      level: softmax(3 * rng.normal(size=(30, len(names))), 1).astype(np.float32)
      for level, names in zip(t.exclusive.levels, t.exclusive.names)
    }
    raw = {level: rng.random((30, t.num_classes(level)), np.float32) for level in t.multi}
    heads = {
      level: p
      for k, (level, p) in enumerate(probs.items())
      if k == len(probs) - 1 or rng.random() < 0.8
    }
    probabilities = {k: np.asarray(p) for k, p in collect.constrain(heads | raw, t).items()}
    results = decisions.join(probabilities, t.block('tags'))
    assert (results[:, edges[0]] >= results[:, edges[1]]).all()
    for level, p in heads.items():
      for j, above in enumerate(t.above[:, t.index(level)].tolist()):
        assert above < 0 or (results[:, j] <= np.asarray(p)[:, above]).all()
    # decisions: at any thresholds exactly those with a class over its threshold that fits the
    # path, at or below them
    thresholds = rng.random(m)
    rules = decide.default_rules(t) | {'tags': t.block('tags').taxonomy.split(thresholds)}
    probs = {level: np.asarray(p, np.float64) for level, p in probs.items()}
    decided = decide.decide(probabilities | probs, t, rules)
    path, on = decided['exclusive']['joint'].pred, decided['tags'].pred
    fits = np.array([[((a < 0) | (a == p)).all() for a in t.above] for p in path])
    below = {*zip(*(x.tolist() for x in edges))}
    expected = np.array(
      [
        [
          any((a, b) in below and results[i, b] >= thresholds[b] and fits[i, b] for b in range(m))
          for a in range(m)
        ]
        for i in range(30)
      ]
    )
    assert np.array_equal(on, expected) and fits[on].all() and (t.tags.contradicts(on) == -1).all()
    message, is_present = t.complete(path, on.astype(np.int8))
    assert np.array_equal(message, path) and np.array_equal(is_present, on)


def test_a_split_keeps_path_and_tags_together(tmp_path):
  data = sources.load(
    options(draw(tmp_path / 'data', 320, split=False), **{'data.val_share': 0.25}).data
  )
  assert len(data.splits['val'].files) == pytest.approx(80, abs=4)
  shares = {}
  for name, e in data.splits.items():
    target = (e.labels[:, 1:2] == np.arange(4)).astype(float)
    shares[name] = (
      np.concatenate([target, e.multi], 1).T @ np.concatenate([target, e.multi], 1) / len(e.multi)
    )
  np.testing.assert_allclose(shares['val'], shares['train'], atol=0.03)


# labels.csv.


def test_what_the_labels_tell_of_each_other(tmp_path):
  rows = {
    'a': 'disc,',
    'b': ',square blue',
    'c': 'square,-',
    'd': ',red',
    'e': 'disc,disc blue|red',
    'f': ',',
    'g': ',-',
  }
  folder = table(
    tmp_path / 'data', 'file,kind,tag\n' + ''.join(f'{k}.png,{v}\n' for k, v in rows.items())
  )
  data = sources.load(options(folder, **{'data.multi': 'tag', 'data.val_share': 0.0}).data)
  t, e = data.taxonomy, data.splits['train']
  assert t.exclusive.names == (('disc', 'square'),) and t.tags.names == (
    ('disc blue', 'disc green', 'square blue', 'red'),
  )
  assert {f[0]: (y.tolist(), m.tolist()) for f, y, m in zip(e.files, e.labels, e.multi)} == {
    'a': ([0], [-1, -1, 0, -1]),
    'b': ([1], [0, 0, 1, 0]),
    'c': ([1], [0, 0, 0, 0]),
    'd': ([-1], [0, 0, 0, 1]),
    'e': ([0], [1, 0, 0, 1]),
    'f': ([-1], [-1] * 4),
    'g': ([-1], [0] * 4),
  }


def test_sets_and_columns_are_the_same_labels(tmp_path):
  a, b = (
    sources.load(options(draw(tmp_path / name, 48, columns=name == 'columns')).data)
    for name in ('sets', 'columns')
  )
  assert (
    a.taxonomy.hash() == b.taxonomy.hash()
    and a.taxonomy.levels == ('category', 'article', 'colour')
    and (a.taxonomy.above == -1).all()
  )
  for split in ('train', 'val'):
    assert np.array_equal(a.splits[split].labels, b.splits[split].labels) and np.array_equal(
      a.splits[split].multi, b.splits[split].multi
    )
  assert (
    'colour is no level of the taxonomy and stands beside it: 3 colour, by labels.csv' in a.notes
  )
  (
    tmp_path / 'sets/taxonomy.csv'
  ).unlink()  # without it the columns beside that of sets are the exclusive levels
  (tmp_path / 'sets/labels.csv').write_text(
    'file,category,article,colour\n0.png,round,disc,red|blue\n1.png,,disc,-\n2.png,edgy,square,\n'
  )
  derived = sources.load(options(tmp_path / 'sets').data).taxonomy
  assert derived.exclusive.rows() == [
    ['edgy', 'square'],
    ['round', 'disc'],
  ] and derived.tags.names == (('blue', 'red'),)


@pytest.mark.parametrize(
  'labels, message',
  [
    (
      'file,kind,tag\na.png,disc,square blue\n',
      r"labels\.csv:2: has tag 'square blue' but kind 'disc'; "
      "the taxonomy has it under kind 'square'",
    ),
    (
      'file,kind,tag\na.png,,disc blue|square blue\n',
      r"labels\.csv:2: has tag 'square blue' but kind 'disc' by tag 'disc blue'; "
      'the taxonomy has it under',
    ),
    (
      'file,kind,tag\na.png,disc,disc blu\n',
      r"labels\.csv:2: tag 'disc blu' is not in the taxonomy; did you mean 'disc blue'",
    ),
    (
      'file,kind,tag\na.png,dics,red\n',
      r"labels\.csv:2: kind 'dics' is not in the taxonomy; did you mean 'disc'",
    ),
    (
      'file,kind,red\na.png,disc,yes\n',
      r"labels\.csv:2: column 'red' holds 'yes'; a class has 1, 0 or nothing",
    ),
    (
      'file,kind,tag\na.png,disc|square,red\n',
      r"labels\.csv:2: kind 'disc\|square' is not in the taxonomy",
    ),
    (
      'file,kind,rad\na.png,disc,1\n',
      r"labels\.csv:1: column 'rad' is no level or class of the taxonomy \(did you mean 'red'\?\)",
    ),
    (
      'file,kind\na.png,disc\n',
      r'labels\.csv:1: no column of labels of tag; the levels are kind, tag',
    ),
    (
      'file,kind,tag\na.png,disc,red\na.png,disc,-\n',
      r'labels\.csv:3: a.png stands in row 2 already, with other labels',
    ),
  ],
)
def test_bad_rows(tmp_path, labels, message):
  c = options(table(tmp_path / 'data', labels), **{'data.multi': 'tag'})
  agreement.refuses(c.data, message)


@pytest.mark.parametrize(
  'multi, labels, message',
  [
    (
      'tags',
      'file,category,article\na.png,,disc\n',
      r"data\.multi=tags: no level 'tags'; choices: category, article, .*, or "
      r'another column of labels\.csv',
    ),
    (
      'tags',
      'file,article,colour\na.png,disc,red|blue\n',
      r"labels\.csv:2: column 'colour' holds 'red\|blue'; .*a column of sets is named in "
      r'--config\.data',
    ),
    (
      'colour',
      'file,colour\na.png,red\n',
      r'labels\.csv:1: no column of labels of category, article; '
      'the levels are category, article, colour',
    ),
    (
      'colour,size',
      'file,article,colour,size\na.png,disc,red,big\n',
      r'several levels need .*taxonomy\.csv',
    ),
    (
      'colour',
      'file,article,colour\na.png,disc,\n',
      r"labels\.csv:1: column 'colour' names no class in any row",
    ),
  ],
)
def test_bad_rows_of_a_level_beside(tmp_path, multi, labels, message):
  agreement.refuses(
    options(table(tmp_path / 'data', labels, BESIDE), **{'data.multi': multi}).data, message
  )


def test_lint_counts_both(tmp_path):
  text = lint.check(options(draw(tmp_path / 'data', 48)).data).text()
  assert (
    '2 categories, 4 articles' in text
    and 'article unknown: 6' in text
    and re.search(r'val, 16 images, colour: blue \d+, green', text)
  ), text
  folder = table(
    tmp_path / 'few', 'file,kind,tag,split\na.png,disc,red,train\nb.png,disc,red,val\n'
  )
  text = lint.check(options(folder, **{'data.multi': 'tag'}).data).text()
  assert "kind 'square'" in text and "tag 'disc blue' is in no image of train" in text


# Training.


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {
      'loss.any_level': True,
      'loss.terms': 'tree_path,distribution_matching,co_annotation',
      'loss.binary': 'focal',
    },
    {'loss.smoothing': 0.2, 'data.balance': 'loss', 'loss.pos_weight': 5.0},
    {'loss.aggregate': 'samples', 'loss.terms': 'supervised_contrastive,tree_path'},
  ],
)
def test_the_loss_is_the_sum_of_both_kinds(tmp_path, changes):
  """That of a run on the exclusive levels and one on the multi ones, with the same logits."""
  draw(tmp_path / 'data')
  lines = [line.split(',') for line in (tmp_path / 'data/labels.csv').read_text().splitlines()]
  (tmp_path / 'alone').mkdir()
  (tmp_path / 'alone/labels.csv').write_text(
    '\n'.join(','.join([a, b, e]) for a, b, _, _, e in lines) + '\n'
  )
  for path in (tmp_path / 'data').glob('*.png'):
    path.rename(tmp_path / 'alone' / path.name)
    (tmp_path / 'data' / path.name).symlink_to(tmp_path / 'alone' / path.name)
  binary = {k: v for k, v in changes.items() if OPTIONS[k].levels == 'tags'}
  target = {k: v for k, v in changes.items() if k not in binary}
  weights = {'loss.weights': 'article=.5'}
  both = setup.build(
    options(tmp_path / 'data', **changes, **{'loss.weights': 'article=.5,colour=2'})
  )
  exclusive = setup.build(options(tmp_path / 'data', **target, **weights, **{'data.multi': ''}))
  multiple = setup.build(
    options(tmp_path / 'alone', **binary, **{'loss.weights': 'colour=2', 'train.best': 'loss'})
  )
  rng, n = np.random.default_rng(0), len(both.train.labels)
  maps = {
    level: rng.normal(size=(16, both.taxonomy.num_classes(level))).astype(np.float32)
    for level in both.levels
  }
  features = rng.normal(size=(n, 16)).astype(np.float32)

  def members(run, columns):
    def head(x, train):
      return {level: x @ maps[level] + 0.1 * train for level in run.levels}

    shares, out = objective(
      head, features, jnp.asarray(columns, jnp.int32), run.task, run.phases[0], ({}, {})
    )
    return {
      k: float(v)
      for k, v in {**shares, **{k: v for k, v in out.items() if k.startswith('acc/')}}.items()
    }, float(out['loss'])

  (selected, total), (a, x), (b, y) = (
    members(run, rows_of(run)) for run in (both, exclusive, multiple)
  )
  assert (
    selected == pytest.approx(a | b, rel=1e-6)
    and total == pytest.approx(x + y, rel=1e-6)
    and set(selected) == {*a, *b}
  )
  logits = {level: features @ maps[level] for level in both.levels}
  probs = {
    level: np.asarray((jax.nn.sigmoid if level == 'colour' else jax.nn.softmax)(z), np.float64)
    for level, z in logits.items()
  }

  def val(run):
    own_probs = {level: probs[level] for level in run.levels}
    outputs = collect.Outputs(own_probs, None, rows_of(run), None, [])
    return summary.loss(outputs, run.taxonomy, run.task.weights)

  assert val(both) == pytest.approx(val(exclusive) + val(multiple))


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'loss.binary': 'focal', 'loss.smoothing': 0.1}, ''),
    ({'train.best': 'map/colour'}, ''),
    ({'train.best': 'joint_fpa'}, ''),
    ({'train.best': 'map/finest'}, ''),
    ({'data.balance': 'sample', 'data.balance_level': 'coarsest'}, ''),
    ({'data.unlabelled': 0.3, 'data.partial': 'drop'}, ''),
    ({'model.levels': 'category,colour', 'train.best': 'top1/category'}, ''),
    ({'model.heads': 'residual'}, ''),
    (
      {'train.best': 'top1/colour'},
      'choices: loss, top1/category, top1/article, fpa, hvr, joint_fpa, map/colour, '
      'micro_map/colour, f1/colour',
    ),
    ({'model.levels': 'article'}, 'each of the multi levels needs a head: colour'),
    ({'model.levels': 'colour'}, 'names no exclusive level; choices: category, article'),
    (
      {'data.hold_out': 'disc'},
      r'data\.hold_out=disc: only classes of exclusive levels can be held out; leave colour',
    ),
    (
      {'data.multi': 'all', 'loss.smoothing': 0.1},
      r'smoothing=0\.1 is for exclusive levels; --config\.data\.multi=all has none, '
      'as category, article are multi',
    ),
  ],
)
def test_options(tmp_path, changes, message):
  draw(tmp_path / 'data', 24)
  if message:
    with pytest.raises(UserError, match=message):
      setup.build(options(tmp_path / 'data', **changes))
  else:
    run = setup.build(options(tmp_path / 'data', **changes))
    assert (
      run.best in ('top1/article', 'map/colour', 'joint_fpa', 'top1/category')
      and 'colour' in run.levels
    )


def test_flat_heads_are_one_on_the_exclusive_levels(tmp_path):
  run = setup.build(options(draw(tmp_path / 'data', 24), **{'model.heads': 'flat'}))
  assert run.levels == ('article', 'colour') and run.taxonomy.levels == (
    'category',
    'article',
    'colour',
  )
  short = setup.build(
    options(tmp_path / 'data', **{'model.levels': 'category,colour', 'train.best': 'loss'})
  )
  assert (
    short.taxonomy.levels == ('category', 'colour')
    and short.train.labels.shape == (16, 1)
    and (short.train.labels >= 0).all()
  )


def command(*args, code=0):
  output = run_main(*args)
  assert output.code == code and 'Traceback' not in output.err, output
  return output.out, output.err


def test_beside_from_the_command_line(tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', os.environ['HIERJAX_TEST_CACHE'])
  data, run = draw(tmp_path / 'data'), tmp_path / 'run'
  c = (
    f'--config={tiny.__file__}',
    '--config.data.source=csv',
    f'--config.data.root={data}',
    '--config.data.multi=colour',
    '--config.train.best=map/colour',
    '--config.data.augment.enabled=false',
    '--config.train.steps=60',
    '--config.train.eval_steps=30',
    '--config.optim.lr=1e-2',
    '--config.baseline=train',
  )
  with monkeypatch.context() as patch:
    tiny.leave_out_report(patch)  # it is made below
    out, output = command(*c, '--json', f'--workdir={run}')
  result = json.loads(out.splitlines()[-1])
  assert set(result['decode']) == {'independent', 'leaf', 'joint'} and set(
    result['decode']['joint']['levels']
  ) == {'category', 'article'}
  assert (
    set(result['multi']) == {'colour'}
    and result['heads'] == ['category', 'article', 'colour']
    and result['hvr'] == {'single': 0, 'decided': 0}
  )
  assert (
    re.search(r'val, 32 images, joint: category \S+ article', output)
    and 'val, 32 images, colour: mAP macro' in output
  )
  assert (
    result['decode']['joint']['levels']['article']['top1'] > 0.6
    and result['multi']['colour']['map_macro'] > 0.6
  )  # it learns both
  remaining = json.loads((run / 'decode.json').read_text())
  assert (
    set(remaining)
    == {
      *('split', 'weights', 'temperature', 'temperature_examples', 'gain', 'gain_error'),
      'thresholds',
    }
    and set(remaining['weights']) == {'category', 'article'}
    and set(remaining['thresholds']['colour']) == {*COLOURS}
  )
  assert (run / 'taxonomy.csv').read_text().splitlines()[-3:] == [',,blue', ',,green', ',,red']
  last = [
    json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines() if '"val"' in line
  ][-1]
  assert {
    'loss',
    'top1/category',
    'top1/article',
    'fpa',
    'hvr',
    'joint_fpa',
    'map/colour',
    'micro_map/colour',
    'f1/colour',
  } <= last.keys()
  out, _ = command('--mode=evaluate', f'--workdir={run}', '--split=val')
  repeated = json.loads(out.splitlines()[-1])
  assert repeated['decode'] == result['decode'] and repeated['multi'] == result['multi']
  out, _ = command('--mode=predict', f'--workdir={run}', f'--images={data}/*.png')
  lines = [json.loads(line) for line in out.splitlines()]
  with np.load(run / 'predictions_val.npz') as archive:
    results = dict(archive)
  assert (
    results['labels'].shape == results['pred_joint'].shape == (32, 2)
    and results['multi_pred'].shape == (32, 3)
    and 'top_1' in results
    and 'top_2' not in results
  )
  place = {name: i for i, name in enumerate(results['files'].tolist())}
  articles = [row.split(',')[1] for row in BESIDE.splitlines()[1:]]
  records = 0
  for line in lines:
    assert set(line) == {'file', 'path', 'prob', 'top', 'classes'} and set(line['path']) == set(
      line['top']
    ) == {'category', 'article'}
    assert set(line['prob']) == {'category', 'article', 'colour'} and set(
      line['prob']['colour']
    ) == {*COLOURS}
    if (i := place.get(pathlib.Path(line['file']).name)) is not None:
      records += 1
      assert line['path']['article'] == articles[results['pred_joint'][i, 1]]
      assert line['classes']['colour'] == [
        n for n, yes in zip(COLOURS, results['multi_pred'][i]) if yes
      ]
  assert records == 32
  assert not (run / 'explain_val.npz').exists()
  command('--mode=report', f'--workdir={run}', f'--config.data.root={data}')
  page = (run / 'report.html').read_text()
  assert 'could not be made' not in page and (run / 'explain_val.npz').exists()
  for section in (
    'verdict',
    'scores',
    'labels',
    'curves',
    'confusion',
    'gallery',
    'calibration',
    'tree',
    'taxonomy',
  ):
    assert f'id="{section}"' in page, section
  for text in (
    'with 3 heads (category, article and colour)',
    'mAP, the mean over its 3 classes',
    'the weights of joint decoding and the thresholds; so expect slightly lower scores',
  ):
    assert text in page, text
  assert runs.read(run).baseline.heads == ('article', 'colour')
  _, output = command(
    *c, f'--workdir={run}', '--config.data.multi=', '--config.train.best=loss', code=2
  )
  assert "data.multi: ('colour',) -> ()" in output
  # of other data, the level that their taxonomy lacks has the model's classes
  (data / 'labels.csv').write_text(
    'file,split,article,colour\n0.png,test,disc,red\n1.png,test,ring,-\n'
  )
  out, _ = command('--mode=evaluate', f'--workdir={run}', '--split=test')
  assert json.loads(out.splitlines()[-1])['multi']['colour']['n'] == 2


def test_below_never_contradicts(tmp_path, no_report):
  data, run = draw(tmp_path / 'data'), tmp_path / 'run'
  lines = [line.split(',') for line in (data / 'labels.csv').read_text().splitlines()]
  shape = {'disc': 'disc', 'ring': 'disc', 'square': 'square', 'frame': 'square', '': ''}

  def label(kind, colours):
    pairs = [f'{kind} {x}' for x in colours.split('|') if x in ('blue', 'green')]
    tags = [pair for pair in pairs if pair in BELOW] + ['red'] * ('red' in colours)
    return '|'.join(tags) or '-'

  (data / 'labels.csv').write_text(
    'file,split,kind,tag\n'
    + ''.join(
      f'{f},{s},{shape[a]},{label(shape[a], x) if shape[a] else ""}\n'
      for f, s, _, a, x in lines[1:]
    )
  )
  (data / 'taxonomy.csv').write_text(BELOW)
  c = options(
    data,
    **{
      'data.multi': 'tag',
      'train.best': 'loss',
      'balance.name': 'pcgrad',
      'model.heads': 'prototypes',
    },
  )
  result = fit.fit(c, run)
  assert result['hvr']['decided'] == 0 and set(result['multi']) == {'tag'}
  model = load(run)
  t, under = model.taxonomy, {'disc blue': 'disc', 'disc green': 'disc', 'square blue': 'square'}
  for thresholds in (model.rules['tags'], {'tag': np.zeros(4)}):  # the second: every tag
    model.rules['tags'] = thresholds
    for line in model.predict([str(p) for p in sorted(data.glob('*.png'))[:24]]):
      assert all(
        under.get(tag, line['path']['kind']) == line['path']['kind']
        for tag in line['classes']['tag']
      )
      kinds = dict(line['top']['kind'])
      assert all(p <= kinds[under[tag]] for tag, p in line['prob']['tag'].items() if tag in under)
      assert thresholds['tag'].any() or set(line['classes']['tag']) == {
        tag for tag in t.tags.names[0] if under.get(tag, '') in ('', line['path']['kind'])
      }
  model.rules['tags'] = {'tag': np.zeros(4)}
  loose = model.evaluate('val', into=tmp_path)['hvr']
  assert loose == {'single': 1, 'decided': 0}
  html = page.write(run).read_text()
  assert (
    'could not be made' not in html
    and 'joint decision contains the exclusive classes above it' in html.replace('\n', ' ')
    and 'id="embedding"' in html
  )
  with pytest.raises(UserError, match=r'has multi levels \(tag\); only runs on exclusive levels'):
    migrate.migrate(
      run,
      str(table(tmp_path / 'new', 'file,kind\n', 'kind\ndisc\nsquare\n') / 'taxonomy.csv'),
      tmp_path / 'moved',
      run_config(run),
    )
  (data / 'taxonomy.csv').write_text(BELOW.replace('square,square blue', 'square,\n,square blue'))
  with pytest.raises(UserError, match=r'holds a run on another taxonomy .*tag below other classes'):
    fit.fit(c, run)


def test_novelty_of_the_exclusive_levels(tmp_path, no_report):
  run = tmp_path / 'run'
  fit.fit(options(draw(tmp_path / 'data'), **{'decide.novelty': 0.1}), run)
  model = load(run)
  results = json.loads((run / 'eval_val.json').read_text())['novelty']
  assert set(results['levels']) == {'category', 'article'} and (run / 'novelty.npz').exists()
  (line,) = model.predict([str(tmp_path / 'data/0.png')])
  assert (
    set(line['novelty']) == {'category', 'article'}
    and 'new' in line
    and 'colour' in line['classes']
  )
