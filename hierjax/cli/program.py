"""From the arguments to the exit code."""

import importlib
import sys
from collections.abc import Sequence

from absl import logging

from hierjax.cli import arguments, errors, usage
from hierjax.core.errors import UserError


def run(argv: Sequence[str]) -> int:
  """Parse the arguments, run the command and return the exit code.

  Args:
    argv: program name and arguments.
  """
  if len(argv) < 2:
    print(usage.SHORT)
    return 1
  try:
    parsed = arguments.parse(argv)
    if parsed and parsed.mode == 'options':
      print(usage.matching_options(parsed.patterns))
      return 0
  except UserError as e:
    return errors.report(str(e))
  if parsed is None:
    print(usage.text())
    return 1
  # The logs of libraries stay off stderr; what matters of them is raised, too.
  logging.use_absl_handler()
  logging.set_verbosity(logging.FATAL)
  if parsed.artefact:
    return _predict_without_jax(parsed)
  # Imported only now, with jax: help and mistakes in the arguments are answered at once.
  commands = importlib.import_module('hierjax.cli.commands')
  return commands.execute(parsed)


def _predict_without_jax(parsed: arguments.Arguments) -> int:
  try:
    code = importlib.import_module('hierjax.cli.predict').run(parsed)
    sys.stdout.flush()
  except Exception as e:
    code = errors.exit_code(e)
    if code is None:
      raise
  return code
