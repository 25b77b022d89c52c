"""Exported runs answer as the run does, and nothing else can be loaded as one."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from hierjax import model, runtime
from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.data import transforms
from hierjax.decide.backoff import Backoff
from hierjax.decide.decisions import AnswerRules
from hierjax.decide.sets import SetRule
from hierjax.export import artefact, papers

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGES = [
  np.full((40, 50, 3), 90, np.uint8),
  np.arange(30 * 20 * 3, dtype=np.uint8).reshape(30, 20, 3),
]


@pytest.fixture
def copied(exported, tmp_path) -> pathlib.Path:
  """A copy of the artefact that a test may change."""
  return pathlib.Path(shutil.copytree(exported, tmp_path / 'artefact'))


def test_it_answers_as_the_run_does(exported, finished_run, tiny_backbone, one_device):
  """The same records, with batches of 1, 3 and 64, and an unreadable image among them."""
  trained, loaded = model.load(finished_run), runtime.load(exported)
  images = [*IMAGES, b'no image'] * 22
  expected = trained.predict(images[:66])
  for size in (1, 3, 64):
    records = loaded.predict(images[:66], batch_size=size)
    assert [r.get('path') for r in records] == [r.get('path') for r in expected]
    assert records[2] == expected[2] == {'file': 'image 2', 'error': 'not an image'}
  assert loaded.predict([b'x']) == trained.predict([b'x']) and loaded.predict([]) == []
  for level, p in trained.probabilities(images[:3]).items():
    np.testing.assert_allclose(loaded.probabilities(images[:3])[level], p, atol=1e-6)
  facts = json.loads((exported / 'hierjax.json').read_text())
  assert facts['verified']['largest_difference'] < 1e-4 and facts['verified']['val'] == 40


def test_stablehlo_answers_as_well(exported):
  """Its batch size is symbolic."""
  program = jax.export.deserialize(bytearray((exported / 'model.stablehlo').read_bytes()))
  loaded = runtime.load(exported)
  for n in (1, 3):
    images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)
    probs, features = program.call(images)
    outputs = loaded.run(images)
    np.testing.assert_allclose(features, outputs['features'], atol=1e-5)
    for level, p in probs.items():
      np.testing.assert_allclose(p, outputs[f'probability/{level}'], atol=1e-5)


WITHOUT = """
import sys
class Refuse:
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in {names}:
      raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import json
import numpy as np
from hierjax import runtime
image = np.full((40, 50, 3), 90, np.uint8)
print(json.dumps(runtime.load(sys.argv[1]).predict(image)))
"""
TRAINING = ('jax', 'jaxlib', 'flax', 'optax', 'orbax', 'grain', 'ml_collections', 'absl', 'scipy')


def test_the_runtime_needs_no_package_of_training(exported):
  """NumPy, onnxruntime and the decoders are what it imports."""
  command = [sys.executable, '-c', WITHOUT.format(names=TRAINING), str(exported)]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr
  assert json.loads(result.stdout) == runtime.load(exported).predict(IMAGES[0])


def test_the_command_needs_no_jax(exported, tmp_path):
  """hierjax predict --artefact, with --classes; it reads options by absl and ml_collections."""
  from PIL import Image

  Image.fromarray(IMAGES[1]).save(tmp_path / 'x.png')
  loaded = runtime.load(exported)
  (tmp_path / 'classes.txt').write_text('\n'.join(loaded.taxonomy.names[-1][:3]))
  head = WITHOUT.format(names=[n for n in TRAINING if n not in ('absl', 'ml_collections')])
  code = head.partition('import json')[0] + 'from hierjax import cli\ncli.main(sys.argv)'
  flags = [f'--artefact={exported}', f'--images={tmp_path / "x.png"}', '--classes=classes.txt']
  command = [sys.executable, '-c', code, 'predict', *flags]
  env = {**os.environ, 'PYTHONPATH': str(ROOT)}
  result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  (record,) = loaded.within(loaded.taxonomy.names[-1][:3]).predict(tmp_path / 'x.png')
  assert json.loads(result.stdout) == record and 'outside' in record


def test_the_example_predicts(exported, tmp_path):
  """It stands alone in the artefact."""
  from PIL import Image

  Image.fromarray(IMAGES[0]).save(tmp_path / 'x.png')
  command = [sys.executable, str(exported / 'example.py'), str(tmp_path / 'x.png')]
  result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr
  (record,) = runtime.load(exported).predict(IMAGES[0])
  for level, name in record['path'].items():
    assert f'{level}: {name}' in result.stdout


@pytest.mark.parametrize('mode', transforms.RESIZE)
@pytest.mark.parametrize(('share', 'how'), [(None, None), (0.875, 'bicubic'), (0.7, None)])
def test_the_example_reads_images_as_the_runtime_does(tmp_path, mode, share, how):
  """Views, crop share, filter; large and small pictures, but for rounding and Pillow's ways."""
  from PIL import Image

  names = {'__name__': 'example', '__file__': str(tmp_path / 'example.py')}
  exec(papers.example(), names)
  facts = {'size': 32, 'resize': mode, 'tta': 5, 'crop_share': share, 'interpolation': how}
  for shape in ((90, 120), (20, 28)):
    small = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    image = np.array(Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC))
    Image.fromarray(image).save(tmp_path / 'x.png')
    x = names['load'](tmp_path / 'x.png', facts).astype(int)
    expected = transforms.views(image, 32, 5, transforms.Resize(mode, share or 1.0, how))
    assert x.shape == expected.shape and np.abs(x - expected).mean() < 3
  assert len(papers.example().splitlines()) <= 60


