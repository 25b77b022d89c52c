"""The wings of the package import one way, and importing them changes nothing in the process."""

import collections
import pathlib
import subprocess
import sys

import graph
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A wing imports from wings that stand before it. Those of one row don't import each other.
ORDER = (
  ('core',),
  ('taxonomy',),
  ('data',),
  ('models', 'losses', 'decide'),
  ('evaluate',),
  ('train', 'runtime'),
  ('model',),
  ('export', 'report'),
  ('experiments',),
  ('serve',),
  ('cli',),
  ('estimator',),
)
RANK = {wing: rank for rank, row in enumerate(ORDER) for wing in row}
# Imported by users' files and by nothing within; it imports the wings when a name is asked for.
SURFACE = 'hierjax'
# The command line sets up the process, and answers mistakes in arguments, before it imports jax.
LATE = {
  ('hierjax.cli', 'hierjax.cli.program'),
  ('hierjax.cli.program', 'hierjax.core.parallel'),
  # exported models are predicted with without jax
  ('hierjax.cli.predict', 'hierjax.cli.runs'),
  # its version
  ('hierjax.cli.program', 'hierjax'),
  # the config files as the wheel ships them
  ('hierjax.cli.config_files', 'hierjax.configs'),
}


def wing(module: str) -> str:
  """Return the folder, or the file at the top, that a module of the package belongs to."""
  return module.split('.')[1] if '.' in module else ''


def problems(root: pathlib.Path) -> list[str]:
  """Return every import that goes back, sideways, in a circle, or hides in a function."""
  out, edges = [], collections.defaultdict(set)
  for arrow in graph.arrows(root, 'hierjax'):
    is_own = arrow.target.split('.')[0] == 'hierjax'
    line = f'{arrow.module}:{arrow.line} imports {arrow.target}'
    if arrow.module == SURFACE or arrow[:2] in LATE:
      continue
    if arrow.is_inner and (is_own or arrow.target.split('.')[0] not in graph.HEAVY):
      out.append(f'{line} inside a function')
    if not is_own:
      continue
    start, end = wing(arrow.module), wing(arrow.target)
    if arrow.target == SURFACE or start not in RANK or end not in RANK:
      out.append(f'{line}: no wing of {", ".join(RANK)}')
    elif start != end and RANK[start] <= RANK[end]:
      out.append(f'{line}: {start} stands before or beside {end}')
    elif arrow.target != arrow.module and not arrow.is_for_types:
      edges[arrow.module].add(arrow.target)
  nodes = graph.circle(edges)
  return out + ([f'a circle: {" -> ".join([*nodes, nodes[0]])}'] if nodes else [])


def test_imports_go_one_way():
  """What stands left knows nothing of what stands right."""
  lines = problems(ROOT)
  assert not lines, '\n'.join(lines)


def test_few_rooms():
  """At most 17 entries at the top of the package."""
  entries = [f for f in (ROOT / 'hierjax').iterdir() if f.name != '__pycache__']
  assert len(entries) <= 17, sorted(f.name for f in entries)


@pytest.mark.parametrize(
  ('file', 'text', 'problem'),
  [
    ('core/a.py', 'from hierjax.data import b', 'core stands before or beside data'),
    ('core/a.py', 'import hierjax.data.b', 'core stands before or beside data'),
    ('losses/a.py', 'from hierjax.models.b import f', 'losses stands before or beside models'),
    ('core/a.py', 'def f():\n  from hierjax.core import ok', 'inside a function'),
    ('core/a.py', 'def f():\n  import json', 'json inside a function'),
    ('data/a.py', 'from . import b\nfrom hierjax.data.b import g', 'a circle: hierjax.data.a'),
    ('core/a.py', 'import importlib\nimportlib.import_module("hierjax.data.b")', 'core stands'),
    ('utils/a.py', 'from hierjax.data import b', 'no wing'),
    ('core/a.py', 'import hierjax', 'no wing'),
  ],
)
def test_a_wrong_import_is_reported(file, text, problem, tmp_path):
  """The walk itself, on a small package with one wrong import."""
  files = {
    'data/b.py': 'from hierjax.data.a import f' if file == 'data/a.py' else '',
    'models/b.py': 'def f(): pass',
    'model.py': 'def f():\n  import matplotlib.pyplot',
    'core/ok.py': 'import json',
    'data/ok.py': 'from hierjax.core import ok',
    file: text,
  }
  for name, content in files.items():
    path = tmp_path / 'hierjax' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in (tmp_path / 'hierjax', path.parent):
      (folder / '__init__.py').touch()
    path.write_text(content)
  lines = problems(tmp_path)
  assert len(lines) == 1 and problem in lines[0], lines


UNCHANGED = """
import os, signal, sys, threading
import cv2, grain, jax, sklearn
import orbax.checkpoint
from absl import flags, logging

def state():
  from jax._src import monitoring
  return {
    'OpenCV threads': cv2.getNumThreads(),
    'FLAGS': sorted(flags.FLAGS),
    'unraisablehook': sys.unraisablehook,
    'excepthook': sys.excepthook,
    'listeners': [len(getattr(monitoring, n)) for n in dir(monitoring) if 'listeners' in n
                  and isinstance(getattr(monitoring, n), list)],
    'signals': [signal.getsignal(s) for s in signal.valid_signals()],
    'environment': dict(os.environ),
    'path': list(sys.path),
    'threads': threading.active_count(),
    'x64': jax.config.values,
  }

before = state()
assert len(before['listeners']) >= 2
import importlib, pkgutil
import hierjax
for module in pkgutil.walk_packages(hierjax.__path__, 'hierjax.'):
  importlib.import_module(module.name)
after = state()
print([name for name in before if before[name] != after[name]])
"""


def python(code: str) -> str:
  """Run code in a fresh Python at the root of the checkout; return what it prints."""
  command = [sys.executable, '-c', code]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr
  return result.stdout.strip()


def test_importing_changes_nothing():
  """Not the flags, hooks, signals, threads of OpenCV, listeners, environment or jax's options."""
  assert python(UNCHANGED) == '[]'


SECONDS = """
import resource, sys
start = resource.getrusage(resource.RUSAGE_SELF)
import {module}
end = resource.getrusage(resource.RUSAGE_SELF)
print(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime, 'jax' in sys.modules)
"""


def import_seconds(module: str) -> tuple[float, bool]:
  """CPU seconds of an import in a fresh Python, and whether it brought jax."""
  seconds, has_jax = python(SECONDS.format(module=module)).split()
  return float(seconds), has_jax == 'True'


def test_importing_hierjax_is_quick():
  """The best of three imports takes less than .2 s of CPU, and jax is not imported."""
  rows = [import_seconds('hierjax') for _ in range(3)]
  assert min(rows)[0] < 0.2 and not rows[0][1], rows


def test_importing_training_is_quick():
  """Less than 2 s of CPU on a machine where jax alone takes .6: another test beside it costs both.

  scikit-learn, which training does not need, would add 1.9 s.
  """
  ratios = [import_seconds('hierjax.train.loop')[0] / import_seconds('jax')[0] for _ in range(3)]
  assert min(ratios) < 2.0 / 0.6, ratios
