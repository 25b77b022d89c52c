"""How an option is declared: name, default, one line of help, range or choices.

`hierjax.core.declarations` lists every option once. The tree of defaults, the parsing of text, the
validation, `main.py --help` and docs/options.md all come from these declarations.

Off is `None` and a list is a tuple. On the command line '' and 'none' mean `None`, and so does 0
for a number that may be off and whose range does not contain 0.
"""

import ast
import dataclasses
import math
import re
from collections.abc import Callable, Sequence

from hierjax.core.errors import UserError, did_you_mean

NONE_TEXTS = ('', 'none')
BOOLEANS = {'true': True, 't': True, '1': True, 'false': False, 'f': False, '0': False}


@dataclasses.dataclass(frozen=True)
class Interval:
  """An interval of numbers as mathematics writes it: '[0, 1)', '(0, inf)'. NaN is in none."""

  text: str

  @property
  def bounds(self) -> tuple[float, float]:
    """Return the lower and the upper bound."""
    low, high = self.text[1:-1].split(',')
    return float(low), float(high)

  def __contains__(self, value: float) -> bool:
    low, high = self.bounds
    is_above = low <= value if self.text.startswith('[') else low < value
    is_below = value <= high if self.text.endswith(']') else value < high
    return is_above and is_below

  def describe(self) -> str:
    """Return the interval in words: 'at least 0 and below 1'."""
    low, high = self.text[1:-1].split(', ')
    lower_words = 'at least' if self.text.startswith('[') else 'above'
    if high == 'inf':
      return f'{lower_words} {low}'
    upper_words = 'at most' if self.text.endswith(']') else 'below'
    return f'{lower_words} {low} and {upper_words} {high}'


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of tuple.

  Args:
    parse: text → value; a ValueError says what is wrong with the text.
    check: value → what is wrong with it, '' if nothing is.
  """

  parse: Callable[[str], tuple]
  check: Callable[[tuple], str] = lambda value: ''


@dataclasses.dataclass(frozen=True)
class Option:
  """The declaration of one option.

  Args:
    name: dotted path in the config: 'optim.lr'.
    default: value where nothing is set; `None` for an option that is off.
    help: one line that says what it does.
    interval: where numbers, or each number of a tuple, may lie: '[0, 1)'.
    value_type: bool, int, float, str or tuple; by default that of the default, for `None` float
      where there is an interval, else str.
    choices: the values there are, where they are few and fixed.
    is_optional: whether `None` is a value; it is where it is the default.
    kind: of tuples.
    levels: 'exclusive' or 'tags' for an option that only such levels read.
  """

  name: str
  default: object
  help: str
  interval: str | None = None
  value_type: type | None = None
  choices: tuple = ()
  is_optional: bool = False
  kind: Kind | None = None
  levels: str | None = None

  def __post_init__(self):
    value_type = self.value_type
    if self.kind:
      value_type = tuple
    elif value_type is None and self.default is None:
      value_type = float if self.interval else str
    elif value_type is None:
      value_type = type(self.default)
    is_optional = self.is_optional or self.default is None
    # The class is frozen; only so can these two be inferred from the other fields.
    object.__setattr__(self, 'value_type', value_type)
    object.__setattr__(self, 'is_optional', is_optional)

  @property
  def flag(self) -> str:
    """Return the option as the command line has it."""
    return f'--config.{self.name}'

  def convert(self, value: object) -> object:
    """Return a value in the option's type.

    Args:
      value: of the type, or text.

    Raises:
      UserError: the text does not fit the type.
    """
    is_text = isinstance(value, str)
    if is_text and self.is_optional and value.strip().lower() in NONE_TEXTS:
      return None
    if is_text and self.value_type is not str:
      value = self._from_text(value)
    is_off = is_number(value) and value == 0 and self._zero_is_off()
    if is_off and self.is_optional:
      return None
    return tuple(value) if isinstance(value, list) else value

  def _from_text(self, text: str) -> object:
    """Return the value that a text of the command line stands for."""
    if self.value_type is bool:
      if text.lower() not in BOOLEANS:
        raise UserError(f'{self.flag}={text} must be true or false')
      return BOOLEANS[text.lower()]
    if self.value_type in (int, float):
      try:
        return self.value_type(text)
      except ValueError:
        words = 'a whole number' if self.value_type is int else 'a number'
        raise UserError(f'{self.flag}={text} must be {words}') from None
    try:
      return self.kind.parse(text)
    except UserError:
      raise
    except ValueError as e:
      raise UserError(f'{self.flag}={text}: {e}') from None

  def _zero_is_off(self) -> bool:
    """Return whether 0 lies outside the range, so that it may be written for `None`."""
    return self.interval is not None and 0 not in Interval(self.interval)

  def validate(self, value: object) -> None:
    """Check that the option can have a value.

    Args:
      value: of the option's type, or `None`.

    Raises:
      UserError: it cannot; the text names the range or the choices.
    """
    if value is None:
      if not self.is_optional:
        raise UserError(f'{self.flag}=None must have a value; its default is {self.default!r}')
      return
    if self.choices and value not in self.choices:
      texts = [str(choice) for choice in self.choices]
      hint = did_you_mean(str(value), texts)
      none_words = ' or None' if self.is_optional else ''
      raise UserError(
        f'{self.flag}={value!r} is not a choice{hint}; choices: {", ".join(texts)}{none_words}'
      )
    if self.interval:
      self._validate_range(value)
    problem = self.kind.check(value) if self.kind else ''
    if problem:
      raise UserError(f'{self.flag}={value!r} {problem}')

  def _validate_range(self, value: object) -> None:
    """Check that a number, or each number of a tuple, lies in the interval."""
    interval = Interval(self.interval)
    values = value if isinstance(value, tuple) else (value,)
    if all(is_number(x) and x in interval for x in values):
      return
    words = interval.describe()
    if math.inf in values:
      words += ' and finite'
    if self.is_optional:
      words += ', or None for off' if self._zero_is_off() else ', or None'
    raise UserError(f'{self.flag}={value!r} must be {words}')


def is_number(value: object) -> bool:
  """Whether a value is a number, which True and False are not."""
  return isinstance(value, int | float) and not isinstance(value, bool)


def literal(text: str) -> object:
  """Return the Python literal in a text, () in an empty one; a ValueError where it has none."""
  try:
    return ast.literal_eval(text) if text.strip() else ()
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    raise ValueError(f'{text!r} is not a Python literal') from None


def names(text: str | Sequence[str], separator: str = ',') -> tuple[str, ...]:
  """Return names, stripped and without empty ones.

  Args:
    text: names with separators between them, a literal of a sequence, or a sequence.
    separator: what separates them.
  """
  items = text
  if isinstance(text, str):
    is_literal = text.strip()[:1] in ('(', '[')
    items = literal(text) if is_literal else text.split(separator)
    if isinstance(items, str):  # ('a') is a literal of a string, not of a tuple
      items = (items,)
    if not isinstance(items, list | tuple):
      raise ValueError(f'{text!r} is not a list of names')
  stripped = [str(item).strip() for item in items]
  return tuple(name for name in stripped if name)


def _check(is_valid: Callable[[tuple], bool], words: str) -> Callable[[tuple], str]:
  """Make the check of a kind: value → what it must be in these words, '' if it is."""
  return lambda value: '' if is_valid(value) else f'must be {words}'


def check_each(is_valid: Callable[[object], bool], words: str) -> Callable[[tuple], str]:
  """Make the check of a kind whose elements are of one form; `words` say that one is not."""

  def check(value):
    wrong = [x for x in value if not is_valid(x)]
    return f'has {wrong[0]!r}, which is {words}' if wrong else ''

  return check


def _are_names(value: tuple) -> bool:
  """Whether all elements are text."""
  return all(isinstance(name, str) for name in value)


def _numbers(text: str) -> tuple:
  """Return the numbers in a text: '1, 2' or '(1, 2)'."""
  value = literal(text)
  if is_number(value):
    return (value,)
  if not isinstance(value, tuple | list) or not all(is_number(x) for x in value):
    raise ValueError('must be numbers, separated by commas')
  return tuple(value)


def _is_range(value: tuple) -> bool:
  """Whether a value is two finite numbers, the smaller first, or says that an image has its own."""
  is_pair = len(value) == 2 and all(is_number(x) and math.isfinite(x) for x in value)
  return value == ('own',) or (is_pair and value[0] < value[1])


def _tuples(text: str) -> tuple[tuple, ...]:
  """Return the tuple of tuples in a text: '((1, 2), (3, 4))'."""
  value = literal(text)
  if not isinstance(value, tuple | list):
    raise ValueError('must be a sequence, as ((1, 2), (3, 4))')
  return tuple(tuple(x) if isinstance(x, list) else x for x in value)


def _weights(text: str) -> tuple[tuple[str, float], ...]:
  """Return (level, number) pairs of a text: 'make=1,type=.5', or a literal of such pairs."""
  if text.strip()[:1] in ('(', '['):
    return _tuples(text)
  pairs = []
  for item in names(text):
    name, _, number = item.partition('=')
    try:
      pairs.append((name.strip(), float(number)))
    except ValueError:
      raise ValueError(f'{item!r} is not LEVEL=NUMBER') from None
  return tuple(pairs)


def _is_weight(pair: object) -> bool:
  """Return whether a value is a level's name and a finite number of at least 0."""
  if not isinstance(pair, tuple) or len(pair) != 2:
    return False
  name, number = pair
  return isinstance(name, str) and is_number(number) and 0 <= number < math.inf


