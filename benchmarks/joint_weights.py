"""What rules for the weights of the joint decision gain on new images, by simulation.

usage: joint_weights.py [--repeats 200] [--val 30,100,300,1000,3000] [--test 20000]
                        [--cases NAME;...] [--seed 0]

Three heads on a tree of 4 x 2 x 3 classes. The logits of a head are its skill at the true class,
noise, and noise of the branches above; the coarser heads share a part of that noise with the finest
one, so that their errors are correlated. Skills are set so that the heads have the accuracies of
the case. Each repetition draws validation images, on which every rule chooses weights, and new
images. The table has the mean difference of the full-path accuracy on new images to the finest head
alone, in points, and its standard error over the repetitions. The optimum is that of a grid on
50,000 other images. Rules:

  weights 1        all heads alike, nothing tuned
  most right       the grid's weights with which most validation paths are right
  most right, cv   those, if they gain more than a standard error in cross-validation, else none;
                   up to 300 images
  shrunk           those, times n / (n + 100)
  tune             what hierjax does, see hierjax.decide.paths.tune
  tune, cv         those, if they gain more than a standard error in cross-validation, else none
  likelihood       the likelihood alone, without the factor with which most paths are right
"""

import argparse
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

from hierjax.decide import paths
from hierjax.taxonomy import Taxonomy

TREE = Taxonomy.from_rows(
  ('top', 'middle', 'leaf'), [[f'{i // 6}', f'{i // 3}', f'{i // 3}.{i % 3}'] for i in range(24)]
)
TOP, MIDDLE = TREE.paths[:, 0], TREE.paths[:, 1]
MIDDLE_TOP = np.arange(8) // 2
SIZES = (4, 8, 24)
GRID = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
MAX_GATED = 300  # images

# Accuracies of the heads, coarse to fine; None is a noisy copy of what the leaves say; the share of
# the coarser heads' noise that the finest one has too; how much too sure the heads are; the
# deviation of the log of that from image to image; the share of wrong labels.
CASES = {
  'help a lot': ((0.90, 0.83, 0.68), 0.5, (1.3, 1.3, 1.3), 0.0, 0.0),
  'help': ((0.89, 0.82, 0.70), 0.9, (1.5, 1.5, 1.3), 0.3, 0.0),
  'leaf strong': ((0.94, 0.90, 0.85), 0.95, (2.0, 2.0, 2.0), 0.3, 0.0),
  'leaf weak': ((0.77, 0.64, 0.50), 0.9, (1.3, 1.3, 1.3), 0.3, 0.0),
  'copies': ((None, None, 0.70), 1.0, (1.3, 1.3, 1.3), 0.0, 0.0),
  'weak, too sure': ((0.70, 0.60, 0.80), 0.7, (3.0, 3.0, 1.3), 0.3, 0.0),
  'chance': ((0.26, 0.13, 0.75), 0.0, (9.0, 9.0, 1.3), 0.3, 0.0),
  'heavy tails': ((0.90, 0.84, 0.75), 0.9, (3.0, 3.0, 2.0), 1.0, 0.05),
  'wrong labels': ((0.88, 0.80, 0.70), 0.95, (3.0, 3.0, 3.0), 0.5, 0.15),
}


def leaf_only():
  """Return the weights of the finest head alone."""
  return np.eye(len(TREE.levels))[-1]


