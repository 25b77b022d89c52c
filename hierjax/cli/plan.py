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
  data = plan.fingerprint(setup.build(args.config))
  c, reasons = plan.choose(args.config, data)
  lines = [f'{name:<16}{value}' for name, value in data._asdict().items()]
  for option, reason in reasons.items():
    lines.append(f'--config.{option}={config.value_at(c, option)}  {reason}')
  terminal.show('\n'.join(lines))
  terminal.say('the options above are chosen, all others stay; timing parts of the run')
  # the program's own time so far, which waits for no other
  start = time.process_time()
  with contextlib.redirect_stderr(io.StringIO()):
    planned = setup.build(c)
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
