"""Pickles of strangers, read without running them.

A pickle is a program: `pickle.load` runs whatever it asks for. Here its operations and the names
that it asks for are compared with short lists before anything is done; no name in it is ever
imported, and no memory is taken on the word of a number in it.
"""

import os
import pickle
import pickletools
from typing import Any, BinaryIO

from hierjax.core.errors import UserError

# What plain data and arrays need. Not among them: INST, OBJ, NEWOBJ (calls by another road), EXT
# (imports by number).
# fmt: off
OPCODES = {
  'PROTO', 'FRAME', 'STOP', 'MARK', 'POP', 'POP_MARK', 'MEMOIZE', 'PUT', 'BINPUT', 'LONG_BINPUT',
  'GET', 'BINGET', 'LONG_BINGET', 'NONE', 'NEWTRUE', 'NEWFALSE', 'INT', 'BININT', 'BININT1',
  'BININT2', 'LONG', 'LONG1', 'FLOAT', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINSTRING',
  'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES', 'EMPTY_DICT', 'DICT', 'SETITEM', 'SETITEMS',
  'EMPTY_LIST', 'LIST', 'APPEND', 'APPENDS', 'EMPTY_TUPLE', 'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3',
  'GLOBAL', 'STACK_GLOBAL', 'REDUCE', 'BUILD', 'BINPERSID',
}
# fmt: on


class Unpickler(pickle.Unpickler):
  """Reads one pickle; a subclass says which names it may ask for, and what replaces each.

  Args:
    data: a file in memory, so that a read of too much stops at the end; read from where it stands.
    path: the file's name, for errors.
    encoding: of text that Python 2 wrote.

  Attributes:
    names: the 'module.name' that it may ask for.
    purpose: what these are for: 'weights'.
    advice: what the user may do about a refusal.
  """

  names: frozenset[str] | set[str] = frozenset()
  purpose = 'data'
  advice = ''

  def __init__(self, data: BinaryIO, path: str | os.PathLike, encoding: str):
    super().__init__(data, encoding=encoding)
    self.data, self.path = data, path

  def stand_in(self, name: str) -> Any:
    """Return what replaces an allowed name."""
    raise NotImplementedError

  def find_class(self, module: str, name: str) -> Any:
    """Return the replacement of a name; called by `load`.

    Args:
      module, name: what the pickle asks for.
    """
    self._check(f'{module}.{name}')
    return self.stand_in(f'{module}.{name}')

  def load(self) -> Any:
    """Read the pickle, and leave `data` at its end.

    Raises:
      UserError: it asks for another name or operation; nothing has been done then.
      Exception: of any kind, for a damaged pickle.
    """
    start = self.data.tell()
    for count, (opcode, arg, _) in enumerate(pickletools.genops(self.data)):
      if opcode.name == 'GLOBAL':
        self._check(arg.replace(' ', '.', 1))
      if opcode.name not in OPCODES:
        raise UserError(
          f'{self.path}: its pickle uses {opcode.name}, which {self.purpose} do not need; refused, '
          'and nothing in it was run'
        )
      # the memo is an array as long as its largest index
      if opcode.name in ('PUT', 'LONG_BINPUT') and arg > count:
        raise ValueError('a memo index out of range')
    end = self.data.tell()
    self.data.seek(start)
    content = super().load()
    self.data.seek(end)
    return content

  def _check(self, name):
    if name not in self.names:
      short = name if len(name) <= 80 else name[:77] + '...'
      raise UserError(
        f'{self.path}: asks for {short!r}, which {self.purpose} do not need; refused, and nothing '
        f'in it was run{self.advice}'
      )
