"""The arguments of the command line.

Every option of the config is a flag: --config.optim.lr=3e-4 (`hierjax.core.declarations`).
"""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict

from hierjax.cli import config_files
from hierjax.core import config
from hierjax.core.declarations import OPTIONS
from hierjax.core.errors import UserError, did_you_mean

MODES = ('train', 'evaluate', 'report', 'predict', 'lint', 'describe', 'table', 'migrate', 'probe')
MODES += ('plan', 'export', 'options', 'compare', 'audit', 'serve', 'backbones', 'push', 'pull')
MODES += ('regions', 'pack')
# Those that take words after the command.
WITH_WORDS = ('options', 'compare', 'serve', 'backbones', 'push', 'pull')
# Short names of options: --lr=3e-4 is --config.optim.lr=3e-4.
ALIASES = {
  'data': 'data.root',
  'backbone': 'model.backbone',
  'size': 'data.size',
  'epochs': 'train.epochs',
  'batch_size': 'train.batch_size',
  'lr': 'optim.lr',
  'seed': 'seed',
  'head': 'probe.head',
}


class Flag(NamedTuple):
  """A flag; `commands` are those that it is for, separated by spaces, all if there are none."""

  name: str
  default: object
  help: str
  commands: str = ''
  kind: type = str
  least: int | None = None
  most: int | None = None
  choices: tuple = ()


# fmt: off
FLAGS = (
  Flag('config', None, "FILE.py[:ARGUMENT], or the name of one of hierjax's own, as 3head"),
  Flag('workdir', '',
       'folder of the run: train writes it and continues it (runs/NAME by default), others read it',
       'train evaluate report predict table migrate probe export compare audit regions'),
  Flag('resume_from', None,
       'train: go on in the folder from the best or the last checkpoint with other options, such '
       'as a lower --config.optim.lr', 'train', choices=('best', 'last')),
  Flag('json', False, 'train, plan: print the result as one line of JSON', 'train plan', bool),
  Flag('split', 'val', 'evaluate, table, compare: the split', 'evaluate table compare'),
  Flag('images', '', 'predict: an image, a folder, a glob in quotes, or a .txt or .csv of paths',
       'predict'),
  Flag('artefact', '', 'predict: folder that export wrote; needs no jax', 'predict'),
  Flag('risk', None, 'predict: share of answers that may be wrong; one that the model offers',
       'predict'),
  Flag('shard', None, 'predict: i/n: process i, from 0, of n takes its part of the images',
       'predict'),
  Flag('output', '',
       'export, pack: the new folder; predict: FILE.jsonl, .csv or .parquet; a rerun completes it; '
       'regions: the CSV file, by default WORKDIR/regions.csv', 'predict export pack regions'),
  Flag('maps', False, 'export: with what heat maps need, of models that have them', 'export', bool),
  Flag('sample', None, 'lint: decode only so many images of each split, evenly spaced', 'lint', int,
       1),
  Flag('similar', None, 'export: with features, names and classes of so many training images',
       'export', int, 1, 10_000),
  Flag('int8', None,
       'export: in int8, if val loses no more than so many points of full paths, such as .5',
       'export', float, 0, 100),
  Flag('fp16', None, 'export: the same in float16, for processors that compute so',
       'export', float, 0, 100),
  Flag('thumbnails', False, 'export: and with small pictures of these', 'export', bool),
  Flag('licence', None, 'export: the licence of the training images, for the model card', 'export'),
  Flag('classes', None,
       'predict, evaluate: file with the classes that are possible, of any level: one name a line, '
       'or a CSV with a column class, or columns called by levels', 'predict evaluate'),
  Flag('region', None, 'predict, evaluate: the region of --classes that counts',
       'predict evaluate'),
  Flag('seeds', [], 'table: seeds of the runs of a row, as 0,1,2', 'table', list),
  Flag('rows', '', 'table: rows by name or pattern with *, separated by spaces; all by default',
       'table'),
  Flag('limit', None, 'table: like --config.data.limit, for a quick look', 'table', int, 1),
  Flag('from', '', 'migrate: folder of the trained run', 'migrate'),
  Flag('taxonomy', '', 'migrate: CSV of the new taxonomy', 'migrate'),
  Flag('renames', '',
       'migrate: CSV with the columns level, old, new; it can merge and split classes', 'migrate'),
  Flag('shots', None,
       'migrate: a new class starts from so many of its images, by default all; 0: from its '
       'siblings', 'migrate', int, 0),
  Flag('host', '127.0.0.1', 'serve: its address; one that others can reach needs a token', 'serve'),
  Flag('port', 8000, 'serve: its port; 0: any that is free', 'serve', int, 0, 65535),
  Flag('token', '', 'serve: what clients must send as Authorization: Bearer; or HIERJAX_TOKEN',
       'serve'),
  Flag('public', False, 'serve: no token is needed', 'serve', bool),
  Flag('max_body', 32 * 2**20, 'serve: bytes of a request', 'serve', int, 1),
  Flag('max_files', 64, 'serve: images of a request', 'serve', int, 1),
  Flag('max_pixels', None, 'serve: pixels of an image; by default as the model was trained with',
       'serve', int, 1),
  Flag('queue', 256, 'serve: images that wait; with more a request is refused', 'serve', int, 1),
  Flag('timeout', 30, 'serve: seconds until a request must have come, and until it is answered',
       'serve', int, 1),
  Flag('log_inputs', None, 'serve: folder that keeps images and answers for an audit', 'serve'),
  Flag('log_bytes', 2**30, 'serve: size of that folder; beyond it nothing more is logged', 'serve',
       int, 1),
  Flag('trained', False,
       'audit: judge by networks, trained on the other images for each of probe.folds folds, '
       'instead of by linear heads', 'audit', bool),
  Flag('distributed', False,
       'train, evaluate: one of several processes; finds SLURM, Open MPI, GKE and Cloud TPU', '',
       bool),
  Flag('coordinator', '', 'distributed: HOST:PORT of process 0, where no cluster is found'),
  Flag('num_processes', None, 'distributed: number of processes, where no cluster is found', '',
       int),
  Flag('process_id', None, 'distributed: number of this process, from 0', '', int),
  Flag('start_timeout', 300, 'distributed: seconds to wait for all processes', '', int, 1),
  Flag('peer_timeout', 100, 'distributed: seconds of silence after which a process counts as dead',
       '', int, 1),
)
# fmt: on


