"""Names with several classes above them, against counts by hand; and spellings of names."""

import itertools
import random
from collections import defaultdict

import numpy as np
import pytest

from hierjax.core.errors import UserError
from hierjax.taxonomy import Taxonomy
from hierjax.taxonomy.homonyms import is_tree, resolve
from hierjax.taxonomy.spelling import fold, unify
from hierjax.taxonomy.table import spellings

LEVELS = ('phylum', 'genus', 'species')


def random_rows(seed):
  r = random.Random(seed)
  genera, phyla = [f'g{i}' for i in range(r.randint(2, 9))], ('a', 'b', 'c')
  home = {g: r.choice(phyla) for g in genera}
  rows = []
  for i in range(r.randint(3, 30)):
    genus = r.choice(genera)
    phylum = r.choice(phyla) if r.random() < r.choice((0, 0.1, 0.6)) else home[genus]
    rows.append([phylum, genus, f's{i}'])
  return rows


def parents_of(rows, k=1):
  parents = defaultdict(set)
  for row in rows:
    parents[row[k]].add(row[k - 1])
  return parents


@pytest.mark.parametrize('seed', range(40))
def test_reading_against_counts_by_hand(seed):
  rows = random_rows(seed)
  parents = parents_of(rows)
  homonyms = {name for name, above in parents.items() if len(above) > 1}
  split = resolve(LEVELS, rows, 'split')
  assert all(len(above) == 1 for above in parents_of(split.rows).values())
  for row, new in zip(rows, split.rows):
    assert new == [row[0], f'{row[0]}/{row[1]}' if row[1] in homonyms else row[1], row[2]]
  assert resolve(LEVELS, rows, 'merge').rows == rows
  single = [name for name in parents if name not in homonyms]
  informative = [name for name in single if sum(row[1] == name for row in rows) > 1]
  is_rare = len(homonyms) < len(informative) or len(homonyms) <= max(1, len(parents) // 10)
  auto = resolve(LEVELS, rows, 'auto')
  assert auto.rows == (split.rows if len(homonyms) < len(single) and is_rare else rows)
  assert set(auto.homonyms.get('genus', ())) == (homonyms if auto.rows != rows else set())
  is_facet = not (len(homonyms) < len(single) and is_rare) and single
  assert auto.facets == ([('genus', 'phylum')] if is_facet else [])


@pytest.mark.parametrize('seed', range(40))
def test_a_name_stands_for_the_class_that_goes_with_the_others(seed):
  rows = random_rows(seed)
  reading = resolve(LEVELS, rows, 'split')
  taxonomy = Taxonomy.from_rows(LEVELS, reading.rows)
  for row, new in zip(rows, reading.rows):
    ids = [names.index(name) for names, name in zip(taxonomy.names, new)]
    assert taxonomy.encode(dict(zip(LEVELS, row))).tolist() == ids
    assert taxonomy.encode(dict(zip(LEVELS, new))).tolist() == ids
    assert taxonomy.encode({'phylum': row[0], 'genus': row[1]}).tolist() == [*ids[:2], -1]
  for name in {row[1] for row in rows}:
    assert name in spellings(taxonomy, 'genus')
    if name in reading.homonyms.get('genus', ()):
      with pytest.raises(UserError, match=f"genus '{name}' is the name of . classes; write '"):
        taxonomy.encode({'genus': name})


def test_homonyms_below_homonyms_and_branches_that_end():
  rows = [['a', 'x', '1', 'p'], ['b', 'x', '1', 'q'], ['b', 'y', '2', 'r'], ['a', 'z', '', '']]
  reading = resolve(('k', 'l', 'm', 'n'), rows, 'split')
  assert reading.rows == [
    ['a', 'a/x', 'a/x/1', 'p'],
    ['b', 'b/x', 'b/x/1', 'q'],
    ['b', 'y', '2', 'r'],
    ['a', 'z', '', ''],
  ]
  taxonomy = Taxonomy.from_rows(('k', 'l', 'm', 'n'), reading.rows)
  expected = [1, -1, taxonomy.names[2].index('b/x/1'), -1]
  assert taxonomy.encode({'k': 'b', 'm': '1'}).tolist() == expected


def test_a_slash_in_a_name_is_no_class_above():
  taxonomy = Taxonomy.from_rows(('kind', 'unit'), [['speed', 'km/h'], ['length', 'km']])
  with pytest.raises(UserError, match="unit 'h' is not in the taxonomy"):
    taxonomy.encode({'unit': 'h'})


def test_what_is_a_tree():
  def tree(nests, leaves):
    return is_tree(np.array(nests, bool), np.array(leaves))

  assert tree([1, 1, 1], [1, 1, 1]) and tree([1, 1, 0], [1, 1, 2])
  assert not tree([0, 0], [2, 2]) and not tree([1, 0], [1, 2])
  assert tree([1] * 19 + [0] * 2, [1] * 21) and not tree([1] * 17 + [0] * 4, [1] * 21)
  assert tree([1] * 17 + [0] * 4, [2] * 21)


@pytest.mark.parametrize(
  ('names', 'same'),
  [
    (('Barn Owl', 'barn owl', 'BARN\u00a0 OWL'), True),
    (('\u00e9', 'e\u0301'), True),
    (('stra\u00dfe', 'STRASSE'), True),
    (('a\u200bb', 'ab'), True),
    (('o', '\u00f6'), False),
    (('ab', 'a b'), False),
    (('a-b', 'ab'), False),
  ],
)
def test_what_spellings_are(names, same):
  for a, b in itertools.combinations(names, 2):
    assert (fold(a) == fold(b)) == same
  counts = {name: n for n, name in enumerate(names, 1)}
  assert unify(counts) == (dict.fromkeys(names[:-1], names[-1]) if same else {})
  assert unify(counts, names) == {}


def test_spellings_of_given_names_must_be_clear():
  counts = {'OWL': 3, 'owl': 1, 'Crow': 1}
  assert unify(counts, ('Owl', 'crow')) == {'OWL': 'Owl', 'owl': 'Owl', 'Crow': 'crow'}
  assert unify(counts, ('Owl', 'owl')) == {}
  assert unify(counts, ('Owl',), case=False) == {}
