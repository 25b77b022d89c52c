"""The difference of two methods over images and seeds: false verdicts, power, and closed forms."""

import numpy as np
import pytest
from scipy import stats

from hierjax.evaluate import bootstrap

# 70 % of the images are certain: right or wrong in every run, so that they only scale the others.
# Of the others some are as hard for both methods, some easier for one; by symmetry the methods are
# equally good. Runs of one seed deviate in how they do on all of these.
UNCERTAIN = 0.3
CHANCES = np.array([(0.6, 0.6), (0.85, 0.45), (0.45, 0.85)])


def draw(rng, n, seeds, deviation, gain=0.0):
  """What the uncertain ones of n images add to the accuracy of both methods: [seed, example]."""
  chances = CHANCES[rng.choice(3, size=int(n * UNCERTAIN), p=(0.46, 0.27, 0.27))].T
  results = []
  for chance, better in zip(chances, (gain, 0.0)):
    luck = (better + deviation * rng.normal(size=(seeds, 1))) / UNCERTAIN
    results.append(UNCERTAIN * (rng.random((seeds, len(chance))) < chance + luck))
  return results


def normal_interval(a, b):
  """What the bootstrap over images tends to, at a fraction of its cost."""
  per_image = b.mean(0) - a.mean(0)
  half = 1.96 * per_image.std() / np.sqrt(len(per_image))
  return per_image.mean() - half, per_image.mean() + half


def verdicts(n, seeds, deviation, gain=0.0, times=800):
  """Share of comparisons that are decided for the first method, and for the second."""
  rng = np.random.default_rng(seeds)
  signs = []
  for _ in range(times):
    difference = bootstrap.difference(*draw(rng, n, seeds, deviation, gain))
    signs.append(np.sign(difference.mean) * difference.is_clear)
  return np.mean(np.equal(signs, 1)), np.mean(np.equal(signs, -1))


@pytest.mark.parametrize('seeds', [1, 2, 3, 5])
@pytest.mark.parametrize('n', [1647, 8041])
def test_at_most_five_percent_of_equally_good_methods_are_told_apart(monkeypatch, n, seeds):
  monkeypatch.setattr(bootstrap, 'paired_difference', normal_interval)
  for deviation in (0.0, 0.008, 0.015):
    assert sum(verdicts(n, seeds, deviation)) <= 0.05, deviation


def test_the_images_alone_would_mistake_the_luck_of_a_seed_for_a_result(monkeypatch):
  monkeypatch.setattr(bootstrap, 'SEED_DEVIATION', 0.0)
  monkeypatch.setattr(bootstrap, 'paired_difference', normal_interval)
  assert sum(verdicts(1647, 1, 0.008)) > 0.12 and sum(verdicts(8041, 1, 0.008)) > 0.4


def test_more_seeds_find_smaller_differences(monkeypatch):
  monkeypatch.setattr(bootstrap, 'paired_difference', normal_interval)
  power = [verdicts(8041, seeds, 0.008, gain=0.03, times=100)[0] for seeds in (1, 2, 3, 5)]
  assert power == sorted(power) and power[0] < 0.2 and power[2] > 0.8 and power[3] > 0.95


@pytest.mark.parametrize('seeds', [1, 3])
def test_the_stand_in_for_the_bootstrap_is_close(seeds):
  a, b = draw(np.random.default_rng(seeds), 1647, seeds, 0.008)
  np.testing.assert_allclose(bootstrap.paired_difference(a, b), normal_interval(a, b), atol=2e-3)


def test_one_seed_allows_for_the_deviation_that_is_assumed():
  (a,), (b,) = draw(np.random.default_rng(0), 1647, 1, 0.008)
  low, high = bootstrap.paired_difference(b, a)
  mean = a.mean() - b.mean()
  allowance = 1.959964 * np.sqrt(2) * bootstrap.SEED_DEVIATION
  difference = bootstrap.difference([a], [b])
  assert difference.images == (low, high) and difference.seeds == 1
  assert difference.mean == pytest.approx(mean)
  assert difference.low == pytest.approx(mean - np.hypot(mean - low, allowance))
  assert difference.high == pytest.approx(mean + np.hypot(high - mean, allowance))
  other = bootstrap.difference([3 * a], [3 * b], is_share=False)
  assert other.low is other.high is None and not other.is_clear and other.images[0] < other.mean


def test_two_seeds_are_measured_only_where_they_deviate_more_than_is_assumed():
  rng = np.random.default_rng(1)
  base = [np.full(300, x) for x in (0.5, 0.51)]
  near, far = ([np.full(300, x) for x in values] for values in ((0.55, 0.56), (0.5, 0.61)))
  difference = bootstrap.difference(near, base)
  half = 1.959964 * bootstrap.SEED_DEVIATION
  assert difference.is_assumed and difference.high == pytest.approx(0.05 + half)
  difference = bootstrap.difference(far, base)
  assert not difference.is_assumed and difference.high - difference.mean > 0.3
  severities = bootstrap.difference(near, base, is_share=False)
  assert not severities.is_assumed and severities.high == pytest.approx(
    0.05 + 4.3027 * 0.00707, rel=1e-3
  )
  three = [[x + 0.01 * rng.normal() for x in runs + runs[:1]] for runs in (near, base)]
  assert not bootstrap.difference(*three).is_assumed


def test_the_seeds_part_is_welch_s_interval():
  """Without variation over images, the whole is Welch's t test, with SciPy's as the oracle."""
  a, b = [0.71, 0.74, 0.68, 0.7], [0.6, 0.61, 0.66, 0.62]
  ours, base = ([np.full(50, x) for x in values] for values in (a, b))
  difference = bootstrap.difference(ours, base)
  expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
  assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))
  assert difference.is_clear
  paired = bootstrap.difference(ours, base, same_weights=True)
  expected = stats.ttest_rel(a, b).confidence_interval(0.95)
  assert (paired.low, paired.high) == pytest.approx((expected.low, expected.high))
  alone = bootstrap.difference(ours[:1], base[:1], is_share=False, same_weights=True)
  assert (alone.low, alone.high) == pytest.approx((0.11, 0.11))


def test_differences_are_paired_over_images():
  rng = np.random.default_rng(0)
  base = [(rng.random(400) < 0.5).astype(float) for _ in range(3)]
  better = [np.maximum(b, np.arange(400) < 40) for b in base]
  difference = bootstrap.difference(better, base)
  assert difference.mean == pytest.approx(np.mean(better) - np.mean(base))
  low, high = difference.images
  assert 0 < low < difference.mean < high
  shuffled = bootstrap.difference([b[rng.permutation(400)] for b in better], base).images
  assert shuffled[1] - shuffled[0] > 1.8 * (high - low)


def test_examples_that_do_not_count_leave_the_mean_of_their_run_only():
  """The severity of an image that one seed has right is that of the other seeds."""
  nan = np.nan
  ours, base = [[1, nan, 3, 2], [nan, 2, 2, 2]], [[2, 2, nan, 3], [3, nan, 1, 3]]
  difference = bootstrap.difference(np.array(ours), np.array(base), is_share=False)
  assert difference.mean == pytest.approx((2 + 2) / 2 - (7 / 3 + 7 / 3) / 2)
  assert bootstrap.difference([np.full(4, nan)], [np.ones(4)]) is None
