"""CSV files as people have them: what is read of each, what is said of it, and what is refused."""

import io
import json
import os
import re
import tracemalloc
import unicodedata

import agreement
import numpy as np
import pytest
from PIL import Image

from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.data import lint, sources
from hierjax.taxonomy import csv_files, read_taxonomy


def picture(seed):
  pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, 'PNG')
  return buffer.getvalue()


def put(root, files):
  """Write {path: text, bytes, or None for a picture} below a folder."""
  for i, (name, content) in enumerate(files.items()):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = picture(i) if content is None else content
    path.write_bytes(content.encode() if isinstance(content, str) else content)
  return root


def options_of(root, **changes):
  c = config.default()
  for name, value in {'root': str(root), **changes}.items():
    config.assign(c, f'data.{name}', value)
  return c.data


def pictures(*names):
  return dict.fromkeys(names)


def labels_of(data):
  """{file: its class at each level, or its tags}."""
  result = {}
  for split in data.splits.values():
    for i, file in enumerate(split.files):
      exclusive, tags = data.taxonomy.table('exclusive'), data.taxonomy.table('tags')
      names = []
      if exclusive:
        rows = zip(exclusive.names, split.labels[i])
        names += [level[c] if c >= 0 else '' for level, c in rows]
      if tags:
        every = [name for level in tags.names for name in level]
        names += [{name for name, x in zip(every, split.multi[i]) if x == 1}]
      result[file] = names
  return result


FOUR = pictures('1.png', '2.png', '3.png', '4.png')
BIRDS = {'1.png': ['Bird', 'Owl'], '2.png': ['Bird', 'Crow'], '3.png': ['Fish', 'Carp']}
THREE = pictures('1.png', '2.png', '3.png')
ROWS = 'file,kind,animal\n1.png,Bird,Owl\n2.png,Bird,Crow\n3.png,Fish,Carp\n'
TREE = ('kind', 'animal')


def renamed(header, rows=ROWS):
  return header + rows[rows.index('\n') :]


