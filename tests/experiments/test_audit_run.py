"""The audit of a data set from the command line's function to its files."""

import csv

import numpy as np
import pytest
import tiny

from hierjax import model
from hierjax.core import config
from hierjax.core.errors import UserError
from hierjax.data import sources, split_record
from hierjax.decide.audit import fit_levels, temper_levels
from hierjax.experiments import audit, probe_features, probe_grid


@pytest.fixture
def planted(monkeypatch, tiny_backbone, one_device):
  """Features that name the class, but for three images whose labels were replaced, and a pair."""
  data = sources.load(tiny.run_config().data)
  truth = {name: split.labels[:, -1].copy() for name, split in data.splits.items()}

  def compute(run, examples, views, folder, progress):
    rng = np.random.default_rng(len(truth[examples.name]))
    y = truth[examples.name]
    x = 6 * np.eye(run.taxonomy.num_classes('model'))[y] + rng.normal(size=(len(y), 1))
    x = np.concatenate([x, rng.normal(size=(len(y), 6))], 1).astype(np.float32)
    if examples.name == 'train':
      # three images get a class of another make, and one image stands twice
      paths = run.taxonomy.paths
      for i in range(3):
        others = np.flatnonzero(paths[:, 0] != paths[y[i], 0])
        examples.labels[i] = paths[others[i]]
      x[5] = x[4]
    return probe_features.Features(x[:, None], np.arange(len(y)), [], len(y))

  c = tiny.run_config()
  config.assign(c, 'probe.folds', '2')

  def search(grid, progress):
    recipe = probe_grid.recipes(c, data.taxonomy)['parallel'][0]
    return [probe_grid.Setting(recipe, 0.001, None, None)]

  monkeypatch.setattr(probe_features, 'compute', compute)
  # the search itself has its tests, and takes seconds
  monkeypatch.setattr(probe_grid.Grid, 'search', search)
  return c


def test_planted_labels_come_first(planted, tmp_path):
  result = audit.audit_labels(planted, tmp_path / 'audit', lambda line: None)
  assert result['images'] == 136
  with (tmp_path / 'audit' / 'audit.csv').open() as f:
    rows = list(csv.DictReader(f))
  assert len(rows) == 136
  files = sources.load(planted.data).splits['train'].files
  levels = {row['file']: row['level'] for row in rows[:4]}
  # the picture of image 5 is that of image 4, but its label is not
  assert levels == {files[0]: 'make', files[1]: 'make', files[2]: 'make', files[5]: 'type'}
  assert float(rows[0]['prob_label']) < 0.01 < 0.9 < float(rows[0]['prob_proposed'])
  with (tmp_path / 'audit' / 'duplicates.csv').open() as f:
    pairs = list(csv.DictReader(f))
  assert {files[4], files[5]} in [{p['file'], p['other']} for p in pairs]
  assert result['duplicates'] == len(pairs)
  text = (tmp_path / 'audit' / 'audit.html').read_text()
  assert text.count('data:image/jpeg') > 60 and 'nearly the same' in text


def test_networks_judge_images_that_they_have_not_seen(
  tiny_backbone, one_device, no_report, tmp_path
):
  """Each image has the probability of its label by the network of its fold, and trains the others.

  The audit goes on from the networks that an interrupted one has left.
  """
  c, folder = tiny.run_config(), tmp_path / 'audit'
  config.assign(c, 'probe.folds', '2')
  result = audit.audit_labels(c, folder, lambda line: None, trained=True)
  rows = {row['file']: row for row in csv.DictReader((folder / 'audit.csv').open())}
  assert result['images'] == len(rows) == 136
  data = sources.load(c.data)
  labels = {f: y for s in data.splits.values() for f, y in zip(s.files, s.labels.tolist())}
  readers = {f: (s, i) for s in data.splits.values() for i, f in enumerate(s.files)}
  order, posterior = [], []
  for k in range(2):
    network = model.load(folder / f'fold{k}')
    record = split_record.read(folder / f'fold{k}').splits
    others = sorted(file for file in rows if record[file] != 'train')
    assert {record[file] for file in others} == {'val'} and len(others) == 68
    images = [readers[file][0].reader(readers[file][1]) for file in others]
    joint = network.decide(network.probabilities(images))['exclusive']['joint']
    order += others
    posterior.append(joint.prob[-1])
  assert sorted(order) == sorted(rows)
  y, table = np.array([labels[file][-1] for file in order]), data.taxonomy
  posterior = np.concatenate(posterior)
  inverses = fit_levels(posterior, y, table)
  prob = temper_levels(posterior, inverses, table)
  for file, leaf, p in zip(order, y, prob):
    assert rows[file]['label'] == table.names[-1][leaf]
    assert float(rows[file]['prob_label']) == pytest.approx(p[leaf], abs=2e-3)
  before = (folder / 'audit.csv').read_text()
  audit.audit_labels(c, folder, lambda line: None, trained=True)
  assert (folder / 'audit.csv').read_text() == before


def test_tags_have_no_audit(planted, tmp_path):
  planted.data.multi = ('model',)
  with pytest.raises(UserError):
    audit.audit_labels(planted, tmp_path, lambda line: None)
