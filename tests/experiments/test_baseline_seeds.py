"""baseline_seeds: further seeds of a run and of its baseline, and the report over all of them."""

import json

import numpy as np
import pytest
import tiny

from hierjax import model
from hierjax.core import config
from hierjax.experiments import fit
from hierjax.report import runs
from hierjax.train import setup


def test_further_seeds_are_runs_with_baselines_that_the_report_takes_together(
  tmp_path, monkeypatch
):
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)
  c = tiny.run_config(
    **{'baseline': 'train', 'baseline_seeds': 2, 'seed': 4, 'train.steps': 2, 'train.eval_steps': 2}
  )
  c.log.tensorboard = False
  fit.fit(c, tmp_path / 'run')
  configs = {}
  for name in ('.', 'baseline', 'seed5', 'seed5/baseline'):
    configs[name] = model.run_config(tmp_path / 'run' / name)
    assert json.loads((tmp_path / 'run' / name / 'run.json').read_text())['finished'], name
  assert [configs[name].seed for name in configs] == [4, 4, 5, 5]
  changes = config.differences(configs['.'], configs['seed5'])
  assert sorted(change.split(':')[0] for change in changes) == ['baseline_seeds', 'seed']
  assert not list((tmp_path / 'run' / 'seed5').glob('seed*'))
  assert [configs[name].model.heads for name in configs] == ['parallel', 'flat'] * 2
  assert [run.path.name for run in runs.read(tmp_path / 'run').seeds] == ['seed5']
  assert 'means over 2 seeds of each' in (tmp_path / 'run' / 'report.html').read_text()


def test_the_baseline_of_a_run_with_seeds_has_none():
  c = config.default()
  c.baseline, c.baseline_seeds = 'train', 5
  assert fit.baseline_config(c).baseline_seeds == 1
  assert fit.baseline_config(c).baseline is None


def _baseline_of(**changes):
  """The run of these options and the config of its baseline, built but not trained."""
  c = tiny.run_config(baseline='train', **changes)
  run = setup.build(c)
  return run, fit._with_full_batches(fit.baseline_config(run.c), run)


def test_the_baseline_leaves_out_what_one_head_cannot_learn_from_and_takes_as_many_steps(
  monkeypatch,
):
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)
  run, base = _baseline_of(
    **{'data.unlabelled': 0.5, 'train.steps': None, 'train.epochs': 5.0, 'optim.warmup_epochs': 1.0}
  )
  built = setup.build(base)
  is_labelled = run.train.labels[:, -1] >= 0
  assert 0 < is_labelled.sum() < len(is_labelled)
  assert [built.train.files[i] for i in range(len(built.train.files))] == [
    run.train.files[i] for i in np.flatnonzero(is_labelled)
  ]
  assert (built.train.labels[:, -1] >= 0).all()
  assert (built.total_steps, built.eval_steps) == (run.total_steps, run.eval_steps) == (30, 6)
  assert base.optim.warmup_steps == 6 and base.optim.warmup_epochs is None
  rates = [float(s.task.schedule(step)) for s in (run, built) for step in (0, 3, 29)]
  assert rates[:3] == rates[3:]


@pytest.mark.parametrize('changes', [{}, {'data.unlabelled': 0.5, 'data.partial': 'drop'}])
def test_the_baseline_of_labelled_images_trains_like_its_run(changes, monkeypatch):
  tiny.register(monkeypatch)
  tiny.use_devices(monkeypatch)
  run, base = _baseline_of(**changes)
  assert not config.differences(fit.baseline_config(run.c), base)


@pytest.mark.parametrize('baseline', [None, 'some/run'])
def test_seeds_need_a_baseline_to_train(baseline, tmp_path, tiny_backbone, one_device):
  c = tiny.run_config(baseline=baseline, baseline_seeds=2)
  with pytest.raises(config.UserError, match='baseline_seeds=2: is for'):
    fit.fit(c, tmp_path / 'run')
