"""The heads of a run that is carried over to a changed taxonomy.

Each class of the new taxonomy comes from classes of the old one. Of the rows of a level's head (of
its last layer, or its prototypes)

  one source   keeps its row, bit for bit.
  merged       keeps the rows of all sources; its logit is their log-sum-exp, so that its
               probability is the sum of theirs (`heads`).
  split in n   each part starts with the row of the whole, and log n less of bias, so that the
               probabilities add up to its own. Prototypes have no bias: each part has the logit of
               the whole.
  new          the mean of the rows of its siblings, the classes under the same parent; of all
               classes where there are none. With a few images, see `imprint`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from hierjax import model
from hierjax.data import dataset
from hierjax.models import heads_base
from hierjax.taxonomy import Taxonomy

# Training images at most whose mean feature is that of an image of no class in particular.
MAX_IMAGES = 512


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


def imprint(
  head: Mapping, row: int, others: np.ndarray, mean: np.ndarray, center: np.ndarray
) -> None:
  """Set a row of a level's head to that of a class, by the mean feature of its images.

  A prototype is the mean as a unit vector. The row of a linear head lies as far from the mean of
  the `others` as they do on average, towards the mean feature (after Qi et al. 2018, Low-Shot
  Learning with Imprinted Weights, arXiv:1712.07136); the bias is such that half-way from the center
  the class is as likely as the others are on average.

  Args:
    head: parameters of the head, changed in place.
    row: the row.
    others: int, the other rows.
    mean: [d], the mean feature of the class.
    center: [d], the mean feature of all images.
  """
  if 'prototypes' in head:
    head['prototypes'][row] = mean / np.linalg.norm(mean)
    return
  kernel, bias = head['kernel'], head['bias']
  average = kernel[:, others].mean(1)
  distance = np.linalg.norm(kernel[:, others] - average[:, None], axis=0).mean()
  direction = mean - center
  direction *= distance / max(np.linalg.norm(direction), 1e-12)
  kernel[:, row] = average + direction
  bias[row] = bias[others].mean() - direction @ (mean + center) / 2


def mean_features(
  trained: model.Model,
  examples: dataset.Examples,
  classes: Mapping[str, Sequence[int]],
  taxonomy: Taxonomy,
  shots: int,
  seed: int,
) -> tuple[np.ndarray, dict[str, dict[int, np.ndarray]]]:
  """Compute mean features by the backbone of a trained run.

  Args:
    trained: the run.
    examples: training images of the new taxonomy.
    classes: the classes of each level to compute them of.
    taxonomy: the new one.
    shots: images of each class, the first in a shuffled order.
    seed: of that order.

  Returns:
    The mean [d] over all training images (at most MAX_IMAGES), and {level: {class: mean [d]}}.
  """
  order = np.random.default_rng(seed).permutation(len(examples.labels))
  labels = examples.labels[order]
  selected = {}
  for level, members in classes.items():
    column = labels[:, taxonomy.index(level)]
    selected.update({(level, c): order[column == c][:shots] for c in members})
  rows = np.unique(np.concatenate([order[:MAX_IMAGES], *selected.values()]))
  unknown = np.full((len(examples.labels), len(trained.taxonomy.levels)), -1, np.int32)
  unlabelled = dataclasses.replace(examples, labels=unknown)
  outputs = trained.collect(
    dataset.subset(unlabelled, rows),
    with_features=True,
    reduction=lambda outputs: dataclasses.replace(outputs, probs={}),
  )
  features = np.asarray(outputs.features, np.float64)
  by_row = dict(zip(rows[outputs.index].tolist(), features))
  means: dict[str, dict[int, np.ndarray]] = {level: {} for level in classes}
  for (level, c), images in selected.items():
    readable = [by_row[i] for i in images.tolist() if i in by_row]
    if readable:
      means[level][c] = np.mean(readable, 0)
  center = np.mean([by_row[i] for i in order[:MAX_IMAGES].tolist() if i in by_row], 0)
  return center, means
