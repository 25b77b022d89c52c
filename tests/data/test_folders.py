"""Class folders as users have them: which folder is a split, a level, a class, or none of these."""

import io
import os
import pathlib
import unicodedata

import agreement
import numpy as np
import pytest
from PIL import Image

from hierjax.core.config import default
from hierjax.core.declarations import OPTIONS
from hierjax.core.errors import UserError
from hierjax.data import decoding, lint, sources


def options(root, **changes):
  data = default().data
  data.root = str(root)
  for name, value in changes.items():
    data[name] = OPTIONS[f'data.{name}'].convert(value)
  return data


def picture(seed, kind='PNG'):
  pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, kind)
  return buffer.getvalue()


def draw(root, names):
  """A picture for each name between commas; 'a/b*3' are three in one folder."""
  seed = 0
  for item in names.split(', '):
    name, _, count = item.partition('*')
    for i in range(int(count or 1)):
      path = root / (f'{name}/{i}.png' if '.' not in name else name)
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(picture(seed := seed + 1))
  return root


def content(data):
  """{split: {path of classes: number of images}}."""
  result = {}
  for name, examples in data.splits.items():
    counts = result.setdefault(name, {})
    for row in examples.labels:
      names = [data.taxonomy.names[k][c] for k, c in enumerate(row) if c >= 0]
      counts['/'.join(names)] = counts.get('/'.join(names), 0) + 1
  return result


def assert_reads(root, expected, pieces=(), **changes):
  """Exactly these classes are read, lint agrees, and log and lint have these words."""
  assert agreement.assert_agree(options(root, **changes)) == ''
  data, report = sources.load(options(root, **changes)), lint.check(options(root, **changes))
  assert content(data) == expected
  sizes = report.summary['splits']
  if '' not in sizes:
    # lint counts what the data name, before a split is made of it
    assert sum(sizes.values()) == sum(len(x.files) for x in data.splits.values())
  for piece in pieces:
    assert any(piece in note for note in data.notes), (piece, data.notes)
    assert piece in report.text(), (piece, report.text())
  return data, report