def test_the_card_names_the_licences(exported):
  assert 'of the data:\nof the drawings: CC0.' in (exported / 'README.md').read_text()
  assert runtime.load(exported).facts['licence'] == {
    'weights': None,
    'data': 'of the drawings: CC0',
  }
  for pretrained, backbone, licence in (
    ('package', 'efficientnet_lite0', papers.PACKAGE_LICENCE),
    ('hf:timm/vit_small_patch14_dinov2.lvd142m', 'vit_small_patch14_dinov2', 'mostly Apache 2.0'),
    ('hf:timm/convnextv2_tiny.fcmae', 'convnextv2_tiny', 'CC BY-NC 4.0'),
    ('mine.safetensors', 'convnextv2_tiny', None),
  ):
    m = config.default().model
    m.pretrained, m.backbone = pretrained, backbone
    assert papers._weights_licence(m) == licence


def test_the_card_names_the_risks_it_is_calibrated_for(exported):
  facts = json.loads((exported / 'hierjax.json').read_text())
  sizes = {'model.onnx': 10**6}
  assert 'at_risk' not in papers.card(facts, sizes)
  rule = {'split': 'calibration', 'examples': 400, 'backoff': {'risk': 0.05}}
  facts['decision']['answer'] = rule | {'others': [{'risk': 0.1}, {'risk': 0.02}]}
  text = papers.card(facts, sizes)
  assert '400 images of `calibration` for r =\n0.02, 0.05, 0.1, for' in text
  facts['decision']['answer'] = {'backoff': None, 'others': []}
  assert 'at_risk' not in papers.card(facts, sizes)


def damage(path: pathlib.Path) -> None:
  """Change one byte in the middle of a file."""
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize(
  'name', ['model.onnx', 'taxonomy.csv', 'hierjax.json', 'decode.json', 'README.md']
)
def test_a_damaged_file_is_refused(copied, name):
  """Each file of the manifest, one byte changed."""
  damage(copied / name)
  with pytest.raises(UserError, match=f'{name}: is damaged: its sha256'):
    runtime.load(copied)


def reseal(folder: pathlib.Path) -> None:
  """Make the manifest fit changed files."""
  artefact._seal(folder, json.loads((folder / 'hierjax.json').read_text()))


