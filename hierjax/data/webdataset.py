"""WebDataset tars, read where they lie: members KEY.jpg and KEY.json or KEY.cls, side by side.

KEY.json has a class for each level, KEY.cls or KEY.txt the name or the number of the finest class.
One pass over the tars makes an index, which stays in the user's cache; nothing is unpacked, and
names of members are no paths.
"""

import array
import glob
import itertools
import pathlib
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from hierjax.core import files, json_files
from hierjax.core.errors import UserError
from hierjax.core.names import Names
from hierjax.data import image_files, label_columns, split_names, store
from hierjax.data.dataset import Table
from hierjax.data.findings import Findings
from hierjax.taxonomy import Taxonomy
from hierjax.taxonomy.csv_files import Column, CsvColumns

IMAGE, CLASS = 'image', ''  # the parts of an example besides its JSON
SUFFIXES = {'jpg': IMAGE, 'jpeg': IMAGE, 'png': IMAGE, 'webp': IMAGE}
SUFFIXES |= {name: name for name in ('json', 'cls', 'txt')}
MAX_JSON = 1 << 20  # bytes
MAX_FIELDS = 256  # of all JSON together
MAX_KINDS = 10  # of what is left out
MAX_SHARDS = 1 << 20  # of a range of names
BLOCK, TAIL = 512, 1 << 20  # bytes of a tar's header, and of what is looked at behind its end
UNUSED = 'members of tars that are not used'  # kind of findings
_RANGE = re.compile(r'\{(\d+)\.\.(\d+)\}')  # of numbered tars: {000..123}
FORMAT = 1  # of the index


def base_folder(root: pathlib.Path) -> pathlib.Path:
  """Return the folder of a data set whose root may be a file in it, or a pattern of tars."""
  is_name = root.is_file() or (root.suffix == '.tar' and not root.is_dir())
  while is_name:
    root = root.parent
    is_name = any(sign in str(root) for sign in '*?[{')
  return root


def tars(root: pathlib.Path) -> list[pathlib.Path]:
  """Return the tars of a root, sorted.

  Args:
    root: a folder that holds them at any depth, a tar, or a pattern such as train-{000..123}.tar or
      train-*.tar.

  Raises:
    UserError: one of a range of numbers does not exist.
  """
  if root.is_dir():
    return sorted(path for path in root.glob('**/*.tar') if path.is_file())
  if root.is_file():
    return [root]
  first, *others = _RANGE.split(str(root))
  ranges = [range(int(low), int(high) + 1) for low, high in zip(others[::3], others[1::3])]
  if any(len(numbers) > MAX_SHARDS for numbers in ranges[:1]) or len(ranges) > 1:
    raise UserError(f'{root}: one range of at most {MAX_SHARDS} tars is read')
  names = [first]
  if ranges:
    names = [f'{first}{i:0{len(others[0])}d}{others[2]}' for i in ranges[0]]
  matches = [sorted(glob.glob(name)) for name in names]
  absent = [name for name, paths in zip(names, matches) if not paths]
  if absent and ranges:
    raise UserError(f'{root}: {len(absent)} of {len(names)} do not exist, such as {absent[0]}')
  return [pathlib.Path(path) for path in itertools.chain.from_iterable(matches)]


class _Members(CsvColumns):
  """Columns of the examples in tars; these have names in place of row numbers."""

  def where(self, i: int | None = None) -> str:
    """Return 'FOLDER/TAR/MEMBER' of an example, or the folder."""
    return str(self.path) if i is None else f'{self.path}/{self.columns["file"].cell(i)}'


