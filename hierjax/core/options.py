"""How an option is declared: name, type, default, range or choices, and one line of help.

`hierjax.core.declarations` lists every option once. The tree of defaults, the parsing of text, the
validation, `main.py --help` and docs/options.md all come from these declarations.

Off is `None` and a list is a tuple. On the command line '' and 'none' mean `None`, and so does 0 for
a number that may be off and whose range does not contain 0.
"""

import ast
import dataclasses
import math
import re
from collections.abc import Callable, Sequence

from hierjax.core.errors import UserError, did_you_mean

NONE_TEXTS = ('', 'none')


@dataclasses.dataclass(frozen=True)
class Interval:
  """An interval of numbers as mathematics writes it: '[0, 1)', '(0, inf)'. NaN is in none."""

  text: str

  @property
  def bounds(self) -> tuple[float, float]:
    low, high = self.text[1:-1].split(',')
    return float(low), float(high)

  def __contains__(self, value: float) -> bool:
    low, high = self.bounds
    above = low <= value if self.text[0] == '[' else low < value
    below = value <= high if self.text[-1] == ']' else value < high
    return above and below

  def describe(self) -> str:
    """Return the interval in words: 'at least 0 and below 1'."""
    low, high = self.text[1:-1].split(', ')
    words = f'{"at least" if self.text[0] == "[" else "above"} {low}'
    if high == 'inf':
      return words
    return f'{words} and {"at most" if self.text[-1] == "]" else "below"} {high}'