def normalised(z):
  """Return softmax(z)."""
  p = np.exp(z - z.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def draw(rng, n, case, skills):
  """Draw probabilities of the three heads, coarse to fine, and rows of labels of n images."""
  accuracies, shared, sureness, tails, wrong = CASES[case]
  y, i = rng.integers(24, size=n), np.arange(n)
  hardness = np.exp(0.35 * rng.standard_normal((n, 1), 'f4'))
  top, middle, leaf = (rng.standard_normal((n, c), 'f4') for c in SIZES)
  alone = np.sqrt(1 - shared**2)
  noise = [
    shared * top + alone * rng.standard_normal((n, 4), 'f4'),
    shared * (middle + 0.5 * top[:, MIDDLE_TOP]) + alone * rng.standard_normal((n, 8), 'f4'),
    leaf + 0.7 * middle[:, MIDDLE] + 0.5 * top[:, TOP],
  ]
  signal = [np.zeros((n, c), 'f4') for c in SIZES]
  signal[1][TOP[y][:, None] == MIDDLE_TOP] += 0.5
  signal[2] += 0.6 * (MIDDLE[y][:, None] == MIDDLE) + 0.5 * (TOP[y][:, None] == TOP)
  probs = []
  for k in range(3):
    signal[k][i, TREE.paths[y, k]] += 1
    sure = sureness[k] * np.exp(tails * rng.standard_normal((n, 1), 'f4'))
    z = skills[k] * signal[k] + hardness * noise[k]
    # a head without skill is sure of its noise
    probs.append(normalised(sure * 0.8 * max(skills[k], 0.5) * z))
  for k, size in enumerate(SIZES[:2]):
    if accuracies[k] is None:
      sums = probs[2].reshape(n, size, -1).sum(-1) + 1e-30
      probs[k] = normalised(np.log(sums) + 0.5 * rng.standard_normal((n, size), 'f4'))
  y = np.where(rng.random(n) < wrong, rng.integers(24, size=n), y)
  return probs, TREE.paths[y]


def skills_of(case):
  """Find by bisection the skills with which the heads have the accuracies of the case."""
  skills = [1.0, 1.0, 1.0]
  for k, goal in enumerate(CASES[case][0]):
    low, high = 0.0, 12.0
    for _ in range(14 if goal is not None else 0):
      skills[k] = (low + high) / 2
      probs, labels = draw(np.random.default_rng(1), 8000, case, skills)
      accuracy = (probs[k].argmax(1) == labels[:, k]).mean()
      low, high = (skills[k], high) if accuracy < goal else (low, skills[k])
  return skills


class Images:
  """Images with the log probability of each path by each head, and which weights decide right."""

  def __init__(self, probs, labels):
    self.probs, self.labels, self.cache = probs, labels, {}
    self.logs = [np.log(np.maximum(p, 1e-37))[:, TREE.paths[:, k]] for k, p in enumerate(probs)]

  def right(self, weights):
    """Return bool [n], whether the path with the largest sum of weight times log is right."""
    key = tuple(map(float, weights))
    if key not in self.cache:
      scores = sum(np.float32(w) * x for w, x in zip(key, self.logs) if w)
      self.cache[key] = scores.argmax(-1) == self.labels[:, -1]
    return self.cache[key]

  def take(self, rows):
    """Return some of the images."""
    return Images([p[rows] for p in self.probs], self.labels[rows])


def most_right(images, rows=slice(None)):
  """Search the grid coordinate by coordinate for most right paths; ties go to smaller weights."""
  values = {}

  def evaluate(weights):
    key = tuple(map(float, weights))
    if key not in values:
      values[key] = int(images.right(key)[rows].sum()), -sum(key), key
    return values[key]

  for start in (0.0, 1.0):
    weights, best = np.maximum(start, leaf_only()), None
    while best != evaluate(weights):
      best = evaluate(weights)
      for k in range(len(weights) - 1):
        trials = np.repeat(weights[None], len(GRID), 0)
        trials[:, k] = GRID
        weights = max([weights, *trials], key=evaluate)
  return np.array(max(values.values())[2])


def tune(images):
  """Return the weights of `paths.tune`."""
  return paths.tune(images.probs, images.labels, TREE)


def gated(images, weights, fit):
  """Return the weights if `fit(rows)` gains more than a standard error in cross-validation."""
  fold, gain = np.arange(len(images.labels)) % 5, np.zeros(len(images.labels))
  for k in range(5):
    w, held_out = fit(np.flatnonzero(fold != k)), images.take(fold == k)
    gain[fold == k] = held_out.right(w) * 1.0 - held_out.right(leaf_only())
  return weights if is_beyond(gain, 1) else leaf_only()


def is_beyond(gain, errors):
  """Whether the mean is above so many standard errors, and above 0."""
  return gain.mean() > errors * gain.std(ddof=1) / np.sqrt(len(gain)) and gain.mean() > 0


def likelihood(images):
  """Return the weights of `paths.tune` without its last step."""
  factors, paths.FACTORS = paths.FACTORS, (1.0,)
  weights = tune(images)
  paths.FACTORS = factors
  return weights


def rules(images):
  """Return {rule: weights}, as each chooses them on validation images."""
  most, tuned, n = most_right(images), tune(images), len(images.labels)
  weights = {
    'finest alone': leaf_only(),
    'weights 1': np.ones(len(TREE.levels)),
    'most right': most,
    'shrunk': leaf_only() + n / (n + 100) * (most - leaf_only()),
    'tune': tuned,
    'likelihood': likelihood(images),
  }
  # five times the cost, and above every gain exceeds its error
  if n <= MAX_GATED:
    weights['most right, cv'] = gated(images, most, lambda rows: most_right(images, rows))
    weights['tune, cv'] = gated(images, tuned, lambda rows: tune(images.take(rows)))
  return weights


def simulate(case, sizes, repeats, test, seed):
  """Return a line on the case, and {rule: [(mean, error) a size]} of the gains in points."""
  skills = skills_of(case)
  big = Images(*draw(np.random.default_rng([seed, 2]), 50_000, case, skills))
  trials = [np.array([a, b, 1.0]) for a in GRID for b in GRID]
  optimum = max(trials, key=lambda w: big.right(w).sum())
  level_right = [(p.argmax(1) == big.labels[:, k]).mean() for k, p in enumerate(big.probs)]
  from_leaf = (TREE.paths[big.probs[-1].argmax(1)] == big.labels).mean(0)
  text = ', '.join(
    f'{level} {a:.3f} (read off the leaf {b:.3f})'
    for level, a, b in zip(TREE.levels, level_right, from_leaf)
  )
  text += f'; optimum {optimum[0]:g}, {optimum[1]:g}, 1'
  gains = {}
  for repeat in range(repeats):
    rng = np.random.default_rng([seed, 3, repeat])
    new, val = (Images(*draw(rng, n, case, skills)) for n in (test, max(sizes)))
    alone = new.right(leaf_only()).mean()
    for n in sizes:
      for rule, weights in {**rules(val.take(slice(n))), 'optimum': optimum}.items():
        gains.setdefault(rule, {}).setdefault(n, []).append(new.right(weights).mean() - alone)
  return text, {
    rule: [(100 * np.mean(x), 100 * np.std(x, ddof=1) / np.sqrt(repeats)) for x in row.values()]
    for rule, row in gains.items()
  }


def main():
  """Print a table a case."""
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--repeats', type=int, default=200)
  p.add_argument('--val', default='30,100,300,1000,3000')
  p.add_argument('--test', type=int, default=20_000)
  p.add_argument('--cases', default=';'.join(CASES), help='names divided by semicolons')
  p.add_argument('--seed', type=int, default=0)
  a = p.parse_args()
  sizes = [int(n) for n in a.val.split(',')]
  for case in a.cases.split(';'):
    start = time.monotonic()
    text, table = simulate(case, sizes, a.repeats, a.test, a.seed)
    print(f'{case}: {text}')
    print(f'  {"validation images":18}' + ''.join(f'{n:>14}' for n in sizes))
    for rule, row in table.items():
      print(f'  {rule:18}' + ''.join(f'{mean:+8.2f} ± {error:.2f}' for mean, error in row))
    print(f'  {time.monotonic() - start:.0f} s', flush=True)


if __name__ == '__main__':
  main()
