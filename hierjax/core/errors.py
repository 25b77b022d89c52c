"""Errors that a user can act on."""

import difflib
from collections.abc import Iterable, Sequence

# The extra of the package that brings a module, where it is not installed with the package.
EXTRAS = {
  'onnx': 'export',
  **dict.fromkeys(('onnxruntime', 'starlette', 'uvicorn', 'python_multipart'), 'serve'),
  **dict.fromkeys(('optax', 'tensorflow_datasets', 'pyarrow', 'matplotlib'), 'train'),
  **dict.fromkeys(('sklearn', 'threadpoolctl', 'tensorboardX'), 'train'),
  'huggingface_hub': 'train',
}
# Choices that an error lists.
FEW = 50


class UserError(ValueError):
  """A user's mistake: one line that names the file, the row or the option, and the choices.

  The command line prints it without a traceback.
  """


def missing_extra(error: Exception) -> str:
  """Say which extra brings the module that an import has not found; '' for other errors."""
  if not isinstance(error, ModuleNotFoundError) or error.name not in EXTRAS:
    return ''
  extra = EXTRAS[error.name]
  return f"{error.name} is not installed; it comes with: pip install 'hierjax[{extra}]'"


def kind_and_text(error: Exception) -> str:
  """Return the kind of an error and the beginning of its text, for the text of another one."""
  return f'{type(error).__name__}: {str(error)[:120]}'


def listing(items: Iterable[str], count: int) -> str:
  """Join items for people, the first `count` of many: 'car, truck ...'."""
  items = list(items)
  return ', '.join(items[:count]) + (' ...' if len(items) > count else '')


def and_more(items: Sequence[str], count: int = 20) -> str:
  """Join items for people, the first `count` of many: 'car, truck and 3 more'."""
  more = f' and {len(items) - count} more' if len(items) > count else ''
  return ', '.join(items[:count]) + more


def did_you_mean(name: str, choices: Iterable[str], count: int = 1) -> str:
  """Return a hint for a name that is none of the choices.

  Args:
    name: the wrong name.
    choices: the right ones.
    count: how many of them to name at most.

  Returns:
    ' (did you mean X?)' with the choices that resemble it most, '' if none does.
  """
  similar = difflib.get_close_matches(name, list(choices), count)
  if not similar:
    return ''
  *first, last = map(repr, similar)
  text = f'{", ".join(first)} or {last}' if first else last
  return f' (did you mean {text}?)'


def describe_choices(kind: str, name: str, choices: Iterable[str]) -> str:
  """Return a hint for a wrong name of a `kind`, and the choices or, of many, how to list them."""
  choices = list(choices)
  if len(choices) <= FEW:
    return f'{did_you_mean(name, choices)}; choices: {", ".join(choices)}'
  return f"{did_you_mean(name, choices, 3)}; 'hierjax {kind}s PATTERN' lists them"


def check_choice(subject: str, name: str, choices: Iterable[str]) -> None:
  """Check that a name is one of the choices.

  Args:
    subject: start of the error: 'configs/ladder.py: no rung'.
    name: the name.
    choices: the names there are.

  Raises:
    UserError: it is not.
  """
  choices = list(choices)
  if name not in choices:
    hint = did_you_mean(name, choices)
    raise UserError(f'{subject} {name!r}{hint}; choices: {", ".join(choices)}')
