"""Checkpoints with Orbax: the latest two and the best by the val metric, written in the background.

A step holds three parts, so that whoever only predicts reads only what it needs: `model` (params and batch_stats), `ema` (the averaged ones, where on),
and `rest` (step, optimiser, plateau and early-stopping state).
"""

import hashlib
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from hierjax.config import UserError


def named(tree) -> dict[str, jax.Array]:
  """{path: leaf}: how trees with optax's named tuples are stored, independent of optax's classes."""
  return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unnamed(leaves: Mapping[str, jax.Array], like):
  return jax.tree_util.tree_map_with_path(lambda path, _: leaves[jax.tree_util.keystr(path)], like)


def sha256(tree) -> str:
  """Digest of every leaf's path, type, shape and bytes: two states are bit-identical exactly if theirs agree."""
  digest = hashlib.sha256()
  for path, leaf in sorted(named(tree).items()):
    x = np.asarray(leaf)
    digest.update(f'{path} {x.dtype} {x.shape} '.encode())
    digest.update(np.ascontiguousarray(x).tobytes())
  return digest.hexdigest()


class Checkpoints:
  """The checkpoints of one run. `metric` chooses the best; `lower` says that smaller is better."""

  def __init__(self, folder: pathlib.Path, metric: str = '', lower: bool = False):
    policies = ocp.training.preservation_policies
    keep = [policies.LatestN(2)]
    if metric:
      keep.append(policies.BestN(get_metric_fn=lambda m: m[metric], n=1, reverse=lower, keep_checkpoints_without_metrics=False))
    self.folder, self.metric, self.lower = folder, metric, lower
    self.manager = ocp.training.Checkpointer(
      folder.absolute(), preservation_policy=policies.AnyPreservationPolicy(keep),
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1), cleanup_tmp_directories=True)

  def save(self, step: int, parts: Mapping, metrics: Mapping[str, float] | None) -> None:
    """Starts to save; the values are copied before this returns, the writing goes on in the background."""
    self.manager.save_checkpointables_async(step, dict(parts), metrics=dict(metrics) if metrics else None, overwrite=True)

  def wait(self) -> None:
    self.manager.wait()

  def close(self) -> None:
    self.manager.close()

  def steps(self) -> list[int]:
    return sorted(c.step for c in self.manager.checkpoints)

  def latest(self) -> int | None:
    return max(self.steps(), default=None)

  def best(self) -> int | None:
    """The step with the best metric; the earliest of equals. None without any metric."""
    scored = [(c.metrics[self.metric], c.step) for c in self.manager.checkpoints if c.metrics and self.metric in c.metrics]
    return min(scored, key=lambda s: (s[0] if self.lower else -s[0], s[1]))[1] if scored else None

  def load(self, step: int, like: Mapping) -> dict:
    """The parts named in `like`, whose leaves give shape, type and sharding."""
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), dict(like))
    try:
      return self.manager.load_checkpointables(step, abstract)
    except (ValueError, KeyError) as e:
      raise UserError(f'{self.folder}/{step}: this checkpoint does not fit the configured model: {str(e).splitlines()[0][:300]}') from e
