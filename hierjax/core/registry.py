"""Open registries: names that options may take, with what stands behind them.

Backbones, heads, losses and metrics are each one `Registry`. The package fills it in the module
that defines the entries; users add theirs by `hierjax.register_backbone` and its siblings.
"""

from collections.abc import Iterator
from typing import Generic, TypeVar

from hierjax.core.errors import UserError, did_you_mean

Entry = TypeVar('Entry')


class Registry(Generic[Entry]):
  """A mapping of names to entries of a kind: a name is taken once, a wrong one gets the choices."""

  def __init__(self, kind: str):
    self.kind = kind
    self._entries: dict[str, Entry] = {}

  def register(self, name: str, entry: Entry) -> Entry:
    """Add an entry and return it; its name consists of letters, digits, '_', '-', '.' and '/'."""
    if not name or not all(c.isalnum() or c in '_-./' for c in name):
      raise UserError(f'{self.kind} {name!r}: a name consists of letters, digits and _ - . /')
    if name in self._entries:
      raise UserError(f'{self.kind} {name!r} is registered already; choose another name')
    self._entries[name] = entry
    return entry

  def __getitem__(self, name: str) -> Entry:
    """Return the entry of a name; a `UserError` with the choices for an unknown one."""
    if name not in self._entries:
      hint = did_you_mean(name, self._entries)
      raise UserError(f'no {self.kind} {name!r}{hint}; choices: {", ".join(self._entries)}')
    return self._entries[name]

  def __contains__(self, name: object) -> bool:
    return name in self._entries

  def __iter__(self) -> Iterator[str]:
    return iter(self._entries)

  def __len__(self) -> int:
    return len(self._entries)
