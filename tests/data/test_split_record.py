"""Published splits that are divided, and the record of a run's split: splits.csv."""

import collections
import hashlib
import pathlib
import random
import runpy

import numpy as np
import pytest

from hierjax.core.config import default
from hierjax.core.errors import UserError
from hierjax.data import lint, sources, split_record
from hierjax.data.dataset import Dataset, Examples, Table
from hierjax.data.findings import Findings
from hierjax.taxonomy import Mixed, TagTaxonomy, Taxonomy


def options(root, **changes):
  data = default().data
  data.update({'root': str(root), **changes})
  return data


def images(root, *files):
  """Empty files, which readers that do not decode take for images."""
  for file in files:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).touch()
  return root


def sizes(data):
  return {name: len(examples.files) for name, examples in data.splits.items()}


def by_split(data):
  return {file: name for name, examples in data.splits.items() for file in examples.files}


def record(data, folder):
  """The record of a run that was made with these data."""
  (folder / split_record.FILE).write_text(split_record.content(data.undiminished))
  return split_record.read(folder)


def reload(opts, earlier, takes_new=False):
  """The data as a run that goes on reads them, and what has changed."""
  data = sources.load(opts, record=earlier._replace(takes_new=takes_new))
  return data, split_record.changes(earlier, data)


# Published splits

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLASSES = 196
PART = 'car_data/car_data/{}/Make{} Model{} Sedan 2012/{}.jpg'


def class_sizes(total, seed):
  """Sizes of 196 classes between 24 and 68, as Stanford Cars' are."""
  rng = random.Random(seed)
  counts = [24] * CLASSES
  while sum(counts) < total:
    i = rng.randrange(CLASSES)
    counts[i] += counts[i] < 68
  return counts


