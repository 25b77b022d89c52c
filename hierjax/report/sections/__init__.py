"""The sections of the report, each a function from a run to HTML with a template of its name.

To add one, write both in this folder and add it to SECTIONS, which has the order of the page.
"""

from hierjax.report.sections import (
  calibration,
  confusion,
  curves,
  features,
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

SECTIONS = (
  verdict.SECTION,
  scores.SECTION,
  migration.SECTION,
  tags.SECTION,
  curves.SECTION,
  confusion.SECTION,
  images.WORST_CONFUSIONS,
  images.GALLERY,
  calibration.SECTION,
  novelty.SECTION,
  tree.SECTION,
  features.FEATURES,
  features.PROTOTYPES,
  taxonomy.SECTION,
  provenance.DATA,
  provenance.CONFIGURATION,
  provenance.REPRODUCTION,
)
