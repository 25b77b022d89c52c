"""Features beside the prototypes of prototype heads, from which the report draws a map."""

import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from hierjax.core import archives, parallel
from hierjax.data import sources
from hierjax.evaluate.collect import collect
from hierjax.models import classifier, heads_base
from hierjax.train.setup import Setup

MAX_EXAMPLES = 1000


def write(path: pathlib.Path, step: Callable, variables: Mapping, run: Setup) -> None:
  """Write features and prototypes of exclusive levels; nothing where no head has prototypes.

  The archive holds features [n, d] of at most MAX_EXAMPLES evenly chosen examples of val, their
  labels [n, L], and prototype_K [C, d] of each column K with a head, of several prototypes of a
  class the mean.

  Args:
    path: the archive.
    step: as `collect.stepper` returns it.
    variables: of the model.
    run: that it was built from.
  """
  block, prototypes = run.taxonomy.block('exclusive'), {}
  for k, level in enumerate(block.levels if block else ()):
    params = variables['params']['heads'].get(level, {})
    if 'prototypes' in params:
      counts = classifier.rows(run.c.model, run.taxonomy, level)
      sums = np.add.reduceat(np.asarray(params['prototypes']), heads_base.first_rows(counts))
      prototypes[f'prototype_{k}'] = sums / np.array(counts, np.float32)[:, None]
  if not prototypes:
    return
  n = len(run.val.labels)
  rows = np.linspace(0, n - 1, min(n, MAX_EXAMPLES)).round()
  sample = sources.subset(run.val, rows)
  outputs = collect(step, variables, sample, run.c, run.mesh, with_features=True)
  if parallel.first():
    labels = outputs.labels[:, block.columns]
    archives.write(path, {'features': outputs.features, 'labels': labels, **prototypes})
