"""The rules on how the code reads, each a function from a file to problems.

python tests/house/style.py [PATH...]     prints what breaks a rule; default: the whole checkout
"""

import ast
import collections
import dataclasses
import pathlib
import re
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ('hierjax', 'configs', 'benchmarks', 'tests')
MAX_FILE, MAX_FUNCTION, MAX_LINE, MAX_METHODS, MAX_NESTING = 500, 60, 100, 10, 4
# Of all lines of the package: it falls with the package, and rises for a new capability only.
MAX_PACKAGE = 43_880
# Pronouns, adverbs, determiners and bare participles: they don't say what a value is.
FORBIDDEN = frozenset(
  """
  found told made there own kept seen of at mine theirs its several beside rest took gone whole
  known given wanted said some here it they them their these those this that what which who whose
  much many few none any all else then now again already still yet once never always
  done got chosen drawn asked shown held meant says tells makes takes gives wants knows
  """.split()
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try)


@dataclasses.dataclass(frozen=True, order=True)
class Problem:
  """A broken rule: where it stands, the rule's name and a sentence."""

  path: str
  line: int
  rule: str
  message: str

  def __str__(self):
    return f'{self.path}:{self.line}: {self.rule}: {self.message}'


@dataclasses.dataclass(frozen=True)
class Source:
  """A parsed file; `path` is relative to the checkout, with forward slashes."""

  path: str
  text: str
  tree: ast.Module

  @property
  def is_package(self) -> bool:
    """Whether it belongs to the package, whose public names need docstrings."""
    return self.path.startswith('hierjax/')

  @property
  def is_test(self) -> bool:
    """Whether it is a test, which may be long."""
    return self.path.startswith('tests/')

  def problem(self, node: ast.AST | int, rule: str, message: str) -> Problem:
    """Return a problem at a node or a line."""
    line = node if isinstance(node, int) else node.lineno
    return Problem(self.path, line, rule, message)


def parse(path: str, text: str) -> Source:
  """Parse a file's text."""
  return Source(path, text, ast.parse(text))


def sources(paths: list[pathlib.Path] | None = None, root: pathlib.Path = ROOT) -> list[Source]:
  """Parse all Python files below the paths; default: the checkout's folders and main.py."""
  paths = paths or [root / 'main.py', *(root / folder for folder in FOLDERS)]
  files = [f for p in paths for f in ([p] if p.is_file() else sorted(p.rglob('*.py')))]
  return [parse(f.resolve().relative_to(root).as_posix(), f.read_text()) for f in files]


def lines(source: Source) -> Iterator[Problem]:
  """No line over 100 columns, no package file over 500 lines."""
  rows = source.text.splitlines()
  for i, row in enumerate(rows, 1):
    if len(row) > MAX_LINE:
      yield source.problem(i, 'line-length', f'{len(row)} columns, at most {MAX_LINE}')
  if source.is_package and len(rows) > MAX_FILE:
    yield source.problem(1, 'file-length', f'{len(rows)} lines, at most {MAX_FILE}')


def functions(source: Source) -> Iterator[Problem]:
  """No function over 60 lines, none nested deeper than four blocks."""
  for node in ast.walk(source.tree):
    if not isinstance(node, FUNCTIONS):
      continue
    length = node.end_lineno - node.lineno + 1
    if length > MAX_FUNCTION and not source.is_test:
      message = f'{node.name} has {length} lines, at most {MAX_FUNCTION}'
      yield source.problem(node, 'function-length', message)
    depth = _nesting(node)
    if depth > MAX_NESTING:
      message = f'{node.name} nests {depth} blocks, at most {MAX_NESTING}'
      yield source.problem(node, 'nesting', message)