@pytest.fixture(scope='module')
def cars(shared_folder):
  """Kaggle's layout of Stanford Cars with 8,144 and 8,041 empty files."""

  def make(root):
    for split, total, seed in (('train', 8144, 1), ('test', 8041, 2)):
      for c, n in enumerate(class_sizes(total, seed)):
        images(root, *(PART.format(split, c // 4, c, i) for i in range(n)))

  return shared_folder('published_cars', make)


def naive_draw(order, files, share):
  """Of each class the first by hash; what rounding leaves over goes to the next class."""
  due, picked, members = 0.0, set(), collections.defaultdict(list)
  for file in files:
    members[file.split('/')[-2]].append(file)
  for name in order:
    hashes = sorted(
      (hashlib.blake2b(f'0:{f}'.encode(), digest_size=8).digest(), f) for f in members[name]
    )
    due += share * len(hashes)
    count = min(round(due), len(hashes) - 1)
    due -= count
    picked.update(file for _, file in hashes[:count])
  return picked


def test_s1_divides_the_8144_labelled_images(cars):
  from configs import s1

  opts = s1.get_config().data
  opts.root = str(cars)
  data = sources.load(opts)
  # .7/.2/.1 of 8,144 are 5,700.8, 1,628.8 and 814.4
  assert sizes(data) == {'train': 5701, 'val': 1629, 'test': 814}
  files = [file for examples in data.splits.values() for file in examples.files]
  assert len(set(files)) == 8144 and all('car_data/train/' in file for file in files)
  assert any('8041 examples of test are left out' in note for note in data.notes)
  order = data.taxonomy.names[-1]
  assert list(order) == sorted(order)
  assert set(data.splits['test'].files) == naive_draw(order, files, 0.1)
  others = [file for file in files if file not in set(data.splits['test'].files)]
  assert set(data.splits['val'].files) == naive_draw(order, others, 0.2 / 0.9)


def test_s0_trains_on_all_8144_images_and_draws_val_from_the_8041(cars):
  from configs import ladder

  opts = ladder.get_config('9').data
  opts.root = str(cars)
  data = sources.load(opts)
  assert sizes(data) == {'train': 8144, 'val': 804, 'test': 7237}
  assert all('car_data/train/' in file for file in data.splits['train'].files)
  picked = [*data.splits['val'].files, *data.splits['test'].files]
  assert len(set(picked)) == 8041 and all('car_data/test/' in file for file in picked)
  count = np.bincount(data.splits['val'].labels[:, -1], minlength=CLASSES)
  total = count + np.bincount(data.splits['test'].labels[:, -1], minlength=CLASSES)
  assert (abs(count - 0.1 * total) <= 1).all()
  assert any('804 val (a share of 0.1 of each finest class of test' in n for n in data.notes)


def test_s1_takes_a_fifth_of_the_training_images_of_compcars():
  """16,016 and 14,939 images of 4,446 classes, of which many have one or two."""
  opts = runpy.run_path(ROOT / 'configs/tables/s1_figure3.py')['get_config']().data
  rng = np.random.default_rng(0)
  leaf = np.concatenate([np.arange(4446), rng.integers(0, 4446, 16016 + 14939 - 4446)])
  taxonomy = Taxonomy.from_rows(['model'], [[f'{c:04d}'] for c in range(4446)])
  splits = ['train'] * 16016 + ['test'] * 14939
  files = [f'{i}.jpg' for i in range(len(leaf))]
  table = Table(taxonomy, files, leaf[:, None].astype(np.int32), splits, None)
  data = sources.make_splits(opts, table, Findings())
  assert sizes(data) == {'train': 12813, 'val': 3203, 'test': 14939}
  assert set(data.splits['train'].labels[:, 0]) == set(range(4446))


def csv_data(root, **counts):
  """labels.csv with so many images of two classes in each split."""
  rows = ['file,split,class\n'] if set(counts) != {'all'} else ['file,class\n']
  for split, n in counts.items():
    files = [f'{split}{i}.png' for i in range(n)]
    images(root, *files)
    cells = '' if split == 'all' else f'{split},'
    rows += [f'{file},{cells}{"ab"[i % 2]}\n' for i, file in enumerate(files)]
  (root / 'labels.csv').write_text(''.join(rows))
  return root


@pytest.mark.parametrize(
  ('counts', 'changes', 'expected', 'note'),
  [
    # test is drawn where the data have none, whatever else they name
    ({'train': 20, 'val': 6}, {'test_share': 0.2}, {'train': 16, 'val': 6, 'test': 4}, '4 test'),
    ({'train': 20}, {'test_share': 0.2}, {'train': 12, 'val': 4, 'test': 4}, '4 val'),
    # val from another split, or from train where that cannot be
    (
      {'train': 20, 'test': 10},
      {'val_from': 'test'},
      {'train': 20, 'val': 2, 'test': 8},
      'of test',
    ),
    (
      {'train': 20, 'test': 10},
      {'val_from': 'more'},
      {'train': 16, 'val': 4, 'test': 10},
      'no such',
    ),
    (
      {'train': 20, 'val': 5},
      {'val_from': 'test'},
      {'train': 20, 'val': 5},
      'val_from=test: has no',
    ),
    ({'all': 20}, {'val_from': 'test'}, {'train': 16, 'val': 4}, 'no such split; val is drawn'),
    # one split as if it were all
    (
      {'train': 20, 'val': 6, 'test': 8},
      {'divide': 'train'},
      {'train': 16, 'val': 4},
      '14 examples',
    ),
    ({'a': 20, 'b': 6}, {'divide': 'a', 'val': 'v'}, {'train': 16, 'v': 4}, '6 examples of b'),
    ({'all': 20}, {'divide': 'train'}, {'train': 16, 'val': 4}, 'name no split'),
    # options without effect are said
    ({'train': 20, 'val': 6}, {'val_share': 0.3}, {'train': 20, 'val': 6}, 'val_share=0.3: has no'),
    ({'train': 20, 'val': 6}, {'split_seed': 3}, {'train': 20, 'val': 6}, 'split_seed=3: has no'),
    (
      {'train': 20, 'val': 6},
      {'crop_margin': 0.1},
      {'train': 20, 'val': 6},
      'crop_margin=0.1: has',
    ),
    ({'train': 20, 'val': 6}, {'balance_level': 'class'}, {'train': 20, 'val': 6}, 'balance_level'),
    ({'train': 20, 'val': 6}, {'toy.train': 9}, {'train': 20, 'val': 6}, 'toy.train=9: has no'),
    ({'train': 20, 'val': 6}, {'toy.seed': 9}, {'train': 20, 'val': 6}, 'toy.seed=9: has no'),
  ],
)
def test_which_split_is_drawn_and_which_option_has_no_effect(
  tmp_path, counts, changes, expected, note
):
  opts = options(csv_data(tmp_path, **counts))
  for name, value in changes.items():
    (opts.toy if name.startswith('toy.') else opts)[name.removeprefix('toy.')] = value
  data = sources.load(opts)
  assert sizes(data) == expected
  assert any(note in line for line in data.notes), data.notes
  if 'has no' in note:
    texts = [str(p) for p in lint.check(opts, images=False).problems if p.severity == 'note']
    assert any(note in text for text in texts), texts


@pytest.mark.parametrize(
  ('counts', 'changes', 'message'),
  [
    (
      {'train': 9, 'test': 4},
      {'test_share': 0.1},
      r'test_share=0.1: .* --config.data.divide=train',
    ),
    ({'all': 20}, {'test_share': 0.1, 'val': 'test'}, r'test_share=0.1: data.val is called so'),
    (
      {'train': 9, 'val': 4},
      {'divide': 'tran'},
      r"divide=tran: no such split \(did you mean 'train'",
    ),
    ({'train': 9, 'val': 4}, {'source': 'toy'}, r'source=toy: .* leave out --config.data.root'),
  ],
)
def test_options_that_the_data_contradict(tmp_path, counts, changes, message):
  opts = options(csv_data(tmp_path, **counts), **changes)
  with pytest.raises(UserError, match=message):
    sources.load(opts)
  assert lint.check(opts).counts['error']


def test_a_val_without_labels_is_not_drawn(tmp_path):
  csv_data(tmp_path, train=20)
  with (tmp_path / 'labels.csv').open('a') as f:
    f.writelines(f'{file},test,\n' for file in ('x.png', 'y.png'))
  images(tmp_path, 'x.png', 'y.png')
  data = sources.load(options(tmp_path, val_from='test'))
  assert sizes(data) == {'train': 16, 'val': 4, 'test': 2}
  assert any('it has no label; val is drawn from train' in note for note in data.notes)


def test_copies_across_a_split_that_is_drawn_are_a_leak(tmp_path):
  root = csv_data(tmp_path, all=20)
  assignment = by_split(sources.load(options(root)))
  sides = [next(f for f, s in assignment.items() if s == split) for split in ('train', 'val')]
  for i, file in enumerate(assignment):
    (root / file).write_bytes(bytes([i]))
  for file in sides:
    (root / file).write_bytes(b'the same')
  leaks = [p for p in lint.check(options(root)).problems if p.kind == 'leak']
  assert len(leaks) == 1 and all(file in leaks[0].text for file in sides)


# The record


def folders(root, **counts):
  for name, n in counts.items():
    images(root, *(f'{name}/{i}.png' for i in range(n)))
  return root


def test_a_record_is_of_files_splits_and_labels_only(tmp_path):
  """Neither their order, nor the place, nor the machine's form of Unicode, nor the pictures."""
  data = sources.load(options(folders(tmp_path / 'a', cat=12, dog=12)))
  text = split_record.content(data.undiminished)
  assert text.splitlines()[:2] == [
    'file,split,class',
    f'cat/0.png,{by_split(data)["cat/0.png"]},cat',
  ]
  moved = sources.load(options(folders(tmp_path / 'elsewhere/b', dog=12, cat=12)))
  (tmp_path / 'elsewhere/b/cat/3.png').write_bytes(b'another picture')
  assert split_record.content(moved.undiminished) == text
  rng, splits = random.Random(0), {}
  for name, examples in reversed(data.splits.items()):
    order = rng.sample(range(len(examples.files)), len(examples.files))
    splits[name] = Examples(
      name, [examples.files[i] for i in order], examples.labels[order], examples.reader
    )
  assert split_record.content(Dataset(data.taxonomy, splits, [])) == text
  other = sources.load(options(tmp_path / 'a', split_seed=1))
  assert split_record.content(other.undiminished) != text


@pytest.mark.parametrize(
  'name',
  ['a,b.png', 'a"b.png', 'a\nb.png', 'a\rb.png', ' a .png', 'a\udcff.png', 'Ka\u0308fer.png'],
)
def test_odd_names_come_back(tmp_path, name):
  examples = Examples('val', [name, 'b.png'], np.array([[1], [-1]], np.int32), None)
  taxonomy = Taxonomy.from_rows(['class'], [['x'], ['y "z", w']])
  data = Dataset(taxonomy, {'val': examples}, [])
  saved = record(Dataset(taxonomy, data.splits, [], undiminished=data), tmp_path)
  assert len(saved.splits) == 2 and set(saved.labels.values()) == {('y "z", w',), ('',)}
  full = Dataset(taxonomy, data.splits, [], undiminished=data)
  assert not split_record.changes(saved, full)


def test_labels_of_tags_and_of_both_kinds(tmp_path):
  tags = TagTaxonomy.from_rows(['tag'], [['red'], ['big']])
  exclusive = Taxonomy.from_rows(['kind', 'class'], [['x', 'a'], ['y', 'b']])
  both = Mixed(exclusive, tags, np.full((2, 2), -1, np.int32))
  labels = np.array([[0, 0], [1, -1], [-1, -1]], np.int32)
  multi = np.array([[1, 1], [0, 0], [-1, 1]], np.int8)
  examples = Examples('train', ['1', '2', '3'], labels, None, multi)
  lines = split_record.content(Dataset(both, {'train': examples}, [])).splitlines()
  assert lines == [
    'file,split,kind,class,tag',
    '1,train,x,a,red|big',
    '2,train,y,,-',
    '3,train,,,red?|big',
  ]
  only = Examples('train', ['1'], labels[:1, :0], None, np.full((1, 2), -1, np.int8))
  assert split_record.content(Dataset(tags, {'train': only}, [])).splitlines()[1] == '1,train,'


def test_a_run_keeps_its_split_when_files_are_added(tmp_path):
  root = folders(tmp_path / 'data', cat=20, dog=20)
  first = sources.load(options(root))
  saved = record(first, tmp_path)
  images(root, *(f'{c}/later{i}.png' for c in ('cat', 'dog') for i in range(8)))
  fresh = by_split(sources.load(options(root)))
  # without the record, images of val come into training: what this is against
  assert [f for f, s in by_split(first).items() if s == 'val' and fresh[f] == 'train']
  data, changes = reload(options(root), saved)
  assert by_split(data) == by_split(first)
  for name, examples in first.splits.items():  # in the same order: batches are the same
    assert data.splits[name].files == examples.files
    assert data.splits[name].labels.tolist() == examples.labels.tolist()
  assert len(data.new) == 16 and not changes
  assert split_record.content(data.undiminished) == split_record.content(first.undiminished)
  assert any('the split that the run was made with: 32 train, 8 val' in n for n in data.notes)
  text = split_record.notes(tmp_path, data, saved)[0]
  assert 'new files: 16 (cat/later0.png, cat/later1.png, cat/later2.png, ...)' in text


def test_new_files_are_divided_where_they_are_taken(tmp_path):
  root = folders(tmp_path / 'data', cat=20, dog=20)
  first = sources.load(options(root))
  saved = record(first, tmp_path)
  images(root, *(f'{c}/new{i}.png' for c in ('cat', 'dog') for i in range(10)))
  data, _ = reload(options(root), saved, takes_new=True)
  assert {f: s for f, s in by_split(data).items() if 'new' not in f} == by_split(first)
  assert sizes(data) == {'train': 48, 'val': 12} and len(data.new) == 20


@pytest.mark.parametrize(
  ('change', 'kind', 'n'),
  [
    (lambda rows: rows[:-3], 'gone', 3),
    (
      lambda rows: [r.replace('train0.png,train,a', 'train0.png,train,b') for r in rows],
      'with other labels',
      1,
    ),
    (
      lambda rows: [r.replace('train0.png,train,a', 'train0.png,train,') for r in rows],
      'with other labels',
      1,
    ),
    (lambda rows: [r.replace(',train,a', ',val,a') for r in rows], 'in another split', 10),
    (lambda rows: [*rows, 'extra.png,train,a\n'], '', 0),
    (lambda rows: rows[:1] + rows[:0:-1], '', 0),
    (lambda rows: [r.replace('train0.png', 'renamed.png') for r in rows], 'gone', 1),
  ],
)
def test_what_has_changed_since(tmp_path, change, kind, n):
  root = csv_data(tmp_path / 'data', train=20, val=6)
  images(root, 'extra.png', 'renamed.png')
  saved = record(sources.load(options(root)), tmp_path)
  rows = (root / 'labels.csv').read_text().splitlines(keepends=True)
  (root / 'labels.csv').write_text(''.join(change(rows)))
  _, changes = reload(options(root), saved)
  assert changes.partition(' (')[0] == (f'{kind}: {n}' if kind else '') and ';' not in changes


def test_options_that_drop_data_are_no_change(tmp_path):
  root = folders(tmp_path / 'data', cat=20, dog=20, owl=20)
  saved = record(sources.load(options(root, hold_out=('owl',), unlabelled=0.5)), tmp_path)
  assert set(saved.splits.values()) == {'train', 'val'} and len(saved.splits) == 60
  data, changes = reload(options(root, limit=10), saved)
  assert not changes and len(data.splits['train'].files) == 10


@pytest.mark.parametrize(
  'text', ['', 'x,y\n1,2\n', 'file,split,class\na,train\n', 'file,split\n"a']
)
def test_a_damaged_record(tmp_path, text):
  (tmp_path / split_record.FILE).write_text(text)
  with pytest.raises(UserError, match=r'splits.csv: is damaged \(.*remove it'):
    split_record.read(tmp_path)
  assert split_record.read(tmp_path.parent) is None


def test_a_record_that_was_edited(tmp_path):
  data = sources.load(options(folders(tmp_path / 'data', cat=4, dog=4)))
  text = split_record.content(data.undiminished)
  record(data, tmp_path)
  (tmp_path / 'run.json').write_text(f'{{"data_sha256": "{split_record.digest(text)}"}}')
  assert hashlib.sha256((tmp_path / split_record.FILE).read_bytes()).hexdigest() == (
    split_record.digest(text)
  )
  split_record.read(tmp_path)
  (tmp_path / split_record.FILE).write_text(text.replace('val', 'train'))
  with pytest.raises(UserError, match=r'not that in run\.json'):
    split_record.read(tmp_path)


def review(saved, name, current, before):
  is_alike = split_record.is_divided_alike(current, before)
  data = sources.load(current, record=saved if is_alike else None)
  return split_record.review(saved, data, name, current, before)


def test_evaluation_never_scores_training_images_in_silence(tmp_path):
  root = folders(tmp_path / 'data', cat=20, dog=20)
  before = options(root)
  first = sources.load(before)
  saved = record(first, tmp_path)
  assert review(saved, 'val', before, before) == []
  assert review(saved, 'train', before, before) == []
  for changes in ({'split_seed': 1}, {'val_share': 0.5}, {'test_share': 0.3}):
    current = options(root, **changes)
    n = len(set(sources.load(current).splits['val'].files) & set(first.splits['train'].files))
    with pytest.raises(
      UserError, match=rf'^--split=val: {n} of the \d+ images of val \(.*\) are training'
    ):
      review(saved, 'val', current, before)
  # data from elsewhere with the same names: a line that says how many
  other = options(folders(tmp_path / 'other', cat=30, dog=30))
  (line,) = review(saved, 'val', other, before)
  assert line.startswith('warning: ') and 'of the 12 images of val (' in line
  # the run's data have grown, shrunk, or lost a file of val
  images(root, 'cat/new.png')
  (line,) = review(saved, 'val', before, before)
  assert 'new files: 1 (cat/new.png)' in line
  (root / first.splits['val'].files[0]).unlink()
  lines = review(saved, 'val', options(root, limit=5), before)
  assert len(lines) == 2 and 'gone: 1 (' in lines[1]
  assert 'no splits.csv' in split_record.notes(tmp_path, first, None)[0]


def test_an_image_that_was_moved_to_val_by_hand_is_refused(tmp_path):
  root = csv_data(tmp_path / 'data', train=20, val=6)
  before = options(root)
  saved = record(sources.load(before), tmp_path)
  text = (root / 'labels.csv').read_text().replace('train3.png,train', 'train3.png,val')
  (root / 'labels.csv').write_text(text)
  with pytest.raises(UserError, match=r'1 of the 7 images of val \(train3.png\) are'):
    review(saved, 'val', before, before)


def test_a_damaged_record_is_a_line_whatever_its_bytes_are(tmp_path):
  """300 records with bytes that were changed, taken out or put in."""
  data = sources.load(options(folders(tmp_path / 'data', **{'a, "b"': 6, 'c': 6})))
  sound, rng = split_record.content(data.undiminished).encode(), random.Random(0)
  for _ in range(300):
    content = bytearray(sound)
    for _ in range(rng.randint(1, 4)):
      i = rng.randrange(len(content))
      content[i : i + rng.randint(0, 3)] = bytes(rng.choice(b'",\n\r\0\xff;a') for _ in range(2))
    (tmp_path / split_record.FILE).write_bytes(content)
    try:
      assert isinstance(split_record.changes(split_record.read(tmp_path), data), str)
    except UserError as e:
      assert str(tmp_path / split_record.FILE) in str(e)


@pytest.mark.parametrize('places', ['cat/new dog/new', 'train/cat', 'emu'])
def test_new_files_that_make_another_tree_are_named(places, tmp_path):
  """Class folders within class folders: an error about their structure alone led astray."""
  root = folders(tmp_path / 'data', cat=6, dog=6)
  if places == 'emu':
    (root / 'taxonomy.csv').write_text('class\ncat\ndog\n')
  saved = record(sources.load(options(root)), tmp_path)
  images(root, *(f'{place}/{i}.png' for place in places.split() for i in range(20)))
  n = 20 * len(places.split())
  with pytest.raises(UserError) as e:
    sources.load(options(root), record=saved)
  assert f'new files since the run was made: {n} ({places.split()[0]}/' in str(e.value)
  assert 'move them away' in str(e.value) and '\n' not in str(e.value)
  # without a record, or where all files are new, the error is that of the tree
  for other in (None, saved._replace(splits={'x.png': 'train'})):
    with pytest.raises(UserError) as e:
      sources.load(options(root), record=other)
    assert 'new files' not in str(e.value)
