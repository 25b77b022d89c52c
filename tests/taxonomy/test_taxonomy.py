"""The path table against naive loops, on random trees, facets and branches that end early."""

import itertools
import pathlib
import pickle
import random
import time

import numpy as np
import pytest
from scipy.special import logsumexp

from hierjax.core.errors import UserError
from hierjax.taxonomy import Taxonomy, close_matches, describe_difference, read_taxonomy

DATA = pathlib.Path(__file__).resolve().parents[3] / 'shared' / 'data'
BIRDS = [
  ['Accipitriformes', 'Accipitridae', 'Buteo buteo'],
  ['Gaviiformes', '', ''],
  ['Passeriformes', 'Corvidae', 'Corvus corax'],
  ['Passeriformes', 'Corvidae', 'Pica pica'],
  ['Passeriformes', 'Paridae', ''],
]


def make(kind, seed):
  """A random taxonomy: a tree, facets, or a tree of which some branches end early."""
  r = random.Random(seed)
  rows = []
  if kind == 'facets':
    for i in range(r.randint(1, 25)):
      rows.append([f'm{r.randrange(5)}', f't{r.randrange(3)}', f'x{i}'])
    return Taxonomy.from_rows(('make', 'type', 'model'), rows)
  depth = r.randint(1, 4)

  def grow(prefix):
    if len(prefix) == depth or (kind == 'early' and prefix and r.random() < 0.3):
      rows.append(prefix + [''] * (depth - len(prefix)))
      return
    for i in range(r.randint(1, 3)):
      grow([*prefix, f'{prefix[-1] if prefix else "c"}{i}'])

  grow([])
  r.shuffle(rows)
  return Taxonomy.from_rows([f'level{k}' for k in range(depth)], rows)


RANDOM = [make(kind, seed) for kind in ('tree', 'facets', 'early') for seed in range(12)]


def write(path, text, **kw):
  path.write_bytes(text.encode(kw.pop('encoding', 'utf-8')))
  return path


def test_ids_follow_the_file_and_early_ends_are_carried():
  t = Taxonomy.from_rows(('order', 'family', 'species'), BIRDS)
  assert t.names[0] == ('Accipitriformes', 'Gaviiformes', 'Passeriformes')
  assert t.names[1] == ('Accipitridae', 'Corvidae', 'Gaviiformes', 'Paridae')
  assert t.names[2] == ('Buteo buteo', 'Gaviiformes', 'Corvus corax', 'Pica pica', 'Paridae')
  assert t.paths.dtype == np.int32 and t.paths.tolist() == [
    [0, 0, 0],
    [1, 2, 1],
    [2, 1, 2],
    [2, 1, 3],
    [2, 3, 4],
  ]
  assert t.depth.tolist() == [3, 1, 3, 3, 2]
  assert t.carried('order').tolist() == [False] * 3
  assert t.carried('family').tolist() == [False, False, True, False]
  assert t.carried('species').tolist() == [False, True, False, False, True]
  assert t.rows() == BIRDS
  assert t.num_classes('family') == 4 and t.index('species') == 2


@pytest.mark.parametrize('t', RANDOM, ids=repr)
def test_relations_against_loops(t):
  assert (t.paths[:, -1] == np.arange(len(t.paths))).all()
  for a, b in itertools.product(t.levels, repeat=2):
    i, j = t.index(a), t.index(b)
    pairs = {(p[i], p[j]) for p in t.paths.tolist()}
    assert list(map(tuple, t.pairs(a, b))) == sorted(pairs)
    x, y = np.indices((t.num_classes(a), t.num_classes(b))).reshape(2, -1)
    occurs = t.occur_together(a, b, x, y)
    assert occurs.tolist() == [pair in pairs for pair in zip(x.tolist(), y.tolist())]
    related = [list(classes) for classes in t.related(a, b)]
    assert related == [sorted(y for x, y in pairs if x == c) for c in range(t.num_classes(a))]
    for c, parent in enumerate(t.parents(a, b)):
      above = {y for x, y in pairs if x == c}
      assert parent == (above.pop() if len(above) == 1 else -1)
    assert t.nests(a, b) == (len(pairs) == t.num_classes(a))
  heights = {}
  for x, y in itertools.product(range(len(t.paths)), repeat=2):
    heights[x, y] = sum(p != q for p, q in zip(t.paths[x], t.paths[y]))
    assert t.lca(x, y) == heights[x, y]
  assert t.height() == max(heights.values())
  for k, level in enumerate(t.levels):
    carried = {p[k] for p, d in zip(t.paths.tolist(), t.depth) if d <= k}
    assert set(np.flatnonzero(t.carried(level))) == carried


