"""Checkpoints with Orbax: the latest two and the best by the val metric, written in the background.

A step holds up to three parts, so that whoever only predicts reads only what it needs: `model`
(params and batch_stats), `ema` (the averaged ones, where on), and `rest` (step, optimiser, plateau
and early-stopping state). The digest of each part is stored beside it: Orbax's format notices a
file that is cut short, but not a byte that has changed.
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from hierjax.core import files, metrics, parallel
from hierjax.core.errors import UserError


class Damaged(Exception):
  """A checkpoint that cannot be read, or whose content is not what was saved."""


class Loaded(NamedTuple):
  """What was read of a checkpoint.

  Attributes:
    step: its step, None where there is no checkpoint.
    parts: {part: tree}, {} where there is none.
  """

  step: int | None
  parts: dict[str, Any]


def flatten(tree: Any) -> dict[str, jax.Array]:
  """Flatten a tree into {path: leaf}, which does not depend on optax's classes."""
  return {jax.tree_util.keystr(k): x for k, x in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves: Mapping[str, jax.Array], like: Any) -> Any:
  """Put the leaves of `flatten` into a tree of the structure of `like`."""
  return jax.tree_util.tree_map_with_path(lambda path, _: leaves[jax.tree_util.keystr(path)], like)


def sha256(tree: Any) -> str:
  """Digest a tree: two are bit-identical exactly if their digests agree.

  Args:
    tree: of arrays.

  Returns:
    The SHA-256 of every leaf's path, dtype, shape and bytes, in hexadecimal.
  """
  digest = hashlib.sha256()
  for path, leaf in sorted(flatten(tree).items()):
    x = parallel.to_host(leaf)
    digest.update(f'{path} {x.dtype} {x.shape} '.encode())
    digest.update(np.ascontiguousarray(x).data)
  return digest.hexdigest()


def not_finite(tree: Any) -> str:
  """Return the path of the first leaf of a tree that holds NaN or infinity, '' where none does."""
  for path, leaf in flatten(tree).items():
    x = parallel.to_host(leaf)
    if x.dtype.kind == 'f' and not np.isfinite(x).all():
      return path
  return ''


