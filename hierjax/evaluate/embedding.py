"""Features beside the prototypes of prototype heads, from which the report draws a map."""

import io
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hierjax.core import files, parallel
from hierjax.data import sources
from hierjax.evaluate.collect import collect
from hierjax.models import classifier, heads_base
from hierjax.taxonomy import Mixed, Taxonomy

MAX_EXAMPLES = 1000


def write_embedding(
  path: pathlib.Path,
  step: Callable,
  variables: Mapping,
  examples: sources.Examples,
  c: ConfigDict,
  mesh: Mesh,
  taxonomy: Taxonomy | Mixed,
) -> None:
  """Write features and prototypes of exclusive levels; nothing where no head has prototypes.

  The archive holds features [n, d] of at most MAX_EXAMPLES evenly chosen examples, their labels
  [n, L], and prototype_K [C, d] of each column K with a head, of several prototypes of a class the
  mean.

  Args:
    path: the archive.
    step: as `collect.stepper` returns it.
    variables: of the model.
    examples: the split.
    c: the configuration.
    mesh: the devices.
    taxonomy: the levels.
  """
  block, prototypes = taxonomy.block('exclusive'), {}
  for k, level in enumerate(block.levels if block else ()):
    params = variables['params']['heads'].get(level, {})
    if 'prototypes' in params:
      counts = classifier.rows(c.model, taxonomy, level)
      sums = np.add.reduceat(np.asarray(params['prototypes']), heads_base.first_rows(counts))
      prototypes[f'prototype_{k}'] = sums / np.array(counts, np.float32)[:, None]
  if not prototypes:
    return
  n = len(examples.labels)
  rows = np.linspace(0, n - 1, min(n, MAX_EXAMPLES)).round()
  outputs = collect(step, variables, sources.subset(examples, rows), c, mesh, with_features=True)
  if parallel.first():
    archive = io.BytesIO()
    labels = outputs.labels[:, block.columns]
    np.savez_compressed(archive, features=outputs.features, labels=labels, **prototypes)
    files.write(path, archive.getvalue())