@dataclasses.dataclass(frozen=True)
class Arguments:
  """What the command line asks for.

  Args:
    flags: the value of each flag but --config.
    present: the flags that are given.
    config_file: FILE.py[:ARGUMENT], `None` where no --config is given.
    overrides: options by --config.NAME=VALUE, as text.
  """

  flags: Mapping[str, object]
  present: frozenset[str]
  config_file: str | None
  overrides: Mapping[str, object]

  def __getattr__(self, name: str) -> object:
    try:
      return self.__dict__['flags'][name]
    except KeyError:
      raise AttributeError(name) from None

  @functools.cached_property
  def config(self) -> ConfigDict:
    """The config of the config file, or the defaults, with the overrides."""
    c = config_files.load(self.config_file) if self.config_file else config.default()
    for path, value in self.overrides.items():
      config.assign(c, path, value)
    return c

  def check_overrides(self, changeable: tuple[str, ...], source: str) -> None:
    """Refuse options that what is loaded from `source` does not read.

    Args:
      changeable: options that may be given, and groups of them with a dot at the end.
      source: folder of the model.

    Raises:
      UserError: another option is given.
    """
    for path in self.overrides:
      if not path.startswith(changeable):
        *others, last = (f'--config.{name}{"*" * name.endswith(".")}' for name in changeable)
        raise UserError(
          f'--config.{path}: {self.mode} takes its model from {source}; '
          f'only {", ".join(others)} and {last} can change'
        )


def define(values: flags.FlagValues) -> None:
  """Define all flags but those of the options."""
  choose = functools.partial(flags.DEFINE_enum, flag_values=values)
  choose('mode', 'train', MODES, 'what to do; the first word, without --mode=, says it too')
  makers = {str: flags.DEFINE_string, bool: flags.DEFINE_boolean, list: flags.DEFINE_list}
  for flag in FLAGS:
    if flag.choices:
      choose(flag.name, flag.default, flag.choices, flag.help)
    elif flag.kind in (int, float):
      bounds = {'lower_bound': flag.least, 'upper_bound': flag.most}
      define_number = flags.DEFINE_integer if flag.kind is int else flags.DEFINE_float
      define_number(flag.name, flag.default, flag.help, flag_values=values, **bounds)
    else:
      makers[flag.kind](flag.name, flag.default, flag.help, flag_values=values)


def parse(argv: Sequence[str]) -> Arguments | None:
  """Parse the command line.

  Args:
    argv: program name and arguments.

  Returns:
    The arguments; `None` where help is asked for.

  Raises:
    UserError: a flag or its value is wrong.
  """
  argv = _in_full(argv)
  _check_options(argv)
  values = flags.FlagValues()
  define(values)
  for name, short in (('help', '?'), ('helpfull', None), ('helpshort', None)):
    flags.DEFINE_boolean(name, False, 'show help', short_name=short, flag_values=values)
  names = list(values)
  for name, option in OPTIONS.items():
    make = flags.DEFINE_boolean if option.value_type is bool else flags.DEFINE_string
    make(f'config.{name}', None, option.help, flag_values=values)
  try:
    unexpected = values(list(argv))[1:]
  except flags.UnrecognizedFlagError as e:
    hint = did_you_mean(e.flagname, [*names, *ALIASES])
    raise UserError(f'--{e.flagname}: no such flag{hint}; --help lists them') from None
  except flags.Error as e:
    raise UserError(' '.join(str(e).split())) from None
  if values.help or values.helpfull or values.helpshort:
    return None
  if unexpected and values.mode not in WITH_WORDS:
    raise UserError(
      f'unexpected argument {unexpected[0]!r}: after the command come flags only: --config=..., '
      '--workdir=...; see --help'
    )
  overrides = {
    name: values[f'config.{name}'].value for name in OPTIONS if values[f'config.{name}'].present
  }
  arguments = Arguments(
    flags={name: values[name].value for name in names} | {'patterns': unexpected},
    present=frozenset(name for name in names if values[name].present),
    config_file=values.config,
    overrides=overrides,
  )
  _check(arguments)
  # A shell leaves the ~ of --workdir=~/x as it is.
  return dataclasses.replace(
    arguments, flags={**arguments.flags, 'workdir': os.path.expanduser(values.workdir)}
  )


