"""The heads of a run that is carried over to a changed taxonomy.

Each class of the new taxonomy comes from classes of the old one. Of the rows of a level's head (of
its last layer, or its prototypes)

  one source   keeps its row, bit for bit.
  merged       keeps the rows of all sources; its logit is their log-sum-exp, so that its
               probability is the sum of theirs (`heads`).
  split in n   each part starts with the row of the whole, and log n less of bias, so that the
               probabilities add up to its own. Prototypes have no bias: each part has the logit of
               the whole.
  new          by its training images, see `start_new`; without any the mean of the rows of its
               siblings, the classes under the same parent, of all classes where there are none.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hierjax import model
from hierjax.data import dataset
from hierjax.decide import novelty_scores
from hierjax.models import heads_base
from hierjax.taxonomy import Taxonomy

# Training images at most that features are computed of, besides as many of new classes.
MAX_IMAGES = 8192


class Sample(NamedTuple):
  """Features x float32 [n, d] of training images, and labels y int [n, L], -1 not to be used."""

  x: np.ndarray
  y: np.ndarray


@dataclasses.dataclass(frozen=True)
class Plan:
  """Where the rows of a level's new head come from.

  Args:
    rows: number of rows of each new class.
    source: int [R], the old row of each new row; -1 for none.
    log_parts: float32 [R], log of the number of parts of a split, to be taken off the bias.
    donors: new row without a source → the old rows whose mean it starts with.
  """

  rows: tuple[int, ...]
  source: np.ndarray
  log_parts: np.ndarray
  donors: dict[int, np.ndarray]


def plan(
  level: str,
  old: Taxonomy,
  new: Taxonomy,
  sources: Sequence[tuple[int, ...]],
  old_rows: Sequence[int],
) -> Plan:
  """Plan the rows of a level's head.

  Args:
    level: the level.
    old: the old taxonomy.
    new: the new taxonomy.
    sources: the old classes that each new class comes from (`migrate.correspond`).
    old_rows: number of rows of each old class.
  """
  # the rows of each old class, and the number of new classes that come from it
  first = heads_base.first_rows(old_rows)
  rows_of = [np.arange(a, a + n) for a, n in zip(first, old_rows)]
  all_sources = np.array([i for classes in sources for i in classes], int)
  parts = np.bincount(all_sources, minlength=len(old_rows))
  source, log_parts, rows, donors = [], [], [], {}
  coarser_levels = new.levels[: new.index(level)][::-1]
  relatives = [(new.related(level, up), new.related(up, level)) for up in coarser_levels]
  for c, classes in enumerate(sources):
    start = len(source)
    for i in classes:
      source += rows_of[i].tolist()
      log_parts += [np.log(parts[i])] * len(rows_of[i])
    if len(source) == start:
      related = siblings(relatives, sources, c)
      donors[start] = np.concatenate([rows_of[i] for i in related] or rows_of)
      source.append(-1)
      log_parts.append(0.0)
    rows.append(len(source) - start)
  return Plan(tuple(rows), np.array(source, int), np.array(log_parts, np.float32), donors)


def siblings(
  relatives: Sequence[tuple[Sequence, Sequence]], sources: Sequence[tuple[int, ...]], c: int
) -> list[int]:
  """Return the old classes that became siblings of a new class.

  Args:
    relatives: for each coarser level, the closest first: the parents of each class of this level,
      and the children of each class of that one.
    sources: the old classes that each new class comes from.
    c: the new class.

  Returns:
    Old classes under the same parent at the closest coarser level that has any; [] for none.
  """
  for parents, children in relatives:
    classes = {i for parent in parents[c] for other in children[parent] for i in sources[other]}
    if classes:
      return sorted(classes)
  return []


def carry_over(head: Mapping, plan: Plan) -> dict:
  """Return the parameters of a level's head with the rows of a plan.

  Args:
    head: the old parameters.
    plan: of the rows.
  """
  if 'output' in head:
    return {**head, 'output': carry_over(head['output'], plan)}
  result = {}
  for name, values in head.items():
    old = np.asarray(values)
    axis = old.ndim - 1 if name in ('kernel', 'bias') else 0
    new = np.take(old, np.maximum(plan.source, 0), axis)
    for row, donors in plan.donors.items():
      new[(slice(None),) * axis + (row,)] = np.take(old, donors, axis).mean(axis)
    if name == 'bias':
      # Only where a class was split: the others keep their bias bit for bit.
      new = np.where(plan.log_parts > 0, new - plan.log_parts, new)
    result[name] = new
  return result


def start_new(
  head: Mapping, rows: Sequence[int], new: Sequence[int], x: np.ndarray, y: np.ndarray
) -> None:
  """Set the rows of the new classes of a level's head by features of their images.

  A prototype is the mean feature as a unit vector. A row of a linear head is that of `gaussians`,
  as it stands to the mean of the known classes, in the scale of the head: such that an image's own
  class stands as far above the mean of the known classes by the fit as by the head, on average over
  the images of known classes. New classes without an image stay as they are.

  Args:
    head: parameters of the head, changed in place.
    rows: number of rows of each of the C classes.
    new: the new classes.
    x: float [n, d], features.
    y: int [n], classes, -1 unknown.
  """
  first, is_labelled = heads_base.first_rows(rows), y >= 0
  x, y = np.asarray(x, np.float64)[is_labelled], y[is_labelled]
  means, counts = novelty_scores.class_means(x, y, len(rows))
  is_new = np.isin(np.arange(len(rows)), new)
  new, others = (np.flatnonzero(mask & (counts > 0)) for mask in (is_new, ~is_new))
  if 'prototypes' in head:
    lengths = np.linalg.norm(means[new], axis=1, keepdims=True)
    head['prototypes'][first[new]] = means[new] / lengths
    return
  if not len(new) or not len(others):
    return
  old = np.concatenate([head['kernel'], head['bias'][None]])[:, first].astype(np.float64)
  fit, margins = gaussians(x, y, len(rows)), []
  for weights in (old, fit):
    centered = weights[:, others] - weights[:, others].mean(1, keepdims=True)
    logits = (centered[:-1] * means[others].T).sum(0) + centered[-1]
    margins.append(logits @ counts[others])
  scale = max(0.0, margins[0] / max(margins[1], 1e-12))
  centered = fit[:, new] - fit[:, others].mean(1, keepdims=True)
  started = old[:, others].mean(1, keepdims=True) + scale * centered
  head['kernel'][:, first[new]], head['bias'][first[new]] = started[:-1], started[-1]


def gaussians(x: np.ndarray, y: np.ndarray, num_classes: int) -> np.ndarray:
  """Fit the linear classifier of Gaussian classes with one covariance, all equally likely.

  The logit of a class is x S m - m S m / 2 + d / (2 n), with the mean m of its n images and the
  inverse S of the covariance within classes, shrunk as Ledoit and Wolf (2004) do (Hastie et al.,
  The Elements of Statistical Learning, equation 4.10). The last term takes off what the error of m
  adds to the squared distance, on average d / n, so that few images are no disadvantage.

  Args:
    x: float [n, d], features.
    y: int [n], classes.
    num_classes: C.

  Returns:
    float64 [d + 1, C], weights and in the last row biases; NaN for a class without an image.
  """
  fit = novelty_scores.fit_classes(x, y, num_classes)
  counts = np.maximum(np.bincount(y, minlength=num_classes), 1)
  white = (fit.means - fit.centre) @ fit.white
  kernel = fit.white @ white.T
  bias = x.shape[1] / (2 * counts) - (white**2).sum(1) / 2 - fit.centre @ kernel
  return np.concatenate([kernel, bias[None]])


def sample(
  trained: model.Model,
  examples: dataset.Examples,
  classes: Mapping[str, Sequence[int]],
  taxonomy: Taxonomy,
  shots: int | None,
  seed: int,
) -> Sample:
  """Compute features of images by the backbone of a trained run.

  Args:
    trained: the run.
    examples: training images of the new taxonomy.
    classes: the new classes of each level.
    taxonomy: the new one.
    shots: images of each new class, the first in a shuffled order; None for all, but not more than
      MAX_IMAGES together.
    seed: of that order.

  Returns:
    Those images, and of the others as many as MAX_IMAGES allows.
  """
  labels, n = np.array(examples.labels), sum(map(len, classes.values()))
  shots = max(1, MAX_IMAGES // max(1, n)) if shots is None else shots
  order, selected = np.random.default_rng(seed).permutation(len(labels)), []
  for level, members in classes.items():
    k = taxonomy.index(level)
    column = labels[order, k]
    by_class = np.argsort(column, kind='stable')
    place = np.argsort(by_class) - np.searchsorted(column[by_class], column)  # within the class
    is_new = np.isin(column, members)
    labels[order[is_new & (place >= shots)], k] = -1
    selected.append(order[is_new & (place < shots)])
  columns = [taxonomy.index(level) for level, members in classes.items() if len(members)]
  usable = order[(labels[order][:, columns] >= 0).any(1)]
  rows = np.unique(np.concatenate([usable[:MAX_IMAGES], *selected]))
  if not len(rows):
    return Sample(np.zeros((0, 1)), labels[:0])
  unknown = np.full((len(labels), len(trained.taxonomy.levels)), -1, np.int32)
  unlabelled = dataclasses.replace(examples, labels=unknown)
  outputs = trained.collect(
    dataset.subset(unlabelled, rows),
    with_features=True,
    reduction=lambda outputs: dataclasses.replace(outputs, probs={}),
  )
  return Sample(np.asarray(outputs.features), labels[rows[outputs.index]])
