"""hierjax plan: options by the data and the machine, with reasons, and a forecast."""

import contextlib
import io
import time

from hierjax.cli.arguments import Arguments
from hierjax.core import config, json_files, terminal
from hierjax.core.errors import UserError
from hierjax.experiments import forecast, plan
from hierjax.train import chrono, setup


def run(args: Arguments) -> None:
  """Print what the data and the machine are, options with their reasons, and a forecast."""
  # the processor time of the imports: a clock would count what the program waited for others
  imports = time.process_time()
  data = plan.fingerprint(setup.build(args.config))
  c, reasons = plan.choose(args.config, data)
  options = {option: (config.value_at(c, option), reason) for option, reason in reasons.items()}
  lines = [f'{name:<16}{"unknown" if x is None else x}' for name, x in data._asdict().items()]
  lines += [f'--config.{option}={value}  {text}' for option, (value, text) in options.items()]
  if not args.json:
    terminal.show('\n'.join(lines))
  terminal.say('options that the config or a flag sets stay as they are; timing parts of the run')
  if 'distill' in c.loss.terms:
    raise UserError('--config.loss.terms=distill: is not forecast, as it needs a migrated run')
  setup.build(c)
  start, planned = time.monotonic(), setup.build(c)
  # a run with `plan` builds twice, as it plans first
  start = imports + 2 * (time.monotonic() - start)
  with contextlib.redirect_stderr(io.StringIO()):
    measured = forecast.rehearse(planned)
  seconds = forecast.seconds(planned, measured, start)
  if args.json:
    content = {'fingerprint': data._asdict(), 'options': options, 'seconds': seconds}
    terminal.show(json_files.dump({**content, 'measured': measured._asdict()}))
    return
  lines = [f'{name:<16}{chrono.clock(value)}' for name, value in seconds.items()]
  lines += [f'{name:<16}{value:.1f}' for name, value in measured.memory.items()]
  terminal.show('\n'.join(lines))
