"""The imports of the package as a graph of its modules, imports inside functions included."""

import ast
import pathlib
from typing import NamedTuple

# Slow to import or optional, so imported where they are used.
HEAVY = {
  'sklearn',
  'threadpoolctl',
  'matplotlib',
  'tensorboardX',
  'wandb',
  'pyarrow',
  'huggingface_hub',
  'tensorflow_datasets',
  'jax_tpu',
  'onnx',
  'onnxruntime',
  'scipy',
  'grain',
}


class Arrow(NamedTuple):
  """An import: what imports what on which line, within a function, for annotations alone."""

  module: str
  target: str
  line: int
  is_inner: bool
  is_for_types: bool


def modules(root: pathlib.Path, package: str) -> dict[str, pathlib.Path]:
  """Return the files of a package by their dotted names; a package is named as its folder."""
  files = {}
  for file in sorted((root / package).rglob('*.py')):
    parts = file.relative_to(root).with_suffix('').parts
    files['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = file
  return files


def arrows(root: pathlib.Path, package: str) -> list[Arrow]:
  """Return all imports of a package's modules, its own modules resolved to files."""
  files, out = modules(root, package), []
  for module, file in files.items():
    tree = ast.parse(file.read_text())
    inner = {
      id(node)
      for function in ast.walk(tree)
      if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
      for node in ast.walk(function)
    }
    typing = {
      id(node)
      for block in ast.walk(tree)
      if isinstance(block, ast.If) and ast.unparse(block.test) == 'TYPE_CHECKING'
      for node in ast.walk(block)
    }
    base = module if file.name == '__init__.py' else module.rpartition('.')[0]
    for node in ast.walk(tree):
      for target in _targets(node, base, files):
        out.append(Arrow(module, target, node.lineno, id(node) in inner, id(node) in typing))
  return out


def _targets(node: ast.AST, base: str, files: dict[str, pathlib.Path]) -> list[str]:
  """What a node imports, by `import`, `from` or a constant given to importlib."""
  if isinstance(node, ast.Import):
    return [alias.name for alias in node.names]
  if isinstance(node, ast.ImportFrom):
    parts = base.split('.')
    stem = '.'.join(parts[: len(parts) - node.level + 1]) if node.level else ''
    stem = '.'.join(filter(None, (stem, node.module)))
    names = [f'{stem}.{alias.name}' for alias in node.names]
    return [name if name in files else stem for name in names]
  if isinstance(node, ast.Call) and ast.unparse(node.func).endswith('import_module'):
    return [a.value for a in node.args if isinstance(a, ast.Constant)][:1]
  return []


def circle(edges: dict[str, set[str]]) -> list[str]:
  """Return the nodes of one circle, or an empty list."""
  finished, path = set(), []

  def visit(node: str) -> list[str]:
    if node in path:
      return path[path.index(node) :]
    if node in finished:
      return []
    path.append(node)
    for target in sorted(edges.get(node, ())):
      if nodes := visit(target):
        return nodes
    finished.add(path.pop())
    return []

  for node in sorted(edges):
    if nodes := visit(node):
      return nodes
  return []
