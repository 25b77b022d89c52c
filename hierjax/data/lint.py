"""Checks a data set before anything is trained on it; every finding names its row or its file.

The readers of training report what is wrong by themselves. Here is what only lint looks for:
classes without images, unreadable images, images with the same bytes; and lint_taxonomy.py.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from hierjax.core.errors import UserError, and_more
from hierjax.data import decoding, lint_taxonomy, sources, splits, taxonomies, webdataset, workers
from hierjax.data.dataset import Reader, Table
from hierjax.data.findings import SEVERITIES, Finding, Findings
from hierjax.data.lint_taxonomy import Origin, plural
from hierjax.taxonomy import Taxonomy

MIN_CONTRAST = 16  # of an image, of 255
LONG = 500  # images of which decoding takes seconds


@dataclasses.dataclass
class Report:
  """What lint has found.

  Attributes:
    problems: the findings, in the order in which they were met.
    summary: numbers that fit into JSON.
    headlines: lines for people.
  """

  problems: list[Finding]
  summary: dict
  headlines: list[str]

  @property
  def counts(self) -> dict[str, int]:
    """{severity: number of findings}."""
    return {s: sum(p.severity == s for p in self.problems) for s in SEVERITIES}

  def text(self, limit: int = 20) -> str:
    """Write the headlines, the findings by severity and kind, and counts.

    Args:
      limit: the most findings of a kind.
    """
    lines, groups = list(self.headlines), defaultdict(list)
    for p in sorted(self.problems, key=lambda p: SEVERITIES.index(p.severity)):
      groups[p.severity, p.kind].append(p)
    for (severity, kind), members in groups.items():
      lines += ['', f'{severity}: {kind} ({len(members)})']
      for p in members[:limit]:
        lines.append(f'  {p}{f" ({p.count} rows)" if p.count > 1 else ""}')
      if len(members) > limit:
        lines.append(f'  and {len(members) - limit} more')
    counts = ', '.join(f'{n} {s}{"" if n == 1 else "s"}' for s, n in self.counts.items())
    return '\n'.join([*lines, '', counts])


def check(
  options: ConfigDict,
  images: bool = True,
  progress: Callable[[int, int], None] | None = None,
  sample: int | None = None,
) -> Report:
  """Check the data that `config.data` names; a taxonomy alone if it has no root.

  Args:
    options: `config.data`.
    images: whether to look for the files, decode all images and compare their bytes.
    progress: called with the numbers of images that are decoded and that there are, where these
      are many.
    sample: decode only so many images of each split, evenly spaced; None decodes all.

  Returns:
    The report. Nothing is raised: what cannot be read is an error in the report.
  """
  findings = Findings(gather=True, files=images)
  report = Report([], {}, [])
  root = pathlib.Path(options.root).expanduser() if options.root else None
  taxonomy_file = sources.taxonomy_file(options, root)
  table, taxonomy, origin, data = None, None, None, None
  try:
    if root or not taxonomy_file:
      table = sources.read_table(options, findings)
      taxonomy, origin = table.taxonomy, table.origin
      data = sources.make_splits(options, table, findings)
  except UserError as error:
    findings.caught(error)
  if taxonomy is None and taxonomy_file:
    # without labels the taxonomy is checked alone; its faults are known if the labels were tried
    silent = Findings(gather=True) if findings.problems else findings
    try:
      taxonomy, rows = taxonomies.read(taxonomy_file, options.multi, silent, options.homonyms)
      origin = str(taxonomy_file), rows
    except UserError as error:
      findings.caught(error)
  if taxonomy:
    look = functools.partial(_check_images, progress=progress, sample=sample)
    _check_data(options, table, data, taxonomy, origin, findings, report, look)
  report.problems = findings.problems
  return report


def _check_data(options, table, data, taxonomy, origin, findings, report, check_images):
  """The checks that only lint makes."""
  name = str(options.root or 'toy')
  exclusive, tags = taxonomy.table('exclusive'), taxonomy.table('tags')
  if exclusive:
    origin = Origin(*(origin or (name, [(0, row) for row in exclusive.rows()])))
    report.summary, report.headlines = lint_taxonomy.check(exclusive, origin, findings)
  if table is None:
    return
  if table.rows is None:
    problems = {str(problem) for problem in findings.problems}
    report.headlines += [f'  {note}' for note in findings.notes if note not in problems]
  if not table.files:
    findings.add('error', name, 'data', 'no images')
    return
  for option in ('train', 'val') if data else ():
    try:
      splits.examples_of(data, options, option)
    except UserError as error:
      findings.add('warning', '', 'no split to train with', str(error))
  rows = _rows(table, options.root and webdataset.base_folder(pathlib.Path(options.root)))
  _check_labels(table, rows, findings)
  if exclusive:
    _check_coverage(exclusive, origin, table.path or name, rows, options.train, findings, report)
  if tags:
    _check_tags(table, tags, name, findings, report)
  if findings.files:
    # copies on both sides of a split that is drawn are a leak, too
    divided = data.undiminished.splits.items() if data else ()
    assigned = {file: name for name, examples in divided for file in examples.files}
    rows = [row._replace(split=assigned.get(row.file, row.split)) for row in rows]
    check_images(table, rows, exclusive, findings, report)


class _Row(NamedTuple):
  """An example: where it stands, its row or 0, and what `Table` has of it."""

  index: int
  where: str
  row: int
  file: str
  split: str
  labels: np.ndarray

  def __str__(self):
    row = f'row {self.row}, ' if self.row else ''
    return f'{self.file!r} ({row}{self.split or "no split"})'


def _rows(table: Table, root) -> list[_Row]:
  rows = []
  for i, (file, labels) in enumerate(zip(table.files, table.labels)):
    row = table.rows[i] if table.rows else 0
    split = table.splits[i] if table.splits else ''
    where = f'{root}/{file}' if root else file
    if row:
      where = f'{table.path}:{row}'
    rows.append(_Row(i, where, row, file, split, labels))
  return rows


def _check_labels(table, rows, findings):
  """Report examples without any label."""
  is_known = (table.labels >= 0).any(1)
  if table.multi is not None:
    is_known |= (table.multi >= 0).any(1)
  unlabelled = [rows[i] for i in np.flatnonzero(~is_known)]
  if unlabelled:
    places = and_more([str(row.row or row.file) for row in unlabelled], 10)
    text = f'{len(unlabelled)} rows have no label at any level (rows {places})'
    findings.add('warning', unlabelled[0].where, 'no label', text)


def _check_coverage(taxonomy, origin, name, rows, train, findings, report):
  """Count images and unknown labels, and report classes that a split lacks."""
  labels, splits = np.array([row.labels for row in rows]), np.array([row.split for row in rows])
  sizes = {split: int((splits == split).sum()) for split in dict.fromkeys(splits.tolist())}
  unknown = {level: int((labels[:, k] < 0).sum()) for k, level in enumerate(taxonomy.levels)}
  counts = ', '.join(f'{split or "(no split)"} {n}' for split, n in sizes.items())
  report.headlines.append(f'{name}: {len(rows)} images: {counts}')
  report.headlines += [f'  {level} unknown: {n}' for level, n in unknown.items() if n]
  report.summary |= {'splits': sizes, 'unknown': unknown}
  for k, level in enumerate(taxonomy.levels):
    names, column = taxonomy.names[k], labels[:, k]
    counts = {
      split: np.bincount(column[(splits == split) & (column >= 0)], minlength=len(names))
      for split in sizes
    }
    total = sum(counts.values())
    is_own = ~taxonomy.carried(level)  # a carried class was looked at where its branch ends
    if not total.any():
      continue
    for c in np.flatnonzero((total == 0) & is_own):
      where = origin.where(origin.first[k, names[c]])
      findings.add('warning', where, 'classes with no image', f'{level} {names[c]!r}')
    for split in sizes if train in sizes else ():
      if split == train:
        continue
      is_trained, is_here, split_name = counts[train] > 0, counts[split] > 0, split or '(no split)'
      for c in np.flatnonzero(is_here & ~is_trained & is_own):
        first = np.flatnonzero((splits == split) & (column == c))[0]
        text = (
          f'{level} {names[c]!r} is in {split_name} ({counts[split][c]} images) but not in {train}'
        )
        findings.add('warning', rows[first].where, f'classes that {train} never has', text)
      absent = [names[c] for c in np.flatnonzero(is_trained & ~is_here & is_own)]
      if absent and is_here.any():
        where = origin.where(origin.first[k, absent[0]])
        text = f'{len(absent)} of {int(is_trained.sum())} {plural(level)}: {and_more(absent)}'
        findings.add('note', where, f'classes that {split_name} never has', text)


def _check_tags(table, tags, name, findings, report):
  """Count the images with each class of the tag levels."""
  splits = np.array(table.splits or [''] * len(table.files))
  for split in dict.fromkeys(splits.tolist()):
    multi, split_name = table.multi[splits == split], split or 'all images'
    for (level, columns), names in zip(tags.columns.items(), tags.names):
      counts = dict(zip(names, (multi[:, columns] == 1).sum(0).tolist()))
      listing = ', '.join(f'{tag} {n}' for tag, n in counts.items())
      report.headlines.append(f'  {split_name}, {len(multi)} images, {level}: {listing}')
      for tag in names:
        if not counts[tag]:
          text = f'{level} {tag!r} is in no image of {split_name}'
          findings.add('warning', name, 'class without images', text)


def _check_images(table, rows, taxonomy, findings, report, progress, sample):
  """Decode images, and report those that cannot be read and those with the same bytes."""
  rows = [row for row in rows if row.index not in table.invalid | table.missing]
  named, missing = len(rows) + len(table.missing), len(table.missing)
  rows = _sampled(rows, sample) if sample else rows
  tasks = ((table.reader, row.index) for row in rows)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Pillow's about odd metadata, which name no file
    inspections = []
    for inspection in workers.ordered_map(inspect, tasks, os.cpu_count() or 1):
      inspections.append(inspection)
      if progress and len(rows) >= LONG:
        progress(len(inspections), len(rows))
  groups, unreadable = defaultdict(list), set()
  for row, (key, fault, _, _) in zip(rows, inspections):
    if fault:
      unreadable.add(row.index)
      findings.add('error', row.where, 'unreadable images', f'{row.file!r}: {fault}')
    if key:
      groups[key].append(row)
  _check_contrast(rows, inspections, findings)
  if taxonomy:
    _check_readable_classes(table, taxonomy, unreadable, findings)
  report.summary['files'] = {'named': named, 'missing': missing, 'unreadable': len(unreadable)}
  text = f'  {named} files: {missing} missing, {len(unreadable)} unreadable'
  if sample:
    report.summary['files']['decoded'] = len(rows)
    text += f' of {len(rows)} decoded: at most {sample} of each split, evenly spaced (--sample)'
  report.headlines.append(text)
  for group in groups.values():
    if len(group) > 1:
      _check_group(group, taxonomy, findings)


def _sampled(rows, count):
  """At most so many rows of each split, evenly spaced."""
  groups = defaultdict(list)
  for row in rows:
    groups[row.split].append(row)
  sampled = []
  for group in groups.values():
    index = np.linspace(0, len(group) - 1, min(count, len(group))).astype(int)
    sampled += [group[i] for i in index]
  return sampled


class Inspection(NamedTuple):
  """What is seen in an image.

  Attributes:
    digest: the SHA-256 of its bytes, None if they cannot be read.
    fault: what is wrong with it, None if nothing.
    contrast: the difference between its lightest and its darkest value, 0 to 255.
    is_deep: whether it has more than 8 bits.
  """

  digest: bytes | None
  fault: str | None = None
  contrast: int = 255
  is_deep: bool = False


def inspect(reader: Reader, i: int) -> Inspection:
  """Read an image and decode all of it, as a header may be sound and the rest cut off.

  Args:
    reader: of the examples.
    i: number of the example.
  """
  try:
    data = reader(i)
  except OSError as error:
    return Inspection(None, error.strerror)
  if not len(data):
    return Inspection(None, 'is empty')
  content = data if isinstance(data, bytes) else np.ascontiguousarray(data)
  key = hashlib.sha256(content).digest()
  try:
    pixels = decoding.decode(data)
  except decoding.BrokenImage as error:
    return Inspection(key, f'cannot be decoded ({error})')
  is_deep = isinstance(data, bytes) and decoding.is_deep(data)
  return Inspection(key, None, int(pixels.max()) - int(pixels.min()), is_deep)


def _check_contrast(rows, inspections, findings):
  """Report images of which next to nothing is left once they are decoded."""
  flat = [i for i, image in enumerate(inspections) if image.contrast < MIN_CONTRAST]
  if not flat:
    return
  files = and_more([rows[i].file for i in flat], 5)
  text = f'{len(flat)} of {len(rows)} images are nearly constant once they are decoded (their '
  text += f'values are less than {MIN_CONTRAST} apart, of 255): {files}'
  if any(inspections[i].is_deep for i in flat):
    text += '; they have more than 8 bits, of which the upper 8 are used: set '
    text += '--config.data.deep_range=own, or LOW,HIGH'
  findings.add('warning', rows[flat[0]].where, 'nearly constant images', text)


def _check_readable_classes(table, taxonomy, unreadable, findings):
  """Report classes of which no image can be read."""
  level, counts = taxonomy.levels[-1], defaultdict(list)
  unreadable = unreadable | table.missing | table.invalid
  for i, leaf in enumerate(table.labels[:, len(taxonomy.levels) - 1].tolist()):
    if leaf >= 0:
      counts[leaf].append(i in unreadable)
  for leaf, faults in counts.items() if len(unreadable) < len(table.files) else ():
    if all(faults):
      name = taxonomy.names[-1][leaf]
      text = f'{level} {name!r}: none of its {len(faults)} images can be read'
      findings.add('warning', table.path or '', 'classes that cannot be read', text)


def _check_group(group, taxonomy: Taxonomy | None, findings):
  """Report images with the same bytes: in several splits, with other labels, or merely twice."""
  others = and_more([str(row) for row in group[1:]], 4)
  text, where = f'{group[0]} has the same bytes as {others}', group[-1].where
  conflict = _conflict(group, taxonomy) if taxonomy else ''
  if conflict:
    kind = 'duplicate images with different labels'
    findings.add('error', where, kind, f'{text}; {conflict}')
  if len({row.split for row in group}) > 1:
    findings.add('error', where, 'leak', text)
  elif not conflict:
    findings.add('warning', where, 'duplicate images', text)


def _conflict(group, taxonomy):
  """The finest level at which labels of one image differ, with these; '' if there is none."""
  for k in reversed(range(len(taxonomy.levels))):
    first = {}  # {class: how a row with it is named}
    for row in group:
      if row.labels[k] >= 0:
        first.setdefault(int(row.labels[k]), f'row {row.row}' if row.row else row.file)
    if len(first) > 1:
      labels = [f'{taxonomy.names[k][c]!r} ({row})' for c, row in list(first.items())[:3]]
      return f'{taxonomy.levels[k]} {" against ".join(labels)}'
  return ''
