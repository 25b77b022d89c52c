"""Kills training runs at random moments; each must end bit-identical to an undisturbed one.

  python tests/faults.py --kills 200 --seed 0     what `make test-faults` runs

Each run is a process. SIGINT goes to its process group, as from a terminal; SIGTERM and SIGKILL go
to the group or to the main process alone. The number of data workers is drawn at each start. The
runs save after each step, so many kills strike during a save.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import random
import signal
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


@dataclasses.dataclass
class Count:
  """What has happened so far: kills by signal, finished runs by kind, kills during a save."""

  kills: Counter = dataclasses.field(default_factory=Counter)
  runs: Counter = dataclasses.field(default_factory=Counter)
  saving: int = 0


def command(kind: str, workdir: pathlib.Path, workers: int) -> list[str]:
  """Return the command of a run of a kind, with a number of data workers."""
  options = BASE | KINDS[kind] | {'data.workers': workers}
  return [
    sys.executable,
    str(HERE / 'worker.py'),
    f'--workdir={workdir}',
    *(f'--config.{k}={v}' for k, v in options.items()),
  ]


class Process:
  """A running process; `trains` is set at its first step, `trained` after its last."""

  def __init__(self, kind: str, workdir: pathlib.Path, workers: int):
    # one device and one thread of XLA, as several runs share the machine
    env = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': os.environ.get('HIERJAX_TEST_XLA_FLAGS', ''),
      'HIERJAX_HUGEPAGES': '0',
    }
    self.process = subprocess.Popen(
      command(kind, workdir, workers),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=env,
      start_new_session=True,
    )
    self.trains, self.trained, self.lines = threading.Event(), threading.Event(), []
    self.readers = [
      threading.Thread(target=self.read, args=(stream,))
      for stream in (self.process.stderr, self.process.stdout)
    ]
    for reader in self.readers:
      reader.start()

  def read(self, stream):
    """Collect the lines of a stream and set the events that they announce."""
    for line in stream:
      self.lines.append(line)
      if line.startswith(('first step', 'val, ')) or f'resuming at step {STEPS}' in line:
        self.trains.set()
      if line.startswith(('val, ', f'val at step {STEPS} ', 'early stop')):
        self.trained.set()

  def end(self, seconds: float = 300) -> int:
    """Wait for the process; return its exit code."""
    code = self.process.wait(seconds)
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
  process = Process(kind, workdir, 0)
  times = [event.wait(300) and time.monotonic() for event in (process.trains, process.trained)]
  assert process.end() == 0, process.output()
  return outcome(workdir), (times[1] - times[0], time.monotonic() - times[1])


def disturbed(
  kind: str,
  workdir: pathlib.Path,
  seconds: tuple[float, float],
  rng: random.Random,
  count: Count,
  kills: int,
) -> dict:
  """Kill and restart a run until it ends or `kills` have struck; return its outcome."""
  while True:
    process, early = Process(kind, workdir, rng.choice((0, 1, 2))), False
    if sum(count.kills.values()) < kills:
      moment = rng.choices(('start', 'training', 'save', 'after'), (15, 35, 35, 15))[0]
      if moment != 'start':
        (process.trained if moment == 'after' else process.trains).wait(120)
      while moment == 'save' and not saving(workdir) and not process.trained.is_set():
        time.sleep(0.001)
      time.sleep(
        rng.uniform(
          0, {'start': 6, 'training': seconds[0], 'save': 0.02, 'after': seconds[1]}[moment]
        )
      )
      if process.process.poll() is None:
        number = rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL))
        is_group = number == signal.SIGINT or rng.random() < 0.5
        early = moment == 'start' and not process.lines
        count.saving += saving(workdir)
        (os.killpg if is_group else os.kill)(process.process.pid, number)
        count.kills[number.name] += 1
    code = process.end()
    # the data workers may report errors when their parent is killed
    is_killed = code == -signal.SIGKILL
    # a signal within the first milliseconds meets Python before it has read a line of the program
    is_sound = code in (0, 130, 143, -signal.SIGINT, -signal.SIGTERM) and (
      'Traceback' not in process.output() or early
    )
    assert is_killed or is_sound, f'{kind}: exit code {code}\n{process.output()}'
    if code == 0:
      count.runs[kind] += 1
      return outcome(workdir)


def main():
  """Disturb runs of all kinds in turn until all kills have struck; print a line of JSON."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--kills', type=int, default=200)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--jobs', type=int, default=2, help='runs at a time')
  options = parser.parse_args()
  count, started, kinds = Count(), time.monotonic(), list(KINDS)
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
      if sum(count.kills.values()) >= options.kills and len(count.runs) == len(kinds):
        return
      result = disturbed(
        kind,
        pathlib.Path(folder) / f'run{run}',
        expected[kind][1],
        random.Random(f'{options.seed}:{run}'),
        count,
        options.kills,
      )
      is_same = result == expected[kind][0]
      kills = sum(count.kills.values())
      print(
        f'run {run + 1}, {kind}: {"identical" if is_same else "DIFFERS"}; '
        f'kills so far {kills}, {count.saving} of them during a save',
        file=sys.stderr,
        flush=True,
      )
      assert is_same, (kind, result, expected[kind][0])

    list(pool.map(one, range(options.kills + len(kinds))))
  print(
    json.dumps(
      {
        'kills': sum(count.kills.values()),
        'by_signal': dict(count.kills),
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
