"""Phases of a curriculum: what is frozen and which levels are trained, for how long."""

import dataclasses
from collections.abc import Sequence

from hierjax.core import options
from hierjax.core.errors import UserError, did_you_mean

NO_PHASES = "must be a list of phases, as [{'share': .25, 'freeze': 'heads/finest'}]"
UNITS = ('steps', 'epochs', 'examples')
DURATIONS = ('epochs', 'steps', 'examples', 'share')  # of a phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseOptions:
  """A phase for `config.curriculum`, with exactly one duration; configs call it `config.phase`.

      c.curriculum = (config.phase(share=.25, freeze=('heads/finest',), levels=('coarser',)),)

  Args:
    epochs: how long it lasts, in epochs.
    steps: in steps.
    examples: in examples.
    share: its share of the whole training; 1 lasts to the end.
    freeze: parameter groups that stay as they are: 'backbone', 'heads/LEVEL'.
    levels: the levels whose loss counts.

  Raises:
    UserError: not exactly one duration is given, or it is out of its range.
  """

  epochs: float | None = None
  steps: int | None = None
  examples: int | None = None
  share: float | None = None
  freeze: str | Sequence[str] = ()
  levels: str | Sequence[str] = ('all',)

  def __post_init__(self):
    given_units = [unit for unit in DURATIONS if getattr(self, unit) is not None]
    if len(given_units) != 1:
      texts = ', '.join(f'{unit}={getattr(self, unit)}' for unit in given_units) or 'none'
      raise UserError(
        '--config.curriculum: a phase needs exactly one of epochs, steps, examples, share; there '
        f'is {texts}'
      )
    unit = given_units[0]
    value = getattr(self, unit)
    interval = options.Interval('(0, 1]' if unit == 'share' else '(0, inf)')
    is_whole = unit in ('steps', 'examples')
    has_type = isinstance(value, int) if is_whole else options.is_number(value)
    if not has_type or value not in interval:
      type_words = 'a whole number' if is_whole else 'a number'
      words = f'{type_words} {interval.describe()}'
      raise UserError(f'--config.curriculum: {unit}={value!r} of a phase must be {words}')
    for field in ('freeze', 'levels'):
      # The class is frozen; only so can a text become a tuple of names.
      object.__setattr__(self, field, options.names(getattr(self, field)))


def from_dicts(value: object) -> tuple[PhaseOptions, ...]:
  """Return phases from a list of dicts, or one dict; a ValueError where it is neither."""
  phases = (value,) if isinstance(value, dict) else value
  if not isinstance(phases, list | tuple):
    raise ValueError(NO_PHASES)
  return tuple(map(_from_dict, phases))


def _from_dict(values: dict) -> PhaseOptions:
  if not isinstance(values, dict):
    raise ValueError(NO_PHASES)
  fields = [f.name for f in dataclasses.fields(PhaseOptions)]
  for name in values:
    if name not in fields:
      hint = did_you_mean(str(name), fields)
      raise ValueError(f'a phase has no {name!r}{hint}; choices: {", ".join(fields)}')
  return PhaseOptions(**values)


PHASES = options.Kind(
  lambda text: from_dicts(options.literal(text)),
  options.check_each(
    lambda x: isinstance(x, PhaseOptions), 'no phase; make it with config.phase(steps=100)'
  ),
)
