"""Attacks on the command line by files from elsewhere; each must be held in this version.

  python tests/attacks.py --package FOLDER      FOLDER holds main.py; default: this checkout

Each attack is a few small files, which `main.py --mode=lint|train|report|evaluate` reads in a
process with limits. A line each says 'held' or 'did harm' with the kind: a file written outside of
the run and the caches, a process that waits or does not end, more than MIB above what harmless
files take, a traceback or a crash, an escape sequence for the terminal, markup in the report, data
elsewhere that were opened. It needs the interfaces of the command line only, so that it also runs
against commit b26e435, where the attacks were seen. The exit code is 1 where one did harm.
"""

import argparse
import contextlib
import csv
import functools
import io
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

MIB, CPU_SECONDS, SILENT_SECONDS = 512, 30, 10
ROOT = pathlib.Path(__file__).resolve().parents[1]
MARKUP = '<b id=attack>'
ESCAPE = '\x1b[2J\x07'  # no sign that names of levels may not hold
TRAIN = ('--mode=train', '--workdir=run', '--config.model.backbone=resnet18',
         '--config.model.stem=small', '--config.data.size=16', '--config.train.epochs=0',
         '--config.train.steps=2', '--config.train.batch_size=8', '--config.eval.batch_size=8',
         '--config.data.threads=1')  # fmt: skip
LINT = ('--mode=lint', '--config.data.root=data', '--config.data.threads=1')


class Process(NamedTuple):
  """A process that has ended: its exit code, output, peak of memory, and why it was ended."""

  code: int
  out: str
  err: str
  mib: float
  seconds: float
  ended: str


class Box:
  """A folder of its own for an attack, in whose part `work` the commands run."""

  def __init__(self, package: pathlib.Path, folder: pathlib.Path, usual: dict[str, float]):
    self.package, self.folder, self.usual = package, folder, usual
    self.seconds = CPU_SECONDS if usual else 600
    self.work, self.outside = folder / 'work', folder / 'outside'
    for path in (self.work, self.outside, folder / 'home', folder / 'cache'):
      path.mkdir(parents=True)
    self.harms, self.process = [], None

  def run(
    self, *flags: str, environ: dict | None = None, stderr: bool = True, prefix: str = ''
  ) -> Process:
    """Run main.py, and note what harm is seen from outside, after a prefix."""
    before, first = self._files(), len(self.harms)
    command = [sys.executable, str(self.package / 'main.py'), *flags]
    self.process = p = execute(command, self, environ or {}, stderr)
    mode = flags[0].removeprefix('--mode=')
    if changed := sorted(self._files().items() ^ before.items()):
      self.harms.append(f'wrote outside: {os.path.relpath(changed[0][0], self.folder)}')
    if p.ended:
      self.harms.append(p.ended)
    elif 'Traceback (most recent call last)' in p.err + p.out:
      self.harms.append(f'a traceback: {p.err.strip().splitlines()[-1][:60]}')
    elif p.code < 0:
      self.harms.append(f'the process died of signal {-p.code}')
    if p.mib > self.usual.get(mode, p.mib) + MIB:
      self.harms.append(f'took {p.mib - self.usual[mode]:.0f} MiB more than usual')
    if any(character in p.out + p.err for character in '\x1b\x07\x9b\u202e'):
      self.harms.append('an escape sequence reached the terminal')
    self.harms[first:] = [prefix + harm for harm in self.harms[first:]]
    return p

  def _files(self) -> dict:
    """All files that no command may change, with their sizes and times."""
    out = {}
    for place in (self.work, self.outside, self.folder):
      for path in place.rglob('*') if place != self.folder else place.glob('*.*'):
        if path.is_relative_to(self.work / 'run') or path.is_dir():
          continue
        status = path.lstat()
        out[str(path)] = status.st_size, status.st_mtime_ns
    return out