# name: (files, options, levels, {file: labels}, what the notes say)
READ = {
  'tabs': (
    {'list.tsv': ROWS.replace(',', '\t'), **THREE},
    {},
    TREE,
    BIRDS,
    ['cells are separated by a tab'],
  ),
  'pipes': (
    {'a.csv': ROWS.replace(',', '|'), **THREE},
    {},
    TREE,
    BIRDS,
    ['cells are separated by a pipe'],
  ),
  'semicolons, and commas in names': (
    {'a.csv': 'file;kind\n1.png;owl, barn\n2.png;owl, eagle\n', **pictures('1.png', '2.png')},
    {},
    ('kind',),
    {'1.png': ['owl, barn'], '2.png': ['owl, eagle']},
    ['cells are separated by a semicolon'],
  ),
  'a comma in quotes and semicolons in names': (
    {'a.csv': 'file,kind\n1.png,"owl, barn"\n2.png,a;b\n', **pictures('1.png', '2.png')},
    {},
    ('kind',),
    {'1.png': ['owl, barn'], '2.png': ['a;b']},
    [],
  ),
  'blanks before quotes': (
    {
      'a.csv': '"file" , "kind"\n"1.png", "owl, barn"\n"2.png", "crow"\n',
      **pictures('1.png', '2.png'),
    },
    {},
    ('kind',),
    {'1.png': ['owl, barn'], '2.png': ['crow']},
    [],
  ),
  'the first line of a spreadsheet': (
    {'a.csv': 'sep=;\r\n' + ROWS.replace(',', ';'), **THREE},
    {},
    TREE,
    BIRDS,
    ['cells are separated by a semicolon'],
  ),
  'measures with a decimal comma': (
    {'a.csv': 'file;weight;kind\n1.png;1,5;a\n2.png;0,25;b\n3.png;3,0;a\n', **THREE},
    {},
    ('kind',),
    {'1.png': ['a'], '2.png': ['b'], '3.png': ['a']},
    ["'weight' (measures)"],
  ),
  'a header in another Unicode form': (
    {
      'labels.csv': unicodedata.normalize('NFC', renamed('file,Größe,animal')),
      'taxonomy.csv': unicodedata.normalize(
        'NFD', 'Größe,animal\nBird,Owl\nBird,Crow\nFish,Carp\n'
      ),
      **THREE,
    },
    {},
    (unicodedata.normalize('NFD', 'Größe'), 'animal'),
    BIRDS,
    ["files by column 'file'"],
  ),
  'the delimiter by option': (
    {'a.csv': 'file,x;kind\n1.png;owl\n2.png;crow\n', **pictures('1.png', '2.png')},
    {'delimiter': 'semicolon', 'file_column': 'file,x'},
    ('kind',),
    {'1.png': ['owl'], '2.png': ['crow']},
    ["files by column 'file,x'"],
  ),
  'UTF-16 of a spreadsheet': (
    {'labels.csv': ROWS.replace('Owl', 'Käuzchen').encode('utf-16'), **THREE},
    {},
    TREE,
    BIRDS | {'1.png': ['Bird', 'Käuzchen']},
    ['read as UTF-16'],
  ),
  'UTF-16 without a mark': (
    {'labels.csv': ROWS.encode('utf-16-le'), **THREE},
    {},
    TREE,
    BIRDS,
    ['read as UTF-16'],
  ),
  'Windows-1252': (
    {'labels.csv': ROWS.replace('Owl', 'Käuzchen').encode('cp1252'), **THREE},
    {},
    TREE,
    BIRDS | {'1.png': ['Bird', 'Käuzchen']},
    ['read as Windows-1252', 'data.encoding'],
  ),
  'Cyrillic by option': (
    {'labels.csv': ROWS.replace('Owl', 'сова').encode('cp1251'), **THREE},
    {'encoding': 'cp1251'},
    TREE,
    BIRDS | {'1.png': ['Bird', 'сова']},
    [],
  ),
  'old Mac line ends': ({'labels.csv': ROWS.replace('\n', '\r'), **THREE}, {}, TREE, BIRDS, []),
  'the CSV itself as root': (
    {'sub/x.csv': ROWS, **{f'sub/{name}': None for name in THREE}},
    {'root': 'sub/x.csv'},
    TREE,
    BIRDS,
    [],
  ),
  'file names in another column': (
    {'labels.csv': renamed('Image Path,kind,animal'), **THREE},
    {},
    TREE,
    BIRDS,
    ["files by column 'Image Path'", 'data.file_column'],
  ),
  'file names by content': (
    {'labels.csv': renamed('Bild,kind,animal'), **THREE},
    {},
    TREE,
    BIRDS,
    ["files by column 'Bild'"],
  ),
  'columns by option': (
    {
      'labels.csv': 'before,after,kind,animal,zone\n'
      'x.png,1.png,Bird,Owl,a\ny.png,2.png,Bird,Crow,b\nz.png,3.png,Fish,Carp,a\n',
      **THREE,
      **pictures('x.png', 'y.png', 'z.png'),
    },
    {'file_column': 'after', 'levels': 'kind,animal'},
    TREE,
    BIRDS,
    ["files by column 'after'"],
  ),
  'another column than that called file, by option': (
    {
      'labels.csv': 'file,set,path,kind,animal\n'
      + ''.join(f'x{row[:1]},s,{row}\n' for row in ROWS.splitlines()[1:]),
      **THREE,
    },
    {'file_column': 'path', 'levels': 'kind,animal'},
    TREE,
    BIRDS,
    ["files by column 'path'"],
  ),
  'levels from fine to coarse': (
    {'labels.csv': 'file,animal,kind\n1.png,Owl,Bird\n2.png,Crow,Bird\n3.png,Carp,Fish\n', **THREE},
    {},
    TREE,
    BIRDS,
    ['labels by kind, animal', 'coarse to fine'],
  ),
  'levels in disorder': (
    {
      'labels.csv': 'file,genus,order,species\n1.png,Bubo,Owls,B. bubo\n2.png,Strix,Owls,S. aluco\n'
      '3.png,Larus,Gulls,L. canus\n4.png,Larus,Gulls,L. fuscus\n',
      **FOUR,
    },
    {},
    ('order', 'genus', 'species'),
    {
      '1.png': ['Owls', 'Bubo', 'B. bubo'],
      '2.png': ['Owls', 'Strix', 'S. aluco'],
      '3.png': ['Gulls', 'Larus', 'L. canus'],
      '4.png': ['Gulls', 'Larus', 'L. fuscus'],
    },
    ['labels by order, genus, species'],
  ),
  'an index, dates, measures and empty columns': (
    {
      'labels.csv': ',file,kind,animal,taken,weight,remark\n0,1.png,Bird,Owl,2024-01-03,1.5,\n'
      '1,2.png,Bird,Crow,2024-01-04,0.25,\n2,3.png,Fish,Carp,2024-02-01,3.0,\n',
      **THREE,
    },
    {},
    TREE,
    BIRDS,
    ["'(column 1)' (no name)", "'taken' (dates)", "'weight' (measures)", "'remark' (empty)"],
  ),
  'ids of the classes beside their names': (
    {
      'labels.csv': 'file,class_id,class\n1.png,7,owl\n2.png,9,carp\n3.png,7,owl\n4.png,9,carp\n',
      **FOUR,
    },
    {},
    ('class',),
    {'1.png': ['owl'], '2.png': ['carp'], '3.png': ['owl'], '4.png': ['carp']},
    ["'class_id' (numbers beside names)"],
  ),
  'classes that are numbers': (
    {'labels.csv': 'file,digit\n1.png,3\n2.png,4\n3.png,3\n', **THREE},
    {},
    ('digit',),
    {'1.png': ['3'], '2.png': ['4'], '3.png': ['3']},
    [],
  ),
  'spellings of one class': (
    {
      'labels.csv': 'file,class\n1.png,barn  owl\n2.png,Barn Owl\n3.png,Barn Owl\n4.png,carp\n',
      **FOUR,
    },
    {},
    ('class',),
    {'1.png': ['Barn Owl'], '2.png': ['Barn Owl'], '3.png': ['Barn Owl'], '4.png': ['carp']},
    ['1 cells of class are another spelling of a class', "'barn  owl' for 'Barn Owl'"],
  ),
  'case is kept apart by option': (
    {'labels.csv': 'file,letter\n1.png,a\n2.png,A\n', **pictures('1.png', '2.png')},
    {'fold_case': 'false'},
    ('letter',),
    {'1.png': ['a'], '2.png': ['A']},
    [],
  ),
  'spellings of the classes of a taxonomy': (
    {
      'labels.csv': renamed('FILE,Kind,ANIMAL').replace('Owl', 'OWL'),
      'taxonomy.csv': 'kind,animal\nBird,Owl\nBird,Crow\nFish,Carp\n',
      **THREE,
    },
    {},
    TREE,
    BIRDS,
    ["'OWL' for 'Owl'", "files by column 'FILE'"],
  ),
  'levels by option beside a taxonomy': (
    {
      'labels.csv': renamed('file,Art,Tier'),
      'taxonomy.csv': 'kind,animal\nBird,Owl\nBird,Crow\nFish,Carp\n',
      **THREE,
    },
    {'levels': 'Art,Tier'},
    TREE,
    BIRDS,
    ['labels by kind, animal'],
  ),
  'backslashes and one folder of images': (
    {
      'labels.csv': ROWS.replace('1.png', 'a\\1.png'),
      'pics/a/1.png': None,
      'pics/2.png': None,
      'pics/3.png': None,
    },
    {'image_root': 'pics'},
    TREE,
    {'a/1.png': BIRDS['1.png'], '2.png': BIRDS['2.png'], '3.png': BIRDS['3.png']},
    [],
  ),
  'paths of another machine': (
    {
      'labels.csv': ROWS.replace('1.png', 'C:\\data\\a\\1.png').replace('2.', '/home/x/b/2.'),
      'a/1.png': None,
      'b/1.png': None,
      'b/2.png': None,
      '3.png': None,
    },
    {},
    TREE,
    {'a/1.png': BIRDS['1.png'], 'b/2.png': BIRDS['2.png'], '3.png': BIRDS['3.png']},
    ['2 of 3 files are not at their path', 'data.image_root'],
  ),
  'names without a suffix': (
    {'labels.csv': renamed('image_id,kind,animal').replace('.png', ''), **THREE},
    {},
    TREE,
    BIRDS,
    ['3 of 3 files are not at their path'],
  ),
  'Unicode forms of file names': (
    {
      'labels.csv': unicodedata.normalize('NFC', 'file,class\nÖl/é.png,ö\n1.png,u\n'),
      unicodedata.normalize('NFD', 'Öl/é.png'): None,
      '1.png': None,
    },
    {},
    ('class',),
    {unicodedata.normalize('NFD', 'Öl/é.png'): ['ö'], '1.png': ['u']},
    [],
  ),
  'Unicode forms of classes': (
    {
      'labels.csv': 'file,class\n1.png,\u00e9t\u00e9\n2.png,e\u0301te\u0301\n3.png,\u00e9t\u00e9\n',
      **THREE,
    },
    {},
    ('class',),
    {f'{i}.png': ['\u00e9t\u00e9'] for i in (1, 2, 3)},
    ['1 cells of class are another spelling'],
  ),
  'homonyms of a genus': (
    {
      'labels.csv': 'file,phylum,genus,species\n'
      '1.png,animals,Oenanthe,O. deserti\n2.png,plants,Oenanthe,O. crocata\n'
      '3.png,plants,Rosa,R. canina\n4.png,animals,Felis,F. catus\n',
      **FOUR,
    },
    {},
    ('phylum', 'genus', 'species'),
    {
      '1.png': ['animals', 'animals/Oenanthe', 'O. deserti'],
      '2.png': ['plants', 'plants/Oenanthe', 'O. crocata'],
      '3.png': ['plants', 'Rosa', 'R. canina'],
      '4.png': ['animals', 'Felis', 'F. catus'],
    },
    ["genus 'Oenanthe' stands under several classes", 'animals/Oenanthe', 'data.homonyms=merge'],
  ),
  'facets stay facets': (
    {
      'labels.csv': 'file,make,type,model\n1.png,A,suv,a1\n2.png,A,van,a2\n3.png,B,suv,b1\n'
      '4.png,B,van,b2\n',
      **FOUR,
    },
    {},
    ('make', 'type', 'model'),
    {
      '1.png': ['A', 'suv', 'a1'],
      '2.png': ['A', 'van', 'a2'],
      '3.png': ['B', 'suv', 'b1'],
      '4.png': ['B', 'van', 'b2'],
    },
    [],
  ),
  'facets as a tree by option': (
    {
      'labels.csv': 'file,make,type,model\n1.png,A,suv,a1\n2.png,A,van,a2\n3.png,B,suv,b1\n'
      '4.png,B,van,b2\n',
      **FOUR,
    },
    {'homonyms': 'split'},
    ('make', 'type', 'model'),
    {
      '1.png': ['A', 'A/suv', 'a1'],
      '2.png': ['A', 'A/van', 'a2'],
      '3.png': ['B', 'B/suv', 'b1'],
      '4.png': ['B', 'B/van', 'b2'],
    },
    ["type 'suv' stands under several classes", '1 more such names'],
  ),
  'homonyms of the finest level by option': (
    {
      'labels.csv': 'file,genus,epithet\n1.png,Calluna,vulgaris\n2.png,Sturnus,vulgaris\n'
      '3.png,Quercus,robur\n4.png,Calluna,vulgaris\n',
      **FOUR,
    },
    {'homonyms': 'split'},
    ('genus', 'epithet'),
    {
      '1.png': ['Calluna', 'Calluna/vulgaris'],
      '2.png': ['Sturnus', 'Sturnus/vulgaris'],
      '3.png': ['Quercus', 'robur'],
      '4.png': ['Calluna', 'Calluna/vulgaris'],
    },
    ["epithet 'vulgaris' stands under several classes"],
  ),
  'tags separated by semicolons': (
    {'labels.csv': 'file,Tags\n1.png,sky; sea\n2.png,sea\n3.png,Sky;tree\n4.png,-\n', **FOUR},
    {'multi': 'tags'},
    ('tags',),
    {'1.png': [{'sky', 'sea'}], '2.png': [{'sea'}], '3.png': [{'sky', 'tree'}], '4.png': [set()]},
    ['tags are separated by a semicolon', "'Sky' for 'sky'"],
  ),
  'tags as lists of a program': (
    {
      'labels.csv': 'file,tags\n1.png,"[\'sky, blue\', \'sea\']"\n2.png,"[""sea""]"\n3.png,[]\n',
      **THREE,
    },
    {'multi': 'tags'},
    ('tags',),
    {'1.png': [{'sky, blue', 'sea'}], '2.png': [{'sea'}], '3.png': [set()]},
    ['tags are lists in brackets, as in '],
  ),
  'tags as sets of a database': (
    {'labels.csv': 'file,tags\n1.png,"{sky,sea}"\n2.png,{sea}\n3.png,sky\n', **THREE},
    {'multi': 'tags'},
    ('tags',),
    {'1.png': [{'sky', 'sea'}], '2.png': [{'sea'}], '3.png': [{'sky'}]},
    ["tags are lists in brackets, as in '{sky,sea}'"],
  ),
  'tags that may be made of others': (
    {'labels.csv': 'file,tags\n1.png,fire truck\n2.png,fire\n3.png,truck\n', **THREE},
    {'multi': 'tags'},
    ('tags',),
    {'1.png': [{'fire truck'}], '2.png': [{'fire'}], '3.png': [{'truck'}]},
    ["tags 'fire truck' is made of other classes (fire, truck)"],
  ),
  'tags that are made of others, by option': (
    {'labels.csv': 'file,tags\n1.png,AC/DC\n2.png,AC\n3.png,DC\n', **THREE},
    {'multi': 'tags', 'tag_separator': 'never'},
    ('tags',),
    {'1.png': [{'AC/DC'}], '2.png': [{'AC'}], '3.png': [{'DC'}]},
    [],
  ),
  'sets in a column of one class': (
    {'labels.csv': 'file,kind\n1.png,sky;sea\n2.png,Sea\n3.png,sky\n', **THREE},
    {},
    ('kind',),
    {'1.png': ['sky;sea'], '2.png': ['Sea'], '3.png': ['sky']},
    ["kind 'sky;sea' is made of other classes (sky, sea); if an image may have several: --config"],
  ),
  'tags separated by blanks': (
    {'labels.csv': 'file,tags\n1.png,sky sea\n2.png,sea\n3.png,tree\n', **THREE},
    {'multi': 'tags', 'tag_separator': 'blank'},
    ('tags',),
    {'1.png': [{'sky', 'sea'}], '2.png': [{'sea'}], '3.png': [{'tree'}]},
    [],
  ),
  'tags with commas in their names': (
    {'labels.csv': 'file,tags\n1.png,"hen, coot|sea"\n2.png,sea\n3.png,-\n', **THREE},
    {'multi': 'tags'},
    ('tags',),
    {'1.png': [{'hen, coot', 'sea'}], '2.png': [{'sea'}], '3.png': [set()]},
    [],
  ),
  'tags as a data frame writes them': (
    {'labels.csv': 'file,sky,sea\n1.png,True,1.0\n2.png,False,0.0\n3.png,false,\n', **THREE},
    {'multi': 'scene'},
    ('scene',),
    {'1.png': [{'sky', 'sea'}], '2.png': [set()], '3.png': [set()]},
    [],
  ),
  'a CSV beside class folders that lists no images': (
    {'stats.csv': 'class,count\nowl,2\ncarp,2\n', 'owl/1.png': None, 'carp/2.png': None},
    {},
    ('class',),
    {'owl/1.png': ['owl'], 'carp/2.png': ['carp']},
    ['stats.csv', 'is not read, as no column names images'],
  ),
}


