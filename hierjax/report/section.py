"""What a section of the report is."""

from collections.abc import Callable
from typing import Any, NamedTuple

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
    numbers: from a run to what `render` gets as its second argument and report.json holds, of
      named tuples, dicts, lists, numbers and text; None for a section that holds no numbers.
    is_technical: whether it stands folded below the others.
  """

  id: str
  title: str
  render: Callable[..., Markup]
  is_of_exclusive_levels: bool = False
  numbers: Callable[[Run], Any] | None = None
  is_technical: bool = False
