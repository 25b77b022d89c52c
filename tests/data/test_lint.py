"""A clean set of files lints clean; each planted fault is found in its row, and nothing else."""

import functools
import hashlib
import io
import itertools
import json
import pathlib
import random
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from hierjax.core.config import default
from hierjax.data.lint import check, inspect
from hierjax.data.lint_taxonomy import find_cycles
from hierjax.data.near_duplicates import edit_distance, near_duplicates

DATA = pathlib.Path(__file__).resolve().parents[3] / 'shared' / 'data'
TAXONOMY = [
  'make,type,model',
  'Audi,Sedan,Audi A4',
  'Audi,Coupe,Audi TT',
  'BMW,Sedan,BMW 328i',
  'BMW,Coupe,BMW M6',
  'BMW,SUV,BMW X5',
  'Jeep,SUV,Wrangler',
  'Jeep,Sedan,Compass',
  'Audi,SUV,Audi Q7',
  'Jeep,Coupe,Patriot',
  'Audi,Sedan,Audi Premier',
]


def options(**changes):
  c = default().data
  c.update({name: str(v) if isinstance(v, pathlib.Path) else v for name, v in changes.items()})
  return c


def lint(taxonomy='', root='', images=True, sample=None, **changes):
  return check(options(taxonomy=taxonomy, root=root, **changes), images, sample=sample)


def encode(seed, fmt='JPEG', **kw):
  pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), np.uint8)
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, fmt, **kw)
  return out.getvalue()


@pytest.fixture
def clean(tmp_path):
  """Two images of every model, one in train (row 2, 4, ...) and one in val; writes and lints."""
  labels = ['file,split,make,type,model']
  (tmp_path / 'images').mkdir()
  for i, line in enumerate(TAXONOMY[1:]):
    for j, split in enumerate(('train', 'val')):
      name = f'images/{2 * i + j:02d}.jpg'
      (tmp_path / name).write_bytes(encode(2 * i + j))
      labels.append(f'{name},{split},{line}')

  def run(taxonomy=TAXONOMY, labels=labels, root=tmp_path, **kw):
    root.mkdir(exist_ok=True)
    (root / 'taxonomy.csv').write_text('\n'.join(taxonomy))
    (root / 'labels.csv').write_text('\n'.join(labels))
    report = lint(root=root, **kw)
    json.dumps(report.summary, allow_nan=False)
    return report

  run.root, run.labels = tmp_path, labels
  return run


def places_of(report):
  """{(severity, file:row, kind)} with the file's name only."""
  return {(p.severity, pathlib.Path(p.where).name, p.kind) for p in report.problems}


def changed(lines, row, text):
  """The lines with row (as an editor counts) replaced, or appended where there is none."""
  return [
    text if i == row else line
    for i, line in enumerate([*lines, *([''] if row > len(lines) else [])], 1)
  ]


def test_clean_is_clean(clean):
  report = clean()
  assert report.problems == []
  assert report.summary['levels'] == {'make': 3, 'type': 3, 'model': 10} and report.summary[
    'splits'
  ] == {'train': 10, 'val': 10}
  assert report.summary['pairs'] == {
    'make-type': {'pairs': 9, 'kind': 'facets'},
    'make-model': {'pairs': 10, 'kind': 'nested'},
    'type-model': {'pairs': 10, 'kind': 'nested'},
  }
  assert report.summary['files'] == {'named': 20, 'missing': 0, 'unreadable': 0}
  text = report.text()
  assert (
    '3 makes, 3 types, 10 models' in text
    and '9 make-type pairs occur of 9' in text
    and text.endswith('\n0 errors, 0 warnings, 0 notes')
  )


@pytest.mark.parametrize(
  'row, line, kind, words',
  [
    (
      12,
      'BMW,Sedan,Audi A4',
      'two parents',
      "under 'BMW / Sedan' here and under 'Audi / Sedan' in row 2",
    ),
    (12, 'Audi,Sedan,Audi A4', 'duplicate row', 'repeats row 2'),
    (12, 'BMW,,BMW 5', 'gap', "type is empty before model 'BMW 5'"),
    (12, 'BMW,Sedan,', 'ends and goes on', "type 'Sedan' ends here but goes on in row 2"),
  ],
)
def test_rows_that_are_no_taxonomy(clean, row, line, kind, words):
  report = clean(taxonomy=changed(TAXONOMY, row, line))
  assert places_of(report) == {('error', f'taxonomy.csv:{row}', kind)}
  assert words in report.text()