@pytest.mark.parametrize('name', READ)
def test_what_is_read(name, tmp_path):
  files, changes, levels, labels, remarks = READ[name]
  put(tmp_path, files)
  root = tmp_path / changes.get('root', '')
  options = options_of(root, **{k: v for k, v in changes.items() if k != 'root'})
  assert agreement.assert_agree(options) == ''
  data = sources.load(options)
  assert data.taxonomy.levels == levels
  assert labels_of(data) == labels
  report = lint.check(options)
  assert not [p for p in report.problems if p.severity == 'error']
  log, page = '\n'.join(data.notes), report.text()
  for remark in remarks:
    assert remark in log and remark in page, (remark, log)
  if not remarks:
    assert all(n.startswith(('taxonomy', 'split made')) or 'not used' in n for n in data.notes)


SPLITS = 'file,{},class\n1.png,{},a\n2.png,{},b\n3.png,{},a\n4.png,{},b\n'


@pytest.mark.parametrize(
  ('header', 'values', 'expected'),
  [
    ('SPLIT', ('train', 'train', 'val', 'val'), {'train': 2, 'val': 2}),
    ('Subset', ('Train', 'Train', 'Validation', 'Test'), {'train': 2, 'val': 1, 'test': 1}),
    ('set', ('training', 'training', 'dev', 'testing'), {'train': 2, 'val': 1, 'test': 1}),
    ('Partition', ('TRAIN', 'TRAIN', 'VAL', 'VAL'), {'train': 2, 'val': 2}),
    ('fold', ('train', 'train', 'val', 'val'), {'train': 2, 'val': 2}),
    ('split', ('train', 'train', 'other', 'val'), {'train': 2, 'other': 1, 'val': 1}),
    ('phase', ('train', 'train', 'valid', 'valid'), {'train': 2, 'val': 2}),
    ('train/test', ('TRAIN', 'TRAIN', 'Val', 'Test'), {'train': 2, 'val': 1, 'test': 1}),
  ],
)
def test_columns_of_splits(header, values, expected, tmp_path):
  options = options_of(put(tmp_path, {'labels.csv': SPLITS.format(header, *values), **FOUR}))
  data = sources.load(options)
  assert {name: len(split.files) for name, split in data.splits.items()} == expected
  assert data.taxonomy.levels == ('class',) and agreement.assert_agree(options) == ''
  assert header == 'split' or any(f"splits by '{header}'" in note for note in data.notes)