def execute(command: list[str], box: Box, environ: dict, stderr: bool) -> Process:
  """Run a command until it ends, waits for nothing to come, or takes too much."""
  names = {'HOME': 'home', 'XDG_CACHE_HOME': 'cache', 'HF_HOME': 'home'}
  variables = {**os.environ, **{k: str(box.folder / v) for k, v in names.items()}}
  # huge pages, which a process asks for by starting itself again, blur what it takes
  variables |= {'JAX_PLATFORMS': 'cpu', 'HIERJAX_HUGEPAGES': '0', 'PYTHONDONTWRITEBYTECODE': '1'}
  start, ended, busy, last = time.monotonic(), '', 0.0, time.monotonic()
  with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
    if not stderr:
      command = ['bash', '-c', 'exec "$@" 2>&-', '', *command]
    variables |= environ
    limits = functools.partial(limit, box.seconds)
    process = subprocess.Popen(command, cwd=box.work, env=variables, stdin=subprocess.DEVNULL,
                               stdout=out, stderr=err, preexec_fn=limits)  # fmt: skip
    while True:
      pid, status, usage = os.wait4(process.pid, os.WNOHANG)
      if pid:
        break
      cpu, mib = state_of(process.pid)
      if cpu > busy + 0.02:
        busy, last = cpu, time.monotonic()
      if time.monotonic() - last > SILENT_SECONDS:
        ended = ended or 'waits for ever'
      elif mib > box.usual.get('most', 4096) + 2 * MIB:
        ended = ended or f'took more than {mib:.0f} MiB, and was ended'
      if ended:
        process.kill()
      time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(status)
    texts = [(f.seek(0), f.read().decode('utf-8', 'replace'))[1] for f in (out, err)]
  if process.returncode == -signal.SIGXCPU:
    ended = ended or f'does not end ({box.seconds} s of CPU)'
  seconds = time.monotonic() - start
  return Process(process.returncode, *texts, usage.ru_maxrss / 1024, seconds, ended)


def limit(seconds: int) -> None:
  """Set the limits of a process: CPU, address space, size of a file, no core."""
  resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
  resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
  resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 30, 3 << 30))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def state_of(pid: int) -> tuple[float, float]:
  """Return the seconds of CPU that a process has used and the MiB that it holds."""
  try:
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    pages = int(pathlib.Path(f'/proc/{pid}/statm').read_text().split()[1])
  except (OSError, IndexError):
    return 0.0, 0.0
  ticks = os.sysconf('SC_CLK_TCK')
  return (int(fields[11]) + int(fields[12])) / ticks, pages * os.sysconf('SC_PAGE_SIZE') / 2**20


# Harmless files to begin with


def picture(number: int) -> bytes:
  """A small PNG of random pixels."""
  out = io.BytesIO()
  pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
  Image.fromarray(pixels).save(out, 'PNG')
  return out.getvalue()