def _nesting(node: ast.AST) -> int:
  """The depth of blocks below a node; `elif` is no deeper than its `if`."""
  deepest = 0
  for child in ast.iter_child_nodes(node):
    if isinstance(child, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
      continue
    is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
    is_block = isinstance(child, BLOCKS) and not is_elif
    deepest = max(deepest, _nesting(child) + is_block)
  return deepest


def classes(source: Source) -> Iterator[Problem]:
  """A class of the package has fewer than ten public methods."""
  if not source.is_package:
    return
  for node in ast.walk(source.tree):
    if isinstance(node, ast.ClassDef):
      public = [f.name for f in node.body if isinstance(f, FUNCTIONS) and f.name[0] != '_']
      if len(public) > MAX_METHODS:
        message = f'{node.name} has {len(public)} public methods, at most {MAX_METHODS}'
        yield source.problem(node, 'class-size', message)


def names(source: Source) -> Iterator[Problem]:
  """No variable, argument, attribute or function is called by a pronoun or a bare participle."""
  for node in ast.walk(source.tree):
    match node:
      case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
        pass
      case ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.alias(asname=name):
        pass
      case _:
        continue
    if name and not name.startswith('__') and name.strip('_') in FORBIDDEN:
      yield source.problem(node, 'name', f'{name!r} does not say what it is')


def aliases(source: Source) -> Iterator[Problem]:
  """The package's modules are imported under their own names."""
  for node in ast.walk(source.tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      module = getattr(node, 'module', None) or ''
      for alias in node.names:
        dotted = f'{module}.{alias.name}' if module else alias.name
        file = ROOT.joinpath(*dotted.split('.'))
        is_module = dotted.startswith('hierjax') and (
          file.is_dir() or file.with_suffix('.py').exists()
        )
        if is_module and alias.asname not in (None, alias.name):
          yield source.problem(node, 'alias', f'{alias.name} is imported as {alias.asname}')


def expressions(source: Source) -> Iterator[Problem]:
  """No nested ternary, at most one condition in a comprehension, no lambda with a name."""
  for node in ast.walk(source.tree):
    if isinstance(node, ast.IfExp):
      inner = (node.body, node.test, node.orelse)
      if any(isinstance(part, ast.IfExp) for part in inner):
        yield source.problem(node, 'ternary', 'a conditional expression within another')
    elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
      if sum(len(generator.ifs) for generator in node.generators) > 1:
        yield source.problem(node, 'comprehension', 'more than one condition')
    elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
      yield source.problem(node, 'lambda', 'a lambda with a name: write a function')


def docstrings(source: Source) -> Iterator[Problem]:
  """Public functions and classes of the package say what they do, and what three arguments are."""
  if not source.is_package:
    return
  if not ast.get_docstring(source.tree):
    yield source.problem(1, 'docstring', 'the module has none')
  for owner in [source.tree, *(n for n in source.tree.body if isinstance(n, ast.ClassDef))]:
    for node in owner.body:
      is_documented = isinstance(node, (*FUNCTIONS, ast.ClassDef))
      if is_documented and node.name[0] != '_':
        yield from _docstring(source, node)


def _docstring(source: Source, node: ast.FunctionDef | ast.ClassDef) -> Iterator[Problem]:
  text = ast.get_docstring(node)
  if not text:
    yield source.problem(node, 'docstring', f'{node.name} has none')
  if isinstance(node, ast.ClassDef):
    return
  signature = node.args
  arguments = [*signature.posonlyargs, *signature.args, *signature.kwonlyargs]
  arguments = [a for a in arguments if a.arg not in ('self', 'cls')]
  missing = [a.arg for a in arguments if a.annotation is None]
  if missing:
    yield source.problem(node, 'annotation', f'{node.name}: {", ".join(missing)}')
  # one or two arguments with plain names and annotations need no section of their own
  unmentioned = [a.arg for a in arguments if not re.search(rf'\b{a.arg}\b', text or '')]
  # a docstring may say that they are those of another function
  if 'Args: as `' in (text or ''):
    return
  if text and len(arguments) > 2 and len(node.body) > 2 and unmentioned:
    message = f'the docstring of {node.name} does not say what {", ".join(unmentioned)} is'
    yield source.problem(node, 'args', message)


RULES = (lines, functions, classes, names, aliases, expressions, docstrings)


def check(source: Source) -> list[Problem]:
  """Return all problems of a file, in the order of its lines."""
  return sorted(problem for rule in RULES for problem in rule(source))


def package_lines(root: pathlib.Path = ROOT) -> int:
  """Count the lines of the package."""
  return sum(len(f.read_text().splitlines()) for f in (root / 'hierjax').rglob('*.py'))


def main(arguments: list[str]) -> int:
  """Print the problems below the paths and a count of each rule."""
  paths = [pathlib.Path(argument) for argument in arguments]
  problems = [problem for source in sources(paths) for problem in check(source)]
  for problem in problems:
    print(problem)
  for rule, count in collections.Counter(p.rule for p in problems).most_common():
    print(f'{count:6} {rule}', file=sys.stderr)
  print(f'{package_lines():6} lines in hierjax/, at most {MAX_PACKAGE}', file=sys.stderr)
  return int(bool(problems))


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
