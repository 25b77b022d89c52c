"""Multi levels: an image has any number of their classes, each with a probability of its own (sigmoid), none larger than that of a class above it.

A row of M holds the classes of all multi levels side by side (Taxonomy.columns). Everything here is of such rows: the loss with the max constraint, the
decision by a threshold for each class, the thresholds' tuning, the scores.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from sklearn import metrics as sklearn_metrics

from hierjax.taxonomy import Taxonomy

LOW = -1e30  # a logit of no probability; other than -inf it leaves no NaN in gradients

# ({level: logits [B, C]}, labels [B, L + M]) → {level: (loss [B], share of right answers at .5 [B], which of them count [B])}
Loss = Callable[[Mapping[str, jax.Array], jax.Array], dict[str, tuple[jax.Array, jax.Array, jax.Array]]]


def join(parts: Mapping, taxonomy: Taxonomy):
  """{multi level: [..., C]} → [..., M], numpy or jax."""
  values = [parts[level] for level in taxonomy.multi]
  return (np if isinstance(values[0], np.ndarray) else jnp).concatenate(values, -1)


def split(rows, taxonomy: Taxonomy) -> dict:
  """[..., M] → {multi level: [..., C]}"""
  return {level: rows[..., place] for level, place in taxonomy.columns.items()}


def nested(taxonomy: Taxonomy) -> bool:
  """Whether any class is below another."""
  return bool(taxonomy.descendants.sum() > len(taxonomy.descendants))


def highest(values: jax.Array, taxonomy: Taxonomy, where: jax.Array | None = None) -> jax.Array:
  """[B, M] → of each class the largest value among itself and those below it, among those only `where`, bool [B, M], allows them (LOW where none is): the max
  constraint of C-HMCNN (Giunchiglia and Lukasiewicz 2020, arXiv:2010.10151, section 3)."""
  if not nested(taxonomy) and where is None:
    return values
  counts = jnp.asarray(taxonomy.descendants)[None]
  if where is not None:
    counts = counts & where[:, None, :]
  return jnp.max(jnp.where(counts, values[:, None, :], LOW), -1)


def constrained(logits: jax.Array, labels: jax.Array, taxonomy: Taxonomy) -> jax.Array:
  """The logits [B, M] that the loss of C-HMCNN (its equation for MCLoss) sees, labels [B, M] of 1, 0 and -1: where a class is there, the largest among those
  below it that are there too, else the largest of all below it. So a child's wrong yes is no reason to say yes to its parent. As the sigmoid grows with the
  logit, the largest probability is that of the largest logit."""
  if not nested(taxonomy):
    return logits
  there = labels == 1
  return jnp.where(there, highest(logits, taxonomy, there), highest(logits, taxonomy))


def positive_weights(labels: np.ndarray) -> np.ndarray:
  """float32 [M]: negatives for each positive of a class in the known labels int [N, M]; 1 for a class without positives or without negatives."""
  there, not_there = (labels == 1).sum(0), (labels == 0).sum(0)
  return np.where((there > 0) & (not_there > 0), not_there / np.maximum(there, 1), 1).astype(np.float32)


def build(c: ConfigDict, taxonomy: Taxonomy, labels: np.ndarray) -> Loss:
  """Of the config's `loss`: binary cross-entropy or focal loss (Lin et al. 2017, arXiv:1708.02002), an image's the mean over the classes of the level that are
  known of it. labels int [N, M] are those of the training split, for the positives' weights."""
  weight = jnp.asarray(positive_weights(labels) if c.loss.pos_weight else np.ones(labels.shape[1], np.float32))

  def loss(logits, rows):
    y, x = rows[:, len(taxonomy.levels):], join(logits, taxonomy).astype(jnp.float32)
    known, target, seen = (y >= 0).astype(jnp.float32), (y == 1).astype(jnp.float32), constrained(x, y, taxonomy)
    values = optax.sigmoid_focal_loss(seen, target, None, c.loss.focal_gamma) if c.loss.binary == 'focal' else optax.sigmoid_binary_cross_entropy(seen, target)
    values = values * jnp.where(y == 1, weight[None], 1.0)
    right = ((highest(x, taxonomy) >= 0) == (y == 1)).astype(jnp.float32)
    out = {}
    for level, place in taxonomy.columns.items():
      n = known[:, place].sum(1)
      mean = lambda v: (v[:, place] * known[:, place]).sum(1) / jnp.maximum(n, 1)  # noqa: B023
      out[level] = mean(values), mean(right), n
    return out

  return loss


# Decisions and scores, in numpy.


