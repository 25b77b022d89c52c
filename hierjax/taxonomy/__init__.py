"""The taxonomy: a table of paths, one row per finest class, one column per level."""

from hierjax.taxonomy.check import RowProblem, check_rows, close_matches
from hierjax.taxonomy.class_lists import leaves_of, read_classes
from hierjax.taxonomy.csv_files import CsvFile, read_levels, read_table
from hierjax.taxonomy.difference import describe_difference
from hierjax.taxonomy.levels import Block
from hierjax.taxonomy.mixed import Mixed
from hierjax.taxonomy.read import divide, read_taxonomy
from hierjax.taxonomy.table import Taxonomy
from hierjax.taxonomy.tags import TagTaxonomy

__all__ = [
  'Block',
  'CsvFile',
  'Mixed',
  'RowProblem',
  'TagTaxonomy',
  'Taxonomy',
  'check_rows',
  'close_matches',
  'describe_difference',
  'divide',
  'leaves_of',
  'read_classes',
  'read_levels',
  'read_table',
  'read_taxonomy',
]
