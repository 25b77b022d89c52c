"""The temperature of the joint decision, against a grid and against posteriors that are known."""

import json

import numpy as np
import pytest

from hierjax.core.errors import UserError
from hierjax.decide import decisions, paths
from hierjax.evaluate import collect, metrics, rules, summary
from hierjax.taxonomy import Taxonomy

TREE = Taxonomy.from_rows(
  ('genus', 'species'), [[f'g{i // 4}', f'g{i // 4} s{i % 4}'] for i in range(12)]
)
GENUS = TREE.paths[:, 0]


def posterior(rng, truth, classes, skill):
  """The exact p(class | x) for x = skill * onehot + N(0, 1), all classes alike."""
  x = rng.normal(size=(len(truth), classes))
  x[np.arange(len(truth)), truth] += skill
  p = np.exp(skill * (x - x.max(1, keepdims=True)))
  return p / p.sum(1, keepdims=True)


def normalised(p):
  return p / p.sum(1, keepdims=True)


def sample(seed, n=4000):
  """Labels, and the exact posteriors of two independent looks: at the genus, at the species."""
  rng = np.random.default_rng(seed)
  species = rng.integers(12, size=n)
  genus = GENUS[species]
  look, close_look = posterior(rng, genus, 3, 1.2), posterior(rng, species, 12, 1.5)
  return TREE.paths[species], look, close_look


def ece(prob, labels):
  return metrics.ece(prob.max(1), prob.argmax(1), labels)


def test_against_a_grid_of_temperatures():
  labels, _, p = sample(0, 600)
  sharp = normalised(p**2.3)
  _, temperature, n, gain, *_ = paths.calibrate([None, sharp], labels, TREE, [0.0, 1.0])
  grid = np.geomspace(0.2, 10, 2000)
  truth = np.arange(600), labels[:, 1]
  loss = [-np.log(normalised(sharp ** (1 / t))[truth]).mean() for t in grid]
  assert n == 600 and gain == 0 and temperature == pytest.approx(grid[np.argmin(loss)], rel=3e-3)


def test_cross_fitting_against_a_loop():
  """The weights of a half are tuned on the other; the mean log-probabilities share one factor."""
  labels, look, close_look = sample(1, 301)
  labels[5:9, 1] = -1
  rows = np.flatnonzero(labels[:, 1] >= 0)
  scores = {}
  for half in (rows[::2], rows[1::2]):
    others = np.setdiff1d(rows, half)
    w = paths.tune([look[others], close_look[others]], labels[others], TREE)
    for i in half:
      logs = [
        w[0] * np.log(look[i, TREE.paths[c, 0]]) + w[1] * np.log(close_look[i, c])
        for c in range(12)
      ]
      scores[i] = np.array(logs) / sum(w)
  table, truth = np.stack([scores[i] for i in rows]), labels[rows, 1]
  true_scores = table[np.arange(len(rows)), truth]
  grid = np.geomspace(0.05, 20, 3000)
  loss = [(np.log(np.exp(b * table).sum(1)) - b * true_scores).sum() for b in grid]
  _, temperature, n, gain, error, _ = paths.calibrate([look, close_look], labels, TREE, [0.5, 1.0])
  assert n == 297 and temperature == pytest.approx(1.5 / grid[np.argmin(loss)], rel=4e-3)
  differences = [
    (scores[i].argmax() == labels[i, 1]) - float(close_look[i].argmax() == labels[i, 1])
    for i in rows
  ]
  assert gain == pytest.approx(np.mean(differences)) and gain > 0.02
  assert error == pytest.approx(np.std(differences, ddof=1) / 297**0.5)