def read(
  options: ConfigDict, root: pathlib.Path, taxonomy: Taxonomy | None, findings: Findings
) -> Table:
  """Read WebDataset tars.

  Args:
    options: `config.data`.
    root: see `tars`.
    taxonomy: that of taxonomy.csv; None derives it from the labels.
    findings: receives what is wrong, and what was left out.

  Raises:
    UserError: there is no tar, one is damaged, or there is no image with a label.
  """
  folder, paths = base_folder(root), tars(root)
  if not paths:
    raise UserError(f'{root}: no *.tar')
  names, status = [path.relative_to(folder).as_posix() for path in paths], [p.stat() for p in paths]
  stamps = [(name, s.st_size, s.st_mtime_ns) for name, s in zip(names, status)]
  key = [FORMAT, str(folder.resolve()), stamps]
  index = store.cached('webdataset', key, lambda: _Index(folder).add(names).arrays())
  meta = json_files.parse(index['meta'].tobytes())
  for severity, where, kind, text in meta['findings']:
    report = findings.error if severity == 'error' else findings.warn
    report(f'{folder}/{where}' if where else str(folder), kind, text)
  n = len(index['tar'])
  if not n:
    findings.fatal(str(root), 'empty', f'no image with a label in {len(names)} tars')
  columns = {'file': Column(Names.from_ends(index['names'], index['names_end']), np.arange(n))}
  splits = split_names.of_files(options, folder, paths, findings)
  if splits:
    named = Column.encode(splits)
    columns['split'] = named._replace(codes=named.codes[index['tar']])
  columns |= _labels(options, str(folder), index, meta['fields'], taxonomy, columns)
  content = _Members(columns, np.zeros(n, np.int64), [], folder)
  options = ConfigDict({**options, 'file_column': None})
  labelled = label_columns.assign(options, content, taxonomy, findings)
  table = label_columns.encode(labelled, findings)
  table.rows = None
  places = (index[name] for name in ('tar', 'start', 'end'))
  table.reader = image_files.SliceReader([str(path) for path in paths], *places)
  return table


def _labels(options, where, index, fields, taxonomy, columns):
  """The columns of labels: those of JSON, or a single one."""
  labels = {
    field: Column(
      list(Names.from_ends(index[f'values_{k}'], index[f'values_end_{k}'])), index[f'codes_{k}']
    )
    for k, field in enumerate(fields)
    if field not in columns
  }
  single = labels.pop(CLASS, None)
  level_names = {level.casefold() for level in (taxonomy.levels if taxonomy else options.levels)}
  has_json = any(not level_names or field.casefold() in level_names for field in labels)
  if single and not has_json:
    level = ('class', *options.levels)[-1] if taxonomy is None else taxonomy.levels[-1]
    labels = {level: single}
  names = dict(zip(taxonomy.levels, taxonomy.names)) if taxonomy else {}
  return {c: _named(where, c, column, names.get(c), taxonomy) for c, column in labels.items()}


def _named(where, level, column, names, taxonomy):
  """A column with numbers replaced by the names of classes, or by numbers that sort well."""
  values = {value for value in column.values if value}
  if not values or not all(map(str.isdecimal, values)) or (taxonomy and not names):
    return column
  if names is None:
    width = max(map(len, values))
    return column.renamed(value and value.zfill(width) for value in column.values)
  if values <= {*names}:
    return column
  high = max(map(int, values))
  if high >= len(names):
    text = f'{level} goes up to {high}, the taxonomy has {len(names)} classes of {level}'
    raise UserError(f'{where}: {text}')
  return column.renamed(value and names[int(value)] for value in column.values)


