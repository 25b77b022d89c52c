"""compare: paired figures of runs and folders of seeds, classes won and lost, refusals."""

import json

import numpy as np
import pytest

from hierjax.cli import program
from hierjax.core.errors import UserError
from hierjax.core.metrics import signed
from hierjax.evaluate import bootstrap
from hierjax.report import comparison
from tests.report.test_report import make_run, make_taxonomy, predictions_of


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp('compared')
  for seed in range(2):
    make_run(root / 'plain' / f'seed{seed}', ('model',), skill=2.0, n=200, seed=seed, steps=24)
    make_run(root / 'heads' / f'seed{seed}', skill=2.6, n=200, seed=10 + seed, steps=24)
  return root


def paths_of(folders):
  return [str(folders / name) for name in ('plain', 'heads')]


def right(path):
  arrays = predictions_of(path)
  return (arrays['pred_joint'] == arrays['labels']).all(1).astype(float), arrays


def test_figures_are_those_of_the_predictions(folders, capsys):
  code = program.run(['hierjax', 'compare', *paths_of(folders), f'--workdir={folders}/out'])
  assert code == 0
  contents = json.loads((folders / 'out' / 'compare.json').read_text())
  values = {
    name: [right(folders / name / f'seed{s}')[0] for s in range(2)] for name in ('plain', 'heads')
  }
  row = contents['metrics']['heads']['fpa']
  assert row['value'] == pytest.approx(np.mean(values['heads']))
  assert row['baseline'] == pytest.approx(np.mean(values['plain']))
  expected = bootstrap.difference(values['heads'], values['plain'])
  assert row['interval'] == json.loads(json.dumps(expected._asdict()))
  out = capsys.readouterr().out
  word = 'better than' if expected.low > 0 else 'not clearly different from'
  assert f'heads is {word} plain: whole path' in out and 'compare.html' in out
  assert f'difference {signed(expected.mean)} points ({signed(expected.low)} to ' in out
  assert set(contents['options']) == {'loss.smoothing', 'model.levels'}
  text = (folders / 'out' / 'compare.html').read_text()
  assert 'loss.smoothing' in text and '<script' not in text


def test_classes_count_the_images_of_every_seed(folders):
  numbers = comparison.compare(paths_of(folders))
  names = make_taxonomy().names[-1]
  arrays = predictions_of(folders / 'heads' / 'seed1')
  labels = arrays['labels'][:, -1]
  for c in numbers['classes']:
    rows = labels == names.index(c['class'])
    assert c['images'] == rows.sum()
    shares = []
    for seed in range(2):
      pred = predictions_of(folders / 'heads' / f'seed{seed}')['pred_joint'][:, -1]
      shares.append((pred == labels)[rows].mean())
    assert c['right']['heads'] == pytest.approx(np.mean(shares))
  won = [c['won'] for c in numbers['changes']['heads']]
  assert won == sorted(won, reverse=True) and 0 not in won
  lines = [dict(zip(comparison.HEADER, line)) for line in comparison._lines(numbers)]
  total = sum(float(line['difference']) * int(line['images']) for line in lines if line['class'])
  top1 = next(line for line in lines if line['metric'] == 'top1/model')
  assert total / 200 == pytest.approx(float(top1['difference']))


def test_only_images_in_common_are_compared(folders, tmp_path):
  make_run(tmp_path / 'part', n=150, seed=3, steps=24)
  ours, arrays = right(folders / 'heads' / 'seed0')
  single = str(folders / 'heads' / 'seed0')
  path = tmp_path / 'part' / 'predictions_val.npz'
  part = dict(np.load(path))
  # other rows in another order, with labels that agree
  rows = np.random.default_rng(0).permutation(200)[:150]
  np.savez(path, **part | {'files': arrays['files'][rows], 'labels': arrays['labels'][rows]})
  numbers = comparison.compare([single, str(tmp_path / 'part')])
  assert (numbers['images'], numbers['all_images']) == (150, 200)
  assert numbers['metrics']['part']['fpa'].baseline == pytest.approx(ours[rows].mean())
  second = (part['pred_joint'] == arrays['labels'][rows]).all(1).mean()
  assert numbers['metrics']['part']['fpa'].value == pytest.approx(second)


def test_what_cannot_be_compared_is_refused(folders, tmp_path):
  single = str(folders / 'heads' / 'seed0')
  with pytest.raises(UserError, match='is named twice'):
    comparison.compare([single, f'{single}/'])
  with pytest.raises(UserError, match='neither a run'):
    comparison.compare([single, str(tmp_path)])
  with pytest.raises(UserError, match='no predictions on test; hierjax evaluate'):
    comparison.compare(paths_of(folders), 'test')
  make_run(tmp_path / 'other', taxonomy=make_taxonomy(evil='Heath 2'), n=50, steps=24)
  with pytest.raises(UserError, match='has another taxonomy than'):
    comparison.compare([single, str(tmp_path / 'other')])
  make_run(tmp_path / 'relabelled', n=200, steps=24)
  path = tmp_path / 'relabelled' / 'predictions_val.npz'
  arrays = dict(np.load(path))
  arrays['labels'] = np.roll(arrays['labels'], 1, 0)
  np.savez(path, **arrays)
  with pytest.raises(UserError, match='has other labels there than in'):
    comparison.compare([single, str(tmp_path / 'relabelled')])
  assert program.run(['hierjax', 'compare', single]) == 2