def _is_rule(rule: object) -> bool:
  """Return whether a value is a regular expression and two finite factors of at least 0."""
  try:
    pattern, *factors = rule
    re.compile(pattern)
    return len(factors) == 2 and all(0 <= factor < math.inf for factor in factors)
  except (TypeError, ValueError, re.error):
    return False


NAMES = Kind(names, _check(_are_names, 'names'))
NAMES_BY_SEMICOLON = Kind(lambda text: names(text, ';'), NAMES.check)
NUMBERS = Kind(_numbers)
PAIR = Kind(
  _numbers, _check(lambda x: len(x) == 2 and x[0] <= x[1], 'two numbers, the smaller first')
)
RANGE = Kind(
  lambda text: ('own',) if text.strip() == 'own' else _numbers(text),
  _check(_is_range, "'own', or two numbers, the smaller first"),
)
TRIPLE = Kind(_numbers, _check(lambda x: len(x) == 3, 'three numbers, of RGB in 0..255'))
TUPLES = Kind(_tuples)
WEIGHTS = Kind(_weights, check_each(_is_weight, 'not LEVEL=NUMBER with a number of at least 0'))
RULES = Kind(
  _tuples, check_each(_is_rule, 'not (regular expression, factor on lr, on weight decay)')
)


def level_words(levels: Sequence[str]) -> dict[str, Sequence[str]]:
  """Return the words that name levels of any taxonomy, and what they name in this one."""
  return {'coarsest': levels[:1], 'finest': levels[-1:], 'all': levels, 'coarser': levels[:-1]}


def resolve_levels(
  selection: str | Sequence[str], levels: Sequence[str], option: str
) -> tuple[str, ...]:
  """Return the levels that names and words name, in the taxonomy's order.

  Args:
    selection: names of levels or words (see `level_words`), also as text with commas.
    levels: the levels there are, coarse to fine.
    option: name of the option, in errors.

  Raises:
    UserError: a name is no level; it names the choices.
  """
  words = level_words(levels)
  selected = set()
  for name in names(selection):
    if name in levels:
      selected.add(name)
    elif name in words:
      selected.update(words[name])
    else:
      choices = ', '.join([*levels, *words])
      hint = did_you_mean(name, levels)
      raise UserError(f'{option}: no level {name!r}{hint}; choices: {choices}')
  return tuple(level for level in levels if level in selected)
