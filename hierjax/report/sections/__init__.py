"""The sections of the report, each a function from a run to HTML with a template of its name.

To add one, write both in this folder and add it to SECTIONS, which has the order of the page:
those for everybody, then the technical ones, which are folded.
"""

from hierjax.report.sections import (
  calibration,
  confusion,
  curves,
  decisions,
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
  images.WORST_CONFUSIONS,
  images.GALLERY,
  confusion.SECTION,
  tree.SECTION,
  decisions.SECTION,
  novelty.SECTION,
  provenance.DATA,
  calibration.SECTION,
  curves.SECTION,
  features.FEATURES,
  features.PROTOTYPES,
  taxonomy.SECTION,
  provenance.CONFIGURATION,
  provenance.REPRODUCTION,
)