def test_overconfident_heads_are_brought_back_to_the_posterior_that_is_known():
  labels, _, p = sample(2)
  genus = np.stack([p[:, g == GENUS].sum(1) for g in range(3)], 1)
  heads = [normalised(genus**3), normalised(p**3)]
  result = decisions.tune(dict(zip(TREE.levels, heads)), labels, TREE)['exclusive']
  weights = list(result.weights.values())
  new_labels, _, q = sample(3)
  genus = np.stack([q[:, g == GENUS].sum(1) for g in range(3)], 1)
  heads = [normalised(genus**3), normalised(q**3)]
  before, after = (paths.joint(heads, TREE, weights, t).prob[1] for t in (1.0, result.temperature))
  assert ece(q, new_labels[:, 1]) < 0.03
  assert ece(before, new_labels[:, 1]) > 0.15 and ece(after, new_labels[:, 1]) < 0.04
  if weights[0] == 0:
    np.testing.assert_allclose(after, q, atol=0.05)


def test_heads_that_know_different_things_are_not_made_less_sure():
  """Independent looks multiply: with weights of 1 the temperature is 1, not their sum."""
  labels, look, close_look = sample(4)
  result = decisions.tune({'genus': look, 'species': close_look}, labels, TREE)['exclusive']
  new_labels, look, close_look = sample(5)
  exact = normalised(close_look * look[:, GENUS])
  prob = paths.joint(
    [look, close_look], TREE, list(result.weights.values()), result.temperature
  ).prob[1]
  assert np.abs(prob - exact).mean() < 0.01
  assert ece(prob, new_labels[:, 1]) < ece(exact, new_labels[:, 1]) + 0.02
  # had they the weights 1 and 1, the sum would be right as it is
  rules_of_sum = paths.calibrate([look, close_look], new_labels, TREE, [1.0, 1.0])
  assert rules_of_sum.temperature == pytest.approx(1, abs=0.15)


def test_a_temperature_changes_no_decision():
  _, look, close_look = sample(6, 500)
  sharp, flat = (paths.joint([look, close_look], TREE, [0.7, 1], t) for t in (1.0, 2.5))
  assert (sharp.pred == flat.pred).all()
  for k in range(2):
    assert (sharp.scores[k] == flat.scores[k]).all()
    np.testing.assert_allclose(flat.prob[k].sum(1), 1)
    assert flat.prob[k].max(1).mean() < sharp.prob[k].max(1).mean()
  powers = normalised((close_look * look[:, GENUS] ** 0.7) ** (1 / 2.5))
  np.testing.assert_allclose(flat.prob[1], powers)


def test_few_examples_give_the_mean_of_the_heads():
  labels, look, close_look = sample(7, paths.MIN_EXAMPLES)
  assert paths.calibrate([look, close_look], labels, TREE, [0.3, 1]).examples == paths.MIN_EXAMPLES
  labels[0, 1] = -1
  assert paths.calibrate([look, close_look], labels, TREE, [0.3, 1]).temperature == 1.3
  right = np.eye(12)[labels[:, 1]]
  heads = {'genus': look, 'species': right}
  assert decisions.tune(heads, labels, TREE)['exclusive'].examples == 0


@pytest.mark.parametrize('share', [0.0, 1.0])
def test_all_right_and_all_wrong_stay_within_bounds(share):
  labels, look, _ = sample(8, 200)
  p = np.where(np.eye(12)[labels[:, 1]] == share, 0.6, 0.4 / 11)
  temperature = paths.calibrate([look, normalised(p)], labels, TREE, [0.0, 1.0]).temperature
  assert 1 / 20.1 < temperature < 20.1


# decode.json, and what is reported.


def test_rules_are_read_as_they_were_written(tmp_path):
  labels, look, close_look = sample(9, 400)
  tuned = decisions.tune({'genus': look, 'species': close_look}, labels, TREE)
  rules.write_rules(tmp_path / 'decode.json', 'val', tuned, TREE)
  assert rules.read_rules(tmp_path / 'decode.json', TREE) == tuned
  older = {'split': 'val', 'weights': {'genus': 0.5, 'species': 1.0}}
  (tmp_path / 'decode.json').write_text(json.dumps(older))
  read = rules.read_rules(tmp_path / 'decode.json', TREE)['exclusive']
  assert read == paths.PathRules({'genus': 0.5, 'species': 1.0}, 1.0, 0)
  assert rules.read_rules(tmp_path / 'none.json', TREE)['exclusive'].temperature == 1


