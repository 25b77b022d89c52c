"""The registry of metrics: places, directions and words; metrics that users add."""

import json
import math

import numpy as np
import pytest
import tiny

from hierjax import model
from hierjax.core import metrics
from hierjax.core.errors import UserError
from hierjax.decide.paths import PathDecision
from hierjax.evaluate.metrics import evaluate, of_predictions
from hierjax.experiments import fit
from hierjax.taxonomy import Taxonomy

EVALUATION = {
  'decode': {
    'independent': {
      'levels': {'make': {'top1': 0.7}, 'a/b': {'top1': 0.6}},
      'fpa': 0.5,
      'consistency': {'make-model': 0.9},
    },
    'joint': {'levels': {'make': {'top1': 0.8}}, 'fpa': 0.55},
  },
  'multi': {'tags': {'map_macro': 0.4, 'before': {'f1_macro': 0.3}, 'after': {'f1_micro': 0.2}}},
}


@pytest.fixture
def registry(monkeypatch):
  """A copy of the registry that the test may add to."""
  monkeypatch.setattr(metrics.METRICS, 'data', dict(metrics.METRICS.data))
  return metrics.METRICS


@pytest.mark.parametrize(
  'name, expected',
  [
    ('fpa', 0.5),
    ('joint:fpa', 0.55),
    ('joint_fpa', 0.55),
    ('top1/make', 0.7),
    ('independent:top1/make', 0.7),
    ('joint:top1/make', 0.8),
    ('top1/a/b', 0.6),
    ('consistency/make-model', 0.9),
    ('map/tags', 0.4),
    ('f1/tags', 0.3),
    ('tuned_micro_f1/tags', 0.2),
    ('top1/type', None),
    ('leaf:fpa', None),
    ('map/other', None),
    ('tuned_f1/tags', None),
    ('loss', None),
  ],
)
def test_lookup(name, expected):
  assert metrics.lookup(EVALUATION, name) == expected


def test_every_metric_of_exclusive_levels_is_in_an_evaluation():
  t = Taxonomy.from_rows(('make', 'model'), [['a', 'a1'], ['a', 'a2'], ['b', 'b1']])
  scores = tuple(np.eye(t.num_classes(level))[t.paths[:, k]] for k, level in enumerate(t.levels))
  decoded = PathDecision.make(scores, scores)
  # one mistake, so that there is a severity
  labels = np.where(np.arange(3)[:, None] == 1, t.paths[0], t.paths)
  decision = evaluate(decoded, labels, t)
  evaluation = {'decode': {'independent': decision, 'joint': decision}}
  words = {'path': '', 'level': '/make', 'pair': '/make-model'}
  for metric in metrics.of_kind('exclusive'):
    if metric.place:
      assert metrics.lookup(evaluation, metric.name + words[metric.scope]) is not None, metric.name


def test_directions():
  lower = {'loss', 'hvr', 'hvr_eq14', 'severity', 'ahd1', 'ahd5', 'ece'}
  assert {name for name in metrics.METRICS if metrics.METRICS[name].better < 0} == lower
  assert metrics.is_better('hvr', 0.1, 0.2) and not metrics.is_better('hvr', 0.2, 0.2)
  assert metrics.is_better('top1/make', 0.2, 0.1) and not metrics.is_better('top1/make', 0.1, 0.1)
  assert (metrics.worst('loss'), metrics.worst('fpa')) == (math.inf, -math.inf)
  for name in metrics.METRICS:
    assert metrics.is_better(name, 0.0, metrics.worst(name))


def test_text():
  fpa, severity = metrics.METRICS['fpa'], metrics.METRICS['severity']
  assert fpa.text(0.70149) == '70.1%' and severity.text(1.256) == '1.26'
  assert fpa.text(None) == fpa.text(math.nan) == fpa.signed(math.inf) == '–'
  assert (fpa.signed(0.0149), fpa.signed(-0.0149), fpa.signed(-1e-9)) == ('+1.5', '−1.5', '0.0')
  assert (severity.signed(0.5), severity.signed(-0.001)) == ('+0.50', '0.00')
  assert all(metrics.METRICS[name].help for name in metrics.METRICS)