class _Index:
  """What tars hold: where each labelled image is, its labels, and what is wrong.

  Args:
    folder: of the tars.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder, self.findings = folder, Findings(gather=True)
    self.names, self.places = [], array.array('q')  # tar, start, end
    self.columns = defaultdict(lambda: ({}, array.array('i')))  # {field: ({text: code}, codes)}
    self.unused, self.first = Counter(), {}

  def add(self, names: Sequence[str]) -> '_Index':
    """Read tars, by their names below the folder."""
    for k, name in enumerate(names):
      for key, parts in self._examples(name).items():
        image, label = parts.pop(IMAGE, None), parts.get('json') or {}
        text = parts.get('cls') or parts.get('txt')
        label |= {CLASS: text} if text else {}
        if image and label:
          member, start, end = image
          self._put(len(self.names), label)
          self.names.append(f'{name}/{member}')
          self.places.extend((k, start, end))
        elif image or label:
          kind = 'images without a label' if image else 'labels without an image'
          self._leave_out(kind, f'{name}/{image[0] if image else key}')
    return self

  def arrays(self) -> dict[str, np.ndarray]:
    """Return the index as arrays."""
    counts = self.unused.most_common(MAX_KINDS)
    texts = [f'{n} {kind}, the first is {self.first[kind]}' for kind, n in counts]
    if texts:
      self.findings.warn('', UNUSED, f'left out: {"; ".join(texts)}')
    problems = [(p.severity, p.where, p.kind, p.text) for p in self.findings.problems]
    meta = json_files.dump({'fields': [*self.columns], 'findings': problems})
    names, places = Names.pack(self.names), np.array(self.places, np.int64).reshape(-1, 3)
    arrays = {
      'meta': np.frombuffer(meta.encode(), np.uint8),
      'names': np.frombuffer(names.data, np.uint8),
      'names_end': names.end,
      'tar': places[:, 0].astype(np.int32),
      'start': places[:, 1].copy(),
      'end': places[:, 2].copy(),
    }
    for k, field in enumerate(self.columns):
      self._put(len(self.names), {field: ''})
      texts, codes = self.columns[field]
      values = Names.pack([*texts])
      arrays |= {f'values_{k}': np.frombuffer(values.data, np.uint8), f'values_end_{k}': values.end}
      arrays[f'codes_{k}'] = np.array(codes[:-1], np.int32)
    return arrays

  def _put(self, row, label):
    """Write labels into a row; those before it that have none get ''."""
    for field, text in label.items():
      texts, codes = self.columns[field]
      if len(codes) < row:
        codes.extend([texts.setdefault('', len(texts))] * (row - len(codes)))
      codes.append(texts.setdefault(text, len(texts)))

  def _leave_out(self, kind, name):
    self.unused[kind] += 1
    self.first.setdefault(kind, name)

  def _examples(self, name):
    """{key: {part: content}} of a tar, of an image its member, and where it begins and ends."""
    examples, last, path = defaultdict(dict), 'its beginning', self.folder / name
    try:
      with files.open_regular(path) as file, tarfile.open(fileobj=file, mode='r:') as tar:
        place = -1
        while (member := tar.next()) is not None:
          tar.members.clear()
          if tar.offset <= place or member.size < 0:
            raise tarfile.ReadError('it leads back')
          place, last = tar.offset, member.name
          if not member.isdir():
            self._add_member(name, member, file, examples)
        file.seek(tar.offset)
        self._check_end(name, last, file.read(TAIL))
    except UserError:
      raise
    except Exception as error:  # a damaged file meets all kinds
      reason = f'{type(error).__name__}: {str(error)[:120]}'
      text = f'is damaged, cut off or compressed behind {last!r} ({reason})'
      self.findings.error(name, 'damaged tars', text)
    return examples

  def _check_end(self, name, last, tail):
    """Report a tar that does not end with its mark, blocks of zeros."""
    if any(tail[:BLOCK]):
      raise tarfile.ReadError('no header of a member')
    if len(tail) < BLOCK:
      text = f'has no mark at its end, and may have been cut off behind {last!r}'
      self.findings.warn(name, 'tars without an end', text)
    elif any(tail):
      text = f'goes on behind the mark at its end, which follows {last!r}: that is not read'
      self.findings.warn(name, 'tars without an end', text)

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
      example[part] = self._read_label(where, member, part, file)

  def _read_label(self, where, member, part, file):
    """The fields of JSON, or a text."""
    if member.size > MAX_JSON:
      text = f'has {member.size >> 20} MiB; at most {MAX_JSON >> 20} are read of a label'
      return self.findings.error(where, 'labels that cannot be read', text)
    file.seek(member.offset_data)
    content, fields = file.read(member.size), {}
    try:
      if part != 'json':
        text = content.decode('utf-8-sig').strip()
        is_short = len(text) <= store.MAX_NAME
        return text if is_short else self._leave_out('texts too long for a class', where)
      values = json_files.parse(content, has_nan=True)
      if not isinstance(values, dict):
        raise UserError('is no JSON object of {level: class}')
    except (UnicodeDecodeError, UserError) as error:
      return self.findings.error(where, 'labels that cannot be read', str(error))
    for field, value in values.items():
      text = '' if value is None else str(value).strip()
      is_simple = isinstance(value, str | int | float | None) and len(text) <= store.MAX_NAME
      if not is_simple or not field.strip():
        self._leave_out('fields of JSON that hold no class', f'{field[:40]!r} of {where}')
      else:
        fields[field.strip()] = text
    if len(self.columns.keys() | fields) > MAX_FIELDS:
      raise UserError(f'more than {MAX_FIELDS} different fields in JSON, the last in {where}')
    return fields