CATS = {'cat': 4, 'dog': 4}
TREES = {
  'words with an ending': (
    'trainset/cat*4, trainset/dog*4, testset/cat*2, validset/dog',
    {'train': CATS, 'test': {'cat': 2}, 'val': {'dog': 1}},
    ("'trainset' is called train", "'testset' is called test"),
  ),
  'blanks and capitals': (
    'Training Images/cat*4, Training Images/dog*4, VALIDATION IMAGES/cat*2',
    {'train': CATS, 'val': {'cat': 2}},
    ("'VALIDATION IMAGES' is called val here",),
  ),
  'words behind a name': (
    'asl_train/a*4, asl_train/b*4, asl_dev/a, asl_holdout/b*2',
    {'train': {'a': 4, 'b': 4}, 'val': {'a': 1}, 'test': {'b': 2}},
    ("'asl_dev' is called val",),
  ),
  'years': (
    'train2017/cat*4, train2017/dog*4, val2017/cat',
    {'train': CATS, 'val': {'cat': 1}},
    (),
  ),
  'below a folder': (
    'images/train/cat*4, images/train/dog*4, images/val/dog',
    {'train': CATS, 'val': {'dog': 1}},
    (),
  ),
  'two folders down': (
    'v2/images/Train/cat*4, v2/images/Train/dog*4, v2/images/Dev/dog',
    {'train': CATS, 'val': {'dog': 1}},
    ("'Train' is called train", "'Dev' is called val"),
  ),
  'below the classes': (
    'cat/train*4, dog/train*4, cat/val*2, dog/test',
    {'train': CATS, 'val': {'cat': 2}, 'test': {'dog': 1}},
    (),
  ),
  'below classes of different depth': (
    'bird/owl/train*4, bird/owl/val, fish/train*2, fish/val*3',
    {'train': {'bird/owl': 4, 'fish/fish': 2}, 'val': {'bird/owl': 1, 'fish/fish': 3}},
    (),
  ),
  'between two levels': (
    'bird/train/owl*4, bird/val/owl, fish/train/carp*2, fish/val/carp',
    {'train': {'bird/owl': 4, 'fish/carp': 2}, 'val': {'bird/owl': 1, 'fish/carp': 1}},
    (),
  ),
  'a name twice, as archives unpack': (
    'seg_train/seg_train/sea*4, seg_train/seg_train/ice*4, seg_val/seg_val/sea',
    {'train': {'sea': 4, 'ice': 4}, 'val': {'sea': 1}},
    ("'seg_train' is called train",),
  ),
  'two folders beside splits': (
    'train/cat*4, train/dog*4, val/cat, docs/figures*3, masks/cat*2',
    {'train': CATS, 'val': {'cat': 1}},
    ('left out: docs (3 images), masks (2 images)',),
  ),
  'a folder beside splits below classes': (
    'cat/train*4, cat/val, cat/raw*5, dog/train*4, dog/val',
    {'train': CATS, 'val': {'cat': 1, 'dog': 1}},
    ('left out: cat/raw (5 images)',),
  ),
  'test images without a class': (
    'train/cat*4, train/dog*4, val/dog, test*3',
    {'train': CATS, 'val': {'dog': 1}},
    ('3 images in no class folder are left out, the first is test/0.png',),
  ),
  'stray pictures beside class folders': (
    'train/cat*4, train/dog*4, val/cat, val/dog, logo.png, train/x.png',
    {'train': CATS, 'val': {'cat': 1, 'dog': 1}},
    ('2 images in no class folder are left out, the first is logo.png',),
  ),
  'a class called like a split, within splits': (
    'train/valid*4, train/broken*4, val/valid, val/broken',
    {'train': {'valid': 4, 'broken': 4}, 'val': {'valid': 1, 'broken': 1}},
    ("the class folder 'valid' is called like a split; it is a class here",),
  ),
  'words of which only a part is a split': (
    'bullet train/x.png, bullet train/y.png, steam train/x.png, steam train/y.png',
    {'train': {'bullet train': 2, 'steam train': 2}},
    (),
  ),
  'both kinds of training folders': (
    'train_1/cat*4, train_2/dog*4, val/cat, val/dog',
    {'train': CATS, 'val': {'cat': 1, 'dog': 1}},
    ("'train_1' is called train", "'train_2' is called train"),
  ),
  'sites with splits, of the same classes': (
    'north/train/cat*4, north/val/cat, south/train/cat*4, south/val/cat',
    {
      'train': {'north/north/cat': 4, 'south/south/cat': 4},
      'val': {'north/north/cat': 1, 'south/south/cat': 1},
    },
    ('2 class folders share their names and are classes of their own: north/cat, south/cat; if',),
  ),
  'years, of nearly the same classes': (
    '2023/cat*4, 2023/dog*4, 2024/cat*4',
    {'train': {'2023/2023/cat': 4, '2023/dog': 4, '2024/2024/cat': 4}},
    ('share their names and are classes of their own: 2023/cat, 2024/cat; if the folders above',),
  ),
  'tables that nobody reads': (
    'train/cat*4, train/dog*4, val/cat, val/dog, meta/all.csv, stock list.xlsx',
    {'train': CATS, 'val': {'cat': 1, 'dog': 1}},
    ('1 meta/all.csv', 'stock list.xlsx', '; a CSV is read by --config.data.root=FILE; save a'),
  ),
  'one class': ('pics*5', {'train': {'pics': 5}}, ("all images are of one class, 'pics'",)),
  'two test sets': (
    'train/cat*4, train/dog*4, val/cat, test_easy/cat, test_hard/dog*2',
    {'train': CATS, 'val': {'cat': 1}, 'test_easy': {'cat': 1}, 'test_hard': {'dog': 2}},
    ("'test_easy', 'test_hard': a split by itself",),
  ),
}


@pytest.mark.parametrize('name', TREES)
def test_trees(tmp_path, name):
  tree, expected, pieces = TREES[name]
  changes = {'val_share': 0.0} if 'val' not in expected else {}
  assert_reads(draw(tmp_path, tree), expected, pieces, **changes)


