"""What a run tells while it trains: metrics.jsonl, TensorBoard, Weights & Biases where asked for, and lines on stderr for people; from process 0 only."""

import importlib.util
import json
import os
import pathlib
import resource
import sys
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from hierjax.core import files, parallel
from hierjax.core.errors import UserError

_compiled = 0.0


def _compile_time(event: str, seconds: float, **_) -> None:
  global _compiled
  if event == '/jax/core/compile/backend_compile_duration':
    _compiled += seconds


jax.monitoring.register_event_duration_secs_listener(_compile_time)


def compile_seconds() -> float:
  """Seconds that XLA has compiled (or read from the compilation cache) in this process."""
  return _compiled


def memory() -> dict[str, float]:
  """Peaks so far in GiB: of this process, and of its first device where that keeps count (not on the CPU)."""
  unit = 1 if sys.platform == 'darwin' else 1024  # macOS counts bytes, Linux KiB
  out = {'memory_gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
  stats = jax.local_devices()[0].memory_stats() or {}
  return out | (
    {'device_memory_gib': stats['peak_bytes_in_use'] / 2**30}
    if 'peak_bytes_in_use' in stats
    else {}
  )


class Log:
  """The log of a run that goes on at `step`: what was logged after it will be logged again."""

  def __init__(self, workdir: pathlib.Path, step: int, c: ConfigDict):
    self.path, self.main, self.tensorboard, self.wandb = (
      workdir / 'metrics.jsonl',
      parallel.first(),
      None,
      None,
    )
    if not self.main:
      return
    if self.path.exists():
      kept = []
      for line in self.path.read_text(errors='replace').splitlines():
        try:
          if json.loads(line)['step'] <= step:
            kept.append(line)
        except (ValueError, KeyError, TypeError):
          continue  # the line that an interruption cut short
      files.write(self.path, ''.join(f'{line}\n' for line in kept))
    if c.log.tensorboard:
      from tensorboardX import SummaryWriter

      self.tensorboard = SummaryWriter(
        str(workdir / 'tensorboard'), purge_step=step + 1 if step else None
      )
    if c.log.wandb:
      if importlib.util.find_spec('wandb') is None:
        raise UserError(
          '--config.log.wandb: wandb is not installed: pip install wandb, or leave the option out'
        )
      import wandb

      identity = workdir / 'wandb_id'  # a resumed run goes on in the same page
      if not identity.exists():
        files.write(identity, wandb.util.generate_id())
      self.wandb = wandb.init(
        project=os.environ.get('WANDB_PROJECT', 'hierjax'),
        name=c.name or workdir.name,
        dir=str(workdir),
        id=identity.read_text(),
        resume='allow',
        config=c.to_dict(),
      )

  def write(self, step: int, kind: str, values: Mapping) -> None:
    """One line: kind 'train' or 'val', and its numbers."""
    if not self.main:
      return
    with self.path.open('a') as f:
      f.write(
        json.dumps(
          {
            'step': step,
            'kind': kind,
            **{k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()},
          }
        )
        + '\n'
      )
    if self.tensorboard:
      for name, value in values.items():
        self.tensorboard.add_scalar(f'{kind}/{name}', value, step)
      self.tensorboard.flush()
    if self.wandb:
      self.wandb.log({f'{kind}/{name}': value for name, value in values.items()}, step=step)

  def say(self, text: str) -> None:
    if self.main:
      print(text, file=sys.stderr, flush=True)

  def close(self) -> None:
    if self.tensorboard:
      self.tensorboard.close()
    if self.wandb:
      self.wandb.finish()