def test_another_taxonomy_is_refused(copied):
  """Two rows in another order, with a manifest that fits; also where hierjax.json says its hash."""
  path = copied / 'taxonomy.csv'
  head, first, second, *others = path.read_text().splitlines()
  path.write_text('\n'.join([head, second, first, *others]) + '\n')
  reseal(copied)
  with pytest.raises(UserError, match='classes are others or in another order'):
    runtime.load(copied)
  facts = json.loads((copied / 'hierjax.json').read_text())
  facts['taxonomy']['hash'] = runtime.read_taxonomy(path).hash()
  artefact._seal(copied, facts)
  with pytest.raises(UserError, match='classes are others or in another order'):
    runtime.load(copied)


@pytest.mark.parametrize(
  ('name', 'change'),
  [
    ('preprocessing', {'size': 64}),
    ('preprocessing', {'size': 10**9}),
    ('preprocessing', {'tta': 3}),
    ('preprocessing', {'resize': 'no'}),
    ('preprocessing', {'max_pixels': '1'}),
    ('preprocessing', {'deep_range': [1]}),
    ('taxonomy', {'multi': ['model']}),
    ('taxonomy', {'multi': 1}),
  ],
)
def test_papers_that_do_not_fit_are_refused(copied, name, change):
  """In one line, whatever they say."""
  facts = json.loads((copied / 'hierjax.json').read_text())
  facts[name] |= change
  artefact._seal(copied, facts)
  with pytest.raises(UserError) as error:
    runtime.load(copied)
  assert '\n' not in str(error.value)


def test_what_is_no_artefact_is_refused(copied, tmp_path):
  """A folder without a manifest, a file that is missing, and a manifest that leads elsewhere."""
  with pytest.raises(UserError, match='no exported model'):
    runtime.load(tmp_path)
  manifest = json.loads((copied / 'manifest.json').read_text())
  manifest['files']['../x'] = '0'
  (copied / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(UserError, match='cannot be part of the name'):
    runtime.load(copied)
  del manifest['files']['../x'], manifest['files']['model.onnx']
  (copied / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(UserError, match='must list'):
    runtime.load(copied)


def test_a_difference_leaves_nothing(
  finished_run, tmp_path, monkeypatch, tiny_backbone, one_device
):
  """The folder appears only after the comparison."""
  trained = model.load(finished_run)
  graph = artefact.program.onnx_model(trained)
  monkeypatch.setattr(artefact.program, 'onnx_model', lambda *_: graph)
  monkeypatch.setattr(artefact.program, 'stablehlo', lambda trained: b'')
  trained.variables = jax.tree.map(lambda x: x * 1.1, trained.variables)
  with pytest.raises(UserError, match='differ from those of the run'):
    artefact.export(trained, tmp_path / 'new', print)
  assert not [*tmp_path.iterdir()]
  with pytest.raises(UserError, match='exists'):
    artefact.export(trained, tmp_path, print)


def test_thresholds_are_moved_off_validation_images():
  """Those of tags down, of answers and sets up: the image that set one stays on its side."""
  answer = AnswerRules('val', 3, Backoff(0.1, None, 'one', ((0.5, 0.0),), (), (3,)))
  rules = {'tags': {'sky': np.array([0.25, 0.5])}, 'answer': answer}
  moved = artefact._with_slack(rules)
  np.testing.assert_allclose(moved['tags']['sky'], [0.25 - 1e-5, 0.5 - 1e-5], rtol=0, atol=1e-12)
  assert moved['answer'].backoff.thresholds == ((0.5 + 1e-5, 0.0),)
  assert rules['tags']['sky'][1] == 0.5
  answer = answer._replace(others=(answer.backoff._replace(risk=0.2),))
  moved = artefact._with_slack({'answer': answer})['answer']
  assert moved.others[0].thresholds == ((0.5 + 1e-5, 0.0),) and [*moved.risks] == [0.1, 0.2]
  by_cost = AnswerRules('', 0, None, 'lca')
  assert artefact._with_slack({'answer': by_cost})['answer'] == by_cost
  sets = SetRule(0.1, 'lac', 0.75, 40, 'val')
  assert artefact._with_slack({'sets': sets})['sets'].limit == pytest.approx(0.75 + 1e-5, abs=1e-9)
