"""The taxonomy: the classes of each level and how the levels relate."""

import itertools

import numpy as np
from markupsafe import Markup

from hierjax.report.runs import Run
from hierjax.report.section import Section
from hierjax.report.templates import paragraph, render


def _render(run: Run) -> Markup:
  """Render the tables of levels and of pairs of levels, for each block of levels."""
  if run.taxonomy is None:
    return paragraph('No taxonomy.csv was found.')
  blocks = [_block(run, block) for block in run.taxonomy.blocks]
  above = getattr(run.taxonomy, 'above', np.zeros((0, 0)))
  return render(
    'taxonomy',
    blocks=blocks,
    digest=run.taxonomy.hash()[:16],
    tag_count=len(above),
    below_count=int((above >= 0).any(1).sum()),
  )


def _block(run: Run, block) -> dict:
  """Collect what the template needs of the levels of one kind."""
  table, finest = block.taxonomy, block.levels[-1]
  levels, pairs = [], []
  for k, level in enumerate(block.levels):
    sizes = np.bincount(table.paths[:, k], minlength=len(table.names[k]))
    row = {'name': level, 'classes': len(sizes), 'has_head': level in run.heads}
    if level != finest:
      row |= {'single': int((sizes == 1).sum()), 'most': int(sizes.max())}
      row['largest'] = table.names[k][int(sizes.argmax())]
    levels.append(row)
  for coarse, fine in itertools.combinations(block.levels, 2):
    possible = table.num_classes(coarse) * table.num_classes(fine)
    nests = table.nests(fine, coarse)
    pairs.append((coarse, fine, len(table.pairs(coarse, fine)), possible, nests))
  ends_early = int((table.depth < len(table.levels)).sum())
  return {
    'kind': block.kind,
    'levels': levels,
    'pairs': pairs,
    'leaves': len(table.paths),
    'ends_early': ends_early,
  }


SECTION = Section('taxonomy', 'Taxonomy', _render, is_technical=True)
