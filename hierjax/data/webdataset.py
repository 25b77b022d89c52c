"""WebDataset tars, read where they lie: members KEY.jpg and KEY.json or KEY.cls, side by side.

KEY.json has a class for each level, KEY.cls or KEY.txt the name or the number of the finest class.
One pass over the tars makes an index, which stays in the user's cache; nothing is unpacked, and
names of members are no paths.
"""

import array
import glob
import json
import os
import pathlib
import re
import tarfile
from collections import Counter, defaultdict

import numpy as np
from ml_collections import ConfigDict

from hierjax.core import files, json_files
from hierjax.core.errors import UserError, kind_and_text
from hierjax.core.names import Names
from hierjax.data import csv_columns, image_files, label_columns, split_names, store
from hierjax.data.dataset import Table
from hierjax.data.findings import Findings
from hierjax.taxonomy import Taxonomy
from hierjax.taxonomy.csv_files import Column, CsvColumns

IMAGE, CLASS = 'image', ''  # the parts of an example besides its JSON
SUFFIXES = {'jpg': IMAGE, 'jpeg': IMAGE, 'png': IMAGE, 'webp': IMAGE}
SUFFIXES |= {name: name for name in ('json', 'cls', 'txt')}
MAX_LABEL = 1 << 20  # bytes
MAX_FIELDS = 256  # of all JSON together
BLOCK, TAIL = 512, 1 << 20  # bytes of a tar's header, and of what is looked at behind its end
UNUSED = 'members of tars that are not used'  # kind of findings
_RANGE = re.compile(r'\{(\d+)\.\.(\d+)\}')  # of numbered tars: {000..123}
FORMAT = 1  # of the index


def base_folder(root: pathlib.Path) -> pathlib.Path:
  """Return the folder of a data set whose root may be a file in it, or a pattern of tars."""
  if root.is_dir() or not (root.suffix == '.tar' or root.is_file()):
    return root
  return next(folder for folder in root.parents if not set('*?[{') & {*str(folder)})


def tars(root: pathlib.Path) -> list[pathlib.Path]:
  """Return the tars of a folder, at any depth, or of a pattern: train-{000..123}.tar, *-00?.tar."""
  first, *parts = _RANGE.split(str(root), maxsplit=1)
  if root.is_dir():
    return sorted(path for path in root.glob('**/*.tar') if path.is_file())
  if not parts:
    return sorted(path for path in map(pathlib.Path, glob.glob(first)) if path.is_file())
  paths = []
  for i in range(int(parts[0]), int(parts[1]) + 1):
    paths.append(pathlib.Path(f'{first}{i:0{len(parts[0])}d}{parts[2]}'))
    if not paths[-1].is_file():
      raise UserError(f'{root}: no file {paths[-1]}')
  return paths


def read(
  options: ConfigDict, root: pathlib.Path, taxonomy: Taxonomy | None, findings: Findings
) -> Table:
  """Read WebDataset tars.

  Args:
    root: see `tars`.
    options, taxonomy, findings: see `csv_columns.assign`; None derives a taxonomy.

  Raises:
    UserError: there is no tar, one is damaged, or there is no image with a label.
  """
  folder, paths = base_folder(root), tars(root)
  if not paths:
    raise UserError(f'{root}: no *.tar')
  names = [path.relative_to(folder).as_posix() for path in paths]
  stamps = [(name, s.st_size, s.st_mtime_ns) for name, s in zip(names, map(os.stat, paths))]
  key = [FORMAT, str(folder.resolve()), stamps]
  index = store.cached('webdataset', key, lambda: _Index(folder, names).arrays())
  fields, problems = json.loads(index['meta'].tobytes())
  for severity, where, kind, text in problems:
    report = findings.error if severity == 'error' else findings.warn
    report(f'{folder}/{where}' if where else str(folder), kind, text)
  n = len(index['tar'])
  if not n:
    findings.fatal(str(root), 'empty', f'no image with a label in {len(names)} tars')
  columns = {'file': Column(Names.from_ends(index['names'], index['names_end']), np.arange(n))}
  splits = split_names.of_files(options, folder, paths, findings)
  if splits:
    column = Column.encode(splits)
    columns['split'] = column._replace(codes=column.codes[index['tar']])
  labels = {c: Column(values, index[f'codes_{k}']) for k, (c, values) in enumerate(fields.items())}
  columns = _labels(options, folder, labels, taxonomy) | columns
  content = CsvColumns(columns, np.zeros(n, np.int64), [], folder)
  options = ConfigDict({**options, 'file_column': None})
  content = csv_columns.assign(options, content.where(), content, taxonomy, findings)
  table = label_columns.encode(options, content, taxonomy, findings)
  places = (index[name] for name in ('tar', 'start', 'end'))
  table.reader = image_files.SliceReader(list(map(str, paths)), *places)
  return table


def _labels(options, folder, columns, taxonomy):
  """The columns of JSON if one is a level, else that of the finest class; numbers are named."""
  finest, levels = columns.pop(CLASS, None), taxonomy.levels if taxonomy else options.levels
  folded = {level.casefold() for level in levels}
  if finest and (folded or not columns) and not folded & {c.casefold() for c in columns}:
    columns = {(levels or ['class'])[-1]: finest}
  return {c: label_columns.named(column, c, taxonomy, folder) for c, column in columns.items()}