REFUSED = {
  'folders in each other': (
    f'{"f/" * 70}a, {"f/" * 70}b',
    '71 folders in each other; at most 64 are read',
  ),
  'no format that is read': (
    'cat/1.heic, dog/2.HEIC',
    r'no image in class folders .*by their suffix: 2 \.heic; convert HEIC, to JPEG for instance;',
  ),
  'sides': (
    'left/cat, left/dog, right/cat, right/dog',
    'folders left, right hold the same folders',
  ),
  'sides below a folder': (
    'set/a/cat, set/a/dog, set/b/cat, set/b/dog',
    r'folders set/a, set/b hold the same folders \(cat, dog\); to take them as splits, name two',
  ),
  'same deeper folders': (
    'old/cat/tabby, old/dog/pug, new/cat/tabby, new/dog/pug',
    r'folders new, old hold the same folders \(cat/tabby, dog/pug\)',
  ),
  'train beside others': (
    'train/cat, train/dog, more/cat',
    'of the folders more, train one is called like a split; move the others away',
  ),
  'only pictures in splits': (
    'train*2, val*2',
    'train/0.png is in no class folder, nor are 3 more',
  ),
  'only pictures in splits below': ('x/train*2, x/val', 'x/train/0.png is in no class folder'),
  'two that may be val': (
    'train/cat, train/dog, val_a/cat, val_b/dog',
    "'val_a', 'val_b' may each be val: name one with --config.data.val",
  ),
  'splits that differ in case': (
    'train/cat, Val/dog, val/cat',
    "the splits 'Val' and 'val' differ only in case",
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_trees_that_are_not_clear(tmp_path, name):
  tree, message = REFUSED[name]
  agreement.refuses(options(draw(tmp_path, tree)), message)


def test_what_the_messages_advise_works(tmp_path):
  """The option that a refusal names makes the tree readable, either way."""
  sides = draw(tmp_path / 'sides', 'left/cat*4, left/dog*4, right/cat, right/dog')
  expected = {'left': CATS, 'right': {'cat': 1, 'dog': 1}}
  assert_reads(sides, expected, train='left', val='right')
  data, _ = assert_reads(
    sides,
    {'train': {'left/left/cat': 4, 'left/left/dog': 4, 'right/right/cat': 1, 'right/right/dog': 1}},
    levels='side,animal',
    val_share=0.0,
  )
  assert data.taxonomy.levels == ('side', 'animal')
  more = draw(tmp_path / 'more', 'train/cat, train/dog, more/owl')
  data, _ = assert_reads(
    more,
    {'train': {'train/cat': 1, 'train/dog': 1, 'more/owl': 1}},
    ("class folder 'train' is called like a split",),
    levels='kind,animal',
    val_share=0.0,
  )


def test_levels_are_named_and_counted(tmp_path):
  root = draw(tmp_path, 'train/bird/owl*2, train/fish/carp*2, val/bird/owl')
  expected = {'train': {'bird/owl': 2, 'fish/carp': 2}, 'val': {'bird/owl': 1}}
  data, _ = assert_reads(root, expected, levels='class,species')
  assert data.taxonomy.levels == ('class', 'species')
  for levels in ('a', 'a,b,c,d'):
    message = r'--config.data.levels=.*2 deep \(bird/owl\), so 2 names are wanted, coarse to fine'
    agreement.refuses(options(root, levels=levels), message)
  # three names: the folders of splits are a level, too
  data, _ = assert_reads(
    root,
    {'train': {'train/bird/train/bird/owl': 2, 'train/fish/carp': 2, 'val/bird/val/bird/owl': 1}},
    levels='part,class,species',
    val_share=0.0,
  )
  (root / 'taxonomy.csv').write_text('class,species\nbird,owl\nfish,carp\n')
  assert_reads(root, expected, levels='class,species')
  agreement.refuses(options(root, levels='kind,species'), 'the taxonomy has the levels class, spec')


FORMATS = {
  'avif': 'AVIF', 'bmp': 'BMP', 'jp2': 'JPEG2000', 'jpe': 'JPEG', 'webp': 'WEBP', 'tga': 'TGA',
  'pgm': 'PPM', 'gif': 'GIF', 'tif': 'TIFF', 'ico': 'ICO', 'pcx': 'PCX', 'qoi': 'QOI', 'dib': 'DIB',
  'apng': 'PNG', 'j2k': 'JPEG2000', 'mpo': 'MPO', 'sgi': 'SGI', 'dds': 'DDS',
}  # fmt: skip


def test_every_format_that_is_decoded_counts(tmp_path):
  """A file of each suffix is found, and its picture can be decoded."""
  for seed, (suffix, kind) in enumerate(FORMATS.items()):
    for k, name in enumerate((f'cat/x.{suffix}', f'dog/X.{suffix.upper()}')):
      (tmp_path / name).parent.mkdir(exist_ok=True)
      (tmp_path / name).write_bytes(picture(2 * seed + k, kind))
  data = sources.load(options(tmp_path, val_share=0.0))
  train = data.splits['train']
  assert len(train.files) == 2 * len(FORMATS)
  for i in range(len(train.files)):
    assert decoding.decode(train.reader(i)).shape[2] == 3, train.files[i]
  assert lint.check(options(tmp_path)).counts['error'] == 0


def test_every_suffix_belongs_to_a_format_that_pillow_can_open():
  Image.init()
  for suffix in decoding.suffixes():
    assert Image.registered_extensions()[suffix] in {*Image.OPEN, 'MPO'}, suffix
  assert not {'.h5', '.eps', '.wmf', '.pdf', '.mpg', '.txt', '.heic'} & decoding.suffixes()


def test_what_is_skipped_is_counted_and_named(tmp_path):
  root = draw(tmp_path, 'train/cat*4, train/dog*4, val/cat, val/dog')
  for name in ('train/elk/1.CR2', 'train/elk/2.cr2', 'val/elk/3.heic', 'train/cat/notes.txt'):
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text('no picture')
  (root / 'train/empty').mkdir()
  (root / 'LICENSE').write_text('free')
  (root / '.DS_Store').write_text('hidden')
  expected = {'train': CATS, 'val': {'cat': 1, 'dog': 1}}
  data, report = assert_reads(root, expected)
  assert 'by their suffix: 2 .cr2, 1 no suffix, 1 .txt, 1 .heic' in '\n'.join(data.notes)
  assert 'without an image that can be read: train/elk, train/empty, val/elk' in str(data.notes)
  empty = [p.text for p in report.problems if p.kind == 'folders without images']
  assert empty == [
    'train/elk holds no image that can be read, only 2 .cr2',
    'train/empty holds no image that can be read, only nothing',
    'val/elk holds no image that can be read, only 1 .heic; convert HEIC, to JPEG for instance',
  ]


@pytest.mark.parametrize('names', ['Zoë, Élan', '한국, 日本', 'Åland, Ångström'])
def test_unicode_forms_are_one_name_written_as_it_was_read(tmp_path, names):
  first, second = names.split(', ')
  forms = [unicodedata.normalize(form, first) for form in ('NFC', 'NFD')]
  if forms[0] == forms[1]:
    pytest.skip('has one form')
  draw(tmp_path, f'train/{forms[1]}*3, train/{second}*3, val/{forms[0]}, val/{second}')
  data = sources.load(options(tmp_path))
  assert agreement.assert_agree(options(tmp_path)) == ''
  assert len(data.taxonomy.names[0]) == 2
  # the first that is read, in the training folder
  assert forms[1] in data.taxonomy.names[0] and forms[0] not in data.taxonomy.names[0]
  assert all((tmp_path / f).is_file() for x in data.splits.values() for f in x.files)
  assert any('differ only in their Unicode form are one' in note for note in data.notes)
  # a taxonomy in the other form has the class, too
  (tmp_path / 'taxonomy.csv').write_text(f'name\n{forms[0]}\n{second}\n')
  assert content(sources.load(options(tmp_path)))['val'] == {forms[0]: 1, second: 1}


def test_a_part_of_the_classes_is_read_by_the_whole_taxonomy(tmp_path):
  """Names with parents in front, as a taxonomy of folders has them, are the folders' paths."""
  root = draw(tmp_path / 'all', 'A/x/red*4, A/y/red*4, B/x/blue*4, B/z*4')
  data = sources.load(options(root, val_share=0.0))
  names = ('x/red', 'y/red', 'blue', 'z')
  assert {*data.taxonomy.names[-1]} == {*names}
  rows = [','.join(data.taxonomy.levels), *map(','.join, data.taxonomy.rows())]
  (tmp_path / 'taxonomy.csv').write_text('\n'.join(rows))
  parts = {
    'test/A/y/red*2': {'A/y/y/red': 2},
    'test/A/x/red': {'A/A/x/x/red': 1},
    'test/B/z, test/B/x/blue': {'B/z/z': 1, 'B/B/x/blue': 1},
    'test/y/red*3': {'A/y/y/red': 3},
  }
  for i, (tree, expected) in enumerate(parts.items()):
    part = draw(tmp_path / f'part{i}', tree)
    assert_reads(part, {'test': expected}, taxonomy=str(tmp_path / 'taxonomy.csv'))
  unclear = draw(tmp_path / 'unclear', 'test/C/red')
  changes = {'taxonomy': str(tmp_path / 'taxonomy.csv')}
  agreement.refuses(options(unclear, **changes), 'folder C/red: ')


def test_links_out_of_the_folder_are_followed_with_a_note(tmp_path):
  outside = draw(tmp_path / 'outside', 'dog*3')
  root = draw(tmp_path / 'data', 'train/cat*4, train/fox*4, val/cat, val/fox')
  os.symlink(outside / 'dog', root / 'train/dog')
  os.symlink(outside / 'dog/1.png', root / 'val/cat/9.png')
  os.symlink(root / 'train/cat/0.png', root / 'train/fox/inside.png')
  data = sources.load(options(root))
  assert content(data)['train'] == {'cat': 4, 'dog': 3, 'fox': 5}
  notes = [note for note in data.notes if 'lead out of' in note]
  assert len(notes) == 1 and 'train/dog -> ' in notes[0] and notes[0].endswith(' and 1 more')
  assert notes[0] in lint.check(options(root)).text()


def test_pipes_and_sockets_among_folders_end_no_run(tmp_path):
  root = draw(tmp_path, 'train/cat*4, train/dog*4, val/cat, val/dog')
  os.mkfifo(root / 'train/cat/pipe.png')
  os.mkfifo(root / 'train/owl')
  data = sources.load(options(root))
  assert content(data)['train'] == {'cat': 5, 'dog': 4}
  problems = [str(p) for p in lint.check(options(root)).problems if p.severity == 'error']
  assert len(problems) == 1 and 'pipe.png' in problems[0] and 'only regular files' in problems[0]
  with pytest.raises(UserError, match='no such folder'):
    sources.load(options(root / 'train/owl'))


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
  root, scan = draw(tmp_path, 'train/cat*4, train/dog*4, val/cat, val/dog'), os.scandir

  def scandir(path):
    if pathlib.Path(path).name == 'dog':
      raise PermissionError(13, 'Permission denied')
    return scan(path)

  monkeypatch.setattr(os, 'scandir', scandir)
  expected = {'train': {'cat': 4}, 'val': {'cat': 1}}
  assert_reads(root, expected, ('dog: cannot be read (Permission denied); it is left out',))


def test_links_out_of_the_folder_of_a_csv_are_noted(tmp_path):
  draw(tmp_path / 'outside', 'dog*2')
  root = draw(tmp_path / 'data', 'cat*3')
  os.symlink(tmp_path / 'outside/dog', root / 'dog')
  os.symlink(tmp_path / 'outside/dog/0.png', root / 'cat/7.png')
  rows = [f'{name}/{i}.png,{name}' for name, i in (('cat', 0), ('cat', 7), ('dog', 0), ('dog', 1))]
  (root / 'labels.csv').write_text('\n'.join(['file,name', *rows]))
  notes = [note for note in sources.load(options(root)).notes if 'lead out of' in note]
  assert len(notes) == 1 and 'dog -> ' in notes[0] and notes[0].endswith('and 1 more')
  os.remove(root / 'labels.csv')