REFUSED = {
  '{"weights": {"genus": 0, "species": 0}}': 'not genus 0, species 0',
  '{"weights": {"genus": -0.5, "species": 1}}': 'weights must be 0 or more',
  '{"weights": {"genus": NaN, "species": 1}}': 'is damaged',
  '{"weights": {"genus": 1e999, "species": 1}}': 'is damaged',
  '{"weights": {"genus": "much", "species": 1}}': "weights of genus must be a number, not 'much'",
  '{"weights": {"genus": true, "species": 1}}': 'weights of genus must be a number, not True',
  '{"weights": {"species": 1}}': 'weights must have a number for each of genus, species',
  '{"weights": {"genus": 1, "species": 1, "x": 1}}': 'genus, species, and no others',
  '{"weights": [1, 1]}': 'weights must have a number for each of genus, species',
  '{"split": "val"}': 'weights must have a number for each of genus, species',
  '{"weights": {"genus": 1, "species": 1}, "temperature": 0}': 'temperature must be a number above',
  '{"weights": {"genus": 1, "species": 1}, "temperature": null}': 'temperature must be a number',
  '[1, 1]': 'not a JSON object',
}


@pytest.mark.parametrize('text', REFUSED)
def test_rules_that_decide_nothing_are_refused_in_one_line(tmp_path, text):
  path = tmp_path / 'decode.json'
  path.write_text(text)
  with pytest.raises(UserError, match='without this file every head weighs 1') as e:
    rules.read_rules(path, TREE)
  assert str(e.value).startswith(f'{path}: ') and REFUSED[text] in str(e.value)
  assert '\n' not in str(e.value)


def test_a_weight_on_a_level_without_a_head_is_none(tmp_path):
  (tmp_path / 'decode.json').write_text('{"weights": {"genus": 1, "species": 0}}')
  assert rules.read_rules(tmp_path / 'decode.json', TREE, ['genus', 'species'])
  with pytest.raises(UserError, match='above 0 for one of the heads'):
    rules.read_rules(tmp_path / 'decode.json', TREE, ['species'])


def test_an_evaluation_holds_the_errors_before_and_after():
  labels, look, close_look = sample(10, 900)
  probs = {'genus': normalised(look**3), 'species': normalised(close_look**3)}
  outputs = collect.Outputs(probs, None, labels, np.arange(900), [])
  tuned = decisions.tune(probs, labels, TREE)
  decided = decisions.decide(probs, TREE, tuned)
  result = summary.summarize('val', outputs, decided, TREE, tuned, 1)
  calibration = result['calibration']
  assert calibration['temperature'] == tuned['exclusive'].temperature > 1.5
  assert calibration['examples'] == 900 and result['weights'] == tuned['exclusive'].weights
  plain = paths.joint(list(probs.values()), TREE, list(tuned['exclusive'].weights.values()))
  for k, level in enumerate(TREE.levels):
    before, after = calibration['ece_before'][level], result['decode']['joint']['levels'][level]
    assert before == metrics.ece(plain.confidence[:, k], plain.pred[:, k], labels[:, k])
    assert after['ece'] < before / 2
  assert summary.describe_calibration(result).endswith('(fitted on 900 images)')
  gain, error = calibration['gain'], calibration['gain_error']
  assert gain > 2 * error > 0
  described = (
    f'full path {100 * gain:+.1f} ± {100 * error:.1f} points against the finest head alone'
  )
  assert described in summary.describe_weights(result)
  assert 'within chance' not in summary.describe_weights(result)
  result['calibration'] |= {'gain': error, 'gain_error': error}
  assert summary.describe_weights(result).endswith(', within chance')
  result['calibration']['gain'] = None
  weights = tuned['exclusive'].weights
  assert summary.describe_weights(result) == f'weights genus {weights["genus"]:.3g}, species 1'
