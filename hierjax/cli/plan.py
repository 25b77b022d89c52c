"""--mode=plan: options by the data and the machine, with reasons, and a forecast."""

import contextlib
import io
import pathlib
import time

from hierjax.cli.arguments import Arguments
from hierjax.core import config, files, json_files, terminal
from hierjax.experiments import forecast, plan, run_lock
from hierjax.train import chrono, setup


def run(args: Arguments) -> int:
  """Print options with their reasons and a forecast; with --workdir, write both to plan.json.

  Args:
    args: the arguments.
  """
  # the processor time of the imports: a clock would count what the program waited for others
  imports = time.process_time()
  data = plan.fingerprint(setup.build(args.config))
  c, reasons = plan.choose(args.config, data)
  lines = [f'{name:<16}{"unknown" if x is None else x}' for name, x in data._asdict().items()]
  for option, reason in reasons.items():
    lines.append(f'--config.{option}={config.value_at(c, option)}  {reason}')
  terminal.show('\n'.join(lines))
  terminal.say('the options above are chosen, all others stay; timing parts of the run')
  if 'distill' in c.loss.terms:
    terminal.show('no forecast: the term distill needs a run that --mode=migrate has made')
    return 0
  setup.build(c)
  start, planned = time.monotonic(), setup.build(c)
  # a run with `plan` builds twice, as it plans first
  start = imports + 2 * (time.monotonic() - start)
  with contextlib.redirect_stderr(io.StringIO()):
    measured = forecast.rehearse(planned)
  seconds = forecast.seconds(planned, measured, start)
  for name, value in seconds.items():
    terminal.show(f'{name:<16}{chrono.clock(value)}')
  for name, value in measured.memory.items():
    terminal.show(f'{name:<16}{value:.1f}')
  if args.workdir:
    options = {option: (config.value_at(c, option), reason) for option, reason in reasons.items()}
    content = {'fingerprint': data._asdict(), 'options': options, 'seconds': seconds}
    run_lock.make_folder(folder := pathlib.Path(args.workdir))
    text = json_files.dump({**content, 'measured': measured._asdict()}, indent=2)
    files.write(folder / 'plan.json', text + '\n')
  return 0
