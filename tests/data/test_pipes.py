"""Files of a data set that a reader would wait at, and texts in them that are no text."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_layouts

from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.data import lint, sources

MAKERS = {
  'cifar100': lambda root: test_layouts.cifar(root / 'cifar-100-python'),
  'cub200': test_layouts.cub,
  'stanford_cars': test_layouts.devkit,
  'csv': lambda root: test_layouts.put(
    root, **{'labels.csv': 'file,split,make\na.png,train,x\na.png,val,y\n', 'a.png': None}
  ),
  'taxonomy': lambda root: test_layouts.put(
    root,
    **{'labels.csv': 'file,model\na.png,x\n', 'taxonomy.csv': 'make,model\nm,x\n', 'a.png': None},
  ),
}
FILES = (
  ('cifar100', 'cifar-100-python/meta'),
  ('cifar100', 'cifar-100-python/train'),
  ('cub200', 'images.txt'),
  ('cub200', 'classes.txt'),
  ('cub200', 'image_class_labels.txt'),
  ('cub200', 'train_test_split.txt'),
  ('stanford_cars', 'devkit/cars_meta.mat'),
  ('stanford_cars', 'devkit/cars_train_annos.mat'),
  ('csv', 'labels.csv'),
  ('taxonomy', 'taxonomy.csv'),
)


pytestmark = pytest.mark.usefixtures('no_waiting')


@pytest.mark.parametrize('column', ['make_label', 'image'])
def test_a_parquet_text_that_is_no_text(column, tmp_path):
  """Arrow keeps bytes that are not UTF-8 as text; Python cannot."""
  bad = pa.array([b'\x80', b'a']).view(pa.string())
  picture = pa.array([test_layouts.encoded(1)] * 2)
  image = pa.StructArray.from_arrays([picture, bad], ['bytes', 'path'])
  columns = {'image': image, 'make_label': pa.array(['a', 'b']), column: bad}
  columns['image'] = image if column == 'image' else picture
  pq.write_table(pa.table(columns), tmp_path / 'train.parquet')
  options = config.default().data
  options.root = str(tmp_path)
  with pytest.raises(UserError, match=r'train\.parquet: is damaged or was cut short'):
    sources.load(options)


def test_damaged_metadata_of_a_parquet_column_do_not_end_the_process(tmp_path, monkeypatch):
  """To ask pyarrow for a column whose histogram has a wrong length aborts it."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  picture = [{'bytes': test_layouts.encoded(1), 'path': 'a'}] * 2
  (tmp_path / 'data').mkdir()
  path = tmp_path / 'data' / 'train.parquet'
  pq.write_table(pa.table({'image': picture, 'make_label': ['a', 'b']}), path)
  content, options = path.read_bytes(), config.default().data
  options.root, messages = str(path.parent), []
  for i in (i for i, byte in enumerate(content) if byte == 2):
    path.write_bytes(content[:i] + b'\x12' + content[i + 1 :])
    try:
      sources.load(options)
    except UserError as e:
      messages.append(str(e))
  assert any('histogram' in message for message in messages)


@pytest.mark.parametrize(('kind', 'name'), FILES)
def test_a_pipe_is_refused(kind, name, tmp_path):
  """By name, in loading and in lint."""
  root = tmp_path / 'data'
  root.mkdir()
  if kind in ('cifar100', 'stanford_cars'):
    root.rmdir()
  MAKERS[kind](root)
  (root / name).unlink()
  os.mkfifo(root / name)
  options = config.default().data
  options.root = str(root)
  options.source = 'csv' if kind == 'taxonomy' else kind
  with pytest.raises(UserError, match=name.rpartition('/')[2].replace('.', r'\.')):
    sources.load(options)
  assert any(problem.severity == 'error' for problem in lint.check(options).problems)
