"""Pickles that others made. A pickle is a program: `pickle.load` runs whatever it asks for. Here its operations and the names it asks for are held
against short lists before anything is done, no name in it is ever imported, and no memory is taken on the word of a number in it."""

import pickle
import pickletools

from hierjax.core.errors import UserError

# What plain data and arrays need. Not among them: INST, OBJ, NEWOBJ (calls by another road), EXT (imports by number).
OPCODES = {
  'PROTO', 'FRAME', 'STOP', 'MARK', 'POP', 'POP_MARK', 'MEMOIZE', 'PUT', 'BINPUT', 'LONG_BINPUT', 'GET', 'BINGET', 'LONG_BINGET', 'NONE', 'NEWTRUE',
  'NEWFALSE', 'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'FLOAT', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINSTRING',
  'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES', 'EMPTY_DICT', 'DICT', 'SETITEM', 'SETITEMS', 'EMPTY_LIST', 'LIST', 'APPEND', 'APPENDS',
  'EMPTY_TUPLE', 'TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3', 'GLOBAL', 'STACK_GLOBAL', 'REDUCE', 'BUILD', 'BINPERSID',
}  # fmt: skip


class Unpickler(pickle.Unpickler):
  """Reads one pickle from where `data` stands, a file in memory (so that a read of too much stops at the end), and leaves it at the pickle's end.

  A subclass says which names it may ask for and what stands in for each. UserError for any other name or operation, before anything was done;
  a damaged pickle raises whatever it meets.
  """

  names: frozenset[str] | set[str] = frozenset()  # 'module.name'
  purpose = 'data'  # what those names are for
  advice = ''  # what the user may do about a refusal

  def __init__(self, data, path, encoding):
    super().__init__(data, encoding=encoding)
    self.data, self.path = data, path

  def stand_in(self, name):
    raise NotImplementedError

  def find_class(self, module, name):
    self._check(f'{module}.{name}')
    return self.stand_in(f'{module}.{name}')

  def load(self):
    start = self.data.tell()
    for count, (opcode, arg, _) in enumerate(pickletools.genops(self.data)):
      if opcode.name == 'GLOBAL':
        self._check(arg.replace(' ', '.', 1))
      if opcode.name not in OPCODES:
        raise UserError(
          f'{self.path}: its pickle uses {opcode.name}, which {self.purpose} do not need; refused, and nothing in it was run'
        )
      if (
        opcode.name in ('PUT', 'LONG_BINPUT') and arg > count
      ):  # the memo is an array as long as its largest index
        raise ValueError('a memo index out of range')
    end = self.data.tell()
    self.data.seek(start)
    found = super().load()
    self.data.seek(end)
    return found

  def _check(self, name):
    if name not in self.names:
      shown = name if len(name) <= 80 else name[:77] + '...'
      raise UserError(
        f'{self.path}: asks for {shown!r}, which {self.purpose} do not need; refused, and nothing in it was run{self.advice}'
      )
