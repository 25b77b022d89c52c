"""The reduction of a step's gradients over the devices."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.flatten_util

BUCKET_BYTES = 1 << 25  # that accelerators reduce together; PyTorch's DDP has 25 MiB


def all_sum(tree: Any, split_heads: frozenset[tuple[str, ...]], axis: str) -> Any:
  """Add up a tree over the devices: bucket by bucket, each as one vector.

  XLA would reduce the parts of a tree early, some with a batch norm's sums.

  Args:
    tree: of arrays.
    split_heads: keys in it of gradients that are split by classes; each is reduced on its own,
      since a vector would gather it.
    axis: of the mesh.
  """
  paths, structure = jax.tree.flatten_with_path(tree)
  summed, sizes = [None] * len(paths), {}
  for i, (path, x) in enumerate(paths):
    keys = [getattr(key, 'key', None) for key in path]
    if split_heads.isdisjoint(keys):
      sizes[i] = x.nbytes
    else:
      summed[i] = jax.lax.psum(x, axis)
  for bucket in buckets(sizes):
    vector, unravel = jax.flatten_util.ravel_pytree([paths[i][1] for i in bucket])
    for i, x in zip(bucket, unravel(jax.lax.psum(vector, axis))):
      summed[i] = x
  return jax.tree.unflatten(structure, summed)


def buckets(sizes: Mapping[int, int]) -> list[list[int]]:
  """Group arrays, from the last to the first, into buckets of at least BUCKET_BYTES.

  On accelerators one bucket is reduced while the backward pass computes the next (Li et al. 2020,
  arXiv:2006.15704, section 3.2). CPUs do not overlap: there is one bucket.

  Args:
    sizes: {number of an array: its bytes}.
  """
  least = math.inf if jax.default_backend() == 'cpu' else BUCKET_BYTES
  grouped, size = [[]], 0
  for i in sorted(sizes, reverse=True):
    if size >= least:
      grouped.append([])
      size = 0
    grouped[-1].append(i)
    size += sizes[i]
  return grouped
