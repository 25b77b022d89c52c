"""Disturbs training runs at random moments; each must end bit-identical to an undisturbed one.

  python tests/faults.py --disturbances 500 --seed 0     what `make test-faults` runs

Each run is a process, or two of them under --distributed. What happens to it is drawn at each
start, as is the number of data workers: a signal to the process or its group (SIGINT to the group,
as from a terminal), SIGSTOP and later SIGCONT, a terminal that is closed, a second start in the
same folder, the folder removed; under --distributed a process is killed at its start, during a save
or during an evaluation. The runs save after each step, so much strikes during a save.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import pty
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter

HERE = pathlib.Path(__file__).resolve().parent
STEPS = 48
BASE = {
  'data.source': 'toy',
  'data.size': 32,
  'data.toy.train': 96,
  'data.toy.val': 40,
  'model.backbone': 'tiny',
  'model.dropout': 0.2,
  'train.batch_size': 16,
  'train.epochs': 0.0,
  'train.steps': STEPS,
  'train.eval_epochs': 0.0,
  'train.eval_steps': 6,
  'train.log_steps': 2,
  'train.save_minutes': 1e-6,
  'optim.lr': 3e-3,
  'eval.batch_size': 16,
}
CURRICULUM = {'curriculum': "[{'steps': 20, 'freeze': 'heads/finest', 'levels': 'coarser'}]"}
KINDS = {
  'curriculum, EMA, accumulation': CURRICULUM
  | {'optim.ema': 0.9, 'optim.accumulate': 2, 'optim.schedule': 'onecycle'},
  'curriculum, plateau, early stopping': CURRICULUM
  | {
    'optim.schedule': 'plateau',
    'optim.plateau_patience': 1,
    'train.early_stop': 2,
    'train.best': 'loss',
  },
  'cached features, then all with EMA': {
    'curriculum': "[{'steps': 20, 'freeze': 'backbone'}]",
    'data.augment.enabled': False,
    'optim.ema': 0.9,
    'optim.name': 'sgd',
  },
  'balanced sampling, clipping, baseline': {
    'data.balance': 'sample',
    'optim.clip': 0.5,
    'baseline': 'train',
    'optim.schedule': 'constant',
  },
}
PEERS = 'two processes'
DISTRIBUTED = {'optim.ema': 0.9, 'model.dropout': 0.2}
# What may happen to a run of one process, and how often: signals go to the process or its group.
DISTURBANCES = {
  'SIGKILL': 8,
  'SIGTERM': 3,
  'SIGINT': 3,
  'SIGHUP': 3,
  'closed terminal': 4,
  'two starts at once': 4,
  'folder removed': 2,
  'SIGSTOP, SIGCONT': 4,
  'SIGUSR1': 3,
}
# After these the run goes on, and something else happens to it.
HARMLESS = ('SIGSTOP, SIGCONT', 'SIGUSR1')
# Exit codes of a run that has saved and stopped, of Python before it has read a line of the program
# and after it has restored the handlers.
STOPPED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOST, REFUSED = 75, 2


@dataclasses.dataclass
class Count:
  """What has happened so far: disturbances and finished runs by kind, and those during a save."""

  kills: Counter = dataclasses.field(default_factory=Counter)
  runs: Counter = dataclasses.field(default_factory=Counter)
  saving: int = 0

  @property
  def total(self) -> int:
    """The number of disturbances."""
    return sum(self.kills.values())

  def add(self, name: str, workdir: pathlib.Path) -> None:
    """Count a disturbance of a run in a folder."""
    self.saving += saving(workdir)
    self.kills[name] += 1


def command(kind: str, workdir: pathlib.Path, workers: int) -> list[str]:
  """Return the command of a run of a kind, with a number of data workers."""
  options = BASE | KINDS.get(kind, DISTRIBUTED) | {'data.workers': workers}
  return [
    sys.executable,
    str(HERE / 'worker.py'),
    f'--workdir={workdir}',
    *(f'--config.{k}={v}' for k, v in options.items()),
  ]


class Process:
  """A running process; events are set at its first step, before an evaluation, after its last step.

  Args:
    kind: of its run.
    workdir: its folder.
    workers: its number of data workers.
    has_terminal: whether its log goes to a terminal, which `hang_up` closes.
    flags: further ones.
  """

  def __init__(self, kind, workdir, workers, has_terminal=False, flags=()):
    # one device and one thread of XLA, as several runs share the machine
    env = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': os.environ.get('HIERJAX_TEST_XLA_FLAGS', ''),
      'HIERJAX_HUGEPAGES': '0',
      'HIERJAX_TEST_REPORT': os.environ.get('HIERJAX_TEST_REPORT', '1'),
    }
    arguments, self.master, log = [*command(kind, workdir, workers), *flags], None, subprocess.PIPE
    if has_terminal:
      self.master, log = pty.openpty()
      arguments = ['setsid', '--ctty', *arguments]
    self.process = subprocess.Popen(
      arguments,
      stdin=log if has_terminal else None,
      stdout=subprocess.PIPE,
      stderr=log,
      text=True,
      env=env,
      start_new_session=not has_terminal,
    )
    self.trains, self.evaluates, self.trained = (threading.Event() for _ in range(3))
    self.is_hung_up, self.lines = threading.Event(), []
    targets = [(self.read, self.process.stdout)]
    if has_terminal:
      os.close(log)
      targets.append((self.read, self.terminal_lines()))
    else:
      targets.append((self.read, self.process.stderr))
    self.readers = [threading.Thread(target=f, args=(stream,)) for f, stream in targets]
    for reader in self.readers:
      reader.start()

  def terminal_lines(self):
    """The lines on the terminal, until it is closed, by this thread as it reads from it."""
    text = b''
    with contextlib.suppress(OSError):
      while not self.is_hung_up.is_set():
        if select.select([self.master], [], [], 0.01)[0]:
          *lines, text = (text + os.read(self.master, 4096)).split(b'\n')
          yield from (line.decode(errors='replace').strip('\r') + '\n' for line in lines)
    os.close(self.master)

  def read(self, stream):
    """Collect the lines of a stream and set the events that they announce."""
    for line in stream:
      self.lines.append(line)
      if line.startswith(('first step', 'val, ')) or f'resuming at step {STEPS}' in line:
        self.trains.set()
      # evaluations are at the steps 6, 12, ..., and lines at the even ones, a step late
      if re.match(rf'step ({"|".join(str(s - 2) for s in range(6, STEPS, 6))})/', line):
        self.evaluates.set()
      if line.startswith(('val, ', f'val at step {STEPS} ', 'early stop')):
        self.trained.set()

  def wait_for(self, event: threading.Event, seconds: float = 120) -> None:
    """Wait until an event, or the end of the process."""
    end = time.monotonic() + seconds
    while not event.wait(0.05) and self.process.poll() is None and time.monotonic() < end:
      pass

  def wait_for_save(self, workdir: pathlib.Path) -> None:
    """Wait until a checkpoint is half written, or the last step."""
    while not saving(workdir) and not self.trained.is_set() and self.process.poll() is None:
      time.sleep(0.001)

  def end(self, seconds: float = 300) -> int:
    """Wait for the process; return its exit code."""
    try:
      code = self.process.wait(seconds)
    except subprocess.TimeoutExpired:
      os.killpg(self.process.pid, signal.SIGKILL)
      raise AssertionError(f'hangs:\n{self.output()}') from None
    self.is_hung_up.set()
    for reader in self.readers:
      reader.join(20)
    return code

  def output(self) -> str:
    """Return all lines so far."""
    return ''.join(self.lines)


def outcome(workdir: pathlib.Path) -> dict:
  """Return what must not depend on interruptions: state digests, scores, val lines of the log."""

  def read(folder):
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    steps = [(line['kind'], line['step']) for line in lines]
    assert len(set(steps)) == len(steps), f'{folder}/metrics.jsonl has a step twice'
    return {
      'state': json.loads((folder / 'run.json').read_text())['state_sha256'],
      'scores': json.loads((folder / 'eval_val.json').read_text())['decode'],
      'val': [
        {k: v for k, v in line.items() if k != 'seconds'} for line in lines if line['kind'] == 'val'
      ],
    }

  return {
    str(f.relative_to(workdir)): read(f)
    for f in (workdir, workdir / 'baseline')
    if (f / 'run.json').exists()
  }


def saving(workdir: pathlib.Path) -> bool:
  """Return whether a checkpoint is half written."""
  return any(
    any(f.glob('*.orbax-checkpoint-tmp'))
    for f in (workdir / 'checkpoints', workdir / 'baseline/checkpoints')
  )


def undisturbed(kind: str, workdir: pathlib.Path) -> tuple[dict, tuple[float, float]]:
  """Run without kills; return the outcome and the seconds from first to last step, and after it."""
  if kind == PEERS:
    codes = [process.end() for process in peers(workdir)]
    assert codes == [0, 0], codes
    return outcome(workdir), (0, 0)
  process = Process(kind, workdir, 0)
  times = [event.wait(300) and time.monotonic() for event in (process.trains, process.trained)]
  assert process.end() == 0, process.output()
  return outcome(workdir), (times[1] - times[0], time.monotonic() - times[1])


def wait_for_moment(
  process: Process, workdir: pathlib.Path, rng: random.Random, seconds: tuple[float, float]
) -> str:
  """Wait until a random moment of a run; return its name."""
  moment = rng.choices(('start', 'training', 'save', 'after'), (15, 35, 35, 15))[0]
  if moment != 'start':
    process.wait_for(process.trained if moment == 'after' else process.trains)
  if moment == 'save':
    process.wait_for_save(workdir)
  longest = {'start': 6, 'training': seconds[0], 'save': 0.02, 'after': seconds[1]}[moment]
  time.sleep(rng.uniform(0, longest))
  return moment


def remove(process: Process, workdir: pathlib.Path) -> None:
  """Remove the folder of a run, also what it still makes there until it notices."""
  end = time.monotonic() + 60
  while workdir.exists() or (process.process.poll() is None and time.monotonic() < end):
    shutil.rmtree(workdir, ignore_errors=True)
    time.sleep(0.01)


def disturb(name: str, process: Process, workdir: pathlib.Path, rng: random.Random) -> None:
  """Let something happen to a running process."""
  number, is_group = process.process.pid, name == 'SIGINT' or rng.random() < 0.5
  send = os.killpg if is_group else os.kill
  with contextlib.suppress(ProcessLookupError):
    if name == 'SIGSTOP, SIGCONT':
      os.killpg(number, signal.SIGSTOP)
      time.sleep(rng.uniform(0, 1))
      os.killpg(number, signal.SIGCONT)
    elif name == 'SIGUSR1':
      os.kill(number, signal.SIGUSR1)
    elif name == 'closed terminal':
      process.is_hung_up.set()
    elif name == 'folder removed':
      remove(process, workdir)
    else:
      send(number, getattr(signal, name))


def start_twice(kind: str, workdir: pathlib.Path, rng: random.Random, count: Count) -> None:
  """Start a run twice, at once or one in the midst of the other: one trains, one is told so."""
  first = Process(kind, workdir, 0)
  if rng.random() < 0.5:
    first.wait_for(first.trains)
  second = Process(kind, workdir, 0)
  count.add('two starts at once', workdir)
  ends = [(p.end(), p.output()) for p in (first, second)]
  for code, text in ends:
    is_refused = code == REFUSED and 'writes into this folder' in text
    assert (code == 0 or is_refused) and 'Traceback' not in text, f'{code}\n{text}'
  assert 0 in (code for code, _ in ends), ends


def disturbed(
  kind: str,
  workdir: pathlib.Path,
  seconds: tuple[float, float],
  rng: random.Random,
  count: Count,
  kills: int,
) -> dict:
  """Disturb and restart a run until it ends or `kills` have struck; return its outcome."""
  if kind == PEERS:
    return disturbed_peers(workdir, rng, count, kills)
  while True:
    names = rng.choices(list(DISTURBANCES), DISTURBANCES.values(), k=6)
    last = next((i for i, name in enumerate(names) if name not in HARMLESS), 0)
    if names[0] == 'two starts at once' and count.total < kills:
      start_twice(kind, workdir, rng, count)
      count.runs[kind] += 1
      return outcome(workdir)
    name, has_terminal = names[last], names[last] == 'closed terminal'
    process, early = Process(kind, workdir, rng.choice((0, 1, 2)), has_terminal), False
    for name in names[: last + 1]:
      if count.total < kills and name != 'two starts at once':
        moment = wait_for_moment(process, workdir, rng, seconds)
        if process.process.poll() is None:
          # a signal within the first milliseconds meets Python before it has read a line
          early |= moment == 'start' and not process.lines
          count.add(name, workdir)
          disturb(name, process, workdir, rng)
    code, text = process.end(), process.output()
    # the data workers may report errors when their parent is killed
    is_removed = name == 'folder removed' and not workdir.exists()
    sound = [0, *(128 + s for s in STOPPED), *(-s for s in STOPPED)]
    sound += [REFUSED] if is_removed else []
    # SIGUSR1 before the program has said that it does nothing
    sound += [-signal.SIGUSR1] if early else []
    is_sound = code in sound and ('Traceback' not in text or early)
    assert code == -signal.SIGKILL or is_sound, f'{kind}: {name}: exit code {code}\n{text}'
    if code == 0 and not is_removed:
      count.runs[kind] += 1
      return outcome(workdir)


def peers(workdir: pathlib.Path) -> list[Process]:
  """Start the two processes of a distributed run."""
  with socket.create_server(('', 0)) as server:
    port = server.getsockname()[1]
  flags = ['--distributed', f'--coordinator=localhost:{port}', '--num_processes=2']
  flags += ['--peer_timeout=10', '--start_timeout=60']
  return [Process(PEERS, workdir, 0, flags=[*flags, f'--process_id={i}']) for i in range(2)]


def disturbed_peers(workdir: pathlib.Path, rng: random.Random, count: Count, kills: int) -> dict:
  """Kill one of two processes until the run ends; return its outcome."""
  while True:
    processes = peers(workdir)
    moment, victim = rng.choice(('start', 'save', 'evaluation')), rng.choice(processes)
    if count.total < kills and rng.random() < 0.75:
      if moment == 'start':
        time.sleep(rng.uniform(0, 8))
      elif moment == 'evaluation':
        # process 0 logs
        processes[0].wait_for(processes[0].evaluates)
        time.sleep(rng.uniform(0, 0.1))
      else:
        processes[0].wait_for(processes[0].trains)
        processes[0].wait_for_save(workdir)
      if victim.process.poll() is None:
        count.add(f'peer killed at {moment}', workdir)
        os.kill(victim.process.pid, signal.SIGKILL)
    codes = [process.end() for process in processes]
    for code, process in zip(codes, processes):
      # of a process 0 that was killed before it listened, the other one says that it is not there
      is_absent = moment == 'start' and code == REFUSED and 'no answer within' in process.output()
      is_sound = is_absent or code in (0, LOST, -signal.SIGKILL)
      is_sound = is_sound and 'Traceback' not in process.output()
      assert is_sound, f'{PEERS}: {moment}: exit codes {codes}\n{process.output()}'
    if codes == [0, 0]:
      count.runs[PEERS] += 1
      return outcome(workdir)


def main():
  """Disturb runs of all kinds in turn until all has happened; print a line of JSON."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--disturbances', type=int, default=500)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--jobs', type=int, default=2, help='runs at a time')
  options = parser.parse_args()
  count, started, kinds = Count(), time.monotonic(), [*KINDS, PEERS]
  with (
    tempfile.TemporaryDirectory(prefix='hierjax-faults-') as folder,
    concurrent.futures.ThreadPoolExecutor(options.jobs) as pool,
  ):
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', f'{folder}/cache')
    expected = dict(
      zip(
        kinds,
        pool.map(
          lambda kind: undisturbed(kind, pathlib.Path(folder) / f'undisturbed{kinds.index(kind)}'),
          kinds,
        ),
      )
    )

    def one(run: int) -> None:
      kind = kinds[run % len(kinds)]
      if count.total >= options.disturbances and len(count.runs) == len(kinds):
        return
      result = disturbed(
        kind,
        pathlib.Path(folder) / f'run{run}',
        expected[kind][1],
        random.Random(f'{options.seed}:{run}'),
        count,
        options.disturbances,
      )
      is_same = result == expected[kind][0]
      print(
        f'run {run + 1}, {kind}: {"identical" if is_same else "DIFFERS"}; '
        f'{count.total} disturbances so far, {count.saving} of them during a save, '
        f'{time.monotonic() - started:.0f} s; {dict(count.kills)}',
        file=sys.stderr,
        flush=True,
      )
      assert is_same, (kind, result, expected[kind][0])

    list(pool.map(one, range(options.disturbances + len(kinds))))
  print(
    json.dumps(
      {
        'disturbances': count.total,
        'by_kind': dict(count.kills),
        'during_a_save': count.saving,
        'runs': dict(count.runs),
        'seed': options.seed,
        'identical': True,
        'seconds': round(time.monotonic() - started),
      }
    )
  )


if __name__ == '__main__':
  main()
