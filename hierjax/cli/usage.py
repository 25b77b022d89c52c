"""What --help prints, and docs/options.md: both made of the declarations.

`python -m hierjax.cli.usage > docs/options.md` writes the page.
"""

import textwrap
from collections.abc import Sequence

from absl import flags

from hierjax.cli import arguments
from hierjax.core.declarations import GROUPS, OPTIONS
from hierjax.core.errors import UserError, did_you_mean
from hierjax.core.options import Interval, Option

EXAMPLES = """  hierjax train --config=quickstart --workdir=runs/first
      train on the drawn images, three seeds with their baselines
  hierjax train --config=3head --data=FOLDER --workdir=runs/mine
      train on your images; the same command continues an interrupted run
  hierjax predict --workdir=runs/mine --images='photos/*.jpg'
      one line of JSON for each image"""

SHORT = f"""hierjax: hierarchical image classification.

{EXAMPLES}

All commands and options: hierjax --help. In a clone: python main.py in place of hierjax."""

COMMANDS = f"""hierjax: hierarchical image classification.

{EXAMPLES}
  hierjax evaluate --workdir=runs/mine --split=val
      metrics of a split as JSON
  hierjax report --workdir=runs/mine
      report.html; evaluates what is missing
  hierjax table --config=s0_table1 --workdir=runs/s0
      train the rows of a published table, each in WORKDIR/ROW/seedK, and write table.html, .md
      and .csv after each: our mean and deviation over the seeds next to the paper's figures.
      --limit=300 --epochs=1 is a quick look; --config=NAME:ROW is one row alone
  hierjax compare runs/one runs/other
      the second against the first: compare.html, compare.json and compare.csv in --workdir
      (runs/compare), paired intervals, classes won and lost; a run may be a folder of seeds
  hierjax migrate --from=runs/mine --taxonomy=new.csv --workdir=runs/grown
      make the run for a changed taxonomy; train continues it
  hierjax probe --config=3head --data=FOLDER --workdir=runs/p
      the best of a grid of linear heads on the frozen backbone; a run
  hierjax audit --data=FOLDER --workdir=runs/audit
      which labels are probably wrong, and which images are there twice; --workdir=RUN of that run
  hierjax regions --workdir=runs/mine
      boxes in the training images by heat maps of the run, for --config.data.regions
  hierjax plan --config=3head --data=FOLDER
      options for these data and this machine with reasons, and a forecast of time and memory;
      train --config.plan=true takes them
  hierjax export --workdir=runs/mine --output=exported
      a folder with ONNX, StableHLO and a model card that answers as the run does, without jax
  hierjax serve exported
      a page and an API for it on http://127.0.0.1:8000
  hierjax lint --data=FOLDER
      check taxonomy, labels and images
  hierjax pack --data=FOLDER --output=packed
      many small image files into one, with their labels and splits; --data=packed reads it
  hierjax describe --config=3head
      parameters and MACs of the model
  hierjax backbones 'vit_small*'
      the backbones of these names with parameters, MACs, image size and licence of the weights
  hierjax options optim
      the options whose name or help has the word, with default and range; all without a word

FOLDER holds a CSV file that lists images, a Parquet data set, what pack wrote, or nested class
folders. Configs are
Python files: hierjax's own by name, as 3head, or the path of yours. Short names of options:
{', '.join(f'--{short}' for short in arguments.ALIASES)}. In a clone: python main.py in place of
hierjax."""


# In words, where an option has neither choices nor a range.
TYPES = {str: 'text', bool: 'true, false', int: 'whole number', float: 'number', tuple: 'list'}


def text() -> str:
  """Return the help of the command line."""
  values = flags.FlagValues()
  arguments.define(values)
  lines = [COMMANDS, '', 'Flags:']
  for name in sorted(values):
    flag = values[name]
    lines += _entry(f'--{name}', f'{flag.help} [{flag.value}]' if flag.value else flag.help)
  lines += ['', 'Options, as --config.NAME=VALUE; where None is possible, NAME= is None:']
  for group, options in _grouped().items():
    lines += ['', f'{GROUPS[group]}:']
    for option in options:
      lines += _option_entry(option)
  return '\n'.join(lines)


def matching_options(words: Sequence[str]) -> str:
  """Return the help of the options that match all words.

  Args:
    words: each is part of the option's name, its help or its choices, in any case.

  Raises:
    UserError: no option matches.
  """
  lines = []
  for option in OPTIONS.values():
    entry = _option_entry(option)
    if all(word.lower() in ' '.join(entry).lower() for word in words):
      lines += entry
  if not lines:
    hint = did_you_mean(words[0], OPTIONS)
    raise UserError(f'no option has {" and ".join(words)} in its name or help{hint}')
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
      words = option.help.replace('[', '&#91;')  # no links
      cells = (f'`{option.name}`', f'`{option.default!r}`', _values(option), words)
      lines.append(f'| {" | ".join(cell.replace("|", "&#124;") for cell in cells)} |')
  return '\n'.join(lines) + '\n'


def _values(option: Option) -> str:
  """Say which values an option may have."""
  if option.choices:
    words = ', '.join(str(x) for x in option.choices)
  elif option.interval:
    words = Interval(option.interval).describe()
  else:
    words = TYPES[option.value_type]
  return f'{words}, or None' if option.is_optional else words


def _option_entry(option: Option) -> list[str]:
  default = '' if option.default in (None, ()) else f' [{option.default}]'
  return _entry(f'--config.{option.name}', f'{option.help} ({_values(option)}){default}')


def _grouped() -> dict[str, list[Option]]:
  groups = {group: [] for group in GROUPS}
  for name, option in OPTIONS.items():
    groups[name.rpartition('.')[0]].append(option)
  return groups


def _entry(name: str, description: str) -> list[str]:
  indented = textwrap.wrap(
    description, 96, initial_indent=' ' * 6, subsequent_indent=' ' * 6, break_on_hyphens=False
  )
  return [f'  {name}', *indented]


if __name__ == '__main__':
  print(page(), end='')
