"""Detection of new classes in an artefact, and answers at a risk, against those of its run."""

import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny

from hierjax import model, runtime
from hierjax.core import json_files
from hierjax.core.errors import UserError
from hierjax.export import artefact

FALSE_ALARMS, RISK = 0.2, 0.8


def loaded_run(folder: pathlib.Path, score: str = 'auto') -> model.Model:
  """The run in a folder, asked to detect new classes."""
  trained = model.load(folder)
  trained.c.decide.novelty, trained.c.decide.novelty_score = FALSE_ALARMS, score
  return trained


@pytest.fixture(scope='module')
def folders(finished_run, tmp_path_factory):
  """A run with a detector, and its artefact."""
  with pytest.MonkeyPatch.context() as patch:
    tiny.register(patch)
    tiny.use_devices(patch)
    parent = tmp_path_factory.mktemp('novelty')
    trained = loaded_run(shutil.copytree(finished_run, parent / 'run'))
    trained.c.decide.risk = RISK
    trained.evaluate('val')
    artefact.export(trained, parent / 'artefact', print)
    return parent / 'run', parent / 'artefact'


def test_it_calls_new_what_the_run_calls_new(folders, tiny_backbone, one_device):
  """On images of val, those that calibrated it among them, and on drawn ones."""
  run, exported = loaded_run(folders[0]), runtime.load(folders[1])
  assert exported.facts['novelty']['false_alarms'] == FALSE_ALARMS
  examples, rng = run.split('val'), np.random.default_rng(0)
  images = [examples.reader(i) for i in range(len(examples.labels))]
  images += [*rng.integers(0, 256, (30, 32, 32, 3), np.uint8)]
  kinds = set()
  for expected, record in zip(run.predict(images), exported.predict(images), strict=True):
    assert record['new'] == expected['new']
    assert record['answer']['kind'] == expected['answer']['kind']
    assert record['answer']['name'] == expected['answer']['name']
    for level, values in expected['novelty'].items():
      # the score and its threshold, which is raised a little
      assert record['novelty'][level] == pytest.approx(values, rel=1e-3, abs=1e-4)
    kinds.add(record['answer']['kind'])
  assert {'new', 'known'} <= kinds


def test_the_graph_answers_as_deep_as_the_run(folders, tiny_backbone, one_device, tmp_path):
  """Also at the other risks that it was calibrated for; the example shows no more."""
  from PIL import Image

  run, exported = loaded_run(folders[0]), runtime.load(folders[1])
  examples = run.split('val')
  images = [examples.reader(i) for i in range(len(examples.labels))]
  outputs = exported.run(exported.view.batch([('', x) for x in images], len(images)).pixels)
  probs, depths = run.probabilities(images), {}
  for risk in run.rules['answer'].risks:
    depths[risk] = run.at_risk(risk).decide(probs)['answer'].depth
    np.testing.assert_array_equal(outputs[f'answer/{risk:g}'], depths[risk])
  assert len(depths) > 1
  np.testing.assert_array_equal(outputs['answer'], depths[RISK])
  assert len(np.unique(depths[RISK])) > 1
  for i in (depths[RISK].argmin(), depths[RISK].argmax()):
    path = tmp_path / f'{i}.png'
    Image.fromarray(examples.reader(int(i))).save(path)
    command = [sys.executable, str(folders[1] / 'example.py'), str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) == 1 + depths[RISK][i]


def test_other_answers_are_not_written(folders, tiny_backbone, one_device, tmp_path, monkeypatch):
  """A detector that was damaged on its way calls other images new."""
  monkeypatch.setattr(artefact, '_with_raised_thresholds', _lowered)
  with pytest.raises(UserError, match=r'images are of a new class in one alone'):
    artefact.export(loaded_run(folders[0]), tmp_path / 'artefact', print)
  assert not [*tmp_path.iterdir()]


def _lowered(detector):
  for part in (detector.reference, detector.finer):
    part.update({key: scores - 1e6 for key, scores in part.items()})
  return detector


@pytest.mark.parametrize(
  ('score', 'extras', 'message'),
  [
    ('energy', artefact.Extras(), r'novelty_score: energy is computed from logits'),
    ('auto', artefact.Extras(int8=5.0), r'--int8: new classes are detected in the features'),
    ('cosine', artefact.Extras(), r'novelty\.npz: is of step \d+ and score auto, not of'),
  ],
)
def test_what_cannot_be_detected_is_refused(
  folders, tiny_backbone, one_device, tmp_path, score, extras, message
):
  """In one line, and nothing is left."""
  run = shutil.copytree(folders[0], tmp_path / 'run')
  trained = loaded_run(run, score)
  if score == 'energy':
    trained.evaluate('val')
  with pytest.raises(UserError, match=message):
    artefact.export(trained, tmp_path / 'artefact', print, extras)
  assert [path.name for path in tmp_path.iterdir()] == ['run']


@pytest.mark.parametrize('share', [0, 1, 'x', None])
def test_a_share_that_is_none_is_refused(folders, tmp_path, share):
  """Edited papers, with a manifest that fits them."""
  copy = pathlib.Path(shutil.copytree(folders[1], tmp_path / 'copy'))
  facts = json_files.read_object(copy / 'hierjax.json')
  facts['novelty']['false_alarms'] = share
  artefact._seal(copy, facts)
  with pytest.raises(UserError, match=r'hierjax\.json: is damaged'):
    runtime.load(copy)
