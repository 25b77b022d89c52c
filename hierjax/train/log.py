"""The log of a run: metrics.jsonl, TensorBoard, Weights & Biases, and lines for people.

Only the first process writes.
"""

import importlib.util
import json
import math
import os
import pathlib
import resource
import sys
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from hierjax.core import config, files, json_files, parallel, terminal
from hierjax.core.declarations import OPTIONS
from hierjax.core.errors import UserError

COMPILE_EVENT = '/jax/core/compile/backend_compile_duration'


class CompileTimer:
  """Counts the seconds that XLA compiles, or reads from its cache, until it is closed.

  Attributes:
    seconds: the sum so far.
  """

  def __init__(self):
    self.seconds = 0.0
    self._listener = self._add
    jax.monitoring.register_event_duration_secs_listener(self._listener)

  def _add(self, event: str, seconds: float, **_) -> None:
    if event == COMPILE_EVENT:
      self.seconds += seconds

  def close(self) -> None:
    """Stop counting."""
    jax.monitoring.unregister_event_duration_listener(self._listener)


def memory() -> dict[str, float]:
  """Return the peaks of memory so far.

  Returns:
    GiB: 'memory_gib' of this process, and 'device_memory_gib' of its first device where that
    keeps count, as CPUs don't.
  """
  # macOS counts bytes, Linux KiB
  unit = 1 if sys.platform == 'darwin' else 1024
  peaks = {'memory_gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    peaks['device_memory_gib'] = stats['peak_bytes_in_use'] / 2**30
  return peaks


class JsonLines:
  """metrics.jsonl, one JSON object a line.

  Args:
    path: the file. Lines after `step`, and one that an interruption cut short, are removed.
    step: the step at which the run goes on.
  """

  def __init__(self, path: pathlib.Path, step: int):
    self._path = path
    if path.exists():
      lines = files.read_text(path, errors='replace').splitlines()
      content = ''.join(f'{line}\n' for line in lines if _is_before(line, step))
      files.write(path, content)

  def write(self, step: int, kind: str, values: Mapping) -> None:
    """Append a line. Args: as `Log.write`."""
    # JSON has neither NaN nor infinity
    finite = {k: v for k, v in values.items() if not isinstance(v, float) or math.isfinite(v)}
    rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in finite.items()}
    with self._path.open('a') as f:
      f.write(json.dumps({'step': step, 'kind': kind, **rounded}) + '\n')

  def close(self) -> None:
    """Nothing: each line is written at once."""


def _is_before(line: str, step: int) -> bool:
  try:
    return json_files.parse(line, has_nan=True)['step'] <= step
  except (UserError, KeyError, TypeError):
    return False


class TensorBoard:
  """WORKDIR/tensorboard/KIND: in one picture what training and validation call the same.

  Closing it adds the options that are not the defaults, with the last validation, as hparams.

  Args:
    workdir: the folder of the run.
    step: the step at which the run goes on; later events are removed.
    c: the config.
  """

  def __init__(self, workdir: pathlib.Path, step: int, c: ConfigDict):
    from tensorboardX import SummaryWriter

    purge_step = step + 1 if step else None
    self._writers = {
      kind: SummaryWriter(str(workdir / 'tensorboard' / kind), purge_step=purge_step)
      for kind in ('train', 'val')
    }
    options = {name: config.value_at(c, name) for name in OPTIONS}
    self._options = {k: str(v) for k, v in options.items() if v != OPTIONS[k].default}
    self._last: tuple[int, Mapping] = (0, {})

  def write(self, step: int, kind: str, values: Mapping) -> None:
    """Add each value as NAME, acc/ of training as top1/. Args: as `Log.write`."""
    values = {name.replace('acc/', 'top1/'): value for name, value in values.items()}
    for name, value in values.items():
      self._writers[kind].add_scalar(name, value, step)
    self._writers[kind].flush()
    if kind == 'val':
      self._last = step, values

  def close(self) -> None:
    """Close the files."""
    step, values = self._last
    if values:
      metrics = {f'hparam/{name}': value for name, value in values.items()}
      self._writers['val'].add_hparams(self._options, metrics, 'hparams', step)
    for writer in self._writers.values():
      writer.close()


class WeightsAndBiases:
  """A page of Weights & Biases; a resumed run goes on in the same page.

  Args:
    workdir: the folder of the run.
    c: the config.

  Raises:
    UserError: wandb is not installed.
  """

  def __init__(self, workdir: pathlib.Path, c: ConfigDict):
    if importlib.util.find_spec('wandb') is None:
      raise UserError(
        '--config.log.wandb: wandb is not installed: pip install wandb, or leave the option out'
      )
    import wandb

    identity = workdir / 'wandb_id'
    if not identity.exists():
      files.write(identity, wandb.util.generate_id())
    self._run = wandb.init(
      project=os.environ.get('WANDB_PROJECT', 'hierjax'),
      name=c.name or workdir.name,
      dir=str(workdir),
      id=identity.read_text(),
      resume='allow',
      config=c.to_dict(),
    )

  def write(self, step: int, kind: str, values: Mapping) -> None:
    """Log each value as KIND/NAME."""
    self._run.log({f'{kind}/{name}': value for name, value in values.items()}, step=step)

  def close(self) -> None:
    """Finish the page."""
    self._run.finish()


class Log:
  """The log of a run that goes on at a step; what was logged after it will be logged again.

  Args:
    workdir: the folder of the run.
    step: the step.
    c: the config.
  """

  def __init__(self, workdir: pathlib.Path, step: int, c: ConfigDict):
    self._writers = []
    if not parallel.first():
      return
    self._writers.append(JsonLines(workdir / 'metrics.jsonl', step))
    if c.log.tensorboard:
      self._writers.append(TensorBoard(workdir, step, c))
    if c.log.wandb:
      self._writers.append(WeightsAndBiases(workdir, c))

  def write(self, step: int, kind: str, values: Mapping) -> None:
    """Log numbers.

    Args:
      step: the step that they are of.
      kind: 'train' or 'val'.
      values: {name: number}.
    """
    for writer in self._writers:
      writer.write(step, kind, values)

  def say(self, text: str) -> None:
    """Print a line on stderr; where that is closed, or its terminal is, the line is lost."""
    if parallel.first():
      terminal.say(text)

  def close(self) -> None:
    """Close files and pages."""
    for writer in self._writers:
      writer.close()