@pytest.mark.parametrize(
  'text, words',
  [
    ('', 'is empty'),
    ('make,make\na,b\n', 'twice'),
    ('file,split,make\na,train,b\n', 'labels.csv'),
    ('make,model\n', 'no class'),
  ],
)
def test_tables_that_cannot_be_read(tmp_path, text, words):
  (tmp_path / 't.csv').write_text(text)
  report = lint(tmp_path / 't.csv')
  assert [(p.severity, p.where) for p in report.problems] == [
    ('error', f'{tmp_path}/t.csv:1')
  ] and words in report.text()
  assert report.text().endswith('1 error, 0 warnings, 0 notes')
  absent = lint(tmp_path / 'none.csv')
  assert (
    absent.problems[0].where == str(tmp_path / 'none.csv') and 'cannot be read' in absent.text()
  )


def test_a_relative_path_reads_well(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 't.csv').write_text('a,a\n')
  assert lint('./t.csv').problems[0].where == 't.csv:1'


def problems_of(tmp_path, lines):
  (tmp_path / 't.csv').write_text('\n'.join(lines))
  return [
    (p.severity, p.kind, int(p.where.rsplit(':', 1)[1]), p.text)
    for p in lint(tmp_path / 't.csv').problems
    if p.severity == 'error'
  ]


def test_two_parents_in_a_tree_but_not_in_facets(tmp_path):
  tree = ['order,family,species'] + [f'o{i // 4},f{i // 2},s{i}' for i in range(16)]
  assert problems_of(tmp_path, tree) == []
  assert problems_of(tmp_path, [*tree, 'o3,f0,s99']) == []
  [warning] = [p for p in lint(tmp_path / 't.csv').problems if p.severity == 'warning']
  assert warning.kind == 'homonyms' and warning.text == (
    "family 'f0' stands under several classes and is read as 2: o0/f0, o3/f0 "
    '(one class: data.homonyms=merge)'
  )
  [problem] = lint(tmp_path / 't.csv', homonyms='merge').problems[:1]
  assert (problem.kind, problem.where) == ('two parents', f'{tmp_path}/t.csv:18')
  assert problem.text == "family 'f0' stands under 2 orders: 'o0' (row 2), 'o3' (row 18)"
  facets = ['make,type,model'] + [f'm{i % 4},t{i % 3},x{i}' for i in range(12)]
  assert problems_of(tmp_path, facets) == []
  swapped = ['type,make,model'] + [f't{i % 3},m{i % 4},x{i}' for i in range(12)]
  assert problems_of(tmp_path, swapped) == []
  most_have_one_model = (
    ['type,make,model']
    + [f't{i % 3},m{i % 4},x{i}' for i in range(12)]
    + [f't0,n{i},y{i}' for i in range(6)]
  )
  assert problems_of(tmp_path, most_have_one_model) == []
  # A facet between two levels of a tree does not hide the mistake.
  between = (
    ['order,size,family,species']
    + [f'o{i // 8},z{i % 2},f{i // 4},s{i}' for i in range(32)]
    + ['o3,z0,f0,s99']
  )
  assert problems_of(tmp_path, between) == []
  [warning] = [p for p in lint(tmp_path / 't.csv').problems if p.severity == 'warning']
  assert 'read as 2: o0/f0, o3/f0' in warning.text


def test_cycles(tmp_path):
  kinds = [
    (kind, row) for _, kind, row, _ in problems_of(tmp_path, ['a,b,c', 'X,Y,1', 'Y,X,2', 'Z,W,3'])
  ]
  assert kinds == [('cycle', 3)]
  [(_, kind, row, text)] = problems_of(tmp_path, ['a,b,c', 'X,Y,1', 'Y,Z,2', 'Z,X,3', 'V,W,4'])
  assert (kind, row) == ('cycle', 4) and all(
    f'{a!r} above {b!r}' in text for a, b in ('XY', 'YZ', 'ZX')
  )
  colours = ['first,second,item'] + [
    f'{a},{b},{a}{b}' for a, b in itertools.permutations(('red', 'green', 'blue'), 2)
  ]
  assert problems_of(tmp_path, colours) == []  # facets that share names: no one is above


