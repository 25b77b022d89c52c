"""What a section of the report is."""

from collections.abc import Callable
from typing import NamedTuple

from markupsafe import Markup

from hierjax.report.runs import Run


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
