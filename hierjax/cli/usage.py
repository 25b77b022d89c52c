"""What --help prints, and docs/options.md: both made of the declarations.

`python -m hierjax.cli.usage > docs/options.md` writes the page.
"""

import textwrap

from absl import flags

from hierjax.cli import arguments
from hierjax.core.declarations import GROUPS, OPTIONS
from hierjax.core.options import Interval, Option

COMMANDS = """hierjax: hierarchical image classification.

  python main.py --config=configs/quickstart.py --workdir=runs/first
      train on the drawn images
  python main.py --config=configs/3head.py --config.data.root=FOLDER --workdir=runs/mine
      train on your images; the same command continues an interrupted run
  python main.py --mode=evaluate --workdir=runs/mine --split=val
      metrics of a split as JSON
  python main.py --mode=report --workdir=runs/mine
      report.html; evaluates what is missing
  python main.py --mode=predict --workdir=runs/mine --images='photos/*.jpg'
      one line of JSON for each image
  python main.py --mode=table --config=configs/tables/s0_table1.py --workdir=runs/s0
      train the rows of a published table, each in WORKDIR/ROW/seedK, and write table.html,
      table.md and table.csv after each: our mean and deviation over the seeds next to the paper's
      figures. --limit=300 --config.train.epochs=1 is a quick look; FILE:ROW is one row alone, in
      every other mode; FILE:ARGUMENT is one of several tables of a file
  python main.py --mode=migrate --from=runs/mine --taxonomy=new.csv --workdir=runs/grown
      make the run for a changed taxonomy; --mode=train continues it
  python main.py --mode=probe --config=configs/3head.py --config.data.root=FOLDER --workdir=runs/p
      the best of a grid of linear heads on the frozen backbone, in a minute or two; a run
  python main.py --mode=lint --config.data.root=FOLDER
      check taxonomy, labels and images
  python main.py --mode=describe --config=configs/3head.py
      parameters and MACs of the model

FOLDER holds a CSV file that lists images, a Parquet data set, or nested class folders."""


# In words, where an option has neither choices nor a range.
TYPES = {str: 'text', bool: 'true, false', int: 'whole number', float: 'number', tuple: 'list'}


def text() -> str:
  """Return the help of the command line."""
  values = flags.FlagValues()
  arguments.define(values)
  lines = [COMMANDS, '', 'Flags:']
  for name in sorted(values):
    flag = values[name]
    lines += _entry(f'--{name}', f'{flag.help}{_default(flag.value)}')
  lines += ['', 'Options, as --config.NAME=VALUE; where None is possible, NAME= is None:']
  for group, options in _grouped().items():
    lines += ['', f'{GROUPS[group]}:']
    for option in options:
      values_text = f' ({_values(option)})' if _values(option) else ''
      lines += _entry(f'--config.{option.name}', f'{option.help}{values_text}{_default_of(option)}')
  return '\n'.join(lines)


def page() -> str:
  """Return docs/options.md."""
  lines = [
    '# Options',
    '',
    'Set them in a config file (`c.optim.lr = 3e-4`) or on the command line',
    '(`--config.optim.lr=3e-4`). Off is `None`; on the command line an empty value is `None`, and',
    'a list is separated by commas.',
    'Written by `python -m hierjax.cli.usage > docs/options.md`.',
  ]
  for group, options in _grouped().items():
    lines += ['', f'## {GROUPS[group]}', '']
    lines += ['| option | default | values | what it does |', '|---|---|---|---|']
    for option in options:
      cells = (f'`{option.name}`', f'`{option.default!r}`', _values(option), option.help)
      lines.append(f'| {" | ".join(cell.replace("|", "&#124;") for cell in cells)} |')
  return '\n'.join(lines) + '\n'


def _values(option: Option) -> str:
  """The values that an option may have, in words."""
  if option.choices:
    words = ', '.join(str(x) for x in option.choices)
  elif option.interval:
    words = Interval(option.interval).describe()
  else:
    words = TYPES[option.value_type]
  return f'{words}, or None' if option.is_optional else words


def _grouped() -> dict[str, list[Option]]:
  groups = {group: [] for group in GROUPS}
  for name, option in OPTIONS.items():
    groups[name.rpartition('.')[0]].append(option)
  return groups


def _default_of(option: Option) -> str:
  return '' if option.default in (None, ()) else f' [{option.default}]'


def _default(value: object) -> str:
  return f' [{value}]' if value else ''


def _entry(name: str, description: str) -> list[str]:
  indented = textwrap.wrap(
    description, 96, initial_indent=' ' * 6, subsequent_indent=' ' * 6, break_on_hyphens=False
  )
  return [f'  {name}', *indented]


if __name__ == '__main__':
  print(page(), end='')
