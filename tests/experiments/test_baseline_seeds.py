"""baseline_seeds: further seeds of a run and of its baseline, and the report over all of them."""

import json

import pytest
import tiny

from hierjax import model
from hierjax.core import config
from hierjax.experiments import fit
from hierjax.report import runs


def test_further_seeds_are_runs_with_baselines_that_the_report_takes_together(
  tmp_path, monkeypatch
):
  tiny.register(monkeypatch)
  tiny.use_one_device(monkeypatch)
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


@pytest.mark.parametrize('baseline', [None, 'some/run'])
def test_seeds_need_a_baseline_to_train(baseline):
  c = config.default()
  c.baseline, c.baseline_seeds = baseline, 2
  with pytest.raises(config.UserError, match='baseline_seeds=2: is for'):
    fit._check_baseline(c)
