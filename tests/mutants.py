"""Puts faults into a copy of the checkout, one at a time, and prints those that no test notices.

  python tests/mutants.py [--jobs 2] [--only WORD]     what `make test-mutants` runs

A fault is one changed line of the table in `mutant_table.py`, with the tests that concern it. It is
caught when one of these tests fails, or hangs. Before, all these tests must pass without a fault.
"""

import argparse
import concurrent.futures
import os
import pathlib
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
WANTED_SHARE = 0.95
HANGS_AFTER_S = 600
# pytest's exit codes: all passed, some failed
PASSED, FAILED = 0, 1


class Mutant(NamedTuple):
  """A fault: `text`, which stands once in `file`, becomes `replacement`; `tests` should notice."""

  file: str
  text: str
  replacement: str
  tests: str

  def __str__(self):
    change = f'{self.text.strip()!r} -> {self.replacement.strip()!r}'
    return f'{self.file}: {" ".join(change.split())}'


class Result(NamedTuple):
  """What became of a mutant: 'caught', 'survives' or 'error', seconds, and pytest's output."""

  mutant: Mutant
  outcome: str
  seconds: float
  output: str


def problem(mutant: Mutant, root: pathlib.Path) -> str:
  """Return why a mutant can't be made in a checkout, or an empty string."""
  file = root / mutant.file
  if not file.exists():
    return f'{mutant}: no such file'
  count = file.read_text().count(mutant.text)
  if count != 1:
    return f'{mutant}: the text occurs {count} times, not once'
  if mutant.text == mutant.replacement:
    return f'{mutant}: changes nothing'
  missing = [t for t in mutant.tests.split() if not (root / t.split('::')[0]).exists()]
  return f'{mutant}: no such test: {", ".join(missing)}' if missing else ''


def copy_checkout(root: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """Copy the tracked and untracked files of a checkout that git doesn't ignore."""
  command = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
  listing = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
  for name in filter(None, listing.stdout.split('\0')):
    if (root / name).is_file():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(root / name, folder / name)
  return folder


def run_tests(
  tests: str, folder: pathlib.Path, cache: str, limit: int | None = HANGS_AFTER_S
) -> tuple[int, str]:
  """Run tests of a checkout until one fails; return pytest's exit code and its output.

  They hang if they take more than `limit` seconds.
  """
  command = [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', *tests.split()]
  env = os.environ | {'HIERJAX_TEST_CACHE': cache, 'PYTHONDONTWRITEBYTECODE': '1'}
  try:
    result = subprocess.run(
      command, cwd=folder, env=env, capture_output=True, text=True, timeout=limit, check=False
    )
  except subprocess.TimeoutExpired:
    return FAILED, f'hangs: more than {limit} s'
  return result.returncode, result.stdout + result.stderr


def try_mutant(mutant: Mutant, folder: pathlib.Path, cache: str) -> Result:
  """Put a fault into a checkout, run its tests, and take the fault out again."""
  start = time.monotonic()
  if text := problem(mutant, folder):
    return Result(mutant, 'error', 0.0, text)
  file = folder / mutant.file
  original = file.read_text()
  file.write_text(original.replace(mutant.text, mutant.replacement))
  try:
    code, output = run_tests(mutant.tests, folder, cache)
  finally:
    file.write_text(original)
  outcome = {PASSED: 'survives', FAILED: 'caught'}.get(code, 'error')
  return Result(mutant, outcome, time.monotonic() - start, output)


def try_all(
  mutants: list[Mutant], root: pathlib.Path, jobs: int, has_baseline: bool = True
) -> list[Result]:
  """Try mutants in copies of a checkout, several at a time, and print each outcome.

  Raises:
    SystemExit: a mutant can't be made, or a test fails without a fault.
  """
  problems = [text for mutant in mutants if (text := problem(mutant, root))]
  if problems:
    raise SystemExit('\n'.join(problems))
  with tempfile.TemporaryDirectory(prefix='hierjax-mutants-') as temporary:
    top = pathlib.Path(temporary)
    cache = os.environ.get('HIERJAX_TEST_CACHE', str(top / 'cache'))
    folders = queue.SimpleQueue()
    for i in range(jobs):
      folders.put(copy_checkout(root, top / f'copy{i}' / 'checkout'))
    if has_baseline:
      tests = ' '.join(dict.fromkeys(' '.join(mutant.tests for mutant in mutants).split()))
      code, output = run_tests(tests, top / 'copy0' / 'checkout', cache, None)
      if code != PASSED:
        raise SystemExit(f'a test fails without any fault:\n{output}')

    def one(mutant: Mutant) -> Result:
      folder = folders.get()
      try:
        result = try_mutant(mutant, folder, cache)
      finally:
        folders.put(folder)
      print(f'{result.outcome:8} {result.seconds:5.0f} s  {mutant}', flush=True)
      if result.outcome == 'error':
        print(result.output[-2000:], flush=True)
      return result

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
      return list(pool.map(one, mutants))


def main() -> int:
  """Try the table's mutants; 1 if fewer than 95 % are caught or one could not be tried."""
  from mutant_table import MUTANTS

  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--jobs', type=int, default=2, help='mutants at a time')
  parser.add_argument('--only', default='', help='only mutants whose file or text has this')
  parser.add_argument('--no-baseline', action='store_true', help='trust that the tests pass')
  options = parser.parse_args()
  mutants = [m for m in MUTANTS if options.only in str(m)]
  results = try_all(mutants, ROOT, options.jobs, not options.no_baseline)
  count = {
    outcome: sum(result.outcome == outcome for result in results)
    for outcome in ('caught', 'survives', 'error')
  }
  share = count['caught'] / max(len(results), 1)
  print(
    f'{count["caught"]} of {len(results)} faults caught ({share:.1%}), '
    f'{count["survives"]} survive, {count["error"]} could not be tried'
  )
  for result in results:
    if result.outcome != 'caught':
      print(f'{result.outcome}: {result.mutant}')
  return int(share < WANTED_SHARE or count['error'] > 0)


if __name__ == '__main__':
  sys.exit(main())
