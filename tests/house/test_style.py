"""The whole checkout keeps the rules on how the code reads; `style.py` lists what breaks them."""

import pytest
import style


def test_files_keep_the_rules():
  """`python tests/house/style.py` prints the same list."""
  problems = [problem for source in style.sources() for problem in style.check(source)]
  assert not problems, '\n'.join(map(str, problems))


def test_the_package_does_not_grow():
  """All lines count: docstrings, comments and empty ones."""
  assert style.package_lines() <= style.MAX_PACKAGE


DOCUMENTED = '''"""What it holds."""

def scale(x: int, y: int, w: int) -> int:
  """Return the product.

  Args:
    x: a factor.
    y: another.
    w: a third.
  """
  z = x * y * w
  return z
'''

METHODS = ''.join(f'  def f{i}(self):\n    """F."""\n' for i in range(11))
NESTED = ''.join('  ' * i + 'if x:\n' for i in range(1, 6)) + ' ' * 12 + 'y\n'


@pytest.mark.parametrize(
  ('text', 'rule'),
  [
    (DOCUMENTED, ''),
    (DOCUMENTED + '#' * 101, 'line-length'),
    (DOCUMENTED + '\n' * 490, 'file-length'),
    (DOCUMENTED + '\n\ndef _f():\n' + '  print()\n' * 60, 'function-length'),
    (DOCUMENTED + '\n\ndef _f():\n' + '  print()\n' * 59, ''),
    (DOCUMENTED.replace('z', 'found'), 'name'),
    (DOCUMENTED.replace('x:', 'its:'), 'name'),
    (DOCUMENTED + '\n_f.seen = 3\n', 'name'),
    (DOCUMENTED + '\n\ndef _known():\n  pass\n', 'name'),
    (DOCUMENTED + '\n_f = [kept for kept in []]\n', 'name'),
    (DOCUMENTED + 'from hierjax.train import loop as train\n', 'alias'),
    (DOCUMENTED + 'from hierjax import model as predict\n', 'alias'),
    (DOCUMENTED + 'import numpy as np\n', ''),
    (DOCUMENTED + '_x = 1 if 2 else 3 if 4 else 5\n', 'ternary'),
    (DOCUMENTED + '_x = [i for i in () if i if not i]\n', 'comprehension'),
    (DOCUMENTED + '_x = lambda y: y\n', 'lambda'),
    (DOCUMENTED.replace('"""What it holds."""', ''), 'docstring'),
    (DOCUMENTED + '\n\ndef f():\n  pass\n', 'docstring'),
    (DOCUMENTED + '\n\nclass F:\n  pass\n', 'docstring'),
    (DOCUMENTED + '\n\nclass F:\n  """F."""\n\n  def g(self):\n    pass\n', 'docstring'),
    (DOCUMENTED.replace('    w: a third.\n', ''), 'args'),
    (DOCUMENTED.replace('x: int,', 'x,'), 'annotation'),
    (DOCUMENTED + '\n\nclass _F:\n' + METHODS, 'class-size'),
    (DOCUMENTED + '\n\ndef _f():\n' + NESTED, 'nesting'),
  ],
)
def test_each_rule_finds_its_case(text, rule):
  """A small file that keeps all rules, and one change that breaks one."""
  problems = style.check(style.parse('hierjax/core/a.py', text))
  assert {p.rule for p in problems} == ({rule} if rule else set())