def test_train_best():
  levels, heads, tags = ('make', 'type', 'model'), ('type', 'model'), ('scene', 'object')

  def best(text):
    return metrics.resolve_best(text, levels, heads, tags)

  assert best('top1/finest') == 'top1/model' and best('top1/coarsest') == 'top1/type'
  assert best('map/finest') == 'map/object' and best('micro_map/scene') == 'micro_map/scene'
  assert [best(text) for text in ('loss', 'fpa', 'hvr', 'joint_fpa')] == [
    *('loss', 'fpa', 'hvr', 'joint_fpa')
  ]
  assert metrics.resolve_best('top1/finest', (), (), tags) == 'map/object'
  for text in ('top1/make', 'severity', 'top1', 'fpa/make', 'accuracy', 'tuned_f1/scene'):
    with pytest.raises(UserError, match=r'train.best=.*choices: loss, top1/type, top1/model, fpa'):
      best(text)
  with pytest.raises(UserError, match='choices: loss, map/scene, map/object, micro_map/scene'):
    metrics.resolve_best('fpa', (), (), tags)


def wrong_root(predictions, labels, taxonomy):
  """A user's metric: whether the coarsest class is wrong, which is top-1 turned round."""
  return np.where(labels[:, 0] < 0, np.nan, predictions[:, 0] != labels[:, 0])


def right_and_common(predictions, labels, taxonomy):
  """A user's metric per level: whether the class is right."""
  assert predictions.shape == labels.shape == (len(labels), len(taxonomy.levels))
  return np.where(labels < 0, np.nan, predictions == labels)


def test_a_metric_of_the_user(registry, monkeypatch, tmp_path):
  metrics.register_metric(
    'wrong_root', wrong_root, label='wrong root', help='Wrong roots.', higher_is_better=False
  )
  metrics.register_metric('right', right_and_common, per_level=True)
  assert not metrics.is_better('wrong_root', 0.2, 0.1)
  tiny.register(monkeypatch)
  # jax's cache of compiled programs crashes on a donating step over eight CPU devices
  tiny.use_devices(monkeypatch)
  fit.fit(tiny.run_config(**{'train.best': 'wrong_root'}), tmp_path)
  evaluation = json.loads((tmp_path / 'eval_val.json').read_text())
  coarsest = model.load(tmp_path).taxonomy.levels[0]
  for decision in metrics.DECISIONS:
    top1 = metrics.lookup(evaluation, f'{decision}:top1/{coarsest}')
    assert metrics.lookup(evaluation, f'{decision}:wrong_root') == pytest.approx(1 - top1)
    assert metrics.lookup(evaluation, f'{decision}:right/{coarsest}') == top1
    intervals = evaluation['intervals'][decision]
    assert intervals['wrong_root']['low'] <= 1 - top1 <= intervals['wrong_root']['high']
    assert intervals[f'{coarsest}.right'] == intervals[f'{coarsest}.top1']
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  values = {line['step']: line['wrong_root'] for line in lines if line['kind'] == 'val'}
  expected = min(step for step in values if values[step] == min(values.values()))
  assert model.load(tmp_path).step == expected
  page = (tmp_path / 'report.html').read_text()
  assert 'wrong root' in page and 'Wrong roots.' in page


def test_names_that_a_metric_cannot_have(registry):
  for name in ('top1', 'fpa', 'loss', 'levels', 'n', 'wap', 'a/b', 'a:b', ''):
    with pytest.raises(UserError, match=f'metric {name!r}'):
      metrics.register_metric(name, wrong_root)


def test_a_function_that_returns_another_shape(registry):
  metrics.register_metric('mean', lambda predictions, labels, taxonomy: 0.5)
  t = Taxonomy.from_rows(('make',), [['a'], ['b']])
  with pytest.raises(UserError, match=r"metric 'mean': .* shape \(\) instead of \(2,\)"):
    of_predictions(t.paths, t.paths, t)
