"""Large tables, which are read by columns, say what the same tables say row by row."""

import hashlib
import os
import pickle

import numpy as np
import pytest

from hierjax.core.errors import UserError
from hierjax.core.names import Names
from hierjax.data import csv_paths, image_files, splits, stratify
from hierjax.data.findings import Findings
from hierjax.taxonomy import csv_files

CELLS = [
  'a',
  ' b',
  'c ',
  '',
  '',
  'é',
  'e\u0301',
  ' \u00a0x',
  'd"e',
  '"f, g"',
  '"h ""i"""',
  '日本',
  "j'k",
]


def text_of(rng):
  """A table with quotes, blanks, empty and short rows, and several ends of lines."""
  columns, end = int(rng.integers(1, 4)), ['\n', '\r\n'][rng.integers(2)]
  lines = [','.join(f'c{k}' for k in range(columns))]
  for _ in range(int(rng.integers(0, 30))):
    kind, width = rng.random(), columns
    if kind < 0.02:
      width = int(rng.integers(0, columns + 2))
    lines.append(','.join(CELLS[i] for i in rng.integers(0, len(CELLS), width)))
    lines += ['   '] * (kind > 0.97) + [''] * (0.93 < kind < 0.95)
    lines += ['"p\nq"' + ',' * (columns - 1)] * (0.945 < kind < 0.95)
  return end.join(lines) + end * int(rng.integers(0, 3))


def outcome(path):
  try:
    columns, rows, notes, _ = csv_files.read_columns(path)
  except UserError as error:
    return str(error)
  cells = {name: (list(c.values), c.codes.tolist()) for name, c in columns.items()}
  return cells, rows.tolist(), notes, csv_files.read_table(path)


def test_pyarrow_reads_what_the_csv_module_reads(tmp_path, monkeypatch):
  path, regular = tmp_path / 'x.csv', []
  parse = csv_files._parse_regular
  monkeypatch.setattr(
    csv_files, '_parse_regular', lambda *args: regular.append(parse(*args)) or regular[-1]
  )
  for seed in range(150):
    path.write_bytes(
      text_of(np.random.default_rng(seed)).encode('utf-8-sig' if seed % 5 else 'utf-8')
    )
    monkeypatch.setattr(csv_files, '_LARGE', 1 << 20)
    expected = outcome(path)
    monkeypatch.setattr(csv_files, '_LARGE', -1)
    assert outcome(path) == expected, seed
  assert 50 < sum(r is not None for r in regular) < len(regular)


def test_names_are_a_sequence_in_one_buffer():
  strings = ['a/b.png', '', 'é', 'x\udcff', 'a/c/日.jpg', 'b.png'] * 3
  names = Names.pack(strings)
  assert names == strings and names[3] == 'x\udcff' and len(names) == 18 and list(names) == strings
  selection = names[np.array([4, 0, 2])]
  assert selection == [strings[4], strings[0], strings[2]] and selection.data is names.data
  copied = pickle.loads(pickle.dumps(selection))
  assert copied == selection and len(copied.data) < 40 and names[1:3] == strings[1:3]
  assert not Names.pack([]) and list(Names.pack([]).by_folder()) == []
  rows = {folder: (r.tolist(), list(n)) for folder, r, n in Names.pack(strings[:6]).by_folder()}
  assert rows == {
    'a/': ([0], ['b.png']),
    '': ([1, 2, 3, 5], ['', 'é', 'x\udcff', 'b.png']),
    'a/c/': ([4], ['日.jpg']),
  }


def test_files_are_looked_for_folder_by_folder(tmp_path):
  """Present, moved, misspelled, linked, in another Unicode form, and outside."""
  for name in ('a/1.png', 'a/e\u0301.png', 'b/2.png', 'b/c/3.png', 'x:4.png'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  os.symlink('/etc/hostname', tmp_path / 'a/link.png')
  cells = ['a/1.png', 'a/é.png', 'b\\2.png', './b/c/3.png', 'q/2.png', 'a/no.png', '../z.png', '']
  findings = Findings(gather=True)
  paths, links = csv_paths.locate(cells, tmp_path, 'x.csv', findings)
  assert list(paths) == [
    *('a/1.png', 'a/e\u0301.png', 'b/2.png', 'b/c/3.png', 'b/2.png', 'a/no.png', '../z.png', '')
  ]
  assert links is None and '1 of 8 files are not at their path' in findings.notes[0]
  paths, links = csv_paths.locate(['a/1.png', 'a/link.png'], tmp_path, 'x.csv', findings)
  assert isinstance(paths, Names) and links == ['a', 'a/link.png']
  assert image_files.list_links(tmp_path / 'a')['link.png']
  # a drive letter is no folder
  assert csv_paths.locate(['x:4.png'], tmp_path, 'x.csv', findings).links is None


def test_draws_are_those_of_plain_loops():
  rng, total = np.random.default_rng(0), 0
  for _ in range(30):
    n, levels = int(rng.integers(0, 60)), int(rng.integers(0, 4))
    labels = rng.integers(-1, 5, (n, levels)).astype(np.int32)
    files = [f'{i}.png' for i in rng.integers(0, 50, n)]
    groups, order = {}, stratify.shuffled(files, 7).tolist()
    for i in order:
      row = labels[i].tolist()
      groups.setdefault(tuple(row[-1:] if row and row[-1] >= 0 else row), []).append(i)
    actual = [rows.tolist() for rows in splits._classes(labels, files, 7)]
    assert actual == [groups[key] for key in sorted(groups)] or n == 0
    total += n
    digests = [hashlib.blake2b(f'7:{f}'.encode(), digest_size=8).digest() for f in files]
    assert order == sorted(range(n), key=lambda i: (digests[i], files[i]))
  assert total


@pytest.mark.parametrize('seed', range(5))
def test_combinations_are_those_of_rows(seed):
  rng = np.random.default_rng(seed)
  cells = [[f'{c}' for c in rng.integers(0, 4, 50)] for _ in range(3)]
  first, codes = csv_files.combinations([csv_files.Column.encode(c) for c in cells])
  rows = list(zip(*cells))
  assert [rows.index(rows[i]) for i in first] == first.tolist()
  assert [rows[first[code]] for code in codes] == rows
