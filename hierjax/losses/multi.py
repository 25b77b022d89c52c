"""What a run makes of multi levels (multilabel.py has the formulas): their loss, their decision, the thresholds' tuning, what an evaluation tells.

An image has any number of a multi level's classes, each with a probability of its own, none larger than that of a class above it. A row of M holds the
classes of all multi levels side by side (Taxonomy.columns). Taxonomies here are those of the multi levels, but where exclusive levels matter too.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from hierjax.losses import multilabel, tags
from hierjax.taxonomy import Mixed, Taxonomy


def join(parts: Mapping, taxonomy: Taxonomy):
  """{multi level: [..., C]} → [..., M], numpy or jax."""
  values = [parts[level] for level in taxonomy.multi]
  return (np if isinstance(values[0], np.ndarray) else jnp).concatenate(values, -1)


def split(rows, taxonomy: Taxonomy) -> dict:
  """[..., M] → {multi level: [..., C]}"""
  return {level: rows[..., place] for level, place in taxonomy.columns.items()}


def probabilities(
  probs: Mapping[str, jax.Array], taxonomy: Taxonomy | Mixed
) -> dict[str, jax.Array]:
  """{multi level: [B, C]} of the heads, raised so that none exceeds that of a multi class above it, then lowered to that of the exclusive classes above it.

  A class lies below all that those above it lie below, so the second does not undo the first. A level without a head lowers nothing.
  """
  t = taxonomy.several
  p = join(probs, t)
  if len(t.levels) > 1:
    p = tags.max_constraint(p, t.edges)
  if taxonomy.exclusive:
    for level, above in zip(taxonomy.exclusive.levels, taxonomy.above.T):
      if level in probs:
        p = jnp.minimum(p, jnp.where(above[None] < 0, 1.0, probs[level][:, np.maximum(above, 0)]))
  return split(p, t)


# Decisions and scores, in numpy.


def decide(
  prob: np.ndarray, thresholds: np.ndarray, taxonomy: Taxonomy, fits: np.ndarray | bool = True
) -> np.ndarray:
  """bool [N, M]: the classes whose probability [N, M] reaches their threshold [M], and all above these: no answer contradicts the taxonomy, whatever the
  thresholds. (Lowering a class's threshold to the lowest below it would do it too, with one rare class's for all above it.) Beside an exclusive path only
  those that fit it, bool [N, M] of Mixed.fits; what fits has only what fits above it."""
  on = multilabel.decide(prob, thresholds) & fits
  return np.stack([on[:, below].any(1) for below in taxonomy.below], 1)


def tune(
  probs: Mapping[str, np.ndarray], labels: np.ndarray, taxonomy: Taxonomy
) -> dict[str, np.ndarray]:
  """{multi level: thresholds float64 [C]}, each class's best on these examples (val, never test). labels [N, M]."""
  return split(multilabel.best_thresholds(join(probs, taxonomy), labels), taxonomy)


def summary(
  probs: Mapping[str, np.ndarray],
  labels: np.ndarray,
  thresholds: Mapping[str, np.ndarray],
  taxonomy: Taxonomy,
  fits: np.ndarray | bool = True,
) -> dict:
  """What eval_SPLIT.json holds of multi levels: {'multi': {LEVEL: multilabel.evaluate's}, 'hvr': {'single': share of images whose classes over their
  thresholds, each for itself, contradict the taxonomy or the exclusive path that they must fit, 'decided': the same of the decision}}."""
  prob, tuned = join(probs, taxonomy), join(thresholds, taxonomy)
  on = decide(prob, tuned, taxonomy, fits)
  found = {
    level: multilabel.evaluate(
      prob[:, place],
      labels[:, place],
      tuned[place],
      taxonomy.names[taxonomy.index(level)],
      on[:, place],
    )
    for level, place in taxonomy.columns.items()
  }
  violated = {
    name: float(((taxonomy.contradicts(x)[:, 0] >= 0) | (x & ~np.asarray(fits)).any(1)).mean())
    for name, x in (('single', prob >= tuned), ('decided', on))
  }
  return {'multi': found, 'hvr': violated}


def at_half(probs: Mapping[str, np.ndarray], labels: np.ndarray, taxonomy: Taxonomy) -> dict:
  """Evaluate the multi levels with all thresholds at one half, as training does on val."""
  halves = {
    level: np.full(taxonomy.num_classes(level), multilabel.HALF) for level in taxonomy.multi
  }
  return summary(probs, labels, halves, taxonomy)['multi']