class Checkpoints:
  """The checkpoints of one run.

  Args:
    folder: where they are.
    metric: the val metric that chooses the best one.
    writes: whether this is the run that trains. Only it may tidy up what a killed one has left.

  Attributes:
    notes: what the user should know of damaged checkpoints.
  """

  def __init__(self, folder: pathlib.Path, metric: str, writes: bool = False):
    policies = ocp.training.preservation_policies
    best = policies.BestN(get_metric_fn=self._rank, n=1, keep_checkpoints_without_metrics=False)
    self._folder, self._metric, self._unsynced = folder, metric, None
    self.notes: list[str] = []
    if writes:
      # the first process decides, as it is the one that moves
      for step in parallel.exchange(self._illegible_steps())[0]:
        self._set_damaged_aside(step, 'its metrics cannot be read')
    self._manager = ocp.training.Checkpointer(
      folder.absolute(),
      preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(2), best]),
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      cleanup_tmp_directories=writes,
    )

  def _rank(self, values: Mapping[str, float]) -> tuple[float, float]:
    """The order of checkpoints, largest best; of equals the earliest, as early stopping counts."""
    value, worst = values.get(self._metric), metrics.worst(self._metric)
    value = np.float32(value if metrics.is_finite(value) else worst)
    return float(value) * metrics.sign(self._metric), -values.get('step', 0)

  def save(self, step: int, parts: Mapping, values: Mapping[str, float] | None) -> None:
    """Start to save. The values are copied before this returns, and written in the background.

    Args:
      step: the step.
      parts: {part: tree}.
      values: the val metrics, None where the step has not been evaluated.

    Raises:
      UserError: an earlier save has failed.
    """
    digests = {name: sha256(part) for name, part in parts.items()}
    # for the one before, as Orbax would
    self.wait()
    self._unsynced = step
    with self._write_errors():
      self._manager.save_checkpointables_async(
        step,
        dict(parts),
        metrics={**values, 'step': step} if values else None,
        custom_metadata={'sha256': digests},
        overwrite=True,
      )

  def wait(self) -> None:
    """Wait until everything is written, durably; a `UserError` where that fails."""
    with self._write_errors():
      self._manager.wait()
    if self._unsynced is not None and parallel.first():
      folder = self._folder / f'{self._unsynced}'
      for path in (*folder.rglob('*'), folder, self._folder):
        files.sync(path)
    self._unsynced = None

  @contextlib.contextmanager
  def _write_errors(self) -> Iterator[None]:
    """Turn an error of writing into a message that names the last checkpoint."""
    try:
      yield
    # Orbax and TensorStore raise ValueError, OSError and more, as the disk fails
    except Exception as e:
      if parallel.is_lost_process(e):
        raise
      state = 'there is no earlier one'
      if self.latest() is not None:
        state = f'the checkpoint of step {self.latest()} is intact'
      reason = str(e).strip().splitlines()[0][:400] if str(e).strip() else type(e).__name__
      raise UserError(
        f'{self._folder}: a checkpoint could not be written ({reason}); {state}; '
        'the same command continues from there'
      ) from e

  def close(self) -> None:
    """Release Orbax's threads."""
    self._manager.close()

  def steps(self) -> list[int]:
    """List the steps with a checkpoint, in order."""
    return sorted(c.step for c in self._manager.checkpoints)

  def latest(self) -> int | None:
    """Return the latest step with a checkpoint."""
    return max(self.steps(), default=None)

  def best(self) -> int | None:
    """Return the step with the best metric; None without any."""
    checkpoints = self._manager.checkpoints
    scored = [c for c in checkpoints if self._metric in (c.metrics or {})]
    return max(scored, key=lambda c: self._rank(c.metrics)).step if scored else None

  def load(self, step: int, like: Mapping) -> dict[str, Any]:
    """Read parts of a checkpoint.

    Args:
      step: its step.
      like: {part: tree}, whose leaves give shape, dtype and sharding.

    Returns:
      {part: tree}.

    Raises:
      UserError: it is of another model.
      Damaged: it cannot be read, or is not what was saved.
    """
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), dict(like)
    )
    try:
      loaded = self._manager.load_checkpointables(step, abstract)
      # from Orbax's file, as its API looks at all arrays, too, for .2 s
      metadata = json.loads(files.read_text(self._folder / f'{step}/_CHECKPOINT_METADATA'))
      digests = (metadata.get('custom_metadata') or {}).get('sha256', {})
    # Orbax's messages speak of handlers and registries
    except Exception as e:
      self._check_shapes(step, like)
      raise Damaged('it cannot be read') from e
    for part, tree in loaded.items():
      if digests.get(part, '') not in ('', sha256(tree)):
        raise Damaged(f'the content of part {part!r} is not what was saved')
    if path := not_finite({part: tree for part, tree in loaded.items() if part != 'rest'}):
      raise Damaged(f'there is NaN or infinity in {path}')
    return loaded

  def load_latest(self, like: Mapping) -> Loaded:
    """Read the latest checkpoint that is intact, and move later, damaged ones out of the way.

    Args:
      like: as for `load`.

    Returns:
      The checkpoint, if there is one.
    """
    for step in reversed(parallel.exchange(self.steps())[0]):
      parts, fault = {}, ''
      try:
        parts = self.load(step, like)
      except Damaged as e:
        fault = str(e)
      faults = [f for f in parallel.exchange(fault) if f]
      if not faults:
        return Loaded(step, parts)
      self._set_damaged_aside(step, faults[0])
      self._manager.reload()
    return Loaded(None, {})

  def load_best(self, like: Mapping, best: bool) -> Loaded:
    """Read the best checkpoint or the latest; where it is damaged, the latest intact one.

    Args:
      like: as for `load`.
      best: whether the best is wanted.

    Returns:
      The checkpoint.

    Raises:
      UserError: there is none.
    """
    steps = self.steps()[::-1]
    if best and self.best() is not None:
      steps = [self.best(), *(s for s in steps if s != self.best())]
    for step in steps:
      try:
        return Loaded(step, self.load(step, like))
      except Damaged as e:
        self.notes.append(f'{self._folder}/{step} is damaged ({e}); taking another checkpoint')
    kind = 'intact checkpoint' if steps else 'checkpoint'
    raise UserError(f'{self._folder}: no {kind}; train with --workdir={self._folder.parent} first')

  def _check_shapes(self, step: int, like: Mapping) -> None:
    """Refuse a checkpoint of another model, by the first array that differs."""
    try:
      metadata = self._manager.checkpointables_metadata(step).metadata
      stored = {part: _shapes(metadata[part]) for part in like}
    except Exception:
      return  # `load` says that it cannot be read
    if not all(stored.values()):
      return
    for part, tree in like.items():
      expected = _shapes(tree)
      for path in sorted(expected.keys() | stored[part].keys()):
        shapes = [shape.get(path) for shape in (stored[part], expected)]
        if shapes[0] != shapes[1]:
          old, new = ('absent' if shape is None else list(shape) for shape in shapes)
          raise UserError(
            f'{self._folder}/{step}: this checkpoint does not fit the configured model: '
            f'{part}{path} is {old} there and {new} here'
          )

  def _illegible_steps(self) -> list[int]:
    """Steps whose metrics are no JSON, at which Orbax would stop."""
    steps = []
    for file in sorted(self._folder.glob('[0-9]*/metrics/metrics')):
      try:
        json.loads(files.read_text(file))
      except (ValueError, OSError, RecursionError):
        name = file.parts[-3]
        steps += [int(name)] if name.isdigit() else []
    return steps

  def rewind(self, best: bool) -> int | None:
    """Move the checkpoints after the best one to WORKDIR/abandoned/.

    Args:
      best: whether to go back to the best one; else the latest stays.

    Returns:
      The step of the checkpoint that is the latest now, None without any.
    """
    target = self.best() if best else None
    target = self.latest() if target is None else target
    target, steps = parallel.exchange([target, self.steps()])[0]
    for step in steps:
      if target is not None and step > target and parallel.first():
        self._move(step, 'abandoned')
    parallel.exchange(None)  # until they are moved
    return target

  def _move(self, step: int, name: str) -> pathlib.Path:
    """Move a checkpoint to a folder of that name in WORKDIR; return its place."""
    place = self._folder.parent / name / f'{step}'
    place.parent.mkdir(exist_ok=True)
    while place.exists():
      place = place.with_name(f'{place.name}-again')
    return (self._folder / f'{step}').rename(place)

  def _set_damaged_aside(self, step: int, reason: str) -> None:
    """Move a damaged checkpoint to WORKDIR/damaged/, so that no later save counts it."""
    if parallel.first():
      self._move(step, 'damaged')
    parallel.exchange(None)  # until it is moved
    self.notes.append(
      f'the checkpoint of step {step} is damaged ({reason}); it was moved to '
      f'{self._folder.parent}/damaged/, and the one before it, if any, is taken'
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  return {path: tuple(leaf.shape) for path, leaf in flatten(tree).items()}
