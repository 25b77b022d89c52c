"""Checkpoints with Orbax: the latest two and the best by the val metric, written in the background.

A step holds up to three parts, so that whoever only predicts reads only what it needs: `model` (params and batch_stats), `ema` (the averaged ones, where
on), and `rest` (step, optimiser, plateau and early-stopping state). The digest of each part is kept beside it: Orbax's format notices a file that is cut
short, but not a byte that has turned.
"""

import contextlib
import hashlib
import json
import pathlib
import sys
import warnings
from collections.abc import Mapping

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from hierjax.core import metrics, parallel
from hierjax.core.errors import UserError


class Damaged(Exception):
  """A checkpoint that cannot be read, or whose content is not what was saved."""


def flatten(tree) -> dict[str, jax.Array]:
  """{path: leaf}: how trees with optax's named tuples are stored, independent of optax's classes."""
  return {
    jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def unflatten(leaves: Mapping[str, jax.Array], like):
  return jax.tree_util.tree_map_with_path(lambda path, _: leaves[jax.tree_util.keystr(path)], like)


def sha256(tree) -> str:
  """Digest of every leaf's path, type, shape and bytes: two states are bit-identical exactly if theirs agree."""
  digest = hashlib.sha256()
  for path, leaf in sorted(flatten(tree).items()):
    x = np.asarray(leaf)
    digest.update(f'{path} {x.dtype} {x.shape} '.encode())
    digest.update(np.ascontiguousarray(x).data)
  return digest.hexdigest()


class Checkpoints:
  """The checkpoints of one run; `metric` chooses the best. Only the one who writes may tidy up what a killed writer has left."""

  def __init__(self, folder: pathlib.Path, metric: str, writes: bool = False):
    policies = ocp.training.preservation_policies
    best = policies.BestN(get_metric_fn=self.rank, n=1, keep_checkpoints_without_metrics=False)
    self.folder, self.metric = folder, metric
    self.notes: list[str] = []  # what the user should know of damaged checkpoints
    if writes:
      for step in parallel.exchange(self._illegible())[
        0
      ]:  # the first process decides, as it is the one that moves
        self._set_aside(step, 'its metrics cannot be read')
    self.manager = ocp.training.Checkpointer(
      folder.absolute(),
      preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(2), best]),
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      cleanup_tmp_directories=writes,
    )

  def rank(self, values: Mapping[str, float]) -> tuple[float, float]:
    """Orders checkpoints: the largest is the best; of equals the earliest, as early stopping counts, and so for whoever was interrupted in between."""
    value = values.get(self.metric, metrics.worst(self.metric))
    return value * metrics.sign(self.metric), -values.get('step', 0)

  def save(self, step: int, parts: Mapping, values: Mapping[str, float] | None) -> None:
    """Starts to save; the values are copied before this returns, the writing goes on in the background. UserError where an earlier save has failed."""
    digests = {name: sha256(part) for name, part in parts.items()}
    with self._told():
      self.manager.save_checkpointables_async(
        step,
        dict(parts),
        metrics={**values, 'step': step} if values else None,
        custom_metadata={'sha256': digests},
        overwrite=True,
      )

  def wait(self) -> None:
    """Until everything is written. UserError where that fails."""
    with self._told():
      self.manager.wait()

  @contextlib.contextmanager
  def _told(self):
    try:
      yield
    except (
      Exception
    ) as e:  # Orbax and TensorStore raise ValueError, OSError and more, as the disk falls
      if parallel.lost(e):
        raise
      good = (
        f'the checkpoint of step {self.latest()} is intact'
        if self.latest() is not None
        else 'there is no earlier one'
      )
      reason = str(e).strip().splitlines()[0][:400] if str(e).strip() else type(e).__name__
      raise UserError(
        f'{self.folder}: a checkpoint could not be written ({reason}); {good}; the same command goes on from there'
      ) from e

  def close(self) -> None:
    self.manager.close()

  def steps(self) -> list[int]:
    return sorted(c.step for c in self.manager.checkpoints)

  def latest(self) -> int | None:
    return max(self.steps(), default=None)

  def best(self) -> int | None:
    """The step with the best metric; None without any."""
    scored = [c for c in self.manager.checkpoints if c.metrics and self.metric in c.metrics]
    return max(scored, key=lambda c: self.rank(c.metrics)).step if scored else None

  def load(self, step: int, like: Mapping) -> dict:
    """The parts named in `like`, whose leaves give shape, type and sharding. UserError where it is of another model, Damaged where it is not whole."""
    self._check_shapes(step, like)
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), dict(like)
    )
    try:
      loaded = self.manager.load_checkpointables(step, abstract)
      digests = (self.manager.metadata(step).custom_metadata or {}).get('sha256', {})
    except Exception as e:  # Orbax's words for it are of handlers and registries
      raise Damaged('it cannot be read') from e
    for part, tree in loaded.items():
      if digests.get(part, '') not in ('', sha256(tree)):
        raise Damaged(f'the content of part {part!r} is not what was saved')
    return loaded

  def _try(self, step: int, like: Mapping) -> tuple[dict, str]:
    """(parts, '') or ({}, what is wrong)."""
    try:
      return self.load(step, like), ''
    except Damaged as e:
      # Other parts are still being read, by threads and coroutines that complain with tracebacks, now or later, that nobody waits for them. It has been told.
      sys.unraisablehook = lambda _: None
      warnings.filterwarnings('ignore', 'coroutine .* was never awaited')
      return {}, str(e)

  def load_latest(self, like: Mapping) -> tuple[int | None, dict]:
    """(step, parts) of the latest checkpoint that is whole; (None, {}) where there is none. Later ones that are damaged are moved out of the way."""
    for step in reversed(parallel.exchange(self.steps())[0]):
      loaded, fault = self._try(step, like)
      faults = [f for f in parallel.exchange(fault) if f]
      if not faults:
        return step, loaded
      self._set_aside(step, faults[0])
      self.manager.reload()
    return None, {}

  def load_best(self, like: Mapping, best: bool) -> tuple[int, dict]:
    """(step, parts) of the best checkpoint, or the latest; where that is damaged, of the latest whole one. UserError where there is none."""
    steps = self.steps()[::-1]
    if best and self.best() is not None:
      steps = [self.best(), *(s for s in steps if s != self.best())]
    for step in steps:
      loaded, fault = self._try(step, like)
      if not fault:
        return step, loaded
      self.notes.append(f'{self.folder}/{step} is damaged ({fault}); taking another checkpoint')
    raise UserError(
      f'{self.folder}: no {"whole " if steps else ""}checkpoint; train with --workdir={self.folder.parent} first'
    )

  def _check_shapes(self, step: int, like: Mapping) -> None:
    try:
      stored = self.manager.checkpointables_metadata(step).metadata
      have = {part: {k: tuple(v.shape) for k, v in flatten(stored[part]).items()} for part in like}
    except Exception:
      have = {part: {} for part in like}
    if not all(have.values()):
      return  # not legible: load() says so
    for part, tree in like.items():
      want = {k: tuple(v.shape) for k, v in flatten(tree).items()}
      for k in sorted(want.keys() | have[part].keys()):
        if want.get(k) != have[part].get(k):
          told = [f'{list(s[k])}' if k in s else 'absent' for s in (have[part], want)]
          raise UserError(
            f'{self.folder}/{step}: this checkpoint does not fit the configured model: {part}{k} is {told[0]} there and {told[1]} here'
          )

  def _illegible(self) -> list[int]:
    """Steps whose metrics are no JSON, at which Orbax would stop."""
    found = []
    for file in sorted(self.folder.glob('[0-9]*/metrics/metrics')):
      try:
        json.loads(file.read_text())
      except (ValueError, OSError):
        if file.parts[-3].isdigit():
          found.append(int(file.parts[-3]))
    return found

  def _set_aside(self, step: int, reason: str) -> None:
    """Moves a damaged checkpoint to WORKDIR/damaged/, so that nothing is lost and no later save counts it as the latest."""
    place = self.folder.parent / 'damaged' / f'{step}'
    if parallel.first():
      place.parent.mkdir(exist_ok=True)
      while place.exists():
        place = place.with_name(f'{place.name}-again')
      (self.folder / f'{step}').rename(place)
    parallel.exchange(None)  # until it has gone
    self.notes.append(
      f'the checkpoint of step {step} is damaged ({reason}); it was moved to {place.parent}/, and the one before it, if any, is taken'
    )