@dataclasses.dataclass(frozen=True)
class Option:
  """The declaration of one option.

  Args:
    name: dotted path in the config: 'optim.lr'.
    default: value where nothing is set; `None` for an option that is off.
    help: one line that says what it does.
    interval: where numbers, or each number of a tuple, may lie: '[0, 1)'.
    value_type: bool, int, float, str or tuple; by default that of the default, str for `None`.
    choices: the values there are, where they are few and fixed.
    is_optional: whether `None` is a value; it is where it is the default.
    parse: text to value, for tuples.
    check: returns what is wrong with a value, '' if nothing is; for tuples.
    levels: 'exclusive' or 'tags' for an option that only such levels read.
  """

  name: str
  default: object
  help: str
  interval: str | None = None
  value_type: type | None = None
  choices: tuple = ()
  is_optional: bool = False
  parse: Callable[[str], tuple] | None = None
  check: Callable[[tuple], str] | None = None
  levels: str | None = None

  def __post_init__(self):
    inferred = str if self.default is None else type(self.default)
    object.__setattr__(self, 'value_type', self.value_type or inferred)
    object.__setattr__(self, 'is_optional', self.is_optional or self.default is None)

  @property
  def flag(self) -> str:
    return f'--config.{self.name}'

  def convert(self, value: object) -> object:
    """Return a value, which may be text, in the option's type.

    Raises:
      UserError: the text is none of the type.
    """
    if isinstance(value, str) and self.is_optional and value.strip().lower() in NONE_TEXTS:
      return None
    if isinstance(value, str) and self.value_type is not str:
      value = self._from_text(value)
    if self._is_number(value) and self.is_optional and value == 0 and self._zero_is_off():
      return None
    if isinstance(value, list):
      return tuple(value)
    return value

  def _from_text(self, text: str) -> object:
    if self.value_type is bool:
      if text.lower() in ('true', 't', '1'):
        return True
      if text.lower() in ('false', 'f', '0'):
        return False
      raise UserError(f'{self.flag}={text} must be true or false')
    if self.value_type in (int, float):
      try:
        return self.value_type(text)
      except ValueError:
        kind = 'a whole number' if self.value_type is int else 'a number'
        raise UserError(f'{self.flag}={text} must be {kind}') from None
    try:
      return self.parse(text)
    except UserError:
      raise
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as e:
      raise UserError(f'{self.flag}={text}: {e}') from None

  def _is_number(self, value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

  def _zero_is_off(self) -> bool:
    return self.interval is not None and 0 not in Interval(self.interval)

  def validate(self, value: object) -> None:
    """Raise a `UserError` for a value that the option cannot have."""
    if value is None:
      if not self.is_optional:
        raise UserError(f'{self.flag}=None must have a value; its default is {self.default!r}')
      return
    if self.choices and value not in self.choices:
      texts = [str(x) for x in self.choices]
      raise UserError(
        f'{self.flag}={value!r} is not a choice{did_you_mean(str(value), texts)}; '
        f'choices: {", ".join(texts)}{" or None" if self.is_optional else ""}'
      )
    if self.interval:
      self._validate_range(value)
    problem = self.check(value) if self.check else ''
    if problem:
      raise UserError(f'{self.flag}={value!r} {problem}')

  def _validate_range(self, value: object) -> None:
    interval = Interval(self.interval)
    values = value if isinstance(value, tuple) else (value,)
    if all(self._is_number(x) and x in interval for x in values):
      return
    words = interval.describe()
    if math.inf in values:
      words += ' and finite'
    if self.is_optional:
      words += ', or None for off' if self._zero_is_off() else ', or None'
    raise UserError(f'{self.flag}={value!r} must be {words}')


def literal(text: str) -> object:
  """Return the Python literal in a text.

  Raises:
    ValueError: the text is no literal.
  """
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    raise ValueError(f'{text!r} is not a Python literal') from None


def names(text: str | Sequence[str], separator: str = ',') -> tuple[str, ...]:
  """Return the names in a text with separators, or in a sequence, stripped and without empty ones."""
  if isinstance(text, str):
    is_literal = text.strip()[:1] in ('(', '[')
    text = literal(text) if is_literal else text.split(separator)
  return tuple(str(t).strip() for t in text if str(t).strip())


def names_by_semicolon(text: str) -> tuple[str, ...]:
  """Return the names in a text that are separated by ';'."""
  return names(text, ';')


def numbers(text: str) -> tuple[float, ...]:
  """Return the numbers in '1,2', '(1, 2)' or '[1, 2]'; none in ''."""
  value = literal(text) if text.strip() else ()
  if isinstance(value, int | float):
    return (value,)
  if not isinstance(value, tuple | list) or not all(isinstance(x, int | float) for x in value):
    raise ValueError('must be numbers, separated by commas')
  return tuple(value)


def tuples(text: str) -> tuple[tuple, ...]:
  """Return a literal sequence of sequences as tuples."""
  value = literal(text) if text.strip() else ()
  if not isinstance(value, tuple | list):
    raise ValueError('must be a sequence, as ((1, 2), (3, 4))')
  return tuple(tuple(x) if isinstance(x, list) else x for x in value)


def weights(text: str) -> tuple[tuple[str, float], ...]:
  """Return the pairs in 'make=1,type=.5'."""
  if text.strip()[:1] in ('(', '['):
    return tuples(text)
  pairs = []
  for item in names(text):
    name, _, number = item.partition('=')
    try:
      pairs.append((name.strip(), float(number)))
    except ValueError:
      raise ValueError(f'{item!r} is not LEVEL=NUMBER') from None
  return tuple(pairs)


def check_names(value: tuple) -> str:
  """Say what is wrong with a tuple of names."""
  return '' if all(isinstance(x, str) for x in value) else 'must be names'


def check_pair(value: tuple) -> str:
  """Say what is wrong with a lower and an upper bound."""
  is_pair = len(value) == 2 and value[0] <= value[1]
  return '' if is_pair else 'must be two numbers, the smaller first'


def check_triple(value: tuple) -> str:
  """Say what is wrong with a value for each of red, green and blue."""
  return '' if len(value) == 3 else 'must be three numbers, of RGB in 0..255'


def check_weights(value: tuple) -> str:
  """Say what is wrong with pairs of a name and a weight."""
  for pair in value:
    is_pair = isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
    if not is_pair or not isinstance(pair[1], int | float) or not 0 <= pair[1] < math.inf:
      return f'has {pair!r}, which is not LEVEL=NUMBER with a number of at least 0'
  return ''


def check_rules(value: tuple) -> str:
  """Say what is wrong with parameter rules."""
  for rule in value:
    try:
      pattern, *factors = rule
      re.compile(pattern)
      is_sound = len(factors) == 2 and all(0 <= f < math.inf for f in factors)
    except (TypeError, ValueError, re.error):
      is_sound = False
    if not is_sound:
      return f'has {rule!r}, which is not (regular expression, factor on lr, factor on weight decay)'
  return ''
