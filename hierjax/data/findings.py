"""What a reader finds wrong with the data: training raises the first error, lint gathers all."""

import dataclasses

from hierjax.core.errors import UserError

SEVERITIES = ('error', 'warning', 'note')


@dataclasses.dataclass(frozen=True)
class Finding:
  """One remark on the data.

  Attributes:
    severity: 'error' (training would stop or be wrong), 'warning' (look at it) or 'note'.
    where: 'FILE:ROW', rows as an editor counts them; else a file, a folder or an option.
    kind: a few words that findings of the same kind share.
    text: the sentence for people.
    stops: whether training raises it.
    count: how often it was met; `where` is the first place.
  """

  severity: str
  where: str
  kind: str
  text: str
  stops: bool = False
  count: int = 1

  def __str__(self) -> str:
    return f'{self.where}: {self.text}' if self.where else self.text


class Findings:
  """Raises the first error of a reader, or gathers all findings.

  Args:
    gather: gather errors instead of raising them.
    files: whether readers look for the files that the data name.
  """

  def __init__(self, gather: bool = False, files: bool = True):
    self.gather, self.files = gather, files
    self.notes: list[str] = []
    self._findings: dict[tuple[str, str, str], Finding] = {}

  @property
  def problems(self) -> list[Finding]:
    """All findings, in the order in which they were met."""
    return list(self._findings.values())

  def note(self, text: str) -> None:
    """Add a line for the log of a training run, such as that a split was made."""
    self.notes.append(text)

  def say(self, where: str, kind: str, text: str) -> None:
    """Add a note for the log and lint, as on an option without effect. Args: as `Finding`."""
    self.note(f'{where}: {text}')
    self.add('note', where, kind, text)

  def add(self, severity: str, where: str, kind: str, text: str, stops: bool = False) -> None:
    """Add a finding; an equal one but for `where` is only counted. Args: as `Finding`."""
    first = self._findings.get((severity, kind, text))
    if first is None:
      finding = Finding(severity, str(where), kind, text, stops)
    else:
      finding = dataclasses.replace(first, count=first.count + 1)
    self._findings[severity, kind, text] = finding

  def warn(self, where: str, kind: str, text: str) -> None:
    """Add a warning, for lint and for the log of a training run. Args: as `Finding`."""
    self.add('warning', where, kind, text)
    self.note(f'{where}: {text}')

  def error(self, where: str, kind: str, text: str) -> None:
    """Raise an error as `UserError`, or gather it: the reader goes on. Args: as `Finding`."""
    if not self.gather:
      raise UserError(f'{where}: {text}')
    self.add('error', where, kind, text, stops=True)

  def fatal(self, where: str, kind: str, text: str) -> None:
    """Raise an error after which the reader cannot go on, gathered or not. Args: as `Finding`."""
    self.error(where, kind, text)
    raise UserError(f'{where}: {text}')

  def caught(self, error: UserError) -> None:
    """Gather an error that has ended a reader, unless `fatal` has done so.

    Args:
      error: 'WHERE: TEXT'.
    """
    if str(error) in map(str, self._findings.values()):
      return
    where, colon, text = str(error).partition(': ')
    kind = 'unreadable table' if '.csv' in where else 'data'
    self.error(*((where, kind, text) if colon else ('', kind, str(error))))
