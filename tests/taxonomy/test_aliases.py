"""Aliases of classes: in taxonomy.csv, labels, class folders, subsets and renames."""

import numpy as np
import pytest

from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.data import sources
from hierjax.data.findings import Findings
from hierjax.experiments import migrate
from hierjax.taxonomy import describe_difference, leaves_of, read_taxonomy

TEXT = """order,family,species,aliases,family synonyms
Passeriformes,Corvidae,Pica pica,magpie; Elster,crows
Passeriformes,Corvidae,Corvus corax,raven|Kolkrabe,Krähen
Passeriformes,Paridae,,tits,
"""


@pytest.fixture
def birds(tmp_path):
  path = tmp_path / 'taxonomy.csv'
  path.write_text(TEXT)
  return read_taxonomy(path)


def test_labels_and_lists_resolve_and_the_file_is_kept(birds, tmp_path):
  assert birds.levels == ('order', 'family', 'species')
  assert birds.encode({'family': 'crows', 'species': 'raven'}).tolist() == [-1, 0, 1]
  # a branch that ended takes its alias along to the deeper level
  assert birds.encode({'species': 'tits'}).tolist() == [-1, -1, 2]
  assert leaves_of(['Krähen'], birds).tolist() == [True, True, False]
  assert leaves_of(['tits', 'Elster'], birds).tolist() == [True, False, True]
  with pytest.raises(UserError, match="did you mean 'magpie'"):
    birds.encode({'species': 'magpei'})
  birds.to_csv(tmp_path / 'again.csv')
  copy = read_taxonomy(tmp_path / 'again.csv')
  assert copy.aliases == birds.aliases and copy.hash() == birds.hash()
  assert birds.coarsen('family').encode({'family': 'crows'})[1] == 0


def test_aliases_of_exclusive_levels_and_tags_beside_them(tmp_path):
  path = tmp_path / 'taxonomy.csv'
  path.write_text('kind,colour,aliases,kind aliases\ncar,,,auto\n,red,rouge,\n')
  t = read_taxonomy(path, ['colour'])
  assert t.tables[0].encode({'kind': 'auto'}).tolist() == [0]
  assert t.tables[1].encode({'colour': 'rouge'}).tolist() == [0]
  t.to_csv(tmp_path / 'copy.csv')
  assert read_taxonomy(tmp_path / 'copy.csv', ['colour']).aliases == t.aliases


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    ('A,a,x\nA,b,x\n', "csv:3: alias 'x' of child 'b' is of 'a' in row 2"),
    ('A,a,b\nA,b,\n', "csv:2: alias 'b' of child 'a' is a child itself"),
  ],
)
def test_an_ambiguous_alias_is_refused_with_its_rows(rows, message, tmp_path):
  path = tmp_path / 'taxonomy.csv'
  path.write_text('parent,child,alias\n' + rows)
  with pytest.raises(UserError, match=message):
    read_taxonomy(path)
  c = config.default()
  c.data.root = str(tmp_path)
  (tmp_path / 'labels.csv').write_text('file,child\n1.png,a\n')
  findings = Findings(gather=True)
  sources.read_table(c.data, findings)
  assert 'alias' in {p.kind for p in findings.problems}


def test_a_level_may_be_called_so_where_it_is_the_only_one(tmp_path):
  path = tmp_path / 'taxonomy.csv'
  path.write_text('aliases\nx\ny\n')
  assert read_taxonomy(path).levels == ('aliases',)


def test_labels_of_a_data_set(birds, tmp_path):
  (tmp_path / 'labels.csv').write_text('file,family,species\n1.png,Crows,MAGPIE\n2.png,,raven\n')
  for i in (1, 2):
    (tmp_path / f'{i}.png').touch()
  c = config.default()
  c.data.root = str(tmp_path)
  assert sources.read_table(c.data, Findings()).labels[:, 2].tolist() == [0, 1]
  for name in ('labels.csv', '1.png', '2.png'):
    (tmp_path / name).unlink()
  for i, folder in enumerate(('crows/raven', 'magpie', 'Paridae')):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / f'{i}.png').touch()
  table = sources.read_table(c.data, Findings())
  assert dict(zip(table.files, table.labels[:, 2])) == {
    'crows/raven/0.png': 1,
    'magpie/1.png': 0,
    'Paridae/2.png': 2,
  }


def test_renamed_classes_are_the_same_ones(birds, tmp_path):
  """A class whose old name is an alias now is the same class."""
  path = tmp_path / 'new.csv'
  path.write_text(
    'order,family,species,aliases\n'
    'Passeriformes,Corvidae,Elster,Pica pica\n'
    'Passeriformes,Corvidae,Corvus corax principalis,Corvus corax\n'
    'Passeriformes,Paridae,,\n'
  )
  new = read_taxonomy(path)
  assert migrate.correspond(birds, new, {})['species'] == [(0,), (1,), (2,)]
  changes = migrate.class_changes(birds, new)['species']
  assert changes['renamed'] == ['Pica pica -> Elster', 'Corvus corax -> Corvus corax principalis']
  text = describe_difference(birds, new)
  assert text.startswith('2 renamed: Pica pica to Elster, Corvus corax to Corvus corax pr')
  assert 'only' not in text
  renames = tmp_path / 'renames.csv'
  renames.write_text('level,old,new\nspecies,raven,Elster\n')
  assert migrate.read_renames(renames, birds, new) == {('species', 'Corvus corax'): ['Elster']}
  np.testing.assert_array_equal(birds.paths, new.paths)