def test_lca_height_is_that_of_the_ancestor_in_a_tree():
  t = make('tree', 3)
  for x, y in itertools.product(range(len(t.paths)), repeat=2):
    common = next(
      (k for k in range(len(t.levels) - 1, -1, -1) if t.paths[x, k] == t.paths[y, k]), -1
    )
    assert t.lca(x, y) == len(t.levels) - 1 - common


def test_the_largest_lca_height_where_no_two_leaves_differ_at_all_levels():
  rows = [['a', 'x', 'p', '1'], ['a', 'y', 'q', '2'], ['b', 'x', 'q', '3']]
  assert Taxonomy.from_rows(('one', 'two', 'three', 'leaf'), rows).height() == 3
  assert Taxonomy.from_rows(('all', 'leaf'), [['a', '1']]).height() == 0
  assert Taxonomy.from_rows(('all', 'leaf'), [['a', '1'], ['a', '2']]).height() == 1


def test_values_of_leaves_are_merged_as_a_loop_does():
  """Of few and of many finer classes, in both orders of memory."""
  rng = np.random.default_rng(0)
  rows = [[f'a{i // 29}', f'b{min(i, 30) // 3}', f'c{i}'] for i in rng.permutation(70)]
  for t in (*RANDOM, Taxonomy.from_rows(('a', 'b', 'c'), rows)):
    values = rng.normal(size=(5, len(t.paths)))
    for function, loop in ((np.add, np.sum), (np.maximum, np.max), (np.logaddexp, logsumexp)):
      for x in (values, np.asfortranarray(values)):
        for k, merged in enumerate(t.merge(x, function)):
          classes = [loop(x[:, t.paths[:, k] == c], axis=1) for c in range(len(t.names[k]))]
          np.testing.assert_allclose(merged, np.stack(classes, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('t', RANDOM, ids=repr)
def test_csv_out_is_csv_in(t, tmp_path):
  t.to_csv(tmp_path / 'a.csv')
  u = read_taxonomy(tmp_path / 'a.csv')
  assert (
    u.names == t.names
    and u.levels == t.levels
    and (u.paths == t.paths).all()
    and (u.depth == t.depth).all()
  )
  assert u.hash() == t.hash() and describe_difference(t, u) == ''
  u.to_csv(tmp_path / 'b.csv')
  assert (tmp_path / 'a.csv').read_bytes() == (tmp_path / 'b.csv').read_bytes()
  assert pickle.loads(pickle.dumps(t)).hash() == t.hash()


def test_csv_as_spreadsheets_write_it(tmp_path):
  text = '\ufeffmake , model\r\n"Audi","TT, the ""first"""\r\n\r\n Audi ,  A5 \r\nBMW\r\n,\r\n'
  t = read_taxonomy(write(tmp_path / 't.csv', text))
  assert (
    t.levels == ('make', 'model')
    and t.names == (('Audi', 'BMW'), ('TT, the "first"', 'A5', 'BMW'))
    and t.depth.tolist() == [2, 2, 1]
  )


@pytest.mark.parametrize(
  'text, row, words',
  [
    ('', 1, 'is empty'),
    ('a,b\n', 1, 'no class'),
    ('a,a\nx,y\n', 1, "'a' occurs twice"),
    ('a,\nx,y\n', 1, 'column 2 of the header has no name'),
    ('file,model\nx,y\n', 1, 'labels.csv'),
    ('Audi,A5\nAudi,TT\n', 1, 'header is missing'),
    ('a,b\nx,y\nx,z\nw,y\n', 4, "b 'y' stands under 'w' here and under 'x' in row 2"),
    ('a,b\nx,y\nx,z\n\n"x","y"\n', 5, 'repeats row 2'),
    ('a,b,c\nx,y,z\nx,,w\n', 3, "b is empty before c 'w'"),
    ('a,b\n,y\n', 2, 'a is empty'),
    ('a,b,c\nx,,\nx,y,z\n', 2, "a 'x' ends here but goes on in row 3"),
    ('a,b,c\nx,y,z\nv,y,\n', 3, "b 'y' ends here but goes on in row 2"),
    ('a,b,c\nx,,\nv,x,z\n', 2, "a 'x' ends here, and b of row 3 has the same name"),
    ('a,b\nx,y,z\n', 2, 'double quotes'),
    ('a,b\nx,"y\nz"\nx,w\nx,w\n', 5, 'repeats row 4'),
  ],
)
def test_errors_name_file_and_row(tmp_path, text, row, words):
  path = write(tmp_path / 'taxonomy.csv', text)
  with pytest.raises(UserError) as e:
    read_taxonomy(path)
  assert (
    str(e.value).startswith(f'{path}:{row}: ')
    and words in str(e.value)
    and '\n' not in str(e.value)
  )


def test_files_that_are_no_text(tmp_path):
  with pytest.raises(UserError, match='cannot be read'):
    read_taxonomy(tmp_path / 'none.csv')
  with pytest.raises(UserError, match='UTF-8'):
    read_taxonomy(write(tmp_path / 'l.csv', 'a,b\nx,\0\u20ac\n', encoding='cp1252'))


def test_encode_names_the_close_ones():
  t = Taxonomy.from_rows(('make', 'model'), [['Audi', 'A5 Coupe'], ['BMW', 'X5 SUV']])
  assert t.encode({'make': 'BMW', 'model': 'A5 Coupe'}).tolist() == [1, 0]
  assert t.encode({'model': ' ', 'make': ' Audi '}).tolist() == [0, -1] and t.encode(
    {}
  ).tolist() == [-1, -1]
  with pytest.raises(
    UserError,
    match=r"labels.csv:7: model 'a5 coup' is not in the taxonomy; did you mean 'A5 Coupe'\?",
  ):
    t.encode({'model': 'a5 coup'}, 'labels.csv:7')
  with pytest.raises(UserError, match='it has 2 classes'):
    t.encode({'make': 'zzzzzzzz'})
  with pytest.raises(UserError, match="no level 'year'; the levels are make, model"):
    t.index('year')
  assert close_matches('SEDAN', ['Sedan', 'Coupe']) == ['Sedan']


def partial_labels(t, seed, n=60):
  r = np.random.default_rng(seed)
  rows = t.paths[r.integers(len(t.paths), size=n)].copy()
  rows[r.random(rows.shape) < 0.5] = -1
  wrong = r.random(n) < 0.2
  k = r.integers(len(t.levels), size=n)
  rows[wrong, k[wrong]] = [r.integers(len(t.names[j])) for j in k[wrong]]
  return rows


@pytest.mark.parametrize('t', RANDOM, ids=repr)
def test_valid_and_complete_against_all_leaves(t):
  labels = partial_labels(t, len(t.paths))
  valid, full = t.valid(labels), t.complete(labels)
  for row, is_valid, completed in zip(labels, valid, full):
    fits = [p for p in t.paths.tolist() if all(a in (-1, b) for a, b in zip(row, p))]
    assert is_valid == bool(fits)
    assert (completed[row >= 0] == row[row >= 0]).all()
    if not fits:
      continue
    expected = row.tolist()
    for p, d in zip(t.paths.tolist(), t.depth):
      # This branch has ended: one leaf is left.
      if any(c == p[k] and d <= k + 1 for k, c in enumerate(row)):
        for k in range(d, len(row)):
          expected[k] = expected[k] if expected[k] >= 0 else p[k]
    for k in range(len(row)):
      finer = expected[k + 1 :]
      classes = set()
      if max(finer, default=-1) >= 0:
        classes = {
          p[k] for p in t.paths.tolist() if all(a in (-1, b) for a, b in zip(finer, p[k + 1 :]))
        }
      implied = min(classes) if len(classes) == 1 else -1
      assert completed[k] == (expected[k] if expected[k] >= 0 else implied)
  assert (t.complete(full) == full).all()
  assert (
    (t.complete(t.paths) == t.paths).all()
    and t.valid(t.paths).all()
    and len(t.complete(labels[:0])) == 0
  )


def test_complete_fills_below_a_branch_that_ended():
  t = Taxonomy.from_rows(('order', 'family', 'species'), BIRDS)
  e = [
    t.encode(r)
    for r in (
      {'order': 'Gaviiformes'},
      {'family': 'Paridae'},
      {'family': 'Corvidae'},
      {'order': 'Passeriformes'},
      {},
    )
  ]
  assert t.complete(np.array(e)).tolist() == [
    [1, 2, 1],
    [2, 3, 4],
    [2, 1, -1],
    [2, -1, -1],
    [-1, -1, -1],
  ]


def test_facets_together_determine_what_neither_does():
  t = Taxonomy.from_rows(
    ('region', 'shape', 'colour', 'item'),
    [['N', 'round', 'red', '1'], ['S', 'round', 'blue', '2'], ['S', 'flat', 'red', '3']],
  )
  row = np.array([t.encode({'shape': 'round', 'colour': 'red'}), t.encode({'shape': 'round'})])
  assert t.complete(row)[:, 0].tolist() == [0, -1]


def test_coarsen_keeps_ids_and_what_is_determined():
  t = Taxonomy.from_rows(('order', 'family', 'species'), BIRDS)
  c = t.coarsen('family')
  assert (
    c.names[-1] == t.names[1]
    and c.levels == ('order', 'family')
    and (c.paths[t.paths[:, 1]] == t.paths[:, :2]).all()
  )
  assert c.rows()[2] == ['Gaviiformes', '']
  cars = Taxonomy.from_rows(
    ('make', 'type', 'model'), [['A', 'S', '1'], ['A', 'C', '2'], ['B', 'S', '3']]
  )
  assert cars.coarsen('type').levels == ('type',) and cars.coarsen('type').names == (('C', 'S'),)
  assert cars.coarsen('model').hash() == cars.hash()
  odd = Taxonomy.from_rows('abcd', [['p', 'q', '', ''], ['p', 'r', 's', 't'], ['p', 'u', 's', 'v']])
  assert odd.coarsen('c').rows() == [
    ['p', 'q'],
    ['p', 's'],
  ]  # b is dropped (s comes with r and u), q stays a class of c


@pytest.mark.parametrize('t', RANDOM, ids=repr)
def test_coarsen_every_level(t):
  for k, level in enumerate(t.levels):
    c = t.coarsen(level)
    assert c.names[-1] == t.names[k]
    for name in c.levels:
      assert (c.paths[t.paths[:, k], c.index(name)] == t.paths[:, t.index(name)]).all() or c.names[
        c.index(name)
      ] != t.names[t.index(name)]


def test_hash_and_diff_tell_every_change():
  rows = [['A', 'x'], ['A', 'y'], ['B', 'z']]
  t = Taxonomy.from_rows(('make', 'model'), rows)
  others = {
    'only there: w': [*rows, ['B', 'w']],
    'only here: z': rows[:2],
    'moved: y (A / y against B / y)': [rows[0], ['B', 'y'], rows[2]],
    'another order': rows[::-1],
  }
  for words, changed in others.items():
    u = Taxonomy.from_rows(('make', 'model'), changed)
    assert words in describe_difference(t, u) and u.hash() != t.hash()
  assert 'levels make, model against brand, model' in describe_difference(
    t, Taxonomy.from_rows(('brand', 'model'), rows)
  )
  early = Taxonomy.from_rows(('a', 'b'), [['x', 'x'], ['y', '']])
  assert early.hash() != Taxonomy.from_rows(('a', 'b'), [['x', 'x'], ['y', 'y']]).hash()


def test_ten_thousand_classes_are_quick():
  start = time.process_time()
  t = Taxonomy.from_rows('abc', [[f'a{i // 100}', f'b{i // 10}', f'c{i}'] for i in range(10_000)])
  labels = t.paths[np.random.default_rng(0).integers(10_000, size=20_000)].copy()
  full = labels.copy()
  labels[:, 0] = -1
  labels[::2, 2] = -1
  full[::2, 2] = -1
  assert (t.complete(labels) == full).all() and t.valid(labels).all()
  assert time.process_time() - start < 10


@pytest.mark.skipif(not DATA.exists(), reason='needs the shared data')
def test_stanford_cars():
  t = read_taxonomy(DATA / 'stanford_cars' / 'taxonomy.csv')
  assert repr(t) == 'Taxonomy(make 49, type 9, model 196)'
  assert len(t.pairs('make', 'type')) == 107
  assert (np.bincount(t.paths[:, 0]) == 1).sum() == 19
  assert t.nests('model', 'make') and t.nests('model', 'type') and not t.nests('type', 'make')