@pytest.mark.parametrize('seed', range(20))
def test_cycles_against_strong_components(seed):
  r = random.Random(seed)
  n, edges = 12, set()
  while len(edges) < 13:
    a, b = r.sample(range(12), 2)
    edges.add((a, b))
  graph = csr_array((np.ones(len(edges)), tuple(zip(*edges))), shape=(n, n))
  _, label = connected_components(graph, connection='strong')
  rows = [(i, [str(a), str(b)]) for i, (a, b) in enumerate(sorted(edges), 2)]
  texts = [text for text, _ in find_cycles(rows, {(0, 1)})]
  cyclic = {c for c in label if (label == c).sum() > 1}
  mentioned = {
    label[int(word.strip("'"))] for text in texts for word in text.split() if word.startswith("'")
  }
  assert mentioned == cyclic
  for text in texts:  # every step that is told is a row
    for step in text.removeprefix('is its own ancestor: ').split(', '):
      a, _, b, _, row = step.split()
      assert dict(rows)[int(row.rstrip(')'))] == [a.strip("'"), b.strip("'")]


@functools.cache
def slow_distance(a, b):
  if not a or not b:
    return len(a) + len(b)
  swap = (
    [slow_distance(a[2:], b[2:]) + 1]
    if len(a) > 1 and len(b) > 1 and a[0] == b[1] and a[1] == b[0]
    else []
  )
  return min(
    [
      slow_distance(a[1:], b) + 1,
      slow_distance(a, b[1:]) + 1,
      slow_distance(a[1:], b[1:]) + (a[0] != b[0]),
      *swap,
    ]
  )


def test_edit_distance_against_recursion():
  r = random.Random(0)
  for _ in range(300):
    a, b = (''.join(r.choice('abc') for _ in range(r.randrange(7))) for _ in range(2))
    assert edit_distance(a, b) == slow_distance(a, b)


def test_near_duplicates_against_all_pairs():
  r = random.Random(0)
  names = sorted(
    {
      ''.join(r.choice(('ka', 'lo', 'mi', 'tus', 'ver')) for _ in range(r.choice((2, 3, 4))))
      for _ in range(300)
    }
  )
  names += ['kalomitusver'[:i] + 'z' + 'kalomitusver'[i + 1 :] for i in range(12)] + [
    'kalomitusve',
    'akolmitusver',
    'kalomtuiszver',
  ]
  want = {
    frozenset((a, b))
    for a, b in itertools.combinations(names, 2)
    if a[0] == b[0]
    and min(len(a), len(b)) >= 5
    and max(len(a), len(b)) >= 6
    and slow_distance(a, b) <= (2 if min(len(a), len(b)) >= 10 else 1)
  }
  assert len(want) > 60
  assert {frozenset((a, b)) for a, b, _ in near_duplicates(names)} == want


def test_near_duplicates_that_matter_and_those_that_do_not():
  def pairs(*names):
    return {(a, b) for a, b, _ in near_duplicates(names)}

  assert pairs('Land Rover', 'land-rover', 'LandRover') == {
    ('Land Rover', 'land-rover'),
    ('Land Rover', 'LandRover'),
    ('land-rover', 'LandRover'),
  }
  assert pairs('Citroën', 'Citroen') == {('Citroën', 'Citroen')}
  assert pairs('Hyundai Accent', 'Hyundia Accent', 'Hyundai Elantra') == {
    ('Hyundai Accent', 'Hyundia Accent')
  }
  assert (
    pairs(
      'Audi S4 Sedan 2007',
      'Audi S4 Sedan 2012',
      'Audi A4 Sedan 2012',
      'Audi S5 Sedan 2012',
      'Audi TT',
      'Audi TTS',
    )
    == set()
  )
  assert pairs('man', 'men', 'mouse', 'house', 'cat', 'car', 'class_001', 'class_002') == set()


def test_one_name_at_several_levels_is_a_note(tmp_path):
  (tmp_path / 't.csv').write_text('make,model\nMini,Mini\nAudi,A5\nAudi,TT\nMini,Clubman\n')
  assert [(p.severity, p.kind) for p in lint(tmp_path / 't.csv').problems] == [
    ('note', 'one name at several levels')
  ]