def decide(prob: np.ndarray, thresholds: np.ndarray, taxonomy: Taxonomy) -> np.ndarray:
  """bool [N, M]: the classes whose probability [N, M] reaches their threshold [M], and all above these, so that no answer contradicts the taxonomy, whatever
  the thresholds."""
  over = prob >= thresholds
  return over @ taxonomy.descendants.T if nested(taxonomy) else over


def average_precision(prob: np.ndarray, labels: np.ndarray) -> float | None:
  """Area under the precision-recall curve of scores [N] for labels [N] of 1, 0 and -1 (unknown, left out), in steps; None without a positive."""
  known = labels >= 0
  return float(sklearn_metrics.average_precision_score(labels[known], prob[known])) if (labels == 1).any() else None


def best_threshold(prob: np.ndarray, labels: np.ndarray) -> float:
  """Where F1 is largest on the precision-recall curve of scores [N], labels [N] of 1, 0 and -1 (S4); the lowest such score, .5 without a positive."""
  known = labels >= 0
  if not (labels == 1).any():
    return .5
  precision, recall, thresholds = sklearn_metrics.precision_recall_curve(labels[known], prob[known])
  f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
  return float(thresholds[f1[:-1].argmax()])


def tune(probs: Mapping[str, np.ndarray], labels: np.ndarray, taxonomy: Taxonomy) -> dict[str, np.ndarray]:
  """{multi level: thresholds float64 [C]}, each class's best on these examples (val, never test). labels [N, M]."""
  rows = join(probs, taxonomy)
  return split(np.array([best_threshold(rows[:, m], labels[:, m]) for m in range(rows.shape[1])]), taxonomy)


def f1(decided: np.ndarray, labels: np.ndarray) -> dict[str, float]:
  """{'precision', 'recall', 'f1'} of yes and no, bool and int of one shape; unknown labels (-1) left out, 0 where there is nothing to divide by."""
  hits, yes, there = (float(x.sum()) for x in (decided & (labels == 1), decided & (labels >= 0), labels == 1))
  return {'precision': hits / max(yes, 1), 'recall': hits / max(there, 1), 'f1': 2 * hits / max(yes + there, 1)}


def mean(values) -> float | None:
  values = [v for v in values if v is not None]
  return float(np.mean(values)) if values else None


def summary(probs: Mapping[str, np.ndarray], labels: np.ndarray, thresholds: Mapping[str, np.ndarray], taxonomy: Taxonomy) -> dict:
  """What eval_SPLIT.json holds of multi levels: {'multi': {LEVEL: mAP and F1, of it and of each class, at .5 ('half') and at the thresholds ('tuned')}, 'hvr':
  {'single': share of images whose classes over their tuned thresholds, each for itself, contradict the taxonomy, 'decided': the same of the decision}}.

  Means over classes (macro) are over those with a positive; micro is over all pairs of image and class.
  """
  prob, tuned = join(probs, taxonomy), join(thresholds, taxonomy)
  decided = {'half': decide(prob, np.full(len(tuned), .5), taxonomy), 'tuned': decide(prob, tuned, taxonomy)}
  out = {}
  for level, place in taxonomy.columns.items():
    y, classes = labels[:, place], {}
    for i, name in enumerate(taxonomy.names[taxonomy.index(level)]):
      m = place.start + i
      classes[name] = {'n': int((y[:, i] >= 0).sum()), 'positives': int((y[:, i] == 1).sum()), 'ap': average_precision(prob[:, m], y[:, i]),
                       'threshold': float(tuned[m]), **{k: f1(d[:, m], y[:, i]) for k, d in decided.items()}}
    some = [c for c in classes.values() if c['positives']]
    out[level] = {'map': mean(c['ap'] for c in some), 'micro_map': average_precision(prob[:, place].ravel(), y.ravel()), 'classes': classes,
                  **{k: {'f1': mean(c[k]['f1'] for c in some) or 0.0, 'micro_f1': f1(d[:, place], y)['f1']} for k, d in decided.items()}}
  violated = lambda yes: float((taxonomy.contradicts(yes.astype(np.int8))[:, 0] >= 0).mean())
  return {'multi': out, 'hvr': {'single': violated(prob >= tuned), 'decided': violated(decided['tuned'])}}


def flat(probs: Mapping[str, np.ndarray], labels: np.ndarray, taxonomy: Taxonomy) -> dict[str, float]:
  """The few numbers that training logs and chooses checkpoints by; F1 is the mean over the classes at .5."""
  found = summary(probs, labels, {level: np.full(taxonomy.num_classes(level), .5) for level in taxonomy.multi}, taxonomy)['multi']
  return {f'{name}/{level}': of if isinstance(of := v[key], float) else of['f1'] if of else 0.0
          for level, v in found.items() for name, key in (('map', 'map'), ('micro_map', 'micro_map'), ('f1', 'half'))}
