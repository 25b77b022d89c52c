"""The sections of the report, in their order; each is a function from a run to HTML.

To add one, write a function and its template in this folder and a line in SECTIONS.
"""

from collections.abc import Callable
from typing import NamedTuple

from markupsafe import Markup

from hierjax.report.runs import Run
from hierjax.report.sections import (
  calibration,
  confusion,
  curves,
  features,
  headline,
  images,
  migration,
  novelty,
  provenance,
  scores,
  tags,
  taxonomy,
  tree,
  verdict,
)


class Section(NamedTuple):
  """A section of the page.

  Attributes:
    id: its anchor.
    title: its heading.
    render: from a run to HTML; empty to leave the section out.
    is_of_exclusive_levels: whether it gets the run restricted to its exclusive levels, and is left
      out without any.
  """

  id: str
  title: str
  render: Callable[[Run], Markup]
  is_of_exclusive_levels: bool = False


HEADLINE = Section('headline', '', headline.section)

SECTIONS = (
  Section('verdict', 'Does the hierarchy help?', verdict.section, True),
  Section('scores', 'Scores', scores.section, True),
  Section('migration', 'Before and after the taxonomy changed', migration.section),
  Section('labels', 'Scores of each class', tags.section),
  Section('curves', 'Curves', curves.section),
  Section('confusion', 'Confusion matrices', confusion.section, True),
  Section('worst', 'Worst confusions', images.worst_confusions, True),
  Section('gallery', 'Examples', images.gallery, True),
  Section('calibration', 'Calibration', calibration.section, True),
  Section('novelty', 'Novelty detection', novelty.section),
  Section('tree', 'Accuracy in the tree', tree.section, True),
  Section('features', 'Features', features.features, True),
  Section('embedding', 'Features and prototypes', features.prototypes, True),
  Section('taxonomy', 'Taxonomy', taxonomy.section),
  Section('data', 'Data', provenance.data),
  Section('configuration', 'Configuration', provenance.configuration),
  Section('provenance', 'Reproducibility', provenance.reproduction),
)