def test_no_sibling_counts_and_names(tmp_path):
  (tmp_path / 't.csv').write_text('order,family,species\nA,,\nB,F,1\nB,F,2\nC,G,3\nD,H,4\nD,H,5\n')
  report = lint(tmp_path / 't.csv')
  assert [(p.where.rsplit(':', 1)[1], p.text) for p in report.problems] == [
    ('3', '3 of 4 orders have one family: B, C, D'),
    ('5', '1 of 4 families have one species: G'),
  ]
  assert report.summary['early'] == 1 and '  1 branches end early' in report.text()
  assert (
    '4 orders, 4 families, 6 species' in report.text() and '  1 one-species family' in report.text()
  )


def test_a_branch_that_ends_early_is_told_once(tmp_path):
  (tmp_path / 't.csv').write_text('order,family,species\nA,,\nB,F,1\nB,F,2\nB,G,3\nB,G,4\n')
  (tmp_path / 'labels.csv').write_text(
    'file,split,order,family,species\n' + ''.join(f'{i},train,,,{i}\n' for i in (1, 2, 3, 4))
  )
  report = lint(tmp_path / 't.csv', tmp_path, images=False)
  no_val, absent = report.problems
  assert 'of each class leaves it none' in no_val.text and no_val.severity == 'warning'
  assert (absent.kind, absent.text) == ('classes with no image', "order 'A'")


def test_labels_not_in_the_taxonomy_are_grouped_and_get_a_hint(clean):
  labels = [line.replace('Audi TT', 'Audi T') for line in clean.labels]
  report = clean(labels=labels)
  assert places_of(report) >= {('error', 'labels.csv:4', 'label not in the taxonomy')}
  text = report.text()
  assert (
    "model 'Audi T' is not in the taxonomy; did you mean 'Audi TT'" in text and '(2 rows)' in text
  )
  assert ('warning', 'taxonomy.csv:3', 'classes with no image') in places_of(report)


def test_labels_that_contradict(clean):
  report = clean(labels=changed(clean.labels, 6, 'images/04.jpg,train,Audi,Sedan,BMW 328i'))
  assert places_of(report) == {('error', 'labels.csv:6', 'label contradicts the taxonomy')}
  assert (
    "make 'Audi', type 'Sedan', model 'BMW 328i' together; model 'BMW 328i' has make 'BMW'"
    in report.text()
  )
  taxonomy = [line for line in TAXONOMY if 'Jeep,Coupe' not in line]
  report = clean(
    taxonomy=taxonomy,
    labels=[line for line in clean.labels if 'Patriot' not in line]
    + ['images/16.jpg,train,Jeep,Coupe,'],
  )
  assert places_of(report) == {('error', 'labels.csv:20', 'label contradicts the taxonomy')}
  assert "no row of the taxonomy has make 'Jeep', type 'Coupe' together" in report.text()


def test_a_sample_of_each_split_is_decoded(clean, monkeypatch):
  """Evenly spaced; labels and missing files are checked in whole."""
  decoded, labels = [], [*clean.labels, 'gone.jpg,val,BMW,SUV,BMW X5', 'x.jpg,val,Fiat,SUV,Uno']
  monkeypatch.setattr('hierjax.data.lint.inspect', lambda r, i: decoded.append(i) or inspect(r, i))
  report = clean(labels=labels, sample=3)
  assert sorted(decoded) == [0, 1, 8, 9, 18, 19]
  assert {('error', 'labels.csv:22', 'missing files')} <= places_of(report)
  assert {('error', 'labels.csv:23', 'label not in the taxonomy')} <= places_of(report)
  assert report.summary['files'] == {'named': 22, 'missing': 2, 'unreadable': 0, 'decoded': 6}
  assert '0 unreadable of 6 decoded: at most 3 of each split, evenly spaced' in report.text()
  decoded.clear()
  clean(sample=11)
  assert sorted(decoded) == list(range(20))
  broken = clean.root / 'images/18.jpg'
  broken.write_bytes(b'broken')
  assert ('error', '18.jpg', 'unreadable images') in {
    (p.severity, p.text.split("'")[1].split('/')[1], p.kind) for p in clean(sample=2).problems
  }


def test_images_wait_in_a_bounded_queue(clean, monkeypatch):
  """A million images are not handed to the threads at once."""
  monkeypatch.setattr('os.cpu_count', lambda: 1)
  begun, ahead = [], []
  monkeypatch.setattr('hierjax.data.lint.LONG', 0)
  monkeypatch.setattr('hierjax.data.lint.inspect', lambda r, i: begun.append(i) or inspect(r, i))
  clean()
  check(options(root=clean.root), progress=lambda n, _: ahead.append(len(begun) - 20 - n))
  assert max(ahead) <= 3


