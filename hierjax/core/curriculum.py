"""Phases of a curriculum: what is frozen and which levels are trained, for how long."""

import dataclasses
from collections.abc import Sequence

from hierjax.core import options
from hierjax.core.errors import UserError, did_you_mean

UNITS = ('steps', 'epochs', 'examples')


@dataclasses.dataclass(frozen=True)
class PhaseOptions:
  """The options of one phase; exactly one of its four durations is not `None`.

  Args:
    epochs, steps, examples: how long it lasts.
    share: its share of the whole training; 1 lasts to the end.
    freeze: parameter groups that stay as they are: 'backbone', 'heads/LEVEL'.
    levels: the levels whose loss counts.
  """

  epochs: float | None = None
  steps: int | None = None
  examples: int | None = None
  share: float | None = None
  freeze: tuple[str, ...] = ()
  levels: tuple[str, ...] = ('all',)


def phase(
  *,
  epochs: float | None = None,
  steps: int | None = None,
  examples: int | None = None,
  share: float | None = None,
  freeze: str | Sequence[str] = (),
  levels: str | Sequence[str] = ('all',),
) -> PhaseOptions:
  """Make a phase for `config.curriculum`; see `PhaseOptions`.

  Example:
    c.curriculum = (config.phase(share=.25, freeze=('heads/finest',), levels=('coarser',)),)

  Raises:
    UserError: not exactly one duration is given, or it is out of its range.
  """
  where = '--config.curriculum'
  durations = {'epochs': epochs, 'steps': steps, 'examples': examples, 'share': share}
  given = {k: v for k, v in durations.items() if v is not None}
  if len(given) != 1:
    texts = ', '.join(f'{k}={v}' for k, v in given.items()) or 'none'
    raise UserError(
      f'{where}: a phase needs exactly one of {", ".join(durations)}; there is {texts}'
    )
  ((unit, value),) = given.items()
  interval = options.Interval('(0, 1]' if unit == 'share' else '(0, inf)')
  is_whole = isinstance(value, int) or unit in ('epochs', 'share')
  if not isinstance(value, int | float) or value not in interval or not is_whole:
    kind = 'a number' if unit in ('epochs', 'share') else 'a whole number'
    raise UserError(f'{where}: {unit}={value!r} of a phase must be {kind} {interval.describe()}')
  return PhaseOptions(**durations, freeze=options.names(freeze), levels=options.names(levels))


def parse(text: str) -> tuple[PhaseOptions, ...]:
  """Return the phases in a literal: "[{'share': .25, 'freeze': 'heads/finest'}]"."""
  value = options.literal(text) if text.strip() else ()
  return tuple(_from_dict(x) for x in ((value,) if isinstance(value, dict) else value))


def from_json(value: Sequence) -> tuple[PhaseOptions, ...]:
  """Return the phases that a config.json lists as objects."""
  return tuple(_from_dict(x) for x in value)


def check(value: tuple) -> str:
  """Say what is wrong with a curriculum."""
  for x in value:
    if not isinstance(x, PhaseOptions):
      return f'has {x!r}, which is no phase; make it with config.phase(steps=100, freeze=("backbone",))'
  return ''


def _from_dict(values: dict) -> PhaseOptions:
  if not isinstance(values, dict):
    raise ValueError("must be a list of phases, as [{'share': .25, 'freeze': 'heads/finest'}]")
  fields = [f.name for f in dataclasses.fields(PhaseOptions)]
  for name in values:
    if name not in fields:
      raise ValueError(
        f'a phase has no {name!r}{did_you_mean(str(name), fields)}; choices: {", ".join(fields)}'
      )
  return phase(**values)
