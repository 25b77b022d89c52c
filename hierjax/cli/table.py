"""hierjax table: train and evaluate the rows of a published table."""

import pathlib

from hierjax.cli import config_files, errors
from hierjax.cli.arguments import Arguments
from hierjax.core import terminal
from hierjax.core.errors import UserError
from hierjax.experiments import runner, table, table_view


def run(args: Arguments) -> int:
  """Make all rows, print the table, and return the exit code."""
  if args.config_file is None:
    raise UserError('hierjax table needs --config=FILE with a table')
  file, _, argument = args.config_file.partition(':')
  namespace = config_files.read(args.config_file)
  with config_files.explained(args.config_file):
    namespace = namespace | (table.of_sweep(namespace) if 'SWEEP' in namespace else {})
  if not callable(namespace.get('get_table')):
    raise UserError(
      f'hierjax table: {file} has neither get_table nor SWEEP; tables are in '
      f'{config_files.folder() / "tables"}, a sweep in docs/experiments.md'
    )
  with config_files.explained(args.config_file):
    contents, configs = table.load(namespace, argument)
  overrides = dict(args.overrides)
  if args.limit:
    overrides['data.limit'] = args.limit
  default = 'runs/' + '_'.join(name for name in (pathlib.Path(file).stem, argument) if name)
  rows = runner.Runner(
    contents,
    configs,
    args.workdir or default,
    [int(s) for s in args.seeds],
    args.rows,
    args.split if 'split' in args.present else '',
    overrides,
  )
  failures = rows.run(errors.message, table_view.write)
  terminal.show((rows.workdir / 'table.md').read_text())
  terminal.say(f'table: {rows.workdir / "table.html"}')
  if failures:
    return errors.report(f'{failures} runs of rows failed; the same command tries them again')
  return 0
