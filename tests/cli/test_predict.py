"""hierjax predict: lists of images, files of predictions that a stopped command goes on with."""

import copy
import csv
import io
import itertools
import json
import os

import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from pyarrow import parquet

import hierjax
from hierjax import decide, runtime
from hierjax.cli import arguments, images, predict, predictions
from hierjax.core import config, parallel
from hierjax.core.errors import UserError
from hierjax.taxonomy import TagTaxonomy

OPTIONS = config.default().data


def png(seed=0):
  stream = io.BytesIO()
  pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
  Image.fromarray(pixels).save(stream, 'PNG')
  return stream.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Seven images, of which two cannot be read, and lists that name them; the working directory."""
  (tmp_path / 'img').mkdir()
  for i in range(5):
    (tmp_path / f'img/{i}.png').write_bytes(png(i))
  (tmp_path / 'img/5.png').write_bytes(png()[:40])
  (tmp_path / 'img/6.png').touch()
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_lists_of_images(folder):
  """Paths relative to here or to the list, any column and delimiter, paths of another machine."""
  lists = {
    'list.txt': 'img/3.png\n\nimg/gone.png\nimg/1.png\n',
    'img/list.txt': '3.png\n gone.png\n1.png',
    'list.csv': f'id;photo\n1;img/3.png\n2;{folder}/img/1.png\n3;C:\\x\\4.png\n4;img/3.png\n',
  }
  for name, text in lists.items():
    (folder / name).write_text(text)
  assert images.expand('list.txt', OPTIONS) == {
    'img/3.png': 'img/3.png',
    'img/gone.png': 'img/gone.png',
    'img/1.png': 'img/1.png',
  }
  paths = images.expand('img/list.txt', OPTIONS)
  assert [*paths] == ['3.png', 'gone.png', '1.png'] and paths['3.png'] == 'img/3.png'
  paths = images.expand('list.csv', OPTIONS)
  assert [*paths] == ['img/3.png', f'{folder}/img/1.png', 'C:\\x\\4.png']
  assert [os.path.exists(path) for path in paths.values()] == [True] * 3
  (folder / 'empty.txt').touch()
  (folder / 'other.csv').write_text('a,b\n1,2\n')
  for name, words in (('empty.txt', 'names no image'), ('other.csv', 'no column "file"')):
    with pytest.raises(UserError, match=words):
      images.expand(name, OPTIONS)


def test_folders_globs_and_single_images(folder):
  (folder / 'img/notes.txt').write_text('')
  (folder / 'img/b.jpg').touch()
  (folder / 'img/5.png').unlink()

  def names(pattern):
    return [os.path.basename(path) for path in images.expand(pattern, OPTIONS)]

  assert names('img') == ['0.png', '1.png', '2.png', '3.png', '4.png', '6.png', 'b.jpg']
  assert names('img/[0-2].png') == ['0.png', '1.png', '2.png'] and names('img/1.png') == ['1.png']
  for nothing in ('img/*.gif', 'gone'):
    with pytest.raises(UserError, match='no file matches'):
      images.expand(nothing, OPTIONS)


def record(name, **changes):
  return {
    'file': name,
    'path': {'make': 'A, "B"\nC', 'model': 'é'},
    'prob': {'make': 0.5, 'model': 0.25},
    'classes': {'tag': ['sea', 'sun']},
    'top': {'make': [['A', 0.5]]},
    **changes,
  }


def read_table(path):
  if path.suffix == '.parquet':
    return parquet.read_table(path).to_pylist()
  with open(path, newline='') as f:
    return list(csv.DictReader(f))


def opened(path, fingerprint='0a', **options):
  output = predictions.Output(str(path), **options)
  output.open(fingerprint)
  return output


@pytest.mark.parametrize('suffix', ['.jsonl', '.csv', '.parquet'])
def test_a_stopped_file_goes_on(tmp_path, suffix):
  """What is whole stays, a cut line goes, and a later call adds to a complete file."""
  path = tmp_path / f'x{suffix}'
  output = opened(path)
  assert output.names == set()
  output.write(record('1'))
  output.write(record('2'))
  lines = path if suffix == '.jsonl' else tmp_path / f'x{suffix}.jsonl'
  with open(lines, 'ab') as f:
    f.write(json.dumps(record('3')).encode()[:50])  # the program was killed here
  with pytest.raises(UserError, match='another program writes it'):
    opened(path)
  output._file.close()
  output = opened(path)
  assert output.names == {'1', '2'}
  output.write({'file': '3\udcff', 'error': 'not an image'})
  output.close()
  content = path.read_bytes()
  with pytest.raises(UserError, match='of another model'):
    opened(path, '0b')
  assert path.read_bytes() == content and os.listdir(tmp_path) == [path.name]
  output = opened(path)
  assert len(output.names) == 3
  output.write(record('4', answer={'level': 'make', 'prob': 1, 'reason': None}))
  output.close()
  assert os.listdir(tmp_path) == [path.name]
  if suffix == '.jsonl':
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row['file'] for row in rows] == ['1', '2', '3\udcff', '4']
    assert rows[0] == record('1', fingerprint='0a')
    return
  rows = read_table(path)
  assert [row['file'] for row in rows] == ['1', '2', '3\\udcff', '4']
  assert [row['path.make'] or '' for row in rows] == ['A, "B"\nC', 'A, "B"\nC', '', 'A, "B"\nC']
  assert float(rows[3]['answer.prob']) == 1 and rows[2]['error'] == 'not an image'
  assert rows[0]['classes.tag'] == 'sea|sun' and 'top.make' not in rows[0]
  assert {row['fingerprint'] for row in rows} == {'0a'}


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('x.jsonl', b'{"a": 1}\n'),
    ('x.jsonl', b'notes\nof mine'),
    ('x.jsonl', b'[1]\n'),
    ('x.csv', b'a,b\n1,2\n'),
    ('x.parquet', b'PAR1'),
    ('x.csv.jsonl', b'{}\n'),
  ],
)
def test_other_files_are_left_alone(tmp_path, name, content):
  (tmp_path / name).write_bytes(content)
  path = tmp_path / name.replace('.csv.jsonl', '.csv')
  with pytest.raises(UserError, match='something other than predictions'):
    predictions.Output(str(path))
  assert (tmp_path / name).read_bytes() == content
  with pytest.raises(UserError, match=r'must end in \.jsonl, \.csv, \.parquet'):
    predictions.Output(str(tmp_path / 'x.txt'))


def test_predict_writes_counts_and_goes_on(folder, finished_run, monkeypatch, capsys):
  """The records are those of the API, errors are counted, a rerun predicts what is new only."""
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)

  def run(*flags):
    predict.run(arguments.parse(['hierjax', 'predict', f'--workdir={finished_run}', *flags]))
    return capsys.readouterr()

  (folder / 'first.txt').write_text('img/0.png\nimg/5.png')
  printed = run('--images=first.txt')
  written = run('--images=first.txt', '--output=x.jsonl')
  fingerprint = hierjax.load(finished_run).fingerprint()
  lines = [json.loads(line) for line in (folder / 'x.jsonl').read_text().splitlines()]
  assert {line.pop('fingerprint') for line in lines} == {fingerprint}
  assert written.out == '' and lines == [*map(json.loads, printed.out.splitlines())]
  assert '2/2 images' in written.err and '1 of 2 images could not be read: ' in written.err
  resumed = run('--images=img', '--output=x.jsonl')
  assert (
    'x.jsonl holds 2 of 7 images, which are skipped' in resumed.err and '5/5 images' in resumed.err
  )
  records = [json.loads(line) for line in (folder / 'x.jsonl').read_text().splitlines()]
  assert {r.pop('fingerprint') for r in records} == {fingerprint}
  assert sorted(r['file'] for r in records) == [f'img/{i}.png' for i in range(7)]
  assert records[-1] == {'file': 'img/6.png', 'error': 'empty: it has no bytes'}
  assert 'holds 7 of 7' in run('--images=img', '--output=x.jsonl').err
  model = hierjax.load(finished_run)
  assert model.predict('img')[:5] == [r for r in records if 'error' not in r]
  probs = [model.probabilities('img', batch_size=n) for n in (None, 1, 3)]
  for p in probs[1:]:
    for level in p:
      np.testing.assert_allclose(p[level], probs[0][level], rtol=0, atol=2e-6)


def test_another_model_never_goes_on_with_a_file(folder, finished_run, exported, monkeypatch):
  """The artefact, a subset of classes, other weights and other views have other fingerprints."""
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)
  trained, loaded = hierjax.load(finished_run), runtime.load(exported)
  models = [
    trained,
    loaded,
    *(model.within([trained.taxonomy.names[0][0]]) for model in (trained, loaded)),
  ]
  models += [copy.copy(trained), copy.copy(trained)]
  models[-2].variables = jax.tree.map(lambda x: x + 1e-3, trained.variables)
  models[-1].c = copy.deepcopy(trained.c)
  models[-1].c.eval.tta = 2
  assert len({model.fingerprint() for model in models}) == len(models)
  assert hierjax.load(finished_run).fingerprint() == trained.fingerprint()
  assert runtime.load(exported).fingerprint() == loaded.fingerprint()
  opened('x.jsonl', trained.fingerprint()).write(record('img/0.png'))
  flags = [f'--artefact={exported}', '--images=img', '--output=x.jsonl']
  with pytest.raises(UserError, match='of another model'):
    predict.run(arguments.parse(['hierjax', 'predict', *flags]))


def test_shards_are_files_of_their_own_that_hold_each_image_once(folder, exported, capsys):
  """An image stays in its shard when others are added; a shard may be empty."""

  def run(i, *flags):
    flags = [f'--artefact={exported}', '--images=img', f'--shard={i}/3', *flags]
    predict.run(arguments.parse(['hierjax', 'predict', *flags]))
    return [json.loads(line)['file'] for line in capsys.readouterr().out.splitlines()]

  before = [run(i) for i in range(3)]
  assert sorted(itertools.chain(*before)) == [f'img/{i}.png' for i in range(7)]
  (folder / 'img/00.png').write_bytes(png())
  for i in range(3):
    run(i, '--output=x.csv')
    names = [row['file'] for row in read_table(folder / f'x.{i}-of-3.csv')]
    assert {*before[i]} == {*names} - {'img/00.png'} and len({*names}) == len(names)
  for risk, words in (('.1', 'the model is not calibrated'), ('x', 'must be a number')):
    with pytest.raises(UserError, match=words):
      run(0, f'--risk={risk}')
  for shard in ('3/3', '-1/3', '1', '0/0', 'a/b', '1/'):
    with pytest.raises(UserError, match='must be i/n'):
      predict.run(
        arguments.parse(
          ['hierjax', 'predict', f'--artefact={exported}', '--images=img', f'--shard={shard}']
        )
      )


def test_an_artefact_and_its_run_write_the_same_gains(
  folder, finished_run, exported, monkeypatch, capsys
):
  """By the same option; without it no record has them."""
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)

  def run(*flags):
    predict.run(arguments.parse(['hierjax', 'predict', '--images=img', *flags]))
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

  option, artefact = '--config.decide.label_gains=true', f'--artefact={exported}'
  expected, records = run(f'--workdir={finished_run}', option), run(artefact, option)
  plain, count = run(artefact), 0
  for a, b, c in zip(expected, records, plain, strict=True):
    assert a.get('gain') == pytest.approx(b.get('gain'), abs=1e-5)
    assert c == {key: value for key, value in b.items() if key != 'gain'}
    count += 'gain' in b
  assert count == 5 and max(records[0]['gain'].values()) > 0.1
  tags = TagTaxonomy.from_rows(['tag'], [['a'], ['b']])
  with pytest.raises(UserError, match=r'decide\.label_gains: is for exclusive levels'):
    decide.add_label_gains([{}], {}, tags)


def test_an_artefact_takes_no_option_that_it_would_ignore(exported):
  for option in ('eval.tta=2', 'data.size=64', 'decide.novelty=.05'):
    flags = [f'--artefact={exported}', '--images=img', f'--config.{option}']
    with pytest.raises(
      UserError, match=r'takes its model from .* only --config\.data\.file_column'
    ):
      predict.run(arguments.parse(['hierjax', 'predict', *flags]))


def test_what_evaluation_has_fitted_is_no_option_of_predict(finished_run):
  """It would change nothing without a word."""
  flags = [f'--workdir={finished_run}', '--images=img', '--config.decide.risk=.1']
  with pytest.raises(UserError, match=r'config\.decide\.risk: .* only .*decide\.novelty'):
    predict.run(arguments.parse(['hierjax', 'predict', *flags]))


def test_compiled_programs_are_cached_unless_the_caller_has_a_folder_for_them(
  tmp_path, monkeypatch
):
  """`hierjax.load` calls it as the commands do."""
  folder = jax.config.jax_compilation_cache_dir
  parallel.use_compilation_cache()
  assert jax.config.jax_compilation_cache_dir == folder
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  try:
    jax.config.update('jax_compilation_cache_dir', None)
    with pytest.raises(UserError, match='not a run'):
      hierjax.load(tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'hierjax' / 'jax')
  finally:
    jax.config.update('jax_compilation_cache_dir', folder)