def put(folder: pathlib.Path, **files: bytes | str) -> None:
  """Write files, whose names may hold folders; what is there is replaced, not written through."""
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def pipe(path: pathlib.Path) -> None:
  """Put a named pipe, which nobody writes to, in the place of a file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.unlink(missing_ok=True)
  os.mkfifo(path)


def write_data(folder: pathlib.Path, levels=('make', 'model'), split='val') -> None:
  """Write labels.csv and 18 pictures: two makes, four models, two splits."""
  text = io.StringIO()
  rows = csv.writer(text)
  rows.writerow(['file', 'split', *levels])
  for i in range(18):
    rows.writerow([f'{i}.png', 'train' if i < 12 else split, 'AB'[i % 2], f'{"AB"[i % 2]}{i % 4}'])
  put(folder, **{'labels.csv': text.getvalue()}, **{f'{i}.png': picture(i) for i in range(18)})


class Trained(NamedTuple):
  """A trained run and its data, to copy from."""

  folder: pathlib.Path

  def copy(self, box: Box, data: bool = True) -> pathlib.Path:
    """Copy the run, and the data that its config.json names, into a box."""
    shutil.copytree(self.folder / 'run', box.work / 'run', copy_function=os.link)
    if data:
      shutil.copytree(self.folder / 'data', box.work / 'data')
    return box.work / 'run'


def change_json(path: pathlib.Path, **values) -> None:
  """Set values of a JSON file, whose names are joined by two underscores."""
  content = json.loads(path.read_text())
  for name, value in values.items():
    *groups, last = name.split('__')
    node = content
    for group in groups:
      node = node[group]
    node[last] = value
  put(path.parent, **{path.name: json.dumps(content)})


# The attacks: each a name and a function (box, trained) -> what harm it did, beside what `Box` sees

Attack = Callable[[Box, Trained], str | None]
ATTACKS: dict[str, Attack] = {}


def attack(name: str) -> Callable[[Attack], Attack]:
  """Register an attack."""

  def register(function: Attack) -> Attack:
    ATTACKS[name] = function
    return function

  return register


def parquet(folder: pathlib.Path, metadata: dict | None = None, **columns) -> None:
  """Write train.parquet and val.parquet with pictures and columns of values."""
  n = len(next(iter(columns.values())))
  for k, split in enumerate(('train', 'val')):
    pictures = [{'bytes': picture(n * k + i), 'path': f'{i}.png'} for i in range(n)]
    table = pa.table({'image': pictures, **columns})
    folder.mkdir(exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata or {}), folder / f'{split}.parquet')


@attack('parquet: a column named by an absolute path')
def _(box, _):
  parquet(box.work / 'data', **{f'{box.outside}/evil_label': list('aabbaabb')})
  box.run(*LINT)


@attack('parquet: a column named by a path with ..')
def _(box, _):
  parquet(box.work / 'data', **{'../../../../outside/evil_label': list('aabbaabb')})
  box.run(*LINT)


@attack('parquet: a level called `ends`')
def _(box, _):
  put(box.work / 'data', **{'taxonomy.csv': 'ends,model\na,x\nb,y\n'})
  parquet(box.work / 'data', ends=list('aabbaabb'), model=list('xxyyxxyy'))
  p = box.run(*LINT)
  lines = [line for line in (p.err + p.out).splitlines() if 'taxonomy' in line]
  return f'sound data are refused: {lines[:1]}' if p.code else None


@attack("a stranger's run: a split that leads out of it")
def _(box, trained):
  run = trained.copy(box, data=False)
  write_data(box.work / 'data', split='../../../x')
  for kind in ('eval', 'predictions', 'explain'):
    (run / f'{kind}_..').mkdir()
  for path in run.glob('*_val.*'):
    path.unlink()
  (run / 'splits.csv').unlink(missing_ok=True)
  change_json(run / 'config.json', data__val='../../../x')
  put(box.work, **{'x.json': 'mine'})
  box.run('--mode=report', '--workdir=run')


@attack("a stranger's run: data from the network")
def _(box, trained):
  run = trained.copy(box)
  (run / 'predictions_val.npz').unlink()
  change_json(run / 'config.json', data__root='hf:someone/data', data__source='auto')
  with socket.create_server(('127.0.0.1', 0)) as server:
    server.settimeout(0.1)
    address = f'http://127.0.0.1:{server.getsockname()[1]}'
    names = ('HF_ENDPOINT', 'http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY')
    environ = {**dict.fromkeys(names, address), 'HF_HUB_DISABLE_TELEMETRY': '1'}
    box.run('--mode=report', '--workdir=run', environ=environ)
    box.harms = [harm for harm in box.harms if not harm.startswith('waits')]
    with contextlib.suppress(TimeoutError):
      server.accept()
      return 'asked the network for them'


@attack("a stranger's run: data from an absolute path")
def _(box, trained):
  run = trained.copy(box, data=False)
  shutil.copytree(trained.folder / 'data', box.outside / 'photos')
  for name in ('predictions', 'explain', 'eval'):
    for path in run.glob(f'{name}_val.*'):
      path.unlink()
  (run / 'splits.csv').unlink(missing_ok=True)
  change_json(run / 'config.json', data__root=str(box.outside / 'photos'))
  box.run('--mode=report', '--workdir=run')
  return 'opened them unasked' if (run / 'predictions_val.npz').exists() else None


def report_of_level(box: Box, trained: Trained, name: str) -> str:
  """Make the report of a run whose level `make` is called otherwise."""
  run = trained.copy(box)
  scores = {'roc': [[0, 0], [0.5, 0.8], [1, 1]], 'score': 'energy', 'novel': 3, 'by_score': {}}
  scores |= {'left_out': {'energy': 0.5}}
  scores |= dict.fromkeys(('auroc', 'softmax', 'known', 'parent', 'placed'), 0.5)
  novelty = {'levels': {'make': scores}, 'nodes': [], 'false_alarms': 0.1, 'kept': 0.9}
  novelty |= {'split': 'val', 'calibration_images': 6}
  change_json(run / 'eval_val.json', novelty={**novelty, 'known_images': 6})
  for path in run.glob('*.json*'):
    put(run, **{path.name: path.read_text().replace('make', json.dumps(name)[1:-1])})
  cell = '"' + name.replace('"', '""') + '"'
  put(run, **{'taxonomy.csv': (run / 'taxonomy.csv').read_text().replace('make', cell)})
  box.run('--mode=report', '--workdir=run')
  return (run / 'report.html').read_text()


@attack('report: markup in the name of a level')
def _(box, trained):
  page = report_of_level(box, trained, MARKUP)
  return f'markup in the report: {page.count(MARKUP)} elements' if MARKUP in page else None


@attack('report: a backslash in the name of a level')
def _(box, trained):
  page = report_of_level(box, trained, 'ma\\q<1>')
  return 'a section is lost' if 'could not be made' in page else None


@attack('report: forms, base and frames')
def _(box, trained):
  page = report_of_level(box, trained, 'make')
  policy = page.partition('Content-Security-Policy')[2].partition('>')[0]
  lacking = [word for word in ('form-action', 'base-uri', 'frame-src') if word not in policy]
  return f'the policy allows {", ".join(lacking)}' if lacking else None


HEAD, ONE = b'\x80\x02', b'K\x01'
DOUBLED = b')q\x000' + b''.join(b'h%ch%c\x86q%c0' % (i, i, i + 1) for i in range(90)) + b'h\x5a'
PICKLES = {
  'doubled tuples as a key': HEAD + b'}' + DOUBLED + ONE + b's.',
  'a million nested tuples': HEAD + b'})' + b'\x85' * 10**6 + ONE + b's.',
}


def _of_weights(content: bytes) -> Attack:
  def function(box, trained):
    shutil.copytree(trained.folder / 'data', box.work / 'data')
    with zipfile.ZipFile(box.work / 'w.pth', 'w') as archive:
      archive.writestr('w/data.pkl', content)
    box.run(*TRAIN, '--config.data.root=data', '--config.model.pretrained=w.pth')

  return function


def _of_cifar(content: bytes) -> Attack:
  def function(box, _):
    put(box.work / 'data', meta=content, train=content, test=content)
    box.run(*LINT, '--config.data.source=cifar100')

  return function


for _name, _content in PICKLES.items():
  attack(f'weights: {_name}')(_of_weights(_content))
  attack(f'CIFAR-100: {_name}')(_of_cifar(_content))


@attack('bomb: Parquet')
def _(box, _):
  values = pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int32()), [bytes(8 << 20)])
  codes = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 128, pa.int32()), ['a', 'b'])
  (box.work / 'data').mkdir()
  table = pa.table({'image': values, 'make_label': codes})
  path = box.work / 'data' / 'train.parquet'
  pq.write_table(table, path, compression='zstd', store_schema=False,
                 dictionary_pagesize_limit=1 << 30, write_statistics=False)  # fmt: skip
  box.run(*LINT)


@attack('bomb: .mat')
def _(box, _):
  def element(kind: int, body: bytes) -> bytes:
    return struct.pack('<II', kind, len(body)) + body + bytes(-len(body) % 8)

  def matrix(kind: int, sizes: tuple, name: bytes, body: bytes) -> bytes:
    flags, dimensions = struct.pack('<II', kind, 0), struct.pack(f'<{len(sizes)}i', *sizes)
    return element(14, element(6, flags) + element(5, dimensions) + element(1, name) + body)

  n = 3_000_000
  cells = matrix(6, (1, 2), b'', element(9, bytes(16))) * n
  body = zlib.compress(matrix(1, (1, n), b'class_names', cells), 9)
  header = b'MATLAB 5.0 MAT-file'.ljust(124) + b'\0\1IM'
  content = header + struct.pack('<II', 15, len(body)) + body
  put(box.work / 'data' / 'devkit', **{'cars_meta.mat': content, 'cars_train_annos.mat': content})
  (box.work / 'data' / 'cars_train').mkdir()
  box.run(*LINT, '--config.data.source=stanford_cars')


@attack('bomb: PNG')
def _(box, _):
  def chunk(kind: bytes, body: bytes) -> bytes:
    crc = struct.pack('>I', zlib.crc32(kind + body))
    return struct.pack('>I', len(body)) + kind + body + crc

  side = 13_300
  header = struct.pack('>IIBBBBB', side, side, 1, 3, 0, 0, 0)
  body = zlib.compress(bytes((1 + (side + 7) // 8) * side), 9)
  parts = [(b'IHDR', header), (b'PLTE', bytes(6)), (b'tRNS', b'\0\xff'), (b'IDAT', body)]
  content = b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in [*parts, (b'IEND', b'')])
  write_data(box.work / 'data')
  put(box.work / 'data', **{'0.png': content})
  box.run(*LINT)


@attack('bomb: npz of a run')
def _(box, trained):
  run = trained.copy(box)
  (run / 'predictions_val.npz').unlink()
  header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (2147483648,)}"
  with (
    zipfile.ZipFile(run / 'predictions_val.npz', 'w', zipfile.ZIP_DEFLATED) as archive,
    archive.open('labels.npy', 'w', force_zip64=True) as f,
  ):
    f.write(b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header)
    for _ in range(128):
      f.write(bytes(16 << 20))
  box.run('--mode=report', '--workdir=run')


@attack('pipe: config.json of a run')
def _(box, _):
  pipe(box.work / 'run' / 'config.json')
  box.run('--mode=report', '--workdir=run')


@attack('pipe: meta of CIFAR-100')
def _(box, _):
  pipe(box.work / 'data' / 'meta')
  put(box.work / 'data', train=b'', test=b'')
  box.run(*LINT, '--config.data.source=cifar100')


@attack('pipe: images.txt of CUB-200')
def _(box, _):
  pipe(box.work / 'data' / 'images.txt')
  for name in ('classes', 'image_class_labels', 'train_test_split', 'bounding_boxes'):
    put(box.work / 'data', **{f'{name}.txt': '1 a\n'})
  (box.work / 'data' / 'images').mkdir()
  box.run(*LINT, '--config.data.source=cub200')


@attack('links out of the root')
def _(box, _):
  for i in range(16):
    put(box.work / 'data', **{f'{("train", "val")[i % 2]}/{"ab"[i // 8]}/{i}.png': picture(i)})
  put(box.outside, **{'private.png': picture(99), 'b/p.png': picture(98)})
  (box.work / 'data' / 'train' / 'a' / 'p.png').symlink_to(box.outside / 'private.png')
  (box.work / 'data' / 'train' / 'c').symlink_to(box.outside / 'b')
  p = box.run(*LINT)
  return None if 'link' in p.out + p.err else 'followed without a word'


DAMAGE = {'200,000 brackets': '[' * 200_000, '5,000 digits': '7' * 5_000, '1e999': '1e999'}


# Each file of a run: where the damage is, and the mode that reads it.
DAMAGED = {
  'config.json': ('{"seed": VALUE}', 'evaluate'),
  'decode.json': ('{"split": "val", "weights": {"make": VALUE, "model": 1.0}}', 'evaluate'),
  'metrics.jsonl': ('{"step": VALUE, "kind": "train", "loss": 1.0}\n', 'report'),
}


def _of_file(name: str, text: str, mode: str) -> Attack:
  def function(box, trained):
    run = trained.copy(box)
    for kind, value in DAMAGE.items():
      put(run, **{name: text.replace('VALUE', value)})
      box.run(f'--mode={mode}', '--workdir=run', prefix=f'{kind}: ')

  return function


for _name, (_text, _mode) in DAMAGED.items():
  attack(f'damaged JSON: {_name}')(_of_file(_name, _text, _mode))


@attack('damaged JSON: metadata of Parquet')
def _(box, _):
  for kind, value in DAMAGE.items():
    text = '{"info": {"features": {"make_label": {"names": VALUE}}}}'.replace('VALUE', value)
    parquet(box.work / 'data', {b'huggingface': text.encode()}, make_label=[0, 1] * 4)
    box.run(*LINT, prefix=f'{kind}: ')


@attack('terminal: an escape sequence in names, in lint')
def _(box, _):
  write_data(box.work / 'data', levels=('make', f'mo{ESCAPE}del'))
  parquet(box.work / 'more', make_label=list('aabbaabb'), **{f'x{ESCAPE}': list('aabbaabb')})
  box.run(*LINT)
  box.run('--mode=lint', '--config.data.root=more')


@attack('terminal: an escape sequence in names, in the log')
def _(box, _):
  labels = {
    'make_label': list('AB' * 6),
    f'mo{ESCAPE}del_label': [f'{"AB"[i % 2]}{i % 4}' for i in range(12)],
  }
  parquet(box.work / 'data', **labels)
  box.run(*TRAIN, '--config.data.root=data')


@attack('terminal: stderr closed')
def _(box, trained):
  trained.copy(box)
  p = box.run('--mode=evaluate', '--workdir=run', stderr=False)
  for line in p.out.splitlines():
    try:
      json.loads(line)
    except ValueError:
      return f'a line of the log among the JSON: {line[:40]}'


def prepare(package: pathlib.Path, folder: pathlib.Path) -> tuple[Trained, dict[str, float]]:
  """Train the run that attacks copy, and measure what harmless files take."""
  box = Box(package, folder, {})
  write_data(box.work / 'data')
  data = ('--config.data.root=data', '--config.data.source=csv')
  usual = {}
  for mode, flags in {
    'train': (*TRAIN, *data),
    'lint': LINT,
    'evaluate': ('--mode=evaluate', '--workdir=run'),
    'report': ('--mode=report', '--workdir=run'),
  }.items():
    p = box.run(*flags)
    if p.code or box.harms:
      raise SystemExit(f'--mode={mode} of harmless files fails: {box.harms} {p.err[-2000:]}')
    usual[mode] = p.mib
  usual['most'] = max(usual.values())
  return Trained(box.work), usual


def main() -> int:
  """Run the attacks that match; print a line each."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--package', type=pathlib.Path, default=ROOT, help='the folder of main.py')
  parser.add_argument('--only', default='', help='a pattern of the names to run')
  args = parser.parse_args()
  count = 0
  with tempfile.TemporaryDirectory(prefix='hierjax-attacks-') as name:
    folder = pathlib.Path(name)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder / 'jax')
    trained, usual = prepare(args.package.resolve(), folder / 'trained')
    print(f'harmless: {", ".join(f"{k} {v:.0f} MiB" for k, v in usual.items())}', flush=True)
    names = [name for name in ATTACKS if re.search(args.only, name)]
    for i, name in enumerate(names):
      box = Box(args.package.resolve(), folder / str(i), usual)
      harm = ATTACKS[name](box, trained)
      harms = [*box.harms, *([harm] if harm else [])]
      count += bool(harms)
      p = box.process
      print(f'{name:<50} {"DID HARM: " + "; ".join(harms) if harms else "held"}'
            f' [exit {p.code}, {p.seconds:.0f} s, {p.mib:.0f} MiB]', flush=True)  # fmt: skip
      if os.environ.get('ATTACKS_VERBOSE'):
        print(p.out[-1500:], p.err[-1500:])
      shutil.rmtree(box.folder, ignore_errors=True)
  print(f'{len(names)} attacks, {count} did harm')
  return int(count > 0)


if __name__ == '__main__':
  sys.exit(main())