def test_unknown_labels_are_fine_and_counted(clean):
  labels = changed(
    changed(clean.labels, 2, 'images/00.jpg,train,,,Audi A4'), 4, 'images/02.jpg,train,Audi,Coupe,'
  )
  report = clean(labels=[*labels, 'images/20.jpg,train,,,'], images=False)
  assert report.summary['unknown'] == {
    'make': 1,
    'type': 1,
    'model': 2,
  }  # the first row's make and type follow from its model
  assert places_of(report) == {
    ('warning', 'labels.csv:22', 'no label'),
    ('warning', 'labels.csv:5', 'classes that train never has'),
  }


def test_classes_without_images(clean):
  report = clean(labels=[line for line in clean.labels if 'BMW X5' not in line])
  assert places_of(report) == {('warning', 'taxonomy.csv:6', 'classes with no image')}
  report = clean(labels=[line for line in clean.labels if 'train,BMW,SUV' not in line])
  assert places_of(report) == {('warning', 'labels.csv:10', 'classes that train never has')}
  report = clean(labels=[line for line in clean.labels if 'val,BMW,SUV' not in line])
  assert (
    places_of(report) == {('note', 'taxonomy.csv:6', 'classes that val never has')}
    and '1 of 10 models: BMW X5' in report.text()
  )
  report = clean(labels=[line for line in clean.labels if 'val,BMW,SUV' not in line], train='val')
  assert places_of(report) == {('warning', 'labels.csv:10', 'classes that val never has')}


@pytest.mark.parametrize(
  'header, severity, words',
  [
    ('path,split,make,type,model', 'note', "files by column 'path'"),
    (
      'file,split,brand,kind,modell',
      'error',
      'no column of labels; the levels are make, type, model',
    ),
    (
      'file,split,make,typ,model',
      'error',
      "column 'typ' is no level of the taxonomy (did you mean 'type'?)",
    ),
  ],
)
def test_columns(clean, header, severity, words):
  report = clean(labels=changed(clean.labels, 1, header))
  assert (severity, 'labels.csv:1', 'columns') in places_of(report) and words in report.text()


def test_no_split(clean):
  report = clean(labels=changed(clean.labels, 3, 'images/01.jpg,,Audi,Sedan,Audi A4'))
  assert ('error', 'labels.csv:3', 'no split') in places_of(
    report
  ) and '(no split) 1' in report.text()
  assert (
    clean(
      labels=[
        line.replace(',train', '').replace(',val', '').replace(',split', '')
        for line in clean.labels
      ]
    ).problems
    == []
  )


