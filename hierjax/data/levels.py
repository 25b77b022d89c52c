"""Which levels of a data set have a head."""

import dataclasses
from typing import NamedTuple

from ml_collections import ConfigDict

from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.data.sources import Dataset


class Restricted(NamedTuple):
  """A data set whose finest level has a head.

  Attributes:
    dataset: the data; their taxonomy ends at the finest exclusive level with a head.
    levels: the levels with a head, in the taxonomy's order.
  """

  dataset: Dataset
  levels: tuple[str, ...]


def restrict(dataset: Dataset, m: ConfigDict) -> Restricted:
  """Restrict a data set to the levels that predictions can be judged at.

  Without a head for the finest exclusive level, the taxonomy ends at the finest level with one.

  Args:
    dataset: the data with all their levels.
    m: `config.model`.

  Returns:
    The data and the levels with a head.

  Raises:
    UserError: model.levels names no level, leaves a tag level without a head, or names a level
      that the finest one named does not determine.
  """
  taxonomy, table = dataset.taxonomy, dataset.taxonomy.table('exclusive')
  option = f'--config.model.levels={",".join(m.levels)}'
  levels = config.head_levels(m, taxonomy.levels, taxonomy.multi)
  if not levels:
    raise UserError(f'{option} names no level; choices: {", ".join(taxonomy.levels)}')
  if not {*taxonomy.multi} <= {*levels}:
    raise UserError(
      f'{option}, --config.model.heads={m.heads}: each of the multi levels needs a head: '
      f'{", ".join(taxonomy.multi)}'
    )
  exclusive = [level for level in levels if level not in taxonomy.multi]
  if table and not exclusive:
    raise UserError(f'{option} names no exclusive level; choices: {", ".join(table.levels)}')
  if not table or exclusive[-1] == table.levels[-1]:
    return Restricted(dataset, levels)
  short = taxonomy.coarsen(exclusive[-1])
  undetermined = [level for level in exclusive if level not in short.levels]
  if undetermined:
    raise UserError(
      f'{option}: {exclusive[-1]} does not determine {", ".join(undetermined)}; '
      f'add the finest level, {table.levels[-1]}'
    )
  columns = [table.index(level) for level in short.table('exclusive').levels]
  splits = {
    name: dataclasses.replace(split, labels=split.labels[:, columns])
    for name, split in dataset.splits.items()
  }
  return Restricted(dataclasses.replace(dataset, taxonomy=short, splits=splits), levels)
