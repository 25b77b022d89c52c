"""Pickles of strangers, read without running them.

A pickle is a program: `pickle.load` runs whatever it asks for. Here each of its operations and each
name that it asks for is on a short list, or refused; no name in it is ever imported, no memory is
taken on the word of a number in it. What it does is bounded: the operations, the keys of dicts (to
hash nested tuples can take for ever), and the nesting of what comes out.
"""

import os
import pickle
import pickletools
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

from hierjax.core import nesting
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


MAX_OPERATIONS = 1_000_000  # CIFAR-100 takes a quarter of a million
MAX_ARGUMENTS = 16  # of a call
MAX_DEPTH = 64


def check_keys(keys: Iterable) -> None:
  """Raise a `ValueError` for keys other than text, bytes and integers.

  A tuple that holds the same tuple twice, and so on n times, takes 2**n steps to hash.
  """
  for key in keys:
    if not isinstance(key, str | bytes | int):
      raise ValueError(f'a key of a dict is of type {type(key).__name__}')


def _check_arguments(stack):
  # a long tuple would be copied as often as a call of a few bytes names it
  if len(stack[-1]) > MAX_ARGUMENTS:
    raise ValueError(f'a call with {len(stack[-1])} arguments')


# What is checked on the stack before an operation.
_CHECKS = {
  'SETITEM': lambda stack: check_keys(stack[-2:-1]),
  'SETITEMS': lambda stack: check_keys(stack[::2]),
  'DICT': lambda stack: check_keys(stack[::2]),
  'REDUCE': _check_arguments,
  'BINPERSID': _check_arguments,
}


class _Operations(dict):
  """The allowed operations by code; an unpickler asks for each as it comes to it.

  Args:
    refuse: is called with the name of another one.
  """

  def __init__(self, refuse: Callable[[str], None]):
    self.refuse, self.count = refuse, 0
    for name in OPCODES:
      code = getattr(pickle, name)[0]
      self[code] = _checked(name, pickle._Unpickler.dispatch[code])
    self[pickle.BUILD[0]] = _build

  def __getitem__(self, code: int) -> Callable:
    self.count += 1
    if self.count > MAX_OPERATIONS:
      raise ValueError(f'more than {MAX_OPERATIONS} operations')
    return super().__getitem__(code)

  def __missing__(self, code: int) -> None:
    opcode = pickletools.code2op.get(chr(code))
    self.refuse(opcode.name if opcode else f'an unknown operation {code}')


def _checked(name, operation):
  check = _CHECKS.get(name)

  def run(unpickler):
    check(unpickler.stack)
    operation(unpickler)

  return run if check else operation


def _build(unpickler):
  """Give a state to a stand-in, the only objects that may set attributes; dicts ignore theirs."""
  state = unpickler.stack.pop()
  if not isinstance(unpickler.stack[-1], dict):
    unpickler.stack[-1].__setstate__(state)


class Unpickler(pickle._Unpickler):
  """Reads one pickle; a subclass says which names it may ask for, and what replaces each.

  It is the standard library's that is written in Python, whose operations can be replaced.

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
    self.path, self.dispatch = path, _Operations(self._refuse)

  def stand_in(self, name: str) -> Any:
    """Return what replaces an allowed name."""
    raise NotImplementedError

  def find_class(self, module: str, name: str) -> Any:
    """Return the replacement of a name; called by `load`.

    Args:
      module, name: what the pickle asks for.
    """
    name = f'{module}.{name}'
    if name not in self.names:
      short = name if len(name) <= 80 else name[:77] + '...'
      raise UserError(
        f'{self.path}: asks for {short!r}, which {self.purpose} do not need; refused, and nothing '
        f'in it was run{self.advice}'
      )
    return self.stand_in(name)

  def load(self) -> Any:
    """Read the pickle, and leave `data` at its end.

    Raises:
      UserError: it asks for another name or operation; nothing of it has been run.
      Exception: of any kind, for a damaged pickle.
    """
    content = super().load()
    nesting.check(content, MAX_DEPTH, MAX_OPERATIONS)
    return content

  def _refuse(self, operation):
    raise UserError(
      f'{self.path}: its pickle uses {operation}, which {self.purpose} do not need; refused, and '
      'nothing in it was run'
    )