def test_missing_unreadable_and_strayed_files(clean):
  (clean.root / 'images/00.jpg').rename(clean.root / 'images/00.jpeg')
  full = (clean.root / 'images/03.jpg').read_bytes()
  (clean.root / 'images/03.jpg').write_bytes(full[: len(full) * 2 // 3])
  (clean.root / 'images/04.jpg').write_bytes(b'')
  (clean.root / 'images/05.jpg').write_bytes(b'<html>')
  labels = changed(
    changed(clean.labels, 8, '../66.jpg,train,BMW,Coupe,BMW M6'), 9, ',val,BMW,Coupe,BMW M6'
  )
  report = clean(labels=changed(labels, 10, '/etc/hostname,train,BMW,SUV,BMW X5'))
  assert places_of(report) == {
    ('error', 'labels.csv:2', 'missing files'),
    ('error', 'labels.csv:5', 'unreadable images'),
    ('error', 'labels.csv:6', 'unreadable images'),
    ('error', 'labels.csv:7', 'unreadable images'),
    ('error', 'labels.csv:8', 'path leaves the root'),
    ('error', 'labels.csv:9', 'no file'),
    ('error', 'labels.csv:10', 'path leaves the root'),
    ('warning', 'labels.csv', 'classes that cannot be read'),
  }
  text = report.text()
  assert (
    'no file images/00.jpg (did you mean images/00.jpeg?)' in text
    and "'images/04.jpg': is empty" in text
    and "'images/05.jpg': cannot be decoded" in text
  )
  assert report.summary['files'] == {'named': 17, 'missing': 1, 'unreadable': 3}
  assert {k for _, _, k in places_of(clean(labels=labels, images=False))} == {
    'path leaves the root',
    'no file',
  }


def test_a_wrong_root_is_one_problem(clean):
  report = clean(root=clean.root / 'elsewhere')
  assert (
    places_of(report) == {('error', 'labels.csv:2', 'missing files')}
    and 'is the root right?' in report.text()
  )
  shutil.copytree(clean.root / 'images', clean.root / 'elsewhere' / 'images')
  assert clean(root=clean.root / 'elsewhere').problems == []


def copy(clean, a, b):
  shutil.copy(clean.root / f'images/{a:02d}.jpg', clean.root / f'images/{b:02d}.jpg')


def test_duplicates(clean):
  copy(clean, 0, 1)  # train and val of one model
  report = clean()
  assert places_of(report) == {('error', 'labels.csv:3', 'leak')}
  assert (
    "'images/00.jpg' (row 2, train) has the same bytes as 'images/01.jpg' (row 3, val)"
    in report.text()
  )
  copy(clean, 2, 4)  # two models, both train
  report = clean()
  assert places_of(report) == {
    ('error', 'labels.csv:3', 'leak'),
    ('error', 'labels.csv:6', 'duplicate images with different labels'),
  }
  assert "model 'Audi TT' (row 4) against 'BMW 328i' (row 6)" in report.text()
  (clean.root / 'images/20.jpg').write_bytes((clean.root / 'images/06.jpg').read_bytes())
  report = clean(
    labels=[*clean.labels, 'images/20.jpg,train,BMW,,', 'images/./06.jpg,train,,Coupe,']
  )
  # less is known of the copy, but nothing else
  assert ('warning', 'labels.csv:22', 'duplicate images') in places_of(report)
  kind = 'duplicate images with different labels'  # one file with two rows of labels
  assert ('error', 'labels.csv:23', kind) in places_of(report)
  assert {k for _, _, k in places_of(clean(images=False))} == set()


def test_one_file_named_twice(clean):
  report = clean(labels=[*clean.labels, 'images/00.jpg,val,Audi,Sedan,Audi A4'], images=False)
  assert (
    places_of(report) == {('error', 'labels.csv:22', 'leak')}
    and 'stands in row 2 already, in another split' in report.text()
  )


def test_text_is_short_and_sorted(clean):
  labels = [
    *clean.labels,
    *(f'images/x{i}.jpg,train,Audi,SUV,Audi Q7' for i in range(50)),
    'images/01.jpg,val,,,',
  ]
  text = clean(labels=labels).text().splitlines()
  start = text.index('error: missing files (50)')
  assert text[start + 20].startswith('  ') and text[start + 21] == '  and 30 more'
  assert text[-1] == '51 errors, 0 warnings, 0 notes'
  kinds = [line.split(':')[0] for line in text if line.startswith(('error', 'warning', 'note'))]
  assert kinds == sorted(kinds, key=('error', 'warning', 'note').index)


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
@pytest.mark.parametrize('fmt', ['JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF'])
def test_every_pixel_is_decoded(fmt):
  data = encode(0, fmt)
  assert inspect(lambda _: data, 0)[:2] == (hashlib.sha256(data).digest(), None)
  for cut in (len(data) * 2 // 3, 20, 0):
    assert inspect(lambda _: data[:cut], 0)[1]


def test_unusual_jpegs_are_readable():
  for mode in ('L', 'CMYK'):
    out = io.BytesIO()
    Image.open(io.BytesIO(encode(0))).convert(mode).save(out, 'JPEG', progressive=mode == 'L')
    assert inspect(lambda _: out.getvalue(), 0)[1] is None


# Other sources.


def test_from_config_reads_a_csv_as_lint_does(clean):
  (clean.root / 'images/03.jpg').write_bytes(b'')
  want = clean()
  result = check(options(root=str(clean.root)))
  assert result.problems == want.problems != [] and result.text() == want.text()
  assert check(options(root=str(clean.root)), images=False).problems == []
  only = check(options(taxonomy=str(clean.root / 'taxonomy.csv')))
  assert only.problems == [] and 'splits' not in only.summary and '10 models' in only.text()
  assert 'needs --config.data.root=FOLDER' in check(options(source='csv')).text()
  assert 'no such folder' in check(options(root=str(clean.root / 'none'))).text()
  assert 'classes:make=2,model=3: no images' in check(options(root='classes:make=2,model=3')).text()


def test_labels_without_a_taxonomy(clean):
  clean()
  (clean.root / 'taxonomy.csv').unlink()
  report = lint('', clean.root)
  assert report.problems == [] and report.summary['levels'] == {'make': 3, 'type': 3, 'model': 10}
  assert check(options(root=str(clean.root))).problems == []
  clean(
    labels=[
      *clean.labels,
      'images/00.jpg,train,Aüdi,Sedan,Audi A6',
      'images/19.jpg,val,Aüdi,Sedan,Audi A6',
    ]
  )
  (clean.root / 'taxonomy.csv').unlink()
  report = check(options(root=str(clean.root)), images=False)
  assert ('warning', 'labels.csv:22', 'near-duplicate names') in places_of(
    report
  ) and "make 'Aüdi' and 'Audi' (row 2)" in report.text()
  clean(labels=[*clean.labels, 'images/x.jpg,train,BMW,Sedan,Audi A4'])
  (clean.root / 'taxonomy.csv').unlink()
  report = lint('', clean.root, images=False)
  kinds = ('several paths', 'label contradicts the taxonomy')
  assert places_of(report) == {('error', 'labels.csv:22', kind) for kind in kinds}
  assert "has make 'BMW' here" in report.text()


def test_class_folders(tmp_path):
  for i, (split, order, name) in enumerate(
    itertools.product(('train', 'val'), ('cats', 'dogs'), ('one', 'two'))
  ):
    (tmp_path / split / order / f'{order} {name}').mkdir(parents=True)
    (tmp_path / split / order / f'{order} {name}' / 'a.jpg').write_bytes(encode(i))
  report = check(options(root=str(tmp_path)))
  assert (
    report.problems == []
    and report.summary['splits'] == {'train': 4, 'val': 4}
    and '4 classes' in report.text()
  )
  (tmp_path / 'val/cats/cats two/b.jpg').write_bytes(encode(0))
  (tmp_path / 'train/dogs/dogs one/b.jpg').write_bytes(b'no image')
  (tmp_path / 'val/dogs/dogs  three').mkdir()
  (tmp_path / 'val/dogs/dogs  three/a.jpg').write_bytes(encode(9))
  report = check(options(root=str(tmp_path)))
  root = str(tmp_path)
  assert {(p.severity, p.where.removeprefix(root), p.kind) for p in report.problems} == {
    ('error', '/val/cats/cats two/b.jpg', 'leak'),
    ('error', '/val/cats/cats two/b.jpg', 'duplicate images with different labels'),
    ('error', '/train/dogs/dogs one/b.jpg', 'unreadable images'),
    ('warning', '/val/dogs/dogs  three/a.jpg', 'classes that train never has'),
  }
  assert '(row' not in report.text()


def test_the_drawn_set_is_clean():
  report = check(options(toy={'train': 60, 'val': 20, 'seed': 0}))
  assert report.counts['error'] == 0 and report.summary['splits'] == {'train': 60, 'val': 20}
  assert {p.kind for p in report.problems} <= {
    'classes with no sibling',
    'classes that val never has',
    'classes with no image',
    'classes that train never has',
  }


@pytest.mark.skipif(not DATA.exists(), reason='needs the shared data')
def test_stanford_cars():
  report = lint(root=DATA / 'stanford_cars', images=False)
  text = report.text()
  assert (
    '49 makes, 9 types, 196 models' in text
    and '107 make-type pairs occur of 441' in text
    and '19 one-model makes' in text
  )
  assert (
    report.summary['pairs']['make-type'] == {'pairs': 107, 'kind': 'facets'}
    and report.summary['single_child']['make']['count'] == 19
  )
  assert report.counts == {'error': 0, 'warning': 0, 'note': 1} and report.summary['splits'] == {
    'train': 5685,
    'val': 1647,
  }


@pytest.mark.skipif(not DATA.exists(), reason='needs the shared data')
def test_stanford_cars_with_type_first_is_no_broken_tree(tmp_path):
  # Half of the makes have one type only, mostly as they have one model: no sign of a tree.
  lines = [
    line.split(',', 2)
    for line in (DATA / 'stanford_cars' / 'taxonomy.csv').read_text().splitlines()
  ]
  (tmp_path / 't.csv').write_text('\n'.join(f'{b},{a},{c}' for a, b, c in lines))
  assert lint(tmp_path / 't.csv').counts['error'] == 0
