"""Open registries: names that options may take, with what stands behind them.

Backbones, heads, losses and metrics are each one `Registry`. The package fills it in the module
that defines the entries; users add theirs by `hierjax.register_backbone` and its siblings.
"""

from collections import UserDict
from typing import TypeVar

from hierjax.core.errors import UserError, describe_choices

Entry = TypeVar('Entry')


class Registry(UserDict[str, Entry]):
  """A mapping from names to entries: a name is taken once, a wrong one is told the choices.

  Args:
    kind: what an entry is, in errors: 'backbone'.
  """

  def __init__(self, kind: str):
    super().__init__()
    self.kind = kind

  def register(self, name: str, entry: Entry) -> Entry:
    """Add an entry and return it.

    Args:
      name: a word of letters, digits, '_', '-', '.' or '/'.
      entry: what stands behind it.

    Raises:
      UserError: the name is taken, or is no such word.
    """
    if not name or not all(c.isalnum() or c in '_-./' for c in name):
      raise UserError(f'{self.kind} {name!r}: a name consists of letters, digits and _ - . /')
    if name in self.data:
      raise UserError(f'{self.kind} {name!r} is registered already; choose another name')
    self.data[name] = entry
    return entry

  def __missing__(self, name: str) -> Entry:
    raise UserError(f'no {self.kind} {name!r}{describe_choices(self.kind, name, self.data)}')
