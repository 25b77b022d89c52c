"""The folder of a run: what is written there, and whether a run can go on in it."""

import contextlib
import dataclasses
import datetime
import errno
import importlib.metadata
import json
import pathlib
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence

import jax

from hierjax import model
from hierjax.core import config, files, json_files, parallel
from hierjax.core.errors import UserError
from hierjax.data import regions, split_record
from hierjax.taxonomy import describe_difference, read_taxonomy
from hierjax.train import checkpoint, log
from hierjax.train.loop import Loop
from hierjax.train.setup import Setup
from hierjax.train.state import TrainState, to_parts

# options that don't change what is learned, by the beginning of their names
FREE_ON_RESUME = (
  *('name', 'plan', 'baseline', 'plugins', 'data.workers', 'data.threads'),
  'data.max_',  # limits
  'data.homonyms',  # the taxonomy shows whether it matters
  *('train.log_steps', 'train.save_minutes', 'eval.', 'decide.', 'log.', 'probe.'),
  *('train.shard', 'train.class_devices'),  # where the state lies
)
# what --resume_from lets change: neither the data nor the structure of the state depend on them
CHANGEABLE = (
  *FREE_ON_RESUME,
  'seed',
  *('data.augment.', 'data.regions'),
  'loss.',
  *(f'train.{name}' for name in 'epochs steps examples eval_ early_stop'.split()),
  *(f'optim.{name}' for name in 'lr heads_ momentum warmup_ clip weight_decay'.split()),
  *(f'optim.{name}' for name in 'onecycle_ plateau_'.split()),
)
PACKAGES = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def has_run(workdir: pathlib.Path) -> bool:
  """Whether a folder holds a run that can go on."""
  checkpoints = workdir / 'checkpoints'
  return (workdir / 'config.json').exists() and checkpoints.exists() and any(checkpoints.iterdir())


def differences(workdir: pathlib.Path, setup: Setup) -> list[str]:
  """Return a line for each option of the run in a folder that differs, and for edited regions."""
  lines = config.differences(model.run_config(workdir), setup.c)
  before = _read_facts(workdir).get('regions_sha256')
  is_same_file = not any(line.startswith('data.regions') for line in lines)
  if is_same_file and before not in (None, regions.digest(setup.train)):
    lines.append(f'data.regions: {setup.c.data.regions} was edited: put its old boxes back')
  return lines


def _read_facts(workdir: pathlib.Path) -> dict:
  """The content of run.json, {} where it is missing or damaged."""
  try:
    return json_files.read_object(workdir / 'run.json')
  except (OSError, UserError):
    return {}


def write_options(workdir: pathlib.Path, setup: Setup) -> None:
  """Note in a run's folder that it goes on with other options, and other regions."""
  facts = _read_facts(workdir) | {'regions_sha256': regions.digest(setup.train)}
  files.write(workdir / 'run.json', json.dumps(facts, indent=2) + '\n')
  files.write(workdir / 'config.json', config.to_json(setup.c) + '\n')


def conflict(
  workdir: pathlib.Path,
  setup: Setup,
  record: split_record.Record | None,
  changeable: Sequence[str] = FREE_ON_RESUME,
) -> str | None:
  """Tell why a run cannot go on in a folder.

  Args:
    workdir: the folder.
    setup: the run.
    record: of the data that it was made with, None without one.
    changeable: beginnings of the names of the options that may have changed.

  Returns:
    A sentence, or None where the folder is new or holds the same run.
  """
  if not has_run(workdir):
    return None
  changed = [line for line in differences(workdir, setup) if not line.startswith(changeable)]
  if changed:
    return (
      f'{workdir} holds a run with other options ({"; ".join(changed)}): '
      'give another --workdir or the old options, remove the folder, or, where only the '
      'optimisation differs, add --resume_from=best or --resume_from=last, with which '
      f'{", ".join(f"{name}*" for name in CHANGEABLE)} may change'
    )
  before = read_taxonomy(workdir / 'taxonomy.csv', setup.c.data.multi)
  if before.hash() != setup.taxonomy.hash():
    new = f'; new files: {split_record.listed(setup.data.new)}' if setup.data.new else ''
    difference = describe_difference(before, setup.taxonomy)
    return (
      f'{workdir} holds a run on another taxonomy ({difference}{new}): '
      'give another --workdir or the old taxonomy, or carry its classes over: '
      f'hierjax migrate --from={workdir} --taxonomy=NEW.csv --workdir=NEWRUN'
    )
  changes = split_record.changes(record, setup.data) if record else ''
  if changes:
    return (
      f'the data are not those that {workdir} was made with ({changes}): put them back, give '
      f'another --workdir, or remove {workdir / split_record.FILE} to go on with the data as they '
      'are, which may train on images of the old val'
    )
  return None