class _Index:
  """What tars below a folder hold: where each labelled image is, its labels, and what is wrong."""

  def __init__(self, folder: pathlib.Path, names: list[str]):
    self.folder, self.findings = folder, Findings(gather=True)
    self.names, self.places, self.labels = [], array.array('q'), []
    self.unused, self.first, self.fields = Counter(), {}, {CLASS: None}
    for k, name in enumerate(names):
      for key, parts in self._examples(name).items():
        self._add_example(k, name, key, parts)

  def arrays(self) -> dict[str, np.ndarray]:
    """Return the index as arrays; 'meta' has the fields with their values, and the findings."""
    counts = self.unused.most_common(10)
    texts = [f'{n} {kind}, the first is {self.first[kind]}' for kind, n in counts]
    if texts:
      self.findings.warn('', UNUSED, f'left out: {"; ".join(texts)}')
    problems = [(p.severity, p.where, p.kind, p.text) for p in self.findings.problems]
    columns = {c: Column.encode(row.get(c, '') for row in self.labels) for c in self.fields}
    columns = {c: column for c, column in columns.items() if any(column.values)}
    meta = {c: column.values for c, column in columns.items()}
    names, places = Names.pack(self.names), np.array(self.places, np.int64).reshape(-1, 3)
    return {
      'meta': np.frombuffer(json.dumps([meta, problems]).encode(), np.uint8),
      'names': np.frombuffer(names.data, np.uint8),
      'names_end': names.end,
      **{key: places[:, k].copy() for k, key in enumerate(('tar', 'start', 'end'))},
      **{f'codes_{k}': column.codes for k, column in enumerate(columns.values())},
    }

  def _add_example(self, tar, name, key, parts):
    image, label = parts.pop(IMAGE, None), parts.get('json') or {}
    text = parts.get('cls') or parts.get('txt')
    if text:
      label[CLASS] = text
    if image and label:
      self.names.append(f'{name}/{image[0]}')
      self.places.extend((tar, *image[1:]))
      self.labels.append(label)
    elif image or label:
      kind = 'images without a label' if image else 'labels without an image'
      self._leave_out(kind, f'{name}/{image[0] if image else key}')

  def _leave_out(self, kind, name):
    self.unused[kind] += 1
    self.first.setdefault(kind, name)

  def _examples(self, name):
    """{key: {part: content}} of a tar, of an image its member, and where it begins and ends."""
    examples, last, place = defaultdict(dict), 'its beginning', -1
    try:
      with files.open_regular(self.folder / name) as file, tarfile.open(None, 'r:', file) as tar:
        while (member := tar.next()) is not None:
          tar.members.clear()
          if tar.offset <= place or member.size < 0:
            raise tarfile.ReadError('it leads back')
          place, last = tar.offset, member.name
          if not member.isdir():
            self._add_member(name, member, file, examples)
        file.seek(tar.offset)
        tail = file.read(TAIL)
      if any(tail[:BLOCK]):
        raise tarfile.ReadError('no header of a member')
    except UserError:
      raise
    except Exception as error:  # a damaged file meets all kinds
      text = f'is damaged, cut off or compressed behind {last!r} ({kind_and_text(error)})'
      self.findings.error(name, 'damaged tars', text)
      return examples
    # blocks of zeros mark the end
    if len(tail) < BLOCK or any(tail):
      text = 'goes on, which is not read' if tail else 'has no mark of its end; it may be cut off'
      self.findings.warn(name, 'ends of tars', f'{text}, behind {last!r}')
    return examples

  def _add_member(self, name, member, file, examples):
    """Add a member to the example of its key."""
    where, base = f'{name}/{member.name}', member.name.rpartition('/')[2]
    stem, _, suffix = base.partition('.')
    part = SUFFIXES.get(suffix.lower()) if stem else None
    if part is None:
      return self._leave_out(f'members that end in .{suffix.lower()[:20]}', where)
    if not member.isreg() or member.issparse():
      return self._leave_out('members that are links, sparse or special', where)
    path = image_files.check_path(member.name, name, self.findings)
    example = examples[member.name.removesuffix(base) + stem]
    if path and part in example:
      text = f'key {stem!r} has a second {"image" if part == IMAGE else "label"} here'
      self.findings.error(where, 'keys that occur twice', text)
    elif path and part == IMAGE:
      example[IMAGE] = path, member.offset_data, member.offset_data + member.size
    elif path:
      file.seek(member.offset_data)
      try:
        example[part] = self._label(where, part, file.read(min(member.size, MAX_LABEL + 1)))
      except (UnicodeDecodeError, UserError) as error:
        self.findings.error(where, 'labels that cannot be read', str(error))

  def _label(self, where, part, content):
    """The fields of JSON that may name classes, or a text that may; else None."""
    if len(content) > MAX_LABEL:
      raise UserError(f'has more than the {MAX_LABEL} bytes that a label may have')
    if part == 'json':
      values = json_files.parse(content, has_nan=True)
    else:
      values = {CLASS: content.decode('utf-8-sig')}
    if not isinstance(values, dict):
      raise UserError('is no JSON object of {level: class}')
    texts = {}
    for field, value in values.items():
      text = '' if value is None else str(value).strip()
      if len(text) > store.MAX_NAME or not isinstance(value, str | int | float | None):
        self._leave_out('texts and lists that are no class', f'{field[:40]!r} of {where}')
      else:
        texts[field.strip()] = text
    if part != 'json':
      return texts.get(CLASS)
    self.fields |= texts
    if len(self.fields) > MAX_FIELDS:
      raise UserError(f'more than {MAX_FIELDS} different fields in JSON')
    return texts
