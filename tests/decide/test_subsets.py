"""Subsets of the classes against conditioning by hand: trees, facets, branches that end early."""

import math

import numpy as np
import pytest
from test_paths import path_score, random_probs
from test_taxonomy import RANDOM

from hierjax import decide
from hierjax.core.errors import UserError
from hierjax.decide import paths, subsets
from hierjax.taxonomy import Taxonomy, leaves_of, read_classes

CARS = Taxonomy.from_rows(
  ('make', 'type', 'model'),
  [
    ['Audi', 'Coupe', 'Audi A5'],
    ['Audi', 'Sedan', 'Audi A4'],
    ['BMW', 'Coupe', 'BMW M3'],
    ['BMW', 'SUV', 'BMW X3'],
  ],
)


@pytest.mark.parametrize('t', RANDOM[::3], ids=repr)
def test_conditioning_is_brute_force(t):
  """The joint decision within a subset is that of the paths in it, and the mass of the others."""
  r = np.random.default_rng(len(t.paths))
  probs, weights = random_probs(t, 5, 3), r.uniform(0.2, 2, len(t.levels))
  allowed = r.random(len(t.paths)) < 0.5
  allowed[r.integers(len(allowed))] = True
  temperature = 1.7
  d = paths.joint(probs, t, weights, temperature, allowed)
  heads = paths.independent(probs, t, allowed)
  for n in range(5):
    scores = [path_score(t, probs, weights, n, leaf) for leaf in range(len(t.paths))]
    masses = [math.exp(s / temperature) for s in scores]
    inside = sum(m for m, a in zip(masses, allowed) if a)
    assert d.outside[n] == pytest.approx(1 - inside / sum(masses), abs=1e-12)
    best = max(np.flatnonzero(allowed), key=lambda leaf: scores[leaf])
    assert d.pred[n].tolist() == t.paths[best].tolist()
    for k, names in enumerate(t.names):
      is_possible = [
        any(a and p[k] == c for a, p in zip(allowed, t.paths)) for c in range(len(names))
      ]
      total = sum(p for p, x in zip(probs[k][n], is_possible) if x)
      for c in range(len(names)):
        mass = sum(m for m, a, p in zip(masses, allowed, t.paths) if a and p[k] == c)
        assert d.prob[k][n, c] == pytest.approx(mass / inside, abs=1e-12)
        assert heads.prob[k][n, c] == pytest.approx(probs[k][n, c] / total * is_possible[c])


def test_all_classes_change_nothing_and_nothing_underflows():
  probs = random_probs(CARS, 4, 0)
  free = paths.joint(probs, CARS, [1, 1, 1], 2.0)
  full = paths.joint(probs, CARS, [1, 1, 1], 2.0, np.ones(4, bool))
  for a, b in zip(free.prob, full.prob):
    np.testing.assert_allclose(a, b)
  assert free.outside is None and not full.outside.any()
  # an allowed class as unlikely as e^-1000, and one as likely
  scores = np.array([[0.0, -1000, -1001, -2000], [-1000, 0, -1, -3]])
  prob, outside = subsets.condition(scores, np.array([False, True, True, False]))
  np.testing.assert_allclose(prob[:, 1], 1 / (1 + math.exp(-1)))
  assert outside[0] == 1 and outside[1] == pytest.approx(
    math.exp(-3) / (1 + math.exp(-1)), rel=0.05
  )


def test_probabilities_of_0_are_no_nan():
  p = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.25, 0.75], [0, 1, 0, 0]])
  with np.errstate(divide='ignore'):
    prob, outside = subsets.condition(np.log(p), np.array([True, True, False, False]), 0.05)
  # where nothing allowed has any probability, all are alike
  assert prob.tolist() == [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 1, 0, 0]]
  assert outside.tolist() == [0, 1, 0]


def test_records_are_of_the_subset():
  """A prediction names allowed classes only, also in the lists of the heads, and says its rest."""
  probs = dict(zip(CARS.levels, random_probs(CARS, 30, 1)))
  rules = decide.default_rules(CARS)
  allowed = leaves_of(['BMW'], CARS)
  rules['exclusive'] = rules['exclusive']._replace(allowed=allowed)
  decisions = decide.decide(probs, CARS, rules)
  for record in decide.to_records(decisions, probs, CARS):
    assert record['path']['make'] == 'BMW' and record['prob']['make'] == 1
    assert [name for name, _ in record['top']['make']] == ['BMW']
    assert {name for name, _ in record['top']['type']} == {'Coupe', 'SUV'}
    assert 0 < record['outside'] < 1


def test_a_list_of_names_of_any_level(tmp_path):
  def read(text, **options):
    path = tmp_path / 'list.csv'
    path.write_text(text)
    return read_classes(path, CARS, **options).tolist()

  assert read('Audi\nBMW X3\n') == [True, True, False, True]
  assert read('class\nCoupe\n') == [True, False, True, False]
  assert read('make,type,price\nAudi,Coupe,1\nBMW,,2\n') == [True, False, True, True]
  long = 'region,class\nnorth,Audi\nsouth,BMW\nsouth,Audi A4\n'
  assert read(long, region='North') == [True, True, False, False]
  assert read(long, region='south') == [False, True, True, True]
  wide = 'class,north,south\nAudi,1,\nBMW X3,0,x\nCoupe,,1\n'
  assert read(wide, region='south') == [True, False, True, True]
  for text, options, message in (
    ('Audii\nBWM\nBMW\n', {}, "2 wrong: 'Audii' is no class .*'Audi'.*; 'BWM' is .*'BMW'"),
    (long, {}, 'choose one .*north, south'),
    (long, {'region': 'sout'}, "no region 'sout' .did you mean 'south'"),
    (wide, {'region': 'east'}, "no region 'east'.*class, north, south"),
    ('make,type\nBMW,Sedan\n', {}, "no class has make 'BMW', type 'Sedan' together"),
    ('class\n""\n', {}, 'names no class'),
  ):
    with pytest.raises(UserError, match=message):
      read(text, **options)


def test_a_name_at_two_levels_is_ambiguous():
  t = Taxonomy.from_rows(('a', 'b'), [['x', 'y'], ['y', 'z']])
  with pytest.raises(UserError, match='is a class of a and of b'):
    leaves_of(['y'], t)
  assert leaves_of([{'a': 'y'}], t).tolist() == [False, True]