def prepare(workdir: pathlib.Path, setup: Setup, record: split_record.Record | None = None) -> str:
  """Write config.json, taxonomy.csv and splits.csv, or check that they are those of the same run.

  Args:
    workdir: the folder.
    setup: the run.
    record: of the data that it was made with, None without one.

  Returns:
    The digest of the files, splits and labels.

  Raises:
    UserError: the folder holds another run, or the processes differ in options, data or folder.
  """
  content = split_record.content(setup.data.undiminished)
  digest = split_record.digest(content)
  facts = {'options': config.to_json(setup.c), 'taxonomy': setup.taxonomy.hash(), 'data': digest}
  facts['regions'] = regions.digest(setup.train)
  parallel.check_same(workdir, facts)
  # the first process reads, as it is the one that writes
  reason = parallel.exchange(conflict(workdir, setup, record) if parallel.first() else None)[0]
  if reason:
    raise UserError(reason)
  if parallel.first():
    files.write(workdir / 'config.json', config.to_json(setup.c) + '\n')
    setup.taxonomy.to_csv(workdir / 'taxonomy.csv')
    files.write(workdir / split_record.FILE, content)
  return digest


def save_untrained(workdir: pathlib.Path, setup: Setup, state: TrainState) -> None:
  """Write a run, a setup, with a state at step 0 into a workdir."""
  prepare(workdir, setup)
  store = checkpoint.Checkpoints(workdir / 'checkpoints', setup.best, writes=True)
  store.save(0, to_parts(state), None)
  store.wait()
  store.close()


@contextlib.contextmanager
def disk_errors(workdir: pathlib.Path) -> Iterator[None]:
  """Turn the errors of a full or failing disk into a message that names the last checkpoint.

  A checkpoint has a number as its name only once it is complete.

  Args:
    workdir: the folder of the run.

  Raises:
    UserError: the disk is full, read-only or broken.
  """
  try:
    yield
  except OSError as e:
    is_inside = f'{e.filename}'.startswith(f'{workdir}/')
    if isinstance(e, FileNotFoundError) and is_inside and not workdir.is_dir():
      raise UserError(f'{workdir}: was removed or moved while the run wrote there') from e
    if e.errno not in DISK_ERRORS:
      raise
    names = [path.name for path in (workdir / 'checkpoints').glob('*')]
    steps = [int(name) for name in names if name.isdigit()]
    state = 'there is no checkpoint yet'
    if steps:
      state = f'the checkpoint of step {max(steps)} is intact'
    raise UserError(
      f'{workdir}: cannot be written to ({e.strerror}); {state}; '
      'the same command continues from there'
    ) from e


def current_time() -> str:
  """Return the time, UTC, in ISO format."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


class Record:
  """run.json: command, machine, durations and sizes of a run, over all times it was resumed.

  Args:
    workdir: the folder of the run.
    loop: its training loop.
    started: when this process began with it.
    digest: of its data, as `prepare` returns it.
    change: that with which the run goes on from here, what `restart` returns.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    loop: Loop,
    started: str,
    digest: str,
    change: Mapping | None = None,
  ):
    self._path, self._loop = workdir / 'run.json', loop
    self._started, self._digest = started, digest
    self._before = self._read() if parallel.first() else {}
    loop.unreadable.update(self._before.get('skipped', ()))
    self._restarts = [*self._before.get('restarts', ()), *([change] if change else ())]
    self._devices = {
      'device': f'{loop.run.mesh.size} x {jax.devices()[0].device_kind}',
      'processes': jax.process_count(),
    }
    before = {**self._devices, **self._before}
    if any(before[name] != value for name, value in self._devices.items()):
      new, old = (f'{x["device"]} in {x["processes"]} process(es)' for x in (self._devices, before))
      loop.notes.append(
        f'resumes on {new} what ran on {old}: the end is close to that of a run on the same '
        'devices throughout, but not bit-identical'
      )

  def _read(self) -> dict:
    """What it says of the time before this process."""
    if not self._path.exists() or not self._loop.step:
      return {}
    try:
      return json_files.read_object(self._path)
    except (OSError, UserError) as e:
      self._loop.log.say(f'{self._path} is damaged ({e}): what it recorded before is lost')
      return {}

  def write(self, **end) -> None:
    """Write the file, by the first process.

    Args:
      **end: entries of a finished run: finished, state_sha256.
    """
    if not parallel.first():
      return
    loop, setup, before = self._loop, self._loop.run, self._before
    durations = loop.durations()
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    content = {
      'command': shlex.join(sys.argv),
      **self._devices,
      'versions': {'python': platform.python_version(), **versions},
      'started': before.get('started', self._started),
      'finished': None,
      **{name: round(before.get(name, 0) + x, 1) for name, x in durations.items()},
      **{name: round(x, 2) for name, x in log.memory().items()},
      'params': setup.num_params,
      'heads': list(setup.levels),
      'classes': {level: setup.taxonomy.num_classes(level) for level in setup.taxonomy.levels},
      'train_examples': len(setup.train.labels),
      'val_examples': len(setup.val.labels),
      'splits': sorted(setup.data.splits),
      'data_sha256': self._digest,
      'regions_sha256': regions.digest(setup.train),
      'phases': [dataclasses.asdict(phase) for phase in setup.phases],
      'skipped': sorted(loop.unreadable),
      'notes': loop.notes,
      'restarts': self._restarts,
      'step': loop.step,
      **end,
    }
    files.write(self._path, json.dumps(content, indent=2) + '\n')