def _in_full(argv: Sequence[str]) -> list[str]:
  """Write the command as --mode=COMMAND, and short names as the options that they stand for."""
  program, *words = argv
  if words and not words[0].startswith('-'):
    if words[0] not in MODES:
      raise UserError(
        f'{words[0]!r} is no command{did_you_mean(words[0], MODES)}; commands: {", ".join(MODES)}'
      )
    words[0] = f'--mode={words[0]}'
  for i, argument in enumerate(words):
    flag, equals, value = argument.partition('=')
    if flag.startswith('--') and flag[2:] in ALIASES:
      words[i] = f'--config.{ALIASES[flag[2:]]}{equals}{value}'
  return [program, *words]


def _check_options(argv: Sequence[str]) -> None:
  """Raise a `UserError` for a --config.NAME that is no option."""
  for argument in argv[1:]:
    flag, dashes, name = argument.partition('=')[0], '--', ''
    if flag.startswith('--config.'):
      name = flag.removeprefix('--config.')
    elif flag.startswith('-config.'):
      dashes, name = '-', flag.removeprefix('-config.')
    if not name or name in OPTIONS:
      continue
    if name.startswith('curriculum.'):
      config.assign(config.default(), name, '')
    below = [option for option in OPTIONS if option.startswith(f'{name}.')]
    if below:
      raise UserError(
        f'{dashes}{argument[len(dashes) :]}: {name} is a group of options: {", ".join(below)}'
      )
    raise UserError(
      f'--config.{name}: no such option{did_you_mean(name, OPTIONS)}; docs/options.md and --help '
      'list them'
    )


def _check(arguments: Arguments) -> None:
  """Raise a `UserError` for flags that do not go together."""
  mode = arguments.mode
  for flag in FLAGS:
    commands = flag.commands.split() or MODES
    if flag.name in arguments.present and mode not in commands:
      raise UserError(f'--{flag.name} is only valid with {" or ".join(commands)}, not {mode}')
  if arguments.distributed and mode not in ('train', 'evaluate'):
    raise UserError(
      f'--distributed: hierjax {mode} runs in one process; train and evaluate run in several'
    )
  if mode == 'predict' and bool(arguments.workdir) == bool(arguments.artefact):
    raise UserError(
      'hierjax predict needs --workdir=FOLDER, the folder of the trained run, or '
      '--artefact=FOLDER, what export wrote, and not both'
    )
  if mode in ('evaluate', 'report', 'export', 'regions') and not arguments.workdir:
    raise UserError(f'hierjax {mode} needs --workdir=FOLDER, the folder of the trained run')
  if mode == 'predict' and not arguments.images:
    raise UserError(
      'hierjax predict needs --images: a file, a folder or a glob in quotes, as '
      "--images='photos/*.jpg'"
    )
  if arguments.region is not None and not arguments.classes:
    raise UserError('--region needs --classes=FILE, the list of the classes of each region')
  if mode in ('export', 'pack') and not arguments.output:
    raise UserError(f'hierjax {mode} needs --output=FOLDER, a new folder')
  if mode == 'compare' and len(arguments.patterns) < 2:
    raise UserError('compare needs two folders or more: hierjax compare RUN RUN')
  if mode == 'serve' and len(arguments.patterns) != 1:
    raise UserError('serve needs one folder that hierjax export wrote: hierjax serve FOLDER')
  if mode in ('push', 'pull') and len(arguments.patterns) != 2:
    words = ('FOLDER', 'hf:OWNER/NAME')[:: 1 if mode == 'push' else -1]
    raise UserError(f'{mode} is called as hierjax {mode} {" ".join(words)}')
  if mode == 'migrate':
    for name in ('from', 'taxonomy', 'workdir'):
      if not arguments.flags[name]:
        raise UserError(
          f'hierjax migrate needs --{name}; it is called as hierjax migrate --from=RUN '
          '--taxonomy=NEW.csv --workdir=NEWRUN'
        )
  if not all(s.strip().isdecimal() for s in arguments.seeds):
    raise UserError(f'--seeds={",".join(arguments.seeds)}: must be whole numbers from 0, as 0,1,2')
  for name in ('coordinator', 'num_processes', 'process_id'):
    if name in arguments.present and not arguments.distributed:
      raise UserError('--coordinator, --num_processes and --process_id need --distributed')