def test_a_second_column_of_splits_is_no_level(tmp_path):
  rows = SPLITS.format('split,fold', *['train,train'] * 3, 'val,train')
  data = sources.load(options_of(put(tmp_path, {'labels.csv': rows, **FOUR})))
  assert data.taxonomy.levels == ('class',) and "'fold' (names of splits)" in data.notes[0]
  # where it is the only column, it holds classes
  vehicles = 'file,class\n1.png,train\n2.png,train\n'
  data = sources.load(options_of(put(tmp_path / 'x', {'labels.csv': vehicles, **FOUR})))
  assert data.taxonomy.names == (('train',),)


def test_a_column_of_splits_by_option_and_numbers_of_folds(tmp_path):
  root = put(tmp_path, {'labels.csv': SPLITS.format('fold', *'0123'), **FOUR})
  data = sources.load(options_of(root))
  assert set(data.splits) == {'train', 'val'} and data.taxonomy.levels == ('class',)
  assert any("'fold' (numbers" in note for note in data.notes)
  data = sources.load(options_of(root, split_column='FOLD', train='0', val='1'))
  assert set(data.splits) == set('0123')


# name: (files, options, what the error says)
REFUSED = {
  'two CSV files': (
    {'a.csv': ROWS, 'b.csv': ROWS, **THREE},
    {},
    'a.csv, b.csv each list images; choose one with --config.data.root=.*/a.csv',
  ),
  'no images in any column': (
    {'labels.csv': 'name,count\nowl,2\ncrow,3\n', **THREE},
    {},
    'labels.csv:1: no column "file", nor another that names images; choose one with '
    '--config.data.file_column: the columns are name, count',
  ),
  'two columns of images': (
    {'labels.csv': 'left,right,class\n1.png,2.png,a\n3.png,4.png,b\n', **FOUR},
    {},
    'columns left, right name images; choose one with --config.data.file_column',
  ),
  'no header': (
    {'labels.csv': '1.png,owl\n2.png,crow\n', **THREE},
    {},
    'the first row must name the columns, not an image',
  ),
  'an option that names no column': (
    {'labels.csv': ROWS, **THREE},
    {'levels': 'kind,animl'},
    r"--config.data.levels: no column 'animl' \(did you mean 'animal'\?\); the columns",
  ),
  'columns that are no levels': (
    {
      'labels.csv': 'file,region,class\n1.png,north,owl\n2.png,south,owl\n3.png,north,carp\n'
      '4.png,south,carp\n',
      **FOUR,
    },
    {},
    "labels.csv:3: class 'owl' has region 'south' here and 'north' in .*labels.csv:2; every finest "
    r'class has one path \(two classes: data.homonyms=split\); the levels were read from the '
    'columns region, class, coarse to fine: choose others with --config.data.levels',
  ),
  'a level called all': (
    {'labels.csv': renamed('file,all,animal'), **THREE},
    {},
    "labels.csv:1: a level cannot be called 'all': .*coarsest, finest, all, coarser",
  ),
  'a level called None': (
    {'labels.csv': renamed('file,kind,None'), **THREE},
    {},
    "a level cannot be called 'None'",
  ),
  'a level with an equals sign': (
    {'labels.csv': renamed('file,kind,animal=x'), **THREE},
    {},
    "a level cannot be called 'animal=x': options that name levels read '=' otherwise; choose",
  ),
  'a level with a slash': (
    {'taxonomy.csv': 'kind/sort\na\nb\n', 'a/1.png': None, 'b/2.png': None},
    {},
    "taxonomy.csv:1: a level cannot be called 'kind/sort'",
  ),
  'class folders on a level called finest': (
    {'a/x/1.png': None, 'b/y/2.png': None},
    {'levels': 'finest,kind'},
    "a level cannot be called 'finest'",
  ),
  'a gap in a taxonomy': (
    {'labels.csv': 'file,c\n1.png,x\n', 'taxonomy.csv': 'a,b,c\nroot,,x\n', **THREE},
    {},
    "b is empty before c 'x'; .* write a name for it, such as 'root, no b'",
  ),
  'a gap in labels': (
    {'labels.csv': 'file,a,b,c\n1.png,r,,x\n2.png,r,s,y\n', **THREE},
    {},
    "labels.csv:2: c 'x' has no b in any row; give it in one, such as 'no b'",
  ),
  'a branch that ends and goes on': (
    {'labels.csv': 'file,b\n1.png,y\n', 'taxonomy.csv': 'a,b\nx,\nx,y\n', **THREE},
    {},
    "a 'x' ends here but goes on in row 3: write 'x, other' as its b here, or leave the row out",
  ),
  'tags of one or several names': (
    {'labels.csv': 'file,tags\n1.png,"hen, coot"\n2.png,"gull, tern"\n', **THREE},
    {'multi': 'tags'},
    "tags 'hen, coot' may be one class or several: say with --config.data.tag_separator=comma or",
  ),
  'tags that are made of others': (
    {'labels.csv': 'file,tags\n1.png,sky|sea\n2.png,"sky,sea"\n3.png,sea\n', **THREE},
    {'multi': 'tags'},
    "tags 'sky,sea' is made of other classes",
  ),
  'tags joined by another sign': (
    {'labels.csv': 'file,tags\n1.png,sky+sea\n2.png,sky\n3.png,sea\n', **THREE},
    {'multi': 'tags'},
    r"tags 'sky\+sea' is made of other classes \(sky, sea\): separate them",
  ),
  'a thousand columns': (
    {
      'labels.csv': 'file'
      + ''.join(f',c{k}' for k in range(1000))
      + '\n'
      + ''.join(
        f'{i}.png' + ''.join(f',v{i * k % 7}' for k in range(1000)) + '\n' for i in (1, 2, 3)
      ),
      **THREE,
    },
    {},
    '1000 columns may be levels: choose with --config.data.levels',
  ),
  'a taxonomy of a thousand levels': (
    {
      'labels.csv': 'file,c999\n1.png,x\n2.png,y\n',
      'taxonomy.csv': '\n'.join(','.join(f'{a}{k}' for k in range(1000)) for a in 'cxy'),
      **THREE,
    },
    {},
    'taxonomy.csv:1: 1000 levels; at most 64 are read',
  ),
  'homonyms that the row does not tell apart': (
    {
      'labels.csv': 'file,genus\n1.png,Oenanthe\n2.png,Felis\n',
      'taxonomy.csv': 'phylum,genus,species\nanimals,Oenanthe,O. deserti\n'
      'plants,Oenanthe,O. crocata\nanimals,Felis,F. catus\nplants,Rosa,R. canina\n',
      **THREE,
    },
    {},
    "labels.csv:2: genus 'Oenanthe' is the name of 2 classes; write 'animals/Oenanthe' or "
    "'plants/Oenanthe'",
  ),
  'no folder of images': (
    {'labels.csv': ROWS, **THREE},
    {'image_root': 'pics'},
    '--config.data.image_root=pics: no such folder',
  ),
  'damaged UTF-8': (
    {'labels.csv': ROWS.replace('Owl', 'éèêëéèêë').encode() + b'\xff\n', **THREE},
    {},
    'is not UTF-8 text .*though most of it is',
  ),
  'an encoding that does not fit': (
    {'labels.csv': ROWS.replace('Owl', 'Käuzchen').encode('cp1252'), **THREE},
    {'encoding': 'utf-8'},
    'is not utf-8 text .*data.encoding',
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_is_refused(name, tmp_path):
  files, changes, message = REFUSED[name]
  agreement.refuses(options_of(put(tmp_path, files), **changes), message)


def test_all_faults_of_a_file_at_once(tmp_path):
  rows = 'name,kind,animal\n1.png,Bird,Owl\n2.png,Fish,Owl\n3.png,,Carp\n'
  root = put(tmp_path, {'labels.csv': rows.replace('.png', ''), **THREE})
  problems = [p for p in lint.check(options_of(root, levels='kind,beast')).problems if p.stops]
  assert [p.text.partition(';')[0] for p in problems][:2] == [
    'no column "file", nor another that names images',
    "--config.data.levels: no column 'beast'",
  ]


def test_classes_with_two_paths_hide_no_other_fault(tmp_path):
  rows = 'file,split,kind,animal\n1.png,train,Bird,Owl\n2.png,val,Fish,Owl\n1.png,val,Bird,Owl\n'
  rows += '3.png,,Fish,Carp\n../5.png,train,Fish,Carp\nlost.png,train,Fish,Owl\n'
  data_options = options_of(put(tmp_path, {'labels.csv': rows, **FOUR}))
  agreement.refuses(data_options, "animal 'Owl' has kind 'Fish' here and 'Bird' in .*data.levels")
  problems = {(p.where.rpartition(':')[2], p.kind) for p in lint.check(data_options).problems}
  faults = {('3', 'several paths'), ('4', 'leak'), ('5', 'no split'), ('7', 'missing files')}
  assert problems >= {*faults, ('6', 'path leaves the root')}


# Files of strangers


def hostile(path):
  return {
    'a pipe': lambda: os.mkfifo(path),
    'one line of 100 MB': lambda: path.write_bytes(b'file,class\n' + b'x' * 100_000_000),
    'zero bytes': lambda: path.write_bytes(b'file,class\n1.png,a\0b\n'),
    'a huge field': lambda: path.write_bytes(b'file,class\n1.png,' + b'x' * 200_000 + b'\n'),
    'a quote that is never closed': lambda: path.write_text('file,class\n1.png,"a\n2.png,b\n'),
    'an archive': lambda: path.write_bytes(b'PK\3\4' + bytes(range(256)) * 9),
    'many columns': lambda: path.write_text(
      'file' + ',c' * 2 + ''.join(f',{i}' for i in range(30_000)) + '\n' + '1.png\n' * 1000
    ),
  }


@pytest.mark.parametrize('kind', hostile(None))
def test_hostile_files_are_refused_in_one_line(kind, tmp_path, monkeypatch):
  monkeypatch.setattr(csv_files, 'MAX_CELLS', 1_000_000)
  path = put(tmp_path, THREE) / 'labels.csv'
  hostile(path)[kind]()
  error = agreement.assert_agree(options_of(tmp_path))
  assert re.match(rf'{re.escape(str(path))}(:\d+)?: ', error) and len(error) < 400, error


def test_data_of_before_are_read_as_before(shared):
  """Hashes of taxonomy and labels that commit b26e435 read."""
  expected = {'stanford_cars': '34bf97c703044974', 'birds_dogs_reptiles': '2db9c90987401305'}
  for name, value in expected.items():
    data = sources.load(options_of(shared / name))
    assert data.taxonomy.hash()[:16] == value and data.notes == []


@pytest.mark.parametrize(('homonyms', 'genera'), [('auto', 4), ('merge', 3)])
def test_a_written_taxonomy_reads_to_the_same_hash(homonyms, genera, tmp_path):
  """Whether homonyms were several classes, or one as before; also beside the rows of the data."""
  rows = (
    'animals,Oenanthe,O. deserti\nplants,Oenanthe,O. crocata\nplants,Rosa,R. canina\n'
    'animals,Felis,F. catus\n'
  )
  lines = ''.join(f'{i}.png,{line}\n' for i, line in enumerate(rows.splitlines(), 1))
  root = put(tmp_path, {'labels.csv': 'file,phylum,genus,species\n' + lines, **FOUR})
  data = sources.load(options_of(root, homonyms=homonyms))
  data.taxonomy.to_csv(tmp_path / 'run.csv')
  assert read_taxonomy(tmp_path / 'run.csv').hash() == data.taxonomy.hash()
  lent = sources.load(options_of(root, taxonomy=str(tmp_path / 'run.csv'), homonyms='merge'))
  assert lent.taxonomy.hash() == data.taxonomy.hash() and labels_of(lent) == labels_of(data)
  assert data.taxonomy.num_classes('genus') == genera


def test_a_run_of_before_keeps_its_classes():
  old = config.tree_from_json(config.to_json(config.default()))
  del old['data']['homonyms']
  assert config.from_json(json.dumps({'version': 2, **old})).data.homonyms == 'merge'


def test_absolute_paths_below_the_root(tmp_path):
  rows = ROWS.replace('1.png', f'{tmp_path}/a/1.png').replace('3.png', f'{tmp_path}//3.png')
  put(tmp_path / 'lists', {'x.csv': rows})
  put(tmp_path, {'a/1.png': None, '2.png': None, '3.png': None})
  for image_root in ('..', str(tmp_path)):
    data = sources.load(options_of(tmp_path / 'lists', image_root=image_root))
    assert labels_of(data) == {'a/1.png': BIRDS['1.png'], **dict(list(BIRDS.items())[1:])}
    assert not any('their path' in note for note in data.notes)


def test_missing_files_among_those_of_another_machine(tmp_path):
  rows = ROWS.replace('1.png', 'D:\\\\x\\\\1.png').replace('2.png', '/data/x/2.png')
  rows = rows.replace('\\\\', '\\') + 'E:\\x\\lost.png,Fish,Carp\n'
  root = put(tmp_path, {'labels.csv': rows, **THREE})
  assert agreement.assert_agree(options_of(root)) == ''
  assert any('no file x/lost.png' in note for note in sources.load(options_of(root)).notes)
  # where none was found, they may be anything
  (root / 'labels.csv').write_text('file,class\n/etc/hosts,a\n/etc/passwd,b\n')
  agreement.refuses(options_of(root), '/etc/hosts leaves the root')


def test_missing_files_are_counted_and_named(tmp_path):
  rows = 'file,class\n' + ''.join(f'{i}.png,{"ab"[i % 2]}\n' for i in range(9))
  root = put(tmp_path, {'labels.csv': rows, **pictures(*(f'{i}.png' for i in range(6)))})
  text = 'no file 6.png (did you mean 5.png?), and 2 more of 9 are missing'
  assert any(text in note for note in sources.load(options_of(root)).notes)
  missing = [p for p in lint.check(options_of(root)).problems if p.kind == 'missing files']
  assert [p.where.rpartition(':')[2] for p in missing] == ['8', '9', '10'] and text in str(
    missing[0]
  )


def test_short_rows_are_counted_before_they_are_kept(tmp_path, monkeypatch):
  """They take many times their bytes, and took them before the limit was met."""
  monkeypatch.setattr(csv_files, 'MAX_CELLS', 20_000)
  path = tmp_path / 'labels.csv'
  path.write_text('file,class\n' + 'a,b\n' * 15_000)
  tracemalloc.start()
  try:
    with pytest.raises(UserError, match='more than 20000 cells'):
      csv_files.read_table(path, 'comma', 'utf-8')
    assert tracemalloc.get_traced_memory()[1] < 2**19
  finally:
    tracemalloc.stop()
  path.write_text('file,class\n' + 'a,b\n' * 9_000)
  assert len(csv_files.read_table(path).rows) == 9_000
