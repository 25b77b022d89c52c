"""The machinery that puts faults in, on a small checkout; and its table against the real one."""

import re
import subprocess

import mutants
import pytest
from mutant_table import MUTANTS

CAUGHT = mutants.Mutant('sample.py', 'x + 1', 'x - 1', 'test_sample.py::test_f')
SURVIVES = mutants.Mutant('sample.py', 'y * 2', 'y * 3', 'test_sample.py::test_f')
BROKEN = mutants.Mutant('sample.py', 'x + 1', 'x +', 'test_sample.py')


@pytest.fixture
def checkout(tmp_path):
  """A checkout of one file and a test that covers half of it."""
  (tmp_path / 'sample.py').write_text('def f(x):\n  return x + 1\n\n\ndef g(y):\n  return y * 2\n')
  test = 'import sample\n\n\ndef test_f():\n  assert sample.f(1) == 2\n'
  (tmp_path / 'test_sample.py').write_text(test)
  subprocess.run(['git', 'init', '-q'], cwd=tmp_path, check=True)
  return tmp_path


def test_outcomes(checkout, capsys):
  """A fault that a test covers, one that none covers, and one that doesn't even parse."""
  results = mutants.try_all([CAUGHT, SURVIVES, BROKEN], checkout, jobs=2)
  assert [result.outcome for result in results] == ['caught', 'survives', 'error']
  assert 'x + 1' in (checkout / 'sample.py').read_text()
  assert re.search(r'^survives +\d+ s ', capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'text': 'x + 3'}, 'occurs 0 times'),
    ({'text': 'return'}, 'occurs 2 times'),
    ({'file': 'other.py'}, 'no such file'),
    ({'tests': 'test_other.py'}, 'no such test'),
    ({'replacement': 'x + 1'}, 'changes nothing'),
  ],
)
def test_a_wrong_mutant_is_an_error(changes, message, checkout):
  """One that can't be made is named before anything runs."""
  with pytest.raises(SystemExit, match=message):
    mutants.try_all([CAUGHT._replace(**changes)], checkout, jobs=1)


def test_a_test_that_fails_by_itself_is_an_error(checkout):
  """What fails without a fault catches nothing."""
  (checkout / 'sample.py').write_text('def f(x):\n  return x + 1 + 1\n')
  with pytest.raises(SystemExit, match='fails without any fault'):
    mutants.try_all([CAUGHT], checkout, jobs=1)


def test_the_table_fits_the_checkout():
  """Each text stands exactly once in its file."""
  problems = [mutants.problem(mutant, mutants.ROOT) for mutant in MUTANTS]
  assert not list(filter(None, problems)), '\n'.join(filter(None, problems))
