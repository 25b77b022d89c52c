"""What a section of the report is."""

from collections.abc import Callable
from typing import Any, NamedTuple

from markupsafe import Markup

from hierjax.report.runs import Run


class Section(NamedTuple):
  """A section of the page."""

  id: str  # its anchor
  title: str  # its heading
  render: Callable[..., Markup]  # from a run to HTML; empty to leave the section out
  # whether it gets the run restricted to its exclusive levels, and is left out without any
  is_of_exclusive_levels: bool = False
  # from a run to what `render` gets as its second argument and report.json holds, of named tuples,
  # dicts, lists, numbers and text; None for a section that holds no numbers
  numbers: Callable[[Run], Any] | None = None
  is_technical: bool = False  # whether it stands folded below the others
