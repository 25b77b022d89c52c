"""From the arguments to the exit code."""

import importlib
import sys
from collections.abc import Sequence

from absl import logging

import hierjax
from hierjax.cli import arguments, errors, process, usage
from hierjax.core.errors import UserError


def run(argv: Sequence[str]) -> int:
  """Parse the arguments, run the command and return the exit code."""
  if len(argv) < 2:
    return _answer(usage.SHORT, 1)
  if argv[1] == '--version':
    return _answer(f'hierjax {hierjax.__version__}')
  try:
    parsed = arguments.parse(argv)
    if parsed is None:
      return _answer(usage.text())
    if parsed.mode == 'options':
      return _answer(usage.matching_options(parsed.patterns))
  except UserError as e:
    return errors.report(str(e))
  # The logs of libraries stay off stderr; what matters of them is raised, too.
  logging.use_absl_handler()
  logging.set_verbosity(logging.FATAL)
  if parsed.artefact or parsed.mode == 'serve':
    return _run_without_jax(parsed)
  # Imported only now, with jax: help and mistakes in the arguments are answered at once.
  commands = importlib.import_module('hierjax.cli.commands')
  return commands.execute(parsed)


def _run_without_jax(parsed: arguments.Arguments) -> int:
  try:
    code = importlib.import_module(f'hierjax.cli.{parsed.mode}').run(parsed)
    sys.stdout.flush()
  except Exception as e:
    code = errors.exit_code(e)
    if code is None:
      raise
  return code


def _answer(text: str, code: int = 0) -> int:
  """Print what needs no command; `head` and pagers may close the pipe before its end."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    process.discard_output()
  return code
